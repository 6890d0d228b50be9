"""The simulation of a cluster: answers by hand, and what holds for any failures."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from benchmarks import scale_capacity
from benchmarks.__main__ import TOP
from benchmarks.scale_simulation import Job, Outcome, Worker, drawn_workers, lifetimes, main, simulate

PAIR = [Worker(restart=5.0), Worker(restart=5.0)]


def lives(*seconds: float) -> Callable[[], float]:
    """Lifetimes as they are asked for, endless afterwards."""
    left = iter(seconds)
    return lambda: next(left, math.inf)


@pytest.mark.parametrize(
    ("job", "workers", "lifetime", "made"),
    [
        (Job(4, 10), PAIR, lives(), Outcome(20, 40, 0, 4, 0)),
        (Job(3, 10), [Worker(speed=2.0), Worker(start=7.0)], lives(), Outcome(17, 20, 0, 3, 0)),
        # Handed out at 1, 2, 12 and 13: the second worker gets its first unit a second after the first.
        (Job(4, 10, scheduler_seconds=1), PAIR, lives(), Outcome(23, 40, 0, 4, 0)),
        # The disk is the neck: units are read at 20, 40 and 60.
        (Job(3, 10, read_seconds=20), PAIR, lives(), Outcome(70, 30, 0, 3, 0)),
        # The first worker fails at 4 and is back at 9 with its unit: 9 to 19, then nothing is left.
        (Job(3, 10), PAIR, lives(4), Outcome(20, 30, 4, 3, 0)),
        # It never comes back: the other does all.
        (Job(3, 10), [Worker(), Worker()], lives(4), Outcome(30, 30, 4, 3, 0)),
        # An idle worker takes the unit of one that fails at 8: 10 to 20, since both have had work until then.
        (Job(2, 10), PAIR, lives(8), Outcome(20, 20, 8, 2, 0)),
        # One that fails at 8, two seconds after the other ran out of work, ends what it had at once elsewhere.
        (Job(2, 12), [Worker(), Worker(speed=2.0)], lives(8), Outcome(14, 12, 8, 2, 0)),
        # A unit that has ended three workers is given up; the workers are back at 6, 12 and 18.
        (Job(1, 10), PAIR[:1], lives(1, 1, 1), Outcome(13, 0, 3, 0, 1)),
        (Job(2, 10), [Worker()], lives(14), Outcome(math.inf, 10, 4, 1, 0)),
    ],
)
def test_by_hand(job: Job, workers: list[Worker], lifetime: Callable[[], float], made: Outcome) -> None:
    assert simulate(job, workers, lifetime) == made


@pytest.mark.parametrize("seed", range(20))
def test_no_unit_is_lost_and_nothing_is_faster_than_its_neck(seed: int) -> None:
    source = random.Random(seed)
    job = Job(source.randint(1, 300), 30.0, source.choice([0.0, 0.3]), source.choice([0.0, 0.5]))
    workers = drawn_workers(source.randint(1, 20), 0.3, 60.0, 60.0, source)
    made = simulate(job, workers, lifetimes(source.choice([0.0, 1.0, 60.0]), source))
    assert made.finished + made.given_up == job.units
    neck = max(made.useful / len(workers), made.finished * max(job.scheduler_seconds, job.read_seconds))
    assert neck <= made.seconds < math.inf
    assert 0 <= made.lost <= made.seconds * len(workers) - made.useful + 1e-6


def test_the_table_is_the_same_each_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["scale", "--hours", "100", "--workers", "20", "--failures", "0", "5"])
    main()
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 2 + 5 * 2
    main()
    assert capsys.readouterr().out == said


def test_the_page_has_the_tables_of_the_costs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["scale"])
    scale_capacity.main()
    page = (TOP / "docs" / "scale.md").read_text(encoding="utf-8").splitlines()
    assert {line for line in capsys.readouterr().out.splitlines() if line} <= set(page)


def test_days_and_gigabytes_by_hand() -> None:
    assert scale_capacity.days(2400, 0.1, 10, 0.5) == 2  # 240 core-hours on ten cores of half use
    assert scale_capacity.row_gigabytes(1000, 3.6, 1000) == pytest.approx(1.0)
    assert scale_capacity.read_megabytes(32_000, 0.032, 10) == pytest.approx(10.0)
