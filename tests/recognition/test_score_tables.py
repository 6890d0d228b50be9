"""Tables of scores: what is written is read, what others write is read, and what is wrong is said."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.values import ScoreTable
from knn_cli.evaluation.metrics import detection_llr
from knn_cli.recognition.score_tables import (
    is_score_table,
    read_keys,
    read_score_table,
    read_scores,
    write_score_table,
)


def text(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "scores.tsv"
    path.write_text(content, encoding="utf-8")
    return path


def test_written_is_read(tmp_path: Path) -> None:
    table = ScoreTable(
        labels=("cs", "Northern Moravian"),
        log_likelihood=np.asarray([[0.5, -1.25], [2.0, -3.0]]),
        name=np.asarray(["=a", "b"]),
        start=np.asarray([0.0, np.nan]),
        end=np.asarray([1.5, np.nan]),
        truth=np.asarray(["cs", ""]),
    )
    stream = io.StringIO()
    write_score_table(table, stream)
    read = read_score_table(text(tmp_path, stream.getvalue()))
    assert read.labels == table.labels
    for field in ("log_likelihood", "name", "start", "end", "truth"):
        np.testing.assert_array_equal(getattr(read, field), getattr(table, field))


def test_rows_without_speech_are_read_as_they_are_written(tmp_path: Path) -> None:
    scores = np.log([[0.75, 0.25], [np.nan, np.nan]])
    table = ScoreTable(("cs", "sk"), scores, np.asarray(["a", "b"]), np.zeros(2), np.ones(2))
    stream = io.StringIO()
    write_score_table(table, stream)
    assert np.isnan(read_score_table(text(tmp_path, stream.getvalue())).log_likelihood).tolist() == [
        [False] * 2,
        [True] * 2,
    ]
    table.to_csv(tmp_path / "scores.csv")
    read, kind = read_scores(tmp_path / "scores.csv")
    assert kind == "posteriors" and read.best.tolist() == ["cs", "zxx"]
    with pytest.raises(KnnError, match="no scores in any row"):
        read_score_table(text(tmp_path, "name\ta\tb\nx\t\t\n"))


def test_what_begins_as_a_table_of_scores(tmp_path: Path) -> None:
    for content in ('{"file": "x", "llr": {}}', '[\n{"file": "x", "llr": {}}\n]', "name\ta\tb\n"):
        assert is_score_table(text(tmp_path, content))
    assert not is_score_table(text(tmp_path, "a\tb\n1\t2\n"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_opened_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("it was opened"))
    assert not is_score_table(pipe)


def test_tables_of_others(tmp_path: Path) -> None:
    nist = read_score_table(text(tmp_path, "segmentid\tafr-afr\tara-aeb\nx.sph\t1\t-2e1\n"))
    assert nist.labels == ("afr-afr", "ara-aeb") and nist.name.tolist() == ["x.sph"] and not len(nist.truth)
    assert nist.log_likelihood.tolist() == [[1.0, -20.0]] and np.isnan(nist.start).all()
    csv = read_score_table(text(tmp_path, 'A,"B, c",File,Language\n1,2,r,A\n'))
    assert csv.labels == ("A", "B, c") and csv.truth.tolist() == ["A"]


def test_json_lines_of_classify(tmp_path: Path) -> None:
    logs = np.log([[0.7, 0.2, 0.1], [0.001, 0.009, 0.99]])
    lines = [
        json.dumps({"file": f"f{row}", "start": 0.0, "end": 2.0, "llr": dict(zip("abc", llr.tolist(), strict=True))})
        for row, llr in enumerate(np.round(detection_llr(logs), 4))
    ]
    silent = json.dumps({"file": "f2", "start": None, "end": None, "llr": None})
    table = read_score_table(text(tmp_path, "\n".join([*lines, silent])))
    np.testing.assert_allclose(table.log_likelihood[:2], logs, atol=1e-3)
    assert np.isnan(table.log_likelihood[2]).all() and table.end.tolist()[:2] == [2.0, 2.0]
    priors = np.round(detection_llr(logs, [0.8, 0.1, 0.1]), 4)
    line = json.dumps({"file": "f", "llr": dict(zip("abc", priors[0].tolist(), strict=True))})
    with pytest.raises(KnnError, match="under priors"):
        read_score_table(text(tmp_path, line))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name\ta\tb\nx\t1\tnan\n", "Line 2 .* b is 'nan', which is no score"),
        ("name\ta\tb\nx\t1\t2\ny\t1\tCzech\n", "Line 3 .* b is 'Czech'"),
        ("a\tb\n1\t2\n", "no column name"),
        ("name\ta\tb\n", "no rows"),
        ("", "no rows"),
        ("name\ta\nx\t1\n", "1 columns of labels"),
        ("name\ta\ta\nx\t1\t2\n", "two columns a"),
        ('{"file": "x", "llr": {"a": 1, "b": 2}}\n{"file": ', "Line 2 .* not JSON"),
        ('{"file": "x", "llr": {"a": 1, "b": -1}}\n{"file": "y", "llr": {"a": 1, "c": -1}}', "Row 2 .* other labels"),
        ('{"file": "x", "embedding": [1]}', "Line 1 .* no scores|0 columns"),
    ],
)
def test_refusals(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(KnnError, match=message):
        read_score_table(text(tmp_path, content))


def test_keys(tmp_path: Path) -> None:
    assert read_keys(text(tmp_path, "segmentid\tlanguage_code\nx\tafr-afr\ny\tara-aeb\n")) == {
        "x": "afr-afr",
        "y": "ara-aeb",
    }
    with pytest.raises(KnnError, match=r"Line 3 .* another label for 'x'"):
        read_keys(text(tmp_path, "name,label\nx,a\nx,b\n"))


def test_true_labels_of_kaldi(tmp_path: Path) -> None:
    assert read_keys(text(tmp_path, "rec-1 1-1\nrec-2  2-1\n")) == {"rec-1": "1-1", "rec-2": "2-1"}
    with pytest.raises(KnnError, match="no table of true labels"):
        read_keys(text(tmp_path, "rec-1\nrec-2\n"))


def test_posteriors_that_were_not_rounded_keep_their_value(tmp_path: Path) -> None:
    table = read_score_table(text(tmp_path, "name\tx\ty\na\t1e-30\t1\nb\t0\t1\n"))
    np.testing.assert_allclose(table.log_likelihood, [[np.log(1e-30), 0], [np.log(1e-30), 0]])
