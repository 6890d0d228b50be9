"""`train_classifier`: embeddings in memory, or in a store of any size, to the bundle of a classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from knn_cli.core.values import EmbeddingSet, Texts
from knn_cli.evaluation import metrics
from knn_cli.evaluation.open_set import UNKNOWN
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.recognition import splitters
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.open_set_threshold import OpenSetThreshold
from knn_cli.recognition.plda import PLDA
from knn_cli.recognition.split_file import Split
from knn_cli.recognition.training_steps.bundle_writing import ClassifierEmbedder, write_classifier_bundle
from knn_cli.recognition.training_steps.cross_validation import TrainTestSplit, assign_cells, train_test_splits
from knn_cli.recognition.training_steps.embedding_source import EmbeddingSource
from knn_cli.recognition.training_steps.fitting import (
    FitOptions,
    FitRows,
    Priors,
    UncalibratedClassifier,
    fit_classifiers,
    pooled_statistics,
)
from knn_cli.recognition.training_steps.held_out_scoring import (
    CalibrationOptions,
    HeldOutScorer,
    HeldOutScores,
    group_accuracy,
    operating_point,
)
from knn_cli.recognition.training_steps.options import HELD_OUT_FRACTION, ClassifierOptions
from knn_cli.recognition.training_steps.rows import ChosenRows, RowOptions, TrainingRows, choose_rows
from knn_cli.recognition.transforms import parse_transforms

FEW_UNITS = 10  # of a class, below which its figures and scores say little
MAX_FITTED_HASHES = 100_000  # recordings whose hashes a bundle keeps


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained bundle, and figures on recordings that were held out.

    Where the bundle was refitted to all rows, the figures are of classifiers that were fitted without these recordings.

    Attributes
    ----------
    bundle : Bundle
        What was written.
    counts : dict
        Label -> (rows trained on, rows held out) of the measurement; with folds every row is both, in turn.
    accuracy, cprimary, min_cprimary : float
        On the held-out rows.
    calibrated : bool
        False when a class had too few recordings left to calibrate the measured classifier, or no calibration was
        asked for.
    left_out : int
        Rows without a label, with an ignored one, or on no side of the split.
    not_found : tuple of str
        Ignored and out-of-set labels that no row has.
    units : str
        What held-out rows do not share with the others.
    cllr : float
        Of the held-out rows, in bits.
    group_accuracy : float or None
        Of posteriors summed over groups, None without groups.
    open_set : OpenSetThreshold or None
        The threshold in the bundle, with its rates on held-out rows and on out-of-set rows that did not choose it.
    not_in_store : tuple of str
        Recordings of the split that the rows lack.
    plda : bool
        Whether the bundle has a PLDA.
    refitted : bool
        Whether the bundle is fitted to all rows. Otherwise it is the measured one and has not seen the others.
    disjoint_by : str
        What the out-of-set rows that choose the threshold do not share with those that report on it: labels, where
        there are two or more, else `units`; "" without out-of-set rows.
    split_label : str
        Level that the split was drawn by, where it is another than the one that is trained.
    few_units : dict
        Label -> number of units, of those labels that have fewer than `FEW_UNITS`.
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
    cllr: float
    group_accuracy: float | None = None
    open_set: OpenSetThreshold | None = None
    not_in_store: tuple[str, ...] = ()
    plda: bool = False
    refitted: bool = True
    disjoint_by: str = ""
    split_label: str = ""
    few_units: Mapping[str, int] = field(default_factory=dict)

    @property
    def separates(self) -> bool:
        """Whether all held-out rows were recognised, so that nothing is known of how rare errors are."""
        return self.accuracy == 1.0


def train_classifier(
    embeddings: EmbeddingSet | Path | str | EmbeddingSource,
    out: Path | str,
    options: ClassifierOptions | None = None,
    *,
    split: Split | None = None,
    force: bool = False,
    **changes: Any,
) -> TrainedClassifier:
    """Fit a calibrated Gaussian linear classifier to embeddings, measure it on held-out recordings, and write a bundle.

    Parameters
    ----------
    embeddings : EmbeddingSet, Path, str or EmbeddingSource
        Rows with labels, or the path of an embedding store that may be larger than memory: its vectors are gone through
        in blocks. The two give the same bundle, bit for bit.
    out : Path or str
        Folder of the bundle.
    options : ClassifierOptions, optional
        How it is trained.
    split : Split, optional
        What to hold out: its side "test", or each of its folds in turn.
    force : bool
        Replace a bundle that exists.
    **changes
        Fields of `ClassifierOptions`, instead of those in `options`.

    Returns
    -------
    TrainedClassifier
        The bundle and its figures. The meta of its classifier has `split`, with the SHA-256 of the split's file, and
        `fitted`: sorted, the `fitted_hash` of each recording that the bundle was fitted to or its threshold chosen on.

    Raises
    ------
    KnnError
        There are fewer than two classes, a class has one recording or is missing on a side, the split does not know a
        recording, the output exists, or options contradict each other.

    Examples
    --------
    >>> import numpy as np
    >>> from knn_cli import Classifier, EmbeddingSet, train_classifier
    >>> language = np.repeat(["cs", "pl"], 30)
    >>> vectors = np.random.default_rng(0).normal(size=(60, 4)) + 3.0 * (language == "pl")[:, None]
    >>> names = [f"{label}-{row // 3}" for row, label in enumerate(language)]
    >>> embeddings = EmbeddingSet.from_columns(vectors, names, group=language)
    >>> result = train_classifier(embeddings, "out-folder", label="group")
    >>> result.counts
    {'cs': (24, 6), 'pl': (24, 6)}
    >>> Classifier("out-folder").labels
    ('cs', 'pl')
    """
    options = replace(options or ClassifierOptions(), **changes)
    options.check_split(split)
    out = Path(out).resolve()
    bundle.check_free(out, force)
    source = embeddings if isinstance(embeddings, EmbeddingSource) else EmbeddingSource(embeddings)
    return _train(source, out, options, split, force)


def _train(
    source: EmbeddingSource, out: Path, options: ClassifierOptions, split: Split | None, force: bool
) -> TrainedClassifier:
    """Choose rows, fit, calibrate, measure, choose the threshold, write the bundle."""
    embedder = ClassifierEmbedder.find(source.embedder)
    transforms = tuple(parse_transforms(options.transforms))
    source.view = embedder.view(options.view)
    chosen = choose_rows(source, _row_options(options), split)
    classes = chosen.rows.classes
    fit_options = FitOptions(options.balanced, _class_priors(options, classes), options.shrinkage, transforms)
    groups = _groups_of(options.groups, classes) if options.groups else {}
    fits = _fit_and_score(source, chosen.rows, options, fit_options, split)
    figures, by_group = _figures(fits.measured, classes, groups)
    unit_word = options.unit_word(split)
    disjoint_by = {None: "", True: "labels", False: unit_word}[chosen.by_label]
    rare = chosen.rows.keys.classes_with_fewer(3)
    units = chosen.rows.keys.units_of_classes(fits.parts[-1].trained)
    threshold = operating_point(fits.final, fits.measured, classes, options.false_reject, disjoint_by, rare)
    model = CalibratedClassifier(
        classifier=fits.model.classifier,
        calibration=fits.final.calibration,
        meta=_meta(options, split, figures, by_group, disjoint_by) | _certainty(fits.final.calibration, units),
        transforms=fits.model.chain,
        plda=_fit_plda(fits, options.balanced) if options.label == "speaker" else None,
        groups=groups,
        open_set=threshold,
    )
    counts = _count_rows(chosen.rows, fits.parts[: len(fits.measured)])
    hashes = _fitted_hashes(chosen, fits.parts[-1], options.label)
    written = write_classifier_bundle(out, embedder, model, counts, names=options.names, fitted=hashes, force=force)
    return TrainedClassifier(
        bundle=written,
        counts=counts,
        **figures,
        calibrated=all(scores.calibrated for scores in fits.measured),
        left_out=chosen.left_out,
        not_found=chosen.not_found,
        units=unit_word,
        group_accuracy=by_group,
        open_set=threshold,
        not_in_store=chosen.not_in_store,
        plda=model.plda is not None,
        refitted=options.refits(split),
        disjoint_by=disjoint_by,
        split_label=split.label if split is not None and split.label != options.label else "",
        few_units={label: number for label, number in units.items() if number < FEW_UNITS},
    )


def _row_options(options: ClassifierOptions) -> RowOptions:
    return RowOptions(
        label=options.label,
        ignore=options.ignore,
        out_of_set=options.out_of_set,
        out_of_set_class=options.out_of_set_class,
        units=options.units or "name",
        seed=options.seed,
    )


def _class_priors(options: ClassifierOptions, classes: Texts) -> Priors:
    """As the classifier takes them."""
    if isinstance(options.priors, Mapping):
        return metrics.prior_weights(options.priors, classes.tolist())
    return options.priors


def _groups_of(groups: Mapping[str, str], classes: Texts) -> dict[str, str]:
    """Class -> group; KnnError for a class without one."""
    known = {UNKNOWN: UNKNOWN, **groups}
    if missing := [label for label in classes.tolist() if label not in known]:
        raise splitters.unfit_classes(missing, "no group", "give every label one")
    return {label: str(known[label]) for label in classes.tolist()}


@dataclass(frozen=True, eq=False)
class _Fits:
    """All fits of a training.

    parts    : what is measured, then what the bundle is fitted to; the same, once, where it is not refitted
    measured : scores of the former
    final    : of the latter, whose classifier is `model`; `rows` are those that it was fitted to
    """

    parts: list[TrainTestSplit]
    measured: list[HeldOutScores]
    final: HeldOutScores
    model: UncalibratedClassifier
    rows: FitRows


def _fit_and_score(
    source: EmbeddingSource, rows: TrainingRows, options: ClassifierOptions, fit: FitOptions, split: Split | None
) -> _Fits:
    """Fit the classifiers of every split, calibrate them by cross-validation, and score what they hold out."""
    fraction = HELD_OUT_FRACTION if options.fraction is None else options.fraction
    parts = train_test_splits(rows.keys, split, fraction=fraction, seed=options.seed)
    tested = len(parts) - 1  # the last trains on everything
    if not options.refits(split):
        parts = parts[:-1]
    cell_of_key, training_sets, places = assign_cells(parts)
    fit_rows = FitRows(source, rows.truth, rows.classes, rows.keys.spread(cell_of_key))
    models = fit_classifiers(fit_rows, training_sets, fit)
    calibration = CalibrationOptions(options.calibration, options.duration_aware, options.seed)
    scorer = HeldOutScorer(source, rows, parts, calibration)
    scores = [scorer.score(part, [models[place] for place in own]) for part, own in zip(parts, places, strict=True)]
    final = places[-1][0]
    inside = np.isin(fit_rows.cell, training_sets[final])
    final_rows = replace(fit_rows, cell=np.where(inside, fit_rows.cell, -1))
    return _Fits(parts, scores[:tested], scores[-1], models[final], final_rows)


def _figures(
    measured: Sequence[HeldOutScores], classes: Texts, groups: Mapping[str, str]
) -> tuple[dict[str, float], float | None]:
    """Figures of all held-out rows together, and the accuracy of groups where there are groups."""
    scores = np.concatenate([part.scores for part in measured])
    index = np.concatenate([part.index for part in measured])
    llr = metrics.detection_llr(scores)
    figures = {
        "accuracy": metrics.accuracy(scores.argmax(axis=1), index),
        "cprimary": metrics.cprimary(llr, index),
        "min_cprimary": metrics.min_cprimary(llr, index),
        "cllr": metrics.cllr(scores, index),
    }
    if not groups:
        return figures, None
    return figures, group_accuracy(scores, index, [groups[label] for label in classes.tolist()])


def _fit_plda(fits: _Fits, balanced: bool) -> PLDA | None:
    """None where the speakers have too few rows, or are not all speakers."""
    classes = fits.rows.classes
    if UNKNOWN in classes:
        return None
    statistics = pooled_statistics(fits.rows, fits.model.chain) if balanced else fits.model.statistics
    if statistics.rows - len(classes) < statistics.dimension:
        return None
    return PLDA.fit_statistics(statistics)


def _meta(
    options: ClassifierOptions,
    split: Split | None,
    figures: Mapping[str, float],
    by_group: float | None,
    disjoint_by: str,
) -> dict[str, Any]:
    """What the bundle notes of its training; the order of the keys is that of its files."""
    meta: dict[str, Any] = {
        "label": options.label,
        "view": options.view,
        "held_out": dict(figures),
        "units": options.unit_word(split),
        "seed": options.seed,
    }
    if split is None:
        meta["fraction"] = HELD_OUT_FRACTION if options.fraction is None else options.fraction
    else:
        meta["split"] = {**split.rule, "seed": split.seed, "sha256": split.sha256}
    if by_group is not None:
        meta["group_accuracy"] = by_group
    meta["refitted"] = options.refits(split)
    if disjoint_by:
        meta["strangers_apart"] = disjoint_by
    return meta


def _certainty(calibration: Calibration, units: Mapping[str, int]) -> dict[str, Any]:
    """What the bundle notes of how certain its scores can be; nothing where they are not bounded."""
    if not calibration.smoothing:
        return {}
    low, high = calibration.llr_bounds
    return {
        "certainty": {"smoothing": calibration.smoothing, "least_llr": low, "largest_llr": high, "units": dict(units)}
    }


def _count_rows(rows: TrainingRows, tested: Sequence[TrainTestSplit]) -> dict[str, tuple[int, int]]:
    """Class -> (rows trained on, rows held out)."""
    per_key, labels = rows.keys.rows, rows.keys.label
    trained, held_out = (np.any([getattr(part, side) for part in tested], axis=0) for side in ("trained", "tested"))
    return {
        label: (int(per_key[trained & (labels == label)].sum()), int(per_key[held_out & (labels == label)].sum()))
        for label in rows.classes.tolist()
    }


def _fitted_hashes(chosen: ChosenRows, final: TrainTestSplit, label: str) -> list[str] | None:
    """Sorted hashes of the recordings that the bundle was fitted to or its threshold chosen on; None: too many."""
    keys = chosen.rows.keys
    names = np.union1d((keys.label if label == "name" else keys.recording)[final.trained], chosen.choosing)
    return sorted(map(fitted_hash, names.tolist())) if len(names) <= MAX_FITTED_HASHES else None


def fitted_hash(name: str) -> str:
    """The hash of a recording's name in a classifier's `meta["fitted"]`: the first 12 digits of its SHA-256."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]
