"""The table of public checkpoints: what it names exists, and it is found by name, task, language and licence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.languages import find_language
from knn_cli.core.registry import ENCODERS, SEGMENTERS
from knn_cli.networks.hub import Address
from knn_cli.networks.importers.weight_names import SOURCES
from knn_cli.networks.importers.wespeaker_heads import VOXLINGUA107
from knn_cli.networks.public_checkpoints import SHIPPED, find_checkpoints, public_checkpoints
from tests.helpers.command import done, knn

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.mark.parametrize("row", public_checkpoints(), ids=lambda row: row.name)
def test_every_row_can_be_read_and_says_whence(row: object) -> None:
    from knn_cli.networks.public_checkpoints import PublicCheckpoint

    assert isinstance(row, PublicCheckpoint)
    assert row.importer == SHIPPED or row.importer in SOURCES
    assert row.encoder in (*ENCODERS.names(), *SEGMENTERS.names())
    assert row.task in ("languages", "speakers", "segmentation", "pre-trained")
    assert all(find_language(code) is not None for code in row.languages)
    assert row.source.startswith("https://") or (MODELS.parent / row.source).is_file()
    verb, *arguments = row.command.split()[1:]
    if row.importer == SHIPPED:
        assert (MODELS / row.name).is_dir()
    else:
        assert verb == "convert" and len(arguments) in (2, 4) and arguments[1].startswith("models/")
        assert not arguments[0].startswith("hf:") or Address.parse(arguments[0]).repository.count("/") == 1


def test_names_are_unique_and_languages_are_those_of_the_heads() -> None:
    rows = {row.name: row for row in public_checkpoints()}
    assert len(rows) == len(public_checkpoints())
    assert rows["ambernet"].languages == VOXLINGUA107
    assert [len(rows[f"whisper-{size}"].languages) for size in ("tiny", "large-v3")] == [99, 100]


def test_it_is_searched_by_name_task_language_and_licence() -> None:
    def names(text: str) -> set[str]:
        return {row.name for row in find_checkpoints(text)}

    assert names("titanet") == {"titanet-large", "titanet-small"}
    assert names("languages speechbrain") == {"lang-id-voxlingua107-ecapa", "voxlingua107-epaca-tdnn-ce"}
    identifiers = names("nemo languages") | names("voxlingua107") | {"mms-lid-126"}
    assert names("Cebuano") == names("ceb") == identifiers
    assert "voice" in names("zh speakers") and "titanet-large" not in names("zh speakers")
    assert names("MIT pre-trained") == {"w2v-bert-2.0"} and len(names("mms-lid")) == 6
    assert names("gated") == {"segmentation-3.0", "community-1"}
    assert len(names("")) == len(public_checkpoints())
    for text, hint in (("titanet-lagre", "titanet-large"), ("qqqq", "all of them")):
        with pytest.raises(KnnError, match="No public checkpoint") as caught:
            find_checkpoints(text)
        assert hint in caught.value.hint


def test_the_command_writes_rows_and_json_lines() -> None:
    header, *rows = done("models", "titanet").stdout.splitlines()
    assert header.split("\t")[:3] == ["name", "task", "languages"] and len(rows) == 2
    assert "hf:nvidia/speakerverification_en_titanet_large" in rows[0]
    (line,) = done("models", "ambernet", "--json").stdout.splitlines()
    facts = json.loads(line)
    assert facts["parameters"] == 28.9 and facts["megabytes"] is None and "cs" in facts["languages"]
    refused = knn("models", "wisper-tiny")
    assert refused.exit_code == 1 and "Did you mean whisper-tiny" in refused.stderr
