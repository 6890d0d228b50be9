"""What the shipped models' training and benchmark compute, by hand."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from benchmarks.lid import interval, macro
from training.augment import warp_matrix
from training.data import Corpus
from training.language import SYNTHETIC_WEIGHT, Backend, calibrate, weighted


def test_a_warp_moves_frequencies_and_one_is_no_warp() -> None:
    for scale in ("slaney", "kaldi"):
        torch.testing.assert_close(warp_matrix(1.0, scale), torch.eye(80), atol=1e-6, rtol=0)
    peak = torch.zeros(1, 80)
    peak[0, 20] = 1.0
    longer, shorter = (peak @ warp_matrix(factor) for factor in (0.85, 1.18))
    assert longer.argmax() < 20 < shorter.argmax()


def test_families_then_speakers_then_recordings_weigh_alike() -> None:
    labels = [("cs", "games", "a"), ("cs", "games", "a"), ("cs", "games", "b"), ("cs", "kde", "c"), ("de", "kde", "c")]
    np.testing.assert_allclose(weighted(labels), [1 / 8, 1 / 8, 1 / 4, 1 / 2, 1])


def test_synthetic_speech_is_moved_to_where_real_speech_is() -> None:
    """`pl` has synthetic speech only: what the others' kinds differ by is added to it."""
    real = np.array([[1.0, 10.0], [5.0, 10.0]])
    labels = [("cs", "games", "a"), ("de", "games", "b")]
    synthetic = np.array([[1.0, 0.0], [5.0, 0.0], [9.0, 0.0]])
    backend = Backend(real, labels, synthetic, ["cs", "de", "pl"])
    assert backend.classes == ["cs", "de", "pl"] and backend.counts.tolist() == [2, 2, 1]
    np.testing.assert_allclose(backend.means, [[1, 10], [5, 10], [9, 10]])
    alone = Backend(real, labels, synthetic[:0], [])
    np.testing.assert_allclose(alone.means, real)


def test_a_language_with_both_kinds_weighs_them() -> None:
    real, synthetic = np.array([[0.0], [4.0]]), np.array([[0.0], [0.0]])
    backend = Backend(real, [("cs", "a", "x"), ("de", "a", "y")], synthetic, ["cs", "de"])
    moved = 2.0  # the mean gap of cs (0) and de (4)
    expected = [SYNTHETIC_WEIGHT * moved, (1 - SYNTHETIC_WEIGHT) * 4 + SYNTHETIC_WEIGHT * moved]
    np.testing.assert_allclose(backend.means[:, 0], expected)


def test_calibration_tempers_scores_that_are_too_sure() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 100, (200, 15))
    truth = [("bg", "ca")[int(row[1] > row[0])] for row in scores + rng.normal(0, 300, scores.shape)]
    assert calibrate(scores, truth, ["f"] * 200).scale < 0.05


def test_macro_accuracy_and_its_interval() -> None:
    right, truth = np.array([1.0, 0.0, 1.0, 1.0]), np.array(["cs", "cs", "de", "de"])
    assert macro(right, truth) == 0.75
    low, high = interval([(right, truth, np.array(["a", "b", "c", "c"]))])
    assert low < 0.5 and high == 1.0  # cs may be drawn alone, and its speaker who is always wrong more than once
    assert interval([(right * 0 + 1, truth, np.array(["a", "a", "c", "c"]))]) == (1.0, 1.0)


def test_a_crop_goes_round_in_a_short_recording(tmp_path) -> None:  # type: ignore[no-untyped-def]
    np.save(tmp_path / "x.npy", np.arange(7, dtype=np.float16)[:, None])
    np.save(tmp_path / "x.offsets.npy", np.array([0, 3, 7]))
    corpus = Corpus(tmp_path, "x")
    crop = corpus.crop(0, 5, np.random.default_rng(0))[:, 0].tolist()
    assert len(crop) == 5 and set(crop) == {0, 1, 2} and all((b - a) % 3 == 1 for a, b in itertools.pairwise(crop))
    assert corpus.whole(1, 2)[:, 0].tolist() == [3, 4] and corpus.size(1) == 4
