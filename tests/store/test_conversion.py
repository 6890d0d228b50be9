"""Recordings and embeddings to stores, and stores to other formats."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.values import EmbeddingSet
from knn_cli.networks.conversion import convert
from knn_cli.store import embedding_readers, embedding_writers, hdf5, kaldi
from knn_cli.store.hdf5 import Store
from knn_cli.store.writer import write_store


@pytest.fixture
def wavs(tmp_path: Path) -> Path:
    folder = tmp_path / "wavs"
    for number, (place, rate) in enumerate((("cs/eva", 8000), ("cs/jan", 44100), ("pl/ola", 16000))):
        (folder / place).mkdir(parents=True)
        sound = np.random.default_rng(number).uniform(-0.5, 0.5, (round(rate * 2.6), 2))
        soundfile.write(folder / place / f"r{number}.flac", sound, rate)
    return folder


def rows_of(path: Path) -> list[hdf5.AudioRow]:
    with Store(path, "audio") as opened:
        return list(opened.segments())


def test_folders_labels_segments_channels(wavs: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = convert(
        wavs,
        tmp_path / "c.h5",
        label_rule="group/speaker/file",
        segment=1.0,
        min_segment=0.5,
        channel="right",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (made.sources, made.rows, made.dropped, made.failures) == (3, 9, 0, [])
    assert seen == [(1, 3), (2, 3), (3, 3)]
    rows = rows_of(tmp_path / "c.h5")
    assert [(row.name, row.group, row.speaker) for row in rows[::3]] == [
        ("r0", "cs", "eva"),
        ("r1", "cs", "jan"),
        ("r2", "pl", "ola"),
    ]
    right = np.random.default_rng(2).uniform(-0.5, 0.5, (41600, 2))[:, 1]
    assert np.allclose(np.concatenate([row.waveform.samples for row in rows[6:]]), right, atol=2 / 32768)


def test_an_interrupted_conversion_goes_on(wavs: Path, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole.h5", tmp_path / "again.h5"
    convert(wavs, whole)

    def pull_the_plug(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(wavs, again, progress=pull_the_plug)
    assert not again.exists()
    made = convert(wavs, again)
    assert (made.earlier, made.sources) == (2, 1)
    for one, other in zip(rows_of(whole), rows_of(again), strict=True):
        assert np.array_equal(one.waveform.samples, other.waveform.samples) and one.name == other.name


def test_one_file(wavs: Path, tmp_path: Path) -> None:
    made = convert(wavs / "pl" / "ola" / "r2.flac", tmp_path / "one.h5", segment=2.0)
    assert (made.rows, made.dropped, round(made.dropped_seconds, 3)) == (1, 1, 0.6)
    assert [row.name for row in rows_of(tmp_path / "one.h5")] == ["r2"]


def test_samples_above_full_scale_are_counted(tmp_path: Path) -> None:
    samples = np.sin(np.arange(32000) / 7)
    loud, ordinary = tmp_path / "in" / "loud.wav", tmp_path / "in" / "ordinary.wav"
    loud.parent.mkdir()
    soundfile.write(loud, np.stack([samples * 1.5, samples * 1.5], axis=1), 16000, subtype="FLOAT")
    soundfile.write(ordinary, np.stack([samples, samples * 1.5], axis=1) / 1.3, 48000, subtype="FLOAT")
    result = convert(tmp_path / "in", tmp_path / "out.h5")
    assert [(clipped.source, round(clipped.peak, 3)) for clipped in result.clipped] == [(loud, 1.5)]
    assert result.clipped[0].samples == np.count_nonzero(np.abs(samples * 1.5) > 1)


def test_samples_in_other_units_are_not_clipped_to_noise(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(32000) / 7) * 32768, 16000, subtype="FLOAT")
    with pytest.raises(KnnError, match=r"up to 3\.277e\+04"):
        convert(tmp_path / "a.wav", tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_mistakes_cost_nothing(wavs: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"out": tmp_path / "c.txt"}, "no name for an audio store"),
        ({"segment": 0.0}, "make no sense"),
        ({"min_segment": 50.0}, "make no sense"),
        ({"label_rule": "a/b/c"}, "no label rule"),
        ({"label_rule": "group/subgroup/speaker/file"}, "asks for 4"),
        ({"segment": 3.0, "min_segment": 3.0}, "shorter than the minimum: 3 remainders"),
        ({"channel": "3"}, "None of the 3 files"),
    ):
        with pytest.raises(KnnError, match=message):
            convert(wavs, **{"out": tmp_path / "c.h5", **arguments})  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["wavs"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no sound")
    with pytest.raises(KnnError, match="holds no audio, no embeddings and no checkpoint"):
        convert(tmp_path / "notes", tmp_path / "c.h5")


def test_text_embeddings_of_the_legacy_format(tmp_path: Path) -> None:
    folder = tmp_path / "emb" / "3-2"
    folder.mkdir(parents=True)
    for number in (10, 2):
        with gzip.open(folder / f"walachian_SPLIT_{number}.i.gz", "wt") as file:
            file.write(f"{number} 0.5 -1e-3\n")
    convert(tmp_path / "emb", tmp_path / "e.h5", recursive=True)
    rows = hdf5.read(tmp_path / "e.h5")
    assert np.allclose(rows.data, [[2, 0.5, -1e-3], [10, 0.5, -1e-3]])
    assert set(rows.name.tolist()) == {"walachian"}
    assert (rows.group[0], rows.subgroup[0]) == ("3", "3-2")


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    rows = EmbeddingSet.from_columns(
        np.random.default_rng(0).normal(size=(4, 3)),
        ["a", "a", "b", "c"],
        group=["cs"] * 4,
        speaker=["eva", "eva", "jan", "jan"],
        start=[0, 1, 0, 0],
        end=[1, 2, 1, 1],
    )
    write_store(tmp_path / "e.h5", rows)
    return tmp_path / "e.h5"


@pytest.mark.parametrize("suffix", [".npz", ".ark", ".scp", ".csv", ".h5"])
def test_stores_become_other_files_and_come_back(embeddings: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    assert convert(embeddings, out).rows == 4
    convert(out, tmp_path / "back.h5")
    before, after = hdf5.read(embeddings), hdf5.read(tmp_path / "back.h5")
    assert np.allclose(before.data, after.data, atol=1e-6)
    assert before.name.tolist() == after.name.tolist() and before.speaker.tolist() == after.speaker.tolist()
    if suffix != ".h5":
        return
    with pytest.raises(StoreError, match="exists already"):
        convert(embeddings, out)


def test_kaldi_folder_of_embeddings(embeddings: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    assert convert(embeddings, out).rows == 4
    names = sorted(path.name for path in out.iterdir())
    assert names == ["embedding.ark", "embedding.scp", "knn.json", "spk2utt", "utt2lang", "utt2spk"]
    speakers = dict(line.split() for line in (out / "utt2spk").read_text().splitlines())
    vectors = dict(kaldi.read_scp(out / "embedding.scp"))
    assert set(speakers) == set(vectors) and list(speakers) == sorted(speakers)
    assert all(utterance.startswith(speaker) for utterance, speaker in speakers.items())
    data = hdf5.read(embeddings).data
    assert sorted(map(tuple, vectors.values())) == sorted(map(tuple, data))
    with pytest.raises(KnnError, match="exists already"):
        convert(embeddings, out)
    convert(embeddings, out, force=True)
    (tmp_path / "corpus" / "audio").mkdir(parents=True)
    for name in ("audio/mine.wav", "utt2spk", "wav.scp"):  # somebody else's data directory
        (tmp_path / "corpus" / name).touch()
    with pytest.raises(KnnError, match=r"it holds audio/mine\.wav"):
        convert(embeddings, tmp_path / "corpus", force=True)


def test_kaldi_folder_of_sound(wavs: Path, tmp_path: Path) -> None:
    convert(wavs, tmp_path / "c.h5", label_rule="group/speaker/file")
    convert(tmp_path / "c.h5", tmp_path / "data")
    scp = dict(line.split(maxsplit=1) for line in (tmp_path / "data" / "wav.scp").read_text().splitlines())
    assert len(scp) == 3 and all(soundfile.info(path).samplerate == 16000 for path in scp.values())
    assert "eva" in (tmp_path / "data" / "spk2utt").read_text()
    with pytest.raises(StoreError, match="cannot be written as"):
        convert(tmp_path / "c.h5", tmp_path / "c.npz")


def test_every_writer_with_a_reader_is_offered() -> None:
    assert {".npz", ".ark", ".scp", ".csv"} <= {*embedding_readers.READERS.names()} & {
        *embedding_writers.WRITERS.names()
    }


@pytest.mark.parametrize("offset", ["9", "1" * 30, "9" * 5000])
def test_offsets_behind_the_end_of_an_archive(tmp_path: Path, offset: str) -> None:
    (tmp_path / "a.ark").write_bytes(b"\0BFV \4\1\0\0\0")
    (tmp_path / "a.scp").write_text(f"utt a.ark:1{offset}\n")
    with pytest.raises(StoreError, match="line 1, points behind the end"):
        list(kaldi.read_scp(tmp_path / "a.scp"))
