"""The command of all benchmarks and the check of ratios: tables, marks in the page, and when a check fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import __main__ as every
from benchmarks import check, machine

SAID = "on a machine\n\n| system | s |\n|---|--:|\n| knn | 1.5 |\n| other | 3 |\n\nthen\n\n| a |\n|---|\n| b |\n"


def test_tables_are_read() -> None:
    assert every.tables(SAID) == [
        {"columns": ["system", "s"], "rows": [["knn", "1.5"], ["other", "3"]]},
        {"columns": ["a"], "rows": [["b"]]},
    ]
    assert every.tables("| a line | of text |\n") == []


def test_tables_take_the_place_of_those_of_before() -> None:
    page = "# Page\n\n<!-- tables: one -->\n| old |\n|---|\n<!-- end -->\n\n<!-- tables: two -->\n<!-- end -->\n"
    made = every.written(page, "one", SAID)
    assert made == (
        "# Page\n\n<!-- tables: one -->\n| system | s |\n|---|--:|\n| knn | 1.5 |\n| other | 3 |\n\n"
        "| a |\n|---|\n| b |\n<!-- end -->\n\n<!-- tables: two -->\n<!-- end -->\n"
    )
    assert every.written(made, "one", SAID) == made
    assert every.written(page, "three", SAID) == page


def test_every_mark_of_the_page_is_a_comparison_and_holds_tables() -> None:
    page = every.PAGE.read_text(encoding="utf-8")
    marked = re.findall(r"^<!-- tables: (.*) -->$", page, flags=re.MULTILINE)
    assert marked and set(marked) <= set(every.COMPARISONS)
    for name in marked:
        inside = page.partition(f"<!-- tables: {name} -->")[2].partition("<!-- end -->")[0]
        assert all(table["rows"] for table in every.tables(inside)) and every.tables(inside)


@pytest.mark.parametrize("name", every.COMPARISONS)
def test_comparisons_are_modules_and_say_what_they_lack(name: str, tmp_path: Path) -> None:
    comparison = every.COMPARISONS[name]
    assert (every.TOP / "benchmarks" / f"{comparison.module}.py").is_file()
    wants = {word for word in ("data", "peers") if f"{{{word}}}" in comparison.arguments}
    said = every.missing(comparison, tmp_path / "none", None)
    assert bool(said) == bool(wants) or "package" in said


def test_a_run_is_kept_with_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = every.Comparison("none", "--folder {folder}")
    monkeypatch.setattr(every.subprocess, "run", lambda command, **_: type("Done", (), {"stdout": SAID}))
    assert every.measure("quick", quick, tmp_path, None, tmp_path) == SAID
    kept = json.loads((tmp_path / "quick.json").read_text())
    assert kept["tables"] == every.tables(SAID) and kept["command"] == "python -m benchmarks.none --folder {folder}"
    assert kept["machine"]["processor"] == machine.processor() and kept["quiet"] in (True, False)
    assert (tmp_path / "quick.md").read_text() == SAID


@pytest.mark.parametrize(
    ("ratios", "holds", "used"),
    [([0.5], True, 1), ([1.2, 0.9], True, 2), ([1.2, 1.1, 1.3], False, 3)],
)
def test_a_check_fails_if_no_attempt_is_below_the_bound(
    ratios: list[float], holds: bool, used: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = iter(ratios)
    monkeypatch.setattr(check, "CHECKS", {"one": check.Check("knn / other", lambda: next(left), 1.0)})
    monkeypatch.setattr("sys.argv", ["check"])
    assert check.main() == (0 if holds else 1)
    said = capsys.readouterr().out
    assert said.startswith("ok" if holds else "TOO SLOW") and said.count(".") == used
