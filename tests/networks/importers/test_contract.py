"""The contract of importers, over everything that is registered."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from knn_cli.core.errors import KnnError
from knn_cli.networks.importers.entry import import_checkpoint
from knn_cli.networks.importers.registry import MODULES, Checkpoint, RegisteredImporter, importers
from knn_cli.networks.importers.weight_names import SOURCES

IDS = [each.read.__name__ for each in importers()]  # type: ignore[attr-defined]


def test_every_source_has_an_importer_and_every_module_is_registered() -> None:
    assert {each.source for each in importers()} == set(SOURCES)
    folder = Path(inspect.getfile(import_checkpoint)).parent
    decorated = {path.stem for path in folder.glob("*.py") if "\n@importer(" in path.read_text(encoding="utf-8")}
    assert set(MODULES) == decorated
    assert len(set(IDS)) == len(IDS) and {each.source for each in importers() if each.takes_options} == {
        "wespeaker",
        "3D-Speaker",
    }


@pytest.mark.parametrize("each", importers(), ids=IDS)
def test_an_importer_takes_a_checkpoint_and_says_what_it_reads(each: RegisteredImporter) -> None:
    assert list(inspect.signature(each.read).parameters) == ["checkpoint"]
    assert inspect.getdoc(each.read)


@pytest.mark.parametrize("each", importers(), ids=IDS)
def test_nothing_else_is_recognized(each: RegisteredImporter, tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    for content in ({}, {"weight": torch.zeros(1)}, {"model": {"layer.bias": torch.zeros(1)}, "epoch": 3}):
        assert not each.recognizes(Checkpoint(file, content))


def test_unrecognized_checkpoint_is_refused_in_a_single_sentence(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(KnnError, match="is no checkpoint that knn knows"):
        import_checkpoint(tmp_path / "other.pt")
    with pytest.raises(KnnError, match="There is no checkpoint"):
        import_checkpoint(tmp_path / "none.pt")
    with pytest.raises(KnnError, match="needs no `labels`"):
        import_checkpoint(tmp_path / "other.pt", labels=["a"])
