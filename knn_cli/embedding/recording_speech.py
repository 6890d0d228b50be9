"""The speech of one recording of a corpus: which rows it has, and their sound in chunks for the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from knn_cli.audio import reading, segments, speech_regions
from knn_cli.core.errors import AudioError
from knn_cli.core.values import EmbeddingSet, Floats, Segment
from knn_cli.embedding.chunks import cut_span, rechunk
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.store.corpora.recordings import CorpusPart, CorpusRecording
from knn_cli.store.labels import Labels

__all__ = ["RecordingSpeech"]


@dataclass(frozen=True)
class RecordingSpeech:
    """The speech of the rows of a recording.

    Attributes
    ----------
    units : dict of int to Segment
        Row -> where it begins and ends, in the order of the rows.
    known : dict of int to Labels
    speech : dict of int to list of Segment
        Where in each row there is speech.
    sound : HeldRecording
        Of the file as it was opened.
    """

    units: Mapping[int, Segment]
    known: Mapping[int, Labels]
    speech: Mapping[int, list[Segment]]
    sound: reading.HeldRecording

    @classmethod
    def find(
        cls, path: Path, recording: CorpusRecording, embedder: Embedder, options: EmbeddingOptions
    ) -> RecordingSpeech:
        """Look for the speech of a recording that is opened at `path`; AudioError for too little of it."""
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
        kept = [row for row, spans in speech.items() if segments.total_seconds(spans) >= needed]
        if not kept:
            longest = max(map(segments.total_seconds, speech.values()))
            amounts = f"{longest:.2f} s of speech, at least {needed:.2f} s are needed"
            raise AudioError(f"{path} holds {amounts}.", "Give a longer clip, or take all of it with `use_vad=False`.")
        embedder.note_parts(path, max(segments.total_seconds(speech[row]) for row in kept))
        spans, names = {row: units[row] for row in kept}, {row: known[row] for row in kept}
        return cls(spans, names, {row: speech[row] for row in kept}, sound)

    def reopened(self, path: Path) -> RecordingSpeech:
        """The same speech of the file as it is opened now."""
        sound = reading.HeldRecording(path, rate=self.sound.rate, channel=self.sound.channel)
        return replace(self, sound=sound)

    @property
    def seconds(self) -> float:
        """Seconds of speech of all rows."""
        return sum(map(segments.total_seconds, self.speech.values()))

    def chunks(self, embedder: Embedder) -> Iterator[tuple[int, Floats]]:
        """(row, samples) of the speech in chunks that go through the network at once; AudioError while reading."""
        for group in _disjoint_groups(self.units):
            parts = [(row, part) for row in group for span in self.speech[row] for part in cut_span(span)]
            crops = self.sound.crops([part for _, part in parts])
            joined = zip((row for row, _ in parts), crops, strict=True)
            yield from rechunk(joined, embedder.rate, embedder.chunk_seconds)

    def embedding_set(self, rows: Mapping[int, Floats], embedder: Embedder) -> EmbeddingSet:
        """The embeddings of the rows, in their order, with segments and labels."""
        ordered = {row: rows[row] for row in self.units}
        return embedder.embedding_set(ordered, [*self.units.values()], [*self.known.values()])


def _units(part: CorpusPart, seconds: float, segment: float | None, needed: float) -> list[Segment]:
    """Where the rows of a part of a recording begin and end."""
    unit = Segment(0.0, seconds) if part.span is None else part.span & Segment(0.0, seconds)
    if segment is None:
        return [unit]
    cuts, _ = segments.cut(unit.duration, segment, min(needed, segment))
    return [Segment(unit.start + cut.start, unit.start + cut.end) for cut in cuts]


def _disjoint_groups(units: Mapping[int, Segment]) -> Sequence[list[int]]:
    """Rows in groups whose units do not overlap, sorted by start, so that each group is read in one pass."""
    groups: list[list[int]] = []
    for row in sorted(units, key=lambda row: units[row].start):
        free = next((group for group in groups if units[group[-1]].end <= units[row].start + segments.EPSILON), None)
        groups.append([row]) if free is None else free.append(row)
    return groups
