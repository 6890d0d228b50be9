"""Help pages import what they show; what they leave out is there for whoever needs it later."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from typer.testing import CliRunner
from knn_cli.cli.app import app
said = CliRunner().invoke(app, ["--help"]).stdout
assert "Who spoke when" in said and "diarize" in said, said
assert not {"rich.markdown", "rich.traceback", "markdown_it", "pygments"} & set(sys.modules)
from rich.markdown import Markdown
from rich.traceback import Traceback
assert Markdown("# a").parsed and Traceback.extract
"""


def test_markdown_and_tracebacks_are_not_imported_and_come_whole_later() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
