"""A Gaussian linear classifier with its calibration, and all else between embeddings and scores; its fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from knn_cli.core.values import Doubles, Texts
from knn_cli.recognition import splitters
from knn_cli.recognition.calibration import Calibration, smoothing_of
from knn_cli.recognition.glc import GaussianLinearClassifier, cross_validated_log_likelihood
from knn_cli.recognition.open_set_threshold import OpenSetThreshold
from knn_cli.recognition.plda import PLDA
from knn_cli.recognition.transforms import TransformChain

CALIBRATION_FOLDS = 5


@dataclass(frozen=True, eq=False)
class CalibratedClassifier:
    """What stands between embeddings and scores; `classifier_file` keeps it as classifier.h5.

    Attributes
    ----------
    classifier : GaussianLinearClassifier
        Of rows behind `transforms`.
    calibration : Calibration
        Of the classifier's log-likelihoods.
    meta : dict
        Anything JSON can express: the embedder's fingerprint, the level of the labels, figures.
    transforms : TransformChain
        From embeddings to the rows that the classifier and the PLDA take.
    plda : PLDA or None
        For speaker trials.
    groups : dict
        Label -> group, for all labels, or empty.
    open_set : OpenSetThreshold or None
        The threshold below which a row has none of the labels.

    Raises
    ------
    ValueError
        The parts are for other numbers of classes or dimensions.
    """

    classifier: GaussianLinearClassifier
    calibration: Calibration
    meta: dict[str, Any] = field(default_factory=dict)
    transforms: TransformChain = field(default_factory=TransformChain)
    plda: PLDA | None = None
    groups: dict[str, str] = field(default_factory=dict)
    open_set: OpenSetThreshold | None = None

    def __post_init__(self) -> None:
        classes, dimension = self.classifier.classes_.tolist(), self.classifier.means_.shape[1]
        if len(self.calibration.offsets) != len(classes):
            raise ValueError(f"{len(classes)} classes, calibration of {len(self.calibration.offsets)}")
        if self.transforms.output_dimension not in (None, dimension):
            raise ValueError(f"transforms to {self.transforms.output_dimension} dimensions, classifier of {dimension}")
        if self.plda is not None and len(self.plda.mean) != dimension:
            raise ValueError(f"PLDA of {len(self.plda.mean)} dimensions, classifier of {dimension}")
        if self.groups and set(self.groups) != set(classes):
            unmatched = sorted(set(self.groups) ^ set(classes))
            raise ValueError(f"the groups and the classes differ in {', '.join(map(repr, unmatched))}")

    @property
    def labels(self) -> tuple[str, ...]:
        """(C,) in the order of the scores."""
        return tuple(map(str, self.classifier.classes_))

    @property
    def label_groups(self) -> tuple[str, ...]:
        """(C,) group of each label, () without groups: what a ScoreTable takes."""
        return tuple(self.groups[label] for label in self.labels) if self.groups else ()

    @property
    def threshold(self) -> float | None:
        """Of the open set, None without: what a ScoreTable takes."""
        return None if self.open_set is None else self.open_set.threshold

    @property
    def is_calibrated(self) -> bool:
        """Whether the calibration changes anything."""
        calibration = self.calibration
        numbers_change = calibration.scale != 1 or calibration.exponent != 0 or calibration.smoothing != 0
        return numbers_change or bool(calibration.offsets.any())

    def with_meta(self, **entries: Any) -> CalibratedClassifier:
        """The same with more entries in `meta`."""
        return replace(self, meta={**self.meta, **entries})

    def restrict(self, labels: Sequence[str]) -> CalibratedClassifier:
        """The classifier of some of the labels, with the same scores for them before smoothing; without a threshold.

        Parameters
        ----------
        labels : sequence of str
            Two or more of `labels`, sorted. Their priors are divided by their sum.
        """
        kept, classifier = np.isin(self.labels, labels), self.classifier
        fewer = GaussianLinearClassifier.restored(
            classes=classifier.classes_[kept],
            counts=classifier.counts_[kept],
            means=classifier.means_[kept],
            covariance=classifier.covariance_,
            priors=classifier.priors_[kept],
            balanced=classifier.balanced,
            shrinkage=classifier.shrinkage_,
        )
        return replace(
            self,
            classifier=fewer,
            calibration=replace(self.calibration, offsets=self.calibration.offsets[kept]),
            groups={label: group for label, group in self.groups.items() if label in labels},
            open_set=None,
        )

    def score(self, embeddings: ArrayLike, seconds: ArrayLike | None = None) -> Doubles:
        """Score embeddings.

        Parameters
        ----------
        embeddings : (N, D) array_like
            Before `transforms`.
        seconds : (N,) array_like, optional
            Their lengths, NaN where unknown.

        Returns
        -------
        (N, C) float64 array
            Calibrated log-likelihoods.
        """
        return self.calibration.bounded(self.score_unbounded(embeddings, seconds))

    def score_unbounded(self, embeddings: ArrayLike, seconds: ArrayLike | None = None) -> Doubles:
        """As `score`, before `Calibration.bounded`, which is to be over the labels that are possible."""
        raw = self.classifier.log_likelihood(self.transforms.apply(embeddings))
        return self.calibration.apply(raw, seconds)


def fit_calibrated(
    X: ArrayLike,
    y: ArrayLike,
    recordings: ArrayLike,
    *,
    calibration_rows: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
) -> CalibratedClassifier:
    """Fit a Gaussian linear classifier to rows in memory, and calibrate it on rows that it has not seen.

    `train_classifier` does the same for stores that are larger than memory.

    Parameters
    ----------
    X : (N, D) array_like
        Embeddings.
    y : (N,) array_like
        Their labels.
    recordings : (N,) array_like
        Their recordings, none of which the cross-validation cuts.
    calibration_rows : tuple of (M, D) and (M,) array_like, optional
        Embeddings and labels to calibrate on. None calibrates on all rows by cross-validation in `CALIBRATION_FOLDS`
        folds, each of which is scored by a classifier of the others.
    seed : int
        Of the folds.

    Returns
    -------
    CalibratedClassifier
        Fitted to all rows. It is not calibrated if a class has a single recording (and there are no
        `calibration_rows`).

    Raises
    ------
    KnnError
        There are fewer than two classes, or the folds cannot hold all classes.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["a", "b"], 40)
    >>> X = rng.normal(size=(80, 3)) + 2.0 * (y == "b")[:, None]
    >>> recordings = [f"{label}{row % 8}" for row, label in enumerate(y)]
    >>> fit_calibrated(X, y, recordings).score(X).shape
    (80, 2)
    """
    rows, labels, names = np.asarray(X), _texts(y), _texts(recordings)
    classifier = GaussianLinearClassifier(shrinkage="auto")
    if calibration_rows is not None:
        classifier.fit(rows, labels)
        unseen, truth = classifier.log_likelihood(calibration_rows[0]), _texts(calibration_rows[1])
        return CalibratedClassifier(classifier, Calibration.fit(unseen, truth, classifier.classes_))
    classes = np.unique(labels)
    share = smoothing_of(units := [len(np.unique(names[labels == label])) for label in classes])
    if min(units) < 2:
        return CalibratedClassifier(classifier.fit(rows, labels), Calibration.identity(len(classes), share))
    folds = splitters.folds(names, labels, count=CALIBRATION_FOLDS, seed=seed)
    unseen = cross_validated_log_likelihood(classifier, rows, labels, folds)
    return CalibratedClassifier(classifier.fit(rows, labels), Calibration.fit(unseen, labels, classes, smoothing=share))


def _texts(values: ArrayLike) -> Texts:
    return np.asarray(values).astype(np.str_)
