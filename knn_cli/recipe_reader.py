"""A TOML file to a recipe, checked key by key before anything is read or built.

A key, a name or a choice that does not exist is a KnnError with the nearest one that does.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from knn_cli.errors import KnnError
from knn_cli.recipe import CODECS, PARTS, UNITS, Augment, Data, Init, Loop, Margin, Optimizer, PartRecipe, Recipe
from knn_cli.registry import ENCODERS, HEADS, POOLINGS, Registry
from knn_cli.types import LABEL_LEVELS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["check_args", "parse", "read"]

Table = TypeVar("Table")

# Options of `knn train` that concern classifiers on embeddings, or have their place in the recipe.
_ITS_OWN = {"label", "ignore", "balanced", "held_out", "seed", "view", "model", "batch_seconds"}

REGISTRIES: dict[str, Registry] = {"encoder": ENCODERS, "pooling": POOLINGS, "head": HEADS}
# Arguments that follow from other parts, or stand elsewhere in the recipe.
_GIVEN: dict[str, set[str]] = {
    "encoder": set(),
    "pooling": {"layers", "channels"},
    "head": {"dimension", "classes", "class_weights"},
}
_CHOICES: dict[tuple[type, str], tuple[str, ...]] = {
    (Init, "parts"): PARTS,
    (Data, "label"): tuple(LABEL_LEVELS),
    (Data, "unit"): UNITS,
    (Augment, "codecs"): CODECS,
    (Optimizer, "name"): ("adamw", "sgd"),
    (Margin, "kind"): ("exponential", "linear"),
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
    except tomllib.TOMLDecodeError as error:
        raise KnnError(
            f"The recipe {path} is not TOML: {error}.", "docs/training.md shows what it looks like."
        ) from error
    return parse(table, path.stem)


def parse(table: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """The recipe that a parsed TOML table describes. Raises KnnError as `read`."""
    table = dict(table)
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
    """KnnError for an argument that the encoder, pooling or head does not take."""
    parameters = inspect.signature(REGISTRIES[part].get(name)).parameters
    known = {one for one, kind in parameters.items() if kind.kind is not kind.VAR_KEYWORD} - _GIVEN[part]
    if name == "wavlm":
        from knn_cli.wavlm import WavLMSizes

        known |= {one.name for one in fields(WavLMSizes)}
    if given := sorted(set(args) & _GIVEN[part]):
        hint = "See loop.class_weights." if given[0] == "class_weights" else "Take that line out."
        raise KnnError(f"[{part}] cannot set {given[0]!r}: it follows from other things.", hint)
    for key in args:
        if key not in known:
            raise _unknown(key, f"[{part}] {name}", known)


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
    options = [one for one in get_args(hint) if one is not type(None)] if _is_union(hint) else [hint]
    if any(is_dataclass(one) and isinstance(value, one) for one in options if isinstance(one, type)):
        return value
    for one in options:
        if is_dataclass(one) and isinstance(value, Mapping):
            return _table(cast(type, one), value, f"[{key}]")
        if get_origin(one) is dict and isinstance(value, Mapping):
            return {str(name): float(number) for name, number in value.items()}
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


def _is_union(hint: Any) -> bool:
    return (get_origin(hint) is not None and type(None) in get_args(hint)) or "|" in str(hint)


def _describe(options: Iterable[Any]) -> str:
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    return " or ".join(
        words.get(one, "a list" if get_origin(one) is tuple else "a table")
        if isinstance(one, type)
        else ("a list" if get_origin(one) is tuple else "a table")
        for one in options
    )


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
    shares = [one.name for one in fields(Augment) if one.name.endswith("_share")]
    for wrong, what, hint in (
        (bool(recipe.init.model) and not recipe.init.parts, "init.parts is empty", "Name encoder, pooling or head."),
        (data.seconds <= 0 or data.evaluate_seconds <= 0, "seconds must be above 0", "Crops of 3 s are usual."),
        (
            data.maximum is not None and data.minimum > data.maximum,
            "data.minimum is above data.maximum",
            "Rows between the two are used.",
        ),
        (recipe.seed < 0, "seed must be 0 or more", ""),
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
        (augment.codec_share > 0 and not augment.codecs, "augment.codecs is empty", f"Known: {', '.join(CODECS)}."),
        (
            any(rate is not None and rate <= 0 for rate in (recipe.optimizer.rate, recipe.optimizer.encoder_rate)),
            "learning rates must be above 0",
            "",
        ),
        (len(recipe.optimizer.betas) != 2, "optimizer.betas are two", "Usual: [0.9, 0.999]."),
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
            recipe.tuning.pull > 0 and recipe.tuning.lora is not None,
            "tuning.pull and tuning.lora exclude each other",
            "",
        ),
        (loop.patience > 0 and data.held_out == 0, "loop.patience needs held-out rows", "Set data.held_out."),
        (
            isinstance(loop.class_weights, str) and loop.class_weights not in ("none", "balanced"),
            f"loop.class_weights cannot be {loop.class_weights!r}",
            "Known: none, balanced, or a table of labels and weights.",
        ),
        (recipe.tuning.cnn_gradient < 0 or recipe.tuning.pull < 0, "[tuning] holds a number below 0", ""),
        (not 0 <= recipe.tuning.layer_drop < 1, "tuning.layer_drop goes from 0 to below 1", ""),
        (
            recipe.tuning.lora is not None and (recipe.tuning.lora.rank < 1 or not recipe.tuning.lora.targets),
            "tuning.lora needs a rank of 1 or more and targets",
            'Usual: rank = 8, targets = ["query", "value"].',
        ),
        (
            (recipe.tuning.pull > 0 or recipe.tuning.lora is not None) and "encoder" not in _taken(recipe),
            "tuning.pull and tuning.lora need weights to start from",
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
