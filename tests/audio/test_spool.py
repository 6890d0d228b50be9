"""Sound from streams: kinds by their first bytes, sizes that a writer to a pipe does not know, and the copy's end."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import soundfile

from knn_cli.audio import reading, spool
from knn_cli.audio.spool import spooled
from knn_cli.core.errors import AudioError, KnnError

RATE = 16000
SOUND = np.random.default_rng(0).integers(-9999, 9999, (2 * RATE, 2), dtype=np.int16)


def file_bytes(kind: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, SOUND, RATE, format=kind, subtype=subtype)
    return buffer.getvalue()


def wav(riff_size: int, data_size: int, more: bytes = b"") -> bytes:
    data = SOUND.tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, RATE, 4 * RATE, 4, 16)
    return (
        b"RIFF" + struct.pack("<I", riff_size) + b"WAVE" + more + form + struct.pack("<4sI", b"data", data_size) + data
    )


@pytest.mark.parametrize(
    ("kind", "subtype", "suffix"),
    [
        ("WAV", "PCM_16", ".wav"),
        ("RF64", "PCM_16", ".wav"),
        ("W64", "PCM_16", ".w64"),
        ("AIFF", "PCM_16", ".aiff"),
        ("AU", "PCM_16", ".au"),
        ("CAF", "PCM_16", ".caf"),
        ("FLAC", "PCM_16", ".flac"),
        ("OGG", "VORBIS", ".ogg"),
        ("OGG", "OPUS", ".opus"),
        ("MP3", None, ".mp3"),
    ],
)
def test_every_kind_is_copied_as_it_is(kind: str, subtype: str | None, suffix: str) -> None:
    data = file_bytes(kind, subtype)
    with spooled(io.BytesIO(data), name="talk") as copy:
        copy.fill()
        assert copy.path.name == f"talk{suffix}" and copy.path.read_bytes() == data
        assert reading.info(copy.path).channels == 2
    assert not copy.path.parent.exists()


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF - 36, 0xFFFFFFFF])
@pytest.mark.parametrize("more", [b"", struct.pack("<4sI5sx", b"LIST", 5, b"INFO.")])
def test_sizes_that_the_writer_did_not_know_are_filled_in(size: int, more: bytes) -> None:
    with spooled(io.BytesIO(wav(size, size, more))) as copy:
        copy.fill()
        samples, rate = soundfile.read(copy.path, dtype="int16")
        header = copy.path.read_bytes()[:8]
        assert np.array_equal(samples, SOUND) and rate == RATE
        assert header == b"RIFF" + struct.pack("<I", copy.path.stat().st_size - 8)
        assert reading.info(copy.path).format == "WAV PCM_16"


def test_above_four_gigabytes_the_sizes_have_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MAX_RIFF_BYTES", 1000)
    with spooled(io.BytesIO(wav(0xFFFFFFFF, 0xFFFFFFFF))) as copy:
        copy.fill()
        data = bytearray(copy.path.read_bytes())
        assert data[:4] == b"RF64" and data[12:16] == b"ds64"
        data[4:8] = b"\xff" * 4
        at = data.index(b"data")
        data[at + 4 : at + 8] = b"\xff" * 4
        copy.path.write_bytes(data)
        assert np.array_equal(soundfile.read(copy.path, dtype="int16")[0], SOUND)


def test_an_empty_wav_stays_empty() -> None:
    with spooled(io.BytesIO(wav(0, 0)[: -SOUND.nbytes])) as copy:
        copy.fill()
        with pytest.raises(AudioError, match="holds no samples"):
            reading.read(copy.path)


@pytest.mark.parametrize("arguments", ["wav", "wav -rf64 always", "flac", "ogg -c:a libopus", "mp3", "adts -c:a aac"])
def test_what_ffmpeg_writes_to_a_pipe(arguments: str, example: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg")
    command = ["ffmpeg", "-v", "error", "-i", str(example), "-t", "5", "-f", *arguments.split(), "-"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        spooled(cast(io.BufferedReader, process.stdout)) as copy,
    ):
        copy.fill()
        sound = reading.read(copy.path).samples
    truth = reading.read(example).samples[: 5 * RATE]
    assert len(sound) == pytest.approx(len(truth), abs=RATE // 5)  # codecs fill up their frames
    if "wav" in arguments or "flac" in arguments:
        assert np.array_equal(sound, truth)


@pytest.mark.parametrize("data", [SOUND.tobytes(), b"\xff\xff\x00\x00" * 999, b"no sound at all", b"x"])
def test_sound_without_a_header_is_refused_with_a_way_out(data: bytes) -> None:
    with pytest.raises(AudioError, match="stdin is not audio with a header") as caught, spooled(io.BytesIO(data)):
        pass
    assert "-f s16le" in (caught.value.hint or "")


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(AudioError, match="stdin is empty"), spooled(io.BytesIO()):
        pass


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_stream_that_ends_too_early_is_refused_as_a_file_is(kind: str) -> None:
    data = file_bytes(kind)
    with spooled(io.BytesIO(data[: len(data) // 2])) as copy:
        copy.fill()
        with pytest.raises(AudioError, match=r"cut short|damaged"):
            reading.read(copy.path)


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            raise OSError(28, "No space left on device")

    with spooled(Full(file_bytes("WAV") * 2)) as copy, pytest.raises(KnnError, match="No space left") as caught:
        copy.fill()
    assert "TMPDIR" in (caught.value.hint or "")
