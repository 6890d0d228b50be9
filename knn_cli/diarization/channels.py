"""Recordings whose channels have different speakers, such as calls: the diarizations of the channels are merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knn_cli.audio import alike_channels, reading, reading_notes, reading_progress
from knn_cli.core.errors import AudioError
from knn_cli.core.values import Diarization, Floats, Turn, sort_turns
from knn_cli.diarization import pipeline
from knn_cli.diarization.linking import speaker_labels

if TYPE_CHECKING:
    from knn_cli.embedding.embedder import Embedder


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


def diarize_channels(path: Path, embedder: Embedder, channel: str, settings: Mapping[str, Any]) -> Diarization:
    """Diarize the channels separately and merge the results; of channels with the same sound, the first only."""
    count = reading.info(path, channel=channel).channels
    track, _ = reading.track_and_channel(channel)
    numbers = [f"{track}:{number}" if track else str(number) for number in range(1, count + 1)]
    if count < 2:
        raise AudioError(f"{path} has one channel, not several.", "Diarize it without separate channels.")
    with reading_progress.listening(None):
        first = alike_channels.first_alike(path, numbers)
    results = []
    for number, earlier in enumerate(first, start=1):
        if earlier + 1 == number:
            results.append(pipeline.diarize(path, model=embedder, channel=numbers[earlier], **settings))
        else:
            results.append(Diarization((), path.stem))
            reading_notes.note(
                path, f"has the same sound in channels {earlier + 1} and {number}; channel {number} is left out"
            )
    return merge(results, path.stem) if len(set(first)) > 1 else results[0]
