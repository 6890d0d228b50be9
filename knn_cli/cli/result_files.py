"""Files of results, in the form that their suffix says: tab-separated or comma-separated values, JSON, JSON lines."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO, cast

from knn_cli.core.atomic import replacing_text
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from knn_cli.core.output_records import OutputTask

Form = Literal["tsv", "csv", "json", "jsonl"]
# The suffixes "" and ".txt" say only that it is text: JSON lines where they are asked for.
SUFFIXES: dict[str, Form] = {
    **{"": "tsv", ".txt": "tsv", ".tsv": "tsv", ".csv": "csv"},
    **{".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"},
}


def form_of(out: Path | None, as_json: bool) -> Form:
    """The form of a file of results, or of stdout where there is none.

    Raises
    ------
    KnnError
        For a suffix that says no form, and for one of a table where JSON is asked for.
    """
    suffix = "" if out is None else out.suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(filter(None, SUFFIXES))
        raise KnnError(f"The suffix of {out} names no format of results.", f"Known: {known}.")
    form = SUFFIXES[suffix]
    if not as_json or form in ("json", "jsonl"):
        return form
    if suffix in ("", ".txt"):
        return "jsonl"
    raise KnnError(f"--json and the suffix of {out} cannot be combined.", "Choose one of them.")


def is_json(form: Form) -> bool:
    """Whether a form is made of JSON lines; else it is made of tab-separated ones."""
    return form in ("json", "jsonl")


@contextmanager
def writing(out: Path | None, form: Form, task: OutputTask | None = None) -> Iterator[TextIO]:
    """Yield a stream that takes JSON lines or tab-separated lines, and writes them to a file, or stdout, in a form.

    The file replaces an older one if the block succeeds, see `core.atomic.replacing_text`.
    """
    if out is None:
        yield sys.stdout
        return
    with replacing_text(out, task=task) as file:
        if form in ("tsv", "jsonl"):
            yield file
            return
        lines = _Lines(file, form)
        yield cast(TextIO, lines)
        lines.end()


class _Lines:
    """Takes lines as a text file does, and writes them as comma-separated values, or as one JSON list."""

    def __init__(self, file: TextIO, form: Form) -> None:
        self._file, self._form = file, form
        self._rows = csv.writer(file, lineterminator="\n")
        self._begun, self._count = "", 0

    def write(self, text: str) -> None:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if self._form == "csv":
                self._rows.writerow([cell.replace("\\\\", "\\") for cell in line.split("\t")])
            else:
                self._file.write(("[\n" if not self._count else ",\n") + line)
            self._count += 1

    def end(self) -> None:
        if self._form == "json":
            self._file.write("\n]\n" if self._count else "[]\n")
