"""What stderr says: messages of the packages below in the words of the command line."""

from __future__ import annotations

from dataclasses import fields

import pytest

from knn_cli.cli.app import COMMANDS, load
from knn_cli.cli.console import FLAGS, SETTINGS, with_flags
from knn_cli.cli.diarization_settings import DiarizationSettings
from knn_cli.cli.train import TrainingSettings
from tests.helpers.command import knn


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Name another folder, or replace it (`force=True`).", "Name another folder, or replace it (--force)."),
        ("`min_speakers` 3 is above `max_speakers` 2.", "--min-speakers 3 is above --max-speakers 2."),
        ("`min_turn` is -1; `max_gap` and `margin` too.", "--min-turn is -1; --max-gap and --margin too."),
        ('Try `channel="mix"`.', "Try --channel mix."),
        ("Take all of it with `use_vad=False`.", "Take all of it with --no-vad."),
        ("Lower `batch_seconds`, now 120.", "Lower --batch-seconds, now 120."),
        ("Or take `device=cpu`, or `refit=False`.", "Or take --device cpu, or --set refit=False."),
        ("Train without `duration_aware`.", "Train without --set duration_aware."),
        ("split=train/part=1.flac is no audio.", "split=train/part=1.flac is no audio."),
        ("Make one with `knn convert`, or `least`.", "Make one with `knn convert`, or `least`."),
    ],
)
def test_parameters_are_named_by_their_flags(text: str, expected: str) -> None:
    assert with_flags(text) == expected


def test_every_flag_is_an_option_and_every_setting_is_one() -> None:
    flags = {flag for name in COMMANDS for param in load(name).params for flag in param.opts}
    assert set(FLAGS.values()) <= flags
    assert {field.name for kind in (TrainingSettings, DiarizationSettings) for field in fields(kind)} == SETTINGS


@pytest.mark.parametrize(
    "arguments",
    [
        ["\x1b[31mred"],
        ["--\x1b[31mred"],
        ["info", "--\x1b[31mred\u202e"],
        ["classify", "a.wav", "--top", "\x1b[31m"],
        ["classify", "a.wav", "--device", "\x9b31m\u202e"],
        ["classify", "a.wav", "--step=\udcff\x1b"],
        ["split", "a", "b\x1b]0;x\x07"],
        ["timeline", "a.wav", "--step", "nan\x1b"],
    ],
)
def test_usage_errors_show_what_a_terminal_would_obey(arguments: list[str]) -> None:
    result = knn(*arguments)
    assert result.exit_code == 2
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(result.stderr)
    assert "knn" in result.stderr
