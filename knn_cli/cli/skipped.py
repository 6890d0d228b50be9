"""Sources that are missing, and what is passed over in folders of recordings: counted, and named on request."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from knn_cli.cli.console import console
from knn_cli.cli.options import counted
from knn_cli.core.errors import KnnError
from knn_cli.core.urls import UrlPath


def refuse_missing(sources: Sequence[Path]) -> None:
    """Raise KnnError where none of the sources is there, before models are loaded; one of several costs itself only."""
    if sources and not any(isinstance(source, UrlPath) or os.path.lexists(source) for source in sources):
        raise KnnError(f"{sources[0]} does not exist.", "Check the path; paths are relative to the current folder.")


def note_skipped(sources: Iterable[Path]) -> None:
    """Report the files of folders with sound that are no sound by their suffix; -v names them."""
    from knn_cli.audio import reading
    from knn_cli.core.folders import is_folder, others_below
    from knn_cli.store.corpora import registry

    for folder in sources:
        if isinstance(folder, UrlPath) or not is_folder(folder) or not reading.find(folder):
            continue
        if (kind := registry.kind_of(folder)) is not None and not kind.is_sound:
            continue  # a corpus, whose lists say what belongs to it
        if skipped := others_below(folder, reading.SUFFIXES):
            more = "" if console.verbose else "; -v names them"
            console.note(f"{folder}: {counted(len(skipped), 'file')} of other kinds left out{more}.")
        for path in skipped:
            console.detail(f"Left out: {path}.")
