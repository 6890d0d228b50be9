"""Shared by the scripts that run the peers: command line, number of threads, RTTM output."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))


def arguments() -> tuple[list[Path], Path, Path]:
    """(audio files, folder for one RTTM per file, folder of exported models) of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("models"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return options.files, options.out, options.models


def write(folder: Path, path: Path, turns: Iterable[tuple[float, float, object]]) -> None:
    """FOLDER/NAME.rttm of (start, end, speaker) in seconds."""
    lines = [
        f"SPEAKER {path.stem} 1 {start:.3f} {end - start:.3f} <NA> <NA> {speaker} <NA> <NA>\n"
        for start, end, speaker in turns
    ]
    (folder / f"{path.stem}.rttm").write_text("".join(lines), encoding="utf-8")
