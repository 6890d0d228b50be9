"""Limits of the numbers that options take: what lies outside, and what is no number, is a usage error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import typer

MOST_SECONDS = 1e6  # eleven days
MOST_SPEAKERS = 1000
MOST_TRACKS = 1000
MOST_JOBS = 1024
MOST_COUNT = 1_000_000


class Limits:
    """The smallest and the largest number that an option takes; as its callback it refuses all others.

    Parameters
    ----------
    low, high : float
        The limits, which are allowed themselves.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def refusal(self, value: float) -> str:
        """Why a number is not taken; "" if it is."""
        if not math.isfinite(value):
            return f"{value} is no number that can be used"
        if not self.low <= value <= self.high:
            return f"{value:.15g} is not from {self.low:.15g} to {self.high:.15g}"
        return ""


def within(low: float, high: float) -> Callable[[Any], Any]:
    """Return the callback of an option that takes numbers from `low` to `high`, or nothing."""
    limits = Limits(low, high)

    def check(value: Any) -> Any:
        if value is not None and (reason := limits.refusal(value)):
            raise typer.BadParameter(f"{reason}.")
        return value

    check.limits = limits  # type: ignore[attr-defined]  # for the contract test
    return check
