"""The values that packages exchange: immutable, checked when they are created, without paths or devices.

Times are seconds from the beginning of the recording. `Diarization.annotation` gives turns as pyannote.core has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.conveniences import DiarizationConveniences, ScoreConveniences

if TYPE_CHECKING:
    from pyannote.core import Annotation

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Texts = NDArray[np.str_]
Progress = Callable[[int, int], None]  # called with (done, total) by long work

LABEL_LEVELS = ("group", "subgroup", "speaker", "name")
_COLUMNS = ("data", "name", "group", "subgroup", "speaker", "start", "end")


@dataclass(frozen=True)
class Waveform:
    """Mono sound.

    Attributes
    ----------
    samples : (S,) float32 array
        Nominally in [-1, 1].
    rate : int
        Samples per second.
    start : float
        Seconds from the beginning of the recording to the first sample.

    Examples
    --------
    >>> import numpy as np
    >>> from knn_cli import Waveform
    >>> second = Waveform(np.zeros(16_000, dtype=np.float32), 16_000)
    >>> second.seconds
    1.0
    >>> second.crop(0.25, 0.75).start
    0.25
    """

    samples: Floats
    rate: int
    start: float = 0.0

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / self.rate

    def crop(self, start: float, end: float) -> Waveform:
        """Return the samples between two times in seconds, both counted from the beginning of the recording."""
        first = max(0, round((start - self.start) * self.rate))
        last = max(first, round((end - self.start) * self.rate))
        return Waveform(self.samples[first:last], self.rate, self.start + first / self.rate)


def _texts(values: Iterable[str] | None, rows: int) -> Texts:
    """(N,) texts, "" in every row where there are none."""
    return np.full(rows, "", dtype=np.str_) if values is None else np.asarray(list(values), dtype=np.str_)


@dataclass(frozen=True)
class EmbeddingSet:
    """Embeddings with their recordings, times and labels; row i of every array belongs to the same segment.

    Attributes
    ----------
    data : (N, D) float32 array
    name : (N,) str array
        The recording that the segment belongs to.
    group, subgroup, speaker : (N,) str array
        Labels, "" where unknown.
    start, end : (N,) float64 array
        Seconds in the recording, NaN where unknown.
    embedder : str
        Fingerprint of the bundle that computed the embeddings, "" where unknown (see `bundle.Bundle.fingerprint`).

    Examples
    --------
    >>> from knn_cli import EmbeddingSet
    >>> rows = EmbeddingSet.from_columns([[1, 0], [0, 1], [0, 2]], ["a", "a", "b"], speaker=["eva", "jan", "jan"])
    >>> len(rows), rows.dimension
    (3, 2)
    >>> rows.take(rows.speaker == "jan").name.tolist()
    ['a', 'b']
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
    def from_columns(
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
        """Build a set from plain lists; columns that are left out are filled with "" or NaN."""
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
        """Values in one embedding."""
        return int(self.data.shape[1])

    def label(self, level: str) -> Texts:
        """Return the (N,) labels of a level: group, subgroup, speaker or name."""
        if level not in LABEL_LEVELS:
            raise ValueError(f"no label level {level!r}")
        column: Texts = getattr(self, level)
        return column

    def take(self, rows: Any) -> EmbeddingSet:
        """Return the rows chosen by an index array, a boolean mask or a slice."""
        return replace(self, **{column: getattr(self, column)[rows] for column in _COLUMNS})

    @classmethod
    def concatenate(cls, sets: Sequence[EmbeddingSet]) -> EmbeddingSet:
        """Return the rows of one or more sets of the same embedder, in order."""
        if len({rows.embedder for rows in sets}) != 1:
            raise ValueError("only sets of embeddings of one model, at least one, can be concatenated")
        columns = {column: np.concatenate([getattr(rows, column) for rows in sets]) for column in _COLUMNS}
        return cls(**columns, embedder=sets[0].embedder)


@dataclass(frozen=True)
class ScoreTable(ScoreConveniences):
    """Scores of a classifier for N segments and C labels.

    Attributes
    ----------
    labels : tuple of C str
        In the order of the columns.
    log_likelihood : (N, C) float64 array
        Calibrated log-likelihoods up to a constant per row (natural logarithm); NaN in a row that was not scored
        because it holds no speech.
    name : (N,) str array
        The recording (or file) that the segment belongs to.
    start, end : (N,) float64 array
        Seconds, NaN where unknown.
    truth : (N,) str array
        The true label, "" where unknown.
    threshold : float or None
        A row whose largest detection LLR is below it is out of set. With None, every row gets one of the labels.
    groups : tuple of C str
        The group that each label belongs to, such as a dialect region; () without groups.
    rivals : (N, K) float64 array or None
        Log-likelihoods, with the same constant per row, of K more labels that the classifier knows but that are no
        answers (see `restrict`). They count where a row may be out of set; None without such labels.

    Examples
    --------
    >>> import numpy as np
    >>> from knn_cli import ScoreTable
    >>> scores = np.log([[0.9, 0.1], [0.2, 0.8]])
    >>> table = ScoreTable(("cs", "sk"), scores, np.array(["a", "b"]), np.array([0.0, 0.0]), np.array([3.0, 5.0]))
    >>> table.seconds.tolist()
    [3.0, 5.0]
    >>> table.best.tolist(), table.probabilities.round(3).tolist()
    (['cs', 'sk'], [[0.9, 0.1], [0.2, 0.8]])
    >>> table.to_csv("scores.csv")
    """

    labels: tuple[str, ...]
    log_likelihood: Doubles
    name: Texts
    start: Doubles
    end: Doubles
    truth: Texts = field(default_factory=lambda: np.zeros(0, dtype=np.str_))
    threshold: float | None = None
    groups: tuple[str, ...] = ()
    rivals: Doubles | None = None

    def __post_init__(self) -> None:
        if self.log_likelihood.shape != (len(self.name), len(self.labels)):
            raise ValueError(
                f"scores are {self.log_likelihood.shape}, rows and labels {(len(self.name), len(self.labels))}"
            )
        if len(self.groups) not in (0, len(self.labels)):
            raise ValueError(f"{len(self.groups)} groups, {len(self.labels)} labels")
        if self.rivals is not None and len(self.rivals) != len(self.name):
            raise ValueError(f"{len(self.rivals)} rows of rivals, {len(self.name)} rows of scores")

    def __len__(self) -> int:
        return len(self.name)

    @property
    def seconds(self) -> Doubles:
        """(N,) durations of the rows in seconds, NaN where unknown."""
        return self.end - self.start

    def take(self, rows: Any) -> ScoreTable:
        """Return the rows chosen by an index array, a boolean mask or a slice."""
        fields = ("log_likelihood", "name", "start", "end")
        columns: dict[str, Any] = {column: getattr(self, column)[rows] for column in fields}
        truth = self.truth[rows] if len(self.truth) else self.truth
        return replace(self, **columns, truth=truth, rivals=None if self.rivals is None else self.rivals[rows])

    def restrict(self, labels: Sequence[str]) -> ScoreTable:
        """Return the table of some of its labels, in the given order; the scores of the others become rivals.

        Posteriors are then over these labels alone: those of the whole table, divided by their sum.
        """
        if tuple(labels) == self.labels:
            return self
        kept = [self.labels.index(label) for label in labels]
        others = np.delete(self.log_likelihood, kept, axis=1)
        return replace(
            self,
            labels=tuple(labels),
            log_likelihood=self.log_likelihood[:, kept],
            groups=tuple(self.groups[column] for column in kept) if self.groups else (),
            rivals=others if self.rivals is None else np.concatenate([others, self.rivals], axis=1),
        )

    @classmethod
    def concatenate(cls, tables: Sequence[ScoreTable]) -> ScoreTable:
        """Return the rows of one or more tables of the same classifier, in order."""
        if len({(table.labels, table.threshold, table.groups) for table in tables}) > 1:
            raise ValueError("only score tables of one classifier can be concatenated")
        fields = ("log_likelihood", "name", "start", "end", "truth")
        columns: dict[str, Any] = {
            column: np.concatenate([getattr(table, column) for table in tables]) for column in fields
        }
        rivals = [table.rivals for table in tables if table.rivals is not None]
        return replace(tables[0], **columns, rivals=np.concatenate(rivals) if rivals else None)


MIN_SECONDS = 1e-6  # shorter segments and turns are empty, and segments so close together touch


@dataclass(frozen=True, order=True)
class Segment:
    """A part of a recording.

    Attributes
    ----------
    start, end : float
        Seconds from the beginning of the recording.
    """

    start: float
    end: float

    @property
    def duration(self) -> float:
        """Seconds from start to end, 0 for a segment that ends before it starts."""
        return max(0.0, self.end - self.start)

    def __and__(self, other: Segment) -> Segment:
        """Return the intersection of two segments; its duration is 0 if they do not overlap."""
        return Segment(max(self.start, other.start), min(self.end, other.end))


@dataclass(frozen=True)
class Turn:
    """A part of a recording in which one speaker speaks.

    Attributes
    ----------
    start, end : float
        Seconds from the beginning of the recording.
    speaker : str
    confidence : float or None
        Mean probability over the turn that the speaker speaks, 0 to 1; None where unknown.
    no_speech_probability : float or None
        Probability that it is music or a noise, 0 to 1; None where nothing was asked.
    """

    start: float
    end: float
    speaker: str
    confidence: float | None = None
    no_speech_probability: float | None = None

    @property
    def duration(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, repr=False)
class Diarization(DiarizationConveniences):
    """Who spoke when in one recording, and with what confidence.

    Attributes
    ----------
    turns : tuple of Turn
        By start and end; turns of several speakers may overlap.
    name : str or None
        The recording's name.
    speaker_embeddings : dict of str to (E,) float32 array
        Speaker -> embedding of all its clean speech; speakers without clean speech are left out.
    clean_speech_seconds : dict of str to float
        Speaker -> seconds of that clean speech, for the same speakers.
    seconds : float
        Duration of the recording.

    Examples
    --------
    >>> from knn_cli import Diarization
    >>> from knn_cli.core.values import Turn
    >>> turns = (Turn(0.0, 2.5, "SPEAKER_00", 0.95), Turn(2.0, 4.0, "SPEAKER_01", 0.8))
    >>> result = Diarization(turns, name="meeting", seconds=4.0)
    >>> for turn in result.turns:
    ...     print(f"{turn.start:.1f} {turn.end:.1f} {turn.speaker} {turn.confidence:.0%}")
    0.0 2.5 SPEAKER_00 95%
    2.0 4.0 SPEAKER_01 80%
    >>> result
    <Diarization of 'meeting', 4.0 s: 2 turns, 2 speakers>
    >>> result.to_rttm().splitlines()[0]
    'SPEAKER meeting 1 0.000 2.500 <NA> <NA> SPEAKER_00 <NA> <NA>'
    >>> result.save("turns.TextGrid")
    >>> result.annotation.get_overlap()
    <Timeline(uri=meeting, segments=[<Segment(2, 2.5)>])>
    """

    turns: tuple[Turn, ...]
    name: str | None = None
    speaker_embeddings: Mapping[str, Floats] = field(default_factory=dict)
    clean_speech_seconds: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def speakers(self) -> list[str]:
        """Speakers with a turn, by first appearance."""
        return list(dict.fromkeys(turn.speaker for turn in self.turns))

    @property
    def annotation(self) -> Annotation:
        """The turns as a pyannote.core.Annotation, whose tracks are the turns' numbers."""
        from pyannote.core import Annotation, Segment

        annotation = Annotation(uri=self.name)
        for track, turn in enumerate(self.turns):
            annotation[Segment(turn.start, turn.end), track] = turn.speaker
        return annotation


def sort_turns(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Return turns by start and end, without those that are empty (up to a microsecond)."""
    return tuple(
        sorted((turn for turn in turns if turn.duration > MIN_SECONDS), key=lambda turn: (turn.start, turn.end))
    )


def turns_of_annotation(annotation: Annotation) -> tuple[Turn, ...]:
    """Return the turns of a pyannote.core.Annotation, such as a reference, by start and end."""
    return tuple(
        Turn(segment.start, segment.end, str(label)) for segment, _, label in annotation.itertracks(yield_label=True)
    )
