"""`knn verify`: score lists of speaker trials by cosine or PLDA, and decide on them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from knn_cli.cli.console import console
from knn_cli.cli.limits import MOST_COUNT, within
from knn_cli.cli.options import (
    BackupOption,
    ForceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    TextOption,
    VerboseOption,
    check_text_output,
    epilog,
    refuse_without,
    valued,
)
from knn_cli.cli.own_outputs import check_own_outputs
from knn_cli.core.errors import KnnError

SCORING = "Scoring"


class TrialScoring(str, Enum):
    """How a trial is scored."""

    auto = "auto"
    cosine = "cosine"
    plda = "plda"


EPILOG = epilog(
    "knn verify trials.txt embeddings.h5 --model speakers -o scores.tsv",
    "knn verify trials.txt embeddings.h5 --speakers mine.h5 --json",
    "knn verify trials.txt embeddings.h5 --cohort others.h5 --as-norm 200",
)


def verify(
    ctx: typer.Context,
    trials: Annotated[
        Path, typer.Argument(metavar="TRIALS", help="List of pairs of recordings, with or without target/nontarget.")
    ],
    sources: Annotated[
        list[Path], typer.Argument(metavar="STORE", help="Embedding stores that hold those recordings.")
    ],
    out: TextOption = None,
    as_json: JsonOption = False,
    force: ForceOption = False,
    backup: BackupOption = False,
    model: ModelOption = None,
    scorer: Annotated[
        TrialScoring,
        valued(
            "--scorer",
            metavar="SCORER",
            panel=SCORING,
            help="Score by cosine, plda, or auto: by PLDA where the model has one.",
        ),
    ] = TrialScoring.auto,
    cohort: Annotated[
        Path | None,
        valued(
            "--cohort",
            metavar="STORE",
            panel=SCORING,
            help="Subtract the mean of these embeddings of other speakers.",
        ),
    ] = None,
    as_norm: Annotated[
        int | None,
        valued(
            "--as-norm",
            metavar="N",
            callback=within(1, MOST_COUNT),
            panel=SCORING,
            help="Normalise by the N best scores against the cohort.",
        ),
    ] = None,
    speakers: Annotated[
        Path | None,
        valued(
            "--speakers",
            metavar="STORE",
            panel=SCORING,
            help="Calibrate the threshold on these embeddings of speakers of your own.",
        ),
    ] = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Score speaker trials: is it the same speaker in both recordings?

    Scores are written to stdout as a table, and where the model says what its cosines mean, the log-likelihood ratio,
    the probability of the same speaker at even odds, and the verdict. If the list tells target from nontarget trials,
    EER, minDCF and Cllr are written to stderr. PLDA needs a model trained with `knn train --level speaker`.
    """
    from knn_cli.cli import output, result_files
    from knn_cli.recognition.trials import read_trials, write_trial_scores
    from knn_cli.recognition.verify_trials import verify_trials

    refuse_without(ctx, {"as_norm": ("cohort",), "force": ("out",), "backup": ("out",)})
    if scorer is TrialScoring.plda and model is None:
        raise KnnError("PLDA needs a model.", "Give --model with a model of `knn train --level speaker`.")
    check_text_output(out, [*sources, trials, *(path for path in (cohort, speakers) if path)])
    task = check_own_outputs(ctx, out)
    form = result_files.form_of(out, as_json)
    pairs = read_trials(trials)
    result = verify_trials(
        sources, pairs, model, scorer=scorer.value, cohort=cohort, as_norm=as_norm, speakers=speakers
    )
    with result_files.writing(out, form, task) as stream:
        if result_files.is_json(form):
            output.trials(stream, pairs, result)
        else:
            write_trial_scores(pairs, result.scores, stream, result.decision)
    console.note(f"{len(pairs)} trials scored by {result.scorer}{'' if as_norm is None else ', normalised'}.")
    if result.decision is None:
        console.note(f"No verdicts: {result.undecided}.")
    else:
        same = sum(map(result.decision.is_same, result.scores.tolist()))
        console.note(
            f"The same speaker from a cosine of {result.decision.threshold:.2f}, {result.decision.source}: "
            f"{same} of {len(pairs)}."
        )
    if result.metrics is not None:
        for name, text in output.trial_lines(result.metrics):
            console.note(f"{name:<14}{text}")
