"""Batches across files, as accelerators get them, tried on the CPU: the embeddings of one recording after the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from knn_cli.audio import reading
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.values import Floats, Segment
from knn_cli.embedding import files, full_batches
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.store.corpora.recordings import CorpusPart, CorpusRecording, SoundSource
from knn_cli.store.labels import Labels

OPTIONS = EmbeddingOptions(use_vad=False)


@pytest.fixture
def tiny() -> Embedder:
    return Embedder("tiny-test", device="cpu", batch_seconds=4.0)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[CorpusRecording]:
    """Nine of 0.3 to 45 s; the third is no sound, the fourth has two overlapping parts, the last is silent."""
    folder, random = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    found = []
    for number, seconds in enumerate((1.0, 0.3, 0.0, 3.0, 45.0, 0.9, 2.1, 1.0, 1.5)):
        path = folder / f"{number}.wav"
        soundfile.write(path, (number < 8) * 0.1 * random.standard_normal(round(16000 * seconds)), 16000, "FLOAT")
        part = CorpusPart(path.stem, Labels(path.stem, group=f"g{number}"))
        found.append(CorpusRecording(SoundSource(path), (part,)))
    Path(found[2].sound.path).write_bytes(b"nothing")
    parts = [replace(found[3].parts[0], span=Segment(start, start + 1.5)) for start in (1.0, 0.5)]
    found[3] = replace(found[3], parts=tuple(parts))
    return found


def assert_same(recordings: list[CorpusRecording], tiny: Embedder, jobs: int = 2) -> None:
    together = [*full_batches.embed_in_full_batches(recordings, tiny, OPTIONS, jobs=jobs)]
    alone = [*files.embed_recordings(recordings, tiny, OPTIONS)]
    assert [name for name, _ in together] == [name for name, _ in alone]
    for (_, found), (_, wanted) in zip(together, alone, strict=True):
        if isinstance(wanted, KnnError):
            assert (type(found), str(found)) == (type(wanted), str(wanted))
            continue
        assert not isinstance(found, KnnError)
        assert np.allclose(found.data, wanted.data, atol=1e-5)
        for column in ("name", "group", "start", "end"):
            assert np.array_equal(getattr(found, column), getattr(wanted, column))


def test_rows_order_and_errors_are_those_of_one_by_one(recordings: list[CorpusRecording], tiny: Embedder) -> None:
    assert_same(recordings, tiny)
    assert_same(recordings[8:], tiny)
    assert [*full_batches.embed_in_full_batches([], tiny, OPTIONS)] == []


def test_long_recordings_are_not_read_ahead(
    recordings: list[CorpusRecording], tiny: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_batches, "HELD_SECONDS", 1.0)
    assert_same(recordings, tiny, jobs=1)


def test_batches_hold_chunks_of_several_recordings(
    recordings: list[CorpusRecording], tiny: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "device", torch.device("meta"))  # limits are those of an accelerator
    sizes: list[list[float]] = []

    def embed(waveforms: list[Floats]) -> Floats:
        sizes.append([len(waveform) / 16000 for waveform in waveforms])
        return np.zeros((len(waveforms), tiny.dimension), dtype=np.float32)

    monkeypatch.setattr(tiny, "_embed", embed)
    short = [recording for number, recording in enumerate(recordings) if number in (0, 1, 5, 6, 7)]
    results = [*files.embed_recordings(short * 4, tiny, OPTIONS)]  # no CPU, so batches are full
    assert len(results) == 20 and len(sizes) < 10  # of up to 4 s; 2.1 s are alone in theirs
    assert all(max(size) * len(size) <= 4 for size in sizes) and sorted(sizes[0]) == sizes[0]


def test_a_recording_that_fails_on_the_way_costs_no_other(
    recordings: list[CorpusRecording], tiny: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_batches, "HELD_SECONDS", 30.0)
    crops = reading.HeldRecording.crops

    def failing(sound, spans):  # type: ignore[no-untyped-def]
        for number, crop in enumerate(crops(sound, spans)):
            if number == 1 and Path(sound.path).stem == "4":
                raise AudioError("4.wav ends too early.")
            yield crop

    monkeypatch.setattr(reading.HeldRecording, "crops", failing)
    assert_same(recordings, tiny)
