"""File names that are no text or that a terminal would obey: each command goes on, and says what they are called."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile

from knn_cli.core.values import Diarization, EmbeddingSet, Turn
from knn_cli.formats import span_formats
from knn_cli.formats.spans import turn_document
from knn_cli.store import hdf5
from knn_cli.store.embedding_readers import read_embeddings
from knn_cli.store.embedding_writers import WRITERS, write_embeddings
from tests.helpers.command import done, knn

NAMES = {
    b"caf\xe9": "caf\\xe9",
    b"caf\xe8": "caf\\xe8",
    b"esc\x1b[31m": "esc\\x1b[31m",
    b"two\nlines": "two\\nlines",
    "bidi\u202egpj".encode(): "bidi\\u202egpj",
    b"=1+1": "=1+1",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    sound = tmp_path / "sound.flac"
    soundfile.write(sound, 0.3 * np.sin(np.arange(32000) / 6), 16000)
    for name in NAMES:
        target = os.path.join(os.fsencode(folder), b"\xff\xfe", name + b".flac")  # noqa: PTH118 - of bytes
        os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
        Path(os.fsdecode(target)).write_bytes(sound.read_bytes())
    return folder


def test_a_store_of_a_folder_of_names(folder: Path, tmp_path: Path) -> None:
    result = done("convert", folder, tmp_path / "out.h5")
    rows = hdf5.labels(tmp_path / "out.h5")
    assert set(rows.name.tolist()) == set(NAMES.values()) and set(rows.group.tolist()) == {"\\xff\\xfe"}
    assert "\x1b" not in result.output + done("info", tmp_path / "out.h5").output
    assert "audio files  6" in done("info", folder).stdout


def test_one_folder_that_cannot_be_listed_fails_and_the_rest_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, scandir = folder / "closed", os.scandir
    closed.mkdir()
    (folder / "x").mkdir()
    (folder / "x" / "link.wav").symlink_to("nowhere")

    def refuse(path: str | Path | int = ".") -> object:
        if not isinstance(path, int) and Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = knn("convert", folder, tmp_path / "out.h5", "--labels", "group/file")
    assert result.exit_code == 1 and len(hdf5.labels(tmp_path / "out.h5")) == len(NAMES)
    assert "closed cannot be read: Permission denied" in result.stderr and "link.wav does not exist" in result.stderr


def test_one_file_that_may_not_be_read_fails_and_the_rest_is_done(folder: Path, tmp_path: Path) -> None:
    closed = folder / "closed.flac"
    closed.write_bytes(b"fLaC")
    closed.chmod(0)
    if os.access(closed, os.R_OK):
        pytest.skip("needs a user for whom permissions hold")
    result = knn("convert", folder, tmp_path / "out.h5")
    assert result.exit_code == 1 and len(hdf5.labels(tmp_path / "out.h5")) == len(NAMES)
    assert "closed.flac cannot be read: Permission denied" in result.stderr
    assert hdf5.kind_of(closed) is None


def test_messages_are_one_line_without_what_terminals_obey(tmp_path: Path) -> None:
    (tmp_path / "a\n\x1b[2Kknn: all is well.wav").touch()
    result = knn("--log-file", tmp_path / "log", "info", tmp_path / "a\n\x1b[2Kknn: all is well.wav")
    assert result.exit_code == 1 and "\x1b" not in result.output and "a\\n\\x1b[2Kknn" in result.stderr
    assert all(line.split()[0].startswith("20") for line in (tmp_path / "log").read_text().splitlines())


@pytest.mark.parametrize("name", [known for known in span_formats.TURN_FORMATS if known != "html"])
def test_every_format_of_turns_takes_any_name(name: str, tmp_path: Path) -> None:
    turns = (Turn(0.0, 1.0, "=1+1\x00\x1b[31m"), Turn(1.0, 2.0, "\u202eb\udce9"), Turn(2.0, 3.0, "  "))
    target = tmp_path / f"out{span_formats.TURN_FORMATS[name].suffix}"
    sound = tmp_path / os.fsdecode(b"caf\xe9\x1b.wav")
    span_formats.write(turn_document(Diarization(turns, seconds=3.0, name=sound.stem), audio_path=sound), target, name)
    if name == "png":
        return
    text = target.read_text(encoding="utf-8")
    assert not any(character in text for character in "\x00\x1b\u202e")
    if name in ("csv", "knn-proj"):
        assert [row[3 if name == "csv" else 2] for row in csv.reader(text.splitlines())][1] == "'=1+1\\x00\\x1b[31m"
    if name == "json":
        assert json.loads(text)["speakers"] == ["=1+1\x00\x1b[31m", "\u202eb\\xe9", "  "]
    if name == "eaf":
        assert len(ElementTree.fromstring(text).findall("TIER")) == 3


@pytest.mark.parametrize("suffix", sorted(set(WRITERS.names()) - {".parquet"}))
def test_formulas_in_tables_of_embeddings_read_back(suffix: str, tmp_path: Path) -> None:
    names = ["=1+1", "'=1", "@a", "-1", "+x"]
    path = tmp_path / f"e{suffix}"
    write_embeddings(path, EmbeddingSet.from_columns(np.eye(5), names, speaker=["-", "=", "x", "1", "'"]))
    back = read_embeddings(path)
    assert back.name.tolist() == names
    if suffix in {".csv", ".tsv"}:
        assert back.speaker.tolist() == ["-", "=", "x", "1", "'"]
        cells = list(csv.reader(path.open(encoding="utf-8"), delimiter="," if suffix == ".csv" else "\t"))
        assert [row[0] for row in cells[1:]] == ["'=1+1", "''=1", "'@a", "-1", "'+x"]
