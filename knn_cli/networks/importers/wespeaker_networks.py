"""Networks on filter banks that wespeaker, its forks and 3D-Speaker share, told apart by the names of their weights.

Sizes follow from the shapes of the weights; the YAML supplies what shapes do not determine. Trainings of WavLM are in
`wespeaker_wavlm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.encoders.resnet import DEPTHS
from knn_cli.networks.importers.checkpoint_files import list_keys, sources_hint
from knn_cli.networks.importers.components import ComponentToFill, encoder_to_fill, pooling_to_fill
from knn_cli.networks.importers.weight_names import CAMPPLUS, CAMPPLUS_POOLING, SAME_NAMES, WeightNames, eres2net
from knn_cli.networks.pooling.base import MIN_VARIANCE

__all__ = ["NETWORKS", "Training", "network", "network_of", "segment_pooling", "statistics_of"]

# What 3D-Speaker adds to plain variances, and the least weighted one there.
_FLOORS = {"mean-deviation": 1e-8, "deviation": 1e-8, "attentive": 1e-10, "attentive-context": 1e-10}
_ASP_FLOOR = 1e-5  # the least variance of wespeaker's ASP
# wespeaker's name of a pooling function -> our statistics, where no weights tell; attentive ones have weights.
_FUNCTIONS = {"TSTP": "mean-deviation", "TAP": "mean", "TSDP": "deviation", "ASTP": "attentive"}


@dataclass(frozen=True)
class Training:
    """The weights of a network, and the settings that it was trained with.

    Attributes
    ----------
    path : Path
        The checkpoint, for messages.
    state : mapping
        Its weights.
    prefix : str
        What is before the names of the network's weights.
    settings : mapping
        The YAML of the training; {} without one.
    config : Path or None
        The YAML file.
    window : str
        Window of its filter bank.
    """

    path: Path
    state: Mapping[str, Any]
    prefix: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Path | None = None
    window: str = "hamming"

    @property
    def args(self) -> Mapping[str, Any]:
        """The settings of the network."""
        args = self.settings.get("model_args")
        return args if isinstance(args, dict) else {}

    def window_unless(self, default: str) -> dict[str, str]:
        """The argument `window`, left out where it is the encoder's default, so that equal networks have equal args."""
        return {} if self.window == default else {"window": self.window}

    def has(self, name: str) -> bool:
        """Whether the network has this weight."""
        return f"{self.prefix}{name}" in self.state

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a weight; KnnError if it is missing, or no tensor with so many axes."""
        value = self.state.get(f"{self.prefix}{name}")
        if not isinstance(value, Tensor) or value.ndim != axes or 0 in value.shape:
            raise KnnError(
                f"{self.path} does not determine its network: {self.prefix}{name} is missing or mis-sized.",
                sources_hint(),
            )
        return tuple(value.shape)

    def count(self, name: str) -> int:
        """The number of modules `name`0, `name`1, ..."""
        start = f"{self.prefix}{name}"
        return len({str(key).removeprefix(start).split(".")[0] for key in self.state if str(key).startswith(start)})


Build = Callable[[Training], list[ComponentToFill]]
# A weight that only this network has -> its name, what builds it.
NETWORKS: dict[str, tuple[str, Build]] = {}


def network_of(training: Training) -> tuple[str, Build] | None:
    """The name of the network whose weights these are, and what builds it; None for an unknown one."""
    return next((each for key, each in NETWORKS.items() if training.has(key)), None)


def network(name: str, key: str) -> Callable[[Build], Build]:
    """Register what builds the network of this name, told by a weight that no other one has."""

    def register(build: Build) -> Build:
        NETWORKS[key] = (name, build)
        return build

    return register


def statistics_of(training: Training) -> tuple[dict[str, Any], int]:
    """Arguments of the statistics over time, and their values per channel."""
    if training.has(_first_head(training)):
        return _multi_query(training)
    if training.has("pool.linear1.weight"):
        hidden, seen, _ = training.shape("pool.linear1.weight", 3)
        context = seen == 3 * training.shape("pool.linear2.weight", 3)[0]
        return {"statistics": "attentive-context" if context else "attentive", "hidden": hidden}, 2
    function = training.args.get("pooling_func", "TSTP")
    if function not in _FUNCTIONS or (function == "ASTP" and not training.has("pool.linear1.weight")):
        raise KnnError(f"{training.config} has the pooling_func {function!r}.", f"Known: {', '.join(_FUNCTIONS)}.")
    return ({}, 2) if function == "TSTP" else ({"statistics": _FUNCTIONS[function]}, 1)


def _first_head(training: Training) -> str:
    query = "n_query.0." if training.has("pool.n_query.0.heads_att_trans.0.att_0.weight") else ""
    return f"pool.{query}heads_att_trans.0.att_0.weight"


def _multi_query(training: Training) -> tuple[dict[str, Any], int]:
    """Wespeaker's MQMHASTP, or MHASTP, which has a single query."""
    first = _first_head(training).removesuffix("0.att_0.weight")
    depth = training.count(f"{first}0.att_")
    hidden, share, _ = training.shape(f"{first}0.att_0.weight", 3)
    each = training.shape(f"{first}0.att_{depth - 1}.weight", 3)[0] > 1
    queries = training.count("pool.n_query.") or 1
    attention = {"queries": queries, "heads": training.count(first), "depth": depth, "each": each}
    return {"statistics": "multi-query", "hidden": hidden if depth > 1 else share, "attention": attention}, 2 * queries


def pooling_names(training: Training, *others: tuple[str, str]) -> WeightNames:
    """Names of the weights of a pooling with `statistics_of`; `others` are pairs of prefixes, as of WeightNames."""
    query = "n_query.#1." if training.has("pool.n_query.0.heads_att_trans.0.att_0.weight") else ""
    heads = ("pool.queries.#1.#2.#3.", f"pool.{query}heads_att_trans.#2.att_#3.")
    return WeightNames((heads, *others, ("", "")))


def segment_pooling(training: Training, encoder: ComponentToFill, two: bool) -> ComponentToFill:
    """The pooling that ends in `seg_1`, and with `two` in `seg_2`."""
    args = {"dimension": training.shape("seg_1.weight", 2)[0], "two": two, **statistics_of(training)[0]}
    if training.window == "povey" and (kind := args.get("statistics", "mean-deviation")) != "mean":  # 3D-Speaker's
        args["floor"] = _FLOORS[kind]
    return pooling_to_fill(encoder, "resnet", args, pooling_names(training), training.prefix)


@network("CAM++", "xvector.block1.tdnnd1.cam_layer.linear_local.weight")
def _campplus(training: Training) -> list[ComponentToFill]:
    if (function := training.args.get("pooling_func", "TSTP")) != "TSTP":
        raise KnnError(f"{training.config} has the pooling_func {function!r}.", "knn's CAM++ has TSTP only.")
    growth, inner, _ = training.shape("xvector.block1.tdnnd1.cam_layer.linear_local.weight", 3)
    width = training.shape("head.conv1.weight", 4)[0]
    channels, flat, _ = training.shape("xvector.tdnn.linear.weight", 3)
    args: dict[str, Any] = {
        "width": width,
        "channels": channels,
        "growth": growth,
        "bottleneck": inner // growth,
        "blocks": [training.count(f"xvector.block{number}.tdnnd") for number in (1, 2, 3)],
        "bins": 8 * flat // width,
        **training.window_unless("povey"),
    }
    encoder = encoder_to_fill("campplus", args, CAMPPLUS, training.prefix)
    pooling: dict[str, Any] = {"dimension": training.shape("xvector.dense.linear.weight", 3)[0]}
    if training.window == "hamming":  # wespeaker's
        pooling["added"] = MIN_VARIANCE
    return [encoder, pooling_to_fill(encoder, "campplus", pooling, CAMPPLUS_POOLING, training.prefix)]


@network("x-vector network", "frame_1.conv_1d.weight")
def _xvector(training: Training) -> list[ComponentToFill]:
    hidden, bins, _ = training.shape("frame_1.conv_1d.weight", 3)
    channels = training.shape("frame_5.conv_1d.weight", 3)[0]
    args = {"hidden": hidden, "channels": channels, "bins": bins, **training.window_unless("hamming")}
    encoder = encoder_to_fill("xvector-tdnn", args, SAME_NAMES, training.prefix)
    return [encoder, segment_pooling(training, encoder, two=True)]


@network("ECAPA-TDNN", "layer2.se_res2block.0.conv.weight")
def _ecapa(training: Training) -> list[ComponentToFill]:
    width, bins, _ = training.shape("layer1.conv.weight", 3)
    channels = training.shape("conv.weight", 3)[0]
    squeeze = training.shape("layer2.se_res2block.3.linear1.weight", 2)[0]
    scale = training.count("layer2.se_res2block.1.convs.") + 1
    args: dict[str, Any] = {"width": width, "channels": channels, "scale": scale, "squeeze": squeeze, "bins": bins}
    args |= training.window_unless("hamming")
    encoder = encoder_to_fill("ecapa-tdnn-fbank", args, SAME_NAMES, training.prefix)
    dimension = training.shape("linear.weight", 2)[0]
    statistics = {"statistics": "mean-deviation", **statistics_of(training)[0]}
    pooling = {"dimension": dimension, "norm": training.has("bn2.weight"), **statistics}
    return [
        encoder,
        pooling_to_fill(encoder, "normalised-statistics", pooling, pooling_names(training), training.prefix),
    ]


@network("ERes2NetV2", "layer3_ds.weight")
@network("ERes2Net", "layer1_downsample.weight")
def _eres2net(training: Training) -> list[ComponentToFill]:
    width, scale = training.shape("conv1.weight", 4)[0], training.count("layer1.0.convs.")
    expansion = training.shape("layer1.0.conv3.weight", 4)[0] // width
    first = "conv2_1" if training.has("layer3.0.conv2_1.weight") else "convs.0"  # in fused blocks
    inner = [
        training.shape(f"layer{stage}.0.{first if stage > 2 else 'convs.0'}.weight", 4)[0] for stage in range(1, 5)
    ]
    last = training.shape("seg_1.weight", 2)[1]
    args: dict[str, Any] = {
        "width": width,
        "inner": inner,
        "blocks": [training.count(f"layer{stage}.") for stage in range(1, 5)],
        "scale": scale,
        "expansion": expansion,
        "fusion": "last" if training.has("layer3_ds.weight") else "all",
        "bins": 8 * last // (statistics_of(training)[1] * width * 8 * expansion),
        **training.window_unless("povey"),
    }
    names = eres2net(scale) if first == "conv2_1" else SAME_NAMES
    encoder = encoder_to_fill("eres2net", args, names, training.prefix)
    return [encoder, segment_pooling(training, encoder, training.has("seg_2.weight"))]


@network("Res2Net", "layer1.0.convs.0.weight")
def _res2net(training: Training) -> list[ComponentToFill]:
    """What has the parts of an ERes2Net, and no fusion."""
    width, scale = training.shape("conv1.weight", 4)[0], training.count("layer1.0.convs.") + 1
    expansion, last = training.shape("layer1.0.conv3.weight", 4)[0] // width, training.shape("seg_1.weight", 2)[1]
    args: dict[str, Any] = {
        "width": width,
        "inner": [training.shape(f"layer{stage}.0.convs.0.weight", 4)[0] for stage in range(1, 5)],
        "blocks": [training.count(f"layer{stage}.") for stage in range(1, 5)],
        "scale": scale,
        "expansion": expansion,
        "bins": last // (statistics_of(training)[1] * width * expansion),
        **training.window_unless("hamming"),
    }
    encoder = encoder_to_fill("res2net", args, SAME_NAMES, training.prefix)
    return [encoder, segment_pooling(training, encoder, training.has("seg_2.weight"))]


@network("DF-ResNet", "downsample_layers.0.0.weight")
def _df_resnet(training: Training) -> list[ComponentToFill]:
    widths = [training.shape(f"downsample_layers.{stage}.0.weight", 4)[0] for stage in range(5)]
    values, last = statistics_of(training)[1], training.shape("seg_1.weight", 2)[1]
    args: dict[str, Any] = {
        "widths": widths,
        "blocks": [training.count(f"stages.{stage}.") for stage in range(4)],
        "bins": 16 * last // (values * widths[-1]),
        **training.window_unless("hamming"),
    }
    encoder = encoder_to_fill("df-resnet", args, SAME_NAMES, training.prefix)
    return [encoder, segment_pooling(training, encoder, training.has("seg_2.weight"))]


@network("SimAM-ResNet", "front.layer1.0.conv1.weight")
def _simam_resnet(training: Training) -> list[ComponentToFill]:
    dimension, last = training.shape("bottleneck.weight", 2)
    width = training.shape("front.conv1.weight", 4)[0]
    args: dict[str, Any] = {
        "blocks": [training.count(f"front.layer{stage}.") for stage in range(1, 5)],
        "width": width,
        "bins": last // (2 * width),
        **training.window_unless("hamming"),
    }
    encoder = encoder_to_fill("simam-resnet", args, WeightNames((("", "front."),)), training.prefix)
    hidden = training.shape("pooling.attention.0.weight", 3)[0]
    pooling = {"dimension": dimension, "statistics": "attentive-rectified", "hidden": hidden, "floor": _ASP_FLOOR}
    names = WeightNames((("pool.", "pooling."), ("seg_1.", "bottleneck.")))
    return [encoder, pooling_to_fill(encoder, "resnet", pooling, names, training.prefix)]


@network("ResNet", "layer1.0.conv1.weight")
def _resnet(training: Training) -> list[ComponentToFill]:
    counts = tuple(training.count(f"layer{stage}.") for stage in range(1, 5))
    deep = training.has("layer1.0.conv3.weight")
    depths = [depth for depth, known in DEPTHS.items() if known == (counts, deep)]
    if not depths:
        raise KnnError(
            f"{training.path} holds no ResNet that knn supports: its stages have {list_keys(counts)} blocks.",
            sources_hint(),
        )
    width, last = training.shape("conv1.weight", 4)[0], training.shape("seg_1.weight", 2)[1]
    bins = last // (statistics_of(training)[1] * width * (4 if deep else 1))
    args = {"depth": depths[0], "width": width, "bins": bins, **training.window_unless("hamming")}
    encoder = encoder_to_fill("resnet", args, SAME_NAMES, training.prefix)
    return [encoder, segment_pooling(training, encoder, training.has("seg_2.weight"))]


@network("RepVGG", "stage0.rbr_reparam.weight")
def _repvgg(training: Training) -> list[ComponentToFill]:
    """One whose branches are merged (`merged_branches`)."""
    first, _, kernel, _ = training.shape("stage0.rbr_reparam.weight", 4)
    blocks = [training.count(f"stage{stage}.") for stage in range(1, 5)]
    widths = [training.shape(f"stage{stage}.0.rbr_reparam.weight", 4)[0] for stage in range(1, 5)]
    groups = 1
    if blocks[0] > 1:  # the second layer of the first stage is the first that may be divided
        groups = widths[0] // training.shape("stage1.1.rbr_reparam.weight", 4)[1]
    squeeze = {"squeeze": True} if training.has("stage0.se.fc_1.weight") else {}
    values, last = statistics_of(training)[1], training.shape("seg.weight", 2)
    args: dict[str, Any] = {"widths": [first, *widths], "blocks": blocks, "kernel": kernel, "groups": groups, **squeeze}
    args |= {"bins": 8 * last[1] // (values * widths[-1]), **training.window_unless("hamming")}
    encoder = encoder_to_fill("repvgg", args, SAME_NAMES, training.prefix)
    pooling = {"dimension": last[0], **statistics_of(training)[0]}
    names = pooling_names(training, ("seg_1.", "seg."))
    return [encoder, pooling_to_fill(encoder, "resnet", pooling, names, training.prefix)]
