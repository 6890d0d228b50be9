"""Reading of CTranslate2's `model.bin`, without its program and without trust in what its headers say.

    uint32 version, text kind, uint32 revision
    uint32 number of variables; of each: text name, uint8 rank, uint32 size of each axis, uint8 type, uint32 bytes, data
    uint32 number of aliases; of each: text alias, text name of the variable
    text: uint16 length with the NUL, bytes, NUL

All numbers are little-endian. A weight `NAME` of 8 or 16 bits is divided by `NAME_scale`, one number or one per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.core.folders import is_regular

__all__ = ["Ctranslate2Model", "is_ctranslate2", "read_ctranslate2"]

_VERSION = 6  # the only one that holds Whispers
_MAX_RANK = 8
_TYPES = ("<f4", "i1", "<i2", "<i4", "<f2", "<u2")  # by number; the last is bfloat16, which numpy lacks
_BFLOAT16 = 5
_SCALE = "_scale"


@dataclass(frozen=True)
class Ctranslate2Model:
    """What a `model.bin` holds.

    Attributes
    ----------
    kind : str
        The specification that it follows, such as WhisperSpec.
    weights : dict of str to Tensor
        float32, scales applied; aliases are further names of one tensor.
    settings : dict of str to float
        The variables without axes.
    """

    kind: str
    weights: dict[str, Tensor]
    settings: dict[str, float]


class _Reader:
    """A position in the bytes of a file; every step is checked against its end."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0
        try:
            self.data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise KnnError(f"{path} cannot be read: {error}.", "Download it again.") from error

    def damaged(self, reason: str) -> KnnError:
        """An error that says where and why."""
        return KnnError(f"{self.path} is damaged: {reason} at byte {self.position:,}.", "Download it again.")

    def take(self, count: int) -> NDArray[np.uint8]:
        """The next bytes, as a view of the file."""
        if count > len(self.data) - self.position:
            raise self.damaged("it ends too early")
        self.position += count
        return self.data[self.position - count : self.position]

    def integer(self, size: int) -> int:
        """The next unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size).tobytes(), "little")

    def text(self) -> str:
        """The next text."""
        characters = self.take(self.integer(2)).tobytes()
        if not characters.endswith(b"\0") or not characters[:-1].isascii():
            raise self.damaged("no name is")
        return characters[:-1].decode("ascii")

    def variable(self) -> tuple[str, NDArray[Any]]:
        """The next variable's name and values, float32 if they were bfloat16, otherwise a view of the file."""
        name, rank = self.text(), self.integer(1)
        if rank > _MAX_RANK:
            raise self.damaged(f"{name} has {rank} axes")
        shape = [self.integer(4) for _ in range(rank)]
        number, size = self.integer(1), self.integer(4)
        if 0 in shape or number >= len(_TYPES) or size != prod(shape) * np.dtype(_TYPES[number]).itemsize:
            raise self.damaged(f"{name} of shape {tuple(shape)} and type {number} has {size:,} bytes")
        values = self.take(size).view(_TYPES[number]).reshape(shape)
        if number == _BFLOAT16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return name, values


def is_ctranslate2(path: Path) -> bool:
    """Whether a file starts as `model.bin` does; False for what is no file."""
    if not is_regular(path):
        return False
    try:
        with path.open("rb") as file:
            version, length = (int.from_bytes(file.read(size), "little") for size in (4, 2))
            kind = file.read(length)
    except OSError:
        return False
    return 0 < version < 100 and len(kind) == length and kind.endswith(b"Spec\0")


def read_ctranslate2(path: Path) -> Ctranslate2Model:
    """Read a `model.bin`.

    Raises
    ------
    KnnError
        The file cannot be read, is of another version, ends too early, contradicts itself, or lacks a scale.
    """
    reader = _Reader(path)
    version, kind, _ = reader.integer(4), reader.text(), reader.integer(4)
    if version != _VERSION:
        raise KnnError(f"{path} is of version {version} of CTranslate2's format; knn reads {_VERSION}.", "Convert it.")
    variables = dict(reader.variable() for _ in range(reader.integer(4)))
    weights, settings = {}, {}
    for name, values in variables.items():
        if values.ndim == 0 and not name.endswith(_SCALE):
            settings[name] = float(values)
        elif not name.endswith(_SCALE):
            weights[name] = torch.from_numpy(_floats(name, values, variables.get(name + _SCALE), path))
    for _ in range(reader.integer(4)):
        alias, name = reader.text(), reader.text()
        if name not in variables:
            raise reader.damaged(f"{alias} is a name of {name}, which is not there,")
        if name in weights:  # otherwise a scale
            weights[alias] = weights[name]
    return Ctranslate2Model(kind, weights, settings)


def _floats(name: str, values: NDArray[Any], scale: NDArray[Any] | None, path: Path) -> NDArray[np.float32]:
    """A weight as float32, divided by its scale, which integers need."""
    result = np.array(values, dtype=np.float32)
    if scale is None and values.dtype.kind == "f":
        return result
    if scale is None or scale.ndim > 1 or (scale.ndim and scale.shape != values.shape[:1]):
        raise KnnError(f"{path} has no scale that fits {name}.", "Download it again.")
    divisor = scale.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
    if not (np.isfinite(divisor) & (divisor != 0)).all():
        raise KnnError(f"{path} has a scale of {name} that is no number to divide by.", "Download it again.")
    with np.errstate(over="ignore", under="ignore"):
        result /= divisor
    if not np.isfinite(result).all():
        raise KnnError(f"{path} has a scale of {name} that makes it infinite.", "Download it again.")
    return result
