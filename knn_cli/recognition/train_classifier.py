"""`knn train` on embeddings as a function: a store, of any size, to a classifier's bundle."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import LABEL_LEVELS, EmbeddingSet, Texts
from knn_cli.evaluation import metrics
from knn_cli.evaluation.open_set import UNKNOWN
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.recognition import cross_validation, fitting, split_files
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.classifier import Classifier, posteriors
from knn_cli.recognition.classifier_file import write_classifier
from knn_cli.recognition.cross_validation import Column, Keys, Part
from knn_cli.recognition.fitting import Model, Options, Source
from knn_cli.recognition.held_out import Rows, Scoring, group_accuracy, operating_point
from knn_cli.recognition.open_set_threshold import OpenSetThreshold, check_false_reject
from knn_cli.recognition.plda import PLDA
from knn_cli.recognition.split_files import Split
from knn_cli.recognition.splits import Mask, check_seed
from knn_cli.recognition.transforms import parse_transforms

__all__ = ["Classifier", "Training", "fitted_hash", "posteriors", "train"]

FRACTION = 0.2  # of each class's recordings that is held out, where nobody says otherwise
NOTED = 100_000  # recordings at most that a bundle remembers it was fitted on

_PLURAL = {"name": "recordings", "speaker": "speakers", "subgroup": "subgroups", "group": "groups"}


@dataclass(frozen=True)
class Training:
    """A trained bundle and what its like, or it itself (`refitted`), did on recordings that were held out.

    counts      : label -> (rows trained on, rows held out) of the measurement; with folds every row is both, in turn
    accuracy, cprimary, min_cprimary, cllr : on the held-out rows; cllr in bits
    calibrated  : False when a class had too few recordings left to calibrate the measured classifier, or none was asked
    left_out    : rows without a label, with an ignored one, or on no side of the split
    not_found   : ignored labels and strangers that no row has
    units       : what the split keeps apart
    group_accuracy : of posteriors summed over groups, None without groups
    open_set    : the threshold in the bundle, with its rates on held-out rows and on strangers that did not choose it
    not_in_store: recordings of the split that the rows lack
    plda        : whether the bundle has a PLDA
    refitted    : whether the bundle is fitted on all rows; else it is the measured one and has not seen the others
    apart       : what strangers that choose the threshold do not share with those that report on it: labels, where
                  there are two or more, else `units`; "" without strangers
    split_label : level that the split was drawn by, where that is another than the one that is trained
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
    apart: str = ""
    split_label: str = ""


def fitted_hash(name: str) -> str:
    """What a classifier's `meta["fitted"]` has of the name of a recording: the first 12 digits of its SHA-256."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def train(
    embeddings: EmbeddingSet | Path | str,
    out: Path | str,
    *,
    label: str = "subgroup",
    ignore: Sequence[str] = (),
    balanced: bool = False,
    fraction: float | None = None,
    seed: int = 0,
    view: str = "",
    force: bool = False,
    split: Split | None = None,
    units: str | None = None,
    transforms: str = "",
    calibration: Literal["affine", "temperature", "none"] = "affine",
    duration_aware: bool = False,
    priors: Literal["empirical"] | Mapping[str, float] | None = None,
    groups: Mapping[str, str] | None = None,
    strangers: Sequence[str] = (),
    stranger_class: bool = False,
    false_reject: float | None = None,
    refit: bool | None = None,
) -> Training:
    """Fit a Gaussian linear classifier with calibration and write it as a bundle.

    embeddings : rows, or the path of an embedding store that may be larger than memory: vectors are gone through in
                 blocks, and the two give the same bundle, bit for bit
    label      : level of the classes: group, subgroup, speaker or name; at the level speaker the bundle gets a PLDA,
                 where there are rows enough for one
    ignore     : labels to leave out
    balanced   : within-class covariance averaged over classes instead of pooled over rows
    fraction   : of each class's recordings to hold out for the figures, 0.2 where no split says it
    view       : part of the embedding to use, as the embedder's bundle names it; "" is all of it
    split      : what to hold out instead: its side "test", or each of its folds in turn
    units      : level that neither the held-out rows nor the folds of calibration cut: recordings (`name`), or what
                 the split says
    transforms : steps before the classifier, as `parse_transforms` reads them; learnt for each training set
    calibration: affine (scale and offsets), temperature (scale alone) or none
    duration_aware : the scale may depend on how long a row is
    priors     : how likely the labels are, kept with the classifier; scores and figures are of labels all alike
    groups     : label -> group, for all labels (others are passed over); kept in the bundle
    strangers  : labels outside the closed set. One half of the labels (of a single one: of its recordings) chooses the
                 threshold of the open set, the other half reports on it. Those on a split's side test do neither;
                 those in a fold choose for the other folds and report on their own
    stranger_class : they are trained as the class "unknown" instead
    false_reject : share of known rows that the threshold may lose; None: equal error
    refit      : whether the bundle is fitted on the held-out rows too, once they have been measured on. None: unless a
                 split has a side "test", which whoever made it will want to test the bundle on

    Calibration is learnt on at most `measuring.CALIBRATING` rows, the figures are of at most `measuring.MEASURED`;
    both are drawn with the seed. Transforms and `balanced` cost more passes (`fitting`).
    The meta of the classifier has `split`, with the SHA-256 of its file, and `fitted`: sorted, the `fitted_hash` of
    each recording that the bundle was fitted on or its threshold chosen on, where they are no more than `NOTED`.

    Raises KnnError: fewer than two classes, a class of one recording or that a side lacks, a recording that the split
    does not know, an output that exists, options that contradict each other.
    """
    out = Path(out).resolve()
    bundle.check_free(out, force)
    for level in (label, units or "name"):
        if level not in LABEL_LEVELS:
            raise KnnError(f"There is no label level {level!r}.", f"Known: {', '.join(LABEL_LEVELS)}.")
    if calibration not in {"affine", "temperature", "none"}:
        raise KnnError(f"There is no calibration {calibration!r}.", "Known: affine, temperature, none.")
    if calibration == "none" and duration_aware:
        raise KnnError("What is not calibrated cannot depend on how long a row is.", "Leave --duration-aware out.")
    if stranger_class and not strangers:
        raise KnnError("The class of labels outside the closed set needs such labels.", "Name them (--out-of-set).")
    if stranger_class and false_reject is not None:
        raise KnnError("A class of strangers has no threshold.", "Leave out the one or the other.")
    check_false_reject(false_reject)
    check_seed(seed)
    if split is not None and fraction is not None:
        raise KnnError("The split says what is held out.", "Leave --held-out or --split out.")
    if split is not None and units is not None:
        raise KnnError(f"The split says what is kept apart: {_PLURAL[split.units]}.", "Leave --units or --split out.")
    fraction, units = FRACTION if fraction is None else fraction, units or "name"
    sided = split is not None and not split.folded
    refit = not sided if refit is None else refit
    if not refit and split is not None and split.folded:
        raise KnnError("A split into folds has no side to fit the model on.", "Leave --no-refit out.")
    specs = tuple(parse_transforms(transforms))
    source = Source(embeddings)
    embedder = _embedder_of(source.embedder)
    source.part = _view(embedder, view)
    chosen = _choose(source, label, ignore, strangers, stranger_class, split, units, seed)
    rows, classes = chosen.rows, chosen.rows.classes
    weights = metrics.prior_weights(priors, classes.tolist()) if isinstance(priors, Mapping) else priors
    map_of = _groups_of(groups, classes) if groups else {}

    parts = cross_validation.parts(rows.keys, split, fraction=fraction, seed=seed)
    tests = parts[:-1]
    parts = parts if refit else tests  # the last is what the bundle is fitted on
    key_cell, sets, places = cross_validation.cells(parts)
    cell = rows.keys.spread(key_cell)
    models = fitting.fit(source, rows.truth, classes, cell, sets, Options(balanced, weights, specs))
    scoring = Scoring(source, rows, parts, kind=calibration, duration_aware=duration_aware, seed=seed)
    done = [scoring.part(part, [models[place] for place in own]) for part, own in zip(parts, places, strict=True)]
    measured, final, model = done[: len(tests)], done[-1], models[places[-1][0]]

    scores, index = (np.concatenate([getattr(one, name) for one in measured]) for name in ("scores", "index"))
    llr = metrics.detection_llr(scores)
    figures = {
        "accuracy": metrics.accuracy(scores.argmax(axis=1), index),
        "cprimary": metrics.cprimary(llr, index),
        "min_cprimary": metrics.min_cprimary(llr, index),
        "cllr": metrics.cllr(scores, index),
    }
    by_group = group_accuracy(scores, index, [map_of[one] for one in classes.tolist()]) if map_of else None
    word = "segments" if label == "name" else _PLURAL[units if split is None else split.units]
    apart = {None: "", True: "labels", False: word}[chosen.by_label]
    opened = operating_point(final, measured, classes, false_reject, apart)
    fitted = np.isin(cell, sets[places[-1][0]])
    plda = _plda(source, rows, model, balanced, fitted) if label == "speaker" else None
    counts = _counts(rows, tests)
    meta: dict[str, object] = {"label": label, "view": view, "held_out": figures, "units": word, "seed": seed}
    if split is None:
        meta["fraction"] = fraction
    else:
        meta["split"] = {**split.rule, "seed": split.seed, "sha256": split.sha256}
    meta |= ({"group_accuracy": by_group} if map_of else {}) | {"refitted": refit}
    meta |= {"strangers_apart": apart} if apart else {}
    names = (rows.keys.label if label == "name" else rows.keys.recording)[parts[-1].trained]
    names = np.union1d(names, chosen.choosing)
    noted = {"fitted": sorted(map(fitted_hash, names.tolist()))} if len(names) <= NOTED else {}
    parts_of_file = {"transforms": model.chain, "plda": plda, "groups": map_of, "open_set": opened}
    made = _write(out, source.embedder, embedder, model, final.calibration, meta, noted, counts, force, parts_of_file)
    return Training(
        made,
        counts,
        **figures,
        calibrated=all(one.calibrated for one in measured),
        left_out=chosen.left_out,
        not_found=chosen.not_found,
        units=word,
        group_accuracy=by_group,
        open_set=opened,
        not_in_store=chosen.not_in_store,
        plda=plda is not None,
        refitted=refit,
        apart=apart,
        split_label=split.label if split is not None and split.label != label else "",
    )


@dataclass(frozen=True, eq=False)
class _Chosen:
    """What `_choose` finds.

    by_label : whether the halves of the strangers share no label; None without strangers
    choosing : recordings whose rows choose the threshold
    """

    rows: Rows
    left_out: int
    not_found: tuple[str, ...]
    not_in_store: tuple[str, ...]
    by_label: bool | None
    choosing: Texts


def _choose(
    source: Source,
    label: str,
    ignore: Sequence[str],
    strangers: Sequence[str],
    stranger_class: bool,
    split: Split | None,
    units: str,
    seed: int,
) -> _Chosen:
    """Which rows are trained on, as what, and which are strangers: told of keys, which are fewer than rows."""
    keys = _keys(source, label, split, units)
    truth = keys.label
    found = set(truth.tolist())
    used = (truth != "") & ~np.isin(truth, list(ignore))  # (P,)
    strange = used & np.isin(truth, list(strangers))
    if strangers and not strange.any():
        raise KnnError(f"No row has a label outside the closed set: {', '.join(strangers)}.", "See `knn info`.")
    if stranger_class:
        keys = replace(keys, label=np.where(strange, UNKNOWN, truth))
        strange = np.zeros_like(strange)
    used &= ~strange
    left_out = ~used & ~strange
    absent: tuple[str, ...] = ()
    fold, folds = np.full(len(used), -1, dtype=np.int32), tuple[str, ...]()
    if split is not None:
        absent = split.absent_from(keys.recording)
        part = np.full(len(used), "", dtype=object)
        part[used | strange] = split.part_of(keys.recording[used | strange])
        left_out |= used & (part == "")
        used &= part != ""
        if split.folded:
            folds = split.parts
            fold[strange] = [folds.index(one) if one else -1 for one in part[strange]]
        elif strange.any():
            strange &= part != "test"  # they are for testing, as all of that side
            if not strange.any():
                hint = "Put some on the side train, or leave them out of the split (--ignore of `knn split`)."
                raise KnnError("All rows outside the closed set are on the side test of the split.", hint)
        if split.units != "name":
            unit = keys.recording.astype(object)
            unit[used | strange] = split.unit_of(keys.recording[used | strange])
            keys = replace(keys, unit=unit.astype(np.str_))
    if stranger_class and UNKNOWN not in keys.label[used]:
        raise KnnError("No row outside the closed set is on a side of the split.", "Make the split without --ignore.")
    _check_classes(keys.label[used], label)
    half, by_label = np.full(len(used), -1, dtype=np.int8), None
    if strange.any():
        half[strange], by_label = cross_validation.halves(keys.only(strange), seed)
    rows, own = keys.rows, keys.only(used)
    classes, codes = np.unique(own.label, return_inverse=True)
    column = np.maximum(own.spread(codes.astype(np.int32)), 0)
    missing = tuple(one for one in (*ignore, *strangers) if one not in found)
    chosen = Rows(classes, column, own, keys.spread(half), keys.spread(fold), folds)
    choosing = (truth if label == "name" else keys.recording)[half == 0]
    return _Chosen(chosen, int(rows[left_out].sum()), missing, absent, by_label, choosing)


def _keys(source: Source, label: str, split: Split | None, units: str) -> Keys:
    """Of all rows; `unit` as `units` says, whatever the split's are."""
    truth = source.column(label)
    if label == "name":
        if split is not None or units != "name":
            raise KnnError("Recordings as classes cannot be kept whole.", "Choose another label level (--label).")
        # When every recording is a class of its own, segments are what can be kept apart.
        numbers = np.arange(len(source)).astype(f"<U{len(str(len(source)))}")
        order = np.argsort(numbers)
        codes = np.empty(len(numbers), dtype=np.int32)
        codes[order] = np.arange(len(numbers))
        return Keys.of(Column(codes, numbers[order]), None, truth)
    keys = Keys.of(source.column("name"), None if units == "name" else source.column(units), truth)
    if keys.unit is None:
        return keys
    return replace(keys, unit=split_files.whole_units(keys.unit, keys.recording, units))


def _check_classes(truth: Texts, label: str) -> None:
    classes = np.unique(truth).tolist()
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        hint = f"Levels: {', '.join(LABEL_LEVELS)}; `knn info` shows what a store holds."
        raise KnnError(f"Training needs two labels or more at the level {label}, there is {found}.", hint)


def _groups_of(groups: Mapping[str, str], classes: Texts) -> dict[str, str]:
    whole = {UNKNOWN: UNKNOWN, **groups}
    if missing := [one for one in classes.tolist() if one not in whole]:
        raise KnnError(f"The label {missing[0]!r} is in no group.", "Give every label one, or leave it out (--ignore).")
    return {one: str(whole[one]) for one in classes.tolist()}


def _counts(rows: Rows, parts: Sequence[Part]) -> dict[str, tuple[int, int]]:
    each = rows.keys.rows
    sides = [np.any([getattr(part, side) for part in parts], axis=0) for side in ("trained", "tested")]
    labels = rows.keys.label
    return {
        one: (int(each[sides[0] & (labels == one)].sum()), int(each[sides[1] & (labels == one)].sum()))
        for one in rows.classes.tolist()
    }


def _plda(source: Source, rows: Rows, model: Model, balanced: bool, fitted: Mask) -> PLDA | None:
    """None where the speakers have too few rows, or are not all speakers."""
    if UNKNOWN in rows.classes:
        return None
    statistics = model.statistics
    if balanced:
        statistics = fitting.pooled(source, rows.truth, rows.classes, fitted, model.chain)
    if statistics.rows - len(rows.classes) < statistics.dimension:
        return None
    return PLDA.fit_statistics(statistics)


def _embedder_of(fingerprint: str) -> Bundle | None:
    try:
        return bundle.find_embedder(fingerprint) if fingerprint else None
    except BundleError:
        return None  # the embeddings' maker is not here; the classifier will serve stores


def _view(embedder: Bundle | None, view: str) -> slice:
    if not view:
        return slice(None)
    views = {} if embedder is None else embedder.config.get("views", {})
    if embedder is None or view not in views:
        raise KnnError(f"The embeddings have no view {view!r}.", f"Known: {', '.join(views) or '(none)'}.")
    return embedder.view(view)


def _write(
    out: Path,
    fingerprint: str,
    embedder: Bundle | None,
    model: Model,
    calibration: Calibration,
    meta: dict[str, object],
    noted: dict[str, list[str]],
    counts: dict[str, tuple[int, int]],
    force: bool,
    parts: dict[str, Any],
) -> Bundle:
    config: dict[str, object] = {
        "name": out.name,
        "kind": "classifier",
        "embedder": fingerprint,
        "labels": list(counts),
        "training": meta,
    }
    weights = None
    if embedder is not None:
        weights = embedder.folder / bundle.WEIGHTS
        config["embedder_name"] = embedder.config.get("embedder_name", embedder.name)
        carried = ("audio", "encoder", "pooling", "head", "views")
        config |= {key: embedder.config[key] for key in carried if key in embedder.config}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / bundle.CLASSIFIER
        write_classifier(path, CalibratedClassifier(model.classifier, calibration, {**meta, **noted}, **parts))
        card = _card(out.name, fingerprint, meta, counts, parts["open_set"], model.chain.spec)
        return bundle.write(out, config, weights=weights, classifier=path, card=card, force=force)


def _card(
    name: str,
    fingerprint: str,
    meta: dict[str, object],
    counts: dict[str, tuple[int, int]],
    opened: OpenSetThreshold | None,
    chain: str,
) -> str:
    held, drawn = meta["held_out"], meta.get("split")
    assert isinstance(held, dict)
    if isinstance(drawn, dict):
        how = f"a split of the kind {drawn['kind']}, seed {drawn['seed']}"
    else:
        how = f"{float(str(meta['fraction'])):.0%} of each label, seed {meta['seed']}"
    more = f" Before it: {chain}." if chain else ""
    groups = f", groups {float(str(meta['group_accuracy'])):.1%}" if "group_accuracy" in meta else ""
    if opened is not None:
        more += (
            f" Rows below the threshold {opened.threshold:.3f} are unknown: {opened.false_reject:.1%} of "
            f"{opened.known} held-out rows"
        )
        more += (
            f", and all but {opened.false_accept:.1%} of {opened.unknown} of labels outside the closed set; those that "
            f"chose the threshold are of other {meta['strangers_apart']}."
            if opened.unknown
            else "."
        )
    after = "The classifier in this bundle was then fitted on all rows."
    if not meta["refitted"]:
        after = "The classifier in this bundle is that one: it was not fitted on the held-out rows."
    table = "\n".join(f"| {label} | {fitted} | {kept} |" for label, (fitted, kept) in counts.items())
    return (
        f"# {name}\n\nGaussian linear classifier of {len(counts)} labels ({meta['label']}) on embeddings of "
        f"{fingerprint or 'an unknown model'}.{more}\n\n"
        f"On held-out {meta['units']} ({how}): accuracy {held['accuracy']:.1%}{groups}, "
        f"Cprimary {held['cprimary']:.3f} (minimum {held['min_cprimary']:.3f}), Cllr {held['cllr']:.3f} bits. "
        f"{after}\n\n"
        f"| label | rows fitted | rows held out |\n|---|---|---|\n{table}\n\n"
        "Held-out recordings of speakers, rooms and microphones that training also heard flatter the figures: the\n"
        "classifier may know the channel. Measure on recordings from elsewhere before trusting it.\n"
    )
