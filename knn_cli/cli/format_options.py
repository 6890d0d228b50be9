"""The option --format: one or several of the formats of a command, with commas between."""

from __future__ import annotations

from enum import Enum
from typing import Any

import typer

from knn_cli.cli.options import OUTPUT, valued
from knn_cli.core.texts import did_you_mean


def format_option(formats: type[Enum], *, several: bool = True) -> Any:
    """--format, of one or `several` of a command's formats, which `epilog` lists; `parse_formats` parts them."""
    names = [format.value for format in formats]

    def check(text: str | None) -> str | None:
        for name in parse_formats(text) if several else filter(None, [text]):
            if name not in names:
                known = f"{name!r} is none of {', '.join(names)}. {did_you_mean(name, names)}"
                raise typer.BadParameter(known.rstrip())
        return text

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names if name.startswith(last)]

    return valued(
        "--format",
        metavar="FORMAT",
        panel=OUTPUT,
        callback=check,
        autocompletion=complete,
        help="Write this format; of turns also several: a,b.",
    )


def parse_formats(text: str | None) -> tuple[str, ...]:
    """Return the formats that are named between commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
