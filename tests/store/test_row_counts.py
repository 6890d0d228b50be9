"""How long rows are, and how many recordings each label has."""

from __future__ import annotations

import numpy as np

from knn_cli.core.encoded_texts import EncodedTexts
from knn_cli.store.row_counts import duration_counts, recordings_by_label, rows_by_label


def test_lengths_by_hand() -> None:
    lengths = np.array([1.0, 1.5, 12.0, 4000.0, np.nan, 5.0])
    assert duration_counts(lengths) == {
        "1-2 s": 2, "2-5 s": 0, "5-10 s": 1, "10-20 s": 1, "20-30 s": 0, "30-60 s": 0, "60-120 s": 0, "120-300 s": 0,
        "300-600 s": 0, "600-1800 s": 0, "over 1800 s": 1,
    }  # fmt: skip
    assert (
        duration_counts(np.array([np.nan])) == duration_counts(np.array([-1.0])) == duration_counts(np.zeros(0)) == {}
    )


def test_recordings_of_labels() -> None:
    labels = EncodedTexts.from_blocks([["sk", "cs", "cs", "cs", ""]])
    assert recordings_by_label(np.array([0, 0, 1, 1, 2]), labels) == {"cs": 2, "sk": 1}
    assert rows_by_label(labels) == {"cs": 3, "sk": 1}
