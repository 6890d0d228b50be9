"""`knn convert` as functions: audio and other programs' embeddings to stores, stores to other programs' files,
checkpoints to bundles, bundles to ONNX. What SRC is decides what is made; OUT's suffix decides how it is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from knn_cli.audio import reading
from knn_cli.core.atomic import replacing_folder
from knn_cli.core.errors import AudioError, Failure, KnnError, StoreError
from knn_cli.core.output_paths import check_folder, check_output
from knn_cli.core.values import EmbeddingSet, Progress
from knn_cli.networks import bundle
from knn_cli.store import embedding_files, hdf5, kaldi, labels
from knn_cli.store.hdf5 import AudioRow, Store, StoreWriter

if TYPE_CHECKING:
    from torch import Tensor

    from knn_cli.networks.importers.detection import Imported, ImportedSegmenter
    from knn_cli.networks.onnx_export import Export

SEGMENT_SECONDS = 40.0  # the mother project's
MINIMUM_SECONDS = 1.0
SHORTEST_SEGMENT = 0.1

CHECKPOINT_SUFFIXES = frozenset([".pt", ".pth", ".bin", ".safetensors", ".ckpt"])
_KALDI_FILES = ("utt2spk", "spk2utt", "utt2lang", "embedding.ark", "embedding.scp", "wav.scp", "audio")
HUB = "hf:"
ONNX = ".onnx"
LABEL_RULE = "folder"


@dataclass
class Conversion:
    """What was made.

    kind    : audio, embeddings, bundle, onnx, or files for another program
    rows    : segments or embeddings written, `earlier` sources already done by an interrupted run not counted
    dropped : rests shorter than the minimum, `dropped_seconds` in all
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
    export: Export | None = None  # of a bundle as ONNX


def convert(
    src: Path | str,
    out: Path | str,
    *,
    label_rule: str = LABEL_RULE,
    segment: float = SEGMENT_SECONDS,
    minimum: float = MINIMUM_SECONDS,
    channel: str = "mix",
    rate: int = reading.RATE,
    recursive: bool = False,
    config: Path | str | None = None,
    int8: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Make `out` of `src`.

    src        : folder of audio, audio file; folder of .gz embeddings, .scp, .ark, .npz, .csv; store; checkpoint;
                 `hf:OWNER/NAME`, a checkpoint in the Hugging Face cache, or fetched into it; where `out` is .onnx a
                 bundle, by folder or by name
    label_rule : see `labels.rule`; for a checkpoint of a training, the names of its classes with commas between, or a
                 text file with a name in each line
    config     : YAML of the training that wrote a checkpoint
    int8       : of an .onnx file, see `export.export_onnx`
    segment, minimum : seconds a segment; shorter rests are dropped and counted
    recursive  : look for .gz files in all folders below

    Raises KnnError: nothing in `src` that can be converted, an output that exists, what readers and writers raise.
    """
    if Path(out).suffix.lower() == ONNX:
        given = (label_rule, segment, minimum, channel, rate, recursive, config)
        if given != (LABEL_RULE, SEGMENT_SECONDS, MINIMUM_SECONDS, "mix", reading.RATE, False, None):
            raise KnnError(f"{out} is made of a model, as it is.", "Of the options only --int8 and --force go with it.")
        return _exported(src, Path(out), int8, force)
    if int8:
        raise KnnError(f"{out} is no ONNX file.", "--int8 is for a model that goes into an .onnx file.")
    if str(src).startswith(HUB):
        return _from_checkpoint(_fetched(str(src).removeprefix(HUB)), Path(out), force, config, label_rule)
    src, out = Path(src), Path(out)
    if not src.exists():
        raise KnnError(f"{src} does not exist.", "Check the path.")
    store_kind = hdf5.kind_of(src)
    if store_kind is not None:
        return _from_store(src, store_kind, out, force)
    if src.suffix.lower() in hdf5.SUFFIXES:
        raise StoreError(f"{src} is not an HDF5 store, or is damaged.", "Make it again.")
    if _is_checkpoint(src):
        return _from_checkpoint(src, out, force, config, label_rule)
    if config is not None:
        raise KnnError(f"{src} is no checkpoint.", "--config is for checkpoints that a training wrote.")
    if src.is_file() and src.suffix.lower() in embedding_files.READERS.names():
        return _embeddings(src, out, recursive=False, force=force)
    if src.is_dir() and (files := reading.find(src)):
        relative = [PurePosixPath(path.relative_to(src).as_posix()) for path in files]
        cut = _Cut(label_rule, segment, minimum, channel, rate)
        return _audio(src, relative, out, cut, force, progress)
    if src.is_dir() and any(src.rglob("*.gz") if recursive else [*src.glob("*.gz"), *src.glob("*/*.gz")]):
        return _embeddings(src, out, recursive=recursive, force=force)
    if src.is_dir():
        hint = "Audio is found at any depth; embeddings in .gz files below the first level need -r."
        raise KnnError(f"{src} holds no audio, no embeddings and no checkpoint that knn knows.", hint)
    cut = _Cut(label_rule, segment, minimum, channel, rate)
    return _audio(src.parent, [PurePosixPath(src.name)], out, cut, force, progress)


@dataclass(frozen=True)
class _Cut:
    """How recordings become rows."""

    label_rule: str
    segment: float
    minimum: float
    channel: str
    rate: int


def _audio(
    root: Path, files: list[PurePosixPath], out: Path, cut: _Cut, force: bool, progress: Progress | None
) -> Conversion:
    _needs_suffix(out, hdf5.SUFFIXES, "an audio store")
    if not (SHORTEST_SEGMENT <= cut.segment < math.inf and 0 <= cut.minimum <= cut.segment):
        raise KnnError(
            f"Segments of {cut.segment:g} s with a minimum of {cut.minimum:g} s make no sense.",
            f"The segment is at least {SHORTEST_SEGMENT:g} s, the minimum between 0 and the segment.",
        )
    reading.channel_index(cut.channel)
    # All labels first: a mistake in the rule shows before any work.
    labelled = list(zip(files, labels.label_all(labels.rule(cut.label_rule), files), strict=True))
    check_output(out, [root / file for file in files])
    result = Conversion(out, "audio")
    sources = [(str(file), hdf5.stamp(root / file), vars(label)) for file, label in labelled]
    plan = {"root": root.resolve(), "sources": sources, "cut": vars(cut)}
    with StoreWriter(out, "audio", {"rate": cut.rate}, plan=plan, force=force) as writer:
        for done, (file, label) in enumerate(labelled, start=1):
            if str(file) in writer.finished:
                result.earlier += 1
            else:
                try:
                    result.rows += writer.add(str(file), _rows(root / file, label, cut, result))
                    result.sources += 1
                except AudioError as error:
                    result.failures.append(Failure(str(root / file), error))
            if progress is not None:
                progress(done, len(labelled))
        if result.rows == 0 and not result.earlier:
            _refuse_nothing(root, result)
    return result


def _rows(path: Path, label: labels.Labels, cut: _Cut, result: Conversion) -> Iterator[AudioRow]:
    for block in reading.blocks(path, rate=cut.rate, channel=cut.channel, seconds=cut.segment):
        if block.seconds < min(cut.minimum, cut.segment):
            result.dropped += 1
            result.dropped_seconds += block.seconds
            continue
        result.seconds += block.seconds
        end = block.start + block.seconds
        yield AudioRow(block, label.name, label.group, label.subgroup, label.speaker, block.start, end)


def _refuse_nothing(root: Path, result: Conversion) -> None:
    if result.failures:
        first = result.failures[0].error
        if len(result.failures) == 1:
            raise first
        count = len(result.failures)
        raise KnnError(f"None of the {count} files in {root} can be read; the first: {first.message}", first.hint)
    raise KnnError(
        f"All of {root} is shorter than the minimum: {result.dropped} rests, {result.dropped_seconds:.2f} s.",
        "Lower --min-segment.",
    )


def _embeddings(src: Path, out: Path, *, recursive: bool, force: bool) -> Conversion:
    _needs_suffix(out, hdf5.SUFFIXES, "an embedding store")
    hdf5.check_free(out, force)
    embeddings = embedding_files.read_embeddings(src, recursive=recursive)
    hdf5.write(out, embeddings, force=force)
    return Conversion(out, "embeddings", sources=len(set(embeddings.name.tolist())), rows=len(embeddings))


def _from_store(src: Path, kind: str, out: Path, force: bool) -> Conversion:
    if out.suffix.lower() not in {*hdf5.SUFFIXES, *embedding_files.WRITERS.names(), ""}:
        known = ", ".join(sorted({*embedding_files.WRITERS.names(), ".h5"}))
        raise KnnError(f"{out} has no suffix that a store can be written to.", f"Known: {known}; a folder for Kaldi.")
    check_output(out, [src])
    if out.suffix == "":
        return _kaldi_folder(src, kind, out, force)
    if kind == "audio":
        hint = "Embed it first with `knn embed`, or name a folder without a suffix for a Kaldi data directory."
        raise StoreError(f"{src} holds audio, which cannot be written as {out.suffix}.", hint)
    for written in embedding_files.outputs(out):
        hdf5.check_free(written, force)
    embeddings = hdf5.read(src)
    if out.suffix.lower() in hdf5.SUFFIXES:
        hdf5.write(out, embeddings, force=force)
    else:
        embedding_files.write_embeddings(out, embeddings)
    return Conversion(out, "embeddings", sources=len(set(embeddings.name.tolist())), rows=len(embeddings))


def _kaldi_folder(src: Path, kind: str, out: Path, force: bool) -> Conversion:
    """A Kaldi data directory: utt2spk, spk2utt, utt2lang and segments' sound or vectors."""
    check_folder(out, "Kaldi folder of knn's", _KALDI_FILES, force)
    with replacing_folder(out) as made:
        with Store(src) as opened:
            rows = opened.embeddings() if kind == "embeddings" else _columns(opened)
            speakers = [one or name for one, name in zip(rows.speaker.tolist(), rows.name.tolist(), strict=True)]
            # Kaldi sorts utterances and speakers side by side, so an utterance begins with its speaker.
            pairs = zip(speakers, rows.name.tolist(), strict=True)
            named = [name if one == name else f"{one}-{name}" for one, name in pairs]
            ids = embedding_files.utterance_ids(replace(rows, name=np.array(named)))
            if kind == "audio":
                _write_sound(opened, ids, made, out)
            else:
                _write_vectors(rows, ids, made, out)
        words = ["_".join(speaker.split()) for speaker in speakers]
        _write_lines(made / "utt2spk", [f"{utt} {word}" for utt, word in zip(ids, words, strict=True)])
        _write_lines(made / "spk2utt", _grouped(words, ids))
        languages = [sub or group for group, sub in zip(rows.group.tolist(), rows.subgroup.tolist(), strict=True)]
        _write_lines(made / "utt2lang", [f"{utt} {one}" for utt, one in zip(ids, languages, strict=True) if one])
    return Conversion(out, "Kaldi data directory", sources=len(set(rows.name.tolist())), rows=len(rows))


def _columns(opened: Store) -> EmbeddingSet:
    """The columns of an audio store as an EmbeddingSet of no dimensions."""
    name, group, subgroup, speaker = (opened.column(field) for field in labels.FIELDS)
    return EmbeddingSet(np.zeros((len(opened), 0), np.float32), name, group, subgroup, speaker, *opened.times())


def _write_sound(opened: Store, ids: list[str], folder: Path, final: Path) -> None:
    (folder / "audio").mkdir()
    lines = []
    for row, (utt, segment) in enumerate(zip(ids, opened.segments(), strict=True)):
        flac = reading.encode_flac(segment.waveform.samples, segment.waveform.rate)
        (folder / "audio" / f"{row:07d}.flac").write_bytes(flac)
        lines.append(f"{utt} {final.resolve() / 'audio'}/{row:07d}.flac")
    _write_lines(folder / "wav.scp", lines)


def _write_vectors(rows: EmbeddingSet, ids: list[str], folder: Path, final: Path) -> None:
    order = sorted(range(len(ids)), key=ids.__getitem__)
    with (folder / "embedding.ark").open("wb") as file:
        offsets = kaldi.write_ark(file, [ids[row] for row in order], rows.data[order])
    archive = final.resolve() / "embedding.ark"
    lines = [f"{ids[row]} {archive}:{offset}" for row, offset in zip(order, offsets, strict=True)]
    _write_lines(folder / "embedding.scp", lines)


def _write_lines(path: Path, lines: list[str]) -> None:
    if lines:
        path.write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")


def _grouped(keys: list[str], values: list[str]) -> list[str]:
    found: dict[str, list[str]] = {}
    for key, value in zip(keys, values, strict=True):
        found.setdefault(key, []).append(value)
    return [f"{key} {' '.join(sorted(members))}" for key, members in found.items()]


def _is_checkpoint(src: Path) -> bool:
    if src.is_dir():
        weights = [*src.glob("*.safetensors"), *src.glob("pytorch_model*.bin")]
        alone = ("hyperparams.yaml", "avg_model.pt", "pytorch_model.bin")
        return ((src / "config.json").is_file() and bool(weights)) or any((src / name).is_file() for name in alone)
    return src.suffix.lower() in CHECKPOINT_SUFFIXES


def _from_checkpoint(
    src: Path, out: Path, force: bool, settings: Path | str | None = None, label_rule: str = LABEL_RULE
) -> Conversion:
    from knn_cli.networks.importers import detection

    bundle.check_free(out, force)
    names = None if label_rule == LABEL_RULE else _class_names(label_rule)
    found = detection.import_any(src, config=settings, labels=names)
    if isinstance(found, detection.ImportedSegmenter):
        return _segmenter(found, out, force)
    config: dict[str, Any] = {
        "name": out.name,
        "kind": "embedder",
        "audio": {"rate": reading.RATE, "scale": found.scale},
        "encoder": {"name": found.encoder.name, "args": found.encoder.args},
        "pooling": {"name": found.pooling.name, "args": found.pooling.args},
        "training": {"imported": found.source},
    }
    if found.head is not None:
        head = {"name": found.head.name, "args": found.head.args, "labels": [*found.labels], "level": found.level}
        config |= {"kind": "classifier", "head": head}
    bundle.write(out, config, state=found.state, card=_card(out.name, found), force=force)
    return Conversion(out, "bundle", sources=1, rows=_values(found.state))


def _segmenter(found: ImportedSegmenter, out: Path, force: bool) -> Conversion:
    network = found.network
    config = {
        "name": out.name,
        "kind": bundle.SEGMENTER,
        "audio": {"rate": reading.RATE, "scale": 1.0},
        "segmenter": {"name": network.name, "args": network.args},
        "training": {"imported": found.source},
    }
    card = (
        f"# {out.name}\n\nImported from {found.source}: segmentation network `{network.name}`, up to "
        f"{network.args['speakers']} speakers in {network.args['duration']:g} s, {network.args['most']} of them at "
        f"once.\n\n{found.licence_note}\n"
    )
    bundle.write(out, config, state=network.state, card=card, force=force)
    return Conversion(out, "bundle", sources=1, rows=_values(network.state))


def _values(state: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values())


def _exported(src: Path | str, out: Path, int8: bool, force: bool) -> Conversion:
    from knn_cli.networks.onnx_export import export_onnx

    if str(src).startswith(HUB) or Path(src).suffix.lower() in CHECKPOINT_SUFFIXES:
        raise KnnError(f"{src} is a checkpoint.", "Convert it to a model's folder first, and that to ONNX.")
    made = export_onnx(src, out, int8=int8, force=force)
    return Conversion(out, "onnx", sources=1, rows=made.parameters, export=made)


def _class_names(given: str) -> list[str]:
    """Names out of a text file, a name in each line, or out of a text with commas between."""
    if Path(given).is_file():
        return [line.strip() for line in Path(given).read_text(encoding="utf-8").splitlines() if line.strip()]
    return [name.strip() for name in given.split(",") if name.strip()]


def _fetched(repository: str) -> Path:
    """The folder of a Hugging Face model: from the cache where it is there, else downloaded, as `hf:` asks for."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise KnnError("hf: needs the package huggingface_hub.", "pip install 'knn-cli[hub]'") from error
    wanted = ["config.json", "preprocessor_config.json", "*.safetensors", "pytorch_model*.bin"]
    wanted += ["hyperparams.yaml", "embedding_model.ckpt", "classifier.ckpt", "label_encoder.txt"]  # speechbrain's
    wanted += ["avg_model.pt"]  # wespeaker's
    try:
        try:
            return Path(snapshot_download(repository, allow_patterns=wanted, local_files_only=True))
        except FileNotFoundError:
            return Path(snapshot_download(repository, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        hint = "Check the name and the network, or download the folder elsewhere and convert it."
        raise KnnError(f"{repository} cannot be had from the Hugging Face hub: {reason}", hint) from error


def _card(name: str, found: Imported) -> str:
    parts = f"encoder `{found.encoder.name}`, pooling `{found.pooling.name}`"
    if found.pooling.name == "mean":
        parts += " (the mean over time of the last layer, until a pooling is trained)"
    if found.head is not None:
        parts += f", head `{found.head.name}` of {len(found.labels)} labels: {', '.join(found.labels)}"
    return f"# {name}\n\nImported from {found.source}: {parts}.\n\n{found.licence_note}\n"


def _needs_suffix(out: Path, suffixes: frozenset[str], what: str) -> None:
    if out.suffix.lower() not in suffixes:
        raise KnnError(f"{out} is no name for {what}.", f"Give it the suffix {' or '.join(sorted(suffixes))}.")
