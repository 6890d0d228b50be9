"""Embeddings of parts of a recording: sound is encoded once, frames are pooled often.

Encoders mix what they hear at once: frames of one voice take on others' when they are heard together for long, and a
voice that is heard for too short is hardly known. Pooled from frames of BLOCK_SECONDS, local speakers are told apart as
well as when the sound of each is encoded again by itself, which costs five times as much (docs/research.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyannote.core import Segment
from torch import Tensor

from knn_cli.audio import reading
from knn_cli.audio.segments import FRAME_SECONDS
from knn_cli.core.parallel import MAX_PARALLEL_ITEMS, OrderedMap, parallel_map
from knn_cli.core.values import Floats
from knn_cli.embedding.embedder import Embedder

BLOCK = 75  # frames of a decision that are encoded together: BLOCK_SECONDS
BLOCK_SECONDS = BLOCK * FRAME_SECONDS
TOGETHER = 8  # blocks that go through the encoder at once on a CPU, beside as many others; elsewhere four times that
LEAST = 6  # frames under which an embedding is not worth the name


@dataclass(frozen=True)
class Part:
    """Frames of a recording that an embedding is made of.

    start : first frame that `chosen` tells of
    chosen: (T,) bool
    """

    start: int
    chosen: NDArray[np.bool_]


@dataclass(frozen=True)
class _Encoded:
    """A block's frames of the encoder, each with the frame of the recording that it lies in."""

    frames: Tensor  # (X, F, C), see `Embedder.frames`
    where: NDArray[np.int64]  # (F,)


def embeddings(
    path: Path | str, embedder: Embedder, parts: Sequence[Part], *, channel: str = "mix"
) -> tuple[Floats, Floats]:
    """Embeddings (N, E) of parts of one file, and the seconds of sound (N,) behind each: 0 where there is none.

    parts : by start. No more is held than the blocks that a part reaches over, and what waits for a thread: the
            embedder's `batch_seconds` of sound at most go through the network at once.

    Raises AudioError as `audio.crops`.
    """
    vectors = np.zeros((len(parts), embedder.dimension), dtype=np.float32)
    seconds = np.zeros(len(parts), dtype=np.float32)

    def pooled(one: _Group) -> tuple[_Group, Floats]:
        return one, embedder.pool(one.frames, torch.from_numpy(one.masks))

    lanes = max(1, int(embedder.batch_seconds / (TOGETHER * BLOCK_SECONDS)))
    with parallel_map(embedder.device, min(lanes, MAX_PARALLEL_ITEMS)) as each:
        for one, found in each(pooled, _groups(parts, _blocks(path, embedder, parts, channel, each))):
            vectors[one.rows] = found
            seconds[one.rows] = one.seconds
    return vectors, seconds


@dataclass(frozen=True)
class _Group:
    """Parts of one stretch of the recording that have enough frames, K in all.

    rows    : (K,) which parts
    seconds : (K,)
    frames  : (X, F, C) of the stretch
    masks   : (K, F) bool, which of them each part is made of
    """

    rows: NDArray[np.int64]
    seconds: Floats
    frames: Tensor
    masks: NDArray[np.bool_]


def _groups(parts: Sequence[Part], blocks: Iterator[tuple[int, _Encoded]]) -> Iterator[_Group]:
    held: dict[int, _Encoded] = {}
    newest = -1
    for (start, size), group in groupby(range(len(parts)), key=lambda row: (parts[row].start, len(parts[row].chosen))):
        rows = np.array(list(group))
        first, last = start // BLOCK, (start + size - 1) // BLOCK
        while newest < last and (more := next(blocks, None)) is not None:
            newest, held[more[0]] = more
        held = {number: block for number, block in held.items() if number >= first}
        near = [held[number] for number in range(first, last + 1) if number in held]
        if not near:
            continue
        where = np.concatenate([one.where for one in near]) - start  # (F,)
        inside = (where >= 0) & (where < size)
        masks = np.stack([inside & parts[row].chosen[where.clip(0, size - 1)] for row in rows])  # (K, F)
        counts = np.array([np.count_nonzero(parts[row].chosen) for row in rows])
        if (kept := (counts >= LEAST) & masks.any(1)).any():
            frames = torch.cat([one.frames for one in near], 1)
            yield _Group(rows[kept], (counts[kept] * FRAME_SECONDS).astype(np.float32), frames, masks[kept])


def _blocks(
    path: Path | str, embedder: Embedder, parts: Sequence[Part], channel: str, each: OrderedMap
) -> Iterator[tuple[int, _Encoded]]:
    """(number, frames) of the blocks that parts need, in order."""
    every = [np.unique((one.start + np.flatnonzero(one.chosen)) // BLOCK) for one in parts]
    needed = np.unique(np.concatenate(every)).tolist() if every else []
    frame = round(FRAME_SECONDS * embedder.rate)
    spans = [Segment(number * BLOCK_SECONDS, (number + 1) * BLOCK_SECONDS) for number in needed]
    sounds = reading.crops(path, spans, rate=embedder.rate, channel=channel)

    together = TOGETHER if embedder.device.type == "cpu" else 4 * TOGETHER

    def clips() -> Iterator[list[Floats]]:
        while group := list(islice(sounds, together)):
            yield [np.pad(clip, (0, max(0, embedder.minimum_samples - len(clip)))) for clip in group]

    def encoded(group: list[Floats]) -> list[tuple[int, Tensor]]:
        return list(zip(map(len, group), embedder.frames(group), strict=True))

    made = (one for group in each(encoded, clips()) for one in group)
    for number, (samples, frames) in zip(needed, made, strict=True):
        # frame j of the encoder lies at the share (j + 1/2) / F of the clip
        count = frames.shape[1]
        at = ((np.arange(count) + 0.5) * samples / count / frame).astype(np.int64)
        yield number, _Encoded(frames, number * BLOCK + at)
