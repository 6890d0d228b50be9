"""Fit the PLDA of the `voice` bundle: the covariances of its embeddings within and between speakers.

    python -m tools.shipped_models.plda --data ../shared/data --work WORK --model models/voice

The speakers are all but `data.held_out_speakers` and names that stand for several speakers. Each recording is encoded
once, clean or through a room and noise, and pooled over several spans of speech, as the diarizer pools over the speech
of a speaker in a window. Writes plda.safetensors into the folder of the bundle; WORK keeps the embeddings.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from knn_cli.audio import reading
from knn_cli.core.values import Floats
from knn_cli.diarization.clustering import plda as voice_plda
from knn_cli.networks import bundle
from tools.shipped_models.data import Row, held_out_speakers, is_multi_speaker, read_16k, read_manifest

RATE = reading.RATE
LONGEST = 10.0  # seconds of a recording that are used
SHORTEST_CROP = 1.5  # seconds of speech
CROPS = 4  # per recording
RECORDINGS = 3  # per speaker; the only recording of a speaker is used twice
QUIET = 35.0  # decibels below the loud frames of a recording at which a frame counts as a pause
DIMENSION = 128


def choose_recordings(rows: list[Row], held_out: set[str], generator: np.random.Generator) -> list[tuple[Row, bool]]:
    """The recordings to embed, and whether to pass each through a room and noise."""
    by_speaker: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        known = row["speaker"] not in held_out and not is_multi_speaker(row["speaker"])
        if known and float(row["active_seconds"]) >= SHORTEST_CROP:
            by_speaker[row["speaker"]].append(row)
    result: list[tuple[Row, bool]] = []
    for speaker in sorted(by_speaker):
        kept = [by_speaker[speaker][k] for k in generator.permutation(len(by_speaker[speaker]))[:RECORDINGS]]
        result += [(row, place % 2 == 1) for place, row in enumerate(kept if len(kept) > 1 else kept * 2)]
    return result


class RoomAndNoise:
    """Adds a random room and noise to a waveform."""

    def __init__(self, folder: Path) -> None:
        self.rooms = []
        for path in sorted((folder / "rir").glob("*")):
            room = reading.read(path).samples
            first = int(np.abs(room).argmax())
            self.rooms.append(room[first : first + RATE // 2] / np.sqrt(np.sum(room[first : first + RATE // 2] ** 2)))
        self.noises = [reading.read(path).samples for path in sorted((folder / "esc10").glob("*.opus"))]

    def __call__(self, waveform: Floats, generator: np.random.Generator) -> Floats:
        """The waveform in a random room, with a noise 5 to 25 dB below it."""
        wet = fftconvolve(waveform, self.rooms[int(generator.integers(len(self.rooms)))])[: len(waveform)]
        noise = np.resize(self.noises[int(generator.integers(len(self.noises)))], len(waveform))
        level = np.sqrt(np.mean(wet**2) / max(1e-12, float(np.mean(noise**2))))
        mix = wet + noise * level * 10 ** (-generator.uniform(5, 25) / 20)
        result: Floats = (mix * 0.5 / max(1e-6, float(np.abs(mix).max()))).astype(np.float32)
        return result


def spoken(waveform: Floats, frames: int, stride: int) -> NDArray[np.int64]:
    """Indices of the frames that are not pauses, by level."""
    sound = np.resize(waveform, frames * stride) if len(waveform) < frames * stride else waveform[: frames * stride]
    level = 10 * np.log10(np.mean(sound.reshape(frames, stride) ** 2, axis=1) + 1e-10)  # (frames,)
    return np.flatnonzero(level > np.percentile(level, 95) - QUIET)


def embeddings(
    model: bundle.Bundle, data: Path, recordings: list[tuple[Row, bool]], generator: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """(N, E) embeddings of spans of speech, in the speaker view, and (N,) speakers."""
    network = bundle.load_network(model)
    distort = RoomAndNoise(data / "noise")
    stride = int(network.encoder.stride)  # type: ignore[arg-type]
    shortest = round(SHORTEST_CROP * RATE / stride)
    rows, speakers = [], []
    for row, distorted in recordings:
        clean = read_16k(data / "speech" / row["path"])
        first = int(generator.integers(max(1, len(clean) - round(LONGEST * RATE))))
        clean = clean[first : first + round(LONGEST * RATE)]
        waveform = distort(clean, generator) if distorted else clean
        with torch.inference_mode():
            layers = list(network.encoder(torch.from_numpy(waveform * np.float32(model.scale))[None]))  # (1, T, C) each
        frames = layers[0].shape[1]
        speech = spoken(clean, frames, stride)
        if len(speech) < shortest:
            continue
        masks = torch.zeros(CROPS, frames, dtype=torch.bool)
        for mask in masks:
            length = int(generator.integers(shortest, len(speech) + 1))
            start = int(generator.integers(len(speech) - length + 1))
            mask[torch.from_numpy(speech[start : start + length])] = True
        with torch.inference_mode():
            rows.append(network.pooling((layer.expand(CROPS, -1, -1) for layer in layers), masks).numpy())
        speakers += [row["speaker"]] * CROPS
    return np.concatenate(rows)[:, model.view("speaker")], np.array(speakers)


def main() -> None:
    """Write the file and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="models/voice")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = np.random.default_rng(arguments.seed)
    model = bundle.find(arguments.model)
    rows_of_manifest = read_manifest(arguments.data / "speech" / "manifest.tsv")
    recordings = choose_recordings(rows_of_manifest, set(held_out_speakers(rows_of_manifest)), generator)
    cache = arguments.work / f"plda-{model.fingerprint.partition('@')[2]}-{arguments.seed}.npz"
    if cache.exists():
        with np.load(cache) as file:
            rows, speakers = file["rows"], file["speakers"]
    else:
        rows, speakers = embeddings(model, arguments.data, recordings, generator)
        np.savez(cache, rows=rows, speakers=speakers)
    plda = voice_plda.EmbeddingPLDA.fit(rows, speakers, dimension=DIMENSION)
    plda.save(model.folder / voice_plda.FILE, embedder=model.fingerprint)
    print(f"{len(rows)} embeddings of {len(set(speakers.tolist()))} speakers -> {model.folder / voice_plda.FILE}")
    print("variance between speakers:", " ".join(f"{value:.2f}" for value in plda.between[:: DIMENSION // 8]))


if __name__ == "__main__":
    main()
