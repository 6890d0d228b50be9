"""Computations of the training scripts and the language benchmark, against values worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.lid import interval, macro
from tools.shipped_models.data import Corpus, rows_of_cells
from tools.shipped_models.language import (
    ATTRACTION_TEMPERATURE,
    NO_SPEECH,
    Recordings,
    attraction,
    cell_weights,
    fit_temperature,
    left_out,
)


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
