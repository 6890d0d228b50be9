"""The recipe of a training: each table of its TOML file is a class, each key a field with its constraints.

A missing key has the default given here. `recipe_reader` reads these classes from a file; conditions on several keys
are checked in `__post_init__`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from knn_cli.core.errors import KnnError
from knn_cli.networks.chunk_setting import LIMITS

__all__ = [
    "CODECS",
    "COMPONENTS",
    "AdapterConfig",
    "AugmentConfig",
    "ComponentConfig",
    "DataConfig",
    "InitConfig",
    "LoopConfig",
    "LoraConfig",
    "MarginConfig",
    "OptimizerConfig",
    "Recipe",
    "ScheduleConfig",
    "TuningConfig",
]

Component = Literal["encoder", "pooling", "head"]
COMPONENTS: tuple[str, ...] = get_args(Component)
Codec = Literal["mu-law", "gsm", "vorbis", "opus", "mp3"]
CODECS: tuple[str, ...] = get_args(Codec)

Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
FractionBelow1 = Annotated[float, Meta(ge=0, lt=1)]
FractionAbove0 = Annotated[float, Meta(gt=0, le=1)]
CropSeconds = Annotated[float, Meta(gt=0, le=3600)]
ChunkSeconds = Annotated[float, Meta(ge=LIMITS[0], le=LIMITS[1])]
Count = Annotated[int, Meta(ge=0)]
PositiveCount = Annotated[int, Meta(ge=1)]
Speed = Annotated[float, Meta(ge=0.5, le=2)]


def _refuse(wrong: bool, what: str, hint: str) -> None:
    if wrong:
        raise KnnError(f"{what}.", hint)


class ComponentConfig(Struct, frozen=True):
    """An encoder, a pooling or a head: its `name` in the registry; all other keys of the table are its arguments."""

    name: str = ""
    args: dict[str, Any] = {}


class InitConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The bundle to start from, and the components that are taken from it with their weights.

    `heard` (`seen_rows` here) decides whether a bundle that was trained on rows that are held out now is refused.
    """

    model: str = ""
    parts: tuple[Component, ...] = ("encoder",)
    seen_rows: Literal["refuse", "allow"] = msgspec.field(default="refuse", name="heard")

    def __post_init__(self) -> None:
        """Check conditions on several keys."""
        _refuse(bool(self.model) and not self.parts, "init.parts is empty", "Name encoder, pooling or head.")


class DataConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The training data.

    `speech` is a list of what is used of recordings; `minimum` and `maximum` bound the length of a row in seconds, and
    `long` says whether longer rows are cropped to a part of it or left out; `balance` ranges from rows drawn with equal
    probability (0) to classes drawn with equal probability (1); `clips` is the number of clips per epoch, 0 for a clip
    per row; `held_out` is the fraction of each class's units to hold out; `fit` is the number of rows per class that
    the classifier is fitted on.
    """

    label: Literal["group", "subgroup", "speaker", "name"] = "subgroup"
    ignore: tuple[str, ...] = ()
    labels: str = "folder"
    speech: str = ""
    seconds: CropSeconds = 3.0
    minimum: NonNegative = 0.5
    maximum: float | None = None
    long: Literal["crop", "leave-out"] = "crop"
    balance: Fraction = 0.0
    clips: Count = 0
    held_out: FractionBelow1 = 0.1
    unit: Literal["recording", "speaker", "group", "subgroup"] = "recording"
    evaluate_seconds: CropSeconds = 10.0
    fit: Annotated[int, Meta(ge=2)] = 500
    workers: Count = 0

    def __post_init__(self) -> None:
        """Check conditions on several keys."""
        reversed_range = self.maximum is not None and self.minimum > self.maximum
        _refuse(reversed_range, "data.minimum is above data.maximum", "Rows between the two are used.")


class AugmentConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Augmentation of training clips.

    Each `..._share` is the fraction of clips that are augmented in this way, except `mask_time_share` and
    `mask_feature_share`, which are fractions of a clip's frames and channels (see `spec_augment`). `one_share` of the
    clips get either reverberation or noise, half of them each, in place of the shares of reverberation, noise and
    music.
    """

    speeds: tuple[Speed, ...] = ()
    speed_classes: bool = False
    noise: str = ""
    noise_share: Fraction = 0.5
    noise_snr: tuple[float, float] = (5.0, 20.0)
    music: str = ""
    music_share: Fraction = 0.2
    music_snr: tuple[float, float] = (5.0, 15.0)
    rir: str = ""
    rir_share: Fraction = 0.3
    one_share: Fraction = 0.0
    band_share: Fraction = 0.0
    band: tuple[Positive, Positive] = (3000.0, 7000.0)
    codec_share: Fraction = 0.0
    codecs: tuple[Codec, ...] = ("mu-law", "vorbis", "mp3")
    eq_share: Fraction = 0.0
    eq_decibels: NonNegative = 10.0
    pitch_share: Fraction = 0.0
    pitch_semitones: NonNegative = 2.0
    gain_decibels: NonNegative = 0.0
    mask_share: Fraction = 0.0
    mask_bins: Count = 10
    mask_frames: Count = 5
    mask_time_share: Fraction = 0.0
    mask_time_length: PositiveCount = 10
    mask_feature_share: Fraction = 0.0
    mask_feature_length: PositiveCount = 64

    def __post_init__(self) -> None:
        """Check conditions on several keys."""
        no_other_speed = self.speed_classes and not [speed for speed in self.speeds if speed != 1]
        _refuse(no_other_speed, "augment.speed_classes needs speeds", "Give speeds = [0.9, 1.1].")
        for key in ("noise_snr", "music_snr", "band"):
            low, high = getattr(self, key)
            _refuse(low > high, f"augment.{key} has its higher number first", "Ranges are pairs such as [5, 20].")
        no_codec = self.codec_share > 0 and not self.codecs
        _refuse(no_codec, "augment.codecs is empty", f"Known: {', '.join(CODECS)}.")


class OptimizerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The optimizer and its learning rates.

    `rate` is the learning rate of pooling and head, `encoder_rate` that of the encoder's top layer (`rate` if it is
    missing); the rate of each block is `layer_decay` times that of the block above (see
    `fine_tuning.parameter_groups`).
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    rate: Positive = 1e-3
    encoder_rate: Positive | None = None
    layer_decay: FractionAbove0 = 1.0
    weight_decay: NonNegative = 1e-4
    decay_all: bool = False
    momentum: FractionBelow1 = 0.9
    nesterov: bool = True
    betas: tuple[FractionBelow1, FractionBelow1] = (0.9, 0.999)


class ScheduleConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The schedule of the learning rates.

    Rates rise during `warmup` epochs, from the share `warmup_from` of themselves, while they fall exponentially, by the
    factor `decay` per epoch or down to the head's `final_rate` at the end; without these two they stay constant.
    With a `cycle` of epochs they rise from `final_rate` and return to it in each, to half the height of the one before
    (`optimization.learning_rate_factor`).
    """

    epochs: PositiveCount = 10
    warmup: NonNegative = 0.0
    warmup_from: Fraction = 0.0
    decay: FractionAbove0 = 1.0
    final_rate: Positive | None = None
    cycle: NonNegative = 0.0

    def __post_init__(self) -> None:
        """Check conditions on several keys."""
        lone = self.cycle > 0 and (self.final_rate is None or self.decay != 1)
        _refuse(lone, "schedule.cycle needs schedule.final_rate, and no decay", "Rates return to the final rate.")
        _refuse(self.warmup > self.epochs, "schedule.warmup is longer than schedule.epochs", "Both count epochs.")
        both = self.decay != 1 and self.final_rate is not None
        _refuse(both, "schedule.decay and schedule.final_rate exclude each other", "Take one out.")


class MarginConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The head's margin: `start` up to epoch `first`, then a transition to `end`, which is reached at epoch `last`."""

    start: float = 0.0
    end: float = 0.2
    first: NonNegative = 0.0
    last: float = 0.0
    kind: Literal["exponential", "linear"] = "exponential"

    def __post_init__(self) -> None:
        """Check conditions on several keys."""
        hint = "The margin moves between the two epochs."
        _refuse(self.first > self.last, "margin.first is above margin.last", hint)


class LoraConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """LoRA on the encoder's linear layers named in `targets`; the rest of the encoder is frozen."""

    rank: PositiveCount = 8
    alpha: Positive = 16.0
    targets: Annotated[tuple[str, ...], Meta(min_length=1)] = ("query", "value")


class AdapterConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Adapters in the encoder's blocks (see `networks.encoders.adapters`).

    The rest of the encoder is frozen, except the layer norms of the blocks if `norms` is true.
    """

    bottleneck: int = 64
    kind: Literal["houlsby", "pfeiffer", "parallel", "prefix", "mam"] = "houlsby"
    norms: bool = False
    prefix: PositiveCount = 50


class TuningConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How a pretrained network is fine-tuned: see docs/training.md."""

    freeze: tuple[str, ...] = ()
    cnn_gradient: NonNegative = 1.0
    encoder_gradient: NonNegative = 1.0
    layer_drop: FractionBelow1 = 0.0
    pull: NonNegative = 0.0
    lora: LoraConfig | None = None
    adapters: AdapterConfig | None = None

    @property
    def needs_weights(self) -> str:
        """The option (lora, adapters or pull) that needs pretrained weights; "" if none is used."""
        if self.lora is not None:
            return "lora"
        return "adapters" if self.adapters is not None else "pull" if self.pull > 0 else ""

    def __post_init__(self) -> None:
        """Check conditions on several keys."""
        both = self.adapters is not None and self.lora is not None
        _refuse(both, "tuning.adapters and tuning.lora exclude each other", "Take one out.")
        key = self.needs_weights
        both = self.pull > 0 and key != "pull"
        _refuse(both, f"tuning.pull and tuning.{key} exclude each other", "Take one out.")


ClassWeights = Annotated[dict[str, Positive], Meta(min_length=1)]
ListedWeights = Annotated[tuple[Positive, ...], Meta(min_length=2)]  # in the sorted order of the labels


class LoopConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The training loop.

    `batch` is the number of clips per step over all processes, `accumulate` the number of parts into which each process
    divides its clips; `clip` bounds the norm of the gradient (0: no bound); `checkpoint` (steps), `log` (steps) and
    `tensorboard` do not change the result.
    """

    batch: PositiveCount = 32
    accumulate: PositiveCount = 1
    clip: NonNegative = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: FractionBelow1 = 0.0
    average: PositiveCount = 1
    patience: Count = 0
    keep: Literal["best", "last"] = "best"
    class_weights: Literal["none", "balanced"] | ClassWeights | ListedWeights = "none"
    classifier: Literal["glc", "head"] = "glc"
    checkpoint: PositiveCount = 500
    log: PositiveCount = 10
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Check conditions on several keys."""
        uneven = self.batch % self.accumulate > 0
        _refuse(uneven, "loop.accumulate must divide loop.batch", "A batch is cut into parts of one size.")
        both = self.ema > 0 and self.average > 1
        _refuse(both, "loop.ema and loop.average exclude each other", "Take one out.")


class Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    """A complete recipe. `name` identifies it in messages and in the bundle's card.

    `chunk` is how much speech the network will hear at once, in seconds or "whole", once it is trained.
    """

    encoder: ComponentConfig = ComponentConfig()
    pooling: ComponentConfig = ComponentConfig()
    head: ComponentConfig = ComponentConfig()
    init: InitConfig = InitConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    margin: MarginConfig | None = None
    tuning: TuningConfig = TuningConfig()
    loop: LoopConfig = LoopConfig()
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    scale: Positive = 1.0
    chunk: ChunkSeconds | Literal["whole"] | None = None
    name: str = ""

    @property
    def taken(self) -> tuple[str, ...]:
        """The components that are taken with their weights from the bundle of [init]."""
        return self.init.parts if self.init.model else ()

    @property
    def result_config(self) -> dict[str, Any]:
        """The part of the recipe that determines the trained weights: without name, workers and logging."""
        config = self.plain()
        for path in ("name", "data.workers", "loop.checkpoint", "loop.log", "loop.tensorboard"):
            table, _, key = path.rpartition(".")
            del (config[table] if table else config)[key]
        return config

    def plain(self) -> dict[str, Any]:
        """The recipe as nested dictionaries of plain values, with the keys of its file."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain
