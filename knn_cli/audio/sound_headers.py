"""What the header of an uncompressed file promises, against the bytes there are: WAV, RF64, W64, AIFF, AU, SPHERE, CAF.

libsndfile believes some headers more than the file. Here both directions are seen: a file that was cut short, and one
whose header was never finished, or counts less than there is. The samples of the latter are read from here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

MIN_UNKNOWN_BYTES = 0x7FFFF000  # writers to pipes give this size or a larger one as 32 bits, or 0
_UNKNOWN_64 = 1 << 62
_MAX_CHUNKS = 10_000
_TAGS = (b"TAG", b"ID3", b"LIST", b"APETAGEX")  # what programs append, whatever the format
_BLOCK_BYTES = 1 << 20
_LONG = (b"RF64", b"BW64")  # WAV with 64-bit sizes
_G711 = {6: "alaw", 7: "ulaw"}


@dataclass(frozen=True)
class SoundHeader:
    """Where the samples of a file lie.

    Attributes
    ----------
    start : int
        Byte at which they begin.
    promised : int or None
        Their bytes by the header; None where it does not tell.
    there : int
        Bytes from `start` to the end of the file, without other chunks behind the samples.
    rate, channels : int
    bytes_per_second : float
    numbers : str
        NumPy's name of a sample, "<i3" and ">i3" for 24 bits, "alaw" or "ulaw"; "" for encodings in blocks.
    finished : bool
        Whether the writer of the header has filled in its sizes, or marked them as unknown.
    """

    start: int
    promised: int | None
    there: int
    rate: int
    channels: int
    bytes_per_second: float
    numbers: str
    finished: bool = True

    @property
    def seconds(self) -> float:
        """Duration of the samples there are."""
        return self.there / self.bytes_per_second

    @property
    def promised_seconds(self) -> float:
        """Duration by the header, that of the samples there are where it does not tell."""
        return (self.there if self.promised is None else self.promised) / self.bytes_per_second


def read_header(path: Path) -> SoundHeader | None:
    """Return the header of a file; None for other formats, and for headers that cannot be understood."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(16)
        for beginning, parse in _PARSERS.items():
            if head.startswith(beginning):
                try:
                    header = parse(file, size)
                except (struct.error, ValueError, KeyError, OverflowError):
                    return None
                if header is None or header.start > size or header.bytes_per_second <= 0 or header.channels <= 0:
                    return None
                return header
    return None


def samples(path: Path, header: SoundHeader) -> Iterator[NDArray[Any]]:
    """Yield the samples there are, (n, channels): int32 filled from its highest bit, float32 or float64."""
    width = {"alaw": 1, "ulaw": 1}.get(header.numbers) or int(header.numbers[-1])
    frame = width * header.channels
    left = header.there // frame * frame
    with path.open("rb") as file:
        file.seek(header.start)
        while left and (data := file.read(min(left, max(1, _BLOCK_BYTES // frame) * frame))):
            left -= len(data)
            whole = len(data) // frame * frame
            yield _values(data[:whole], header.numbers).reshape(-1, header.channels)


def _values(data: bytes, numbers: str) -> NDArray[Any]:
    if numbers in ("alaw", "ulaw"):
        return (_alaw() if numbers == "alaw" else _ulaw())[np.frombuffer(data, np.uint8)].astype(np.int32) << 16
    if numbers[1:] == "i3":
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        little = numbers[0] == "<"
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)[:, :: 1 if little else -1]
        return wide.view("<i4").ravel().astype(np.int32)
    values = np.frombuffer(data, np.dtype(numbers))
    if values.dtype.kind == "f":
        return values.astype(values.dtype.newbyteorder("="))
    signed = values.astype(np.int32) - (128 if values.dtype == np.uint8 else 0)
    return signed << (32 - 8 * values.dtype.itemsize)


def _alaw() -> NDArray[np.int32]:
    """16-bit values of the 256 codes (ITU-T G.711)."""
    code = np.arange(256) ^ 0x55
    exponent, mantissa = code >> 4 & 7, code & 15
    size = np.where(exponent == 0, mantissa * 16 + 8, (mantissa * 16 + 264) << np.maximum(exponent - 1, 0))
    return np.where(code & 128, size, -size).astype(np.int32)


def _ulaw() -> NDArray[np.int32]:
    """16-bit values of the 256 codes (ITU-T G.711)."""
    code = ~np.arange(256) & 255
    size = (((code & 15) * 8 + 132) << (code >> 4 & 7)) - 132
    return np.where(code & 128, -size, size).astype(np.int32)


def _chunks(file: BinaryIO, start: int, size: int, form: str, align: int = 2) -> Iterator[tuple[bytes, int, int]]:
    """(name, position of the contents, their size) of each chunk from `start` on, up to the one that is read past."""
    width, at = struct.calcsize(form), start
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        head = file.read(width)
        if len(head) < width:
            return
        name, length = struct.unpack(form, head)
        yield name, at + width, length
        at += width + length + -length % align
        if length < 0 or at > size:
            return


def _is_chunked(file: BinaryIO, at: int, size: int, order: str) -> bool:
    """Whether nothing but chunks or a tag lie from `at` to the end of the file."""
    file.seek(at)
    rest = file.read(8)
    if rest.startswith(_TAGS):
        return True
    if not rest.strip(b"\0"):
        return all(not piece.strip(b"\0") for piece in iter(lambda: file.read(_BLOCK_BYTES), b""))
    chunks = list(_chunks(file, at, size, f"{order}4sI"))
    ends = [position + length for _, position, length in chunks]
    return (
        bool(chunks)
        and all(name.isascii() and name.decode().isprintable() for name, *_ in chunks)
        and (ends[-1] <= size)
    )


def _measured(
    size: int, start: int, promised: int | None, sound: tuple[int, int, float, str], is_rest: Callable[[int], bool]
) -> SoundHeader:
    """A header, once it is clear what lies behind the samples that it promises."""
    rate, channels, speed, numbers = sound
    there, finished = max(0, size - start), True
    if promised == 0 and there and not is_rest(start):
        promised, finished = None, False
    elif promised is not None and promised < there and is_rest(start + promised + promised % 2):
        there = promised
    elif promised is not None and promised < there and there - promised < 0.1 * speed:
        there = promised  # some bytes of padding
    return SoundHeader(start, promised, there, rate, channels, speed, numbers, finished)


def _wave_numbers(order: str, code: int, bits: int) -> str:
    if code in _G711:
        return _G711[code]
    kinds = {(1, 8): "|u1", (1, 16): "i2", (1, 24): "i3", (1, 32): "i4", (3, 32): "f4", (3, 64): "f8"}
    kind = kinds.get((code, bits), "")
    return kind if not kind or kind[0] == "|" else order + kind


def _wave_format(data: bytes, order: str) -> tuple[int, int, float, str]:
    """(rate, channels, bytes per second, numbers) of a fmt chunk."""
    code, channels, rate, speed, frame, bits = struct.unpack_from(f"{order}HHIIHH", data)
    if code == 0xFFFE and len(data) >= 26:
        code = struct.unpack_from(f"{order}H", data, 24)[0]
    numbers = _wave_numbers(order, code, bits)
    if numbers:
        bits_of_frame = channels * (8 if numbers in ("alaw", "ulaw") else 8 * int(numbers[-1]))
        if frame * 8 != bits_of_frame:
            numbers = ""
        speed = rate * frame
    return rate, channels, float(speed), numbers


def _wave(file: BinaryIO, size: int) -> SoundHeader | None:
    file.seek(0)
    head = file.read(12)
    if head[8:] != b"WAVE":
        return None
    order, sound, long_size, count = ">" if head[:4] == b"RIFX" else "<", None, None, 0
    for name, at, length in _chunks(file, 12, size, f"{order}4sI"):
        file.seek(at)
        if name == b"fmt ":
            sound = _wave_format(file.read(min(length, 64)), order)
        elif name == b"fact" and length >= 4:
            count = struct.unpack(f"{order}I", file.read(4))[0]
        elif name == b"ds64" and head[:4] in _LONG:
            long_size = struct.unpack("<QQ", file.read(16))[1]
        elif name == b"data":
            if sound is None:
                return None
            promised: int | None = length
            if head[:4] in _LONG and long_size is not None and length >= MIN_UNKNOWN_BYTES:
                promised = None if long_size >= _UNKNOWN_64 else long_size
            elif length >= MIN_UNKNOWN_BYTES and at + length > size:
                promised = None
            if not sound[2] and count:  # MP3 of varying bit rate
                sound = (*sound[:2], length * sound[0] / count, sound[3])
            return _measured(size, at, promised, sound, lambda rest: _is_chunked(file, rest, size, order))
    return None


def _wave64(file: BinaryIO, size: int) -> SoundHeader | None:
    sound, start = None, 0

    def is_rest(at: int) -> bool:
        """Whether what lies behind the samples is small enough for other chunks, whose names are not known."""
        return at > start and size - at < 1 << 16

    for name, at, length in _wave64_chunks(file, size):
        if name == b"fmt ":
            file.seek(at)
            sound = _wave_format(file.read(min(length, 64)), "<")
        elif name == b"data" and sound is not None:
            start, promised = at, None if length >= _UNKNOWN_64 else max(0, length)
            return _measured(size, at, promised, sound, is_rest)
    return None


def _wave64_chunks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(first four bytes of the name, position, size) of the chunks, which have names of 16 bytes."""
    at = 40
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        head = file.read(24)
        if len(head) < 24:
            return
        length = struct.unpack_from("<Q", head, 16)[0] - 24
        yield head[:4], at + 24, length
        at += 24 + length + -length % 8
        if length < 0 or at > size:
            return


def _extended(data: bytes) -> float:
    """A number of 80 bits (IEEE 754), as AIFF has sampling rates."""
    exponent, mantissa = struct.unpack(">HQ", data)
    return math.ldexp(mantissa, (exponent & 0x7FFF) - 16383 - 63)


def _aiff_numbers(coding: bytes, width: int) -> str:
    kinds = {b"sowt": f"<i{width}", b"42n1": "<i3", b"23ni": "<i4", b"fl32": ">f4", b"fl64": ">f8"}
    big = dict.fromkeys((b"none", b"twos", b"in16", b"in24", b"in32"), f">i{width}")
    return {**kinds, **big, b"ulaw": "ulaw", b"alaw": "alaw"}.get(coding.lower(), "")


def _aiff(file: BinaryIO, size: int) -> SoundHeader | None:
    file.seek(8)
    kind, common = file.read(4), None
    if kind not in (b"AIFF", b"AIFC"):
        return None
    for name, at, length in _chunks(file, 12, size, ">4sI"):
        file.seek(at)
        if name == b"COMM":
            data = file.read(min(length, 22))
            common = (*struct.unpack_from(">hIh", data), _extended(data[8:18]), data[18:22] or b"NONE")
        elif name == b"SSND" and common is not None:
            offset = struct.unpack(">I", file.read(4))[0]
            channels, frames, bits, rate, coding = common
            numbers = _aiff_numbers(coding, -(-bits // 8))
            frame = channels * (1 if "law" in numbers else int(numbers[-1])) if numbers else 0
            if not frame:
                return None
            promised = max(0, length - 8 - offset) if length else 0
            if frames * frame > promised and length >= 8:
                promised = frames * frame
            sound = round(rate), channels, rate * frame, numbers
            return _measured(size, at + 8 + offset, promised, sound, lambda rest: _is_chunked(file, rest, size, ">"))
    return None


def _au(file: BinaryIO, size: int) -> SoundHeader | None:
    file.seek(0)
    order = ">" if file.read(4) == b".snd" else "<"
    start, promised, coding, rate, channels = struct.unpack(f"{order}5I", file.read(20))
    kinds = {1: "ulaw", 2: "|i1", 3: f"{order}i2", 4: f"{order}i3", 5: f"{order}i4", 6: f"{order}f4", 7: f"{order}f8"}
    numbers = {**kinds, 27: "alaw"}.get(coding, "")
    if not numbers:
        return None
    sound = rate, channels, float(rate * channels * (1 if "law" in numbers else int(numbers[-1]))), numbers
    return _measured(size, start, None if promised >= MIN_UNKNOWN_BYTES else promised, sound, lambda rest: False)


def _sphere(file: BinaryIO, size: int) -> SoundHeader | None:
    file.seek(8)
    start = int(file.read(8))
    file.seek(0)
    lines = file.read(min(start, 1 << 16)).decode("ascii", "replace").splitlines()
    fields = {parts[0]: parts[2] for line in lines if len(parts := line.split(None, 2)) == 3}
    coding, width = fields.get("sample_coding", "pcm"), int(fields["sample_n_bytes"])
    rate, channels = int(fields["sample_rate"]), int(fields.get("channel_count", "1"))
    order = ">" if fields.get("sample_byte_format", "10") == "10" else "<"
    numbers = {"pcm": f"{order}i{width}", "ulaw": "ulaw", "mu-law": "ulaw", "alaw": "alaw"}.get(coding, "")
    if not numbers:
        return None
    promised = int(fields["sample_count"]) * width * channels if "sample_count" in fields else None
    sound = rate, channels, float(rate * channels * width), numbers
    return _measured(size, start, promised, sound, lambda rest: False)


def _caf(file: BinaryIO, size: int) -> SoundHeader | None:
    sound = None
    for name, at, length in _chunks(file, 8, size, ">4sq", align=1):
        file.seek(at)
        if name == b"desc":
            rate, kind, flags, frame, _, channels, bits = struct.unpack(">d4sIIIII", file.read(32))
            order, letter = "<" if flags & 2 else ">", "f" if flags & 1 else "i"
            numbers = {b"lpcm": f"{order}{letter}{bits // 8}", b"ulaw": "ulaw", b"alaw": "alaw"}.get(kind, "")
            if not numbers or not frame:
                return None
            sound = round(rate), channels, rate * frame, numbers
        elif name == b"data" and sound is not None:
            promised = None if length < 0 else max(0, length - 4)
            return _measured(size, at + 4, promised, sound, lambda rest: _is_caf_rest(file, rest, size))
    return None


def _is_caf_rest(file: BinaryIO, at: int, size: int) -> bool:
    """Whether a chunk of CAF begins at `at`, or the byte before: they are not padded."""
    for place in (at, at - 1):
        file.seek(place)
        head = file.read(12)
        if len(head) == 12 and head[:4].isalpha() and place + 12 + struct.unpack(">q", head[4:])[0] <= size:
            return True
    return False


_PARSERS: dict[bytes, Callable[[BinaryIO, int], SoundHeader | None]] = {
    b"RIFF": _wave,
    b"RIFX": _wave,
    b"RF64": _wave,
    b"BW64": _wave,
    b"riff": _wave64,
    b"FORM": _aiff,
    b".snd": _au,
    b"dns.": _au,
    b"NIST_1A": _sphere,
    b"caff": _caf,
}
