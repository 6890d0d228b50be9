"""Classifiers that KNN-proj saved give the posteriors of its formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.core.errors import KnnError
from knn_cli.core.values import EmbeddingSet
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.saved_glc import convert_saved_glc, is_saved_glc
from knn_cli.store.writer import write_store


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Five dimensions and three classes, whose order is not sorted, as bytes."""
    random = np.random.default_rng(0)
    root = random.normal(size=(5, 5))
    with h5py.File(tmp_path / "glc.h5", "w") as file:
        file["WC"], file["means"] = root @ root.T + np.eye(5), random.normal(size=(5, 3)) * 2
        file["classes"] = np.array([b"2-1", b"1-1", b"1-2"])
    return tmp_path / "glc.h5"


def log_likelihoods(path: Path, rows: np.ndarray) -> np.ndarray:
    """The formula of `GLC.loglh`, rows (N, D) -> (N, C) in the order of the file."""
    with h5py.File(path) as file:
        precision, means = np.linalg.inv(file["WC"][()]), file["means"][()]
    differences = rows[:, :, None] - means  # (N, D, C)
    return -0.5 * np.einsum("ndc,de,nec->nc", differences, precision, differences)


def test_posteriors_are_those_of_its_formula(saved: Path, tmp_path: Path) -> None:
    assert is_saved_glc(saved) and not is_saved_glc(Path(__file__))
    run = CliRunner().invoke(app, ["convert", str(saved), str(tmp_path / "glc")])
    assert run.exit_code == 0 and "1-1, 1-2, 2-1" in run.output
    model = Classifier(tmp_path / "glc")
    assert model.labels == ("1-1", "1-2", "2-1") and model.meta["label"] == "subgroup"
    rows = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32) * 3
    names = [f"r{number}" for number in range(40)]
    found = model.score(EmbeddingSet.from_columns(rows, names)).log_likelihood
    expected = log_likelihoods(saved, rows.astype(np.float64))[:, [1, 2, 0]]
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], atol=1e-9)
    write_store(tmp_path / "e.h5", EmbeddingSet.from_columns(rows, names))
    done = CliRunner().invoke(app, ["classify", str(tmp_path / "e.h5"), "--model", str(tmp_path / "glc")])
    assert done.exit_code == 0 and "2-1" in done.stdout, done.output


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("means", np.zeros((5, 2)), r"do not go together \(WC \(5, 5\), means \(5, 2\), 3 classes\)"),
        ("WC", np.full((5, 5), np.nan), "NaN or infinite"),
        ("WC", np.zeros((5, 5)), "has no inverse"),
        ("classes", np.array([b"a", b"a", b"b"]), "names a class twice"),
    ],
)
def test_others_are_refused(saved: Path, tmp_path: Path, name: str, value: Any, why: str) -> None:
    with h5py.File(saved, "r+") as file:
        del file[name]
        file[name] = value
    with pytest.raises(KnnError, match=why):
        convert_saved_glc(saved, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_options_that_do_not_apply_are_refused(saved: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["convert", str(saved), str(tmp_path / "m"), "--segment", "4"])
    assert run.exit_code == 1 and "--segment does not apply" in run.output
