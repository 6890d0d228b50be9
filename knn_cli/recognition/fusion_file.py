"""A trained fusion as a JSON file: which systems it is of, their weights, and what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from knn_cli.core.atomic import replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.core.output_records import OutputTask
from knn_cli.core.texts import read_text
from knn_cli.core.visible_text import json_text
from knn_cli.recognition.fusion import Fusion

__all__ = ["FusionModel", "read_fusion", "write_fusion"]

SCHEMA = 1
_KINDS = ("labels", "trials")
_HINT = "It is written by `knn fuse SCORES ... -o FILE`."


@dataclass(frozen=True, eq=False)
class FusionModel:
    """A fusion with the names of what it takes.

    Attributes
    ----------
    kind : {"labels", "trials"}
    systems : tuple of S str
        In the order of the weights.
    labels : tuple of C str
    quality : tuple of Q str
        Quality measures.
    fusion : Fusion
    measured : dict
        What was trained on and the figures of rows that were held out: anything JSON can express.
    """

    kind: str
    systems: tuple[str, ...]
    labels: tuple[str, ...]
    quality: tuple[str, ...]
    fusion: Fusion
    measured: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weights = (len(self.systems), 1 + len(self.quality))
        if self.fusion.weights.shape != weights or len(self.fusion.offsets) != len(self.labels):
            raise ValueError(f"weights {self.fusion.weights.shape}, offsets {self.fusion.offsets.shape}")
        if self.kind not in _KINDS:
            raise ValueError(f"there is no kind {self.kind!r}")


def write_fusion(path: Path, model: FusionModel, *, task: OutputTask | None = None) -> None:
    """Write a fusion; the file appears when it is complete, and is recorded as the output of a `task`."""
    content = {
        "schema": SCHEMA,
        "kind": f"fusion of {model.kind}",
        "systems": list(model.systems),
        "labels": list(model.labels),
        "quality": list(model.quality),
        "centre": model.fusion.centre.tolist(),
        "weights": model.fusion.weights.tolist(),
        "offsets": model.fusion.offsets.tolist(),
        "measured": model.measured,
    }
    with replacing_text(path, task=task) as file:
        file.write(json_text(content, indent=1) + "\n")


def read_fusion(path: Path) -> FusionModel:
    """Read a fusion; KnnError for a file that holds none."""
    text = read_text(path, "a fusion")
    try:
        content = json.loads(text)
        if content["schema"] != SCHEMA:
            raise KnnError(f"{path} has the schema {content['schema']!r}, this knn reads {SCHEMA}.", "Train it again.")
        systems, labels, quality = (tuple(map(str, content[name])) for name in ("systems", "labels", "quality"))
        arrays = (np.asarray(content[name], dtype=np.float64) for name in ("weights", "offsets", "centre"))
        kind = content["kind"].removeprefix("fusion of ")
        return FusionModel(kind, systems, labels, quality, Fusion(*arrays), dict(content["measured"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KnnError(f"{path} is not a fusion.", _HINT) from error
