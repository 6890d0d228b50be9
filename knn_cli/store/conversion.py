"""Recordings to audio stores, other programs' embeddings to embedding stores, and stores to other programs' files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from knn_cli.audio import mixing, reading
from knn_cli.audio.flac_bytes import encode_flac
from knn_cli.core.atomic import replacing_folder
from knn_cli.core.errors import AudioError, Failure, KnnError, StoreError
from knn_cli.core.output_paths import check_folder, check_output, listed_files, write_list_of_files
from knn_cli.core.values import EmbeddingSet, Progress
from knn_cli.store import embedding_readers, embedding_writers, hdf5, kaldi, labels, row_labels
from knn_cli.store.hdf5 import AudioRow, Store
from knn_cli.store.writer import StoreWriter, check_free, source_stamp, write_store

LABEL_RULE = labels.DEFAULT_RULE
SEGMENT_SECONDS = 40.0
MIN_SEGMENT_SECONDS = 1.0
SHORTEST_SEGMENT_SECONDS = 0.1
MAX_CLIPPED_PEAK = 8.0  # 18 dB above full scale: sound above is in other units, not too loud

_KALDI_FOLDER = "Kaldi data directory"


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


class Clipped(NamedTuple):
    """A recording with samples above full scale: how many, and the largest, where 1 is full scale."""

    source: Path
    samples: int
    peak: float


@dataclass
class Conversion:
    """The result of a conversion.

    Attributes
    ----------
    out : Path
        The store, file or folder that was written.
    kind : str
        audio, embeddings, bundle, onnx, or the name of another program's format.
    sources : int
        Recordings or other inputs that were converted.
    rows : int
        Segments or embeddings written, or parameters of a model.
    seconds : float
        Duration of the segments written.
    dropped, dropped_seconds : int, float
        Remainders shorter than the minimum, and their duration.
    earlier : int
        Sources that an interrupted run had converted before.
    failures : list of Failure
        Recordings that could not be read.
    clipped : list of Clipped
        Recordings with samples above full scale, where a store's 16 bits end.
    unlabelled : list of str
        Names of the recordings that have no group, subgroup or speaker.
    """

    out: Path
    kind: str
    sources: int = 0
    rows: int = 0
    seconds: float = 0.0
    dropped: int = 0
    dropped_seconds: float = 0.0
    earlier: int = 0
    failures: list[Failure] = field(default_factory=list)
    clipped: list[Clipped] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)


def recordings_to_store(
    root: Path,
    files: Sequence[PurePosixPath],
    out: Path,
    options: AudioStoreOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Cut recordings into segments and write them to an audio store; an interrupted run is resumed.

    Parameters
    ----------
    root : Path
        The folder of the recordings.
    files : sequence of PurePosixPath
        The recordings, relative to it.
    out : Path
        The store.
    options : AudioStoreOptions
    force : bool
        Replace an existing store.
    progress : callable, optional
        Called with the number of files done and of all files.

    Raises
    ------
    KnnError
        If the options do not fit, if none of the recordings can be read or is long enough, or as `StoreWriter`.
    """
    _check_suffix(out, "an audio store")
    if not (SHORTEST_SEGMENT_SECONDS <= options.segment < math.inf and 0 <= options.min_segment <= options.segment):
        raise KnnError(
            f"Segments of {options.segment:g} s with a minimum of {options.min_segment:g} s make no sense.",
            f"The segment is at least {SHORTEST_SEGMENT_SECONDS:g} s, the minimum between 0 and the segment.",
        )
    reading.track_and_channel(options.channel)
    # All labels first: a mistake in the rule shows before any work.
    labelled = list(zip(files, labels.label_all(labels.rule(options.label_rule), files, root), strict=True))
    check_output(out, [root / file for file in files])
    result = Conversion(
        out, "audio", unlabelled=[label.name for _, label in labelled if label == labels.Labels(label.name)]
    )
    with StoreWriter(out, "audio", {"rate": options.rate}, plan=_plan(root, labelled, options), force=force) as writer:
        for done, (file, label) in enumerate(labelled, start=1):
            if str(file) in writer.finished:
                result.earlier += 1
            else:
                try:
                    result.rows += writer.add(str(file), _segments(root / file, label, options, result))
                    result.sources += 1
                except AudioError as error:
                    result.failures.append(Failure(str(root / file), error))
            if progress is not None:
                progress(done, len(labelled))
        if result.rows == 0 and not result.earlier:
            raise _nothing_written(root, result)
    return result


def _plan(
    root: Path, labelled: Sequence[tuple[PurePosixPath, labels.Labels]], options: AudioStoreOptions
) -> dict[str, object]:
    """Everything that decides the content of the store."""
    cut = {
        "label_rule": options.label_rule,
        "segment": options.segment,
        "minimum": options.min_segment,
        "channel": options.channel,
        "rate": options.rate,
    }
    sources = [(str(file), source_stamp(root / file), vars(label)) for file, label in labelled]
    return {"root": root.resolve(), "sources": sources, "cut": cut}


def _segments(path: Path, label: labels.Labels, options: AudioStoreOptions, result: Conversion) -> Iterator[AudioRow]:
    """The rows of one recording; `result` counts them. AudioError for samples so large that clipping destroys them."""
    with mixing.measuring() as levels:
        for block in reading.blocks(path, rate=options.rate, channel=options.channel, seconds=options.segment):
            if levels.peak > MAX_CLIPPED_PEAK:
                raise AudioError(
                    f"{path} holds samples of up to {levels.peak:.4g}, where 1 is full scale and a store ends.",
                    f"Divide its samples by {levels.peak:.4g} or more.",
                )
            if block.seconds < min(options.min_segment, options.segment):
                result.dropped += 1
                result.dropped_seconds += block.seconds
                continue
            result.seconds += block.seconds
            end = block.start + block.seconds
            yield AudioRow(block, label.name, label.group, label.subgroup, label.speaker, block.start, end)
    if levels.above:
        result.clipped.append(Clipped(path, levels.above, levels.peak))


def _nothing_written(root: Path, result: Conversion) -> KnnError:
    """Why no recording of a folder gave a row."""
    if result.failures:
        first = result.failures[0].error
        if len(result.failures) == 1:
            return first
        count = len(result.failures)
        return KnnError(f"None of the {count} files in {root} can be read; the first: {first.message}", first.hint)
    return KnnError(
        f"All of {root} is shorter than the minimum: {result.dropped} remainders, {result.dropped_seconds:.2f} s.",
        "Lower `min_segment`.",
    )


def embeddings_to_store(
    src: Path, out: Path, *, recursive: bool = False, label_rule: str = LABEL_RULE, force: bool = False
) -> Conversion:
    """Write the embeddings of another program's file, or of a folder of text embeddings, to an embedding store.

    Parameters
    ----------
    src : Path
        See `embedding_readers.read_embeddings`.
    out : Path
        The store.
    recursive : bool
        Read text embeddings in all folders below `src`.
    label_rule : str
        How keys become labels, see `row_labels.labelled`.
    force : bool
        Replace an existing store.

    Raises
    ------
    KnnError
        If `src` cannot be read or `out` cannot be written.
    """
    _check_suffix(out, "an embedding store")
    check_free(out, force)
    embeddings = embedding_readers.read_embeddings(src, recursive=recursive, label_rule=label_rule)
    write_store(out, embeddings, force=force)
    return _of_embeddings(out, embeddings)


def _of_embeddings(out: Path, embeddings: EmbeddingSet) -> Conversion:
    """The result for embeddings that were written."""
    bare = (embeddings.group == "") & (embeddings.subgroup == "") & (embeddings.speaker == "")
    unlabelled = list(dict.fromkeys(embeddings.name[bare].tolist()))
    recordings = len(set(embeddings.name.tolist()))
    return Conversion(out, "embeddings", sources=recordings, rows=len(embeddings), unlabelled=unlabelled)


def export_store(src: Path, out: Path, *, label_rule: str = LABEL_RULE, force: bool = False) -> Conversion:
    """Write a store to the format that a suffix names, or, without a suffix, to a Kaldi data directory.

    Parameters
    ----------
    src : Path
        A store; only Kaldi data directories take sound.
    out : Path
        A store, a file with a suffix of `embedding_writers.WRITERS`, or a folder.
    label_rule : str
        If it is not the default, labels of embeddings are taken from the names of the recordings by it.
    force : bool
        Replace an existing output.

    Raises
    ------
    KnnError
        If there is no such format, if it cannot hold the store, or if `out` cannot be written.
    """
    if out.suffix.lower() not in {*hdf5.SUFFIXES, *embedding_writers.WRITERS.names(), ""}:
        known = ", ".join(sorted({*embedding_writers.WRITERS.names(), ".h5"}))
        raise KnnError(f"{out} has no suffix that a store can be written to.", f"Known: {known}; a folder for Kaldi.")
    check_output(out, [src])
    kind = hdf5.kind_of(src)
    if label_rule != LABEL_RULE and (out.suffix == "" or kind == "audio"):
        hint = "Convert the recordings again, or relabel embeddings into a store or a file."
        raise KnnError("A rule of labels changes stores of embeddings only.", hint)
    if out.suffix == "":
        return _kaldi_folder(src, out, force)
    if kind == "audio":
        hint = "Embed it first with `knn embed`, or name a folder without a suffix for a Kaldi data directory."
        raise StoreError(f"{src} holds audio, which cannot be written as {out.suffix}.", hint)
    for path in embedding_writers.outputs(out):
        check_free(path, force)
    embeddings = hdf5.read(src)
    if label_rule != LABEL_RULE:
        embeddings = row_labels.labelled(embeddings, label_rule)
    if out.suffix.lower() in hdf5.SUFFIXES:
        write_store(out, embeddings, force=force)
    else:
        embedding_writers.write_embeddings(out, embeddings)
    result = _of_embeddings(out, embeddings)
    return result if label_rule != LABEL_RULE else replace(result, unlabelled=[])


def _kaldi_folder(src: Path, out: Path, force: bool) -> Conversion:
    """A Kaldi data directory: utt2spk, spk2utt, utt2lang, and the segments' sound or embeddings."""
    _check_kaldi_folder(out, force)
    with replacing_folder(out, check=lambda: _check_kaldi_folder(out, force)) as folder, Store(src) as store:
        rows = store.embeddings() if store.kind == "embeddings" else store.labels()
        speakers = [speaker or name for speaker, name in zip(rows.speaker.tolist(), rows.name.tolist(), strict=True)]
        # Kaldi sorts utterances and speakers in parallel, so an utterance begins with its speaker.
        pairs = zip(speakers, rows.name.tolist(), strict=True)
        named = [name if speaker == name else f"{speaker}-{name}" for speaker, name in pairs]
        ids = embedding_writers.utterance_ids(replace(rows, name=np.array(named)))
        if store.kind == "audio":
            _write_sound(store, ids, folder, out)
        else:
            _write_vectors(rows, ids, folder, out)
        words = ["_".join(speaker.split()) for speaker in speakers]
        _write_lines(folder / "utt2spk", [f"{utterance} {word}" for utterance, word in zip(ids, words, strict=True)])
        _write_lines(folder / "spk2utt", _grouped(words, ids))
        languages = [sub or group for group, sub in zip(rows.group.tolist(), rows.subgroup.tolist(), strict=True)]
        pairs = zip(ids, languages, strict=True)
        _write_lines(folder / "utt2lang", [f"{utterance} {language}" for utterance, language in pairs if language])
        write_list_of_files(folder, _KALDI_FOLDER)
    return Conversion(out, _KALDI_FOLDER, sources=len(set(rows.name.tolist())), rows=len(rows))


def _check_kaldi_folder(out: Path, force: bool) -> None:
    """Refuse a folder that holds other files than those which an export listed."""
    check_folder(out, f"{_KALDI_FOLDER} of knn's", lambda found: listed_files(found, _KALDI_FOLDER), force)


def _write_sound(store: Store, ids: list[str], folder: Path, final: Path) -> None:
    """FLAC files and wav.scp, with the paths that they have once the folder is `final`."""
    (folder / "audio").mkdir()
    lines = []
    for row, (utterance, segment) in enumerate(zip(ids, store.segments(), strict=True)):
        flac = encode_flac(segment.waveform.samples, segment.waveform.rate)
        (folder / "audio" / f"{row:07d}.flac").write_bytes(flac)
        lines.append(f"{utterance} {final.resolve() / 'audio'}/{row:07d}.flac")
    _write_lines(folder / "wav.scp", lines)


def _write_vectors(rows: EmbeddingSet, ids: list[str], folder: Path, final: Path) -> None:
    """embedding.ark and embedding.scp, with the paths that they have once the folder is `final`."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    with (folder / "embedding.ark").open("wb") as file:
        offsets = kaldi.write_ark(file, [ids[row] for row in order], rows.data[order])
    archive = final.resolve() / "embedding.ark"
    lines = [f"{ids[row]} {archive}:{offset}" for row, offset in zip(order, offsets, strict=True)]
    _write_lines(folder / "embedding.scp", lines)


def _write_lines(path: Path, lines: list[str]) -> None:
    """Sorted lines; no file where there are none."""
    if lines:
        path.write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")


def _grouped(keys: list[str], values: list[str]) -> list[str]:
    """A line per key: the key and its sorted values."""
    groups: dict[str, list[str]] = {}
    for key, value in zip(keys, values, strict=True):
        groups.setdefault(key, []).append(value)
    return [f"{key} {' '.join(sorted(members))}" for key, members in groups.items()]


def _check_suffix(out: Path, what: str) -> None:
    """Refuse an output that is not named as a store."""
    if out.suffix.lower() not in hdf5.SUFFIXES:
        known = " or ".join(sorted(hdf5.SUFFIXES))
        raise KnnError(f"{out} is no name for {what}.", f"Give it the suffix {known}.")
