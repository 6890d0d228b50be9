"""Texts as people and programs write them."""

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.texts import path_text, read_lines, refuse_repeated, split_fields, split_lines, tidy


@pytest.mark.parametrize("text", ["de", " de", "de ", "\tde\r", "de\u00a0", "\ufeffde", "\u3000de"])
def test_blanks_and_marks_around_a_label_are_no_part_of_it(text):
    assert tidy(text) == "de"


def test_composed_and_decomposed_letters_are_one_label():
    assert tidy("Jose\u0301") == tidy("Jos\u00e9") == "Jos\u00e9"
    assert tidy("Anna\u00a0Maria") == "Anna\u00a0Maria"  # inside it is kept


def test_bytes_that_are_no_utf8_stay_distinct():
    names = [b"Jos\xe9".decode("utf-8", "surrogateescape"), b"Jos\xe8".decode("utf-8", "surrogateescape")]
    assert [path_text(name) for name in names] == ["Jos\\xe9", "Jos\\xe8"]


def test_only_line_feeds_and_carriage_returns_end_lines():
    assert split_lines("a\x85b\u2028c\x0bd\r\ne\rf\n") == ["a\x85b\u2028c\x0bd", "e", "f", ""]
    assert split_lines("a\n\ufeffb") == ["a", "b"]  # files that were joined


def test_only_blanks_and_tabs_part_fields():
    assert split_fields(" a\u00a0b  c\t\td ") == ["a\u00a0b", "c", "d"]
    assert split_fields(" \t") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nJos\u00e9".encode("latin-1"), "Line 2 of .* is not UTF-8 text.*`iconv -f WINDOWS-1250 -t UTF-8"),
        ("a\nb".encode("utf-16"), "UTF-16"),
        (b"a\nb\0c", "Line 2 of .* holds a zero byte"),
    ],
)
def test_other_encodings_are_refused(tmp_path, content, message):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(KnnError, match=message):
        read_lines(tmp_path / "t.txt", "a table")


def test_a_byte_order_mark_is_dropped_and_a_missing_file_is_said(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfa b\r\n")
    assert read_lines(tmp_path / "t.txt", "a table") == ["a b", ""]
    with pytest.raises(KnnError, match=r"none.txt cannot be read: No such file"):
        read_lines(tmp_path / "none.txt", "a table")


def test_two_columns_of_one_name_are_refused():
    refuse_repeated(["name", "", "", "e0"], "t.csv")
    with pytest.raises(KnnError, match="two columns e0"):
        refuse_repeated(["name", "e0", "e0"], "t.csv")
