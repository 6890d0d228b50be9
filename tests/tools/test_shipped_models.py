"""Computations of the training scripts and the language benchmark, against values worked out by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.lid import interval, macro
from tools.shipped_models import voice
from tools.shipped_models.augment import warp_matrix
from tools.shipped_models.data import TARGET_LANGUAGES, Corpus, write_cache
from tools.shipped_models.language import SYNTHETIC_WEIGHT, Backend, calibrate, concatenated, recording_weights
from tools.shipped_models.teach import principal_axes


def test_warping_moves_frequencies_and_factor_1_is_the_identity() -> None:
    for scale in ("slaney", "kaldi"):
        torch.testing.assert_close(warp_matrix(1.0, scale), torch.eye(80), atol=1e-6, rtol=0)
    peak = torch.zeros(1, 80)
    peak[0, 20] = 1.0
    longer, shorter = (peak @ warp_matrix(factor) for factor in (0.85, 1.18))
    assert longer.argmax() < 20 < shorter.argmax()


def test_families_speakers_and_recordings_have_equal_weights() -> None:
    labels = [("cs", "games", "a"), ("cs", "games", "a"), ("cs", "games", "b"), ("cs", "kde", "c"), ("de", "kde", "c")]
    np.testing.assert_allclose(recording_weights(labels), [1 / 8, 1 / 8, 1 / 4, 1 / 2, 1])


def test_synthetic_embeddings_are_shifted_to_real_embeddings() -> None:
    """`pl` has synthetic speech only: the real-synthetic difference of the other languages is added to it."""
    real = np.array([[1.0, 10.0], [5.0, 10.0]])
    labels = [("cs", "games", "a"), ("de", "games", "b")]
    synthetic = np.array([[1.0, 0.0], [5.0, 0.0], [9.0, 0.0]])
    backend = Backend(real, labels, synthetic, ["cs", "de", "pl"])
    assert backend.classes == ["cs", "de", "pl"] and backend.counts.tolist() == [2, 2, 1]
    np.testing.assert_allclose(backend.means, [[1, 10], [5, 10], [9, 10]])
    alone = Backend(real, labels, synthetic[:0], [])
    np.testing.assert_allclose(alone.means, real)


def test_real_and_synthetic_speech_of_a_language_are_weighted() -> None:
    real, synthetic = np.array([[0.0], [4.0]]), np.array([[0.0], [0.0]])
    backend = Backend(real, [("cs", "a", "x"), ("de", "a", "y")], synthetic, ["cs", "de"])
    moved = 2.0  # the mean gap of cs (0) and de (4)
    expected = [SYNTHETIC_WEIGHT * moved, (1 - SYNTHETIC_WEIGHT) * 4 + SYNTHETIC_WEIGHT * moved]
    np.testing.assert_allclose(backend.means[:, 0], expected)


def test_calibration_scales_overconfident_scores_down() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 100, (200, 15))
    truth = [("bg", "ca")[int(row[1] > row[0])] for row in scores + rng.normal(0, 300, scores.shape)]
    assert calibrate(scores, truth, ["f"] * 200).scale < 0.05


def test_macro_accuracy_and_its_interval() -> None:
    right, truth = np.array([1.0, 0.0, 1.0, 1.0]), np.array(["cs", "cs", "de", "de"])
    assert macro(right, truth) == 0.75
    low, high = interval([(right, truth, np.array(["a", "b", "c", "c"]))])
    assert (
        low < 0.5 and high == 1.0
    )  # cs may be the only language drawn, and its misclassified speaker drawn more than once
    assert interval([(right * 0 + 1, truth, np.array(["a", "a", "c", "c"]))]) == (1.0, 1.0)


def test_crops_repeat_short_recordings_cyclically(tmp_path) -> None:  # type: ignore[no-untyped-def]
    np.save(tmp_path / "x.npy", np.arange(7, dtype=np.float16)[:, None])
    np.save(tmp_path / "x.offsets.npy", np.array([0, 3, 7]))
    corpus = Corpus(tmp_path, "x")
    crop = corpus.crop(0, 5, np.random.default_rng(0))[:, 0].tolist()
    assert len(crop) == 5 and set(crop) == {0, 1, 2} and all((b - a) % 3 == 1 for a, b in itertools.pairwise(crop))
    assert corpus.whole(1, 2)[:, 0].tolist() == [3, 4] and corpus.size(1) == 4


def test_teacher_and_student_frames_are_aligned_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mel powers that equal the frame number, and teacher frames that equal theirs, at half the frame rate."""
    rows = "path\tspeaker\n" + "".join(f"{n}.wav\tv{n}\n" for n in range(2))
    (tmp_path / "reels.tsv").write_text(rows)
    counting = np.repeat(np.arange(500, dtype=np.float16)[:, None], 80, 1)
    for name in ("real", "noise", *(f"synth-{each}" for each in TARGET_LANGUAGES)):
        write_cache(tmp_path, f"mel-{name}", [counting, counting])
    crops = np.array([(n % 2, n % 2, 10 + 3 * n, 1.0 if n < 6 else 0.9) for n in range(8)])
    np.save(tmp_path / "crops.npy", crops)
    np.save(tmp_path / "crops-taught.npy", np.random.default_rng(0).normal(size=(8, 192)).astype(np.float32))
    np.save(tmp_path / "crops-frames.npy", np.repeat(np.arange(150, dtype=np.float16)[None, :, None], 8, 0))
    monkeypatch.setattr(voice, "augment", lambda logs, *_, **__: logs)
    dataset = voice.CropDataset(tmp_path)
    logs, targets, frames, who = dataset.batch(np.random.default_rng(1), np.arange(8))
    assert logs.shape[1] == 2 * frames.shape[1] and torch.allclose(targets.norm(dim=1), torch.ones(8))
    for n in range(8):
        if n % 2:  # synthetic speech has no frames
            assert frames[n].isnan().all()
        elif n < 6:  # not warped
            assert torch.equal(logs[n, ::2, 0] - crops[n, 2], 2 * frames[n, :, 0])
    assert who.tolist() == [0, -1, 0, -1, 0, -1, -1, -1]
    parts = voice.losses(targets, targets, frames.expand(-1, -1, 4), frames, who, torch.randn(2, 192))
    assert parts["target"] == pytest.approx(0, abs=1e-5) and parts["frames"] == 0 and parts["relation"] < 1e-9


def test_principal_axes_keep_the_largest_variances() -> None:
    rng = np.random.default_rng(0)
    frames = (rng.normal(size=(4000, 160)) * np.linspace(3, 0.1, 160) + 5).astype(np.float32)
    axes = principal_axes(frames)
    values = (frames - axes[0]) @ axes[1:].T
    assert values.shape == (4000, 128) and np.abs(values.mean(0)).max() < 1e-3
    assert np.mean(values.var(0)) == pytest.approx(1, abs=1e-2) and (np.diff(values.var(0)) < 1e-3).all()


def test_log_likelihoods_of_concatenated_classifiers_add_up() -> None:
    rng = np.random.default_rng(0)
    labels = [("cs", "f", "s"), ("de", "f", "s"), ("pl", "f", "s")] * 10
    real = rng.normal(size=(30, 6)) + np.repeat(np.eye(6)[:3], 10, 0)
    backends = [Backend(part, labels, part[:0], []) for part in np.split(real, 2, 1)]
    both = concatenated(backends).log_likelihood(real)
    alone = sum(
        concatenated([backend]).log_likelihood(part)
        for backend, part in zip(backends, np.split(real, 2, 1), strict=True)
    )
    np.testing.assert_allclose(both, alone, atol=1e-9)
