"""Numbers that options take: each has limits, those of options to come as well."""

import math
from dataclasses import fields
from importlib import import_module
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from typer.testing import CliRunner

from knn_cli.cli.app import COMMANDS, app, load
from knn_cli.cli.diarization_settings import DiarizationSettings
from knn_cli.cli.limits import Limits
from knn_cli.cli.settings import read_settings
from knn_cli.cli.train import TrainingSettings
from knn_cli.core.errors import KnnError

LARGEST = 1e9  # no option has to take more, but a seed
NAMES = {
    "convert": ["a", "b"],
    "split": ["a", "-o", "b"],
    "train": ["a", "-o", "b"],
    "fuse": ["a"],
    "verify": ["a", "b"],
}


def is_number(hint: Any) -> bool:
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return bool({int, float} & {kind, *get_args(kind)})


def numbers() -> list[Any]:
    """Command, parameter, flag and limits of every option that takes a number."""
    found = []
    for command in COMMANDS:
        function = getattr(import_module(f"knn_cli.cli.{command}"), command)
        flags = {one.name: max(one.opts, key=len) for one in load(command).params}
        for name, hint in get_type_hints(function, include_extras=True).items():
            if name != "return" and is_number(hint):
                limits = getattr(get_args(hint)[1].callback, "limits", None)
                found.append(pytest.param(command, flags[name], limits, id=f"{command} {flags[name]}"))
    return found


@pytest.mark.parametrize(("command", "flag", "limits"), numbers())
def test_every_number_of_a_command_has_limits(command: str, flag: str, limits: Limits | None) -> None:
    assert limits is not None, f"give {flag} a callback: limits.within(low, high)"
    assert -LARGEST <= limits.low <= limits.high <= (2**32 if flag == "--seed" else LARGEST)
    extremes = [
        "nan",
        "inf",
        "-inf",
        "1e308",
        "-1e308",
        "9" * 20,
        f"{limits.low - 1:g}",
        repr(math.nextafter(limits.low, -1)),
    ]
    for text in extremes:
        result = CliRunner().invoke(app, [command, *NAMES.get(command, ["a"]), flag, text])
        assert result.exit_code == 2 and f"'{flag}'" in result.stderr, (text, result.output, result.stderr)


@pytest.mark.parametrize("settings", [DiarizationSettings, TrainingSettings])
def test_every_number_of_the_settings_has_limits(settings: type) -> None:
    types = get_type_hints(settings)
    for field in fields(settings):
        limits = field.metadata["limits"]
        if not is_number(types[field.name]):
            continue
        assert isinstance(limits, Limits), field.name
        for text in ("nan", "inf", "1e308", "9" * 20, f"{limits.low - 1:g}"):
            with pytest.raises(KnnError, match=f"{field.name} cannot be"):
                read_settings(settings, [f"{field.name}={text}"])
        read_settings(settings, [f"{field.name}={limits.low:g}"])


def test_limits_are_allowed_themselves() -> None:
    assert not any(Limits(0, 1).refusal(value) for value in (0, 0.5, 1))
    assert Limits(0, 1).refusal(math.nan) and Limits(0, 1).refusal(1.1) == "1.1 is not from 0 to 1"
