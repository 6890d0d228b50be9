"""How recordings become rows of embeddings, and what is reported of rows that do not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from knn_cli.audio import reading
from knn_cli.core.errors import KnnError
from knn_cli.embedding.embedder import MIN_SPEECH_SECONDS


@dataclass(frozen=True)
class EmbeddingOptions:
    """How the sound of a file becomes rows.

    Parameters
    ----------
    segment : float, optional
        Seconds of sound in a row; None makes one row of the whole file.
    use_vad : bool
        Embed speech only.
    channel : str
        "mix", "left", "right", or a number from 1.

    Raises
    ------
    KnnError
        There is no such channel, or segments are shorter than `MIN_SPEECH_SECONDS`.
    """

    segment: float | None = None
    use_vad: bool = True
    channel: str = "mix"

    def __post_init__(self) -> None:
        reading.track_and_channel(self.channel)
        if self.segment is not None and not MIN_SPEECH_SECONDS <= self.segment < math.inf:
            raise KnnError(
                f"Segments of {self.segment:g} s are too short or not finite.",
                f"Take {MIN_SPEECH_SECONDS:g} s or more.",
            )

    def check_store(self) -> None:
        """Refuse a length of segments for a store, whose rows are segments already (KnnError)."""
        if self.segment is not None:
            raise KnnError(
                "A store's rows are segments already.", "Convert the recordings again to cut them otherwise."
            )


@dataclass(frozen=True)
class RowsWithoutSpeech:
    """The number of rows of a store that were left out because they hold too little speech."""

    rows: int
