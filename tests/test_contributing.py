"""The three recipes of CONTRIBUTING.md, followed word for word in a copy of the package."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.documents import TOP

_BLOCK = re.compile(
    r"^<!-- (?:file: (?P<file>[\w/.]+)(?:, after: (?P<after>[^\n]+))?|run in the copy) -->\n"
    r"```(?P<language>\w+)\n(?P<text>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, example: Path) -> dict[str, str]:
    """Each command of the page, and what it said; the page's files are in the copy that it ran in."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(TOP / "knn_cli", copy / "knn_cli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TOP / "models", copy / "models")
    shutil.copy(example, copy)
    environment = {**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "80"}
    found = {}
    for block in _BLOCK.finditer((TOP / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        text = block["text"]
        if block["after"]:
            lines = (copy / block["file"]).read_text(encoding="utf-8").splitlines(keepends=True)
            (place,) = (number for number, line in enumerate(lines) if line.strip().startswith(block["after"]))
            (copy / block["file"]).write_text("".join([*lines[: place + 1], text, *lines[place + 1 :]]))
        elif block["file"]:
            assert not (copy / block["file"]).exists()
            (copy / block["file"]).write_text(text)
        elif block["language"] == "python":
            subprocess.run([sys.executable, "-c", text], cwd=copy, env=environment, check=True)
        else:
            for command in text.splitlines():
                words = shlex.split(command.removeprefix("$ knn "))
                done = subprocess.run(
                    [sys.executable, "-m", "knn_cli", *words], cwd=copy, env=environment, capture_output=True, text=True
                )
                assert done.returncode == 0, done.stderr
                found[command] = done.stdout
    found["minutes"] = (copy / "meeting.minutes").read_text(encoding="utf-8")
    return found


def test_a_pooling_a_format_and_a_command_work(said: dict[str, str]) -> None:
    assert said["minutes"].startswith("0:00\tSPEAKER_00\n0:05\tSPEAKER_01\n")
    assert 50 < float(said["$ knn seconds meeting.flac"]) < 70
    assert "how many seconds a recording lasts" in said["$ knn seconds --help"]
