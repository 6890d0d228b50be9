"""The settings of the ancestor's 20 trainings as recipes: what each says, against the values of its YAML as facts."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.core.errors import KnnError
from knn_cli.training.model_builder import ModelBuilder
from knn_cli.training.recipe_reader import parse
from knn_cli.training.wespeaker_recipe import recipe_of_wespeaker

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).parents[2] / "examples" / "recipes" / "knn-proj"
WEIGHTS = [1.20502335, 1.18489614, 0.96834409, 2.87595288, 0.28416061, 1.32828337, 3.32532051, 1.30564732, 0.32727631,
           2.63102282, 3.92899408, 1.46548173, 4.26114486]  # fmt: skip

# The values of wavlm_base_MHFA_LR.yaml and of resnet.yaml.
WAVLM: dict[str, Any] = {
    "PORT": 25182, "gpus": "[0,1,2,3]", "num_avg": 2, "enable_amp": False, "seed": 42, "num_epochs": 40,
    "dataloader_args": {"batch_size": 128, "num_workers": 16},
    "dataset_args": {
        "sample_num_per_epoch": 0, "filter_args": {"min_num_frames": 100, "max_num_frames": 800},
        "resample_rate": 16000, "speed_perturb": False, "num_frms": 300, "aug_prob": 0.6, "raw_wav": True,
        "fbank_args": {"num_mel_bins": 80, "dither": 1.0}, "spec_aug": False,
        "spec_aug_args": {"num_t_mask": 1, "num_f_mask": 1, "max_t": 10, "max_f": 8, "prob": 0.6},
    },
    "model": "WavLM_Base_MHFA", "model_init": None,
    "model_args": {"model_path": "data/models/pretrained/WavLM-Base+.pt", "head_nb": 64, "embed_dim": 256,
                   "pooling": "MHFA", "group": 1},
    "projection_args": {"project_type": "arc_margin_intertopk_subcenter", "scale": 32.0, "easy_margin": False},
    "margin_update": {"initial_margin": 0.0, "final_margin": 0.2, "increase_start_epoch": 2, "fix_start_epoch": 5,
                      "increase_type": "exp"},
    "loss": "CrossEntropyLoss", "loss_args": {}, "optimizer": "SGD",
    "optimizer_args": {"momentum": 0.9, "nesterov": True, "weight_decay": "1.0e-6"},
    "scheduler": "ExponentialDecrease",
    "scheduler_args": {"initial_lr": 1e-2, "final_lr": 4.4e-3, "warm_up_epoch": 3, "warm_from_zero": True},
}  # fmt: skip
RESNET: dict[str, Any] = {
    **WAVLM, "gpus": "[0,1,2,3,4,5,6,7]", "num_avg": 10, "num_epochs": 100, "model": "ResNet34",
    "dataloader_args": {"batch_size": 128, "num_workers": 32},
    "dataset_args": {**WAVLM["dataset_args"], "speed_perturb": True, "num_frms": 200, "raw_wav": False},
    "model_args": {"feat_dim": 80, "embed_dim": 256, "pooling_func": "TSTP", "two_emb_layer": False},
    "projection_args": {"project_type": "softmax", "scale": 32.0, "easy_margin": False},
    "margin_update": {"initial_margin": 0.0, "final_margin": 0.0, "increase_start_epoch": 20, "fix_start_epoch": 40,
                      "increase_type": "exp"},
    "optimizer_args": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    "scheduler_args": {"initial_lr": 1e-3, "final_lr": 1e-5, "warm_up_epoch": 5, "warm_from_zero": True},
}  # fmt: skip
EIGHT = {"gpus": "[0,1,2,3,4,5,6,7]"}
NO_MARGIN = {"margin_update.final_margin": 0.0}
NAKI = {**NO_MARGIN, "dataloader_args.num_workers": 4}
SOFTMAX = {**NO_MARGIN, "projection_args": {"project_type": "softmax"}}
ADAM = {"optimizer": "Adam", "optimizer_args": {"weight_decay": "1.0e-6", "fused": True}}
WEIGHTED = {"loss_args": {"weight": WEIGHTS}}
LARGE_MARGIN = {"margin_update": {"initial_margin": 0.5, "final_margin": 0.5, "increase_start_epoch": 1,
                                  "fix_start_epoch": 1, "increase_type": "exp"}}  # fmt: skip
# Name of the file -> what it changes.
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resnet": (RESNET, {}),
    "resnet_lm": (RESNET, {
        **LARGE_MARGIN, "gpus": "[0,1,2,3,4,5,6,7,8]", "num_avg": 1, "do_lm": True, "num_epochs": 5,
        "dataloader_args.batch_size": 64, "dataset_args.num_frms": 600, "projection_args.project_type": "arc_margin",
        "scheduler_args": {"initial_lr": 1e-4, "final_lr": 2.5e-5, "warm_up_epoch": 1, "warm_from_zero": True},
    }),
    "resnet_naki": (RESNET, {"gpus": "[0]", "num_avg": 3, "num_epochs": 20, "dataloader_args.num_workers": 4,
                             "scheduler_args.warm_up_epoch": 3}),
    "wavlm_base_LWAP_Mean_LR_no_margin": (WAVLM, {**NO_MARGIN, "model_args.pooling": "LWAP_Mean",
                                                  "model_args.head_nb": 1}),
    "wavlm_base_LWAP_PoolDim_LR_no_margin": (WAVLM, {**NO_MARGIN, "model_args.pooling": "LWAP_PoolDim"}),
    "wavlm_base_Last_ASTP_LR_no_margin": (WAVLM, {**NO_MARGIN, **EIGHT, "num_epochs": 20, "model_args.head_nb": 1,
                                                  "model_args.pooling": "Last_ASTP"}),
    "wavlm_base_MHFA_LR": (WAVLM, {}),
    "wavlm_base_MHFA_LR_lm": (WAVLM, {
        **LARGE_MARGIN, **EIGHT, "num_avg": 1, "do_lm": True, "num_epochs": 5, "dataloader_args.batch_size": 16,
        "dataloader_args.num_workers": 8, "dataset_args.num_frms": 600,
        "scheduler_args": {"initial_lr": 2e-3, "final_lr": 2e-4, "warm_up_epoch": 1, "warm_from_zero": True},
    }),
    "wavlm_base_MHFA_LR_no_margin": (WAVLM, {**NO_MARGIN, "num_epochs": 20}),
    "wavlm_base_MHFA_LR_no_margin_20": (WAVLM, {**NO_MARGIN, "num_epochs": 20}),
    "wavlm_base_MHFA_LR_no_margin_20_naki": (WAVLM, {**NAKI, "num_epochs": 20}),
    "wavlm_base_MHFA_LR_no_margin_30_naki": (WAVLM, {**NAKI, "num_epochs": 30, "scheduler_args.warm_up_epoch": 4}),
    "wavlm_base_MHFA_LR_no_margin_40_naki": (WAVLM, {**NAKI, "scheduler_args.warm_up_epoch": 5}),
    "wavlm_base_MHFA_LR_no_margin_Adam_classweights_20_naki": (WAVLM, {**NAKI, **ADAM, **WEIGHTED, "num_epochs": 20}),
    "wavlm_base_MHFA_LR_no_margin_classweights_20_naki": (WAVLM, {**NAKI, **WEIGHTED, "num_epochs": 20}),
    "wavlm_base_MHFA_LR_softmax": (WAVLM, {**SOFTMAX, **EIGHT, "num_epochs": 20}),
    "wavlm_base_MHFA_LR_softmax_100": (WAVLM, {**SOFTMAX, **EIGHT, "num_epochs": 100,
                                               "scheduler_args.warm_up_epoch": 5}),
    "wavlm_base_MHFA_LR_softmax_20": (WAVLM, {**SOFTMAX, **EIGHT, "num_epochs": 20}),
    "wavlm_base_MHFA_LR_softmax_20_naki": (WAVLM, {**NAKI, **SOFTMAX, "num_epochs": 20}),
    "wavlm_base_MHFA_LR_softmax_classweights_20_naki": (WAVLM, {**NAKI, **SOFTMAX, **WEIGHTED, "num_epochs": 20}),
}  # fmt: skip


def settings(name: str) -> dict[str, Any]:
    base, changes = CONFIGS[name]
    result = deepcopy(base)
    for key, value in changes.items():
        table, _, last = key.rpartition(".")
        (result[table] if table else result)[last] = value
    return result


def written(folder: Path, name: str, content: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_each_configuration_has_a_recipe_that_says_the_same(tmp_path: Path, name: str) -> None:
    """Key by key, written out from the YAML's values; and it builds."""
    given = settings(name)
    if name.endswith("_lm"):
        written(tmp_path, name.removesuffix("_lm"), settings(name.removesuffix("_lm")))
    found = recipe_of_wespeaker(written(tmp_path, name, given))
    recipe = parse(found.tables, name)
    gpus, clips = len(json.loads(given["gpus"])), given["dataloader_args"]["batch_size"]
    rates, margins = given["scheduler_args"], given["margin_update"]
    optimizer, schedule, loop = recipe.optimizer, recipe.schedule, recipe.loop
    assert loop.batch == gpus * clips and loop.clip == 5.0 and loop.average == given["num_avg"]
    assert optimizer.rate == pytest.approx(rates["initial_lr"] * gpus * clips / 64)
    assert schedule.final_rate == pytest.approx(rates["final_lr"] * gpus * clips / 64)
    assert (schedule.epochs, schedule.warmup) == (given["num_epochs"], rates["warm_up_epoch"])
    assert schedule.warmup_from == 0 and optimizer.name == given["optimizer"].lower() and optimizer.decay_all
    assert optimizer.weight_decay == float(given["optimizer_args"]["weight_decay"])
    assert recipe.data.seconds == (given["dataset_args"]["num_frms"] * 10 + 15) / 1000 and recipe.data.minimum == 1.0
    assert recipe.data.maximum is None and recipe.augment.one_share == 0.6 and recipe.data.held_out == 0
    assert loop.class_weights == (tuple(WEIGHTS) if "classweights" in name else "none")
    if given["projection_args"]["project_type"] == "softmax":
        assert recipe.margin is None and recipe.head.name == "softmax"
    else:
        assert recipe.margin is not None
        assert (recipe.margin.start, recipe.margin.end) == (margins["initial_margin"], margins["final_margin"])
        assert recipe.margin.first == margins["increase_start_epoch"] - 1
        assert recipe.margin.last == margins["fix_start_epoch"] - 1
    if name.endswith("_lm"):
        assert not recipe.augment.speeds
        if name == "resnet_lm":  # its first stage has another head, so theirs finds no weights for this one
            assert recipe.init.parts == ("encoder", "pooling") and recipe.head.name == "aam-softmax"
        else:
            assert recipe.init.parts == ("encoder", "pooling", "head") and recipe.head.name == ""
        assert recipe.head.args.get("top_k", 0) == 0  # no penalty on rivals in this stage
    elif name.startswith("resnet"):
        assert recipe.augment.speeds == (0.9, 1.1) and recipe.augment.speed_classes and recipe.scale == 32768
        ModelBuilder(recipe).check()
    else:
        poolings = {"MHFA": "mhfa", "LWAP_Mean": "layer-average", "LWAP_PoolDim": "layer-spans"}
        kind = given["model_args"]["pooling"]
        assert recipe.pooling.name == poolings.get(kind, "attentive-statistics-last")
        assert recipe.pooling.args.get("heads", 64) == 64 and recipe.tuning.encoder_gradient == 0.08
        assert recipe.tuning.layer_drop == 0.05 and "encoder.front.convolutions" in recipe.tuning.freeze
        tiny = {**found.tables, "init": {"model": "tiny-test", "parts": ["encoder"]}}
        ModelBuilder(parse(tiny, name)).check()
    if recipe.head.name == "aam-softmax" and recipe.head.args.get("subcenters") == 3:
        assert (recipe.head.args["top_k"], recipe.head.args["penalty"]) == (5, 0.06)
    shipped = (SHIPPED / f"{name}.toml").read_text(encoding="utf-8")
    assert tomllib.loads(shipped) == tomllib.loads(found.text) == found.tables


def test_a_second_stage_without_its_first_one_keeps_the_head(tmp_path: Path) -> None:
    found = recipe_of_wespeaker(written(tmp_path, "resnet_lm", settings("resnet_lm")))
    assert found.tables["init"]["parts"] == ["encoder", "pooling", "head"] and "name" not in found.tables["head"]


def test_there_is_a_recipe_for_each_and_no_other() -> None:
    assert {path.stem for path in SHIPPED.glob("*.toml")} == set(CONFIGS) and len(CONFIGS) == 20


def test_what_cannot_be_said_is_named(tmp_path: Path) -> None:
    given = settings("resnet") | {"new_key": {"inner": 3}, "scheduler": "TriAngular2"}
    given["scheduler_args"] = {"initial_lr": 1e-2, "final_lr": 4.4e-3, "warm_up_epoch": 2, "cycle_step": 2}
    path = written(tmp_path, "conf", given)
    run = CliRunner().invoke(app, ["convert", str(path), str(tmp_path / "r.toml")])
    assert run.exit_code == 0, run.output
    for key in ("new_key.inner", "dataset_args.fbank_args.dither", "noise_data, reverb_data"):
        assert (
            f"Not carried over, {key}: " in run.output
            and f"# Not carried over, {key}: " in (tmp_path / "r.toml").read_text()
        )
    schedule = tomllib.loads((tmp_path / "r.toml").read_text())["schedule"]
    assert schedule["cycle"] == 2 and schedule["warmup_from"] == 1 / 16


def test_a_tensor_in_the_settings_is_read_without_running_anything(tmp_path: Path) -> None:
    """A config.yaml that a training dumped holds its class weights as a pickled tensor."""
    text = json.dumps(settings("wavlm_base_MHFA_LR")).replace('"loss_args": {}', '"loss_args": {"weight": WEIGHT}')
    tag = "!!python/object/apply:torch._utils._rebuild_tensor_v2"
    planted = f'!!python/object/apply:os.system ["touch {tmp_path / "planted"}"]'
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("WEIGHT", f"{tag} [{planted}, 0, !!python/tuple [13]]"))
    found = recipe_of_wespeaker(path)
    assert "class_weights" not in found.tables["loop"] and "not unpickled" in found.left["loss_args.weight"]
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(("classes", "label"), [(13, "subgroup"), (39, "subgroup"), (107, "group")])
def test_what_a_training_wrote_into_its_settings_is_not_lost(tmp_path: Path, classes: int, label: str) -> None:
    """The number of classes says which labels they are where the weights are a tensor, as nothing else does."""
    given = settings("wavlm_base_MHFA_LR")
    given["projection_args"] |= {"num_class": classes, "embed_dim": 256, "do_lm": False}
    given["loss_args"] = {"weight": [["storage"], 0, [classes], [1], False, []]}  # of a tensor that was dumped
    given["scheduler_args"] |= {"num_epochs": 40, "epoch_iter": 9, "scale_ratio": 8.0}
    found = recipe_of_wespeaker(written(tmp_path, "config", given))
    assert found.tables["data"]["label"] == label
    assert not [key for key in found.left if key.startswith(("projection_args", "scheduler_args"))]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_args": 3}, "no settings of a training"),
        ({"model": "XVEC"}, "The model is 'XVEC'"),
        ({"optimizer": "LBFGS"}, "The optimizer is 'LBFGS'"),
        ({"scheduler": "Cosine"}, "The scheduler is 'Cosine'"),
        ({"gpus": "all"}, "gpus is 'all'"),
        ({"num_epochs": "many"}, "num_epochs is 'many', of another kind"),
        ({"projection_args": {"project_type": "circle"}}, "project_type is 'circle'"),
    ],
)
def test_others_are_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    with pytest.raises(KnnError, match=why):
        recipe_of_wespeaker(written(tmp_path, "x", settings("wavlm_base_MHFA_LR") | change))
