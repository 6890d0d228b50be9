"""Choice of settings: by hand, on folds, and under pure chance."""

from __future__ import annotations

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.evaluation.diarization_error import DiarizationError
from knn_cli.evaluation.setting_selection import draw_folds, select_setting


def errors(*rows: list[float], total: float = 10.0) -> list[list[DiarizationError]]:
    """Settings as rows of missed seconds of each recording."""
    return [[DiarizationError(total, missed, 0.0, 0.0) for missed in row] for row in rows]


def test_each_fold_is_measured_with_the_setting_of_the_others() -> None:
    # On recordings 1 to 3 the second setting is best, on recordings 0, 2, 3 and all together the third.
    table = errors([2, 2, 2, 2], [9, 0, 1, 1], [0, 3, 1, 1])
    chosen = select_setting(table, np.arange(4))
    assert chosen.by_fold == (1, 2, 2, 2) and chosen.best == 2
    assert chosen.rate == pytest.approx((9 + 3 + 1 + 1) / 40) and chosen.default_rate == pytest.approx(8 / 40)
    assert chosen.gain == pytest.approx(-6 / 40)
    assert chosen.chosen == 0  # what is best of all lost where it was not chosen


def test_error_rates_are_pooled_by_speech() -> None:
    table = errors([1, 1], [0, 2])
    table[0][1] = table[1][1] = DiarizationError(90.0, 3.0, 0.0, 0.0)
    assert select_setting(table, np.array([0, 1])).default_rate == pytest.approx(4 / 100)


@pytest.mark.parametrize(("recordings", "chosen"), [(5, 0), (6, 1)])
def test_a_gain_in_every_recording_counts_from_six_on(recordings: int, chosen: int) -> None:
    selection = select_setting(errors([2.0] * recordings, [1.0] * recordings), np.arange(recordings))
    assert selection.chosen == chosen and selection.best == 1
    assert selection.gain_low == pytest.approx(0.1) == selection.gain_high


def test_of_equal_settings_the_default_stays() -> None:
    assert select_setting(errors([1.0] * 8, [1.0] * 8), np.arange(8)).best == 0


def test_chance_hardly_ever_beats_the_default() -> None:
    wins = 0
    for seed in range(60):
        noise = np.random.default_rng(seed).uniform(1, 3, (40, 10))  # forty settings that are all alike
        selection = select_setting(errors(*noise.tolist()), draw_folds(10, 5, seed), seed=seed)
        assert selection.best != 0 or selection.chosen == 0
        wins += selection.chosen != 0
    assert wins <= 6  # 2.5 % of 60 are 1.5; ten recordings make intervals a little narrow


def test_a_gain_that_is_there_is_found() -> None:
    noise = np.random.default_rng(0).uniform(2, 3, (40, 12))
    noise[7] -= 1.0
    selection = select_setting(errors(*noise.tolist()), draw_folds(12, 5, 0))
    assert selection.chosen == selection.best == 7 and selection.gain_low > 0


def test_folds_are_even_and_drawn() -> None:
    fold = draw_folds(11, 3, seed=1)
    assert sorted(np.bincount(fold).tolist()) == [3, 4, 4]
    assert (fold != draw_folds(11, 3, seed=2)).any() and (fold == draw_folds(11, 3, seed=1)).all()
    assert sorted(draw_folds(3, 10, seed=0).tolist()) == [0, 1, 2]  # leave one out
    with pytest.raises(KnnError, match="measured on another"):
        draw_folds(1, 5, seed=0)


def test_recordings_without_speech_are_no_trouble() -> None:
    table = [[DiarizationError(0.0, 0.0, 1.0, 0.0)] * 2, [DiarizationError(0.0, 0.0, 0.0, 0.0)] * 2]
    selection = select_setting(table, np.arange(2))
    assert selection.chosen == 0 and np.isnan(selection.gain_low)
