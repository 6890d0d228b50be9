"""Errors of usage in this program's words: what was given, what is possible, and what may have been meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from knn_cli.core.visible_text import visible_lines

# What typer raises for wrong options; it has moved between packages with typer's versions.
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")
_WORDS = {
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "it is no whole number",
    "Input should be a valid number, unable to parse string as a number": "it is no number",
}
_CHOICE = re.compile(r"'(?P<given>[^']*)' is not one of (?P<known>'.*')\.", re.DOTALL)


@contextmanager
def visible_usage_errors() -> Iterator[None]:
    """Let errors of usage show what an argument holds, which may be what a terminal obeys."""
    try:
        yield
    except _UsageError as error:
        text = visible_lines(_missing(error) or in_words(error.format_message()))
        error.format_message = lambda: text
        raise


def _missing(error: Any) -> str:
    """What to say where one of several arguments is missing, but it is not known which.

    A single value counts as the last argument if the first takes any number of them, whichever it was meant to be.
    """
    if type(error).__name__ != "MissingParameter" or error.ctx is None or error.param is None:
        return ""
    arguments = [param for param in error.ctx.command.params if param.param_type_name == "argument"]
    if len(arguments) < 2 or error.param is not arguments[0] or error.param.nargs != -1:
        return ""
    return f"Missing argument: {' and '.join(param.metavar or param.name for param in arguments)} are needed."


def in_words(message: str) -> str:
    """A message of typer without the words of the library that has checked the value.

    Examples
    --------
    >>> in_words("Invalid value for '--clusterer': Value error, 'vbxx' is not one of 'ahc', 'vbx'.")
    "Invalid value for '--clusterer': 'vbxx' is none of ahc, vbx. Did you mean vbx?"
    >>> in_words(
    ...     "Invalid value for '--top': Input should be a valid integer, unable to parse string as an integer."
    ... )
    "Invalid value for '--top': it is no whole number."
    """
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    match = _CHOICE.search(message)
    if match is None:
        return message
    from knn_cli.core.texts import did_you_mean

    known = re.findall("'(.*?)'", match["known"])
    meant = f"'{match['given']}' is none of {', '.join(known)}. {did_you_mean(match['given'], known)}"
    return message.replace(match[0], meant.rstrip())
