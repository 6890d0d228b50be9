"""Export: the speaker embeddings of diarizations, written into an embedding store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.output_paths import check_output
from knn_cli.core.values import Diarization, EmbeddingSet
from knn_cli.core.visible_text import visible
from knn_cli.diarization.linking import speaker_labels
from knn_cli.store.writer import write_store


def export_speakers(
    diarizations: Iterable[tuple[str, Diarization]],
    embedder: str,
    path: Path | str,
    *,
    known: Collection[str] = (),
    linked: bool = False,
    force: bool = False,
    sources: Iterable[str | Path] = (),
) -> int:
    """Write the speaker embeddings of recordings into an embedding store, a row per recording and speaker.

    Name is the recording, Speaker the label, or `recording/label` where the label may mean another speaker elsewhere,
    so that `enroll` does not mix speakers. Start is that of the first turn; End is later by the seconds of speech that
    the embedding represents, NaN where unknown: lengths weight rows and calibrate scores. Speakers without an embedding
    are left out.

    Parameters
    ----------
    diarizations : iterable of (recording, Diarization)
    embedder : str
        Fingerprint of the embedding model.
    path : path
    known : collection of str
        Names that mean the same speaker in every recording.
    linked : bool
        All labels do (see `linking.link_speakers`).
    force : bool
        Replace an existing store.
    sources : iterable of path
        Files that must not be replaced.

    Returns
    -------
    int
        Number of rows.

    Raises
    ------
    StoreError
        Where the store exists and `force` is not set.
    KnnError
        Where there is no embedding.
    """
    check_output(path, sources)
    rows = _speaker_rows(list(diarizations), embedder, known, linked)
    if rows is None:
        raise KnnError(
            f"There is no speaker embedding to write into {path}.",
            "There is no speech, or too little for an embedding.",
        )
    write_store(path, rows, force=force)
    return len(rows)


def _speaker_rows(
    recordings: Sequence[tuple[str, Diarization]], embedder: str, known: Collection[str], linked: bool
) -> EmbeddingSet | None:
    """A row per recording and speaker, None without embeddings. KnnError for embeddings of different sizes."""
    bare = linked or len(recordings) < 2
    vectors, names, speakers, starts, seconds = [], [], [], [], []
    for recording, diarization in recordings:
        name = visible(recording)
        for speaker in speaker_labels(diarization):
            if speaker not in diarization.speaker_embeddings:
                continue
            vectors.append(np.asarray(diarization.speaker_embeddings[speaker], dtype=np.float32))
            names.append(name)
            speakers.append(speaker if bare or speaker in known else f"{name}/{speaker}")
            starts.append(next((turn.start for turn in diarization.turns if turn.speaker == speaker), np.nan))
            seconds.append(diarization.clean_speech_seconds.get(speaker, np.nan))
    if not vectors:
        return None
    if len({vector.shape for vector in vectors}) > 1:
        raise KnnError("The recordings' speaker embeddings have different sizes.", "Diarize all with one model.")
    end = np.asarray(starts) + np.asarray(seconds)
    return EmbeddingSet.from_columns(
        np.stack(vectors), names, speaker=speakers, start=starts, end=end, embedder=embedder
    )
