"""Kaldi archives and script files of float vectors and matrices.

The entries are parsed here, with every length checked against the file: `kaldiio.load_ark` would unpickle entries
marked PKL, run script lines that end in a pipe, and return a shorter vector from a truncated archive. Only Kaldi's
compressed matrices go through kaldiio's decoder. Format: kaldi-asr.org/doc/io.html, matrix/kaldi-vector.cc.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import StoreError
from knn_cli.core.input_files import MAX_LINE, check_regular, lines_of
from knn_cli.core.lfs import check_pointer
from knn_cli.core.texts import read_lines, tidy

Array = NDArray[np.floating[Any]]

LABEL_TABLES = {"speaker": "utt2spk", "group": "utt2lang", "subgroup": "utt2subgroup"}  # label level: table

_PLAIN = {b"FV": ("<f4", 1), b"DV": ("<f8", 1), b"FM": ("<f4", 2), b"DM": ("<f8", 2)}
_COMPRESSED = {b"CM": 1, b"CM2": 2, b"CM3": 1}  # bytes per value
_MAX_KEY_BYTES = 4096
_MAX_ENTRY_BYTES = 1 << 30
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # in front of a text archive or script that an editor of Windows has saved
_TABLE_LINE = re.compile(r"[ \t]+")
_MOST_DIGITS = 18  # of an offset, more than any file has bytes
_ENTRY = re.compile(r"(?P<path>.+?)(?::(?P<offset>\d+))?(?P<range>\[[\d:,]*\])?")


class _EntryError(Exception):
    """A damaged entry; the caller adds the file."""


def read_ark(path: Path) -> Iterator[tuple[str, Array]]:
    """Yield key and array of each entry of a binary or text archive.

    Arrays are (D,) or (T, D), in the precision of the file.

    Raises
    ------
    StoreError
        If the file is no such archive, or truncated.
    """
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        keys: set[str] = set()
        while (key := _key(file, path)) is not None:
            _note_key(key, keys, path)
            yield key, _entry(file, size, path, key)
    if not keys:
        raise StoreError(f"{path} holds no embeddings.")


def read_scp(path: Path) -> Iterator[tuple[str, Array]]:
    """Yield key and array of each line `key archive:offset` of a script file.

    A relative archive is looked for in the folder of the script first, then in the current one (as Kaldi does).

    Raises
    ------
    StoreError
        If a line ends in a pipe, which is a shell command and never run, or if an archive is damaged.
    """
    keys: set[str] = set()
    with _open(path) as script, ExitStack() as stack:
        opened: tuple[Path, BinaryIO, int] | None = None
        for number, raw in enumerate(lines_of(script, path, "a script of Kaldi", error=StoreError), 1):
            try:
                line = raw.removeprefix(_BYTE_ORDER_MARK).decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise StoreError(
                    f"{path}, line {number}, is not UTF-8 text.", "Is it an archive? Name it .ark."
                ) from error
            if not line:
                continue
            key, _, target = _TABLE_LINE.sub(" ", line, count=1).partition(" ")
            if target.startswith("|") or target.endswith("|"):
                raise StoreError(
                    f"{path}, line {number}, is a shell command ({target[:60]}), which is never run.",
                    "Run it yourself and write its output to an archive: copy-vector scp:in.scp ark:out.ark.",
                )
            match = _ENTRY.fullmatch(target)
            if match is None or match["range"]:
                raise StoreError(
                    f"{path}, line {number}, is not `key archive:offset`.", "Ranges such as [0:9] are not read."
                )
            archive = _find(match["path"], path)
            if opened is None or opened[0] != archive:
                stack.close()
                file = stack.enter_context(_open(archive))
                opened = (archive, file, os.fstat(file.fileno()).st_size)
            offset = int((match["offset"] or "0")[:_MOST_DIGITS])
            if offset > opened[2]:
                raise StoreError(f"{path}, line {number}, points behind the end of {archive}.", "Copy both again.")
            opened[1].seek(offset)
            _note_key(tidy(key), keys, path)
            yield tidy(key), _entry(opened[1], opened[2], archive, key)
    if not keys:
        raise StoreError(f"{path} holds no embeddings.")


def read_table(path: Path) -> dict[str, str]:
    """Read a Kaldi text table such as utt2spk: first word -> rest of the line. StoreError for two lines that differ."""
    table: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, f"a table such as {path.suffix[1:]}", error=StoreError), start=1):
        key, _, value = _TABLE_LINE.sub(" ", line.strip(" \t"), count=1).partition(" ")
        if key and table.setdefault(tidy(key), tidy(value)) != tidy(value):
            raise StoreError(
                f"Line {number} of {path} says {tidy(value)!r} of {key}, a line before it {table[tidy(key)]!r}.",
                "Leave one of them out.",
            )
    return table


def table_beside(path: Path, table: str) -> Path:
    """Return where the table of an archive lies: `STEM.utt2spk` beside `STEM.ark`."""
    return path.with_suffix(f".{table}")


def read_plda(path: Path) -> tuple[Array, Array, Array]:
    """Read a binary PLDA of Kaldi.

    y = transform (x - mean) has within-class covariance 1 and between-class covariance diag(psi) (ivector/plda.cc).

    Returns
    -------
    mean : (D,) array
    transform : (D, D) array
    psi : (D,) array

    Raises
    ------
    StoreError
        If the file is anything else.
    """
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.read(9) != b"\0B<Plda> ":
                raise _EntryError("it does not begin as one")
            arrays = [_array(file, size) for _ in range(3)]
            if file.read(8) != b"</Plda> ":
                raise _EntryError("it does not end as one")
        except (_EntryError, struct.error, ValueError) as error:
            raise StoreError(f"{path} is no binary PLDA of Kaldi: {error}.", "Is the file complete?") from error
    mean, transform, psi = arrays
    if mean.ndim != 1 or psi.shape != mean.shape or transform.shape != 2 * mean.shape:
        raise StoreError(f"{path} is no PLDA of Kaldi: its sizes do not match.")
    return mean, transform, psi


def write_ark(file: BinaryIO, keys: Iterable[str], data: NDArray[np.float32]) -> list[int]:
    """Write rows (N, D) as binary vectors; return the offset of each, as a script file names it."""
    offsets = []
    for key, row in zip(keys, np.asarray(data, dtype="<f4"), strict=True):
        file.write(key.encode("utf-8") + b" ")
        offsets.append(file.tell())
        file.write(b"\0BFV \4" + struct.pack("<i", len(row)) + row.tobytes())
    return offsets


def text_vector(key: str, row: NDArray[np.float32]) -> str:
    """Return one line `key  [ 0.12 ... ]`, with enough digits for the same float32."""
    return f"{key}  [ {' '.join([f'{value:.9g}' for value in row.tolist()])} ]\n"


def _open(path: Path) -> BinaryIO:
    check_regular(path, "a file of Kaldi", error=StoreError)
    check_pointer(path, error=StoreError)
    try:
        return path.open("rb")
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}.") from error


def _note_key(key: str, keys: set[str], path: Path) -> None:
    """Add the key of an entry to those before it. StoreError if it is one of them, which Kaldi refuses too."""
    if "\0" in key:
        raise StoreError(f"{path} holds an utterance with a zero byte in its name.", "Is the file complete?")
    if key in keys:
        raise StoreError(f"{path} holds the utterance {key!r} twice.", "Leave one of the entries out, or rename it.")
    keys.add(key)


def _find(name: str, script: Path) -> Path:
    for archive in (script.parent / name, Path(name)):
        if archive.is_file():
            return archive
    raise StoreError(
        f"{script} names the archive {name}, which is neither beside it nor here.",
        "Run from the folder that the script file was written in, or convert the .ark itself.",
    )


def _key(file: BinaryIO, path: Path) -> str | None:
    """The word before the next entry; None at the end of the file."""
    word = bytearray()
    while (byte := file.read(1)) not in (b"", b" ", b"\t"):
        if byte not in (b"\n", b"\r") or word:
            word += byte
        if len(word) > _MAX_KEY_BYTES or b"\n" in word:
            raise StoreError(f"{path} is not a Kaldi archive.")
    if not word and not byte:
        return None
    try:
        key = tidy(word.removeprefix(_BYTE_ORDER_MARK).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is not a Kaldi archive.") from error
    if not key or not byte:
        raise StoreError(f"{path} is not a Kaldi archive, or it is truncated.")
    return key


def _entry(file: BinaryIO, size: int, path: Path, key: str) -> Array:
    try:
        mark = file.read(2)
        if mark == b"\0B":
            return _array(file, size)
        return _text(mark, file)
    except (_EntryError, struct.error, ValueError) as error:
        raise StoreError(
            f"{path}: the entry {key!r} is not a float vector or matrix: {error}.", "Is the file complete?"
        ) from error


def _array(file: BinaryIO, size: int) -> Array:
    """A matrix or vector whose type comes first; an archive has it after the mark of binary data, a PLDA without."""
    start = file.tell()
    kind = file.read(4).split(b" ")[0]
    file.seek(start + len(kind) + 1)
    if kind in _COMPRESSED:
        rows, columns = struct.unpack("<8xii", file.read(16))
        need = rows * columns * _COMPRESSED[kind] + (8 * columns if kind == b"CM" else 0)
    elif kind in _PLAIN:
        dtype, axes = _PLAIN[kind]
        shape = []
        for _ in range(axes):
            four, length = struct.unpack("<bi", file.read(5))
            if four != 4:
                raise _EntryError("its header is damaged")
            shape.append(length)
        rows, columns = (1, *shape)[-2:]
        need = rows * columns * np.dtype(dtype).itemsize
    else:
        raise _EntryError(f"its type is {kind!r}")
    if rows < 0 or columns < 0 or need > size - file.tell():
        raise _EntryError("it is truncated")
    if need > _MAX_ENTRY_BYTES:
        raise _EntryError(f"it has {need:,} bytes, which no matrix of embeddings has")
    if kind in _PLAIN:
        return np.frombuffer(file.read(need), dtype=dtype).reshape(shape)
    from kaldiio.matio import read_matrix_or_vector

    file.seek(start - 2)
    if file.read(2) != b"\0B":
        raise _EntryError("it is compressed")  # only archives have such matrices
    file.seek(start - 2)
    return np.asarray(read_matrix_or_vector(file))


def _text(mark: bytes, file: BinaryIO) -> Array:
    line = mark + file.readline(MAX_LINE)
    if not line.lstrip().startswith(b"["):
        raise _EntryError("it is neither binary nor text in square brackets")
    rows = [line.replace(b"[", b"", 1)]
    while b"]" not in rows[-1]:
        rows.append(file.readline(MAX_LINE))
        if not rows[-1].endswith(b"\n") and b"]" not in rows[-1]:
            raise _EntryError("it is truncated")
    last, _, rest = rows[-1].partition(b"]")
    if rest.strip():
        raise _EntryError("something follows the closing bracket")
    values = [np.array(row.split(), dtype=np.float64) for row in [*rows[:-1], last] if row.strip()]
    if len(rows) == 1:
        return values[0] if values else np.zeros(0)
    return np.stack(values) if values else np.zeros((0, 0))
