"""Embeddings for other programs: WRITERS by the end of the file name.

Adding a format is one function under `WRITERS.register`. Writers leave the old file or the whole new one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from knn_cli.core.atomic import replacing, replacing_together
from knn_cli.core.errors import StoreError
from knn_cli.core.registry import Registry
from knn_cli.core.values import EmbeddingSet
from knn_cli.core.visible_text import cell, visible
from knn_cli.store import kaldi, labels
from knn_cli.store.embedding_readers import TEXT_COLUMNS, TIME_COLUMNS, csv_delimiter

WRITERS = Registry("writer of embeddings")


def write_embeddings(path: Path, embeddings: EmbeddingSet) -> None:
    """Write embeddings in the format that the suffix of `path` names. An existing file is replaced.

    Raises
    ------
    KnnError
        If no writer knows the suffix, or if the file cannot be written.
    """
    WRITERS.get(Path(path).suffix.lower())(Path(path), embeddings)


def outputs(path: Path) -> list[Path]:
    """Return all files that `write_embeddings(path, ...)` writes or removes: a Kaldi archive has tables beside it."""
    if path.suffix.lower() not in {".ark", ".scp"}:
        return [path]
    return [
        path.with_suffix(".ark"),
        path.with_suffix(".scp"),
        *(kaldi.table_beside(path, table) for table in kaldi.LABEL_TABLES.values()),
    ]


@WRITERS.register(".ark")
@WRITERS.register(".scp")
def _write_kaldi(path: Path, embeddings: EmbeddingSet) -> None:
    """STEM.ark and STEM.scp, with STEM.utt2spk and so on for the labels that are known."""
    ids = utterance_ids(embeddings)
    archive, script = path.with_suffix(".ark"), path.with_suffix(".scp")
    if re.search(r"^\||\|$|^\s|\s$|[\r\n]", str(archive)):
        raise StoreError(f"A Kaldi script file cannot name {str(archive)!r}.", "Choose a plainer name.")
    tables: dict[Path, list[str]] = {}
    stale = []  # tables of the files that are replaced, when there are no such labels now
    for column, table in kaldi.LABEL_TABLES.items():
        values = [visible(re.sub(r"\s+", " ", value)) for value in getattr(embeddings, column).tolist()]
        if any(values):
            tables[kaldi.table_beside(path, table)] = values
        else:
            stale.append(kaldi.table_beside(path, table))
    with replacing_together([archive, script, *tables], removed=stale) as (archive_part, script_part, *table_parts):
        with archive_part.open("wb") as file:
            offsets = kaldi.write_ark(file, ids, embeddings.data)
        _write_table(script_part, ids, [f"{archive}:{offset}" for offset in offsets])
        for part, values in zip(table_parts, tables.values(), strict=True):
            _write_table(part, ids, values)


def utterance_ids(embeddings: EmbeddingSet, *, times: bool = True) -> list[str]:
    """Return (N,) unique Kaldi utterance names: `name-00001.23-00004.56` with times in seconds, else `name`.

    Names that several rows still share get a running number, `name_SPLIT_00002`. White space, which Kaldi does not
    allow, becomes `_`.

    Parameters
    ----------
    embeddings : EmbeddingSet
    times : bool
        Add times to all names; else only if names alone are not unique.

    Raises
    ------
    StoreError
        If two recordings would get the same name.
    """
    safe = {name: visible(re.sub(r"\s+", "_", name)) or "_" for name in np.unique(embeddings.name).tolist()}
    if len(set(safe.values())) < len(safe):
        twice = Counter(safe.values()).most_common(1)[0][0]
        raise StoreError(
            f"Two recordings would both be called {twice!r} in Kaldi, which allows no white space.", "Rename one."
        )
    ids = [safe[name] for name in embeddings.name.tolist()]
    if times or len(set(ids)) < len(ids):
        spans = zip(ids, embeddings.start.tolist(), embeddings.end.tolist(), strict=True)
        ids = [
            f"{name}-{start:08.2f}-{end:08.2f}" if np.isfinite([start, end]).all() else name
            for name, start, end in spans
        ]
    again, seen = Counter(ids), Counter[str]()
    for row, name in enumerate(ids):
        if again[name] > 1:
            seen[name] += 1
            ids[row] = f"{name}{labels.SPLIT_MARK}_{seen[name]:05d}"
    return ids


def _write_table(path: Path, keys: Sequence[str], values: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{key} {value}\n" for key, value in zip(keys, values, strict=True))


@WRITERS.register(".txt")
def _write_text(path: Path, embeddings: EmbeddingSet) -> None:
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        write_text(file, embeddings)


def write_text(stream: TextIO, embeddings: EmbeddingSet) -> None:
    """Write Kaldi text vectors, one per line: `name  [ 0.12 ... ]`; `utterance_ids` makes names unique if need be."""
    for key, row in zip(utterance_ids(embeddings, times=False), embeddings.data, strict=True):
        stream.write(kaldi.text_vector(key, row))


@WRITERS.register(".npz")
def _write_npz(path: Path, embeddings: EmbeddingSet) -> None:
    columns = {column: getattr(embeddings, column) for column in ("data", *TEXT_COLUMNS, *TIME_COLUMNS)}
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, embedder=np.asarray(embeddings.embedder), allow_pickle=False, **columns)


@WRITERS.register(".csv")
@WRITERS.register(".tsv")
def _write_csv(path: Path, embeddings: EmbeddingSet) -> None:
    delimiter = csv_delimiter(path)
    columns = [getattr(embeddings, column).tolist() for column in (*TEXT_COLUMNS, *TIME_COLUMNS)]
    header = [*TEXT_COLUMNS, *TIME_COLUMNS, *(f"e{number}" for number in range(embeddings.dimension))]
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.write(delimiter.join(header) + "\n")
        for row, *fields in zip(embeddings.data, *columns, strict=True):
            texts = [_quoted(cell(text)) for text in fields[: len(TEXT_COLUMNS)]]
            times = ["" if np.isnan(time) else repr(time) for time in fields[len(TEXT_COLUMNS) :]]
            values = [f"{value:.9g}" for value in row.tolist()]  # nine digits give the same float32 back
            file.write(delimiter.join([*texts, *times, *values]) + "\n")


def _quoted(text: str) -> str:
    """As RFC 4180 has it; the csv module of Python 3.10 writes a bare carriage return and cannot read it back."""
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\t\r\n]', text) else text


@WRITERS.register(".parquet")
def _write_parquet(path: Path, embeddings: EmbeddingSet) -> None:
    import pandas

    texts = {column: getattr(embeddings, column) for column in (*TEXT_COLUMNS, *TIME_COLUMNS)}
    values = {f"e{number}": embeddings.data[:, number] for number in range(embeddings.dimension)}
    with replacing(path) as part:
        try:
            pandas.DataFrame({**texts, **values}).to_parquet(part, index=False)
        except ImportError as error:
            raise StoreError(
                "Parquet files need pyarrow, which is not installed.", "pip install 'knn-cli[parquet]'"
            ) from error
