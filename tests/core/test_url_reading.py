"""URLs: how they are shown, and what is read of them in whatever way a server answers."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from knn_cli.audio import fetched
from knn_cli.core import folders, url_reading
from knn_cli.core.errors import AudioError
from knn_cli.core.urls import UrlPath, as_source, is_url
from tests.helpers.web_server import FakeSite, served

DATA = bytes(range(256)) * 40


@pytest.fixture
def site(loopback: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    monkeypatch.setattr(url_reading, "WAIT_SECONDS", 0.0)
    with served(FakeSite({"/cs/My talk.wav": DATA})) as site:
        yield site


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


def read(url: str, folder: Path, **part: int) -> bytes:
    url_reading.copy(UrlPath.of(url), folder / "copy", **part)
    return (folder / "copy").read_bytes()


@pytest.mark.parametrize(
    "text", ["https://host/a.wav", "s3://bucket/cs/a.wav", "memory://a/b.wav", "file:///tmp/a.wav"]
)
def test_a_path_has_its_url_again(text: str) -> None:
    path = as_source(Path(text))
    assert isinstance(path, UrlPath) and str(path) == path.url == text and path.absolute() == path.resolve() == path
    assert (path.suffix, str(path.parent)) == (".wav", text.rpartition("/")[0])
    assert hash(path) == hash(UrlPath.of(text)) and path != Path(text)


def test_files_are_no_urls() -> None:
    assert not any(map(is_url, ["a.wav", "C:/a.wav", "hf:owner/name", "/tmp/a:b.wav", "a/b:/c"]))
    assert type(as_source(Path("a.wav"))) is type(Path("a.wav"))


def test_secrets_are_not_shown_and_queries_are_told_apart() -> None:
    path = UrlPath.of("https://eva:pw@host/cs/a.wav?sig=1")
    assert str(path) == "https://host/cs/a.wav" and path.url.endswith("sig=1")
    assert path != UrlPath.of("https://host/cs/a.wav?sig=2") and path == UrlPath.of("https://host/cs/a.wav?sig=1")
    sent = pickle.loads(pickle.dumps(path))  # noqa: S301
    assert sent == path and sent.url == path.url


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_all_or_a_part(site: FakeSite, tmp_path: Path, ignores_ranges: bool) -> None:
    site.ignores_ranges = ignores_ranges
    url = f"{site.url}/cs/My%20talk.wav"
    assert read(url, tmp_path) == DATA and read(url, tmp_path, offset=300, size=500) == DATA[300:800]
    with pytest.raises(AudioError, match=r"My talk\.wav broke off after 40 of 80 bytes\."):
        read(url, tmp_path, offset=len(DATA) - 40, size=80)


def test_credentials_go_to_their_host_only(site: FakeSite, tmp_path: Path) -> None:
    with served(FakeSite({"/b.wav": b"other"})) as other:
        site.moved["/a.wav"] = f"{other.url}/b.wav"
        assert read(site.url.replace("//", "//eva:p%40w@") + "/a.wav?sig=1", tmp_path) == b"other"
        assert site.asked == [("/a.wav", "sig=1", None, "Basic ZXZhOnBAdw==")]
        assert other.asked == [("/b.wav", "", None, None)]


def test_what_passes_is_tried_again(site: FakeSite, tmp_path: Path) -> None:
    url = f"{site.url}/cs/My talk.wav"
    site.broken["/cs/My talk.wav"], site.failing["/cs/My talk.wav"] = 1, [503]
    assert read(url, tmp_path) == DATA and len(site.asked) == 3
    site.broken["/cs/My talk.wav"] = 9
    with pytest.raises(AudioError, match=rf"broke off after {len(DATA) // 2} of {len(DATA)} bytes"):
        read(url, tmp_path)
    assert len(site.asked) == 3 + url_reading.ATTEMPTS


@pytest.mark.parametrize(
    ("codes", "said"), [([404], "does not exist"), ([403], "may not be read"), ([418], "the server answers 418")]
)
def test_what_does_not_pass_is_not_tried_again(site: FakeSite, tmp_path: Path, codes: list[int], said: str) -> None:
    site.failing["/a.wav"] = codes
    with pytest.raises(AudioError, match=said) as caught:
        read(site.url.replace("//", "//eva:pw@") + "/a.wav?sig=1", tmp_path)
    assert len(site.asked) == 1 and not any(word in str(caught.value) for word in ("eva", "pw", "sig"))


def test_a_host_that_is_not_there(loopback: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(url_reading, "WAIT_SECONDS", 0.0)
    for url in ("http://127.0.0.1:9/a.wav", "http://no.such.host/a.wav", "http:///a.wav"):
        with pytest.raises(AudioError, match="cannot be"):
            read(url, tmp_path)


def test_a_host_that_sends_nothing(site: FakeSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_reading, "TIMEOUT_SECONDS", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(AudioError, match=r"nothing came for 0\.05 s"),
    ):
        read(f"http://127.0.0.1:{silent.getsockname()[1]}/a.wav", tmp_path)


def test_stamps_change_with_the_object(site: FakeSite) -> None:
    def stamp(path: str) -> tuple[str, int, int]:
        url_reading._facts.cache_clear()
        return url_reading.stamp(UrlPath.of(site.url + path))

    before = stamp("/cs/My talk.wav")
    assert before[:2] == (f"{site.url}/cs/My talk.wav", len(DATA)) and stamp("/cs/My talk.wav") == before
    site.files["/cs/My talk.wav"] = DATA[::-1]
    assert stamp("/cs/My talk.wav")[2] != before[2] and stamp("/none.wav")[1:] == (-1, -1)


def test_folders_that_can_be_listed(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for name in ("b.wav", "cs/a.wav", "cs/.hidden.wav", "cs/notes.txt"):
        memory.pipe(f"/tapes/{name}", DATA)
    root = UrlPath.of("memory://tapes")
    assert folders.is_folder(root) and not folders.is_folder(UrlPath.of("memory://tapes/b.wav"))
    found = folders.files_below(root, {".wav"})
    assert [path.relative_to(root).as_posix() for path in found] == ["b.wav", "cs/a.wav"]
    assert read(str(found[1]), tmp_path) == DATA and read(str(found[1]), tmp_path, offset=5, size=7) == DATA[5:12]
    assert url_reading.stamp(UrlPath.of("memory://tapes/b.wav"))[1] == len(DATA)
    with pytest.raises(AudioError, match="does not exist"):
        read("memory://tapes/none.wav", tmp_path)


def test_kinds_that_cannot_be_read_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AudioError, match=r"nosuch://"):
        read("nosuch://a/b.wav", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(AudioError, match=r"needs a package.*pip install 'knn-cli\[urls\]'"):
        read("s3://bucket/b.wav", tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_no_room_for_the_copy(site: FakeSite) -> None:
    with pytest.raises(AudioError, match=r"could not be copied to /dev: No space.*TMPDIR"):
        url_reading.copy(UrlPath.of(f"{site.url}/cs/My talk.wav"), Path("/dev/full"))
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/a/talk.wav", "talk.wav"),
        ("https://example.org/a/..", "sound"),
        ("https://a.b/x%0A.wav", "sound.wav"),
    ],
)
def test_a_copy_lies_in_its_own_folder(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_reading, "copy", lambda path, target: target.write_bytes(b"sound"))
    with fetched.opened(UrlPath.of(url)) as copy:
        assert copy.name == name and copy.parent.name.startswith("knn-")
        assert copy.read_bytes() == b"sound"
