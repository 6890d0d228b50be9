"""Embeddings of audio files, with the labels that their paths give them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from knn_cli.audio import reading
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.folders import is_folder
from knn_cli.core.values import EmbeddingSet
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.full_batches import embed_in_full_batches
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.embedding.recording_speech import RecordingSpeech
from knn_cli.store import labels
from knn_cli.store.corpora.recording_map import at_once
from knn_cli.store.corpora.recordings import CorpusPart, CorpusRecording, SoundSource
from knn_cli.store.labels import Labels

__all__ = ["embed_file", "embed_recording", "embed_recordings", "expand_folders"]


def embed_file(
    path: Path | str,
    embedder: Embedder,
    *,
    segment: float | None = None,
    use_vad: bool = True,
    channel: str = "mix",
    label: Labels | None = None,
) -> EmbeddingSet:
    """Embed one audio file of any length, in bounded memory.

    Parameters
    ----------
    path : Path or str
    embedder : Embedder
    segment, use_vad, channel
        See `EmbeddingOptions`; segments with too little speech are left out.
    label : Labels, optional
        Labels of the rows; None takes the recording's name from the path.

    Returns
    -------
    EmbeddingSet

    Raises
    ------
    AudioError
        The file cannot be read, holds too little speech, or (SilenceError) holds none.

    Examples
    --------
    >>> from knn_cli import Embedder, embed_file
    >>> rows = embed_file("meeting.flac", Embedder(device="cpu"), segment=10.0)
    >>> rows.data.shape, str(rows.name[0])
    ((7, 192), 'meeting')
    """
    options = EmbeddingOptions(segment=segment, use_vad=use_vad, channel=channel)
    part = CorpusPart(str(path), label or Labels(labels.recording_name(Path(path))))
    return embed_recording(CorpusRecording(SoundSource(Path(path)), (part,)), embedder, options)


def embed_recording(recording: CorpusRecording, embedder: Embedder, options: EmbeddingOptions) -> EmbeddingSet:
    """Embed the parts of one recording of a corpus: a row for each, or for each of its segments; see `embed_file`."""
    with recording.sound.opened() as path:
        speech = RecordingSpeech.find(path, recording, embedder, options)
        return speech.embedding_set(embedder.averages(speech.chunks(embedder)), embedder)


def embed_recordings(
    recordings: Sequence[CorpusRecording], embedder: Embedder, options: EmbeddingOptions, *, jobs: int | None = None
) -> Iterator[tuple[str, EmbeddingSet | KnnError]]:
    """Embed recordings, several at once: (where one is, its embeddings, or why it has none).

    On a CPU as `at_once` does it, with `jobs` processors; on other devices as `embed_in_full_batches`.
    """
    if embedder.device.type != "cpu":
        yield from embed_in_full_batches(recordings, embedder, options, jobs=jobs)
        return
    work = partial(embed_recording, embedder=embedder, options=options)
    for recording, result in zip(recordings, at_once(embedder.device, jobs)(lambda: work, recordings), strict=True):
        yield str(recording.sound), result


def expand_folders(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the audio files below them, each once; AudioError for a folder without any."""
    files: list[Path] = []
    for path in paths:
        if not is_folder(path):
            files.append(path)
        elif below := reading.find(path):
            files += below
        else:
            raise AudioError(f"{path} holds no audio files.", "Audio is found at any depth, by suffix.")
    return list(dict.fromkeys(files))
