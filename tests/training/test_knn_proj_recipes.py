"""Each recipe of examples/recipes/knn-proj trains: its sizes shrink here, and every mechanism in it stays."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from knn_cli.networks import bundle
from knn_cli.training.recipe import Recipe
from knn_cli.training.recipe_reader import parse
from knn_cli.training.trainer import train
from tests.training.test_trainer import tones

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPES = Path(__file__).parents[2] / "examples" / "recipes" / "knn-proj"
NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))
EPOCHS, BATCH, CLASSES = 2, 13, 13
# The first stage of each recipe for a second one.
FIRST = {"resnet_lm": "resnet", "wavlm_base_MHFA_LR_lm": "wavlm_base_MHFA_LR"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 languages of a recording with two rows each; beside it folders of noise and of impulse responses."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    for name, sound in (("noise", random.normal(size=32000) * 0.1), ("rir", np.exp(-np.arange(2000) / 200))):
        (folder / name).mkdir()
        soundfile.write(folder / name / "a.wav", sound.astype(np.float32), 16000)
    return tones(folder / "tones.h5", recordings=1, classes=CLASSES)


def shrunk(name: str, corpus: Path, first: Path | None = None) -> Recipe:
    """The recipe with a tiny network, 2 epochs of 2 steps, and times that shrink with the epochs."""
    tables: dict[str, Any] = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
    share = EPOCHS / tables["schedule"]["epochs"]
    if first is not None:
        tables["init"]["model"] = str(first)
    elif "init" in tables:
        tables["init"]["model"] = "tiny-test"
    else:
        tables["encoder"] |= {"depth": 18, "width": 2}
    if "pooling" in tables:
        tables["pooling"]["dimension"] = 8
    tables["data"] |= {"seconds": 0.4, "minimum": 0.5, "workers": 0, "label": "group"}
    tables["augment"] |= {"noise": str(corpus.parent / "noise"), "rir": str(corpus.parent / "rir")}
    tables["schedule"] |= {"epochs": EPOCHS, "warmup": tables["schedule"]["warmup"] * share}
    if "margin" in tables:
        tables["margin"] |= {key: tables["margin"][key] * share for key in ("first", "last")}
    tables["loop"] |= {"batch": BATCH, "log": 1, "average": min(EPOCHS, tables["loop"]["average"])}
    return parse(tables, name)


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Train a recipe once, after the one of its first stage."""
    folder, done = tmp_path_factory.mktemp("trained"), dict[str, tuple[Recipe, Path]]()

    def run(name: str) -> tuple[Recipe, Path]:
        if name not in done:
            first = run(FIRST[name])[1] if name in FIRST else None
            recipe = shrunk(name, corpus, first)
            train(corpus, folder / name, recipe, device="cpu", use_vad=False)
            done[name] = recipe, folder / name
        return done[name]

    yield run


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_its_steps_and_is_a_model(name: str, trained: Any) -> None:
    recipe, out = trained(name)
    log = (out.with_name(f"{name}.training") / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    steps = [line for line in lines if "rate" in line]
    assert [step["step"] for step in steps] == [1, 2, 3, 4] and all(math.isfinite(step["loss"]) for step in steps)
    rates, warmup = [step["rate"] for step in steps], 2 * recipe.schedule.warmup
    decay = (recipe.schedule.final_rate / recipe.optimizer.rate) ** (1 / 4)
    factors = [min(1.0, number / warmup) * decay**number for number in range(4)]
    np.testing.assert_allclose(rates, [recipe.optimizer.rate * factor for factor in factors], rtol=1e-6)
    if recipe.margin is not None:
        assert steps[-1]["margin"] == pytest.approx(recipe.margin.end)
    found = bundle.find(out)
    assert found.chunk == "whole" and len(found.head_labels) == CLASSES
    own = bundle.load_network(found).state_dict()
    assert all(value.isfinite().all() for value in own.values())
    if name.startswith("wavlm"):
        assert recipe.tuning.freeze
        before = bundle.load_network(bundle.find("tiny-test")).state_dict()
        moved = {key for key, value in before.items() if key.startswith("encoder.") and not value.equal(own[key])}
        frozen = {key for key in before if key.startswith(tuple(recipe.tuning.freeze))}
        assert frozen and moved and not frozen & moved
