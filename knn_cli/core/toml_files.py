"""TOML files, with what is wrong with one in a sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from knn_cli.core.errors import KnnError
from knn_cli.core.texts import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path, what: str, hint: str) -> dict[str, Any]:
    """Read a file in TOML.

    Parameters
    ----------
    path : Path
    what : str
        What the file is, for messages: "recipe".
    hint : str
        Where the reader finds how such a file looks.

    Raises
    ------
    KnnError
        Where the file cannot be read (see `texts.read_text`), or is not TOML.
    """
    try:
        table: dict[str, Any] = tomllib.loads(read_text(path, f"a {what} in TOML"))
        return table
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise KnnError(f"The {what} {path} is not TOML: {reason}.", hint) from error
