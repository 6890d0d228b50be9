"""Embeddings of stores: those of the sound itself, resumed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.core.values import Waveform
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.files import embed_file
from knn_cli.embedding.stores import embed_rows
from knn_cli.store.hdf5 import AudioRow, Store
from knn_cli.store.writer import StoreWriter


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder("tiny-test", device="cpu")


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=round(seconds * 16000)) * 0.1).astype(np.float32)


def test_file_store_and_call_agree(tiny: Embedder, tmp_path: Path) -> None:
    sound = np.round(noise(3.0) * 32768).clip(-32768, 32767) / 32768
    soundfile.write(tmp_path / "a.wav", sound, 16000)
    direct = tiny([sound.astype(np.float32)])[0]
    by_file = embed_file(tmp_path / "a.wav", tiny, use_vad=False)
    assert np.allclose(by_file.data[0], direct, atol=1e-5)
    assert (by_file.start[0], by_file.end[0], by_file.name[0]) == (0.0, 3.0, "a")
    assert by_file.embedder == tiny.bundle.fingerprint
    row = AudioRow(Waveform(sound.astype(np.float32), 16000), "a", "g", "g-1", "s", 0.0, 3.0)
    with StoreWriter(tmp_path / "a.h5", "audio", {"rate": 16000}, plan={}) as writer:
        writer.add("a", [row, row])
    with Store(tmp_path / "a.h5") as store:
        (group,) = embed_rows(store, tiny, use_vad=False)
    assert np.allclose(group.embeddings.data, direct, atol=1e-5)
    assert (group.without_speech, group.done, group.embeddings.subgroup[0]) == (0, 2, "g-1")
