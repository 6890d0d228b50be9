"""`python -m tests.faults --kills 1000 --mutated 20000 --hostile 500`: the long run, continued where it was stopped.

Each part appends what it has done to a file of lines in the folder of the run; faults are kept there with their inputs.
At the end a table is printed and `summary.json` is written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
os.environ["KNN_MODELS"] = str(TOP / "tests" / "data")

from tests.faults import hostile, interrupted, mutated, seeds, targets  # noqa: E402
from tests.faults.forks import Server  # noqa: E402

ENVIRONMENT = {"KNN_MODELS": str(TOP / "tests" / "data")}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    for name, help in (
        ("kills", "runs that are killed and repeated"),
        ("disks", "runs on a full disk, with small files, in closed folders, and twice at once"),
        ("mutated", "damaged inputs"),
        ("hostile", "inputs made by hand"),
    ):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help=help)
    parser.add_argument("--work", type=Path, default=Path("faults-run"), help="folder of the run, which is continued")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin nothing after this long, shared by the parts")
    return parser.parse_args()


def made_seeds(work: Path, server: Server) -> Path:
    """The folder of seeds, made where it is not complete."""
    folder = work / "seeds"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)

        def knn(*words: str) -> None:
            outcome = server.run(list(words), work / "log", folder)
            assert outcome.code == 0, (words, outcome.text)

        seeds.build(folder, knn)
        (folder / "complete").touch()
    return folder


def runs(options: argparse.Namespace, work: Path, folder: Path) -> list[tuple[Any, int]]:
    """The parts that are asked for, each with the number of its cases."""
    kinds = targets.targets(folder)
    known = hostile.everything(folder)
    parts: list[tuple[Any, int]] = []
    if options.kills:
        parts.append((interrupted.Run("kills", interrupted.kill, options.seed, work, folder), options.kills))
    if options.disks:
        parts.append((interrupted.Run("disks", interrupted.without_room, options.seed, work, folder), options.disks))

    def by_hand(number: int, place: Path) -> mutated.Case:
        return hostile.hostile_case(number, known, folder, by_hand_run.connections.port, place)

    def damaged(number: int, place: Path) -> mutated.Case:
        return mutated.mutated_case(f"{options.seed}-{number}", kinds, folder, place)

    if options.hostile:
        by_hand_run = mutated.Run("hostile", by_hand, work, folder)
        parts.append((by_hand_run, min(options.hostile, len(known))))
    if options.mutated:
        parts.append((mutated.Run("mutated", damaged, work, folder), options.mutated))
    return parts


def machine() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=TOP, capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(sys.argv[1:]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
    }


def report(parts: list[tuple[Any, int]], work: Path) -> bool:
    """Print a table and write it; whether anything went wrong that the issue counts."""
    summary: dict[str, Any] = {**machine(), "parts": {}}
    bad = False
    for run, count in parts:
        groups = mutated.grouped(run.faults)
        wrong = len(run.hard())
        bad |= bool(wrong)
        summary["parts"][run.name] = {"asked": count, "done": len(run.done), "wrong": wrong, "groups": groups}
        print(f"{run.name:8} {len(run.done):6} of {count} done, {wrong} wrong")
        for group in groups:
            once = "" if group["repeated"] else ", not repeated"
            print(
                f"    {group['count']:5}  {group['faults']}: {group['cause']} ({', '.join(group['kinds'][:4])}{once})"
            )
    (work / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return bad


def after(moment: float) -> Callable[[], bool]:
    """Whether a moment is past, asked later."""
    return lambda: time.monotonic() > moment


def main() -> None:
    options = arguments()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    servers = [Server(ENVIRONMENT) for _ in range(options.processes)]
    parts = runs(options, work, made_seeds(work, servers[0]))
    for place, (run, count) in enumerate(parts):
        run.go(count, servers, after(time.monotonic() + (end - time.monotonic()) / (len(parts) - place)))
    for server in servers:
        server.close()
    sys.exit(report(parts, work))


if __name__ == "__main__":
    main()
