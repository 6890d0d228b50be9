"""Where frames are placed: hand answers for late starts, pauses, overlaps, repeats and times that start anew."""

from __future__ import annotations

import pytest

from knn_cli.audio.placement import Placement

RATE = 1000


def placed(placement: Placement, *frames: tuple[float | None, int]) -> list[tuple[int, int]]:
    return [placement.place(time, samples, RATE) for time, samples in frames]


def test_sound_that_starts_late_is_late_where_the_container_counts_from_zero() -> None:
    late = Placement("mov", 2.0, None)
    assert placed(late, (2.0, 500), (2.5, 500)) == [(2000, 0), (0, 0)] and late.seconds == 3.0
    stream = Placement("mpegts", 1.4, None)  # whose clock starts anywhere
    assert placed(stream, (1.4, 500), (1.9, 500)) == [(0, 0), (0, 0)] and stream.seconds == 1.0
    behind_the_picture = Placement("mpegts", 1.4, None)
    assert placed(behind_the_picture, (3.4, 500)) == [(2000, 0)]


def test_pauses_are_silent_and_jitter_is_none() -> None:
    placement = Placement("matroska", 0.0, None)
    frames = [(0.0, 20), (0.021, 20), (0.039, 20), (1.06, 20), (None, 20), (1.10, 20)]
    assert placed(placement, *frames) == [(0, 0), (0, 0), (0, 0), (1000, 0), (0, 0), (0, 0)]
    assert placement.seconds == pytest.approx(1.12) and not placement.missing


def test_a_pause_in_ogg_is_something_that_is_missing() -> None:
    placement = Placement("ogg", 0.0, None)
    placed(placement, (0.0, 500), (1.5, 500), (2.5, 500))
    assert placement.missing == [1.5, 0.5]


def test_what_lies_over_other_sound_is_left_out() -> None:
    placement = Placement("mov", 0.0, None)
    assert placed(placement, (0.0, 500), (0.3, 500), (0.8, 100)) == [(0, 0), (0, 200), (0, 0)]
    assert placement.overlap == pytest.approx([0.2, 0.5])
    repeated = Placement("matroska", 0.0, None)
    assert placed(repeated, (0.0, 40), (0.04, 40), (0.04, 40), (0.08, 40))[2] == (0, 40)


@pytest.mark.parametrize("demuxer", ["ogg", "mpegts", "flac"])
def test_times_that_start_anew_follow_on(demuxer: str) -> None:
    placement = Placement(demuxer, 0.0, None)
    frames = [(0.0, 1000), (1.0, 1000), (0.0, 1000), (1.0, 1000)]
    assert placed(placement, *frames) == [(0, 0)] * 4 and placement.seconds == 4.0


def test_times_that_nobody_can_mean_are_not_followed() -> None:
    placement = Placement("matroska", 0.0, 3.0)
    assert placed(placement, (0.0, 1000), (9e6, 1000), (9e6 + 1, 1000)) == [(0, 0)] * 3 and placement.seconds == 3.0
    assert placed(Placement("matroska", None, None), (0.0, 10), (1e12, 10)) == [(0, 0), (0, 0)]


def test_formats_without_times_are_joined() -> None:
    placement = Placement("mp3", 0.025, None)
    assert placed(placement, (0.025, 500), (3.0, 500)) == [(0, 0), (0, 0)]
