"""Tables as text: what is not known, and text that would break a line."""

from __future__ import annotations

import io
import json
import math

from knn_cli.core.tables import Table, finite_or_none, tsv_field

TABLE = Table("t", ("name", "x"), (("a\tb\n\\", math.nan), ("c", 0.12345678)))


def test_tsv_escapes_and_rounds() -> None:
    tsv = io.StringIO()
    TABLE.write_tsv(tsv)
    assert tsv.getvalue() == "name\tx\na\\tb\\n\\\\\t\nc\t0.123457\n"


def test_json_keeps_values_and_says_null() -> None:
    text = io.StringIO()
    TABLE.write_json(text)
    assert json.loads(text.getvalue())["rows"] == [{"name": "a\tb\n\\", "x": None}, {"name": "c", "x": 0.12345678}]


def test_finite_or_none() -> None:
    assert [finite_or_none(value) for value in (math.inf, -math.inf, math.nan, None, 1.5, 2, "a")] == [
        *[None] * 4,
        1.5,
        2,
        "a",
    ]


def test_tsv_field_has_no_line_breaks() -> None:
    assert tsv_field("a\r\nb\tc\\") == "a\\r\\nb\\tc\\\\"
