"""What each dependency of `knn` costs: megabytes on the disk, and processor seconds to import.

    python -m benchmarks.dependencies [--runs 5]

Run it in an environment in which `knn` is installed, with whichever extras are to be listed. *Own* are the megabytes of
the distribution itself, *with needs* those of all that it requires too, and *only through it* those that would go with
it, since nothing else that `knn` requires needs them. The seconds are the least of `--runs` fresh processes, user and
system, without those of Python itself.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).resolve().parents[1]
MEGABYTE = 1e6
TESTS = "test"  # the extra that only developers install


def requirements() -> dict[str, list[str]]:
    """Extra ("" for what is always installed) -> names of the distributions that it asks for and that are installed."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: _installed(texts) for extra, texts in asked.items() if extra != TESTS}


def _installed(texts: Iterable[str]) -> list[str]:
    names = []
    for requirement in map(Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            try:
                metadata.distribution(requirement.name)
            except metadata.PackageNotFoundError:
                continue
            names.append(canonicalize_name(requirement.name))
    return names


def closure(names: Iterable[str]) -> set[str]:
    """These distributions with all that they require."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _installed(metadata.requires(name) or ())
    return found


def megabytes(names: Iterable[str]) -> float:
    """Size of the installed files of distributions."""
    files = [file.locate() for name in names for file in metadata.files(name) or ()]
    return sum(Path(file).stat().st_size for file in files if Path(file).is_file()) / MEGABYTE


def import_seconds(statement: str, runs: int) -> float:
    """Processor seconds of a fresh Python process that runs a statement; NaN where it fails."""
    seconds = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        if subprocess.run([sys.executable, "-c", statement], check=False, capture_output=True).returncode:
            return math.nan
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(seconds)


def module(name: str, by_module: Mapping[str, list[str]]) -> str:
    """The package that a distribution is imported as; of the namespace `pyannote`, the package in it."""
    if name.startswith("pyannote-"):
        return name.replace("-", ".")
    found = [module for module, owners in by_module.items() if name in map(canonicalize_name, owners)]
    plain = name.replace("-", "_")
    return plain if plain in found else min(module for module in found if not module.startswith("_"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    by_module = metadata.packages_distributions()
    bare = import_seconds("pass", runs)
    groups = requirements()
    always = groups[""]
    print("| package | extra | version | own MB | with needs | only through it | import, CPU s |")
    print("|---|---|---|---|---|---|---|")
    for extra, names in groups.items():
        others = always if extra else []
        for name in sorted(names, key=lambda name: -megabytes([name])):
            needs = closure([name])
            alone = needs - closure([other for other in (others or always) if other != name])
            cost = import_seconds(f"import {module(name, by_module)}", runs) - bare
            sizes = " | ".join(f"{megabytes(group):.1f}" for group in ([name], needs, alone))
            seconds = "fails" if math.isnan(cost) else f"{abs(cost):.2f}"
            print(f"| {name} | {extra} | {metadata.version(name)} | {sizes} | {seconds} |", flush=True)
    print(f"| all that is always installed | | | | {megabytes(closure(always)):.0f} | | |")


if __name__ == "__main__":
    main()
