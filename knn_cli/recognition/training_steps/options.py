"""How a classifier is trained: the options of `train_classifier`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from knn_cli.core.errors import KnnError
from knn_cli.core.values import LABEL_LEVELS
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
        Level of the classes: group, subgroup, speaker or name. At the level speaker the bundle gets a PLDA, where
        there are rows enough for one.
    ignore : sequence of str
        Labels to leave out.
    balanced : bool
        Average the within-class covariance over classes instead of pooling it over rows.
    view : str
        Part of the embedding to use, as the embedder's bundle names it; "" is all of it.
    transforms : str
        Steps before the classifier, as `parse_transforms` reads them: "center,whiten,lda:14,length". They are
        learnt anew for each training set.
    calibration : {"affine", "temperature", "none"}
        Scale and offsets, scale alone, or neither.
    duration_aware : bool
        Let the scale of the calibration depend on the length of a row.
    priors : "empirical", mapping or None
        How likely the labels are, kept with the classifier. None: equal. Scores and figures suppose equal priors.
    groups : mapping, optional
        Label -> group, for all labels (others are passed over); kept in the bundle.
    out_of_set : sequence of str
        Labels outside the closed set. One half of the labels (of a single label: of its recordings) chooses the
        threshold of the open set, the other half reports on it. Those on a split's side test do neither; those in a
        fold choose for the other folds and report on their own.
    out_of_set_class : bool
        Train them as the class "unknown" instead.
    false_reject : float, optional
        Share of known rows, in [0, 1), that the threshold may lose; None: equal error.
    fraction : float, optional
        Share of each class's units to hold out for the figures; `HELD_OUT_FRACTION` where neither it nor a split is
        given.
    units : str, optional
        Level that neither the held-out rows nor the calibration folds cut; recordings (name), or what the split says.
    refit : bool, optional
        Fit the bundle to the held-out rows too, once they have been measured on. None: unless a split has a side
        "test", which is there to test the bundle on.
    seed : int
        Of everything that is drawn.

    Raises
    ------
    KnnError
        An option is unknown, or contradicts another.
    """

    label: str = "subgroup"
    ignore: Sequence[str] = ()
    balanced: bool = False
    view: str = ""
    transforms: str = ""
    calibration: CalibrationKind = "affine"
    duration_aware: bool = False
    priors: Literal["empirical"] | Mapping[str, float] | None = None
    groups: Mapping[str, str] | None = None
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
                "What is not calibrated cannot depend on the length of a row.", "Train without `duration_aware`."
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
        check_false_reject(self.false_reject)
        check_seed(self.seed)

    def check_split(self, split: Split | None) -> None:
        """Refuse options that contradict a split (KnnError)."""
        if split is None:
            return
        if self.fraction is not None:
            raise KnnError("The split says what is held out.", "Give `split` or `fraction`, not both.")
        if self.units is not None:
            kept = _PLURAL[split.units]
            raise KnnError(f"The split says what is kept apart: {kept}.", "Give `split` or `units`, not both.")
        if self.refit is False and split.has_folds:
            raise KnnError(
                "A split into folds has no side to fit the model on.", "Let the model be fitted on all rows."
            )

    def refits(self, split: Split | None) -> bool:
        """Whether the bundle is fitted to the held-out rows too."""
        return (split is None or split.has_folds) if self.refit is None else self.refit

    def unit_word(self, split: Split | None) -> str:
        """What the held-out rows do not share with the others, in the plural."""
        if self.label == "name":
            return "segments"
        return _PLURAL[(self.units or "name") if split is None else split.units]
