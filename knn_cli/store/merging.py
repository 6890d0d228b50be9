"""Several stores of one kind merged into one, block by block.

Embeddings and labels are copied through the writer of stores, FLAC as it is. Beside one block of rows, the memory that
is used grows with the number of rows only by the digests by which rows that stand in two stores are found.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import StoreError
from knn_cli.core.output_paths import check_output, resolved
from knn_cli.core.values import Progress
from knn_cli.store import hdf5, parts
from knn_cli.store.conversion import Conversion, check_suffix
from knn_cli.store.hdf5 import PAYLOAD_DATASETS, Store
from knn_cli.store.row_columns import Columns, stored_labels
from knn_cli.store.writer import check_free, write_blocks

_BLOCK_ROWS = 4096  # in memory at once
_BLOCK_BYTES = 32 << 20  # of sound, or one row
_HINT = "Merge stores of one kind, of one model or sampling rate."


def check_stores(sources: Sequence[Path], out: Path) -> None:
    """Refuse sources that cannot become one store, before any row is read.

    Parameters
    ----------
    sources : sequence of Path
    out : Path
        The store to be.

    Raises
    ------
    KnnError
        If there is no source, if one is missing, is no store, is given twice or is the output, if kinds, numbers of
        dimensions, models or sampling rates differ, or if `out` has no suffix of a store.
    """
    if not sources:
        raise StoreError("There are no stores to merge.", "Name some.")
    for source in sources:
        if not source.exists():
            raise StoreError(f"{source} does not exist.", "Check the path.")
    check_suffix(out, "a store, which several sources are merged into")
    check_output(out, sources)
    for first, second in combinations(sources, 2):
        if resolved(first) == resolved(second):
            raise StoreError(f"{first} and {second} are the same file.", "Name each store once.")
    for source in sources:
        if hdf5.kind_of(source) is None:
            raise StoreError(f"{source} is no store, and only stores can be merged.", "Convert it to a store first.")
    expected = _facts(sources[0])
    for source in sources[1:]:
        for (what, own), (other, value) in zip(_facts(source), expected, strict=False):
            if (what, own) != (other, value):
                difference = f"{other} {value}, and {what} {own}"
                raise StoreError(f"{sources[0]} and {source} cannot be merged: they hold {difference}.", _HINT)


def _facts(path: Path) -> list[tuple[str, str]]:
    """What must be alike in all stores, as a noun and its value; the first tells the kind."""
    with Store(path) as store:
        if store.kind == "audio":
            return [("audio of", f"{store.rate} Hz")]
        model = f"the model {store.embedder}" if store.embedder else "an unknown model"
        return [("embeddings of", f"{store.dimension} dimensions"), ("embeddings of", model)]


def merge_stores(
    sources: Sequence[Path],
    out: Path,
    *,
    virtual: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write the rows of several stores to one, in the order of the stores; sound is copied as FLAC.

    Parameters
    ----------
    sources : sequence of Path
        Stores of one kind, with embeddings of one model or sound of one sampling rate.
    out : Path
    virtual : bool
        Copy labels and times only: embeddings or sound stay in the sources, which must stay where they are (`parts`).
    force : bool
        Replace an existing store.
    progress : callable, optional
        Called with the number of rows done and of all.

    Returns
    -------
    Conversion
        `sources` is the number of recordings, by name.

    Raises
    ------
    KnnError
        As `check_stores`; if a row (name, start and end) is in two stores; if there is one source of a virtual store,
        or one is virtual itself; or if `out` exists or cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from knn_cli.core.values import EmbeddingSet
    >>> from knn_cli.store.writer import write_store
    >>> for name in ("one", "two"):
    ...     rows = EmbeddingSet.from_columns(np.ones((1, 2)), [name], start=[0.0], end=[4.0])
    ...     write_store(f"merging-{name}.h5", rows, force=True)
    >>> merge_stores([Path("merging-one.h5"), Path("merging-two.h5")], Path("merged.h5"), force=True).rows
    2
    """
    check_stores(sources, out)
    if virtual:
        _check_parts(sources)
    check_free(out, force)
    recordings, total = _check_rows(sources), sum(map(_length, sources))
    with Store(sources[0]) as store:
        kind = store.kind
        attributes: dict[str, Any] = {"rate": store.rate} if kind == "audio" else {"embedder": store.embedder}
    blocks = _all_blocks(sources, total, progress, _label_blocks if virtual else _blocks)
    finish = partial(_refer, sources=sources, out=out) if virtual else None
    size = 0 if virtual else sum(source.stat().st_size for source in sources)
    write_blocks(out, kind, attributes, blocks, size=size, force=force, finish=finish)
    return Conversion(out, kind, sources=recordings, rows=total)


def _check_parts(sources: Sequence[Path]) -> None:
    """Refuse what a virtual store cannot refer to."""
    if len(sources) < 2:
        raise StoreError("A virtual store refers to several stores, and there is one.", "Name all of its parts.")
    for source in sources:
        with Store(source) as store:
            if store.is_virtual:
                hint = "Name the parts of it in its place."
                raise StoreError(f"{source} refers to other stores itself.", hint)


def _refer(file: h5py.File, sources: Sequence[Path], out: Path) -> None:
    """Let the embeddings or the sound of a new store be those of its parts."""
    known = [parts.part_of(source, _length(source), resolved(out).parent) for source in sources]
    with Store(sources[0]) as store:
        name, width = PAYLOAD_DATASETS[store.kind], [store.dimension] if store.kind == "embeddings" else []
    dtype = h5py.vlen_dtype(np.uint8) if name == "Audio" else np.dtype("f4")
    parts.refer(file, name, (sum(part.rows for part in known), *width), known, dtype)
    parts.write(file, known)


def _all_blocks(
    sources: Sequence[Path],
    total: int,
    progress: Progress | None,
    blocks_of: Callable[[Store], Iterator[Columns]],
) -> Iterator[Columns]:
    """The rows of all stores, some at a time."""
    done = 0
    for source in sources:
        with Store(source) as store:
            for columns in blocks_of(store):
                yield columns
                done += len(columns["Start"])
                if progress is not None:
                    progress(done, total)


def _length(path: Path) -> int:
    with Store(path) as store:
        return len(store)


def _label_blocks(store: Store) -> Iterator[Columns]:
    """Names, labels and times of some rows at a time."""
    for first in range(0, len(store), _BLOCK_ROWS):
        yield stored_labels(store, first, min(first + _BLOCK_ROWS, len(store)))


def _blocks(store: Store) -> Iterator[Columns]:
    """Datasets of some rows at a time; FLAC as it stands in the file."""
    first = 0
    while first < len(store):
        rows = range(len(store))[first : first + _BLOCK_ROWS]
        payload = (
            {"Data": store.data(first, rows.stop)} if store.kind == "embeddings" else {"Audio": _flac(store, rows)}
        )
        last = first + sum(map(len, payload.values()))
        yield stored_labels(store, first, last) | payload
        first = last


def _flac(store: Store, rows: range) -> list[NDArray[np.uint8]]:
    """The FLAC of the first of some rows, as many as fit into a block."""
    found, size = list[NDArray[np.uint8]](), 0
    for row in rows:
        found.append(np.frombuffer(store.flac(row), dtype=np.uint8))
        size += len(found[-1])
        if size >= _BLOCK_BYTES:
            break
    return found


def _check_rows(sources: Sequence[Path]) -> int:
    """Refuse a row that is in two stores; return the number of recordings."""
    found, names = list[NDArray[np.uint64]](), set[int]()
    for source in sources:
        with Store(source) as store:
            found.append(np.fromiter(_digests(store, names), np.uint64, len(store)))
    part = np.repeat(np.arange(len(sources)), [len(digests) for digests in found])
    digests = np.concatenate(found)
    order = np.argsort(digests, kind="stable")
    again = np.flatnonzero(
        (digests[order][1:] == digests[order][:-1]) & (part[order][1:] != part[order][:-1])
    )  # rows of one store may be alike: it was made so
    if len(again):
        at = again[np.argmin(order[again])]  # the first such row
        rows = order[at : at + 2]
        one, other = (sources[part[row]] for row in rows)
        row = int(rows[1] - sum(len(digests) for digests in found[: part[rows[1]]]))
        raise StoreError(
            f"{one} and {other} both have the row {_row_name(other, row)}.", "Leave it out of one of them."
        )
    return len(names)


def _digests(store: Store, names: set[int]) -> Iterator[int]:
    """A digest of name, start and end of each row, and of vector or sound where times are not known; notes names."""
    size = 1 << 16
    for first in range(0, len(store), size):
        rows = store.labels(first, first + size)
        for at, (name, start, end) in enumerate(
            zip(rows.name.tolist(), rows.start.tolist(), rows.end.tolist(), strict=True)
        ):
            row = first + at
            facts = f"{start!r} {end!r} {name}".encode()
            if math.isnan(start) or math.isnan(end):
                facts += store.flac(row) if store.kind == "audio" else store.data(row, row + 1).tobytes()
            names.add(hash(name))
            yield int.from_bytes(hashlib.blake2b(facts, digest_size=8).digest(), "little")


def _row_name(path: Path, row: int) -> str:
    with Store(path) as store:
        rows = store.labels(row, row + 1)
    times = "" if math.isnan(rows.start[0] + rows.end[0]) else f" from {rows.start[0]:g} to {rows.end[0]:g} s"
    return f"{rows.name[0]}{times}"
