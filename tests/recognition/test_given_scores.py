"""Stores of scores are evaluated as the scores are."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.core.errors import KnnError
from knn_cli.networks.importers.wespeaker_heads import CZECH_DIALECTS
from knn_cli.recognition.given_scores import scores_as_classifier


def legacy(path: Path, scores: np.ndarray, labels: list[str]) -> Path:
    """scores.h5 as KNN-proj has it: bytes of shape (N, 1), and the scores under Data."""
    with h5py.File(path, "w") as file:
        file["Data"] = scores
        file["Name"] = np.array([[f"rec{number // 2}".encode()] for number in range(len(labels))])
        file["SubgroupID"] = np.array([[label.encode()] for label in labels])
        file["GroupID"] = np.array([[label[:1].encode()] for label in labels])
    return path


@pytest.mark.parametrize("present", [CZECH_DIALECTS, CZECH_DIALECTS[3:9]])
def test_scores_of_the_ancestor(tmp_path: Path, present: tuple[str, ...]) -> None:
    """Accuracy is that of the largest column, also where some of the 13 dialects do not occur."""
    random = np.random.default_rng(0)
    labels = [label for label in present for _ in range(4)]
    scores = random.normal(size=(len(labels), 13)) * 2 - 900
    truth = np.array([CZECH_DIALECTS.index(label) for label in labels])
    scores[np.arange(len(labels)), truth] += 3
    path = legacy(tmp_path / "scores.h5", scores, labels)
    run = CliRunner().invoke(app, ["evaluate", str(path), "--scores", "--json", "--draws", "0"])
    assert run.exit_code == 0, run.output
    figures = json.loads(run.stdout)["figures"]
    right = scores.argmax(axis=1) == truth
    per_label = [right[truth == label].mean() for label in np.unique(truth)]
    shares = {round(float(value), 6) for value in (right.mean(), np.mean(per_label))}
    assert round(figures["accuracy"][0], 6) in shares
    with scores_as_classifier([path]) as model:
        assert model.labels == CZECH_DIALECTS


def test_what_is_no_scores_is_refused(tmp_path: Path) -> None:
    path = legacy(tmp_path / "e.h5", np.zeros((4, 7)), ["1-1", "1-2", "2-1", "2-1"])
    with pytest.raises(KnnError, match="rows have 7 values, for 3 subgroups, 2 groups"), scores_as_classifier([path]):
        pass
    run = CliRunner().invoke(app, ["evaluate", str(path), "--scores", "--model", "language"])
    assert run.exit_code in (1, 2) and "--scores and --model cannot be combined" in run.output
