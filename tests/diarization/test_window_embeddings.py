"""Embeddings of parts of a recording: pooled from exactly their frames, by an encoder that knows places."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knn_cli.audio.segments import FRAME_SECONDS
from knn_cli.core.values import Floats
from knn_cli.diarization import window_embeddings
from knn_cli.diarization.window_embeddings import BLOCK_FRAMES, MIN_FRAMES, FrameMask
from knn_cli.embedding.embedder import Embedder

RATE, FRAME = 16000, 640


class Places:
    """An embedder without context: one frame a `stride` samples, (the samples' mean, its square); pooled by the mean.

    Sound that says in each sample which frame of the recording it is in gives the frames that an embedding is made of.
    """

    rate, dimension, minimum_samples, batch_seconds, device = RATE, 2, 400, 120.0, torch.device("cpu")

    def __init__(self, stride: int = 320) -> None:
        self.stride = stride
        self.heard: list[list[float]] = []  # the beginnings of the clips of each call, in frames

    def frames(self, waveforms: Sequence[Floats]) -> list[torch.Tensor]:
        self.heard.append([round(float(waveform[0]) * 100) for waveform in waveforms])
        found = []
        for waveform in waveforms:
            means = waveform[: len(waveform) // self.stride * self.stride].reshape(-1, self.stride).mean(1)
            found.append(torch.from_numpy(np.stack([means, means**2], 1))[None])  # (1, T, 2)
        return found

    def pool(self, frames: torch.Tensor, masks: torch.Tensor) -> Floats:
        weights = masks.float() / masks.sum(1, keepdim=True)
        return (weights @ frames[0]).numpy()


def embeddings(path: Path, embedder: object, parts: Sequence[FrameMask]) -> tuple[Floats, Floats]:
    return window_embeddings.embed_masks(path, cast(Embedder, embedder), parts)


@pytest.fixture
def places(tmp_path: Path) -> Callable[[float], Path]:
    """A recording of so many frames whose samples say which frame they are in, in hundredths."""

    def make(frames: float) -> Path:
        samples = np.arange(round(frames * FRAME)) // FRAME / 100
        soundfile.write(tmp_path / "places.wav", samples.astype(np.float32), RATE, subtype="FLOAT")
        return tmp_path / "places.wav"

    return make


def part(start: int, size: int, *spans: tuple[int, int]) -> FrameMask:
    """Frames of the recording from `start` on, those within spans chosen."""
    chosen = np.zeros(size, dtype=bool)
    for first, last in spans:
        chosen[first - start : last - start] = True
    return FrameMask(start, chosen)


def check(path: Path, parts: Sequence[FrameMask], embedder: object) -> None:
    """Each embedding is the mean over its chosen frames, and the seconds are theirs."""
    vectors, lengths = embeddings(path, embedder, parts)
    assert vectors.dtype == lengths.dtype == np.float32
    for one, vector, length in zip(parts, vectors, lengths, strict=True):
        frames = np.flatnonzero(one.mask) + one.start
        if len(frames) < MIN_FRAMES:
            assert length == 0 and not vector.any()
            continue
        assert length == pytest.approx(len(frames) * FRAME_SECONDS)
        np.testing.assert_allclose(vector, [np.mean(frames / 100), np.mean((frames / 100) ** 2)], rtol=1e-4)


def test_pooled_from_exactly_the_chosen_frames(places: Callable[[float], Path]) -> None:
    parts = [
        part(0, 250, (0, 40), (100, 160)),
        part(0, 250, (40, 100)),
        part(50, 250, (70, 80), (149, 151), (299, 300)),
        part(100, 250, (225, 300)),  # a block of its own
        part(350, 250, (599, 600), (350, 355)),
    ]
    check(places(600), parts, Places())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**9))
def test_any_parts(places: Callable[[float], Path], seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = int(rng.integers(1, 700))
    parts = []
    for start in sorted(rng.integers(0, frames, int(rng.integers(0, 12))).tolist()):
        size = int(rng.integers(1, 300))
        chosen = np.repeat(rng.random(-(-size // 9)) < rng.random(), 9)[:size]
        parts.append(FrameMask(start, chosen & (np.arange(size) + start < frames)))
    check(places(frames), parts, Places())


def test_short_parts_have_no_embedding(places: Callable[[float], Path]) -> None:
    vectors, lengths = embeddings(
        places(50), Places(), [part(0, 50, (0, MIN_FRAMES)), part(0, 50, (10, 9 + MIN_FRAMES))]
    )
    assert lengths.tolist() == [pytest.approx(MIN_FRAMES * FRAME_SECONDS), 0]
    assert vectors[0].any() and not vectors[1].any()


def test_no_parts_hear_nothing(places: Callable[[float], Path]) -> None:
    embedder, path = Places(), places(120)
    vectors, lengths = embeddings(path, embedder, [])
    assert vectors.shape == (0, 2) and lengths.shape == (0,)
    vectors, lengths = embeddings(path, embedder, [part(0, 120), part(3, 20)])
    assert not vectors.any() and not lengths.any() and embedder.heard == []


def test_sound_is_encoded_once_and_only_where_it_is_wanted(places: Callable[[float], Path]) -> None:
    embedder = Places()
    parts = [part(start, 250, (start, start + 75)) for start in (0, 10, 20, 75, 600)]
    check(places(1000), parts, embedder)
    assert embedder.heard == [[0, BLOCK_FRAMES, 600]]  # the blocks at 0, 75 and 600: each in one piece, each once


def test_encoders_of_long_frames_hear_as_many_seconds(places: Callable[[float], Path]) -> None:
    """A frame of 80 ms, as of a ResNet, is two of ours."""
    vectors, lengths = embeddings(places(75), Places(1280), [part(0, 75, (0, 20)), part(0, 75, (20, 30))])
    assert lengths.tolist() == pytest.approx([20 * FRAME_SECONDS, 10 * FRAME_SECONDS])
    np.testing.assert_allclose(vectors[:, 0], [0.095, 0.245], atol=0.006)


def test_few_blocks_are_held_at_once(places: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder gets BLOCKS_PER_BATCH blocks at a time, on the threads that `batch_seconds` allows; nothing stays."""
    monkeypatch.setattr(window_embeddings, "BLOCKS_PER_BATCH", 2)
    made: list[Any] = []

    class Watched(Places):
        batch_seconds = 4.5 * window_embeddings.BLOCK_SECONDS  # two times two blocks

        def frames(self, waveforms: Sequence[Floats]) -> list[torch.Tensor]:
            alive = sum(one() is not None for one in made)
            assert alive <= 4 + 4 + 2 * 3  # within a part's reach, on their way, and behind the two on theirs to a pool
            found = super().frames(waveforms)
            made.extend(map(weakref.ref, found))
            return found

    embedder = Watched()
    size = 3 * BLOCK_FRAMES
    parts = [FrameMask(start, np.ones(size, dtype=bool)) for start in range(0, 40 * BLOCK_FRAMES - size + 1, 50)]
    check(places(40 * BLOCK_FRAMES), parts, embedder)
    assert [len(one) for one in embedder.heard] == [2] * 20 and len(made) == 40


def test_threads_play_no_part(example: Path) -> None:
    tiny = Embedder("tiny-test", device="cpu")
    parts = [FrameMask(start, np.arange(60) % 7 > 1) for start in range(0, 1400, 30)]
    threads = torch.get_num_threads()
    found = []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(embeddings(example, tiny, parts))
    torch.set_num_threads(threads)
    assert np.array_equal(found[0][0], found[1][0]) and np.array_equal(found[0][1], found[1][1])


def test_a_network_gives_a_block_what_its_clip_gives_alone(tmp_path: Path) -> None:
    """With a real embedder, a part of one whole block has the embedding of that sound; a short recording likewise."""
    tiny = Embedder("tiny-test", device="cpu")
    samples = (np.random.default_rng(0).normal(size=100 * FRAME) * 0.1).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", samples, RATE, subtype="FLOAT")
    vectors, _ = window_embeddings.embed_masks(
        tmp_path / "noise.wav", tiny, [part(0, 100, (0, BLOCK_FRAMES)), part(50, 50, (BLOCK_FRAMES, 100))]
    )
    np.testing.assert_allclose(
        vectors, tiny([samples[: BLOCK_FRAMES * FRAME], samples[BLOCK_FRAMES * FRAME :]]), atol=1e-5
    )
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
