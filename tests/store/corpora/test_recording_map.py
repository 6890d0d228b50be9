"""Several recordings at a time give what one after the other gives, and stop when nobody wants more."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from knn_cli.audio import reading_notes, reading_progress
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.store.corpora.recording_map import at_once, one_by_one

CPU = torch.device("cpu")
PATHS = [Path(f"{number}.wav") for number in range(8)]


def said(found: KnnError | str) -> str:
    return found.message if isinstance(found, KnnError) else found


def test_results_notes_and_progress_are_those_of_one_after_the_other() -> None:
    together, threads = threading.Barrier(2, timeout=20), set()

    def work(path: Path) -> str:
        if path.stem in "01":
            together.wait()  # ends only if the first two are worked on at once
        threads.add(torch.get_num_threads())
        reading_notes.note(path, "is odd")
        reading_progress.report(path, 1.0, 1.0)
        if path.stem == "5":
            raise AudioError("5.wav is bad.")
        return path.stem

    notes: list[Path] = []
    read: list[Path] = []
    with (
        reading_notes.listening(lambda path, clause, loss: notes.append(path)),
        reading_progress.listening(lambda path, seconds, total: read.append(path)),
    ):
        found = [said(result) for result in at_once(CPU, 2)(lambda: work, PATHS)]
    assert found == ["0", "1", "2", "3", "4", "5.wav is bad.", "6", "7"] and notes == PATHS
    assert threads == {1} and read and set(read) <= set(PATHS)
    assert [*at_once(CPU, 2)(lambda: lambda path: path.stem, PATHS)] == [
        *one_by_one(lambda: lambda path: path.stem, PATHS)
    ]


def test_progress_of_the_next_recording_begins_when_the_caller_is_done_with_the_last() -> None:
    counting, reported = threading.Event(), threading.Event()

    def work(path: Path) -> None:
        if path.stem == "1":
            assert counting.wait(20)
            reading_progress.report(path, 1.0, 2.0)
            reported.set()

    read: list[Path] = []
    with reading_progress.listening(lambda path, seconds, total: read.append(path)):
        results = at_once(CPU, 2)(lambda: work, PATHS[:2])
        next(iter(results))
        counting.set()
        assert reported.wait(20) and not read
        assert [*results] == [None]


def test_another_error_is_raised_and_ends_what_is_being_read() -> None:
    begun, ended = threading.Event(), []

    def work(path: Path) -> str:
        if path.stem == "0":
            begun.wait(20)
            raise ZeroDivisionError
        begun.set()
        try:
            while True:  # a recording without an end, read piece by piece
                reading_progress.report(path, 1.0, None)
        finally:
            ended.append(path)

    with pytest.raises(ZeroDivisionError):
        list(at_once(CPU, 2)(lambda: work, PATHS))
    assert PATHS[1] in ended and len(ended) <= 2
