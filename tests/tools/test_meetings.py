"""Simulated meetings: who talks when, rooms, and references that agree with what is heard."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import soundfile
from pyannote.core import Annotation, Segment

pytest.importorskip("scipy")

from tools.shipped_models import rooms
from tools.shipped_models.conversations import (
    LEAD,
    MAX_PAUSE,
    RATE,
    TRAIL,
    SpeakerRecordings,
    Voice,
    simulate,
)
from tools.shipped_models.turn_taking import take_turns

QUIET = {"close": 1.0}


def turns(count: int, seed: int, weights: dict[str, float] | None = None) -> list[tuple[int, float, float]]:
    """(speaker, start, end) of ten minutes."""
    spoken: list[tuple[int, float, float]] = []

    def say(speaker: int, start: float, length: float) -> float:
        spoken.append((speaker, start, start + length))
        return length

    take_turns(count, 600.0, say, np.random.default_rng(seed), weights)
    return spoken


def test_nobody_talks_over_themselves_and_everybody_talks() -> None:
    spoken = turns(4, 0)
    for speaker in range(4):
        mine = sorted((start, end) for who, start, end in spoken if who == speaker)
        assert mine and all(later[0] >= earlier[1] for earlier, later in pairwise(mine))
    assert spoken == turns(4, 0) != turns(4, 1)
    assert {who for who, _, _ in turns(1, 0)} == {0}


def test_phases_differ_as_their_names_say() -> None:
    def shares(phase: str) -> tuple[float, float, float]:
        """Share of the time with speech, of overlap in it, and the median length of turns."""
        spoken = turns(4, 3, {phase: 1.0})
        active = np.zeros(70_000)
        for _, start, end in spoken:
            active[round(start * 100) : round(end * 100)] += 1
        active = active[:60_000]
        speech = float(np.mean(active > 0))
        return speech, float(np.mean(active > 1)) / speech, float(np.median([end - start for _, start, end in spoken]))

    discussion, work = shares("discussion"), shares("work")
    assert discussion[0] > 0.7 > 0.5 > work[0]
    assert 0.1 < discussion[1] < 0.4 and 0.6 < discussion[2] < 1.6


@pytest.mark.parametrize("kind", ["synthetic", "measured"])
def test_far_talkers_are_weaker_and_more_reverberant(kind: str) -> None:
    generator = np.random.default_rng(0)
    room = rooms.synthetic(0.4, 1.0, generator)
    if kind == "measured":
        room = rooms.measured(np.concatenate([np.zeros(300), room.response(1.0, generator)]).astype(np.float32), 1.0)
    near, far = room.response(0.5, generator), room.response(4.0, generator)
    energy = [(float(np.sum(r[: rooms.DIRECT] ** 2)), float(np.sum(r[rooms.DIRECT :] ** 2))) for r in (near, far)]
    ratios = [10 * np.log10(direct / tail) for direct, tail in energy]
    assert ratios[0] == pytest.approx(6, abs=0.5) and ratios[1] == pytest.approx(-12, abs=0.5)
    assert energy[0][1] == pytest.approx(energy[1][1], rel=1e-3)  # the diffuse field is the same everywhere
    tails = near[rooms.DIRECT :], far[rooms.DIRECT :]
    assert abs(np.corrcoef(*tails)[0, 1]) < 0.2  # another place, not the same reflections
    early = [float(np.sum(tail[:1600] ** 2) / np.sum(tail**2)) for tail in tails]
    assert early[0] == pytest.approx(early[1], abs=0.15)  # with the same decay


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> SpeakerRecordings:
    """Two speakers with sounds of 0.4 s and 1.6 s; the silences are exact zeros."""
    folder = tmp_path_factory.mktemp("meetings")
    data, cache = folder / "data", folder / "work" / "cache"
    cache.mkdir(parents=True)
    for kind in ("rir", "esc10", "music"):
        (data / "noise" / kind).mkdir(parents=True)
    (data / "speech").mkdir()
    (data / "speech" / "manifest.tsv").write_text("path\tspeaker\na\tann\nb\tbob\n")
    generator = np.random.default_rng(0)
    sound = np.zeros((2, 60 * RATE), dtype=np.int16)
    regions = []
    for row in range(2):
        for second in range(0, 60, 3):
            for start, length in ((0.0, 1.6), (2.0, 0.4)):
                first, last = round((second + start) * RATE), round((second + start + length) * RATE)
                sound[row, first:last] = 6000 * np.sign(generator.standard_normal(last - first))
                regions.append((row, row * 60 * RATE + first, row * 60 * RATE + last))
    np.save(cache / "speech-16k.npy", sound.reshape(-1))
    np.save(cache / "speech-regions.npy", np.array(regions))
    room = rooms.synthetic(0.3, 1.0, generator).response(1.0, generator)
    soundfile.write(data / "noise" / "rir" / "a.flac", room / np.abs(room).max(), RATE)
    noise = np.zeros(RATE)  # only hiss is left
    soundfile.write(data / "noise" / "esc10" / "clock_tick.opus", noise, RATE, format="OGG", subtype="OPUS")
    soundfile.write(data / "noise" / "music" / "a.flac", noise, RATE)
    return SpeakerRecordings(data, folder / "work", {"ann", "bob"})


def test_feedback_is_a_whole_sound_and_turns_go_on_where_the_last_ended(recordings: SpeakerRecordings) -> None:
    voice = Voice(recordings, "ann", np.random.default_rng(0))
    assert len(voice.say(0.5)) == round(0.4 * RATE)
    voice.place = voice.done = 0
    assert len(voice.say(1.0)) == RATE and (voice.place, voice.done) == (0, RATE)
    long = voice.say(6.0)
    assert len(long) / RATE == pytest.approx(6.0, abs=0.8) and voice.place > 2
    silent = np.diff(np.flatnonzero(np.abs(long) > 1e-3)).max() / RATE
    assert 0.07 < silent < MAX_PAUSE  # pauses inside a turn stay inside the turn of the reference


def envelope(truth: Annotation, size: int) -> np.ndarray:
    active = np.zeros(size, dtype=bool)
    for span in truth.itersegments():
        active[round(span.start * RATE) : round(span.end * RATE)] = True
    return active


def test_reference_is_generous_and_has_nothing_to_say_where_it_is_silent(recordings: SpeakerRecordings) -> None:
    for seed in range(4):
        conversation = simulate(recordings, np.random.default_rng(seed), count=2, seconds=40.0, scenes=QUIET)
        truth, size = conversation.truth, len(conversation.samples)
        active = envelope(truth, size)
        power = np.convolve(conversation.samples**2, np.ones(160) / 160, "same")
        loud = power > 0.2**2 * np.mean(power[active])  # hiss is at least 20 dB below
        first = int(np.argmax(loud)) / RATE
        start = min(span.start for span in truth.itersegments())
        assert start == pytest.approx(max(0.0, first - LEAD), abs=0.02)
        assert np.mean(loud[~active]) < 0.02 and np.mean(loud[active]) > 0.6
        for label in truth.labels():
            spans = list(truth.label_timeline(label))
            gaps = [later.start - earlier.end for earlier, later in pairwise(spans)]
            assert all(gap >= MAX_PAUSE for gap in gaps)
            assert all(span.duration > LEAD + TRAIL for span in spans[:-1])


def test_excerpts_have_their_length_and_cut_turns_at_their_edges(recordings: SpeakerRecordings) -> None:
    cut = 0
    for seed in range(8):
        generator = np.random.default_rng(seed)
        excerpt = simulate(recordings, generator, count=2, seconds=60.0, excerpt=10.0)
        assert len(excerpt.samples) == 10 * RATE and len(excerpt.truth) > 0
        extent = excerpt.truth.get_timeline().extent()
        assert extent in Segment(0, 10)
        cut += extent.start == 0 or extent.end == 10
    assert cut > 2


@pytest.mark.parametrize("scene", ["far", "headsets", "close", "phone"])
def test_every_scene_is_finite_and_the_same_for_the_same_seed(recordings: SpeakerRecordings, scene: str) -> None:
    first, second = (
        simulate(recordings, np.random.default_rng(1), count=2, seconds=20.0, scenes={scene: 1.0}) for _ in range(2)
    )
    assert np.isfinite(first.samples).all() and 0.01 < np.abs(first.samples).max() < 1
    np.testing.assert_array_equal(first.samples, second.samples)
    assert first.truth == second.truth and first.samples.dtype == np.float32
