"""Recordings joined byte for byte, as `cat a.ogg b.ogg` does: where in the file each of them begins.

Decoders stop behind the first, or take the second for damage of the first. Streams without headers of their own (MP3,
ADTS, AC-3, MPEG) are no matter of this module: their frames go on, and so does every decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from knn_cli.audio import mp3_frames, sound_headers
from knn_cli.audio.decoder_process import MAX_CHANNELS, MAX_RATE, MIN_RATE

Range = tuple[int, int]  # first byte, and the one behind the last

_BLOCK_BYTES = 1 << 20
_SEEN_BYTES = 512  # of a beginning, to tell it from bytes that look like one
_MAX_BOXES = 10_000
_OGG_CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ", b"\x80theora", b"fishead\0", b"BBCD\0")


def find_parts(path: Path) -> tuple[Range, ...]:
    """Return the byte ranges of the recordings in a file, in their order; one for almost every file.

    Parameters
    ----------
    path : Path
        A regular file. Bytes before the first recording that are a tag (ID3) belong to no range where its format has
        no place for them.
    """
    status = path.stat()
    return _parts(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _parts(path: Path, size: int, changed: int) -> tuple[Range, ...]:
    """See `find_parts`; a file of another size, or changed at another time, is looked through again."""
    with path.open("rb") as file:
        first = _behind_tags(file)
        file.seek(first)
        head = file.read(_SEEN_BYTES)
        begins = next((each for each, is_one in _BEGINNINGS.items() if head.startswith(each) and is_one(head)), None)
        if head[4:8] == b"ftyp":
            starts = list(_begins_anew(file, first))
        elif begins is None:
            return ((mp3_frames.hidden_start(file, first) if first else 0, size),)
        else:
            known = first + len(begins) if first else _behind_samples(path, len(begins))
            starts = list(_beginnings(file, known, size, begins))
    return tuple(pairwise([first, *starts, size]))


def _behind_tags(file: BinaryIO) -> int:
    """The byte behind ID3 tags at the beginning of a file."""
    at = 0
    while size := mp3_frames.tag_size(file.read(10)):
        at += size
        file.seek(at)
    return at


def _behind_samples(path: Path, least: int) -> int:
    """The byte behind the samples that an uncompressed file counts; `least` for other files."""
    header = sound_headers.read_header(path)
    if header is None:
        return least
    return header.start + (header.promised or 0)


def _beginnings(file: BinaryIO, start: int, size: int, begins: bytes) -> Iterator[int]:
    """Where recordings of the same format begin, from the byte `start` on."""
    is_one, group_end = _BEGINNINGS[begins], -1
    file.seek(start)
    held, at = b"", start  # bytes not yet looked at, and the place of the first of them
    while piece := file.read(_BLOCK_BYTES):
        held += piece
        is_last = at + len(held) >= size
        place = -1
        while (place := held.find(begins, place + 1)) >= 0:
            head = held[place : place + _SEEN_BYTES]
            if len(head) < _SEEN_BYTES and not is_last:
                break
            if not is_one(head):
                continue
            if at + place != group_end:
                yield at + place
            if begins == b"OggS":  # the streams of one recording begin with a page each
                group_end = at + place + _page_size(head)
        keep = place if place >= 0 else max(0, len(held) - len(begins) + 1)
        held, at = held[keep:], at + keep


def _page_size(head: bytes) -> int:
    return 27 + head[26] + sum(head[27 : 27 + head[26]])


def mp4_boxes(file: BinaryIO, start: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, place, bytes) of each outermost box of an MP4, up to the one that is read past."""
    at = start
    for _ in range(_MAX_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        length, name = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        yield name, at, length
        if length < 8:
            return
        at += length


def _begins_anew(file: BinaryIO, start: int) -> Iterator[int]:
    """Where an MP4 begins anew: at a second `ftyp`, unless the times of its fragments go on."""
    candidate, previous = 0, b""
    for name, at, length in mp4_boxes(file, start):
        if name == b"moof" and candidate:
            file.seek(at)
            candidate = 0 if _goes_on(file.read(min(length, _BLOCK_BYTES))) else candidate
        if name in (b"moof", b"mdat") and candidate:
            yield candidate
            candidate = 0
        if name == b"ftyp" and previous not in (b"", b"ftyp"):
            candidate = at
        previous = name


def _goes_on(fragment: bytes) -> bool:
    """Whether a fragment of an MP4 begins later than at 0 (tfdt, ISO/IEC 14496-12)."""
    at = fragment.find(b"tfdt")
    return at >= 0 and any(fragment[at + 8 : at + (16 if fragment[at + 4 : at + 5] == b"\1" else 12)])


def _is_ogg(head: bytes) -> bool:
    """Whether a page is the first of a stream with sound or pictures (RFC 3533)."""
    return len(head) > 27 and head[4:6] == b"\0\x02" and head[27 + head[26] :].startswith(_OGG_CODECS)


def _is_matroska(head: bytes) -> bool:
    return b"\x42\x82" in head[:48] and (b"webm" in head[:64] or b"matroska" in head[:64])


def _is_wavpack(head: bytes) -> bool:
    """Whether a block is the first of a recording: the first of its channels, from sample 0 on, with samples."""
    if len(head) < 32:
        return False
    version, high, index, count, flags = struct.unpack_from("<8xHB5xIII", head)
    return bool(0x402 <= version <= 0x410 and high == 0 and index == 0 and count > 0 and flags & 0x800)


def _is_au(head: bytes) -> bool:
    if len(head) < 24:
        return False
    order = ">" if head.startswith(b".snd") else "<"
    start, _, coding, rate, channels = struct.unpack_from(f"{order}4x5I", head)
    possible = MIN_RATE <= rate <= MAX_RATE and 0 < channels <= MAX_CHANNELS
    return bool(possible and 24 <= start < 1 << 16 and 0 < coding < 30)


def _always(head: bytes) -> bool:
    return True


def _is_wave(head: bytes) -> bool:
    return head[8:12] == b"WAVE"


# How a recording begins -> whether it really does, by its first bytes.
_BEGINNINGS: dict[bytes, Callable[[bytes], bool]] = {
    b"OggS": _is_ogg,
    b"fLaC": lambda head: head[4:8] in (b"\0\0\0\x22", b"\x80\0\0\x22"),
    b"\x1aE\xdf\xa3": _is_matroska,
    b"wvpk": _is_wavpack,
    b"FLV\x01": lambda head: head[4] in (1, 4, 5) and head[5:9] == b"\0\0\0\x09",
    b"TTA1": lambda head: head[4:6] in (b"\1\0", b"\2\0"),
    b"Creative Voice File\x1a": _always,
    b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa\0b\xcel": _always,  # ASF
    b"#!AMR\n": _always,
    b"#!AMR-WB\n": _always,
    b"RIFF": _is_wave,
    b"RIFX": _is_wave,
    b"RF64": _is_wave,
    b"BW64": _is_wave,
    b"riff\x2e\x91\xcf\x11": _always,  # Wave64
    b"FORM": lambda head: head[8:12] in (b"AIFF", b"AIFC"),
    b".snd": _is_au,
    b"dns.": _is_au,
    b"caff\0\1\0\0desc": _always,
    b"NIST_1A\n": _always,
}
