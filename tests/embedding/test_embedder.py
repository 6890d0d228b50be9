"""From sound to embeddings: one clip gives one embedding, whatever batch, chunk or door it comes through."""

from __future__ import annotations

import numpy as np
import pytest

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.embedding.embedder import Embedder


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder("tiny-test", device="cpu")


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=round(seconds * 16000)) * 0.1).astype(np.float32)


def test_batch_equals_single(tiny: Embedder) -> None:
    clips = [noise(seconds, seed) for seed, seconds in enumerate((0.31, 2.0, 0.7, 2.0, 1.234))]
    together = tiny(clips)
    assert together.shape == (5, tiny.dimension) and together.dtype == np.float32
    for clip, row in zip(clips, together, strict=True):
        assert np.allclose(tiny([clip])[0], row, atol=1e-5)


def test_small_batches_equal_large_ones() -> None:
    clips = [noise(seconds, seed) for seed, seconds in enumerate((0.5, 1.5, 1.0, 0.6))]
    assert np.allclose(Embedder("tiny-test", batch_seconds=0.1)(clips), Embedder("tiny-test")(clips), atol=1e-5)


def test_averages_are_weighted_by_length_and_streamed(tiny: Embedder) -> None:
    clips = [noise(1.0, 1), noise(3.0, 2), noise(2.0, 3)]
    single = tiny(clips)
    found = tiny.averages(iter([(7, clips[0]), (7, clips[1]), (9, clips[2])]))
    assert np.allclose(found[7], (single[0] + 3 * single[1]) / 4, atol=1e-5)
    assert np.allclose(found[9], single[2], atol=1e-5)


def test_refusals() -> None:
    with pytest.raises(BundleError, match="no model 'nosuch'"):
        Embedder("nosuch")
    with pytest.raises(KnnError, match="no device 'gpu'"):
        Embedder("tiny-test", device="gpu")
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(KnnError, match=f"Batches cannot be {seconds:g} s"):
            Embedder("tiny-test", batch_seconds=seconds)
