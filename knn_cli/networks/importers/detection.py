"""Published checkpoints to networks of ours: looks what a file or folder is and hands it to the importer for it.

Strict: every weight must be there with its size, and nothing else may be, but for heads and training leftovers that
each dialect lists. Files are read without running anything that they contain.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from knn_cli.core.errors import KnnError
from knn_cli.networks.importers.checkpoint_files import Imported, ImportedSegmenter, Part, known, read
from knn_cli.networks.importers.segmentation import from_pyannote, is_segmentation
from knn_cli.networks.importers.speaker import (
    EXTRACTOR,
    from_3d_speaker,
    from_speechbrain,
    from_training,
    from_wespeaker,
)
from knn_cli.networks.importers.wavlm import from_hugging_face, from_microsoft, from_torchaudio
from knn_cli.networks.importers.weight_names import DIALECTS
from knn_cli.networks.importers.whisper import from_hugging_face_whisper, from_openai, is_whisper

__all__ = ["DIALECTS", "Imported", "ImportedSegmenter", "Part", "import_any", "import_checkpoint"]


def import_checkpoint(
    path: Path | str, *, config: Path | str | None = None, labels: Sequence[str] | None = None
) -> Imported:
    """The network at `path` that embeds; KnnError where it is a segmentation network, and as of `import_any`."""
    found = import_any(path, config=config, labels=labels)
    if isinstance(found, ImportedSegmenter):
        raise KnnError(f"{path} is a segmentation network, which makes no embeddings.", "Name one that embeds.")
    return found


def import_any(
    path: Path | str, *, config: Path | str | None = None, labels: Sequence[str] | None = None
) -> Imported | ImportedSegmenter:
    """The network at `path`, whichever of `DIALECTS` it speaks.

    config : YAML of the training that wrote a checkpoint of wespeaker's
    labels : names of the classes of such a checkpoint's head, in any order

    Raises
    ------
        KnnError: nothing there, not readable, no dialect that we know, sizes or settings that our network does not
            have, keys that are missing, extra or of another size (all of them listed), names that do not fit.
    """
    path = Path(path)
    if path.is_dir() and not any((path / name).is_file() for name in ("hyperparams.yaml", "config.json")):
        # wespeaker and pyannote publish folders whose weights need no settings.
        path = next((path / name for name in ("avg_model.pt", "pytorch_model.bin") if (path / name).is_file()), path)
    if path.is_dir():
        _refuse(path, config, labels)
        if (path / "hyperparams.yaml").is_file():
            return from_speechbrain(path)
        return from_hugging_face_whisper(path) if is_whisper(path) else from_hugging_face(path)
    if not path.is_file():
        raise KnnError(f"There is no checkpoint {path}.", known())
    content = read(path)
    if {"dims", "model_state_dict"} <= content.keys():
        _refuse(path, config, labels)
        return from_openai(content, path)
    if is_segmentation(content):
        _refuse(path, config, labels)
        return from_pyannote(content, path)
    if isinstance(content.get("model"), dict) and "cfg" not in content:
        content = content["model"]
    elif isinstance(content.get("state_dict"), dict):  # Lightning's, pyannote's
        content = content["state_dict"]
    keys = [str(key) for key in content]
    if any(key.startswith(EXTRACTOR) for key in keys):
        return from_training(content, path, None if config is None else Path(config), labels)
    _refuse(path, config, labels)
    if {"cfg", "model"} <= content.keys():
        return from_microsoft(content, path)
    if any("encoder.transformer." in key for key in keys):
        return from_torchaudio(content, path)
    if any(key.endswith("seg_1.weight") for key in keys):
        return from_wespeaker(content, path)
    if any(key.startswith("xvector.block1.") for key in keys):
        return from_3d_speaker(content, path)
    if any("pos_conv_embed" in key for key in keys):
        raise KnnError(f"{path} is the weights of a Hugging Face model without its config.", "Name their folder.")
    raise KnnError(f"{path} is no checkpoint that knn knows.", known())


def _refuse(path: Path, config: Path | str | None, labels: Sequence[str] | None) -> None:
    for option, value in (("--config", config), ("--labels", labels)):
        if value is not None:
            raise KnnError(f"{path} explains itself; {option} is for what a training of wespeaker wrote.", known())
