"""What tests of the report share: a reader of its page, sound for its players, a hostile name."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import numpy as np
import soundfile

HOSTILE = "<script>alert('x')</script> & \"q\""


def tone(name: str, start: float, end: float) -> bytes | None:
    if name.startswith("rec000"):
        return None
    into = io.BytesIO()
    time = np.arange(round(16000 * (end - start))) / 16000
    soundfile.write(into, 0.2 * np.sin(2 * np.pi * 300 * time), 16000, format="FLAC")
    return into.getvalue()


class PageReader(HTMLParser):
    """Elements, their attributes, and the text outside style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._quiet = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._quiet = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._quiet = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._quiet else data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]
