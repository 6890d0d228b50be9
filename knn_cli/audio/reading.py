"""Reading sound: audio files to float32 mono at a given rate, whole or block by block.

libsndfile decodes WAV, FLAC, OGG/Opus, MP3 and similar formats; other formats go through `ffmpeg` if it is installed.
Both stream, so that a file of any length needs the memory of one block only.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from knn_cli.audio import mixing, reading_progress
from knn_cli.core.errors import AudioError
from knn_cli.core.folders import files_below
from knn_cli.core.values import Floats, Segment, Waveform

RATE = 16_000  # samples per second of every shipped model
BLOCK_SECONDS = 60.0
HELD_SECONDS = 600.0  # 38 MB at 16 kHz
NATIVE_SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc".split()
)
FFMPEG_SUFFIXES = frozenset(".m4a .mp4 .aac .webm .mkv .mov .wma .amr .3gp .avi .mka .ac3 .wv .ape".split())
SUFFIXES = NATIVE_SUFFIXES | FFMPEG_SUFFIXES

UNKNOWN_LENGTH = 1 << 62  # frames of a FLAC that was written to a pipe, as libsndfile has them

_TRUNCATION_SECONDS = 0.1  # a file may lack this much of the duration in its header


@dataclass(frozen=True)
class AudioInfo:
    """Properties of an audio file: from its header or, if only ffmpeg reads it, from decoding it."""

    path: Path
    rate: int
    channels: int
    seconds: float
    format: str


def find(root: Path) -> list[Path]:
    """Return the audio files below a folder, by suffix, and what cannot be looked at; see `folders.files_below`."""
    return files_below(root, SUFFIXES)


def info(path: Path | str) -> AudioInfo:
    """Read the header of an audio file. AudioError for a file that is not audio."""
    path = existing_file(path)
    kind = "decoded by ffmpeg"
    with suppress(soundfile.LibsndfileError), open_native(path) as file:
        kind = f"{file.format} {file.subtype}"
        if file.frames < UNKNOWN_LENGTH:
            return AudioInfo(path, file.samplerate, file.channels, file.frames / file.samplerate, kind)
    rate, count, channels = 1, 0, 0
    with reading_progress.listening(None):
        for file_rate, frames in _decoded(path):  # the length is known only after decoding
            rate, count, channels = file_rate, count + len(frames), frames.shape[1]
    return AudioInfo(path, rate, channels, count / rate, kind)


def read(path: Path | str, *, rate: int = RATE, channel: str = "mix") -> Waveform:
    """Read a whole recording.

    Parameters
    ----------
    path : path
    rate : int
        Samples per second of the result.
    channel : str
        "mix" (the mean of all, of which none cancels another, see `mixing`), "left", "right", or a number from 1.

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
    path = existing_file(path)
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
            yield from self._held
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


def encode_flac(samples: Floats, rate: int) -> bytes:
    """Return 16-bit FLAC bytes of (S,) float32 samples; values beyond [-1, 1] are clipped."""
    from io import BytesIO

    buffer = BytesIO()
    soundfile.write(buffer, np.clip(samples, -1.0, 1.0), rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes) -> Floats:
    """Return the (S,) float32 samples of FLAC bytes from `encode_flac`."""
    from io import BytesIO

    samples: Floats = soundfile.read(BytesIO(data), dtype="float32")[0]
    return samples


def existing_file(path: Path | str) -> Path:
    """Return the path of a file that is not empty. AudioError if it is missing, empty or no regular file."""
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            os.scandir(path).close()  # one that `find` could not list is refused by the system
            raise AudioError(f"{path} is a folder, not an audio file.")
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "Check the path; paths are relative to the current folder."
        raise AudioError(f"{path} does not exist.", hint) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{path} cannot be read: {reason}.", "Check its permissions.") from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path} is a pipe or a device.", "Give a regular file: it may be read twice.")
    if status.st_size == 0:
        raise AudioError(f"{path} is empty (0 bytes).", "Copy or record it again.")
    return path


def unreadable(path: Path) -> AudioError:
    """Return the error for a file that neither libsndfile nor ffmpeg reads."""
    missing = shutil.which("ffmpeg") is None
    other = "install ffmpeg for other formats" if missing else "ffmpeg could not read it either"
    return AudioError(
        f"{path} is not audio that can be read here.", f"WAV, FLAC, MP3, OGG and Opus are read as they are; {other}."
    )


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
    resampler = None
    for file_rate, samples in mixing.mixed(path, _decoded(path), channel_index(channel)):
        if file_rate == rate:
            yield samples
            continue
        resampler = resampler or soxr.ResampleStream(file_rate, rate, 1, dtype="float32")
        yield resampler.resample_chunk(samples)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def _decoded(path: Path) -> Iterator[tuple[int, Floats]]:
    """(rate, (n, channels) float32) pieces at the file's sampling rate."""
    try:
        file = open_native(path)
    except soundfile.LibsndfileError as error:
        if shutil.which("ffmpeg") is None:
            raise unreadable(path) from error
        got = 0
        for rate, frames in decoded_by_ffmpeg(path):
            yield rate, frames
            got += len(frames)
            reading_progress.report(path, got / rate, None)
        return
    with file:
        promised, got = file.frames, 0
        total = promised / file.samplerate if promised < UNKNOWN_LENGTH else None
        try:
            while len(frames := file.read(1 << 19, dtype="float32", always_2d=True)):
                yield file.samplerate, frames
                got += len(frames)
                reading_progress.report(path, got / file.samplerate, total)
        except soundfile.LibsndfileError as error:
            seconds = got / file.samplerate
            raise AudioError(f"{path} is damaged after {seconds:.1f} s.", "Copy or download it again.") from error
        check_length(path, file, promised, got)


class _ReadOnward(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read without seeking, as soundfile otherwise does after each read, even beyond the end."""

    def seekable(self) -> bool:
        return False


def open_native(path: Path) -> soundfile.SoundFile:
    """Open a file with libsndfile; `frames` is UNKNOWN_LENGTH or more where the header does not tell.

    LibsndfileError for a file that libsndfile does not read.
    """
    # As bytes, since a name need not be valid text; libsndfile on Windows needs text.
    name = str(path) if os.name == "nt" else os.fsencode(path)
    file = soundfile.SoundFile(name)
    if file.frames < UNKNOWN_LENGTH:
        return file
    file.close()
    return _ReadOnward(name)


def check_length(path: Path, file: soundfile.SoundFile, promised: int, got: int) -> None:
    """Refuse a file with less sound than its header promises, or an Ogg stream without its last page: AudioError."""
    if file.format == "WAV":  # libsndfile lowers `frames` to the actual length; only its log has the header's
        note = re.search(r"data : (\d+) \(should be (\d+)\)", file.extra_info)
        if note and int(note[1]) < 0x7FFFF000:  # streaming writers leave the largest possible number
            promised = promised * int(note[1]) // max(1, int(note[2]))
    if file.format in {"WAV", "FLAC", "MP3"} and promised < UNKNOWN_LENGTH:
        # An MP3 counts its frames in a Xing header only (else libsndfile estimates); 2 % of it may be missing.
        missing = promised - got > max(_TRUNCATION_SECONDS * file.samplerate, (file.format == "MP3") * promised * 0.02)
        has_count = file.format != "MP3" or _has_xing(path)
        if missing and has_count:
            raise AudioError(
                f"{path} is cut short: its header promises {promised / file.samplerate:.1f} s, "
                f"it holds {got / file.samplerate:.1f} s.",
                "Copy or download it again.",
            )
    if file.format == "OGG" and not _ends_well(path):
        raise AudioError(
            f"{path} is cut short: it ends after {got / file.samplerate:.1f} s, without Ogg's last page.",
            "Copy or download it again.",
        )


def _has_xing(path: Path) -> bool:
    """Whether an MP3 begins with a frame that counts the others (Xing or Info), after an ID3 tag if there is one."""
    with path.open("rb") as file:
        head = file.read(10)
        tag = 0
        if head[:3] == b"ID3":
            tag = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
        file.seek(tag)
        frame = file.read(512)
    return b"Xing" in frame or b"Info" in frame


def _ends_well(path: Path) -> bool:
    """Whether an Ogg file's last page is marked as the last (RFC 3533, header_type bit 0x04)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 17)))  # a page has at most 65,307 bytes
        tail = file.read()
    page = tail.rfind(b"OggS")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & 4)


def decoded_by_ffmpeg(path: Path) -> Iterator[tuple[int, Floats]]:
    """(rate, (n, channels) float32) pieces from ffmpeg, as Sun AU, whose header is written without seeking."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(path.resolve()), "-vn"]
    command += ["-c:a", "pcm_f32be", "-f", "au", "-"]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
        assert process.stdout is not None
        try:
            head = process.stdout.read(24)
            if len(head) == 24 and head[:4] == b".snd":
                offset, _, _, rate, count = struct.unpack(">5I", head[4:])
                process.stdout.read(offset - 24)
                size = 4 * count * (1 << 17)
                while data := process.stdout.read(size):
                    whole = len(data) // (4 * count) * (4 * count)
                    yield rate, np.frombuffer(data[:whole], dtype=">f4").astype(np.float32).reshape(-1, count)
        except GeneratorExit:  # the caller has stopped reading
            process.kill()
            raise
        failed = process.wait() != 0  # below zero when a signal ended it
        if failed or log.seek(0, os.SEEK_END) > 0:
            raise unreadable(path)


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
