"""Runs of commands on damaged and hostile inputs: many in one child, those that fail once more and alone."""

from __future__ import annotations

import json
import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from knn_cli.core.output_records import RECORD
from tests.faults import judge
from tests.faults.forks import MEMORY, SECONDS, Outcome, Request, Server, work_off
from tests.faults.mutations import mutate
from tests.faults.targets import Target

BATCH = 40
WEIGHT_OF_SOFT = {"warning", "nan"}  # reported beside the faults that the issue counts


@dataclass
class Case:
    """One input and one command that reads it."""

    seed: str
    kind: str
    arguments: list[str]
    folder: Path
    endless: bool = False
    refused: bool = False  # whether anything but a refusal is wrong
    canaries: list[Path] = field(default_factory=list)  # files that must not come into being
    untouched: dict[str, tuple[int, int]] = field(default_factory=dict)  # files that must stay as they are


@dataclass
class Fault:
    """A case that went wrong."""

    seed: str
    kind: str
    faults: list[str]
    cause: str
    arguments: list[str]
    folder: str
    tail: list[str]
    repeated: bool = True


def mutated_case(seed: str, all_targets: Sequence[Target], seeds: Path, folder: Path) -> Case:
    """Lay out the damaged input that belongs to a seed, in a new folder."""
    draw = random.Random(seed)
    (target,) = draw.choices(all_targets, [one.weight for one in all_targets])
    folder.mkdir(parents=True)
    laid, files = target.lay(seeds, folder)
    file = draw.choice(files)
    file.write_bytes(mutate(seed, file))
    out = folder / "out"
    arguments = [part.replace("{x}", str(laid)).replace("{out}", str(out)) for part in draw.choice(target.commands)]
    return Case(seed, target.name, arguments, folder, target.endless, untouched=judge.state(folder))


def wrong(case: Case, outcome: Outcome) -> list[str]:
    """All faults of a case."""
    found = judge.faults(outcome)
    if case.endless and "hang" in found:
        found.remove("hang")
    if case.refused and outcome.code == 0:
        found.append("accepted")
    if any(path.exists() for path in case.canaries):
        found.append("executed")
    if b"\x1b" in outcome.out + outcome.err or "\u202e".encode() in outcome.out + outcome.err:
        found.append("raw")  # what a name holds reaches a terminal as it is
    after = judge.state(case.folder)
    if any(after.get(name) != before for name, before in case.untouched.items()):
        found.append("touched")
    new = [Path(name) for name in set(after) - set(case.untouched)]
    if outcome.code >= 0 and not outcome.cut and any(_temporary(name) for name in new):
        found.append("leftover")
    return found


def _temporary(name: Path) -> bool:
    """Whether a file is one that only a command that still runs may have; trainings and stores can be continued."""
    if any(part.endswith((".parts", ".training")) for part in name.parts):
        return False
    parts = [part for part in name.parts if part != RECORD]
    return any(part.startswith(".") or part.endswith((".tmp", ".part")) for part in parts)


def run_case(server: Server, case: Case, cwd: Path, logs: Path) -> Outcome:
    return server.ask(Request([case.arguments], str(logs), str(cwd), alone=False))[0]


def run_batch(server: Server, cases: Sequence[Case], cwd: Path, logs: Path) -> Iterator[tuple[Case, Outcome]]:
    """All cases, in one child as far as none of them ends it."""
    left = list(cases)
    while left:
        request = Request([case.arguments for case in left], str(logs), str(cwd), alone=False)
        outcomes = server.ask(request)
        yield from zip(left, outcomes, strict=False)
        left = left[len(outcomes) :]


class Connections:
    """A port of this machine to which nothing may connect, and how often something did."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            self.count += 1
            connection.close()


class Run:
    """A long run: cases by number, some at a time, continued where it was stopped.

    `make(number, folder)` lays out a case. Every finished number is a line of `RESULTS`, faults with all that is needed
    to see them again; their inputs stay in `kept`.
    """

    def __init__(self, name: str, make: Callable[[int, Path], Case], work: Path, seeds: Path) -> None:
        self.name, self.make, self.work, self.seeds = name, make, work, seeds
        self.results = work / f"{name}.jsonl"
        self.lock = threading.Lock()
        self.connections = Connections()
        self.done: set[int] = set()
        self.faults: list[Fault] = []
        if self.results.exists():
            for line in self.results.read_text().splitlines():
                entry = json.loads(line)
                self.done |= set(entry["done"])
                self.faults += [Fault(**fault) for fault in entry["faults"]]

    def go(self, count: int, servers: Sequence[Server], until: Callable[[], bool] = lambda: False) -> None:
        """Run the cases 0 to `count` that are not done, over several servers, or until the time is up."""
        numbers = [number for number in range(count) if number not in self.done]
        batches = [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)][::-1]

        work_off(batches, servers, self.work / self.name, self._batch, until)

    def _batch(self, server: Server, numbers: Sequence[int], place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        cases = {number: self.make(number, place / str(number)) for number in numbers}
        before, faults = judge.state(self.seeds), []
        results = run_batch(server, list(cases.values()), self.seeds, place / "log")
        for (number, case), (_, outcome) in zip(cases.items(), results, strict=True):
            if found := wrong(case, outcome):
                faults.append(self._again(server, number, case, outcome, found, place))
            shutil.rmtree(case.folder, ignore_errors=True)
        if self.connections.count:
            faults.append(Fault(str(numbers), "connection", ["network"], "a connection was made", [], "", []))
            self.connections.count = 0
        if judge.state(self.seeds) != before:
            changed = sorted(dict(judge.state(self.seeds).items() ^ before.items()))
            faults.append(Fault(str(numbers), "seeds", ["touched"], f"changed {changed[:3]}", [], "", []))
        with self.lock:
            self.done |= set(numbers)
            self.faults += faults
            with self.results.open("a") as file:
                print(json.dumps({"done": list(numbers), "faults": [asdict(one) for one in faults]}), file=file)

    def _again(self, server: Server, number: int, case: Case, first: Outcome, found: list[str], place: Path) -> Fault:
        """Repeat a case that went wrong, alone; keep its input."""
        kept = self.work / "kept" / f"{self.name}-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        again = self.make(number, kept)
        outcome = run_case(server, again, self.seeds, place / "again")
        repeated = bool(wrong(again, outcome))
        if repeated:
            found, first = wrong(again, outcome), outcome
        tail = [line[:300] for line in first.text.splitlines() if line.strip()][-6:]
        if set(found) <= WEIGHT_OF_SOFT:
            shutil.rmtree(kept, ignore_errors=True)
        return Fault(case.seed, case.kind, found, judge.cause(first), again.arguments, str(kept), tail, repeated)

    def hard(self) -> list[Fault]:
        """Faults of the kinds that the issue counts."""
        return [fault for fault in self.faults if set(fault.faults) - WEIGHT_OF_SOFT]


def grouped(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """Faults by kind and cause, most frequent first, each with its first example."""
    groups: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        groups.setdefault((" ".join(fault.faults), fault.cause), []).append(fault)
    ordered = sorted(groups.items(), key=lambda one: -len(one[1]))
    return [
        {
            "faults": faults_,
            "cause": cause,
            "count": len(members),
            "kinds": sorted({one.kind for one in members}),
            "arguments": members[0].arguments,
            "folder": members[0].folder,
            "tail": members[0].tail,
            "repeated": any(one.repeated for one in members),
        }
        for (faults_, cause), members in ordered
    ]


__all__ = [
    "BATCH",
    "MEMORY",
    "SECONDS",
    "Case",
    "Fault",
    "Run",
    "grouped",
    "mutated_case",
    "run_batch",
    "run_case",
    "wrong",
]
