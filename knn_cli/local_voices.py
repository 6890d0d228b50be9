"""Embeddings of parts of a recording: sound is encoded once, frames are pooled often.

Encoders mix what they hear at once: frames of one voice take on others' when they are heard together for long, and a
voice that is heard for too short is hardly known. Pooled from frames of BLOCK_SECONDS, local speakers are told apart as
well as when the sound of each is encoded again by itself, which costs five times as much (docs/research.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyannote.core import Segment
from torch import Tensor

from knn_cli import audio
from knn_cli.embedder import Embedder
from knn_cli.segments import FRAME_SECONDS
from knn_cli.types import Floats

BLOCK = 75  # frames of a decision that are encoded together: BLOCK_SECONDS
BLOCK_SECONDS = BLOCK * FRAME_SECONDS
GROUP = 32  # blocks that go through the encoder at once
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

    parts : by start. No more is held than the blocks that a part reaches over.

    Raises AudioError as `audio.crops`.
    """
    vectors = np.zeros((len(parts), embedder.dimension), dtype=np.float32)
    seconds = np.zeros(len(parts), dtype=np.float32)
    blocks = _blocks(path, embedder, parts, channel)
    held: dict[int, _Encoded] = {}
    newest = -1
    for (start, size), group in groupby(range(len(parts)), key=lambda row: (parts[row].start, len(parts[row].chosen))):
        rows = list(group)
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
        kept = np.flatnonzero((counts >= LEAST) & masks.any(1))
        if len(kept):
            frames = torch.cat([one.frames for one in near], 1)  # (X, F, C)
            chosen = np.array(rows)[kept]
            vectors[chosen] = embedder.pool(frames, torch.from_numpy(masks[kept]))
            seconds[chosen] = counts[kept] * FRAME_SECONDS
    return vectors, seconds


def _blocks(
    path: Path | str, embedder: Embedder, parts: Sequence[Part], channel: str
) -> Iterator[tuple[int, _Encoded]]:
    """(number, frames) of the blocks that parts need, in order."""
    every = [np.unique((one.start + np.flatnonzero(one.chosen)) // BLOCK) for one in parts]
    needed = np.unique(np.concatenate(every)).tolist() if every else []
    frame = round(FRAME_SECONDS * embedder.rate)
    spans = [Segment(number * BLOCK_SECONDS, (number + 1) * BLOCK_SECONDS) for number in needed]
    sounds = audio.crops(path, spans, rate=embedder.rate, channel=channel)
    for first in range(0, len(needed), GROUP):
        numbers = needed[first : first + GROUP]
        clips = [sound for _, sound in zip(numbers, sounds, strict=False)]
        long = [np.pad(clip, (0, max(0, embedder.minimum_samples - len(clip)))) for clip in clips]
        for number, clip, made in zip(numbers, long, embedder.frames(long), strict=False):
            # frame j of the encoder lies at the share (j + 1/2) / F of the clip
            count = made.shape[1]
            at = ((np.arange(count) + 0.5) * len(clip) / count / frame).astype(np.int64)
            yield number, _Encoded(made, number * BLOCK + at)
