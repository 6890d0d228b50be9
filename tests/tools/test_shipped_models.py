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
from tools.shipped_models.data import TARGET_LANGUAGES, Corpus, rows_of_cells, write_cache
from tools.shipped_models.language import (
    ATTRACTION_TEMPERATURE,
    NO_SPEECH,
    Recordings,
    attraction,
    cell_weights,
    fit_temperature,
    left_out,
)
from tools.shipped_models.teach import principal_axes


def test_warping_moves_frequencies_and_factor_1_is_the_identity() -> None:
    for scale in ("slaney", "kaldi"):
        torch.testing.assert_close(warp_matrix(1.0, scale), torch.eye(80), atol=1e-6, rtol=0)
    peak = torch.zeros(1, 80)
    peak[0, 20] = 1.0
    longer, shorter = (peak @ warp_matrix(factor) for factor in (0.85, 1.18))
    assert longer.argmax() < 20 < shorter.argmax()


def test_languages_and_in_each_its_families_have_equal_weights() -> None:
    language = np.array(["cs", "cs", "cs", "de", "de"])
    family = np.array(["games", "games", "kde", "kde", "kde"])
    chosen = np.array([True, True, True, True, False])
    np.testing.assert_allclose(cell_weights(language, family, chosen), [1 / 4, 1 / 4, 1 / 2, 1, 0])


def test_labels_are_lowered_by_what_they_draw_of_other_languages() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])
    t = ATTRACTION_TEMPERATURE
    drawn = attraction(np.log(probabilities), np.array([0, 1, 1]), np.array([1.0, 0.5, 0.5]))
    expected = [  # of label 0 the rows of label 1, of label 1 the row of label 0, of label 2 all rows
        np.log(0.5 * 0.2**t + 0.5 * 0.5**t) / t,
        np.log(0.3),
        np.log(0.5 * 0.1**t + 0.25 * 0.1**t + 0.25 * 0.25**t) / t,
    ]
    np.testing.assert_allclose(drawn, np.array(expected) - np.median(expected))


def test_temperature_scales_overconfident_scores_down_and_shorter_recordings_more() -> None:
    rng = np.random.default_rng(0)
    truth, seconds = rng.integers(0, 5, 2000), np.repeat([3.0, 12.0], 1000)
    scores = 3 * (np.eye(5)[truth] * np.where(seconds == 3, 1.0, 2.0)[:, None] + rng.normal(size=(2000, 5)))
    calibration = fit_temperature(scores, truth, seconds, np.ones(2000))
    assert 0 < calibration.scale < 0.7 and calibration.exponent > 0.1
    assert calibration.reference == pytest.approx(6.0)


def recordings() -> Recordings:
    rng = np.random.default_rng(0)
    language = np.array(["cs", "de", "pl"] * 40 + ["ast"] * 8)
    family = np.array(["corpora", "kde", "artikulate", "games"])[np.arange(len(language)) % 4]
    logits = rng.normal(size=(len(language), 5))
    for column, label in enumerate(("cs", "de", "pl")):
        logits[language == label, column] += 4
    logits[:, 3] += 3  # a label of which there is no speech draws all of it
    every = {name: logits for name in ("whole", "5", "3")}
    speaker = np.array(["s"] * len(language))
    labels = ("cs", "de", "pl", "la", NO_SPEECH)
    return Recordings(labels, every, np.full(len(language), 10.0), language, family, speaker, rng.normal(size=(9, 5)))


def test_a_family_is_corrected_by_what_the_others_teach() -> None:
    data = recordings()
    corrections = left_out(data)
    assert set(corrections) == {"corpora", "kde", "artikulate", "games"}
    right, before = [], []
    for family, correction in corrections.items():
        own = (data.family == family) & (data.language != "ast")
        truth = np.array([data.labels.index(each) for each in data.language[own]])
        right.append((correction.apply(data.logits["whole"][own], data.seconds[own]).argmax(1) == truth).mean())
        before.append((data.logits["whole"][own].argmax(1) == truth).mean())
        assert correction.open_set.false_reject <= 0.05
    assert np.mean(right) > np.mean(before) + 0.1
    changed = recordings()
    changed.logits["whole"][changed.family == "kde"] += np.arange(5)
    np.testing.assert_array_equal(left_out(changed)["kde"].offsets, corrections["kde"].offsets)
    assert not np.array_equal(left_out(changed)["games"].offsets, corrections["games"].offsets)


def test_so_many_recordings_of_each_language_and_family() -> None:
    rows = [{"language": language, "family": "kde"} for language in "aaabbc"]
    chosen = rows_of_cells(rows, 2)
    assert chosen[:3].sum() == 2 and chosen[3:].all()


def test_macro_accuracy_and_its_interval() -> None:
    right, truth = np.array([1.0, 0.0, 1.0, 1.0]), np.array(["cs", "cs", "de", "de"])
    assert macro(right, truth) == 0.75
    low, high = interval(right, truth, np.array(["a", "b", "c", "c"]))
    assert (
        low < 0.5 and high == 1.0
    )  # cs may be the only language drawn, and its misclassified speaker drawn more than once
    assert interval(right * 0 + 1, truth, np.array(["a", "a", "c", "c"])) == (1.0, 1.0)


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
