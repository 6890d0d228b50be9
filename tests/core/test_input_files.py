"""What may be opened: files, and pipes where a text is read once."""

import io
import os
import socket
import threading
from pathlib import Path

import pytest

from knn_cli.core import input_files
from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.input_files import check_regular, lines_of, read_bytes

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "WAIT_SECONDS", 0.2)


def written(pipe: Path, data: bytes) -> threading.Thread:
    writer = threading.Thread(target=pipe.write_bytes, args=(data,), daemon=True)
    writer.start()
    return writer


def test_a_regular_file_and_a_link_to_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"text")
    (tmp_path / "link").symlink_to("x")
    check_regular(tmp_path / "link", "a store")
    assert read_bytes(tmp_path / "link", "a table") == b"text"


@needs_pipes
def test_a_pipe_is_read_as_a_stream_and_refused_where_it_must_be_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    writer = written(tmp_path / "x", b"a line\n" * 100_000)
    assert read_bytes(tmp_path / "x", "a table") == b"a line\n" * 100_000
    writer.join()
    with pytest.raises(StoreError, match="x is a pipe, not a store"):
        check_regular(tmp_path / "x", "a store", error=StoreError)


@needs_pipes
def test_a_pipe_into_which_nobody_writes_is_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(KnnError, match="nobody writes"):
        read_bytes(tmp_path / "x", "a table")


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="this system does not name open files")
def test_what_is_open_already_is_waited_for(tmp_path: Path) -> None:
    receiver, sender = os.pipe()
    timer = threading.Timer(3 * input_files.WAIT_SECONDS, lambda: (os.write(sender, b"late"), os.close(sender)))
    timer.start()
    assert read_bytes(f"/dev/fd/{receiver}", "a table") == b"late"
    os.close(receiver)


def test_folders_devices_and_sockets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("s")
        for path, kind in ((tmp_path, "a folder"), (Path(os.devnull), "a device"), (Path("s"), "a socket")):
            with pytest.raises(KnnError, match=f"is {kind}, not a table"):
                read_bytes(path, "a table")
            with pytest.raises(KnnError, match=f"is {kind}, not a table"):
                check_regular(path, "a table")


def test_what_is_missing_or_too_long_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(101))
    with pytest.raises(KnnError, match="larger than 0 MB"):
        read_bytes(tmp_path / "x", "a table", most=100)
    for path in (tmp_path / "none", "a\0b"):
        with pytest.raises(KnnError, match="cannot be read"):
            check_regular(path, "a table")


def test_a_line_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "MAX_LINE", 4)
    assert list(lines_of(io.StringIO("ab\nabc\nabcd"), "x", "a table")) == ["ab\n", "abc\n", "abcd"]
    for stream in (io.StringIO("ab\nabcde"), io.BytesIO(bytes(100))):
        with pytest.raises(KnnError, match="x has a line of more than"):
            list(lines_of(stream, "x", "a table"))
