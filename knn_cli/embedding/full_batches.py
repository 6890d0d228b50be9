"""Many recordings through a network on an accelerator: batches are full, whatever the lengths of the files.

Threads read recordings ahead, while the network computes. Their chunks are one stream, of which some batches at a time
are sorted by length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.values import EmbeddingSet, Floats
from knn_cli.embedding.chunks import Averages
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.embedding.recording_speech import RecordingSpeech
from knn_cli.store.corpora.recording_map import at_once
from knn_cli.store.corpora.recordings import CorpusRecording

__all__ = ["embed_in_full_batches"]

BATCHES_SORTED = 4  # that are filled together: their chunks are sorted by length
HELD_SECONDS = 600.0  # of speech that a recording is read ahead; one with more is read when its turn comes


@dataclass
class _Recording:
    """A recording on its way: what is embedded of it, and the error in place of that."""

    recording: CorpusRecording
    speech: RecordingSpeech | None
    chunks: Sequence[tuple[int, Floats]] | None = None  # None: more than is read ahead
    error: KnnError | None = None
    averages: Averages = field(default_factory=Averages)
    is_read: bool = False
    left: int = 0  # chunks that are read and not embedded yet

    def stream(self, embedder: Embedder) -> Iterator[tuple[int, Floats]]:
        """(row, samples) of its chunks."""
        if self.chunks is not None:
            yield from self.chunks
            self.chunks = ()
        elif self.speech is not None:
            with self.recording.sound.opened() as path:
                yield from self.speech.reopened(path).chunks(embedder)

    def result(self, embedder: Embedder) -> EmbeddingSet | KnnError:
        if self.error is not None or self.speech is None:
            assert self.error is not None
            return self.error
        return self.speech.embedding_set(self.averages.of_rows(), embedder)


def embed_in_full_batches(
    recordings: Sequence[CorpusRecording], embedder: Embedder, options: EmbeddingOptions, *, jobs: int | None = None
) -> Iterator[tuple[str, EmbeddingSet | KnnError]]:
    """Embed recordings as `files.embed_recordings` does, with batches across files.

    Embeddings of clips in other batches differ from those one by one in their last digits.

    Parameters
    ----------
    recordings : sequence of CorpusRecording
    embedder : Embedder
        Its `batch_seconds` are the length of a batch.
    options : EmbeddingOptions
    jobs : int, optional
        Processors that read recordings and look for speech, by default those that are idle. Each reads one recording
        ahead, of which up to `HELD_SECONDS` of speech are held.

    Yields
    ------
    (str, EmbeddingSet or KnnError)
        Where a recording is, in their order, and its embeddings or why it has none.
    """
    waiting: deque[_Recording] = deque()

    def stream() -> Iterator[tuple[tuple[_Recording, int], Floats]]:
        read = at_once(torch.device("cpu"), jobs)
        for recording, found in zip(recordings, read(lambda: work, recordings), strict=True):
            entry = _Recording(recording, None, error=found) if isinstance(found, KnnError) else found
            waiting.append(entry)
            try:
                for row, chunk in entry.stream(embedder):
                    entry.left += 1
                    yield (entry, row), chunk
            except AudioError as error:
                entry.error = error
            entry.is_read = True

    work = partial(_read, embedder=embedder, options=options)
    for (entry, row), samples, vector in embedder.embedded(stream(), BATCHES_SORTED * embedder.batch_seconds):
        entry.averages.add(row, samples, vector)
        entry.left -= 1
        yield from _finished(waiting, embedder)
    yield from _finished(waiting, embedder)


def _finished(waiting: deque[_Recording], embedder: Embedder) -> Iterable[tuple[str, EmbeddingSet | KnnError]]:
    while waiting and waiting[0].is_read and not waiting[0].left:
        entry = waiting.popleft()
        yield str(entry.recording.sound), entry.result(embedder)


def _read(recording: CorpusRecording, embedder: Embedder, options: EmbeddingOptions) -> _Recording:
    with recording.sound.opened() as path:
        speech = RecordingSpeech.find(path, recording, embedder, options)
        chunks = [*speech.chunks(embedder)] if speech.seconds <= HELD_SECONDS else None
    return _Recording(recording, speech, chunks)
