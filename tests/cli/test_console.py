"""What stderr says: messages of the packages below in the words of the command line."""

from __future__ import annotations

import pytest

from knn_cli.cli.console import with_flags


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Name another folder, or replace it (`force=True`).", "Name another folder, or replace it (--force)."),
        ("`min_speakers` 3 is above `max_speakers` 2.", "--min-speakers 3 is above --max-speakers 2."),
        ('Try `channel="mix"`.', "Try --channel mix."),
        ("Take all of it with `use_vad=False`.", "Take all of it with --no-vad."),
        ("Lower `batch_seconds`, now 120.", "Lower --batch-seconds, now 120."),
        ("Make one with `knn convert`, or `least`.", "Make one with `knn convert`, or `least`."),
    ],
)
def test_parameters_are_named_by_their_flags(text: str, expected: str) -> None:
    assert with_flags(text) == expected
