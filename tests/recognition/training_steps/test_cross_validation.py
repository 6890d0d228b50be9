"""Held-out recordings and folds: what is never cut, the cells that training sets share, halves of out-of-set rows."""

from __future__ import annotations

import numpy as np
import pytest

from knn_cli.core.encoded_texts import EncodedTexts
from knn_cli.core.errors import KnnError
from knn_cli.recognition.training_steps import cross_validation
from tests.helpers.embedding_sets import labelled


def test_units_are_cut_by_no_fold() -> None:
    rows = labelled()
    columns = (EncodedTexts.from_texts(one).sorted() for one in (rows.name, rows.speaker, rows.subgroup))
    whole = cross_validation.RecordingKeys.from_columns(*columns)
    for column, texts in (("recording", rows.name), ("unit", rows.speaker), ("label", rows.subgroup)):
        np.testing.assert_array_equal(getattr(whole, column)[whole.row], texts)
    keys = whole.select(whole.label != "e")
    assert keys.rows.tolist() == [6] * 24
    for part in cross_validation.train_test_splits(keys, None, fraction=0.4, seed=1):
        sides = np.where(part.trained, part.fold, -2)
        for speaker in np.unique(keys.unit):
            assert len(np.unique(sides[keys.unit == speaker])) == 1
    assert (keys.row >= 0).tolist() == (rows.subgroup != "e").tolist()
    np.testing.assert_array_equal(keys.recording[keys.row[keys.row >= 0]], rows.name[rows.subgroup != "e"])


def test_the_cells_of_a_cross_validation() -> None:
    """Six recordings of one class each side, by hand: every set is the keys that it trains on."""
    trained = np.array([True, True, True, False])
    first = cross_validation.TrainTestSplit("test", trained, ~trained, np.array([0, 1, 1, -1]))
    last = cross_validation.TrainTestSplit("", np.ones(4, bool), np.zeros(4, bool), np.array([0, 0, 1, 1]))
    cell, sets, places = cross_validation.assign_cells([first, last])
    members = [{key for key in range(4) if cell[key] in own} for own in sets]
    assert members == [{0, 1, 2}, {1, 2}, {0}, {0, 1, 2, 3}, {2, 3}, {0, 1}]
    assert places == [[0, 1, 2], [3, 4, 5]]


def test_halves_of_out_of_set_rows_share_no_label_where_they_can() -> None:
    def halved(rows: list[tuple[str, str, str]], field: int, seed: int = 0) -> tuple[list[set[str]], bool]:
        """Of rows of (recording, unit, label); what the two halves have of one of these."""
        columns = [EncodedTexts.from_blocks([one]).sorted() for one in zip(*rows, strict=True)]
        keys = cross_validation.RecordingKeys.from_columns(*columns)
        half, by_label = cross_validation.halve_out_of_set(keys, seed)
        row = keys.spread(half.astype(np.int8))
        for place in (0, 1):  # neither a recording nor a unit is ever cut
            assert not {one[place] for one, at in zip(rows, row, strict=True) if at} & {
                one[place] for one, at in zip(rows, row, strict=True) if not at
            }
        return [{one[field] for one, at in zip(rows, row, strict=True) if at == side} for side in (0, 1)], by_label

    many = [
        (f"{label}{n}", f"{label}s", label)
        for label, rows in zip("abcd", (6, 3, 2, 1), strict=True)
        for n in range(rows)
    ]
    found = [halved(many, 2, seed) for seed in range(8)]
    assert all(by_label and {"a"} in sides and {"b", "c", "d"} in sides for sides, by_label in found)
    assert {sides.index({"a"}) for sides, _ in found} == {0, 1}  # the seed says which half chooses
    # b and c share a recording, so they are one; a and d share a speaker.
    joint = [("r1", "s1", "a"), ("r2", "s2", "b"), ("r2", "s2", "c"), ("r3", "s1", "d")]
    sides, by_label = halved(joint, 2)
    assert by_label and sorted(map(sorted, sides)) == [["a", "d"], ["b", "c"]]
    # All are joined: then recordings, or speakers, are halved.
    sides, by_label = halved([(f"r{n}", f"s{n // 2}", "ab"[n % 2]) for n in range(8)], 0)
    assert not by_label and sorted(map(len, sides)) == [4, 4]
    with pytest.raises(KnnError, match="single"):
        halved([("r1", "s1", "a"), ("r1", "s1", "a")], 0)


def test_columns_of_texts_by_blocks() -> None:
    texts = np.array(["b", "", "ab", "b", "c" * 70, "ab"])
    for size in (1, 2, 6):
        column = EncodedTexts.from_blocks(texts[first : first + size].tolist() for first in range(0, 6, size)).sorted()
        assert column.values.tolist() == ["", "ab", "b", "c" * 70] and column.codes.dtype == np.int32
        np.testing.assert_array_equal(column.values[column.codes], texts)
    assert len(EncodedTexts.from_blocks([]).sorted()) == 0
