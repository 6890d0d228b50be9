"""ReDimNet, as its authors publish it and as wespeaker trains it.

Theirs is a file {"model_config": ..., "state_dict": ...} and hears samples in [-1, 1]; wespeaker's follows from the
shapes of its weights and hears the Kaldi features of all of wespeaker's networks. Sizes are read from the shapes of
both, so that settings which say otherwise are found out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from knn_cli.core.errors import KnnError
from knn_cli.networks.chunk_setting import WHOLE
from knn_cli.networks.importers.checkpoint_files import checked_settings, require_settings, sources_hint
from knn_cli.networks.importers.components import (
    ComponentToFill,
    ImportedModel,
    encoder_to_fill,
    match_weights,
    pooling_to_fill,
)
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.weight_names import SAME_NAMES, WeightNames
from knn_cli.networks.importers.wespeaker_networks import Training, network, segment_pooling, statistics_of

__all__ = ["from_idrnd"]

_NOTE = (
    "The weights keep the licence of their source; the authors' code is under the MIT licence. Check before you pass "
    "them on."
)
_BACKBONE = "backbone."
_LEFT_OUT = r"cls_head\..*|spec\..*|backbone\.stage0\.0\.w"  # a head, constants, and a mixture of one
# What their code takes where a config does not say it.
_DEFAULTS: dict[str, Any] = {"hop_length": 160, "pooling_func": "ASTP", "block_2d_type": "convnext_like"}


def _is_published(checkpoint: Checkpoint) -> bool:
    return isinstance(checkpoint.content.get("model_config"), dict) and "backbone.stem.0.weight" in checkpoint.weights


@importer("IDRnD", recognizes=_is_published)
def from_idrnd(checkpoint: Checkpoint) -> ImportedModel:
    """Import a ReDimNet of its authors, such as b2-vox2-ptn.pt.

    Raises
    ------
    KnnError
        Its features or pooling are others than knn's, or weights are missing, extra or mis-sized.
    """
    path, config = checkpoint.path, checkpoint.content["model_config"]
    if config.get("feat_type", "pt") not in ("pt", "pt_mel") or config.get("tf_optimized_arch", False):
        raise KnnError(f"{path} has features or an order of its weights that are made for TensorFlow.", sources_hint())
    spectrum = config.get("spec_params")
    usual: dict[str, Any] = {"norm_signal": False, "do_preemph": True, "spec_norm": "mn"}
    usual |= {"n_fft": 512, "win_length": 400, "f_min": 20, "f_max": 7600, "sample_rate": 16000}
    require_settings(spectrum if isinstance(spectrum, dict) else {}, usual, path, "ReDimNet")
    settings = checked_settings(config, _DEFAULTS, path, "ReDimNet")
    training = Training(path, checkpoint.weights, "", {"model_args": settings}, path)
    args, names = _encoder(training, stride=2)
    args["hop"] = settings["hop_length"]
    if settings["block_2d_type"].endswith("_relu"):
        args["blocks"][0] += "-relu"
    encoder = encoder_to_fill("redimnet", args, names, _BACKBONE)
    pooling: dict[str, Any] = {"dimension": training.shape("linear.weight", 2)[0], "norm": training.has("bn2.weight")}
    pooling |= {"statistics": "mean-deviation", **statistics_of(training)[0]}
    to_fill = [encoder, pooling_to_fill(encoder, "normalised-statistics", pooling, SAME_NAMES)]
    components = match_weights(to_fill, training.state, path, "ReDimNet", "IDRnD", extras=_LEFT_OUT)
    return ImportedModel(components[0], f"IDRnD: {path.name}", _NOTE, components[1], chunk=WHOLE)


@network("ReDimNet", "backbone.inputs_weights.1")
def _wespeaker(training: Training) -> list[ComponentToFill]:
    args, names = _encoder(training, stride=0)
    encoder = encoder_to_fill("redimnet", {**args, "features": training.window}, names, f"{training.prefix}{_BACKBONE}")
    return [encoder, segment_pooling(training, encoder, training.has("seg_2.weight"))]


def _encoder(training: Training, stride: int) -> tuple[dict[str, Any], WeightNames]:
    """The encoder's arguments, and the names of its weights, where a stage's first convolution has number `stride`."""
    width = training.shape("backbone.stem.0.weight", 4)[0]
    count = 0
    while training.has(f"backbone.stage{count}.{stride}.weight"):
        count += 1
    mixture = "backbone.fin_wght1d.w" if stride else f"backbone.inputs_weights.{count}"
    bins = training.shape(mixture, 4)[2] // width
    channels, stages, blocks, groups = width, [], ["convnext", "conv+att"], set[int]()
    names: dict[str, str] = {"stem.": "stem.", "mfa.": "mfa.", "mixture": mixture.removeprefix(_BACKBONE)}
    for number in range(count):
        stage = _Stage(training, number, stride)
        step, widened = stage.sizes
        channels *= step
        stages.append([step, stage.blocks, widened // channels, stage.hidden])
        blocks = [stage.map_kind or blocks[0], stage.time_kind or blocks[1]]
        groups.add(stage.group)
        names |= dict(stage.names())
    out = training.shape("backbone.mfa.0.weight", 3)[0] if training.has("backbone.mfa.0.weight") else 0
    group = min(groups - {0}, default=0)  # larger where the channels of a stage do not divide by it
    args = {"width": width, "stages": stages, "blocks": blocks, "group": group, "out": out, "bins": bins}
    return args, WeightNames(tuple(names.items()), extras="" if stride else r"inputs_weights\.0")


class _Stage:
    """One stage of a checkpoint: what its weights' numbers and shapes say."""

    def __init__(self, training: Training, number: int, stride: int) -> None:
        self.training, self.number, self.stride = training, number, stride
        self.place = f"stage{number}"
        start = f"{training.prefix}{_BACKBONE}{self.place}."
        self.keys = [str(key).removeprefix(start) for key in training.state if str(key).startswith(start)]
        self.blocks = len({key.split(".")[0] for key in self.keys if ".conv_block." in key})
        self.after = stride + 1 + self.blocks  # the number of what follows them
        self.squeezed = f"{self.after}.0.weight" in self.keys
        self.time = self.after + self.squeezed + 1  # behind a module that only reshapes
        self.hidden = 0
        if f"{self.time}.red_dim_conv.0.weight" in self.keys:
            self.hidden = self._shape(f"{self.time}.red_dim_conv.0.weight", 3)[0]

    def _shape(self, name: str, axes: int) -> tuple[int, ...]:
        return self.training.shape(f"{_BACKBONE}{self.place}.{name}", axes)

    @property
    def sizes(self) -> tuple[int, int]:
        """By how much the stage divides frequencies, and its channels."""
        widened, _, step, _ = self._shape(f"{self.stride}.weight", 4)
        return step, widened

    @property
    def map_kind(self) -> str:
        """The kind of its blocks on maps; "" without blocks."""
        first = f"{self.stride + 1}.conv_block."
        if f"{first}dwconvs.0.weight" in self.keys:
            return "convnext"
        excited = f"{first}se.squeeze.weight" in self.keys
        return "" if not self.blocks else "resnet-excited" if excited else "resnet"

    @property
    def time_kind(self) -> str:
        """The kind of its block over time; "" without one."""
        signs = {"tcm.4.attention.k_proj.weight": "conv+att", "tcm.1.attention.k_proj.weight": "att"}
        signs |= {"tcm.0.dwconvs.1.weight": "conv", "tcm.0.weight": "fc"}
        return next((kind for sign, kind in signs.items() if f"{self.time}.{sign}" in self.keys), "")

    @property
    def group(self) -> int:
        """Channels of a group in its blocks; 0 without any, or where it cannot be told from one group of all."""
        first = f"{self.stride + 1}.conv_block."
        if f"{first}dwconvs.0.weight" in self.keys:
            channels, shared, *_ = self._shape(f"{first}dwconvs.0.weight", 4)
            return shared if shared < channels else 0
        return self._shape(f"{first}conv1.weight", 4)[1] if f"{first}conv1pw.weight" in self.keys else 0

    def names(self) -> Iterator[tuple[str, str]]:
        """Our prefixes of its weights, and theirs."""
        ours, place = f"stages.{self.number}.", f"{self.place}."
        yield f"{ours}mixture", f"{place}0.w" if self.stride else f"inputs_weights.{self.number}"
        yield f"{ours}stride.", f"{place}{self.stride}."
        for block in range(self.blocks):
            yield f"{ours}blocks.{block}.", f"{place}{self.stride + 1 + block}.conv_block."
        yield f"{ours}squeeze.", f"{place}{self.after}."
        if self.time_kind == "fc":
            for mine, theirs in (("wide", 0), ("norm", 1), ("narrow", 3)):
                yield f"{ours}time.tcm.0.{mine}.", f"{place}{self.time}.tcm.{theirs}."
        yield f"{ours}time.", f"{place}{self.time}."
