"""How near embeddings in other precisions are to those in float32, and what they cost, on recordings of one's own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import numpy as np

from knn_cli.audio import reading, speech_regions
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, Floats
from knn_cli.embedding.chunks import cut_span, rechunk
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks.bundle_identity import Bundle
from knn_cli.networks.precision import FP32, PRECISIONS, Precision

__all__ = ["PrecisionFigures", "compare_precisions", "speech_clips"]

CLIP_SECONDS = 10.0
MOST_CLIPS = 100


@dataclass(frozen=True)
class PrecisionFigures:
    """A precision against float32.

    Attributes
    ----------
    precision : str
    least, mean : float
        Cosines between the embeddings of a clip, over clips.
    clips : int
    cost : float
        Processor seconds relative to those of float32.
    """

    precision: Precision
    least: float
    mean: float
    clips: int
    cost: float


def compare_precisions(
    bundle: Bundle, clips: Sequence[Floats], precisions: Sequence[Precision] = PRECISIONS, *, device: str = "cpu"
) -> Iterator[PrecisionFigures | KnnError]:
    """Embed clips in each precision, and compare with float32.

    Parameters
    ----------
    bundle : Bundle
    clips : sequence of (S,) float32
        Samples in [-1, 1] at the bundle's rate.
    precisions : sequence of str
    device : str
        As of `Embedder`.

    Yields
    ------
    PrecisionFigures, or KnnError where the machine cannot compute so
    """
    truth, base = _embedded(bundle, clips, FP32, device)
    for precision in precisions:
        try:
            found, seconds = (truth, base) if precision == FP32 else _embedded(bundle, clips, precision, device)
        except KnnError as error:
            yield error
            continue
        lengths = np.linalg.norm(truth, axis=1) * np.linalg.norm(found, axis=1)
        cosines = (truth * found).sum(axis=1) / np.maximum(lengths, 1e-300)
        yield PrecisionFigures(precision, float(cosines.min()), float(cosines.mean()), len(clips), seconds / base)


def speech_clips(paths: Iterable[Path], rate: int) -> list[Floats]:
    """Speech of recordings at `rate`, joined and cut into clips of about 10 s, of which the first 100 are taken.

    Raises
    ------
    AudioError
        A recording cannot be read, or (SilenceError) holds no speech.
    """
    clips: list[Floats] = []
    for path in paths:
        sound = reading.HeldRecording(path, rate=rate)
        regions, _ = speech_regions.of_blocks(sound.blocks())
        if not regions:
            raise speech_regions.no_speech(str(path), use_vad=True)
        crops = sound.crops([part for region in regions for part in cut_span(region)])
        clips += [
            clip for _, clip in islice(rechunk(zip(repeat(0), crops), rate, CLIP_SECONDS), MOST_CLIPS - len(clips))
        ]
        if len(clips) == MOST_CLIPS:
            break
    return clips


def _embedded(bundle: Bundle, clips: Sequence[Floats], precision: Precision, device: str) -> tuple[Doubles, float]:
    """Embeddings (N, E) of clips, each by itself, and the processor seconds that they took."""
    embedder = Embedder(bundle, device=device, precision=precision)
    embedder(clips[:1])
    begun = time.process_time()
    rows = np.concatenate([embedder([clip]) for clip in clips])
    return rows.astype(np.float64), time.process_time() - begun
