"""Is it the same speaker? Threshold and margin on the cosine of two embeddings, and what a cosine is worth.

They belong to the model whose embeddings are compared. Its config has them, with means of cosines by which they are
adapted to the speakers of a user:

    speaker_decision    threshold, margin, linking_threshold, llr_scale, llr_offset, same_mean, same_recording_mean,
                        different_mean, prior_speakers; measured and chosen, which say how they came about

The log-likelihood ratio of a cosine c is llr_scale * c + llr_offset, fitted by logistic regression to cosines of the
same and of different speakers that weigh alike (N. Brummer, A. Swart and D. van Leeuwen, "A comparison of linear and
non-linear calibrations for speaker recognition", Odyssey 2014): its sigmoid is the probability of the same speaker
where both are equally probable before the sound is known.

Cosines move with microphones, telephones and languages; a threshold that was copied from elsewhere refuses owners of
a voice, or accepts others. `calibrate` measures this on the enrolled clips: the mean cosine of a clip with the other
clips of its speaker, and with other speakers. Threshold, margin and log-likelihood ratio then move linearly with these
two means, as if the user's cosines were mapped to those of the shipped measurement. A few speakers say little, so
both shifts are shrunk as the posterior mean of a Gaussian with a Gaussian prior (J.-L. Gauvain and C.-H. Lee, "Maximum
a posteriori estimation for multivariate Gaussian mixture observations", IEEE Transactions on Speech and Audio
Processing 1994): n speakers shift by n / (n + prior_speakers) of what they show. Clips of a speaker that agree better
than expected, as those of one evening do, promise nothing of another microphone, so they never raise a threshold.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import Doubles, EmbeddingSet
from knn_cli.core.vectors import l2_normalize
from knn_cli.networks.bundle import CONFIG, Bundle

SETTINGS = "speaker_decision"  # in the config of a bundle
MIN_SPEAKERS = 3  # with several clips each, without which nothing is calibrated
MAX_CLIPS = 10  # of a speaker that are compared
MIN_CLIP_SECONDS = 3.0  # of a part that counts as a clip
MIN_SPREAD = 0.25  # of the shipped distance between the two means: what is left of it at least
THRESHOLDS = (0.05, 0.95)  # that a calibration gives
_NUMBERS = (
    "threshold margin linking_threshold llr_scale llr_offset same_mean same_recording_mean different_mean "
    "prior_speakers".split()
)

Origin = Literal["shipped", "calibrated", "given", "uncalibrated"]


@dataclass(frozen=True)
class SpeakerDecision:
    """When two embeddings are of the same speaker.

    Attributes
    ----------
    threshold : float
        Minimum cosine.
    margin : float
        By how much the highest cosine with a known speaker must exceed the second highest.
    linking_threshold : float
        Minimum mean cosine of two groups of speakers of several recordings.
    llr_scale, llr_offset : float
        The log-likelihood ratio (natural logarithm) of a cosine c is llr_scale * c + llr_offset; NaN if unknown.
    same_mean, same_recording_mean, different_mean : float
        Mean cosines of clips of a speaker, of parts of a recording, and of different speakers; NaN if unknown.
    prior_speakers : float
        How many speakers the shipped means are worth.
    origin : {"shipped", "calibrated", "given", "uncalibrated"}
        Where the threshold comes from: the model, the enrolled speakers, the caller, or nowhere.
    speakers : int
        How many speakers it was calibrated on.

    Examples
    --------
    >>> from knn_cli.recognition.speaker_decision import SpeakerDecision
    >>> decision = SpeakerDecision(0.5, 0.0, 0.6, llr_scale=20.0, llr_offset=-9.0)
    >>> round(decision.llr(0.55), 3), round(decision.probability(0.55), 3), decision.is_same(0.55)
    (2.0, 0.881, True)
    """

    threshold: float
    margin: float
    linking_threshold: float
    llr_scale: float = math.nan
    llr_offset: float = math.nan
    same_mean: float = math.nan
    same_recording_mean: float = math.nan
    different_mean: float = math.nan
    prior_speakers: float = math.inf
    origin: Origin = "shipped"
    speakers: int = 0

    @property
    def can_be_calibrated(self) -> bool:
        """Whether the model says how its cosines are distributed."""
        return not math.isnan(self.same_mean)

    @property
    def source(self) -> str:
        """Where the threshold comes from, in words."""
        return {
            "shipped": "as measured for the model",
            "calibrated": f"calibrated on {self.speakers} enrolled speakers",
            "given": "as given",
            "uncalibrated": "uncalibrated, since nothing was measured for this model",
        }[self.origin]

    def is_same(self, cosine: float) -> bool:
        """Whether a cosine reaches the threshold."""
        return cosine >= self.threshold

    def llr(self, cosine: float) -> float | None:
        """Log-likelihood ratio (natural logarithm) of the same against different speakers; None if unknown."""
        value = self.llr_scale * cosine + self.llr_offset
        return None if math.isnan(value) else value

    def probability(self, cosine: float) -> float | None:
        """Probability of the same speaker where both answers are equally probable beforehand; None if unknown."""
        llr = self.llr(cosine)
        return None if llr is None else 0.5 * (1 + math.tanh(llr / 2))

    def facts(self) -> dict[str, Any]:
        """What decides, as JSON."""
        return {
            "threshold": round(self.threshold, 4),
            "margin": round(self.margin, 4),
            "origin": self.origin,
            "speakers": self.speakers if self.origin == "calibrated" else None,
            "meaning": self.source,
        }

    def evidence(self, cosine: float) -> dict[str, float | None]:
        """`llr` and `probability` of a cosine as JSON."""
        llr, probability = self.llr(cosine), self.probability(cosine)
        return {
            "llr": None if llr is None else round(llr, 3),
            "probability": None if probability is None else round(probability, 4),
        }


# For models that say nothing about their cosines: thresholds that were measured for an earlier model of ours.
UNCALIBRATED = SpeakerDecision(0.55, 0.0, 0.625, origin="uncalibrated")


def read_decision(bundle: Bundle) -> SpeakerDecision:
    """The decision that a bundle's config gives, `UNCALIBRATED` where it gives none.

    Raises
    ------
    BundleError
        A number is missing, not finite or not possible.
    """
    value = bundle.config.get(SETTINGS)
    if value is None:
        return UNCALIBRATED
    try:
        return decision_of(value)
    except ValueError as error:
        raise BundleError(
            f"{bundle.folder / CONFIG}: {SETTINGS} is no good: {error}.", "Copy the whole folder again."
        ) from error


def decision_of(settings: Any) -> SpeakerDecision:
    """The decision of the entry `speaker_decision` of a config; ValueError for one that makes no sense."""
    if not isinstance(settings, Mapping) or not set(_NUMBERS) <= set(settings):
        raise ValueError(f"it needs {', '.join(_NUMBERS)}")
    numbers: dict[str, Any] = {}
    for name in _NUMBERS:
        number = settings[name]
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= sys.float_info.max:
            raise ValueError(f"{name} is no finite number")
        numbers[name] = float(number)
    if not all(0 < numbers[name] <= 1 for name in ("threshold", "linking_threshold")):
        raise ValueError("a threshold is no cosine above 0")
    if numbers["margin"] < 0 or numbers["prior_speakers"] <= 0 or numbers["llr_scale"] <= 0:
        raise ValueError("margin, prior_speakers or llr_scale is negative")
    if not min(numbers["same_mean"], numbers["same_recording_mean"]) > numbers["different_mean"]:
        raise ValueError("different speakers are more similar than the same")
    return SpeakerDecision(**numbers)


class ClipCosines(NamedTuple):
    """Mean cosines of the clips of each speaker, NaN where there are none.

    Attributes
    ----------
    same : (K,) float64 array
        Of a clip with the mean of the other clips of its speaker.
    of_one_recording : (K,) bool array
        Whether these clips are parts of one recording.
    different : (K,) float64 array
        Of a clip with the means of the other speakers.
    """

    same: Doubles
    of_one_recording: NDArray[np.bool_]
    different: Doubles


class Clips:
    """Embeddings of speakers by recording, a few of each, so that memory grows with the speakers only.

    A clip is the mean of the rows of a recording. The rows of a speaker with one recording are its parts.
    """

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, list[Doubles]]] = {}

    def add(self, rows: EmbeddingSet, view: slice) -> None:
        """Add the view of rows of any speakers and recordings; those of less than `MIN_CLIP_SECONDS` are left out."""
        units = l2_normalize(rows.data[:, view].astype(np.float64))
        kept = (np.linalg.norm(units, axis=1) > 0) & (rows.speaker != "")
        kept &= ~(rows.end - rows.start < MIN_CLIP_SECONDS)  # an unknown length may be long enough
        for place in np.flatnonzero(kept).tolist():
            recordings = self._rows.setdefault(str(rows.speaker[place]), {})
            recording = str(rows.name[place])
            if len(recordings) < MAX_CLIPS or recording in recordings:
                held = recordings.setdefault(recording, [])
                held.extend([units[place]] if len(held) < MAX_CLIPS else [])

    def cosines(self) -> ClipCosines:
        """Compare the clips: each with the others of its speaker, and with the means of the other speakers."""
        if not self._rows:
            return ClipCosines(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0))
        clips = [
            l2_normalize(np.array([np.sum(rows, axis=0) for rows in recordings.values()]))
            for recordings in self._rows.values()
        ]
        parts = [np.array(next(iter(recordings.values()))) for recordings in self._rows.values()]
        means = l2_normalize(np.array([rows.sum(axis=0) for rows in clips]))
        alone = np.array([len(rows) < 2 for rows in clips], dtype=bool)
        same = [
            _leave_one_out(rows if single else several)
            for several, rows, single in zip(clips, parts, alone.tolist(), strict=True)
        ]
        different = [
            float(np.mean(rows @ np.delete(means, place, axis=0).T)) if len(means) > 1 else math.nan
            for place, rows in enumerate(clips)
        ]
        return ClipCosines(np.array(same), alone, np.array(different))


def _leave_one_out(units: Doubles) -> float:
    """Mean cosine of each row with the sum of the others, NaN for fewer than two rows."""
    if len(units) < 2:
        return math.nan
    others = l2_normalize(units.sum(axis=0) - units)
    return float(np.mean(np.sum(units * others, axis=1)))


def calibrate(decision: SpeakerDecision, clips: Clips) -> SpeakerDecision:
    """Adapt a decision to enrolled speakers, as the module describes.

    Parameters
    ----------
    decision : SpeakerDecision
        That of the model.
    clips : Clips
        Of the enrolled speakers.

    Returns
    -------
    SpeakerDecision
        The same decision where fewer than `MIN_SPEAKERS` have two clips (or a clip of several parts), or the model does
        not say how its cosines are distributed.
    """
    if not decision.can_be_calibrated:
        return decision
    cosines = clips.cosines()
    have = ~np.isnan(cosines.same)
    count = int(have.sum())
    if count < MIN_SPEAKERS:
        return decision
    expected = np.where(cosines.of_one_recording, decision.same_recording_mean, decision.same_mean)
    same_shift = min(0.0, _shrunk(cosines.same[have] - expected[have], decision.prior_speakers))
    different_shift = _shrunk(cosines.different - decision.different_mean, decision.prior_speakers)
    return _moved(decision, same_shift, different_shift, count)


def _shrunk(differences: Doubles, prior: float) -> float:
    return float(differences.sum() / (len(differences) + prior))


def _moved(decision: SpeakerDecision, same_shift: float, different_shift: float, count: int) -> SpeakerDecision:
    """The decision after linear movement of both means."""
    before = decision.same_mean - decision.different_mean
    spread = max(MIN_SPREAD, (before + same_shift - different_shift) / before)
    different = decision.different_mean + different_shift

    def moved(cosine: float) -> float:
        return min(max(different + spread * (cosine - decision.different_mean), THRESHOLDS[0]), THRESHOLDS[1])

    scale = decision.llr_scale / spread
    return replace(
        decision,
        threshold=moved(decision.threshold),
        margin=spread * decision.margin,
        linking_threshold=moved(decision.linking_threshold),
        llr_scale=scale,
        llr_offset=decision.llr_offset + decision.llr_scale * decision.different_mean - scale * different,
        origin="calibrated",
        speakers=count,
    )


def given(decision: SpeakerDecision, threshold: float | None) -> SpeakerDecision:
    """The decision with a caller's threshold, which needs no margin; the same for None.

    Raises
    ------
    KnnError
        The threshold is no cosine above 0.
    """
    if threshold is None:
        return decision
    check_threshold(threshold)
    return replace(decision, threshold=threshold, margin=0.0, origin="given")


def check_threshold(threshold: float) -> None:
    """Raise KnnError for a threshold that is no cosine above 0, up to 1."""
    if not 0 < threshold <= 1:
        raise KnnError(
            f"The threshold {threshold:g} is no cosine of two similar speakers.", "Take one above 0, up to 1."
        )
