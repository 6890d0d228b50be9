"""Cleaning: who is unwanted, and sound without them, sample by sample."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import tracemalloc
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.audio import edits, writing
from knn_cli.audio.edits import Edit
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.values import Diarization, Turn, sort_turns
from knn_cli.diarization import removal_outputs, speaker_removal, unwanted_spans
from knn_cli.diarization.removal_outputs import SpeakerRemoval
from knn_cli.diarization.speaker_removal import RemovalResult
from knn_cli.diarization.unwanted_spans import UnwantedSpan

Triple = tuple[float, float, str]


def remove_speakers(*args: Any, **settings: Any) -> RemovalResult:
    return speaker_removal.plan_removal(*args, **settings).write()


def unwanted_of(
    turns: Sequence[Turn], spec: str, known: Sequence[str] | set[str] = (), all_overlap: bool = False
) -> list[UnwantedSpan]:
    return unwanted_spans.unwanted_spans(
        turns, unwanted_spans.unwanted_speakers(turns, spec, known), all_overlap=all_overlap
    )


def talk_of(*triples: Triple, confidence: Mapping[int, float] | None = None) -> tuple[Turn, ...]:
    """Turns of (start, end, speaker), and the confidence of some by their place."""
    confidence = confidence or {}
    return sort_turns(Turn(*triple, confidence.get(place)) for place, triple in enumerate(triples))


def triples(parts: Sequence[UnwantedSpan]) -> list[Triple]:
    return [(part.start, part.end, part.speaker) for part in parts]


def turns_of(found: Sequence[Turn]) -> list[Triple]:
    return [(round(turn.start, 6), round(turn.end, 6), turn.speaker) for turn in found]


# Who is unwanted, and where


def test_alone_by_name_and_with_others_as_overlapped() -> None:
    talk = talk_of((0, 10, "A"), (4, 6, "B"), (12, 15, "B"), (14, 16, "A"), (14.5, 15.5, "C"), (20, 21, "C"))
    assert triples(unwanted_of(talk, "B")) == [(4, 6, "OVERLAPPED"), (12, 14, "B"), (14, 15, "OVERLAPPED")]
    assert triples(unwanted_of(talk, "C , B")) == [
        (4, 6, "OVERLAPPED"),
        (12, 14, "B"),
        (14, 15.5, "OVERLAPPED"),
        (20, 21, "C"),
    ]
    assert triples(unwanted_of(talk, "least")) == [(14.5, 15.5, "OVERLAPPED"), (20, 21, "C")]
    everything = unwanted_of(talk, "least", all_overlap=True)
    assert triples(everything) == [(4, 6, "OVERLAPPED"), (14, 15.5, "OVERLAPPED"), (20, 21, "C")]


def test_a_speaker_who_overlaps_or_meets_themselves_is_alone() -> None:
    talk = talk_of((0, 2, "A"), (1, 3, "A"), (3, 4, "A"), (4, 5, "B"))
    assert triples(unwanted_of(talk, "A")) == [(0, 4, "A")]


def test_least_counts_what_is_spoken_and_not_turns() -> None:
    # A's turns lie in one another: 3 s of speech, though 5 s of turns.
    assert unwanted_spans.unwanted_speakers(talk_of((0, 3, "A"), (1, 3, "A"), (5, 9, "B")), "least") == ["A"]
    assert unwanted_spans.unwanted_speakers(talk_of((0, 3, "A"), (5, 8, "B")), "least") == ["B"]  # begins last


def test_nobody_is_least_alone_and_nobody_speaks_in_silence() -> None:
    alone = talk_of((0, 3, "A"))
    assert unwanted_of(alone, "least") == []
    assert triples(unwanted_of(alone, "A")) == [(0, 3, "A")]
    assert unwanted_of(talk_of(), "least") == unwanted_of(talk_of(), "A") == []


def test_names_that_nobody_has() -> None:
    talk = talk_of((0, 3, "A"), (1, 2.5, "B"))
    with pytest.raises(KnnError, match=r"no speaker Anna in talk.*A \(3.0 s\), B \(1.5 s\)"):
        unwanted_spans.unwanted_speakers(talk, "Anna", recording="talk")
    with pytest.raises(KnnError, match="empty name"):
        unwanted_of(talk, "A,,B")
    assert unwanted_of(talk, "Anna", known={"Anna"}) == []
    assert unwanted_spans.unwanted_speakers(talk, "Anna,B", known={"Anna"}) == ["B"]


def test_csv() -> None:
    file = io.StringIO()
    unwanted_spans.write_unwanted_csv(
        [UnwantedSpan(2, 3.5, 'x, "y"'), UnwantedSpan(0, 1.23456, "OVERLAPPED"), UnwantedSpan(1.3, 1.3001, "A")], file
    )
    assert file.getvalue() == 'Start [s],End [s],Speaker\n0.000,1.235,OVERLAPPED\n2.000,3.500,"x, ""y"""\n'
    empty = io.StringIO()
    unwanted_spans.write_unwanted_csv([], empty)
    assert empty.getvalue() == "Start [s],End [s],Speaker\n"


times = st.integers(0, 40).map(lambda quarter: quarter / 4)


@given(st.lists(st.tuples(times, times, st.sampled_from("ABC")), max_size=8), st.sets(st.sampled_from("ABC")))
@settings(deadline=None, max_examples=50)
def test_every_instant_is_labelled_as_by_asking_who_speaks(turns: list[Triple], unwanted: set[str]) -> None:
    talk = talk_of(*((min(a, b), max(a, b), name) for a, b, name in turns if a != b))
    parts = unwanted_spans.unwanted_spans(talk, unwanted)
    for quarter in range(40):
        middle = quarter / 4 + 0.125
        speaking = {turn.speaker for turn in talk if turn.start < middle < turn.end}
        here = [part.speaker for part in parts if part.start < middle < part.end]
        if not speaking & unwanted:
            assert here == []
        else:
            assert here == (["OVERLAPPED"] if len(speaking) > 1 else list(speaking))
    assert all(one.end < other.start or one.speaker != other.speaker for one, other in pairwise(parts))


# Edits, by hand


def test_spans_hold_every_sample_that_a_turn_touches() -> None:
    assert edits.sample_spans([(0.1, 0.3)], 10) == ((1, 3),)
    assert edits.sample_spans([(0.15, 0.301)], 10) == ((1, 4),)
    assert edits.sample_spans([(0.3, 0.5), (0.1, 0.3), (0.2, 0.25), (0.9, 0.9)], 10) == ((1, 5),)
    assert edits.sample_spans([(0.1 * 3, 0.7 + 0.1)], 44100) == ((13230, 35280),)
    assert edits.sample_spans([(-1, 0.1), (5, 6)], 10) == ((0, 1), (50, 60))


def test_a_fade_falls_before_and_rises_after() -> None:
    edit = Edit(((5, 7),), fade=3, removes=False)
    assert edit.gain_steps(0, 12).tolist() == [4, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 4]
    ones = np.full((12, 1), 8, dtype=np.int32)
    (heard,) = edit.apply([ones])
    assert heard[:, 0].tolist() == [8, 8, 6, 4, 2, 0, 0, 2, 4, 6, 8, 8]
    (heard,) = Edit(((5, 7),), fade=3, removes=True).apply([ones])
    assert heard[:, 0].tolist() == [8, 8, 6, 4, 2, 2, 4, 6, 8, 8]
    assert ones.min() == 8  # what came in is not changed


def test_ends_and_short_gaps() -> None:
    assert Edit(((0, 2), (8, 10)), 3, False).gain_steps(0, 10).tolist() == [0, 0, 1, 2, 3, 3, 2, 1, 0, 0]
    assert Edit(((0, 2), (3, 5)), 3, False).gain_steps(0, 7).tolist() == [0, 0, 1, 0, 0, 1, 2]
    assert Edit(((4, 99),), 3, False).gain_steps(0, 6).tolist() == [4, 3, 2, 1, 0, 0]
    assert Edit((), 3, True).gain_steps(2, 4).tolist() == [4, 4]


@pytest.mark.parametrize(("rate", "fade"), [(8000, 400), (16000, 800), (44100, 2205), (48000, 2400)])
def test_fades_last_50_ms(rate: int, fade: int) -> None:
    edit = edits.mute_or_cut([(1.0, 1.5)], rate, removes=False)
    steps = edit.gain_steps(0, 3 * rate)
    first, last = rate, rate * 3 // 2
    assert not steps[first:last].any()
    assert steps[first - fade : first].tolist() == list(range(fade, 0, -1))
    assert steps[last : last + fade].tolist() == list(range(1, fade + 1))
    assert (steps[: first - fade] == fade + 1).all() and (steps[last + fade :] == fade + 1).all()


def by_brute_force(sound: np.ndarray, edit: Edit) -> np.ndarray:
    out = []
    for place, value in enumerate(sound):
        distances = [max(first - place, place - last + 1, 0) for first, last in edit.spans]
        step = min([*distances, edit.fade + 1])
        if step or not edit.removes:
            out.append(np.rint(value * (step / (edit.fade + 1))))
    return np.array(out).reshape(-1, sound.shape[1])


@st.composite
def edited(draw: st.DrawFn) -> tuple[Edit, int]:
    length = draw(st.integers(1, 60))
    edges = sorted(draw(st.sets(st.integers(0, 70), max_size=10)))
    spans = tuple(zip(edges[::2], edges[1::2], strict=False))
    return Edit(spans, draw(st.integers(0, 9)), draw(st.booleans())), length


@given(edited(), st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_blocks_of_any_size_give_what_brute_force_gives(made: tuple[Edit, int], sizes: list[int], seed: int) -> None:
    edit, length = made
    sound = np.random.default_rng(seed).integers(-30000, 30000, (length, 2), dtype=np.int32)
    blocks, at = [], 0
    while at < length:
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(sound[at : at + size])
        at += size
    heard = np.concatenate([np.zeros((0, 2), dtype=np.int32), *edit.apply(blocks)])
    assert heard.dtype == np.int32
    assert np.array_equal(heard, by_brute_force(sound, edit))
    assert len(heard) == edit.output_length(length)
    # Where each sample went: `moved` counts the kept ones before it.
    kept = np.array([not any(first <= place < last for first, last in edit.spans) for place in range(length)])
    before = np.concatenate([[0], np.cumsum(kept)]) if edit.removes else np.arange(length + 1)
    assert edit.new_positions(np.arange(length + 1)).tolist() == before.tolist()


def test_what_is_not_a_number_is_silenced_too() -> None:
    sound = np.full((6, 1), np.inf)
    sound[2] = np.nan
    (heard,) = Edit(((1, 4),), 0, False).apply([sound])
    assert heard[1:4, 0].tolist() == [0, 0, 0]


# Silence


def noise(rate: int, *lengths: tuple[float, float]) -> np.ndarray:
    """(S, 1) square waves: seconds and level of one stretch after the other."""
    parts = [np.resize([level, -level], round(seconds * rate)) for seconds, level in lengths]
    return np.concatenate(parts)[:, None]


def silences(sound: np.ndarray, rate: int, longest: float, threshold: float = -40.0, block: int = 777) -> Edit:
    blocks = [sound[at : at + block] for at in range(0, len(sound), block)]
    found, total = edits.shorten_silences(blocks, rate, full_scale=1.0, max_silence=longest, threshold=threshold)
    assert total == len(sound)
    return found


def test_200_ms_of_a_long_silence_stay() -> None:
    quiet = 0.0099  # of a square wave: -40.1 dB
    sound = noise(8000, (1.0, 0.5), (1.0, quiet), (1.0, 0.5), (0.5, 0.0), (1.0, 0.5))
    assert silences(sound, 8000, 0.6).spans == ((8800, 15200),)
    assert silences(sound, 8000, 0.4).spans == ((8800, 15200), (24800, 27200))
    assert silences(sound, 8000, 0.5).spans == ((8800, 15200),)  # longer than, not as long as
    assert silences(sound, 8000, 0.4, threshold=-41).spans == ((24800, 27200),)
    assert silences(sound, 8000, 0.4).fade == 80 and silences(sound, 8000, 0.4).removes


def test_silence_at_the_ends_and_nothing_but_silence() -> None:
    sound = noise(8000, (1.0, 0.0), (1.0, 0.5), (1.005, 0.0))
    assert silences(sound, 8000, 0.3).spans == ((800, 7200), (16800, 24040 - 800))
    assert silences(noise(8000, (3.0, 0.0)), 8000, 1.0).spans == ((800, 23200),)
    assert silences(sound[:0], 8000, 0.3).spans == ()
    # The last 40 samples are half a block, measured by their own length: at -39.9 dB they are sound.
    assert silences(noise(8000, (1.0, 0.5), (0.5, 0.0), (0.005, 0.0101)), 8000, 0.5).spans == ()


def test_one_loud_channel_is_no_silence() -> None:
    left, right = noise(8000, (3.0, 0.0)), noise(8000, (1.0, 0.0), (1.0, 0.5), (1.0, 0.0))
    assert silences(np.hstack([left, right]), 8000, 0.4).spans == ((800, 7200), (16800, 23200))


@given(
    st.sampled_from([8000, 11025, 22050, 44150]),
    st.lists(st.tuples(st.floats(0.01, 0.9), st.sampled_from([0.0, 0.003, 0.5])), min_size=1, max_size=8),
    st.integers(50, 9000),
)
@settings(deadline=None, max_examples=30)
def test_shortening_again_finds_nothing(rate: int, stretches: list[tuple[float, float]], block: int) -> None:
    sound = noise(rate, *stretches)
    edit = silences(sound, rate, 0.25, block=block)
    assert edit == silences(sound, rate, 0.25, block=len(sound))
    once = np.concatenate(list(edit.apply([sound])))
    assert silences(once, rate, 0.25).spans == ()
    loud = np.abs(sound[:, 0]) > 0.01
    removed = np.zeros(len(sound), dtype=bool)
    for first, last in edit.spans:
        removed[first:last] = True
    assert not (removed & loud).any()


# Files

WHOLE_NUMBERS = [
    ("WAV", "PCM_U8", "wav", 8),
    ("WAV", "PCM_16", "wav", 16),
    ("WAV", "PCM_24", "wav", 24),
    ("WAV", "PCM_32", "wav", 32),
    ("WAV", "ULAW", "wav", 16),
    ("WAVEX", "PCM_24", "wav", 24),
    ("RF64", "PCM_16", "rf64", 16),
    ("FLAC", "PCM_16", "flac", 16),
    ("FLAC", "PCM_24", "flac", 24),
    ("AIFF", "PCM_24", "aiff", 24),
    ("CAF", "ALAC_24", "caf", 24),
    ("NIST", "PCM_16", "sph", 16),
    ("AU", "PCM_16", "au", 16),
    ("W64", "PCM_32", "w64", 32),
]


def whole(path: Path, bits: int) -> np.ndarray:
    return soundfile.read(path, dtype="int32", always_2d=True)[0] >> (32 - bits)


@pytest.mark.parametrize(("kind", "subtype", "suffix", "bits"), WHOLE_NUMBERS)
@pytest.mark.parametrize("rate", [8000, 44100])
def test_muted_and_cut_files_are_exact(
    tmp_path: Path, kind: str, subtype: str, suffix: str, bits: int, rate: int
) -> None:
    source = tmp_path / f"a.{suffix}"
    sound = np.random.default_rng(1).uniform(-1, 1, (2 * rate, 2))
    soundfile.write(source, sound, rate, format=kind, subtype=subtype)
    before, held = source.read_bytes(), whole(source, bits)
    parts = [
        UnwantedSpan(0, 0.25, "B"),
        UnwantedSpan(1.0, 1.1, "OVERLAPPED"),
        UnwantedSpan(1.1, 1.2, "B"),
        UnwantedSpan(1.9, 2.0, "B"),
    ]
    fade = round(rate * 0.05)
    edit = Edit(((0, rate // 4), (rate, rate * 6 // 5), (rate * 19 // 10, 2 * rate)), fade, False)

    muted = remove_speakers(source, tmp_path / f"m.{suffix}", parts, how="mute")
    heard = whole(muted.target, bits)
    assert len(heard) == len(held)
    for first, last in edit.spans:
        assert not heard[first:last].any()
    near = np.zeros(len(held), dtype=bool)
    for first, last in edit.spans:
        near[max(0, first - fade) : last + fade] = True
    assert np.array_equal(heard[~near], held[~near])
    if subtype != "ULAW":  # which has steps of its own: the fades are rounded to them
        (expected,) = edit.apply([held])
        assert np.array_equal(heard, expected)

    cut = remove_speakers(source, tmp_path / f"c.{suffix}", parts, how="cut")
    outside = np.ones(len(held), dtype=bool)
    for first, last in edit.spans:
        outside[first:last] = False
    assert np.array_equal(whole(cut.target, bits), heard[outside])

    for done in (muted, cut):
        info = soundfile.info(done.target)
        assert (info.format, info.subtype, info.samplerate, info.channels) == (kind, subtype, rate, 2)
        gone = rate // 4 + rate // 5 + rate // 10
        assert (done.whole, done.unwanted, done.parts, done.silence) == (2 * rate, gone, 3, 0)
        assert done.kept == info.frames == 2 * rate - (gone if done is cut else 0)
        assert done.form == f"{kind} {subtype}" and done.note == ""
    assert source.read_bytes() == before


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_keep_every_bit_and_what_is_above_full_scale(tmp_path: Path, subtype: str) -> None:
    source, target = tmp_path / "a.wav", tmp_path / "b.wav"
    sound = np.random.default_rng(2).normal(0, 1, (48000, 3))
    soundfile.write(source, sound, 48000, subtype=subtype)
    held = soundfile.read(source)[0]
    assert np.abs(held).max() > 2
    remove_speakers(source, target, [UnwantedSpan(0.5, 0.6, "B")], how="mute")
    heard = soundfile.read(target)[0]
    assert soundfile.info(target).subtype == subtype
    assert np.array_equal(heard[:21600], held[:21600]) and np.array_equal(heard[31200:], held[31200:])
    assert not heard[24000:28800].any()
    ramp = np.arange(1, 2401)[:, None] / 2401
    assert np.allclose(heard[28800:31200], held[28800:31200] * ramp, rtol=1e-6)
    assert np.allclose(heard[21600:24000], held[21600:24000] * ramp[::-1], rtol=1e-6)


@pytest.mark.parametrize("how", ["mute", "cut"])
def test_nothing_of_an_unwanted_turn_is_heard(tmp_path: Path, how: str) -> None:
    """B's samples are marked by their sign: none is left, wherever turns begin, end, overlap or leave short gaps."""
    rate = 8000
    random = np.random.default_rng(3)
    for number in range(5):
        edges = np.sort(random.uniform(0, 4, 16))
        turns = [(float(a), float(b), "B") for a, b in zip(edges[::2], edges[1::2], strict=True)]
        turns += [(0.0, 0.0004, "B"), (3.9, 4.0, "B"), (1.0, 3.0, "A"), (1.5, 1.6, "B")]
        place = np.arange(4 * rate)
        unwanted = np.zeros(4 * rate, dtype=bool)
        for start, end, name in turns:
            if name == "B":
                unwanted |= (place + 1 > start * rate) & (place < end * rate)  # sample n lasts from n to n + 1
        source, target = tmp_path / f"{number}.wav", tmp_path / f"{number}_{how}.wav"
        soundfile.write(source, np.where(unwanted, 20000, -20000).astype(np.int16), rate)
        done = remove_speakers(source, target, unwanted_of(talk_of(*turns), "B"), how=how)
        heard = soundfile.read(target, dtype="int16")[0]
        assert heard.max() <= 0
        assert done.unwanted == unwanted.sum()
        assert len(heard) == (~unwanted).sum() if how == "cut" else (heard[unwanted] == 0).all()


def test_a_whole_file_can_be_muted_and_not_cut(tmp_path: Path, tone: Path) -> None:
    everything = [UnwantedSpan(0, 9, "B")]
    done = remove_speakers(tone, tmp_path / "m.wav", everything, how="mute")
    assert not soundfile.read(done.target)[0].any()
    assert (done.whole, done.kept, done.unwanted, done.parts) == (32000, 32000, 32000, 1)
    with pytest.raises(KnnError, match=r"Nothing of .* would be left"):
        remove_speakers(tone, tmp_path / "c.wav", everything, how="cut")
    assert not (tmp_path / "c.wav").exists()


def test_nobody_unwanted_is_a_copy(tmp_path: Path, tone: Path) -> None:
    for how in ("mute", "cut"):
        done = remove_speakers(tone, tmp_path / "b.wav", [], how=how)
        assert np.array_equal(soundfile.read(done.target)[0], soundfile.read(tone)[0])
        assert (done.unwanted, done.parts, done.kept) == (0, 0, 32000)
    done = remove_speakers(tone, tmp_path / "b.wav", [UnwantedSpan(5, 6, "B")], how="cut")  # past the end
    assert (done.unwanted, done.parts, done.kept) == (0, 0, 32000)


def test_blocks_of_files_may_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.flac"
    sound = np.random.default_rng(4).integers(-9999, 9999, (9000, 2), dtype=np.int16)
    sound[2500:7500] = 0
    soundfile.write(source, sound, 8000)
    parts = [UnwantedSpan(0.01, 0.2, "B"), UnwantedSpan(0.25, 0.26, "B"), UnwantedSpan(1, 1.1, "B")]
    heard = []
    for size in (1 << 17, 1000, 97):
        monkeypatch.setattr(writing, "BLOCK_FRAMES", size)
        for how in ("mute", "cut"):
            target = tmp_path / f"{how}.flac"
            remove_speakers(source, target, parts, how=how, max_silence=0.5)
            heard.append(soundfile.read(target, dtype="int16")[0])
    for number, one in enumerate(heard):
        assert np.array_equal(one, heard[number % 2])


def test_silence_is_looked_for_in_what_is_left(tmp_path: Path) -> None:
    rate = 8000
    sound = noise(rate, (1, 0.5), (0.8, 0.0), (1, 0.25), (0.8, 0.0), (1, 0.5))
    source = tmp_path / "a.wav"
    soundfile.write(source, sound, rate)
    turns = talk_of((0, 1, "A"), (1.8, 2.8, "B"), (3.6, 4.6, "A"), confidence={0: 0.5, 1: 0.6, 2: 0.7})
    parts = unwanted_of(turns, "least")
    assert remove_speakers(source, tmp_path / "0.wav", max_silence=1.0).silences == 0  # 0.8 s each
    cut = remove_speakers(source, tmp_path / "c.wav", parts, how="cut", max_silence=1.0)
    assert (cut.whole, cut.unwanted, cut.silence, cut.silences) == (36800, 8000, 11200, 1)  # 1.6 s together
    assert cut.kept == soundfile.info(cut.target).frames == 36800 - 8000 - 11200
    mute = remove_speakers(source, tmp_path / "m.wav", parts, how="mute", max_silence=1.0)
    assert (mute.unwanted, mute.silence, mute.kept) == (8000, 19200, 17600)  # 2.6 s
    assert np.array_equal(soundfile.read(mute.target)[0], soundfile.read(cut.target)[0])
    assert mute.seconds() == {"whole": 4.6, "kept": 2.2, "muted": 1.0, "cut": 0.0, "silence": 2.4}
    for done in (cut, mute):
        again = remove_speakers(done.target, tmp_path / "again.wav", max_silence=1.0)
        assert again.silence == 0 and again.target.read_bytes() == done.target.read_bytes()
        left = speaker_removal.retime(Diarization(turns, seconds=4.6), done)
        assert turns_of(left.turns) == [(0, 1, "A"), (1.2, 2.2, "A")]
        assert left.seconds == 2.2 and [turn.confidence for turn in left.turns] == [0.5, 0.7]


def test_no_click_where_silence_was(tmp_path: Path) -> None:
    """Sound of one sign that is below the threshold: where it is joined it goes through nothing."""
    source, target = tmp_path / "a.wav", tmp_path / "b.wav"
    sound = noise(16000, (1, 0.5), (3, 0.0), (1, 0.5))
    sound[16000:40000] += 0.002
    sound[40000:64000] -= 0.002
    soundfile.write(source, sound, 16000, subtype="FLOAT")
    remove_speakers(source, target, max_silence=1.0)
    heard = soundfile.read(target)[0]
    assert len(heard) == 16000 * 2 + 3200
    assert np.abs(np.diff(heard[16000:19200])).max() < 0.002 / 75


# Turns in the cleaned recording


def cleaned(whole: int, *done: Edit, rate: int = 10) -> speaker_removal.RemovalResult:
    kept = whole
    for edit in done:
        kept = edit.output_length(kept)
    return speaker_removal.RemovalResult(Path("b.wav"), "WAV PCM_16", "", rate, whole, kept, 0, 0, 0, 0, 0, done)


def test_turns_after_cutting() -> None:
    triples = ((0, 10, "A"), (4, 6, "B"), (7, 7.5, "C"), (12, 14, "A"), (20, 25, "A"))
    turns = talk_of(*triples, confidence={1: 0.25, 3: 0.75})
    voices = {name: np.ones(2, dtype=np.float32) for name in "ABC"}
    found = Diarization(turns, "talk", voices, dict.fromkeys("ABC", 1.0), 25.0)
    after = speaker_removal.retime(found, cleaned(250, Edit(((40, 60), (70, 75), (130, 150)), 0, True)))
    assert turns_of(after.turns) == [(0, 7.5, "A"), (9.5, 10.5, "A"), (15.5, 20.5, "A")]
    assert [turn.confidence for turn in after.turns] == [None, 0.75, None]
    assert set(after.speaker_embeddings) == set(after.clean_speech_seconds) == {"A"}
    assert after.seconds == 20.5 and after.name == "talk"


def test_turns_after_muting() -> None:
    triples = ((0, 10, "A"), (4, 6, "B"), (5, 7, "C"), (12, 15, "A"), (14, 30, "C"))
    turns = talk_of(*triples, confidence={0: 0.5, 2: 0.25, 4: 1.0})
    muted = cleaned(200, Edit(((40, 60), (70, 80), (120, 130)), 0, False))
    after = speaker_removal.retime(Diarization(turns), muted)
    expected = [(0, 4, "A"), (6, 7, "A"), (6, 7, "C"), (8, 10, "A"), (13, 15, "A"), (14, 20, "C")]
    assert sorted(turns_of(after.turns)) == sorted(expected)
    confidence = {(turn.start, turn.speaker): turn.confidence for turn in after.turns}
    pieces_of_the_first = {(0, "A"): 0.5, (6, "A"): 0.5, (8, "A"): 0.5}
    assert confidence == {**pieces_of_the_first, (6, "C"): 0.25, (13, "A"): None, (14, "C"): 1.0}


# Forms, names, refusals


@pytest.mark.parametrize(
    ("suffix", "subtype", "rate"),
    [("ogg", "VORBIS", 44100), ("opus", "OPUS", 48000), ("mp3", "MPEG_LAYER_III", 22050)],
)
def test_coded_forms_stay_and_are_silent_where_muted(tmp_path: Path, suffix: str, subtype: str, rate: int) -> None:
    source = tmp_path / f"a.{suffix}"
    time = np.arange(3 * rate) / rate
    kind = "MP3" if suffix == "mp3" else "OGG"
    soundfile.write(source, 0.4 * np.sin(2 * np.pi * 300 * time), rate, format=kind, subtype=subtype)
    target = speaker_removal.output_path(source)
    assert target == tmp_path / f"a_cleaned.{suffix}"
    done = remove_speakers(source, target, [UnwantedSpan(1, 2, "B")], how="mute")
    info = soundfile.info(target)
    assert (info.subtype, info.samplerate, info.channels) == (subtype, rate, 1)
    assert done.form == f"{kind} {subtype}" and done.whole == info.frames == 3 * rate
    heard, held = soundfile.read(target)[0], soundfile.read(source)[0]
    assert np.abs(heard[rate : 2 * rate]).max() < 0.02  # no more than the coder's own noise near the fades
    assert np.abs(heard[rate + rate // 10 : 2 * rate - rate // 10]).max() < 1e-3
    assert np.abs(heard - held)[rate // 4 : rate // 2].max() < 0.05
    cut = remove_speakers(source, target, [UnwantedSpan(1, 2, "B")], how="cut")
    assert soundfile.info(target).frames == cut.kept == 2 * rate


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("m4a", "alac"), ("wv", "wavpack")])
def test_what_only_ffmpeg_reads_becomes_wav(tmp_path: Path, suffix: str, codec: str) -> None:
    first, source = tmp_path / "a.wav", tmp_path / f"b.{suffix}"
    sound = np.random.default_rng(5).uniform(-0.3, 0.3, (44100, 2))
    soundfile.write(first, sound, 44100, subtype="PCM_16")
    subprocess.run(["ffmpeg", "-v", "error", "-i", first, "-c:a", codec, source], check=True)
    target = speaker_removal.output_path(source, "muted")
    assert target == tmp_path / "b_muted.wav"
    done = remove_speakers(source, target, [UnwantedSpan(0.5, 0.6, "B")], how="mute")
    assert done.form == "WAV PCM_24" and "b." in done.note and "WAV PCM_24" in done.note
    info = soundfile.info(target)
    assert (info.samplerate, info.channels, info.subtype) == (44100, 2, "PCM_24")
    assert not whole(target, 24)[22050:26460].any()
    if codec != "aac":  # without loss
        assert np.array_equal(whole(target, 16)[:19000], whole(first, 16)[:19000])
    with pytest.raises(KnnError, match=r"would hold WAV PCM_24.*\.wav"):
        remove_speakers(source, tmp_path / "c.m4a", how="mute")


def test_a_form_that_can_only_be_read_becomes_wav(tmp_path: Path) -> None:
    source = tmp_path / "a.wav"
    soundfile.write(source, np.random.default_rng(6).uniform(-0.5, 0.5, 8000), 8000, subtype="IMA_ADPCM")
    done = remove_speakers(source, tmp_path / "b.wav", [UnwantedSpan(0.5, 0.6, "B")], how="mute")
    assert done.form == "WAV PCM_24" and done.note
    assert np.array_equal(whole(done.target, 16)[:3600], whole(source, 16)[:3600])


def test_an_mp3_named_wav_stays_mp3(tmp_path: Path) -> None:
    source = tmp_path / "a.wav"
    soundfile.write(source, np.random.default_rng(6).uniform(-0.5, 0.5, 16000), 16000, format="MP3")
    assert speaker_removal.output_path(source, folder=tmp_path / "x") == tmp_path / "x" / "a_cleaned.mp3"


def test_a_wav_beyond_4_gb_becomes_rf64(tmp_path: Path, tone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MAX_WAV_BYTES", 63_999)
    done = remove_speakers(tone, tmp_path / "b.wav", how="mute")
    assert soundfile.info(done.target).format == "RF64"
    assert np.array_equal(soundfile.read(done.target)[0], soundfile.read(tone)[0])


def test_texts_stay(tmp_path: Path) -> None:
    source, target = tmp_path / "a.flac", tmp_path / "b.flac"
    with soundfile.SoundFile(source, "w", 8000, 1) as file:
        file.title, file.artist, file.date = "Interview 7", "Archive", "1971"
        file.write(np.zeros(8000))
    remove_speakers(source, target, how="mute")
    with soundfile.SoundFile(target) as file:
        assert (file.title, file.artist, file.date) == ("Interview 7", "Archive", "1971")


def test_refusals(tmp_path: Path, tone: Path) -> None:
    before = tone.read_bytes()
    with pytest.raises(KnnError, match="is one of the sources"):
        remove_speakers(tone, tone, how="mute")
    (tmp_path / "link.wav").symlink_to(tone)
    with pytest.raises(KnnError, match="is one of the sources"):
        remove_speakers(tone, tmp_path / "link.wav", how="cut")
    with pytest.raises(KnnError, match=r"would hold WAV PCM_16.*\.wav"):
        remove_speakers(tone, tmp_path / "b.flac", how="mute")
    for seconds in (0.1, -1.0, math.nan, math.inf):
        with pytest.raises(KnnError, match="200 ms of a silence stay"):
            remove_speakers(tone, tmp_path / "b.wav", max_silence=seconds)
    for threshold in (0.0, 30.0, math.nan):
        with pytest.raises(KnnError, match="not a level below full scale"):
            remove_speakers(tone, tmp_path / "b.wav", max_silence=1.0, threshold=threshold)
    with pytest.raises(KnnError, match="cannot be written"):
        remove_speakers(tone, tmp_path / "none" / "b.wav", how="mute")
    with pytest.raises(ValueError, match="nothing to do"):
        remove_speakers(tone, tmp_path / "b.wav")
    for name, content in (("text.wav", b"hello, this is no sound"), ("empty.wav", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError):
            remove_speakers(tmp_path / name, tmp_path / "b.wav", how="mute")
    (tmp_path / "short.wav").write_bytes(before[:32000])
    with pytest.raises(AudioError, match="cut short"):
        remove_speakers(tmp_path / "short.wav", tmp_path / "b.wav", how="mute")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)
    with pytest.raises(KnnError, match="holds no samples"):
        remove_speakers(tmp_path / "none.wav", tmp_path / "b.wav", how="mute")
    assert tone.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "empty.wav",
        "link.wav",
        "none.wav",
        "short.wav",
        "text.wav",
        "tone.wav",
    ]


def test_a_file_that_grows_meanwhile(tmp_path: Path, tone: Path) -> None:
    form = writing.output_format(tone)
    with pytest.raises(AudioError, match="changed while"):
        writing.write_frames(tmp_path / "b.wav", form, writing.read_frames(tone, form), 31999)
    assert not (tmp_path / "b.wav").exists()


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    peaks = []
    for minutes in (1, 4):
        source = tmp_path / f"{minutes}.wav"
        soundfile.write(source, np.resize(np.repeat([9000, 0], 40000), minutes * 480000).astype(np.int16), 8000)
        parts = [UnwantedSpan(60 * minute, 60 * minute + 20, "B") for minute in range(minutes)]
        tracemalloc.start()
        done = remove_speakers(source, tmp_path / "b.wav", parts, how="cut", max_silence=1.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert done.silences >= 4 * minutes - 1
    assert peaks[1] < 1.2 * peaks[0]


def test_overlap_is_muted_where_a_speaker_is_cut(tmp_path: Path) -> None:
    source = tmp_path / "a.wav"
    soundfile.write(source, np.full(10 * 1000, 0.5), 1000, subtype="PCM_16")
    parts = [UnwantedSpan(1, 2, "OVERLAPPED"), UnwantedSpan(2, 4, "B"), UnwantedSpan(6, 7, "OVERLAPPED")]
    done = remove_speakers(source, tmp_path / "b.wav", parts, how="cut", overlap="mute")
    assert (done.kept, done.unwanted, done.muted, done.parts) == (8000, 4000, 2000, 2)
    assert done.seconds() == {"whole": 10.0, "kept": 8.0, "muted": 2.0, "cut": 2.0, "silence": 0.0}
    heard, _ = soundfile.read(done.target)
    silent = np.flatnonzero(heard == 0)
    assert silent.tolist() == [*range(1000, 2000), *range(4000, 5000)] and heard[0] == heard[-1] == 0.5
    talk = Diarization(talk_of((0, 2, "A"), (1, 4, "B"), (4, 8, "A"), (6, 7, "C")), seconds=10.0)
    assert turns_of(speaker_removal.retime(talk, done).turns) == [(0, 1, "A"), (2, 4, "A"), (5, 6, "A")]
    # Overlapped speech alone, with nobody unwanted.
    muted = remove_speakers(source, tmp_path / "c.wav", [parts[0], parts[2]], overlap="mute")
    assert (muted.kept, muted.muted, muted.parts) == (10000, 2000, 2)


def test_edited_sound_never_stands_without_its_turns(
    tmp_path: Path, tone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sound that exists is refused without --force, so that a stopped command could not be given again."""
    (tmp_path / "out").mkdir()
    clean = SpeakerRemoval(tmp_path / "out", ("html", "csv"), unwanted="B", how="mute")
    talk = Diarization(talk_of((0.0, 1.0, "A"), (1.0, 1.5, "B")), name="tone", seconds=2.0)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(removal_outputs, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            clean.apply(tone, talk)
    assert not clean.audio_path(tone).exists()

    assert clean.apply(tone, talk).cleaned is not None
    page = clean.turns_paths(tone)[0].read_text()
    assert clean.turns_paths(tone)[1].read_text().startswith("file,start,end,speaker")
    assert clean.audio_path(tone).exists() and ".part" not in page
