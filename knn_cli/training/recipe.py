"""The recipe of a training, as frozen values: each table of its TOML file is one class, each key one field.

A key that is missing takes the default written here. `recipe_reader` makes these values from a file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

PARTS = ("encoder", "pooling", "head")
UNITS = ("recording", "speaker", "group", "subgroup")
CODECS = ("mu-law", "gsm", "vorbis", "opus", "mp3")


@dataclass(frozen=True)
class PartRecipe:
    """An encoder, a pooling or a head: `name` in its registry; all other keys of the table are its arguments."""

    name: str = ""
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Init:
    """A bundle to begin with, and which parts of it are taken with their weights; `heard` says what happens when it
    was trained on rows that are held out now.
    """

    model: str = ""
    parts: tuple[str, ...] = ("encoder",)
    heard: str = "refuse"


@dataclass(frozen=True)
class Data:
    """What is heard. `minimum` and `maximum` are seconds of a row; `balance` goes from rows drawn alike (0) to classes
    drawn alike (1); `clips` is how many an epoch has, 0 for one of each row; `held_out` is a share of each class's
    units; `fit` is how many rows of a class the classifier is fitted on.
    """

    label: str = "subgroup"
    ignore: tuple[str, ...] = ()
    labels: str = "folder"
    seconds: float = 3.0
    minimum: float = 0.5
    maximum: float | None = None
    balance: float = 0.0
    clips: int = 0
    held_out: float = 0.1
    unit: str = "recording"
    evaluate_seconds: float = 10.0
    fit: int = 500
    workers: int = 0


@dataclass(frozen=True)
class Augment:
    """What is done to training clips: each `..._share` is the share of clips that it is done to, but for
    `mask_time_share` and `mask_feature_share`, which are shares of a clip's frames and channels (see `masks`).
    """

    speeds: tuple[float, ...] = ()
    speed_classes: bool = False
    noise: str = ""
    noise_share: float = 0.5
    noise_snr: tuple[float, ...] = (5.0, 20.0)
    music: str = ""
    music_share: float = 0.2
    music_snr: tuple[float, ...] = (5.0, 15.0)
    rir: str = ""
    rir_share: float = 0.3
    band_share: float = 0.0
    band: tuple[float, ...] = (3000.0, 7000.0)
    codec_share: float = 0.0
    codecs: tuple[str, ...] = ("mu-law", "vorbis", "mp3")
    eq_share: float = 0.0
    eq_decibels: float = 10.0
    pitch_share: float = 0.0
    pitch_semitones: float = 2.0
    gain_decibels: float = 0.0
    mask_share: float = 0.0
    mask_bins: int = 10
    mask_frames: int = 5
    mask_time_share: float = 0.0
    mask_time_length: int = 10
    mask_feature_share: float = 0.0
    mask_feature_length: int = 64


@dataclass(frozen=True)
class Optimizer:
    """`rate` is the learning rate of pooling and head; `encoder_rate` that of the encoder's top (the same where it is
    missing), of which each block has `layer_decay` times what is above it (see `tuning.groups`).
    """

    name: str = "adamw"
    rate: float = 1e-3
    encoder_rate: float | None = None
    layer_decay: float = 1.0
    weight_decay: float = 1e-4
    momentum: float = 0.9
    nesterov: bool = True
    betas: tuple[float, ...] = (0.9, 0.999)


@dataclass(frozen=True)
class Schedule:
    """`warmup` epochs of rising rates, then rates that fall exponentially, by `decay` an epoch or to `final_rate` of
    the head at the end; 1 and none of both leave them as they are.
    """

    epochs: int = 10
    warmup: float = 0.0
    decay: float = 1.0
    final_rate: float | None = None


@dataclass(frozen=True)
class Margin:
    """The head's margin: `start` until `first` epochs are done, on its way to `end` until `last` are."""

    start: float = 0.0
    end: float = 0.2
    first: float = 0.0
    last: float = 0.0
    kind: str = "exponential"


@dataclass(frozen=True)
class Lora:
    """Low-rank changes of the encoder's linear layers of these names; everything else of the encoder is frozen."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")


@dataclass(frozen=True)
class Adapters:
    """Bottleneck adapters in the encoder's blocks (see `adapters`); everything else of the encoder is frozen, but for
    the blocks' layer norms where `norms` says so.
    """

    bottleneck: int = 64
    kind: str = "houlsby"
    norms: bool = False


@dataclass(frozen=True)
class Tuning:
    """How a network that knows something is changed: see docs/training.md."""

    freeze: tuple[str, ...] = ()
    cnn_gradient: float = 1.0
    layer_drop: float = 0.0
    pull: float = 0.0
    lora: Lora | None = None
    adapters: Adapters | None = None


@dataclass(frozen=True)
class Loop:
    """`batch` clips a step of all processes together, in `accumulate` parts a process; `clip` bounds the gradient's
    norm (0: no bound); `checkpoint` (steps), `log` (steps) and `tensorboard` concern the run only, not its result.
    """

    batch: int = 32
    accumulate: int = 1
    clip: float = 0.0
    precision: str = "fp32"
    ema: float = 0.0
    average: int = 1
    patience: int = 0
    keep: str = "best"
    class_weights: str | dict[str, float] = "none"
    classifier: str = "glc"
    checkpoint: int = 500
    log: int = 10
    tensorboard: bool = False


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. `name` names its origin in messages and in the bundle's card."""

    encoder: PartRecipe = field(default_factory=PartRecipe)
    pooling: PartRecipe = field(default_factory=PartRecipe)
    head: PartRecipe = field(default_factory=PartRecipe)
    init: Init = field(default_factory=Init)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    margin: Margin | None = None
    tuning: Tuning = field(default_factory=Tuning)
    loop: Loop = field(default_factory=Loop)
    seed: int = 0
    scale: float = 1.0
    name: str = ""

    @property
    def result(self) -> dict[str, Any]:
        """All that decides the trained weights: the recipe without its name, its workers and its bookkeeping."""
        whole = asdict(self)
        for path in ("name", "data.workers", "loop.checkpoint", "loop.log", "loop.tensorboard"):
            table, _, key = path.rpartition(".")
            del (whole[table] if table else whole)[key]
        return whole
