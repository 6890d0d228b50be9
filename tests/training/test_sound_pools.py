"""Noises and impulse responses from a folder and from an LMDB, as wespeaker makes it."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.core.errors import AudioError, KnnError
from knn_cli.training.sound_pools import sound_pool

RATE = 16000
RAMP = np.arange(RATE, dtype=np.float32) / 32768


class Trap:
    """What a pickle may run."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path("never").mkdir, ()


def database(path: Path, sounds: dict[str, bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for key, data in sounds.items():
            transaction.put(key.encode(), data)
        transaction.put(b"__keys__", pickle.dumps(Trap()))
    return path


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["folder", "lmdb"])
def test_parts_come_from_all_of_a_sound(kind: str, tmp_path: Path) -> None:
    if kind == "lmdb":
        path = database(tmp_path / "lmdb", {"musan/noise/a.wav": wav(RAMP), "musan/noise/b.wav": wav(-RAMP)})
    else:
        path = tmp_path
        for name, sound in (("a", RAMP), ("b", -RAMP)):
            soundfile.write(tmp_path / f"{name}.wav", sound, RATE)
    pool = sound_pool(str(path))
    assert pool is not None and pool.count == 2
    random = np.random.default_rng(0)
    parts = np.array([pool.draw_part(1600, RATE, random) for _ in range(200)])
    np.testing.assert_allclose(np.abs(np.diff(parts)), 1 / 32768, atol=1e-6)
    starts = np.abs(parts[:, 0]) * 32768
    assert starts.min() < 1500 and 13000 < starts.max() <= RATE - 1600 and 60 < np.sum(parts[:, -1] < 0) < 140
    np.testing.assert_allclose(np.abs(pool.draw(RATE, random)), RAMP, atol=1e-5)
    assert len(pool.draw(8000, random)) == 8000 and len(pool.draw_part(3 * RATE, RATE, random)) == 3 * RATE
    assert not Path("never").exists()


def test_a_pool_goes_to_other_processes(tmp_path: Path) -> None:
    pool = sound_pool(str(database(tmp_path / "lmdb", {"a": wav(RAMP)})))
    assert pool is not None
    first = pool.draw(RATE, np.random.default_rng(0))
    again = pickle.loads(pickle.dumps(pool))  # noqa: S301 - our own
    np.testing.assert_array_equal(again.draw(RATE, np.random.default_rng(0)), first)
    twice = sound_pool(str(tmp_path / "lmdb"))  # as noise and as music
    assert twice is not None and twice.count == 1


def test_what_is_no_pool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sound_pool("") is None
    with pytest.raises(KnnError, match="missing or holds no audio"):
        sound_pool(str(tmp_path / "none"))
    with pytest.raises(KnnError, match=r"LMDB .*is empty"):
        sound_pool(str(database(tmp_path / "empty", {})))
    pool = sound_pool(str(database(tmp_path / "bad", {"x": b"no sound"})))
    assert pool is not None
    with pytest.raises(AudioError, match=r"x in .*bad is no sound"):
        pool.draw(RATE, np.random.default_rng(0))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(KnnError, match="is no LMDB that can be read"):
        sound_pool(str(tmp_path / "damaged"))
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(KnnError, match="needs the package lmdb"):
        sound_pool(str(tmp_path / "bad"))
