"""A TOML file to a recipe, checked key by key before anything is read or built.

A key, a name or a choice that does not exist is a KnnError with the nearest one that does. The types and ranges of keys
are declared in `recipe`; the arguments of encoders, poolings and heads are those of their signatures.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
from msgspec import inspect as types

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS, SEGMENTERS, Registry
from knn_cli.core.texts import did_you_mean
from knn_cli.core.toml_files import read_toml
from knn_cli.training.recipe import COMPONENTS, ComponentConfig, Recipe
from knn_cli.training.segmentation_recipe import SegmentationRecipe, check_segmentation, is_segmentation

__all__ = ["check_args", "parse", "read"]

MAX_NUMBER = 10**300  # near the largest that a float holds

REGISTRIES: dict[str, Registry] = {"encoder": ENCODERS, "pooling": POOLINGS, "head": HEADS, "segmenter": SEGMENTERS}
# Arguments that follow from other components, or stand elsewhere in the recipe.
DERIVED_ARGS: dict[str, set[str]] = {
    "encoder": set(),
    "pooling": {"layers", "channels"},
    "segmenter": set(),
    "head": {"dimension", "classes", "class_weights"},
}


def read(path: Path | str) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    path
        A TOML file.

    Raises
    ------
    KnnError
        If the file cannot be read or is not TOML, or if anything in it is unknown or impossible.
    """
    path = Path(path)
    table = read_toml(path, "recipe", "docs/training.md shows what a recipe looks like.")
    return parse(table, path.stem)


def parse(table: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """Check a parsed TOML table and make a recipe of it.

    Parameters
    ----------
    table
        Nested dictionaries as `tomllib` gives them.
    name
        What messages and the bundle's card call the recipe: the stem of its file.

    Raises
    ------
    KnnError
        If anything in the table is unknown or impossible.
    """
    try:
        return _parsed(table, name)
    except KnnError as error:
        raise KnnError(f"{name}: {error.message}", error.hint) from error


def check_args(component: str, name: str, args: Mapping[str, Any]) -> None:
    """Check arguments against the signature of an encoder, a pooling or a head.

    Parameters
    ----------
    component
        encoder, pooling or head.
    name
        Its name in the registry.
    args
        The keys of its table in the recipe.

    Raises
    ------
    KnnError
        If it does not take an argument, or takes it in another type.
    """
    if derived := sorted(set(args) & DERIVED_ARGS[component]):
        hint = "See loop.class_weights." if derived[0] == "class_weights" else "Take that line out."
        raise KnnError(f"[{component}] cannot set {derived[0]!r}: it follows from other things.", hint)
    _convert(args, _arguments(component, name), f"[{component}] {name}", f"[{component}] {name} ")


def _parsed(table: Mapping[str, Any], name: str) -> Recipe:
    _refuse_endless(table, "")
    components = {key: _component(key, table[key]) for key in COMPONENTS if key in table}
    if "name" in table:  # a field of Recipe, but no key of the file
        raise _unknown_key("name", "the recipe", _keys(Recipe))
    if is_segmentation(table):
        if "segmenter" in table:
            components["segmenter"] = _component("segmenter", table["segmenter"])
        segmentation: SegmentationRecipe = _convert(
            {**table, **components, "name": name}, SegmentationRecipe, "the recipe", ""
        )
        check_segmentation(segmentation)
        return segmentation
    recipe: Recipe = _convert({**table, **components, "name": name}, Recipe, "the recipe", "")
    _check_recipe(recipe)
    return recipe


def _component(component: str, table: Any) -> dict[str, Any]:
    """An encoder's, pooling's or head's table as `ComponentConfig` has it, its arguments checked."""
    if not isinstance(table, Mapping):
        raise KnnError(f"[{component}] is a table.", f'Write [{component}] and below it name = "...".')
    args = {key: value for key, value in table.items() if key != "name"}
    name = table.get("name", "")
    if name:  # else the name comes with the weights of [init]
        registry = REGISTRIES[component]
        if name not in registry.names():
            raise KnnError(f"There is no {registry.kind} named {name!r}.", _nearest(str(name), registry.names()))
        check_args(component, name, args)
    return {"name": name, "args": args}


def _arguments(component: str, name: str) -> type[msgspec.Struct]:
    """What a recipe may set of an encoder, a pooling or a head, as a class with one field for each argument."""
    factory = REGISTRIES[component].get(name)
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    parameters = inspect.signature(factory).parameters.values()
    fields = [
        (each.name, hints.get(each.name, each.annotation if each.annotation is not each.empty else Any), None)
        for each in parameters
        if each.kind is not each.VAR_KEYWORD and each.name not in DERIVED_ARGS[component]
    ]
    return msgspec.defstruct("Arguments", fields, forbid_unknown_fields=True)


def _check_recipe(recipe: Recipe) -> None:
    """What concerns several tables."""
    if recipe.loop.patience > 0 and recipe.data.held_out == 0:
        raise KnnError("loop.patience needs held-out rows.", "Set data.held_out.")
    if (key := recipe.tuning.needs_weights) and "encoder" not in recipe.taken:
        raise KnnError(f"tuning.{key} needs weights to start from.", "Name them in [init].")
    for component in COMPONENTS:
        config: ComponentConfig = getattr(recipe, component)
        if component in recipe.taken:
            if config.name or (config.args and component != "head"):
                raise KnnError(
                    f"[{component}] comes from init.model, so the recipe cannot choose it.",
                    f"Take the table [{component}] out, or {component!r} out of init.parts.",
                )
        elif not config.name:
            raise KnnError(f"[{component}] has no name.", f"Known: {', '.join(REGISTRIES[component].names())}.")


def _refuse_endless(value: Any, where: str) -> None:
    """KnnError for a number anywhere in a table that is infinite, NaN or too large."""
    if isinstance(value, float) and not math.isfinite(value):
        raise KnnError(f"{where} is {value}.", "Only finite numbers can be used.")
    if isinstance(value, int) and abs(value) >= MAX_NUMBER:
        raise KnnError(f"{where} is larger than any number that can be used.", "Take a smaller one.")
    if isinstance(value, list):
        for item in value:
            _refuse_endless(item, where)
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_endless(item, f"{where}.{key}" if where else str(key))


def _convert(table: Mapping[str, Any], kind: type[Any], where: str, prefix: str) -> Any:
    """The table as a value of this class, or its first mistake as a KnnError.

    where is what the table is called, prefix what stands before its keys in messages.
    """
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise _mistake(str(error), table, kind, where, prefix) from error


def _mistake(message: str, table: Any, kind: type[Any], where: str, prefix: str) -> KnnError:
    """Msgspec's message, such as "Expected `int`, got `str` - at `$.loop.batch`", with what is allowed there."""
    path = re.search(r" - at `\$\.?([^`]*)`$", message)
    steps = re.findall(r"\w+|\[\d*(?:\.\.\.)?\]", path[1]) if path else []
    value, declared, default, key = table, types.type_info(kind), None, ""
    for step in steps:
        if step.startswith("["):
            value = value[int(step[1:-1])] if step[1:-1].isdigit() else value
            continue
        owner = next(each for each in _options(declared) if isinstance(each, types.StructType))
        field = next(each for each in owner.fields if each.encode_name == step)
        value, declared, default = value[step], field.type, field.default
        key = f"{key}.{step}" if key else step
    if unknown := re.match(r"Object contains unknown field `([^`]*)`", message):
        inner = next(each for each in _options(declared) if isinstance(each, types.StructType))
        table_name = f"[{key}]" if key else where
        known = [each.encode_name for each in inner.fields if each.encode_name != "name" or inner.cls is not Recipe]
        return _unknown_key(unknown[1], table_name, known)
    known = [
        choice for each in _leaves(declared) if isinstance(each, types.LiteralType) for choice in map(str, each.values)
    ]
    allowed = f"It takes {_described(declared)}{_shown(default)}."
    close = did_you_mean(value, known) if isinstance(value, str) else ""
    return KnnError(f"{prefix}{key} cannot be {value!r}.", f"{close}{allowed}")


def _options(declared: types.Type) -> list[types.Type]:
    """What a value may be: the members of a union but None, else the type itself."""
    if isinstance(declared, types.Metadata):
        return _options(declared.type)
    if isinstance(declared, types.UnionType):
        return [each for member in declared.types for each in _options(member)]
    return [] if isinstance(declared, types.NoneType) else [declared]


def _leaves(declared: types.Type) -> list[types.Type]:
    """The types of single values in a type."""
    leaves = []
    for each in _options(declared):
        if isinstance(each, types.CollectionType):
            leaves += _leaves(each.item_type)
        elif isinstance(each, types.TupleType):
            leaves += [leaf for item in each.item_types for leaf in _leaves(item)]
        else:
            leaves.append(each)
    return leaves


def _described(declared: types.Type) -> str:
    """A type with its constraints, in words."""
    words = []
    for each in _options(declared):
        match each:
            case types.LiteralType():
                words.append(" or ".join(map(repr, each.values)))
            case types.IntType():
                words.append("a whole number" + _range(each))
            case types.FloatType():
                words.append("a number" + _range(each))
            case types.BoolType():
                words.append("true or false")
            case types.StrType():
                words.append("a text")
            case types.TupleType():
                words.append(f"a list of {len(each.item_types)}, each {_described(each.item_types[0])}")
            case types.CollectionType():
                words.append(f"a list, each item {_described(each.item_type)}")
            case types.DictType() if not isinstance(each.value_type, types.AnyType):
                words.append(f"a table, each value {_described(each.value_type)}")
            case types.AnyType():
                words.append("anything")
            case _:
                words.append("a table")
    return ", or ".join(words)


def _range(number: types.IntType | types.FloatType) -> str:
    """The constraints of a number, such as " from 0 to 1", " above 0" or " of 2 or more"."""
    ends = (number.ge, number.gt, number.le, number.lt)
    low, above, high, below = (None if end is None else str(end) for end in ends)
    if low is not None and (high or below) is not None:
        return f" from {low} to {high if below is None else 'below ' + below}"
    if low is not None:
        return f" of {low} or more"
    words = [f"{word} {end}" for word, end in (("above", above), ("up to", high), ("below", below)) if end]
    return f" {', '.join(words)}" if words else ""


def _shown(default: Any) -> str:
    """The default, where it is one value that can be shown."""
    if isinstance(default, tuple) and default:
        return f"; the default is {list(default)}"
    return f"; the default is {default!r}" if type(default) in (str, int, float) and default != "" else ""


def _keys(kind: type[msgspec.Struct]) -> list[str]:
    return [each.encode_name for each in msgspec.structs.fields(kind) if each.encode_name != "name"]


def _unknown_key(key: str, where: str, known: Iterable[str]) -> KnnError:
    return KnnError(f"There is no key {key!r} in {where}.", _nearest(key, known))


def _nearest(word: str, known: Iterable[str]) -> str:
    known = sorted(known)
    return f"{did_you_mean(word, known)}Known: {', '.join(known)}."
