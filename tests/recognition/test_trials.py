"""Lists of trials in every format, and their scores as a table."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.recognition.trials import Trials, read_trials, write_trial_scores


def listed(tmp_path: Path, text: str) -> Trials:
    path = tmp_path / "list"
    path.write_text(text, encoding="utf-8")
    return read_trials(path)


def pairs(trials: Trials) -> list[tuple[str, str]]:
    return [(trials.enroll[a], trials.test[b]) for a, b in trials.pairs.tolist()]


@pytest.mark.parametrize(
    "text",
    [
        "1 a b\n0 a c\n1 b c\n",  # VoxCeleb
        "a b 1\na c 0\n\nb c 1",
        "a b target\na c nontarget\nb c target\n",
        "a\tb\ttgt\na\tc\timp\nb\tc\ttgt\n",
        "\ufeffTarget a b\r\nnontarget a c\r\ntarget b c\r\n",
    ],
)
def test_formats_with_keys(tmp_path: Path, text: str) -> None:
    trials = listed(tmp_path, text)
    assert pairs(trials) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert trials.is_target is not None and trials.is_target.tolist() == [True, False, True]
    assert trials.enroll == ("a", "b") and trials.test == ("b", "c") and len(trials) == 3


def test_formats_without_keys_and_with_spaces(tmp_path: Path) -> None:
    trials = listed(tmp_path, "a b\na c\n")
    assert pairs(trials) == [("a", "b"), ("a", "c")] and trials.is_target is None
    assert pairs(listed(tmp_path, "my a\tmy b\n")) == [("my a", "my b")]


def test_names_that_look_like_keys(tmp_path: Path) -> None:
    """A later line settles what the first leaves open; when none does, it stays ambiguous."""
    trials = listed(tmp_path, "1 a 0\n0 a b\n")
    assert pairs(trials) == [("a", "0"), ("a", "b")]
    assert trials.is_target is not None and trials.is_target.tolist() == [True, False]
    with pytest.raises(KnnError, match="before and after"):
        listed(tmp_path, "1 a 0\n0 b 1\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1 a b\na b 1\n", 2),
        ("1 a b\n\na b\n", 3),
        ("a b\na b target\n", 2),
        ("a b target\na c 0\n", 2),
        ("1 a b\n2 a c\n", 2),
        ("a\n", 1),
        ("a b c\n", 1),
        ("a b c d\n", 1),
        ("a\t\t1\n", 1),
    ],
)
def test_mixtures_are_refused_by_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(KnnError, match=f"Line {line} of"):
        listed(tmp_path, text)


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(KnnError, match="holds no trials"):
        listed(tmp_path, "\n \n")
    with pytest.raises(KnnError, match="cannot be read"):
        read_trials(tmp_path / "none")
    (tmp_path / "b").write_bytes(b"1 a \xff\n")
    with pytest.raises(KnnError, match="not a text file"):
        read_trials(tmp_path / "b")


def test_scores_are_written_in_the_order_of_the_list(tmp_path: Path) -> None:
    trials = listed(tmp_path, "1 a b\n0 c b\n1 a d\n")
    stream = io.StringIO()
    write_trial_scores(trials, np.array([0.5, -1.25, 1 / 3]), stream)
    assert stream.getvalue() == "enrol\ttest\tscore\ttarget\na\tb\t0.500000\t1\nc\tb\t-1.250000\t0\na\td\t0.333333\t1\n"
    stream = io.StringIO()
    write_trial_scores(listed(tmp_path, "a b\n"), np.array([1.0]), stream)
    assert stream.getvalue() == "enrol\ttest\tscore\na\tb\t1.000000\n"


def test_trials_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.txt"
    path.write_text("1 eva jan\n1 jan eva\n1 eva jan\n0 eva karl\n")
    assert len(read_trials(path)) == 4
    path.write_text("1 eva jan\n0 eva karl\n0 eva jan\n")
    with pytest.raises(KnnError, match="says both of eva and jan"):
        read_trials(path)


def test_names_of_trials_are_tidy(tmp_path: Path) -> None:
    path = tmp_path / "trials.txt"
    path.write_bytes("\ufeff1 Rene\u0301 a\u00a0b\n1 Ren\u00e9 a\u00a0b\n".encode())
    found = read_trials(path)
    assert (found.enroll, found.test) == (("Ren\u00e9",), ("a\u00a0b",))
