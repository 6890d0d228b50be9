"""Training of segmentation networks: it learns, goes on where it stopped, and says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from pyannote.core import Annotation, Segment, Timeline

from knn_cli.core.errors import KnnError
from knn_cli.diarization.segmentation import Segmenter
from knn_cli.evaluation.diarization_error import diarization_error, frame_error
from knn_cli.networks import bundle
from knn_cli.networks.segmenters.permutation_loss import IGNORED
from knn_cli.networks.segmenters.pyannet import PyanNet
from knn_cli.training.recipe_reader import parse, read
from knn_cli.training.segmentation_data import TurnCorpus, WindowDataset, frame_times, split_recordings
from knn_cli.training.segmentation_recipe import SegmentationRecipe
from knn_cli.training.segmentation_trainer import SegmentationTraining, train_segmentation
from tests.helpers.command import done, knn

RATE = 16000
TINY = {
    "name": "pyannet", "filters": 8, "widths": [8], "hidden": 8, "depth": 1, "linear": [8], "stride": 80,
    "speakers": 2, "most": 2, "duration": 2.0,
}  # fmt: skip
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "recipes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five recordings of 6 s: silence, a low voice, both voices, a high voice."""
    place = tmp_path_factory.mktemp("meetings")
    time, random = np.arange(6 * RATE) / RATE, np.random.default_rng(0)
    for number in range(5):
        change = np.sort(random.uniform(0.5, 5.5, 3))
        low, high = (time >= change[0]) & (time < change[2]), time >= change[1]
        sound = 0.2 * low * np.sin(2 * np.pi * 200 * time) + 0.2 * high * np.sin(2 * np.pi * 1500 * time)
        soundfile.write(place / f"m{number}.wav", sound + 0.003 * random.standard_normal(len(time)), RATE)
        turns = [(change[0], change[2], "low"), (change[1], 6.0, "high")]
        lines = [f"SPEAKER m{number} 1 {a:.3f} {b - a:.3f} <NA> <NA> {who} <NA> <NA>\n" for a, b, who in turns]
        (place / f"m{number}.rttm").write_text("".join(lines))
    return place


def recipe(folder: Path, **tables: Any) -> SegmentationRecipe:
    """A recipe in which each table is changed key by key."""
    table: dict[str, Any] = {
        "segmenter": TINY,
        "segmentation": {"references": str(folder)},
        "data": {"seconds": 2.0, "held_out": 0.2, "clips": 24},
        "optimizer": {"rate": 0.01},
        "schedule": {"epochs": 6},
        "loop": {"batch": 4},
    }
    for key, value in tables.items():
        table[key] = {**table.get(key, {}), **value} if value is not None else {}
        if value is None:
            del table[key]
    parsed = parse(table)
    assert isinstance(parsed, SegmentationRecipe)
    return parsed


def trained(folder: Path, out: Path, **tables: Any) -> SegmentationTraining:
    return train_segmentation(folder, out, recipe(folder, **tables), device="cpu", force=True)


def test_it_learns_and_the_diarizer_takes_the_model(folder: Path, tmp_path: Path) -> None:
    before = trained(folder, tmp_path / "none", schedule={"epochs": 1}, optimizer={"rate": 1e-9})
    result = trained(folder, tmp_path / "mine")
    assert result.train_recordings == 4 and result.held_out_recordings == 1 and result.epochs == 6
    assert before.error is not None and result.error is not None and result.model is not None
    assert result.error.rate < before.error.rate
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["kind"] == "segmenter" and config["training"]["recipe"]["segmentation"]["references"] == folder.name
    assert Segmenter(tmp_path / "mine").speakers == 2
    done("diarize", folder / "m0.wav", "--segmentation", tmp_path / "mine", "--model", "tiny-test", "--device", "cpu")
    again = trained(folder, tmp_path / "again")
    assert again.model is not None and again.model.fingerprint.split("@")[1] == result.model.fingerprint.split("@")[1]


def test_a_second_stage_stays_close_and_freezes(folder: Path, tmp_path: Path) -> None:
    first = trained(folder, tmp_path / "first", schedule={"epochs": 2})
    changes: dict[str, Any] = {"segmenter": None, "init": {"model": str(tmp_path / "first")}}
    frozen = {"freeze": ["segmenter.sinc", "segmenter.lstm"]}
    second = trained(folder, tmp_path / "second", **changes, tuning=frozen, segmentation={"divergence": 0.5})
    assert second.before == first.error
    states = [bundle.load_segmenter(bundle.find(tmp_path / name, segmenter=True)).state_dict() for name in
              ("first", "second")]  # fmt: skip
    changed = {name.partition(".")[0] for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert changed and not changed & {"sinc", "lstm"}

    def distance(weight: float) -> float:
        trained(folder, tmp_path / "third", **changes, segmentation={"divergence": weight})
        state = bundle.load_segmenter(bundle.find(tmp_path / "third", segmenter=True)).state_dict()
        return sum(float((state[name] - states[0][name]).square().sum()) for name in state)

    assert distance(100.0) < distance(0.0)


def test_a_stopped_training_ends_in_the_same_weights(folder: Path, tmp_path: Path) -> None:
    whole = trained(folder, tmp_path / "whole", schedule={"epochs": 2})
    plan = recipe(folder, schedule={"epochs": 2})

    def stop(step: int, total: int | None) -> None:
        if step == 7:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train_segmentation(folder, tmp_path / "parts", plan, device="cpu", progress=stop)
    assert (tmp_path / "parts.training" / "last.pt").is_file()
    resumed = train_segmentation(folder, tmp_path / "parts", plan, device="cpu")
    assert whole.model is not None and resumed.model is not None
    assert whole.model.config["weights_sha256"] == resumed.model.config["weights_sha256"]


def test_classes_of_frames(folder: Path) -> None:
    corpus = TurnCorpus(folder, folder, None, RATE)
    network = PyanNet(**{key: value for key, value in TINY.items() if key != "name"})  # type: ignore[arg-type]
    truth = Annotation()
    for start, end, who in ((1.0, 4.0, "a"), (2.0, 3.0, "b"), (4.5, 4.7, "c")):
        truth[Segment(start, end), who] = who
    corpus.truths[0] = truth, None
    times = np.array([0.5, 1.5, 2.5, 4.6, 5.5, 7.0])
    # a and b speak most; c is known to nobody, and the recording ends at 6 s.
    many = np.concatenate([times, np.full(5, 1.5), np.full(5, 2.5)])
    assert corpus.frame_classes(0, many, network)[:6].tolist() == [0, 1, 3, IGNORED, 0, IGNORED]


def test_recordings_of_one_name_have_the_turns_of_their_folder(tmp_path: Path) -> None:
    for name, start in (("a", 0.25), ("b", 0.5)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "mix.wav", np.zeros(RATE), RATE)
        (tmp_path / name / "mix.rttm").write_text(f"SPEAKER mix 1 {start} 0.25 <NA> <NA> {name} <NA> <NA>\n")
    corpus = TurnCorpus(tmp_path, tmp_path, None, RATE)
    assert [truth.labels() for truth, _ in corpus.truths] == [["a"], ["b"]]
    assert corpus.columns.name.tolist() == ["a/mix", "b/mix"]


def test_times_are_in_the_middle_of_frames() -> None:
    network = PyanNet(**{key: value for key, value in TINY.items() if key != "name"})  # type: ignore[arg-type]
    times = frame_times(network, 2 * RATE, RATE)
    middle = network.first_seconds + np.arange(len(times)) * network.step_seconds
    assert len(times) == network.frames(2 * RATE) and np.abs(times - middle)[1:-1].max() < network.step_seconds / 2


def test_frame_errors_are_those_of_turns() -> None:
    random = np.random.default_rng(0)
    frames = [random.random((40, count)) < 0.4 for count in (3, 2)]
    turns = []
    for table in frames:
        annotation = Annotation()
        for frame, speaker in np.argwhere(table).tolist():
            annotation[Segment(frame, frame + 1), (frame, speaker)] = str(speaker)
        turns.append(annotation)
    wanted, found = diarization_error(*turns), frame_error(*frames, 1.0)
    for name in ("total", "missed", "false_alarm", "confusion"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name))


def test_no_recording_is_on_both_sides(folder: Path) -> None:
    split = split_recordings(TurnCorpus(folder, folder, None, RATE), recipe(folder, data={"held_out": 0.4}))
    train, held_out = set(split.train_rows.tolist()), set(split.held_out_rows.tolist())
    assert not train & held_out and train | held_out == set(range(5)) and len(held_out) == 2


def test_windows_lie_in_what_is_annotated(folder: Path) -> None:
    """Within a part of the UEM that is longer than a window, around one that is shorter, by their lengths."""
    corpus = TurnCorpus(folder, folder, None, RATE)
    network = PyanNet(**{key: value for key, value in TINY.items() if key != "name"})  # type: ignore[arg-type]
    uem = Timeline([Segment(0.0, 0.5), Segment(3.0, 5.5), Segment(7.0, 9.0)])
    for row in range(5):
        corpus.truths[row] = corpus.truths[row][0], uem
    assert corpus.spans(0).tolist() == [[0.0, 0.5], [3.0, 5.5]]
    windows = WindowDataset(split_recordings(corpus, recipe(folder)), network, recipe(folder))
    assert len(windows.rows) == 4  # one of 2 s in each of four recordings that are not held out
    random = np.random.default_rng(0)
    starts = np.asarray([windows._start(0, 2.0, random) for _ in range(600)])
    short, long = starts == 0, (starts >= 3.0) & (starts <= 3.5)
    assert (short | long).all() and 60 < short.sum() < 150 and np.ptp(starts[long]) > 0.4


def test_a_recording_of_which_nothing_is_annotated_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "all.uem").write_text("".join(f"m{n} 1 {7 if n == 3 else 0} 9\n" for n in range(5)))
    with pytest.raises(KnnError, match=r"The UEM names no part of .*m3.wav"):
        TurnCorpus(folder, folder, tmp_path / "all.uem", RATE)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"segmentation": {"references": ""}}, "segmentation.references is missing"),
        ({"segmenter": None}, "is new, or begins with another"),
        ({"init": {"model": "segmentation"}}, "is new, or begins with another"),
        ({"segmentation": {"divergence": 1.0}}, "needs a model to stay close to"),
        ({"augment": {"speeds": [0.9]}}, "augment.speeds has no effect"),
        ({"loop": {"classifier": "head"}}, "loop.classifier has no effect"),
        ({"head": {"name": "softmax"}}, r"\[head\] has no effect"),
        ({"segmenter": {"nmae": 1}}, "nmae"),
        ({"segmenter": {"name": "pyanet"}}, "pyannet"),
        ({"segmentation": {"diverge": 1.0}}, "divergence"),
    ],
)
def test_what_a_recipe_cannot_say(folder: Path, tables: dict[str, Any], message: str) -> None:
    with pytest.raises(KnnError) as raised:
        recipe(folder, **tables)
    assert message.replace("\\", "") in str(raised.value)


def test_recordings_without_turns_are_named(folder: Path, tmp_path: Path) -> None:
    lone = tmp_path / "other.wav"
    lone.write_bytes((folder / "m0.wav").read_bytes())
    (tmp_path / "m0.wav").write_bytes(lone.read_bytes())
    with pytest.raises(KnnError, match="no turns of other"):
        train_segmentation(tmp_path, tmp_path / "out", recipe(folder), device="cpu")


def test_the_example_and_the_command(folder: Path, tmp_path: Path) -> None:
    assert isinstance(read(EXAMPLES / "segmentation.toml"), SegmentationRecipe)
    text = (EXAMPLES / "segmentation.toml").read_text()
    for old, new in (('"rttm"', f'"{folder}"'), ("epochs = 5", "epochs = 1"), ("batch = 8", "batch = 1"),
                     ("seconds = 10.0", "seconds = 2.0\nclips = 1")):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "recipe.toml").write_text(text)
    out = done("train", folder, "--recipe", tmp_path / "recipe.toml", "-o", tmp_path / "out", "--device", "cpu").stdout
    assert "local DER" in out and "before" in out
    refused = knn("train", folder, "--recipe", tmp_path / "recipe.toml", "-o", tmp_path / "no", "--no-vad")
    assert "--no-vad has no effect" in refused.output
