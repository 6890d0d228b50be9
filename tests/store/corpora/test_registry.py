"""Every kind of corpus gives the same rows to `convert`, `embed` and `train`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from knn_cli.audio import reading
from knn_cli.core.errors import KnnError
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.files import embed_recordings
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.networks.conversion import convert
from knn_cli.store.corpora.registry import kind_of, read_corpora, read_corpus, readers
from knn_cli.store.hdf5 import Store
from knn_cli.training.dataset import open_corpus
from tests.helpers.corpora import CORPORA, PIECES, RATE, SECONDS, sound

EXPECTED = Counter(PIECES.values())
NO_SOUND = {"a list of features"}


@pytest.fixture(params=CORPORA)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    make, speaker = CORPORA[request.param]
    (tmp_path / "in").mkdir()
    return make(tmp_path / "in"), speaker


def test_every_reader_is_tried(tmp_path: Path) -> None:
    tried = set()
    for number, (make, _) in enumerate(CORPORA.values()):
        (tmp_path / str(number)).mkdir()
        found = kind_of(make(tmp_path / str(number)))
        assert found is not None
        tried.add(found.name)
    assert tried | NO_SOUND == {reader.name for reader in readers()}


def test_a_corpus_becomes_a_store(made: tuple[Path, str], tmp_path: Path) -> None:
    path, speaker = made
    result = convert(path, tmp_path / "out.h5")
    assert not result.failures and not result.unlabelled and result.seconds == pytest.approx(SECONDS * len(PIECES))
    with Store(tmp_path / "out.h5") as store:
        rows = list(store.segments())
    assert Counter((row.name, row.subgroup) for row in rows) == EXPECTED
    assert {row.group for row in rows} == {"1", "2"} and {row.speaker for row in rows} == {speaker}
    expected = np.sort([np.square(sound(key)).sum() for key in PIECES])
    found = np.sort([np.square(row.waveform.samples).sum() for row in rows])
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    again = convert(path, tmp_path / "again.h5")  # rows do not depend on what was done before
    assert again.rows == result.rows


def test_a_corpus_is_trained_on(made: tuple[Path, str]) -> None:
    path, speaker = made
    corpus = open_corpus(path)
    columns = corpus.columns
    assert Counter(zip(columns.name.tolist(), columns.subgroup.tolist(), strict=True)) == EXPECTED
    assert set(columns.speaker.tolist()) == {speaker}
    np.testing.assert_allclose(columns.seconds, SECONDS)
    powers = [np.square(corpus.samples(row, 0.0, 60.0)).sum() for row in range(len(corpus))]
    np.testing.assert_allclose(np.sort(powers), np.sort([np.square(sound(key)).sum() for key in PIECES]), rtol=1e-3)
    whole = corpus.samples(3, 0.0, 60.0)
    np.testing.assert_array_equal(corpus.samples(3, 0.5, 0.25), whole[RATE // 2 : RATE * 3 // 4])
    assert len(corpus.sound_digest) == 64


def test_a_corpus_is_embedded(made: tuple[Path, str]) -> None:
    path, _ = made
    embedder = Embedder("tiny-test", device="cpu")
    found = [rows for _, rows in embed_recordings(read_corpus(path), embedder, EmbeddingOptions(use_vad=False))]
    names = Counter((name, sub) for rows in found for name, sub in zip(rows.name.tolist(), rows.subgroup, strict=True))
    assert names == EXPECTED
    data = np.concatenate([rows.data for rows in found])
    oracle = embedder([sound(key) for key in PIECES])
    distance = np.abs(data[:, None] - oracle[None]).max(axis=2)
    assert np.all(np.sort(distance.min(axis=0)) < 1e-3) and len(data) == len(oracle)


def test_rules_hold_for_every_kind(made: tuple[Path, str]) -> None:
    path, _ = made
    with pytest.raises(KnnError, match=r"does not match .*So it is with 6 of 6"):
        read_corpus(path, "(?P<group>nowhere)")


@pytest.mark.parametrize("name", ["kaldi", "raw list", "shard list", "metadata"])
def test_what_a_corpus_states_is_of_the_level_that_is_asked_for(name: str, tmp_path: Path) -> None:
    path = CORPORA[name][0](tmp_path)
    for level in ("speaker", "subgroup", "group"):
        found = [part.labels for recording in read_corpus(path, level) for part in recording.parts]
        assert Counter((label.name, getattr(label, level)) for label in found) == EXPECTED
    (tmp_path / "bare").mkdir()
    with pytest.raises(KnnError, match=r"states no class of 6 of 6 utterances, such as 1-1/10_A_SPLIT_000\.wav"):
        read_corpus(CORPORA["folder"][0](tmp_path / "bare"), "subgroup")


def test_several_corpora_keep_their_recordings_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        CORPORA["metadata"][0](tmp_path / name)
    names = {part.labels.name for one in read_corpora([tmp_path / "a", tmp_path / "b"]) for part in one.parts}
    assert len(names) == 6
    assert len(read_corpora([tmp_path / "a", tmp_path / "a"])) == len(PIECES)
    assert reading.info(read_corpora([tmp_path / "a"])[0].sound.path).seconds == SECONDS


def test_two_lengths_of_one_recording_are_refused(tmp_path: Path) -> None:
    """Lists of one file may say how long it is; where they differ, one of them is of another file."""
    kaldi_segments, name = CORPORA["kaldi segments"][0], "10_A"
    kaldi_segments(tmp_path)
    with (tmp_path / "wav.scp").open("a") as file:
        file.write(f"again {name}.flac\n")
    (tmp_path / "segments").unlink()
    (tmp_path / "utt2lang").unlink()
    (tmp_path / "utt2spk").unlink()
    for other, refused in (("6.0", False), ("5.0", True)):
        (tmp_path / "reco2dur").write_text(f"{name} 6.0\nagain {other}\n")
        if refused:
            with pytest.raises(KnnError, match=r"10_A\.flac has two lengths in its lists"):
                read_corpus(tmp_path)
        else:
            assert len(read_corpus(tmp_path)) == 3


def test_spk2utt_that_names_what_no_list_has_is_refused(tmp_path: Path) -> None:
    CORPORA["kaldi speakers"][0](tmp_path)
    with (tmp_path / "spk2utt").open("a") as file:
        file.write("3-1 nowhere.wav\n")
    with pytest.raises(KnnError, match=r"spk2utt names nowhere\.wav, which is in no other list"):
        read_corpus(tmp_path)
