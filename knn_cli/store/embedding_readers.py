"""Embeddings of other programs: READERS by the end of the file name.

Adding a format is one function under `READERS.register`. Readers raise StoreError for anything they cannot read.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
import sys
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import StoreError
from knn_cli.core.input_files import check_regular, lines_of
from knn_cli.core.lfs import check_pointer
from knn_cli.core.registry import Registry
from knn_cli.core.texts import path_text, refuse_repeated, tidy
from knn_cli.core.values import EmbeddingSet, Floats
from knn_cli.core.visible_text import cell_text
from knn_cli.store import kaldi, labels, row_labels
from knn_cli.store.row_texts import holds_texts, row_texts

READERS = Registry("reader of embeddings")

TEXT_COLUMNS = labels.FIELDS
TIME_COLUMNS = ("start", "end")

_LEGACY_ARRAYS = {
    "data": "Data",
    "name": "Name",
    "group": "GroupID",
    "subgroup": "SubgroupID",
    "speaker": "Speaker",
    "start": "Start",
    "end": "End",
}
# What zipfile and NumPy raise for damaged archives; NumPy parses headers as Python text.
_NPZ_ERRORS = (
    *(OSError, ValueError, EOFError, AttributeError, TypeError, LookupError, OverflowError, MemoryError, SyntaxError),
    *(NotImplementedError, RuntimeError, RecursionError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
_MAX_VECTOR_TEXT = 1 << 24  # characters of one embedding
_LARGE_BYTES = 1 << 28  # up to here, members may swell as they like
_MAX_COMPRESSION = 100  # times that embeddings and names can be compressed
_NUMBERED_UTTERANCE = re.compile(rf"(?P<name>.+){labels.SPLIT_MARK}_\d{{5,}}")


def read_embeddings(path: Path, *, recursive: bool = False, label_rule: str = labels.DEFAULT_RULE) -> EmbeddingSet:
    """Read the embeddings of a file, or of a folder of text embeddings.

    Parameters
    ----------
    path : Path
        A file with a suffix of `READERS`, or a folder of .gz files.
    recursive : bool
        Read the .gz files of all folders below as well.
    label_rule : str
        How keys become labels, see `row_labels.labelled`.

    Raises
    ------
    KnnError
        If the rule does not match.
    StoreError
        If the file is missing or damaged, if no reader knows its suffix, if rows have different lengths, or if there
        are NaN or infinite values.
    """
    path = Path(path)
    if not path.exists():
        raise StoreError(f"{path} does not exist.")
    if not path.is_dir():
        check_regular(path, "a file of embeddings", error=StoreError)
        check_pointer(path, error=StoreError)
    rows: EmbeddingSet = (
        read_folder(path, recursive=recursive) if path.is_dir() else READERS.get(path.suffix.lower())(path)
    )
    if not len(rows) or not rows.dimension:
        raise StoreError(f"{path} holds no embeddings.")
    finite = np.isfinite(rows.data).all(axis=1)
    if not finite.all():
        raise StoreError(
            f"{path} holds NaN or infinite values in {np.sum(~finite)} embeddings, first in {rows.name[~finite][0]}.",
            "Leave these out, or embed their recordings again.",
        )
    return row_labels.labelled(rows, label_rule, paths=path.is_dir() or path.suffix.lower() == ".gz")


def read_folder(folder: Path, *, recursive: bool = False) -> EmbeddingSet:
    """Read a folder of `RECORDING_SPLIT_NNN.i.gz`, one line of numbers each, in natural order (2 before 10).

    A row's name is the path of its file, from the folder's own name on, without `.gz` and `.i.gz`.
    """
    pattern = "**/*.gz" if recursive else "*.gz"
    files = sorted((path for path in folder.glob(pattern) if path.is_file()), key=lambda path: _natural(path, folder))
    if not files:
        hint = "" if recursive else "If they lie in folders of this folder, read these too with `recursive=True`."
        raise StoreError(f"{folder} holds no text embeddings (*.gz).", hint)
    return _stack_files(files, folder)


@READERS.register(".gz")
def _read_gz(path: Path) -> EmbeddingSet:
    return _stack_files([path], path.parent)


def _stack_files(files: Sequence[Path], root: Path) -> EmbeddingSet:
    rows = [_gz_vector(path) for path in files]
    # `.i` goes with `.gz`, nothing else does: a recording's own name may hold dots.
    home = Path(root.resolve().name)
    keys = [(home / re.sub(r"(\.i)?\.gz$", "", path.relative_to(root).as_posix())).as_posix() for path in files]
    return EmbeddingSet.from_columns(_stack(rows, [str(path) for path in files]), list(map(path_text, keys)))


def _gz_vector(path: Path) -> Floats:
    check_pointer(path, error=StoreError)
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            text = file.read(_MAX_VECTOR_TEXT + 1)
            lines = [line for line in text.splitlines() if line.strip()]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is not a complete gzip file of numbers: {error}.", "Copy it again.") from error
    if len(text) > _MAX_VECTOR_TEXT:
        raise StoreError(f"{path} holds more text than a line of numbers can have.")
    if len(lines) != 1:
        raise StoreError(f"{path} holds {len(lines)} lines; a text embedding is one line of numbers.")
    words = lines[0].split(",") if "," in lines[0] else lines[0].split()
    try:
        return _single(np.array(words, dtype=np.float64))
    except ValueError as error:
        raise StoreError(f"{path} holds something that is no number: {error}.") from error


def _natural(path: Path, root: Path) -> tuple[list[list[int | str]], str]:
    """A sort key that puts `rec2` before `rec10`; the path itself settles ties such as `01` and `1`."""
    parts = path.relative_to(root).parts
    split = [[int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", part)] for part in parts]
    return split, str(path)


def _stack(rows: Sequence[NDArray[Any]], sources: Sequence[str]) -> Floats:
    for row, source in zip(rows, sources, strict=True):
        if len(row) != len(rows[0]):
            raise StoreError(
                f"The embedding in {source} has {len(row)} dimensions, that in {sources[0]} has {len(rows[0])}.",
                "Convert embeddings of different models one by one.",
            )
    return _single(np.stack(rows)) if rows else np.zeros((0, 0), np.float32)


def _single(numbers: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):  # becomes infinite, which read_embeddings refuses
        return numbers.astype(np.float32)


def _filled(
    data: Any, texts: dict[str, list[str]], times: dict[str, Any] | None = None, embedder: str = ""
) -> EmbeddingSet:
    group, subgroup, speaker = (texts.get(column) for column in ("group", "subgroup", "speaker"))
    start, end = ((times or {}).get(column) for column in TIME_COLUMNS)
    return EmbeddingSet.from_columns(
        data, texts["name"], group=group, subgroup=subgroup, speaker=speaker, start=start, end=end, embedder=embedder
    )


@READERS.register(".scp")
def _read_scp(path: Path) -> EmbeddingSet:
    return _from_kaldi(path, kaldi.read_scp(path))


@READERS.register(".ark")
@READERS.register(".txt")
def _read_ark(path: Path) -> EmbeddingSet:
    return _from_kaldi(path, kaldi.read_ark(path))


def _from_kaldi(path: Path, entries: Iterable[tuple[str, NDArray[Any]]]) -> EmbeddingSet:
    """One row per vector, or per row of a matrix.

    `STEM.utt2spk`, `STEM.utt2lang`, `STEM.utt2subgroup` beside the file, or tables without STEM, give speaker, group
    and subgroup; an utterance that they lack has none. Utterances named as `embedding_writers.utterance_ids` names them
    give back recording and times.
    """
    rows: list[NDArray[Any]] = []
    utterances: list[str] = []
    for key, array in entries:
        for row in np.atleast_2d(array):
            rows.append(row)
            utterances.append(key)
    columns: dict[str, list[str]] = {}
    own = any(kaldi.table_beside(path, table).is_file() for table in kaldi.LABEL_TABLES.values())
    for column, table in kaldi.LABEL_TABLES.items():
        beside = kaldi.table_beside(path, table) if own else path.with_name(table)
        known = kaldi.read_table(beside) if beside.is_file() else {}
        columns[column] = [known.get(utterance, "") for utterance in utterances]
    if not own and not any(columns["subgroup"]):  # utt2lang is of others, who know one level of languages
        classes = [labels.of_class("", text) for text in columns["group"]]
        columns |= {column: [getattr(label, column) for label in classes] for column in ("group", "subgroup")}
    names, starts, ends = [], [], []
    for utterance in utterances:
        numbered = _NUMBERED_UTTERANCE.fullmatch(utterance)
        name = numbered["name"] if numbered else utterance
        timed = row_labels.TIMED_UTTERANCE.fullmatch(name)
        names.append(timed["name"] if timed else name)
        starts.append(float(timed["start"]) if timed else np.nan)
        ends.append(float(timed["end"]) if timed else np.nan)
    data = _stack(rows, [f"{path} ({utterance})" for utterance in utterances])
    return _filled(data, {"name": names, **columns}, {"start": starts, "end": ends})


def _check_npz_sizes(path: Path) -> None:
    """Raise ValueError where an array claims more than its member holds, or where a small member swells enormously."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(file)
            if math.prod(shape) * kind.itemsize > member.file_size:
                raise ValueError(f"{member.filename} has the shape {shape}, and holds {member.file_size} bytes")
            if member.file_size > max(_LARGE_BYTES, _MAX_COMPRESSION * member.compress_size):
                raise ValueError(f"{member.filename} swells from {member.compress_size} to {member.file_size} bytes")


@READERS.register(".npz")
def _read_npz(path: Path) -> EmbeddingSet:
    """Arrays data, name and, if present, group, subgroup, speaker, start, end, embedder.

    The legacy names Data, Name, GroupID, SubgroupID do as well. Texts may be bytes, and (N, 1). Pickled arrays are
    refused.
    """
    try:
        _check_npz_sizes(path)
        with warnings.catch_warnings(), np.load(path, allow_pickle=False) as archive:
            warnings.simplefilter("ignore")  # NumPy's own, of damaged headers
            arrays = {key: archive[key] for key in archive.files}
        for array in arrays.values():
            if array.dtype.kind == "U" and array.size:
                codes = np.atleast_1d(array).astype(array.dtype.newbyteorder("=")).view(np.uint32)
                if codes.max() > sys.maxunicode:
                    raise ValueError("a text holds what is no character")
    except _NPZ_ERRORS as error:
        raise StoreError(
            f"{path} is not an .npz file of plain arrays: {error}.", "Pickled objects are not read."
        ) from error
    columns: dict[str, NDArray[Any]] = {}
    for column, legacy in _LEGACY_ARRAYS.items():
        keys = [key for key in dict.fromkeys((column, legacy, column.capitalize())) if key in arrays]
        if len(keys) > 1:
            raise StoreError(f"{path} holds {' and '.join(keys)}, which mean the same.", "Leave one of them out.")
        if keys:
            columns[column] = arrays[keys[0]]
    if not {"data", "name"} <= set(columns):
        names = ", ".join(sorted(arrays)) or "nothing"
        raise StoreError(f"{path} holds {names}.", "It needs the arrays data (N, D) and name (N,).")
    data = columns.pop("data")
    if data.ndim != 2 or data.dtype.kind not in "fiu":
        raise StoreError(f"{path}: data is {data.dtype} of shape {data.shape}, not numbers of shape (N, D).")
    wrong = [f"{column} {array.shape}" for column, array in columns.items() if array.size != len(data)]
    if wrong:
        raise StoreError(f"{path}: data has {len(data)} rows, but there is {', '.join(wrong)}.")
    texts = {}
    for column in [column for column in TEXT_COLUMNS if column in columns]:
        if not holds_texts(columns[column].dtype):
            raise StoreError(f"{path}: {column} must be texts, it is {columns[column].dtype}.")
        texts[column] = row_texts(columns[column].ravel().tolist(), f"{path}, {column}")
    try:
        times = {column: columns[column].ravel().astype(np.float64) for column in TIME_COLUMNS if column in columns}
    except ValueError as error:
        raise StoreError(f"{path}: start or end are no numbers: {error}.") from error
    embedder = "".join(row_texts(arrays["embedder"].ravel()[:1].tolist(), path)) if "embedder" in arrays else ""
    return _filled(_single(data), texts, times, embedder)


@READERS.register(".csv")
@READERS.register(".tsv")
def _read_csv(path: Path) -> EmbeddingSet:
    """Columns name, e0, e1, ... and, if present, group, subgroup, speaker, start, end; blank lines are passed over."""
    csv.field_size_limit(sys.maxsize)
    texts: dict[str, list[str]] = {}
    rows: list[Floats] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = lines_of(file, path, "a table of embeddings", error=StoreError)
            reader = csv.reader(text, delimiter=csv_delimiter(path))
            header = [tidy(cell) for cell in next(reader, [])]
            refuse_repeated(header, path, error=StoreError)
            place = {column: header.index(column) for column in (*TEXT_COLUMNS, *TIME_COLUMNS) if column in header}
            dimension = sum(re.fullmatch(r"e\d+", column) is not None for column in header)
            wanted = [f"e{number}" for number in range(dimension)]
            if "name" not in place or not dimension or not set(wanted) <= set(header):
                raise StoreError(
                    f"{path} is no table of embeddings.",
                    "It needs a header with the columns name, e0, e1, e2 and so on.",
                )
            numbers = [header.index(column) for column in wanted]
            texts = {column: [] for column in place}
            for row in reader:
                if not any(map(str.strip, row)):
                    continue
                if len(row) != len(header):
                    raise StoreError(
                        f"{path}, line {reader.line_num}, has {len(row)} fields, the header {len(header)}."
                    )
                rows.append(_single(np.array([row[number] for number in numbers], dtype=np.float64)))
                for column, index in place.items():
                    texts[column].append(row[index])
            times = {
                column: [float(text.strip() or "nan") for text in texts.pop(column)]
                for column in TIME_COLUMNS
                if column in texts
            }
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StoreError(f"{path} cannot be read as a table: {error}.") from error
    except ValueError as error:
        raise StoreError(f"{path}, line {reader.line_num}, holds something that is no number: {error}.") from error
    data = np.stack(rows) if rows else np.zeros((0, dimension), np.float32)
    columns = {column: list(map(cell_text, row_texts(cells, path))) for column, cells in texts.items()}
    return _filled(data, columns, times)


def csv_delimiter(path: Path) -> str:
    """Return the delimiter of a table by its suffix: a tab for .tsv, else a comma."""
    return "\t" if path.suffix.lower() == ".tsv" else ","
