"""The one import of torchaudio, with a compiled extension that loads and with one that does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from knn_cli.core._torchaudio import load_torchaudio


def test_python_parts_work_here() -> None:
    torchaudio = load_torchaudio()
    sound = torch.sin(torch.arange(8000) / 8)
    assert torchaudio.functional.resample(sound, 8000, 16000).shape == (16000,)
    assert load_torchaudio() is torchaudio


def run(package: Path, script: str) -> str:
    code = f"import sys; sys.path.insert(0, {str(package)!r})\n{script}"
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("extension", "expected"),
    [
        ("_IS_TORCHAUDIO_EXT_AVAILABLE = True\n", "True"),
        ("raise OSError('Could not load this library')\n", "False"),
    ],
)
def test_both_ways(tmp_path: Path, extension: str, expected: str) -> None:
    """A stand-in package whose extension loads, or fails as the CUDA one does beside a CPU torch."""
    package = tmp_path / "torchaudio"
    (package / "_extension").mkdir(parents=True)
    (package / "__init__.py").write_text("from torchaudio import _extension\nready = True\n")
    (package / "_extension" / "__init__.py").write_text(extension)
    script = """
from knn_cli.core._torchaudio import load_torchaudio
loaded = load_torchaudio()
assert loaded.ready
print(loaded._extension._IS_TORCHAUDIO_EXT_AVAILABLE)
if not loaded._extension._IS_TORCHAUDIO_EXT_AVAILABLE:
    try:
        loaded._extension.fail_if_no_align(lambda: None)()
    except RuntimeError as error:
        assert "compiled extension" in str(error)
"""
    assert run(tmp_path, script) == expected


def test_other_failures_are_not_hidden(tmp_path: Path) -> None:
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text("raise ValueError('broken')\n")
    script = """
from knn_cli.core._torchaudio import load_torchaudio
try:
    load_torchaudio()
except ValueError as error:
    print(error)
"""
    assert run(tmp_path, script) == "broken"
