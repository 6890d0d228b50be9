"""What values do at a prompt is what commands do: answers, tables and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization, ScoreTable, Turn
from knn_cli.formats.turn_readers import read_references
from knn_cli.recognition.score_tables import read_score_table

TURNS = Diarization((Turn(0.0, 2.5, "a", 0.9), Turn(2.0, 4.25, "b")), "talk", {"a": np.ones(3)}, {"a": 2.0}, 5.0)


def scores(truth: list[str]) -> ScoreTable:
    logs = np.log([[0.7, 0.2, 0.1], [0.25, 0.35, 0.4], [0.1, 0.8, 0.1]]) + np.array([[3.0], [-2.0], [0.0]])
    names, times = np.array(["x", "y", "z"]), np.array([0.0, 1.5, np.nan])
    return ScoreTable(("p", "q", "r"), logs, names, times, times + 1, np.array(truth, dtype=np.str_))


def test_answers_and_probabilities() -> None:
    table = scores([])
    np.testing.assert_allclose(table.probabilities, [[0.7, 0.2, 0.1], [0.25, 0.35, 0.4], [0.1, 0.8, 0.1]])
    assert table.best.tolist() == ["p", "r", "q"]
    rejecting = replace(table, threshold=0.0)  # detection LLR of r in the second row: log(0.4 / 0.3)
    assert rejecting.best.tolist() == ["p", "r", "q"]
    assert replace(table, threshold=0.3).best.tolist() == ["p", "unknown", "q"]
    silent = replace(table, log_likelihood=np.where([[False], [True], [False]], np.nan, table.log_likelihood))
    assert silent.best.tolist() == ["p", "zxx", "q"] and np.isnan(silent.probabilities[1]).all()


@pytest.mark.parametrize("truth", [[], ["p", "", "q"]])
def test_a_table_that_is_written_is_read_again(tmp_path: Path, truth: list[str]) -> None:
    table = scores(truth)
    frame = table.to_frame()
    assert frame.columns.tolist() == ["name", "start", "end", *(["label"] if truth else []), "p", "q", "r"]
    table.to_csv(tmp_path / "scores.csv")
    again = read_score_table(tmp_path / "scores.csv")
    np.testing.assert_allclose(again.probabilities, table.probabilities)
    assert again.labels == table.labels and again.name.tolist() == ["x", "y", "z"] and again.truth.tolist() == truth
    np.testing.assert_array_equal(again.start, table.start)


@pytest.mark.parametrize("suffix", [".rttm", ".TextGrid", ".eaf", ".csv", ".srt"])
def test_turns_that_are_saved_are_read_again(tmp_path: Path, suffix: str) -> None:
    TURNS.save(tmp_path / f"talk{suffix}")
    (turns,) = read_references(tmp_path / f"talk{suffix}").values()
    found = [(segment.start, segment.end, label) for segment, _, label in turns.itertracks(yield_label=True)]
    assert found == [(0.0, 2.5, "a"), (2.0, 4.25, "b")]


def test_short_forms_and_refusals(tmp_path: Path) -> None:
    assert repr(TURNS) == "<Diarization of 'talk', 5.0 s: 2 turns, 2 speakers>"
    assert TURNS.to_rttm().splitlines()[1] == "SPEAKER talk 1 2.000 2.250 <NA> <NA> b <NA> <NA>"
    with pytest.raises(KnnError, match="format"):
        TURNS.save(tmp_path / "talk.xyz")
    with pytest.raises(KnnError):
        scores([]).to_csv(tmp_path / "nowhere" / "scores.csv")
