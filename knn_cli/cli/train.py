"""`knn split` and `knn train`: recordings that are kept apart, and classifiers of languages, dialects and speakers."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from knn_cli.cli.console import console, end_at_once_among_several
from knn_cli.cli.options import (
    BatchOption,
    Device,
    DeviceOption,
    ForceOption,
    JsonOption,
    Level,
    QuietOption,
    VadOption,
    VerboseOption,
    given,
    parse_priors,
)
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from knn_cli.recognition.train_classifier import Training


class Calibrating(str, Enum):
    affine = "affine"
    temperature = "temperature"
    none = "none"


class SplitKind(str, Enum):
    held_out = "held-out"
    folds = "folds"
    leave_one_out = "leave-one-out"
    quartiles = "quartiles"


class Side(str, Enum):
    train = "train"
    test = "test"


# Options of `knn split` that not all kinds look at: the kinds that do.
_OF_KINDS = {
    "held_out": ("--held-out", {SplitKind.held_out}),
    "count": ("--folds", {SplitKind.folds}),
    "number": ("--number", {SplitKind.quartiles}),
    "side": ("--side", {SplitKind.quartiles}),
    "units": ("--units", {SplitKind.held_out, SplitKind.folds, SplitKind.leave_one_out}),
    "seed": ("--seed", {SplitKind.held_out, SplitKind.folds, SplitKind.quartiles}),
}


def split(
    ctx: typer.Context,
    src: Annotated[Path, typer.Argument(help="Store of sound or embeddings.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Table (.tsv) to write.")],
    kind: Annotated[
        SplitKind, typer.Option("--kind", help="One held-out side, folds, each unit a fold, or by length.")
    ] = SplitKind.held_out,
    label: Annotated[Level, typer.Option("--label", help="What the classes are.")] = Level.subgroup,
    units: Annotated[Level, typer.Option("--units", help="What is never cut; name: recordings.")] = Level.name,
    held_out: Annotated[float, typer.Option("--held-out", help="Share of each class's units on the test side.")] = 0.2,
    count: Annotated[int, typer.Option("--folds", help="Folds of --kind folds.")] = 5,
    number: Annotated[
        int | None, typer.Option("--number", help="Recordings a class of --kind quartiles, of middling length.")
    ] = None,
    side: Annotated[Side, typer.Option("--side", help="Where those recordings go.")] = Side.train,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draw.")] = 0,
    ignore: Annotated[str, typer.Option("--ignore", help="Labels to leave out, such as 5,7.")] = "",
    as_json: JsonOption = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Which recordings are held out: drawn once, written to a file that `knn train` and `classify` take."""
    from knn_cli.cli import output, pipeline
    from knn_cli.recognition import split_files
    from knn_cli.store import hdf5

    said = given(ctx)
    for one, (option, kinds) in _OF_KINDS.items():
        if kind not in kinds and one in said:
            which = " or ".join(sorted(wanted.value for wanted in kinds))
            raise KnnError(f"{option} is of --kind {which}; {kind.value} has no use for it.", "Leave it out.")
    pipeline.check_text_output(out, [src])
    if out.exists() and not force:
        raise KnnError(f"{out} exists.", "Use --force to replace it.")
    rows = hdf5.labels(src)
    made = split_files.make(
        rows,
        label=label.value,
        units=units.value,
        kind=kind.value,
        fraction=held_out,
        count=count,
        number=number,
        side=side.value,
        seed=seed,
        ignore=_listed(ignore),
    )
    split_files.write(out, made)
    output.split_counts(sys.stdout, split_files.counts(made, rows), as_json)
    console.note(f"{out}: {len(made.lines)} lines, {made.kind} by {made.units}, seed {made.seed}.")


def train(
    ctx: typer.Context,
    src: Annotated[
        Path,
        typer.Argument(
            help="Embedding store, or audio store (embedded first); a folder of audio or .tar for --recipe."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the model to write.")],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="TOML file: train a network on sound (docs/training.md).")
    ] = None,
    label: Annotated[Level, typer.Option("--label", help="What the classes are.")] = Level.subgroup,
    ignore: Annotated[str, typer.Option("--ignore", help="Labels to leave out, such as 5,7.")] = "",
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Average the covariance over classes, not rows.")
    ] = False,
    transforms: Annotated[
        str, typer.Option("--transforms", help="Steps first, such as center,whiten,lda:14,length.")
    ] = "",
    calibration: Annotated[
        Calibrating, typer.Option("--calibration", help="On held-out recordings.")
    ] = Calibrating.affine,
    duration_aware: Annotated[
        bool, typer.Option("--duration-aware", help="Let the calibration depend on how long a row is.")
    ] = False,
    priors: Annotated[
        str, typer.Option("--priors", help="empirical, or cs=3,de=1 (others 1); kept with the model.")
    ] = "",
    groups: Annotated[
        Path | None, typer.Option("--groups", help="Table of label and group, such as dialect and region.")
    ] = None,
    strangers: Annotated[
        str, typer.Option("--out-of-set", help="Labels outside the closed set, which choose the threshold of unknown.")
    ] = "",
    stranger_class: Annotated[
        bool, typer.Option("--out-of-set-class", help="Learn them as the class unknown instead.")
    ] = False,
    false_reject: Annotated[
        float | None,
        typer.Option("--false-reject", help="Share of known rows it may lose; else equal error."),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option("--held-out", help="Share of recordings kept for the figures.", show_default="0.2"),
    ] = None,
    split: Annotated[
        Path | None, typer.Option("--split", help="What to hold out instead: a file of `knn split`.")
    ] = None,
    units: Annotated[
        Level | None,
        typer.Option("--units", help="What held-out rows never share with others.", show_default="name"),
    ] = None,
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit", help="Fit on all rows at last; by default unless the split has a test side."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all that is drawn.")] = 0,
    view: Annotated[str, typer.Option("--view", help="Part of the embedding, such as language; default all.")] = "",
    model: Annotated[str | None, typer.Option("--model", help="Model that embeds an audio store.")] = None,
    vad: VadOption = True,
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    force: ForceOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a classifier of languages, dialects or speakers on a store, minutes on a CPU; or a network by a recipe."""
    if recipe is not None:
        return _train_network(src, out, recipe, given(ctx), device=device.value, use_vad=vad, force=force)
    from knn_cli.core.output_paths import check_output
    from knn_cli.embedding.stores import load_or_embed
    from knn_cli.networks import bundle
    from knn_cli.recognition import split_files, train_classifier
    from knn_cli.store import labels

    bundle.check_free(out, force)
    check_output(out, [src])
    made_split = split_files.read(split) if split is not None else None
    weights = _priors(priors)
    grouped = labels.read_groups(groups) if groups is not None else None
    with console.progress("Embedding") as progress:
        rows = load_or_embed(src, model, device.value, batch_seconds, label=label.value, use_vad=vad, progress=progress)
    done = train_classifier.train(
        rows,
        out,
        label=label.value,
        ignore=_listed(ignore),
        balanced=balanced,
        fraction=held_out,
        seed=seed,
        view=view,
        force=force,
        split=made_split,
        units=None if units is None else units.value,
        transforms=transforms,
        calibration=calibration.value,
        duration_aware=duration_aware,
        priors=weights,
        groups=grouped,
        strangers=_listed(strangers),
        stranger_class=stranger_class,
        false_reject=false_reject,
        refit=refit,
    )
    if model is None:
        console.note(f"Embeddings of {done.bundle.fingerprint or 'an unknown model'}.")
    if done.not_found:
        console.note(f"No row has the label {', '.join(done.not_found)}.")
    if done.not_in_store:
        console.note(f"{len(done.not_in_store)} recordings of the split are not here, such as {done.not_in_store[0]}.")
    if done.split_label:
        console.note(f"The split was drawn by {done.split_label}, the labels here are of the level {label.value}.")
    if not done.bundle.has_network:
        console.note("The model that made these embeddings is not here, so the new one classifies embeddings only.")
    if not done.refitted:
        console.note("The model is fitted on the side train alone, so that the side test can try it.")
    if done.left_out:
        console.note(f"Left out {done.left_out} rows that are ignored, on no side, or have no {label.value}.")
    if not done.calibrated and calibration is not Calibrating.none:
        console.note("A class has too few recordings to calibrate the measured classifier; its costs are uncalibrated.")
    for name, text in _lines(done, out):
        typer.echo(f"{name:<12}{text}")


def _lines(done: Training, out: Path) -> Iterator[tuple[str, str]]:
    held = sum(kept for _, kept in done.counts.values())
    yield "labels", f"{len(done.counts)}: {', '.join(done.counts)}"
    yield "held out", f"{held} rows, {done.units} disjoint from the {sum(n for n, _ in done.counts.values())} fitted"
    yield "accuracy", f"{done.accuracy:.1%}"
    if done.group_accuracy is not None:
        yield "of groups", f"{done.group_accuracy:.1%}"
    yield "Cprimary", f"{done.cprimary:.3f} (minimum {done.min_cprimary:.3f})"
    yield "Cllr", f"{done.cllr:.3f} bits"
    if done.open_set is not None:
        rates = f"false reject {done.open_set.false_reject:.1%}, false accept {done.open_set.false_accept:.1%}"
        yield "open set", f"detection LLR from {done.open_set.threshold:.2f} on: {rates}"
        if done.apart:
            yield "", f"(false accept: of {done.open_set.unknown} rows of other {done.apart} than chose the threshold)"
    if done.plda:
        yield "trials", "with a PLDA"
    yield "model", str(out)


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _priors(text: str) -> Literal["empirical"] | dict[str, float] | None:
    return "empirical" if text == "empirical" else parse_priors(text)


# Options of classifiers on embeddings; of networks the recipe decides.
_DECIDED_BY_RECIPE = {"label", "ignore", "balanced", "held_out", "seed", "view", "model", "batch_seconds"}


def _train_network(src: Path, out: Path, recipe: Path, said: set[str], **options: Any) -> None:
    from knn_cli.training import recipe_reader, trainer

    if clash := sorted(_DECIDED_BY_RECIPE & said):
        option = "--" + clash[0].replace("_", "-")
        raise KnnError(f"{option} does not go with --recipe.", "Set it in the recipe, where it has a key.")
    asked = recipe_reader.read(recipe)
    with console.progress("Training") as progress:
        done = trainer.train(src, out, asked, progress=progress, report=lambda one: console.note(one.line), **options)
    if done.finished is not None:  # only the main process of a training has the word
        console.note(done.finished.note)
        typer.echo("\n".join(done.lines))
    end_at_once_among_several()
