"""Make the pictures of the manual: `python -m tools.manual.screenshots`, which needs Chromium on the PATH.

The commands run in the folder that the tests of the documents lay out, so that pictures and texts are of one kind.
"""

from __future__ import annotations

import html
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.helpers.documents import TOP, lay

IMAGES = TOP / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
COLUMNS = 96


def knn(folder: Path, command: str) -> None:
    """Run a command line of knn in a folder."""
    subprocess.run([sys.executable, "-m", "knn_cli", "-q", *command.split()], cwd=folder, check=True, env=environment())


def environment() -> dict[str, str]:
    """That of this process, with knn from this checkout."""
    return {**os.environ, "PYTHONPATH": str(TOP), "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}


def on_terminal(folder: Path, command: str) -> str:
    """What a command line writes to a terminal, with its colours."""
    written = bytearray()

    def keep(descriptor: int) -> bytes:
        part = os.read(descriptor, 4096)
        written.extend(part)
        return part

    before = Path.cwd()
    saved = dict(os.environ)
    os.chdir(folder)
    os.environ.update(environment())
    try:
        pty.spawn([sys.executable, "-m", "knn_cli", "-q", *command.split()], keep)
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(saved)
    return written.decode().replace("\r\n", "\n")


def terminal_page(command: str, said: str) -> str:
    """A page that looks like a terminal."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: PTH123, SIM115
    lines = [line.rsplit("\r", 1)[-1] for line in said.splitlines()]
    console.print(Text.from_ansi("\n".join(lines)))
    body = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
    return (
        "<meta charset='utf-8'><style>body{margin:0;background:#1e1e1e;color:#ddd;padding:14px;"
        "font:15px/1.35 monospace}"
        f"pre{{margin:0}}span{{filter:brightness(1.6)}}</style><pre>$ knn {html.escape(command)}</pre>{body}"
    )


def photograph(page: Path, picture: Path, width: int, height: int) -> None:
    """Save what a browser shows of a page."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit("There is no Chromium on the PATH.")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000"]
    size = f"--window-size={width},{height}"
    subprocess.run([browser, *flags, size, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay(folder, TOP / "examples" / "meeting.flac")
        knn(folder, f"diarize {TOP / 'examples' / 'meeting.flac'} -o meeting.html")
        photograph(folder / "meeting.html", IMAGES / "player.png", 1000, 620)
        command = "classify meeting.flac interview.mp3 --top 2"
        (folder / "terminal.html").write_text(terminal_page(command, on_terminal(folder, command)), encoding="utf-8")
        photograph(folder / "terminal.html", IMAGES / "terminal.png", 900, 200)
        for line in (
            "convert recordings corpus.h5",
            "embed corpus.h5 -o emb.h5 --model language",
            "split emb.h5 -o split.tsv",
            "train emb.h5 -o my-dialects --split split.tsv",
            "evaluate emb.h5 --model my-dialects --split split.tsv --report report",
        ):
            knn(folder, line)
        photograph(folder / "report" / "report.html", IMAGES / "report.png", 1000, 760)


if __name__ == "__main__":
    main()
