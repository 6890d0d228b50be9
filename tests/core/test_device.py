"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from knn_cli.core.device import torch_device
from knn_cli.core.errors import KnnError


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_first_that_is_available(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert torch_device("auto") == torch.device(expected)
    if cuda:
        assert torch_device("cuda:1") == torch.device("cuda", 1)


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KnnError, match="no device 'tpu'"):
        torch_device("tpu")
    with pytest.raises(KnnError, match="no cuda device"):
        torch_device("cuda:0")
