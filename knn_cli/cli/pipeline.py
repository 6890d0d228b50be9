"""Checks and names that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from knn_cli.audio import reading
from knn_cli.core.errors import KnnError
from knn_cli.core.output_paths import check_output
from knn_cli.store import hdf5, labels
from knn_cli.store.labels import Labels


def check_text_output(out: Path | None, sources: Sequence[Path]) -> None:
    """KnnError when a text output would replace a source, or is called like sound or a store."""
    check_output(out, sources)
    if out is not None and out.suffix.lower() in {*reading.SUFFIXES, *hdf5.SUFFIXES}:
        raise KnnError(f"{out} is no name for a text file.", "Is it a recording? The output comes after the option.")


def line_names(files: Sequence[tuple[Path, Labels]]) -> list[str]:
    """What each file's line is called on stdout: its stem, so that pieces of one recording differ, made distinct."""
    return labels.distinct([path.stem for path, _ in files], [path.parent for path, _ in files])
