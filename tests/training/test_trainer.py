"""Training: it learns, goes on where it was killed, agrees with itself in two processes, and says what is wrong."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from msgspec.structs import replace
from typer.testing import CliRunner

from knn_cli.audio import reading, speech_activity, speech_regions
from knn_cli.cli.app import app
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Waveform
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks import bundle
from knn_cli.recognition.classifier import Classifier
from knn_cli.store.hdf5 import AudioRow
from knn_cli.store.writer import StoreWriter
from knn_cli.training import distributed, trainer
from knn_cli.training.checkpoints import TrainingFolder, load, save
from knn_cli.training.dataset import open_corpus
from knn_cli.training.distributed import TrainingStopped
from knn_cli.training.finishing import TrainingResult
from knn_cli.training.model_builder import ModelBuilder
from knn_cli.training.recipe import ComponentConfig, Recipe
from knn_cli.training.recipe_reader import parse, read
from knn_cli.training.trainer import train
from knn_cli.training.validation import EpochResult, evaluate_held_out
from tests.helpers.killed import locked_elsewhere

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 16000
TINY = {
    "name": "wavlm",
    "convolutions": [[16, 10, 5], [16, 8, 8], [16, 4, 4]],
    "channels": 32,
    "blocks": 2,
    "heads": 2,
    "inner": 64,
    "position_kernel": 16,
    "position_groups": 4,
}
MHFA = {"name": "mhfa", "heads": 4, "compression": 16, "dimension": 16}


def tones(path: Path, recordings: int = 8, seconds: float = 1.0, classes: int = 2) -> Path:
    """An audio store of noisy tones: class 0 low, class 1 high, as many recordings each, of two rows."""
    random = np.random.default_rng(0)
    time = np.arange(round(seconds * RATE)) / RATE

    def rows(label: int, number: int) -> list[AudioRow]:
        hertz = 300 * 3**label * random.uniform(0.9, 1.1)
        found = []
        for part in range(2):
            sound = 0.3 * np.sin(2 * np.pi * hertz * time) + 0.03 * random.standard_normal(len(time))
            labels = f"r{label}{number:02d}", str(label), f"{label}-1", f"s{label}{number}"
            found.append(
                AudioRow(Waveform(sound.astype(np.float32), RATE), *labels, part * seconds, (part + 1) * seconds)
            )
        return found

    with StoreWriter(path, "audio", {"rate": RATE}, plan={"tones": recordings}) as writer:
        for label in range(classes):
            for number in range(recordings):
                writer.add(f"{label}/{number}", rows(label, number))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tones(tmp_path_factory.mktemp("corpus") / "tones.h5")


def tiny(**tables: Any) -> Recipe:
    """A recipe of a tiny network; tables are laid over its own."""
    base: dict[str, Any] = {
        "encoder": TINY,
        "pooling": MHFA,
        "head": {"name": "aam-softmax", "margin": 0.1, "scale": 16.0},
        "data": {"label": "group", "seconds": 0.3, "held_out": 0.25, "evaluate_seconds": 1.0},
        "optimizer": {"rate": 2e-3},
        "schedule": {"epochs": 2},
        "loop": {"batch": 4, "log": 1, "checkpoint": 2},
    }
    for name, table in tables.items():
        base[name] = {**base.get(name, {}), **table} if isinstance(table, dict) else table
        if isinstance(table, dict):
            base[name] = {key: value for key, value in base[name].items() if value is not None}
    return parse(base, "tiny")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(bundle.load_network(bundle.find(folder)).state_dict())


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def run(corpus: Path, out: Path, recipe: Recipe, **options: Any) -> TrainingResult:
    return train(corpus, out, recipe, device="cpu", use_vad=False, **options)


def test_32_clips_are_learnt_by_heart_and_the_bundle_classifies(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny(data={"held_out": 0.0}, schedule={"epochs": 15}, loop={"batch": 16, "checkpoint": 1000})
    seen: list[EpochResult] = []
    done = run(corpus, tmp_path / "mine", recipe, report=seen.append)
    assert (done.train_rows, done.held_out_rows, done.epochs) == (32, 0, 15) and math.isnan(done.accuracy)
    assert seen[-1].loss < 0.1 < seen[0].loss
    found = bundle.find(tmp_path / "mine")
    assert found.head_labels == ("0", "1") and found.classifier is not None
    tables = list(Classifier(tmp_path / "mine", device="cpu").score_store(corpus, use_vad=False))
    right = sum((table.log_likelihood.argmax(1) == table.truth.astype(int)).sum() for table in tables)
    assert right == 32
    rest = {path.name for path in (tmp_path / "mine.training").iterdir()}
    assert rest == {"metrics.jsonl"}


class Killed(Exception):
    pass


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_goes_on_to_the_same_weights(corpus: Path, tmp_path: Path, seed: int) -> None:
    recipe = tiny(
        seed=seed,
        optimizer={"name": ["adamw", "sgd"][seed]},
        augment={"speeds": [0.9, 1.1], "gain_decibels": 6.0, "speed_classes": bool(seed)},
        loop={"ema": 0.9 * seed, "keep": ["best", "last"][seed], "clip": 1.0},
        tuning={"layer_drop": 0.3},
        schedule={"warmup": 1.0, "decay": 0.9},
    )
    whole = run(corpus, tmp_path / "whole", recipe)
    kill = int(np.random.default_rng(seed).integers(3, 12))

    def killer(step: int, total: int) -> None:
        if step == kill:
            raise Killed

    with pytest.raises(Killed):
        run(corpus, tmp_path / "killed", recipe, progress=killer)
    again: list[int] = []
    resumed = run(corpus, tmp_path / "killed", recipe, progress=lambda step, total: again.append(step))
    assert again[0] in (kill - 1, kill, kill + 1) and again[-1] == 12
    assert losses(tmp_path / "killed.training") == losses(tmp_path / "whole.training")
    assert resumed.accuracy == whole.accuracy
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def toml(path: Path, recipe: dict[str, Any]) -> Path:
    """Write nested tables of plain values as TOML."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in recipe.items() if not isinstance(value, dict)]
    for name, table in recipe.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    path.write_text("\n".join(lines))
    return path


def test_a_process_that_is_killed_outright_leaves_what_is_needed(corpus: Path, tmp_path: Path) -> None:
    tables = {"encoder": TINY, "pooling": MHFA, "head": {"name": "softmax"}, "schedule": {"epochs": 2}}
    tables |= {"data": {"label": "group", "seconds": 0.3, "held_out": 0.25}, "loop": {"batch": 4, "checkpoint": 1}}
    recipe = toml(tmp_path / "tiny.toml", tables)
    kill = int(np.random.default_rng().integers(2, 12))
    script = f"""
import os, signal, sys, torch
from knn_cli.training.recipe_reader import read
from knn_cli.training.trainer import train
torch.set_num_threads(1)
def killer(step, total):
    if step == {kill}:
        os.kill(os.getpid(), signal.SIGKILL)
train(sys.argv[1], sys.argv[2], read(sys.argv[3]), device="cpu", use_vad=False, progress=killer)
"""
    command = [sys.executable, "-c", script, str(corpus), str(tmp_path / "killed"), str(recipe)]
    done = subprocess.run(command)
    assert done.returncode == -signal.SIGKILL and load(tmp_path / "killed.training" / "last.pt")["step"] >= kill - 1
    for name in ("killed", "whole"):
        run(corpus, tmp_path / name, read(recipe))
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(value, second[name]) for name, value in first.items()), f"killed at step {kill}"


def test_two_processes_of_torchrun_follow_the_losses_of_one(corpus: Path, tmp_path: Path) -> None:
    tables = {
        "encoder": TINY,
        "pooling": MHFA,
        "head": {"name": "aam-softmax", "scale": 16.0, "subcenters": 2, "top_k": 1},
        "margin": {"start": 0.0, "end": 0.2, "last": 1.0},
        "data": {"label": "group", "seconds": 0.3, "held_out": 0.25},
        "augment": {"speeds": [0.9], "eq_share": 0.5, "band_share": 0.5},
        "optimizer": {"rate": 0.01, "name": "sgd"},
        "schedule": {"epochs": 2, "final_rate": 0.005},
        "tuning": {"layer_drop": 0.3},
        "loop": {"batch": 8, "accumulate": 2, "log": 1, "clip": 5.0, "classifier": "head"},
    }
    recipe = toml(tmp_path / "tiny.toml", tables)
    alone = run(corpus, tmp_path / "one", read(recipe))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "knn_cli", "train", corpus, "--recipe", recipe, "-o", tmp_path / "two", "--no-vad"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*map(str, command), "--device", "cpu"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "one.training"), losses(tmp_path / "two.training")
    assert list(one) == list(range(1, 7)) and one.keys() == two.keys()
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((value - second[name]).abs().max()) for name, value in first.items()) < 1e-4
    assert done.stdout.count("labels      2: 0, 1") == 1  # one of the processes has the word
    assert f"accuracy    {alone.accuracy:.1%} (head" in done.stdout


def test_a_loss_that_is_no_number_is_one_sentence(corpus: Path, tmp_path: Path) -> None:
    head = {"name": "softmax", "margin": None, "scale": None}
    recipe = tiny(optimizer={"rate": 1e20, "name": "sgd"}, head=head, loop={"checkpoint": 1})
    with pytest.raises(KnnError, match=r"not a number at step 2; the checkpoint in .* is of before"):
        run(corpus, tmp_path / "mine", recipe)
    assert not (tmp_path / "mine").exists()
    assert load(tmp_path / "mine.training" / "last.pt")["step"] == 1


def test_a_full_disk_is_one_sentence_and_spoils_no_checkpoint(tmp_path: Path) -> None:
    script = """
import resource, sys, torch
from pathlib import Path
from knn_cli.core.errors import KnnError
from knn_cli.training.finishing import TrainingResult
from knn_cli.training.checkpoints import load, save
from knn_cli.training.metrics_log import MetricsLog
folder = Path(sys.argv[1])
save(folder / "last.pt", {"step": 1, "weights": torch.zeros(10)})
metrics = MetricsLog(folder / "metrics.jsonl", 1, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    save(folder / "last.pt", {"step": 2, "weights": torch.zeros(100000)})
except KnnError as error:
    print(error)
try:
    for step in range(100):
        metrics.write({"step": step, "loss": 0.123456789})
except KnnError as error:
    print(error)
assert load(folder / "last.pt")["step"] == 1
assert {path.name for path in folder.iterdir()} == {"last.pt", "metrics.jsonl"}
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "last.pt cannot be written: File too large." in first
    assert "metrics.jsonl cannot be written: File too large." in second


def test_what_is_missing_is_named(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(KnnError, match="single recording"):
        run(corpus, tmp_path / "a", tiny(data={"label": "speaker"}))
    with pytest.raises(KnnError, match="only '0' in rows"):
        run(corpus, tmp_path / "a", tiny(data={"ignore": ["1"]}))
    with pytest.raises(KnnError, match="differ in 1"):
        run(corpus, tmp_path / "a", tiny(loop={"class_weights": {"0": 1.0}}))
    with pytest.raises(KnnError, match="fp16 needs a CUDA device"):
        run(corpus, tmp_path / "a", tiny(loop={"precision": "fp16"}))
    with pytest.raises(KnnError, match="its head has no margin"):
        run(corpus, tmp_path / "a", tiny(head={"name": "softmax", "margin": None, "scale": None}, margin={"end": 0.3}))
    with pytest.raises(KnnError, match="does not exist"):
        run(tmp_path / "nothing.h5", tmp_path / "a", tiny())
    assert not (tmp_path / "a").exists()


def test_another_recipe_does_not_take_over_an_unfinished_training(corpus: Path, tmp_path: Path) -> None:
    def stop(step: int, total: int) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(corpus, tmp_path / "mine", tiny(), progress=stop)
    with pytest.raises(KnnError, match="another training that is not finished"):
        run(corpus, tmp_path / "mine", tiny(optimizer={"rate": 1e-4}))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A shell's background jobs ignore Ctrl-C, and what `nohup` starts the end of its terminal."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on(
    corpus: Path, tmp_path: Path, heard: None, name: str, code: int
) -> None:
    def ask(step: int, total: int) -> None:
        if step == 3:
            for _ in range(2):  # as `timeout` sends it
                os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(TrainingStopped, match=r"Stopped after step 4.*mine\.training; the same command") as found:
        run(corpus, tmp_path / "mine", tiny(loop={"checkpoint": 1000}), progress=ask)
    assert found.value.code == code and signal.getsignal(getattr(signal, name)) == before
    seen: list[int] = []
    run(corpus, tmp_path / "mine", tiny(loop={"checkpoint": 1000}), progress=lambda step, total: seen.append(step))
    assert seen[0] == 5


def test_ctrl_c_need_not_wait_for_what_a_checkpoint_spares(
    corpus: Path, tmp_path: Path, heard: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last step of an epoch, or while it is measured: the checkpoint is there, and nothing is measured."""
    recipe = tiny(loop={"checkpoint": 1000})
    seen: list[int] = []

    def interrupted(*args: Any) -> tuple[float, float]:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it goes on")

    def ask(step: int, total: int) -> None:
        seen.append(step)
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate_held_out", interrupted)
        with pytest.raises(TrainingStopped, match="after step 6"):
            run(corpus, tmp_path / "mine", recipe, progress=ask)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "mine", recipe, progress=ask)
    run(corpus, tmp_path / "mine", recipe, progress=lambda step, total: seen.append(step))
    assert seen == list(range(1, 13))


def test_ctrl_c_that_is_repeated_stops_at_once(
    corpus: Path, tmp_path: Path, heard: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "REPEAT_SECONDS", -1.0)

    def ask(step: int, total: int) -> None:
        for _ in range(2 * (step == 2)):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "mine", tiny(loop={"checkpoint": 1}), progress=ask)
    assert load(tmp_path / "mine.training" / "last.pt")["step"] == 2


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_signal_to_every_process_lets_workers_finish_the_step(
    corpus: Path, tmp_path: Path, heard: None, name: str
) -> None:
    def ask(step: int, total: int) -> None:
        if step == 2:
            pids = [str(process.pid) for process in multiprocessing.active_children()]
            assert pids
            subprocess.run(["kill", f"-{name}", *pids, str(os.getpid())], check=True)  # as a stranger does

    recipe = tiny(data={"workers": 1}, loop={"checkpoint": 1000})
    with pytest.raises(TrainingStopped, match="after step 3"):
        run(corpus, tmp_path / "mine", recipe, progress=ask)


def test_a_run_that_dies_while_it_is_measured_goes_on_from_there(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is written before held-out rows are heard, and a signal in between stops after them."""
    recipe = tiny(loop={"checkpoint": 1000, "average": 2})
    run(corpus, tmp_path / "whole", recipe)

    def die(*args: Any) -> tuple[float, float]:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer, "evaluate_held_out", die)
        run(corpus, tmp_path / "mine", recipe)
    assert load(tmp_path / "mine.training" / "last.pt")["step"] == 6

    def ask(*args: Any) -> tuple[float, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_held_out(*args)

    seen: list[int] = []
    with monkeypatch.context() as patch, pytest.raises(TrainingStopped, match="after step 6"):
        patch.setattr(trainer, "evaluate_held_out", ask)
        run(corpus, tmp_path / "mine", recipe, progress=lambda step, total: seen.append(step))
    run(corpus, tmp_path / "mine", recipe, progress=lambda step, total: seen.append(step))
    assert seen == list(range(7, 13))
    logs = [(tmp_path / f"{name}.training" / "metrics.jsonl").read_text().splitlines() for name in ("whole", "mine")]
    one, two = ([{**json.loads(line), "time": 0} for line in log] for log in logs)
    assert one == two and [line["epoch"] for line in two if "epoch" in line] == [1, 2]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "mine")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_full_disk_stops_a_run_that_then_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(corpus, tmp_path / "whole", tiny())
    saved = torch.save
    count = 0

    def full(state: Any, file: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved(state, file)

    with monkeypatch.context() as patch, pytest.raises(KnnError, match=r"last\.pt cannot be written: No space left"):
        patch.setattr(torch, "save", full)
        run(corpus, tmp_path / "mine", tiny())
    assert load(tmp_path / "mine.training" / "last.pt")["step"] == 4
    assert {path.name for path in (tmp_path / "mine.training").iterdir()} == {"plan.json", "last.pt", "metrics.jsonl"}
    run(corpus, tmp_path / "mine", tiny())
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "mine")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_metrics_of_earlier_runs_stay(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny(schedule={"epochs": 1}, loop={"classifier": "head"})
    for number, force in enumerate((False, True, True)):
        run(corpus, tmp_path / "mine", replace(recipe, seed=number), force=force)
    folder = tmp_path / "mine.training"
    assert {path.name for path in folder.iterdir()} == {"metrics.jsonl", "metrics.1.jsonl", "metrics.2.jsonl"}
    first = [json.loads(line)["loss"] for line in (folder / "metrics.1.jsonl").read_text().splitlines()[:1]]
    second = [json.loads(line)["loss"] for line in (folder / "metrics.2.jsonl").read_text().splitlines()[:1]]
    assert first != second


def test_tensorboard_shows_every_step_once(corpus: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def stop(step: int, total: int) -> None:
        if step == 8:
            raise Killed

    recipe = tiny(loop={"tensorboard": True, "classifier": "head"}, margin={"end": 0.2})
    with pytest.raises(Killed):
        run(corpus, tmp_path / "mine", recipe, progress=stop)
    run(corpus, tmp_path / "mine", recipe)
    found = accumulator.EventAccumulator(str(tmp_path / "mine.training" / "tensorboard"))
    found.Reload()
    expected = losses(tmp_path / "mine.training")
    assert [one.step for one in found.Scalars("loss")] == list(expected) == list(range(1, 13))
    assert [one.value for one in found.Scalars("loss")] == pytest.approx(list(expected.values()))
    assert [one.step for one in found.Scalars("accuracy")] == [6, 12]
    assert {"rate", "gradient", "margin", "epoch_loss"} <= set(found.Tags()["scalars"])


def test_large_margin_fine_tuning_begins_where_the_first_training_ended(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "first", tiny(schedule={"epochs": 1}, loop={"classifier": "head"}))
    init = {"model": str(tmp_path / "first"), "parts": ["encoder", "pooling", "head"]}
    tables: dict[str, Any] = {
        "init": init,
        "head": {"margin": 0.5},
        "data": {"label": "group", "seconds": 0.5, "held_out": 0.25},
        "optimizer": {"rate": 1e-20, "weight_decay": 0.0},
        "schedule": {"epochs": 1},
        "loop": {"batch": 8, "log": 1, "average": 2},
        "tuning": {"pull": 0.01},
    }
    run(corpus, tmp_path / "second", parse(tables))
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.allclose(value, second[name]) for name, value in first.items())
    config = bundle.find(tmp_path / "second").config
    assert config["head"]["args"] == {"margin": 0.5, "scale": 16.0} and config["training"]["init"]
    assert bundle.find(tmp_path / "first").classifier is None
    with pytest.raises(KnnError, match="has other labels"):
        run(corpus, tmp_path / "third", parse(tables | {"data": {"label": "subgroup", "held_out": 0.0}}))


def test_a_second_stage_is_not_measured_on_what_the_first_heard(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "first", tiny(schedule={"epochs": 1}, loop={"classifier": "head"}))
    assert "began as" not in (tmp_path / "first" / "README.md").read_text()
    tables: dict[str, Any] = {
        "init": {"model": str(tmp_path / "first"), "parts": ["encoder", "pooling"]},
        "head": {"name": "softmax"},
        "data": {"label": "group", "seconds": 0.3, "held_out": 0.25},
        "schedule": {"epochs": 1},
        "loop": {"batch": 8, "classifier": "head"},
    }
    for change in ({"seed": 5}, {"data": {**tables["data"], "held_out": 0.5}}):
        with pytest.raises(
            KnnError, match=r"held-out rows are of recordings that first, .* was trained on. Split as"
        ) as e:
            run(corpus, tmp_path / "second", parse(tables | change))
        assert "seed = 0, label = 'group'" in str(e.value)
    run(corpus, tmp_path / "second", parse(tables))
    card = (tmp_path / "second" / "README.md").read_text()
    assert "with which this training began" not in card
    splits = bundle.find(tmp_path / "second").config["training"]["splits"]
    assert len(splits) == 1 and splits[0]["data"]["held_out"] == 0.25
    run(corpus, tmp_path / "blind", parse(tables | {"seed": 5, "data": {**tables["data"], "held_out": 0.0}}))
    again = {**tables["init"], "model": str(tmp_path / "blind")}
    with pytest.raises(KnnError, match="8 of 8 held-out rows"):  # the grandchild's split is the first one's
        run(corpus, tmp_path / "third", parse(tables | {"init": again}))
    run(corpus, tmp_path / "third", parse(tables | {"init": {**again, "heard": "allow"}}))
    card = " ".join((tmp_path / "third" / "README.md").read_text().split())
    assert "8 of the 8 held-out rows are of recordings that blind" in card and "the accuracy is too good" in card
    other = tones(tmp_path / "other.h5", recordings=6)
    run(other, tmp_path / "fourth", parse(tables))
    card = " ".join((tmp_path / "fourth" / "README.md").read_text().split())
    assert "first, with which this training began, was trained on other sound too" in card


def test_bundles_hold_no_paths_of_this_machine(corpus: Path, tmp_path: Path) -> None:
    noise = tmp_path / "secret" / "noise"
    noise.mkdir(parents=True)
    soundfile.write(noise / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    run(corpus, tmp_path / "secret" / "first", tiny(schedule={"epochs": 1}, loop={"classifier": "head"}))
    recipe = tiny(
        init={"model": str(tmp_path / "secret" / "first")},
        augment={"noise": str(noise)},
        data={"labels": str(tmp_path / "secret" / "labels.csv")},
        schedule={"epochs": 1},
        loop={"classifier": "head"},
        encoder={key: None for key in TINY},
    )
    run(corpus, tmp_path / "second", recipe)
    for name in ("config.json", "README.md"):
        assert "secret" not in (tmp_path / "second" / name).read_text()
    told = bundle.find(tmp_path / "second").config["training"]["recipe"]
    assert (told["init"]["model"], told["augment"]["noise"]) == ("first", "noise")
    assert told["data"]["labels"] == "labels.csv"


def test_adapters_are_trained_resumed_and_carried_by_the_bundle(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "first", tiny(schedule={"epochs": 1}, loop={"classifier": "head"}))
    tables: dict[str, Any] = {
        "init": {"model": str(tmp_path / "first"), "parts": ["encoder"]},
        "pooling": MHFA,
        "head": {"name": "am-softmax"},
        "data": {"label": "group", "seconds": 0.3, "held_out": 0.25},
        "optimizer": {"rate": 5e-3},
        "schedule": {"epochs": 4},
        "tuning": {"adapters": {"bottleneck": 8}, "layer_drop": 0.1},
        "augment": {"mask_time_share": 0.2, "mask_time_length": 3, "mask_feature_share": 0.1, "mask_feature_length": 2},
        "loop": {"batch": 4, "checkpoint": 2},
    }

    def stop(step: int, total: int) -> None:
        if step == 9:
            raise Killed

    seen: list[EpochResult] = []
    run(corpus, tmp_path / "whole", parse(tables), report=seen.append)
    assert seen[-1].loss < 0.5 * seen[0].loss
    with pytest.raises(Killed):
        run(corpus, tmp_path / "killed", parse(tables), progress=stop)
    run(corpus, tmp_path / "killed", parse(tables))
    first, whole, killed = (weights(tmp_path / name) for name in ("first", "whole", "killed"))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    kept = {name for name, value in first.items() if name.startswith("encoder.") and value.equal(whole[name])}
    assert kept == {name for name in first if name.startswith("encoder.")}
    found = bundle.find(tmp_path / "whole")
    assert found.config["encoder"]["args"]["adapters"] == {"bottleneck": 8, "kind": "houlsby"}
    made = ModelBuilder(parse(tables)).build(["0", "1"], None, 1)
    made.load_state_dict(whole)
    sound = 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    with torch.inference_mode():
        expected = made.eval()(torch.from_numpy(sound)[None]).numpy()
    np.testing.assert_allclose(Embedder(found, device="cpu")([sound]), expected, atol=1e-6)
    again = tables | {"init": {"model": str(tmp_path / "whole"), "parts": ["encoder"]}, "schedule": {"epochs": 1}}
    run(corpus, tmp_path / "more", parse(again))
    more = weights(tmp_path / "more")
    assert {name for name in whole if name.startswith("encoder.") and not whole[name].equal(more[name])} == {
        name for name in whole if "adapter" in name
    }
    with pytest.raises(KnnError, match="already has adapters, which differ from those"):
        ModelBuilder(parse(again | {"tuning": {"adapters": {"bottleneck": 4}}}))
    runner = CliRunner()
    done = runner.invoke(
        app, ["embed", str(corpus), "--model", str(tmp_path / "whole"), "--no-vad", "-o", str(tmp_path / "e.h5")]
    )
    assert done.exit_code == 0, done.stderr


def test_masks_are_the_same_for_any_cut_of_a_step(corpus: Path, tmp_path: Path) -> None:
    """Each clip's masks follow from its own seed: two parts of a step give the losses of one, and a run repeats."""
    masks = {"mask_time_share": 0.3, "mask_time_length": 2, "mask_feature_share": 0.2, "mask_feature_length": 4}
    tables = {"augment": masks, "optimizer": {"name": "sgd", "rate": 0.01}, "schedule": {"epochs": 1}}
    for name, loop in (("a", {}), ("b", {}), ("c", {"accumulate": 2}), ("plain", {})):
        mine = tables if name != "plain" else {**tables, "augment": {}}
        run(corpus, tmp_path / name, tiny(**mine, loop={"batch": 8, "classifier": "head", **loop}))
    a, b, c, plain = (losses(tmp_path / f"{name}.training") for name in ("a", "b", "c", "plain"))
    assert a == b and a != plain
    assert list(a.values()) == pytest.approx(list(c.values()), abs=1e-5)


def test_two_processes_agree_on_batch_norms_when_they_are_measured(corpus: Path, tmp_path: Path) -> None:
    tables = {
        "encoder": {"name": "fbank-tdnn", "channels": 8, "hidden": 8, "dilations": [1]},
        "pooling": {"name": "mean"},
        "head": {"name": "softmax"},
        "data": {"label": "group", "seconds": 0.3, "held_out": 0.25},
        "schedule": {"epochs": 2},
        "loop": {"batch": 8, "accumulate": 2, "ema": 0.9, "classifier": "head"},
    }
    recipe = toml(tmp_path / "tiny.toml", tables)
    script = tmp_path / "measured.py"
    script.write_text("""
import os, sys, torch
from pathlib import Path
from knn_cli.training import trainer as training
from knn_cli.training.recipe_reader import read
kept, seen = training.evaluate_held_out, []
def evaluate_held_out(network, *rest):
    seen.append({name: value.clone() for name, value in network.state_dict().items()})
    return kept(network, *rest)
training.evaluate_held_out = evaluate_held_out
training.train(sys.argv[1], sys.argv[2], read(sys.argv[3]), device="cpu", use_vad=False)
torch.save(seen, Path(sys.argv[2]).with_name(os.environ["RANK"] + ".pt"))
""")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, script, corpus, tmp_path / "mine", recipe]
    path = os.pathsep.join([str(Path(trainer.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert len(one) == len(two) == 3 and any("running_var" in name for name in one[0])
    for first, second in zip(one, two, strict=True):
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_early_stop(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny(optimizer={"rate": 1e-20}, schedule={"epochs": 9}, loop={"patience": 2, "classifier": "head"})
    assert run(corpus, tmp_path / "mine", recipe).epochs == 3


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("bf16", {"loop": {"precision": "bf16", "ema": 0.5}}),
        ("speed-classes", {"augment": {"speeds": [0.8, 1.2], "speed_classes": True}, "head": {"subcenters": 2}}),
        ("workers", {"data": {"workers": 1, "balance": 1.0, "clips": 8}, "loop": {"class_weights": "balanced"}}),
        (
            "resnet",
            {
                "encoder": None,
                "pooling": None,
                "head": {"name": "softmax", "margin": None, "scale": None, "label_smoothing": 0.1},
                "augment": {"mask_share": 1.0, "mask_bins": 4},
                "tuning": {"freeze": ["encoder.conv1"]},
            },
        ),
    ],
)
def test_a_recipe_of_each_kind_makes_a_bundle(
    corpus: Path, tmp_path: Path, name: str, tables: dict[str, dict[str, Any]]
) -> None:
    recipe = tiny(schedule={"epochs": 1}, **{key: table for key, table in tables.items() if table})
    if name == "resnet":
        parts = {"encoder": {"name": "resnet", "depth": 18, "width": 4, "bins": 16}, "pooling": {"name": "resnet"}}
        recipe = replace(recipe, **{key: ComponentConfig(str(one.pop("name")), one) for key, one in parts.items()})
    done = run(corpus, tmp_path / "mine", recipe)
    assert 0 <= done.accuracy <= 1 and done.finished is not None
    found = bundle.find(tmp_path / "mine")
    head = bundle.load_network(found).head
    assert head is not None and found.config["head"]["labels"] == ["0", "1"] and found.config["labels"] == ["0", "1"]
    assert found.config["training"]["recipe"]["schedule"] == {"epochs": 1}
    assert "| 0 | 12 | 4 |" in (tmp_path / "mine" / "README.md").read_text()


def test_lora_is_resumed_and_merged_into_a_plain_bundle(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "first", tiny(schedule={"epochs": 1}, loop={"classifier": "head"}))

    tables: dict[str, Any] = {
        "init": {"model": str(tmp_path / "first"), "parts": ["encoder"]},
        "pooling": MHFA,
        "head": {"name": "am-softmax"},
        "data": {"label": "group", "seconds": 0.3, "held_out": 0.25},
        "schedule": {"epochs": 2},
        "tuning": {"lora": {"rank": 2}},
        "loop": {"batch": 4, "checkpoint": 2, "average": 2},
    }

    def stop(step: int, total: int) -> None:
        if step == 9:
            raise Killed

    run(corpus, tmp_path / "whole", parse(tables))
    with pytest.raises(Killed):
        run(corpus, tmp_path / "killed", parse(tables), progress=stop)
    run(corpus, tmp_path / "killed", parse(tables))
    first, whole, killed = (weights(tmp_path / name) for name in ("first", "whole", "killed"))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    changed = {name for name, value in first.items() if name.startswith("encoder.") and not value.equal(whole[name])}
    assert {name.split(".")[-2] for name in changed} == {"query", "value"}


def test_the_command(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"encoder": TINY, "pooling": MHFA, "head": {"name": "softmax"}, "loop": {"batch": 4}}
    tables |= {"data": {"label": "group", "seconds": 0.3, "held_out": 0.25}, "schedule": {"epochs": 1}}
    recipe = toml(tmp_path / "tiny.toml", tables)
    command = ["train", str(corpus), "--recipe", str(recipe), "-o", str(tmp_path / "mine"), "--device", "cpu"]
    runner = CliRunner()
    refused = runner.invoke(app, [*command, "--seed", "3"])
    assert refused.exit_code == 1 and "--seed cannot be combined with --recipe" in refused.stderr
    done = runner.invoke(app, [*command, "--no-vad"])
    assert done.exit_code == 0, done.stderr
    assert "labels      2: 0, 1" in done.stdout and "accuracy" in done.stdout and "Epoch 1: loss" in done.stderr
    heard = runner.invoke(app, ["classify", str(corpus), "--model", str(tmp_path / "mine"), "--no-vad"])
    assert heard.exit_code == 0 and len(heard.stdout.splitlines()) >= 32
    again = runner.invoke(app, command)
    assert again.exit_code == 1 and "exists already" in again.stderr
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = toml(tmp_path / "board.toml", tables | {"loop": {"batch": 4, "tensorboard": True}})
    command[3], command[5] = str(board), str(tmp_path / "other")
    missing = runner.invoke(app, command)
    assert missing.exit_code == 1 and "needs the package tensorboard" in missing.stderr


def test_the_command_that_was_asked_to_stop_has_a_code_of_its_own(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {"encoder": TINY, "pooling": MHFA, "head": {"name": "softmax"}, "loop": {"batch": 4}}
    tables |= {"data": {"label": "group", "seconds": 0.3, "held_out": 0.25}, "schedule": {"epochs": 1}}
    recipe = toml(tmp_path / "tiny.toml", tables)

    def ask(*args: Any) -> tuple[float, float]:
        os.kill(os.getpid(), signal.SIGUSR1)
        return evaluate_held_out(*args)

    monkeypatch.setattr(trainer, "evaluate_held_out", ask)
    command = ["train", str(corpus), "--recipe", str(recipe), "-o", str(tmp_path / "mine"), "--device", "cpu"]
    stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 75 and "Stopped after step 6" in stopped.stderr


def test_the_classifier_is_fitted_on_speech(corpus: Path, tmp_path: Path, example: Path) -> None:
    sound = reading.read(example).samples[: 20 * RATE]
    clip = Waveform(sound, RATE)
    speech, none = speech_regions.of_clips([clip, Waveform(np.zeros(RATE, np.float32), RATE)])
    seconds = sum(segment.duration for segment in speech)
    assert seconds == pytest.approx(sum(segment.duration for segment in speech_activity.speech([clip])), abs=0.5)
    assert seconds < clip.seconds and not none
    done = train(corpus, tmp_path / "mine", tiny(schedule={"epochs": 1}), device="cpu")
    assert done.finished is not None and "holds speech" in done.finished.note
    assert done.finished.bundle.classifier is None and done.finished.bundle.knows_labels


def test_a_folder_that_is_not_ours_is_never_emptied(tmp_path: Path) -> None:
    folder = tmp_path / "mine.training"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    for force in (False, True):
        with pytest.raises(KnnError, match=r"holds thesis\.txt"):
            TrainingFolder(tmp_path / "mine").prepare({"seed": 0}, force=force)
    assert (folder / "thesis.txt").exists()


def test_force_begins_again_where_weights_of_an_epoch_are_damaged(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path / "mine")
    folder.prepare({"seed": 0})
    save(folder.last, {"step": 1})
    folder.best.write_bytes(b"half")
    folder.prepare({"seed": 0})
    assert folder.last.is_file()
    folder.prepare({"seed": 0}, force=True)
    assert not folder.last.is_file() and not folder.best.is_file()


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "a bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "text": lambda data: b"PK half a file",
}


@pytest.mark.parametrize("damage", [*DAMAGES, "weights", "another network"])
@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_checkpoint_costs_no_more_than_the_steps_since_the_one_before(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, both: bool
) -> None:
    recipe = tiny(schedule={"epochs": 1}, loop={"checkpoint": 1, "classifier": "head"})
    stopped(corpus, tmp_path / "mine", recipe)
    folder = TrainingFolder(tmp_path / "mine")
    assert (load(folder.previous)["step"], load(folder.last)["step"]) == (2, 3)
    for file in (folder.last, folder.previous)[: 1 + both]:
        if damage in DAMAGES:
            file.write_bytes(DAMAGES[damage](file.read_bytes()))
        else:
            state = load(file)
            other = {name: value[:1] for name, value in state["network"].items()}
            save(file, state["network"] if damage == "weights" else {**state, "network": other})
    seen: list[int] = []
    run(corpus, tmp_path / "mine", recipe, progress=lambda step, total: seen.append(step))
    assert seen == [*range(1 if both else 3, 7)]
    assert ("begins again" if both else "goes on from the checkpoint before it") in caplog.text
    assert sorted(file.name for file in folder.path.iterdir()) == ["metrics.1.jsonl"] * both + ["metrics.jsonl"]


def test_a_training_killed_between_two_checkpoints_goes_on_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = TrainingFolder(tmp_path / "mine")
    folder.prepare({"seed": 0})
    folder.save({"step": 1})
    folder.last.rename(folder.previous)
    folder.prepare({"seed": 0})
    assert load(folder.last) == {"step": 1} and not caplog.text


def stopped(corpus: Path, out: Path, recipe: Recipe) -> None:
    """A training that is killed after its first checkpoint."""

    def stop(step: int, total: int) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(corpus, out, recipe, progress=stop)


def test_changed_sound_under_the_same_labels_is_refused(tmp_path: Path) -> None:
    """In stores, folders and shards alike; sound that was copied, or made again, is the same."""
    folder = tmp_path / "folder"
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for number in range(4):
            sound = np.random.default_rng(number).normal(size=RATE) * 0.1
            soundfile.write(folder / label / f"{label}{number}.wav", sound, RATE)
    recipe = tiny(loop={"batch": 2})
    stopped(folder, tmp_path / "mine", recipe)
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied, copy_function=shutil.copy)
    again: list[int] = []
    run(copied, tmp_path / "mine", recipe, progress=lambda step, total: again.append(step))
    assert again[0] == 3  # went on from the checkpoint of step 2
    stopped(folder, tmp_path / "other", recipe)
    soundfile.write(folder / "a" / "a2.wav", np.random.default_rng(9).normal(size=RATE) * 0.1, RATE)
    with pytest.raises(KnnError, match="sound that has changed"):
        run(folder, tmp_path / "other", recipe)
    run(folder, tmp_path / "other", recipe, force=True)


def test_a_digest_of_sound(tmp_path: Path) -> None:
    """Equal for equal sound, whenever the store was made; another for one other sample."""

    def digest(name: str, value: float) -> str:
        with StoreWriter(tmp_path / name, "audio", {"rate": RATE}, plan={}) as writer:
            for row in range(3):
                sound = np.full(RATE, 0.25, np.float32)
                sound[100] = value if row == 1 else 0.25
                writer.add(str(row), [AudioRow(Waveform(sound, RATE), str(row), "a", "a", "s", 0.0, 1.0)])
        return open_corpus(tmp_path / name, rule="folder", rate=RATE).sound_digest

    assert digest("a.h5", 0.25) == digest("b.h5", 0.25) != digest("c.h5", 0.5)


def test_a_training_killed_when_its_bundle_is_whole(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next command removes its weights, and with force goes on from them."""

    def die(self: TrainingFolder) -> None:
        raise Killed

    for name in ("mine", "other"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(TrainingFolder, "drop_weights", die)
            run(corpus, tmp_path / name, tiny())
        assert (tmp_path / f"{name}.training" / "last.pt").is_file()
    with pytest.raises(KnnError, match="exists already"):
        run(corpus, tmp_path / "mine", tiny())
    steps: list[int] = []
    run(corpus, tmp_path / "other", tiny(), force=True, progress=lambda step, total: steps.append(step))
    assert not steps and not list(tmp_path.glob("*.training/*.pt"))


def test_weights_without_a_plan_are_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "mine.training"
    folder.mkdir()
    for name, text in (("best.pt", "weights"), ("plan.json", "[]"), ("plan.json", '{"seed": 0}')):
        (folder / name).write_text(text)
        for force in (False, True):
            with pytest.raises(KnnError, match="which no training wrote"):
                TrainingFolder(tmp_path / "mine").prepare({"seed": 0}, force=force)
        assert (folder / name).read_text() == text
    (tmp_path / "two.training").symlink_to("mine.training")
    with pytest.raises(KnnError, match="is a link"):
        TrainingFolder(tmp_path / "two").prepare({"seed": 0}, force=True)


def test_files_of_others_beside_checkpoints_stay(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path / "mine")
    folder.prepare({"seed": 0})
    (folder.path / "notes.txt").write_text("mine")
    (folder.path / "network").mkdir()
    for plan in ({"seed": 0}, {"seed": 1}):
        folder.prepare(plan, force=True)
    folder.drop_weights()
    assert sorted(path.name for path in folder.path.iterdir()) == ["network", "notes.txt"]


def test_two_trainings_of_one_bundle(corpus: Path, tmp_path: Path) -> None:
    with locked_elsewhere(tmp_path / "mine"), pytest.raises(KnnError, match="is being written by another process"):
        run(corpus, tmp_path / "mine", tiny())
    assert not list(tmp_path.iterdir())
