"""The values that pass between rooms: frozen, checked at birth, free of any path or device.

Time spans and diarization results are `pyannote.core` values (Segment, Timeline, Annotation), so they are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pyannote.core import Annotation

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Texts = NDArray[np.str_]
Progress = Callable[[int, int], None]  # done, total: what long work tells whoever waits for it


@dataclass(frozen=True)
class Waveform:
    """Mono sound.

    samples : (S,) float32, nominally in [-1, 1]
    rate    : samples a second
    start   : seconds from the beginning of its recording to the first sample
    """

    samples: Floats
    rate: int
    start: float = 0.0

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def crop(self, start: float, end: float) -> Waveform:
        """The part between two times in seconds, both counted from the beginning of the recording."""
        first = max(0, round((start - self.start) * self.rate))
        last = max(first, round((end - self.start) * self.rate))
        return Waveform(self.samples[first:last], self.rate, self.start + first / self.rate)


def _texts(values: Iterable[str] | None, rows: int) -> Texts:
    return np.full(rows, "", dtype=np.str_) if values is None else np.asarray(list(values), dtype=np.str_)


@dataclass(frozen=True)
class EmbeddingSet:
    """Embeddings with where they come from; row i of every array belongs to the same segment.

    data      : (N, D) float32
    name      : (N,) recording of the segment
    group, subgroup, speaker : (N,) labels, "" where unknown
    start, end: (N,) float64 seconds in the recording, NaN where unknown
    embedder  : fingerprint of the bundle that made them, "" where unknown (see `bundle.Bundle.fingerprint`)
    """

    data: Floats
    name: Texts
    group: Texts
    subgroup: Texts
    speaker: Texts
    start: Doubles
    end: Doubles
    embedder: str = ""

    def __post_init__(self) -> None:
        if self.data.ndim != 2:
            raise ValueError(f"embeddings are (N, D), not {self.data.shape}")
        for column in ("name", "group", "subgroup", "speaker", "start", "end"):
            if len(getattr(self, column)) != len(self.data):
                raise ValueError(f"{column} has {len(getattr(self, column))} rows, data has {len(self.data)}")

    @classmethod
    def of(
        cls,
        data: Any,
        name: Iterable[str],
        *,
        group: Iterable[str] | None = None,
        subgroup: Iterable[str] | None = None,
        speaker: Iterable[str] | None = None,
        start: Sequence[float] | Doubles | None = None,
        end: Sequence[float] | Doubles | None = None,
        embedder: str = "",
    ) -> EmbeddingSet:
        """Build from plain lists; columns that are left out are filled with "" and NaN."""
        matrix = np.asarray(data, dtype=np.float32)
        rows = len(matrix)
        return cls(
            matrix,
            _texts(name, rows),
            _texts(group, rows),
            _texts(subgroup, rows),
            _texts(speaker, rows),
            np.full(rows, np.nan) if start is None else np.asarray(start, dtype=np.float64),
            np.full(rows, np.nan) if end is None else np.asarray(end, dtype=np.float64),
            embedder,
        )

    def __len__(self) -> int:
        return len(self.data)

    @property
    def dimension(self) -> int:
        return int(self.data.shape[1])

    def label(self, level: str) -> Texts:
        """One label a row: `level` is group, subgroup, speaker or name."""
        if level not in LABEL_LEVELS:
            raise ValueError(f"no label level {level!r}")
        column: Texts = getattr(self, level)
        return column

    def take(self, rows: Any) -> EmbeddingSet:
        """The rows chosen by an index array, a boolean mask or a slice."""
        return replace(self, **{column: getattr(self, column)[rows] for column in _COLUMNS})

    @classmethod
    def concatenate(cls, parts: Sequence[EmbeddingSet]) -> EmbeddingSet:
        """The rows of one or more sets of one embedder, one after the other."""
        if len({part.embedder for part in parts}) != 1:
            raise ValueError("embeddings of several models, or none at all, make no set")
        columns = {column: np.concatenate([getattr(part, column) for part in parts]) for column in _COLUMNS}
        return cls(**columns, embedder=parts[0].embedder)


_COLUMNS = ("data", "name", "group", "subgroup", "speaker", "start", "end")
LABEL_LEVELS = ("group", "subgroup", "speaker", "name")


@dataclass(frozen=True)
class ScoreTable:
    """What a classifier says of N segments and C labels.

    labels         : C names, in the order of the columns
    log_likelihood : (N, C) float64, calibrated log-likelihoods up to a constant a row (natural logarithm)
    name           : (N,) recording (or file) of the segment
    start, end     : (N,) float64 seconds, NaN where unknown
    truth          : (N,) true label, "" where unknown
    threshold      : a row whose largest detection LLR is below is of no label here; None: every row has one
    groups         : (C,) the group that each label belongs to, such as a dialect region; () without groups
    """

    labels: tuple[str, ...]
    log_likelihood: Doubles
    name: Texts
    start: Doubles
    end: Doubles
    truth: Texts = field(default_factory=lambda: np.zeros(0, dtype=np.str_))
    threshold: float | None = None
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.log_likelihood.shape != (len(self.name), len(self.labels)):
            raise ValueError(
                f"scores are {self.log_likelihood.shape}, rows and labels {(len(self.name), len(self.labels))}"
            )
        if len(self.groups) not in (0, len(self.labels)):
            raise ValueError(f"{len(self.groups)} groups, {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.name)

    @property
    def seconds(self) -> Doubles:
        """(N,) length of each row, NaN where unknown."""
        return self.end - self.start

    def take(self, rows: Any) -> ScoreTable:
        """The rows chosen by an index array, a boolean mask or a slice."""
        fields = ("log_likelihood", "name", "start", "end")
        columns: dict[str, Any] = {column: getattr(self, column)[rows] for column in fields}
        return replace(self, **columns, truth=self.truth[rows] if len(self.truth) else self.truth)

    @classmethod
    def concatenate(cls, parts: Sequence[ScoreTable]) -> ScoreTable:
        """The rows of one or more tables of one classifier, one after the other."""
        first = parts[0]
        if len({(part.labels, part.threshold, part.groups) for part in parts}) > 1:
            raise ValueError("scores of several classifiers make no table")
        fields = ("log_likelihood", "name", "start", "end", "truth")
        columns: dict[str, Any] = {field: np.concatenate([getattr(one, field) for one in parts]) for field in fields}
        return replace(first, **columns)


@dataclass(frozen=True)
class Diarization:
    """Who spoke when in one recording, and how sure that is.

    turns      : tracks are integers, unique in the recording; turns of several speakers may overlap
    confidence : track -> mean probability over the turn that its speaker speaks, 0 to 1
    voices     : speaker -> (E,) float32 embedding of all its clean speech; speakers without any are left out
    speech     : speaker -> seconds of that clean speech, for the speakers of `voices`
    seconds    : length of the recording
    """

    turns: Annotation
    confidence: Mapping[int, float] = field(default_factory=dict)
    voices: Mapping[str, Floats] = field(default_factory=dict)
    speech: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
