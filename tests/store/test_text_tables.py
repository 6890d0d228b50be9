"""Texts of rows as codes: their tables, files of schema 1, damage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core import output_records
from knn_cli.core.encoded_texts import EncodedTexts
from knn_cli.core.errors import StoreError
from knn_cli.core.output_records import OutputTask
from knn_cli.core.values import EmbeddingSet
from knn_cli.store import text_tables
from knn_cli.store.hdf5 import TEXT_DATASETS, Store
from knn_cli.store.source_list import Repetition
from knn_cli.store.text_tables import TextReader, TextTable
from knn_cli.store.writer import StoreWriter, write_store
from tests.helpers.store_rows import datasets, random_rows

TEXTS = st.lists(st.sampled_from(["", "cs", "sk", "a" * 70, "žluť", " cs", "zlu\u0301", "zl\u00fa", "p", "q", "r"]))


@settings(max_examples=40, deadline=None)
@given(blocks=st.lists(TEXTS, max_size=6))
def test_codes_are_by_first_rows_however_rows_come(blocks: list[list[str]]) -> None:
    """The oracle is a dictionary over all rows; the file is opened anew in between."""
    texts = [{" cs": "cs", "zlu\u0301": "zl\u00fa"}.get(text, text) for block in blocks for text in block]
    number_of: dict[str, int] = {}
    expected = [number_of.setdefault(text, len(number_of)) for text in texts]
    with h5py.File("tables", "w", driver="core", backing_store=False) as file:
        half = len(blocks) // 2
        codes = []
        for part in (blocks[:half], blocks[half:]):
            table = TextTable(file, "Name")
            codes += [table.add(EncodedTexts.from_texts(np.array(block, dtype=object))) for block in part]
        assert [code for part in codes for code in part.tolist()] == expected
        assert file["Texts/Name"].asstr()[:].tolist() == list(number_of)


def test_many_texts_of_a_table_and_their_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tables, "_PAGE_TEXTS", 4)
    monkeypatch.setattr(text_tables, "_KEPT_PAGES", 2)
    generator = np.random.default_rng(0)
    names = np.array([f"name {number}" for number in generator.integers(0, 50, size=300)])
    with h5py.File("tables", "w", driver="core", backing_store=False) as file:
        file.attrs["schema"] = 2
        table = TextTable(file, "Name")
        file["Name"] = np.concatenate([table.add(EncodedTexts.from_texts(block)) for block in np.split(names, 30)])
        reader = TextReader(file, Path("tables"))
        for rows in (range(300), range(3, 20), range(290, 300), range(7, 7)):
            assert reader.encoded("Name", rows).texts.tolist() == names[rows.start : rows.stop].tolist()
        part = reader.encoded("Name", range(5, 9))
        assert sorted(part.values.tolist()) == sorted(set(names[5:9]))


def labelled() -> EmbeddingSet:
    subgroup = np.array(["cs-1", "", "cs-1", "sk", ""])
    return replace(random_rows(5, 4), name=np.array(["b", "b", "a", "a", "č"]), subgroup=subgroup)


def test_texts_are_two_lines_of_h5py(tmp_path: Path) -> None:
    write_store(tmp_path / "e.h5", labelled())
    with h5py.File(tmp_path / "e.h5") as file:
        texts = file["Texts/SubgroupID"].asstr()[:]
        assert texts[file["SubgroupID"][:]].tolist() == ["cs-1", "", "cs-1", "sk", ""]
        assert file["Name"][:].tolist() == [0, 0, 1, 1, 2]


def with_texts(path: Path) -> None:
    """Make a store what schema 1 was: texts in the place of codes."""
    with h5py.File(path, "r+") as file:
        for name in TEXT_DATASETS.values():
            texts = file[f"Texts/{name}"].asstr()[:][file[name][:]]
            del file[name]
            file.create_dataset(name, data=texts.astype(object), maxshape=(None,), dtype=h5py.string_dtype())
        del file["Texts"]
        file.attrs["schema"] = 1


def test_a_store_of_schema_1_is_read_and_gone_on_with(tmp_path: Path) -> None:
    rows, again = labelled(), Repetition(OutputTask("convert"))

    def written(path: Path, sources: str) -> None:
        facts = {name: 0 for name in sources}
        with StoreWriter(path, "embeddings", {}, plan={}, sources=facts, repetition=again) as writer:
            for name in sorted(facts.keys() - writer.finished):
                writer.add(name, rows.take([*range("abcde".index(name), 5, 2)]))
                writer.flush()

    written(tmp_path / "new.h5", "abcd")
    for sources in ("abc", "abe"):  # all of its rows are kept, or some
        old = tmp_path / f"{sources}.h5"
        written(old, sources)
        with_texts(old)
        output_records.add_line(old, old, again.task)  # as if it had been written so
        expected = np.concatenate([rows.subgroup["abcde".index(name) :: 2] for name in sources])
        with Store(old) as store:
            assert store.column("subgroup").tolist() == expected.tolist()
            assert store.codes("name").max() == 2
        written(old, "abcd")
        assert datasets(old) == datasets(tmp_path / "new.h5")


def test_columns_that_are_damaged(tmp_path: Path) -> None:
    def damaged(name: str) -> h5py.File:
        write_store(tmp_path / name, labelled(), force=True)
        return h5py.File(tmp_path / name, "r+")

    with damaged("code.h5") as file:
        file["Name"][2] = 3
    with Store(tmp_path / "code.h5") as store:
        for read in (store.codes, store.column):
            with pytest.raises(StoreError, match="Name has codes without a text in Texts/Name"):
                read("name")
        assert store.column("subgroup").tolist() == labelled().subgroup.tolist()
    with damaged("table.h5") as file:
        del file["Texts/Speaker"]
    with pytest.raises(StoreError, match="lacks Texts/Speaker, the texts of Speaker"):
        Store(tmp_path / "table.h5")
    with damaged("hole.h5") as file:
        del file["Name"]
        file.create_dataset("Name", (5,), "u4", chunks=(3,))[:3] = [0, 0, 1]
    with pytest.raises(StoreError, match=r"50% of Name in .*hole\.h5 was written; the rest would be read as zeros"):
        Store(tmp_path / "hole.h5")
    with damaged("float.h5") as file:
        del file["GroupID"]
        file["GroupID"] = np.zeros(5)
    with pytest.raises(StoreError, match="GroupID must be codes, it is float64"):
        Store(tmp_path / "float.h5")


def test_texts_that_others_changed_are_still_one_text_each(tmp_path: Path) -> None:
    write_store(tmp_path / "e.h5", labelled())
    with h5py.File(tmp_path / "e.h5", "r+") as file:
        file["Texts/Name"][0] = " a\u00a0"
        del file["Speaker"]
    with Store(tmp_path / "e.h5") as store:
        names = store.encoded("name")
        assert names.values.tolist() == ["a", "č"] and names.texts.tolist() == ["a"] * 4 + ["č"]
        assert store.column("speaker").tolist() == [""] * 5 and store.codes("speaker").tolist() == [0] * 5


def test_codes_need_no_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "e.h5", labelled())
    with Store(tmp_path / "e.h5") as store:
        monkeypatch.setattr(text_tables, "row_texts", None)
        assert store.codes("name").tolist() == [0, 0, 1, 1, 2]
