"""Damaged inputs: sound ones with bits, bytes, fields, members and values changed, each from a seed."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]

NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
# What a word, a field or a value of text is replaced by.
WORDS = (
    "",
    " ",
    "0",
    "-1",
    "1e308",
    "1e-308",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "99999999999999999999",
    "0x10",
    "1_000",
    "½",
    "٣",
    "true",
    "null",
    "None",
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\u00a0",
    "\ufeff",
    "ž" * 300,
    "a" * 70000,
    "=1+1",
    '"',
    "'",
    ",",
    "\t",
    "\n",
    "\r",
    "..",
    "/etc/passwd",
    "<NA>",
    "[1, 2]",
    "{}",
    "é",
    "\ud800",
)
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**70,
    1e308,
    float("nan"),
    float("inf"),
    0.5,
    "",
    "x",
    "NaN",
    [],
    {},
    [1],
    [None],
    {"a": 1},
    [[[]]],
    "a" * 10000,
    [0] * 1000,
)


def _place(draw: random.Random, data: bytes) -> int:
    """A place in the data; in the first bytes, where headers are, more often."""
    if not data:
        return 0
    return draw.randrange(min(len(data), 128)) if draw.random() < 0.5 else draw.randrange(len(data))


def flip_bits(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[_place(draw, data)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def set_bytes(draw: random.Random, data: bytes) -> bytes:
    place, length = _place(draw, data), draw.choice((1, 2, 4, 8, 64, 1024))
    filled = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80", b" ", b"\n")) * length
    piece = draw.choice((filled, draw.randbytes(length)))
    return data[:place] + piece + data[place + length :]


def set_number(draw: random.Random, data: bytes) -> bytes:
    place, number = _place(draw, data), draw.choice(NUMBERS)
    kind = draw.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(kind)
    return data[:place] + struct.pack(kind, number % 2 ** (8 * size)) + data[place + size :]


def cut(draw: random.Random, data: bytes) -> bytes:
    return data[: _place(draw, data)]


def cut_start(draw: random.Random, data: bytes) -> bytes:
    return data[_place(draw, data) :]


def leave_out(draw: random.Random, data: bytes) -> bytes:
    place = _place(draw, data)
    return data[:place] + data[place + draw.choice((1, 2, 4, 100, 4096)) :]


def insert(draw: random.Random, data: bytes) -> bytes:
    place = _place(draw, data)
    return data[:place] + draw.randbytes(draw.choice((1, 2, 4, 100))) + data[place:]


def repeat(draw: random.Random, data: bytes) -> bytes:
    place, length = _place(draw, data), draw.choice((1, 16, 512, len(data)))
    return data[:place] + data[place : place + length] * draw.choice((2, 3, 20)) + data[place + length :]


def exchange(draw: random.Random, data: bytes) -> bytes:
    one, two = sorted((_place(draw, data), _place(draw, data)))
    return data[:one] + data[two:] + data[one:two]


def junk(draw: random.Random, data: bytes) -> bytes:
    return draw.choice(
        (b"", b"\0" * 1000, draw.randbytes(1000), data * 2, data + draw.randbytes(1000), b"<html></html>")
    )


BYTES: tuple[Mutation, ...] = (
    *(
        flip_bits,
        flip_bits,
        set_bytes,
        set_number,
        set_number,
        set_number,
        cut,
        cut,
        cut_start,
        leave_out,
        insert,
        repeat,
    ),
    *(exchange, junk),
)


def replace_words(draw: random.Random, data: bytes) -> bytes:
    words = list(re.finditer(rb"[^\s,;\"{}:\[\]=]+", data))
    changed = data
    for word in sorted(draw.sample(words, min(len(words), draw.choice((1, 1, 2, 5)))), key=lambda one: -one.start()):
        new = draw.choice(WORDS).encode("utf-8", "surrogatepass")
        changed = changed[: word.start()] + new + changed[word.end() :]
    return changed


def change_lines(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    number = draw.randrange(len(lines))
    separator = draw.choice((b" ", b"\t", b",", b"  "))
    how = draw.randrange(8)
    if how == 0:
        del lines[number]
    elif how == 1:
        lines.insert(number, draw.choice(lines))
    elif how == 2:
        lines[number] = separator.join(lines[number].split()[:-1]) + b"\n"
    elif how == 3:
        lines[number] = lines[number].rstrip() + separator + b"more\n"
    elif how == 4:
        lines.insert(number, draw.choice((b"\n", b"#\n", b"   \n", b"\xff\xfe\n", b"\0\n", b"\xef\xbb\xbf\n")))
    elif how == 5:
        draw.shuffle(lines)
    elif how == 6:
        lines = [line.replace(b"\n", draw.choice((b"\r\n", b"\r", b"\x85"))) for line in lines]
    else:
        lines = [draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) + lines[0], *lines[1:]]
    return b"".join(lines)


def encode_anew(draw: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(draw.choice(("utf-16", "utf-32", "latin-1", "utf-8-sig", "cp037")), "replace")


TEXT: tuple[Mutation, ...] = (
    replace_words,
    replace_words,
    replace_words,
    change_lines,
    change_lines,
    encode_anew,
    *BYTES,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += _places(inner, (*path, key))
    return found


def change_value(draw: random.Random, value: Any) -> Any:
    """A JSON value with one of its inner values replaced, left out, renamed, doubled or nested."""
    path = draw.choice(_places(value))
    if not path:
        return draw.choice(VALUES)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    how = draw.randrange(6)
    if how == 0:
        del parent[path[-1]]
    elif how == 1 and isinstance(parent, dict):
        parent[draw.choice(("", "x", "name", "\0", "ž"))] = parent.pop(path[-1])
    elif how == 2 and isinstance(parent, list):
        parent.extend(parent * draw.choice((1, 20)))
    elif how == 3:
        parent[path[-1]] = [parent[path[-1]]]
    elif how == 4 and isinstance(parent[path[-1]], (int, float)) and not isinstance(parent[path[-1]], bool):
        parent[path[-1]] = draw.choice(
            (-parent[path[-1]], parent[path[-1]] * 1000, parent[path[-1]] + 1, 10**6, 10**12, 0)
        )
    else:
        parent[path[-1]] = draw.choice(VALUES)
    return value


def change_json(draw: random.Random, data: bytes) -> bytes:
    value = json.loads(data)
    for _ in range(draw.choice((1, 1, 1, 3))):
        if isinstance(value, (dict, list)):
            value = change_value(draw, value)
    return json.dumps(value).encode()


def change_safetensors(draw: random.Random, data: bytes) -> bytes:
    """The header of weights."""
    size = int.from_bytes(data[:8], "little")
    header = change_json(draw, data[8 : 8 + size])
    claimed = len(header) if draw.random() < 0.8 else draw.choice(NUMBERS) % 2**64
    return claimed.to_bytes(8, "little") + header + data[8 + size :]


def change_zip(draw: random.Random, data: bytes) -> bytes:
    """A member of an archive, with a sound checksum: what a reader of zip files lets pass."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(sorted(members))
    how = draw.randrange(6)
    if how == 0:
        del members[name]
    elif how == 1:
        members[draw.choice(("x.npy", "", "../x", "name", "data.npy"))] = members.pop(name)
    elif how == 2 and members[name][:6] == b"\x93NUMPY":
        header = replace_words(draw, members[name][10:128]).ljust(118)
        members[name] = members[name][:8] + struct.pack("<H", len(header)) + header + members[name][128:]
    elif how == 3:
        members[name] = members[draw.choice(sorted(members))]
    else:
        members[name] = draw.choice(BYTES)(draw, members[name])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for key, value in members.items():
            archive.writestr(key, value)
    return out.getvalue()


def change_gzip(draw: random.Random, data: bytes) -> bytes:
    return gzip.compress(draw.choice(TEXT)(draw, gzip.decompress(data)), mtime=0)


def change_tar(draw: random.Random, data: bytes) -> bytes:
    """A field of a member's header, with a sound checksum, or a member's data."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(one.offset, one.offset_data, one.size) for one in archive.getmembers()]
    offset, start, size = draw.choice(members)
    if draw.random() < 0.5:
        piece = draw.choice(BYTES)(draw, data[start : start + size])
        return data[:start] + piece[:size].ljust(size, b"\0") + data[start + size :]
    header = bytearray(data[offset : offset + 512])
    field, length = draw.choice(((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
    values = (
        b"",
        b"../x.wav",
        b"/etc/x",
        b"7" * 11,
        b"\x80" + b"\xff" * 11,
        b"x.cls",
        b"1",
        b"2",
        b"3",
        b"x",
        b"L",
        b"S",
        b"\xff",
    )
    header[field : field + length] = draw.choice(values)[:length].ljust(length, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:offset] + bytes(header) + data[offset + 512 :]


def change_hdf5(draw: random.Random, data: bytes) -> bytes:
    """A dataset or an attribute, written by HDF5 itself: left out, renamed, of another type, shape or value."""
    import h5py
    import numpy as np

    memory = io.BytesIO(data)
    with h5py.File(memory, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = draw.choice([*names, ""]) if names else ""
        place = file[name] if name else file
        attributes = list(place.attrs)
        arrays = (
            np.zeros(0),
            np.zeros((0, 3)),
            np.float64("nan"),
            np.full(5, np.nan),
            np.arange(7),
            np.zeros((2, 2, 2)),
            -1,
            2**40,
            np.full((4, 24), 1e300),
            np.bytes_(b"\xff"),
            "x",
            "",
            "\ud7ff",
            np.zeros(3, "c8"),
            np.zeros(3, bool),
            h5py.Empty("f"),
            np.zeros(2, [("a", "f4")]),
            np.array([b"a", b"b"]),
        )
        value = draw.choice(arrays)
        if not name or (attributes and draw.random() < 0.4):
            key = draw.choice([*attributes, "x"])
            if key in place.attrs and draw.random() < 0.3:
                del place.attrs[key]
            else:
                place.attrs[key] = value
            return _closed(file, memory)
        how = draw.randrange(5)
        if how == 0:
            del file[name]
        elif how == 1:
            file.move(name, f"x/{name}")
        elif how == 2:
            del file[name]
            file.create_group(name)
        elif how == 3 and isinstance(place, h5py.Dataset) and place.shape:
            old = place[()][: draw.choice((0, 1, -1))]
            text = place.dtype if h5py.check_string_dtype(place.dtype) or h5py.check_vlen_dtype(place.dtype) else None
            del file[name]
            file.create_dataset(name, data=old, dtype=text)
        else:
            del file[name]
            file.create_dataset(name, data=value)
        return _closed(file, memory)


def _closed(file: Any, memory: io.BytesIO) -> bytes:
    file.close()
    return memory.getvalue()


# Mutations by the suffix of the seed.
BY_SUFFIX: dict[str, tuple[Mutation, ...]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".rttm", ".uem", ".toml", ".yaml", ".scp", ".utt2spk", ""), TEXT),
    ".json": (*(change_json,) * 8, *TEXT),
    ".safetensors": (*(change_safetensors,) * 6, *BYTES),
    ".npz": (*(change_zip,) * 10, *BYTES),
    **dict.fromkeys((".pt", ".bin", ".ckpt"), (*(change_zip,) * 8, *BYTES)),
    ".gz": (*(change_gzip,) * 8, *BYTES),
    ".tar": (*(change_tar,) * 8, *BYTES),
    ".h5": (*(change_hdf5,) * 8, *BYTES),
}


def mutate(seed: str, source: Path) -> bytes:
    """The damaged form of a file that belongs to a seed."""
    draw, data = random.Random(seed), source.read_bytes()
    chosen = draw.choice(BY_SUFFIX.get(source.suffix.lower(), BYTES))
    try:
        return chosen(draw, data)
    except Exception:  # what does not apply to this file: a value that HDF5 refuses, a .bin that is no archive
        return draw.choice(BYTES)(draw, data)
