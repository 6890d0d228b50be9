"""Scores of finished recordings outlive a command that was stopped, to the last bit; others' files stay."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.values import ScoreTable
from knn_cli.recognition import classify_files
from knn_cli.recognition.score_journal import Scored, ScoreJournal, Source
from tests.helpers.command import done, knn

random = np.random.default_rng(0)


def table(name: str, rows: int = 2) -> ScoreTable:
    scores = random.normal(size=(rows, 3)) * 1e3 / 7
    scores[-1] = np.nan
    spans = np.array([[0.1, np.nan], [1 / 3, np.nan]])[:, :rows]
    truth, rivals = np.array(["b", ""])[:rows], random.normal(size=(rows, 1))
    return ScoreTable(("a", "b", "č"), scores, np.full(rows, name), *spans, truth, -0.1, ("x", "x", "y"), rivals)


def equal(one: ScoreTable, other: ScoreTable) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") if isinstance(a, np.ndarray) else a == b
        for a, b in ((getattr(one, each.name), getattr(other, each.name)) for each in fields(ScoreTable))
    )


def test_what_is_finished_is_not_computed_again(tmp_path: Path) -> None:
    sources: list[Source] = [Path(f"{name}.wav") for name in "abcde"]
    tables = {str(source): table(str(source)) for source in sources}
    asked: list[str] = []

    def classify(some: Sequence[Source], stops_at: str = "") -> Iterator[Scored]:
        for source in some:
            assert isinstance(source, Path)
            asked.append(source.stem)
            if source.stem == stops_at:
                raise KeyboardInterrupt
            yield source, KnnError("b is bad.") if source.stem == "b" else tables[str(source)]

    out = tmp_path / "out.tsv"
    with pytest.raises(KeyboardInterrupt), ScoreJournal(out, "task") as journal:
        [*journal.resumed(sources, lambda some: classify(some, "d"))]
    kept = tmp_path / ".out.tsv.partial"
    kept.write_text(kept.read_text() + '{"source": "d.wav", "sco')  # torn
    asked.clear()
    with ScoreJournal(out, "task") as journal:
        assert [*journal.finished] == ["a.wav", "c.wav"]
        found = [*journal.resumed(sources, classify)]
        journal.remove()
    assert asked == ["b", "d", "e"] and [where for where, _ in found] == sources
    assert all(equal(result, tables[str(where)]) for where, result in found if isinstance(result, ScoreTable))
    assert not kept.exists()


@pytest.mark.parametrize("again", [True, False])
def test_another_task_begins_anew(tmp_path: Path, again: bool) -> None:
    sources: list[Source] = [Path("a.wav")]
    for digest in ("one", "one" if again else "another"):
        with ScoreJournal(tmp_path / "x", digest, again=again) as journal:
            assert not journal.finished
            [*journal.resumed(sources, lambda some: iter([(Path("a.wav"), table("a"))]))]
    lines = (tmp_path / ".x.partial").read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["task"] == digest


@pytest.mark.parametrize("content", [b"mine", b'{"kind": "else"}\n', b"\xff\xfe", b"[1]\n", b""])
def test_files_of_others_stay(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".x.partial").write_bytes(content)
    with ScoreJournal(tmp_path / "x", "task") as journal:
        [*journal.resumed([Path("a.wav")], lambda some: iter([(Path("a.wav"), table("a"))]))]
        journal.remove()
    assert (tmp_path / ".x.partial").read_bytes() == content


def test_nothing_is_left_where_nothing_was_scored(tmp_path: Path) -> None:
    with ScoreJournal(tmp_path / "x", "task") as journal:
        [*journal.resumed([Path("a.wav")], lambda some: iter([(Path("a.wav"), KnnError("a is bad."))]))]
    assert not [*tmp_path.iterdir()]


def test_a_stopped_command_goes_on(tmp_path: Path, tones: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    out, score, heard = tmp_path / "answers.jsonl", classify_files.score_source, list[str]()

    def scored(path: Path, **settings: Any) -> ScoreTable:
        heard.append(path.name)
        if len(heard) == 3:
            raise KeyboardInterrupt
        return score(path, **settings)

    monkeypatch.setattr(classify_files, "score_source", scored)
    command = ["classify", *tones, "--model", "language", "-o", out, "--no-vad", "--jobs", "1"]
    knn(*command)
    assert not out.exists() and (tmp_path / ".answers.jsonl.partial").is_file() and len(heard) == 3
    said = done(*command).stderr
    assert "Finished before: 2 of 4 recordings." in said and [*map(Path.name.__get__, tones)] == [
        *heard[:2],
        *heard[3:],
    ]
    resumed = out.read_bytes()
    assert "was finished before" in done(*command).stderr and len(heard) == 5
    done(*command, "--again")
    assert out.read_bytes() == resumed and len(heard) == 9
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == {".knn-outputs.jsonl"}


@pytest.fixture
def tones(tmp_path: Path) -> list[Path]:
    import soundfile

    paths = [tmp_path / f"{number}.wav" for number in range(4)]
    for path in paths:
        soundfile.write(path, 0.1 * random.standard_normal(16000), 16000)
    return paths
