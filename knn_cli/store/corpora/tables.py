"""Tables of files: Common Voice's (`validated.tsv` beside `clips/`), and `metadata.csv` with a column file_name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from knn_cli.core.errors import KnnError
from knn_cli.core.folders import is_folder
from knn_cli.core.texts import read_lines, read_table, tidy
from knn_cli.core.urls import is_url, shown
from knn_cli.core.values import Segment
from knn_cli.store import labels
from knn_cli.store.corpora.files import first_line
from knn_cli.store.corpora.recordings import UNSTATED, Utterance, class_and_speaker, find_sound
from knn_cli.store.corpora.registry import corpus_reader
from knn_cli.store.corpora.wespeaker_lists import first_object, json_lines
from knn_cli.store.labels import Labels

CLIPS = "clips"
COMMON_VOICE_TABLES = ("validated.tsv", "train.tsv")  # the first that there is stands for a folder
METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
FILE_COLUMN = "file_name"


def _common_voice_tables(path: Path) -> list[Path]:
    """The tables that a path stands for: itself, that of its language, or those of the languages below it."""
    if not is_folder(path):
        words = first_line(path).split("\t") if path.suffix.lower() == ".tsv" else []
        return [path] if {"client_id", "path"} <= set(words) and (path.parent / CLIPS).is_dir() else []
    folders = [path] if (path / CLIPS).is_dir() else [found.parent for found in sorted(path.glob(f"*/{CLIPS}"))]
    tables = [
        next((folder / name for name in COMMON_VOICE_TABLES if (folder / name).is_file()), None) for folder in folders
    ]
    return [table for table in tables if table is not None]


@corpus_reader("a table of Common Voice", lambda path: bool(_common_voice_tables(path)))
def _read_common_voice(path: Path) -> Iterable[Utterance]:
    for table in _common_voice_tables(path):
        lines = read_lines(table, "a table of Common Voice")
        columns = lines[0].split("\t")  # never quoted: a sentence may begin with a quotation mark
        for number, line in enumerate(lines[1:], start=2):
            if not line.strip():
                continue
            cells = dict(zip(columns, line.split("\t"), strict=False))
            if not cells.get("path", "").strip():
                raise KnnError(f"Line {number} of {table} has no path.", "Is it a table of Common Voice?")
            name = cells["path"].strip()
            name = name if Path(name).suffix else f"{name}.mp3"
            language = cells.get("locale", "").strip() or table.resolve().parent.name
            stated = class_and_speaker(language, cells.get("client_id", ""))
            yield Utterance(f"{CLIPS}/{tidy(name)}", find_sound(f"{CLIPS}/{name}", table), stated)


def _metadata(path: Path) -> Path | None:
    """The table that a path is or has."""
    tables = [path / name for name in METADATA] if is_folder(path) else [path]
    return next((table for table in tables if table.is_file() and _names_files(table)), None)


def _names_files(table: Path) -> bool:
    if table.suffix.lower() in (".csv", ".tsv"):
        return FILE_COLUMN in [tidy(cell).strip('"').lower() for cell in re.split("[,;\t]", first_line(table))]
    return table.suffix.lower() == ".jsonl" and FILE_COLUMN in first_object(table)


@corpus_reader("a table of files", lambda path: _metadata(path) is not None)
def _read_metadata(path: Path) -> Iterable[Utterance]:
    table = _metadata(path)
    assert table is not None
    if table.suffix.lower() == ".jsonl":
        objects = list(json_lines(table, "a table of files"))
        columns = list(dict.fromkeys(str(name).lower() for _, found in objects for name in found))
        texts = [(place, {str(name).lower(): value for name, value in found.items()}) for place, found in objects]
        lines = [(place, [_text(found.get(name)) for name in columns]) for place, found in texts]
    else:
        columns, rows = read_table(table, "a table of files")
        lines = [(f"Line {number} of {table}", cells) for number, cells in rows]
    yield from _listed(table, columns, lines)


def _listed(table: Path, columns: Sequence[str], lines: Iterable[tuple[str, list[str]]]) -> Iterator[Utterance]:
    known = labels.label_columns(columns)
    for place, texts in lines:
        cells = dict(zip(columns, texts, strict=True))
        name = cells.get(FILE_COLUMN, "").removeprefix("./")
        if not name:
            raise KnnError(f"{place} has no {FILE_COLUMN}.", "Add it, or leave the line out.")
        values = {field: labels.only_label(cells, names, place) for field, names in known.items()}
        key = shown(name) if is_url(name) else name
        yield Utterance(key, find_sound(name, table), _stated(values), _span(cells, place))


def _stated(values: dict[str, str]) -> Labels:
    group, subgroup = values.get("group", ""), values.get("subgroup", "")
    stated = replace(UNSTATED, group=group, subgroup=subgroup) if subgroup else class_and_speaker(group, "")
    if subgroup and not group:
        stated = class_and_speaker(subgroup, "")
    return replace(stated, speaker=values.get("speaker", ""))


def _span(cells: dict[str, str], place: str) -> Segment | None:
    """What columns start and end say, where both are there."""
    texts = cells.get("start", ""), cells.get("end", "")
    if not all(texts):
        return None
    try:
        span = Segment(*map(float, texts))
    except ValueError as error:
        raise KnnError(f"{place}: {error}.", "Times are seconds.") from error
    if not 0 <= span.start < span.end < float("inf"):
        raise KnnError(
            f"{place}: from {span.start:g} to {span.end:g} s is no segment.", "The end comes after the start."
        )
    return span


def _text(value: object) -> str:
    return tidy(str(value)) if isinstance(value, (str, int, float)) else ""
