"""Bundles whose PLDA is adapted to embeddings of another domain, whose speakers need not be known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import Doubles
from knn_cli.diarization.clustering import plda as embedding_plda
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.recognition.classifier import ROWS_AT_ONCE, Classifier
from knn_cli.recognition.classifier_file import write_classifier
from knn_cli.recognition.plda import PLDA
from knn_cli.recognition.plda_adaptation import METHODS, moments
from knn_cli.store.hdf5 import Store

__all__ = ["AdaptedModel", "write_adapted"]


_HINT = "Train one at the level speaker, with several recordings of each speaker, or name `voice`."


class AdaptedModel(NamedTuple):
    """A bundle with an adapted PLDA.

    Attributes
    ----------
    bundle : Bundle
    rows : int
        Embeddings that it was adapted to.
    growth : tuple of float
        How many times larger the traces of the covariances between and within speakers are, in the coordinates where
        the latter was the identity.
    """

    bundle: Bundle
    rows: int
    growth: tuple[float, float]


def write_adapted(
    model: str | Path, store: Path, out: Path | str, *, method: str = "kaldi", force: bool = False
) -> AdaptedModel:
    """Write a bundle that is as another one, with its PLDA adapted to a store of embeddings.

    That is the PLDA of classifier.h5, which `verify` uses, or else plda.safetensors, which the clustering by VBx uses.
    All else, and the fingerprint, stays.

    Parameters
    ----------
    model : str or Path
        Name or folder of the bundle.
    store : Path
        Embeddings of that model; labels are not looked at.
    out : Path or str
        Folder of the new bundle.
    method : str
        One of `plda_adaptation.METHODS`.
    force : bool
        Replace an existing bundle.

    Returns
    -------
    AdaptedModel

    Raises
    ------
    BundleError
        There is no such bundle, it has no PLDA, or the embeddings are of another model.
    KnnError
        There is no such method; the store has fewer than two embeddings; or `out` must not be replaced.
    """
    if method not in METHODS:
        raise KnnError(f"There is no adaptation {method!r}.", f"Known: {', '.join(METHODS)}.")
    source = bundle.find(model)
    bundle.check_free(Path(out), force)
    with Store(store, "embeddings") as file:
        bundle.check_embedder(file.embedder, source.fingerprint, str(store))
        rows = len(file)
    what = f"to {rows} embeddings of {store.name} by {method}"
    config = source.settings
    config |= {"name": Path(out).name, "embedder_name": source.fingerprint.rpartition("@")[0]}
    config["training"] = {**config.get("training", {}), "plda_adapted": f"{source.name} {what}"}
    weights = source.folder / bundle.WEIGHTS if source.has_network else None
    vbx = source.folder / bundle.PLDA
    card = (
        f"{source.card.rstrip()}\n\nThe PLDA of {source.name} is adapted {what}, whose speakers were not looked at.\n"
    )
    with TemporaryDirectory() as folder:
        classifier, plda = source.classifier, vbx if vbx.is_file() else None
        scoring = None if classifier is None else Classifier(source.folder)
        if scoring is not None and (plda is None or _plda(scoring) is not None):
            classifier = Path(folder) / bundle.CLASSIFIER
            growth = _adapt_classifier(scoring, store, classifier, method)
        else:
            plda = Path(folder) / bundle.PLDA
            growth = _adapt_embedding_plda(source, store, plda, method)
        written = bundle.write(out, config, weights=weights, classifier=classifier, plda=plda, card=card, force=force)
    return AdaptedModel(written, rows, growth)


def _plda(model: Classifier) -> PLDA | None:
    return None if model.trained is None else model.trained.plda


def _adapt_classifier(model: Classifier, store: Path, path: Path, method: str) -> tuple[float, float]:
    """Write classifier.h5 with an adapted PLDA."""
    trained, before = model.trained, _plda(model)
    if trained is None or before is None:
        raise BundleError(f"The classifier of {model.bundle.name} has no PLDA.", _HINT)
    adapted = _adapted(before, store, model.transform, method)
    write_classifier(path, replace(trained, plda=adapted))
    return _growth(before, adapted)


def _adapt_embedding_plda(source: Bundle, store: Path, path: Path, method: str) -> tuple[float, float]:
    """Write plda.safetensors of an adapted PLDA."""
    if not (source.folder / bundle.PLDA).is_file():
        raise BundleError(f"The model {source.name} has no PLDA.", _HINT)
    before, view = embedding_plda.load(source), source.view("speaker")
    growth = (1.0, 1.0)

    def adapt(model: PLDA) -> PLDA:
        nonlocal growth
        adapted = _adapted(model, store, lambda data: before.coordinates(data[:, view]), method)
        growth = _growth(model, adapted)
        return adapted

    before.adapted(adapt).save(path, embedder=source.fingerprint)
    return growth


def _adapted(plda: PLDA, store: Path, transform: Callable[[Doubles], Doubles], method: str) -> PLDA:
    def blocks() -> Iterator[Doubles]:
        with Store(store, "embeddings") as file:
            for block in file.blocks(ROWS_AT_ONCE):
                yield transform(block.data.astype(np.float64))

    return METHODS[method](plda, *moments(blocks(), len(plda.mean)))


def _growth(before: PLDA, after: PLDA) -> tuple[float, float]:
    inverse = np.linalg.inv(before.within)
    old = np.trace(inverse @ before.between), len(before.mean)
    new = np.trace(inverse @ after.between), np.trace(inverse @ after.within)
    return float(new[0] / old[0]), float(new[1] / old[1])
