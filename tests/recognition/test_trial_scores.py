"""Scored trials: every way in which they are written, and keys from a list."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.recognition.trial_scores import is_trial_scores, read_trial_scores, with_keys
from knn_cli.recognition.trials import Trials, write_trial_scores

TRIALS = Trials(("a", "b"), ("c", "d"), np.asarray([[0, 0], [0, 1], [1, 1]]), np.asarray([True, False, False]))
SCORES = np.asarray([0.5, -1.0, 0.25])


def text(tmp_path: Path, content: str, name: str = "scores.txt") -> Path:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return path


def written() -> str:
    stream = io.StringIO()
    write_trial_scores(TRIALS, SCORES, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (written(), True),
        ("a c 0.5\na d -1\n\nb d 2.5e-1\n", False),
        (
            '{"enrol": "a", "test": "c", "score": 0.5, "target": true}\n'
            '{"enrol": "a", "test": "d", "score": -1.0, "target": false}\n'
            '{"enrol": "b", "test": "d", "score": 0.25, "target": false}\n',
            True,
        ),
    ],
)
def test_every_way(tmp_path: Path, content: str, keys: bool) -> None:
    path = text(tmp_path, content)
    assert is_trial_scores(path)
    trials, scores = read_trial_scores(path)
    assert (trials.enroll, trials.test) == (TRIALS.enroll, TRIALS.test)
    np.testing.assert_array_equal(trials.pairs, TRIALS.pairs)
    np.testing.assert_array_equal(scores, SCORES)
    assert (trials.is_target is not None) == keys
    if trials.is_target is not None:
        np.testing.assert_array_equal(trials.is_target, TRIALS.is_target)


def test_a_table_of_labels_is_no_list_of_trials(tmp_path: Path) -> None:
    assert not is_trial_scores(text(tmp_path, "name\ta\tb\nx\t1\t2\n"))
    assert not is_trial_scores(text(tmp_path, '{"file": "x", "llr": {"a": 1, "b": 2}}\n'))


def test_keys_of_a_list(tmp_path: Path) -> None:
    trials, _ = read_trial_scores(text(tmp_path, "a c 0.5\na d -1\n"))
    keyed = with_keys(trials, text(tmp_path, "0 a d\n1 a c\n0 x y\n", "list"))
    assert keyed.is_target is not None and keyed.is_target.tolist() == [True, False]
    with pytest.raises(KnnError, match="lacks 1 of the trials, first a d"):
        with_keys(trials, text(tmp_path, "1 a c\n", "list"))
    with pytest.raises(KnnError, match="does not say"):
        with_keys(trials, text(tmp_path, "a c\na d\n", "list"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a c 0.5\na d x\n", "Line 2 .* no scored trial"),
        ("a c 0.5\na c 0.5\n", "Line 2 .* repeats the trial of line 1"),
        ("enrol\ttest\tscore\ttarget\na\tb\t1\t\na\tc\t1\t1\n", "some trials only"),
        ("enrol\ttest\tscore\na\tb\tinf\n", "Line 2 .* no scored trial"),
        ("enrol\ttest\tscore\n", "no scored trials"),
        ('{"enrol": "a"}', "Line 1 .* no scored trial"),
    ],
)
def test_refusals(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(KnnError, match=message):
        read_trial_scores(text(tmp_path, content))
