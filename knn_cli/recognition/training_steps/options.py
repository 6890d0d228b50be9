"""How a classifier is trained: the options of `train_classifier`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from knn_cli.core.errors import KnnError
from knn_cli.core.values import LABEL_LEVELS
from knn_cli.recognition.glc import Shrinkage
from knn_cli.recognition.open_set_threshold import check_false_reject
from knn_cli.recognition.split_file import Split
from knn_cli.recognition.splitters import check_seed
from knn_cli.recognition.training_steps.held_out_scoring import CalibrationKind

HELD_OUT_FRACTION = 0.2  # of each class's units, where neither a split nor a fraction is given

_PLURAL = {"name": "recordings", "speaker": "speakers", "subgroup": "subgroups", "group": "groups"}


@dataclass(frozen=True)
class ClassifierOptions:
    """How a classifier is trained.

    Parameters
    ----------
    label : str
        Level of the classes: group, subgroup, speaker or name. At the level speaker a PLDA is added to the bundle if
        there are enough rows.
    ignore : sequence of str
        Labels to leave out.
    balanced : bool
        Average the within-class covariance over classes instead of pooling it over rows.
    shrinkage : float or "auto"
        How much of the covariance is replaced by the scaled identity: 0 for none, as the mother project's classifier,
        up to 1; "auto" chooses it by `covariance.oas_shrinkage`.
    view : str
        Part of the embedding to use, as the embedder's bundle names it; "" is the whole embedding.
    transforms : str
        Steps before the classifier in the notation of `parse_transforms`, such as "center,whiten,lda:14,length". They
        are learnt separately for each training set.
    calibration : {"affine", "temperature", "none"}
        Scale and offsets, scale alone, or neither.
    duration_aware : bool
        Let the scale of the calibration depend on the length of a row.
    priors : "empirical", mapping or None
        Prior probabilities of the labels, stored with the classifier; None: equal. Scores and metrics assume equal
        priors.
    groups : mapping, optional
        Label -> group for all labels (further labels are ignored), stored in the bundle.
    names : mapping of str to str
        Names of labels and groups that are codes, stored in the bundle.
    out_of_set : sequence of str
        Labels outside the closed set. Half of the labels (of the recordings, if there is a single label) choose the
        open-set threshold, whose error rate is measured on the other half. Rows on a split's side test are not used;
        rows in a fold choose the threshold of the other folds and measure that of their fold.
    out_of_set_class : bool
        Train them as the class "unknown" instead.
    false_reject : float, optional
        Share of known rows, in [0, 1), that the threshold may reject; None: equal error rates.
    fraction : float, optional
        Share of each class's units to hold out for the metrics; `HELD_OUT_FRACTION` if neither a fraction nor a split
        is given.
    units : str, optional
        Level whose units are never divided between training and held-out rows or between calibration folds; by default
        recordings (name), or the units of the split.
    refit : bool, optional
        Fit the classifier to the held-out rows too after the metrics have been computed. None: yes, unless a split
        has a side "test", which is reserved for testing the bundle.
    seed : int
        Seed of all random draws.

    Raises
    ------
    KnnError
        An option is unknown, or contradicts another.
    """

    label: str = "subgroup"
    ignore: Sequence[str] = ()
    balanced: bool = False
    shrinkage: Shrinkage = "auto"
    view: str = ""
    transforms: str = ""
    calibration: CalibrationKind = "affine"
    duration_aware: bool = False
    priors: Literal["empirical"] | Mapping[str, float] | None = None
    groups: Mapping[str, str] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    out_of_set: Sequence[str] = ()
    out_of_set_class: bool = False
    false_reject: float | None = None
    fraction: float | None = None
    units: str | None = None
    refit: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for level in (self.label, self.units or "name"):
            if level not in LABEL_LEVELS:
                raise KnnError(f"There is no label level {level!r}.", f"Known: {', '.join(LABEL_LEVELS)}.")
        if self.calibration not in {"affine", "temperature", "none"}:
            raise KnnError(f"There is no calibration {self.calibration!r}.", "Known: affine, temperature, none.")
        if self.calibration == "none" and self.duration_aware:
            raise KnnError(
                "Scores that are not calibrated cannot depend on the length of a row.",
                "Train without `duration_aware`.",
            )
        if self.out_of_set_class and not self.out_of_set:
            raise KnnError(
                "The class of labels outside the closed set needs such labels.", "Name them with `out_of_set`."
            )
        if self.out_of_set_class and self.false_reject is not None:
            raise KnnError(
                "A class of labels outside the closed set has no threshold.",
                "Give `out_of_set_class` or `false_reject`, not both.",
            )
        if self.shrinkage != "auto" and not 0 <= self.shrinkage <= 1:
            raise KnnError(f"The shrinkage {self.shrinkage:g} is not from 0 to 1.")
        check_false_reject(self.false_reject)
        check_seed(self.seed)

    def check_split(self, split: Split | None) -> None:
        """Refuse options that contradict a split (KnnError)."""
        if split is None:
            return
        if self.fraction is not None:
            raise KnnError(
                "The split already defines the held-out recordings.", "Give `split` or `fraction`, not both."
            )
        if self.units is not None:
            kept = _PLURAL[split.units]
            raise KnnError(f"The split already keeps {kept} disjoint.", "Give `split` or `units`, not both.")
        if self.refit is False and split.has_folds:
            raise KnnError(
                "A split into folds has no side to fit the model on.", "Let the model be fitted on all rows."
            )

    def refits(self, split: Split | None) -> bool:
        """Whether the final classifier is fitted to the held-out rows too."""
        return (split is None or split.has_folds) if self.refit is None else self.refit

    def unit_word(self, split: Split | None) -> str:
        """The unit that held-out rows and training rows do not share, as a plural noun."""
        if self.label == "name":
            return "segments"
        return _PLURAL[(self.units or "name") if split is None else split.units]


def parse_shrinkage(text: str) -> Shrinkage:
    """A text such as "none", "auto" or "0.1" as shrinkage. KnnError for others."""
    if text == "auto":
        return "auto"
    try:
        number = 0.0 if text == "none" else float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise KnnError(f"The shrinkage cannot be {text!r}.", "It is none, auto, or a number from 0 to 1.")
    return number
