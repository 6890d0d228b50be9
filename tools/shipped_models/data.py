"""The manifest of recordings, its splits, and the caches of log powers from which training draws crops."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

TARGET_LANGUAGES = tuple("bg ca cs da de el en es fr it nl pl ro ru zh".split())
UNLABELLED_FAMILIES = ("gcompris",)  # whose recordings are of other languages only; not scored among the fifteen
FLOOR = 1e-7  # smallest power that is kept (a clamp, not an offset): half precision holds its logarithm
Frames = NDArray[np.float16]
Row = dict[str, str]


def read_manifest(path: Path) -> list[Row]:
    """Rows of a tab-separated table with a header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def read_16k(path: Path) -> NDArray[np.float32]:
    """A recording at 16 kHz as mono float32; ValueError for other sampling rates."""
    waveform, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if rate != 16000:
        raise ValueError(f"{path} is at {rate} Hz, 16000 expected")
    return np.ascontiguousarray(waveform.mean(1))


def is_multi_speaker(speaker: str) -> bool:
    """Whether a speaker name of the manifest stands for more than one speaker."""
    return any(part in speaker for part in ("_mix", "_other", "_unknown"))


def is_ambiguous_speaker(speaker: str) -> bool:
    """Whether a held-out name stands for several speakers, or for a speaker who may have another name in training."""
    return is_multi_speaker(speaker) or speaker in ("gc_Jonas_Jaktys_Rolandas_Jaktys", "gc_Johnstad")


def held_out_speakers(rows: list[Row], seed: int = 0) -> list[str]:
    """Speakers that no speaker model is trained on: 40 of LibriSpeech with one recording, 24 others with four or more.

    The others are drawn from languages outside the fifteen, so that the language model loses no data.
    """
    rng = np.random.default_rng(seed)
    libri = sorted({r["speaker"] for r in rows if r["source"] == "librispeech"})
    chosen = list(rng.choice(libri, 40, replace=False))
    count: dict[str, int] = {}
    target_speakers = {r["speaker"] for r in rows if r["language"] in TARGET_LANGUAGES}
    for row in rows:
        count[row["speaker"]] = count.get(row["speaker"], 0) + 1
    others = sorted(speaker for speaker, n in count.items() if n >= 4 and speaker not in target_speakers)
    return sorted(chosen + list(rng.choice(others, min(24, len(others)), replace=False)))


def rows_of_cells(rows: list[Row], per_cell: int) -> NDArray[np.bool_]:
    """(N,) up to `per_cell` recordings of each language in each family, drawn by a fixed seed."""
    rng = np.random.default_rng(0)
    cells: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        cells.setdefault((row["language"], row["family"]), []).append(number)
    chosen = np.zeros(len(rows), dtype=bool)
    for cell in sorted(cells):
        chosen[rng.permutation(cells[cell])[:per_cell]] = True
    return chosen


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    """Save under a temporary name, then rename: an interrupted run leaves no partial file."""
    temporary = path.with_name(path.name + ".tmp.npy")
    np.save(temporary, array)
    temporary.replace(path)


def write_json(path: Path, content: object) -> None:
    """Write JSON under a temporary name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1))
    temporary.replace(path)


def write_cache(cache: Path, name: str, parts: Iterable[Frames]) -> None:
    """Write the concatenated frames of several recordings, then their offsets, each file atomically."""
    recordings = list(parts)
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in recordings])]).astype(np.int64)
    write_array(cache / f"{name}.npy", np.concatenate(recordings))
    write_array(cache / f"{name}.offsets.npy", offsets)


class Corpus:
    """Concatenated recordings in a memory-mapped array, such as log powers (frames, 80)."""

    def __init__(self, cache: Path, name: str) -> None:
        self.frames: Frames = np.load(cache / f"{name}.npy", mmap_mode="r")
        self.offsets: NDArray[np.int64] = np.load(cache / f"{name}.offsets.npy")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def size(self, index: int) -> int:
        """Number of frames of a recording."""
        return int(self.offsets[index + 1] - self.offsets[index])

    def whole(self, index: int, limit: int | None = None) -> Frames:
        """A recording, or its first `limit` frames."""
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.frames[start : end if limit is None else min(end, start + limit)]

    def crop(self, index: int, length: int, rng: np.random.Generator) -> Frames:
        """`length` frames from a random position; a shorter recording is repeated cyclically."""
        start, size = self.offsets[index], self.size(index)
        if size > length:
            first = start + rng.integers(size - length + 1)
            return self.frames[first : first + length]
        return self.frames[start + (rng.integers(size) + np.arange(length)) % size]
