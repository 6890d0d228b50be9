"""UEM: regions to score, and broken files named by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.formats.uem import read_uem


def test_regions_are_joined_and_broken_lines_named(tmp_path: Path) -> None:
    (tmp_path / "a.uem").write_text(";; scored\none 1 0.0 5.0\none 1 4.0 9.5\ntwo NA 1 2\n")
    found = read_uem(tmp_path / "a.uem")
    assert [(span.start, span.end) for span in found["one"]] == [(0, 9.5)] and found["two"].duration() == 1
    for text, sentence in (
        ("one 1 0.0\n", "Line 1"),
        ("my one 0 1 10\n", "5 fields"),
        (";;\n", "nothing"),
        ("one 1 5 2\n", "from 5 to 2"),
        ("one 1 a b\n", "Line 1"),
    ):
        (tmp_path / "b.uem").write_text(text)
        with pytest.raises(KnnError, match=sentence):
            read_uem(tmp_path / "b.uem")
