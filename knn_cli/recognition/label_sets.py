"""Bundles that know some of the labels of another one: the rows of its head, or the classes of its classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from knn_cli.core.errors import BundleError
from knn_cli.core.languages import NO_SPEECH, choose_labels
from knn_cli.core.registry import HEADS
from knn_cli.evaluation.open_set import UNKNOWN
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.recognition.classifier_file import read_classifier, write_classifier
from knn_cli.recognition.head_settings import read_head_settings

if TYPE_CHECKING:
    from torch import Tensor


def write_label_set(model: str | Path, out: Path | str, languages: Sequence[str], *, force: bool = False) -> Bundle:
    """Write a bundle that knows some of a model's labels, and `zxx` and `unknown` where the model has them.

    Its probabilities of languages are those of `Classifier(model, languages=..., open_set=False)`. Nothing outside the
    set is compared any more: the threshold of the open set and the measured figures, which hold for all labels of the
    model, are left out, and `zxx` competes with the languages of the set alone, so that speech in others may be called
    so. Calibration stays. The embeddings of a bundle with a classifier keep their fingerprint; a smaller head is part
    of the weights, and changes it.

    Parameters
    ----------
    model : str or Path
        Name or folder of a bundle with labels.
    out : Path or str
        Folder of the new bundle.
    languages : sequence of str
        As `core.languages.find_label` takes them.
    force : bool
        Replace an existing bundle.

    Returns
    -------
    Bundle

    Raises
    ------
    BundleError
        There is no such bundle, it knows no labels, it is damaged, or `out` exists and must not be replaced.
    KnnError
        The model does not know one of the languages, or they are fewer than two.
    """
    source, out = bundle.find(model), Path(out)
    if not source.knows_labels:
        raise BundleError(f"The model {source.name} knows no labels.", "Name a model that classifies.")
    bundle.check_free(out, force)
    config = source.settings
    config["training"] = {**config.get("training", {}), "labels_of": f"{source.name} ({source.fingerprint})"}
    weights = source.folder / bundle.WEIGHTS if source.has_network else None
    if source.classifier is not None:
        classifier = read_classifier(source.classifier)
        labels = _chosen(classifier.labels, languages, source.name)
        config |= {"name": out.name, "embedder_name": source.fingerprint.rpartition("@")[0]}
        with TemporaryDirectory() as folder:
            path = Path(folder) / bundle.CLASSIFIER
            write_classifier(path, classifier.restrict(labels))
            card = _card(out.name, source, labels)
            return bundle.write(out, config, weights=weights, classifier=path, card=card, force=force)
    read_head_settings(source)  # refuses what a Classifier would
    labels = _chosen(source.head_labels, languages, source.name)
    kept = {key: value for key, value in config["head"].items() if key not in ("open_set", "measured")}
    config |= {"name": out.name, "head": {**kept, "labels": list(labels)}}
    return bundle.write(
        out, config, state=_head_rows(source, labels), card=_card(out.name, source, labels), force=force
    )


def _chosen(labels: tuple[str, ...], languages: Sequence[str], model: str) -> tuple[str, ...]:
    declared = choose_labels(languages, labels, model)
    return tuple(label for label in labels if label in declared or label in (NO_SPEECH, UNKNOWN))


def _head_rows(source: Bundle, labels: tuple[str, ...]) -> dict[str, Tensor]:
    """The bundle's weights with the head's rows of these labels.

    A tensor of the head has rows per class if its size depends on their number; its scales of 8 bits then have, too.
    """
    from knn_cli.networks.bundle_weights import read_weights
    from knn_cli.networks.int8 import SCALE

    head: Mapping[str, Any] = source.config["head"]
    dimension = bundle.load_network(source).dimension  # which checks all keys
    whole, part = (
        HEADS.build(head["name"], dimension=dimension, classes=classes, **head["args"]).state_dict()
        for classes in (len(source.head_labels), len(labels))
    )
    columns = [source.head_labels.index(label) for label in labels]
    state = read_weights(source.folder / bundle.WEIGHTS, source.config["weights_sha256"])
    for key, tensor in state.items():
        inner = key.removeprefix("head.").removesuffix(SCALE)
        if key.startswith("head.") and inner in whole and whole[inner].shape != part[inner].shape:
            by_class = tensor.reshape(len(source.head_labels), -1, *tensor.shape[1:])
            state[key] = by_class[columns].reshape(-1, *tensor.shape[1:])
    return state


def _card(name: str, source: Bundle, labels: tuple[str, ...]) -> str:
    return (
        f"# {name}\n\nThe labels {', '.join(labels)} of {source.name} ({source.fingerprint}), for recordings in no "
        "other languages. Its threshold of `unknown` and its measured figures are of all its labels, and left out. "
        f"The card of {source.name}:\n\n{source.card.strip()}\n"
    )
