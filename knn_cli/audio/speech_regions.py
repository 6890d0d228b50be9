"""Speech regions of recordings and clips; without voice activity detection, the whole of those that are not silent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soxr

from knn_cli.audio import reading, segments, speech_activity
from knn_cli.core.errors import SilenceError
from knn_cli.core.values import Floats, Segment, Waveform

__all__ = ["MIN_PEAK", "is_silent", "no_speech", "of_blocks", "of_clips", "of_recording"]

MIN_PEAK = 1e-4  # sound whose largest sample does not exceed this (-80 dBFS) is silence, whatever the detector finds


def is_silent(samples: Floats) -> bool:
    """Whether no sample of (S,) is above `MIN_PEAK`."""
    return not np.abs(samples).max(initial=0.0) > MIN_PEAK


def no_speech(source: str, use_vad: bool) -> SilenceError:
    """Return the error for a source without speech."""
    hint = "To use all of the sound, give `use_vad=False`." if use_vad else "Check the recording's level."
    return SilenceError(f"{source} holds no speech.", hint)


def of_recording(
    path: Path | str, *, rate: int, use_vad: bool = True, channel: str = "mix"
) -> tuple[list[Segment], float]:
    """Find the speech of an audio file of any length, in bounded memory.

    Parameters
    ----------
    path : Path or str
    rate : int
        Samples per second at which the file is read.
    use_vad : bool
        Detect speech with silero-vad; otherwise take the whole file.
    channel : str
        See `audio.reading.read`.

    Returns
    -------
    regions : list of Segment
        Empty if the file is silent.
    seconds : float
        Duration of the file.

    Raises
    ------
    AudioError
        See `audio.reading.read`.
    """
    return of_blocks(reading.blocks(path, rate=rate, channel=channel), use_vad=use_vad)


def of_blocks(blocks: Iterable[Waveform], *, use_vad: bool = True) -> tuple[list[Segment], float]:
    """Find the speech of a recording that comes in consecutive blocks; arguments and result as of `of_recording`."""
    seconds, peak = 0.0, 0.0

    def measured() -> Iterator[Waveform]:
        nonlocal seconds, peak
        for block in blocks:
            seconds = block.start + block.seconds
            peak = max(peak, float(np.abs(block.samples).max(initial=0.0)))
            yield block

    if use_vad:
        regions = speech_activity.speech(measured())
    else:
        for _ in measured():
            pass
        regions = [Segment(0.0, seconds)]
    return (regions if peak > MIN_PEAK else []), seconds


def of_clips(clips: Sequence[Waveform], *, use_vad: bool = True) -> list[list[Segment]]:
    """Find the speech of clips that are in memory.

    Parameters
    ----------
    clips : sequence of Waveform
        Of any rate.
    use_vad : bool
        Detect speech with silero-vad; otherwise take the whole clip, unless it is silent.

    Returns
    -------
    list of list of Segment
        Regions of each clip, in seconds from its start.
    """
    if not use_vad:
        return [[] if is_silent(clip.samples) else [Segment(0.0, clip.seconds)] for clip in clips]
    probabilities = speech_activity.probabilities([_at_vad_rate(clip) for clip in clips])
    frame_seconds = speech_activity.FRAME / speech_activity.RATE
    return [
        segments.binarize(clip_probabilities, frame_seconds, end=clip.seconds)
        for clip_probabilities, clip in zip(probabilities, clips, strict=True)
    ]


def _at_vad_rate(clip: Waveform) -> Floats:
    """(S,) float32 samples at silero-vad's rate."""
    if clip.rate == speech_activity.RATE:
        return clip.samples
    resampled: Floats = soxr.resample(clip.samples, clip.rate, speech_activity.RATE)
    return resampled
