"""The fault harness: that it sees faults, that it knows every command that writes, and its short run."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from knn_cli.cli.app import COMMANDS, load
from tests.faults import hostile, interrupted, judge, mutated, mutations, seeds, targets
from tests.faults.__main__ import ENVIRONMENT
from tests.faults.forks import Outcome, Server
from tests.faults.writes import READ, WRITES, WRITTEN, contents

# Numbers of long runs; the short run takes the first of each.
MUTATED, HOSTILE, KILLS = 40, 30, 4


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(ENVIRONMENT) as started:
        yield started


@pytest.fixture(scope="module")
def materials(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("faults")

    def knn(*arguments: str) -> None:
        outcome = server.run(list(arguments), work / "log", work / "seeds")
        assert outcome.code == 0, outcome.text

    return seeds.build(work / "seeds", knn)


def outcome(code: int = 0, err: str = "", **more: Any) -> Outcome:
    return Outcome(code, b"", err.encode(), 0.1, 1 << 20, **more)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (outcome(), []),
        (outcome(1, "knn: x.wav is no audio.\n"), []),
        (outcome(1), ["silence"]),
        (outcome(1, "Traceback (most recent call last):\n  ...\nKeyError: 'x'\n"), ["traceback"]),
        (outcome(0, "Exception ignored from cffi callback\n"), ["traceback"]),
        (outcome(-11), ["crash"]),
        (outcome(-9, cut="hang"), ["hang"]),
        (outcome(3, "knn: x\n"), ["code"]),
        (outcome(0, "/x/y.py:3: RuntimeWarning: overflow\n"), ["warning"]),
        (outcome(1, "knn: x\n", orphans=("ffmpeg -i x",)), ["orphan"]),
        (Outcome(0, b'{"score": NaN, "name": "nan"}', b"", 0.1, 0), ["nan"]),
    ],
)
def test_what_is_wrong_is_seen(given: Outcome, found: list[str]) -> None:
    assert judge.faults(given) == found


def paths(command: str) -> Iterator[tuple[str, list[str]]]:
    """Parameters of a command that are paths, each with its options."""
    function = getattr(import_module(f"knn_cli.cli.{command}"), command)
    spellings = {one.name: [*one.opts, *one.secondary_opts] for one in load(command).params}
    for name, kind in get_type_hints(function, include_extras=False).items():
        if "Path" in str(kind):
            yield name, spellings[name]


def test_every_command_that_writes_is_killed() -> None:
    """Every parameter that is a path is known as read or written; a written one has a command in `WRITES`."""
    for command in COMMANDS:
        for name, spellings in paths(command):
            assert name in READ | WRITTEN, f"{command}: {name} is neither in READ nor in WRITTEN"
            known = [one.arguments for one in WRITES if one.arguments[0] == command]
            given = [one for one in spellings if one.startswith("-")]
            written = any(not given or set(given) & set(arguments) for arguments in known)
            assert name in READ or written, f"{command}: no entry of WRITES gives {name}"


def test_mutations_follow_from_the_seed(materials: Path) -> None:
    for suffix in (".wav", *mutations.BY_SUFFIX):
        for path in [one for one in sorted(materials.rglob("*")) if one.is_file() and one.suffix == suffix][:2]:
            one, again = (mutations.mutate("x", path) for _ in range(2))
            assert one == again
            assert any(mutations.mutate(f"{path.name}{number}", path) != path.read_bytes() for number in range(3))


def test_damaged_inputs(server: Server, materials: Path, tmp_path: Path) -> None:
    kinds = targets.targets(materials)

    def make(number: int, place: Path) -> mutated.Case:
        return mutated.mutated_case(f"short-{number}", kinds, materials, place)

    run = mutated.Run("mutated", make, tmp_path, materials)
    run.go(MUTATED, [server])
    assert len(run.done) == MUTATED and not run.hard(), mutated.grouped(run.hard())


def test_hostile_inputs(server: Server, materials: Path, tmp_path: Path) -> None:
    known = hostile.everything(materials)
    assert len(known) >= 500
    bombs = {"gzip bomb", "npz bomb"}  # each of them takes seconds; the long run has them
    chosen = random.Random(0).sample([place for place, one in enumerate(known) if one.kind not in bombs], HOSTILE)

    def make(number: int, place: Path) -> mutated.Case:
        return hostile.hostile_case(chosen[number], known, materials, run.connections.port, place)

    run = mutated.Run("hostile", make, tmp_path, materials)
    run.go(HOSTILE, [server])
    assert len(run.done) == HOSTILE and not run.hard(), mutated.grouped(run.hard())


def test_kills(server: Server, materials: Path, tmp_path: Path) -> None:
    run = interrupted.Run("kills", interrupted.kill_at_event, "short", tmp_path, materials)
    run.go(KILLS, [server], lambda: False)
    assert len(run.done) == KILLS and not run.hard(), mutated.grouped(run.hard())


FULL = ("store to npz", "store to Kaldi again", "onnx", "8 bits", "train again", "train a network", "report")


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("kind", ["disk", "files"])
def test_no_space_for_an_output(server: Server, materials: Path, tmp_path: Path, name: str, kind: str) -> None:
    """A sentence and exit 1; what was there stays, and nothing new but the folder of an unfinished training."""
    write = next((one for one in WRITES if one.name == name), None)
    if write is None or (kind == "disk" and not interrupted.can_mount(tmp_path / "place")):
        pytest.skip("no onnx, or no right to mount")
    with interrupted.without_space(server, write, tmp_path / "place", materials, kind) as outcome:
        left = [path for path in contents(tmp_path / "place") if path not in outcome.before]
        assert not judge.faults(outcome.first, {1}), outcome.first.text
        assert outcome.before.items() <= contents(tmp_path / "place").items()
        assert not [path for path in left if ".training/" not in path or "/." in path]


def test_a_run_goes_on_where_it_stopped(server: Server, materials: Path, tmp_path: Path) -> None:
    kinds = targets.targets(materials)

    def make(number: int, place: Path) -> mutated.Case:
        laid.append(number)
        return mutated.mutated_case(f"short-{number}", kinds, materials, place)

    laid: list[int] = []
    mutated.Run("mutated", make, tmp_path, materials).go(2, [server])
    mutated.Run("mutated", make, tmp_path, materials).go(3, [server])
    assert laid[:3] == [0, 1, 2]
    shutil.rmtree(tmp_path)
