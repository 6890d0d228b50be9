"""Where turns go: by the name of a format, by a suffix, into a folder; contradictions are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from knn_cli.cli import turn_outputs
from knn_cli.core.errors import KnnError
from knn_cli.formats.span_formats import TURN_FORMATS

ONE, TWO = Path("a/one.wav"), Path("b/two.wav")


def places(*paths: Path) -> dict[Path, Path]:
    return {path: Path(path.stem) for path in paths}


def test_rttm_on_stdout_unless_asked_otherwise() -> None:
    outputs = turn_outputs.choose(places(ONE, TWO), None, None, ())
    assert outputs.stdout and outputs.formats == ("rttm",) and not outputs.targets


@pytest.mark.parametrize("name", TURN_FORMATS)
def test_a_name_and_a_suffix_say_the_same(name: str, tmp_path: Path) -> None:
    out = tmp_path / f"x{TURN_FORMATS[name].suffix}"
    by_suffix, by_name = (turn_outputs.choose(places(ONE), out, None, wanted) for wanted in ((), (name,)))
    assert by_name.formats == (name,) and by_name.outs == {name: out} and not by_name.stdout
    assert (by_suffix == by_name) != TURN_FORMATS[name].named_only
    in_folder = turn_outputs.choose(places(ONE, TWO), None, tmp_path, [name])
    assert [path.name for by_format in in_folder.targets.values() for path in by_format.values()] == [
        f"{path.stem}{TURN_FORMATS[name].suffix}" for path in (ONE, TWO)
    ]


def test_several_formats_have_a_file_each(tmp_path: Path) -> None:
    for out in ("talk.1.rttm", "talk.1"):
        outputs = turn_outputs.choose(places(ONE), tmp_path / out, None, ["rttm", "eaf", "html"])
        assert outputs.outs == {name: tmp_path / f"talk.1.{name}" for name in ("rttm", "eaf", "html")}
    outputs = turn_outputs.choose(places(ONE, TWO), None, tmp_path / "out", ["csv", "textgrid"])
    files = turn_outputs.check(outputs, None, None, [ONE, TWO])
    assert [[file.name for file in each] for each in files.values()] == [
        ["one.csv", "one.TextGrid"],
        ["two.csv", "two.TextGrid"],
    ]
    with pytest.raises(KnnError, match="Two outputs would be called"):
        turn_outputs.check(
            turn_outputs.choose(places(ONE), tmp_path / "a", None, ["csv", "knn-proj"]), None, None, [ONE]
        )


@pytest.mark.parametrize(
    ("sources", "out", "name", "message"),
    [
        ([ONE], "x.doc", None, "names no format"),
        ([ONE], "x.srt", "vtt", "is that of srt, not of vtt"),
        ([ONE], "x.srt", "knn-proj", "is that of srt, not of knn-proj"),
        ([ONE, TWO], "x.csv", "knn-proj", "could not be distinguished"),
        ([ONE, TWO], "x.srt", None, "could not be distinguished"),
        ([ONE], None, "png", "not for stdout"),
        ([ONE], None, "rttm,csv", "2 formats are not for stdout"),
        ([ONE, TWO], "x.csv", "csv,eaf", "in one eaf file could not be distinguished"),
        ([ONE], "x.srt", "rttm,csv", "is that of srt, not of rttm or csv"),
        ([ONE], None, "doc", "There is no format 'doc'"),
    ],
)
def test_refused(sources: list[Path], out: str | None, name: str | None, message: str) -> None:
    with pytest.raises(KnnError, match=message):
        turn_outputs.choose(places(*sources), None if out is None else Path(out), None, name.split(",") if name else ())


def test_outputs_never_replace_what_is_read(tmp_path: Path) -> None:
    source = tmp_path / "one.rttm"
    source.write_text("")
    outputs = turn_outputs.choose(places(ONE), source, None, ())
    with pytest.raises(KnnError, match="one of the sources"):
        turn_outputs.check(outputs, None, None, [ONE], [source])
    same_stem = turn_outputs.choose(places(ONE, Path("c/one.wav")), None, tmp_path / "out", ["csv"])
    with pytest.raises(KnnError, match="Two outputs would be called"):
        turn_outputs.check(same_stem, None, None, [ONE, TWO])
