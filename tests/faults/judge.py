"""What is wrong with the outcome of a command, whatever it was given."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tests.faults.forks import Outcome

# Signs of an error that was not turned into a sentence.
TRACES = ("Traceback (most recent call last)", "From cffi callback", "Exception ignored", "Fatal Python error",
          "terminate called", "double free", "Segmentation fault", "core dumped")  # fmt: skip
SENTENCE = re.compile(r"^knn: \S|^Usage:|^╭─ Error|^\S+: \S", re.MULTILINE)
WARNING = re.compile(r"^.*\b(\w*Warning): ", re.MULTILINE)
NOT_NUMBERS = re.compile(rb"(?<![\w\"<./-])(NaN|nan|-?Infinity|-?inf)(?![\w\"./>-])")
CODES = {0, 1, 2}


def faults(outcome: Outcome, codes: Iterable[int] = CODES) -> list[str]:
    """Names of all that is wrong: crash, hang, memory, traceback, silence, code, orphan, warning."""
    found = []
    if outcome.cut:
        found.append(outcome.cut)
    elif outcome.code < 0:
        found.append("crash")
    elif outcome.code not in codes:
        found.append("code")
    if any(trace in outcome.text for trace in TRACES):
        found.append("traceback")
    elif outcome.code > 0 and not SENTENCE.search(outcome.text):
        found.append("silence")
    if outcome.orphans:
        found.append("orphan")
    if not found and WARNING.search(outcome.text):
        found.append("warning")
    if outcome.code == 0 and NOT_NUMBERS.search(outcome.out):
        found.append("nan")
    return found


def cause(outcome: Outcome) -> str:
    """One line by which faults of one cause are grouped: where the error was raised, and what kind it is."""
    if outcome.cut or outcome.code < 0:
        return outcome.cut or f"signal {-outcome.code}"
    lines = outcome.text.splitlines()
    places = [re.search(r'File ".*?/?([\w.-]+/[\w.-]+\.py)", line (\d+), in (\S+)', line) for line in lines]
    ours = [place for place in places if place]
    last = next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit)\b", line)), "")
    if ours:
        inside = [place for line, place in zip(lines, places, strict=True) if place and "knn_cli" in line]
        return f"{(inside or ours)[-1][1]}:{(inside or ours)[-1][3]}: {last.partition(':')[0]}"
    if warning := WARNING.search(outcome.text):
        return f"{warning[1]}: {warning[0][-60:]}"
    return next((line for line in lines if line.strip()), "(nothing on stderr)")[:120]


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }
