"""Every error in the code, as each command would print it: it names no option that the command does not have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import knn_cli
from knn_cli.cli.app import COMMANDS, load
from knn_cli.cli.console import FLAGS, SETTINGS, SWITCHES, hint_with_flags, with_flags

PACKAGE = Path(knn_cli.__file__).parent
# Words in backquotes that are no parameters: values and what a file holds.
NO_PARAMETERS = {"least", "unknown", "voice", "x"}  # x: what an f-string puts in


@cache
def flags_of(command: str) -> frozenset[str]:
    return frozenset(flag for param in load(command).params for flag in param.opts) | {"--help"}


def text_of(node: ast.expr) -> str | None:
    """A text with `{}` in place of what is put in, None for what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "x" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left) or "") + (text_of(node.right) or "")
    return None


def modules_of(path: Path) -> set[str]:
    """The modules that a module imports, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def messages() -> Iterator[tuple[str, str]]:
    """Each text of a function that raises or hints, with its module; docstrings are none."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and isinstance(node.body[0], ast.Expr)
        }
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in docstrings | inside or not isinstance(node, ast.Constant | ast.JoinedStr):
                continue
            text = text_of(node)
            if text and " " in text and ("`" in text or "--" in text):
                yield module, text


MESSAGES = list(messages())


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 100


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_prints_an_option_that_it_lacks(command: str) -> None:
    for module, text in MESSAGES:
        if module.startswith("knn_cli.cli."):
            continue
        for shown in (with_flags(text, flags_of(command)), hint_with_flags(text, flags_of(command))):
            named = set(re.findall(r"(?<![\w`-])--[a-z][a-z0-9-]*", re.sub(r"`knn [^`]*`", "", shown)))
            assert named <= flags_of(command), f"{module}: {shown}"


def test_parameters_in_messages_are_options_or_settings_somewhere() -> None:
    known = {*FLAGS, *SETTINGS, *(name for name, _ in SWITCHES), *NO_PARAMETERS}
    for module, text in MESSAGES:
        if not module.startswith("knn_cli.cli."):
            for name in re.findall(r"`([a-z_0-9]+)(?:=[^`]*)?`", text):
                assert name in known, f"{module}: {text}"


def test_messages_of_the_command_line_name_options_of_their_commands() -> None:
    users = {f"knn_cli.cli.{command}": {command} for command in COMMANDS}
    imported = {command: modules_of(PACKAGE / "cli" / f"{command}.py") for command in COMMANDS}
    for module, text in MESSAGES:
        if not module.startswith("knn_cli.cli.") or module.endswith((".app", ".console", ".options")):
            continue  # these write the options of whatever command runs
        commands = users.get(module) or {command for command in COMMANDS if module in imported[command]}
        for flag in re.findall(r"(?<![\w`-])--[a-z][a-z0-9-]*", re.sub(r"`?knn [a-z]+ [^`]*|--x\b", "", text)):
            for command in commands:
                assert flag in flags_of(command), f"{module}, {command}: {text}"


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("Give a longer clip, or take all of it with `use_vad=False`.", "Give a longer clip."),
        ("To use all of the sound, give `use_vad=False`.", ""),
        ("Name another file, or replace it with `force=True`.", "Name another file, or replace it with --force."),
        ("Leave it out with `ignore=a,b c`, or add recordings.", "Add recordings."),
        ("Make one with `knn convert`.", "Make one with `knn convert`."),
        ("", ""),
    ],
)
def test_advice_that_a_command_cannot_take_is_left_out(hint: str, expected: str) -> None:
    assert hint_with_flags(hint, {"--force"}) == expected
    assert with_flags("`batch_seconds` is 0, and `force` too.", {"--force"}) == "batch seconds is 0, and --force too."


def test_values_of_options_are_ready_for_a_shell() -> None:
    hint = "Leave them out with `ignore=big fish,small`."
    assert hint_with_flags(hint, {"--ignore"}) == "Leave them out with --ignore 'big fish,small'."
