"""Choice among settings of a diarizer by their errors on recordings, without taking chance for a gain.

Of many settings, the best on a few recordings is partly the luckiest. So what tuning gains is measured on recordings
that the setting was not chosen on: for each fold of recordings, the best setting of all other folds is taken, and its
errors are compared with those of the default. The default stays unless that gain is beyond chance, by a bootstrap over
recordings of the paired difference.

References
----------
M. Stone, "Cross-validatory choice and assessment of statistical predictions", JRSS B 36, 1974.
M. Bisani and H. Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004 (section
3: the difference of two systems on the same bootstrap sample).
G. C. Cawley and N. L. C. Talbot, "On over-fitting in model selection and subsequent selection bias in performance
evaluation", JMLR 11, 2010.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles
from knn_cli.evaluation.bootstrap import BootstrapUnits, percentile_interval
from knn_cli.evaluation.diarization_error import DiarizationError

DEFAULT = 0  # number of the default among the settings
BOOTSTRAP_SAMPLES = 5000
# With five recordings, that all of them gain has a chance of 2^-5, which is more than the 2.5 % of either side.
MIN_RECORDINGS = 6
MIN_DIFFERENCE = 1e-9  # of error rates; smaller ones are rounding, and the earlier setting is taken


@dataclass(frozen=True)
class Selection:
    """What was chosen, and how sure it is.

    Attributes
    ----------
    chosen : int
        Number of the setting that is kept.
    best : int
        Number of the setting with the lowest error rate over all recordings.
    by_fold : tuple of int
        For each fold, the setting that is best on all other folds.
    rate, default_rate : float
        Error rates of these settings on the folds they were not chosen on, all recordings together, and of the default.
    gain_low, gain_high : float
        The middle 95 % of the bootstrap samples of `default_rate` - `rate`.
    """

    chosen: int
    best: int
    by_fold: tuple[int, ...]
    rate: float
    default_rate: float
    gain_low: float
    gain_high: float

    @property
    def gain(self) -> float:
        """By how much the error rate falls on recordings that settings were not chosen on."""
        return self.default_rate - self.rate


def draw_folds(recordings: int, folds: int, seed: int) -> NDArray[np.int64]:
    """Assign recordings to folds at random, as many to each as can be.

    Parameters
    ----------
    recordings : int
        How many there are.
    folds : int
        How many folds are wanted; there are no more than recordings.
    seed : int

    Returns
    -------
    (recordings,) int64 array
        The fold of each, from 0.

    Raises
    ------
    KnnError
        For fewer than two recordings or folds.

    Examples
    --------
    >>> from knn_cli.evaluation.setting_selection import draw_folds
    >>> sorted(draw_folds(5, 2, seed=0).tolist())
    [0, 0, 0, 1, 1]
    """
    if recordings < 2 or folds < 2:
        raise KnnError(
            "Settings that are chosen on a recording have to be measured on another.",
            "Take two recordings and two folds at least, better ten recordings or more.",
        )
    fold = np.arange(recordings, dtype=np.int64) % min(folds, recordings)
    return np.random.default_rng(seed).permutation(fold)


def select_setting(
    errors: Sequence[Sequence[DiarizationError]], fold: NDArray[np.int64], *, seed: int = 0
) -> Selection:
    """Choose a setting, or keep the default.

    Parameters
    ----------
    errors : sequence of C sequences of R DiarizationError
        Of each setting, the default first, on each recording.
    fold : (R,) int64 array
        The fold of each recording, see `draw_folds`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Selection
        `chosen` is `best` where the gain on held-out folds is above 0 in 97.5 % of the bootstrap samples and there are
        MIN_RECORDINGS; otherwise the default.

    Examples
    --------
    >>> import numpy as np
    >>> from knn_cli.evaluation.diarization_error import DiarizationError
    >>> from knn_cli.evaluation.setting_selection import select_setting
    >>> default = [DiarizationError(10.0, 2.0, 0.0, 0.0)] * 6
    >>> better = [DiarizationError(10.0, 1.0, 0.0, 0.0)] * 6
    >>> selection = select_setting([default, better], np.arange(6) % 2)
    >>> selection.chosen, selection.by_fold, round(selection.gain, 2)
    (1, (1, 1), 0.1)
    """
    wrong = np.array([[each.missed + each.false_alarm + each.confusion for each in row] for row in errors])  # (C, R)
    total = np.array([each.total for each in errors[DEFAULT]])
    by_fold = tuple(_best(wrong, total, fold != number) for number in range(int(fold.max()) + 1))
    held_out = wrong[np.array(by_fold)[fold], np.arange(len(total))]
    low, high = percentile_interval(_gains(wrong[DEFAULT] - held_out, total, seed))
    best = _best(wrong, total, np.ones(len(total), dtype=bool))
    is_sure = len(total) >= MIN_RECORDINGS and low > MIN_DIFFERENCE
    rate, default_rate = (float(sums.sum() / max(total.sum(), MIN_DIFFERENCE)) for sums in (held_out, wrong[DEFAULT]))
    return Selection(best if is_sure else DEFAULT, best, by_fold, rate, default_rate, low, high)


def _best(wrong: Doubles, total: Doubles, used: NDArray[np.bool_]) -> int:
    """The setting with the lowest error rate on some recordings; of equal ones, the first."""
    rates = wrong[:, used].sum(axis=1) / max(float(total[used].sum()), MIN_DIFFERENCE)
    return int(np.flatnonzero(rates <= rates.min() + MIN_DIFFERENCE)[0])


def _gains(difference: Doubles, total: Doubles, seed: int) -> Doubles:
    """(B,) differences of error rates of bootstrap samples of recordings; samples without speech are left out."""
    units = BootstrapUnits.from_recordings(np.arange(len(total)).astype(np.str_), np.zeros(len(total), dtype=np.int64))
    gains = []
    for weights in units.resample(BOOTSTRAP_SAMPLES, seed):  # (units, b)
        speech = units.sums(total) @ weights
        gained = units.sums(difference) @ weights
        gains.append(gained[speech > 0] / speech[speech > 0])
    return np.concatenate(gains)
