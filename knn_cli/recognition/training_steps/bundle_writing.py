"""The last step of a training: the bundle, its classifier.h5 and its card."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier
from knn_cli.recognition.classifier_file import write_classifier
from knn_cli.recognition.open_set_threshold import OpenSetThreshold


@dataclass(frozen=True)
class ClassifierEmbedder:
    """The model that computed the embeddings of a training.

    Attributes
    ----------
    fingerprint : str
        The fingerprint stored with the embeddings, "" if unknown.
    bundle : Bundle or None
        None if the bundle is not on this machine; the classifier can then be applied only to embedding stores.
    """

    fingerprint: str
    bundle: Bundle | None

    @classmethod
    def find(cls, fingerprint: str) -> ClassifierEmbedder:
        """Look for the bundle with this fingerprint."""
        try:
            return cls(fingerprint, bundle.find_embedder(fingerprint) if fingerprint else None)
        except BundleError:
            return cls(fingerprint, None)

    def view(self, name: str) -> slice:
        """The slice of an embedding that is its view `name`.

        Parameters
        ----------
        name : str
            The name of the view; "" is the whole embedding.

        Returns
        -------
        slice
            Over the values of the embedding.

        Raises
        ------
        KnnError
            The view is unknown.
        """
        if not name:
            return slice(None)
        views = {} if self.bundle is None else self.bundle.config.get("views", {})
        if self.bundle is None or name not in views:
            raise KnnError(f"The embeddings have no view {name!r}.", f"Known: {', '.join(views) or '(none)'}.")
        return self.bundle.view(name)


def write_classifier_bundle(
    out: Path,
    embedder: ClassifierEmbedder,
    model: CalibratedClassifier,
    counts: Mapping[str, tuple[int, int]],
    *,
    names: Mapping[str, str],
    fitted: list[str] | None,
    force: bool,
) -> Bundle:
    """Write a bundle with a classifier, and with the network of its embedder if that is available.

    Parameters
    ----------
    out : Path
        The folder of the bundle.
    embedder : ClassifierEmbedder
        The model that computed the embeddings.
    model : CalibratedClassifier
        The classifier, whose `meta` becomes `training` in the bundle's configuration.
    counts : mapping
        Label -> (fitted rows, held-out rows), for the card.
    names : mapping of str to str
        Names of labels and groups, besides those in the embedder's bundle.
    fitted : list of str, optional
        Hashes of recordings, for the meta of classifier.h5 alone.
    force : bool
        Replace an existing bundle.
    """
    config: dict[str, object] = {
        "name": out.name,
        "kind": "classifier",
        "embedder": embedder.fingerprint,
        "labels": list(counts),
        "training": model.meta,
    }
    weights = None
    if embedder.bundle is not None:
        source = embedder.bundle
        weights = source.folder / bundle.WEIGHTS
        config["embedder_name"] = source.config.get("embedder_name", source.name)
        carried = ("audio", "encoder", "pooling", "head", "views", "products", "chunk", "precision")
        config |= {key: source.config[key] for key in carried if key in source.config}
    known = {*counts, *model.groups.values()}
    of_source: Mapping[str, str] = {} if embedder.bundle is None else embedder.bundle.config.get("names", {})
    if shown := {label: name for label, name in {**of_source, **names}.items() if label in known}:
        config["names"] = shown
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / bundle.CLASSIFIER
        write_classifier(path, model if fitted is None else model.with_meta(fitted=fitted))
        card = _card(out.name, embedder.fingerprint, model, counts)
        return bundle.write(out, config, weights=weights, classifier=path, card=card, force=force)


def _card(name: str, fingerprint: str, model: CalibratedClassifier, counts: Mapping[str, tuple[int, int]]) -> str:
    meta = model.meta
    figures = meta["held_out"]
    if "split" in meta:
        split_text = f"a split of the kind {meta['split']['kind']}, seed {meta['split']['seed']}"
    else:
        split_text = f"{meta['fraction']:.0%} of each label, seed {meta['seed']}"
    open_set = _open_set_text(model.open_set, meta.get("strangers_apart", ""))
    chain = f" Before it: {model.transforms.spec}." if model.transforms.spec else ""
    groups = f", groups {meta['group_accuracy']:.1%}" if "group_accuracy" in meta else ""
    fit_text = "The classifier in this bundle was then fitted on all rows."
    if not meta["refitted"]:
        fit_text = "The classifier in this bundle is that one: it was not fitted on the held-out rows."
    table = "\n".join(f"| {label} | {fitted} | {held_out} |" for label, (fitted, held_out) in counts.items())
    return (
        f"# {name}\n\nGaussian linear classifier of {len(counts)} labels ({meta['label']}) on embeddings of "
        f"{fingerprint or 'an unknown model'}.{chain}{open_set}\n\n"
        f"On held-out {meta['units']} ({split_text}): accuracy {figures['accuracy']:.1%}{groups}, "
        f"Cprimary {figures['cprimary']:.3f} (minimum {figures['min_cprimary']:.3f}), Cllr {figures['cllr']:.3f} bits. "
        f"{fit_text}{_certainty_text(meta)}\n\n"
        f"| label | rows fitted | rows held out |\n|---|---|---|\n{table}\n\n"
        "Figures are too good where held-out recordings share speakers, rooms or microphones with the training data:\n"
        "the classifier may know the channel. Measure on recordings from elsewhere before trusting it.\n"
    )


def _certainty_text(meta: Mapping[str, Any]) -> str:
    """The sentence about the bounds of scores in the card."""
    if (certainty := meta.get("certainty")) is None:
        return ""
    units = certainty["units"].values()
    several = f"{min(units)} to {max(units)}" if min(units) < max(units) else f"{max(units)}"
    return (
        f" With {several} {meta['units']} of a label, detection log-likelihood ratios are from "
        f"{certainty['least_llr']:.2f} to {certainty['largest_llr']:.2f}: more would be no evidence but extrapolation."
    )


def _open_set_text(point: OpenSetThreshold | None, disjoint_by: str) -> str:
    """The sentence about the threshold in the card."""
    if point is None:
        return ""
    text = (
        f" Rows below the threshold {point.threshold:.3f} are unknown: {point.false_reject:.1%} of "
        f"{point.known} held-out rows"
    )
    if not point.unknown:
        return f"{text}."
    return (
        f"{text}, and all but {point.false_accept:.1%} of {point.unknown} of labels outside the closed set; those that "
        f"chose the threshold are of other {disjoint_by}."
    )
