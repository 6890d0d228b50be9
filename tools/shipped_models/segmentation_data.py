"""Training data of the segmentation head: encoder frames of simulated conversations, references, teacher probabilities.

    python -m tools.shipped_models.segmentation_data --data ../shared/data --work WORK --teacher BUNDLE [--shards 84]

Writes WORK/segmentation/NNN.npz and NNN.npy, a pair per shard of about twenty minutes; existing shards are kept. Each
shard is seeded by its number. TEACHER is pyannote's segmentation-3.0 (MIT), converted by `knn convert`.

NNN.npy  : (N, layers * C) float16, concatenated encoder layers, 50 frames per second; conversations follow each other
NNN.npz  : `offsets` (K + 1,) of conversations, in pairs of frames; `truth` (N / 2, 6) uint8, the active speakers in
           the middle of each pair; `taught` (N / 2, 7) float16, class probabilities of the teacher in consecutive
           chunks of WINDOW_FRAMES pairs from the start of each conversation, with speakers in the order that fits the
           reference best; `who` (N / 2, 3) int8, the columns of `truth` that these speakers are (-1: none)
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knn_cli.audio.segments import FRAME_SECONDS
from knn_cli.core.values import Floats
from knn_cli.diarization.segmentation import CHUNK_SECONDS, WINDOW_FRAMES
from knn_cli.networks import bundle
from knn_cli.networks.segmenters.powerset import best_permutation, permuted_classes, to_multilabel
from tools.shipped_models.conversations import RATE, Conversation, SpeakerRecordings, simulate
from tools.shipped_models.data import held_out_speakers, is_multi_speaker, read_manifest, write_array

PAIR = round(FRAME_SECONDS * RATE)  # samples of two frames of the encoder
SPEAKERS = 6
SHARD_SECONDS = 1200.0


def encoder_frames(encoder: torch.nn.Module, samples: Floats) -> Tensor:
    """(S,) -> (T, layers * C) float32: chunks of equal length, at most 20 s, encoded separately."""
    pairs = len(samples) // PAIR
    count = max(1, -(-pairs * PAIR // round(CHUNK_SECONDS * RATE)))
    edges = np.linspace(0, pairs, count + 1).round().astype(int) * PAIR
    chunks = []
    with torch.inference_mode():
        for first, last in pairwise(edges):
            chunks.append(torch.cat(list(encoder(torch.from_numpy(samples[first:last])[None])), dim=2)[0])
    return torch.cat(chunks)


def speaker_activity(conversation: Conversation) -> NDArray[np.uint8]:
    """(pairs, SPEAKERS) uint8, speakers in the order of the annotation's labels."""
    pairs = len(conversation.samples) // PAIR
    middles = (np.arange(pairs) + 0.5) * PAIR / RATE
    table = np.zeros((pairs, SPEAKERS), dtype=np.uint8)
    for column, label in enumerate(conversation.truth.labels()):
        for span in conversation.truth.label_timeline(label):
            table[(middles >= span.start) & (middles < span.end), column] = 1
    return table


def busiest(truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The three most active columns of a window (T, S), -1 if there are fewer speakers."""
    seconds = truth.sum(0).astype(np.int64)
    order = np.argsort(-seconds, kind="stable")[:3]
    return np.where(seconds[order] > 0, order, -1)


def columns(truth: NDArray[np.uint8], chosen: NDArray[np.int64]) -> Floats:
    """(T, 3) float32: the chosen columns, zeros for -1."""
    return np.where(chosen >= 0, truth[:, chosen], 0).astype(np.float32)


def teacher_targets(
    teacher: torch.nn.Module, samples: Floats, truth: NDArray[np.uint8]
) -> tuple[Floats, NDArray[np.int8]]:
    """The teacher's class probabilities (pairs, 7) and the reference column of each of its speakers (pairs, 3)."""
    pairs = len(truth)
    classes = np.zeros((pairs, 7), dtype=np.float32)
    who = np.full((pairs, 3), -1, dtype=np.int8)
    for first in range(0, pairs, WINDOW_FRAMES):
        part = slice(first, min(pairs, first + WINDOW_FRAMES))
        chunk = np.zeros(WINDOW_FRAMES * PAIR, dtype=np.float32)
        sound = samples[first * PAIR : part.stop * PAIR]
        chunk[: len(sound)] = sound
        with torch.inference_mode():
            logs = teacher(torch.from_numpy(chunk)[None])[0]  # (589, 7)
        middles = (np.arange(part.stop - first) + 0.5) * PAIR / RATE
        logs = logs[torch.from_numpy(teacher.nearest(middles, len(logs)))]
        chosen = busiest(truth[part])
        order = best_permutation(columns(truth[part], chosen), to_multilabel(logs).numpy())
        classes[part] = logs.exp().numpy()[:, list(permuted_classes(order))]
        who[part] = chosen
    return classes, who


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--model", default="models/voice")
    parser.add_argument("--shards", type=int, default=84)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_manifest(args.data / "speech" / "manifest.tsv")
    hidden = set(held_out_speakers(rows))
    names = {name for row in rows if not is_multi_speaker(name := row["speaker"])} - hidden
    recordings = SpeakerRecordings(args.data, args.work, names)
    encoder = bundle.load_network(bundle.find(args.model)).encoder.eval()
    teacher = bundle.load_segmenter(bundle.find(args.teacher, segmenter=True)).eval()
    out = args.work / "segmentation"
    out.mkdir(exist_ok=True)
    for number in range(args.shards):
        if (out / f"{number:03}.npz").exists():
            continue
        generator = np.random.default_rng([6, number])
        frames, truths, classes, who, seconds = [], [], [], [], 0.0
        while seconds < SHARD_SECONDS:
            conversation = simulate(recordings, generator)
            seconds += conversation.seconds
            truth = speaker_activity(conversation)
            frames.append(encoder_frames(encoder, conversation.samples).half().numpy())
            theirs, order = teacher_targets(teacher, conversation.samples, truth)
            truths.append(truth), classes.append(theirs.astype(np.float16)), who.append(order)
        write_array(out / f"{number:03}.npy", np.concatenate(frames))
        temporary = out / f"{number:03}.tmp.npz"
        np.savez(
            temporary,
            offsets=np.cumsum([0, *map(len, truths)]),
            truth=np.concatenate(truths),
            taught=np.concatenate(classes),
            who=np.concatenate(who),
        )
        temporary.rename(out / f"{number:03}.npz")
        print(f"shard {number}: {seconds / 60:.0f} minutes", flush=True)


if __name__ == "__main__":
    main()
