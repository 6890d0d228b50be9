"""The config of a model bundle: read within limits, with every entry that decides an embedding checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from knn_cli.core.errors import BundleError
from knn_cli.core.folders import is_regular
from knn_cli.core.lfs import check_pointer
from knn_cli.networks.chunk_setting import LIMITS, WHOLE, is_chunk
from knn_cli.networks.precision import INT8, PRECISIONS

SCHEMA = 1
SEGMENTER = "segmenter"  # the kind of bundles with a segmentation network; others embed or classify
IDENTITY = ("audio", "encoder", "pooling", "weights_sha256")  # what determines an embedding, with `products` if there
SEGMENTER_IDENTITY = ("audio", SEGMENTER, "weights_sha256")

MAX_CONFIG_BYTES = 1 << 26
RATES = (1000, 768_000)  # samples per second
SCALES = (1e-6, 1e6)

_COPY = "Copy the whole folder again."


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any, limits: tuple[float, float]) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and limits[0] <= value <= limits[1]


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_views(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(ends, list) and len(ends) == 2 and all(end is None or type(end) is int for end in ends)
        for ends in value.values()
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_cosines(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(of, dict)
        and of.keys() == {"least", "mean", "clips"}
        and all(_is_number(one, (-1, 1e9)) for one in of.values())
        for of in value.values()
    )


_Entry = tuple[Callable[[Any], bool], str]  # what a value must fit, and what that is

_ENTRIES: dict[str, _Entry] = {
    "name": (_is_text, "a text"),
    "kind": (_is_text, "a text"),
    "weights_sha256": (_is_text, "a text"),
    "names": (_is_names, "an object of texts"),
    "views": (_is_views, "pairs of whole numbers"),
    "chunk": (is_chunk, f"{WHOLE!r} or a number of seconds, {LIMITS[0]:g} to {LIMITS[1]:g}"),
    "precision": (lambda value: value in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "precision_cosines": (_is_cosines, "an object of precisions, each with least, mean and clips"),
}
_NAMED: dict[str, _Entry] = {"name": (_is_text, "a text"), "args": (_is_mapping, "an object")}
_PARTS: dict[str, dict[str, _Entry]] = {
    "audio": {
        "rate": (
            lambda value: type(value) is int and _is_number(value, RATES),
            "a whole number, {} to {}".format(*RATES),
        ),
        "scale": (lambda value: _is_number(value, SCALES), f"a number, {SCALES[0]:g} to {SCALES[1]:g}"),
    },
    "encoder": _NAMED,
    "pooling": _NAMED,
    "head": {**_NAMED, "labels": (_is_texts, "a list of distinct texts")},
    SEGMENTER: _NAMED,
}


def read_json(path: Path) -> Any:
    """Return the value in a config.json. BundleError if it cannot be read, or is no JSON within the limits."""
    try:
        if not is_regular(path):
            raise BundleError(f"{path} cannot be read: it is missing or no file.", _COPY)
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise BundleError(f"{path} cannot be read: it is larger than {MAX_CONFIG_BYTES >> 20} MB.", _COPY)
        text = path.read_bytes()
        check_pointer(path, text, error=BundleError)
        return json.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise BundleError(f"{path} cannot be read: its brackets are too deep.", _COPY) from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}.", _COPY) from error


def is_config(config: Any) -> bool:
    """Whether a value is the config of a bundle, of any schema; other programs write config.json too."""
    return isinstance(config, dict) and type(config.get("schema")) is int and "kind" in config


def read_config(path: Path) -> dict[str, Any]:
    """Read and check the config of a bundle.

    Raises
    ------
    BundleError
        If it cannot be read, is none of a bundle, is of a newer schema, lacks an entry, or has one that cannot be.
    """
    config = read_json(path)
    if not isinstance(config, dict) or type(config.get("schema")) is not int:
        raise BundleError(f"{path} is not the config of a model bundle: it has no schema number.")
    if config["schema"] > SCHEMA:
        hint = "Install a newer knn."
        raise BundleError(f"{path} has schema {config['schema']}; this knn reads up to {SCHEMA}.", hint)
    needed: tuple[str, ...] = ("name", "kind")
    if "encoder" in config:
        needed = (*needed, *IDENTITY)
    elif config.get("kind") == SEGMENTER:
        needed = (*needed, *SEGMENTER_IDENTITY)
    if missing := [key for key in needed if key not in config]:
        raise BundleError(f"{path} lacks {', '.join(missing)}.", _COPY)
    if config.get("products", INT8) != INT8:
        raise BundleError(f"{path}: products can only be {INT8!r}.", "Install a newer knn, or copy the folder again.")
    _check(path, "", config, _ENTRIES)
    for part, entries in _PARTS.items():
        if part not in config:
            continue
        if not (isinstance(config[part], dict) and entries.keys() <= config[part].keys()):
            raise BundleError(f"{path}: {part} needs {', '.join(sorted(entries))}.", _COPY)
        _check(path, f"{part} ", config[part], entries)
        if not _is_finite(config[part]):
            raise BundleError(f"{path}: {part} holds NaN or an infinite number.", _COPY)
    return config


def _check(path: Path, part: str, values: Mapping[str, Any], entries: Mapping[str, _Entry]) -> None:
    for name, (fits, what) in entries.items():
        if name in values and not fits(values[name]):
            shown = repr(values[name])[:60]
            raise BundleError(f"{path}: {part}{name} is {shown}, not {what}.", _COPY)


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def weight_bytes(path: Path, sha256: str) -> bytes:
    """Return the file of a bundle's weights. BundleError if it is missing or not the one that the config names."""
    if not path.is_file():
        raise BundleError(f"The bundle {path.parent} lacks {path.name}.", "Copy the whole folder again.")
    data = path.read_bytes()
    check_pointer(path, data, error=BundleError)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BundleError(f"{path} is not the file that config.json names (sha256 differs).", "Copy the folder again.")
    return data
