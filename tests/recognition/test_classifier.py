"""`Classifier`: calibration and threshold of a head, and declared sets of languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import ScoreTable, Segment
from knn_cli.evaluation.evaluate import evaluate
from knn_cli.evaluation.open_set import best_llr, is_unknown, possible_answers
from knn_cli.recognition.classifier import Classifier, posteriors
from knn_cli.recognition.head_settings import read_head_settings
from knn_cli.recognition.timeline_smoothing import SpeechTrack, smooth_labels, speaker_language
from tests.helpers.head_bundles import CALIBRATION, OPEN_SET, embedded_scores, write_head_bundle

LABELS = ("cs", "de", "pl", "sk", "zxx")
#          cs   de   pl   sk   zxx
SCORES = [
    [9.0, 0.0, 0.0, 8.0, -5.0],  # Czech, perhaps Slovak
    [0.0, 9.0, 0.5, 0.0, -5.0],  # German
    [0.2, 0.1, 0.0, 0.1, 0.0],  # anything
    [0.0, 0.0, 0.0, 0.0, 9.0],  # no speech
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head_bundle(tmp_path_factory.mktemp("models") / "head", LABELS, open_set=OPEN_SET).folder


def test_a_heads_scores_are_calibrated_by_duration(tmp_path: Path) -> None:
    write_head_bundle(tmp_path / "m", LABELS, calibration=CALIBRATION, open_set=OPEN_SET)
    table = Classifier(tmp_path / "m", device="cpu").score(embedded_scores(SCORES, seconds=64.0))
    np.testing.assert_allclose(table.log_likelihood, 0.5 * 2 * np.array(SCORES), rtol=1e-6)  # (64 / 4) ** 0.25 is 2
    assert table.labels == LABELS and table.threshold == 2.0 and table.rivals is None


def test_a_declared_set_is_renormalised(model: Path) -> None:
    rows = embedded_scores(SCORES)
    every = Classifier(model, device="cpu").score(rows)
    some = Classifier(model, device="cpu", languages=["Slovak", "ces"]).score(rows)
    alone = Classifier(model, device="cpu", languages=["Slovak", "ces"], open_set=False)
    assert some.labels == ("cs", "sk", "zxx") and alone.labels == ("cs", "sk")
    assert alone.priors == {"cs": 0.5, "sk": 0.5}
    columns = np.array(SCORES)[:, [0, 3]]
    np.testing.assert_allclose(posteriors(alone.score(rows)), softmax(columns, axis=1), atol=1e-6)
    no_speech = posteriors(every)[:, 4:]  # is as probable as without a set
    shares = (1 - no_speech) * softmax(columns, axis=1)
    np.testing.assert_allclose(posteriors(some), np.concatenate([shares, no_speech], axis=1), atol=1e-6)


def test_the_threshold_compares_with_all_that_the_model_knows(model: Path) -> None:
    """Two possible languages that are confused are no doubt of the threshold; a third language is."""
    rows = embedded_scores(SCORES)
    table = Classifier(model, device="cpu", languages=["cs", "sk"]).score(rows)
    assert is_unknown(table).tolist() == [False, True, True, False]
    by_hand = [9.0 - np.log(np.mean(np.exp(others))) for others in ([0.0, 0.0, 8.0, -5.0], [8.0, -5.0])]
    assert best_llr(table)[0] == pytest.approx(by_hand[0], abs=1e-6)
    assert by_hand[0] > 2 > by_hand[1]  # against the possible answers alone it would be unknown
    never = Classifier(model, device="cpu", languages=["cs", "sk"], open_set=False).score(rows)
    assert never.threshold is None and not is_unknown(never).any()
    assert is_unknown(Classifier(model, device="cpu").score(rows)).tolist() == [False, False, True, False]


def test_an_evaluation_of_a_declared_set(model: Path) -> None:
    """German is outside the set: its row counts in the open set alone, and is refused there."""
    rows = embedded_scores(SCORES[:2], truth=["cs", "de"])
    table = Classifier(model, device="cpu", languages=["cs", "sk"]).score(rows)
    result = evaluate(table, bootstrap=0)
    assert result.metrics["accuracy"].value == 1 and result.out_of_set == {"de": 1}
    assert result.open_set is not None and result.open_set.by_label == {"de": (1, 0.0)}


@pytest.mark.parametrize("seconds", [2, 7])
def test_windows_and_speakers_are_unknown_as_rows_are(model: Path, seconds: int) -> None:
    windows = [Segment(2.0 * n, 2.0 * n + 2) for n in range(seconds)]
    track = SpeechTrack("ann", windows, windows, windows)
    for row, answer in enumerate(("cs", "unknown", "unknown", "zxx")):
        rows = embedded_scores([SCORES[row]] * seconds)
        table = Classifier(model, device="cpu", languages=["cs", "sk"]).score(rows)
        spans = smooth_labels(table, track, window=2.0, switch=0.3)
        assert {span.label for span in spans} == {answer}
        assert speaker_language(table, track).label == answer


@given(st.lists(st.lists(st.floats(-9, 9), min_size=6, max_size=6), min_size=1, max_size=4), st.permutations(range(6)))
def test_restriction(scores: list[list[float]], order: list[int]) -> None:
    """The best of some labels is never surer than the best of all; restricting twice is restricting once."""
    labels = tuple("abcdef")
    none = np.full(len(scores), np.nan)
    table = ScoreTable(
        labels, np.array(scores), np.array(["r"] * len(scores)), none, none, none.astype(str), 1.0, labels
    )
    chosen = [labels[column] for column in order[:3]]
    some = table.restrict(chosen)
    shares = posteriors(table)[:, order[:3]]
    np.testing.assert_allclose(posteriors(some), shares / shares.sum(axis=1, keepdims=True), atol=1e-12)
    assert (best_llr(some) <= best_llr(table)).all() and some.groups == tuple(chosen)
    inside = np.isin(table.log_likelihood.argmax(axis=1), order[:3])
    assert (best_llr(some) == best_llr(table))[inside].all()
    np.testing.assert_allclose(best_llr(some.restrict(chosen[:2])), best_llr(table.restrict(chosen[:2])), atol=1e-9)
    both = ScoreTable.concatenate([some.take(slice(1)), some.take(slice(1, None))])
    np.testing.assert_array_equal(both.rivals, some.rivals)
    assert table.restrict(labels) is table


def test_labels_that_cannot_be_a_set(model: Path, tmp_path: Path) -> None:
    for languages, sentence in (
        (["cs", "zulu"], "The model head does not know Zulu"),
        (["cs"], "two or more, not cs"),
    ):
        with pytest.raises(KnnError, match=sentence):
            Classifier(model, languages=languages)
    assert Classifier(model, languages=["cs", "zxx"]).labels == ("cs", "zxx")
    assert Classifier(model, languages=["cs", "zxx"], open_set=False).labels == ("cs", "zxx")
    write_head_bundle(tmp_path / "m", ["cs", "zxx"])
    with pytest.raises(KnnError, match="The model m knows only cs"):
        Classifier(tmp_path / "m", open_set=False)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"calibration": {"scale": 1.0}}, "scale, exponent, reference are needed"),
        ({"calibration": {**CALIBRATION, "offset": 0}}, "and nothing else"),
        ({"calibration": {**CALIBRATION, "scale": 0}}, "the scale of a calibration is positive"),
        ({"calibration": {**CALIBRATION, "reference": "4"}}, "'4' is no finite number"),
        ({"calibration": [1, 0, 4]}, "are needed"),
        ({"open_set": {"threshold": 2.0}}, "false_accept, false_reject, known, unknown, chosen are needed"),
        ({"open_set": {**OPEN_SET, "false_reject": 5}}, "makes no sense"),
        ({"open_set": {**OPEN_SET, "threshold": None}}, "None is no finite number"),
        ({"open_set": {**OPEN_SET, "known": 1.5}}, "known is 1.5"),
        ({"open_set": {**OPEN_SET, "chosen": 3}}, "chosen is 3"),
        ({"measured": {"xx": {}}}, "'xx' was measured and is none of the labels"),
        ({"measured": {"cs": 0.5}}, "no map from label to figures"),
        ({"measured": {"cs": {"accuracy": "good"}}}, "'good' is no finite number"),
        ({"measured": {"cs": {"accuracy": 10**400}}}, "is no finite number"),
    ],
)
def test_settings_that_are_no_good(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    model = write_head_bundle(tmp_path / "m", LABELS, **settings)
    with pytest.raises(BundleError) as error:
        Classifier(model.folder)
    assert sentence in error.value.message and "config.json" in error.value.message


def test_settings_by_hand(tmp_path: Path) -> None:
    measured = {"cs": {"accuracy": 0.5, "eer": None}}
    open_set = {**OPEN_SET, "false_accept": None}
    found = read_head_settings(write_head_bundle(tmp_path / "m", LABELS, open_set=open_set, measured=measured))
    assert found.measured == measured and found.open_set is not None and np.isnan(found.open_set.false_accept)
    assert (found.calibration.scale, found.calibration.exponent) == (1, 0)


def test_a_set_makes_no_speech_no_likelier() -> None:
    """Speech in a language outside the set is not called "no speech", nor are rows that rivals share with the set."""
    likelihoods = [[0.1, 0.6, 0.0, 0.05, 0.25], [0.2, 0.3, 0.0, 0.2, 0.3]]
    none = np.full(2, np.nan)
    table = ScoreTable(LABELS, np.log(np.array(likelihoods) + 1e-9), np.array(["a", "b"]), none, none).restrict(
        ["cs", "sk", "zxx"]
    )
    np.testing.assert_allclose(posteriors(table), [[0.5, 0.25, 0.25], [0.35, 0.35, 0.3]], atol=1e-6)
    answers = possible_answers(table)
    assert answers.rivals is None and possible_answers(answers) is answers
    only = table.restrict(["zxx"])
    assert possible_answers(only).labels == ("zxx",)
