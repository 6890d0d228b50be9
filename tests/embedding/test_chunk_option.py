"""How much a network hears at once: 20 s, so many seconds, or all of it; in every door, and in the fingerprint."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from knn_cli.audio import reading_notes
from knn_cli.cli.app import app
from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import Segment
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.files import embed_file
from knn_cli.embedding.stores import embed_rows, load_or_embed
from knn_cli.networks import bundle
from knn_cli.networks.chunk_setting import Chunk, parse_chunk
from knn_cli.networks.conversion import convert
from knn_cli.networks.precision import with_suffix, without_suffix
from knn_cli.store.hdf5 import Store


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "long.wav"
    sound = np.random.default_rng(0).normal(size=45 * 16000) * np.linspace(0.02, 0.2, 45 * 16000)
    soundfile.write(path, sound.astype(np.float32), 16000, subtype="FLOAT")
    return path


def chunks_of(path: Path, edges: list[int]) -> np.ndarray:
    """The embedding of a file of 45 s, heard between these seconds."""
    sound = soundfile.read(path, dtype="float32")[0]
    pairs = list(itertools.pairwise(edges))
    parts = Embedder("tiny-test", device="cpu")([sound[a * 16000 : b * 16000] for a, b in pairs])
    return np.average(parts, axis=0, weights=[b - a for a, b in pairs])


@pytest.mark.parametrize(
    ("chunk", "edges"), [("whole", [0, 45]), (45.0, [0, 45]), (15.0, [0, 15, 30, 45]), (30.0, [0, 22, 23, 45])]
)
def test_files_stores_and_spans_are_heard_in_such_chunks(
    long_file: Path, tmp_path: Path, chunk: Chunk, edges: list[int]
) -> None:
    embedder = Embedder("tiny-test", device="cpu", chunk=chunk)
    expected = chunks_of(long_file, edges)
    if chunk == 30.0:  # cut evenly, in the middle of a second
        sound = soundfile.read(long_file, dtype="float32")[0]
        expected = Embedder("tiny-test", device="cpu")([*np.split(sound, 2)]).mean(axis=0)
    by_file = embed_file(long_file, embedder, use_vad=False)
    np.testing.assert_allclose(by_file.data[0], expected, atol=1e-5)
    np.testing.assert_allclose(embedder.spans(long_file, [Segment(0.0, 45.0)])[0], expected, atol=1e-5)
    convert(long_file, tmp_path / "s.h5", segment=60.0)
    with Store(tmp_path / "s.h5", "audio") as store:
        by_row = next(iter(embed_rows(store, embedder, use_vad=False))).embeddings
    np.testing.assert_allclose(by_row.data[0], expected, atol=1e-3)  # 16 bits
    assert by_row.embedder == by_file.embedder == embedder.bundle.fingerprint
    default = Embedder("tiny-test", device="cpu")
    assert not np.allclose(embed_file(long_file, default, use_vad=False).data[0], expected, atol=1e-3)


def test_the_fingerprint_says_it_and_finds_it() -> None:
    found = bundle.find("tiny-test")
    whole, forty = found.with_settings(chunk="whole"), found.with_settings(chunk=40.0)
    assert whole.fingerprint == f"{found.fingerprint}+whole" and forty.fingerprint == f"{found.fingerprint}+40"
    assert found.with_settings(chunk=20.0).fingerprint == found.fingerprint  # as stores of before have it
    assert bundle.find_embedder(forty.fingerprint).chunk == 40.0
    assert bundle.find_embedder(found.fingerprint).chunk == 20.0
    with pytest.raises(BundleError, match="Make the embeddings again"):
        bundle.check_embedder(whole.fingerprint, found.fingerprint, "The store")
    alone = bundle.Bundle(found.folder, {"name": "x", "kind": "classifier", "embedder": forty.fingerprint})
    assert alone.with_settings(chunk="whole").fingerprint == whole.fingerprint
    assert without_suffix(with_suffix("a+b@c0ffee", 0.5)) == ("a+b@c0ffee", 0.5, "auto")
    assert without_suffix("a@b+whole@c0ffee") == ("a@b+whole@c0ffee", 20.0, "auto")


def test_a_bundle_states_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an option it counts, a model trained on its embeddings carries it, and what cannot be is refused."""
    monkeypatch.setenv("KNN_MODELS", str(tmp_path), prepend=os.pathsep)
    shutil.copytree(bundle.find("tiny-test").folder, tmp_path / "own")
    path = tmp_path / "own" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chunk": "whole"}))
    assert Embedder("own", device="cpu").chunk_seconds == 120.0
    assert Embedder("own", device="cpu", chunk=7.0).chunk_seconds == 7.0
    for wrong in ("all", 0, 1e9, True, [20]):
        path.write_text(json.dumps({**config, "chunk": wrong}))
        with pytest.raises(BundleError, match=r"chunk is .*, not 'whole' or a number of seconds"):
            bundle.find("own")


def test_what_is_too_long_is_said_or_refused(long_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from knn_cli.networks.encoders.resnet import ResNet

    heard: list[str] = []
    encoder = type(Embedder("tiny-test", device="cpu").encoder)
    assert (ResNet.longest_seconds, encoder.longest_seconds) == (300.0, 120.0)
    monkeypatch.setattr(encoder, "longest_seconds", 15.0)
    with reading_notes.listening(lambda path, clause, loss: heard.append(clause)):
        rows = embed_file(long_file, Embedder("tiny-test", device="cpu", chunk="whole"), use_vad=False)
    np.testing.assert_allclose(rows.data[0], chunks_of_15(long_file), atol=1e-5)
    assert heard == ["is heard in 3 parts: a row has 45 s, above 15 s, the most that tiny-test hears at once"]
    with pytest.raises(KnnError, match="takes up to 15 s at once, not 16"):
        Embedder("tiny-test", device="cpu", chunk=16.0)


def chunks_of_15(path: Path) -> np.ndarray:
    sound = soundfile.read(path, dtype="float32")[0]
    return Embedder("tiny-test", device="cpu", chunk=15.0)([*np.split(sound, 3)]).mean(axis=0)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "all", "", "4000"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(KnnError, match=f"`chunk` cannot be '{text}'"):
        parse_chunk(text)


def test_from_the_command_line(long_file: Path, tmp_path: Path) -> None:
    options = ["--model", "tiny-test", "--chunk", "whole", "--no-vad", "-o", str(tmp_path / "e.h5")]
    run = CliRunner().invoke(app, ["embed", str(long_file), *options])
    assert run.exit_code == 0, run.output
    with Store(tmp_path / "e.h5") as store:
        assert store.embedder.endswith("+whole")
    with pytest.raises(KnnError, match="`chunk` has nothing to do"):
        load_or_embed(tmp_path / "e.h5", chunk=30.0)
    refused = CliRunner().invoke(app, ["classify", str(long_file), "--chunk", "all"])
    assert refused.exit_code == 1 and "--chunk cannot be 'all'" in refused.output
