"""speechbrain: folders with an ECAPA-TDNN, whose sizes and features are in hyperparams.yaml."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knn_cli.core.errors import KnnError
from knn_cli.core.texts import read_text, split_lines
from knn_cli.networks.importers.checkpoint_files import (
    checked_settings,
    read_weights,
    read_yaml,
    require_settings,
    sources_hint,
)
from knn_cli.networks.importers.components import (
    ComponentToFill,
    ImportedComponent,
    ImportedModel,
    encoder_to_fill,
    head_to_fill,
    match_weights,
    pooling_to_fill,
)
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.weight_names import ECAPA, ECAPA_POOLING, speechbrain_classifier

__all__ = ["from_speechbrain"]

_SPEECHBRAIN_NOTE = (
    "The weights keep the licence of their source; speechbrain's model cards state Apache-2.0. Check before you pass "
    "them on."
)


def _has_hyperparams(checkpoint: Checkpoint) -> bool:
    return checkpoint.is_folder and (checkpoint.path / "hyperparams.yaml").is_file()


@importer("speechbrain", recognizes=_has_hyperparams)
def from_speechbrain(checkpoint: Checkpoint) -> ImportedModel:
    """Import an ECAPA-TDNN such as lang-id-voxlingua107-ecapa, with its classifier if that is an x-vector classifier.

    Raises
    ------
    KnnError
        Files are missing or do not fit, or settings are those of another network.
    """
    folder = checkpoint.path
    path = folder / "hyperparams.yaml"
    settings = read_yaml(path)
    bins, sizes = _ecapa_settings(settings, path)
    path = folder / "embedding_model.ckpt"
    weights = _file(path)
    args = dict(zip(("channels", "kernels", "dilations", "scale", "squeeze"), sizes.values(), strict=False))
    encoder = encoder_to_fill("ecapa-tdnn", {**args, "bins": bins}, ECAPA)
    pooling_args = {
        "attention": sizes["attention_channels"],
        "dimension": sizes["lin_neurons"],
        "context": sizes["global_context"],
    }
    pooling = pooling_to_fill(encoder, "ecapa-tdnn", pooling_args, ECAPA_POOLING)
    components = match_weights([encoder, pooling], weights, path, "ECAPA-TDNN", "speechbrain")
    source = f"speechbrain: {folder.name}"
    head, labels = _classifier(settings, folder, pooling)
    return ImportedModel(components[0], source, _SPEECHBRAIN_NOTE, components[1], head, labels)


def _ecapa_settings(settings: Mapping[str, Any], path: Path) -> tuple[int, dict[str, Any]]:
    """Mel bins of the features and sizes of the network; KnnError for other features or another network."""
    features, model = (
        _section(settings, "compute_features", ".Fbank", path),
        _section(settings, "embedding_model", ".ECAPA_TDNN", path),
    )
    plain = {"deltas": False, "context": False, "sample_rate": 16000, "f_min": 0, "n_fft": 400, "win_length": 25}
    require_settings(features, {**plain, "hop_length": 10, "filter_shape": "triangular"}, path, "filter bank")
    if features.get("f_max") not in (None, 8000):
        raise KnnError(
            f"{path} has f_max {features['f_max']!r}, and knn's filter bank supports 8000 only.", sources_hint()
        )
    norm = {"norm_type": "global", "std_norm": True, **_section(settings, "mean_var_norm", "Normalization", path)}
    require_settings(norm, {"norm_type": "sentence", "std_norm": False}, path, "filter bank")
    defaults = {
        "channels": [512, 512, 512, 512, 1536],
        "kernel_sizes": [5, 3, 3, 3, 1],
        "dilations": [1, 2, 3, 4, 1],
        "res2net_scale": 8,
        "se_channels": 128,
        "attention_channels": 128,
        "lin_neurons": 192,
        "global_context": True,
    }
    sizes = checked_settings(model, defaults, path, "an ECAPA-TDNN")
    bins = checked_settings(features, {"n_mels": 40}, path, "a filter bank")["n_mels"]
    require_settings(model, {"input_size": bins, "groups": [1] * len(sizes["channels"])}, path, "ECAPA-TDNN")
    if "ReLU" not in str(model.get("activation", "ReLU")) or "Leaky" in str(model.get("activation", "")):
        raise KnnError(
            f"{path} has activation {model['activation']!r}, and knn's ECAPA-TDNN supports ReLU only.", sources_hint()
        )
    return bins, sizes


def _classifier(
    settings: Mapping[str, Any], folder: Path, pooling: ComponentToFill
) -> tuple[ImportedComponent | None, tuple[str, ...]]:
    """The head and the names of its classes; none where the classifier is of another kind than x-vector's."""
    path, classifier = folder / "hyperparams.yaml", settings.get("classifier")
    if not isinstance(classifier, dict) or not str(classifier.get("!")).endswith("Xvector.Classifier"):
        return None, ()
    if "LeakyReLU" not in str(classifier.get("activation", "LeakyReLU")):
        raise KnnError(
            f"{path} has a classifier with {classifier['activation']!r}; knn supports LeakyReLU only.", sources_hint()
        )
    sizes = checked_settings(
        classifier, {"lin_blocks": 1, "lin_neurons": 512, "out_neurons": 1211}, path, "an x-vector classifier"
    )
    labels = _speechbrain_labels(folder / "label_encoder.txt", sizes["out_neurons"])
    path = folder / "classifier.ckpt"
    weights = _file(path)
    hidden = [sizes["lin_neurons"]] * min(sizes["lin_blocks"], len(weights))
    names = speechbrain_classifier(len(hidden))
    head = head_to_fill(pooling, len(labels), "deep-softmax", {"hidden": hidden}, names)
    return match_weights([head], weights, path, "classifier", "speechbrain")[0], labels


def _section(settings: Mapping[str, Any], key: str, ending: str, path: Path) -> dict[str, Any]:
    section = settings.get(key)
    if not isinstance(section, dict) or not str(section.get("!")).endswith(ending):
        raise KnnError(f"{path} has no {key} that knn supports: it needs !new:...{ending}.", sources_hint())
    return {name: value for name, value in section.items() if name != "!"}


def _file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise KnnError(f"{path} is missing.", "Copy the whole folder.")
    return read_weights(path)


def _speechbrain_labels(path: Path, classes: int) -> tuple[str, ...]:
    """Read the labels of a label encoder's text file, in the order of their numbers."""
    try:
        lines = split_lines(read_text(path, "a list of labels").split("================", 1)[0])
        pairs = [line.rsplit(" => ", 1) for line in lines if line.strip()]
        numbered = {int(number): str(ast.literal_eval(label)) for label, number in pairs}
    except (ValueError, SyntaxError) as error:
        raise KnnError(f"{path} holds no labels of speechbrain.", "Copy the whole folder.") from error
    if sorted(numbered) != list(range(classes)) or len(set(numbered.values())) != classes:
        raise KnnError(f"{path} does not name the {classes} classes one by one.", "Copy the whole folder.")
    return tuple(numbered[number] for number in range(classes))
