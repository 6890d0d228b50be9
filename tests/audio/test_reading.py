"""The one audio door: formats, rates, channels, blocks, and every way in which a file can be bad."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.audio import reading
from knn_cli.core.errors import AudioError
from knn_cli.core.values import Segment


def sine(seconds: float, rate: int, frequency: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 96000])
def test_every_format_and_rate_gives_the_same_sine(tmp_path: Path, suffix: str, rate: int) -> None:
    if suffix in {"mp3", "ogg"} and rate > 48000:
        pytest.skip("the format has no such rate")
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sine(1.0, rate), rate)
    waveform = reading.read(path)
    assert waveform.rate == 16000 and waveform.samples.dtype == np.float32
    assert waveform.seconds == pytest.approx(1.0, abs=0.08)
    middle = waveform.samples[4000:12000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), abs=0.02)
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 440 * 8000 // 16000


def test_channels(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    left, right = sine(0.5, 16000), np.zeros(8000)
    soundfile.write(path, np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    assert np.allclose(reading.read(path, channel="left").samples, left, atol=1e-6)
    assert np.allclose(reading.read(path, channel="2").samples, right)
    assert np.allclose(reading.read(path, channel="mix").samples, left / 2, atol=1e-6)
    with pytest.raises(AudioError, match="2 channels, not channel 3"):
        reading.read(path, channel="3")
    with pytest.raises(AudioError, match="no channel 'middle'"):
        reading.read(path, channel="middle")


@pytest.mark.parametrize("rate", [16000, 22050])
@pytest.mark.parametrize("seconds", [0.37, 1.0, 100.0])
def test_blocks_join_to_the_whole(tmp_path: Path, rate: int, seconds: float) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, rate * 3), rate, subtype="FLOAT")
    whole = reading.read(path)
    parts = list(reading.blocks(path, seconds=seconds))
    assert np.array_equal(np.concatenate([part.samples for part in parts]), whole.samples)
    assert all(len(part.samples) == round(seconds * 16000) for part in parts[:-1])
    assert [part.start * 16000 for part in parts] == pytest.approx(
        [i * round(seconds * 16000) for i in range(len(parts))]
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 3.2), st.floats(0, 2)), max_size=8), st.sampled_from([0.1, 0.5, 60.0]))
def test_crops_are_slices_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[float, float]], seconds: float
) -> None:
    path = tmp_path_factory.mktemp("crops") / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 48000), 16000, subtype="FLOAT")
    whole = reading.read(path).samples
    ordered = [Segment(start, start + length) for start, length in sorted(spans)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_SECONDS", seconds)
        for span, crop in zip(ordered, reading.crops(path, ordered), strict=True):
            assert np.array_equal(crop, whole[round(span.start * 16000) : round(span.end * 16000)])


def test_a_short_recording_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(3.0, 16000), 16000)
    spans = [Segment(0.5, 1.0), Segment(2.0, 9.0)]
    expected = list(reading.crops(path, spans))
    opened: list[Path] = []
    original = reading.open_native
    monkeypatch.setattr(reading, "open_native", lambda file: opened.append(file) or original(file))
    monkeypatch.setattr(reading, "BLOCK_SECONDS", 1.0)
    for limit, times in ((3.0, 1), (2.5, 2)):
        opened.clear()
        monkeypatch.setattr(reading, "HELD_SECONDS", limit)
        recording = reading.HeldRecording(path)
        whole = np.concatenate([block.samples for block in recording.blocks()])
        assert np.array_equal(whole, reading.read(path).samples)
        opened.pop()
        for crop, other in zip(recording.crops(spans), expected, strict=True):
            assert np.array_equal(crop, other)
        assert len(opened) == times, limit


def test_flac_bytes_round_trip() -> None:
    samples = np.round(sine(0.2, 16000) * 32768).astype(np.float32) / 32768
    assert np.array_equal(reading.decode_flac(reading.encode_flac(samples, 16000)), samples)


def test_find_is_recursive_sorted_and_skips_the_hidden(tmp_path: Path) -> None:
    for name in ("b/2.WAV", "a/1.opus", "a/.hidden.wav", ".git/x.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in reading.find(tmp_path)] == ["a/1.opus", "b/2.WAV"]


def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)

    def refused(path: Path, message: str) -> None:
        with pytest.raises(AudioError, match=message):
            reading.read(path)

    refused(tmp_path / "none.wav", "does not exist")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.wav").touch()
    refused(tmp_path / "empty.wav", "0 bytes")
    (tmp_path / "text.wav").write_text("this is not sound")
    refused(tmp_path / "text.wav", "not audio that can be read here.*install ffmpeg")
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16000)
    refused(tmp_path / "zero.wav", "holds no samples")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan] * 800), 16000, subtype="FLOAT")
    refused(tmp_path / "nan.wav", "NaN or infinite")
    soundfile.write(tmp_path / "whole.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 160000), 16000)
    data = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "cut.flac", "cut short|damaged")
    soundfile.write(tmp_path / "whole.wav", np.zeros(160000), 16000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:200000])
    refused(tmp_path / "cut.wav", "promises 10.0 s, it holds 6.2 s")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_ffmpeg_reads_what_libsndfile_does_not(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sine(1.0, 44100), 44100)
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(tmp_path / "a.wav"), str(tmp_path / "a.m4a")], check=True)
    waveform = reading.read(tmp_path / "a.m4a")
    assert waveform.seconds == pytest.approx(1.0, abs=0.1)
    assert np.argmax(np.abs(np.fft.rfft(waveform.samples[4000:12000]))) == 220


def stand_in(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ffmpeg that does what the script says, so that the pipe is proved where the real one is not installed."""
    soundfile.write(folder / "stereo.au", np.stack([sine(1.0, 8000), np.zeros(8000)], axis=1), 8000, subtype="FLOAT")
    (folder / "ffmpeg").write_text(f'#!/bin/sh\nsound="{folder}/stereo.au"\n{script}\n')
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    (folder / "a.m4a").write_bytes(b"not for libsndfile")


def test_ffmpeg_goes_through_the_same_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, 'cat "$sound"', monkeypatch)
    same = reading.read(tmp_path / "stereo.au", channel="left")
    assert np.array_equal(reading.read(tmp_path / "a.m4a", channel="left").samples, same.samples)
    assert same.seconds == pytest.approx(1.0)
    with pytest.raises(AudioError, match="2 channels, not channel 3"):
        reading.read(tmp_path / "a.m4a", channel="3")
    found = reading.info(tmp_path / "a.m4a")
    assert (found.rate, found.channels, found.seconds) == (8000, 2, 1.0)


@pytest.mark.parametrize(
    "script",
    [
        "echo broken >&2; exit 1",
        'head -c 9000 "$sound"; kill -9 $$',  # ended by a signal
        'yes error | head -c 200000 >&2; cat "$sound"',  # more talk than a pipe holds
        "exit 0",
    ],
)
def test_ffmpeg_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    stand_in(tmp_path, script, monkeypatch)
    with pytest.raises(AudioError, match=r"ffmpeg could not read it either|holds no samples"):
        reading.read(tmp_path / "a.m4a")


@pytest.mark.parametrize("suffix", ["ogg", "mp3"])
def test_cut_downloads(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"whole.{suffix}", np.random.default_rng(0).uniform(-0.3, 0.3, 80000), 16000)
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    assert reading.read(tmp_path / f"whole.{suffix}").seconds == pytest.approx(5.0, abs=0.1)
    (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="is cut short"):
        reading.read(tmp_path / f"cut.{suffix}")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    soundfile.write(os.fsencode(path), sine(0.5, 16000), 16000, format="WAV")
    assert reading.read(path).seconds == 0.5


def test_channel_names() -> None:
    assert [reading.channel_index(name) for name in ("mix", "left", "right", "3")] == [None, 0, 1, 2]
    for name in ("0", "-1", "\u00b2", "\u0663", "middle", ""):
        with pytest.raises(AudioError, match="no channel"):
            reading.channel_index(name)


def test_flac_whose_header_does_not_tell_its_length(tmp_path: Path) -> None:
    """As programs write it to a pipe: 0 samples in STREAMINFO, bits 172 to 207 of the file (RFC 9639, 8.2)."""
    path = tmp_path / "a.flac"
    sound = np.random.default_rng(0).integers(-999, 999, 40 * 16000, dtype=np.int16)
    soundfile.write(path, sound, 16000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert np.array_equal(reading.read(path).samples * 32768, sound)
    assert reading.info(path).seconds == 40.0
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="damaged"):
        reading.read(path)
