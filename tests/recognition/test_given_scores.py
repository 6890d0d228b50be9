"""Stores of scores are evaluated as the scores are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import special
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.core.errors import KnnError
from knn_cli.evaluation.metrics import detection_llr
from knn_cli.networks.importers.wespeaker_heads import CZECH_DIALECTS
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.given_scores import scores_as_classifier
from knn_cli.recognition.score_tables import write_score_table
from knn_cli.recognition.train_classifier import train_classifier
from knn_cli.store.writer import write_store
from tests.helpers.embedding_sets import blobs


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


def test_a_table_of_scores_is_evaluated_as_the_model_that_gave_them(tmp_path: Path) -> None:
    """The figures of `knn evaluate STORE --model M`, from the scores of M in any form, to the digits of the table."""
    rows = blobs()
    train_classifier(rows, tmp_path / "m")
    write_store(tmp_path / "rows.h5", rows)
    table = replace(Classifier(tmp_path / "m").score(rows), truth=rows.subgroup)
    logs = table.log_likelihood - special.logsumexp(table.log_likelihood, axis=1, keepdims=True)

    def figures(*arguments: object) -> dict[str, list[float]]:
        run = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--json", "--draws", "20"])
        assert run.exit_code == 0, run.output
        return [json.loads(line)["figures"] for line in run.stdout.splitlines()]

    expected = figures(tmp_path / "rows.h5", "--model", tmp_path / "m")[0]
    order = np.random.default_rng(0).permutation(len(rows))
    columns = ["c", "a", "b"]  # in another order than theirs
    for name, scores in {
        "logs.tsv": table.log_likelihood + np.arange(len(rows))[:, None],
        "posteriors.csv": np.exp(logs),
        "llr.tsv": detection_llr(logs),
    }.items():
        shuffled = replace(table, log_likelihood=scores).take(order).restrict(columns)
        with (tmp_path / name).open("w") as file:
            write_score_table(shuffled, file)
    found = figures(tmp_path / "logs.tsv", tmp_path / "llr.tsv")
    assert len(found) == 2
    for model in [*found, *figures(tmp_path / "posteriors.csv")]:
        for figure, values in expected.items():
            np.testing.assert_allclose(model[figure], values, atol=2e-3, err_msg=figure)


def test_tables_that_cannot_be_evaluated(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("name\tx\ty\nr1\t1\t0\nr2\t0\t3\n")
    best = "file\tstart\tend\tlabel\tprobability\tlabel_2\tprobability_2\nr\t0\t1\tx\t1\ty\t0\n"
    (tmp_path / "best.tsv").write_text(best)
    (tmp_path / "keys.tsv").write_text("name\tlabel\nr1\tx\nr2\ty\n")
    keyed = ["evaluate", str(tmp_path / "a.tsv"), "--keys", str(tmp_path / "keys.tsv"), "--draws", "0"]
    run = CliRunner().invoke(app, [*keyed, "-o", str(tmp_path / "figures.tex")])
    assert run.exit_code == 0 and "Accuracy & 100.0 \\%" in (tmp_path / "figures.tex").read_text(), run.stderr
    run = CliRunner().invoke(app, [*keyed, "--report", str(tmp_path / "report")])
    assert run.exit_code == 0 and (tmp_path / "report" / "report.html").is_file(), run.stderr
    for arguments, sentence in (
        (["a.tsv"], "have no true labels"),
        (["best.tsv"], "has the most probable labels alone"),
        (["a.tsv", "--model", "language"], "--model means nothing to tables of scores"),
        (["a.tsv", "rows.h5"], "rows.h5 is no table of scores"),
        (["rows.h5", "--keys", str(tmp_path / "keys.tsv")], "rows.h5 is no table of scores"),
        (["missing.tsv"], "missing.tsv"),
    ):
        paths = [str(tmp_path / part) if part.endswith((".tsv", ".h5")) else part for part in arguments]
        run = CliRunner().invoke(app, ["evaluate", *paths])
        assert run.exit_code in (1, 2) and sentence in " ".join(run.stderr.split()), (arguments, run.stderr)


def test_tables_are_known_by_what_they_hold_and_files_without_folders(tmp_path: Path) -> None:
    """A table of any name; true labels of `talk` belong to `a/talk.wav`, but to no recording that shares its name."""
    (tmp_path / "scores.out").write_text("file\tx\ty\na/talk.wav\t1\t0\nb/rec.1\t0\t3\nb/two.wav\t0\t3\n")
    (tmp_path / "keys").write_text("talk x\nrec.1 y\nc/two.wav x\nd/two.mp3 y\n")
    run = CliRunner().invoke(
        app, ["evaluate", str(tmp_path / "scores.out"), "--keys", str(tmp_path / "keys"), "--draws", "0", "--json"]
    )
    assert run.exit_code == 0, run.stderr
    assert json.loads(run.stdout)["figures"]["accuracy"][0] == 1
    assert json.loads(run.stdout)["rows"] == 2


def test_tables_of_one_name_in_two_folders(tmp_path: Path) -> None:
    """Nothing is written beside them."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.tsv").write_text("name\tlabel\tx\ty\nr1\tx\t1\t0\nr2\ty\t0\t3\n")
    paths = [str(tmp_path / folder / "s.tsv") for folder in ("a", "b")]
    run = CliRunner().invoke(app, ["evaluate", *paths, "--json", "--draws", "0"])
    assert run.exit_code == 0 and len(run.stdout.splitlines()) == 2, run.stderr
    assert [path.name for path in sorted(tmp_path.rglob("*")) if path.is_file()] == ["s.tsv", "s.tsv"]
    run = CliRunner().invoke(app, ["evaluate", *paths, "--json", "-o", str(tmp_path / "x.tex")])
    assert run.exit_code == 1 and "--json and the suffix" in run.stderr
