"""From paths to labels, each rule by hand."""

from __future__ import annotations

from pathlib import Path, PurePath

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.store.labels import Labels, recording_name, recording_names, rule


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


def test_recordings_are_named_by_as_many_folders_as_they_need(tmp_path: Path) -> None:
    files = [tmp_path / "r1" / "audio.wav", tmp_path / "r2" / "audio.wav", tmp_path / "r2" / "talk.wav"]
    assert recording_names(files) == ["r1/audio", "r2/audio", "talk"]
    with pytest.raises(KnnError, match="Two of the files are called audio"):
        recording_names([tmp_path / "audio.wav", tmp_path / "audio.flac"])
