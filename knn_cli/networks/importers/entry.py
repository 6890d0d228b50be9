"""Import of published checkpoints: `import_checkpoint` finds the importer for a file or folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from knn_cli.core.errors import KnnError
from knn_cli.networks.construction import IMPOSSIBLE_SIZES, first_line, limited
from knn_cli.networks.importers.averaging import averaged_content, checkpoints_to_average
from knn_cli.networks.importers.checkpoint_files import read, read_yaml, sources_hint
from knn_cli.networks.importers.components import ImportedModel, ImportedSegmenter
from knn_cli.networks.importers.ctranslate2_file import is_ctranslate2
from knn_cli.networks.importers.nemo_file import SUFFIX, is_nemo
from knn_cli.networks.importers.origins import ORIGINS, origin_in
from knn_cli.networks.importers.registry import Checkpoint, RegisteredImporter, importers
from knn_cli.networks.importers.weight_names import EXPERIMENT_MODELS

__all__ = ["import_checkpoint", "import_embedding_network"]


def import_embedding_network(
    path: Path | str,
    *,
    config: Path | str | None = None,
    labels: Sequence[str] | None = None,
    origin: str | None = None,
) -> ImportedModel:
    """Import an embedding network as `import_checkpoint` does; KnnError for a segmentation network."""
    imported = import_checkpoint(path, config=config, labels=labels, origin=origin)
    if isinstance(imported, ImportedSegmenter):
        raise KnnError(f"{path} is a segmentation network, which computes no embeddings.", "Name an embedding network.")
    return imported


def import_checkpoint(
    path: Path | str,
    *,
    config: Path | str | None = None,
    labels: Sequence[str] | None = None,
    origin: str | None = None,
    average: str | None = None,
) -> ImportedModel | ImportedSegmenter:
    """Read a checkpoint of any of the sources in `weight_names.SOURCES`.

    Parameters
    ----------
    path : Path or str
        A checkpoint, or a folder with a checkpoint and its settings, such as `exp/NAME` of wespeaker.
    config : Path or str, optional
        The training's YAML file, for a checkpoint that was written by a training of wespeaker or 3D-Speaker; None
        takes a config.yaml of wespeaker's beside it, or beside its folder `models`.
    labels : sequence of str, optional
        Names of the classes of such a checkpoint's head, in any order.
    origin : str, optional
        "wespeaker" or "3d-speaker", for a network that both have and nothing else tells apart.
    average : str, optional
        Import the mean of several checkpoints, see `averaging.checkpoints_to_average`.

    Returns
    -------
    ImportedModel or ImportedSegmenter
        An embedding network or a segmentation network.

    Raises
    ------
    KnnError
        The file is missing or cannot be read, its source is unknown, its sizes or settings are those of another
        network, keys are missing, extra or of another shape (all are listed), or the names do not fit the head.
    """
    files = [_weights_file(Path(path))] if average is None else checkpoints_to_average(Path(path), average)
    path = files[-1]
    if not path.exists():
        raise KnnError(f"There is no checkpoint {path}.", sources_hint())
    if origin not in (None, *ORIGINS):
        raise KnnError(f"`origin` cannot be {origin!r}.", f"Known: {', '.join(ORIGINS)}.")
    content = _content(path) if len(files) == 1 else averaged_content({str(file): _content(file) for file in files})
    given = Checkpoint(path, content, None if config is None else Path(config), labels, origin)
    checkpoint = replace(given, config=_config_beside(path)) if config is None else given
    for each in importers():
        if _recognizes(each, checkpoint):
            if not each.takes_options:
                _refuse_options(given)
            return _read(each, checkpoint)
    _refuse_options(given)
    if any("pos_conv_embed" in key for key in checkpoint.keys):
        raise KnnError(f"{path} is the weights of a Hugging Face model without its config.", "Name their folder.")
    raise KnnError(f"{path} is no checkpoint that knn knows.", sources_hint())


def _content(path: Path) -> dict[str, Any]:
    """What a file holds; {} for a folder or a file that its importer reads itself."""
    return {} if path.is_dir() or is_ctranslate2(path) or is_nemo(path) else read(path)


def _weights_file(path: Path) -> Path:
    """The weights in a folder without a settings file, which some sources do not need; otherwise the path itself."""
    if path.is_dir() and not any((path / name).is_file() for name in ("hyperparams.yaml", "config.json")):
        files = (path / name for name in ("avg_model.pt", "pytorch_model.bin", "model.bin", *EXPERIMENT_MODELS))
        archives = sorted(path.glob(f"*{SUFFIX}"))
        return next((file for file in files if file.is_file()), archives[0] if len(archives) == 1 else path)
    return path


def _recognizes(importer: RegisteredImporter, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is of an importer's source; one whose contents confuse the question is of none."""
    try:
        return importer.recognizes(checkpoint)
    except IMPOSSIBLE_SIZES:
        return False


def _read(importer: RegisteredImporter, checkpoint: Checkpoint) -> ImportedModel | ImportedSegmenter:
    """What an importer reads, and what contents that no checkpoint has make its modules raise as a KnnError."""
    try:
        with limited(checkpoint.path):
            return importer.read(checkpoint)
    except IMPOSSIBLE_SIZES as error:
        message = f"{checkpoint.path} is no checkpoint of {importer.source} as knn knows them: {first_line(error)}."
        raise KnnError(message, "Download it again.") from error


def _config_beside(path: Path) -> Path | None:
    """The config.yaml of wespeaker or 3D-Speaker beside a checkpoint, or beside its folder `models`; else None."""
    folders = [path.parent, *(folder.parent for folder in path.parents[:2] if folder.name == "models")]
    for file in (folder / "config.yaml" for folder in folders if path.is_file()):
        with suppress(KnnError):  # one of another program may be anything
            if file.is_file() and origin_in(read_yaml(file)) is not None:
                return file
    return None


def _refuse_options(checkpoint: Checkpoint) -> None:
    options = {"config": checkpoint.config, "labels": checkpoint.labels, "origin": checkpoint.origin}
    for option, value in options.items():
        if value is not None:
            hint = f"{checkpoint.path} needs no `{option}`, which is only for checkpoints of wespeaker's training."
            raise KnnError(hint, sources_hint())
