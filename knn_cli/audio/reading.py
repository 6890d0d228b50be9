"""Reading sound: audio files to float32 mono at a given rate, whole or block by block.

`sources` decodes; here channels are chosen or mixed, and the sampling rate is changed. All of it streams, so that a
file of any length needs the memory of one block only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from knn_cli.audio import mixing, reading_progress, sources
from knn_cli.core.errors import AudioError
from knn_cli.core.folders import files_below
from knn_cli.core.values import Floats, Segment, Waveform

RATE = 16_000  # samples per second of every shipped model
BLOCK_SECONDS = 60.0
HELD_SECONDS = 600.0  # 38 MB at 16 kHz
SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc .m4a .mp4 .aac .webm "
    ".mkv .mov .wma .amr .3gp .avi .mka .ac3 .wv .ape .mp2 .mp1 .mpa .mpg .mpeg .vob .mts .m2ts .wmv .asf .wtv .spx "
    ".ogv .gsm .awb .eac3 .dts .ra .rm .3g2 .flv .f4v .m4b .m4v .qt .weba .tta .mpc .bwf .divx .ircam .mxf".split()
)


@dataclass(frozen=True)
class AudioInfo:
    """Properties of an audio file; `tracks` counts its audio tracks, of which one is described."""

    path: Path
    rate: int
    channels: int
    seconds: float
    format: str
    tracks: int = 1


def find(root: Path) -> list[Path]:
    """Return the audio files below a folder, by suffix, and what cannot be looked at; see `folders.files_below`."""
    return files_below(root, SUFFIXES)


def info(path: Path | str, *, channel: str = "mix") -> AudioInfo:
    """Return what an audio file is. Large compressed files are not decoded for their length, but their packets counted.

    AudioError for a file that is not audio, or lacks the track that `channel` names.
    """
    path = sources.existing_file(path)
    track, _ = track_and_channel(channel)
    found = sources.facts(path, track=track)
    seconds = sources.length(path, track=track) if found.seconds is None else found.seconds
    return AudioInfo(path, found.rate, found.channels, seconds, f"{found.format} {found.subtype}", found.tracks)


def read(path: Path | str, *, rate: int = RATE, channel: str = "mix") -> Waveform:
    """Read a whole recording.

    Parameters
    ----------
    path : path
    rate : int
        Samples per second of the result.
    channel : str
        "mix" (the mean of all, of which none cancels another, see `mixing`), "left", "right", or a number from 1.
        Before it may stand the number of an audio track, where a file has several, as in "2:mix"; else the first is
        read.

    Returns
    -------
    Waveform
        Mono, (S,) float32 samples, nominally in [-1, 1].

    Raises
    ------
    AudioError
        If the file is missing, empty, not audio or cut short, if it holds no samples, or NaN, infinite or absurdly
        large ones, or if it lacks the channel.

    Examples
    --------
    >>> from knn_cli import read_audio
    >>> meeting = read_audio("meeting.flac")
    >>> meeting.rate, meeting.samples.dtype.name
    (16000, 'float32')
    """
    return Waveform(np.concatenate([block.samples for block in blocks(path, rate=rate, channel=channel)]), rate)


def blocks(
    path: Path | str, *, rate: int = RATE, channel: str = "mix", seconds: float | None = None
) -> Iterator[Waveform]:
    """Yield a recording as consecutive blocks of `seconds` (60 by default); the last may be shorter. See `read`.

    Concatenated, the blocks are exactly the samples of `read`, for any block length: one resampler processes them all.
    """
    path = sources.existing_file(path)
    size = max(1, round((seconds or BLOCK_SECONDS) * rate))
    start = 0
    for samples in _reblock(_resampled(path, rate, channel), size):
        yield Waveform(samples, rate, start / rate)
        start += len(samples)
    if start == 0:
        raise AudioError(f"{path} holds no samples.", "Check that the recording was written to its end.")


def crops(path: Path | str, spans: Iterable[Segment], *, rate: int = RATE, channel: str = "mix") -> Iterator[Floats]:
    """Yield (S,) float32 samples of each span of a recording, in one pass.

    At most the longest span and one block are in memory.

    Parameters
    ----------
    path : path
    spans : iterable of Segment
        Seconds, sorted by start; they may overlap. Parts past the end of the recording are left out.
    rate, channel
        See `read`.
    """
    return _crops(blocks(path, rate=rate, channel=channel), spans, rate)


class HeldRecording:
    """A recording that is read more than once: one of up to `HELD_SECONDS` is kept in memory, and decoded once.

    Parameters
    ----------
    path, rate, channel
        See `read`.
    """

    def __init__(self, path: Path | str, *, rate: int = RATE, channel: str = "mix") -> None:
        self.path, self.rate, self.channel = path, rate, channel
        self._held: list[Waveform] = []

    def blocks(self) -> Iterator[Waveform]:
        """The blocks of `reading.blocks`."""
        if self._held:
            total = self._held[-1].start + self._held[-1].seconds
            for block in self._held:
                yield block
                reading_progress.report(Path(self.path), block.start + block.seconds, total)
            return
        held: list[Waveform] = []
        for block in blocks(self.path, rate=self.rate, channel=self.channel):
            if block.start + block.seconds <= HELD_SECONDS:
                held.append(block)
            else:
                held.clear()
            yield block
        if held and held[0].start == 0:
            self._held = held

    def crops(self, spans: Iterable[Segment]) -> Iterator[Floats]:
        """The crops of `reading.crops`."""
        return _crops(self.blocks(), spans, self.rate)


def _crops(stream: Iterator[Waveform], spans: Iterable[Segment], rate: int) -> Iterator[Floats]:
    """Samples of spans, sorted by start, of the blocks of a recording."""
    held, first = np.zeros(0, dtype=np.float32), 0  # buffered samples, index of the first of them
    with closing(stream):  # type: ignore[type-var]
        for span in spans:
            start, stop = round(span.start * rate), round(span.end * rate)
            if start < first:
                raise ValueError(f"spans must be sorted by start: {span} comes after {first / rate:.3f} s")
            while first + len(held) < stop and (block := next(stream, None)) is not None:
                drop = min(start - first, len(held))
                held, first = np.concatenate([held[drop:], block.samples]), first + drop
            drop = min(start - first, len(held))
            held, first = held[drop:], first + drop
            yield held[start - first : stop - first]


def track_and_channel(channel: str) -> tuple[int, int | None]:
    """Return the track (0: not named) and the index of the channel (None: the mix) of a name such as "2:left".

    AudioError for an unknown name.
    """
    track, colon, name = channel.rpartition(":")
    if colon and not (track.isascii() and track.isdecimal() and int(track)):
        raise AudioError(f"There is no audio track {track!r}.", "Tracks are numbers from 1.")
    return int(track or 0), channel_index(name)


def channel_index(channel: str) -> int | None:
    """Return the index of the channel of a name, None for the mix. AudioError for an unknown name."""
    if channel == "mix":
        return None
    number = {"left": "1", "right": "2"}.get(channel, channel)
    if not (number.isascii() and number.isdecimal()) or int(number) == 0:
        raise AudioError(f"There is no channel {channel!r}.", "Channels are mix, left, right, or a number from 1.")
    return int(number) - 1


def _resampled(path: Path, rate: int, channel: str) -> Iterator[Floats]:
    """(S,) float32 pieces at `rate`; one channel or the mix of all."""
    track, pick = track_and_channel(channel)
    resampler, resampled_rate = None, rate
    for file_rate, samples in mixing.mixed(path, _decoded(path, track), pick):
        if resampler is not None and file_rate != resampled_rate:
            yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
            resampler = None
        if file_rate == rate:
            yield samples
            continue
        if resampler is None:
            resampler, resampled_rate = soxr.ResampleStream(file_rate, rate, 1, dtype="float32"), file_rate
        yield resampler.resample_chunk(samples)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def _decoded(path: Path, track: int) -> Iterator[tuple[int, Floats]]:
    """(rate, (n, channels) float32) pieces at the file's sampling rate; each is reported as progress."""
    total = sources.facts(path, track=track).estimate if reading_progress.is_listening() else None
    seconds = 0.0
    for rate, frames in sources.pieces(path, "float32", track=track):
        yield rate, frames
        seconds += len(frames) / rate
        reading_progress.report(path, seconds, total)


def _reblock(pieces: Iterator[Floats], size: int) -> Iterator[Floats]:
    """The same samples in pieces of exactly `size`, the last one shorter."""
    held: list[Floats] = []
    count = 0
    with closing(pieces):  # type: ignore[type-var]
        for piece in pieces:
            held.append(piece)
            count += len(piece)
            if count < size:
                continue
            joined = np.concatenate(held)
            whole = count // size * size
            for first in range(0, whole, size):
                yield joined[first : first + size]
            held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)
