"""Recipes: every key checked, and every shipped one built as it stands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from msgspec.structs import fields

from knn_cli.core.errors import KnnError
from knn_cli.core.values import LABEL_LEVELS
from knn_cli.networks import bundle
from knn_cli.networks.encoders.adapters import KINDS
from knn_cli.networks.importers.wespeaker import INTEGER_SCALE
from knn_cli.training.fine_tuning import FineTuner
from knn_cli.training.model_builder import ModelBuilder, class_weights
from knn_cli.training.optimization import build_optimizer, learning_rate_factor, margin_schedule
from knn_cli.training.recipe import (
    AdapterConfig,
    AugmentConfig,
    DataConfig,
    InitConfig,
    LoopConfig,
    LoraConfig,
    MarginConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
    TuningConfig,
)
from knn_cli.training.recipe_reader import parse, read

TOP = Path(__file__).resolve().parents[2]
SHIPPED = sorted((TOP / "examples" / "recipes").glob("*.toml"))

BASE: dict[str, Any] = {
    "encoder": {"name": "fbank-tdnn", "channels": 8},
    "pooling": {"name": "mean"},
    "head": {"name": "softmax"},
}


def test_defaults_and_numbers() -> None:
    recipe = parse(BASE | {"seed": 3, "data": {"seconds": 2, "ignore": ["7"]}, "augment": {"speeds": [1, 0.9]}})
    assert (recipe.seed, recipe.data.seconds, recipe.data.ignore) == (3, 2.0, ("7",))
    assert recipe.augment.speeds == (1.0, 0.9) and isinstance(recipe.data.seconds, float)
    assert recipe.encoder.args == {"channels": 8} and recipe.schedule.final_rate is None
    other = parse(BASE | {"seed": 3, "data": {"seconds": 2, "ignore": ["7"], "workers": 4}, "loop": {"log": 1}})
    assert (
        other.result_config["data"] == recipe.result_config["data"]
        and other.result_config["loop"] == recipe.result_config["loop"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": {}}, "no key 'optimiser' in the recipe. Did you mean optimizer?"),
        ({"data": {"secnds": 3}}, "no key 'secnds' in [data]. Did you mean seconds?"),
        ({"encoder": {"name": "wavml"}}, "no encoder named 'wavml'. Did you mean wavlm?"),
        ({"encoder": {"name": "wavlm", "blokcs": 2}}, "no key 'blokcs' in [encoder] wavlm. Did you mean blocks?"),
        ({"pooling": {"name": "mhfa", "head": 2}}, "no key 'head' in [pooling] mhfa. Did you mean heads?"),
        ({"pooling": {"name": "mhfa", "layers": 2}}, "[pooling] cannot set 'layers'"),
        ({"head": {"name": "aam-softmax", "class_weights": [1]}}, "See loop.class_weights."),
        ({"head": {"scale": 1}}, "[head] has no name"),
        ({"data": {"label": "langauge"}}, "data.label cannot be 'langauge'"),
        ({"augment": {"codecs": ["mp4"]}}, "augment.codecs cannot be 'mp4'. Did you mean mp3?"),
        (
            {"loop": {"batch": "32"}},
            "loop.batch cannot be '32'. It takes a whole number of 1 or more; the default is 32.",
        ),
        ({"loop": {"batch": True}}, "loop.batch cannot be True. It takes a whole number of 1 or more"),
        ({"loop": {"batch": 8, "accumulate": 3}}, "loop.accumulate must divide loop.batch"),
        ({"loop": {"ema": 0.9, "average": 3}}, "exclude each other"),
        ({"loop": {"class_weights": "blanced"}}, "class_weights cannot be 'blanced'"),
        ({"augment": {"noise_share": 1.5}}, "augment.noise_share cannot be 1.5. It takes a number from 0 to 1"),
        (
            {"augment": {"noise_snr": [5]}},
            "augment.noise_snr cannot be [5]. It takes a list of 2, each a number; the default is [5.0, 20.0].",
        ),
        ({"schedule": {"decay": 0.9, "final_rate": 0.1}}, "exclude each other"),
        ({"tuning": {"lora": {"rnak": 2}}}, "no key 'rnak' in [tuning.lora]. Did you mean rank?"),
        ({"tuning": {"pull": 0.1}}, "tuning.pull needs weights to start from"),
        ({"init": {"model": "x"}}, "[encoder] comes from init.model"),
        ({"init": {"model": "x", "parts": ["encodr"]}}, "init.parts cannot be 'encodr'"),
        ({"name": "x"}, "no key 'name' in the recipe"),
        ({"head": 3}, "[head] is a table."),
        ({"data": 3}, "data cannot be 3. It takes a table."),
        (
            {"optimizer": {"betas": [0.9, 1.0]}},
            "optimizer.betas cannot be 1.0. It takes a list of 2, each a number from 0 to below 1",
        ),
        (
            {"optimizer": {"betas": [-0.1, 0.9]}},
            "optimizer.betas cannot be -0.1. It takes a list of 2, each a number from 0 to below 1",
        ),
        (
            {"optimizer": {"weight_decay": -1e-4}},
            "optimizer.weight_decay cannot be -0.0001. It takes a number of 0 or more",
        ),
        ({"optimizer": {"momentum": -0.9}}, "optimizer.momentum cannot be -0.9. It takes a number from 0 to below 1"),
        ({"optimizer": {"rate": math.inf}}, "optimizer.rate is inf"),
        ({"optimizer": {"betas": [0.9, math.nan]}}, "optimizer.betas is nan"),
        ({"scale": math.nan}, "scale is nan"),
        ({"scale": 10**400}, "scale is larger than any number"),
        ({"data": {"seconds": 1e12}}, "data.seconds cannot be 1000000000000.0. It takes a number above 0, up to 3600"),
        ({"scale": 0}, "scale cannot be 0. It takes a number above 0"),
        ({"seed": 10**30}, "It takes a whole number from 0 to 9223372036854775807"),
        ({"encoder": {"name": "fbank-tdnn", "floor": math.inf}}, "encoder.floor is inf"),
        ({"loop": {"class_weights": {"a": math.nan}}}, "loop.class_weights.a is nan"),
        (
            {"loop": {"class_weights": {"a": "1"}}},
            "loop.class_weights cannot be {'a': '1'}. It takes 'balanced' or 'none', or a table",
        ),
        ({"loop": {"class_weights": {"a": True}}}, "a table, each value a number above 0"),
        ({"loop": {"class_weights": {"a": 0.0, "b": 1.0}}}, "a table, each value a number above 0"),
        ({"augment": {"band": [0, 0]}}, "augment.band cannot be 0. It takes a list of 2, each a number above 0"),
        ({"augment": {"eq_decibels": -3}}, "augment.eq_decibels cannot be -3. It takes a number of 0 or more"),
        (
            {"augment": {"mask_time_share": 0.1, "mask_time_length": 0}},
            "augment.mask_time_length cannot be 0. It takes a whole number of 1 or more",
        ),
        ({"data": {"minimum": -1}}, "data.minimum cannot be -1. It takes a number of 0 or more"),
        ({"margin": {"first": 3, "last": 2}}, "margin.first is above margin.last"),
        ({"margin": {"first": -1}}, "margin.first cannot be -1. It takes a number of 0 or more"),
        ({"tuning": {"lora": {"alpha": 0}}}, "tuning.lora"),
        ({"pooling": {"name": "mhfa", "heads": "8"}}, "[pooling] mhfa heads cannot be '8'. It takes a whole number."),
        ({"pooling": {"name": "mhfa", "heads": True}}, "It takes a whole number."),
        ({"pooling": {"name": "resnet", "two": 1}}, "[pooling] resnet two cannot be 1. It takes true or false."),
        (
            {"encoder": {"name": "fbank-tdnn", "dilations": [1, "2"]}},
            "dilations cannot be '2'. It takes a list, each item a whole number.",
        ),
        ({"encoder": {"name": "wavlm", "blocks": 2.5}}, "[encoder] wavlm blocks cannot be 2.5."),
        ({"encoder": {"name": "wavlm", "convolutions": [[1, 2]]}}, "[encoder] wavlm convolutions cannot be"),
        ({"encoder": {"name": "wavlm", "adapters": 64}}, "[encoder] wavlm adapters cannot be 64. It takes a table."),
        ({"head": {"name": "sphereface2", "margin_on": "sine"}}, "margin_on cannot be 'sine'"),
        ({"init": {"model": "x", "heard": "maybe"}}, "init.heard cannot be 'maybe'"),
        (
            {"init": {"model": "x"}, "encoder": {}, "tuning": {"adapters": {"kind": "x"}}},
            "adapters.kind cannot be 'x'",
        ),
        (
            {"tuning": {"adapters": {}, "lora": {}}},
            "tuning.adapters and tuning.lora exclude each other",
        ),
    ],
)
def test_mistakes_are_one_sentence_with_the_nearest_word(change: dict[str, Any], message: str) -> None:
    with pytest.raises(KnnError) as found:
        parse(BASE | change, "mine")
    assert message in str(found.value) and str(found.value).startswith("mine: ")


def test_constraints_that_are_declared_twice_agree() -> None:
    """A Literal cannot be made of a table elsewhere, so the two are compared here."""
    kinds, levels = get_type_hints(AdapterConfig)["kind"], get_type_hints(DataConfig)["label"]
    assert set(get_args(kinds)) == set(KINDS) and get_args(levels) == LABEL_LEVELS


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(KnnError, match="cannot be read: No such file"):
        read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seed = = 3")
    with pytest.raises(KnnError, match="is not TOML"):
        read(tmp_path / "bad.toml")


def test_a_recipe_that_is_nested_without_end_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text("seed = " + "[" * 100_000)
    with pytest.raises(KnnError, match="is not TOML"):
        read(tmp_path / "deep.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": {"name": "mhfa", "heads": 0}}, "heads"),
        ({"pooling": {"name": "mean", "layer": 99}}, "layer"),
        ({"encoder": {"name": "fbank-tdnn", "channels": -1}}, r"\[encoder\] fbank-tdnn cannot be built with"),
        ({"encoder": {"name": "fbank-tdnn", "bins": 0}}, r"\[encoder\] fbank-tdnn cannot be built with"),
        ({"encoder": {"name": "resnet", "width": 0}}, r"\[encoder\] resnet cannot be built with"),
        ({"head": {"name": "aam-softmax"}, "margin": {"end": 3.2}}, "cannot have a margin of 3.2"),
        ({"head": {"name": "sphereface"}, "margin": {"start": 0.5, "end": 2}}, "cannot have a margin of 0.5"),
        ({"margin": {"end": 0.2}}, "its head has no margin"),
        ({"tuning": {"freeze": ["encoder.stm"]}}, "nothing named 'encoder.stm'"),
        ({"tuning": {"freeze": ["encoder"], "layer_drop": 0.2}}, "tuning.layer_drop has no effect"),
        ({"tuning": {"freeze": ["encoder"]}, "augment": {"mask_share": 0.5}}, "augment.mask_share has no effect"),
        ({"tuning": {"freeze": ["encoder"]}, "optimizer": {"encoder_rate": 1e-5}}, "optimizer.encoder_rate has no"),
        ({"augment": {"mask_time_share": 0.2}}, "augment.mask_time_share needs wavlm"),
        ({"data": {"seconds": 0.01}}, "data.seconds is too short"),
    ],
)
def test_what_cannot_be_built_is_told_before_any_sound_is_read(change: dict[str, Any], message: str) -> None:
    with pytest.raises(KnnError, match=message):
        ModelBuilder(parse(BASE | change)).check()


def test_rates_over_time() -> None:
    """Final and decayed rates by hand, and wespeaker's warm-up, which goes with the decay."""
    falling = ScheduleConfig(epochs=40, final_rate=4.4e-3)
    assert learning_rate_factor(falling, 1e-2, 0, 100) == 1.0
    assert 1e-2 * learning_rate_factor(falling, 1e-2, 4000, 100) == pytest.approx(4.4e-3)
    assert 1e-2 * learning_rate_factor(falling, 1e-2, 2000, 100) == pytest.approx(math.sqrt(1e-2 * 4.4e-3))
    decayed = ScheduleConfig(epochs=10, decay=0.95, warmup=2.0)
    assert learning_rate_factor(decayed, 1.0, 300, 100) == pytest.approx(0.95**3)
    assert learning_rate_factor(decayed, 1.0, 100, 100) == pytest.approx(0.5 * 0.95)


def test_margin_and_class_weights() -> None:
    recipe = parse(BASE | {"margin": {"end": 0.4, "first": 1, "last": 3, "kind": "linear"}})
    schedule = margin_schedule(recipe, 10)
    assert schedule is not None
    assert [schedule.at(step) for step in (0, 10, 20, 30, 99)] == pytest.approx([0.0, 0.0, 0.2, 0.4, 0.4])
    assert margin_schedule(parse(BASE), 10) is None
    classes = torch.tensor([0, 0, 0, 1]).numpy()
    balanced = parse(BASE | {"loop": {"class_weights": "balanced"}})
    assert class_weights(balanced, ["a", "b"], classes) == pytest.approx([4 / 6, 2.0])
    named = parse(BASE | {"loop": {"class_weights": {"b": 2, "a": 1}}})
    assert class_weights(named, ["a", "b"], classes) == [1.0, 2.0]
    listed = parse(BASE | {"loop": {"class_weights": [3, 0.5]}})
    assert class_weights(listed, ["a", "b"], classes) == [3.0, 0.5]
    with pytest.raises(KnnError, match="has 2 weights, and the corpus 3 labels: a, b, c"):
        class_weights(listed, ["a", "b", "c"], classes)
    assert class_weights(parse(BASE), ["a", "b"], classes) is None


EMBEDDERS = [path for path in SHIPPED if path.stem != "segmentation"]  # see test_segmentation_trainer


@pytest.mark.parametrize("path", EMBEDDERS, ids=[path.stem for path in EMBEDDERS])
def test_a_shipped_recipe_builds(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device: every name, argument and size fits, and every tuned weight gets a rate."""
    recipe = read(path)
    text = path.read_text()
    assert text.startswith("# ") and text.count("#") > 1, "a recipe says what it is for"
    labels = ["1-1", "1-2", "2-1"]
    monkeypatch.setattr(ModelBuilder, "_take", lambda *args: None)
    if recipe.init.model:
        encoder, pooling, head = original(recipe)
        parts = {"encoder": encoder, "pooling": pooling, "head": head}
        config = {"audio": {"rate": 16000, "scale": 1.0}, **parts}
        found = bundle.Bundle(tmp_path, {"name": "x", "schema": 1, "kind": "embedder", "weights_sha256": "", **config})
        monkeypatch.setattr(bundle, "find", lambda model: found)
    design = ModelBuilder(recipe)
    design.check()
    with torch.device("meta"):
        network = design.build(labels, None, 1)
        tuned = FineTuner(network, recipe)
    made = build_optimizer(network, recipe.optimizer)
    moving = [one for one in network.parameters() if one.requires_grad]
    assert sum(len(group["params"]) for group in made.param_groups) == len(moving) > 0
    assert tuned.network is network and design.config(labels)["head"]["labels"] == labels
    margin_schedule(recipe, 100)
    if recipe.tuning.lora is not None or recipe.tuning.adapters is not None:
        trained = sum(one.numel() for one in network.encoder.parameters() if one.requires_grad)
        assert trained < 0.03 * sum(one.numel() for one in network.encoder.parameters())


def test_networks_of_kaldis_habits_hear_integers() -> None:
    """As wespeaker's, whose ResNets our importer gives this scale: with it the floor of the logarithm is Kaldi's."""
    found = {path.stem: recipe for path in SHIPPED if (recipe := read(path)).encoder.name in ("resnet", "campplus")}
    assert "voxlingua107-resnet18" in found and all(one.scale == INTEGER_SCALE for one in found.values())


def original(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The config of the bundle that a recipe begins with, as `knn convert` and an earlier recipe make it."""
    if "pooling" not in recipe.init.parts:
        others = {
            "wav2vec2-base": ("wav2vec2", "base"),
            "xls-r-300m": ("wav2vec2", "large"),
            "mms-300m": ("wav2vec2", "large"),
            "w2v-bert-2.0": ("w2v-bert", "2.0"),
        }
        name, size = others.get(Path(recipe.init.model).name, ("wavlm", "base-plus"))
        return {"name": name, "args": {"size": size}}, {"name": "mean", "args": {}}, {}
    first = read(TOP / "examples" / "recipes" / "voxlingua107-wavlm-mhfa.toml")
    return (
        {"name": "wavlm", "args": {"size": "base-plus"}},
        {"name": first.pooling.name, "args": first.pooling.args},
        {"name": first.head.name, "args": first.head.args},
    )


def test_the_documentation_names_every_recipe_and_every_key() -> None:
    text = (TOP / "docs" / "training.md").read_text(encoding="utf-8")
    assert SHIPPED and all(f"`{path.name}`" in text for path in SHIPPED)
    tables = (
        *(InitConfig, DataConfig, AugmentConfig, OptimizerConfig, ScheduleConfig, MarginConfig),
        *(LoraConfig, AdapterConfig, TuningConfig, LoopConfig),
    )
    named = {field.encode_name for table in tables for field in fields(table)} - {"model", "lora", "adapters"}
    assert not {name for name in named if f"`{name}`" not in text}
