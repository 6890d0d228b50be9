"""FLAC in memory."""

from __future__ import annotations

import numpy as np

from knn_cli.audio.flac_bytes import decode_flac, encode_flac, memory_file


def test_samples_come_back() -> None:
    samples = np.round(0.5 * np.sin(np.arange(3200) / 7) * 32768).astype(np.float32) / 32768
    assert np.array_equal(decode_flac(encode_flac(samples, 16000)), samples)
    assert encode_flac(np.array([2.0, -2.0], np.float32), 8000) == encode_flac(np.array([1.0, -1.0], np.float32), 8000)


def test_a_file_in_memory_is_read_from_its_beginning() -> None:
    with memory_file(b"abc") as file:
        assert file.read() == b"abc" and file.fileno() > 2
