"""Commands that are killed, that meet a full disk or closed folders, or that run twice at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults import judge
from tests.faults.forks import Outcome, Request, Server, work_off
from tests.faults.mutated import Fault
from tests.faults.writes import WRITES, Write, contents

NOBODY = 65534
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT, "HUP": signal.SIGHUP}
# Exit codes that tell of a signal: the signal itself, the shell's number of it, and "try again later" of trainings.
CODES = {"KILL": {-9}, "TERM": {143, 75}, "INT": {130}, "HUP": {129}}


@dataclass
class Reference:
    """An uninterrupted run of a command."""

    write: Write
    seconds: float
    files: dict[str, str]
    old: dict[str, str]  # of what is replaced
    size: int
    events: int  # of the run, as a strike at one of them counts them


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _run(server: Server, write: Write, folder: Path, seeds: Path, before: bool = False, **more: Any) -> Outcome:
    logs = folder.with_name(folder.name + "-log")
    return server.ask(Request([write.command(folder, before)], str(logs), str(seeds), **more))[0]


def reference(server: Server, write: Write, folder: Path, seeds: Path) -> Reference:
    """Run a command twice without interruption: the second time tells whether its outputs repeat themselves."""
    found: list[dict[str, str]] = []
    seconds, old = 0.0, {}
    for more in ({}, {"strike_at": (0, 0)}):
        _fresh(folder)
        if write.before:
            assert _run(server, write, folder, seeds, before=True, swift=True).code == 0, write.name
            old = contents(folder)
        outcome = _run(server, write, folder, seeds, swift=True, seconds=600, **more)
        assert outcome.code == 0, (write.name, outcome.text)
        seconds = seconds or outcome.seconds
        found.append(contents(folder))
    assert found[0] == found[1], (write.name, "differs from itself", found[0].items() ^ found[1].items())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Reference(write, seconds, found[0], old, size, outcome.events)


def killed(
    server: Server, known: Reference, seed: str, folder: Path, seeds: Path, timed: bool
) -> tuple[str, list[str], list[str]]:
    """Strike a command at a moment of its run, then give it again: the signal and moment, faults, last lines.

    A moment is a time, or an event in Python's code, which is the same place in every run.
    """
    draw, write = random.Random(seed), known.write
    name = draw.choice(sorted(SIGNALS))
    seconds, event = draw.uniform(0, known.seconds), draw.randint(1, known.events)
    moment: dict[str, Any] = (
        {"strike": (int(SIGNALS[name]), seconds)} if timed else {"strike_at": (int(SIGNALS[name]), event)}
    )
    _fresh(folder)
    if write.before:
        _run(server, write, folder, seeds, before=True, swift=True)
    first = _run(server, write, folder, seeds, swift=True, **moment)
    what = f"{name} after {seconds:.3f} s" if timed else f"{name} at event {event}"
    finished = first.code == 0 or not first.struck
    found = (
        judge.faults(first, {0} if finished else {*CODES[name], 0}) if first.code not in CODES[name] else _talk(first)
    )
    between = {path: digest for path, digest in contents_or_damage(folder).items() if not _unfinished(path)}
    if first.code in CODES[name] and first.code > 0 and first.text.count("knn: Stopped") != 1:
        found.append("silence")
    for path, digest in between.items():
        if digest not in (known.files.get(path), known.old.get(path)):
            found.append(f"half: {path}")
    tail = first.text.splitlines()[-6:]
    if not finished:
        second = _run(server, write, folder, seeds, swift=True)
        complete = between == known.files and "exists" in second.text
        found += [f"again: {one}" for one in judge.faults(second, {0, 1} if complete else {0})]
        tail += second.text.splitlines()[-6:]
    after = contents_or_damage(folder)
    found += [f"differs: {path}" for path in known.files if after.get(path) != known.files[path]]
    found += [f"left: {path}" for path in after if path not in known.files]
    return what, found, tail


def _talk(outcome: Outcome) -> list[str]:
    return ["traceback"] * any(trace in outcome.text for trace in judge.TRACES) + ["orphan"] * bool(outcome.orphans)


def _unfinished(path: str) -> bool:
    parts = Path(path).parts
    return any(part.startswith(".") or part.endswith((".parts", ".training")) for part in parts)


def contents_or_damage(folder: Path) -> dict[str, str]:
    """Digests of all files; of those that cannot be read too."""
    try:
        return contents(folder)
    except Exception as error:
        return {str(path.relative_to(folder)): f"unreadable {error}" for path in folder.rglob("*") if path.is_file()}


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[int], None]]:
    """Mount a file system of a few kB on a folder; what is given can make it larger."""
    _fresh(folder)
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    subprocess.run(["mount", *options], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount(folder: Path) -> bool:
    with suppress(OSError, subprocess.SubprocessError), small_disk(folder, 4):
        return True
    return False


def full_disk(server: Server, known: Reference, share: float, folder: Path, seeds: Path) -> tuple[list[str], list[str]]:
    """Run a command where only a share of its outputs fits, then again with room."""
    kilobytes = max(4, 4 * int(share * known.size / 4096))
    with small_disk(folder, 1 << 16 if known.write.before else kilobytes) as resize:
        if known.write.before:
            _run(server, known.write, folder, seeds, before=True, swift=True)
            used = sum(path.stat().st_blocks for path in folder.rglob("*")) // 2
            resize(used + kilobytes)
        return _without_room(server, known, folder, seeds, lambda: resize(1 << 16))


def file_size(server: Server, known: Reference, share: float, folder: Path, seeds: Path) -> tuple[list[str], list[str]]:
    """Run a command whose files may not be as large as they get (`ulimit -f`), then again without the limit."""
    _fresh(folder)
    if known.write.before:
        _run(server, known.write, folder, seeds, before=True, swift=True)
    return _without_room(server, known, folder, seeds, lambda: None, file_size=max(512, int(share * known.size)))


def _without_room(
    server: Server, known: Reference, folder: Path, seeds: Path, room: Callable[[], None], **more: Any
) -> tuple[list[str], list[str]]:
    first = _run(server, known.write, folder, seeds, **more)
    found = judge.faults(first, {0, 1})
    between = {path: digest for path, digest in contents_or_damage(folder).items() if not _unfinished(path)}
    wanted = (known.files,) if first.code == 0 else (known.files, known.old)
    found += [f"half: {path}" for path, digest in between.items() if digest not in [one.get(path) for one in wanted]]
    parts = [
        path
        for path in contents_or_damage(folder)
        if _unfinished(path) and ".parts" not in path and ".training" not in path
    ]
    found += [f"left: {path}" for path in parts if not path.endswith(".lock")]
    tail = first.text.splitlines()[-6:]
    room()
    if first.code:
        second = _run(server, known.write, folder, seeds)
        complete = between == known.files and "exists" in second.text
        found += [f"again: {one}" for one in judge.faults(second, {0, 1} if complete else {0})]
        tail += second.text.splitlines()[-6:]
    after = contents_or_damage(folder)
    found += [f"differs: {path}" for path in known.files if after.get(path) != known.files[path]]
    return found, tail


class Starved(NamedTuple):
    """What a command without space has met and said."""

    before: dict[str, str]
    first: Outcome


@contextmanager
def without_space(server: Server, write: Write, folder: Path, seeds: Path, kind: str) -> Iterator[Starved]:
    """Run a command on a disk with hardly any space, or whose files may not get larger than 512 bytes."""
    with ExitStack() as stack:
        resize = stack.enter_context(small_disk(folder, 1 << 16)) if kind == "disk" else None
        if resize is None:
            _fresh(folder)
        if write.before:
            assert _run(server, write, folder, seeds, before=True, swift=True).code == 0
        before = contents(folder)
        if resize is not None:
            resize(sum(path.stat().st_blocks for path in folder.rglob("*")) // 2 + 4)
        yield Starved(before, _run(server, write, folder, seeds, file_size=None if resize else 512))


def closed_folder(server: Server, known: Reference, folder: Path, seeds: Path) -> tuple[list[str], list[str]]:
    """Run a command as nobody where it may not write: a sentence, and nothing has changed."""
    _fresh(folder)
    if known.write.before:
        _run(server, known.write, folder, seeds, before=True, swift=True)
    before = judge.state(folder)
    folder.chmod(0o555)
    log = folder.with_name(folder.name + "-log")
    for path in (log.parent, *log.parent.glob(f"{log.name}*")):
        path.chmod(0o777)
    outcome = _run(server, known.write, folder, seeds, user=NOBODY)
    folder.chmod(0o755)
    return judge.faults(outcome, {1, 2}) + ["touched"] * (judge.state(folder) != before), outcome.text.splitlines()[-6:]


def together(
    servers: tuple[Server, Server], known: Reference, folder: Path, seeds: Path
) -> tuple[list[str], list[str]]:
    """Run a command twice at once: never two that say done of one output, which is whole in the end."""
    _fresh(folder)
    outcomes: dict[int, Outcome] = {}
    if known.write.before:
        _run(servers[0], known.write, folder, seeds, before=True, swift=True)

    def one(index: int) -> None:
        logs = folder.with_name(f"{folder.name}-log{index}")
        request = Request([known.write.command(folder)], str(logs), str(seeds))
        outcomes[index] = servers[index].ask(request)[0]

    threads = [threading.Thread(target=one, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [fault for outcome in outcomes.values() for fault in judge.faults(outcome, {0, 1})]
    codes = sorted(outcome.code for outcome in outcomes.values())
    if codes[0] != 0:
        found.append("neither is done")
    if codes == [0, 0] and known.write.locked and not known.write.before:
        found.append("both say done")
    after = contents_or_damage(folder)
    found += [f"differs: {path}" for path in known.files if after.get(path) != known.files[path]]
    found += [f"left: {path}" for path in after if path not in known.files]
    return found, [line for outcome in outcomes.values() for line in outcome.text.splitlines()[-3:]]


Part = Callable[["Run", Server, int, Path], tuple[Write, str, list[str], list[str]]]


class Run:
    """A long run over all commands that write, in turns, continued where it was stopped."""

    def __init__(self, name: str, part: Part, seed: str, work: Path, seeds: Path) -> None:
        self.name, self.part, self.seed, self.work, self.seeds = name, part, seed, work, seeds
        self.results = work / f"{name}.jsonl"
        self.lock, self.making = threading.Lock(), threading.Lock()
        self.references: dict[str, Reference] = {}
        self.done: set[int] = set()
        self.faults: list[Fault] = []
        self.partner: Server | None = None
        for line in self.results.read_text().splitlines() if self.results.exists() else ():
            entry = json.loads(line)
            self.done.add(entry["done"])
            self.faults += [Fault(**fault) for fault in entry["faults"]]

    def reference(self, server: Server, write: Write, folder: Path) -> Reference:
        with self.lock:
            known = self.references.get(write.name)
        if known is None:
            known = reference(server, write, folder, self.seeds)
            with self.lock:
                self.references[write.name] = known
        return known

    def go(self, count: int, servers: Sequence[Server], until: Callable[[], bool]) -> None:
        """Run the cases 0 to `count` that are not done, over several servers, or until the time is up."""
        left = [number for number in range(count) if number not in self.done][::-1]
        self.partner = servers[-1]

        work_off(
            left,
            servers if self.part in (kill, kill_at_event) else servers[:1],
            self.work / self.name,
            self._one,
            until,
        )

    def _one(self, server: Server, number: int, place: Path) -> None:
        write, what, found, tail = self.part(self, server, number, place)
        faults = []
        if found:
            causes = " ".join(sorted({one.partition(":")[0] for one in found}))
            kept = self.work / "kept" / f"{self.name}-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            if place.is_dir():
                shutil.copytree(place, kept, symlinks=True)
            command = [*write.arguments, what]
            case = f"{self.seed}-{number}"
            faults.append(Fault(case, write.name, [causes], f"{found[:3]}", command, str(kept), tail))
        with self.lock, self.results.open("a") as file:
            self.done.add(number)
            self.faults += faults
            print(json.dumps({"done": number, "faults": [asdict(one) for one in faults]}), file=file)

    def hard(self) -> list[Fault]:
        return self.faults


def kill(run: Run, server: Server, number: int, place: Path) -> tuple[Write, str, list[str], list[str]]:
    """At a time and at an event, in turns over all commands."""
    return _kill(run, server, number, place, number // len(WRITES) % 2 == 0)


def kill_at_event(run: Run, server: Server, number: int, place: Path) -> tuple[Write, str, list[str], list[str]]:
    return _kill(run, server, number, place, False)


def _kill(run: Run, server: Server, number: int, place: Path, timed: bool) -> tuple[Write, str, list[str], list[str]]:
    write = WRITES[number % len(WRITES)]
    known = run.reference(server, write, place)
    return write, *killed(server, known, f"{run.seed}-{number}", place, run.seeds, timed)


def without_room(run: Run, server: Server, number: int, place: Path) -> tuple[Write, str, list[str], list[str]]:
    """Full disk, small files, closed folders and two at once, in turns."""
    write = WRITES[number // 4 % len(WRITES)]
    known = run.reference(server, write, place)
    share = random.Random(f"{run.seed}-{number}").uniform(0, 1.5)
    if number % 4 == 0 and can_mount(place):
        return write, f"disk of {share:.2f}", *full_disk(server, known, share, place, run.seeds)
    if number % 4 in (0, 1):
        return write, f"files of {share:.2f}", *file_size(server, known, share, place, run.seeds)
    if number % 4 == 2 and os.getuid() == 0:
        return write, "closed folder", *closed_folder(server, known, place, run.seeds)
    assert run.partner is not None
    return write, "two at once", *together((server, run.partner), known, place, run.seeds)
