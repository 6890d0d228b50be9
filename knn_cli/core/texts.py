"""Names, labels and text files as people and programs write them: byte order marks, blanks around, composed letters.

Two spellings that look alike are one: letters are composed (NFC, as macOS's file names are not), and white space around
a text is no part of it.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from knn_cli.core.errors import KnnError
from knn_cli.core.input_files import read_bytes
from knn_cli.core.lfs import check_pointer
from knn_cli.core.visible_text import cell_text, visible

_BYTE_ORDER_MARK = "\ufeff"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LINE_END = re.compile(r"\r\n|\n|\r")
_AROUND = re.compile(r"^[\s\ufeff]+|[\s\ufeff]+$")
_ASCII_SPACE = re.compile(r"[ \t]+")


def tidy(text: str) -> str:
    r"""Return a name or label in composed letters (NFC), without white space and byte order marks around it.

    Examples
    --------
    >>> tidy(" de\u00a0"), tidy("e\u0301va") == "\u00e9va"
    ('de', True)
    """
    if not text.isascii():
        return _AROUND.sub("", unicodedata.normalize("NFC", text))
    return text.strip()


def path_text(name: str) -> str:
    r"""Return a part of a path as a label: tidy, with bytes that are no UTF-8 as `\xe9`, so that names differ."""
    return visible(tidy(name))


def read_text(path: Path | str, what: str, *, error: type[KnnError] = KnnError) -> str:
    """Read a text file, or what comes out of a pipe, in UTF-8, with or without a byte order mark.

    Parameters
    ----------
    path : Path or str
    what : str
        What it should be, with its article, for the message: "an RTTM file".
    error : type
        Of what is raised.

    Raises
    ------
    KnnError
        If the file cannot be read, is in another encoding (the line is named), or holds a zero byte.
    """
    raw = read_bytes(path, what, error=error)
    check_pointer(path, raw, error=error)
    if raw.startswith(_UTF16_MARKS):
        raise error(f"{path} is text in UTF-16.", "Save it as UTF-8.")
    if (place := raw.find(b"\0")) >= 0:
        line = raw.count(b"\n", 0, place) + 1
        raise error(f"Line {line} of {path} holds a zero byte, so it is not text.", f"Give the path of {what}.")
    try:
        return raw.decode("utf-8").removeprefix(_BYTE_ORDER_MARK)
    except UnicodeDecodeError as reason:
        line = raw.count(b"\n", 0, reason.start) + 1
        hint = (
            f"Save it as UTF-8, if it is {what}: `iconv -f WINDOWS-1250 -t UTF-8 OLD > NEW`, with WINDOWS-1252 for "
            "languages of Western Europe. It is not guessed, since a wrong guess changes names."
        )
        raise error(f"Line {line} of {path} is not UTF-8 text.", hint) from reason


def split_lines(text: str) -> list[str]:
    """Return the lines of a text: only line feeds and carriage returns end one, unlike in `str.splitlines`.

    A byte order mark in front of a line is left out: files joined by `cat` have them inside.
    """
    return [line.removeprefix(_BYTE_ORDER_MARK) for line in _LINE_END.split(text)]


def read_lines(path: Path | str, what: str, *, error: type[KnnError] = KnnError) -> list[str]:
    """Read the lines of a text file; see `read_text` and `split_lines`."""
    return split_lines(read_text(path, what, error=error))


def split_fields(line: str) -> list[str]:
    """Return the fields of a line that are separated by blanks and tabs; a no-break space is part of a field."""
    return _ASCII_SPACE.split(line.strip(" \t\v\f")) if line.strip(" \t\v\f") else []


def read_table(
    path: Path | str, what: str, *, keep_case: bool = False
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a small table with a header, separated by tabs, semicolons or commas, whichever the header has.

    Parameters
    ----------
    path : Path or str
    what : str
        What it should be, with its article, for the message.
    keep_case : bool
        Keep the capital letters of the header, whose columns are then labels.

    Returns
    -------
    columns : list of str
        The header, in small letters unless they are kept.
    rows : list of (int, list of str)
        The number of each line and its cells, as many as there are columns. All texts are tidy; blank lines are passed
        over, and cells that a line lacks are "".

    Raises
    ------
    KnnError
        As `read_text`; for two columns of one name, and a line with more cells than the header.
    """
    text = read_text(path, what)
    head = split_lines(text)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in head else ";" if ";" in head else ",")
    lines: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            cells = [cell_text(tidy(cell)) for cell in row]
            if any(cells):
                lines.append((reader.line_num, cells))
    except csv.Error as error:
        raise KnnError(f"{path}, line {reader.line_num}, is not {what}: {error}.", "Correct the line.") from error
    header = lines[0][1] if lines else []
    columns = header if keep_case else [cell.lower() for cell in header]
    refuse_repeated(columns, path)
    for number, cells in lines[1:]:
        if any(cells[len(columns) :]):
            hint = "Put cells that hold the separator between quotes."
            raise KnnError(f"Line {number} of {path} has {len(cells)} cells, the header {len(columns)}.", hint)
    width = len(columns)
    return columns, [(number, (cells + [""] * width)[:width]) for number, cells in lines[1:]]


def refuse_repeated(columns: Sequence[str], path: Path | str, *, error: type[KnnError] = KnnError) -> None:
    """Raise KnnError for a table in which two columns have one name, so that it is not known which one counts."""
    twice = next((name for place, name in enumerate(columns) if name and name in columns[:place]), None)
    if twice is not None:
        raise error(f"{path} has two columns {twice}.", "Leave one of them out.")


def similar(word: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The known words that a word is nearly, the nearest first, at most so many; capital letters do not count.

    Examples
    --------
    >>> similar("Langauge", ["language", "voice"]), similar("xyz", ["language"])
    (['language'], [])
    """
    from difflib import get_close_matches

    spellings = {name.casefold(): name for name in sorted(known)}
    return [spellings[key] for key in get_close_matches(word.casefold(), list(spellings), most)]


def suggestion(words: Sequence[str]) -> str:
    """The question whether one of these words was meant, as the beginning of a hint; "" for none.

    Examples
    --------
    >>> suggestion(["cs", "sk"])
    'Did you mean cs or sk? '
    """
    return f"Did you mean {' or '.join(words)}? " if words else ""


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> str:
    """Which of the known words were probably meant, as the beginning of a hint; "" where none is near.

    Examples
    --------
    >>> did_you_mean("langauge", ["language", "voice"]), did_you_mean("xyz", ["language"])
    ('Did you mean language? ', '')
    """
    return suggestion(similar(word, known, most))
