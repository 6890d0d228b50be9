"""Options about labels: lists `cs,sk` and `cs=3,de=1`, in composed letters as labels are, and their names."""

from __future__ import annotations

from typing import Annotated

from knn_cli.cli.options import OUTPUT, valued
from knn_cli.core.errors import KnnError
from knn_cli.core.texts import tidy

NamesOption = Annotated[
    str | None,
    valued("--names", metavar="FILE", panel=OUTPUT, help="Take names of labels from this table, or czech-dialects."),
]


def listed(text: str) -> list[str]:
    """Return the parts of a comma-separated text."""
    return [tidy(part) for part in text.split(",") if tidy(part)]


def parse_languages(text: str) -> list[str] | None:
    """Return the languages of `--languages`, None for an empty text."""
    return listed(text) if text else None


def parse_priors(text: str) -> dict[str, float] | None:
    """Return `cs=3,de=1` as numbers, None for an empty text. KnnError for anything else, and a label given twice."""
    priors: dict[str, float] = {}
    for part in listed(text):
        label, _, number = part.rpartition("=")
        label = tidy(label)
        try:
            prior = float(number)
        except ValueError:
            label = ""
        if not label:
            raise KnnError(f"{part!r} is not a label with its prior.", "Write them as cs=3,de=1.")
        if label in priors:
            raise KnnError(f"The label {label!r} has two priors.", "Leave one of them out.")
        priors[label] = prior
    return priors or None
