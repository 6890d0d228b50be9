"""Corpora: the same sound from a store, a folder and shards; epochs that every process draws alike."""

from __future__ import annotations

import copy
import io
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import AudioError, KnnError, StoreError
from knn_cli.core.values import Floats, Waveform
from knn_cli.store.hdf5 import AudioRow
from knn_cli.store.writer import StoreWriter
from knn_cli.training.corpus_split import split_corpus, usable_rows
from knn_cli.training.dataset import Corpus, epoch_rows, open_corpus
from knn_cli.training.recipe import AugmentConfig, DataConfig, LoopConfig, Recipe
from knn_cli.training.sampling import BatchSampler, ClipDataset

RATE = 16000


def sounds() -> dict[str, Floats]:
    """Path -> sound: a ramp each, so that a sample says where it was."""
    ramp = np.arange(RATE, dtype=np.float32) / 32768
    return {"1-1/a.flac": ramp, "1-2/b.flac": ramp[: RATE // 2] + 0.25, "2-1/c.flac": ramp[:800], "2-1/d.flac": -ramp}


@pytest.fixture(params=["store", "folder", "tar", "shards"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> Corpus:
    if request.param == "store":
        with StoreWriter(tmp_path / "c.h5", "audio", {"rate": RATE}, plan={}) as writer:
            for path, sound in sounds().items():
                place, name = path.removesuffix(".flac").split("/")
                row = AudioRow(Waveform(sound, RATE), name, place[0], place, "", 0.0, len(sound) / RATE)
                writer.add(path, [row])
        return open_corpus(tmp_path / "c.h5")
    if request.param == "folder":
        for path, sound in sounds().items():
            (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "in" / path, sound, RATE)
        return open_corpus(tmp_path / "in")
    if request.param == "tar":
        shard(tmp_path / "one.tar", sounds(), {})
        return open_corpus(tmp_path / "one.tar")
    for number, (path, sound) in enumerate(sounds().items()):
        label, name = path.removesuffix(".flac").split("/")
        shard(tmp_path / f"{number}.tar", {f"{name}.flac": sound}, {f"{name}.cls": label})
    return open_corpus(tmp_path)


def shard(path: Path, sounds: dict[str, Floats], texts: dict[str, str]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, sound in sounds.items():
            buffer = io.BytesIO()
            soundfile.write(buffer, sound, RATE, format="FLAC")
            add(tar, name, buffer.getvalue())
        for name, text in texts.items():
            add(tar, name, text.encode())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_every_kind_of_corpus_gives_the_same(corpus: Corpus) -> None:
    columns = corpus.columns
    assert columns.name.tolist() == ["a", "b", "c", "d"]
    assert columns.subgroup.tolist() == ["1-1", "1-2", "2-1", "2-1"] and columns.group.tolist() == ["1", "1", "2", "2"]
    np.testing.assert_allclose(columns.seconds, [1.0, 0.5, 0.05, 1.0])
    for row, sound in enumerate(sounds().values()):
        np.testing.assert_allclose(corpus.samples(row, 0.0, 60.0), sound, atol=2e-5)
    np.testing.assert_allclose(corpus.samples(0, 0.25, 0.01), sounds()["1-1/a.flac"][4000:4160], atol=2e-5)
    again = copy.copy(corpus)  # as a worker gets it
    np.testing.assert_array_equal(again.samples(1, 0.1, 0.1), corpus.samples(1, 0.1, 0.1))


def test_clips_lie_in_the_row_and_short_rows_are_repeated(corpus: Corpus) -> None:
    first, last = corpus.clip(0, 1600, 0.0), corpus.clip(0, 1600, 0.9999)
    np.testing.assert_allclose(first, sounds()["1-1/a.flac"][:1600], atol=2e-5)
    assert len(last) == 1600 and 14390 / 32768 < last[0] <= 14400 / 32768 and np.all(np.diff(last) > 0)
    short = corpus.clip(2, 2000, 0.7)
    np.testing.assert_allclose(short[:800], short[800:1600])


def test_rows_are_chosen_by_label_and_length(corpus: Corpus) -> None:
    def chosen(level: str, ignore: list[str], minimum: float, maximum: float = 9.0) -> list[int]:
        return usable_rows(corpus, level=level, ignore=ignore, minimum=minimum, maximum=maximum).tolist()

    assert chosen("group", [], 0.1) == [0, 1, 3] and chosen("subgroup", ["1-2"], 0.0) == [0, 2, 3]
    assert chosen("group", [], 0.01, 0.6) == [1, 2]
    with pytest.raises(KnnError, match="there is only '2' in rows"):
        chosen("group", ["1"], 0.0)
    with pytest.raises(KnnError, match="there is none"):
        chosen("speaker", [], 0.0)
    with pytest.raises(KnnError, match=r"2 classes has a single recording .* '1-1', '1-2'"):
        split_corpus(corpus, DataConfig(label="subgroup", minimum=0.0), 0)
    task = split_corpus(corpus, DataConfig(label="group", minimum=0.0, held_out=0.5), 0)
    assert sorted([*task.train_rows, *task.held_out_rows]) == [0, 1, 2, 3] and len(task.held_out_rows) == 2
    assert task.classes.tolist() == [0, 0, 1, 1] and task.labels == ("1", "2")


def test_long_rows_are_kept_and_crops_come_from_all_of_them(tmp_path: Path) -> None:
    """Of rows above data.maximum, a crop lies in a random part of that length, as in wespeaker."""
    ramp = np.arange(4 * RATE, dtype=np.float32) / (4 * RATE)
    for name in ("1-1/a", "1-2/b"):
        (tmp_path / name).parent.mkdir()
        soundfile.write(tmp_path / f"{name}.flac", ramp, RATE)
    corpus = open_corpus(tmp_path)
    data = DataConfig(minimum=0.0, maximum=1.0, seconds=0.5, held_out=0.0)
    assert len(split_corpus(corpus, data, 0).train_rows) == 2
    with pytest.raises(KnnError, match="there is none in rows"):
        split_corpus(corpus, DataConfig(minimum=0.0, maximum=1.0, held_out=0.0, long="leave-out"), 0)
    quiet = AugmentConfig(noise_share=0.0, music_share=0.0, rir_share=0.0)
    clips = ClipDataset(corpus, np.array([0]), np.array([0]), 2, Recipe(data=data, augment=quiet))
    starts = np.array([4 * clips.clip((0, position, 0)).waveforms[0, 0] for position in range(400)])
    assert 0 <= starts.min() < 0.3 and 3.2 < starts.max() <= 3.5
    # The sum of uniform times in [0, 3] and [0, 0.5]: mean 1.75, variance 9/12 + 0.25/12.
    assert starts.mean() == pytest.approx(1.75, abs=0.15) and starts.var() == pytest.approx(0.77, abs=0.12)


def test_recordings_of_shards_have_names_of_their_own(tmp_path: Path) -> None:
    """Shards that number their samples anew, folders within a shard, and pieces of a recording in several shards."""
    ramp = sounds()["1-1/a.flac"][:1600]
    for number in range(2):
        mine = {"000.flac": ramp, f"long_SPLIT_{number}.flac": ramp, "x/000.flac": ramp, f"y{number}/9.flac": ramp}
        shard(tmp_path / f"s-{number}.tar", mine, {"000.cls": "1-1"})
    names = open_corpus(tmp_path).columns.name.tolist()
    assert names == [
        *("s-0/000", "long", "s-0/x/000", "y0/9"),
        *("s-1/000", "long", "s-1/x/000", "y1/9"),
    ]


def test_a_damaged_member_of_a_shard_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        add(tar, "1/000.flac", b"fLaC and nothing else")
    with pytest.raises(AudioError, match=r"1/000\.flac in .*bad\.tar cannot be read: .*codec is missing here"):
        open_corpus(tmp_path / "bad.tar")
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    shard(tmp_path / "one.tar", {"1/a.flac": noise, "2/b.flac": noise}, {})
    corpus = open_corpus(tmp_path / "one.tar")
    data = bytearray((tmp_path / "one.tar").read_bytes())
    data[1200:6000] = bytes(4800)  # the header of a.flac stays
    (tmp_path / "one.tar").write_bytes(data)
    with pytest.raises(AudioError, match=r"1/a\.flac in .*one\.tar cannot be read"):
        corpus.samples(0, 0.0, 1.0)
    (tmp_path / "one.tar").write_bytes(data[:700])
    with pytest.raises(AudioError, match=r"2/b\.flac in .*one\.tar cannot be read"):
        corpus.samples(1, 0.0, 1.0)
    (tmp_path / "one.tar").unlink()
    with pytest.raises(AudioError, match=r"2/b\.flac in .*one\.tar cannot be read: .*No such file"):
        corpus.samples(1, 0.0, 1.0)


def test_a_damaged_row_of_a_store_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StoreWriter(tmp_path / "c.h5", "audio", {"rate": RATE}, plan={}) as writer:
        writer.add("a", [AudioRow(Waveform(np.zeros(800, np.float32), RATE), "a", "1", "1", "", 0.0, 0.05)])
    import h5py

    with h5py.File(tmp_path / "c.h5", "r+") as file:
        file["Audio"][0] = np.frombuffer(b"no flac", dtype=np.uint8)
    with pytest.raises(AudioError, match=r"Row 0 of .*c\.h5 cannot be read"):
        open_corpus(tmp_path / "c.h5").samples(0, 0.0, 1.0)


def test_members_of_impossible_sizes(tmp_path: Path) -> None:
    large, sparse = tarfile.TarInfo("a.cls"), tarfile.TarInfo("a.cls")
    sparse.pax_headers = {"GNU.sparse.map": "1,", "GNU.sparse.size": "x"}
    large.size = (1 << 20) + 1
    for member, message in ((large, r"a\.cls has holes, or more than 1024 KB"), (sparse, "is no tar shard")):
        (tmp_path / "bad.tar").write_bytes(member.tobuf() + bytes(1 << 21))
        with pytest.raises(AudioError, match=message):
            open_corpus(tmp_path / "bad.tar")


def test_what_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar")
    with pytest.raises(AudioError, match="no tar shard"):
        open_corpus(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match="holds no audio files"):
        open_corpus(tmp_path / "empty")
    with pytest.raises(AudioError, match="nothing does not exist"):
        open_corpus(tmp_path / "nothing")
    with StoreWriter(tmp_path / "c.h5", "audio", {"rate": 8000}, plan={}) as writer:
        writer.add("a", [AudioRow(Waveform(np.zeros(800, np.float32), 8000), "a", "", "", "", 0.0, 0.1)])
    with pytest.raises(StoreError, match="8000 Hz, the network takes 16000"):
        open_corpus(tmp_path / "c.h5")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 90), st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_an_epoch_draws_every_row_before_any_comes_again(labels: list[int], count: int, epoch: int) -> None:
    classes = np.asarray(labels)
    rows = epoch_rows(classes, count=count, balance=0.0, seed=3, epoch=epoch)
    times = np.bincount(rows, minlength=len(classes))
    assert len(rows) == count and times.max() - times.min() <= 1
    np.testing.assert_array_equal(rows, epoch_rows(classes, count=count, balance=0.0, seed=3, epoch=epoch))


def test_balance_evens_the_classes_out() -> None:
    classes = np.repeat([0, 1, 2], [900, 90, 10])

    def shares(balance: float) -> list[float]:
        drawn = classes[epoch_rows(classes, count=6000, balance=balance, seed=0, epoch=0)]
        return (np.bincount(drawn) / 6000).tolist()

    assert shares(1.0) == pytest.approx([1 / 3] * 3, abs=0.02)
    half = np.sqrt([900, 90, 10]) / np.sqrt([900, 90, 10]).sum()
    assert shares(0.5) == pytest.approx(half.tolist(), abs=0.02)
    assert not np.array_equal(*(epoch_rows(classes, count=50, balance=1.0, seed=0, epoch=one) for one in (0, 1)))


def test_processes_workers_and_resumption_change_no_clip(corpus: Corpus) -> None:
    rows, classes = np.asarray([0, 1, 3]), np.asarray([0, 0, 1])

    def batches(rank: int, processes: int, accumulate: int = 1, workers: int = 0, first: int = 0) -> list[list[Floats]]:
        recipe = Recipe(
            data=DataConfig(seconds=0.1, clips=12, workers=workers),
            augment=AugmentConfig(speeds=(0.9, 1.1), gain_decibels=6.0),
            loop=LoopConfig(batch=4, accumulate=accumulate),
        )
        plan = BatchSampler(ClipDataset(corpus, rows, classes, 2, recipe), recipe, rank, processes)
        assert plan.steps == 3
        return [[part.waveforms for part in parts] for _, parts in plan.batches(5, first)]

    whole = [np.concatenate(step) for step in batches(0, 1)]
    assert len(whole) == 3 and whole[0].shape == (4, 1600)
    for other in (batches(0, 1, accumulate=2), batches(0, 1, workers=1)):
        np.testing.assert_array_equal([np.concatenate(step) for step in other], whole)
    np.testing.assert_array_equal([np.concatenate(step) for step in batches(0, 1, first=1)], whole[1:])
    two = zip(batches(0, 2, 2), batches(1, 2, 2), strict=True)
    np.testing.assert_array_equal([np.concatenate([*one, *other]) for one, other in two], whole)
    with pytest.raises(KnnError, match="cannot be shared by 3 processes"):
        batches(0, 3)


def test_videos_of_voxlingua_stay_whole(tmp_path: Path) -> None:
    """Segments of one video have one name under the recipes' rule, so that no split can part them."""
    from knn_cli.store import labels
    from knn_cli.training import recipe_reader

    recipes = Path(__file__).resolve().parents[2] / "examples" / "recipes"
    rule = labels.rule(recipe_reader.read(recipes / "voxlingua107-wavlm-mhfa.toml").data.labels)
    found = [rule(PurePosixPath(f"cs/abc-_9__U__S{n}---0010.0-0020.0.wav")) for n in (1, 2)]
    assert found[0] == found[1] == labels.Labels("abc-_9", "cs")
