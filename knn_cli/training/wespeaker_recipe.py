"""wespeaker's training settings as a recipe: what both have, key by key, and the keys that a recipe cannot say.

A YAML of wespeaker or of the fork that trains WavLM (`train_V2.py`) leaves some things to its code: gradients are
bounded by 5, rates are for 64 clips a step and grow with the batch, norms and biases decay too, and the gradient of
WavLM is multiplied by 0.08 (Base) or 0.02 (Large) and its convolutions are frozen.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from knn_cli.core.errors import KnnError
from knn_cli.networks.importers.checkpoint_files import read_yaml
from knn_cli.networks.importers.wespeaker_heads import CZECH_DIALECTS, HEADS
from knn_cli.networks.importers.wespeaker_wavlm import POOLINGS
from knn_cli.training.recipe_reader import parse

__all__ = ["ConvertedRecipe", "recipe_of_wespeaker"]

_CLIP, _CLIPS_PER_STEP, _INTEGERS = 5.0, 64, 32768.0  # of its executor, its schedule, its features
_GRADIENTS = {"WavLM_Base_MHFA": 0.08, "WavLM_Large_MHFA": 0.02}
# Keys that change how a training runs or is logged, and not what it learns.
_HARMLESS = (
    *("PORT", "exp_dir", "log_batch_interval", "save_epoch_interval", "loss", "scheduler", "margin_scheduler"),
    *("dataloader_args.pin_memory", "dataloader_args.prefetch_factor", "dataloader_args.drop_last"),
    *("dataset_args.shuffle", "dataset_args.shuffle_args.shuffle_size", "dataset_args.raw_wav", "dataset_args.filter"),
    *("dataset_args.resample_rate", "dataset_args.fbank_args.frame_shift", "dataset_args.fbank_args.frame_length"),
    *("optimizer_args.fused", "model_init", "margin_update.update_margin", "data_type"),
    # Written into config.yaml by a training, and following from other keys.
    *("projection_args.embed_dim", "projection_args.num_class", "projection_args.do_lm", "margin_update.epoch_iter"),
    *("scheduler_args.num_epochs", "scheduler_args.epoch_iter", "scheduler_args.scale_ratio", "optimizer_args.lr"),
)


@dataclass
class ConvertedRecipe:
    """A recipe, and what of the YAML is not in it.

    Attributes
    ----------
    tables : dict
        The recipe, as `recipe_reader.parse` takes it.
    left : dict of str to str
        Key of the YAML, or a habit of its code -> why the recipe does not say it.
    text : str
        The recipe in TOML, with `left` as comments.
    """

    tables: dict[str, Any]
    left: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        lines = [f"# Not carried over, {key}: {why}." for key, why in self.left.items()]
        top = {key: value for key, value in self.tables.items() if not isinstance(value, dict)}
        lines += ["", *(f"{key} = {_toml(value)}" for key, value in top.items())]
        for name, table in self.tables.items():
            if isinstance(table, dict):
                lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
        return "\n".join(lines).lstrip("\n") + "\n"


def _toml(value: Any) -> str:
    """A boolean, number, text, or list of them in TOML, which has JSON's notation for these."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


class _Settings:
    """The YAML, flattened, and which of its keys have been read."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.values, self.read = dict(_flat(settings, "")), set(_HARMLESS)

    def take(self, key: str, default: Any) -> Any:
        """The value of a key, of the type of `default`; KnnError for another type."""
        self.read.add(key)
        value = self.values.get(key, default)
        if isinstance(default, float) and isinstance(value, int | str) and not isinstance(value, bool):
            try:
                value = float(value)  # YAML takes 1e-3 for a text
            except ValueError:
                value = None
        if type(value) is not type(default):
            raise KnnError(f"{key} is {self.values[key]!r}, of another kind than in wespeaker's settings.")
        return value

    def unread(self) -> list[str]:
        """The keys that nothing has read."""
        return [key for key in self.values if key not in self.read]


def _flat(table: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        name = f"{before}{key}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def recipe_of_wespeaker(path: Path) -> ConvertedRecipe:
    """Convert the YAML of a training.

    Parameters
    ----------
    path : Path
        A file such as those of the fork's `examples/voxlingua/v2/conf`, or a config.yaml that a training wrote.

    Returns
    -------
    ConvertedRecipe
        Its recipe has been parsed.

    Raises
    ------
    KnnError
        The file holds no settings of a training, or a network, head or optimizer that knn does not have.
    """
    raw = read_yaml(path)
    if not isinstance(raw.get("model_args"), dict) or not isinstance(raw.get("dataset_args"), dict):
        raise KnnError(
            f"{path} holds no settings of a training of wespeaker.", "They have model_args and dataset_args."
        )
    settings, left = _Settings(raw), dict[str, str]()
    again = settings.take("do_lm", False)
    tables: dict[str, Any] = {"seed": settings.take("seed", 42), "chunk": "whole"}
    tables |= _network(settings, again, left)
    if again:
        _begin_again(tables, settings, path, left)
    tables["data"] = _data(settings, path, raw)
    if augment := _augmentation(settings, again, left):
        tables["augment"] = augment
    batch = settings.take("dataloader_args.batch_size", 1) * _processes(settings)
    tables |= _optimization(settings, batch)
    tables |= _margin(settings, tables)
    tables["loop"] = _loop(settings, raw, batch, left)
    for key in settings.unread():
        if settings.values[key] not in ({}, None):
            left[key] = "there is no such key in a recipe"
    parse(tables, path.stem)
    return ConvertedRecipe(tables, left)


def _processes(settings: _Settings) -> int:
    """The number of GPUs, of which each takes a batch."""
    settings.read.add("gpus")
    gpus = settings.values.get("gpus", "[0]")
    try:
        gpus = ast.literal_eval(gpus) if isinstance(gpus, str) else gpus
    except (ValueError, SyntaxError):
        gpus = None
    if not isinstance(gpus, list) or not gpus:
        raise KnnError(f"gpus is {settings.values['gpus']!r}, which is no list.", "Write it as [0,1].")
    return len(gpus)


def _network(settings: _Settings, again: bool, left: dict[str, str]) -> dict[str, Any]:
    """Where the network begins, its parts, and how its encoder is tuned."""
    model, head = settings.take("model", ""), _head(settings, again)
    dimension = settings.take("model_args.embed_dim", 256)
    if model.startswith("ResNet") and model[6:].isdigit():
        bins = settings.take("model_args.feat_dim", 80)
        settings.read.add("dataset_args.fbank_args.num_mel_bins")
        function = settings.take("model_args.pooling_func", "TSTP")
        kinds = {"TSTP": "mean-deviation", "ASTP": "attentive", "TAP": "mean", "TSDP": "deviation"}
        if function not in kinds:
            raise KnnError(f"model_args.pooling_func is {function!r}.", f"Known: {', '.join(kinds)}.")
        two = settings.take("model_args.two_emb_layer", False)
        pooling = {"name": "resnet", "dimension": dimension, "two": two, "statistics": kinds[function]}
        if again:
            return {"init": _whole(left), "head": head}
        encoder = {"name": "resnet", "depth": int(model[6:]), "bins": bins}
        return {"scale": _INTEGERS, "encoder": encoder, "pooling": pooling, "head": head}
    if model not in _GRADIENTS:
        raise KnnError(f"The model is {model!r}.", f"Known: {', '.join(_GRADIENTS)}, ResNet18 to ResNet293.")
    for key in ("num_mel_bins", "dither"):  # of features that WavLM does not take
        settings.read.add(f"dataset_args.fbank_args.{key}")
    file = PurePosixPath(settings.take("model_args.model_path", "WavLM-Base+.pt"))
    tuning = {
        "encoder_gradient": _GRADIENTS[model],
        "layer_drop": settings.take("model_args.layer_drop", 0.05),
    }
    cnn = settings.take("model_args.cnn_scale", 0.0 if model == "WavLM_Base_MHFA" else 1.0)
    if cnn == 0:  # computed without gradients, so that they do not decay either
        tuning["freeze"] = ["encoder.front.convolutions", "encoder.front.norms"]
    elif cnn != 1:
        tuning["cnn_gradient"] = cnn
    left["samples times 32768"] = "models of WavLM have their own scale, and their first norm takes a factor back"
    pooling = _pooling(settings, model, dimension)
    if again:
        return {"init": _whole(left), "head": head, "tuning": tuning}
    name = f"models/{file.stem.lower().replace('+', '-plus')}"
    left["model_args.model_path"] = f"convert {file} to {name} first, or change init.model"
    return {"init": {"model": name, "parts": ["encoder"]}, "pooling": pooling, "head": head, "tuning": tuning}


def _whole(left: dict[str, str]) -> dict[str, Any]:
    """[init] of a second stage, which goes on from a whole network."""
    left["the first stage"] = "name its model in init.model"
    return {"model": "models/first-stage", "parts": ["encoder", "pooling", "head"]}


def _begin_again(tables: dict[str, Any], settings: _Settings, path: Path, left: dict[str, str]) -> None:
    """What else a second stage takes from the first: no head, where `NAME_lm.yaml` has another than `NAME.yaml`."""
    if settings.take("dataset_args.speed_perturb", True):
        left["the classes of other speeds"] = "theirs stay in the head without clips, here the first stage dropped them"
    first = path.with_name(f"{path.stem.removesuffix('_lm')}{path.suffix}")
    if not path.stem.endswith("_lm") or not first.is_file():
        return
    projection = read_yaml(first).get("projection_args")
    kind = projection.get("project_type") if isinstance(projection, dict) else None
    own = settings.take("projection_args.project_type", "")
    if kind != own and isinstance(kind, str) and kind in HEADS:
        left["the head of the first stage"] = f"it is {kind} in {first.name}, so {own} begins with new weights"
        tables["init"]["parts"] = ["encoder", "pooling"]
        tables["head"] = {"name": HEADS[own], **tables["head"]}


def _pooling(settings: _Settings, model: str, dimension: int) -> dict[str, Any]:
    fork_name = settings.take("model_args.pooling", "MHFA") if model == "WavLM_Base_MHFA" else "MHFA"
    heads, groups = settings.take("model_args.head_nb", 8), settings.take("model_args.group", 1)
    if fork_name not in POOLINGS:
        raise KnnError(f"model_args.pooling is {fork_name!r}.", f"Known: {', '.join(POOLINGS)}.")
    name = POOLINGS[fork_name]
    args: dict[str, Any] = {"name": name, "dimension": dimension}
    if name in ("mhfa", "mhfa-grouped", "mhfa-shared-key", "mhfa-shared-value"):
        args["heads"] = heads
    if name.startswith("mhfa-") and name not in ("mhfa-context", "mhfa-context-statistics"):
        args["groups"] = groups
    if name.startswith("mhfa-context"):
        args |= {"groups": groups, "context": heads // max(1, groups) // 2}
    if fork_name == "CorrelationPoolingDrop":
        args["dropout"] = 0.25
    return args


def _head(settings: _Settings, again: bool) -> dict[str, Any]:
    kind = settings.take("projection_args.project_type", "")
    scale, easy = settings.take("projection_args.scale", 32.0), settings.take("projection_args.easy_margin", False)
    if kind not in HEADS:
        raise KnnError(f"projection_args.project_type is {kind!r}.", f"Known: {', '.join(HEADS)}.")
    args: dict[str, Any] = {}
    if kind in ("add_margin", "arc_margin", "arc_margin_intertopk_subcenter", "sphereface2"):
        args["scale"] = scale
    if kind.startswith("arc_margin"):
        args["easy_margin"] = easy
    if kind == "arc_margin_intertopk_subcenter":
        args |= {
            "subcenters": settings.take("projection_args.K", 3),
            "penalty": settings.take("projection_args.mp", 0.06),
        }
        args["top_k"] = 0 if again else settings.take("projection_args.k_top", 5)
    if kind == "sphereface2":
        args |= {"spread": settings.take("projection_args.t", 3.0)}
        args |= {"balance": settings.take("projection_args.lanbuda", 0.7)}
        args["margin_on"] = {"C": "cosine", "A": "angle"}.get(
            settings.take("projection_args.margin_type", "C"), "cosine"
        )
    return args if again else {"name": HEADS[kind], **args}


def _data(settings: _Settings, path: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Crops of `num_frms` frames; longer rows are cropped, and all rows are trained on."""
    frames = settings.take("dataset_args.num_frms", 200)
    least = settings.take("dataset_args.filter_args.min_num_frames", 100)
    settings.read.add("dataset_args.filter_args.max_num_frames")  # of longer ones 8 s are taken, and of these the crop
    loss = raw.get("loss_args")
    weights = loss.get("weight") if isinstance(loss, dict) else None
    weighted = len(weights) if isinstance(weights, list) else None  # one of a dumped tensor has other entries
    classes = settings.values.get("projection_args.num_class", weighted)
    dialects = "naki" in path.stem or classes in (len(CZECH_DIALECTS), 3 * len(CZECH_DIALECTS))  # with other speeds
    return {
        "label": "subgroup" if dialects else "group",
        "seconds": ((frames - 1) * 10 + 25) / 1000,
        "minimum": least / 100,
        "clips": settings.take("dataset_args.sample_num_per_epoch", 0),
        "held_out": 0.0,
        "workers": settings.take("dataloader_args.num_workers", 0),
    }


def _augmentation(settings: _Settings, again: bool, left: dict[str, str]) -> dict[str, Any]:
    augment: dict[str, Any] = {}
    if settings.take("dataset_args.speed_perturb", True) and not again:
        augment |= {"speeds": [0.9, 1.1], "speed_classes": True}
    if share := settings.take("dataset_args.aug_prob", 0.6):
        augment |= {"one_share": share, "noise_snr": [0.0, 15.0]}
        left["noise_data, reverb_data"] = "name folders in augment.noise and augment.rir: without them there is neither"
        left["ratios by the kind of noise"] = "theirs are 10 to 30 dB for speech and 5 to 15 dB for music of MUSAN"
        left["peaks of augmented clips"] = "theirs are brought to 1, here a clip stays as loud as it was"
    names = {"num_t_mask": 1, "num_f_mask": 1, "max_t": 10, "max_f": 8, "prob": 0.6}
    given = {key: settings.take(f"dataset_args.spec_aug_args.{key}", value) for key, value in names.items()}
    if settings.take("dataset_args.spec_aug", False):
        augment |= {"mask_share": given["prob"], "mask_bins": given["max_f"], "mask_frames": given["max_t"]}
        if (given["num_t_mask"], given["num_f_mask"]) != (1, 1):
            left["dataset_args.spec_aug_args.num_t_mask, num_f_mask"] = "there is one mask of each kind"
    return augment


def _optimization(settings: _Settings, batch: int) -> dict[str, Any]:
    """[optimizer] and [schedule]; rates are for 64 clips a step, and grow with the batch."""
    kind = settings.take("optimizer", "SGD")
    if kind not in ("SGD", "Adam", "AdamW"):
        raise KnnError(f"The optimizer is {kind!r}.", "Known: SGD, Adam, AdamW.")
    ratio = batch / _CLIPS_PER_STEP
    rate = settings.take("scheduler_args.initial_lr", 0.0)
    final = settings.take("scheduler_args.final_lr", 0.0)
    optimizer: dict[str, Any] = {"name": kind.lower(), "rate": rate * ratio, "decay_all": True}
    optimizer["weight_decay"] = settings.take("optimizer_args.weight_decay", 0.01 if kind == "AdamW" else 0.0)
    if kind == "SGD":
        optimizer["momentum"] = settings.take("optimizer_args.momentum", 0.0)
        optimizer["nesterov"] = settings.take("optimizer_args.nesterov", False)
    warmup, from_zero = (
        settings.take("scheduler_args.warm_up_epoch", 6),
        settings.take("scheduler_args.warm_from_zero", False),
    )
    schedule: dict[str, Any] = {"epochs": settings.take("num_epochs", 1), "final_rate": final * ratio}
    if from_zero or ratio > 1:
        schedule |= {"warmup": warmup, "warmup_from": 0.0 if from_zero else 1 / ratio}
    name = settings.values.get("scheduler", "ExponentialDecrease")
    if name == "TriAngular2":
        schedule["cycle"] = settings.take("scheduler_args.cycle_step", 2)
        if settings.take("scheduler_args.reduce_lr_diff_ratio", 0.5) != 0.5:
            raise KnnError("scheduler_args.reduce_lr_diff_ratio is not 0.5, the only one that a recipe has.")
    elif name != "ExponentialDecrease":
        raise KnnError(f"The scheduler is {name!r}.", "Known: ExponentialDecrease, TriAngular2.")
    return {"optimizer": optimizer, "schedule": schedule}


def _margin(settings: _Settings, tables: Mapping[str, Any]) -> dict[str, Any]:
    """[margin], where the head has one; epochs are counted from 1 there."""
    first = settings.take("margin_update.increase_start_epoch", 1)
    last = settings.take("margin_update.fix_start_epoch", 1)
    start, end = settings.take("margin_update.initial_margin", 0.0), settings.take("margin_update.final_margin", 0.0)
    kind = settings.take("margin_update.increase_type", "exp")
    if settings.values.get("projection_args.project_type") in ("softmax", "sphere"):
        return {}
    times = {"first": first - 1.0, "last": last - 1.0, "kind": "exponential" if kind == "exp" else "linear"}
    return {"margin": {"start": start, "end": end, **times}}


def _loop(settings: _Settings, raw: Mapping[str, Any], batch: int, left: dict[str, str]) -> dict[str, Any]:
    loop: dict[str, Any] = {"batch": batch, "clip": _CLIP, "keep": "last", "classifier": "head"}
    average, epochs = settings.take("num_avg", 1), settings.take("num_epochs", 1)
    loop["average"] = min(average, epochs)
    loop["precision"] = "fp16" if settings.take("enable_amp", False) else "fp32"
    if raw.get("loss", "CrossEntropyLoss") != "CrossEntropyLoss":
        left["loss"] = "the head has its own"
    loss = raw.get("loss_args")
    weights = loss.get("weight") if isinstance(loss, dict) else None
    settings.read.update(key for key in settings.values if key.startswith("loss_args.weight"))
    if isinstance(weights, list) and all(isinstance(value, int | float) for value in weights):
        loop["class_weights"] = [float(value) for value in weights]
    elif weights is not None:
        left["loss_args.weight"] = "it is a tensor in the YAML, which is not unpickled: write loop.class_weights"
    return loop
