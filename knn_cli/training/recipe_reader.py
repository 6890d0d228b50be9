"""A TOML file to a recipe, checked key by key before anything is read or built.

A key, a name or a choice that does not exist is a KnnError with the nearest one that does.
"""

from __future__ import annotations

import difflib
import inspect
import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS, Registry
from knn_cli.core.values import LABEL_LEVELS
from knn_cli.networks.encoders.adapters import KINDS
from knn_cli.training.recipe import (
    CODECS,
    PARTS,
    UNITS,
    Adapters,
    Augment,
    Data,
    Init,
    Loop,
    Margin,
    Optimizer,
    PartRecipe,
    Recipe,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["check_args", "parse", "read"]

Table = TypeVar("Table")

# Options of `knn train` that concern classifiers on embeddings, or have their place in the recipe.
_LARGEST = 10**300  # what a float still holds
_ITS_OWN = {"label", "ignore", "balanced", "held_out", "seed", "view", "model", "batch_seconds"}

REGISTRIES: dict[str, Registry] = {"encoder": ENCODERS, "pooling": POOLINGS, "head": HEADS}
# Arguments that follow from other parts, or stand elsewhere in the recipe.
_GIVEN: dict[str, set[str]] = {
    "encoder": set(),
    "pooling": {"layers", "channels"},
    "head": {"dimension", "classes", "class_weights"},
}
_SPREADS = ("eq_decibels", "pitch_semitones", "gain_decibels")  # of [augment], to both sides of 0
_CHOICES: dict[tuple[type, str], tuple[str, ...]] = {
    (Init, "parts"): PARTS,
    (Init, "heard"): ("refuse", "allow"),
    (Data, "label"): tuple(LABEL_LEVELS),
    (Data, "unit"): UNITS,
    (Augment, "codecs"): CODECS,
    (Optimizer, "name"): ("adamw", "sgd"),
    (Margin, "kind"): ("exponential", "linear"),
    (Adapters, "kind"): tuple(KINDS),
    (Loop, "precision"): ("fp32", "bf16", "fp16"),
    (Loop, "keep"): ("best", "last"),
    (Loop, "classifier"): ("glc", "head"),
}


def read(path: Path | str, given: Collection[str] = ()) -> Recipe:
    """The recipe in a TOML file.

    given : options of the command line that stand beside it

    Raises KnnError for a file that is none, for anything unknown or impossible in it, and for options that it decides.
    """
    if clash := sorted(_ITS_OWN & set(given)):
        option = "--" + clash[0].replace("_", "-")
        raise KnnError(f"{option} does not go with --recipe.", "What it says stands in the recipe, or is not needed.")
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise KnnError(f"The recipe {path} cannot be read: {reason}.", "Name a TOML file.") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise KnnError(
            f"The recipe {path} is not TOML: {reason}.", "docs/training.md shows what it looks like."
        ) from error
    return parse(table, path.stem)


def parse(table: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """The recipe that a parsed TOML table describes. Raises KnnError as `read`."""
    table = dict(table)
    _refuse_endless(table, "")
    parts = {part: _part(part, table.pop(part)) for part in PARTS if part in table}
    if "name" in table:
        raise _unknown("name", "the recipe", [one.name for one in fields(Recipe) if one.name != "name"])
    recipe = _table(Recipe, {**table, **parts, "name": name}, "the recipe")
    _check(recipe)
    return recipe


def _part(part: str, table: Any) -> PartRecipe:
    """An encoder's, pooling's or head's table; its arguments must be some that it takes."""
    if not isinstance(table, Mapping):
        raise KnnError(f"[{part}] is a table.", f'Write [{part}] and below it name = "...".')
    args = {key: value for key, value in table.items() if key != "name"}
    name = table.get("name", "")
    if not name:
        return PartRecipe("", args)  # the name comes with the weights of [init]
    registry = REGISTRIES[part]
    if name not in registry.names():
        raise KnnError(f"There is no {registry.kind} named {name!r}.", _nearest(str(name), registry.names()))
    check_args(part, name, args)
    return PartRecipe(name, args)


def check_args(part: str, name: str, args: Mapping[str, Any]) -> None:
    """KnnError for an argument that the encoder, pooling or head does not take, or of another type."""
    built = REGISTRIES[part].get(name)
    parameters = inspect.signature(built).parameters
    known = {one for one, kind in parameters.items() if kind.kind is not kind.VAR_KEYWORD} - _GIVEN[part]
    hints = get_type_hints(built.__init__ if inspect.isclass(built) else built)
    if name == "wavlm":
        from knn_cli.networks.encoders.wavlm import WavLMSizes

        known |= {one.name for one in fields(WavLMSizes)}
        hints |= get_type_hints(WavLMSizes)
    if given := sorted(set(args) & _GIVEN[part]):
        hint = "See loop.class_weights." if given[0] == "class_weights" else "Take that line out."
        raise KnnError(f"[{part}] cannot set {given[0]!r}: it follows from other things.", hint)
    for key, value in args.items():
        if key not in known:
            raise _unknown(key, f"[{part}] {name}", known)
        if not _fits(hints.get(key, Any), value):
            raise KnnError(
                f"[{part}] {name} {key} cannot be {value!r}.", f"It takes {_describe(_options(hints[key]))}."
            )


def _fits(hint: Any, value: Any) -> bool:
    """Whether an argument's value is of the type that it is declared as."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in inner
    if isinstance(value, Mapping) or origin in (Mapping, dict):
        return isinstance(value, Mapping) and any(get_origin(one) in (Mapping, dict) for one in _options(hint))
    if origin is tuple and Ellipsis not in inner:
        return isinstance(value, (list, tuple)) and len(value) == len(inner) and all(map(_fits, inner, value))
    if origin in (tuple, Sequence, list):
        return isinstance(value, (list, tuple)) and all(_fits(inner[0], one) for one in value)
    if inner:  # a union
        return any(_fits(one, value) for one in inner)
    return type(value) is hint or (hint is float and type(value) is int)


def _refuse_endless(value: Any, where: str) -> None:
    """KnnError for a number anywhere in a table that is infinite or none."""
    if isinstance(value, float) and not math.isfinite(value):
        raise KnnError(f"{where} is {value}.", "Only finite numbers can be worked with.")
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise KnnError(f"{where} is larger than any number that is worked with.", "Take a smaller one.")
    if isinstance(value, list):
        for one in value:
            _refuse_endless(one, where)
    if isinstance(value, Mapping):
        for key, one in value.items():
            inside = f"[{key}]" if isinstance(one, Mapping) and not where else str(key)
            _refuse_endless(one, f"{where} {inside}".strip())


def _table(kind: type[Table], table: Mapping[str, Any], where: str) -> Table:
    """A dataclass from a table: unknown keys, wrong types and unknown choices are KnnErrors."""
    known: dict[str, Field[Any]] = {one.name: one for one in fields(cast(Any, kind))}
    hints = get_type_hints(kind)
    values = {}
    for key, value in table.items():
        if key not in known:
            raise _unknown(key, where, [one for one in known if one != "name" or kind is not Recipe])
        values[key] = _value(hints[key], value, f"{where}: {key}" if kind is Recipe else f"{where} {key}", key)
        _check_choice(kind, key, values[key])
    return kind(**values)


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    options = _options(hint)
    if any(is_dataclass(one) and isinstance(value, one) for one in options if isinstance(one, type)):
        return value
    for one in options:
        if is_dataclass(one) and isinstance(value, Mapping):
            return _table(cast(type, one), value, f"[{key}]")
        if get_origin(one) is dict and isinstance(value, Mapping):
            return {str(name): _value(get_args(one)[1], number, where, key) for name, number in value.items()}
        if get_origin(one) is tuple and isinstance(value, list):
            return tuple(_value(get_args(one)[0], item, where, key) for item in value)
        if one is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if one is bool and isinstance(value, bool):
            return value
        if one is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if one is str and isinstance(value, str):
            return value
    raise KnnError(f"{where} cannot be {value!r}.", f"It takes {_describe(options)}.")


def _options(hint: Any) -> list[Any]:
    """What a type may be: the members of a union but None, else itself."""
    union = get_origin(hint) in (Union, UnionType)
    return [one for one in get_args(hint) if one is not type(None)] if union else [hint]


def _describe(options: Iterable[Any]) -> str:
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    told = []
    for one in options:
        if get_origin(one) is Literal:
            told.append(" or ".join(map(repr, get_args(one))))
        elif get_origin(one) in (tuple, Sequence, list):
            told.append("a list")
        else:
            told.append(words.get(one, "a table"))
    return " or ".join(told)


def _check_choice(kind: type, key: str, value: Any) -> None:
    choices = _CHOICES.get((kind, key))
    for one in value if isinstance(value, tuple) else [value]:
        if choices is not None and one not in choices:
            raise KnnError(f"{kind.__name__.lower()}.{key} cannot be {one!r}.", _nearest(str(one), choices))


def _unknown(key: str, where: str, known: Iterable[str]) -> KnnError:
    return KnnError(f"There is no key {key!r} in {where}.", _nearest(key, known))


def _nearest(word: str, known: Iterable[str]) -> str:
    known = sorted(known)
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    start = f"Did you mean {found[0]!r}? " if found else ""
    return f"{start}Known: {', '.join(known)}."


def _check(recipe: Recipe) -> None:
    """What no single key can tell."""
    data, augment, loop, schedule = recipe.data, recipe.augment, recipe.loop, recipe.schedule
    tuning, margin = recipe.tuning, recipe.margin or Margin()
    detour = "lora" if tuning.lora is not None else "adapters" if tuning.adapters is not None else ""
    shares = [one.name for one in fields(Augment) if one.name.endswith("_share")]
    for wrong, what, hint in (
        (bool(recipe.init.model) and not recipe.init.parts, "init.parts is empty", "Name encoder, pooling or head."),
        (data.seconds <= 0 or data.evaluate_seconds <= 0, "seconds must be above 0", "Crops of 3 s are usual."),
        (max(data.seconds, data.evaluate_seconds) > 3600, "seconds are an hour at most", "Crops of 3 s are usual."),
        (
            data.maximum is not None and data.minimum > data.maximum,
            "data.minimum is above data.maximum",
            "Rows between the two are used.",
        ),
        (not 0 <= recipe.seed < 2**63, "seed must be 0 or more, and below 2^63", ""),
        (recipe.scale <= 0, "scale must be above 0", "1 leaves waveforms as they are."),
        (data.minimum < 0, "data.minimum is below 0", ""),
        (loop.clip < 0, "loop.clip must be 0 (none) or more", "It bounds the gradient's norm."),
        (not 0 <= data.balance <= 1, "data.balance goes from 0 to 1", "0 draws rows alike, 1 classes."),
        (not 0 <= data.held_out < 1, "data.held_out goes from 0 to below 1", "0.1 holds a tenth out."),
        (data.fit < 2 or data.clips < 0 or data.workers < 0, "data has a count that is too small", "fit is 2 or more."),
        (
            any(not 0 <= getattr(augment, share) <= 1 for share in shares),
            f"{', '.join(one for one in shares if not 0 <= getattr(augment, one) <= 1)} must go from 0 to 1",
            "It is the share of clips.",
        ),
        (
            any(not 0.5 <= speed <= 2 for speed in augment.speeds),
            "augment.speeds go from 0.5 to 2",
            "Take 0.9 and 1.1.",
        ),
        (
            augment.speed_classes and not [speed for speed in augment.speeds if speed != 1],
            "augment.speed_classes needs speeds",
            "Give speeds = [0.9, 1.1].",
        ),
        (
            any(len(pair) != 2 or pair[0] > pair[1] for pair in (augment.noise_snr, augment.music_snr, augment.band)),
            "ranges of [augment] are pairs such as [5, 20], the lower number first",
            "",
        ),
        (min(augment.band, default=1) <= 0, "augment.band are frequencies above 0", "Usual: [3000, 7000]."),
        *((getattr(augment, key) < 0, f"augment.{key} must be 0 or more", "") for key in _SPREADS),
        (min(augment.mask_bins, augment.mask_frames) < 0, "sizes of masks must be 0 or more", ""),
        (min(augment.mask_time_length, augment.mask_feature_length) < 1, "lengths of masks must be 1 or more", ""),
        (augment.codec_share > 0 and not augment.codecs, "augment.codecs is empty", f"Known: {', '.join(CODECS)}."),
        (
            any(rate is not None and rate <= 0 for rate in (recipe.optimizer.rate, recipe.optimizer.encoder_rate)),
            "learning rates must be above 0",
            "",
        ),
        (len(recipe.optimizer.betas) != 2, "optimizer.betas are two", "Usual: [0.9, 0.999]."),
        (
            any(not 0 <= beta < 1 for beta in recipe.optimizer.betas),
            "optimizer.betas go from 0 to below 1",
            "Usual: [0.9, 0.999].",
        ),
        (recipe.optimizer.weight_decay < 0, "optimizer.weight_decay must be 0 or more", ""),
        (not 0 <= recipe.optimizer.momentum < 1, "optimizer.momentum goes from 0 to below 1", "0.9 is usual."),
        (not 0 < recipe.optimizer.layer_decay <= 1, "optimizer.layer_decay lies above 0, up to 1", "1 is none."),
        (schedule.epochs < 1 or not 0 <= schedule.warmup <= schedule.epochs, "schedule.epochs must hold warmup", ""),
        (not 0 < schedule.decay <= 1, "schedule.decay lies above 0, up to 1", "0.95 takes a twentieth off an epoch."),
        (
            schedule.decay != 1 and schedule.final_rate is not None,
            "schedule.decay and schedule.final_rate exclude each other",
            "Take one out.",
        ),
        (schedule.final_rate is not None and schedule.final_rate <= 0, "schedule.final_rate must be above 0", ""),
        (loop.batch < 1 or loop.accumulate < 1 or loop.batch % loop.accumulate, "accumulate must divide batch", ""),
        (not 0 <= loop.ema < 1, "loop.ema goes from 0 to below 1", "0 is none, 0.999 usual."),
        (
            loop.average < 1 or loop.patience < 0 or min(loop.checkpoint, loop.log) < 1,
            "loop has a count that is too small",
            "",
        ),
        (loop.ema > 0 and loop.average > 1, "loop.ema and loop.average exclude each other", "Take one out."),
        (
            tuning.adapters is not None and tuning.lora is not None,
            "tuning.adapters and tuning.lora exclude each other",
            "Take one out.",
        ),
        (tuning.pull > 0 and bool(detour), f"tuning.pull and tuning.{detour} exclude each other", "Take one out."),
        (loop.patience > 0 and data.held_out == 0, "loop.patience needs held-out rows", "Set data.held_out."),
        (
            isinstance(loop.class_weights, dict) and min(loop.class_weights.values(), default=0) <= 0,
            "weights of loop.class_weights must be above 0",
            "A label that should not count is left out by data.ignore.",
        ),
        (margin.first < 0, "margin.first is below 0", "It counts epochs."),
        (margin.first > margin.last, "margin.first is above margin.last", "The margin moves between the two epochs."),
        (
            isinstance(loop.class_weights, str) and loop.class_weights not in ("none", "balanced"),
            f"loop.class_weights cannot be {loop.class_weights!r}",
            "Known: none, balanced, or a table of labels and weights.",
        ),
        (tuning.cnn_gradient < 0 or tuning.pull < 0, "[tuning] holds a number below 0", ""),
        (not 0 <= tuning.layer_drop < 1, "tuning.layer_drop goes from 0 to below 1", ""),
        (
            tuning.lora is not None and (tuning.lora.rank < 1 or tuning.lora.alpha <= 0 or not tuning.lora.targets),
            "tuning.lora needs a rank of 1 or more, an alpha above 0, and targets",
            'Usual: rank = 8, alpha = 16, targets = ["query", "value"].',
        ),
        (
            (tuning.pull > 0 or bool(detour)) and "encoder" not in _taken(recipe),
            f"tuning.{detour or 'pull'} needs weights to start from",
            "Name them in [init].",
        ),
    ):
        if wrong:
            raise KnnError(f"{recipe.name}: {what}.", hint)
    for part in PARTS:
        mine: PartRecipe = getattr(recipe, part)
        if part in _taken(recipe):
            if mine.name or (mine.args and part != "head"):
                raise KnnError(
                    f"{recipe.name}: [{part}] comes from init.model, so the recipe cannot choose it.",
                    f"Take the table [{part}] out, or {part!r} out of init.parts.",
                )
        elif not mine.name:
            raise KnnError(f"{recipe.name}: [{part}] has no name.", f"Known: {', '.join(REGISTRIES[part].names())}.")


def _taken(recipe: Recipe) -> tuple[str, ...]:
    return recipe.init.parts if recipe.init.model else ()
