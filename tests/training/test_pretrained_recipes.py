"""Each recipe for XLS-R, MMS, wav2vec 2.0 and w2v-BERT 2.0, with a tiny network in its place, takes its steps."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from knn_cli.networks import bundle
from knn_cli.networks.construction import build_network
from knn_cli.training.recipe import Recipe
from knn_cli.training.recipe_reader import parse
from knn_cli.training.trainer import train
from tests.training.test_trainer import tones

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
CLASSES = 13
CONVOLUTIONS = [(8, 10, 5), *[(8, 3, 2)] * 4, *[(8, 2, 2)] * 2]
TRANSFORMER = {"channels": 24, "blocks": 2, "heads": 3, "inner": 20}
WAV2VEC2: dict[str, Any] = {**TRANSFORMER, "convolutions": CONVOLUTIONS, "position_kernel": 8, "position_groups": 2}
LARGE = {"convolution_norm": "layer", "convolution_bias": True, "norm_first": True, "normalize": True}
# The model that a recipe begins with -> encoder and arguments of one like it.
LIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2-base": ("wav2vec2", WAV2VEC2),
    "xls-r-300m": ("wav2vec2", {**WAV2VEC2, **LARGE}),
    "mms-300m": ("wav2vec2", {**WAV2VEC2, **LARGE}),
    "w2v-bert-2.0": ("w2v-bert", {**TRANSFORMER, "kernel": 5, "left": 6, "right": 2}),
}


def tables_of(path: Path) -> dict[str, Any]:
    tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return tables


def begins_with(path: Path) -> str:
    return Path(tables_of(path).get("init", {}).get("model", "")).name


FOUND = [path for path in sorted(RECIPES.glob("*.toml")) if begins_with(path) in LIKE]


def shrunk(path: Path, model: Path) -> Recipe:
    """The recipe with a tiny network, 1 epoch of 2 steps."""
    tables = tables_of(path)
    tables["init"]["model"] = str(model)
    tables["pooling"] |= {"dimension": 8}
    tables["data"] |= {"seconds": 0.4, "minimum": 0.5, "workers": 0, "held_out": 0.0}
    tables["data"].pop("labels")
    tables["schedule"] |= {"epochs": 1, "warmup": 0.5}
    tables["loop"] |= {"batch": CLASSES, "log": 1, "average": 1, "precision": "fp32", "classifier": "head"}
    if "margin" in tables:
        tables["margin"] |= {"first": 0, "last": 1}
    if "lora" in tables.get("tuning", {}):
        tables["tuning"]["lora"]["rank"] = 2
    return parse(tables, path.stem)


def weights(folder: Path) -> dict[str, Tensor]:
    return bundle.load_network(bundle.find(folder)).state_dict()


def test_there_is_a_recipe_for_each_model() -> None:
    assert {begins_with(path) for path in FOUND} == set(LIKE)


@pytest.mark.parametrize("path", FOUND, ids=[path.stem for path in FOUND])
def test_it_takes_its_steps_and_is_a_plain_model(path: Path, tmp_path: Path) -> None:
    encoder, args = LIKE[begins_with(path)]
    torch.manual_seed(0)
    config = {
        "name": "tiny",
        "kind": "embedder",
        "audio": {"rate": 16000, "scale": 1.0},
        "encoder": {"name": encoder, "args": args},
        "pooling": {"name": "mean", "args": {}},
    }
    bundle.write(tmp_path / "tiny", config, state=build_network(config).state_dict())
    recipe, out = shrunk(path, tmp_path / "tiny"), tmp_path / "out"
    train(tones(tmp_path / "tones.h5", 1, classes=CLASSES), out, recipe, device="cpu", use_vad=False)
    lines = [json.loads(line) for line in (tmp_path / "out.training" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "rate" in line]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    before, after = weights(tmp_path / "tiny"), weights(out)
    assert {name for name in after if name.startswith("encoder.")} == {*before}
    moved = {name for name, value in before.items() if not value.equal(after[name])}
    if recipe.tuning.lora is not None:
        assert {name.split(".")[-2] for name in moved} == set(recipe.tuning.lora.targets)
    else:
        assert len(moved) > 0.9 * len(before)
