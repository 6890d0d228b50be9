"""The Hugging Face hub: what is fetched and said, lost connections, altered files, and refusals in one sentence."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.networks import hub_download
from knn_cli.networks.hub import Address, fetched
from tests.helpers.hub_server import COMMIT, FakeHub, served

constants = pytest.importorskip("huggingface_hub.constants")

WEIGHTS = bytes(range(256)) * 40_000  # 10 MB
REPOSITORY = {
    "config.json": b"{}",
    "README.md": b"---\nlicense: cc-by-4.0\n---\nA model.\n",
    "modeling.py": b"print()",
    "pytorch_model.bin": b"older",
    "model.safetensors": WEIGHTS,
    "adapter.ces.safetensors": b"another",
}


@pytest.fixture
def hub(loopback: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one model, and a cache of the test's own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_download, "PAUSE_SECONDS", 0.0)
    with served(FakeHub({"some/model": dict(REPOSITORY)}, {"some/model": {"license": "cc-by-4.0"}})) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_one_kind_of_weights_is_fetched_and_said_before(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    shown: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO, logger="knn_cli"):
        model = fetched("hf:some/model", lambda done, total: shown.append((done, total)))
    assert files(model.path) == {"README.md", "config.json", "model.safetensors"}
    assert model.path.parent.name == "snapshots" and model.path.name == model.commit == COMMIT
    assert model.facts() == {"origin": "hf:some/model", "revision": COMMIT, "licence": "cc-by-4.0"}
    (said,) = caplog.messages
    assert "10.2 MB, licence cc-by-4.0, revision cccccccc: README.md, config.json, model.safetensors." in said
    total = sum(len(REPOSITORY[name]) for name in files(model.path))
    assert shown[-1] == (total, total) and shown == sorted(shown) and len(shown) > 10
    hub.asked.clear()
    again = fetched("hf:some/model")
    assert (again, hub.asked) == (model, [])  # from the cache, without asking anybody


def test_huggingface_hub_finds_what_was_fetched(hub: FakeHub) -> None:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    model = fetched("hf:some/model@v1")
    assert snapshot_download("some/model", revision="v1", local_files_only=True) == str(model.path)
    file = try_to_load_from_cache("some/model", "model.safetensors", revision="v1")
    assert file == str(model.path / "model.safetensors") and Path(file).read_bytes() == WEIGHTS


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_a_lost_connection_goes_on_where_it_stopped(hub: FakeHub, ignores_ranges: bool) -> None:
    hub.drops["model.safetensors"], hub.ignores_ranges = [3_000_000, 4_000_000], ignores_ranges
    model = fetched("hf:some/model")
    assert (model.path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [asked for name, asked in hub.asked if name == "model.safetensors"]
    assert ranges == [None, "bytes=3000000-", "bytes=4000000-" if ignores_ranges else "bytes=7000000-"]


def test_what_a_stopped_download_left_is_not_fetched_again(hub: FakeHub) -> None:
    hub.drops["model.safetensors"] = [5_000_000, *[0] * 20]
    with pytest.raises(KnnError, match=r"cannot be reached|goes no further") as caught:
        fetched("hf:some/model")
    assert "kept" in caught.value.hint
    hub.drops.clear()
    hub.asked.clear()
    model = fetched("hf:some/model")
    assert hub.asked == [("model.safetensors", "bytes=5000000-")]
    assert (model.path / "model.safetensors").read_bytes() == WEIGHTS
    assert not [*model.path.parents[1].rglob("*.incomplete"), *model.path.parents[1].rglob("*.lock")]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_another_hash_is_refused_and_not_kept(hub: FakeHub, name: str, tmp_path: Path) -> None:
    hub.altered.add(name)
    with pytest.raises(KnnError, match=f"{name} of some/model arrived as another file than was published"):
        fetched("hf:some/model")
    assert not [*(tmp_path / "hub").rglob("snapshots")]
    hub.altered.clear()
    assert (fetched("hf:some/model").path / name).read_bytes() == REPOSITORY[name]


def test_a_file_of_the_cache_with_another_hash_is_refused(hub: FakeHub) -> None:
    blob = (fetched("hf:some/model").path / "model.safetensors").resolve()
    blob.write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(KnnError, match=r"model.safetensors in the Hugging Face cache is not what was published"):
        fetched("hf:some/model")


def test_refusals_are_one_sentence_and_a_hint(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories |= {"some/gated": REPOSITORY, "some/busy": {"a.nemo": b"x"}, "some/code": {"train.py": b"x"}}
    hub.repositories["some/choice"] = {"a.pt": b"1", "b.pt": b"2"}
    hub.gated.add("some/gated")
    hub.failing["a.nemo"] = 503
    for name, message, hint in (
        ("some/nothing", "There is no model some/nothing", "Check the name"),
        ("some/gated", "some/gated is gated", f"{hub.url}/some/gated"),
        ("some/model@v9", "has no revision v9", "another"),
        ("some/busy", "does not give some/busy: .*503", "network"),
        ("some/code", "has no weights that knn reads", "knn models"),
        ("some/choice", "several files that may be weights: a.pt, b.pt", "hf:some/choice/a.pt"),
        ("some/../model", "names no model", "OWNER/NAME"),
        ("", "names no model", "OWNER/NAME"),
        ("some/model@", "names no model", "OWNER/NAME"),
        ("some/model@a/../../b", "names no model", "OWNER/NAME"),
        ("some/model@/b", "names no model", "OWNER/NAME"),
    ):
        with pytest.raises(KnnError, match=message) as caught:
            fetched(f"hf:{name}")
        assert hint in caught.value.hint
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(KnnError, match="cannot be reached for some/model") as caught:
        fetched("hf:some/model")
    assert "by other means" in caught.value.hint


def test_a_full_disk_is_said_before_and_during(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 1, 8_000_000))  # type: ignore[attr-defined]
    with pytest.raises(KnnError, match="8 MB left and has no room for some/model, which needs 10 MB more"):
        fetched("hf:some/model")
    assert hub.asked == []
    monkeypatch.undo()

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KnnError, match="has no room"), hub_download.hub_errors("some/model", None, Path("/")):
        os.fsync(0)


def test_a_file_or_folder_of_a_repository_can_be_named(hub: FakeHub) -> None:
    parts = {"README.md": b"A pipeline.", "segmentation/pytorch_model.bin": b"1", "plda/plda.npz": b"2", "a.pt": b"3"}
    hub.repositories["some/pipeline"] = parts
    folder = fetched("hf:some/pipeline/segmentation")
    assert (folder.path.name, files(folder.path)) == ("segmentation", {"pytorch_model.bin"})
    assert fetched("hf:some/pipeline/segmentation") == folder
    file = fetched("hf:some/pipeline/a.pt@v1")
    assert (file.path.name, file.path.read_bytes()) == ("a.pt", b"3")
    hub.repositories["some/nemo"] = {"titanet.nemo": b"tar", "README.md": b""}
    assert fetched("hf:some/nemo").path.name == "titanet.nemo" == fetched("hf:some/nemo").path.name


def test_parts_of_weights_come_with_their_index(hub: FakeHub) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = json.dumps({"weight_map": dict(zip("ab", names, strict=True))}).encode()
    hub.repositories["some/large"] = {"config.json": b"{}", **dict.fromkeys(names, b"1")}
    hub.repositories["some/large"]["model.safetensors.index.json"] = index
    path = fetched("hf:some/large").path
    assert files(path) == {"config.json", "model.safetensors.index.json", *names}
    hub.asked.clear()
    (path / names[0]).unlink()
    assert files(fetched("hf:some/large").path) >= {*names} and hub.asked == []  # its content is still there


def test_one_format_and_precision_of_several_is_fetched(hub: FakeHub) -> None:
    """With the files that name tokens, and without what is for other programs."""
    settings = ["added_tokens.json", "config.json", "generation_config.json", "tokenizer.json"]
    others = ["model.fp32-00001-of-00002.safetensors", "model.safetensors.index.fp32.json", "flax_model.msgpack"]
    for name, weights, expected in (
        ("whole", ["pytorch_model.bin", "model.safetensors", "model-00001-of-00002.safetensors"], "model.safetensors"),
        ("old", ["pytorch_model.bin", "tf_model.h5"], "pytorch_model.bin"),
        ("faster", ["model.bin", "vocabulary.txt"], "model.bin"),
    ):
        hub.repositories[f"some/{name}"] = dict.fromkeys([*settings, *others, *weights], b"{}")
        assert files(fetched(f"hf:some/{name}").path) == {*settings, expected}


def test_addresses() -> None:
    assert Address.parse("hf:gpt2") == Address("gpt2")
    assert Address.parse("hf:a/b/c/d.pt@refs/pr/1") == Address("a/b", "c/d.pt", "refs/pr/1")
    assert str(Address("a/b", "c", "v1")) == "hf:a/b/c@v1"


def test_answers_that_are_none_of_the_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    strange: list[Any] = [[], {}, {"sha": None}, {"id": "a", "sha": "x", "siblings": [{}]}]
    for answer in strange:
        monkeypatch.setattr(FakeHub, "info", lambda self, name, answer=answer: answer)
        with pytest.raises(KnnError, match="does not answer as the Hugging Face hub"):
            fetched("hf:some/model")


def test_settings_that_the_cache_lacks_are_fetched(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    """As after another program that needed the weights and config.json alone: nothing is guessed in silence."""
    model = fetched("hf:some/model")
    for name in ("README.md", "config.json"):
        (model.path / name).unlink()
    hub.asked.clear()
    assert fetched("hf:some/model") == model and files(model.path) >= {"README.md", "config.json"}
    assert hub.asked == []  # the blobs were there
    storage = model.path.parents[1]
    shutil.rmtree(storage / ".no_exist")
    (model.path / "config.json").unlink()
    hub.repositories.clear()
    caplog.clear()
    assert fetched("hf:some/model") == model
    assert "is taken from the cache, which lacks config.json, preprocessor_config.json" in caplog.text


def test_a_last_attempt_that_gets_further_counts(hub: FakeHub) -> None:
    lost = [0] * (hub_download.ATTEMPTS - 1)
    hub.drops["model.safetensors"] = [*lost, 5_000_000, *lost]
    assert (fetched("hf:some/model").path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_cache_that_cannot_be_read_is_said_so(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched("hf:some/model")

    def refused(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("knn_cli.networks.hub._cached", refused)
    with pytest.raises(KnnError, match=r"The Hugging Face cache .*hub cannot be read: Permission denied"):
        fetched("hf:some/model")
