"""Commands whose sound is at URLs: the outputs of files, one error for what is not there, and no secrets in either."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import soundfile

from knn_cli.core import url_reading
from knn_cli.store.hdf5 import Store
from tests.helpers.command import done, knn
from tests.helpers.head_bundles import write_head_bundle
from tests.helpers.stores import assert_same_store
from tests.helpers.web_server import FakeSite, served

EXAMPLES = Path(__file__).parents[2] / "examples"


def sound(seconds: float, seed: int = 0) -> bytes:
    file = io.BytesIO()
    noise = 0.1 * np.random.default_rng(seed).standard_normal(int(16000 * seconds))
    soundfile.write(file, noise, 16000, format="WAV")
    return file.getvalue()


@pytest.fixture
def site(loopback: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeSite]:
    """Two recordings in folders of their languages; the current folder and that of copies are temporary."""
    monkeypatch.setattr(url_reading, "WAIT_SECONDS", 0.0)
    url_reading._facts.cache_clear()
    monkeypatch.chdir(tmp_path)
    Path("copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    with served(FakeSite({"/cs/a.wav": sound(1.5), "/sk/b.wav": sound(2.5, 1)})) as site:
        yield site
    assert not list(Path("copies").glob("knn-*"))


def rows(store: str) -> dict[str, list[Any]]:
    with Store(Path(store)) as opened:
        labels = opened.labels(0, len(opened))
        return {name: getattr(labels, name).tolist() for name in ("name", "group", "start")}


def test_convert_a_list_of_urls(site: FakeSite) -> None:
    secret = site.url.replace("//", "//eva:hush@")
    lines = [
        f"{name} {secret}/{place}.wav?sig=hush" for name, place in (("one", "cs/a"), ("no", "none"), ("two", "sk/b"))
    ]
    Path("wav.scp").write_text("\n".join(lines) + "\n")
    Path("utt2lang").write_text("one cs\nno cs\ntwo sk\n")
    result = knn("convert", "wav.scp", "urls.h5", "--segment", "1")
    assert result.exit_code == 1 and f"{site.url}/none.wav does not exist. Check" in " ".join(result.output.split())
    assert rows("urls.h5") == {"name": ["one", "two", "two"], "group": ["cs", "sk", "sk"], "start": [0, 0, 1]}
    assert "hush" not in result.output and b"hush" not in Path("urls.h5").read_bytes()
    site.files["/none.wav"] = sound(1.0, 2)
    url_reading._facts.cache_clear()
    site.asked.clear()
    again = done("convert", "wav.scp", "urls.h5", "--segment", "1")
    assert "2 recordings done before" in again.output
    assert [path for path, _, span, _ in site.asked if span is None] == ["/none.wav"]


def test_a_changed_object_is_read_again(site: FakeSite) -> None:
    Path("wav.scp").write_text(f"one {site.url}/cs/a.wav\ntwo {site.url}/sk/b.wav\n")
    done("convert", "wav.scp", "urls.h5")
    url_reading._facts.cache_clear()
    site.files["/sk/b.wav"] = sound(2.5, 7)
    assert "1 recording done before" in done("convert", "wav.scp", "urls.h5").output


def test_classify(site: FakeSite) -> None:
    """The same answers as of files, under the names of the URLs."""
    write_head_bundle(Path("three"), ["cs", "pl", "sk"])
    for place, data in site.files.items():
        Path(place[1:]).parent.mkdir()
        Path(place[1:]).write_bytes(data)
    options = ["--model", "three", "--no-vad", "--json"]
    urls = [f"{site.url}{place}" for place in site.files]
    there = knn("classify", urls[0], f"{site.url}/none.wav", urls[1] + "?sig=hush", *options)
    assert there.exit_code == 1 and f"{site.url}/none.wav does not exist" in there.output and "hush" not in there.output
    here = done("classify", "cs/a.wav", "sk/b.wav", *options)
    answers = [[json.loads(line) for line in result.stdout.splitlines()] for result in (there, here)]
    for at_url, of_file, url in zip(*answers, urls, strict=True):
        names = {key: url for key, value in of_file.items() if value in ("cs/a.wav", "sk/b.wav")}
        assert at_url == {**of_file, **names}
        assert url in at_url.values()


def test_embed_a_shard_and_a_folder(site: FakeSite) -> None:
    """Members are read by their ranges; folders are listed where the file system can."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in (("000.wav", sound(1.5)), ("000.cls", b"cs"), ("001.wav", sound(1.5, 1)), ("001.cls", b"sk")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    site.files["/shard.tar"] = file.getvalue()
    done("embed", f"{site.url}/shard.tar", "--model", "tiny-test", "--no-vad", "-o", "shard.h5")
    spans = [span for path, _, span, _ in site.asked if path == "/shard.tar"]
    assert rows("shard.h5")["group"] == ["cs", "sk"]
    assert spans.count(None) == 1 and sum(span is not None and span != "bytes=0-0" for span in spans) == 2
    memory = fsspec.filesystem("memory")
    try:
        for place, data in (("cs/000.wav", sound(1.5)), ("sk/001.wav", sound(1.5, 1)), ("notes.txt", b"")):
            memory.pipe(f"/tapes/{place}", data)
        done("embed", "memory://tapes", "--model", "tiny-test", "--no-vad", "-o", "folder.h5")
    finally:
        memory.store.clear()
    assert rows("folder.h5")["group"] == ["cs", "sk"]
    with h5py.File("folder.h5") as folder, h5py.File("shard.h5") as shard:
        assert np.array_equal(folder["Data"], shard["Data"])


def test_diarize(site: FakeSite) -> None:
    speech, rate = soundfile.read(EXAMPLES / "meeting.flac", frames=6 * 16000)
    soundfile.write("talk.flac", speech, rate)
    site.files["/talk.flac"] = Path("talk.flac").read_bytes()
    options = ["--model", "tiny-test", "--format", "rttm"]
    done("diarize", f"{site.url}/talk.flac", *options, "--out-dir", "there", "--keep", "kept")
    done("diarize", "talk.flac", *options, "--out-dir", "here")
    assert Path("there/talk.rttm").read_text() == Path("here/talk.rttm").read_text() != ""
    with h5py.File("kept/talk.h5") as kept:
        assert kept.attrs["source"] == f"{site.url}/talk.flac"
    refused = knn("diarize", f"{site.url}/talk.flac", "--model", "tiny-test", "-o", "player.html")
    assert refused.exit_code == 1 and "needs a file. Download it first." in " ".join(refused.output.split())


def test_damaged_sound_is_called_by_its_url(site: FakeSite) -> None:
    site.files["/bad.wav"] = b"nothing"
    site.files["/cut.flac"] = (EXAMPLES / "meeting.flac").read_bytes()[:100_000]
    for name in ("bad.wav", "cut.flac"):
        result = knn("convert", f"{site.url}/{name}", "out.h5")
        said = " ".join(result.output.split())
        assert result.exit_code == 1 and f"{site.url}/{name} " in said and "copies" not in said
    refused = knn("classify", f"{site.url}/store.h5")
    assert refused.exit_code == 1 and f"{site.url}/store.h5 " in " ".join(refused.output.split())


def test_workers_fetch_their_own_sound(site: FakeSite) -> None:
    pytest.importorskip("distributed")
    Path("wav.scp").write_text(f"one {site.url}/cs/a.wav\ntwo {site.url}/sk/b.wav\n")
    done("convert", "wav.scp", "here.h5")
    site.asked.clear()
    done("convert", "wav.scp", "there.h5", "--cluster", "local:1")
    assert {path for path, _, span, _ in site.asked if span is None} == {"/cs/a.wav", "/sk/b.wav"}
    assert_same_store(Path("here.h5"), Path("there.h5"))
