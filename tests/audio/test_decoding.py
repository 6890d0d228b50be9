"""Compressed sound: all of it, at the times of its container, and nothing else; whatever the file does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from knn_cli.audio import decoding, mp3_frames, reading, sources
from knn_cli.core.errors import AudioError
from tests.helpers.compressed import write_compressed

RATE = 48000
TONE = (0.3 * np.sin(2 * np.pi * 500 * np.arange(2 * RATE) / RATE)).astype(np.float32)


def loud(path: Path) -> list[tuple[float, float]]:
    """(start, end) of what is no silence, in seconds, to a twentieth."""
    samples = reading.read(path).samples
    frames = np.abs(samples[: len(samples) // 800 * 800].reshape(-1, 800)).max(1) > 0.05
    edges = np.flatnonzero(np.diff(np.concatenate([[0], frames.astype(int), [0]])))
    return [(start / 20, end / 20) for start, end in edges.reshape(-1, 2)]


@pytest.mark.parametrize("suffix", ["webm", "mkv"])
def test_pauses_between_packets_keep_the_times(tmp_path: Path, suffix: str) -> None:
    path = write_compressed(tmp_path / f"a.{suffix}", TONE, RATE, pauses=[(1.0, 3.0)])
    (first, second) = loud(path)
    assert first == pytest.approx((0.0, 1.0), abs=0.06) and second == pytest.approx((4.0, 5.0), abs=0.06)
    assert reading.info(path).seconds == pytest.approx(5.0, abs=0.05)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "mka"])
def test_sound_that_starts_late(tmp_path: Path, suffix: str) -> None:
    path = write_compressed(tmp_path / f"a.{suffix}", TONE, RATE, start=2.0)
    assert loud(path) == [pytest.approx((2.0, 4.0), abs=0.06)]
    assert reading.info(path).seconds == pytest.approx(4.0, abs=0.05)


@pytest.mark.parametrize("suffix", ["mp3", "opus", "aac", "ts"])
def test_joined_files_are_read_to_their_end(tmp_path: Path, suffix: str) -> None:
    path = write_compressed(tmp_path / f"a.{suffix}", TONE, RATE)
    path.write_bytes(path.read_bytes() * 3)
    assert reading.read(path).seconds == pytest.approx(6.0, abs=0.25)
    assert reading.info(path).seconds == pytest.approx(6.0, abs=0.25)


def test_counting_packets_gives_the_length_that_decoding_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("mp3", "opus", "m4a", "webm", "mka", "ts", "aac"):
        path = write_compressed(tmp_path / f"a.{suffix}", TONE, RATE)
        monkeypatch.setattr(sources, "MAX_EXACT_BYTES", 0)
        counted = reading.info(path).seconds
        monkeypatch.undo()
        assert counted == pytest.approx(reading.read(path).seconds, abs=0.02), suffix


def test_damaged_packets_leave_silence_and_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_compressed(tmp_path / "a.m4a", TONE, RATE)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = bytes(600)
    path.write_bytes(data)
    assert reading.read(path).seconds == pytest.approx(2.0, abs=0.05)
    assert "s could not be decoded, first at " in caplog.text


def test_a_hole_in_an_mp3(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_compressed(tmp_path / "a.mp3", np.tile(TONE, 5), RATE)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)
    assert reading.read(path).seconds == pytest.approx(10.0, abs=0.4)
    assert "are no sound and were skipped" in caplog.text and "at 5." in caplog.text.replace("at 4.9", "at 5.")


def test_a_lost_page_of_ogg_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_compressed(tmp_path / "a.opus", np.tile(TONE, 3), RATE)
    data = bytearray(path.read_bytes())
    page = data.index(b"OggS", len(data) // 2) + 200
    data[page : page + 40] = bytes(40)
    path.write_bytes(data)
    assert reading.read(path).seconds == pytest.approx(6.0, abs=0.03)
    assert "s on are missing" in caplog.text


def test_rate_and_channels_may_change(tmp_path: Path) -> None:
    first = write_compressed(tmp_path / "1.mp3", TONE[::3], 16000).read_bytes()
    second = write_compressed(tmp_path / "2.mp3", np.stack([TONE, TONE], 1), RATE).read_bytes()
    (tmp_path / "a.mp3").write_bytes(first + second)
    assert reading.read(tmp_path / "a.mp3").seconds == pytest.approx(4.0, abs=0.2)


def test_tracks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = write_compressed(tmp_path / "a.mkv", np.zeros_like(TONE), RATE, tracks=[TONE])
    assert reading.info(path).tracks == 2
    assert np.abs(reading.read(path).samples).max() < 0.01
    assert "has 2 audio tracks, of which the first is read" in caplog.text
    assert "is silent in the first of its 2 audio tracks" in caplog.text
    assert np.abs(reading.read(path, channel="2:mix").samples).max() > 0.2
    with pytest.raises(AudioError, match="has 2 audio tracks, not track 3"):
        reading.read(path, channel="3:1")
    with pytest.raises(AudioError, match="no audio track 'x'"):
        reading.read(path, channel="x:mix")


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp3", "cat.ffconcat", "list.wav", "image.png", "text.srt"])
def test_files_that_name_others_are_not_sound(tmp_path: Path, name: str) -> None:
    other = write_compressed(tmp_path / "secret.m4a", TONE, RATE)
    texts = {
        "cat.ffconcat": f"ffconcat version 1.0\nfile {other.name}\n",
        "image.png": "\x89PNG\r\n\x1a\n",
        "text.srt": "1\n00:00:00,000 --> 00:00:01,000\nx\n",
    }
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{other}\n#EXT-X-ENDLIST\n"
    (tmp_path / name).write_text(texts.get(name, playlist), encoding="latin-1")
    with pytest.raises(AudioError, match="is not audio that can be read here"):
        reading.read(tmp_path / name)


def test_a_process_that_ends_costs_one_file(tmp_path: Path) -> None:
    path = write_compressed(tmp_path / "a.m4a", np.tile(TONE, 10), RATE)
    with (
        pytest.raises(AudioError, match=r"a\.m4a could not be read: its decoder failed"),
        decoding.opened(path) as recording,
    ):
        for _ in recording.pieces():
            os.kill(recording._process._running.pid, signal.SIGSEGV)
    assert reading.read(path).seconds == pytest.approx(20.0, abs=0.05)


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="needs alarms")
def test_a_file_without_progress_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_compressed(tmp_path / "a.m4a", np.tile(TONE, 10), RATE)
    with (
        pytest.raises(AudioError, match="its decoder made no progress for"),
        decoding.opened(path) as recording,
    ):
        for _ in recording.pieces():
            os.kill(recording._process._running.pid, signal.SIGALRM)


def test_a_file_that_is_not_read_to_its_end_does_not_disturb_the_next(tmp_path: Path) -> None:
    path = write_compressed(tmp_path / "a.m4a", np.tile(TONE, 10), RATE)
    for _ in range(3):
        stream = reading.blocks(path, seconds=1.0)
        first = next(stream)
        stream.close()
        assert np.array_equal(first.samples, reading.read(path).samples[:16000])


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
@pytest.mark.parametrize("held", [False, True])
def test_processes_end_with_the_program(tmp_path: Path, held: bool) -> None:
    """Also where a process that the program has forked goes on, and holds the pipes open."""
    path = write_compressed(tmp_path / "a.m4a", TONE, RATE)
    code = (
        "import os, signal, sys, time\n"
        "from knn_cli.audio import decoding, reading\n"
        "reading.read(sys.argv[1])\n"
        "print(decoding._processes._idle[0]._running.pid, flush=True)\n"
        "if sys.argv[2] == 'True' and os.fork() == 0: os.close(1); os.close(2); time.sleep(10); os._exit(0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, str(path), str(held)]
    child = int(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the process is still there")


@pytest.mark.parametrize("claimed", [500, 3000, 5000, 90_000_000])
def test_tags_of_another_size_than_they_claim_hide_no_sound(tmp_path: Path, claimed: int) -> None:
    path = write_compressed(tmp_path / "a.mp3", TONE, RATE)
    data = path.read_bytes()
    sound = data[mp3_frames.tag_size(data[:10]) :]
    size = bytes(claimed >> shift & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x04\0\0" + size + bytes(3000) + sound)
    assert loud(path) == [pytest.approx((0.0, 2.0), abs=0.12)]
    assert reading.info(path).seconds == pytest.approx(2.0, abs=0.1)


def test_a_count_that_no_file_of_its_size_has_is_none(tmp_path: Path) -> None:
    path = write_compressed(tmp_path / "a.mp3", TONE, RATE)
    data = path.read_bytes()
    at = max(data.find(b"Xing"), data.find(b"Info")) + 8
    path.write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    assert reading.info(path).seconds == pytest.approx(2.0, abs=0.1)
    path.write_bytes(data[:at] + (2 * int.from_bytes(data[at : at + 4], "big")).to_bytes(4, "big") + data[at + 4 :])
    with pytest.raises(AudioError, match="is cut short: its header promises 4"):
        reading.info(path)


def test_eight_channels(tmp_path: Path) -> None:
    path = tmp_path / "a.opus"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=RATE, layout="7.1")
        for first in range(0, len(TONE), 960):
            piece = np.tile(TONE[first : first + 960], (8, 1)) * (np.arange(8)[:, None] == 1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece.T).reshape(1, -1), "flt", "7.1")
            frame.sample_rate, frame.pts, frame.time_base = RATE, first, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert reading.info(path).channels == 8
    levels = [np.abs(reading.read(path, channel=str(channel)).samples).max() for channel in (1, 2, 8)]
    assert levels == [pytest.approx(0.0, abs=0.02), pytest.approx(0.3, abs=0.05), pytest.approx(0.0, abs=0.02)]
