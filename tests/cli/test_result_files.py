"""Files of results in the form that their suffix says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from knn_cli.cli import result_files
from knn_cli.core.errors import KnnError
from knn_cli.core.values import EmbeddingSet
from knn_cli.recognition.score_tables import read_score_table
from knn_cli.recognition.train_classifier import train_classifier
from knn_cli.store.writer import write_store
from tests.helpers.command import done, knn


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two classes, ten recordings each, one of which has a comma and quotes in its name; a model of it."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    names = [f'{label} "{n}", tape' if n == 0 else f"{label}-{n}" for label in ("haná", "lach") for n in range(10)]
    rows = EmbeddingSet.from_columns(
        rng.normal(size=(20, 3)) + np.repeat([[2.0, 0, 0], [-2.0, 0, 0]], 10, axis=0),
        names,
        group=["cs"] * 20,
        subgroup=["haná"] * 10 + ["lach"] * 10,
        embedder="nowhere@000000000000",
    )
    write_store(folder / "emb.h5", rows)
    train_classifier(folder / "emb.h5", folder / "m")
    return folder


@pytest.mark.parametrize(
    ("name", "as_json", "form"),
    [
        ("a.csv", False, "csv"),
        ("a.TSV", False, "tsv"),
        ("a.txt", True, "jsonl"),
        ("a", False, "tsv"),
        ("a.json", True, "json"),
        ("a.ndjson", False, "jsonl"),
    ],
)
def test_the_suffix_says_the_form(name: str, as_json: bool, form: str) -> None:
    assert result_files.form_of(Path(name), as_json) == form
    assert result_files.form_of(None, as_json) == ("jsonl" if as_json else "tsv")


@pytest.mark.parametrize(("name", "as_json"), [("a.xlsx", False), ("a.csv", True), ("a.tsv", True)])
def test_what_contradicts_itself_is_refused(name: str, as_json: bool) -> None:
    with pytest.raises(KnnError, match="suffix of a"):
        result_files.form_of(Path(name), as_json)


def test_lines_become_csv_and_one_list(tmp_path: Path) -> None:
    with result_files.writing(tmp_path / "a.csv", "csv") as file:
        file.write("file\tlabel\nC:\\\\a, b\t")
        file.write('say "cs"\n')
    assert (tmp_path / "a.csv").read_text() == 'file,label\n"C:\\a, b","say ""cs"""\n'
    for lines, expected in (([], []), (['{"a": 1}'], [{"a": 1}]), (['{"a": 1}', '{"a": 2}'], [{"a": 1}, {"a": 2}])):
        with result_files.writing(tmp_path / "a.json", "json") as file:
            for line in lines:
                file.write(line + "\n")
        assert json.loads((tmp_path / "a.json").read_text()) == expected


def test_classify_writes_what_the_suffix_says(work: Path, tmp_path: Path) -> None:
    command = ["classify", work / "emb.h5", "--model", work / "m", "-o"]
    for suffix in ("tsv", "csv", "json", "jsonl"):
        assert f"a.{suffix}: 20 rows." in done(*command, tmp_path / f"a.{suffix}").stderr
    with (tmp_path / "a.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table[1][0] == 'haná "0", tape' and len(table) == 21
    tabs = [line.split("\t") for line in (tmp_path / "a.tsv").read_text().splitlines()]
    assert table == tabs
    whole = json.loads((tmp_path / "a.json").read_text())
    assert whole == [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    listed, lines = read_score_table(tmp_path / "a.json"), read_score_table(tmp_path / "a.jsonl")
    np.testing.assert_array_equal(listed.log_likelihood, lines.log_likelihood)
    result = knn(*command, tmp_path / "a.xlsx")
    assert result.exit_code == 1 and "Known: .txt, .tsv, .csv, .json, .jsonl, .ndjson." in result.stderr


def test_figures_of_a_test_set_are_a_table_in_a_file_of_one(work: Path, tmp_path: Path) -> None:
    done("evaluate", work / "emb.h5", "--model", work / "m", "--draws", "0", "-o", tmp_path / "f.csv")
    with (tmp_path / "f.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"accuracy", "cavg", "cllr"} & {row["figure"] for row in rows} and set(rows[0]) >= {"model", "value", "low"}
    done("evaluate", work / "emb.h5", "--model", work / "m", "--draws", "0", "-o", tmp_path / "f.json")
    assert json.loads((tmp_path / "f.json").read_text())[0]["figures"]["accuracy"][0] == float(
        next(row["value"] for row in rows if row["figure"] == "accuracy")
    )


@pytest.mark.parametrize("text", ["[1, 2]", "[", "[" * 100_000])
def test_lists_that_hold_no_scores_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(KnnError, match=r"a\.json"):
        read_score_table(tmp_path / "a.json")
