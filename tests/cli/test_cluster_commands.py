"""Commands with their work on a cluster: the outputs, messages and failures of one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

from knn_cli.core.cluster import opened_cluster
from knn_cli.core.values import EmbeddingSet
from knn_cli.recognition import classifier
from knn_cli.recognition.classifier_file import read_classifier
from knn_cli.recognition.gaussian_statistics import GaussianStatistics
from knn_cli.recognition.training_steps import fitting
from knn_cli.recognition.training_steps.embedding_source import EmbeddingSource
from knn_cli.recognition.training_steps.fitting import FitOptions, FitRows
from knn_cli.store.writer import write_store
from tests.helpers.command import done, knn
from tests.helpers.embedding_sets import blobs
from tests.helpers.head_bundles import write_head_bundle
from tests.helpers.stores import assert_same_store

EXAMPLES = Path(__file__).parents[2] / "examples"
distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def where() -> Iterator[str]:
    """The address of a scheduler with two workers, which all tests here share."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recordings under a relative path, of which one cannot be read and one is odd."""
    monkeypatch.chdir(tmp_path)
    folder = Path("sounds")
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", 0.1 * random.standard_normal(12000 + 8000 * number), 16000)
    (folder / "bad.wav").write_bytes(b"nothing")
    noise = 0.1 * random.standard_normal(16000)
    soundfile.write(folder / "inverted.wav", np.stack([noise, -noise], axis=1), 16000)
    return folder


def both(where: str, *arguments: str | Path, code: int = 1) -> tuple[str, str]:
    """What a command says here and on the cluster, which it names; the exit code is 1 where a recording is bad."""
    said = []
    for name, more in (("by-one", ()), ("by-two", ("--cluster", where))):
        result = knn(*(str(argument).replace("NAME", name) for argument in (*arguments, *more)))
        assert result.exit_code == code, result.output
        lines = [line for line in result.output.splitlines() if not line.startswith("Cluster ")]
        said.append("\n".join(lines).replace(name, "NAME"))
    assert f"Cluster {where}: 2 processors" in result.output
    return said[0], said[1]


def test_embed(loopback: None, where: str, sounds: Path) -> None:
    here, there = both(where, "embed", sounds, "--model", "tiny-test", "--no-vad", "-o", "NAME.h5")
    assert here == there and "knn: sounds/bad.wav is not audio" in here
    assert_same_store(Path("by-one.h5"), Path("by-two.h5"))


def test_embed_a_store(loopback: None, where: str, sounds: Path) -> None:
    """Shards of rows: groups of half a second or more, of rows of a quarter."""
    (sounds / "bad.wav").unlink()
    done("convert", sounds, "store.h5", "--segment", "0.25", "--min-segment", "0.25")
    options = ["--model", "tiny-test", "--no-vad", "--batch-seconds", "0.5", "-o", "NAME.h5"]
    here, there = both(where, "embed", "store.h5", *options, code=0)
    assert here == there
    assert_same_store(Path("by-one.h5"), Path("by-two.h5"))


def test_classify(loopback: None, where: str, sounds: Path) -> None:
    """Files, a recording of a list and a store, in their order, with a bundle of a head."""
    write_head_bundle(Path("three"), ["cs", "pl", "sk"])
    Path("kaldi").mkdir()
    Path("kaldi", "wav.scp").write_text("one sounds/2.wav\n")
    done("convert", "sounds/3.wav", "store.h5")
    sources = [sounds, "store.h5", "kaldi"]
    said = both(where, "classify", *sources, "--model", "three", "--no-vad", "-o", "NAME.jsonl")
    assert said[0] == said[1] and "knn: sounds/bad.wav is not audio" in said[0]
    answers = Path("by-one.jsonl").read_text()
    assert answers == Path("by-two.jsonl").read_text() and len(answers.splitlines()) == 7


def test_classify_stores(loopback: None, where: str, sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores of sound and of embeddings, several units of each; this process scores none of them."""
    write_head_bundle(Path("three"), ["cs", "pl", "sk"])
    (sounds / "bad.wav").unlink()
    done("convert", sounds, "sound.h5", "--segment", "0.25", "--min-segment", "0.25")
    done("embed", "sound.h5", "--model", "three", "--no-vad", "-o", "embeddings.h5")
    monkeypatch.setattr(classifier, "ROWS_AT_ONCE", 5)
    options = ["--model", "three", "--no-vad", "--batch-seconds", "0.5", "-o"]
    here = done("classify", "sound.h5", "embeddings.h5", *options, "here.jsonl")

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a store was scored here")

    monkeypatch.setattr(classifier.Classifier, "score", refused)
    there = done("classify", "sound.h5", "embeddings.h5", *options, "there.jsonl", "--cluster", where)
    assert Path("here.jsonl").read_text() == Path("there.jsonl").read_text() != ""
    lines = [line for line in there.output.replace("there.", "here.").splitlines() if not line.startswith("Cluster ")]
    assert lines == here.output.splitlines()


def test_diarize(loopback: None, where: str, sounds: Path) -> None:
    """Turns with speakers that are linked over recordings, and kept analyses."""
    speech, rate = soundfile.read(EXAMPLES / "meeting.flac", frames=12 * 16000)
    for name, part in (("first", speech[: 6 * rate]), ("second", speech[6 * rate :])):
        soundfile.write(sounds / f"{name}.wav", part, rate)
    sources = [sounds / f"{name}.wav" for name in ("first", "bad", "second")]
    options = ["--model", "tiny-test", "--format", "json", "--link-speakers"]
    said = both(where, "diarize", *sources, *options, "--out-dir", "NAME", "--keep", "NAME-kept")
    assert said[0] == said[1] and "knn: sounds/bad.wav is not audio" in said[0]
    for name in ("first", "second"):
        turns = json.loads(Path("by-one", f"{name}.json").read_text())["turns"]
        assert turns and turns == json.loads(Path("by-two", f"{name}.json").read_text())["turns"]
        vectors = []
        for folder in ("by-one-kept", "by-two-kept"):
            with h5py.File(Path(folder, f"{name}.h5")) as file:
                vectors.append(file["vectors"][...])
        assert np.array_equal(*vectors)
    refused = knn("diarize", "by-one-kept/first.h5", "--cluster", where)
    assert refused.exit_code == 1 and "leave nothing for a cluster" in refused.output


def test_train(loopback: None, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bundle, bit for bit; also of statistics of many leaves, which are those of one pass but for rounding."""
    rows = EmbeddingSet.concatenate([blobs(seed) for seed in range(40)])
    write_store(tmp_path / "rows.h5", rows)
    trained = []
    for name, more in (("here", []), ("there", ["--cluster", where])):
        transforms = ["--transforms", "center,length,whiten", "--set", "balanced=true"]
        done("train", tmp_path / "rows.h5", "-o", tmp_path / name, *transforms, *more)
        trained.append(read_classifier(tmp_path / name / "classifier.h5").classifier)
    assert np.array_equal(trained[0].means_, trained[1].means_)
    assert np.array_equal(trained[0].covariance_, trained[1].covariance_)
    refused = knn("train", EXAMPLES / "meeting.flac", "-o", tmp_path / "m", "--cluster", where)
    assert refused.exit_code == 1 and "is no store of embeddings" in refused.output

    monkeypatch.setattr(fitting, "LEAF_BLOCKS", 1)
    monkeypatch.setattr(EmbeddingSource, "block_rows", 1000)
    classes, truth = np.unique(rows.subgroup, return_inverse=True)
    cell = np.arange(len(rows)) % 3 - 1
    with opened_cluster(where) as cluster:
        sources = EmbeddingSource(rows), EmbeddingSource(tmp_path / "rows.h5", reduce=cluster.reduced)
        all_fits = [
            fitting.fit_classifiers(FitRows(source, truth, classes, cell), [[0], [0, 1]], FitOptions())
            for source in sources
        ]
    for one, other in zip(*all_fits, strict=True):
        assert np.array_equal(one.statistics.scatter, other.statistics.scatter)
        assert np.array_equal(one.statistics.means, other.statistics.means)
    used = cell >= 0
    at_once = GaussianStatistics.from_rows(rows.data[used], rows.subgroup[used])
    np.testing.assert_allclose(all_fits[0][1].statistics.scatter, at_once.scatter, rtol=1e-12, atol=1e-9)
    assert np.array_equal(all_fits[0][1].statistics.counts, at_once.counts)


def test_convert(loopback: None, where: str, sounds: Path) -> None:
    here, there = both(where, "convert", sounds, "NAME.h5", "--segment", "0.5", "--min-segment", "0.3")
    assert here == there and "sounds/inverted.wav has" in here and "knn: sounds/bad.wav is not audio" in here
    assert "Dropped 4 remainders" in here
    assert_same_store(Path("by-one.h5"), Path("by-two.h5"))
    refused = knn("convert", "by-one.h5", "out.npz", "--cluster", where)
    assert refused.exit_code == 1 and "by-one.h5 holds no recordings" in refused.output
