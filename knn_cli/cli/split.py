"""`knn split`: recordings to hold out, chosen once and written to a file."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from knn_cli.cli.console import console
from knn_cli.cli.label_lists import listed
from knn_cli.cli.limits import MOST_COUNT, within
from knn_cli.cli.options import (
    OUTPUT,
    SAMPLING,
    ForceOption,
    HeldOutOption,
    IgnoreOption,
    JsonOption,
    Level,
    LevelOption,
    QuietOption,
    SeedOption,
    UnitsOption,
    VerboseOption,
    check_text_output,
    epilog,
    refuse_unless,
    valued,
)
from knn_cli.core.errors import KnnError


class SplitKind(str, Enum):
    """How recordings are divided."""

    held_out = "held-out"
    folds = "folds"
    leave_one_out = "leave-one-out"
    quartiles = "quartiles"


class Side(str, Enum):
    """The sides of a split."""

    train = "train"
    test = "test"


# Options of some kinds of split only -> those kinds.
_KINDS = {
    "held_out": {"held-out"},
    "folds": {"folds"},
    "number": {"quartiles"},
    "side": {"quartiles"},
    "units": {"held-out", "folds", "leave-one-out"},
    "seed": {"held-out", "folds", "quartiles"},
}

EPILOG = epilog(
    "knn split emb.h5 -o split.tsv --units speaker",
    "knn split emb.h5 -o folds.tsv --kind folds --folds 10",
    "knn split emb.h5 -o split.tsv --kind quartiles --number 12",
)


def split(
    ctx: typer.Context,
    src: Annotated[Path, typer.Argument(metavar="STORE", help="Store of sound or embeddings.")],
    out: Annotated[Path, valued("-o", "--out", metavar="FILE", panel=OUTPUT, help="Table (.tsv) to write.")],
    as_json: JsonOption = False,
    force: ForceOption = False,
    level: LevelOption = Level.subgroup,
    ignore: IgnoreOption = "",
    kind: Annotated[
        SplitKind,
        valued(
            "--kind",
            metavar="KIND",
            panel=SAMPLING,
            help="Draw held-out (one test side), folds, leave-one-out, or quartiles (by length).",
        ),
    ] = SplitKind.held_out,
    units: UnitsOption = None,
    held_out: HeldOutOption = None,
    folds: Annotated[
        int,
        valued("--folds", metavar="N", callback=within(2, MOST_COUNT), panel=SAMPLING, help="Draw this many folds."),
    ] = 5,
    number: Annotated[
        int | None,
        valued(
            "--number",
            metavar="N",
            callback=within(1, MOST_COUNT),
            panel=SAMPLING,
            help="Take this many recordings per class, of medium length.",
        ),
    ] = None,
    side: Annotated[
        Side, valued("--side", metavar="SIDE", panel=SAMPLING, help="Put these recordings on train or test.")
    ] = Side.train,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Choose at random which recordings are held out.

    The split is written to a text file for `knn train --split` and `knn evaluate --split`. A table with the rows,
    recordings and seconds of each class on each side is written to stdout.
    """
    from knn_cli.cli import output
    from knn_cli.recognition.make_split import SplitOptions, count_split, make_split
    from knn_cli.recognition.split_file import write_split
    from knn_cli.store import hdf5

    refuse_unless(ctx, "kind", _KINDS)
    check_text_output(out, [src])
    if out.exists() and not force:
        raise KnnError(f"{out} exists already.", "Replace it with --force, or name another file.")
    options = SplitOptions(
        label=level.value,
        units="name" if units is None else units.value,
        kind=kind.value,
        fraction=0.2 if held_out is None else held_out,
        count=folds,
        number=number,
        side=side.value,
        seed=seed,
        ignore=listed(ignore),
    )
    with hdf5.Store(src) as rows:
        seconds = rows.seconds()
        if kind is SplitKind.quartiles and bool((seconds != seconds).any()):  # NaN
            console.note("Rows have no start and end, so a recording counts as long as the number of its rows.")
        drawn = make_split(rows, options)
        write_split(out, drawn)
        output.split_counts(sys.stdout, count_split(drawn, rows), as_json)
    console.note(f"{out}: {len(drawn.lines)} lines, {drawn.kind} by {drawn.units}, seed {drawn.seed}.")
