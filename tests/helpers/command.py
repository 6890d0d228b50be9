"""`knn` run within the tests' own process."""

from __future__ import annotations

from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.core.output_records import RECORD


def knn(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> Result:
    result = knn(*arguments)
    assert result.exit_code == 0, result.output
    return result


def outputs_in(folder: Path) -> list[str]:
    """Names of what lies in a folder, sorted, without the record of outputs."""
    return sorted(path.name for path in folder.iterdir() if path.name != RECORD)
