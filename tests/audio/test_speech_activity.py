"""Speech activity: found in a conversation, and the same however the recording is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knn_cli.audio import reading, speech_activity
from knn_cli.audio.segments import binarize, crop, merge, total_seconds
from knn_cli.core.values import Segment
from knn_cli.formats.rttm import read_rttm


def shared_seconds(regions: list[Segment], others: list[Segment]) -> float:
    return sum(total_seconds(crop(regions, other)) for other in others)


def test_speech_is_found_in_a_conversation(example: Path) -> None:
    """The truth of the example says when somebody speaks: nearly all of that is found, and little more."""
    reference = next(iter(read_rttm(example.with_suffix(".rttm")).values())).get_timeline()
    truth = merge(Segment(segment.start, segment.end) for segment in reference)
    regions = speech_activity.speech(reading.blocks(example))
    seconds = reading.info(example).seconds
    both = shared_seconds(truth, regions)
    assert total_seconds(truth) - both < 0.02 * seconds
    assert total_seconds(regions) - both < 0.15 * seconds  # pauses under 0.6 s count as speech


def test_chunks_change_nothing_but_the_warm_up(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into chunks of ten seconds, a recording has the same speech as in one go, to a few frames at the cuts."""
    waveform = reading.read(example)
    (whole,) = speech_activity.probabilities([waveform.samples])
    monkeypatch.setattr(speech_activity, "CHUNK_FRAMES", 10 * speech_activity.RATE // speech_activity.FRAME)
    chunks = list(speech_activity._chunks(reading.blocks(example, seconds=7.0)))
    assert len(chunks) > 4
    regions = speech_activity.speech(reading.blocks(example, seconds=7.0))
    assert total_seconds(regions) > 0
    once = binarize(whole, speech_activity.FRAME / speech_activity.RATE, end=waveform.seconds)
    difference = total_seconds(regions) + total_seconds(once) - 2 * shared_seconds(regions, once)
    assert difference < 0.05 * waveform.seconds


def test_probabilities_of_a_batch_are_those_of_each(example: Path) -> None:
    sound = reading.read(example).samples
    clips = [sound[:16000], sound[20000:60000], sound[:0], sound[5000:5100]]
    together = speech_activity.probabilities(clips)
    assert [len(found) for found in together] == [32, 79, 0, 1]
    for clip, found in zip(clips, together, strict=True):
        assert np.allclose(speech_activity.probabilities([clip])[0], found, atol=1e-4)
