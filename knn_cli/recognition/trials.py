"""Lists of speaker verification trials: read with or without keys, and written with scores."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.input_files import lines_of, open_text
from knn_cli.core.lfs import check_pointer
from knn_cli.core.tables import tsv_field
from knn_cli.core.texts import split_fields, tidy
from knn_cli.core.values import Doubles
from knn_cli.recognition.speaker_decision import SpeakerDecision

_VOCABULARIES = (("1", "0"), ("target", "nontarget"), ("tgt", "imp"))  # of keys, target first
_EXPECTED = "Expected: `enrolment test`, `enrolment test target`, or `1 enrolment test` as VoxCeleb has it."

LineFormat = tuple[int, int, int]  # number of columns, column of the key (-1: none), number of the vocabulary


@dataclass(frozen=True, eq=False)
class Trials:
    """A list of trials: are the enrollment and the test recording of the same speaker?

    Attributes
    ----------
    enroll, test : tuple of str
        Distinct texts of the two columns. An enrollment of several recordings has their names separated by commas.
    pairs : (T, 2) int64
        Places of the two in `enroll` and `test`.
    is_target : (T,) bool, optional
        Whether the two are of one speaker; None where the list does not say.
    """

    enroll: tuple[str, ...]
    test: tuple[str, ...]
    pairs: NDArray[np.int64]
    is_target: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.pairs)


def read_trials(path: Path | str) -> Trials:
    """Read a list of trials: two names per line and, in all lines or none, a key before or after them.

    Columns are separated by tabs where a line has any, otherwise by white space. Keys are 1 and 0, target and
    nontarget, or tgt and imp. Blank lines are skipped.

    Parameters
    ----------
    path : Path or str

    Returns
    -------
    Trials

    Raises
    ------
    KnnError
        With its number, for a line of another format than the lines before it; for two lines that contradict each
        other; and for a file that cannot be read or holds no trials.
    """
    texts, codes, formats = _read_columns(path)
    if len(formats) > 1:
        raise KnnError(f"{path} has a key both before and after the names.", "Leave one of the two columns out.")
    ((_, key, vocabulary),) = formats
    names = [column for column in range(3) if column != key][:2]
    pairs = np.stack([np.array(codes[column], dtype=np.int64) for column in names], axis=1)  # (T, 2)
    enroll, test = (tuple(texts[column]) for column in names)
    if key < 0:
        return Trials(enroll, test, pairs)
    target_keys = np.array([text.lower() == _VOCABULARIES[vocabulary][0] for text in texts[key]])
    is_target = target_keys[np.array(codes[key], dtype=np.int64)]
    numbers = pairs[:, 0] * len(test) + pairs[:, 1]
    if len(both := np.intersect1d(numbers[is_target], numbers[~is_target])):
        first, second = enroll[both[0] // len(test)], test[both[0] % len(test)]
        message = f"{path} says both of {first} and {second}: that they are of one speaker, and of two."
        raise KnnError(message, "Leave one of the lines out.")
    return Trials(enroll, test, pairs, is_target)


def _read_columns(
    path: Path | str,
) -> tuple[tuple[dict[str, int], ...], tuple[array[int], ...], set[LineFormat]]:
    """The distinct texts of each column with their numbers, each line's numbers, and the formats that all lines fit."""
    texts: tuple[dict[str, int], ...] = ({}, {}, {})
    codes = (array("q"), array("q"), array("q"))
    formats: set[LineFormat] = set()
    check_pointer(path)
    try:
        with TextIOWrapper(open_text(path, "a list of trials"), encoding="utf-8-sig") as file:
            for number, line in enumerate(lines_of(file, path, "a list of trials"), start=1):
                fields = (
                    [tidy(field) for field in line.split("\t")] if "\t" in line.strip() else split_fields(tidy(line))
                )
                if not fields or not any(fields):
                    continue
                possible = _possible_formats(fields)
                if not possible:
                    raise KnnError(f"Line {number} of {path} is not a trial.", _EXPECTED)
                formats = possible & formats if codes[0] else possible
                if not formats:
                    raise KnnError(f"Line {number} of {path} has another format than the lines before it.", _EXPECTED)
                for text, numbers, column in zip(fields, texts, codes, strict=False):
                    column.append(numbers.setdefault(text, len(numbers)))
    except OSError as error:
        raise KnnError(f"{path} cannot be read: {error.strerror}.", "Give the path of a list of trials.") from error
    except UnicodeDecodeError as error:
        raise KnnError(f"{path} is not a text file.", "Give the path of a list of trials.") from error
    if not formats:
        raise KnnError(f"{path} holds no trials.", _EXPECTED)
    return texts, codes, formats


def _possible_formats(fields: Sequence[str]) -> set[LineFormat]:
    """The formats that a line may have."""
    if not all(fields):
        return set()
    if len(fields) == 2:
        return {(2, -1, -1)}
    if len(fields) != 3:
        return set()
    return {(3, key, n) for key in (0, 2) for n, words in enumerate(_VOCABULARIES) if fields[key].lower() in words}


def write_trial_scores(trials: Trials, scores: Doubles, file: TextIO, decision: SpeakerDecision | None = None) -> None:
    """Write a tab-separated table with a header: enrol, test, score, and target (1 or 0) where it is known.

    Parameters
    ----------
    trials : Trials
    scores : (T,) float64
        In the order of the list.
    file : text file
    decision : SpeakerDecision, optional
        Adds the columns llr, probability (of the same speaker, at even odds) and verdict (same or different).
    """
    columns = [*("enrol", "test", "score"), *([] if trials.is_target is None else ["target"])]
    file.write("\t".join([*columns, *([] if decision is None else ["llr", "probability", "verdict"])]) + "\n")
    for trial in scored_trials(trials, scores, decision):
        cells = [*map(tsv_field, (trial["enrol"], trial["test"])), f"{trial['score']:.6f}"]
        if trials.is_target is not None:
            cells.append(str(int(trial["target"])))
        if decision is not None:
            cells += [f"{trial['llr']:.3f}", f"{trial['probability']:.4f}", trial["verdict"]]
        file.write("\t".join(cells) + "\n")


def scored_trials(trials: Trials, scores: Doubles, decision: SpeakerDecision | None) -> Iterator[dict[str, Any]]:
    """Each trial with its names, score, `target` where it is known, and with a decision its meaning and the verdict.

    The verdict is "same" or "different".
    """
    keys = [None] * len(trials) if trials.is_target is None else trials.is_target.tolist()
    for (enroll, test), score, key in zip(trials.pairs.tolist(), scores.tolist(), keys, strict=True):
        trial = {"enrol": trials.enroll[enroll], "test": trials.test[test], "score": score}
        if key is not None:
            trial["target"] = key
        if decision is not None:
            trial |= {**decision.evidence(score), "verdict": "same" if decision.is_same(score) else "different"}
        yield trial
