"""Headers against the bytes there are, over every uncompressed format that libsndfile writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.audio import reading, sound_headers, writing
from knn_cli.core.errors import AudioError
from tests.helpers.compressed import write_compressed

SOUND = np.random.default_rng(0).uniform(-0.9, 0.9, (8000, 2))
KINDS = [
    (kind, subtype, endian)
    for kind in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "NIST", "CAF")
    for subtype in ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
    for endian in ("FILE", "LITTLE", "BIG")
    if soundfile.check_format(kind, subtype, endian) and (kind, subtype) != ("AIFF", "PCM_U8")
]


def written(folder: Path, kind: str, subtype: str, endian: str) -> Path:
    path = folder / f"{kind}.{subtype}.{endian}"
    soundfile.write(path, SOUND, 16000, subtype, endian, kind)
    return path


@pytest.mark.parametrize(("kind", "subtype", "endian"), KINDS)
def test_samples_are_those_of_libsndfile(tmp_path: Path, kind: str, subtype: str, endian: str) -> None:
    path = written(tmp_path, kind, subtype, endian)
    header = sound_headers.read_header(path)
    assert header is not None and header.finished and header.promised == header.there
    assert (header.rate, header.channels, header.seconds) == (16000, 2, 0.5)
    samples = np.concatenate(list(sound_headers.samples(path, header)))
    numbers = "float64" if samples.dtype.kind == "f" else "int32"
    assert np.array_equal(samples, soundfile.read(path, dtype=numbers, always_2d=True)[0])


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "NIST", "CAF"])
def test_half_a_file_is_refused_by_readers_and_editors(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind, "PCM_24", "FILE")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = "is cut short: its header promises 0.5 s, it holds 0.2 s"
    with pytest.raises(AudioError, match=message):
        reading.read(path)
    with pytest.raises(AudioError, match=message):
        list(writing.read_frames(path, writing.output_format(path)))


PLACES = {"WAV": (40, "<u4", 1), "AU": (8, ">u4", 1), "W64": (96, "<u8", 1), "AIFF": (42, ">u4", 1)}


@pytest.mark.parametrize("counted", [0, 4000])
@pytest.mark.parametrize("kind", ["WAV", "AU"])
def test_a_header_that_counts_too_little(
    tmp_path: Path, kind: str, counted: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As recorders leave it that were killed: 0, or what they had counted before."""
    path = written(tmp_path, kind, "PCM_16", "FILE")
    whole = soundfile.read(path, dtype="float32")[0]
    at, form, _ = PLACES[kind]
    data = bytearray(path.read_bytes())
    start = data.index(b"data") + 4 if kind == "WAV" else at
    data[start : start + 4] = np.array(counted, form).tobytes()
    path.write_bytes(data)
    assert reading.info(path).seconds == 0.5
    assert np.array_equal(reading.read(path, channel="left").samples, whole[:, 0])
    assert ("never finished" if counted == 0 else "counts 0.1 s in its header; all 0.5 s are read") in caplog.messages[
        0
    ]
    form_of_copy = writing.output_format(path)
    copied = np.concatenate(list(writing.read_frames(path, form_of_copy)))
    assert np.array_equal(copied / 32768, whole.astype(np.float64))


def test_chunks_and_tags_behind_the_samples_are_no_sound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, "WAV", "PCM_16", "FILE")
    data = path.read_bytes()
    for rest in (b"LIST" + (8000).to_bytes(4, "little") + bytes(8000), b"ID3\x03" + bytes(9000), bytes(9000), b"x"):
        path.write_bytes(data + rest)
        assert len(reading.read(path).samples) == 8000
    assert not caplog.messages


@pytest.mark.parametrize("rate", [1, 2**31 - 1])
def test_rates_that_no_recording_has(tmp_path: Path, rate: int) -> None:
    path = written(tmp_path, "WAV", "PCM_16", "FILE")
    data = bytearray(path.read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(data)
    for read in (reading.read, reading.info):
        with pytest.raises(AudioError, match="samples per second"):
            read(path)


def test_a_chunk_larger_than_any_file_is_no_traceback(tmp_path: Path) -> None:
    path = written(tmp_path, "W64", "PCM_16", "FILE")
    data = bytearray(path.read_bytes())
    data[56:64] = bytes([255] * 7 + [127])  # the size of the fmt chunk
    path.write_bytes(data)
    assert sound_headers.read_header(path) is None


def test_bw64_is_wav_with_long_sizes(tmp_path: Path) -> None:
    path = written(tmp_path, "RF64", "PCM_16", "FILE")
    data = b"BW64" + path.read_bytes()[4:]
    path.write_bytes(data)
    assert reading.info(path).seconds == reading.read(path).seconds == 0.5
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="is cut short: its header promises"):
        reading.info(path)


def test_silence_where_the_count_ends_is_no_padding(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    samples = np.concatenate([SOUND, np.zeros_like(SOUND), SOUND])
    soundfile.write(path, samples, 16000, "PCM_16")
    data = path.read_bytes()
    path.write_bytes(data[:40] + (4 * len(SOUND)).to_bytes(4, "little") + data[44:])
    assert reading.read(path).seconds == reading.info(path).seconds == 1.5
    path.write_bytes(
        data[:40] + (8 * len(SOUND)).to_bytes(4, "little") + data[44 : 44 + 8 * len(SOUND)] + bytes(90_000)
    )
    assert reading.read(path).seconds == reading.info(path).seconds == 1.0


def test_mp3_in_wav_is_as_long_as_it_is_read(tmp_path: Path) -> None:
    path = write_compressed(tmp_path / "a.wav", SOUND[:, 0].astype(np.float32), 16000, codec="libmp3lame")
    assert reading.info(path).seconds == pytest.approx(reading.read(path).seconds, abs=0.001)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match="is cut short"):
        reading.info(path)
