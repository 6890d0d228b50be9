"""Names of labels that are codes: tables, those of dialects, and what is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from knn_cli.core.display_names import czech_dialect_names, display_names, named, read_names
from knn_cli.core.errors import KnnError
from knn_cli.networks.importers.wespeaker_heads import CZECH_DIALECTS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "label\tname\tnote\n1-1\tNortheastern Bohemian\tx\n7\t\t\n"),
        ("a.csv", "Code;Name\n1-1; Northeastern Bohemian \n"),
        ("a.toml", '"1-1" = "Northeastern Bohemian"\n7 = ""\n'),
    ],
)
def test_tables(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_names(tmp_path / name) == {"1-1": "Northeastern Bohemian"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "code\ttitle\n1-1\tx\n", "no columns label and name; it has code, title"),
        ("a.csv", "label,name\n1-1,x\n1-1,x\n1-1,y\n", "Line 4 of .* gives 1-1 a second name: x and y"),
        ("a.toml", "[a]\nb = 1\n", "no text as the name of a"),
        ("a.toml", "a", "not TOML"),
    ],
)
def test_what_is_no_table_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(KnnError, match=message):
        read_names(tmp_path / name)


def test_dialects_of_the_mother_project_have_names() -> None:
    names = read_names("czech-dialects")
    assert names == czech_dialect_names() and set(CZECH_DIALECTS) <= set(names) >= {label[0] for label in names}
    assert names["1-1"] == "Northeastern Bohemian" and len(set(names.values())) == len(names)


def test_given_names_come_before_those_of_languages() -> None:
    assert display_names(["cs", "sk", "x"], {"sk": "my Slovak", "other": "?"}) == {"cs": "Czech", "sk": "my Slovak"}
    assert named("1-1", czech_dialect_names()) == "1-1 Northeastern Bohemian" and named("x", {}) == "x"
