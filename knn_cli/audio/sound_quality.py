"""How much speech a recording holds, and how far it is above the noise: what scores of it may be worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from knn_cli.audio import speech_regions
from knn_cli.audio.signal_to_noise import SampleLevels
from knn_cli.core.values import Waveform

__all__ = ["SoundQuality", "quality_of_blocks"]


@dataclass(frozen=True)
class SoundQuality:
    """Quality of a recording or of a part of it.

    Attributes
    ----------
    seconds : float
        Duration.
    speech_seconds : float
        Duration of speech in it.
    snr : float
        Signal-to-noise ratio in dB (`signal_to_noise`), NaN for silence.
    """

    seconds: float
    speech_seconds: float
    snr: float


def quality_of_blocks(blocks: Iterable[Waveform]) -> SoundQuality:
    """Measure the quality of sound that comes in consecutive blocks, in one pass and bounded memory."""
    levels = SampleLevels()

    def measured() -> Iterator[Waveform]:
        for block in blocks:
            levels.add(block.samples)
            yield block

    regions, seconds = speech_regions.of_blocks(measured())
    return SoundQuality(seconds, sum(region.duration for region in regions), levels.snr())
