"""The option --format: one or several of the formats of a command, with commas between."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import typer

from knn_cli.cli.options import OUTPUT, valued


def format_option(formats: type[Enum]) -> Any:
    """--format, of one or several of a command's formats, which `epilog` lists; `parse_formats` parts them."""
    names = [format.value for format in formats]

    def check(text: str | None) -> str | None:
        for name in parse_formats(text):
            if name not in names:
                raise typer.BadParameter(f"{name!r} is none of {', '.join(names)}.{_nearest(name, names)}")
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
        help="Write this format, or several: a,b.",
    )


def parse_formats(text: str | None) -> tuple[str, ...]:
    """Return the formats that are named between commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def _nearest(name: str, names: Sequence[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, names, 1)
    return f" Did you mean {near[0]}?" if near else ""
