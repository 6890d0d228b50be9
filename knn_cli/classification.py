"""`knn train` and `knn classify` as functions: embeddings to a classifier's bundle, sound or embeddings to scores."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from knn_cli import bundle, metrics, split, store
from knn_cli.bundle import Bundle
from knn_cli.calibration import Calibration
from knn_cli.classifier import ClassifierFile, read_classifier, write_classifier
from knn_cli.errors import BundleError, KnnError
from knn_cli.glc import GaussianLinearClassifier, cross_log_likelihood
from knn_cli.types import LABEL_LEVELS, Doubles, EmbeddingSet, Floats, ScoreTable, Texts

if TYPE_CHECKING:
    from knn_cli.embedder import Embedder

FOLDS = 5


@dataclass(frozen=True)
class Training:
    """A trained bundle and what it did on recordings that were held out (the bundle itself is fitted on all rows).

    counts      : label -> (rows trained on, rows held out) of the measurement
    accuracy, cprimary, min_cprimary : on the held-out rows
    calibrated  : False when a class had too few recordings left to calibrate the measured classifier
    left_out    : rows without a label, or with an ignored one
    not_found   : ignored labels that no row has
    units       : what the split keeps apart
    """

    bundle: Bundle
    counts: dict[str, tuple[int, int]]
    accuracy: float
    cprimary: float
    min_cprimary: float
    calibrated: bool
    left_out: int
    not_found: tuple[str, ...]
    units: str


def train(
    embeddings: EmbeddingSet,
    out: Path | str,
    *,
    label: str = "subgroup",
    ignore: Sequence[str] = (),
    balanced: bool = False,
    fraction: float = 0.2,
    seed: int = 0,
    view: str = "",
    force: bool = False,
) -> Training:
    """Fit a Gaussian linear classifier with calibration and write it as a bundle.

    label    : level of the classes: group, subgroup, speaker or name
    ignore   : labels to leave out
    balanced : within-class covariance averaged over classes instead of pooled over rows
    fraction : of each class's recordings to hold out for the figures
    view     : part of the embedding to use, as the embedder's bundle names it; "" is all of it

    The bundle takes the embedder along when that is on the search path, so that it classifies sound by itself.
    Raises KnnError: fewer than two classes, a class of one recording, an output that exists.
    """
    out = Path(out).resolve()
    bundle.check_free(out, force)
    if label not in LABEL_LEVELS:
        raise KnnError(f"There is no label level {label!r}.", f"Known: {', '.join(LABEL_LEVELS)}.")
    embedder = _embedder_of(embeddings.embedder)
    data, truth = _view(embeddings.data, embedder, view), embeddings.label(label)
    kept = (truth != "") & ~np.isin(truth, list(ignore))
    data, truth, names = data[kept], truth[kept], embeddings.name[kept]
    _check_classes(truth, label, ignore)
    # When every recording is a class of its own, segments are what can be kept apart.
    units = "segments" if label == "name" else "recordings"
    recordings = names if units == "recordings" else np.arange(len(names)).astype(np.str_)
    classifier = GaussianLinearClassifier(balanced=balanced, shrinkage="auto")

    fitted, held = split.held_out(recordings, truth, fraction=fraction, seed=seed)
    calibration, calibrated = _calibrate(classifier, data[fitted], truth[fitted], recordings[fitted], seed)
    scores = calibration.apply(classifier.fit(data[fitted], truth[fitted]).log_likelihood(data[held]))
    classes = classifier.classes_
    index = np.searchsorted(classes, truth[held])
    llr = metrics.detection_llr(scores)
    figures = {
        "accuracy": metrics.accuracy(scores.argmax(axis=1), index),
        "cprimary": metrics.cprimary(llr, index),
        "min_cprimary": metrics.min_cprimary(llr, index),
    }
    counts = {str(one): (int((truth[fitted] == one).sum()), int((truth[held] == one).sum())) for one in classes}

    final, _ = _calibrate(classifier, data, truth, recordings, seed)
    classifier.fit(data, truth)
    meta = {"label": label, "view": view, "held_out": figures, "units": units, "fraction": fraction, "seed": seed}
    made = _write(out, embeddings.embedder, embedder, classifier, final, meta, counts, force)
    not_found = tuple(one for one in ignore if one not in set(embeddings.label(label).tolist()))
    left_out = int((~kept).sum())
    return Training(made, counts, **figures, calibrated=calibrated, left_out=left_out, not_found=not_found, units=units)


def _calibrate(
    classifier: GaussianLinearClassifier, data: Floats, truth: Texts, recordings: Texts, seed: int
) -> tuple[Calibration, bool]:
    """A calibration from scores of rows whose recordings the scoring classifier never saw; identity without such."""
    classes = np.unique(truth)
    alone = [one for one in classes if len(set(recordings[truth == one].tolist())) < 2]
    if alone:
        return Calibration.identity(len(classes)), False
    folds = split.folds(recordings, truth, count=FOLDS, seed=seed)
    return Calibration.fit(cross_log_likelihood(classifier, data, truth, folds), truth, classes), True


def _check_classes(truth: Texts, label: str, ignore: Sequence[str]) -> None:
    classes = sorted(set(truth.tolist()))
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        hint = f"Levels: {', '.join(LABEL_LEVELS)}; `knn info` shows what a store holds."
        raise KnnError(f"Training needs two labels or more at the level {label}, there is {found}.", hint)


def _embedder_of(fingerprint: str) -> Bundle | None:
    try:
        return bundle.find_embedder(fingerprint) if fingerprint else None
    except BundleError:
        return None  # the embeddings' maker is not here; the classifier will serve stores


def _view(data: Floats, embedder: Bundle | None, view: str) -> Floats:
    if not view:
        return data
    views = {} if embedder is None else embedder.config.get("views", {})
    if embedder is None or view not in views:
        raise KnnError(f"The embeddings have no view {view!r}.", f"Known: {', '.join(views) or '(none)'}.")
    return data[:, embedder.view(view)]


def _write(
    out: Path,
    fingerprint: str,
    embedder: Bundle | None,
    classifier: GaussianLinearClassifier,
    calibration: Calibration,
    meta: dict[str, object],
    counts: dict[str, tuple[int, int]],
    force: bool,
) -> Bundle:
    config: dict[str, object] = {
        "name": out.name,
        "kind": "classifier",
        "embedder": fingerprint,
        "labels": [str(one) for one in classifier.classes_],
        "training": meta,
    }
    weights = None
    if embedder is not None:
        weights = embedder.folder / bundle.WEIGHTS
        config["embedder_name"] = embedder.config.get("embedder_name", embedder.name)
        parts = ("audio", "encoder", "pooling", "head", "views")
        config |= {key: embedder.config[key] for key in parts if key in embedder.config}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / bundle.CLASSIFIER
        write_classifier(path, classifier, calibration, meta)
        card = _card(out.name, fingerprint, meta, counts)
        return bundle.write(out, config, weights=weights, classifier=path, card=card, force=force)


def _card(name: str, fingerprint: str, meta: dict[str, object], counts: dict[str, tuple[int, int]]) -> str:
    held = meta["held_out"]
    assert isinstance(held, dict)
    table = "\n".join(f"| {label} | {fitted} | {kept} |" for label, (fitted, kept) in counts.items())
    return (
        f"# {name}\n\nGaussian linear classifier of {len(counts)} labels ({meta['label']}) on embeddings of "
        f"{fingerprint or 'an unknown model'}.\n\n"
        f"On held-out {meta['units']} ({float(str(meta['fraction'])):.0%} of each label, seed {meta['seed']}): "
        f"accuracy {held['accuracy']:.1%}, Cprimary {held['cprimary']:.3f} (minimum {held['min_cprimary']:.3f}). "
        "The classifier in this bundle was then fitted on all rows.\n\n"
        f"| label | rows fitted | rows held out |\n|---|---|---|\n{table}\n\n"
        "Held-out recordings of speakers, rooms and microphones that training also heard flatter the figures: the\n"
        "classifier may know the channel. Measure on recordings from elsewhere before trusting it.\n"
    )


class Classifier:
    """A bundle that knows labels; its embedder is loaded when it is first needed.

    Scores come from the classifier, or, in a bundle that has none, from the head that the network was trained with.

    Raises BundleError for a bundle with neither.
    """

    def __init__(
        self, model: str | Path | None = None, *, device: str = "auto", batch_seconds: float | None = None
    ) -> None:
        self.bundle = bundle.find(bundle.LANGUAGE if model is None else model)
        if not self.bundle.knows_labels:
            have = [name for name, folder in bundle.available().items() if bundle.find(folder).knows_labels]
            raise BundleError(
                f"The model {self.bundle.name} knows no labels.",
                f"Train one with `knn train`; models with labels here: {', '.join(have) or '(none)'}.",
            )
        self._trained: ClassifierFile | None = None
        self.labels = self.bundle.head_labels
        self.meta: dict[str, Any] = {"label": self.bundle.config.get("head", {}).get("level", "group")}
        if self.bundle.classifier is not None:
            self._trained = read_classifier(self.bundle.classifier)
            self.labels = tuple(str(one) for one in self._trained.classifier.classes_)
            self.meta = self._trained.meta
        self._device, self._batch_seconds = device, batch_seconds
        self._embedder: Embedder | None = None

    @property
    def embedder(self) -> Embedder:
        """The network in front of the classifier."""
        if self._embedder is None:
            from knn_cli.embedder import BATCH_SECONDS, Embedder

            source = self.bundle if self.bundle.has_network else bundle.find_embedder(self.bundle.fingerprint)
            seconds = BATCH_SECONDS if self._batch_seconds is None else self._batch_seconds
            self._embedder = Embedder(source, device=self._device, batch_seconds=seconds)
        return self._embedder

    def score(self, embeddings: EmbeddingSet, what: str = "The store") -> ScoreTable:
        """Log-likelihoods (calibrated, of a classifier) of (N, D) embeddings; BundleError when another model made them.

        A head's scores are its logits: log-likelihoods up to a constant a row, if its training saw all classes alike.
        """
        bundle.check_embedder(embeddings.embedder, self.bundle.fingerprint, what)
        view = str(self.meta.get("view") or "")
        data = embeddings.data[:, self.bundle.view(view)] if view else embeddings.data
        if self._trained is None:
            scores = self.embedder.scores(data).astype(np.float64)
        else:
            scores = self._trained.calibration.apply(self._trained.classifier.log_likelihood(data))
        truth = embeddings.label(str(self.meta.get("label", "group")))
        return ScoreTable(self.labels, scores, embeddings.name, embeddings.start, embeddings.end, truth)

    def file(
        self, path: Path | str, *, segment: float | None = None, use_vad: bool = True, channel: str = "mix"
    ) -> ScoreTable:
        """Scores of one audio file: one row, or one every `segment` seconds. Raises as `embedder.embed_file`."""
        from knn_cli.embedder import embed_file

        embeddings = embed_file(path, self.embedder, segment=segment, use_vad=use_vad, channel=channel)
        return self.score(embeddings, str(path))

    def store(self, path: Path | str, *, use_vad: bool = True) -> Iterator[ScoreTable]:
        """Scores of a store, group of rows after group of rows; an audio store is embedded on the way."""
        with store.Store(path) as opened:
            if opened.kind == "embeddings":
                yield self.score(opened.embeddings(), str(path))
                return
            from knn_cli.embedder import embed_store

            for group in embed_store(opened, self.embedder, use_vad=use_vad):
                if len(group.embeddings):
                    yield self.score(group.embeddings, str(path))


def posteriors(table: ScoreTable) -> Doubles:
    """(N, C) probabilities of a score table for labels that are all as likely beforehand; rows sum to 1."""
    shifted = table.log_likelihood - table.log_likelihood.max(axis=1, keepdims=True)
    odds = np.exp(shifted)
    result: Doubles = odds / odds.sum(axis=1, keepdims=True)
    return result
