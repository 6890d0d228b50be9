"""Recordings whose channels have different speakers, such as calls: the diarizations of the channels are merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from knn_cli.core.values import Diarization, Floats, Turn, sort_turns
from knn_cli.diarization.linking import speaker_labels


def names(count: int) -> list[str]:
    """Names of channels: left and right where there are two, otherwise channel_1, channel_2, ..."""
    return ["left", "right"] if count == 2 else [f"channel_{number}" for number in range(1, count + 1)]


def merge(channels: Sequence[Diarization], name: str | None = None) -> Diarization:
    """Merge the diarizations of a recording's channels.

    Parameters
    ----------
    channels : sequence of Diarization
        One per channel, in the order of the channels.
    name : str, optional
        The recording's name.

    Returns
    -------
    Diarization
        The only speaker of a channel is named like the channel (see `names`); several are left_SPEAKER_00 and so on.
        Turns of several channels may overlap.
    """
    turns: list[Turn] = []
    embeddings: dict[str, Floats] = {}
    clean_speech: dict[str, float] = {}
    for channel_name, channel in zip(names(len(channels)), channels, strict=True):
        labels = speaker_labels(channel)
        new = {label: f"{channel_name}_{label}" if len(labels) > 1 else channel_name for label in labels}
        turns += [replace(turn, speaker=new[turn.speaker]) for turn in channel.turns]
        embeddings |= {new[label]: vector for label, vector in channel.speaker_embeddings.items()}
        clean_speech |= {new[label]: seconds for label, seconds in channel.clean_speech_seconds.items()}
    seconds = max((channel.seconds for channel in channels), default=0.0)
    return Diarization(sort_turns(turns), name, embeddings, clean_speech, seconds)
