"""What a bundle's config says of the scores of its head: calibration, threshold of the open set, measured figures.

head.calibration    optional: scale, exponent, reference (`Calibration`, without offsets)
head.open_set       optional: threshold, false_accept, false_reject, known, unknown, chosen (`OpenSetThreshold`); a rate
                    of no rows is null
head.measured       optional: label -> figure -> number, or null where it is not known
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from knn_cli.core.errors import BundleError
from knn_cli.networks.bundle import CONFIG, Bundle
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.open_set_threshold import OpenSetThreshold

_CALIBRATION = ("scale", "exponent", "reference")
_RATES, _COUNTS = ("false_accept", "false_reject"), ("known", "unknown")
_OPEN_SET = ("threshold", *_RATES, *_COUNTS, "chosen")


@dataclass(frozen=True)
class HeadSettings:
    """How the scores of a head become calibrated log-likelihoods and decisions.

    Attributes
    ----------
    calibration : Calibration
        Of the head's scores; the identity where the config has none.
    open_set : OpenSetThreshold or None
        The threshold below which a row has none of the labels.
    measured : mapping
        Label -> figure -> number, None where it is not known; empty where nothing was measured.
    """

    calibration: Calibration
    open_set: OpenSetThreshold | None = None
    measured: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


def read_head_settings(bundle: Bundle) -> HeadSettings:
    """Read the settings of a bundle with a head.

    Raises
    ------
    BundleError
        Anything is missing, extra, of another type or not possible, or a label was measured that the head does not
        know.
    """
    head, labels = bundle.config["head"], bundle.head_labels
    try:
        calibration = Calibration.identity(len(labels))
        if "calibration" in head:
            entries = _entries(head["calibration"], _CALIBRATION)
            numbers = {name: _number(entries[name]) for name in _CALIBRATION}
            calibration = Calibration(offsets=np.zeros(len(labels)), **numbers)
        return HeadSettings(
            calibration,
            _open_set(head["open_set"]) if "open_set" in head else None,
            _measured(head.get("measured", {}), labels),
        )
    except ValueError as error:
        raise BundleError(f"{bundle.folder / CONFIG}: the head's settings are no good: {error}.") from error


def _open_set(value: Any) -> OpenSetThreshold:
    entries = _entries(value, _OPEN_SET)
    for name in _COUNTS:
        if not isinstance(entries[name], int) or isinstance(entries[name], bool):
            raise ValueError(f"{name} is {entries[name]!r}, no number of rows")
    if not isinstance(entries["chosen"], str):
        raise ValueError(f"chosen is {entries['chosen']!r}, no text")
    rates = {name: math.nan if entries[name] is None else _number(entries[name]) for name in _RATES}
    return OpenSetThreshold(**{**entries, **rates, "threshold": _number(entries["threshold"])})


def _measured(value: Any, labels: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
    if not isinstance(value, dict) or not all(isinstance(figures, dict) for figures in value.values()):
        raise ValueError("measured is no map from label to figures")
    if unknown := sorted(set(value) - set(labels)):
        raise ValueError(f"{unknown[0]!r} was measured and is none of the labels")
    return {
        label: {name: None if figure is None else _number(figure) for name, figure in figures.items()}
        for label, figures in value.items()
    }


def _entries(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The object, which has exactly these names."""
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"{', '.join(names)} are needed, and nothing else")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{repr(value)[:40]} is no finite number")
    return float(value)
