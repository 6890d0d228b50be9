"""Embeddings in and out: round trips, other programs' files, and files that are not what they say."""

from __future__ import annotations

import errno
import gzip
import io
import os
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.texts import tidy
from knn_cli.core.values import EmbeddingSet
from knn_cli.store import embedding_readers, kaldi
from knn_cli.store.embedding_readers import READERS, read_embeddings
from knn_cli.store.embedding_writers import WRITERS, utterance_ids, write_embeddings, write_text

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Any text that UTF-8 holds; numpy's texts lose NULs at their end.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6).map(tidy)
WORDS = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=6).map(tidy)


@st.composite
def sets(draw: st.DrawFn, texts: st.SearchStrategy[str] = TEXTS, centiseconds: bool = False) -> EmbeddingSet:
    rows = draw(st.integers(1, 5))
    data = draw(hnp.arrays(np.float32, (rows, draw(st.integers(1, 4))), elements=FINITE))
    columns = [draw(st.lists(texts, min_size=rows, max_size=rows)) for _ in range(4)]
    if centiseconds:
        starts = draw(st.lists(st.integers(0, 10**8), min_size=rows, max_size=rows, unique=True))
        times = [np.asarray(starts) / 100, np.asarray(starts) / 100 + 0.25]
    else:
        floats = st.floats(0, 1e9, allow_subnormal=False) | st.just(np.nan)
        times = [np.asarray(draw(st.lists(floats, min_size=rows, max_size=rows))) for _ in range(2)]
    return EmbeddingSet.from_columns(
        data, columns[0], group=columns[1], subgroup=columns[2], speaker=columns[3], start=times[0], end=times[1]
    )


def same(
    one: EmbeddingSet, two: EmbeddingSet, columns: tuple[str, ...] = ("name", "group", "subgroup", "speaker")
) -> None:
    np.testing.assert_array_equal(one.data, two.data)
    assert two.data.dtype == np.float32
    for column in columns:
        assert getattr(one, column).tolist() == getattr(two, column).tolist(), column


def written(embeddings: EmbeddingSet, name: str) -> EmbeddingSet:
    with tempfile.TemporaryDirectory() as folder:
        write_embeddings(Path(folder) / name, embeddings)
        assert not list(Path(folder).glob("*.part"))
        return read_embeddings(Path(folder) / name)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".tsv"])
@given(embeddings=sets())
@settings(max_examples=30, deadline=None)
def test_tables_round_trip(suffix: str, embeddings: EmbeddingSet) -> None:
    again = written(embeddings, f"e{suffix}")
    same(embeddings, again)
    np.testing.assert_array_equal(embeddings.start, again.start)
    np.testing.assert_array_equal(embeddings.end, again.end)


@pytest.mark.parametrize("suffix", [".ark", ".scp"])
@given(embeddings=sets(WORDS, centiseconds=True))
@settings(max_examples=30, deadline=None)
def test_kaldi_round_trip(suffix: str, embeddings: EmbeddingSet) -> None:
    again = written(embeddings, f"e{suffix}")
    same(embeddings, again)
    np.testing.assert_allclose(embeddings.start, again.start, atol=0.006)
    np.testing.assert_allclose(embeddings.end, again.end, atol=0.006)


@given(embeddings=sets(WORDS))
@settings(max_examples=30, deadline=None)
def test_text_round_trip(embeddings: EmbeddingSet) -> None:
    same(embeddings, written(embeddings, "e.txt"), columns=("name",))


@pytest.mark.parametrize("suffix", sorted(set(WRITERS.names()) & set(READERS.names())))
def test_every_writer_that_has_a_reader_gives_the_vectors_back(suffix: str) -> None:
    data = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    embeddings = EmbeddingSet.from_columns(data, [f"r{row}" for row in range(7)])
    same(embeddings, written(embeddings, f"e{suffix}"))


def test_npz_keeps_the_embedder() -> None:
    embeddings = EmbeddingSet.from_columns([[1, 2]], ["r"], embedder="fingerprint")
    assert written(embeddings, "e.npz").embedder == "fingerprint"


# ---------------------------------------------------------------------------------------------- text embeddings, gzip


def gz(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_folder_of_text_embeddings(tmp_path: Path) -> None:
    for folder, name, numbers in [
        ("10-1", "c_SPLIT_000.i.gz", "9 9"),
        ("3-2", "rec10_SPLIT_000.i.gz", "5.5 -6e-1\n"),
        ("3-2", "rec2_SPLIT_010.i.gz", "3 4"),
        ("3-2", "rec2_SPLIT_002.i.gz", "1\t2\n\n"),
        ("3-2", "v1.2 (x).i.gz", "7,8"),
    ]:
        gz(tmp_path / folder / name, numbers)
    found = read_embeddings(tmp_path, recursive=True)
    assert found.name.tolist() == ["rec2", "rec2", "rec10", "v1.2 (x)", "c"]
    assert found.group.tolist() == ["3", "3", "3", "3", "10"]
    assert found.subgroup.tolist() == ["3-2", "3-2", "3-2", "3-2", "10-1"]
    np.testing.assert_array_equal(found.data, np.float32([[1, 2], [3, 4], [5.5, -0.6], [7, 8], [9, 9]]))
    same(found.take(slice(0, 4)), read_embeddings(tmp_path / "3-2"))
    same(found.take([2]), read_embeddings(tmp_path / "3-2" / "rec10_SPLIT_000.i.gz"))
    with pytest.raises(StoreError, match=r"holds no text embeddings.*recursive"):
        read_embeddings(tmp_path)


def test_text_embeddings_of_two_lengths_name_both(tmp_path: Path) -> None:
    gz(tmp_path / "a_SPLIT_1.i.gz", "1 2 3")
    gz(tmp_path / "b_SPLIT_1.i.gz", "1 2")
    with pytest.raises(StoreError, match=r"b_SPLIT_1\.i\.gz has 2 dimensions, that in .*a_SPLIT_1\.i\.gz has 3"):
        read_embeddings(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "0 lines"),
        ("1 2\n3 4", "2 lines"),
        ("1 two 3", "no number"),
        ("0,12 0,13", "no number"),
        ("1 nan", "NaN"),
        ("1 inf", "infinite"),
        ("1 1e300", "infinite"),
        ("1 é", "gzip file of numbers"),
    ],
)
def test_bad_text_embeddings(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        read_embeddings(gz(tmp_path / "bad.i.gz", text))
    assert "bad.i.gz" in caught.value.message


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(300).hex().encode())
    damaged = whole[:100] + bytes(byte ^ 255 for byte in whole[100:140]) + whole[140:]
    for content in (b"", whole[:40], whole[:-4], b"1 2 3\n", damaged):
        (tmp_path / "bad.i.gz").write_bytes(content)
        with pytest.raises(StoreError, match=r"bad\.i\.gz"):
            read_embeddings(tmp_path / "bad.i.gz")


# --------------------------------------------------------------------------------------------------------------- Kaldi


def test_kaldi_reference_archives(shared: Path) -> None:
    folder = shared / "reference" / "kaldi"
    binary, text = (dict(kaldi.read_ark(folder / name)) for name in ("test.ark", "test.text.ark"))
    theirs = dict(kaldiio.load_ark(str(folder / "test.ark")))
    assert list(binary) == list(text) == list(theirs)
    for key, matrix in binary.items():
        np.testing.assert_array_equal(matrix, theirs[key])
        np.testing.assert_allclose(matrix, text[key], rtol=1e-6)
    rows = read_embeddings(folder / "test.ark")
    np.testing.assert_array_equal(rows.data, np.concatenate(list(theirs.values())))
    assert rows.name.tolist() == [key for key, matrix in theirs.items() for _ in matrix]


def test_kaldi_reads_what_kaldiio_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "vector": rng.normal(size=4).astype("f4"),
        "double": rng.normal(size=4),
        "matrix": rng.normal(size=(3, 4)),
    }
    ark, scp = str(tmp_path / "x.ark"), str(tmp_path / "x.scp")
    kaldiio.save_ark(ark, arrays, scp=scp)
    for found in (dict(kaldi.read_ark(Path(ark))), dict(kaldi.read_scp(Path(scp)))):
        assert list(found) == list(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array)
    assert len(read_embeddings(Path(scp))) == 5
    for method in range(1, 8):
        matrix = {"m": rng.uniform(size=(12, 4)).astype("f4")}
        kaldiio.save_ark(ark, matrix, compression_method=method)
        np.testing.assert_array_equal(dict(kaldi.read_ark(Path(ark)))["m"], dict(kaldiio.load_ark(ark))["m"])
        (tmp_path / "cut.ark").write_bytes((tmp_path / "x.ark").read_bytes()[:-1])
        with pytest.raises(StoreError, match="truncated"):
            list(kaldi.read_ark(tmp_path / "cut.ark"))


def test_kaldiio_reads_what_we_write(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    embeddings = EmbeddingSet.from_columns(
        data, ["a b", "ü", "ü"], start=[0, np.nan, 1.234], end=[1, 2, 2.5], group=["x", "", "z z"]
    )
    write_embeddings(tmp_path / "e.ark", embeddings)
    ids = ["a_b-00000.00-00001.00", "ü", "ü-00001.23-00002.50"]
    for found in (dict(kaldiio.load_ark(str(tmp_path / "e.ark"))), kaldiio.load_scp(str(tmp_path / "e.scp"))):
        assert list(found) == ids
        np.testing.assert_array_equal([found[key] for key in ids], data)
    assert (tmp_path / "e.utt2lang").read_text(encoding="utf-8") == f"{ids[0]} x\n{ids[1]} \n{ids[2]} z z\n"
    write_embeddings(tmp_path / "e.scp", EmbeddingSet.from_columns(data, ["1", "2", "3"]))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["e.ark", "e.scp"]  # no labels of the file before


def test_utterance_ids_are_unique() -> None:
    embeddings = EmbeddingSet.from_columns(
        np.zeros((4, 1)), ["a", "a", "a", "b"], start=[0, 0, np.nan, 3], end=[1, 1, 2, 4]
    )
    assert utterance_ids(embeddings) == [
        "a-00000.00-00001.00_SPLIT_00001",
        "a-00000.00-00001.00_SPLIT_00002",
        "a",
        "b-00003.00-00004.00",
    ]
    assert utterance_ids(embeddings.take([2, 3]), times=False) == ["a", "b"]
    assert utterance_ids(EmbeddingSet.from_columns(np.zeros((2, 1)), ["a", "a"])) == ["a_SPLIT_00001", "a_SPLIT_00002"]
    with pytest.raises(StoreError, match="'a_b'"):
        utterance_ids(EmbeddingSet.from_columns(np.zeros((2, 1)), ["a b", "a_b"]))


def test_text_vectors_on_a_stream() -> None:
    stream = io.StringIO()
    write_text(stream, EmbeddingSet.from_columns([[0.12, -3, 1e-8]], ["talk.mp3"], start=[0], end=[4]))
    assert stream.getvalue() == "talk.mp3  [ 0.119999997 -3 9.99999994e-09 ]\n"


def test_tables_beside_an_archive_give_labels(tmp_path: Path) -> None:
    (tmp_path / "e.ark").write_text("u1  [ 1 2 ]\nu2  [\n  3 4\n  5 6 ]\n")
    (tmp_path / "utt2spk").write_text("u1 ann\nu2 bob\n")
    (tmp_path / "utt2lang").write_text("u2\tcs\n")
    found = read_embeddings(tmp_path / "e.ark")
    assert found.speaker.tolist() == ["ann", "bob", "bob"]
    assert found.group.tolist() == ["", "cs", "cs"]
    np.testing.assert_array_equal(found.data, [[1, 2], [3, 4], [5, 6]])


def test_what_no_matrix_of_embeddings_has_is_refused_before_it_is_read(tmp_path: Path) -> None:
    heads = {
        "fm": b"key \0BFM \4" + struct.pack("<i", 1 << 20) + b"\4" + struct.pack("<i", 1 << 10),
        "text": b"key  [ 1",
    }
    for name, head in heads.items():
        with (tmp_path / f"{name}.ark").open("wb") as file:
            file.write(head)
            file.truncate(1 << 40)  # a hole
        with pytest.raises(StoreError, match=r"no matrix of embeddings has|is truncated"):
            read_embeddings(tmp_path / f"{name}.ark")


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "e.ark").write_bytes(b"u\x001  [ 1 2 ]\n")
    (tmp_path / "e.scp").write_bytes(b"u\x001 e.ark:4\n")
    for suffix in ("ark", "scp"):
        with pytest.raises(StoreError, match="zero byte in its name"):
            read_embeddings(tmp_path / f"e.{suffix}")
    impossible = np.array([0x7FFFFFFF], np.uint32).view("<U1")
    np.savez(tmp_path / "e.npz", data=np.ones((1, 2), np.float32), name=impossible)
    with pytest.raises(StoreError, match=r"is not an \.npz file of plain arrays"):
        read_embeddings(tmp_path / "e.npz")


def test_an_utterance_that_comes_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.ark").write_text("u1  [ 1 2 ]\nu2  [ 3 4 ]\nu1  [ 1 2 ]\n")
    (tmp_path / "e.scp").write_text("u1 e.ark:3\nu2 e.ark:15\nu1 e.ark:3\n")
    for suffix in ("ark", "scp"):
        with pytest.raises(StoreError, match=f"e.{suffix} holds the utterance 'u1' twice"):
            read_embeddings(tmp_path / f"e.{suffix}")


@pytest.mark.parametrize("target", ["touch {} |", "| touch {}", "touch {}|", "|touch {}"])
def test_pipes_are_refused_and_never_run(tmp_path: Path, target: str) -> None:
    witness = tmp_path / "witness"
    (tmp_path / "e.scp").write_text("u1 " + target.format(witness) + "\n")
    with pytest.raises(StoreError, match=r"line 1, is a shell command .*never run"):
        read_embeddings(tmp_path / "e.scp")
    assert not witness.exists()


def test_pickles_in_archives_are_refused(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return witness.touch, ()

    (tmp_path / "e.ark").write_bytes(b"u1 PKL" + pickle.dumps(Bomb()))
    (tmp_path / "e.scp").write_text("u1 e.ark:3\n")
    for name in ("e.ark", "e.scp"):
        with pytest.raises(StoreError, match="not a float vector"):
            read_embeddings(tmp_path / name)
    assert not witness.exists()


def test_script_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the script first, then where the program runs; names with spaces are read as well."""
    (tmp_path / "sub").mkdir()
    for folder, value in (("sub", "1"), (".", "2")):
        (tmp_path / folder / "my vectors.ark").write_text(f"u [ {value} ]\n")
    (tmp_path / "here.ark").write_text("u [ 3 ]\n")
    (tmp_path / "sub" / "e.scp").write_text(f"a my vectors.ark:2\nb here.ark:2\nc {tmp_path / 'here.ark'}:2\n\n")
    monkeypatch.chdir(tmp_path)
    found = read_embeddings(Path("sub/e.scp"))
    assert found.name.tolist() == ["a", "b", "c"] and found.data.ravel().tolist() == [1, 3, 3]
    monkeypatch.chdir(tmp_path / "sub")
    with pytest.raises(StoreError, match=r"names the archive here\.ark, which is neither"):
        read_embeddings(Path("e.scp"))
    for line in ("u", "u my vectors.ark:2[0:3]", "u my vectors.ark:9999"):
        Path("bad.scp").write_text(line + "\n")
        with pytest.raises(StoreError):
            read_embeddings(Path("bad.scp"))


@given(st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_truncated_archives(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.ark"
        write_embeddings(path, EmbeddingSet.from_columns(np.ones((4, 7)), list("abcd")))
        content, entry = path.read_bytes(), 2 + 10 + 28
        assert len(content) == 4 * entry
        path.write_bytes(content[:cut])
        if cut >= 4 * entry or (cut and cut % entry == 0):
            assert len(read_embeddings(path)) == min(cut // entry, 4)
        else:
            with pytest.raises(StoreError, match=r"e\.ark"):
                read_embeddings(path)


@given(st.binary(max_size=60), st.sampled_from([".ark", ".scp", ".txt", ".npz", ".csv", ".i.gz"]))
@settings(max_examples=150, deadline=None)
def test_noise_is_one_clear_error(content: bytes, suffix: str) -> None:
    for head in (b"", b"u \0B", b"u \0BFM \4", b"u \0BCM ", b"u [", b"name,e0\n", b"PK\3\4", b"\x93NUMPY"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"e{suffix}"
            path.write_bytes(head + content)
            try:
                found = read_embeddings(path)
            except KnnError as error:
                assert error.message
            else:
                assert np.isfinite(found.data).all() and found.dimension


# ----------------------------------------------------------------------------------------------- npz, tables, dispatch


def test_npz_of_the_legacy_format(tmp_path: Path) -> None:
    columns = {
        "Name": np.asarray([["ä1".encode()], [b"b2"]]),
        "GroupID": np.asarray([[b"3"], [b"4"]]),
        "SubgroupID": np.asarray([[b"3-2"], [b"4-1"]]),
    }
    np.savez(tmp_path / "e.npz", Data=np.ones((2, 3)), **columns)
    found = read_embeddings(tmp_path / "e.npz")
    assert (found.name.tolist(), found.group.tolist(), found.subgroup.tolist()) == (
        ["ä1", "b2"],
        ["3", "4"],
        ["3-2", "4-1"],
    )
    assert found.data.dtype == np.float32


def test_bad_npz(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"

    def refused(match: str, **arrays: Any) -> None:
        if arrays:
            np.savez(path, **arrays)
        with pytest.raises(StoreError, match=match):
            read_embeddings(path)

    data, name = np.ones((2, 3)), np.asarray(["a", "b"])
    refused("plain arrays", data=data, name=np.asarray(["a", "b"], dtype=object))
    refused("holds data", data=data)
    refused(r"name \(3,\)", data=data, name=np.asarray(["a", "b", "c"]))
    refused(r"shape \(2,\)", data=data[:, 0], name=name)
    refused("complex", data=data * 1j, name=name)
    refused("not UTF-8", data=data, name=np.asarray([b"\xff", b"b"]))
    refused("no numbers", data=data, name=name, start=name)
    refused("NaN or infinite values in 1 embeddings, first in b", data=data * [[1], [np.inf]], name=name)
    refused("no embeddings", data=data[:0], name=name[:0])
    np.savez(path, data=data, name=name)
    path.write_bytes(path.read_bytes()[:-30])
    refused("plain arrays")
    path.write_bytes(pickle.dumps({"data": data}))
    refused("plain arrays")
    with path.open("wb") as file:
        np.save(file, data)
    refused("plain arrays")
    path.write_bytes(b"")
    refused("plain arrays")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no table of embeddings"),
        ("name,x\na,1\n", "no table of embeddings"),
        ("name,e0,e2\na,1,2\n", "no table of embeddings"),
        ("name,e0\n", "no embeddings"),
        ("name,e0\na,1,2\n", "line 2, has 3 fields, the header 2"),
        ("name,e0\na,x\n", "line 2, holds something that is no number"),
        ("name,start,e0\na,x,1\n", "no number"),
        ("name,e0\na,\n", "no number"),
        ("name,e0\n\xff,1\n", "cannot be read as a table"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "e.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=match):
        read_embeddings(tmp_path / "e.csv")


def test_csv_of_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_bytes('\ufeffe1,name,e0,note\r\n2,"a, b",1,x\r\n'.encode())
    found = read_embeddings(tmp_path / "e.csv")
    assert found.name.tolist() == ["a, b"] and found.data.tolist() == [[1, 2]]


def test_parquet(tmp_path: Path) -> None:
    embeddings = EmbeddingSet.from_columns([[1, 2], [3, 4]], ["a", "b"], start=[0, 1], group=["x", ""])
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(KnnError, match=r"pip install 'knn-cli\[parquet\]'"):
            write_embeddings(tmp_path / "e.parquet", embeddings)
        assert not list(tmp_path.iterdir())
        return
    import pandas

    write_embeddings(tmp_path / "e.parquet", embeddings)
    table = pandas.read_parquet(tmp_path / "e.parquet")
    assert list(table.columns) == ["name", "group", "subgroup", "speaker", "start", "end", "e0", "e1"]
    assert table["group"].tolist() == ["x", ""] and table["e1"].tolist() == [2, 4]


def test_dispatch_and_unwritable_places(tmp_path: Path) -> None:
    embeddings = EmbeddingSet.from_columns([[1.0]], ["a"])
    with pytest.raises(StoreError, match="does not exist"):
        read_embeddings(tmp_path / "none.npz")
    (tmp_path / "e.wav").touch()
    with pytest.raises(KnnError, match=r"no reader of embeddings named '\.wav'\. Known: .*\.npz"):
        read_embeddings(tmp_path / "e.wav")
    with pytest.raises(KnnError, match=r"no writer of embeddings named '\.wav'"):
        write_embeddings(tmp_path / "e.wav", embeddings)
    for name in WRITERS.names():
        with pytest.raises(KnnError, match="cannot be written: No such file or directory"):
            write_embeddings(tmp_path / "no" / f"e{name}", embeddings)
        (tmp_path / f"folder{name}").mkdir()
        with pytest.raises(KnnError, match=r"cannot be written|pyarrow"):
            write_embeddings(tmp_path / f"folder{name}", embeddings)
    assert not list(tmp_path.glob("*.part"))


def test_a_failed_write_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_embeddings(tmp_path / "e.ark", EmbeddingSet.from_columns([[1.0]], ["a"], group=["x"]))
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    monkeypatch.setattr(kaldi, "write_ark", full)
    with pytest.raises(KnnError, match="No space left"):
        write_embeddings(tmp_path / "e.ark", EmbeddingSet.from_columns([[2.0]], ["b"]))
    assert "e.utt2lang" in before and {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


# ------------------------------------------------------------------------------- tables as other programs save them

BOM = b"\xef\xbb\xbf"
TEXT_ARK = b"eva  [ 1 2 ]\njan  [ 3 4 ]\n"


def test_csv_as_spreadsheets_save_it(tmp_path: Path) -> None:
    table = tmp_path / "e.csv"
    table.write_bytes(BOM + b"name , group,e0,e1\r\n a, de ,1,2\r\n\r\nb,de\xc2\xa0,3,4\r\n,,,\r\n")
    found = read_embeddings(table)
    assert (found.name.tolist(), found.group.tolist()) == (["a", "b"], ["de", "de"])
    assert found.data.tolist() == [[1, 2], [3, 4]]
    for content, message in (
        (b"name,e0,e0\na,1,2\n", "two columns e0"),
        (b"name,e0\na\0b,1\n", "zero byte"),
        ("name,e0\nJos\u00e9,1\n".encode("latin-1"), "cannot be read"),
    ):
        table.write_bytes(content)
        with pytest.raises(StoreError, match=message):
            read_embeddings(table)


@pytest.mark.parametrize(
    "text",
    [BOM + TEXT_ARK, TEXT_ARK.replace(b"\n", b"\r\n\r\n"), TEXT_ARK + BOM + TEXT_ARK[13:].replace(b"jan", b"pia")],
)
def test_kaldi_text_as_editors_save_it(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.ark").write_bytes(text)
    (tmp_path / "x.utt2spk").write_bytes(BOM + b"eva Eva\xc2\xa0\r\njan\tJan Novak\r\njan  Jan Novak\r\n")
    found = read_embeddings(tmp_path / "x.ark")
    assert found.name.tolist()[:2] == ["eva", "jan"] and found.speaker.tolist()[:2] == ["Eva", "Jan Novak"]
    (tmp_path / "x.utt2spk").write_bytes(b"eva Eva\neva Jan\n")
    with pytest.raises(StoreError, match=r"Line 2 of .* says 'Jan' of eva"):
        read_embeddings(tmp_path / "x.ark")


def test_scripts_with_a_mark_tabs_and_blanks_in_paths(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "two words.ark", EmbeddingSet.from_columns([[1, 2]], ["a"]))
    offset = (tmp_path / "two words.scp").read_text().split(":")[1]
    (tmp_path / "s.scp").write_bytes(BOM + f"utt\ttwo words.ark:{offset}".encode())
    assert read_embeddings(tmp_path / "s.scp").name.tolist() == ["utt"]


def test_names_of_npz_files_in_other_types(tmp_path: Path) -> None:
    def names(array: Any) -> list[str]:
        np.savez(tmp_path / "e.npz", data=np.ones((2, 3)), name=np.asarray(array))
        return list(map(str, read_embeddings(tmp_path / "e.npz").name))

    assert names([b"de ", b"n\0x"]) == ["de", "n"]  # padded, and a text of C with what lay behind it
    assert names([[7], [8]]) == ["7", "8"]
    assert names(["Jose\u0301", "Jos\u00e9"]) == ["Jos\u00e9"] * 2
    for wrong, message in (
        ([1.5, 2.5], "must be texts"),
        ([b"Jos\xe9", b"Jos\xe8"], r"row 0, holds b'Jos\\xe9'"),
        (["a\0b", "c"], "zero byte"),
    ):
        with pytest.raises(StoreError, match=message):
            names(wrong)
    np.savez(tmp_path / "e.npz", data=np.ones((2, 3)), Data=np.zeros((2, 3)), name=np.array(["a", "b"]))
    with pytest.raises(StoreError, match="data and Data"):
        read_embeddings(tmp_path / "e.npz")
    for shape in ((0, 3), (2, 0), (0, 0)):
        np.savez(tmp_path / "e.npz", data=np.ones(shape), name=np.array(["a"] * shape[0], dtype=str))
        with pytest.raises(StoreError, match="holds no embeddings"):
            read_embeddings(tmp_path / "e.npz")


def npz_member(shape: str, kind: str = "<f4", data: bytes = b"\0" * 16) -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    "member",
    [
        npz_member(f"({1 << 31}, 512)"),
        npz_member(f"({1 << 62}, {1 << 62})"),
        npz_member("(4, -1)"),
        npz_member("((((4, 1)"),
        npz_member("(4, 1)", kind="|O"),
        b"no array",
        b"",
    ],
)
def test_npz_that_claims_more_than_it_holds(member: bytes, tmp_path: Path) -> None:
    path = tmp_path / "claims.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", member)
    with pytest.raises(StoreError, match=r"claims\.npz is not an \.npz file of plain arrays"):
        read_embeddings(path)


def test_npz_that_swells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_readers, "_LARGE_BYTES", 1000)
    np.savez_compressed(tmp_path / "bomb.npz", data=np.zeros((10_000, 4), np.float32), name=np.array(["a"] * 10_000))
    with pytest.raises(StoreError, match=r"data\.npy swells from"):
        read_embeddings(tmp_path / "bomb.npz")
