"""A recording and its turns as one HTML page that plays itself: no request, names to be edited and saved as RTTM.

`player.js` and `player.css` beside this module are put into the page. What they show is data: every name reaches the
page as JSON or escaped, and is shown as text, never read as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import quote

import numpy as np
import soundfile
from numpy.typing import NDArray

from knn_cli.audio import reading
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Floats
from knn_cli.formats.rttm import rttm_field
from knn_cli.formats.spans import SpanDocument, seconds_by_label
from knn_cli.formats.turn_plot import SPEAKER_COLOURS

EMBED_SECONDS = 2 * 3600.0  # longer recordings stay beside their page: browsers tire of pages above 50 MB
COPY_BYTES = 24_000_000  # smaller files go into the page as they are, where browsers know the format
MOST_BINS = 240_000  # of the waveform: 0.5 MB; 10 ms each up to 40 minutes
_RATE = reading.RATE
_FIRST_BIN = _RATE // 100  # samples
_MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.8}  # 40 kbit/s
# What every browser plays, and finds its way in to the sample. MP3 is not here: with a varying bit rate browsers guess
# where a time is, so it is encoded anew, at a constant one.
_COPIED = {
    "WAV PCM_U8": "audio/wav",
    "WAV PCM_16": "audio/wav",
    "FLAC PCM_16": "audio/flac",
    "FLAC PCM_24": "audio/flac",
}


@dataclass(frozen=True)
class Peaks:
    """What a waveform is drawn from: the least and the largest sample of each bin, by turns.

    values  : (2 bins,) int8, 127 a little below the loudest sample, so that one click does not flatten the rest
    seconds : length of a bin
    total   : length of the recording in seconds
    """

    values: NDArray[np.int8]
    seconds: float
    total: float


class PeakMeter:
    """`Peaks` of samples as they come, in bounded memory: bins are joined two by two when they become too many."""

    def __init__(self, rate: int, *, first: int = _FIRST_BIN, most: int = MOST_BINS) -> None:
        self._rate, self._size, self._most = rate, first, most
        self._rest = np.zeros(0, dtype=np.float32)
        self._parts: list[Floats] = []  # each (bins, 2)
        self._bins = self._samples = 0

    def add(self, samples: Floats) -> None:
        """(S,) samples that follow those before."""
        self._samples += len(samples)
        held = np.concatenate([self._rest, samples])
        whole = len(held) // self._size * self._size
        self._rest = held[whole:]
        bins = held[:whole].reshape(-1, self._size)  # (bins, samples a bin)
        self._parts.append(np.stack([bins.min(axis=1), bins.max(axis=1)], axis=1))
        self._bins += len(bins)
        while self._bins > self._most:
            self._halve()

    def _halve(self) -> None:
        joined = np.concatenate(self._parts)
        if len(joined) % 2:  # a bin that waits for its other half: as samples again, with the same peaks
            tail = np.tile(joined[-1], self._size)[: self._size]
            self._rest = np.concatenate([tail, self._rest])
            joined = joined[:-1]
        pairs = joined.reshape(-1, 2, 2)  # (bins, halves, least and largest)
        self._parts = [np.stack([pairs[:, :, 0].min(axis=1), pairs[:, :, 1].max(axis=1)], axis=1)]
        self._bins, self._size = len(pairs), self._size * 2

    def peaks(self) -> Peaks:
        last = [np.array([[self._rest.min(), self._rest.max()]], dtype=np.float32)] if len(self._rest) else []
        found = np.concatenate([np.zeros((0, 2), dtype=np.float32), *self._parts, *last])  # (bins, 2)
        heights = np.abs(found).max(axis=1) if len(found) else np.zeros(1)
        loud = float(np.quantile(heights, 0.999)) or float(heights.max()) or 1.0
        values = np.clip(np.round(found.ravel() * (120 / loud)), -127, 127).astype(np.int8)
        return Peaks(values, self._size / self._rate, self._samples / self._rate)


def write_html(document: SpanDocument, file: BinaryIO, *, embed_seconds: float = EMBED_SECONDS) -> None:
    """Write the page of a recording, in one pass over it and in bounded memory.

    Parameters
    ----------
    document : SpanDocument
        Needs an `audio_path`; `channel` of it is played and drawn.
    file : binary file
    embed_seconds : float
        A recording that is longer is not put into the page but named by its path relative to the document's
        `location`, and has to stay where it is.

    Raises
    ------
    KnnError
        Without a recording.
    AudioError
        Where the recording cannot be read, see `audio.reading.read`.
    """
    if document.audio_path is None:
        raise KnnError("A player needs the recording.", "Give its path.")
    source = document.audio_path
    with tempfile.TemporaryFile() as sound:
        kind, peaks = _sound(source, sound, document.channel, embed_seconds)
        href = "" if kind else _relative(source, (document.location or Path()).parent)
        for piece in _page(document, peaks, sound, kind, href):
            file.write(piece.encode())


def _sound(source: Path, into: IO[bytes], channel: str, longest: float) -> tuple[str, Peaks]:
    """Write what is to be played, return its type, "" where it is too long; and the waveform."""
    about = reading.info(source)
    kind = ""
    if about.seconds <= longest and source.stat().st_size <= COPY_BYTES and (channel == "mix" or about.channels == 1):
        kind = _COPIED.get(about.format, "")
    meter = PeakMeter(_RATE)
    blocks = reading.blocks(source, rate=_RATE, channel=channel)
    with closing(blocks):  # type: ignore[type-var]
        if kind or about.seconds > longest:
            for block in blocks:
                meter.add(block.samples)
            if kind:
                into.write(source.read_bytes())
            return kind, meter.peaks()
        with soundfile.SoundFile(into, "w", _RATE, 1, **_MP3) as encoder:
            for block in blocks:
                meter.add(block.samples)
                encoder.write(np.clip(block.samples, -1.0, 1.0))
    return "audio/mpeg", meter.peaks()


def _relative(source: Path, folder: Path) -> str:
    """The address of a file from a folder; from the root where they share no drive."""
    try:
        return quote(Path(os.path.relpath(source.resolve(), folder.resolve())).as_posix())
    except ValueError:
        return source.resolve().as_uri()


def _data(document: SpanDocument, peaks: Peaks, kind: str, href: str) -> dict[str, Any]:
    """What the page's script reads. Turns: start and end in milliseconds, place in `speakers`, confidence or null."""
    turns = document.rounded()
    speakers = list(seconds_by_label(turns))
    places = {speaker: place for place, speaker in enumerate(speakers)}
    return {
        "file": rttm_field(document.name),
        "seconds": round(max(peaks.total, *(turn.end_ms / 1000 for turn in turns), 0.0), 3),
        "speakers": speakers,
        "colours": SPEAKER_COLOURS,
        "turns": [
            (start, end, places[span.label], None if span.probability is None else round(span.probability, 3))
            for start, end, span in turns
        ],
        "bin": peaks.seconds,
        "peaks": base64.b64encode(peaks.values.tobytes()).decode(),
        "kind": kind,
        "href": href,
    }


def _json(value: object) -> str:
    """JSON that may stand inside a script element: no `<`, so neither its end nor a comment's beginning."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _page(document: SpanDocument, peaks: Peaks, sound: IO[bytes], kind: str, href: str) -> Iterator[str]:
    here = Path(__file__)
    script = here.with_suffix(".js").read_text(encoding="utf-8")
    style = here.with_suffix(".css").read_text(encoding="utf-8")
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    policy = (
        f"default-src 'none'; script-src 'sha256-{digests[0]}'; style-src 'sha256-{digests[1]}'; "
        f"img-src data:; media-src blob:{'' if kind else ' file: *'}"
    )
    title = escape(document.name or "Recording")
    notes = "" if kind else f'<p class="note">The sound is not in this page but beside it: {escape(href)}</p>'
    yield f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="knn player">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p class="soft" id="about"></p>
<noscript><p class="note">This page needs scripts to play and to draw.</p></noscript>{notes}
<p class="note" id="trouble" role="alert" hidden>
<label>The sound could not be played. Choose the audio file:
<input type="file" id="choose" accept="audio/*"></label></p>
</header>
<main>
<div id="bar" role="toolbar" aria-label="Playback">
<button type="button" id="play" class="main">Play</button>
<span id="clock"></span>
<label class="soft">Speed <select id="speed"><option>0.5</option><option>0.75</option><option selected>1</option>
<option>1.25</option><option>1.5</option><option>2</option></select></label>
<label class="soft"><input type="checkbox" id="follow" checked> Follow</label>
<span class="spring"></span>
<span class="group"><button type="button" id="out" aria-label="Zoom out">−</button
><button type="button" id="whole">Whole</button><button type="button" id="in" aria-label="Zoom in">+</button></span>
<button type="button" id="save">Save RTTM</button>
</div>
<audio id="audio" preload="metadata"></audio>
<canvas id="overview" aria-hidden="true"></canvas>
<div id="timeline"><div id="names" aria-hidden="true"></div>
<div id="scroller" tabindex="0" role="slider" aria-label="Position" aria-valuemin="0"><div id="wide"
><canvas id="canvas"></canvas><div id="head"></div></div></div></div>
<div id="tip" hidden></div>
<div id="below">
<section aria-labelledby="speakers-title"><h2 id="speakers-title">Speakers</h2>
<ul id="speakers"></ul>
<p class="soft" id="hint"></p></section>
<section aria-labelledby="turns-title"><h2 id="turns-title">Turns</h2>
<div id="list"><div id="rows"></div></div></section>
</div>
<p class="soft keys"><span><kbd>Space</kbd> play or pause</span> <span><kbd>←</kbd> <kbd>→</kbd> 5 seconds</span>
<span><kbd>[</kbd> <kbd>]</kbd> turn before, after</span> <span><kbd>+</kbd> <kbd>−</kbd> zoom</span></p>
</main>
<script type="application/json" id="data">{_json(_data(document, peaks, kind, href))}</script>
<script type="text/plain" id="sound">"""
    sound.seek(0)
    while piece := sound.read(3 << 18):  # a multiple of three, so that the texts can be joined
        yield base64.b64encode(piece).decode()
    yield f"""</script>
<script>{script}</script>
</body>
</html>
"""
