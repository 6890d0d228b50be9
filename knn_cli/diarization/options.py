"""Options of the diarizer, validated on construction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from knn_cli.audio.segments import MAX_GAP_SECONDS
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from knn_cli.diarization.segmentation import Segmenter

STEP_SECONDS = 2.52  # from one long window to the next
MIN_TURN_SECONDS = 0.1  # shorter turns are mostly spurious
MARGIN_SECONDS = 0.2  # of silence after a turn that belong to it


@dataclass(frozen=True)
class DiarizationOptions:
    """How a recording is diarized.

    Parameters
    ----------
    vad : {"ours", "silero"}
        Speech detector: the segmentation network, which detects overlap, or silero-vad, one speaker at a time.
    segmentation : str, Path, Segmenter or None
        The segmentation network, by name, by path or loaded already; None is the shipped one.
    clusterer : str or None
        A name in `registry.CLUSTERERS`; None is vbx where the embedding model has a PLDA, otherwise spectral.
    clusterer_settings : mapping
        Arguments of that method.
    step : float
        Seconds from one window of the segmentation network to the next, rounded to whole frames.
    short_windows : bool
        Whether windows of a second and a half are embedded and clustered, with a say beside the local speakers of the
        segmentation network's windows; otherwise these local speakers are clustered and have all of it.
    min_turn : float
        Seconds. Shorter turns are dropped or assigned to an adjacent speaker, but each speaker keeps its longest turn.
    max_gap : float
        Seconds. Pauses of a speaker up to this long are filled, before margins are added.
    margin : float
        Seconds of silence that are kept after a turn, and a fifth of that before it; rounded to whole frames. Up to
        three times as much is kept while it is audible.

    Raises
    ------
    KnnError
        For an unknown detector, for a segmentation network together with silero-vad, for durations that are negative or
        not finite, and for a step outside 0.1 to 10 s.
    """

    vad: str = "ours"
    segmentation: str | Path | Segmenter | None = None
    clusterer: str | None = None
    clusterer_settings: Mapping[str, object] = field(default_factory=dict)
    step: float = STEP_SECONDS
    short_windows: bool = True
    min_turn: float = MIN_TURN_SECONDS
    max_gap: float = MAX_GAP_SECONDS
    margin: float = MARGIN_SECONDS

    def __post_init__(self) -> None:
        if self.vad not in ("ours", "silero"):
            raise KnnError(f"There is no speech detector named {self.vad!r}.", "Known: ours, silero.")
        if self.vad == "silero" and self.segmentation is not None:
            raise KnnError("silero-vad leaves nothing for a segmentation network to do.", "Choose one of the two.")
        for name, value in (("min_turn", self.min_turn), ("max_gap", self.max_gap), ("margin", self.margin)):
            if not 0 <= value < math.inf:
                raise KnnError(f"`{name}` is {value:g}; it is a number of seconds, 0 or more.")
        if not 0.1 <= self.step <= 10:
            raise KnnError(f"`step` is {self.step:g}; windows of 10 s follow each other by 0.1 to 10 s.")


def check_speakers(num_speakers: int | None, min_speakers: int | None, max_speakers: int | None) -> None:
    """Raise KnnError for numbers of speakers that no recording can obey."""
    numbers = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise KnnError(f"`{name}` is {value}; a recording has at least one speaker.")
    if min_speakers is not None and max_speakers is not None and min_speakers > max_speakers:
        raise KnnError(f"`min_speakers` {min_speakers} is above `max_speakers` {max_speakers}.")
    if num_speakers is not None and not (min_speakers or 1) <= num_speakers <= (max_speakers or num_speakers):
        raise KnnError(f"`num_speakers` {num_speakers} is outside `min_speakers` and `max_speakers`.")
