"""What each test costs: `pytest -p tests.helpers.durations` writes processor seconds and names to durations.tsv.

Processor seconds, those of child processes too, are the same on a busy machine. `tests/slow.txt` is made of them.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

FILE = Path("durations.tsv")


def processor_seconds() -> float:
    """Of this process and of the children that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure a test with its fixtures."""
    before = processor_seconds()
    try:
        return (yield)
    finally:
        with FILE.open("a", encoding="utf-8") as file:
            file.write(f"{processor_seconds() - before:.2f}\t{item.nodeid}\n")
