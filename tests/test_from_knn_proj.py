"""The commands of docs/from-knn-proj.md, on data laid out as the mother project's scripts lay it."""

from __future__ import annotations

import gzip
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from knn_cli.store import hdf5, kaldi
from tests.helpers import corpora
from tests.helpers.command import done

PAGE = Path(__file__).resolve().parents[1] / "docs" / "from-knn-proj.md"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `data/naki` (wav.scp, utt2spk, raw.list, shards, a list of speech) and `exp/embeddings`."""
    data, exp = tmp_path / "data" / "naki", tmp_path / "exp" / "embeddings"
    for folder in (data, exp, exp / "1-1"):
        folder.mkdir(parents=True)
    corpora.kaldi(data)
    corpora.raw_list(data)
    corpora.shard_list(data)
    for shard in data.glob("*.tar"):
        (data / "shards").mkdir(exist_ok=True)
        shutil.move(shard, data / "shards" / shard.name)
    names = sorted(path.name for path in (data / "shards").iterdir())
    (data / "shard.list").write_text("".join(f"data/naki/shards/{name}\n" for name in names))
    (data / "vad").write_text("".join(f"{key} 0.5 1.5\n{key} 2 2.75\n" for key in corpora.PIECES))
    keys = list(corpora.PIECES)
    with (exp / "xvector_000.ark").open("wb") as file:
        offsets = kaldi.write_ark(file, keys, np.eye(len(keys), dtype=np.float32))
    lines = [f"{key} exp/embeddings/xvector_000.ark:{offset}\n" for key, offset in zip(keys, offsets, strict=True)]
    (exp / "xvector.scp").write_text("".join(lines))
    for piece in range(2):
        (exp / "1-1" / f"10_A_SPLIT_{piece:03d}.i.gz").write_bytes(gzip.compress(b"0.5 -1 2"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_page(project: Path) -> None:
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    commands = [line.split()[2:] for block in blocks for line in block.splitlines() if line.startswith("$ knn ")]
    assert len(commands) >= 8
    for command in commands:
        done(*command, *(["--model", "tiny-test"] if command[0] == "embed" else []))
    for name, rows in {"corpus": 6, "raw": 6, "shards": 6, "heard": 12, "emb": 6, "text": 2, "new": 6}.items():
        known = hdf5.labels(project / f"{name}.h5")
        assert len(known) == rows, name
        pairs = set(zip(known.name.tolist(), known.subgroup.tolist(), strict=True))
        assert pairs == (set(corpora.PIECES.values()) if name != "text" else {("10_A", "1-1")}), name
        assert set(known.speaker.tolist()) == {""}
