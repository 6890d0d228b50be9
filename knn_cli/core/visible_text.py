r"""Texts of others - file names, labels, speakers - in a form that terminals, tables and pages can hold.

A file name is bytes. Those that are no UTF-8, which Python keeps as lone surrogates, are written as `\xe9` in every
output, so that two such names stay two. Control characters, which can move a terminal's cursor, and marks that turn the
direction of the text around them, are written as `\x1b` and `\u202e` where a format has no escapes of its own.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Control characters, marks of direction and of lines, and what XML forbids.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff]"
)
_NO_TEXT = re.compile("[\ud800-\udfff]")
_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
# How a formula begins in a spreadsheet, or such a text that `cell` has marked.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def readable(text: object) -> str:
    r"""Return a text that UTF-8 can hold: bytes of a file name that are none become `\xe9`.

    Examples
    --------
    >>> readable(b"caf\xe9".decode("utf-8", "surrogateescape"))
    'caf\\xe9'
    """
    return _NO_TEXT.sub(_escaped, str(text))


def visible(text: object) -> str:
    r"""Return a text without control characters and marks of direction, as one line: they become escapes.

    Examples
    --------
    >>> visible("a\x1b[31m\nb\u202e")
    'a\\x1b[31m\\nb\\u202e'
    """
    text = str(text)
    return text if text.isascii() and text.isprintable() else _HIDDEN.sub(_escaped, text)


def visible_lines(text: str) -> str:
    """Like `visible` for a text of several lines: line feeds stay."""
    return "\n".join(map(visible, text.split("\n")))


def json_text(value: Any, **settings: Any) -> str:
    r"""Return a value as JSON that shows what it holds: hidden characters are escaped, and NaN is a ValueError.

    Parameters
    ----------
    value : dict, list, str, number, bool or None
    **settings
        Of `json.dumps`.

    Examples
    --------
    >>> json_text({"file": "a\u202eb"})
    '{"file": "a\\u202eb"}'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **settings)
    return text if text.isascii() and "\x7f" not in text else _HIDDEN.sub(_json_escape, text)


def cell(text: str) -> str:
    """Return a text as a cell that no spreadsheet takes for a formula: one that begins like a formula gets a `'`.

    `=`, `+`, `-`, `@`, tabs and line breaks begin formulas; numbers are left as they are. `cell_text` is the inverse.

    Examples
    --------
    >>> cell("=1+1"), cell("-1.5"), cell("anna")
    ("'=1+1", '-1.5', 'anna')
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def cell_text(text: str) -> str:
    """Return the text of a cell of `cell`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return _SHORT.get(match[0]) or (f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}")


def _json_escape(match: re.Match[str]) -> str:
    """A character inside a JSON string, as the string's own escape; line feeds between values stay."""
    if match[0] == "\n":
        return match[0]
    return _escaped(match).replace("\\", "\\\\") if _NO_TEXT.match(match[0]) else f"\\u{ord(match[0]):04x}"
