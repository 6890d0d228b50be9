"""Identification: the names of enrolled speakers in a diarization.

The similarity of two speakers is the cosine of their embeddings in the view `speaker`; `recognition.speaker_decision`
says which cosines are a match.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization, Doubles
from knn_cli.diarization.enrollment import MAX_LISTED, EnrolledSpeakers
from knn_cli.diarization.linking import rename_speakers, speaker_labels, unused_labels
from knn_cli.recognition.speaker_decision import UNCALIBRATED, SpeakerDecision, given


@dataclass(frozen=True)
class SpeakerScore:
    """Cosine of a speaker of a recording with an enrolled speaker."""

    speaker: str
    enrolled: str
    cosine: float
    matched: bool


@dataclass(frozen=True, eq=False)
class IdentificationResult:
    """A diarization whose speakers have the names of the enrolled speakers that they match.

    Attributes
    ----------
    diarization : Diarization
        With the names; other speakers are SPEAKER_00, ... by first appearance, never an enrolled name.
    names : dict
        Original label -> enrolled name, for the speakers that match.
    speakers : tuple of S str
        Labels of `diarization`, by first appearance.
    enrolled : tuple of K str
        Names of the enrolled speakers.
    cosines : (S, K) float64 array
        NaN in the rows of speakers without an embedding.
    decision : SpeakerDecision
        What a match is.
    """

    diarization: Diarization
    names: dict[str, str]
    speakers: tuple[str, ...]
    enrolled: tuple[str, ...]
    cosines: Doubles
    decision: SpeakerDecision

    def scores(self) -> Iterator[SpeakerScore]:
        """Scores of each speaker with an embedding against the enrolled speakers, in descending order."""
        matched = set(self.names.values())
        for speaker, row in zip(self.speakers, self.cosines, strict=True):
            if np.isnan(row).any():
                continue
            for place in np.argsort(-row, kind="stable").tolist():
                yield SpeakerScore(
                    speaker, self.enrolled[place], float(row[place]), speaker == self.enrolled[place] in matched
                )

    def facts(self, max_cosines: int = MAX_LISTED) -> list[dict[str, Any]]:
        """What is known of each speaker, as JSON.

        Each has `speaker` (its label), `known`, `who` (an enrolled name, or None with the `reason`), `nearest` (the
        name that it has, or the most similar), its `llr` and `probability` (`SpeakerDecision.evidence`), and the
        highest `cosine`s by name.
        """
        scores: dict[str, list[SpeakerScore]] = {speaker: [] for speaker in self.speakers}
        for score in self.scores():
            scores[score.speaker].append(score)
        return [self._facts(speaker, of_speaker, max_cosines) for speaker, of_speaker in scores.items()]

    def _facts(self, speaker: str, scores: list[SpeakerScore], max_cosines: int) -> dict[str, Any]:
        known = speaker in self.names.values()
        nearest = next((score for score in scores if score.matched), scores[0] if scores else None)
        listed = [score for place, score in enumerate(scores) if place < max_cosines or score.matched]
        evidence = {"llr": None, "probability": None} if nearest is None else self.decision.evidence(nearest.cosine)
        return {
            "speaker": speaker,
            "known": known,
            "who": speaker if known else None,
            "reason": None if known else self._reason(scores),
            "nearest": nearest and nearest.enrolled,
            **evidence,
            "cosine": {score.enrolled: round(score.cosine, 4) for score in listed},
        }

    def _reason(self, scores: list[SpeakerScore]) -> str:
        """Why a speaker is nobody known."""
        if not scores:
            return "no embedding: too little speech alone"
        first = scores[0]
        if not self.decision.is_same(first.cosine):
            return f"below the threshold: cosine {first.cosine:.2f} with {first.enrolled}"
        if len(scores) > 1 and first.cosine - scores[1].cosine < self.decision.margin:
            return f"within the margin: {first.enrolled} and {scores[1].enrolled} are about as similar"
        return f"{first.enrolled} is another speaker of the recording"


def identify(
    diarization: Diarization,
    enrolled: EnrolledSpeakers,
    *,
    decision: SpeakerDecision = UNCALIBRATED,
    threshold: float | None = None,
) -> IdentificationResult:
    """Name the enrolled speakers in a diarization.

    A speaker gets at most one name and a name at most one speaker, only at or above the threshold, and only where the
    speaker's highest cosine exceeds the second highest by the margin. Of all such assignments, the one with the largest
    sum of (cosine - threshold) is taken, so that a weak match never replaces a strong one. Other speakers are
    renumbered SPEAKER_00, ... by first appearance, skipping enrolled names. The probability of a false match grows with
    the number of enrolled speakers.

    Parameters
    ----------
    diarization : Diarization
    enrolled : EnrolledSpeakers
    decision : SpeakerDecision
        Of the model (`speaker_decision.read_decision`), or calibrated on the enrolled speakers.
    threshold : float, optional
        Minimum cosine of a match, above 0, in place of the decision's threshold and margin.

    Returns
    -------
    IdentificationResult

    Raises
    ------
    KnnError
        For a threshold that is not a cosine above 0, and for embeddings of another size than the enrolled ones.
    """
    from scipy.optimize import linear_sum_assignment  # half a second to import

    decision = given(decision, threshold)
    present = speaker_labels(diarization)
    cosines = _cosines(diarization, present, enrolled)
    above = (cosines >= decision.threshold) & _distinct(cosines, decision.margin)[:, None]  # False for NaN
    # A cosine equal to the threshold matches.
    gain = np.where(above, np.nan_to_num(cosines) - decision.threshold + 1e-9, 0.0)
    pairs = zip(*(side.tolist() for side in linear_sum_assignment(gain, maximize=True)), strict=True)
    names = {present[row]: enrolled.names[place] for row, place in pairs if above[row, place]}
    fresh = unused_labels(enrolled.names)
    mapping = {speaker: names.get(speaker) or next(fresh) for speaker in present}
    labels_after = tuple(mapping[speaker] for speaker in present)
    return IdentificationResult(
        rename_speakers(diarization, mapping), names, labels_after, enrolled.names, cosines, decision
    )


def _cosines(diarization: Diarization, present: list[str], enrolled: EnrolledSpeakers) -> Doubles:
    """(S, K) cosines, NaN in the rows of speakers without an embedding."""
    cosines = np.full((len(present), len(enrolled)), np.nan)
    for row, speaker in enumerate(present):
        if (vector := diarization.speaker_embeddings.get(speaker)) is None:
            continue
        embedding = np.asarray(vector, dtype=np.float64)[enrolled.view]
        if embedding.shape != enrolled.vectors.shape[1:]:
            both = f"{embedding.size} values, those of the known speakers {enrolled.vectors.shape[1]}"
            raise KnnError(f"The recording's speaker embeddings have {both}.", "Take one model for both.")
        if (length := float(np.linalg.norm(embedding))) > 0:
            cosines[row] = enrolled.vectors @ (embedding / length)
    return cosines


def _distinct(cosines: Doubles, margin: float) -> NDArray[np.bool_]:
    """(S,) whether the highest cosine of each row exceeds the second highest by the margin."""
    if cosines.shape[1] < 2:
        return np.ones(len(cosines), dtype=bool)
    second, first = np.sort(cosines, axis=1)[:, -2:].T
    distinct: NDArray[np.bool_] = ~(first - second < margin)
    return distinct
