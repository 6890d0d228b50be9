"""Embeddings of audio files, with the labels that their paths give them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from knn_cli.audio import reading, segments, speech_regions
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.folders import is_folder
from knn_cli.core.values import EmbeddingSet, Segment
from knn_cli.core.visible_text import visible
from knn_cli.embedding.chunks import cut_span, rechunk
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.store import labels
from knn_cli.store.labels import Labels

__all__ = ["embed_file", "embed_files", "expand_folders", "labelled_files"]


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
    sound = reading.HeldRecording(path, rate=embedder.rate, channel=channel)
    regions, seconds = speech_regions.of_blocks(sound.blocks(), use_vad=use_vad)
    needed = embedder.minimum_seconds
    if seconds < needed:
        raise AudioError(
            f"{path} is too short: {seconds:.2f} s, at least {needed:.2f} s are needed.", "Give a longer clip."
        )
    units = [Segment(0.0, seconds)]
    if segment is not None:
        units, _ = segments.cut(seconds, segment, min(needed, segment))
    speech = {row: segments.crop(regions, unit) for row, unit in enumerate(units)}
    if not any(speech.values()):
        raise speech_regions.no_speech(str(path), use_vad)
    kept = [row for row, spans in speech.items() if sum(span.duration for span in spans) >= needed]
    if not kept:
        amounts = f"{segments.total_seconds(regions):.2f} s of speech, at least {needed:.2f} s are needed"
        raise AudioError(f"{path} holds {amounts}.", "Give a longer clip, or take all of it with `use_vad=False`.")
    parts = [(row, part) for row in kept for span in speech[row] for part in cut_span(span)]
    crops = sound.crops([part for _, part in parts])
    embedder.note_parts(path, max(segments.total_seconds(speech[row]) for row in kept))
    joined = rechunk(zip((row for row, _ in parts), crops, strict=True), embedder.rate, embedder.chunk_seconds)
    rows = embedder.averages(joined)
    label = label or Labels(labels.recording_name(Path(path)))
    return embedder.embedding_set(rows, [units[row] for row in kept], [label] * len(kept))


def embed_files(
    files: Sequence[tuple[Path, Labels]], embedder: Embedder, options: EmbeddingOptions
) -> Iterator[tuple[str, EmbeddingSet | KnnError]]:
    """Embed file after file: (path, its embeddings, or the error of a file that has none)."""
    for path, label in files:
        try:
            result: EmbeddingSet | KnnError = embed_file(path, embedder, label=label, **vars(options))
        except AudioError as error:
            result = error
        yield str(path), result


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


def labelled_files(paths: Sequence[Path], rule: str = "folder") -> list[tuple[Path, Labels]]:
    """Find audio files and their labels.

    Parameters
    ----------
    paths : sequence of Path
        Files, and folders to search (see `expand_folders`).
    rule : str
        How labels follow from paths below a folder (see `store.labels.rule`); a file that is given by itself has its
        name only.

    Returns
    -------
    list of (Path, Labels)
        Names are distinct where the folders' names make that possible.
    """
    apply = labels.rule(rule)
    labelled: dict[Path, Labels] = {}
    for path in paths:
        files = expand_folders([path])
        root = path if is_folder(path) else path.parent
        below = [PurePosixPath(file.relative_to(root).as_posix()) for file in files]
        for file, label in zip(files, labels.label_all(apply, below, root), strict=True):
            labelled.setdefault(file, label)
    names = labels.distinct([label.name for label in labelled.values()], [file.parent for file in labelled])
    pairs = zip(labelled.items(), map(visible, names), strict=True)
    return [(file, replace(label, name=name)) for (file, label), name in pairs]
