"""An HTML page that plays a recording, shows its turns and lets them be corrected; it sends no requests.

The page is `templates/player.html` with `player.css`, `player_files.js` (files of turns that are saved),
`player_corrections.js` (edits) and `player.js` (what is seen) inlined. Names are passed as JSON or escaped, and the
scripts show them as text, never as markup. Edits that are not saved stay in the browser, under a key that belongs to
these turns of this recording.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import quote

import numpy as np
import soundfile
from numpy.typing import NDArray

from knn_cli.audio import reading
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Floats
from knn_cli.core.visible_text import readable, visible
from knn_cli.formats import elan
from knn_cli.formats.html_templates import load_asset, load_template
from knn_cli.formats.rttm import rttm_field
from knn_cli.formats.spans import SpanDocument, seconds_by_label
from knn_cli.formats.turn_plot import SPEAKER_COLOURS

SCRIPTS = ("player_files", "player_corrections", "player")  # in the order in which they build on each other
EMBED_SECONDS = 2 * 3600.0  # longer recordings are not embedded: browsers slow down on pages above 50 MB
MAX_COPY_BYTES = 24_000_000  # smaller files are embedded without re-encoding if browsers play their format
MAX_BINS = 240_000  # of the waveform: 0.5 MB; 10 ms each up to 40 minutes
MIN_BIN_SAMPLES = reading.RATE // 100
PEAK_LEVEL = 120  # int8 level of the 99.9 % quantile of bins
_BASE64_PIECE_BYTES = 3 << 18  # a multiple of three, so that the texts can be joined
_MP3_SETTINGS = {
    "format": "MP3",
    "subtype": "MPEG_LAYER_III",
    "bitrate_mode": "CONSTANT",
    "compression_level": 0.8,
}  # 40 kbit/s
# Formats in which every browser plays and seeks to the exact sample. MP3 is not among them: with a variable bit rate
# browsers estimate positions, so it is encoded again, at a constant bit rate.
_COPIED_TYPES = {
    "WAV PCM_U8": "audio/wav",
    "WAV PCM_16": "audio/wav",
    "FLAC PCM_16": "audio/flac",
    "FLAC PCM_24": "audio/flac",
}


@dataclass(frozen=True)
class Peaks:
    """The waveform as it is drawn: the smallest and the largest sample of each bin, alternating.

    Attributes
    ----------
    values : (2 * bins,) int8 array
        127 is a little below the loudest sample, so that a single click does not flatten the rest.
    bin_seconds : float
        Length of a bin.
    total_seconds : float
        Length of the recording.
    """

    values: NDArray[np.int8]
    bin_seconds: float
    total_seconds: float


class PeakMeter:
    """Compute `Peaks` of samples block by block, in bounded memory: bins are joined in pairs when they become too many.

    Parameters
    ----------
    rate : int
        Samples per second.
    bin_samples : int
        Length of a bin at first.
    max_bins : int
        Bins beyond which their length is doubled.
    """

    def __init__(self, rate: int, *, bin_samples: int = MIN_BIN_SAMPLES, max_bins: int = MAX_BINS) -> None:
        self._rate, self._bin_samples, self._max_bins = rate, bin_samples, max_bins
        self._remainder = np.zeros(0, dtype=np.float32)
        self._extremes: list[Floats] = []  # each (bins, 2)
        self._bins = self._samples = 0

    def add(self, samples: Floats) -> None:
        """Add the next (S,) samples."""
        self._samples += len(samples)
        pending = np.concatenate([self._remainder, samples])
        whole = len(pending) // self._bin_samples * self._bin_samples
        self._remainder = pending[whole:]
        bins = pending[:whole].reshape(-1, self._bin_samples)  # (bins, samples per bin)
        self._extremes.append(np.stack([bins.min(axis=1), bins.max(axis=1)], axis=1))
        self._bins += len(bins)
        while self._bins > self._max_bins:
            self._join_pairs()

    def _join_pairs(self) -> None:
        extremes = np.concatenate(self._extremes)
        if len(extremes) % 2:  # an unpaired bin is turned back into samples with the same peaks
            tail = np.tile(extremes[-1], self._bin_samples)[: self._bin_samples]
            self._remainder = np.concatenate([tail, self._remainder])
            extremes = extremes[:-1]
        pairs = extremes.reshape(-1, 2, 2)  # (pairs, bins, smallest and largest)
        self._extremes = [np.stack([pairs[:, :, 0].min(axis=1), pairs[:, :, 1].max(axis=1)], axis=1)]
        self._bins, self._bin_samples = len(pairs), self._bin_samples * 2

    def peaks(self) -> Peaks:
        """Return the peaks of all samples so far."""
        last = [np.array([[self._remainder.min(), self._remainder.max()]], np.float32)] if len(self._remainder) else []
        extremes = np.concatenate([np.zeros((0, 2), dtype=np.float32), *self._extremes, *last])  # (bins, 2)
        heights = np.abs(extremes).max(axis=1) if len(extremes) else np.zeros(1)
        loud = float(np.quantile(heights, 0.999)) or float(heights.max()) or 1.0
        values = np.clip(np.round(extremes.ravel() * (PEAK_LEVEL / loud)), -127, 127).astype(np.int8)
        return Peaks(values, self._bin_samples / self._rate, self._samples / self._rate)


def write_html(document: SpanDocument, file: BinaryIO, *, embed_seconds: float = EMBED_SECONDS) -> None:
    """Write the page of a recording, in one pass over it and in bounded memory.

    Parameters
    ----------
    document : SpanDocument
        Needs an `audio_path`, of which `channel` is played and drawn.
    file : binary file
    embed_seconds : float
        A longer recording is not embedded in the page but referred to by its path relative to the document's
        `location`, so it must not be moved. Where it does not stay, it is embedded.

    Raises
    ------
    KnnError
        If there is no recording.
    AudioError
        If the recording cannot be read, see `audio.reading.read`.
    """
    if document.audio_path is None:
        raise KnnError("A player needs the recording.", "Give its path.")
    source = document.audio_path
    with tempfile.TemporaryFile() as sound:
        max_seconds = embed_seconds if document.audio_stays else math.inf
        kind, peaks = _sound(document.audio_file or source, sound, document.channel, max_seconds)
        href = "" if kind else _relative(source, (document.location or Path()).parent)
        template = load_template("knn_cli.formats", "player.html")
        pieces = template.generate(
            title=visible(document.name or "Recording"),
            data=_data(document, peaks, kind, href),
            sound=_base64_pieces(sound),
            style=load_asset("knn_cli.formats", "player.css"),
            scripts=[load_asset("knn_cli.formats", f"{name}.js") for name in SCRIPTS],
        )
        for piece in pieces:
            file.write(piece.encode())


def _sound(source: Path, into: IO[bytes], channel: str, max_seconds: float) -> tuple[str, Peaks]:
    """Write the sound to be played; return its media type, "" if it is too long to embed, and the waveform."""
    about = reading.info(source)
    kind = ""
    if (
        about.seconds <= max_seconds
        and source.stat().st_size <= MAX_COPY_BYTES
        and (channel == "mix" or about.channels == 1)
    ):
        kind = _COPIED_TYPES.get(about.format, "")
    meter = PeakMeter(reading.RATE)
    blocks = reading.blocks(source, rate=reading.RATE, channel=channel)
    with closing(blocks):  # type: ignore[type-var]
        if kind or about.seconds > max_seconds:
            for block in blocks:
                meter.add(block.samples)
            if kind:
                into.write(source.read_bytes())
            return kind, meter.peaks()
        with soundfile.SoundFile(into.fileno(), "w", reading.RATE, 1, **_MP3_SETTINGS, closefd=False) as encoder:
            for block in blocks:
                meter.add(block.samples)
                encoder.write(np.clip(block.samples, -1.0, 1.0))
    return "audio/mpeg", meter.peaks()


def _relative(source: Path, folder: Path) -> str:
    """Relative address of a file from a folder; absolute if they are on different drives."""
    try:
        return quote(Path(os.path.relpath(source.resolve(), folder.resolve())).as_posix())
    except ValueError:
        return source.resolve().as_uri()


def _data(document: SpanDocument, peaks: Peaks, kind: str, href: str) -> dict[str, Any]:
    """Data of the page's script; a turn is start and end in milliseconds, index in `speakers`, confidence or null.

    `key` is a digest of all of it, by which a browser keeps edits.
    """
    turns = document.rounded()
    speakers = list(seconds_by_label(turns))
    speaker_index = {speaker: index for index, speaker in enumerate(speakers)}
    data = {
        "recording": readable(document.name or ""),
        "file": rttm_field(document.name),
        "seconds": round(max(peaks.total_seconds, *(turn.end_ms / 1000 for turn in turns), 0.0), 3),
        "speakers": speakers,
        "colours": SPEAKER_COLOURS,
        "turns": [
            (start, end, speaker_index[span.label], None if span.probability is None else round(span.probability, 3))
            for start, end, span in turns
        ],
        "bin": peaks.bin_seconds,
        "peaks": base64.b64encode(peaks.values.tobytes()).decode(),
        "kind": kind,
        "href": href,
        "media": elan.media_name(document),
    }
    return {**data, "key": hashlib.sha256(json.dumps(data).encode()).hexdigest()}


def _base64_pieces(sound: IO[bytes]) -> Iterator[str]:
    """The sound from its beginning as base64 text, in bounded memory."""
    sound.seek(0)
    while piece := sound.read(_BASE64_PIECE_BYTES):
        yield base64.b64encode(piece).decode()
