"""What a table of error rates says about recordings that it does not hold: halves, leave-one-out and intervals.

A table maps settings to the rates of their recordings, `{"threshold 0.7": {"dev00": 0.31, "trn00": 0.46}, ...}`; each
setting has the same recordings. A setting that is better on a single recording is no better setting: the rate of the
setting chosen on one half is reported on the other, and leave-one-out chooses anew for each recording, without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Table = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` recordings with its interval, and the lowest and highest mean without one of them."""

    mean: float
    low: float
    high: float
    least: float
    most: float
    count: int

    def __str__(self) -> str:
        """The mean and its interval in percent."""
        return f"{100 * self.mean:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Choice:
    """A setting chosen as the best of a table, where it was chosen, and where it was not."""

    setting: str
    chosen: Estimate
    reported: Estimate


@dataclass(frozen=True)
class LeftOut:
    """What choosing a setting brings on a recording that had no part in it.

    `rates` are those of each recording with the setting that is best on all others, `settings` how often each was.
    """

    estimate: Estimate
    rates: dict[str, float]
    settings: dict[str, int]


def estimate(rates: Iterable[float], *, draws: int = 2000, level: float = 0.95, seed: int = 0) -> Estimate:
    """Mean and percentile bootstrap interval over recordings; ValueError without any.

    >>> str(estimate([0.2, 0.2, 0.2]))
    '20.0 (20.0 to 20.0)'
    """
    values = np.fromiter(rates, dtype=np.float64)
    if not len(values):
        raise ValueError("no recordings to take the mean of")
    means = values[np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    without = (values.sum() - values) / (len(values) - 1) if len(values) > 1 else values
    return Estimate(
        float(values.mean()), float(low), float(high), float(without.min()), float(without.max()), len(values)
    )


def difference(table: Table, setting: str, other: str, *, draws: int = 2000, seed: int = 0) -> Estimate:
    """`setting` minus `other` on the same recordings, which is surer than two intervals beside each other."""
    names = _recordings(table)
    return estimate((table[setting][name] - table[other][name] for name in names), draws=draws, seed=seed)


def halves(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Recordings at even and at odd positions in the order of their names.

    >>> halves(["trn00", "dev00", "dev01"])
    (['dev00', 'trn00'], ['dev01'])
    """
    ordered = sorted(names)
    return ordered[::2], ordered[1::2]


def folds(table: Table) -> tuple[Choice, Choice]:
    """The best setting of the even half reported on the odd one, and the other way round."""
    even, odd = halves(_recordings(table))
    return _choose(table, even, odd), _choose(table, odd, even)


def leave_one_out(table: Table) -> LeftOut:
    """For each recording its rate with the setting of the lowest mean on all others; ValueError with fewer than two."""
    names = _recordings(table)
    if len(names) < 2:
        raise ValueError("leaving one recording out takes at least two")
    chosen = {name: _best(table, [other for other in names if other != name]) for name in names}
    rates = {name: float(table[setting][name]) for name, setting in chosen.items()}
    settings = {setting: count for setting in table if (count := list(chosen.values()).count(setting))}
    return LeftOut(estimate(rates.values()), rates, settings)


def markdown(table: Table) -> str:
    """Settings with their means on all recordings and on both halves, then what choosing among them is worth."""
    even, odd = halves(_recordings(table))
    lines = [
        "| setting | all, mean (95 %) | without one: least to most | even half | odd half |",
        "|---|--:|--:|--:|--:|",
    ]
    for setting, rates in table.items():
        every, first, second = (estimate(rates[name] for name in part) for part in (rates, even, odd))
        lines.append(
            f"| {setting} | {every} | {100 * every.least:.1f} to {100 * every.most:.1f} "
            f"| {100 * first.mean:.1f} | {100 * second.mean:.1f} |"
        )
    for name, choice in zip(("even", "odd"), folds(table), strict=True):
        lines.append(f"| chosen on the {name} half: {choice.setting} | | | {_sides(name, choice)} |")
    left = leave_one_out(table)
    often = ", ".join(f"{setting} {count}x" for setting, count in left.settings.items())
    lines.append(f"| leave-one-out ({often}) | {left.estimate} | | | |")
    return "\n".join(lines)


def _sides(name: str, choice: Choice) -> str:
    """The reported half is in bold."""
    chosen, reported = f"{100 * choice.chosen.mean:.1f}", f"**{100 * choice.reported.mean:.1f}**"
    return f"{chosen} | {reported}" if name == "even" else f"{reported} | {chosen}"


def _choose(table: Table, chosen: Sequence[str], reported: Sequence[str]) -> Choice:
    setting = _best(table, chosen)
    rates = table[setting]
    return Choice(setting, estimate(rates[name] for name in chosen), estimate(rates[name] for name in reported))


def _best(table: Table, names: Sequence[str]) -> str:
    """The setting of the lowest mean, of equally good ones the first."""
    return min(table, key=lambda setting: float(np.mean([table[setting][name] for name in names])))


def _recordings(table: Table) -> list[str]:
    """The recordings of a table; ValueError if it has no settings, or these have different recordings."""
    sets = {frozenset(rates) for rates in table.values()}
    if len(sets) != 1:
        raise ValueError("the settings of a table have the same recordings")
    return sorted(next(iter(sets)))
