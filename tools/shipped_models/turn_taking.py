"""Who takes the floor when: simulated turn-taking of conversations and meetings.

A conversation passes through phases like the group actions of meetings (McCowan et al., "Automatic analysis of
multimodal group actions in meetings", IEEE TPAMI 2005): a discussion of short turns, a presentation of long ones with
feedback and questions, or work during which little is said. From one speaker to the next, intervals are spread
around zero: about half are overlaps, most of them below a second (Heldner and Edlund, "Pauses, gaps and overlaps in
conversations", J. Phonetics 2010). Listeners give feedback of about half a second, and sometimes two start at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Say = Callable[[int, float, float], float]  # (speaker, start, wanted length) -> actual length, all in seconds


@dataclass(frozen=True)
class Phase:
    """What is usual in a phase; times in seconds.

    `turn` is the median length of turns and `spread` the deviation of its logarithm; `feedback` the utterances of
    listeners in a second of someone's turn; `together` and `overlap` the shares of turns with which another speaker
    starts, and during whose end the next one does; `silence` the share of turns followed by a silence of `still`
    seconds in the mean; `floor` the share of turns of the one who leads.
    """

    turn: float
    spread: float
    feedback: float
    together: float
    overlap: float
    silence: float
    still: float
    floor: float
    lasts: float


PHASES = {
    "discussion": Phase(1.1, 0.95, 0.09, 0.15, 0.42, 0.12, 3.0, 0.0, 20.0),
    "presentation": Phase(5.0, 0.9, 0.13, 0.05, 0.35, 0.15, 2.0, 0.7, 30.0),
    "work": Phase(0.7, 0.8, 0.05, 0.15, 0.3, 0.7, 6.0, 0.0, 30.0),
}
MEETING = {"discussion": 0.45, "presentation": 0.25, "work": 0.3}
SHORTEST, LONGEST = 0.2, 30.0  # of turns
GAP, OVERLAP = 0.45, 0.45  # means of the exponential distributions of intervals between turns
AGAIN = 0.15  # share of turns after which the same speaker goes on
INTERJECTION = 0.3  # share of listeners' utterances that are more than feedback


def take_turns(
    count: int, seconds: float, say: Say, generator: np.random.Generator, weights: dict[str, float] | None = None
) -> None:
    """Let `count` speakers talk for `seconds`, in phases drawn by `weights` (MEETING if None).

    Nobody talks over themselves: a speaker who is still talking starts when that ends.
    """
    names = list(weights or MEETING)
    shares = np.array([(weights or MEETING)[name] for name in names])
    talk = generator.dirichlet(np.full(count, 1.5))  # some talk more than others
    floor = _Floor(count, say)
    now, last = float(generator.exponential(0.8)), -1
    while now < seconds:
        phase = PHASES[names[int(generator.choice(len(names), p=shares / shares.sum()))]]
        end = min(seconds, now + phase.lasts * (0.4 + float(generator.exponential(0.6))))
        leader = int(generator.choice(count, p=talk))
        while now < end:
            last = _next(last, leader, phase, talk, generator)
            start, stop = floor.take(last, now, _length(phase.turn, phase.spread, generator))
            others = [other for other in range(count) if other != last]
            if others:
                _listen(others, start, stop, phase, floor, generator)
            if others and generator.random() < phase.overlap:
                now = max(start + 0.3, stop - min(2.5, float(generator.exponential(OVERLAP))))
            else:
                now = stop + float(generator.exponential(GAP))
                if generator.random() < phase.silence:
                    now += float(generator.exponential(phase.still))


class _Floor:
    """Who is talking until when."""

    def __init__(self, count: int, say: Say) -> None:
        self.say, self.until = say, [0.0] * count

    def take(self, speaker: int, start: float, length: float) -> tuple[float, float]:
        """Start and end of an utterance, later than wanted if the speaker is still talking."""
        start = max(start, self.until[speaker])
        stop = start + self.say(speaker, start, length)
        self.until[speaker] = stop + 0.2
        return start, stop


def _length(median: float, spread: float, generator: np.random.Generator) -> float:
    return float(np.clip(generator.lognormal(np.log(median), spread), SHORTEST, LONGEST))


def _next(
    last: int, leader: int, phase: Phase, talk: np.typing.NDArray[np.float64], generator: np.random.Generator
) -> int:
    """The speaker of the next turn."""
    if len(talk) == 1 or (last >= 0 and generator.random() < AGAIN):
        return max(last, 0)
    if leader != last and generator.random() < phase.floor:
        return leader
    chances = np.where(np.arange(len(talk)) == last, 0.0, talk + 1e-6)
    return int(generator.choice(len(talk), p=chances / chances.sum()))


def _listen(
    others: list[int], start: float, stop: float, phase: Phase, floor: _Floor, generator: np.random.Generator
) -> None:
    """Utterances of others during a turn: at its start, or feedback and interjections inside it."""
    if generator.random() < phase.together:
        floor.take(
            int(generator.choice(others)), max(0.0, start + generator.uniform(0, 0.4)), _length(0.9, 0.6, generator)
        )
    place = start + 0.6 + float(generator.exponential(1 / phase.feedback))
    while place < stop - 0.2:
        speaker = int(generator.choice(others))
        more = generator.random() < INTERJECTION
        if floor.until[speaker] <= place:
            floor.take(speaker, place, _length(1.6, 0.5, generator) if more else _length(0.4, 0.35, generator))
        place += float(generator.exponential(1 / phase.feedback))
