"""Embeddings of a Whisper bundle for every recording of the manifest, at three durations, and for noise and music.

    python -m tools.shipped_models.language_scores --data DATA --model WORK/whisper-base --out WORK/scores/NAME
        [--part 1/2] [--per-cell 15] [--whole-only]

Speech is found with silero-vad and joined, as in `knn classify`; `whole` is up to 20 s of it, `5` and `3` are its
middle 5 and 3 seconds (NaN for recordings with less). Noise and music are embedded as they are. Only so many recordings
of each language and family are embedded as `--per-cell` says; the others are NaN. Writes one .npz per hundred
recordings; a run that was interrupted goes on where it stopped, and runs with different parts share the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from knn_cli.audio import speech_regions
from knn_cli.core.values import Floats, Waveform
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks.chunk_setting import CHUNK_SECONDS
from tools.shipped_models.data import Row, read_16k, read_manifest, rows_of_cells

RATE = 16000
DURATIONS = {"whole": CHUNK_SECONDS, "5": 5.0, "3": 3.0}  # seconds of speech
ROWS_PER_FILE = 100
PER_CELL = 15  # recordings of a language in a family
NOISE = "noise"


def speech_of(samples: Floats) -> Floats:
    """The speech of a recording, (S,) float32, joined; all of it where there is less than half a second."""
    (regions,) = speech_regions.of_clips([Waveform(samples, RATE)])
    parts = [samples[round(region.start * RATE) : round(region.end * RATE)] for region in regions]
    speech = np.concatenate(parts) if parts else samples
    return speech if len(speech) >= RATE // 2 else samples


def crops(speech: Floats) -> dict[str, Floats | None]:
    """What is embedded of a recording's speech at each duration; None where there is less than that."""
    result: dict[str, Floats | None] = {"whole": speech[: round(CHUNK_SECONDS * RATE)]}
    for name, seconds in DURATIONS.items():
        size = round(seconds * RATE)
        if name != "whole":
            first = (len(speech) - size) // 2
            result[name] = speech[first : first + size] if first >= 0 else None
    return result


def embed(embedder: Embedder, recordings: list[Floats | None], whole_only: bool) -> dict[str, NDArray[np.float32]]:
    """Embeddings (N, E) at each duration, and `seconds` (N,) of the whole; NaN for recordings that are None."""
    speech = [{} if each is None else crops(speech_of(each)) for each in recordings]
    result: dict[str, NDArray[np.float32]] = {}
    for name in DURATIONS:
        clips = [None if whole_only and name != "whole" else each.get(name) for each in speech]
        rows = np.full((len(recordings), embedder.dimension), np.nan, dtype=np.float32)
        rows[[clip is not None for clip in clips]] = embedder([clip for clip in clips if clip is not None])
        result[name] = rows
    lengths = [np.nan if (whole := each.get("whole")) is None else len(whole) for each in speech]
    return {**result, "seconds": np.array(lengths, dtype=np.float32) / RATE}


def read(folder: Path, rows: list[Row], name: str) -> NDArray[np.float32]:
    """The embeddings (N, E) of one duration, or `seconds` (N,), of all rows of the manifest, or of `NOISE`."""
    if name == NOISE:
        with np.load(folder / f"{NOISE}.npz") as file:
            return np.asarray(file["whole"])
    parts = []
    for first in range(0, len(rows), ROWS_PER_FILE):
        with np.load(folder / f"{first}.npz") as file:
            parts.append(np.asarray(file[name]))
    return np.concatenate(parts)


def _save(path: Path, arrays: dict[str, NDArray[np.float32]]) -> None:
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def _jobs(data: Path, per_cell: int) -> Iterator[tuple[str, list[Path | None]]]:
    """Names of the files to write, and the recordings of each; None for those that are left out."""
    yield NOISE, sorted(path for kind in ("esc10", "music") for path in (data / "noise" / kind).glob("*.*"))
    rows = read_manifest(data / "speech" / "manifest.tsv")
    chosen = rows_of_cells(rows, per_cell)
    paths = [data / "speech" / row["path"] if each else None for row, each in zip(rows, chosen, strict=True)]
    for first in range(0, len(rows), ROWS_PER_FILE):
        yield str(first), paths[first : first + ROWS_PER_FILE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="1/1", help="which part of the work, such as 1/2")
    parser.add_argument("--per-cell", type=int, default=PER_CELL)
    parser.add_argument("--whole-only", action="store_true", help="leave out the shorter durations")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    embedder = Embedder(args.model, device="cpu", batch_seconds=1)
    part, parts = map(int, args.part.split("/"))
    for number, (name, paths) in enumerate(_jobs(args.data, args.per_cell)):
        path = args.out / f"{name}.npz"
        if number % parts != part - 1 or path.exists():
            continue
        recordings = [None if each is None else read_16k(each) for each in paths]
        if name == NOISE:
            size = round(CHUNK_SECONDS * RATE)
            _save(path, {"whole": embedder([each[:size] for each in recordings if each is not None])})
        else:
            _save(path, embed(embedder, recordings, args.whole_only))
        print(f"{path}: {len(paths)} recordings", flush=True)


if __name__ == "__main__":
    main()
