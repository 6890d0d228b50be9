"""Segmentation networks of pyannote.audio: PyanNet with powerset classes, such as segmentation-3.0.

The import is strict (see `registry.Importer`). Sizes come from shapes and hyper-parameters; the number of speakers, and
of simultaneous speakers, comes from the specifications that pyannote stores beside the weights, and is checked against
the number of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import SEGMENTERS
from knn_cli.networks.construction import built
from knn_cli.networks.importers.checkpoint_files import (
    checked_settings,
    list_keys,
    require_settings,
    sources_hint,
    without_wrappers,
)
from knn_cli.networks.importers.components import ComponentToFill, ImportedComponent, ImportedSegmenter, match_weights
from knn_cli.networks.importers.inert_objects import InertObject
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.weight_names import pyannet
from knn_cli.networks.segmenters.powerset import powerset
from knn_cli.networks.segmenters.pyannet import PyanNet

__all__ = ["from_pyannote"]

_NOTE = (
    "The weights keep the licence of their source; pyannote's model card of segmentation-3.0 states MIT. Check before "
    "you pass them on."
)
_MONO_LABEL = 1  # pyannote's enum value of a problem with a single class per frame
_FRAMES = 1  # pyannote's enum value of an output per frame
_FILTERBANK = "sincnet.conv1d.0.filterbank."
_AXES = {  # number of axes of the weights whose shapes give the sizes
    f"{_FILTERBANK}low_hz_": 2,
    f"{_FILTERBANK}window_": 1,
    f"{_FILTERBANK}n_": 2,
    "sincnet.conv1d.1.weight": 3,
    "sincnet.conv1d.2.weight": 3,
    "classifier.weight": 2,
}


def _has_pyannet(checkpoint: Checkpoint) -> bool:
    state = checkpoint.content.get("state_dict")
    names = without_wrappers(state) if isinstance(state, dict) else {}
    return any(name.startswith("sincnet.") for name in names) and any(name.startswith("lstm.") for name in names)


@importer("pyannote", recognizes=_has_pyannet)
def from_pyannote(checkpoint: Checkpoint) -> ImportedSegmenter:
    """Import a PyanNet from a checkpoint with state_dict, hyper_parameters and pyannote's specifications.

    Raises
    ------
    KnnError
        Frames have several labels instead of powerset classes, settings are those of another network, or keys are
        missing, extra or of another shape.
    """
    content, path = checkpoint.content, checkpoint.path
    state = checkpoint.weights
    wrong = [key for key, axes in _AXES.items() if getattr(state.get(key), "ndim", 0) != axes]
    if wrong:
        raise KnnError(
            f"{path} does not determine the sizes of its PyanNet: missing or mis-sized {list_keys(wrong)}.",
            sources_hint(),
        )
    args, monolithic = _settings(content, path)
    args |= _specifications(content, path)
    low, half = state[f"{_FILTERBANK}low_hz_"].shape[0], state[f"{_FILTERBANK}window_"].shape[0]
    convolutions = [state[f"sincnet.conv1d.{number}.weight"] for number in (1, 2)]
    args |= {
        "filters": 2 * low,
        "kernel": 2 * half + 1,
        "widths": [weight.shape[0] for weight in convolutions],
        "reach": convolutions[0].shape[2],
    }
    classes = len(powerset(args["speakers"], args["most"]))
    if (rows := state["classifier.weight"].shape[0]) != classes:
        raise KnnError(
            f"{path} has {rows} classes; up to {args['most']} of {args['speakers']} speakers at once need {classes}.",
            "Download it again.",
        )
    network = built(SEGMENTERS, "pyannet", args, source=str(path))
    part = match_weights(
        [ComponentToFill(ImportedComponent("pyannet", args), network, pyannet(monolithic))],
        state,
        path,
        "PyanNet",
        "pyannote",
    )[0]
    _check_filters(network, state, path)
    return ImportedSegmenter(part, f"pyannote: {path.name}", _NOTE)


def _settings(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], bool]:
    """Arguments that only the hyper-parameters give, and whether the LSTM is a single module."""
    settings = content.get("hyper_parameters")
    if not isinstance(settings, dict):
        raise KnnError(f"{path} has no hyper_parameters.", "Name the file that pyannote published or wrote.")
    groups = {name: settings.get(name, {}) for name in ("sincnet", "lstm", "linear")}
    if odd := [name for name, group in groups.items() if not isinstance(group, dict)]:
        raise KnnError(f"{path} has settings of another kind than a PyanNet's: {list_keys(odd)}.", sources_hint())
    sinc, lstm, linear = groups.values()
    require_settings(settings, {"sample_rate": 16000, "num_channels": 1}, path, "PyanNet")
    require_settings(sinc, {"sample_rate": 16000}, path, "PyanNet")
    require_settings(lstm, {"batch_first": True, "bias": True, "proj_size": 0}, path, "PyanNet")
    stride = checked_settings(sinc, {"stride": 10}, path, "a PyanNet")["stride"]
    defaults = {"hidden_size": 128, "num_layers": 2, "bidirectional": True, "monolithic": True, "dropout": 0.0}
    lstm_sizes = checked_settings(lstm, defaults, path, "a PyanNet")
    linear_sizes = checked_settings(linear, {"hidden_size": 128, "num_layers": 2}, path, "a PyanNet")
    args = {
        "stride": stride,
        "hidden": lstm_sizes["hidden_size"],
        "depth": lstm_sizes["num_layers"],
        "both": lstm_sizes["bidirectional"],
        "dropout": lstm_sizes["dropout"],
        "linear": [linear_sizes["hidden_size"]] * linear_sizes["num_layers"],
        "rate": 16000,
    }
    return args, lstm_sizes["monolithic"]


def _specifications(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The number of speakers and of simultaneous speakers, and the chunk duration in seconds."""
    metadata = content.get("pyannote.audio")
    pickled = metadata.get("specifications") if isinstance(metadata, dict) else None
    fields = pickled.state if isinstance(pickled, InertObject) else None
    if not isinstance(fields, dict):
        raise KnnError(f"{path} does not specify its classes.", "Name the file that pyannote published or wrote.")
    problem, resolution = (getattr(fields.get(key), "values", ()) for key in ("problem", "resolution"))
    speakers, max_speakers, duration = (fields.get(key) for key in ("classes", "powerset_max_classes", "duration"))
    if problem != (_MONO_LABEL,) or resolution != (_FRAMES,) or max_speakers is None:
        raise KnnError(
            f"{path} does not classify each frame as a set of speakers (powerset).",
            "knn reads segmentation networks of pyannote 3, such as segmentation-3.0; those of pyannote 2 give "
            "each speaker a separate probability.",
        )
    if (
        isinstance(speakers, list)
        and isinstance(max_speakers, int)
        and 0 < max_speakers <= len(speakers)
        and isinstance(duration, int | float)
        and duration > 0
    ):
        return {"speakers": len(speakers), "most": max_speakers, "duration": float(duration)}
    raise KnnError(f"{path} has specifications of another kind than pyannote's.", "Download it again.")


def _check_filters(network: PyanNet, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise KnnError where the file's filter windows and times differ from those that knn's network computes."""
    for name, computed in (("window_", network.sinc.window), ("n_", network.sinc.times[None])):
        given = state[_FILTERBANK + name]
        if given.shape != computed.shape or not torch.allclose(given.float(), computed, rtol=1e-5, atol=1e-7):
            raise KnnError(f"{path} has other filters than a PyanNet: {_FILTERBANK}{name} differs.", sources_hint())
