"""The command line: the whole chain on sound, every refusal in one sentence, stdout data and stderr talk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from click.testing import Result
from typer.testing import CliRunner

from knn_cli import bundle, store
from knn_cli.cli import app
from knn_cli.report import read_rttm
from knn_cli.types import EmbeddingSet

TINY = ["--model", "tiny-test", "--device", "cpu"]


def knn(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> Result:
    result = knn(*arguments)
    assert result.exit_code == 0, result.output
    return result


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=round(seconds * 16000)) * 0.1


def rumble(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose power falls with the square of the frequency."""
    return np.cumsum(noise(seconds, seed)) * 0.01


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up dialects in folders 1-1 and 2-3, five recordings of four seconds each."""
    root = tmp_path_factory.mktemp("corpus") / "wavs"
    for label, make in (("1-1", noise), ("2-3", rumble)):
        (root / label).mkdir(parents=True)
        for seed in range(5):
            soundfile.write(root / label / f"rec{label}{seed}_SPLIT_001.wav", make(4.3, seed), 16000)
    return root


@pytest.fixture(scope="module")
def chain(corpus: Path) -> dict[str, Path]:
    """convert, embed and train, run once; each step's output."""
    folder = corpus.parent
    made = {"audio": folder / "corpus.h5", "embeddings": folder / "emb.h5", "model": folder / "dialects"}
    done("convert", corpus, made["audio"], "--segment", "1")
    done("embed", made["audio"], "-o", made["embeddings"], "--no-vad", *TINY)
    made["report"] = folder / "report.txt"
    made["report"].write_text(done("train", made["embeddings"], "-o", made["model"]).stdout)
    return made


def test_convert_counts_what_it_drops(corpus: Path, tmp_path: Path) -> None:
    result = done("convert", corpus, tmp_path / "c.h5", "--segment", "2")
    assert "10 recordings, 20 segments, 40.0 s" in result.stderr
    assert "Dropped 10 rests under 1 s, 3.0 s in all" in result.stderr
    with store.Store(tmp_path / "c.h5", "audio") as opened:
        rows = list(opened.segments())
    assert (rows[0].name, rows[0].group, rows[0].subgroup) == ("rec1-10", "1", "1-1")
    assert [(row.start, row.end) for row in rows[:2]] == [(0, 2), (2, 4)]


def test_the_chain_learns(chain: dict[str, Path], corpus: Path) -> None:
    text = chain["report"].read_text()
    assert "labels      2: 1-1, 2-3" in text and "accuracy    100.0%" in text and "Cprimary" in text
    rows = store.read(chain["embeddings"])
    assert len(rows) == 40 and rows.embedder == bundle.find("tiny-test").fingerprint
    files = sorted(corpus.rglob("*.wav"))
    lines = done("classify", *files, "--model", chain["model"], "--no-vad").stdout.splitlines()
    assert lines[0].split("\t") == ["file", "start", "end", "label", "probability", "label_2", "probability_2"]
    assert [line.split("\t")[3] for line in lines[1:]] == [path.parent.name for path in files]
    as_json = done("classify", files[0], "--model", chain["model"], "--no-vad", "--json").stdout
    found = json.loads(as_json)
    assert set(found) == {"file", "start", "end", "label", "probability", "probabilities", "llr"}
    assert found["file"] == str(files[0]) and found["end"] == pytest.approx(4.3)
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert found["llr"]["1-1"] == pytest.approx(-found["llr"]["2-3"], abs=1e-3)


def test_a_store_is_classified_either_way(chain: dict[str, Path]) -> None:
    by_embeddings = done("classify", chain["embeddings"], "--model", chain["model"])
    by_audio = done("classify", chain["audio"], "--model", chain["model"], "--no-vad")
    assert by_embeddings.stdout == by_audio.stdout and len(by_audio.stdout.splitlines()) == 41
    assert "Of 40 rows with a label that the model knows, 40 are right" in by_audio.stderr


def test_train_on_an_audio_store_embeds_first(chain: dict[str, Path], tmp_path: Path) -> None:
    result = done("train", chain["audio"], "-o", tmp_path / "m", "--no-vad", "--label", "group", *TINY)
    assert "labels      2: 1, 2" in result.stdout
    with h5py.File(tmp_path / "m" / "classifier.h5") as one, h5py.File(chain["model"] / "classifier.h5") as other:
        assert np.allclose(one["classifier/means"], other["classifier/means"], atol=1e-6)


def test_train_labels(chain: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    done("convert", corpus, tmp_path / "short.h5", "--segment", "0.5", "--min-segment", "0.5")
    named = done("train", tmp_path / "short.h5", "-o", tmp_path / "names", "--label", "name", "--no-vad", *TINY)
    assert "labels      10" in named.stdout and "segments disjoint" in named.stdout
    ignored = knn("train", chain["embeddings"], "-o", tmp_path / "m", "--ignore", "2-3")
    assert ignored.exit_code == 1 and "only '1-1'" in ignored.stderr
    empty = knn("train", chain["embeddings"], "-o", tmp_path / "m", "--label", "speaker")
    assert empty.exit_code == 1 and "there is none" in empty.stderr


def test_embed_prints_kaldi_text_and_json(corpus: Path) -> None:
    files = sorted(corpus.rglob("*.wav"))[:2]
    lines = done("embed", *files, "--no-vad", *TINY).stdout.splitlines()
    assert [line.split("  [ ")[0] for line in lines] == ["rec1-10", "rec1-11"]
    values = np.array(lines[0].split("  [ ")[1].removesuffix(" ]").split(), dtype=float)
    found = json.loads(done("embed", files[0], "--no-vad", "--json", *TINY).stdout)
    assert set(found) == {"file", "model", "start", "end", "embedding"}
    assert np.allclose(found["embedding"], values, atol=1e-5)
    rows = done("embed", files[0], "--no-vad", "--json", "--segment", "1", *TINY).stdout.splitlines()
    assert [json.loads(row)["start"] for row in rows] == [0, 1, 2, 3, 4]


def test_one_bad_file_costs_none_of_the_others(corpus: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    good = sorted(corpus.rglob("*.wav"))[:2]
    for command in (["embed", *good, bad, "--no-vad", *TINY], ["diarize", good[0], bad, good[1], *TINY]):
        result = knn(*command)
        assert result.exit_code == 1 and "bad.wav is not audio" in result.stderr and "Traceback" not in result.output
    result = knn("embed", good[0], bad, good[1], "-o", tmp_path / "e.h5", "--no-vad", *TINY)
    assert result.exit_code == 1 and len(store.read(tmp_path / "e.h5")) == 2
    (tmp_path / "mixed").mkdir()
    soundfile.write(tmp_path / "mixed" / "a.wav", noise(2), 16000)
    (tmp_path / "mixed" / "b.wav").write_text("no sound")
    result = knn("convert", tmp_path / "mixed", tmp_path / "c.h5")
    assert result.exit_code == 1
    with store.Store(tmp_path / "c.h5", "audio") as opened:
        assert len(opened) == 1


def test_diarize_the_example(example: Path, tmp_path: Path) -> None:
    done("diarize", example, "--rttm", tmp_path / "m.rttm", "--num-speakers", "4", *TINY)
    turns = read_rttm(tmp_path / "m.rttm")["meeting"]
    assert len(turns.labels()) == 4
    assert done("diarize", example, "--num-speakers", "4", *TINY).stdout == (tmp_path / "m.rttm").read_text()
    done("diarize", example, "--json", "--out-dir", tmp_path / "out", "--clusterer", "spectral", *TINY)
    assert json.loads((tmp_path / "out" / "meeting.json").read_text())


def test_silence(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(48000), 16000)
    result = done("diarize", tmp_path / "silence.wav", "--rttm", tmp_path / "s.rttm", *TINY)
    assert "holds no speech" in result.stderr and (tmp_path / "s.rttm").read_text() == ""
    for command in ("embed", "classify"):
        result = knn(command, tmp_path / "silence.wav", *TINY)
        assert result.exit_code == 1
    assert "holds no speech" in knn("embed", tmp_path / "silence.wav", *TINY).stderr


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is not sound")
    soundfile.write(folder / "zero.wav", np.zeros(0), 16000)
    soundfile.write(folder / "short.wav", noise(0.05), 16000)
    soundfile.write(folder / "nan.wav", np.full(32000, np.nan), 16000, subtype="FLOAT")
    return folder


BAD = {
    "missing.wav": "does not exist",
    "empty.wav": "is empty",
    "text.wav": "is not audio",
    "zero.wav": "holds no samples",
    "short.wav": "short|shorter|no speech",
    "nan.wav": "NaN",
}


@pytest.mark.parametrize("command", ["convert", "embed", "embed-to-store", "classify", "diarize"])
@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_sound_is_refused(command: str, name: str, bad: Path, chain: dict[str, Path], tmp_path: Path) -> None:
    outputs = {
        "convert": ["convert", bad / name, tmp_path / "c.h5"],
        "embed": ["embed", bad / name, *TINY],
        "embed-to-store": ["embed", bad / name, "-o", tmp_path / "e.h5", *TINY],
        "classify": ["classify", bad / name, "--model", chain["model"]],
        "diarize": ["diarize", bad / name, "--rttm", tmp_path / "out.rttm", *TINY],
    }
    result = knn(*outputs[command])
    if command == "diarize" and name == "short.wav":  # too short to hold speech: an empty answer is the true one
        assert result.exit_code == 0 and "holds no speech" in result.stderr
        return
    assert result.exit_code == 1 and result.stdout == ""
    assert any(part in result.stderr for part in BAD[name].split("|")), result.stderr
    assert "Traceback" not in result.stderr and result.exception.__class__ is SystemExit
    assert list(tmp_path.iterdir()) == []


def test_wrong_stores_and_models_are_refused(chain: dict[str, Path], tmp_path: Path) -> None:
    foreign = EmbeddingSet.of(np.eye(24), [str(i) for i in range(24)], subgroup=["a", "b"] * 12, embedder="other@123")
    store.write(tmp_path / "foreign.h5", foreign)
    wide = EmbeddingSet.of(np.eye(9), [str(i) for i in range(9)])
    store.write(tmp_path / "wide.h5", wide)
    (tmp_path / "text.h5").write_text("not HDF5")
    model = ["--model", chain["model"]]
    for arguments, message in (
        (
            ["classify", tmp_path / "foreign.h5", *model],
            "embeddings of other@123, the model works on those of tiny-test@",
        ),
        (["classify", tmp_path / "wide.h5", *model], "24 dimensions, these have 9"),
        (["classify", tmp_path / "text.h5", *model], "not an HDF5 store"),
        (["classify", chain["audio"], "--model", "tiny-test"], "knows no labels"),
        (["classify", chain["audio"], "--model", "nosuch"], "There is no model 'nosuch'"),
        (["embed", chain["audio"], "--model", "nosuch"], "Models here: "),
        (["diarize", chain["audio"], *TINY], "is not audio"),
        (["embed", chain["embeddings"], *TINY], "holds embeddings, not audio"),
        (["embed", chain["audio"], "--segment", "2", *TINY], "rows are segments already"),
        (["train", tmp_path / "none.h5", "-o", tmp_path / "m"], "does not exist"),
        (["train", tmp_path / "text.h5", "-o", tmp_path / "m"], "not an HDF5 store"),
        (["convert", chain["audio"], tmp_path / "x.npz"], "is for embeddings"),
        (["convert", chain["embeddings"], tmp_path / "x.doc"], "no suffix that a store can be written to"),
        (["info", tmp_path / "nothing"], "no file, no folder and no model"),
        (["diarize", chain["audio"], "--min-speakers", "3", "--max-speakers", "2", *TINY], "above --max-speakers 2"),
        (["embed", tmp_path, *TINY], "holds no audio files"),
        (["convert", tmp_path / "empty", tmp_path / "x.h5"], "does not exist"),
    ):
        result = knn(*arguments)
        assert result.exit_code == 1 and message in result.stderr, (arguments, result.output)
        assert "Traceback" not in result.output and result.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == {"foreign.h5", "wide.h5", "text.h5"}


def test_outputs_that_exist_stay(chain: dict[str, Path], corpus: Path) -> None:
    before = {name: path.stat().st_mtime_ns for name, path in chain.items()}
    for arguments in (
        ["convert", corpus, chain["audio"]],
        ["embed", chain["audio"], "-o", chain["embeddings"], *TINY],
        ["train", chain["embeddings"], "-o", chain["model"]],
        ["convert", chain["embeddings"], chain["audio"]],
    ):
        result = knn(*arguments)
        assert result.exit_code == 1 and "exists already" in result.stderr and "--force" in result.stderr
    assert {name: path.stat().st_mtime_ns for name, path in chain.items()} == before


@pytest.mark.skipif(os.name == "nt" or (os.geteuid() == 0 and not Path("/proc/version").exists()), reason="POSIX paths")
def test_unwritable_outputs(chain: dict[str, Path], corpus: Path, example: Path) -> None:
    for arguments in (
        ["convert", corpus, "/proc/knn/c.h5"],
        ["embed", chain["audio"], "-o", "/proc/knn/e.h5", *TINY],
        ["train", chain["embeddings"], "-o", "/proc/knn/m"],
        ["diarize", example, "--rttm", "/proc/knn/x.rttm", *TINY],
        ["diarize", example, "--out-dir", "/proc/knn", *TINY],
        ["classify", chain["embeddings"], "--model", chain["model"], "-o", "/proc/knn/x.tsv"],
    ):
        result = knn(*arguments)
        assert result.exit_code == 1 and "/proc/knn" in result.stderr and "Traceback" not in result.output, (
            result.output
        )
        assert result.exception.__class__ is SystemExit


def test_usage_mistakes_are_exit_2() -> None:
    for arguments in (["nosuch"], ["embed"], ["train", "x.h5"], ["diarize", "a.wav", "--clusterer", "magic"]):
        assert knn(*arguments).exit_code == 2


def test_every_option_is_helped() -> None:
    for command in ("convert", "embed", "train", "classify", "diarize", "info"):
        text = done(command, "--help").stdout
        assert ("--" in text and "│" in text) or "Options" in text


def test_info(chain: dict[str, Path], example: Path) -> None:
    text = done("info", chain["audio"], chain["embeddings"], chain["model"], example).stdout
    for part in ("audio store", "embedding store", "subgroups   1-1 20, 2-3 20", "labels", "FLAC PCM_16"):
        assert part in text, text
    facts = [json.loads(line) for line in done("info", "--json").stdout.splitlines()]
    assert "tiny-test" in {fact["name"] for fact in facts}


def test_as_a_real_process(corpus: Path) -> None:
    """`python -m knn_cli` with a closed pipe, and quiet."""
    files = [str(path) for path in sorted(corpus.rglob("*.wav"))[:2]]
    command = [sys.executable, "-m", "knn_cli", "-q", "embed", *files, "--no-vad", *TINY]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (finished.returncode, finished.stderr) == (0, "") and len(finished.stdout.splitlines()) == 2
    missing = subprocess.run([*command[:5], "/nosuch.wav", *TINY], capture_output=True, text=True, timeout=120)
    assert (
        missing.returncode == 1 and "Traceback" not in missing.stderr and "/nosuch.wav does not exist" in missing.stderr
    )


def test_interrupted_embedding_goes_on(corpus: Path, tmp_path: Path) -> None:
    """SIGINT in the middle: one sentence, exit 130, finished files kept, the same command ends the work."""
    out = tmp_path / "e.h5"
    script = f"""
import os, signal
from knn_cli import pipeline
from knn_cli.cli import app
real = pipeline.embed_file
seen = 0
def slow(*arguments, **settings):
    global seen
    seen += 1
    if seen == 4:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*arguments, **settings)
pipeline.embed_file = slow
app(["embed", {str(corpus)!r}, "-o", {str(out)!r}, "--no-vad", *{TINY!r}])
"""
    stopped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 130 and "Stopped." in stopped.stderr and "Traceback" not in stopped.stderr
    assert not out.exists()
    done("embed", corpus, "-o", out, "--no-vad", *TINY)
    assert len(store.read(out)) == 10 and len(set(store.read(out).name.tolist())) == 10
