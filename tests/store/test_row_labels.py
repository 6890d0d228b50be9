"""Keys and utterance names of other programs: names of recordings and labels by the rule of paths."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.values import EmbeddingSet
from knn_cli.networks.conversion import convert
from knn_cli.store import hdf5, kaldi, labels
from knn_cli.store.embedding_readers import read_embeddings

RECORDINGS = {"10_0123_A": "1-1", "11_0456_B": "1-2", "12_0789_C": "3-3"}
KEYS = [f"NAKI/{folder}/{name}_SPLIT_{piece:03d}.wav" for name, folder in RECORDINGS.items() for piece in range(46)]


def script(folder: Path, keys: list[str] = KEYS) -> Path:
    """An embedding per key, as extraction in the wespeaker forks leaves them."""
    data = np.random.default_rng(0).normal(size=(len(keys), 4)).astype(np.float32)
    with (folder / "xvector.ark").open("wb") as file:
        offsets = kaldi.write_ark(file, keys, data)
    lines = [f"{key} xvector.ark:{offset}\n" for key, offset in zip(keys, offsets, strict=True)]
    (folder / "xvector.scp").write_text("".join(lines), encoding="utf-8")
    return folder / "xvector.scp"


@pytest.mark.parametrize("suffix", [".scp", ".ark"])
def test_pieces_of_one_recording_are_one_recording(tmp_path: Path, suffix: str) -> None:
    """138 keys of three recordings; utt2spk, made of the keys' folders, holds no speakers."""
    path = script(tmp_path)
    (tmp_path / "utt2spk").write_text("".join(f"{key} {key.split('/')[1]}\n" for key in KEYS))
    rows = read_embeddings(path.with_suffix(suffix))
    assert rows.name.tolist() == [name for name in RECORDINGS for _ in range(46)]
    assert rows.subgroup.tolist() == [folder for folder in RECORDINGS.values() for _ in range(46)]
    assert set(rows.group.tolist()) == {"1", "3"} and set(rows.speaker.tolist()) == {""}


def test_speakers_stay_speakers_and_languages_become_both_levels(tmp_path: Path) -> None:
    path = script(tmp_path, ["id1/video/00001.wav", "utt2"])
    (tmp_path / "utt2spk").write_text("id1/video/00001.wav id1\nutt2 eva\n")
    (tmp_path / "utt2lang").write_text("id1/video/00001.wav 3-2\n")
    rows = read_embeddings(path)
    assert rows.speaker.tolist() == ["id1", "eva"]
    assert (rows.group.tolist(), rows.subgroup.tolist()) == (["3", ""], ["3-2", ""])


def test_rules_hold_for_keys_and_say_what_they_do_not_match(tmp_path: Path) -> None:
    path = script(tmp_path)
    found = read_embeddings(path, label_rule=r"/(?P<group>\d)-(?P<subgroup>\d)/(?P<speaker>\d+)_")
    assert set(zip(found.group, found.subgroup, found.speaker, strict=True)) == {
        *(("1", "1", "10"), ("1", "2", "11"), ("3", "3", "12"))
    }
    assert len(set(found.name.tolist())) == 3
    with pytest.raises(KnnError, match=r"does not match NAKI/3-3/12_0789_C_SPLIT_000\.wav\. So it is with 46 of 138"):
        read_embeddings(path, label_rule=r"NAKI/(?P<subgroup>1-\d)/")
    (tmp_path / "labels.csv").write_text("name,dialect\n10_0123_A,x\n11_0456_B,y\n")
    with pytest.raises(KnnError, match=r"no row for NAKI/3-3/.*46 of 138"):
        read_embeddings(path, label_rule=str(tmp_path / "labels.csv"))


@pytest.mark.parametrize("name", ["e.npz", "e.csv", "e.h5", "old.h5", "folder"])
def test_every_reader_takes_the_rule(tmp_path: Path, name: str) -> None:
    rule, keys = r"(?P<name>[^/]+)_(?P<speaker>\d)$", ["a_1", "b_2"]
    rows = EmbeddingSet.from_columns([[1, 2], [3, 4]], keys, subgroup=["cs-x", "cs-y"])
    path = tmp_path / name
    if name == "old.h5":
        with h5py.File(path, "w") as file:
            file["Data"], file["Name"] = rows.data, np.array([["a_1"], ["b_2"]], dtype="S")
    elif name == "e.h5":
        from knn_cli.store.writer import write_store

        write_store(path, rows)
    elif name == "folder":
        import gzip

        path.mkdir()
        for key in keys:
            (path / f"{key}.i.gz").write_bytes(gzip.compress(b"1 2"))
    else:
        from knn_cli.store.embedding_writers import write_embeddings

        write_embeddings(path, rows)
    convert(path, tmp_path / "out.h5", label_rule=rule)
    found = hdf5.read(tmp_path / "out.h5")
    assert found.name.tolist() == ["a", "b"] and found.speaker.tolist() == ["1", "2"]
    with pytest.raises(KnnError, match="does not match"):
        convert(path, tmp_path / "none.h5", label_rule="(?P<group>none)")


def test_old_stores_of_keys_are_read_as_recordings(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["Data"] = np.zeros((len(KEYS), 2), np.float32) + 1
        file["Name"] = np.array(KEYS, dtype="S")
    rows = hdf5.read(tmp_path / "old.h5")
    assert sorted(set(rows.name.tolist())) == [f"NAKI/{folder}/{name}" for name, folder in RECORDINGS.items()]
    assert set(rows.subgroup.tolist()) == {"1-1", "1-2", "3-3"} and set(rows.group.tolist()) == {"1", "3"}


def test_what_has_no_label_is_counted(tmp_path: Path) -> None:
    result = convert(script(tmp_path, ["REC_SPLIT_0", "REC_SPLIT_1", "3-2/b.wav"]), tmp_path / "out.h5")
    assert (result.sources, result.unlabelled) == (2, ["REC"])
    assert labels.rule("folder")(Path("3-2/x.wav")).group == "3"
