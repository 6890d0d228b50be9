"""All comparisons by one command, as JSON and as the tables of docs/benchmarks.md.

    python -m benchmarks [NAME ...] --out FOLDER [--data ../shared/data] [--peers PEERS] [--write]

Each comparison is a process of its own, which lets what it compares take turns; programs of others run in the
environments of `benchmarks/peers/setup.sh PEERS`. FOLDER/NAME.json has the command, the machine with its load before
and after, and the tables as rows; FOLDER/NAME.md the same as text. A comparison whose data, peers or packages are not
there is named with the reason. With --write the tables between `<!-- tables: NAME -->` and `<!-- end -->` in
docs/benchmarks.md become those of this run. `--list` shows what there is.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import machine

TOP = Path(__file__).resolve().parents[1]
PAGE = TOP / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Comparison:
    """A module of this package with its arguments.

    Attributes
    ----------
    module : str
    arguments : str
        May name {data}, {peers} and {folder}: a folder for its files, kept between runs.
    packages : tuple of str
        That it needs besides knn's.
    """

    module: str
    arguments: str = ""
    packages: tuple[str, ...] = ()


COMPARISONS = {
    "start": Comparison("start", "--runs 7"),
    "jobs": Comparison("jobs", "--folder {folder}"),
    "wavlm": Comparison("wavlm", "--threads 1", ("transformers",)),
    "wavlm-utterances": Comparison("wavlm", "--threads 2 --utterances 200 --runs 1", ("transformers",)),
    "wavlm-training": Comparison("wavlm_training", "--threads 1 --steps 3", ("transformers",)),
    "classifier": Comparison("glc", "--rows 100000 --repeats 5", ("sklearn",)),
    "stores": Comparison("stores", "--folder {folder}", ("sklearn",)),
    "stores-scale": Comparison("stores_scale", "--folder {folder}"),
    "stores-chunks": Comparison("stores_scale", "--chunks --folder {folder}"),
    "clustering": Comparison("clustering"),
    "speakers": Comparison("speakers", "--data {data} --resemblyzer {peers}/resemblyzer/bin/python"),
    "diarization": Comparison(
        "diarization",
        "--data {data}/diar --work {folder} --peers {peers} --variant 'spectral=--clusterer spectral' "
        "--variant 'pyannote-3.1=--preset pyannote-3.1' "
        "--variant 'pyannote-community-1=--preset pyannote-community-1'",
        ("pyannote.metrics",),
    ),
    "cluster": Comparison("cluster", "--files 64 --rows 0 --folder {folder}", ("distributed",)),
    "cluster-statistics": Comparison("cluster", "--files 0 --folder {folder}", ("distributed",)),
    "scale-overhead": Comparison("scale_simulation", "--overhead", ("distributed",)),
    "scale-costs": Comparison("scale_costs", "--data {data}"),
    "scale-simulation": Comparison("scale_simulation"),
    "scale-capacity": Comparison("scale_capacity"),
    "long-files": Comparison("long_files", "--data {data} --folder {folder} --minutes 5 30 120"),
}


def tables(text: str) -> list[dict[str, Any]]:
    """The Markdown tables of a text: columns, and rows of cells."""
    found = []
    for block in _blocks(text):
        columns, rule, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block)
        if all(re.fullmatch(r":?-+:?", cell) for cell in rule):
            found.append({"columns": columns, "rows": rows})
    return found


def written(page: str, name: str, text: str) -> str:
    """A page whose tables between the marks of a comparison are those of a text."""
    made = "\n\n".join("\n".join(block) for block in _blocks(text))
    mark = re.compile(rf"(<!-- tables: {re.escape(name)} -->\n).*?(<!-- end -->)", flags=re.DOTALL)
    return mark.sub(lambda match: f"{match[1]}{made}\n{match[2]}", page)


def _blocks(text: str) -> list[list[str]]:
    """Runs of lines that have the form of a table."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if len(block) > 1]


def missing(comparison: Comparison, data: Path, peers: Path | None) -> str:
    """Why a comparison cannot run here, "" if it can."""
    for package in comparison.packages:
        if find_spec(package.partition(".")[0]) is None:
            return f"needs the package {package}"
    if "{data}" in comparison.arguments and not data.is_dir():
        return f"needs --data; {data} is not there"
    if "{peers}" in comparison.arguments and (peers is None or not peers.is_dir()):
        return "needs --peers, made by benchmarks/peers/setup.sh"
    return ""


def measure(name: str, comparison: Comparison, data: Path, peers: Path | None, out: Path) -> str:
    """Run a comparison and write what it says into `out`; its text. CalledProcessError where it fails."""
    folder = out / "files" / name
    folder.mkdir(parents=True, exist_ok=True)
    arguments = shlex.split(comparison.arguments.format(data=data, peers=peers, folder=folder))
    before, began = machine.describe(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{comparison.module}", *arguments],
        cwd=TOP,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    after = machine.describe()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=TOP, capture_output=True, text=True).stdout.strip()
    record = {
        "name": name,
        "command": f"python -m benchmarks.{comparison.module} {comparison.arguments}".strip(),
        "commit": commit,
        "machine": before,
        "load_after": after["load"],
        "quiet": machine.is_quiet(float(before["load"])),
        "seconds": round(time.monotonic() - began, 1),
        "tables": tables(done.stdout),
        "text": done.stdout,
    }
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(done.stdout, encoding="utf-8")
    return done.stdout


def main() -> int:
    """Run from the command line; the number of comparisons that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path, default=TOP.parent / "shared" / "data")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.names) - set(COMPARISONS):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(COMPARISONS)}")
    failed = 0
    for name in options.names or COMPARISONS:
        comparison = COMPARISONS[name]
        reason = missing(comparison, options.data, options.peers)
        if options.list or reason:
            print(f"{name}: {comparison.module} {comparison.arguments}{f' ({reason})' if reason else ''}")
            continue
        if options.out is None:
            parser.error("--out is needed")
        try:
            text = measure(name, comparison, options.data.absolute(), options.peers, options.out.absolute())
        except subprocess.CalledProcessError as error:
            print(f"{name}: failed with {error.returncode}", file=sys.stderr)
            failed += 1
            continue
        print(f"\n## {name}\n\n{text}", flush=True)
        if options.write:
            page = PAGE.read_text(encoding="utf-8")
            PAGE.write_text(written(page, name, text), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
