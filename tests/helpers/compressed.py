"""Compressed files for tests, by the encoders that PyAV brings along, with the times that a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_CODECS = {".webm": "libopus", ".opus": "libopus", ".mka": "flac", ".mp3": "libmp3lame", ".wv": "wavpack"}
_CODECS |= {".ts": "mp2", ".mkv": "aac", ".ogg": "libopus", ".flv": "aac"}


def write_compressed(
    path: Path,
    samples: np.ndarray,
    rate: int,
    *,
    codec: str = "",
    start: float = 0.0,
    pauses: Sequence[tuple[float, float]] = (),
    tracks: Sequence[np.ndarray] = (),
) -> Path:
    """Write (S,) or (S, channels) float32 samples, and more audio tracks, in the codec that suits the suffix.

    Parameters
    ----------
    start : float
        Seconds by which all packets are late; a silent picture track starts at 0 then, where the container has one.
    pauses : sequence of (float, float)
        Seconds of sound after which no packet comes for so long.
    """
    with av.open(str(path), "w") as container:
        sounds = [sound.reshape(len(sound), -1) for sound in (samples, *tracks)]
        name = codec or _CODECS.get(path.suffix, "aac")
        layouts = ["mono" if sound.shape[1] == 1 else "stereo" for sound in sounds]
        streams = [container.add_stream(name, rate=rate, layout=layout) for layout in layouts]
        for number, (stream, sound) in enumerate(zip(streams, sounds, strict=True)):
            frames = _frames(sound, rate, layouts[number], stream)
            _encode(container, stream, frames, 0.0 if number else start, () if number else pauses)
    return path


def _frames(sound: np.ndarray, rate: int, layout: str, stream: av.AudioStream) -> list[av.AudioFrame]:
    kind = stream.codec_context.format
    resampler = av.AudioResampler(format="fltp" if kind is None else kind.name, layout=layout, rate=rate)
    frames = []
    for first in range(0, len(sound), 960):
        piece = np.ascontiguousarray(sound[first : first + 960].T, dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        frames += resampler.resample(frame)
    return frames


def _encode(container, stream, frames, start: float, pauses: Sequence[tuple[float, float]]) -> None:  # type: ignore[no-untyped-def]
    for frame in [*frames, None]:
        for packet in stream.encode(frame):
            late = start + sum(pause for after, pause in pauses if float(packet.pts * packet.time_base) >= after)
            shift = round(late / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            container.mux(packet)
