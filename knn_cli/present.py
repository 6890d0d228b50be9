"""What `embed` and `classify` print: JSON lines, tab-separated rows, a table for a terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, TextIO

import numpy as np

from knn_cli.classification import posteriors
from knn_cli.exchange import write_text
from knn_cli.metrics import detection_llr
from knn_cli.types import EmbeddingSet, ScoreTable


def embeddings(
    stream: TextIO, rows: EmbeddingSet, as_json: bool, *, key: str | None = None, file: str | None = None
) -> None:
    """JSON lines, or Kaldi text vectors. A file's rows are called by its path in JSON and by `key` in Kaldi's text,
    a store's rows by their recordings.
    """
    if not as_json:
        write_text(stream, rows if key is None else replace(rows, name=np.full(len(rows), key)))
        return
    for vector, name, start, end in zip(rows.data, rows.name, rows.start, rows.end, strict=True):
        line = {"file": file or str(name), "model": rows.embedder, "start": _seconds(start), "end": _seconds(end)}
        json_line(stream, {**line, "embedding": [float(f"{value:.7g}") for value in vector]})


def score_lines(stream: TextIO, table: ScoreTable) -> None:
    llr = detection_llr(table.log_likelihood)
    for row, chances in enumerate(posteriors(table)):
        best = int(chances.argmax())
        line = {
            "file": str(table.name[row]),
            "start": _seconds(table.start[row]),
            "end": _seconds(table.end[row]),
            "label": table.labels[best],
            "probability": round(float(chances[best]), 6),
            "probabilities": {one: round(float(p), 6) for one, p in zip(table.labels, chances, strict=True)},
            "llr": {one: round(float(x), 4) for one, x in zip(table.labels, llr[row], strict=True)},
        }
        json_line(stream, line)


def score_rows(stream: TextIO, table: ScoreTable, top: int, *, header: bool) -> None:
    if header:
        more = [
            f"{word}_{rank}" for rank in range(2, min(top, len(table.labels)) + 1) for word in ("label", "probability")
        ]
        stream.write("\t".join(["file", "start", "end", "label", "probability", *more]) + "\n")
    for row, chances in enumerate(posteriors(table)):
        best = chances.argsort()[::-1][:top]
        ranked = [field for one in best for field in (table.labels[one], f"{chances[one]:.4f}")]
        times = [
            "" if (value := _seconds(time)) is None else f"{value:g}" for time in (table.start[row], table.end[row])
        ]
        stream.write("\t".join(map(_field, [str(table.name[row]), *times, *ranked])) + "\n")


def score_table(tables: list[ScoreTable], top: int, model: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=f"Labels by {model}")
    shown.add_column("file", overflow="fold")
    shown.add_column("seconds", justify="right")
    for rank in range(1, min(top, len(tables[0].labels)) + 1):
        shown.add_column(f"{rank}.")
    for table in tables:
        for row, chances in enumerate(posteriors(table)):
            best = chances.argsort()[::-1][:top]
            span = f"{table.start[row]:.1f}-{table.end[row]:.1f}" if _seconds(table.start[row]) is not None else ""
            cells = [str(table.name[row]), span, *(f"{table.labels[one]} {chances[one]:.1%}" for one in best)]
            shown.add_row(*map(Text, cells))  # Text: a name may hold what rich takes for markup
    Console().print(shown)


def right_of(table: ScoreTable) -> tuple[int, int]:
    """(right, all) of the rows whose true label the model knows."""
    if not len(table.truth):
        return 0, 0
    known = np.isin(table.truth, table.labels)
    right = np.asarray(table.labels)[table.log_likelihood.argmax(axis=1)] == table.truth
    return int((known & right).sum()), int(known.sum())


def _field(text: str) -> str:
    """One field of a tab-separated line; what would break the line is escaped."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _seconds(value: float) -> float | None:
    return None if value != value else round(float(value), 3)  # NaN is unequal to itself


def json_line(stream: TextIO, value: Any) -> None:
    stream.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
