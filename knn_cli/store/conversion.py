"""Recordings to audio stores, other programs' embeddings to embedding stores, and stores to other programs' files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from knn_cli.audio.flac_bytes import encode_flac
from knn_cli.core.atomic import replacing_folder
from knn_cli.core.errors import Failure, KnnError, StoreError
from knn_cli.core.output_paths import check_folder, check_output, listed_files, write_list_of_files
from knn_cli.core.values import EmbeddingSet
from knn_cli.store import embedding_readers, embedding_writers, hdf5, kaldi, labels, row_labels
from knn_cli.store.hdf5 import Store
from knn_cli.store.writer import check_free, write_store

LABEL_RULE = labels.DEFAULT_RULE

_KALDI_FOLDER = "Kaldi data directory"


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
    too_short : list of str
        Recordings of which nothing is left, since all of them is shorter than the minimum.
    dropped, dropped_seconds : int, float
        Remainders shorter than the minimum, and their duration.
    earlier : int
        Sources that an earlier run had converted before.
    was_finished : bool
        Whether all of them were, and nothing was written.
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
    too_short: list[str] = field(default_factory=list)
    earlier: int = 0
    was_finished: bool = False
    failures: list[Failure] = field(default_factory=list)
    clipped: list[Clipped] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)


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
    check_suffix(out, "an embedding store")
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


def check_suffix(out: Path, what: str) -> None:
    """Refuse an output that is not named as a store: KnnError."""
    if out.suffix.lower() not in hdf5.SUFFIXES:
        known = " or ".join(sorted(hdf5.SUFFIXES))
        raise KnnError(f"{out} is no name for {what}.", f"Give it the suffix {known}.")
