"""Frames of FLAC by their headers (RFC 9639): how much sound a file holds to its end, without decoding it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_HEADER_BYTES = 16  # at most
_MIN_TAIL_BYTES = 1 << 16
_MAX_TAIL_BYTES = 1 << 20
_STREAMINFO = 42  # bytes to the end of the first block of metadata


@dataclass(frozen=True)
class FlacFrame:
    """A frame: its first sample, and how many it has per channel."""

    first: int
    samples: int


def held_samples(path: Path) -> int | None:
    """Return the samples per channel up to the last whole frame of a FLAC file; None where no frame is found."""
    with path.open("rb") as file:
        head = file.read(_STREAMINFO)
        if len(head) < _STREAMINFO or head[:4] != b"fLaC" or head[4] & 0x7F:
            return None
        block, largest = int.from_bytes(head[8:10], "big"), int.from_bytes(head[15:18], "big")
        size = file.seek(0, 2)
        file.seek(max(_STREAMINFO, size - min(_MAX_TAIL_BYTES, max(_MIN_TAIL_BYTES, 3 * largest))))
        tail = file.read()
    for match in reversed(list(_SYNC.finditer(tail))):
        frame = parse_frame(tail[match.start() : match.start() + _HEADER_BYTES], block)
        if frame is not None and _is_whole(tail[match.start() :]):
            return frame.first + frame.samples
    return None


def parse_frame(head: bytes, block: int) -> FlacFrame | None:
    """Return the frame that begins with these bytes, where frames have `block` samples unless they say otherwise."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    code, rate = head[2] >> 4, head[2] & 15
    if code == 0 or rate == 15 or head[3] >> 4 > 10:
        return None
    number, at = _number(head, 4)
    more = {6: 1, 7: 2}.get(code, 0)
    samples = int.from_bytes(head[at : at + more], "big") + 1 if more else _samples(code)
    at += more + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if number is None or at >= len(head) or _crc8(head[:at]) != head[at]:
        return None
    return FlacFrame(number if head[1] & 1 else number * block, samples)


def _samples(code: int) -> int:
    return 192 if code == 1 else 576 << (code - 2) if code < 6 else 256 << (code - 8)


def _number(head: bytes, at: int) -> tuple[int | None, int]:
    """The number that is coded as UTF-8 codes characters, up to 36 bits, and the place behind it."""
    first = head[at]
    ones = 8 - (first ^ 0xFF).bit_length()  # at the front
    more = max(0, ones - 1)
    if ones == 1 or ones == 8:
        return None, at
    number = first & 0x7F >> ones
    for byte in head[at + 1 : at + 1 + more]:
        if byte & 0xC0 != 0x80:
            return None, at
        number = number << 6 | byte & 0x3F
    return number, at + 1 + more


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF
    return crc


@cache
def _table() -> list[int]:
    """The checksum of frames, byte by byte."""
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x8005 if crc & 0x8000 else 0)) & 0xFFFF
        table.append(crc)
    return table


def _is_whole(data: bytes) -> bool:
    """Whether a frame ends somewhere in the bytes from its beginning on: behind its own checksum."""
    crc, table = 0, _table()
    for count, byte in enumerate(data, start=1):
        crc = (crc << 8 & 0xFFFF) ^ table[crc >> 8 ^ byte]
        if not crc and count > 8:
            return True
    return False
