"""What an evaluation report shows, as it is given to `reports.report.write_report`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from knn_cli.core.values import EmbeddingSet
from knn_cli.evaluation.results import DurationPoint
from knn_cli.reports.tables import NamedEvaluation

Clip = Callable[[str, float, float], bytes | None]


@dataclass(frozen=True)
class ReportContents:
    """The evaluations of a report, and what it shows besides.

    Attributes
    ----------
    models : sequence of NamedEvaluation
        One model, or several side by side, of different names.
    curves : mapping of str to sequence of DurationPoint
        Accuracy against length by the model's name.
    embeddings : EmbeddingSet or None
        Rows of the map.
    level : str
        Label that colours the map, see `EmbeddingSet.label`.
    clip : callable or None
        (recording, start, end), times in seconds -> a FLAC or WAV file, or None where there is no sound.
    cards : mapping of str to str
        Heading -> text, such as a model's README.
    command, version, date : str
        Shown as they are. The report itself never looks at the clock: the same contents give the same bytes.
    max_clips : int
        Rows with sound at most.
    max_clip_seconds : float
        Length of each at most.
    """

    models: Sequence[NamedEvaluation]
    curves: Mapping[str, Sequence[DurationPoint]] = field(default_factory=dict)
    embeddings: EmbeddingSet | None = None
    level: str = "group"
    clip: Clip | None = None
    cards: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    version: str = ""
    date: str = ""
    max_clips: int = 12
    max_clip_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not self.models or len({model.name for model in self.models}) != len(self.models):
            raise ValueError("a report is of one or more models of different names")
