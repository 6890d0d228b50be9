"""The one audio door: formats, rates, channels, blocks, and every way in which a file can be bad."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.audio import reading, sources
from knn_cli.core.errors import AudioError
from knn_cli.core.values import Segment
from tests.helpers.compressed import write_compressed


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
    original = sources.open_native
    monkeypatch.setattr(sources, "open_native", lambda file: opened.append(file) or original(file))
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


def test_find_is_recursive_sorted_and_skips_the_hidden(tmp_path: Path) -> None:
    for name in ("b/2.WAV", "a/1.opus", "a/.hidden.wav", ".git/x.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in reading.find(tmp_path)] == ["a/1.opus", "b/2.WAV"]


def test_bad_files(tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(AudioError, match=message):
            reading.read(path)

    refused(tmp_path / "none.wav", "does not exist")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.wav").touch()
    refused(tmp_path / "empty.wav", "0 bytes")
    (tmp_path / "text.wav").write_text("this is not sound")
    (tmp_path / "sound.raw").write_bytes(np.zeros(16000, np.int16).tobytes())
    refused(tmp_path / "sound.raw", "has no header, so its sampling rate is unknown.*Make a WAV")
    refused(tmp_path / "text.wav", "not audio that can be read here")
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


@pytest.mark.parametrize("suffix", ["m4a", "mp4", "webm", "mka", "aac", "wv"])
def test_containers_of_video_are_read_without_other_programs(tmp_path: Path, suffix: str) -> None:
    path = write_compressed(tmp_path / f"a.{suffix}", sine(1.0, 48000).astype(np.float32), 48000)
    waveform = reading.read(path)
    assert waveform.seconds == pytest.approx(1.0, abs=0.05)
    assert np.argmax(np.abs(np.fft.rfft(waveform.samples[4000:12000]))) == 220
    found = reading.info(path)
    assert (found.rate, found.channels) == (48000, 1) and found.seconds == pytest.approx(1.0, abs=0.05)


def test_cut_downloads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An MP3 counts its frames, so half of one is refused; an Ogg file does not, so all that there is is read."""
    for suffix in ("ogg", "mp3"):
        soundfile.write(tmp_path / f"whole.{suffix}", np.random.default_rng(0).uniform(-0.3, 0.3, 80000), 16000)
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        assert reading.read(tmp_path / f"whole.{suffix}").seconds == pytest.approx(5.0, abs=0.1)
        (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="is cut short: its header promises 5"):
        reading.read(tmp_path / "cut.mp3")
    assert not caplog.messages
    assert 1.0 < reading.read(tmp_path / "cut.ogg").seconds < 4.0
    assert "cut.ogg is damaged: it ends without Ogg's last page" in caplog.messages[0]


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
    assert 15.0 < reading.read(path).seconds < 25.0


def test_a_damaged_flac_keeps_its_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.flac"
    sound = np.random.default_rng(0).integers(-999, 999, 60 * 16000, dtype=np.int16)
    soundfile.write(path, sound, 16000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 0xFF  # at 40 s
    path.write_bytes(data)
    heard = reading.read(path).samples * 32768
    assert len(heard) == len(sound)
    wrong = np.flatnonzero(heard != sound) / 16000
    assert 38.0 < wrong[0] < wrong[-1] < wrong[0] + 1.0 and not heard[heard != sound].any()
    assert "a.flac is damaged: 0." in caplog.messages[0] and "s on are missing" in caplog.messages[0]
