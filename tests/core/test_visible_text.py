"""Names of others in outputs: nothing hidden, nothing lost, no formula, and back again."""

from __future__ import annotations

import csv
import io
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knn_cli.core.tables import tsv_field
from knn_cli.core.visible_text import cell, cell_text, json_text, readable, visible, visible_lines

ANY = st.text(st.characters())  # lone surrogates included
LATIN_1 = b"caf\xe9"


def test_names_that_are_no_utf8_stay_two() -> None:
    names = [os.fsdecode(name) for name in (LATIN_1, b"caf\xe8", "café".encode(), b"\xc2\x9b", b"\x9b")]
    assert [readable(name) for name in names[:3]] == ["caf\\xe9", "caf\\xe8", "café"]
    assert [visible(name) for name in names[3:]] == ["\\u009b", "\\x9b"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b]0;title\x07", "a\\x1b]0;title\\x07"),
        ("two\nlines\r\tand", "two\\nlines\\r\\tand"),
        ("nul\0", "nul\\x00"),
        ("\u202egpj.exe\u2066", "\\u202egpj.exe\\u2066"),
        ("c1 \x9b31m", "c1 \\u009b31m"),
        ("line\u2028 \ufeff", "line\\u2028 \\ufeff"),
        ("plain, Čeština, 日本語, 👩\u200d🔬, می\u200cخواهم", None),
    ],
)
def test_hidden_characters_are_shown(name: str, shown: str | None) -> None:
    assert visible(name) == (name if shown is None else shown)


@given(ANY)
def test_what_is_shown_is_one_line_of_utf8_and_stays(name: str) -> None:
    shown = visible(name)
    assert len(shown.splitlines()) <= 1 and shown.encode("utf-8") and visible(shown) == shown if name else not shown
    assert visible_lines(name).count("\n") == name.count("\n")


@given(st.recursive(ANY | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(ANY, inner)))
def test_json_reads_back_and_hides_nothing(value: object) -> None:
    for settings in ({}, {"indent": 1}):
        written = json_text(value, **settings)
        assert visible_lines(written) == written
        assert json.loads(written) == value or "\\ud" in json.dumps(value)


def test_json_names_bytes_as_all_outputs_do() -> None:
    assert json.loads(json_text({"file": os.fsdecode(LATIN_1)})) == {"file": "caf\\xe9"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text(math.nan)


@pytest.mark.parametrize("formula", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1"])
def test_formulas_are_texts(formula: str) -> None:
    assert cell(formula) == f"'{formula}" and cell(f"'{formula}") == f"''{formula}"


@pytest.mark.parametrize("number", ["-1.5", "+420", "-1e-05", "-.5"])
def test_numbers_are_numbers(number: str) -> None:
    assert cell(number) == number == tsv_field(number)


@given(ANY | st.from_regex(r"\A'{0,2}[=+@\-].*", alphabet="'=+@-1ab"))
def test_cells_give_back_their_texts(name: str) -> None:
    assert cell_text(cell(name)) == name
    file = io.StringIO()
    csv.writer(file).writerow([cell(name), "x"])
    assert not file.getvalue().lstrip('"').startswith(("=", "@"))
