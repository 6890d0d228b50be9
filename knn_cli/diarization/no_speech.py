"""Turns that are probably no speaker: music, a machine or another noise that a segmentation network takes for speech.

The probability is a logistic function of what silero-vad says of the turn's sound, a network that other errors mislead
than the segmentation network. `tools.shipped_models.no_speech` fitted the weights. How loud a turn is says little:
people sit at distances too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from knn_cli.audio import reading
from knn_cli.audio import speech_activity as silero
from knn_cli.core.values import Diarization, Doubles, Floats, Segment, Turn

FRAME_SECONDS = silero.FRAME / silero.RATE
CLIP_SECONDS = 30.0  # of sound that silero-vad gets at once
WARM_UP_SECONDS = 2.0  # of sound before it
PEAK_PERCENTILE = 90.0
EVIDENCE = ("speech", "peak")
WEIGHTS = (-4.22, -4.49)
BIAS = 3.9


def with_no_speech_probability(diarization: Diarization, path: Path | str, *, channel: str = "mix") -> Diarization:
    """The same turns, each with the probability that it is no speaker.

    Parameters
    ----------
    diarization : Diarization
    path : path
        The recording.
    channel : str
        The channel that was diarized.

    Returns
    -------
    Diarization

    Raises
    ------
    AudioError
        See `audio.reading.read`.
    """
    probabilities = no_speech_probability(turn_evidence(diarization.turns, path, channel=channel))
    turns = zip(diarization.turns, probabilities.tolist(), strict=True)
    return replace(diarization, turns=tuple(replace(turn, no_speech_probability=value) for turn, value in turns))


def no_speech_probability(evidence: Doubles) -> Doubles:
    """(N,) probability that a turn is no speaker, from the evidence (N, 2) of `turn_evidence`."""
    result: Doubles = 1 / (1 + np.exp(-BIAS - evidence @ np.array(WEIGHTS)))
    return result


def turn_evidence(turns: Sequence[Turn], path: Path | str, *, channel: str = "mix") -> Doubles:
    """Evidence for and against speech in each turn, in one pass over the recording.

    Parameters
    ----------
    turns : sequence of N Turn
    path : path
    channel : str

    Returns
    -------
    (N, 2) float64 array
        In the order of EVIDENCE: mean and 90th percentile of silero-vad's probability of speech over the turn's frames.
    """
    if not turns:
        return np.zeros((0, len(EVIDENCE)))
    speech = _frames(turns, path, channel)
    rows = []
    for turn in turns:
        first, last = _frames_of(turn)
        inside = speech[first : max(first + 1, last)]
        inside = inside[np.isfinite(inside)]
        if not len(inside):  # beyond the end of the sound
            inside = np.zeros(1, dtype=np.float32)
        rows.append((inside.mean(), np.percentile(inside, PEAK_PERCENTILE)))
    return np.array(rows, dtype=np.float64)


def _frames(turns: Sequence[Turn], path: Path | str, channel: str) -> Floats:
    """Probability of speech of each frame of silero-vad, NaN outside the turns."""
    count = max(_frames_of(turn)[1] for turn in turns) + 1
    speech = np.full(count, np.nan, dtype=np.float32)
    clips = _clips(turns)
    warm_up = round(WARM_UP_SECONDS / FRAME_SECONDS)
    spans = [Segment(max(0, first - warm_up) * FRAME_SECONDS, last * FRAME_SECONDS) for first, last in clips]
    sounds = reading.crops(path, spans, rate=silero.RATE, channel=channel)
    for (first, _), of_clip in zip(clips, silero.probabilities(sounds), strict=True):
        inside = of_clip[min(first, warm_up) :]
        speech[first : first + len(inside)] = inside
    return speech


def _frames_of(turn: Turn) -> tuple[int, int]:
    """First frame of silero-vad that a turn reaches into, and one past the last."""
    return int(turn.start / FRAME_SECONDS), int(np.ceil(turn.end / FRAME_SECONDS))


def _clips(turns: Sequence[Turn]) -> list[tuple[int, int]]:
    """The frames that turns cover, in parts of CLIP_SECONDS: first, one past the last."""
    size = round(CLIP_SECONDS / FRAME_SECONDS)
    clips: list[tuple[int, int]] = []
    covered = 0
    for turn in sorted(turns, key=lambda turn: turn.start):
        first, last = _frames_of(turn)
        clips += [(at, min(at + size, last)) for at in range(max(covered, first), last, size)]
        covered = max(covered, last)
    return clips
