"""From paths to labels, each rule by hand."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.tables import tsv_field
from knn_cli.store.labels import Labels, label_all, output_places, read_groups, recording_name, recording_names, rule


@pytest.mark.parametrize(
    ("spec", "path", "expected"),
    [
        ("folder", "3-2/walachian_SPLIT_004.wav", Labels("walachian", "3", "3-2")),
        ("folder", "a/b/cs/x.wav", Labels("x", "cs", "cs")),
        ("folder", "x.wav", Labels("x")),
        ("group/speaker/file", "cs/anna/01.wav", Labels("01", "cs", "", "anna")),
        ("group/speaker/file", "deep/cs/anna/01.wav", Labels("01", "cs", "", "anna")),
        ("group/*/file", "cs/anna/01.wav", Labels("01", "cs")),
        ("name/file", "meeting7/01.wav", Labels("meeting7")),
        (
            r"(?P<group>\w+)-(?P<subgroup>\w+)/(?P<speaker>\w+?)_",
            "cs-mor/jan_3.wav",
            Labels("jan_3", "cs", "mor", "jan"),
        ),
    ],
)
def test_rules(spec: str, path: str, expected: Labels) -> None:
    assert rule(spec)(PurePath(path)) == expected


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("key", ["cs/a_SPLIT_1.wav", "a_SPLIT_1.wav", "a_SPLIT_1", "a"])
def test_table(tmp_path: Path, separator: str, key: str) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(separator.join(["path", "language", "Speaker"]) + "\n" + separator.join([key, "čeština", "eva"]))
    apply = rule(str(table))
    assert apply(PurePath("cs/a_SPLIT_1.wav")) == Labels("a", "čeština", "", "eva")
    with pytest.raises(KnnError, match=r"no row for cs/b.wav"):
        apply(PurePath("cs/b.wav"))


def test_mistakes(tmp_path: Path) -> None:
    for spec in ("nonsense", "colour/file", "folder/", "(?P<colour>x)", "(?P<group>x", str(tmp_path / "none.csv")):
        with pytest.raises(KnnError):
            rule(spec)
    with pytest.raises(KnnError, match="asks for 3"):
        rule("group/speaker/file")(PurePath("x.wav"))
    (tmp_path / "bare.csv").write_text("file\nx.wav\n")
    with pytest.raises(KnnError, match="at least one of group"):
        rule(str(tmp_path / "bare.csv"))


def test_recording_name() -> None:
    assert recording_name(PurePath("a/rec_7_SPLIT_012.1.gz")) == "rec_7"
    assert recording_name(PurePath("_SPLIT_1.wav")) == "_SPLIT_1"
    assert recording_name(PurePath("ab/-x_Y__U__S12---0003.450-0012.330.wav")) == "-x_Y"  # VoxLingua107
    assert recording_name(PurePath(" \u00a0.wav")) == "_"
    assert recording_name(PurePath("a\x1b\udce9.wav")) == "a\\x1b\\xe9"


def test_recordings_are_named_by_as_many_folders_as_they_need(tmp_path: Path) -> None:
    files = [tmp_path / "r1" / "audio.wav", tmp_path / "r2" / "audio.wav", tmp_path / "r2" / "talk.wav"]
    assert recording_names(files) == ["r1/audio", "r2/audio", "talk"]
    assert recording_names([tmp_path / "audio.wav", tmp_path / "audio.flac"]) == ["audio.wav", "audio.flac"]
    alike = ["a.wav", "a.mp3", "a.wav.flac"]
    assert recording_names([tmp_path / name for name in alike]) == alike


@pytest.mark.parametrize(
    ("sources", "files", "places"),
    [
        (["t"], ["t/a.wav", "t/1/a.wav", "t/1/2/b.wav"], ["a", "1/a", "1/2/b"]),
        (["t"], ["t/1/a.wav", "t/1/a.mp3", "t/2/a.mp3"], ["1/a.wav", "1/a.mp3", "2/a"]),
        (["t/1/a.wav", "t/2/a.wav", "b.wav"], ["t/1/a.wav", "t/2/a.wav", "b.wav"], ["1/a", "2/a", "b"]),
        (["x/t", "y/t"], ["x/t/1/a.wav", "y/t/1/a.wav", "y/t/c.wav"], ["x/t/1/a", "y/t/1/a", "c"]),
        (["."], ["1/a.b.wav", "c.wav"], ["1/a.b", "c"]),
    ],
)
def test_outputs_lie_as_their_sources_do(sources: list[str], files: list[str], places: list[str]) -> None:
    found = output_places([Path(one) for one in sources], [Path(one) for one in files])
    assert [found[Path(one)].as_posix() for one in files] == places


def test_tables_as_spreadsheets_save_them(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_bytes(
        b"\xef\xbb\xbfFile , Language\r\na.wav, de\r\n./b.wav,de \r\n\r\n,\r\nc.wav,de\xc2\xa0\r\na.wav,de\r\n"
        + "Rene\u0301.wav,fr\r\n".encode()
    )
    apply = rule(str(table))
    assert {apply(PurePath(f"{name}.wav")).group for name in "abc"} == {"de"}
    for name in ("Rene\u0301", "Ren\u00e9"):  # as macOS and as others write it
        assert apply(PurePath(f"{name}.wav")) == Labels("Ren\u00e9", "fr")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("file,group\na.wav,de\nb.wav,de\na.wav,fr", "line 2 and another in line 4"),
        ("file,group\na.wav,de\n./a.wav,fr", "one thing of ./a.wav"),
        ("file,group\ncafe\u0301,de\ncaf\u00e9,fr", "one thing of caf\u00e9"),
        ("file,group,group\na.wav,de,fr", "two columns group"),
        ("file,group\na,b.wav,de", "has 3 cells, the header 2"),
        ("file,group\n,de", "Line 2 of the label table .* has no file"),
        ("file,group\na\0.wav,de", "zero byte"),
        ("file,language,label\na,de,de\nb,de,cs", "Line 3 .* language 'de' and label 'cs', which mean the same"),
        ("file,group,language\na,1,de", "group '1' and language 'de'"),
        ("file,speaker_id,speaker\na,1,eva", "speaker 'eva' and speaker_id '1'"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(lines, encoding="utf-8")
    with pytest.raises(KnnError, match=message):
        rule(str(tmp_path / "labels.csv"))


def test_columns_that_mean_the_same_may_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label,language,dialect\na,de,de,de-1\nb,,cs,\nc,sk,,\n")
    apply = rule(str(tmp_path / "labels.csv"))
    assert [apply(PurePath(f"{name}.wav")).group for name in "abc"] == ["de", "cs", "sk"]


def test_tables_that_knn_wrote_name_the_files_that_they_are_of(tmp_path: Path) -> None:
    names = ["=1+1", "'=1+1", "-x", "'quoted'", "Jos\udce9", "a\\b", "a\\\\b", "@at"]
    lines = [f"{tsv_field(name)}\t{tsv_field(f'={number}')}" for number, name in enumerate(names)]
    (tmp_path / "labels.tsv").write_text("\n".join(["name\tgroup", *lines]), encoding="utf-8")
    apply = rule(str(tmp_path / "labels.tsv"))
    assert [apply(PurePath(f"{name}.wav")).group for name in names] == [f"={number}" for number in range(len(names))]


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="this system does not name open files")
def test_a_table_may_come_through_a_pipe() -> None:
    receiver, sender = os.pipe()
    os.write(sender, b"file,group\na,de\n")
    os.close(sender)
    assert rule(f"/dev/fd/{receiver}")(PurePath("a.wav")) == Labels("a", "de")
    os.close(receiver)


def test_tables_of_groups(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("label,group\n'=a,'-north\n", encoding="utf-8")
    assert read_groups(table) == {"=a": "-north"}  # as knn writes cells that begin as formulas
    table.write_text("Label;Group\n cs ;west\n\nsk;west\nsk;west\n", encoding="utf-8")
    assert read_groups(table) == {"cs": "west", "sk": "west"}
    for lines, message in (
        ("label,group\ncs,west\ncs,east", "'cs' twice"),
        ("label,group\ncs", "Line 2"),
        ("label\ncs", "has not the columns"),
        ("", "has not the columns"),
    ):
        table.write_text(lines, encoding="utf-8")
        with pytest.raises(KnnError, match=message):
            read_groups(table)


def test_folders_in_both_forms_are_one_class_and_bytes_stay_apart() -> None:
    folders = ["caf\u00e9", "cafe\u0301 ", "Jos\udce9", "Jos\udce8"]
    found = label_all(rule("folder"), [PurePath(folder, f"{place}.wav") for place, folder in enumerate(folders)])
    assert [label.subgroup for label in found] == ["caf\u00e9", "caf\u00e9", "Jos\\xe9", "Jos\\xe8"]
    with pytest.raises(KnnError, match="Two files would be one recording a"):
        label_all(rule("folder"), [PurePath("x/a.wav"), PurePath("x/a .wav")])
    assert len(label_all(rule("folder"), [PurePath("x/a_SPLIT_1.wav"), PurePath("x/a_SPLIT_2.wav")])) == 2
    pieces = [PurePath(f"ab/v__U__S{place}---0000.000-0001.500.wav") for place in range(2)]
    assert {label.name for label in label_all(rule("folder"), pieces)} == {"v"}
