"""A file as pieces of sound in its own sampling rate and channels, whichever library decodes it.

libsndfile reads uncompressed formats and FLAC, where it is exact and quick; `decoding` reads all others, FLAC that is
damaged or was written to a pipe, and recordings joined byte for byte. Headers are checked against the bytes there are.
What can be heard is given, with a note on what cannot; only a file that holds less than its own count of samples is
refused as cut short.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

from knn_cli.audio import decoding, flac_frames, mp3_frames, reading_notes, sound_headers
from knn_cli.audio.joined_files import Range, find_parts
from knn_cli.audio.sound_headers import SoundHeader
from knn_cli.core.errors import AudioError
from knn_cli.core.urls import UrlPath

Numbers = Literal["float32", "float64", "int32"]

UNKNOWN_LENGTH = 1 << 62  # frames of a FLAC that was written to a pipe, as libsndfile has them
MAX_EXACT_BYTES = 1 << 20  # compressed files up to this size are decoded to learn their length
_BLOCK_FRAMES = {"float32": 1 << 19, "float64": 1 << 17, "int32": 1 << 17}  # decoded at once, of up to 8 channels
_SILENT = 1e-3  # of full scale
_MAX_MISSING = 0.02  # of an MP3's own count, ...
_MAX_PADDING = 0.3  # ... which includes what encoders add, in seconds
# Beginnings of files that libsndfile reads first.
_NATIVE = (
    b"RIFF",
    b"RIFX",
    b"RF64",
    b"riff",
    b"FORM",
    b".snd",
    b"dns.",
    b"caff",
    b"NIST_1A",
    b"Creative Voice",
    b"fLaC",
)
# FFmpeg's names of codecs whose files libsndfile writes -> its names of format and subtype.
_WRITABLE = {
    ("mp3", "mp3float"): ("MP3", "MPEG_LAYER_III"),
    ("ogg", "vorbis"): ("OGG", "VORBIS"),
    ("ogg", "opus"): ("OGG", "OPUS"),
}
_TAGS = {name: name for name in "title copyright artist comment date album license tracknumber genre".split()}
_TAGS |= {"track": "tracknumber", "year": "date"}


@dataclass(frozen=True)
class SourceFacts:
    """What a file is.

    Attributes
    ----------
    format, subtype : str
        libsndfile's names, or FFmpeg's where libsndfile has none.
    rate, channels : int
    seconds : float or None
        Length by the header; None where it does not tell, or may be wrong.
    estimate : float or None
        About how long it is, for progress.
    tracks : int
        Audio tracks; all but some video files have one.
    tags : tuple of (str, str)
        By libsndfile's names.
    """

    format: str
    subtype: str
    rate: int
    channels: int
    seconds: float | None
    estimate: float | None
    tracks: int = 1
    tags: tuple[tuple[str, str], ...] = ()


def existing_file(path: Path | str) -> Path:
    """Return the path of a file that is not empty. AudioError if it is missing, empty or no regular file."""
    if isinstance(path, UrlPath):
        raise AudioError(f"{path} is a URL, which is not read here.", "Copy it to a file first.")
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            os.scandir(path).close()  # one that `find` could not list is refused by the system
            raise AudioError(f"{path} is a folder, not an audio file.")
        if stat.S_ISREG(status.st_mode):
            path.open("rb").close()
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


def facts(path: Path, *, track: int = 0) -> SourceFacts:
    """Return what a file is, from its header.

    AudioError for a file that is not audio, lacks the track, or is cut short by its own count.
    """
    header, file = _checked_header(path), _open_native(path, track)
    if file is None:
        parts = find_parts(path)
        with decoding.opened(path, track=track, decode=False, part=_range(path, parts[0])) as recording:
            stream = recording.facts
        known = _WRITABLE.get((stream.demuxer, stream.codec), (stream.demuxer.upper(), stream.codec.upper()))
        if stream.demuxer == "flac":
            known = "FLAC", "PCM_16" if stream.kind == "s16" else "PCM_24"
        tags = tuple((_TAGS[name.lower()], text) for name, text in stream.tags if name.lower() in _TAGS and text)
        return SourceFacts(*known, stream.rate, stream.channels, None, stream.seconds, stream.tracks, tags)
    with file:
        tags = tuple((name, text) for name, text in file.copy_metadata().items() if text and name != "software")
        seconds: float | None = file.frames / file.samplerate
        if header is not None and _is_read_here(header):
            seconds = header.seconds
            _note_count(path, header)
        elif file.frames >= UNKNOWN_LENGTH:
            seconds = None
        elif file.format == "FLAC":
            _check_flac(path, file)
        return SourceFacts(file.format, file.subtype, file.samplerate, file.channels, seconds, seconds, tags=tags)


def length(path: Path, *, track: int = 0) -> float:
    """Return the seconds of a file whose header does not tell them; large files are not decoded but counted.

    Raises
    ------
    AudioError
        As of `pieces`.
    """
    if path.stat().st_size > MAX_EXACT_BYTES:
        ends = list(_ends(path, track))
        if all(end.known for end in ends):
            _tell(path, [fault for end in ends for fault in end.faults])
            return sum(end.seconds for end in ends)
    samples: Counter[int] = Counter()
    for rate, frames in pieces(path, "float32", track=track):
        samples[rate] += len(frames)
    return sum(count / rate for rate, count in samples.items())


def _ends(path: Path, track: int) -> Iterator[decoding.DecodingEnd]:
    """The end of each recording in a file, whose packets are counted."""
    seconds, parts = 0.0, find_parts(path)
    _note_parts(path, parts)
    for part in parts:
        with decoding.opened(path, track=track, decode=False, part=_range(path, part), after=seconds) as recording:
            for _ in recording.pieces():
                pass
        seconds += recording.end.seconds
        yield recording.end


def pieces(path: Path, numbers: Numbers, *, track: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (rate, (n, channels) array) from a file's beginning to its end.

    Parameters
    ----------
    path : Path
    numbers : str
        What the samples are: "float32" or "float64" with 1.0 as full scale, or "int32", filled from the highest bit.
    track : int
        Which audio track, from 1; 0 for the first.

    Raises
    ------
    AudioError
        If the file is not audio, lacks the track, or is cut short by its own count.
    """
    header, file = _checked_header(path), _open_native(path, track)
    if file is None:
        yield from _decoded(path, numbers, track)
        return
    with file:
        if header is not None and _is_read_here(header):
            yield from _to_the_end(path, header, numbers)
        elif file.frames >= UNKNOWN_LENGTH:
            yield from _decoded(path, numbers, track)
        else:
            if file.format == "FLAC":
                _check_flac(path, file)
            yield from _read_native(path, file, numbers)


def _checked_header(path: Path) -> SoundHeader | None:
    """The header of an uncompressed file; AudioError for one that holds less than its header promises."""
    header = sound_headers.read_header(path)
    if header is not None:
        _check_count(path, header.promised_seconds, header.seconds)
    return header


def _is_read_here(header: SoundHeader) -> bool:
    """Whether libsndfile would not read the samples to their end."""
    there_are_more = header.promised is not None and header.promised < header.there
    return bool(header.numbers) and (there_are_more or not header.finished)


def _open_native(path: Path, track: int) -> soundfile.SoundFile | None:
    """The file, opened by libsndfile; None if FFmpeg is to read it."""
    with path.open("rb") as opened:
        head = opened.read(16)
    if not head.startswith(_NATIVE) or len(find_parts(path)) > 1:
        return None
    decoding.check_track(path, track, 1)
    try:
        file = open_native(path)
    except soundfile.LibsndfileError:
        return None
    if file.subtype == "MPEG_LAYER_III":  # in WAV, whose length libsndfile guesses
        file.close()
        return None
    return file


def open_native(path: Path) -> soundfile.SoundFile:
    """Open a file with libsndfile; LibsndfileError if it cannot, AudioError for numbers that no recording has."""
    # As bytes, since a name need not be valid text; libsndfile on Windows needs text.
    file = _ReadOnward(str(path) if os.name == "nt" else os.fsencode(path))
    try:
        decoding.check_numbers(path, file.samplerate, file.channels)
    except AudioError:
        file.close()
        raise
    return file


class _ReadOnward(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read without seeking, as soundfile otherwise does after each read, even beyond the end."""

    def seekable(self) -> bool:
        return False


def _read_native(path: Path, file: soundfile.SoundFile, numbers: Numbers) -> Iterator[tuple[int, NDArray[Any]]]:
    """The pieces of libsndfile; where a FLAC is damaged, those of FFmpeg from there on."""
    promised, got, rate = file.frames, 0, file.samplerate
    size = _BLOCK_FRAMES[numbers] * 8 // max(8, file.channels)
    try:
        while len(frames := file.read(size, dtype=numbers, always_2d=True)):
            yield rate, frames
            got += len(frames)
    except soundfile.LibsndfileError as error:
        if file.format != "FLAC":
            raise AudioError(f"{path} is damaged after {got / rate:.1f} s.", "Copy or download it again.") from error
        skip = got
        for other_rate, frames in _decoded(path, numbers, 0):
            if len(frames) > skip:
                yield other_rate, frames[skip:]
                got += len(frames) - skip
            skip = max(0, skip - len(frames))
    if file.format == "FLAC":
        _check_count(path, promised / rate, got / rate)


def _check_count(path: Path, promised: float, seconds: float, allowed: float = decoding.MAX_MISSING_SECONDS) -> None:
    """Refuse a file with less sound than its header counts: AudioError."""
    if promised - seconds > allowed:
        raise AudioError(
            f"{path} is cut short: its header promises {promised:.1f} s, it holds {seconds:.1f} s.",
            "Copy or download it again.",
        )


def _to_the_end(path: Path, header: SoundHeader, numbers: Numbers) -> Iterator[tuple[int, NDArray[Any]]]:
    """All samples there are, where the header counts fewer or none."""
    for frames in sound_headers.samples(path, header):
        yield header.rate, _converted(frames, numbers)
    _note_count(path, header)


def _note_count(path: Path, header: SoundHeader) -> None:
    """Say how much is read, where the header counts less or nothing."""
    if header.promised is None:
        clause = f"has a header that was never finished; all {header.seconds:.1f} s behind it are read"
    else:
        clause = f"counts {header.promised_seconds:.1f} s in its header; all {header.seconds:.1f} s are read"
    reading_notes.note(path, clause, loss=True)


def _check_flac(path: Path, file: soundfile.SoundFile) -> None:
    """Refuse a FLAC whose last frames are not there: AudioError."""
    held = flac_frames.held_samples(path)
    if held is not None:
        _check_count(path, file.frames / file.samplerate, held / file.samplerate)


def _range(path: Path, part: Range) -> Range | None:
    """The bytes of a file that are decoded; None for all."""
    return None if part == (0, path.stat().st_size) else part


def _note_parts(path: Path, parts: tuple[Range, ...]) -> None:
    if len(parts) > 1:
        reading_notes.note(path, f"is {len(parts)} recordings, one behind the other; all of them are read")


def _decoded(path: Path, numbers: Numbers, track: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """The pieces of FFmpeg, and notes on what they lack."""
    seconds, faults, parts = 0.0, list[str](), find_parts(path)
    _note_parts(path, parts)
    for part in parts:
        try:
            with decoding.opened(path, track=track, part=_range(path, part), after=seconds) as recording:
                sound = recording.pieces()
                if not track and recording.facts.tracks > 1:
                    sound = _first_of_tracks(path, recording.facts.tracks, sound)
                for rate, frames in sound:
                    yield rate, _converted(frames, numbers)
        except AudioError:
            if part == parts[0]:
                raise
            faults.append(f"the recording behind {seconds:.1f} s cannot be read")
            continue
        seconds += recording.end.seconds
        faults.extend(recording.end.faults)
        if recording.facts.demuxer == "ogg" and not _ends_well(path, part[1]):
            faults.append(f"it ends without Ogg's last page; {seconds:.1f} s are read")
    promised = mp3_frames.counted_seconds(path) if recording.facts.demuxer == "mp3" else None
    if promised is not None and not faults:
        _check_count(path, promised, seconds, max(_MAX_PADDING, _MAX_MISSING * promised))
    _tell(path, faults)


def _first_of_tracks(
    path: Path, count: int, sound: Iterator[tuple[int, NDArray[Any]]]
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The pieces of the first of several tracks, with a note on the others, above all where there is nothing in it."""
    reading_notes.note(path, f"has {count} audio tracks, of which the first is read; `channel=2:mix` reads another")
    is_silent = True
    for rate, frames in sound:
        is_silent = is_silent and float(np.abs(_converted(frames, "float32")).max(initial=0.0)) < _SILENT
        yield rate, frames
    if is_silent:
        clause = f"is silent in the first of its {count} audio tracks; `channel=2:mix` reads the second"
        reading_notes.note(path, clause, loss=True)


def _tell(path: Path, faults: list[str]) -> None:
    if faults:
        reading_notes.note(path, f"is damaged: {'; '.join(faults)}", loss=True)


def _converted(frames: NDArray[Any], numbers: Numbers) -> NDArray[Any]:
    """Samples of any type as the given one; floats have 24 bits as integers."""
    if frames.dtype.kind == "f":
        if numbers != "int32":
            return frames.astype(numbers, copy=False)
        top = 2**23
        return np.clip(np.rint(frames.astype(np.float64) * top), -top, top - 1).astype(np.int32) << 8
    bits = 8 * frames.dtype.itemsize
    if frames.dtype.kind == "u":
        frames = frames.astype(np.int32) - (1 << bits - 1)
    if numbers == "int32":
        return (frames >> 32).astype(np.int32) if bits == 64 else frames.astype(np.int32) << 32 - bits
    scaled: NDArray[Any] = (frames / np.float64(1 << bits - 1)).astype(numbers)
    return scaled


def _ends_well(path: Path, end: int) -> bool:
    """Whether the last page of an Ogg stream that ends at this byte is marked so (RFC 3533, header_type bit 0x04)."""
    with path.open("rb") as file:
        size = min(end, 1 << 17)  # a page has at most 65,307 bytes
        file.seek(end - size)
        tail = file.read(size)
    page = tail.rfind(b"OggS")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & 4)
