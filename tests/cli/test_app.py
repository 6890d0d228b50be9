"""The command line: the whole chain on sound, every refusal in one sentence, data on stdout and messages on stderr."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile

from knn_cli.core.values import EmbeddingSet
from knn_cli.diarization import pipeline
from knn_cli.diarization.options import DiarizationOptions
from knn_cli.formats.rttm import read_rttm
from knn_cli.formats.span_formats import TURN_FORMATS
from knn_cli.networks import bundle
from knn_cli.networks.conversion import convert as convert_folder
from knn_cli.store import hdf5
from knn_cli.store.writer import write_store
from tests.helpers.command import done, knn, outputs_in

TINY = ["--model", "tiny-test", "--device", "cpu"]
HEAR = [*TINY, "--segmentation", "silero"]  # so that no network is loaded besides the tiny one


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


def test_recordings_that_are_too_short_are_named(tmp_path: Path) -> None:
    for name, seconds in (("word", 0.8), ("other", 0.7), ("talk", 2.3)):
        (tmp_path / "in").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "in" / f"{name}.wav", np.full(round(16000 * seconds), 0.1), 16000)
    said = done("convert", tmp_path / "in", tmp_path / "c.h5", "--segment", "2").stderr
    named = f"{tmp_path / 'in' / 'other.wav'}, {tmp_path / 'in' / 'word.wav'}"
    assert f"2 recordings are shorter than 1 s, and not in the store: {named}. A smaller --min-segment" in said


def test_folders_of_folders_may_be_of_speakers(tmp_path: Path) -> None:
    for name in ("north/ann", "north/bob", "south/eva"):
        (tmp_path / "in" / name).mkdir(parents=True)
        soundfile.write(tmp_path / "in" / name / "1.wav", np.full(32000, 0.1), 16000)
    asked = "Then give --labels group/speaker/file."
    assert asked in done("convert", tmp_path / "in", tmp_path / "c.h5").stderr
    said = done("convert", tmp_path / "in", tmp_path / "d.h5", "--labels", "group/speaker/file").stderr
    assert asked not in said and "Labels: 2 groups, no subgroups, 3 speakers." in said
    assert asked not in done("convert", tmp_path / "in" / "north", tmp_path / "e.h5").stderr


def test_convert_counts_what_it_drops(corpus: Path, tmp_path: Path) -> None:
    result = done("convert", corpus, tmp_path / "c.h5", "--segment", "2")
    assert "10 recordings, 20 segments, 40.0 s" in result.stderr
    assert "Dropped 10 remainders under 1 s, 3.0 s in total" in result.stderr
    with hdf5.Store(tmp_path / "c.h5", "audio") as opened:
        rows = list(opened.segments())
    assert (rows[0].name, rows[0].group, rows[0].subgroup) == ("rec1-10", "1", "1-1")
    assert [(row.start, row.end) for row in rows[:2]] == [(0, 2), (2, 4)]


def test_the_chain_learns(chain: dict[str, Path], corpus: Path) -> None:
    text = chain["report"].read_text()
    assert "labels      2: 1-1, 2-3" in text and "accuracy    100.0%" in text and "Cprimary" in text
    rows = hdf5.read(chain["embeddings"])
    assert len(rows) == 40 and rows.embedder == bundle.find("tiny-test").fingerprint
    files = sorted(corpus.rglob("*.wav"))
    lines = done("classify", *files, "--model", chain["model"], "--no-vad").stdout.splitlines()
    assert lines[0].split("\t") == ["file", "start", "end", "label", "probability", "label_2", "probability_2"]
    assert [line.split("\t")[3] for line in lines[1:]] == [path.parent.name for path in files]
    as_json = done("classify", files[0], "--model", chain["model"], "--no-vad", "--json").stdout
    found = json.loads(as_json)
    assert set(found) == {"file", "start", "end", "label", "probability", "probabilities", "llr", "uncertain"}
    assert found["file"] == str(files[0]) and found["end"] == pytest.approx(4.3)
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert found["llr"]["1-1"] == pytest.approx(-found["llr"]["2-3"], abs=1e-3)


def test_a_store_is_classified_either_way(chain: dict[str, Path]) -> None:
    by_embeddings = done("classify", chain["embeddings"], "--model", chain["model"])
    by_audio = done("classify", chain["audio"], "--model", chain["model"], "--no-vad")
    assert by_embeddings.stdout == by_audio.stdout and len(by_audio.stdout.splitlines()) == 41
    assert "Of 40 rows with a label that the model knows, 40 are right" in by_audio.stderr


def test_train_on_an_audio_store_embeds_first(chain: dict[str, Path], tmp_path: Path) -> None:
    result = done("train", chain["audio"], "-o", tmp_path / "m", "--no-vad", "--level", "group", *TINY)
    assert "labels      2: 1, 2" in result.stdout
    with h5py.File(tmp_path / "m" / "classifier.h5") as one, h5py.File(chain["model"] / "classifier.h5") as other:
        assert np.allclose(one["classifier/means"], other["classifier/means"], atol=1e-6)


def test_train_labels(chain: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    done("convert", corpus, tmp_path / "short.h5", "--segment", "0.5", "--min-segment", "0.5")
    named = done("train", tmp_path / "short.h5", "-o", tmp_path / "names", "--level", "name", "--no-vad", *TINY)
    assert "labels      10" in named.stdout and "segments disjoint" in named.stdout
    ignored = knn("train", chain["embeddings"], "-o", tmp_path / "m", "--ignore", "2-3")
    assert ignored.exit_code == 1 and "only '1-1'" in ignored.stderr
    empty = knn("train", chain["embeddings"], "-o", tmp_path / "m", "--level", "speaker")
    assert empty.exit_code == 1 and "there is none" in empty.stderr


def test_embed_prints_kaldi_text_and_json(corpus: Path) -> None:
    files = sorted(corpus.rglob("*.wav"))[:2]
    lines = done("embed", *files, "--no-vad", *TINY).stdout.splitlines()
    assert [line.split("  [ ")[0] for line in lines] == ["rec1-10_SPLIT_001", "rec1-11_SPLIT_001"]
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
    for command in (["embed", *good, bad, "--no-vad", *TINY], ["diarize", good[0], bad, good[1], *HEAR]):
        result = knn(*command)
        assert result.exit_code == 1 and "bad.wav is not audio" in result.stderr and "Traceback" not in result.output
    result = knn("embed", good[0], bad, good[1], "-o", tmp_path / "e.h5", "--no-vad", *TINY)
    assert result.exit_code == 1 and len(hdf5.read(tmp_path / "e.h5")) == 2
    (tmp_path / "mixed").mkdir()
    soundfile.write(tmp_path / "mixed" / "a.wav", noise(2), 16000)
    (tmp_path / "mixed" / "b.wav").write_text("no sound")
    result = knn("convert", tmp_path / "mixed", tmp_path / "c.h5")
    assert result.exit_code == 1
    with hdf5.Store(tmp_path / "c.h5", "audio") as opened:
        assert len(opened) == 1


def test_diarize_the_example(example: Path, tmp_path: Path) -> None:
    done("diarize", example, "--rttm", tmp_path / "m.rttm", "--num-speakers", "4", *TINY)
    turns = read_rttm(tmp_path / "m.rttm")["meeting"]
    assert len(turns.labels()) == 4
    assert done("diarize", example, "--num-speakers", "4", *TINY).stdout == (tmp_path / "m.rttm").read_text()
    done("diarize", example, "--json", "--out-dir", tmp_path / "out", "--clusterer", "spectral", *TINY)
    assert json.loads((tmp_path / "out" / "meeting.json").read_text())


def test_turns_in_every_format(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pipeline.diarize(example, model="tiny-test", device="cpu", options=DiarizationOptions(vad="silero"))
    monkeypatch.setattr(pipeline, "diarize", lambda *_, **__: found)  # which is not what is tested here
    turns = read_rttm_text(done("diarize", example, *HEAR).stdout, tmp_path)
    for name, known in TURN_FORMATS.items():
        if known.binary or name == "eaf":
            done("diarize", example, "-o", tmp_path / f"turns{known.suffix}", *HEAR)
            continue
        done("diarize", example, "--out-dir", tmp_path / "out", "--format", name, *HEAR)
        text = (tmp_path / "out" / f"meeting{known.suffix}").read_text()
        assert all(speaker in text for speaker in turns.labels()), name
        assert text == done("diarize", example, "--format", name, *HEAR).stdout
    assert (tmp_path / "turns.png").read_bytes().startswith(b"\x89PNG")
    assert all(speaker in (tmp_path / "turns.html").read_text() for speaker in turns.labels())
    assert (tmp_path / "turns.eaf").read_text().count("<TIER ") == len(turns.labels())
    grid = (tmp_path / "out" / "meeting.TextGrid").read_text()
    assert f"xmax = {soundfile.info(example).duration:g} " in grid and f"size = {len(turns.labels())} " in grid
    copy = tmp_path / "copy.flac"
    shutil.copy(example, copy)
    for refused in (
        [example, copy, "--format", "srt"],
        [example, "--json", "--format", "srt"],
        [example, "--rttm", tmp_path / "x.rttm", "--format", "csv"],
        [example, "--format", "png"],
        [example, "-o", tmp_path / "x.doc"],
    ):
        assert knn("diarize", *refused, *HEAR).exit_code == 1
    assert not (tmp_path / "x.rttm").exists()


def read_rttm_text(text: str, folder: Path) -> Any:
    (folder / "text.rttm").write_text(text)
    return read_rttm(folder / "text.rttm")["meeting"]


def test_diarize_scores_itself(example: Path, tmp_path: Path) -> None:
    truth, out = example.with_suffix(".rttm"), tmp_path / "out.rttm"
    lines = done("diarize", example, "--reference", truth, "--rttm", out, *TINY).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["file", "meeting"]
    row = dict(zip(lines[0].split("\t"), lines[1].split("\t"), strict=True))
    parts = sum(float(row[name]) for name in ("missed", "false_alarm", "confusion"))
    assert float(row["DER"]) == pytest.approx(parts, abs=0.02) and row["speakers"] == "4"
    (tmp_path / "scored.uem").write_text("meeting 1 0.0 5.0\n")
    said = done("diarize", example, "--reference", truth, "--uem", tmp_path / "scored.uem", *HEAR)
    assert "meeting\t" in said.stderr and said.stdout.startswith("SPEAKER meeting")
    for refused in (
        ["--uem", tmp_path / "scored.uem"],
        ["--reference", truth, "--rttm", truth],
        ["--reference", tmp_path / "nowhere.rttm"],
        ["--reference", truth, "--uem", truth],
    ):
        assert knn("diarize", example, *refused, *HEAR).exit_code == 1
    assert read_rttm(truth)["meeting"].labels()


def test_silence(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(48000), 16000)
    result = done("diarize", tmp_path / "silence.wav", "--rttm", tmp_path / "s.rttm", *HEAR)
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
        "diarize": ["diarize", bad / name, "--rttm", tmp_path / "out.rttm", *HEAR],
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
    foreign = EmbeddingSet.from_columns(
        np.eye(24), [str(i) for i in range(24)], subgroup=["a", "b"] * 12, embedder="other@123"
    )
    write_store(tmp_path / "foreign.h5", foreign)
    wide = EmbeddingSet.from_columns(np.eye(9), [str(i) for i in range(9)])
    write_store(tmp_path / "wide.h5", wide)
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
        (["diarize", chain["audio"], *HEAR], "is no kept diarization"),
        (["embed", chain["embeddings"], *TINY], "holds embeddings, not audio"),
        (["embed", chain["audio"], "--segment", "2", *TINY], "rows are segments already"),
        (["train", tmp_path / "none.h5", "-o", tmp_path / "m"], "does not exist"),
        (["train", tmp_path / "text.h5", "-o", tmp_path / "m"], "not an HDF5 store"),
        (["convert", chain["audio"], tmp_path / "x.npz"], "which cannot be written as .npz"),
        (["convert", chain["embeddings"], tmp_path / "x.doc"], "no suffix that a store can be written to"),
        (["info", tmp_path / "nothing"], "not a file, a folder or a model"),
        (["diarize", chain["audio"], "--min-speakers", "3", "--max-speakers", "2", *HEAR], "above --max-speakers 2"),
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
        ["convert", corpus, chain["embeddings"]],
        ["train", chain["embeddings"], "-o", chain["model"]],
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
        ["diarize", example, "--rttm", "/proc/knn/x.rttm", *HEAR],
        ["diarize", example, "--out-dir", "/proc/knn", *HEAR],
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
    for part in ("audio store", "embedding store", "subgroups               1-1 20, 2-3 20", "labels", "FLAC PCM_16"):
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
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background would pass on that it is ignored
from knn_cli.embedding import files
from knn_cli.__main__ import main
real = files.embed_recording
seen = 0
def slow(*arguments, **settings):
    global seen
    seen += 1
    if seen == 4:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*arguments, **settings)
files.embed_recording = slow
sys.argv = ["knn", "embed", {str(corpus)!r}, "-o", {str(out)!r}, "--no-vad", *{TINY!r}]
main()
"""
    stopped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 130 and "Stopped." in stopped.stderr and "Traceback" not in stopped.stderr
    assert not out.exists()
    done("embed", corpus, "-o", out, "--no-vad", *TINY)
    assert len(hdf5.read(out)) == 10 and len(set(hdf5.read(out).name.tolist())) == 10


def test_sources_are_never_replaced(corpus: Path, chain: dict[str, Path], tmp_path: Path) -> None:
    sound = tmp_path / "src.wav"
    soundfile.write(sound, noise(2.0), 16000)
    before = sound.read_bytes()
    for arguments in (
        ["diarize", sound, "--rttm", sound, *HEAR],
        ["diarize", sound, "--rttm", tmp_path / "other.wav", *HEAR],
        ["classify", sound, "-o", sound, "--model", chain["model"]],
        ["convert", sound, sound, "--force"],
        ["embed", chain["audio"], "-o", chain["audio"], "--force", *TINY],
        ["convert", chain["embeddings"], chain["embeddings"], "--force"],
    ):
        result = knn(*arguments)
        assert result.exit_code == 1 and "Traceback" not in result.output, result.output
    assert sound.read_bytes() == before
    with hdf5.Store(chain["audio"], "audio"):
        pass


def test_force_never_removes_what_is_not_ours(chain: dict[str, Path], tmp_path: Path, monkeypatch: object) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.json").write_text('{"app": 1}')
    assert "is no model bundle" in knn("train", chain["embeddings"], "-o", project, "--force").stderr
    (project / "thesis.txt").write_text("years")
    assert "it holds" in knn("train", chain["embeddings"], "-o", project, "--force").stderr
    kaldi = tmp_path / "kaldi"
    done("convert", chain["embeddings"], kaldi)
    (kaldi / "text").write_text("by hand")
    assert "it holds text" in knn("convert", chain["embeddings"], kaldi, "--force").stderr
    (tmp_path / "x.scp").write_text("precious")
    assert "exists already" in knn("convert", chain["embeddings"], tmp_path / "x.ark").stderr
    assert (tmp_path / "x.scp").read_text() == "precious" and (project / "thesis.txt").exists()


def test_a_bundle_is_replaced_from_inside_and_through_a_link(
    chain: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("train", chain["embeddings"], "-o", tmp_path / "m")
    (tmp_path / "link").symlink_to("m")
    done("train", chain["embeddings"], "-o", tmp_path / "link", "--force", "--level", "group")
    monkeypatch.chdir(tmp_path / "m")
    done("train", chain["embeddings"], "-o", ".", "--force", "--seed", "3")
    assert bundle.find(tmp_path / "m").config["training"]["seed"] == 3
    assert (tmp_path / "link").is_symlink()


def test_resumption_sees_changed_sources_and_labels(corpus: Path, tmp_path: Path) -> None:
    """Of a stopped conversion only rows of the same sound and labels are taken over."""
    copy = tmp_path / "wavs"
    shutil.copytree(corpus, copy)
    changed = sorted(copy.rglob("*.wav"))[0]

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    for number, more in enumerate(((), ("--labels", "group/file"))):
        out, fresh = tmp_path / f"c{number}.h5", tmp_path / f"fresh{number}.h5"
        with pytest.raises(KeyboardInterrupt):
            convert_folder(copy, out, progress=stop)
        soundfile.write(changed, noise(3.0 + number), 16000)
        done("convert", copy, out, *more)
        done("convert", copy, fresh, *more)
        with hdf5.Store(out) as one, hdf5.Store(fresh) as other:
            assert len(one) == len(other) == 10
            for column in ("name", "group", "subgroup"):
                assert one.column(column).tolist() == other.column(column).tolist()
            for row in range(10):
                assert one.flac(row) == other.flac(row)
    with hdf5.Store(out) as opened:
        assert set(opened.column("group").tolist()) == {"1-1", "2-3"}


def test_failures_are_said_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    soundfile.write(tmp_path / "mixed" / "a.wav", noise(2), 16000)
    for name in ("b", "c"):
        (tmp_path / "mixed" / f"{name}.wav").write_text("no sound")
    for arguments in (
        ["convert", tmp_path / "mixed", tmp_path / "c.h5"],
        ["embed", tmp_path / "mixed", "-o", tmp_path / "e.h5", "--no-vad", *TINY],
        ["embed", tmp_path / "mixed", "--no-vad", *TINY],
    ):
        result = knn(*arguments)
        assert result.exit_code == 1 and result.stderr.count("is not audio") == 2 and "2 files failed" in result.stderr


def test_silent_stores_are_refused(tmp_path: Path, chain: dict[str, Path]) -> None:
    (tmp_path / "silence").mkdir()
    soundfile.write(tmp_path / "silence" / "s.wav", np.zeros(32000), 16000)
    done("convert", tmp_path / "silence", tmp_path / "s.h5")
    old = tmp_path / "old.tsv"
    old.write_text("older result")
    for arguments in (
        ["embed", tmp_path / "s.h5", *TINY],
        ["embed", tmp_path / "s.h5", "-o", tmp_path / "e.h5", *TINY],
        ["classify", tmp_path / "s.h5", "--model", chain["model"], "-o", old, "--force"],
        ["train", tmp_path / "s.h5", "-o", tmp_path / "m", *TINY],
    ):
        result = knn(*arguments)
        assert result.exit_code == 1 and "holds no speech" in result.stderr, result.output
    assert old.read_text() == "older result"
    assert outputs_in(tmp_path) == ["old.tsv", "s.h5", "silence"]


def test_one_bad_store_costs_none_of_the_others(corpus: Path, chain: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "cut.h5").write_bytes(chain["embeddings"].read_bytes()[:3000])
    files = sorted(corpus.rglob("*.wav"))
    result = knn("classify", files[0], tmp_path / "cut.h5", files[-1], "--model", chain["model"], "--no-vad")
    assert result.exit_code == 1 and len(result.stdout.splitlines()) == 3 and "cut.h5" in result.stderr


def test_recordings_of_one_stem_are_kept_apart(tmp_path: Path) -> None:
    for place in ("r1", "r2"):
        (tmp_path / "in" / "de" / place).mkdir(parents=True)
        soundfile.write(tmp_path / "in" / "de" / place / "audio.wav", noise(1.0), 16000)
        soundfile.write(tmp_path / "in" / "de" / place / "x_SPLIT_001.wav", noise(1.0), 16000)
        soundfile.write(tmp_path / "in" / "de" / place / "x_SPLIT_002.wav", noise(1.0), 16000)
    done("convert", tmp_path / "in", tmp_path / "c.h5", "--labels", "group/*/file")
    with hdf5.Store(tmp_path / "c.h5") as opened:
        assert set(opened.column("name").tolist()) == {"r1/audio", "r2/audio", "r1/x", "r2/x"}
    keys = [line.split("  [")[0] for line in done("embed", tmp_path / "in", "--no-vad", *TINY).stdout.splitlines()]
    assert len(set(keys)) == 6 and "r1/x_SPLIT_002" in keys
    both = [tmp_path / "in" / "de" / place / "audio.wav" for place in ("r1", "r2")]
    assert {line.split()[1] for line in done("diarize", *both, *HEAR).stdout.splitlines()} <= {"r1/audio", "r2/audio"}


def test_tabs_in_names_and_options_that_cannot_be(chain: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "tab\there [b]x[.wav"
    soundfile.write(odd, noise(1.0), 16000)
    rows = done("classify", odd, "--model", chain["model"], "--no-vad").stdout.splitlines()
    assert len(rows) == 2 and "tab\\there" in rows[1]
    for arguments in (
        ["embed", odd, "--segment", "nan", *TINY],
        ["embed", odd, "--segment", "inf", *TINY],
        ["embed", odd, "--channel", "\u00b2", *TINY],
        ["convert", odd, tmp_path / "x.h5", "--segment", "inf"],
        ["convert", odd, tmp_path / "x.h5", "--segment", "1e-9", "--min-segment", "0"],
        ["embed", odd, "-o", tmp_path / "x.h5", "--json", *TINY],
    ):
        result = knn(*arguments)
        assert result.exit_code in (1, 2) and result.exception.__class__ is SystemExit, result.output
    assert list(tmp_path.iterdir()) == [odd]


def test_quiet_and_verbose_stand_anywhere(corpus: Path, tmp_path: Path) -> None:
    file = next(corpus.rglob("*.wav"))
    assert done("embed", file, "--no-vad", "-q", "-o", tmp_path / "a.h5", *TINY).stderr == ""
    assert "on cpu" in done("embed", file, "--no-vad", "-v", *TINY).stderr
    assert "on cpu" in done("-v", "embed", file, "--no-vad", *TINY).stderr
    assert "on cpu" not in done("embed", file, "--no-vad", *TINY).stderr


def test_closed_and_broken_stdout(corpus: Path) -> None:
    files = " ".join(str(path) for path in sorted(corpus.rglob("*.wav")))
    knn_text = f"{sys.executable} -m knn_cli embed {files} --no-vad {' '.join(TINY)}"
    closed = subprocess.run(["sh", "-c", f"{knn_text} >&-"], capture_output=True, text=True, timeout=120)
    assert closed.returncode == 0 and "Traceback" not in closed.stderr
    broken = subprocess.run(
        ["bash", "-c", f"{knn_text} | head -c 10; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert broken.returncode in {0, 141} and "Traceback" not in broken.stderr and broken.stderr == ""
