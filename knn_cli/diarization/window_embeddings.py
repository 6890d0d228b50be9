"""Window embeddings: embeddings of masks over a recording. Sound is encoded once, and frames are pooled often.

Encoders mix what they get at once: frames of one speaker take on others' when they are encoded together for long, and a
speaker is hardly known from too short a clip. Pooled from blocks of BLOCK_SECONDS, local speakers are distinguished as
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
from torch import Tensor

from knn_cli.audio import reading
from knn_cli.audio.segments import FRAME_SECONDS
from knn_cli.core.parallel import MAX_PARALLEL_ITEMS, OrderedMap, parallel_map
from knn_cli.core.values import Floats, Segment
from knn_cli.embedding.embedder import Embedder

BLOCK_FRAMES = 75  # frames that are encoded together
BLOCK_SECONDS = BLOCK_FRAMES * FRAME_SECONDS
BLOCKS_PER_BATCH = 8  # for the encoder on a CPU; on other devices four times that
MIN_FRAMES = 6  # below this, there is no embedding


@dataclass(frozen=True)
class FrameMask:
    """Frames of a recording that are pooled into one embedding.

    start : first frame that `mask` covers
    mask  : (T,) bool
    """

    start: int
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class _EncodedBlock:
    """The encoder's frames of a block, and the frame of the recording that each lies in."""

    frames: Tensor  # (X, F, C), see `Embedder.frames`
    where: NDArray[np.int64]  # (F,)


def embed_masks(
    path: Path | str, embedder: Embedder, masks: Sequence[FrameMask], *, channel: str = "mix"
) -> tuple[Floats, Floats]:
    """Embed masks over one file.

    Only the blocks that a mask reaches over, and those that wait for a thread, are in memory: at most the embedder's
    `batch_seconds` of sound go through the network at once.

    Parameters
    ----------
    path : path
    embedder : Embedder
    masks : sequence of N FrameMask
        By start.
    channel : str

    Returns
    -------
    vectors : (N, E) float32 array
    seconds : (N,) float32 array
        Seconds of sound behind each embedding; 0 without an embedding.

    Raises
    ------
    AudioError
        As `reading.crops`.
    """
    vectors = np.zeros((len(masks), embedder.dimension), dtype=np.float32)
    seconds = np.zeros(len(masks), dtype=np.float32)

    def pool(group: _MaskGroup) -> tuple[_MaskGroup, Floats]:
        return group, embedder.pool(group.frames, torch.from_numpy(group.masks))

    max_batches = max(1, int(embedder.batch_seconds / (BLOCKS_PER_BATCH * BLOCK_SECONDS)))
    with parallel_map(embedder.device, min(max_batches, MAX_PARALLEL_ITEMS)) as each:
        for group, pooled in each(pool, _groups(masks, _blocks(path, embedder, masks, channel, each))):
            vectors[group.rows] = pooled
            seconds[group.rows] = group.seconds
    return vectors, seconds


@dataclass(frozen=True)
class _MaskGroup:
    """K masks over the same frames of the recording that have enough frames.

    rows    : (K,) which masks
    seconds : (K,)
    frames  : (X, F, C) of the encoder
    masks   : (K, F) bool, over those
    """

    rows: NDArray[np.int64]
    seconds: Floats
    frames: Tensor
    masks: NDArray[np.bool_]


def _groups(masks: Sequence[FrameMask], blocks: Iterator[tuple[int, _EncodedBlock]]) -> Iterator[_MaskGroup]:
    """Masks of the same start and size, with the encoded frames under them."""
    held: dict[int, _EncodedBlock] = {}
    newest = -1
    for (start, size), group in groupby(range(len(masks)), key=lambda row: (masks[row].start, len(masks[row].mask))):
        rows = np.array(list(group))
        first, last = start // BLOCK_FRAMES, (start + size - 1) // BLOCK_FRAMES
        while newest < last and (following := next(blocks, None)) is not None:
            newest, held[following[0]] = following
        held = {number: block for number, block in held.items() if number >= first}
        covering = [held[number] for number in range(first, last + 1) if number in held]
        if not covering:
            continue
        where = np.concatenate([block.where for block in covering]) - start  # (F,)
        inside = (where >= 0) & (where < size)
        encoder_masks = np.stack([inside & masks[row].mask[where.clip(0, size - 1)] for row in rows])  # (K, F)
        counts = np.array([np.count_nonzero(masks[row].mask) for row in rows])
        if (kept := (counts >= MIN_FRAMES) & encoder_masks.any(1)).any():
            frames = torch.cat([block.frames for block in covering], 1)
            group_seconds = (counts[kept] * FRAME_SECONDS).astype(np.float32)
            yield _MaskGroup(rows[kept], group_seconds, frames, encoder_masks[kept])


def _blocks(
    path: Path | str, embedder: Embedder, masks: Sequence[FrameMask], channel: str, each: OrderedMap
) -> Iterator[tuple[int, _EncodedBlock]]:
    """(number, encoded frames) of the blocks that masks need, in order."""
    used = [np.unique((mask.start + np.flatnonzero(mask.mask)) // BLOCK_FRAMES) for mask in masks]
    needed = np.unique(np.concatenate(used)).tolist() if used else []
    frame = round(FRAME_SECONDS * embedder.rate)
    spans = [Segment(number * BLOCK_SECONDS, (number + 1) * BLOCK_SECONDS) for number in needed]
    sounds = reading.crops(path, spans, rate=embedder.rate, channel=channel)
    batch_size = BLOCKS_PER_BATCH if embedder.device.type == "cpu" else 4 * BLOCKS_PER_BATCH

    def batches() -> Iterator[list[Floats]]:
        while batch := list(islice(sounds, batch_size)):
            yield [np.pad(clip, (0, max(0, embedder.minimum_samples - len(clip)))) for clip in batch]

    def encode(batch: list[Floats]) -> list[tuple[int, Tensor]]:
        return list(zip(map(len, batch), embedder.frames(batch), strict=True))

    encoded = (block for batch in each(encode, batches()) for block in batch)
    for number, (samples, frames) in zip(needed, encoded, strict=True):
        # frame j of the encoder lies at (j + 1/2) / F of the clip
        count = frames.shape[1]
        where = ((np.arange(count) + 0.5) * samples / count / frame).astype(np.int64)
        yield number, _EncodedBlock(frames, number * BLOCK_FRAMES + where)
