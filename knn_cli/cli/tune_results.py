"""What `knn tune` writes: the table that it chose from, and what it says of the choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from knn_cli.cli.options import counted
from knn_cli.core.tables import tsv_field

if TYPE_CHECKING:
    from knn_cli.cli.tunable_settings import TunableSettings
    from knn_cli.evaluation.diarization_error import DiarizationError
    from knn_cli.evaluation.setting_selection import Selection

FEW_RECORDINGS, FEW_MINUTES = 10, 30.0  # under which a gain is hardly known
COLUMNS = ("setting", "kept", "DER", "missed", "false_alarm", "confusion")  # before one for each fold
OTHER_FOLDS = "(chosen on the other folds)"

Errors = Sequence[Sequence["DiarizationError"]]  # of each setting, one for each recording


def table_lines(
    errors: Errors, folds: Sequence[int], settings: Sequence[TunableSettings], selection: Selection
) -> Iterator[str]:
    """Yield the lines of the table: every setting with its error rate, the parts of it, and the rate of each fold.

    The last line has, for each fold, the rate of the setting that is best on all others.
    """
    numbers = range(max(folds) + 1)
    yield "\t".join([*COLUMNS, *(f"fold_{one + 1}" for one in numbers)]) + "\n"
    for number, (setting, row) in enumerate(zip(settings, errors, strict=True)):
        kept = "yes" if number == selection.chosen else ""
        yield "\t".join([tsv_field(setting.name), kept, *_rates(row, folds)]) + "\n"
    held_out = [errors[selection.by_fold[one]][place] for place, one in enumerate(folds)]
    yield "\t".join([OTHER_FOLDS, "", *_rates(held_out, folds)]) + "\n"


def _rates(row: Sequence[DiarizationError], folds: Sequence[int]) -> list[str]:
    """Percents: the error rate, its parts, and the rates of the folds."""
    error = sum(row)
    assert not isinstance(error, int)  # there are recordings
    total = error.total or 1.0
    by_fold = [sum(each for each, one in zip(row, folds, strict=True) if one == number) for number in sorted({*folds})]
    shares = [error.rate, error.missed / total, error.false_alarm / total, error.confusion / total]
    return [f"{100 * share:.2f}" for share in [*shares, *(each.rate for each in by_fold if not isinstance(each, int))]]


def summary_lines(selection: Selection, settings: Sequence[TunableSettings], recordings: int) -> Iterator[str]:
    """Yield what is kept, and how sure the gain is."""
    best, kept = settings[selection.best], settings[selection.chosen]
    yield f"tried       {counted(len(settings), 'setting')} on {counted(recordings, 'recording')}"
    yield f"kept        {kept.name}"
    rates = f"{selection.rate:.2%} with settings chosen on other folds, {selection.default_rate:.2%} by default"
    yield f"held out    DER {rates}"
    sure = "beyond chance" if selection.chosen == selection.best != 0 else "not beyond chance"
    interval = f"95 % {100 * selection.gain_low:.2f} to {100 * selection.gain_high:.2f}"
    yield f"gain        {100 * selection.gain:.2f} points ({interval}), {sure}"
    if selection.best != selection.chosen:
        yield f"best        {best.name} (its lead may be chance, so the default stays)"


def few_note(row: Sequence[DiarizationError]) -> str:
    """What to say where there are few recordings or little speech; "" where there is enough."""
    minutes = sum(error.total for error in row) / 60
    if len(row) >= FEW_RECORDINGS and minutes >= FEW_MINUTES:
        return ""
    return (
        f"{counted(len(row), 'recording')} with {minutes:.1f} minutes of reference speech are few: settings fitted to "
        f"so little often lose on others. Take {FEW_RECORDINGS} recordings and {FEW_MINUTES:.0f} minutes at least."
    )
