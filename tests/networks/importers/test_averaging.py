"""The mean of checkpoints: which ones, their weights by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.core.errors import KnnError
from knn_cli.networks import bundle
from knn_cli.networks.conversion import convert
from knn_cli.networks.importers.averaging import averaged_content, averaged_state, checkpoints_to_average
from knn_cli.networks.importers.components import ImportedModel
from knn_cli.networks.importers.entry import import_checkpoint
from tests.networks.importers.test_speaker import Training, resnet_state


def test_the_mean_by_hand() -> None:
    """Float32 is summed in float64 (its own sum is 0), and whole numbers lose their fraction, as theirs do."""
    values = {"a": (2.0**24, 1, 7), "b": (1.0, 2, 8), "c": (1.0, 6, 8), "d": (-(2.0**24), 7, 10)}
    states = {
        name: {
            "single": torch.tensor([single]),
            "double": torch.tensor(single, dtype=torch.float64),
            "half": torch.tensor([[whole]], dtype=torch.float16),
            "bn.num_batches_tracked": torch.tensor(count),
        }
        for name, (single, whole, count) in values.items()
    }
    found = averaged_state(states)
    assert found["single"].item() == 0.5 and found["double"].item() == 0.5
    assert found["half"].item() == 4.0 and found["bn.num_batches_tracked"].item() == 8
    assert all(found[key].dtype == value.dtype for key, value in states["a"].items())
    loaded = torch.nn.BatchNorm1d(1)
    theirs = torch.true_divide(sum(state["bn.num_batches_tracked"] for state in states.values()), 4)
    loaded.load_state_dict({**loaded.state_dict(), "num_batches_tracked": theirs})
    assert loaded.num_batches_tracked == found["bn.num_batches_tracked"]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"w": torch.ones(2)}, "different networks: w differ"),
        ({"w": torch.ones(1).double()}, "different networks: w differ"),
        ({"v": torch.ones(1)}, "different networks: v, w differ"),
        ({"w": torch.ones(1), "v": torch.ones(1)}, "different networks: v differ"),
        ({"w": 3.0}, "different networks: w differ"),
    ],
)
def test_other_networks_are_refused(other: dict[str, Any], why: str) -> None:
    with pytest.raises(KnnError, match=why):
        averaged_state({"first.pt": {"w": torch.ones(1)}, "second.pt": other})
    with pytest.raises(KnnError, match="more than numbers: w"):
        averaged_state({"first.pt": {"w": 3.0}, "second.pt": {"w": 3.0}})


def test_settings_beside_the_weights_stay_and_must_agree() -> None:
    contents = [{"cfg": {"layers": 2}, "model": {"module.w": torch.tensor([value])}} for value in (1.0, 2.0)]
    found = averaged_content({"a": contents[0], "b": contents[1]})
    assert found["cfg"] == {"layers": 2} and found["model"]["w"].item() == 1.5
    with pytest.raises(KnnError, match="b has other settings"):
        averaged_content({"b": {**contents[0], "cfg": {"layers": 3}}, "a": contents[1]})
    with pytest.raises(KnnError, match="a folder is no single file"):
        averaged_content({"a": contents[0], "a folder": {}})


def test_which_ones(tmp_path: Path) -> None:
    models = tmp_path / "exp" / "models"
    models.mkdir(parents=True)
    names = ["model_0.pt", "model_9.pt", "model_10.pt", "model_11.pt", "avg_model.pt", "final_model.pt", "model_2.txt"]
    names += ["epoch-0003.pt", "epoch-0012.pt"]
    for name in names:
        (models / name).touch()

    def chosen(path: Path, average: str) -> list[str]:
        return [file.name for file in checkpoints_to_average(path, average)]

    for folder in (tmp_path / "exp", models):
        assert chosen(folder, "3") == ["model_9.pt", "model_10.pt", "model_11.pt"]
    assert chosen(models / "model_10.pt", "2") == ["model_9.pt", "model_10.pt"]
    assert chosen(models / "epoch-0012.pt", "2") == ["epoch-0003.pt", "epoch-0012.pt"]
    given = f"{models / 'model_0.pt'}, {models / 'model_9.pt'}"
    assert chosen(models / "model_11.pt", given) == ["model_0.pt", "model_9.pt", "model_11.pt"]
    for path, average in ((tmp_path / "exp", "5"), (models / "model_10.pt", "4"), (models / "model_10.pt", "0")):
        with pytest.raises(KnnError, match=rf"{average} cannot be averaged"):
            chosen(path, average)
    with pytest.raises(KnnError, match="names a checkpoint twice"):
        chosen(models / "model_0.pt", given)
    for path, average in ((models / "model_0.pt", "none.pt"), (tmp_path / "none.pt", "2")):
        with pytest.raises(KnnError, match=r"There is no checkpoint .*none\.pt"):
            chosen(path, average)


def test_the_last_checkpoints_of_a_training(tmp_path: Path) -> None:
    """exp/NAME without avg_model.pt: its settings are found, and the model is that of the mean."""
    training = Training(tmp_path, "softmax")
    models = tmp_path / "exp" / "models"
    models.mkdir(parents=True)
    training.config.rename(tmp_path / "exp" / "config.yaml")
    key = "speaker_extractor.back_end.pooling_fc.weight"
    for number in (1, 2, 3, 4):
        shift = {key: training.state[key] + (number - 3.5 if number > 2 else 100)}
        torch.save({"model": training.state | shift, "epoch": number}, models / f"model_{number}.pt")
    run = CliRunner().invoke(app, ["convert", str(tmp_path / "exp"), str(tmp_path / "m"), "--average", "2"])
    assert run.exit_code == 0, run.output
    network = bundle.load_network(bundle.find(tmp_path / "m"))
    torch.testing.assert_close(network.pooling.state_dict()["pooling_fc.weight"], training.state[key])
    assert len(bundle.find(tmp_path / "m").head_labels) == 13
    with pytest.raises(KnnError, match="5 cannot be averaged"):
        convert(tmp_path / "exp", tmp_path / "n", average="5")


def test_given_checkpoints(tmp_path: Path) -> None:
    states: list[dict[str, Tensor]] = [resnet_state(18, 4, False) for _ in range(3)]
    for number, state in enumerate(states):
        state["seg_1.bias"] = state["seg_1.bias"] + number
        torch.save(state, tmp_path / f"{'abc'[number]}.pt")
    others = f"{tmp_path / 'b.pt'},{tmp_path / 'c.pt'}"
    found = import_checkpoint(tmp_path / "a.pt", origin="wespeaker", average=others)
    assert isinstance(found, ImportedModel)
    torch.testing.assert_close(found.pooling.state["seg_1.bias"], states[1]["seg_1.bias"])
    torch.save({**states[1], "more": torch.ones(1)}, tmp_path / "b.pt")
    with pytest.raises(KnnError, match=r"b\.pt and .*c\.pt are of different networks: more differ"):
        import_checkpoint(tmp_path / "a.pt", origin="wespeaker", average=others)
    (tmp_path / "store.csv").write_text(json.dumps({}))
    with pytest.raises(KnnError, match="`average` is for checkpoints"):
        convert(tmp_path / "store.csv", tmp_path / "s.h5", average="2")


def test_settings_that_hold_tensors_are_compared(tmp_path: Path) -> None:
    def content(cfg: Any) -> dict[str, Any]:
        return {"cfg": cfg, "model": {"w": torch.ones(1)}}

    cfg = {"mean": torch.zeros(3), "sizes": [1, (2, 3)]}
    same = {"mean": torch.zeros(3), "sizes": [1, (2, 3)]}
    assert averaged_content({"a": content(cfg), "b": content(same)})["cfg"] is same
    for other in ({"mean": torch.ones(3)}, {"mean": torch.zeros(2)}, {"mean": 0.0}, {"sizes": [1, (2, 4)]}):
        with pytest.raises(KnnError, match="a has other settings of its network"):
            averaged_content({"a": content(cfg | other), "b": content(cfg)})


def test_names_that_are_no_texts_are_listed() -> None:
    with pytest.raises(KnnError, match="different networks: 1, b differ"):
        averaged_state({"first": {1: torch.zeros(1), "b": torch.zeros(1)}, "second": {}})  # type: ignore[dict-item]
