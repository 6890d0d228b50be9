"""Bundles of the toy network with a linear head whose scores are some values of the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from knn_cli.core.values import EmbeddingSet
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle

CALIBRATION = {"scale": 0.5, "exponent": 0.25, "reference": 4.0}
OPEN_SET = {
    "threshold": 2.0,
    "false_accept": 0.25,
    "false_reject": 0.05,
    "known": 100,
    "unknown": 40,
    "chosen": "by hand",
}


def write_head_bundle(folder: Path, labels: Sequence[str], **settings: Any) -> Bundle:
    """The toy network with a head for which the score of label c is value c of the embedding."""
    toy = bundle.find("tiny-test")
    state = load_file(toy.folder / bundle.WEIGHTS)
    state["head.trans.0.weight"] = torch.eye(len(labels), 24)
    state["head.trans.0.bias"] = torch.zeros(len(labels))
    head = {"name": "softmax", "args": {"normalize": False}, "labels": list(labels), "level": "group", **settings}
    kept = ("audio", "encoder", "pooling")
    config = {"name": folder.name, "kind": "classifier", **{key: toy.config[key] for key in kept}, "head": head}
    return bundle.write(folder, config, state=state)


def embedded_scores(
    scores: Sequence[Sequence[float]], *, truth: Sequence[str] = (), seconds: float = 4.0
) -> EmbeddingSet:
    """Rows whose scores by such a head are these."""
    rows = np.zeros((len(scores), 24))
    rows[:, : len(scores[0])] = scores
    times = {"start": [0.0] * len(rows), "end": [seconds] * len(rows)}
    return EmbeddingSet.from_columns(rows, [f"r{row}" for row in range(len(rows))], group=truth or None, **times)
