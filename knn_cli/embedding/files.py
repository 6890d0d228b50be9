"""Embeddings of audio files, with the labels that their paths give them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from knn_cli.audio import reading, segments, speech_regions
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.folders import is_folder
from knn_cli.core.values import EmbeddingSet, Floats, Segment
from knn_cli.embedding.chunks import cut_span, rechunk
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.options import EmbeddingOptions
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
        return _embed(path, recording, embedder, options)


def _embed(path: Path, recording: CorpusRecording, embedder: Embedder, options: EmbeddingOptions) -> EmbeddingSet:
    sound = reading.HeldRecording(path, rate=embedder.rate, channel=options.channel)
    regions, seconds = speech_regions.of_blocks(sound.blocks(), use_vad=options.use_vad)
    needed = embedder.minimum_seconds
    if seconds < needed:
        raise AudioError(
            f"{path} is too short: {seconds:.2f} s, at least {needed:.2f} s are needed.", "Give a longer clip."
        )
    units: list[Segment] = []
    known: list[Labels] = []
    speech: dict[int, list[Segment]] = {}
    for part in recording.parts:
        used = part.used(seconds)
        for unit in _units(part, seconds, options.segment, needed):
            speech[len(units)] = [span for one in used for span in segments.crop(regions, one & unit)]
            units.append(unit)
            known.append(part.labels)
    if not any(speech.values()):
        raise speech_regions.no_speech(str(path), options.use_vad)
    kept = [row for row, spans in speech.items() if sum(span.duration for span in spans) >= needed]
    if not kept:
        longest = max(map(segments.total_seconds, speech.values()))
        amounts = f"{longest:.2f} s of speech, at least {needed:.2f} s are needed"
        raise AudioError(f"{path} holds {amounts}.", "Give a longer clip, or take all of it with `use_vad=False`.")
    embedder.note_parts(path, max(segments.total_seconds(speech[row]) for row in kept))
    rows: dict[int, Floats] = {}
    for group in _disjoint_groups(kept, units):
        parts = [(row, part) for row in group for span in speech[row] for part in cut_span(span)]
        crops = sound.crops([part for _, part in parts])
        joined = rechunk(zip((row for row, _ in parts), crops, strict=True), embedder.rate, embedder.chunk_seconds)
        rows |= embedder.averages(joined)
    return embedder.embedding_set(
        {row: rows[row] for row in kept}, [units[row] for row in kept], [known[row] for row in kept]
    )


def _units(part: CorpusPart, seconds: float, segment: float | None, needed: float) -> list[Segment]:
    """Where the rows of a part of a recording begin and end."""
    unit = Segment(0.0, seconds) if part.span is None else part.span & Segment(0.0, seconds)
    if segment is None:
        return [unit]
    cuts, _ = segments.cut(unit.duration, segment, min(needed, segment))
    return [Segment(unit.start + cut.start, unit.start + cut.end) for cut in cuts]


def _disjoint_groups(rows: Sequence[int], units: Sequence[Segment]) -> list[list[int]]:
    """Rows in groups whose units do not overlap, sorted by start, so that each group is read in one pass."""
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda row: units[row].start):
        free = next((group for group in groups if units[group[-1]].end <= units[row].start + segments.EPSILON), None)
        groups.append([row]) if free is None else free.append(row)
    return groups


def embed_recordings(
    recordings: Sequence[CorpusRecording], embedder: Embedder, options: EmbeddingOptions, *, jobs: int | None = None
) -> Iterator[tuple[str, EmbeddingSet | KnnError]]:
    """Embed recordings, several at once (see `at_once`): (where one is, its embeddings, or why it has none)."""
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
