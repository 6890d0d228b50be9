"""Frames of MPEG audio, layer III, by their headers: where damage or tags hide them, and how many are counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version
_KILOBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG-1
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG-2 and 2.5
}
_TAG_HEAD = 10  # bytes
_MAX_TAG_BYTES = 1 << 24
_SURE_FRAMES = 4  # in a row that no picture in a tag has by chance
_MOST_MISSING = 100  # times the bytes there are: a larger count is damaged itself

MAX_FRAME_BYTES = 1441
MIN_FRAME_BYTES = 24


@dataclass(frozen=True)
class Mp3Frame:
    """A frame: its bytes, its samples per channel, and samples per second."""

    size: int
    samples: int
    rate: int


def parse_frame(head: bytes) -> Mp3Frame | None:
    """Return the frame that begins with these four bytes; None if none does, or one of free format."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, kilobits, index = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or index == 3 or not 0 < kilobits < 15:
        return None
    rate, samples = _RATES[version][index], 1152 if version == 3 else 576
    size = samples // 8 * _KILOBITS[version == 3][kilobits] * 1000 // rate + (head[2] >> 1 & 1)
    return Mp3Frame(size, samples, rate)


def find_frames(data: bytes) -> Iterator[tuple[int, Mp3Frame]]:
    """Yield the position of each frame in bytes that hold others too; each is followed by another, or by the end."""
    at = 0
    while (at := data.find(b"\xff", at)) >= 0:
        frame = parse_frame(data[at : at + 4])
        end = at + frame.size if frame is not None else 0
        if frame is None or end > len(data) or (end < len(data) and parse_frame(data[end : end + 4]) is None):
            at += 1
            continue
        yield at, frame
        at = end


def is_count(frame: bytes) -> bool:
    """Whether a frame holds no sound, but the number of the others (Xing, Info)."""
    return b"Xing" in frame[:48] or b"Info" in frame[:48]


def tag_size(head: bytes) -> int:
    """Bytes of the ID3 tag that begins with these ten bytes; 0 for other bytes."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])


def counted_seconds(path: Path) -> float | None:
    """Return the seconds by an MP3's first frame, if it counts the others (Xing, Info), behind an ID3 tag or not."""
    with path.open("rb") as file:
        file.seek(tag_size(file.read(10)))
        first = file.read(512)
        size = file.seek(0, 2)
    frame, at = parse_frame(first[:4]), max(first.find(b"Xing"), first.find(b"Info"))
    if frame is None or at < 0 or len(first) < at + 12 or not first[at + 7] & 1:
        return None
    count = int.from_bytes(first[at + 8 : at + 12], "big")
    return count * frame.samples / frame.rate if count * MIN_FRAME_BYTES <= size * _MOST_MISSING else None


def hidden_start(file: BinaryIO, tag_end: int) -> int:
    """Return where the frames of an MP3 begin whose tag claims to end amid them, or behind the file; 0 for others."""
    file.seek(_TAG_HEAD)
    data = file.read(min(_MAX_TAG_BYTES, tag_end + 4 * MAX_FRAME_BYTES))
    start = end = count = 0
    for at, frame in find_frames(data):
        if at != end:
            start, count = at, 0
        end, count = at + frame.size, count + 1
        if count == _SURE_FRAMES and tag_end > _TAG_HEAD + len(data):
            return _TAG_HEAD + start
        if count >= _SURE_FRAMES and _TAG_HEAD + start < tag_end < _TAG_HEAD + end:
            return _TAG_HEAD + start
    return 0
