"""What tests of the player share: its pages, a recording to play, and how a browser is waited for."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from knn_cli.core.atomic import replacing
from knn_cli.core.values import Diarization, Turn
from knn_cli.formats import player
from knn_cli.formats.rttm import write_rttm
from knn_cli.formats.spans import turn_document
from tests.helpers.browser import Browser

NEEDS_BROWSER = "needs Chromium on the PATH (Debian: apt-get install chromium; Ubuntu: snap install chromium)"


def clicks(path: Path, seconds: float, rate: int = 16000) -> Path:
    """A click at each whole second in faint noise."""
    samples = np.random.default_rng(0).normal(0, 0.002, round(seconds * rate))
    for second in range(1, int(seconds)):
        samples[second * rate : second * rate + rate // 100] = 0.8
    soundfile.write(path, samples, rate)
    return path


def write_page(
    diarization: Diarization,
    path: Path,
    audio_path: Path,
    *,
    channel: str = "mix",
    location: Path | None = None,
    embed_seconds: float = player.EMBED_SECONDS,
) -> None:
    document = turn_document(diarization, audio_path=audio_path, channel=channel)
    with replacing(path) as part, part.open("wb") as file:
        player.write_html(replace(document, location=location or path), file, embed_seconds=embed_seconds)


def script_text(page: Path, name: str) -> str:
    found = re.search(rf'<script type="[^"]+" id="{name}">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def rttm_of(turns: Sequence[tuple[float, float, str]], name: str) -> str:
    """What knn writes for turns, in the order in which they are."""
    file = io.StringIO()
    write_rttm(Diarization(tuple(Turn(*turn) for turn in turns), name=name), file)
    return file.getvalue()


def until(browser: Browser, condition: str) -> None:
    """Wait for a condition in the page."""
    deadline = time.monotonic() + 30
    while not browser.evaluate(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def saved(browser: Browser, folder: Path, button: str, suffix: str) -> str:
    """The text of the file that a button of the page saves."""
    browser.save_to(folder)
    browser.evaluate(f"document.getElementById({button!r}).click()")
    deadline = time.monotonic() + 30
    while not (files := [one for one in folder.iterdir() if one.name.endswith(suffix) and one.stat().st_size]):
        assert time.monotonic() < deadline, button
        time.sleep(0.05)
    text = files[0].read_text(encoding="utf-8")
    files[0].unlink()
    return text


def track_names(browser: Browser) -> list[str]:
    return list(
        browser.evaluate("[...document.querySelectorAll('#names span:last-child')].map(one => one.textContent)")
    )
