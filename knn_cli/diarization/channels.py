"""Recordings in which every channel has speakers of its own, as calls have: channels diarized one by one, as one."""

from __future__ import annotations

from collections.abc import Sequence

from pyannote.core import Annotation, Segment

from knn_cli.core.values import Diarization, Floats
from knn_cli.diarization.linking import speakers


def names(count: int) -> list[str]:
    """What channels are called: left and right where there are two, else channel_1, channel_2, ..."""
    return ["left", "right"] if count == 2 else [f"channel_{number}" for number in range(1, count + 1)]


def merged(channels: Sequence[Diarization], uri: str | None = None) -> Diarization:
    """One diarization of the recording `uri` from those of its channels, in their order.

    A channel's only speaker is called as the channel (see `names`), else its speakers are left_SPEAKER_00 and so on.
    Tracks are numbered anew, by time; turns of several channels may overlap.
    """
    found: list[tuple[Segment, int, str, float | None]] = []
    voices: dict[str, Floats] = {}
    speech: dict[str, float] = {}
    for channel, (own, one) in enumerate(zip(names(len(channels)), channels, strict=True)):
        labels = speakers(one)
        called = {label: f"{own}_{label}" if len(labels) > 1 else own for label in labels}
        for segment, track, label in one.turns.itertracks(yield_label=True):
            found.append((segment, channel, called[str(label)], one.confidence.get(track)))
        voices |= {called[label]: vector for label, vector in one.speaker_embeddings.items()}
        speech |= {called[label]: seconds for label, seconds in one.clean_speech_seconds.items()}
    turns, confidence = Annotation(uri=uri), {}
    for track, (segment, _, label, sure) in enumerate(sorted(found, key=lambda turn: turn[:3])):
        turns[segment, track] = label
        if sure is not None:
            confidence[track] = sure
    return Diarization(turns, confidence, voices, speech, max((one.seconds for one in channels), default=0.0))
