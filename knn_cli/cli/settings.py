"""Settings of commands that `--set NAME=VALUE` changes: dataclasses of `setting` fields, and reading of the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from knn_cli.cli.limits import Limits
from knn_cli.core.errors import KnnError
from knn_cli.core.texts import did_you_mean

Settings = TypeVar("Settings")


def setting(default: Any, help: str, limits: Limits | None = None) -> Any:
    """Return a dataclass field for `--set`, with its default, its text in the help, and the limits of a number."""
    return field(default=default, metadata={"help": help, "limits": limits})


def read_settings(kind: type[Settings], pairs: Sequence[str] | None) -> Settings:
    """Return a settings dataclass from the NAME=VALUE pairs of `--set`.

    Raises
    ------
    KnnError
        If a name is unknown (the hint suggests similar ones) or given twice, or a value has another type.
    """
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, text = (part.strip() for part in pair.partition("="))
        name = name.replace("-", "_")
        if name not in known:
            hint = did_you_mean(name, known, 2).rstrip() or f"There are {', '.join(known)}."
            raise KnnError(f"There is no setting {name!r}.", hint)
        if not equals or not text:
            raise KnnError(f"--set {pair} has no value.", f"Write it as --set {name}=VALUE.")
        if name in values:
            raise KnnError(f"The setting {name} is given twice.", "Leave one of them out.")
        values[name] = _value(name, text, types[name])
        limits = known[name].metadata["limits"]
        if limits is not None and (reason := limits.refusal(values[name])):
            raise KnnError(f"{name} cannot be {text}: {reason}.", "Choose another value.")
    return kind(**values)


def _value(name: str, text: str, kind: Any) -> Any:
    """A setting's text as its type: bool, int, float, str, or one of a Literal's texts."""
    optional = get_origin(kind) in (Union, UnionType)
    value_type = next(inner for inner in get_args(kind) if inner is not NoneType) if optional else kind
    if get_origin(value_type) is Literal:
        if text in get_args(value_type):
            return text
        raise KnnError(f"{name} cannot be {text!r}.", f"It is one of {', '.join(get_args(value_type))}.")
    if value_type is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() in words:
            return words[text.lower()]
        raise KnnError(f"{name} cannot be {text!r}.", "It is true or false.")
    try:
        return value_type(text)
    except ValueError:
        what = {int: "a whole number", float: "a number"}[value_type]
        raise KnnError(f"{name} cannot be {text!r}.", f"It is {what}.") from None
