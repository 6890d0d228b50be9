"""`knn train`: train classifiers of languages, dialects and speakers or, with a recipe, networks."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knn_cli.cli.console import console, end_at_once_among_several
from knn_cli.cli.label_lists import NamesOption, listed, parse_priors
from knn_cli.cli.limits import Limits
from knn_cli.cli.options import (
    LABELS,
    OUTPUT,
    BatchOption,
    ChunkOption,
    ClusterOption,
    Device,
    DeviceOption,
    ForceOption,
    HeldOutOption,
    IgnoreOption,
    Level,
    LevelOption,
    ModelOption,
    NoVadOption,
    PriorsOption,
    QuietOption,
    SeedOption,
    SetOption,
    SplitOption,
    UnitsOption,
    VerboseOption,
    epilog,
    refuse_beside,
    valued,
)
from knn_cli.cli.settings import read_settings, setting
from knn_cli.core.errors import KnnError
from knn_cli.core.visible_text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from knn_cli.recognition.train_classifier import TrainedClassifier
    from knn_cli.training.segmentation_recipe import SegmentationRecipe

CLASSIFIER = "Classifier"
MOST_NAMED = 5  # labels in a note


class CalibrationMethod(str, Enum):
    """How scores become calibrated log-likelihood ratios."""

    affine = "affine"
    temperature = "temperature"
    none = "none"


@dataclass(frozen=True)
class TrainingSettings:
    """Rarely used settings of `knn train`."""

    balanced: bool = setting(False, "average the covariance over classes, not rows")
    duration_aware: bool = setting(False, "calibrate by the length of a row")
    out_of_set_class: bool = setting(False, "train out-of-set labels as the class unknown")
    false_reject: float | None = setting(None, "share of known rows that may be called unknown", Limits(0, 1))
    refit: bool | None = setting(None, "fit on all rows in the end; not with a test side")
    view: str = setting("", "part of the embeddings, such as language")


_BESIDE_RECIPE = ("src", "out", "no_vad", "device", "force", "quiet", "verbose")

EPILOG = epilog(
    "knn train emb.h5 -o my-dialects --split split.tsv",
    "knn train emb.h5 -o speakers --level speaker",
    "knn train corpus.h5 --recipe recipe.toml -o models/mine",
    settings=TrainingSettings,
)


def train(
    ctx: typer.Context,
    src: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="Store of embeddings or sound; for a recipe also a folder of audio or .tar files."
        ),
    ],
    out: Annotated[Path, valued("-o", "--out", metavar="FOLDER", panel=OUTPUT, help="Write the model to this folder.")],
    force: ForceOption = False,
    recipe: Annotated[
        Path | None,
        valued("--recipe", metavar="FILE", panel=OUTPUT, help="Train a network with this TOML file."),
    ] = None,
    level: LevelOption = Level.subgroup,
    ignore: IgnoreOption = "",
    groups: Annotated[
        Path | None,
        valued("--groups", metavar="FILE", panel=LABELS, help="Sum probabilities by this table of regions."),
    ] = None,
    names: NamesOption = None,
    out_of_set: Annotated[
        str,
        valued("--out-of-set", metavar="LABELS", panel=LABELS, help="Choose the threshold of unknown with these."),
    ] = "",
    priors: PriorsOption = "",
    transforms: Annotated[
        str,
        valued("--transforms", metavar="STEPS", panel=CLASSIFIER, help="Transform first: center,whiten,lda:14,length."),
    ] = "",
    calibration: Annotated[
        CalibrationMethod,
        valued(
            "--calibration",
            metavar="METHOD",
            panel=CLASSIFIER,
            help="Calibrate by affine, temperature or none.",
            show_default=False,
        ),
    ] = CalibrationMethod.affine,
    shrinkage: Annotated[
        str,
        valued(
            "--shrinkage",
            metavar="SHARE",
            panel=CLASSIFIER,
            help="Shrink the covariance: auto, none (as KNN-proj), or 0 to 1.",
            show_default=False,
        ),
    ] = "auto",
    split: SplitOption = None,
    held_out: HeldOutOption = None,
    units: UnitsOption = None,
    seed: SeedOption = 0,
    no_vad: NoVadOption = False,
    model: ModelOption = None,
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    chunk: ChunkOption = None,
    cluster: ClusterOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a classifier of languages, dialects or speakers on a store.

    Its metrics on held-out rows are written to stdout. An audio store is first embedded with --model. With --recipe a
    network is trained instead.
    """
    from knn_cli.cli.workers import on_cluster
    from knn_cli.core.display_names import read_names
    from knn_cli.core.output_paths import check_output
    from knn_cli.core.tree_reduction import reduced_here
    from knn_cli.embedding.stores import load_or_embed
    from knn_cli.networks import bundle
    from knn_cli.networks.chunk_setting import parse_chunk
    from knn_cli.recognition.split_file import read_split
    from knn_cli.recognition.train_classifier import train_classifier
    from knn_cli.recognition.training_steps.embedding_source import EmbeddingSource
    from knn_cli.recognition.training_steps.options import ClassifierOptions, parse_shrinkage
    from knn_cli.store import labels
    from knn_cli.store.hdf5 import kind_of

    refuse_beside(ctx, "recipe", _BESIDE_RECIPE, "The recipe sets this, or training a network does not use it.")
    if recipe is not None:
        return _train_network(src, out, recipe, device=device.value, use_vad=not no_vad, force=force)
    tuning = read_settings(TrainingSettings, settings)
    bundle.check_free(out, force)
    check_output(out, [src])
    drawn = read_split(split) if split is not None else None
    options = ClassifierOptions(
        label=level.value,
        ignore=listed(ignore),
        balanced=tuning.balanced,
        shrinkage=parse_shrinkage(shrinkage),
        view=tuning.view,
        transforms=transforms,
        calibration=calibration.value,
        duration_aware=tuning.duration_aware,
        priors="empirical" if priors == "empirical" else parse_priors(priors),
        groups=labels.read_groups(groups) if groups is not None else None,
        names=read_names(names) if names is not None else {},
        out_of_set=listed(out_of_set),
        out_of_set_class=tuning.out_of_set_class,
        false_reject=tuning.false_reject,
        fraction=held_out,
        units=None if units is None else units.value,
        refit=tuning.refit,
        seed=seed,
    )
    options.check_split(drawn)
    if cluster is not None and kind_of(src) != "embeddings":
        raise KnnError(
            f"{src} is no store of embeddings, which is what a cluster trains on.", "Make one with `knn embed`."
        )
    with console.progress("Embedding") as progress:
        rows = load_or_embed(
            src,
            model,
            device.value,
            batch_seconds,
            chunk=parse_chunk(chunk),
            label=level.value,
            use_vad=not no_vad,
            progress=progress,
        )
    with ExitStack() as held:
        reduce = reduced_here if cluster is None else held.enter_context(on_cluster(cluster)).reduced
        source = EmbeddingSource(rows, reduce=reduce)
        result = train_classifier(source, out, options, split=drawn, force=force)
    _note_caveats(result, model, level.value, calibration)
    for name, text in _lines(result, out):
        typer.echo(visible(f"{name:<12}{text}"))


def _note_caveats(result: TrainedClassifier, model: str | None, level: str, calibration: CalibrationMethod) -> None:
    """Report caveats about the metrics on stderr."""
    if model is None:
        console.note(f"Embeddings of {result.bundle.fingerprint or 'an unknown model'}.")
    if result.not_found:
        console.note(f"No row has the label {', '.join(result.not_found)}.")
    if result.not_in_store:
        missing = result.not_in_store
        console.note(f"{len(missing)} recordings of the split are not here, such as {missing[0]}.")
    if result.split_label:
        console.note(f"The split was drawn by {result.split_label}, the labels here are of the level {level}.")
    if not result.bundle.has_network:
        console.note(
            "The model that computed these embeddings is not installed, so the new one classifies embeddings only."
        )
    if not result.refitted:
        console.note("The model is fitted on the training side alone, so that the test side can evaluate it.")
    if result.left_out:
        console.note(f"Left out {result.left_out} rows that are ignored, on no side, or have no {level}.")
    if result.few_units:
        few = [f"{label} {number}" for label, number in sorted(result.few_units.items(), key=lambda item: item[1])]
        shown = ", ".join(few[:MOST_NAMED]) + (f" and {len(few) - MOST_NAMED} more" if len(few) > MOST_NAMED else "")
        console.note(f"Fewer than ten {result.units} of a label ({shown}): figures and probabilities say little.")
    if result.separates:
        console.note(
            "All held-out rows are recognised, so nothing is known of how rare errors are; is it the voice or the "
            "channel that tells the labels apart? Scores are bounded by the number of recordings."
        )
    if not result.calibrated and calibration is not CalibrationMethod.none:
        console.note("A class has too few recordings to calibrate the measured classifier; its costs are uncalibrated.")


def _lines(result: TrainedClassifier, out: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each line of the report on stdout."""
    held_out = sum(count for _, count in result.counts.values())
    fitted = sum(count for count, _ in result.counts.values())
    yield "labels", f"{len(result.counts)}: {', '.join(result.counts)}"
    yield "held out", f"{held_out} rows, {result.units} disjoint from the {fitted} fitted"
    yield "accuracy", f"{result.accuracy:.1%}"
    if result.group_accuracy is not None:
        yield "of groups", f"{result.group_accuracy:.1%}"
    yield "Cprimary", f"{result.cprimary:.3f} (minimum {result.min_cprimary:.3f})"
    yield "Cllr", f"{result.cllr:.3f} bits"
    if (open_set := result.open_set) is not None:
        rates = f"false reject {open_set.false_reject:.1%}, false accept {open_set.false_accept:.1%}"
        yield "open set", f"detection LLR from {open_set.threshold:.2f} on: {rates}"
        if result.disjoint_by:
            yield (
                "",
                f"(false accept: of {open_set.unknown} rows of other {result.disjoint_by} than chose the threshold)",
            )
    if result.plda:
        yield "trials", "with a PLDA"
    yield "model", str(out)


def _train_network(src: Path, out: Path, recipe: Path, **options: Any) -> None:
    from knn_cli.training import recipe_reader, trainer
    from knn_cli.training.segmentation_recipe import SegmentationRecipe

    checked = recipe_reader.read(recipe)
    if isinstance(checked, SegmentationRecipe):
        return _train_segmentation(src, out, checked, **options)
    with console.progress("Training") as progress:
        result = trainer.train(
            src, out, checked, progress=progress, report=lambda epoch: console.note(epoch.line), **options
        )
    if result.finished is not None:  # only in the main process of a distributed training
        console.note(result.finished.note)
        typer.echo("\n".join(map(visible, result.lines)))
    end_at_once_among_several()


def _train_segmentation(src: Path, out: Path, recipe: SegmentationRecipe, use_vad: bool, **options: Any) -> None:
    from knn_cli.training.segmentation_trainer import train_segmentation

    if not use_vad:
        raise KnnError("--no-vad has no effect on a segmentation network.", "Leave it out.")
    with console.progress("Training") as progress:
        result = train_segmentation(
            src, out, recipe, progress=progress, report=lambda epoch: console.note(epoch.line), **options
        )
    if result.model is not None:
        typer.echo("\n".join(map(visible, result.lines)))
    end_at_once_among_several()
