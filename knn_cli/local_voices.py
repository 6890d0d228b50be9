"""An embedding for every local speaker of every window: sound is encoded once, frames are pooled often.

Encoders mix what they hear at once: pooled from frames of twenty seconds in which others speak too, embeddings of one
voice lie so far apart that the equal error rate of 1.5-second stretches rises from 12 to 18 % (docs/research.md). So
the encoder hears one voice at a time: of windows that lie end to end, each local speaker's clean frames, joined, are a
clip. Windows between them encode nothing: their speakers are pooled from the frames of the two that they lie over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyannote.core import Segment
from torch import Tensor

from knn_cli import audio
from knn_cli.embedder import Embedder
from knn_cli.segments import FRAME_SECONDS
from knn_cli.stitching import LocalSpeaker, Segmentation
from knn_cli.types import Floats

ENOUGH = 12  # clean frames below which a local speaker's overlapped ones are heard too
LEAST = 6  # frames under which an embedding is not worth the name
GROUP = 8  # windows whose clips go through the encoder together


@dataclass(frozen=True)
class _Encoded:
    """Frames of the encoder, each with the frame of the recording that it lies in."""

    frames: Tensor  # (X, F, C), see `Embedder.frames`
    where: NDArray[np.int64]  # (F,)


def local_voices(
    path: Path | str,
    embedder: Embedder,
    segmentation: Segmentation,
    speakers: Sequence[LocalSpeaker],
    *,
    channel: str = "mix",
) -> tuple[Floats, Floats]:
    """Embeddings (N, E) of local speakers, and the seconds of sound (N,) behind each: 0 where there is no embedding.

    speakers : in the order of `stitching.local_speakers`

    Raises AudioError as `audio.crops`.
    """
    of_window: dict[int, list[int]] = {}
    for row, one in enumerate(speakers):
        of_window.setdefault(one.window, []).append(row)
    starts, size = segmentation.starts, segmentation.probabilities.shape[1]
    last = len(starts) - 1
    bases = [w for w in range(len(starts)) if starts[w] % size == 0 or w == last]
    vectors = np.zeros((len(speakers), embedder.dimension), dtype=np.float32)
    seconds = np.zeros(len(speakers), dtype=np.float32)
    before: _Encoded | None = None
    done = -1
    for base, encoded in _encoded(path, embedder, segmentation, speakers, of_window, bases, channel):
        for window in range(done + 1, base + 1):
            near = [one for one in (before if window < base else None, encoded) if one is not None]
            rows = of_window.get(window, [])
            for row, vector, heard in _pooled(embedder, [speakers[row] for row in rows], near, int(starts[window])):
                vectors[rows[row]], seconds[rows[row]] = vector, heard
        before, done = encoded, base
    return vectors, seconds


def chosen(one: LocalSpeaker) -> NDArray[np.bool_]:
    """(T,) bool: the frames that a local speaker's embedding is made of."""
    return one.clean if one.clean.sum() >= ENOUGH else one.active


def _encoded(
    path: Path | str,
    embedder: Embedder,
    segmentation: Segmentation,
    speakers: Sequence[LocalSpeaker],
    of_window: dict[int, list[int]],
    bases: list[int],
    channel: str,
) -> Iterator[tuple[int, _Encoded | None]]:
    """Base windows, each with the frames of its local speakers, which are encoded one voice at a time."""
    size = segmentation.probabilities.shape[1]
    spans = [Segment(at * FRAME_SECONDS, (at + size) * FRAME_SECONDS) for at in segmentation.starts[bases].tolist()]
    sounds = audio.crops(path, spans, rate=embedder.rate, channel=channel)
    frame = round(FRAME_SECONDS * embedder.rate)
    for first in range(0, len(bases), GROUP):
        clips, owners, places = [], [], []
        group = bases[first : first + GROUP]
        for base, sound in zip(group, sounds, strict=False):
            for row in of_window.get(base, []):
                frames = np.flatnonzero(chosen(speakers[row]))
                frames = frames[(frames + 1) * frame <= len(sound)]
                if len(frames) >= LEAST:
                    clips.append(sound[: len(sound) // frame * frame].reshape(-1, frame)[frames].ravel())
                    owners.append(base)
                    places.append(frames + int(segmentation.starts[base]))
        found: dict[int, list[_Encoded]] = {base: [] for base in group}
        for base, place, made in zip(owners, places, embedder.frames(clips), strict=True):
            # frame j of the encoder lies at the share (j + 1/2) / F of the clip
            at = ((np.arange(made.shape[1]) + 0.5) * len(place) / made.shape[1]).astype(np.int64)
            found[base].append(_Encoded(made, place[at]))
        for base, parts in found.items():
            if not parts:
                yield base, None
                continue
            yield (
                base,
                _Encoded(torch.cat([one.frames for one in parts], 1), np.concatenate([one.where for one in parts])),
            )


def _pooled(
    embedder: Embedder, speakers: Sequence[LocalSpeaker], near: Sequence[_Encoded], start: int
) -> Iterator[tuple[int, Floats, float]]:
    """(index, embedding, seconds) of those local speakers of a window that enough encoded frames are of."""
    if not near or not speakers:
        return
    where = np.concatenate([one.where for one in near]) - start
    size = len(speakers[0].active)
    inside = (where >= 0) & (where < size)
    masks = np.stack([inside & chosen(one)[where.clip(0, size - 1)] for one in speakers])  # (K, F)
    counts = [len(np.unique(where[mask])) for mask in masks]
    kept = [index for index, count in enumerate(counts) if count >= LEAST]
    if not kept:
        return
    joined = torch.cat([one.frames for one in near], 1)  # (X, F, C)
    vectors = embedder.pool(joined, torch.from_numpy(masks[kept]))
    for index, vector in zip(kept, vectors, strict=True):
        yield index, vector, counts[index] * FRAME_SECONDS
