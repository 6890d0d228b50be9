"""What a cluster of hundreds of workers would do with an archive: a simulation, and the measured cost of a unit.

    python -m benchmarks.scale_simulation [--hours 100000] [--core-seconds 0.038] [--workers 1000] ...
    python -m benchmarks.scale_simulation --overhead [--units 2000]

Workers take units of work from one scheduler, which hands them out one after the other, then read the sound from one
disk that all share, then compute. A worker that fails loses what it had in hand; the unit goes to the next one that is
free and is given up after LOST_WORKERS of them, as `knn_cli.core.cluster` does, and the worker comes back after a
while. Speeds are log-normal, lifetimes exponential, starts uniform; all are drawn from `--seed`. The table has the
hours until the last unit, the part of the workers' hours that was of use, work that was done and lost over work that
was of use, and units given up, for each size of units and each rate of failures.

A worker here asks for a unit only when it has none, where Dask holds the next one ready: waits for the scheduler and
the disk are those of the worse case. Nothing is lost with the scheduler or the command, and no recording is at fault:
what ends a worker strikes all alike.

With `--overhead`, empty units go through the scheduler and back by `Cluster.ordered` with two local workers: the
seconds and processor seconds of all processes for each, those of this process alone (scheduler and command), and the
processor seconds in which it asks once for what is finished, with 2 units in hand for each of 1,000 workers.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from benchmarks import machine
from knn_cli.core.cluster import LOST_WORKERS, UNITS_PER_THREAD, opened_cluster

HOUR = 3600.0  # seconds


@dataclass(frozen=True)
class Job:
    """Equal units of work.

    Attributes
    ----------
    units : int
    core_seconds : float
        That a worker of speed 1 computes for one unit.
    scheduler_seconds : float
        In which the scheduler hands out one unit and does nothing else.
    read_seconds : float
        In which the shared disk gives the sound of one unit and nothing else.
    """

    units: int
    core_seconds: float
    scheduler_seconds: float = 0.0
    read_seconds: float = 0.0


@dataclass(frozen=True)
class Worker:
    """A worker: seconds until it is there, units of speed, seconds until it is back after a failure."""

    start: float = 0.0
    speed: float = 1.0
    restart: float = math.inf


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes
    ----------
    seconds : float
        Until the last unit ended; infinite if the workers that were left could not do it.
    useful, lost : float
        Seconds of workers that computed a unit to its end, and that were lost with a worker.
    finished, given_up : int
        Units.
    """

    seconds: float
    useful: float
    lost: float
    finished: int
    given_up: int


def simulate(job: Job, workers: Sequence[Worker], lifetime: Callable[[], float]) -> Outcome:
    """Do a job.

    Parameters
    ----------
    job : Job
    workers : sequence of Worker
    lifetime : callable
        Seconds from a start of a worker to its next failure; asked once for each worker, in their order, then once
        after each failure.

    Examples
    --------
    >>> simulate(Job(4, 10.0), [Worker(), Worker()], lambda: math.inf).seconds
    20.0
    """
    deaths = [worker.start + lifetime() for worker in workers]
    events = [(worker.start, number, -1) for number, worker in enumerate(workers)]  # or the unit that was lost
    heapq.heapify(events)
    idle: list[int] = []
    again: deque[int] = deque()
    losses: dict[int, int] = {}
    fresh = finished = given_up = 0
    scheduler = disk = last = useful = lost = 0.0
    while events and finished + given_up < job.units:
        now, number, unit = heapq.heappop(events)
        if unit >= 0:
            losses[unit] = losses.get(unit, 0) + 1
            if losses[unit] == LOST_WORKERS:
                given_up, last = given_up + 1, max(last, now)
                continue
            again.append(unit)
            for other in idle:  # all ask again, also those that have failed meanwhile
                heapq.heappush(events, (now, other, -1))
            idle.clear()
            continue
        if now >= deaths[number]:  # it failed with nothing in hand
            back = deaths[number] + workers[number].restart
            if back < math.inf:
                deaths[number] = back + lifetime()
                heapq.heappush(events, (max(now, back), number, -1))
            continue
        if again:
            unit = again.popleft()
        elif fresh < job.units:
            unit, fresh = fresh, fresh + 1
        else:
            idle.append(number)
            continue
        scheduler = max(now, scheduler) + job.scheduler_seconds
        disk = max(scheduler, disk) + job.read_seconds
        end, death = disk + job.core_seconds / workers[number].speed, deaths[number]
        if end <= death:
            finished, useful, last = finished + 1, useful + end - disk, max(last, end)
            heapq.heappush(events, (end, number, -1))
        else:
            lost += max(0.0, death - disk)
            heapq.heappush(events, (death, number, unit))
            heapq.heappush(events, (death, number, -1))
    return Outcome(last if finished + given_up == job.units else math.inf, useful, lost, finished, given_up)


def drawn_workers(count: int, spread: float, start: float, restart: float, source: random.Random) -> list[Worker]:
    """Workers whose speeds have the median 1 and the deviation `spread` of their logarithm, there within `start` s."""
    return [Worker(source.uniform(0, start), source.lognormvariate(0, spread), restart) for _ in range(count)]


def lifetimes(failures: float, source: random.Random) -> Callable[[], float]:
    """What draws the seconds to the next of so many failures an hour."""
    return lambda: source.expovariate(failures / HOUR) if failures else math.inf


def print_table(options: argparse.Namespace) -> None:
    """What becomes of the archive for each size of units and rate of failures, in Markdown."""
    print("| sound of a unit | units | failures an hour of a worker | hours | of use | done twice | given up |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for sound in options.unit_seconds:
        units = math.ceil(options.hours * HOUR / sound)
        read = sound * options.bytes / options.bandwidth
        job = Job(units, sound * options.core_seconds, options.scheduler_ms / 1000, read)
        for rate in options.failures:
            source = random.Random(options.seed)
            workers = drawn_workers(options.workers, options.spread, options.start, options.restart, source)
            made = simulate(job, workers, lifetimes(rate, source))
            of_use = made.useful / (made.seconds * options.workers)
            print(
                f"| {sound:g} s | {units} | {rate:g} | {made.seconds / HOUR:.2f} | {of_use:.1%} | "
                f"{made.lost / made.useful if made.useful else 0:.1%} | {made.given_up} |",
                flush=True,
            )


def nothing(unit: int) -> int:
    """An empty unit of work."""
    return unit


def processor_seconds(*processes: Any) -> float:
    """Processor seconds, user and system, that processes of psutil have had."""
    return sum(used.user + used.system for used in (process.cpu_times() for process in processes))


def print_overhead(units: int, waiting: int = 1000 * UNITS_PER_THREAD) -> None:
    """What an empty unit costs, and one question of what is finished."""
    psutil, wait = import_module("psutil"), import_module("distributed.client")
    with opened_cluster("local:2") as cluster:
        here = psutil.Process()
        everyone = [here, *here.children(recursive=True)]
        list(cluster.ordered(nothing, range(200)))  # the workers import what they need
        begun, own, used = time.monotonic(), processor_seconds(here), processor_seconds(*everyone)
        count = sum(1 for _ in cluster.ordered(nothing, range(units)))
        seconds = time.monotonic() - begun
        own, used = processor_seconds(here) - own, processor_seconds(*everyone) - used
        held = [cluster._client.submit(time.sleep, 60, pure=False) for _ in range(waiting)]
        asked = processor_seconds(here)
        for _ in range(5):
            try:
                wait.wait(held, 0.001, wait.FIRST_COMPLETED)
            except TimeoutError:
                continue
        asked = (processor_seconds(here) - asked) / 5
        cluster._client.cancel(held)
    print(f"{count} empty units, two workers, load {machine.describe()['load']:.1f}:\n")
    print("| ms a unit | CPU ms a unit | of it scheduler and command | CPU ms to ask 1,000 workers |")
    print("|--:|--:|--:|--:|")
    print(f"| {1e3 * seconds / count:.2f} | {1e3 * used / count:.2f} | {1e3 * own / count:.2f} | {1e3 * asked:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--units", type=int, default=2000, help="empty ones, of --overhead")
    parser.add_argument("--hours", type=float, default=100_000, help="of sound")
    parser.add_argument("--core-seconds", type=float, default=0.038, help="for a second of sound")
    parser.add_argument("--bytes", type=float, default=3140, help="on the shared disk, of a second of sound")
    parser.add_argument("--bandwidth", type=float, default=1e9, help="of the shared disk, bytes a second")
    parser.add_argument("--scheduler-ms", type=float, default=6.0, help="for a unit")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--spread", type=float, default=0.15, help="standard deviation of the logarithm of speeds")
    parser.add_argument("--start", type=float, default=300, help="seconds until the last worker is there")
    parser.add_argument("--restart", type=float, default=300, help="seconds until a failed worker is back")
    parser.add_argument("--unit-seconds", type=float, nargs="+", default=[320, 1200, 3600, 14_400, 36_000])
    parser.add_argument("--failures", type=float, nargs="+", default=[0, 0.1, 1], help="of a worker in an hour")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.overhead:
        print_overhead(options.units)
    else:
        print_table(options)


if __name__ == "__main__":
    main()
