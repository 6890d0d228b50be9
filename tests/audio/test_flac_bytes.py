"""Sound in memory."""

from __future__ import annotations

import os

import numpy as np
import pytest
import soundfile

from knn_cli.audio.flac_bytes import decode_flac, encode_flac, memory_file, memory_sound


def test_samples_come_back() -> None:
    samples = np.round(0.5 * np.sin(np.arange(3200) / 7) * 32768).astype(np.float32) / 32768
    assert np.array_equal(decode_flac(encode_flac(samples, 16000)), samples)
    assert encode_flac(np.array([2.0, -2.0], np.float32), 8000) == encode_flac(np.array([1.0, -1.0], np.float32), 8000)


def test_a_file_in_memory_is_read_from_its_beginning() -> None:
    with memory_file(b"abc") as file:
        assert file.read() == b"abc" and file.fileno() > 2


@pytest.mark.skipif("MP3" not in soundfile.available_formats(), reason="libsndfile writes no MP3")
def test_what_the_decoder_of_mp3_says_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    with memory_file() as file:
        with soundfile.SoundFile(file.fileno(), "w", 16000, 1, format="MP3", closefd=False) as writer:
            writer.write(np.sin(np.arange(80000) / 7))
        file.seek(0)
        data = file.read()
    half = data[: len(data) // 2]
    with memory_file(half) as file, soundfile.SoundFile(file.fileno(), closefd=False):
        assert "Xing" in capfd.readouterr().err  # else there is nothing to keep quiet
    with memory_sound(half) as sound:
        assert sound.samplerate == 16000 and len(sound.read())
    with pytest.raises(soundfile.LibsndfileError), memory_sound(b"no sound"):
        pass
    os.write(2, b"here again")
    assert capfd.readouterr().err == "here again"
