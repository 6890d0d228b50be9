"""`convert`, the function for every conversion, and the conversions of models: checkpoints to bundles, bundles to ONNX.

The kind of output depends on the source, its format on the suffix of the output.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knn_cli.audio import reading
from knn_cli.core.display_names import czech_dialect_names
from knn_cli.core.errors import KnnError
from knn_cli.core.folders import is_folder
from knn_cli.core.input_files import check_regular
from knn_cli.core.texts import read_lines
from knn_cli.core.urls import UrlPath
from knn_cli.core.values import Progress
from knn_cli.formats.speech_lists import restricted
from knn_cli.networks import bundle, hub
from knn_cli.networks.chunk_setting import CHUNK_SECONDS
from knn_cli.networks.importers.weight_names import EXPERIMENT_MODELS
from knn_cli.store import hdf5, kaldi
from knn_cli.store.audio_store import AudioStoreOptions, recordings_to_store
from knn_cli.store.conversion import LABEL_RULE, Conversion, embeddings_to_store, export_store
from knn_cli.store.corpora import registry
from knn_cli.store.corpora.recording_map import RecordingMap, one_by_one
from knn_cli.store.merging import merge_stores
from knn_cli.store.source_list import Repetition

if TYPE_CHECKING:
    from torch import Tensor

    from knn_cli.networks.importers.components import ImportedModel, ImportedSegmenter
    from knn_cli.networks.onnx_export import Export

CHECKPOINT_SUFFIXES = frozenset([".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".nemo"])
CLASS_TABLES = ("utt2spk", "utt2lang")  # lines are `utterance class`
ONNX = ".onnx"


@dataclass(frozen=True)
class ConversionOptions(AudioStoreOptions):
    """Options of `convert`; each applies to some sources or outputs.

    Attributes
    ----------
    label_rule : str
        Recordings and embeddings: how paths and keys become labels, see `labels.rule`. Checkpoint of a training: the
        names of its classes with commas between them, a text file with one name per line, or its utt2spk.
    segment, min_segment, channel, rate
        Recordings: see `AudioStoreOptions`.
    speech : path, optional
        Recordings: use only the speech of this list, see `speech_lists.restricted`.
    recursive : bool
        Text embeddings: read the files in all folders below the source.
    config : path, optional
        Checkpoint: the YAML file of the training that wrote it.
    origin : str, optional
        Checkpoint: "wespeaker" or "3d-speaker", where both have the same network and nothing else tells.
    average : str, optional
        Checkpoint: convert the mean of several, see `averaging.checkpoints_to_average`.
    int8 : bool
        Model bundle or ONNX file from a model: store learnt matrices in 8 bits, see `int8` and
        `onnx_export.export_onnx`.
    each : RecordingMap
        Recordings: what goes through them, one by one, or several at once (`at_once(None)`), or on a cluster.
    repetition : Repetition, optional
        Recordings: go on with a store that the same command has written, see `StoreWriter`.
    """

    speech: Path | str | None = None
    recursive: bool = False
    config: Path | str | None = None
    origin: str | None = None
    average: str | None = None
    int8: bool = False
    each: RecordingMap = field(default=one_by_one, compare=False)
    repetition: Repetition | None = field(default=None, compare=False)


@dataclass
class OnnxConversion(Conversion):
    """The result of a conversion to ONNX; `export` has its sizes and the outcome of its checks."""

    export: Export = field(kw_only=True)


def convert(
    src: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Conversion:
    """Convert recordings, embeddings, stores, checkpoints and models.

    ===================================================  ======================================================
    source                                               output
    ===================================================  ======================================================
    audio file, folder of audio, Kaldi data directory,   audio store (.h5)
    tar shards, raw or shard list of wespeaker, manifest
    of lhotse, Common Voice, metadata.csv
    .scp, .ark, .npz, .csv, .tsv, .txt or .gz file,      embedding store (.h5)
    folder of .gz files
    embedding store                                      .npz, .ark, .scp, .csv, .tsv, .parquet, .txt, .h5, or
                                                         without a suffix a Kaldi data directory
    audio store                                          Kaldi data directory
    several stores of one kind (a sequence of paths)     one store (.h5), see `merging.merge_stores`
    checkpoint, or `hf:OWNER/NAME`                       model bundle (folder)
    model bundle, by folder or name                      .onnx; with `int8` model bundle in 8 bits (folder)
    ===================================================  ======================================================

    Parameters
    ----------
    src : path or str, or sequence of these
        `hf:OWNER/NAME@REVISION` is read from the Hugging Face cache, or downloaded into it; see `hub.Address`.
    out : path
    force : bool
        Replace an existing output.
    progress : callable, optional
        Called with the number of recordings done and that of all, or for a model of the hub with numbers of bytes.
    **options
        Fields of `ConversionOptions`: label_rule, segment, min_segment, channel, rate, speech, recursive, config,
        origin, average, int8, each, repetition.

    Returns
    -------
    Conversion
        Counts, and the recordings that failed.

    Raises
    ------
    KnnError
        Nothing in `src` can be converted, the output exists, options do not fit the source, or a reader or writer
        fails.

    Examples
    --------
    >>> from knn_cli import convert
    >>> result = convert("meeting.flac", "meeting.h5", segment=4.0)
    >>> result.kind, result.failures
    ('audio', [])
    """
    return _convert(src, Path(out), ConversionOptions(**options), force, progress)


def _convert(
    src: Path | str | Sequence[Path | str],
    out: Path,
    options: ConversionOptions,
    force: bool,
    progress: Progress | None,
) -> Conversion:
    """Convert one source, or merge several."""
    if not isinstance(src, (str, Path)):
        if options != ConversionOptions():
            raise KnnError("Stores are merged as they are.", "Of the options, only `force` applies.")
        return merge_stores([*map(Path, src)], out, force=force, progress=progress)
    to_onnx = out.suffix.lower() == ONNX
    if to_onnx or options.int8:
        if options != ConversionOptions(int8=options.int8):
            raise KnnError(f"{out} is made from a model as it is.", "Of the options, only `int8` and `force` apply.")
        return _export(src, out, options.int8, force) if to_onnx else _quantise(src, out, force)
    if str(src).startswith(hub.HUB):
        return _convert_hub_model(str(src), out, options, force, progress)
    if isinstance(src, UrlPath):
        if (options.config, options.origin, options.average) != (None, None, None):
            raise KnnError(f"{src} is no checkpoint here.", "Download it first; of URLs, only sound is read.")
        return _recordings_to_store(src, out, options, force, progress)
    return _convert_path(Path(src), out, options, force, progress)


def _convert_hub_model(
    src: str, out: Path, options: ConversionOptions, force: bool, progress: Progress | None
) -> Conversion:
    """Convert a model of the hub."""
    bundle.check_free(out, force)  # before anything is fetched
    model = hub.fetched(src, progress)
    return _import_checkpoint(model.path, out, options, force, model)


def is_of_recordings(src: Path) -> bool:
    """Whether a source holds recordings, which become an audio store."""
    if isinstance(src, UrlPath):
        return True
    return src.exists() and hdf5.kind_of(src) is None and not _is_checkpoint(src) and registry.kind_of(src) is not None


def _convert_path(
    src: Path, out: Path, options: ConversionOptions, force: bool, progress: Progress | None
) -> Conversion:
    """Convert a path according to its kind."""
    if not src.exists():
        raise KnnError(f"{src} does not exist.", "Check the path.")
    if not is_folder(src):
        check_regular(src, "a recording, embeddings or a checkpoint")
    if options.speech is not None and (hdf5.kind_of(src) is not None or registry.kind_of(src) is None):
        raise KnnError(f"{src} holds no recordings of which `speech` could say what is used.", "Leave it out.")
    if hdf5.kind_of(src) is not None:
        return export_store(src, out, label_rule=options.label_rule, force=force)
    if src.suffix.lower() in hdf5.SUFFIXES:
        hdf5.is_store(src)  # says what it is in place of one
    if _is_checkpoint(src) or (options.average is not None and is_folder(src)):
        return _import_checkpoint(src, out, options, force)
    for name in ("config", "origin", "average"):
        if getattr(options, name) is not None:
            raise KnnError(f"{src} is no checkpoint.", f"`{name}` is for checkpoints that a training wrote.")
    if registry.kind_of(src) is not None:
        return _recordings_to_store(src, out, options, force, progress)
    if src.is_file() or any(src.rglob("*.gz") if options.recursive else [*src.glob("*.gz"), *src.glob("*/*.gz")]):
        return embeddings_to_store(src, out, recursive=options.recursive, label_rule=options.label_rule, force=force)
    hint = "Audio is found at any depth; embeddings in .gz files below the first level need `recursive=True`."
    raise KnnError(f"{src} holds no audio, no embeddings and no checkpoint that knn knows.", hint)


def _recordings_to_store(
    src: Path, out: Path, options: ConversionOptions, force: bool, progress: Progress | None
) -> Conversion:
    """Convert a corpus, or the sound at a URL."""
    recordings = registry.read_corpus(src, options.label_rule)
    if options.speech is not None:
        recordings = restricted(recordings, options.speech)
    rows = AudioStoreOptions(**{field.name: getattr(options, field.name) for field in fields(AudioStoreOptions)})
    how: dict[str, Any] = {
        "force": force,
        "progress": progress,
        "each": options.each,
        "repetition": options.repetition,
    }
    return recordings_to_store(src, recordings, out, rows, **how)


def _is_checkpoint(src: Path) -> bool:
    """Whether a path looks like a checkpoint: a file by its suffix, a folder by its contents."""
    if src.is_dir():
        weights = [*src.glob("*.safetensors"), *src.glob("pytorch_model*.bin"), *src.glob("model.bin")]
        if len([*src.glob("*.nemo")]) == 1:
            return True
        alone = ("hyperparams.yaml", "avg_model.pt", "pytorch_model.bin", *EXPERIMENT_MODELS)
        return ((src / "config.json").is_file() and bool(weights)) or any((src / name).is_file() for name in alone)
    return src.suffix.lower() in CHECKPOINT_SUFFIXES or _is_torch_archive(src)


def _is_torch_archive(src: Path) -> bool:
    """Whether a file is a zip of PyTorch, a checkpoint or TorchScript, whatever its suffix."""
    try:
        with zipfile.ZipFile(src) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def _import_checkpoint(
    src: Path, out: Path, options: ConversionOptions, force: bool, model: hub.HubModel | None = None
) -> Conversion:
    """Convert a checkpoint to a bundle, which says so where it comes from a `model` of the hub."""
    from knn_cli.networks.importers.components import ImportedSegmenter
    from knn_cli.networks.importers.entry import import_checkpoint

    bundle.check_free(out, force)
    names = None if options.label_rule == LABEL_RULE else _class_names(options.label_rule)
    training: dict[str, Any] = {"config": options.config, "origin": options.origin, "average": options.average}
    imported = import_checkpoint(src, labels=names, **training)
    if model is not None:
        source, note = _hub_source(imported, model)
        imported = replace(imported, source=source, licence_note=note)
    if isinstance(imported, ImportedSegmenter):
        return _write_segmenter(imported, out, force, model)
    config: dict[str, Any] = {
        "name": out.name,
        "kind": "embedder",
        "audio": {"rate": reading.RATE, "scale": imported.scale},
        "encoder": {"name": imported.encoder.name, "args": imported.encoder.args},
        "pooling": {"name": imported.pooling.name, "args": imported.pooling.args},
        "training": _training(imported, model),
    }
    if imported.chunk != CHUNK_SECONDS:
        config["chunk"] = imported.chunk
    if imported.head is not None:
        head = {"name": imported.head.name, "args": imported.head.args}
        head |= {"labels": [*imported.labels], "level": imported.level}
        config |= {"kind": "classifier", "head": head}
        if set(imported.labels) <= czech_dialect_names().keys():
            config["names"] = {label: czech_dialect_names()[label] for label in imported.labels}
    bundle.write(out, config, state=imported.state, card=_card(out.name, imported), force=force)
    return Conversion(out, "bundle", sources=1, rows=_parameters(imported.state))


def _training(imported: ImportedModel | ImportedSegmenter, model: hub.HubModel | None) -> dict[str, str]:
    """Where a bundle comes from, for its config."""
    return {"imported": imported.source} | ({} if model is None else model.facts())


def _hub_source(imported: ImportedModel | ImportedSegmenter, model: hub.HubModel) -> tuple[str, str]:
    """Source and note of an imported model, with its place on the hub in place of that on this machine."""
    stated = f"Licence: {model.licence}, as the hub states it. " if model.licence else ""
    source = f"{imported.source.partition(': ')[0]}: {model.address} (revision {model.commit})"
    return source, stated + imported.licence_note


def _write_segmenter(
    imported: ImportedSegmenter, out: Path, force: bool, model: hub.HubModel | None = None
) -> Conversion:
    """Write a bundle of a segmentation network."""
    network = imported.network
    config = {
        "name": out.name,
        "kind": bundle.SEGMENTER,
        "audio": {"rate": reading.RATE, "scale": 1.0},
        "segmenter": {"name": network.name, "args": network.args},
        "training": _training(imported, model),
    }
    card = (
        f"# {out.name}\n\nImported from {imported.source}: segmentation network `{network.name}`, up to "
        f"{network.args['speakers']} speakers in {network.args['duration']:g} s, {network.args['most']} of them at "
        f"once.\n\n{imported.licence_note}\n"
    )
    bundle.write(out, config, state=network.state, card=card, force=force)
    return Conversion(out, "bundle", sources=1, rows=_parameters(network.state))


def _parameters(state: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values())


def _export(src: Path | str, out: Path, int8: bool, force: bool) -> Conversion:
    """Write a model as ONNX."""
    from knn_cli.networks.onnx_export import export_onnx

    _check_model(src)
    export = export_onnx(src, out, int8=int8, force=force)
    return OnnxConversion(out, "onnx", sources=1, rows=export.parameters, export=export)


def _quantise(src: Path | str, out: Path, force: bool) -> Conversion:
    """Write a model with weights and products of 8 bits."""
    from knn_cli.networks.bundle_weights import read_weights
    from knn_cli.networks.int8 import SCALE, quantised

    _check_model(src)
    if out.suffix.lower() in hdf5.SUFFIXES:
        raise KnnError(f"{out} is no ONNX file and no model's folder.", "`int8` is for models.")
    bundle.check_free(out, force)
    source = bundle.find(src)
    if not source.has_network:
        raise KnnError(f"{source.name} has a classifier only.", "`int8` is for models that embed.")
    if source.classifier is not None:
        raise KnnError(
            f"{source.name} has a classifier that was trained on embeddings of float products.",
            "Convert the model that it was trained with, and train the classifier again.",
        )
    state = quantised(read_weights(source.folder / bundle.WEIGHTS, source.config["weights_sha256"]))
    card = f"{source.card.rstrip()}\n\nWeights and products of linear layers in 8 bits, from {source.fingerprint}.\n"
    of_floats = ("precision", "precision_cosines")
    kept = {key: value for key, value in source.settings.items() if key not in of_floats}
    config = {**kept, "name": out.name, "products": bundle.INT8}
    bundle.write(out, config, state=state, card=card, force=force)
    weights = {key: tensor for key, tensor in state.items() if not key.endswith(SCALE)}
    return Conversion(out, "bundle", sources=1, rows=_parameters(weights))


def _check_model(src: Path | str) -> None:
    """Refuse a checkpoint where a model bundle is needed: KnnError."""
    if str(src).startswith(hub.HUB) or Path(src).suffix.lower() in CHECKPOINT_SUFFIXES:
        raise KnnError(f"{src} is a checkpoint.", "Convert it to a model's folder first, and that further.")


def _class_names(text: str) -> list[str]:
    """Names from a text with commas between them, a file with one per line, or the utt2spk of a training."""
    if Path(text).is_file():
        if Path(text).name in CLASS_TABLES:
            return sorted(set(kaldi.read_table(Path(text)).values()))
        return [line.strip() for line in read_lines(text, "a list of names") if line.strip()]
    return [name.strip() for name in text.split(",") if name.strip()]


def _card(name: str, imported: ImportedModel) -> str:
    """The README of an imported model."""
    components = f"encoder `{imported.encoder.name}`, pooling `{imported.pooling.name}`"
    if imported.pooling.name == "mean":
        components += " (the mean over time of the last layer, until a pooling is trained)"
    if imported.head is not None:
        labels = ", ".join(imported.labels)
        components += f", head `{imported.head.name}` of {len(imported.labels)} labels: {labels}"
    return f"# {name}\n\nImported from {imported.source}: {components}.\n\n{imported.licence_note}\n"
