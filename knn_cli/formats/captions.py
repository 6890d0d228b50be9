"""Captions of SubRip and WebVTT: their times and texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import NamedTuple

from knn_cli.core.errors import KnnError
from knn_cli.core.texts import read_lines

_CLOCK = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d)[.,](\d{1,3})")
_CUE = re.compile(rf"\s*({_CLOCK.pattern})\s+-->\s+({_CLOCK.pattern})(?:\s.*)?")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
_TAG = re.compile(r"<[^>]*>")


class Caption(NamedTuple):
    """A caption of a file.

    Attributes
    ----------
    start, end : float
        Seconds.
    voice : str or None
        The name of a voice span of WebVTT (`<v Name>`).
    text : str
        Without markup; it may have several lines.
    line : int
        Number of the line in the file that has the times.
    """

    start: float
    end: float
    voice: str | None
    text: str
    line: int


def read_captions(path: Path) -> list[Caption]:
    """Read the captions of a .srt or .vtt file.

    Raises
    ------
    KnnError
        For a file that cannot be read, or holds text but no captions.
    """
    captions = []
    markup = path.suffix.lower() == ".vtt"
    lines = read_lines(path, "captions")
    for number, line in enumerate(lines, start=1):
        if (match := _CUE.fullmatch(line)) is None:
            continue
        kept = []
        for following in lines[number:]:
            if not following.strip():
                break
            kept.append(following)
        text = "\n".join(kept)
        voice = _VOICE.search(text) if markup else None
        plain = unescape(_TAG.sub("", text)) if markup else text
        times = (_seconds(match.groups()[1:5]), _seconds(match.groups()[6:10]))
        captions.append(Caption(*times, None if voice is None else unescape(voice.group(1)), plain, number))
    if not captions and any(line.strip() for line in lines) and not lines[0].startswith("WEBVTT"):
        raise KnnError(f"{path} holds no captions.", "Expected lines such as 00:00:01,000 --> 00:00:02,500.")
    return captions


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + float(f"0.{fraction}")
