"""Recordings joined byte for byte are all read, whatever their format, and one recording stays one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.audio import decoding, reading, reading_notes
from knn_cli.audio.joined_files import find_parts
from knn_cli.core.errors import AudioError
from tests.helpers.compressed import write_compressed

RATE = 16000
NOISE = np.random.default_rng(0).normal(size=RATE).astype(np.float32) * 0.1
UNCOMPRESSED = ["wav", "rf64", "w64", "aiff", "au", "caf", "flac", "sph", "voc"]
COMPRESSED = ["ogg", "opus", "mka", "mkv", "webm", "m4a", "mp4", "mov", "3gp", "flv", "wv", "tta"]
FORMATS = {"rf64": "RF64", "sph": "NIST"}
CODECS = {"ogg": "libopus", "tta": "tta", "mov": "pcm_s16le"}


def written(path: Path, samples: np.ndarray = NOISE, rate: int = RATE) -> Path:
    kind = path.suffix[1:]
    if kind in UNCOMPRESSED:
        soundfile.write(path, samples, rate, format=FORMATS.get(kind))
        return path
    return write_compressed(path, np.repeat(samples, 3), 3 * rate, codec=CODECS.get(kind, ""))


@pytest.mark.parametrize("kind", [*UNCOMPRESSED, *COMPRESSED])
def test_all_recordings_of_a_file_are_read(tmp_path: Path, kind: str) -> None:
    one = written(tmp_path / f"a.{kind}")
    assert find_parts(one) == ((0, one.stat().st_size),)
    seconds, data = reading.read(one).seconds, one.read_bytes()
    three = tmp_path / f"three.{kind}"
    three.write_bytes(data * 3)
    assert find_parts(three) == tuple((number * len(data), (number + 1) * len(data)) for number in range(3))
    notes: list[str] = []
    with reading_notes.listening(lambda path, clause, loss: notes.append(clause)):
        samples = reading.read(three).samples
        assert reading.info(three).seconds == pytest.approx(3 * seconds, abs=0.001)
    assert len(samples) / RATE == pytest.approx(3 * seconds, abs=0.001)
    assert notes == ["is 3 recordings, one behind the other; all of them are read"]
    third = samples[round(2 * seconds * RATE) :][: len(NOISE)]
    assert np.abs(third).max() > 0.2  # not silence in place of what was not read


def test_each_has_its_own_rate_and_channels(tmp_path: Path) -> None:
    first, second = tmp_path / "a.flac", tmp_path / "b.flac"
    soundfile.write(first, NOISE, RATE)
    soundfile.write(second, np.stack([NOISE, NOISE], 1), 8000)
    first.write_bytes(first.read_bytes() + second.read_bytes())
    assert reading.read(first).seconds == pytest.approx(3.0, abs=0.001)
    assert reading.info(first).seconds == pytest.approx(3.0, abs=0.001)


def test_large_files_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.opus")
    path.write_bytes(path.read_bytes() * 2)
    monkeypatch.setattr("knn_cli.audio.sources.MAX_EXACT_BYTES", 0)
    assert reading.info(path).seconds == pytest.approx(2.0, abs=0.01)


def test_fragments_whose_times_go_on_are_one_recording(tmp_path: Path) -> None:
    def box(name: bytes, content: bytes = b"") -> bytes:
        return (8 + len(content)).to_bytes(4, "big") + name + content

    path = tmp_path / "a.mp4"
    for time, count in ((0, 2), (48000, 1)):
        moof = box(b"moof", box(b"tfdt", b"\0" * 4 + time.to_bytes(4, "big")))
        path.write_bytes(box(b"ftyp", b"isom") + box(b"moov") + box(b"ftyp", b"isom") + box(b"moov") + moof)
        assert len(find_parts(path)) == count


def test_a_film_without_its_index_is_cut_short(tmp_path: Path) -> None:
    path = written(tmp_path / "a.m4a")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match="is cut short: the index"):
        reading.info(path)


def test_shorten_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.sph"
    path.write_bytes(
        b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n".ljust(1024) + b"ajkg"
    )
    with pytest.raises(AudioError, match="compressed by Shorten"):
        reading.info(path)


def test_damage_behind_the_first_is_said(tmp_path: Path) -> None:
    path = written(tmp_path / "a.webm")
    path.write_bytes(path.read_bytes() + path.read_bytes()[:150])
    notes: list[str] = []
    with reading_notes.listening(lambda path, clause, loss: notes.append(clause)):
        assert reading.read(path).seconds == pytest.approx(1.0, abs=0.05)
    assert any("the recording behind 1.0 s cannot be read" in note for note in notes)


@pytest.mark.parametrize("kind", ["aiff", "wav", "flac", "opus", "m4a", "caf"])
def test_tags_before_a_recording_are_passed(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / f"a.{kind}")
    seconds = reading.read(path).seconds
    path.write_bytes(b"ID3\x04\0\0\0\0\x10\0" + bytes(2048) + path.read_bytes())
    assert reading.read(path).seconds == reading.info(path).seconds == pytest.approx(seconds, abs=0.001)


def test_silence_in_the_middle_of_a_page_is_no_beginning(tmp_path: Path) -> None:
    """The magic words in samples, at any place of the blocks that are looked through, begin nothing."""
    path = tmp_path / "a.wav"
    samples = np.frombuffer((b"RIFF" + bytes(4) + b"WAVX" + b"OggS\0\x02fLaC") * 70_000, np.int16)
    soundfile.write(path, samples, RATE)
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes(4) + data[44:])  # a header that was never finished: all of it is looked through
    assert len(find_parts(path)) == 1


def test_a_pointer_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    with pytest.raises(AudioError, match="Git LFS pointer"):
        reading.read(path)
    with pytest.raises(AudioError, match="Git LFS pointer"):
        decoding.opened(path).__enter__()
