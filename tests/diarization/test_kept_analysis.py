"""Kept analyses: the same turns as from the sound, and one sentence for files that are something else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.values import EmbeddingSet
from knn_cli.diarization import kept_analysis, pipeline, recordings
from knn_cli.diarization.kept_analysis import KeptAnalysis
from knn_cli.diarization.options import DiarizationOptions
from knn_cli.diarization.reconstruction import LocalSpeaker, Segmentation
from knn_cli.embedding.embedder import Embedder
from knn_cli.store.writer import write_store
from tests.helpers.windows import windows_of

TURNS = [(0.0, 8.0, 0), (7.0, 16.0, 1), (16.0, 24.0, 2), (24.4, 36.0, 0), (36.0, 40.0, 1)]


@pytest.fixture(scope="module")
def analysis() -> KeptAnalysis:
    windows = windows_of(TURNS, 40.0, np.eye(8)[:3], noise=0.2)
    return KeptAnalysis(windows, "meeting", 39.98, "mix", "voice@1", "segmentation@2")


@pytest.fixture
def kept(analysis: KeptAnalysis, tmp_path: Path) -> Path:
    kept_analysis.save(analysis, tmp_path / "meeting.h5")
    return tmp_path / "meeting.h5"


def assert_same(one: Any, other: Any) -> None:
    """Equal to the bit, dataclasses, arrays and lists alike."""
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    elif isinstance(one, dict):
        assert sorted(one) == sorted(other)
        assert_same([one[key] for key in one], [other[key] for key in one])
    elif isinstance(one, (list, tuple)):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif hasattr(one, "__dataclass_fields__"):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    else:
        assert one == other and type(one) is type(other)


def test_what_is_kept_is_what_was_there(analysis: KeptAnalysis, kept: Path) -> None:
    assert_same(kept_analysis.load(kept), analysis)
    described = kept_analysis.describe(kept)
    assert described["recording"] == "meeting" and described["embedder"] == "voice@1" and described["channel"] == "mix"
    assert kept_analysis.is_kept(kept)


def test_nothing_and_views_are_kept_too(analysis: KeptAnalysis, tmp_path: Path) -> None:
    windows = analysis.windows
    wider = replace(windows, full_vectors=np.concatenate([windows.vectors, windows.vectors], axis=1))
    silent = windows_of([], 40.0, np.eye(8)[:3])
    for number, one in enumerate((wider, silent, replace(windows, local=[], local_vectors=windows.vectors[:0]))):
        path = tmp_path / f"{number}.h5"
        kept_analysis.save(replace(analysis, windows=one), path)
        assert_same(kept_analysis.load(path).windows, one)


def test_the_schema_changes_with_the_fields() -> None:
    """A file of other fields would be called damaged: raise SCHEMA where one of these changes, then this text."""
    kinds = (pipeline.WindowEmbeddings, Segmentation, LocalSpeaker)
    text = json.dumps([[field.name for field in fields(kind)] for kind in kinds])
    assert (kept_analysis.SCHEMA, hashlib.sha256(text.encode()).hexdigest()[:8]) == (1, "8388dad1")


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({}, {}),
        ({"clusterer": "ahc", "min_turn": 1.0, "margin": 0.0}, {"num_speakers": 2}),
        ({"max_gap": 2.0}, {"min_speakers": 4, "max_speakers": 5}),
    ],
)
def test_turns_are_those_of_the_sound(
    example: Path, tmp_path: Path, settings: dict[str, Any], numbers: dict[str, Any]
) -> None:
    options = DiarizationOptions(vad="silero", **settings)
    embedder = Embedder("tiny-test", device="cpu")
    wanted = pipeline.diarize(example, model=embedder, options=options, **numbers)
    results = recordings.diarize_recordings(
        [example],
        embedder,
        options=options,
        analysed=lambda path, made: kept_analysis.save(made, tmp_path / f"{path.stem}.h5"),
        **numbers,
    )
    ((_, first),) = results
    ((_, again),) = recordings.diarize_kept([tmp_path / f"{example.stem}.h5"], options=options, **numbers)
    assert_same(first, wanted)
    assert_same(again, wanted)


def test_more_speakers_than_windows_need_the_sound(analysis: KeptAnalysis, kept: Path) -> None:
    ((_, result),) = recordings.diarize_kept([kept], options=DiarizationOptions(), num_speakers=1000)
    assert isinstance(result, KnnError) and "too few for so many speakers" in result.message


def test_an_existing_file_stays(analysis: KeptAnalysis, kept: Path) -> None:
    with pytest.raises(StoreError, match="exists already"):
        kept_analysis.save(analysis, kept)
    kept_analysis.save(replace(analysis, recording="other"), kept, force=True)
    assert kept_analysis.load(kept).recording == "other"


def _without(name: str) -> Any:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        else:
            del file.attrs[name]

    return change


def _schema(file: h5py.File) -> None:
    file.attrs["schema"] = 99


def _numbers(file: h5py.File) -> None:
    file["vectors"][0, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_schema, "has schema 99"),
        (_numbers, "is damaged"),
        *((_without(name), "is damaged") for name in ("short", "local/active", "vectors", "duration", "embedder")),
        (_without("kind"), "another HDF5 file"),
    ],
)
def test_damaged_files_are_refused(kept: Path, change: Any, message: str) -> None:
    with h5py.File(kept, "r+") as file:
        change(file)
    with pytest.raises(StoreError, match=message) as raised:
        kept_analysis.load(kept)
    assert raised.value.hint


def test_other_files_are_refused(kept: Path, tmp_path: Path) -> None:
    content = kept.read_bytes()
    (tmp_path / "half.h5").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.h5").write_text("hello")
    write_store(tmp_path / "store.h5", EmbeddingSet.from_columns([[1.0, 2.0]], ["a"]))
    for name in ("half", "text", "store", "none"):
        path = tmp_path / f"{name}.h5"
        assert not kept_analysis.is_kept(path)
        with pytest.raises(StoreError):
            kept_analysis.load(path)


def test_flipped_bytes_are_noticed(kept: Path) -> None:
    """Every part of the file is read, or answered with one sentence; damaged data is never taken for whole."""
    content = kept.read_bytes()
    wanted = kept_analysis.load(kept)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 60).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        kept.write_bytes(damaged)
        try:
            found = kept_analysis.load(kept)
        except StoreError:
            continue
        assert_same(found.windows, wanted.windows)


@pytest.mark.parametrize("method", ["spectral", "ahc"])
def test_what_clustering_computed_is_kept(
    analysis: KeptAnalysis, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number of speakers needs neither a tree nor a spectrum again, and gets the labels of a fresh run."""
    options = DiarizationOptions(clusterer=method)
    used = replace(analysis, clustering={})
    recordings.diarize_analysis(used, None, options=options)
    kept_analysis.save(used, tmp_path / "used.h5")
    again = kept_analysis.load(tmp_path / "used.h5")
    assert_same(again.clustering, used.clustering)
    wanted = [recordings.diarize_analysis(replace(analysis, clustering={}), None, options=options, num_speakers=2)]
    monkeypatch.setattr("knn_cli.diarization.clustering.ahc._distances", lambda *_: pytest.fail("a tree grew again"))
    monkeypatch.setattr("scipy.linalg.eigh", lambda *_, **__: pytest.fail("eigenvectors were computed again"))
    assert_same([recordings.diarize_analysis(again, None, options=options, num_speakers=2)], wanted)
