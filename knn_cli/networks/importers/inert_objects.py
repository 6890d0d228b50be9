"""Objects of other programs in PyTorch files, read as data: none of their classes is looked up, and nothing is run.

torch's reader of weights refuses every class that it does not know. Here the classes of certain programs are known, as
`InertObject`, which keeps what it is given. Which names a file has is found by `pickletools`, which only takes a file
apart.
"""

from __future__ import annotations

import lzma
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import IO, Any

__all__ = ["InertObject", "inert_globals", "plain_settings"]

# Names whose objects are kept: settings of fairseq's trainings (omegaconf's containers, argparse's Namespace), its
# dictionaries and enumerations, the types that these mention, numpy's numbers, and pyannote's description of a task.
_KNOWN = re.compile(
    r"(fairseq|omegaconf|examples|typing|numpy)\.[\w.]+|argparse\.Namespace|_?operator\.getitem"
    r"|builtins\.(int|float|str|bool|list|dict|tuple|bytes|set|object|complex|NoneType)"
    r"|pyannote\.audio\.core\.task\.(Specifications|Problem|Resolution)"
)
_RENAMED = {"unicode": "str", "long": "int"}  # by Python 3, also in what it writes in the older protocols
_MAPPINGS = ("collections.defaultdict",)
_DAMAGE = (
    *(ValueError, IndexError, KeyError, EOFError, OSError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
_PICKLES = 4  # before torch's oldest format, three short ones stand in front of the content
_DEEPEST = 40  # settings within settings
_MOST = 100_000  # settings, those that are repeated counted each time


class InertObject:
    """Placeholder for pickled objects of other programs: keeps their constructor arguments and state, runs nothing."""

    values: tuple[object, ...] = ()  # of one that is made without a call
    state: object = None

    def __init__(self, *values: object) -> None:
        self.values = values

    def __setstate__(self, state: object) -> None:
        self.state = state


def _inert_mapping(*values: object) -> dict[Any, Any]:
    """An empty dictionary in the place of one with a default."""
    return {}


def inert_globals(path: Path) -> list[tuple[Callable[..., Any], str]]:
    """For `torch.serialization.safe_globals`: a placeholder for each name in a file whose objects are kept as data."""
    found: list[tuple[Callable[..., Any], str]] = []
    for name in sorted({*_names(path)}):
        if name in _MAPPINGS:
            found.append((_inert_mapping, name))
        elif _KNOWN.fullmatch(name):
            found.append((InertObject, name))
    return found


def _names(path: Path) -> Iterator[str]:
    """Names of what the pickles in a file mention; those before its damage, if it has one."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                for _ in range(_PICKLES):
                    yield from _names_in(file)
            return
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.rpartition("/")[2] == "data.pkl":
                    with archive.open(name) as file:
                        yield from _names_in(file)
    except _DAMAGE:
        return  # torch will say what is wrong


def _names_in(file: IO[bytes]) -> Iterator[str]:
    for code, value, _ in pickletools.genops(file):
        if code.name == "GLOBAL":
            module, _, name = str(value).partition(" ")
            yield f"{module}.{name}" if module != "__builtin__" else f"builtins.{_RENAMED.get(name, name)}"


def plain_settings(value: Any) -> dict[str, Any]:
    """Settings that omegaconf, argparse or a dictionary holds, as plain values under their names; {} for others.

    What is no plain value becomes None; enumerations become the value of their member.
    """
    plain = _plain(value, 0, count())
    return {str(key): each for key, each in plain.items()} if isinstance(plain, Mapping) else {}


def _plain(value: Any, depth: int, visits: Iterator[int]) -> Any:
    if depth > _DEEPEST or next(visits) > _MOST:
        return None
    if isinstance(value, InertObject):
        state = value.state
        if not isinstance(state, Mapping):  # an enumeration
            return _plain(value.values[0], depth + 1, visits) if len(value.values) == 1 else None
        for name in ("_content", "_val"):  # of a container and of a leaf of omegaconf
            if name in state:
                return _plain(state[name], depth + 1, visits)
        return _plain(state, depth + 1, visits)
    if isinstance(value, Mapping):
        return {str(key): _plain(each, depth + 1, visits) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, depth + 1, visits) for each in value]
    return value if isinstance(value, str | int | float | bool) else None
