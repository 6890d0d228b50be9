"""Embeddings of other programs, in and out: READERS and WRITERS by the end of the file name.

Adding a format is one function under `READERS.register` or `WRITERS.register`. Readers raise StoreError (a KnnError)
for anything they cannot read; writers leave the old file or the whole new one.
"""

from __future__ import annotations

import csv
import gzip
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.atomic import replacing
from knn_cli.core.errors import StoreError
from knn_cli.core.registry import Registry
from knn_cli.core.values import EmbeddingSet, Floats
from knn_cli.store import kaldi, labels

READERS = Registry("reader of embeddings")
WRITERS = Registry("writer of embeddings")

FOLDER = "folder"  # the reader of folders; the others are named by suffix
_TEXTS = ("name", "group", "subgroup", "speaker")
_TIMES = ("start", "end")
_TABLES = {"speaker": "utt2spk", "group": "utt2lang", "subgroup": "utt2subgroup"}
_MOTHER = {"data": "Data", "name": "Name", "group": "GroupID", "subgroup": "SubgroupID", "speaker": "Speaker"} | {
    "start": "Start",
    "end": "End",
}
_PIECE = re.compile(rf"(?P<name>.+){labels.SPLIT_MARK}_\d+")
_TIMED = re.compile(r"(?P<name>.+)-(?P<start>\d{5,}\.\d\d)-(?P<end>\d{5,}\.\d\d)")


def read_embeddings(path: Path, *, recursive: bool = False) -> EmbeddingSet:
    """The embeddings of a file, or of a folder of text embeddings (`recursive`: of its folders too).

    Raises StoreError for a missing or damaged file, a suffix without a reader, rows of different lengths, or NaN.
    """
    path = Path(path)
    if not path.exists():
        raise StoreError(f"{path} does not exist.")
    found: EmbeddingSet = (
        read_folder(path, recursive=recursive) if path.is_dir() else READERS.get(path.suffix.lower())(path)
    )
    if not len(found) or not found.dimension:
        raise StoreError(f"{path} holds no embeddings.")
    finite = np.isfinite(found.data).all(axis=1)
    if not finite.all():
        raise StoreError(
            f"{path} holds NaN or infinite values in {np.sum(~finite)} embeddings, first in {found.name[~finite][0]}.",
            "Leave these out, or embed their recordings again.",
        )
    return found


def write_embeddings(path: Path, embeddings: EmbeddingSet) -> None:
    """Write embeddings in the format that the suffix of `path` names. An existing file is replaced.

    Raises KnnError for a suffix without a writer, or a file that cannot be written.
    """
    WRITERS.get(Path(path).suffix.lower())(Path(path), embeddings)


def outputs(path: Path) -> list[Path]:
    """All files that `write_embeddings(path, ...)` writes or removes: an archive of Kaldi's comes with its tables."""
    if path.suffix.lower() not in {".ark", ".scp"}:
        return [path]
    return [path.with_suffix(".ark"), path.with_suffix(".scp"), *(_side(path, table) for table in _TABLES.values())]


# ---------------------------------------------------------------------------------------------- text embeddings, gzip


def read_folder(folder: Path, *, recursive: bool = False) -> EmbeddingSet:
    """A folder of `RECORDING_SPLIT_NNN.i.gz`, one line of numbers each, in natural order (2 before 10).

    Name = what stands before `_SPLIT`; the parent folder `3-2` gives group `3` and subgroup `3-2`.
    """
    pattern = "**/*.gz" if recursive else "*.gz"
    files = sorted((path for path in folder.glob(pattern) if path.is_file()), key=lambda path: _natural(path, folder))
    if not files:
        hint = "" if recursive else "If they lie in folders of this folder, ask for these too: -r."
        raise StoreError(f"{folder} holds no text embeddings (*.gz).", hint)
    return _stack_files(files)


@READERS.register(".gz")
def _read_gz(path: Path) -> EmbeddingSet:
    return _stack_files([path])


def _stack_files(files: Sequence[Path]) -> EmbeddingSet:
    rows = [_gz_vector(path) for path in files]
    # `.i` goes with `.gz`, nothing else does: a recording's own name may hold dots.
    known = [
        labels.by_folder(path.resolve().with_name(re.sub(r"(\.i)?\.gz$", "", path.name) + ".gz")) for path in files
    ]
    return EmbeddingSet.from_columns(
        _stack(rows, [str(path) for path in files]),
        [one.name for one in known],
        group=[one.group for one in known],
        subgroup=[one.subgroup for one in known],
    )


def _gz_vector(path: Path) -> Floats:
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            lines = [line for line in file.read().splitlines() if line.strip()]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is not a complete gzip file of numbers: {error}.", "Copy it again.") from error
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
    start, end = ((times or {}).get(column) for column in _TIMES)
    return EmbeddingSet.from_columns(
        data, texts["name"], group=group, subgroup=subgroup, speaker=speaker, start=start, end=end, embedder=embedder
    )


# --------------------------------------------------------------------------------------------------------------- Kaldi


@READERS.register(".scp")
def _read_scp(path: Path) -> EmbeddingSet:
    return _from_kaldi(path, kaldi.read_scp(path))


@READERS.register(".ark")
@READERS.register(".txt")
def _read_ark(path: Path) -> EmbeddingSet:
    return _from_kaldi(path, kaldi.read_ark(path))


def _from_kaldi(path: Path, entries: Iterable[tuple[str, NDArray[Any]]]) -> EmbeddingSet:
    """One row a vector, or a row of a matrix. `utt2spk`, `utt2lang`, `utt2subgroup` beside the file (or
    `STEM.utt2spk` and so on) give speaker, group and subgroup; an utterance that they lack has none.

    Utterances named as `utterance_ids` names them give back recording and times.
    """
    rows: list[NDArray[Any]] = []
    utterances: list[str] = []
    for key, array in entries:
        for row in np.atleast_2d(array):
            rows.append(row)
            utterances.append(key)
    columns: dict[str, list[str]] = {}
    for column, table in _TABLES.items():
        beside = next((one for one in (_side(path, table), path.with_name(table)) if one.is_file()), None)
        known = kaldi.read_table(beside) if beside else {}
        columns[column] = [known.get(utterance, "") for utterance in utterances]
    names, starts, ends = [], [], []
    for utterance in utterances:
        piece = _PIECE.fullmatch(utterance)
        name = piece["name"] if piece else utterance
        timed = _TIMED.fullmatch(name)
        names.append(timed["name"] if timed else name)
        starts.append(float(timed["start"]) if timed else np.nan)
        ends.append(float(timed["end"]) if timed else np.nan)
    data = _stack(rows, [f"{path} ({utterance})" for utterance in utterances])
    return _filled(data, {"name": names, **columns}, {"start": starts, "end": ends})


def utterance_ids(embeddings: EmbeddingSet, *, times: bool = True) -> list[str]:
    """(N,) unique Kaldi utterance names: `name-00001.23-00004.56` with times in seconds, else `name`.

    What is then still the same in several rows gets a running number, `name_SPLIT_00002`. White space, which Kaldi
    does not allow, becomes `_`. Without `times` they are added only when names alone are not unique.
    Raises StoreError when two recordings would get the same name by that.
    """
    safe = {name: re.sub(r"\s+", "_", name) or "_" for name in np.unique(embeddings.name).tolist()}
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
    for row, one in enumerate(ids):
        if again[one] > 1:
            seen[one] += 1
            ids[row] = f"{one}{labels.SPLIT_MARK}_{seen[one]:05d}"
    return ids


@WRITERS.register(".ark")
@WRITERS.register(".scp")
def _write_kaldi(path: Path, embeddings: EmbeddingSet) -> None:
    """STEM.ark and STEM.scp, with STEM.utt2spk and so on for the labels that are known."""
    ids = utterance_ids(embeddings)
    archive, script = path.with_suffix(".ark"), path.with_suffix(".scp")
    if re.search(r"^\||\|$|^\s|\s$|[\r\n]", str(archive)):
        raise StoreError(f"A Kaldi script file cannot name {str(archive)!r}.", "Choose a plainer name.")
    stale = []  # tables of the files that are replaced, when there are no such labels now
    with ExitStack() as stack:  # moves the last entered first: the archive before what points into it
        for column, table in _TABLES.items():
            values = [re.sub(r"\s+", " ", one) for one in getattr(embeddings, column).tolist()]
            if any(values):
                _write_table(stack.enter_context(replacing(_side(path, table))), ids, values)
            else:
                stale.append(_side(path, table))
        script_part, archive_part = (stack.enter_context(replacing(one)) for one in (script, archive))
        with archive_part.open("wb") as file:
            offsets = kaldi.write_ark(file, ids, embeddings.data)
        _write_table(script_part, ids, [f"{archive}:{offset}" for offset in offsets])
    for table_path in stale:
        table_path.unlink(missing_ok=True)


def _side(path: Path, table: str) -> Path:
    return path.with_suffix(f".{table}")


def _write_table(path: Path, keys: Sequence[str], values: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{key} {value}\n" for key, value in zip(keys, values, strict=True))


@WRITERS.register(".txt")
def _write_text(path: Path, embeddings: EmbeddingSet) -> None:
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        write_text(file, embeddings)


def write_text(stream: TextIO, embeddings: EmbeddingSet) -> None:
    """Kaldi text vectors, one line each: `name  [ 0.12 ... ]`; names made unique by `utterance_ids` where need be."""
    for key, row in zip(utterance_ids(embeddings, times=False), embeddings.data, strict=True):
        stream.write(kaldi.text_vector(key, row))


# ----------------------------------------------------------------------------------------------------------------- npz


@READERS.register(".npz")
def _read_npz(path: Path) -> EmbeddingSet:
    """Arrays data, name and, where they are there, group, subgroup, speaker, start, end, embedder; the mother
    project's Data, Name, GroupID, SubgroupID as well. Texts may be bytes, and (N, 1). Pickled arrays are refused.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise StoreError(
            f"{path} is not an .npz file of plain arrays: {error}.", "Pickled objects are not read."
        ) from error
    picked: dict[str, NDArray[Any]] = {}
    for column, mother in _MOTHER.items():
        key = next((key for key in (column, mother, column.capitalize()) if key in arrays), None)
        if key is not None:
            picked[column] = arrays[key]
    if not {"data", "name"} <= set(picked):
        found = ", ".join(sorted(arrays)) or "nothing"
        raise StoreError(f"{path} holds {found}.", "It needs the arrays data (N, D) and name (N,).")
    data = picked.pop("data")
    if data.ndim != 2 or data.dtype.kind not in "fiu":
        raise StoreError(f"{path}: data is {data.dtype} of shape {data.shape}, not numbers of shape (N, D).")
    wrong = [f"{column} {array.shape}" for column, array in picked.items() if array.size != len(data)]
    if wrong:
        raise StoreError(f"{path}: data has {len(data)} rows, but there is {', '.join(wrong)}.")
    texts = {column: _decoded(path, array) for column, array in picked.items() if column in _TEXTS}
    try:
        times = {column: picked[column].ravel().astype(np.float64) for column in _TIMES if column in picked}
    except ValueError as error:
        raise StoreError(f"{path}: start or end are no numbers: {error}.") from error
    embedder = str(arrays["embedder"]) if "embedder" in arrays else ""
    return _filled(_single(data), texts, times, embedder)


def _decoded(path: Path, array: NDArray[Any]) -> list[str]:
    try:
        return [one.decode("utf-8") if isinstance(one, bytes) else str(one) for one in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} holds names that are not UTF-8.") from error


@WRITERS.register(".npz")
def _write_npz(path: Path, embeddings: EmbeddingSet) -> None:
    columns = {column: getattr(embeddings, column) for column in ("data", *_TEXTS, *_TIMES)}
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, embedder=np.asarray(embeddings.embedder), allow_pickle=False, **columns)


# ----------------------------------------------------------------------------------------------------- csv and parquet


@READERS.register(".csv")
@READERS.register(".tsv")
def _read_csv(path: Path) -> EmbeddingSet:
    """Columns name, e0, e1, ... and, where they are there, group, subgroup, speaker, start, end."""
    csv.field_size_limit(sys.maxsize)
    texts: dict[str, list[str]] = {}
    rows: list[Floats] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_delimiter(path))
            header = next(reader, [])
            place = {column: header.index(column) for column in (*_TEXTS, *_TIMES) if column in header}
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
                if len(row) != len(header):
                    raise StoreError(
                        f"{path}, line {reader.line_num}, has {len(row)} fields, the header {len(header)}."
                    )
                rows.append(_single(np.array([row[number] for number in numbers], dtype=np.float64)))
                for column, index in place.items():
                    texts[column].append(row[index])
            times = {column: [float(one or "nan") for one in texts.pop(column)] for column in _TIMES if column in texts}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StoreError(f"{path} cannot be read as a table: {error}.") from error
    except ValueError as error:
        raise StoreError(f"{path}, line {reader.line_num}, holds something that is no number: {error}.") from error
    data = np.stack(rows) if rows else np.zeros((0, dimension), np.float32)
    return _filled(data, texts, times)


@WRITERS.register(".csv")
@WRITERS.register(".tsv")
def _write_csv(path: Path, embeddings: EmbeddingSet) -> None:
    mark = _delimiter(path)
    columns = [getattr(embeddings, column).tolist() for column in (*_TEXTS, *_TIMES)]
    header = [*_TEXTS, *_TIMES, *(f"e{number}" for number in range(embeddings.dimension))]
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.write(mark.join(header) + "\n")
        for row, *fields in zip(embeddings.data, *columns, strict=True):
            texts = [_quoted(text) for text in fields[: len(_TEXTS)]]
            times = ["" if np.isnan(time) else repr(time) for time in fields[len(_TEXTS) :]]
            values = [f"{value:.9g}" for value in row.tolist()]  # nine digits give the same float32 back
            file.write(mark.join([*texts, *times, *values]) + "\n")


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _quoted(text: str) -> str:
    """As RFC 4180 has it; the csv module of Python 3.10 writes a bare carriage return and cannot read it back."""
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\t\r\n]', text) else text


@WRITERS.register(".parquet")
def _write_parquet(path: Path, embeddings: EmbeddingSet) -> None:
    import pandas

    texts = {column: getattr(embeddings, column) for column in (*_TEXTS, *_TIMES)}
    values = {f"e{number}": embeddings.data[:, number] for number in range(embeddings.dimension)}
    with replacing(path) as part:
        try:
            pandas.DataFrame({**texts, **values}).to_parquet(part, index=False)
        except ImportError as error:
            raise StoreError("Parquet files need pyarrow, which is not installed.", "pip install pyarrow") from error
