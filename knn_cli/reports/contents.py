"""The contents of an evaluation report, the input of `reports.report.write_report`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from knn_cli.core.values import EmbeddingSet
from knn_cli.evaluation.results import DurationPoint
from knn_cli.reports.tables import NamedEvaluation

Clip = Callable[[str, float, float], bytes | None]


@dataclass(frozen=True)
class ReportContents:
    """The evaluations of a report and its other contents.

    Attributes
    ----------
    models : sequence of NamedEvaluation
        One or more models with different names, to be compared.
    curves : mapping of str to sequence of DurationPoint
        Accuracy against length by the model's name.
    layer_weights : mapping of str to mapping
        Sums over the encoder's layers by the model's name, see `networks.layer_weights.layer_weights`.
    embeddings : EmbeddingSet or None
        Rows of the map.
    level : str
        Label that colours the map, see `EmbeddingSet.label`.
    clip : callable or None
        (recording, start, end), times in seconds -> a FLAC or WAV file, or None if there is no sound.
    cards : mapping of str to str
        Heading -> text, such as a model's README.
    command, version, date : str
        Shown unchanged. The report does not read the clock: equal contents give equal bytes.
    max_clips : int
        Largest number of rows with sound.
    max_clip_seconds : float
        Largest length of each clip.
    """

    models: Sequence[NamedEvaluation]
    curves: Mapping[str, Sequence[DurationPoint]] = field(default_factory=dict)
    layer_weights: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
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
            raise ValueError("a report needs one or more models with different names")
