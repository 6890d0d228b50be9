"""Recordings of a corpus to the rows of an audio store."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from knn_cli.audio import mixing, reading, segments
from knn_cli.core.errors import AudioError, Failure, KnnError
from knn_cli.core.output_paths import check_output
from knn_cli.core.values import Progress, Segment, Waveform
from knn_cli.store.conversion import LABEL_RULE, Clipped, Conversion, check_suffix
from knn_cli.store.corpora.recording_map import RecordingMap, one_by_one
from knn_cli.store.corpora.recordings import CorpusRecording
from knn_cli.store.hdf5 import AudioRow
from knn_cli.store.labels import Labels
from knn_cli.store.row_columns import Columns, audio_columns
from knn_cli.store.source_list import Repetition, source_facts
from knn_cli.store.writer import StoreWriter

SEGMENT_SECONDS = 40.0
MIN_SEGMENT_SECONDS = 1.0
SHORTEST_SEGMENT_SECONDS = 0.1
MAX_CLIPPED_PEAK = 8.0  # 18 dB above full scale: sound above is in other units, not too loud


@dataclass(frozen=True)
class AudioStoreOptions:
    """How recordings become the rows of an audio store.

    Attributes
    ----------
    label_rule : str
        How paths become labels, see `labels.rule`.
    segment : float
        Seconds per row, at least 0.1.
    min_segment : float
        Remainders shorter than this many seconds are dropped and counted.
    channel : str
        `mix`, `left`, `right`, or a number from 1.
    rate : int
        Samples per second of the store.
    """

    label_rule: str = LABEL_RULE
    segment: float = SEGMENT_SECONDS
    min_segment: float = MIN_SEGMENT_SECONDS
    channel: str = "mix"
    rate: int = reading.RATE


class _Piece(NamedTuple):
    """A part of a recording that becomes a row."""

    span: Segment
    labels: Labels


def recordings_to_store(
    source: Path,
    recordings: Sequence[CorpusRecording],
    out: Path,
    options: AudioStoreOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
    each: RecordingMap = one_by_one,
    repetition: Repetition | None = None,
) -> Conversion:
    """Cut recordings into segments and write them to an audio store; an interrupted run is resumed.

    Parameters
    ----------
    source : Path
        The corpus, for messages.
    recordings : sequence of CorpusRecording
    out : Path
        The store.
    options : AudioStoreOptions
    force : bool
        Replace an existing store.
    progress : callable, optional
        Called with the number of recordings done and of all.
    each : RecordingMap
        What goes through the recordings, here or on a cluster.
    repetition : Repetition, optional
        Goes on with a store that the same command has written; see `StoreWriter`.

    Raises
    ------
    KnnError
        If the options do not fit, if none of the recordings can be read or is long enough, or as `StoreWriter`.
    """
    check_suffix(out, "an audio store")
    _check_cut(options)
    check_output(out, [recording.sound.path for recording in recordings])
    result = Conversion(out, "audio", unlabelled=_unlabelled(recordings))
    cut = {"segment": options.segment, "minimum": options.min_segment, "channel": options.channel, "rate": options.rate}
    more: dict[str, Any] = {"plan": {"cut": cut}, "sources": source_facts(recordings)}
    more |= {"force": force, "repetition": repetition}
    with StoreWriter(out, "audio", {"rate": options.rate}, **more) as writer:
        left = [recording for recording in recordings if str(recording.sound) not in writer.finished]
        converted = each(partial(_prepared, options), left)
        for done, recording in enumerate(recordings, start=1):
            if str(recording.sound) in writer.finished:
                result.earlier += 1
            elif isinstance(found := next(converted), KnnError):
                result.failures.append(Failure(str(recording.sound), found))
            else:
                writer.add(str(recording.sound), found.columns)
                _count(result, found.counts, recording.sound.path)
            if progress is not None:
                progress(done, len(recordings))
        result.was_finished = writer.is_finished
        if result.rows == 0 and not result.earlier:
            raise _nothing_written(source, result)
    return result


def _check_cut(options: AudioStoreOptions) -> None:
    if not (SHORTEST_SEGMENT_SECONDS <= options.segment < math.inf and 0 <= options.min_segment <= options.segment):
        raise KnnError(
            f"Segments of {options.segment:g} s with a minimum of {options.min_segment:g} s make no sense.",
            f"The segment is at least {SHORTEST_SEGMENT_SECONDS:g} s, the minimum between 0 and the segment.",
        )
    reading.track_and_channel(options.channel)


def _unlabelled(recordings: Sequence[CorpusRecording]) -> list[str]:
    """Names of the parts of recordings that have no label; none where there is only one part."""
    known = [part.labels for recording in recordings for part in recording.parts]
    bare = dict.fromkeys(label.name for label in known if label == Labels(label.name))
    return list(bare) if len(known) > 1 else []


class _Converted(NamedTuple):
    """The rows of one recording, and what is counted of it."""

    columns: Columns
    counts: Conversion


def _prepared(options: AudioStoreOptions) -> Callable[[CorpusRecording], _Converted]:
    """What makes the rows of a recording."""
    return partial(_convert, options)


def _convert(options: AudioStoreOptions, recording: CorpusRecording) -> _Converted:
    counts = Conversion(recording.sound.path, "audio")
    columns = audio_columns(_rows(recording, options, counts))
    counts.rows = len(columns["Start"])
    return _Converted(columns, counts)


def _count(result: Conversion, counts: Conversion, path: Path) -> None:
    """Add what was counted of one recording."""
    result.sources += 1
    result.rows += counts.rows
    result.seconds += counts.seconds
    result.dropped += counts.dropped
    result.dropped_seconds += counts.dropped_seconds
    result.too_short += [str(path)] if counts.dropped and not counts.rows else []
    result.clipped += [clipped._replace(source=path) for clipped in counts.clipped]


def _rows(recording: CorpusRecording, options: AudioStoreOptions, result: Conversion) -> Iterator[AudioRow]:
    """The rows of one recording; `result` counts them. AudioError for samples so large that clipping destroys them."""
    source = recording.sound
    with source.opened() as path, mixing.measuring() as levels:
        for block, label in _blocks(path, recording, options, result):
            if levels.peak > MAX_CLIPPED_PEAK:
                raise AudioError(
                    f"{source} holds samples of up to {levels.peak:.4g}, where 1 is full scale and a store ends.",
                    f"Divide its samples by {levels.peak:.4g} or more.",
                )
            if block.seconds < min(options.min_segment, options.segment) or not len(block.samples):
                result.dropped += 1
                result.dropped_seconds += block.seconds
                continue
            result.seconds += block.seconds
            end = block.start + block.seconds
            yield AudioRow(block, label.name, label.group, label.subgroup, label.speaker, block.start, end)
    if levels.above:
        result.clipped.append(Clipped(source.path, levels.above, levels.peak))


def _blocks(
    path: Path, recording: CorpusRecording, options: AudioStoreOptions, result: Conversion
) -> Iterator[tuple[Waveform, Labels]]:
    """Sound of up to the length of a segment, and its labels."""
    if len(recording.parts) == 1 and recording.parts[0].is_whole:
        for block in reading.blocks(path, rate=options.rate, channel=options.channel, seconds=options.segment):
            yield block, recording.parts[0].labels
        return
    pieces = []
    for part in recording.parts:
        for span in part.used(reading.info(path, channel=options.channel).seconds if part.is_open else math.inf):
            cuts, lost = segments.cut(span.duration, options.segment, options.min_segment)
            pieces += [_Piece(Segment(span.start + cut.start, span.start + cut.end), part.labels) for cut in cuts]
            result.dropped += lost > 0
            result.dropped_seconds += lost
    pieces.sort(key=lambda piece: piece.span.start)
    crops = reading.crops(path, [piece.span for piece in pieces], rate=options.rate, channel=options.channel)
    for piece, samples in zip(pieces, crops, strict=True):
        yield Waveform(samples, options.rate, piece.span.start), piece.labels


def _nothing_written(source: Path, result: Conversion) -> KnnError:
    """Why no recording of a corpus gave a row."""
    if result.failures:
        first = result.failures[0].error
        if len(result.failures) == 1:
            return first
        count = len(result.failures)
        return KnnError(f"None of the {count} files in {source} can be read; the first: {first.message}", first.hint)
    return KnnError(
        f"All of {source} is shorter than the minimum: {result.dropped} remainders, {result.dropped_seconds:.2f} s.",
        "Lower `min_segment`.",
    )
