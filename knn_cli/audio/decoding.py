"""Compressed sound through FFmpeg's libraries, which PyAV brings along: decoded in a process of its own.

A process, since a hostile file can keep a decoder busy without end, or crash it: then the process is given up, and one
file with it. It is started once, and decodes one file after the other; `decoder_process` is its program.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio.decoder_process import MAX_CHANNELS, MAX_PIECE_BYTES, MAX_RATE, MIN_RATE, SIZES
from knn_cli.audio.joined_files import mp4_boxes
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.lfs import check_pointer

Frames = NDArray[Any]  # (n, channels) in the numbers of the decoder

HEADERLESS = frozenset({".raw", ".pcm", ".sw", ".s16", ".s16le", ".ul", ".al", ".ulaw", ".alaw"})
MAX_SECONDS_WITHOUT_PROGRESS = 20
MAX_MISSING_SECONDS = 0.1  # of what a header promises, without a word about it
_MAX_IDLE = 2  # processes that wait for more files
_MAX_HEAD_BYTES = 1 << 24
_NUMBERS = {"u8": "u1", "s16": "<i2", "s32": "<i4", "s64": "<i8", "flt": "<f4", "dbl": "<f8"}
_START = "import sys; sys.path[:] = {path!r}; from knn_cli.audio.decoder_process import main; main()"


@dataclass(frozen=True)
class StreamFacts:
    """What the container says of a recording.

    Attributes
    ----------
    rate, channels : int
    seconds : float or None
        Of the whole container, where it tells.
    promised : float or None
        Of this recording, where the container counts it by itself.
    demuxer, codec, kind : str
        FFmpeg's names of the container, of the codec, and of the numbers that it decodes to.
    tracks : int
        Audio tracks in the file.
    tags : tuple of (str, str)
    """

    rate: int
    channels: int
    seconds: float | None
    promised: float | None
    demuxer: str
    codec: str
    kind: str
    tracks: int
    tags: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DecodingEnd:
    """What was found when a recording had been decoded.

    Attributes
    ----------
    seconds : float
        Its length.
    faults : tuple of str
        Clauses on what is not heard as it was recorded.
    known : bool
        Whether the length is known; packets need not tell theirs.
    """

    seconds: float
    faults: tuple[str, ...]
    known: bool = True


@dataclass
class OpenRecording:
    """A recording that a process has opened: its facts, its pieces, and after these its end."""

    facts: StreamFacts
    _process: _Process
    _after: float = 0.0  # seconds of what precedes it in the file
    end: DecodingEnd = field(default_factory=lambda: DecodingEnd(0.0, ()))

    def pieces(self) -> Iterator[tuple[int, Frames]]:
        """Yield (rate, (n, channels) array) in the decoder's numbers; rate and channels can change."""
        while True:
            answer, payload = self._process.ask({"next": True})
            if "end" in answer:
                self.end = _end(answer, self.facts.promised, self._after)
                return
            yield from _arrays(answer, payload)


@contextmanager
def opened(
    path: Path, *, track: int = 0, decode: bool = True, part: tuple[int, int] | None = None, after: float = 0.0
) -> Iterator[OpenRecording]:
    """Open a file for decoding.

    Parameters
    ----------
    path : Path
    track : int
        Which audio track, from 1; 0 for the first.
    decode : bool
        Whether the samples are wanted, or only `end`.
    part : tuple of int, optional
        Which bytes of the file are the recording; see `joined_files`.
    after : float
        Seconds of the recordings that precede it in the file, for what is said of times.

    Raises
    ------
    AudioError
        If it holds no sound that FFmpeg reads, or lacks the track, or keeps its decoder busy without progress.
    """
    process = _processes.take(path)
    try:
        name = os.fsencode(path.absolute()).hex()
        answer, _ = process.ask({"open": name, "track": track, "decode": decode, "part": part}, path)
        yield OpenRecording(_facts(path, answer, track), process, after)
        process.ask({"close": True})
    except AudioError:
        with suppress(AudioError):  # it may be what has failed
            process.ask({"close": True})
        raise
    except BaseException:  # such as a signal, or a caller that has stopped: an answer may be on its way
        process.end()
        raise
    finally:
        _processes.give_back(process)


def _facts(path: Path, answer: dict[str, Any], track: int) -> StreamFacts:
    check_track(path, track, answer.get("tracks", track))
    if answer.get("error") == "no sound":
        raise AudioError(f"{path} holds no sound: it has no audio track.", "Give a recording that has one.")
    if "error" in answer:
        raise unreadable(path)
    rate, channels = answer["rate"], answer["channels"]
    check_numbers(path, rate, channels)
    names = "rate channels seconds promised demuxer codec kind tracks".split()
    return StreamFacts(**{name: answer[name] for name in names}, tags=tuple(answer["tags"].items()))


def check_track(path: Path, track: int, count: int) -> None:
    """Refuse a track, from 1 or 0 for the first, that a file with so many audio tracks lacks: AudioError."""
    if track > count:
        raise AudioError(
            f"{path} has {count} audio track{'s' * (count > 1)}, not track {track}.",
            "Try `channel=1:mix`, which is its first track.",
        )


def check_numbers(path: Path, rate: int, channels: int) -> None:
    """Refuse sampling rates and numbers of channels that no recording has: AudioError."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(
            f"{path} says that it has {rate:,} samples per second.",
            f"Recordings have {MIN_RATE:,} to {MAX_RATE:,}; its header is damaged or of another format.",
        )
    if not 0 < channels <= MAX_CHANNELS:
        raise AudioError(
            f"{path} says that it has {channels:,} channels.", f"At most {MAX_CHANNELS} can be read; split the file."
        )


def unreadable(path: Path) -> AudioError:
    """Return the error for a file that no decoder reads."""
    try:
        check_pointer(path)
    except KnnError as error:
        return AudioError(error.message, error.hint)
    if path.suffix.lower() in HEADERLESS:
        return AudioError(
            f"{path} has no header, so its sampling rate is unknown.",
            "Make a WAV of it: ffmpeg -f s16le -ar 16000 -ac 1 -i FILE out.wav (or sox, with -t wav).",
        )
    with path.open("rb") as file:
        head = file.read(1024)
        if head[4:8] == b"ftyp" and b"moov" not in {name for name, *_ in mp4_boxes(file)}:
            return AudioError(
                f"{path} is cut short: the index (moov) that an MP4 may have at its end is not there.",
                "Copy or download it again; a recorder that was stopped leaves such files.",
            )
    if head.startswith(b"NIST_1A") and b"shorten" in head:
        return AudioError(
            f"{path} is a SPHERE file compressed by Shorten, damaged or not known here.", "Expand it first."
        )
    return AudioError(
        f"{path} is not audio that can be read here.",
        "WAV, FLAC, MP3, OGG, Opus, M4A, MP4, WebM, MKV and others are; is the file whole, and is it sound?",
    )


def _end(answer: dict[str, Any], promised: float | None, after: float) -> DecodingEnd:
    faults, total = [], answer["end"]
    if answer["packets"]:
        at, lost = after + answer["first"], answer["seconds"]
        faults.append(f"{lost:.2f} s of {after + total:.1f} s could not be decoded, first at {at:.1f} s")
    elif answer["skipped"]:
        at = after + answer["skipped_at"]
        faults.append(f"{answer['skipped']:,} bytes at {at:.1f} s are no sound and were skipped")
    if answer["overlap"] and answer["overlap"][0] > 0.1:
        seconds, at = answer["overlap"]
        faults.append(
            f"{seconds:.1f} s from {after + at:.1f} s on lie over sound that was there before, and were left out"
        )
    if promised is not None and total < promised - MAX_MISSING_SECONDS and not answer["unknown_length"]:
        faults.append(f"its header promises {promised:.1f} s, it holds {total:.1f} s")
    if answer["missing"]:
        seconds, at = answer["missing"]
        faults.append(f"{seconds:.1f} s from {after + at:.1f} s on are missing")
    return DecodingEnd(total, tuple(faults), not answer["unknown_length"])


def _arrays(answer: dict[str, Any], payload: bytes) -> Iterator[tuple[int, Frames]]:
    """The arrays of an answer: one of sound, or as many as its silence needs."""
    rate, channels = answer["rate"], answer["channels"]
    left = answer.get("silence", 0)
    while left:
        count = min(left, 1 << 19)
        yield rate, np.zeros((count, channels), dtype=np.float32)
        left -= count
    if "form" in answer:
        planar, kind = answer["form"].endswith("p"), answer["form"].removesuffix("p")
        values = np.frombuffer(payload, dtype=_NUMBERS[kind])
        yield rate, values.reshape(channels, -1).T if planar else values.reshape(-1, channels)


class _Process:
    """A running `decoder_process`, and what is asked of it."""

    def __init__(self) -> None:
        path = [place for place in sys.path if place]
        numbers = str(MAX_SECONDS_WITHOUT_PROGRESS), str(os.getpid())
        command = [sys.executable, "-I", "-S", "-c", _START.format(path=path), *numbers]
        self._running = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.owner = os.getpid()
        self._path = Path()

    @property
    def usable(self) -> bool:
        return self.owner == os.getpid() and self._running.poll() is None

    def ask(self, request: dict[str, Any], path: Path | None = None) -> tuple[dict[str, Any], bytes]:
        """Return the answer to a request, and its bytes. AudioError if there is none, about the file asked for last."""
        self._path = path or self._path
        to, answers = self._running.stdin, self._running.stdout
        assert to is not None and answers is not None
        try:
            to.write(json.dumps(request).encode() + b"\n")
            to.flush()
            sizes = answers.read(SIZES.size)
            if len(sizes) == SIZES.size:
                head, size = SIZES.unpack(sizes)
                if head <= _MAX_HEAD_BYTES and size <= 2 * MAX_PIECE_BYTES:
                    text, payload = answers.read(head), answers.read(size)
                    if len(text) == head and len(payload) == size:
                        return json.loads(text), payload
        except (BrokenPipeError, ValueError):
            pass
        except BaseException:
            self.end()
            raise
        raise self._failed()

    def _failed(self) -> AudioError:
        """What to say of a file in which the process ended."""
        code = self.end()
        if code == -getattr(signal, "SIGALRM", 0):
            reason = f"its decoder made no progress for {MAX_SECONDS_WITHOUT_PROGRESS} s"
        else:
            reason = "its decoder failed"
        return AudioError(
            f"{self._path} could not be read: {reason}.", "The file is damaged; copy or download it again."
        )

    def end(self) -> int:
        """End the process; return its exit status, below zero where a signal had ended it before."""
        with suppress(subprocess.TimeoutExpired):
            self._running.wait(timeout=0.2)
        if self._running.poll() is None:
            self._running.kill()
        for pipe in (self._running.stdin, self._running.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()
        return self._running.wait()


class _Processes:
    """The processes of this program that wait for files."""

    def __init__(self) -> None:
        self._idle: list[_Process] = []
        self._lock = threading.Lock()

    def take(self, path: Path) -> _Process:
        """A process that waits, or a new one."""
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.usable:
                    return process
        if find_spec("av") is None:
            raise AudioError(f"{path} cannot be read without PyAV.", "Install it: pip install av")
        return _Process()

    def give_back(self, process: _Process) -> None:
        """Keep a process for the next file, if it is fit for one."""
        with self._lock:
            if process.usable and len(self._idle) < _MAX_IDLE:
                self._idle.append(process)
                return
        if process.owner == os.getpid():
            process.end()

    def end(self) -> None:
        for process in self._idle:
            if process.owner == os.getpid():
                process.end()
        self._idle.clear()


_processes = _Processes()
atexit.register(_processes.end)
