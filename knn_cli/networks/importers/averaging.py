"""The mean of several checkpoints of one training, as wespeaker's `average_model.py` makes it.

Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018 (arXiv:1803.05407).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.importers.checkpoint_files import list_keys, weights_in
from knn_cli.networks.importers.inert_objects import InertObject, plain_settings

__all__ = ["averaged_content", "averaged_state", "checkpoints_to_average"]

_NUMBERED = re.compile(r"model_\d+\.pt")  # of a training of wespeaker, one an epoch
_SETTINGS = ("cfg", "args", "task_state", "dims", "model_config")  # in checkpoints that hold them beside the weights


def checkpoints_to_average(path: Path, average: str) -> list[Path]:
    """The checkpoints that `average` asks for.

    Parameters
    ----------
    path : Path
        A checkpoint, or a folder exp/NAME of wespeaker or its folder `models`.
    average : str
        How many, of a folder the last ones by their number, of a file with a number in its name the ones of this name
        up to it; or the names of further checkpoints with commas between them.

    Returns
    -------
    list of Path
        At least one; the last is the one that others are compared with.

    Raises
    ------
    KnnError
        There are not so many, or one of them is not there or named twice.

    Examples
    --------
    >>> from pathlib import Path
    >>> checkpoints_to_average(Path("model_12.pt"), "model_8.pt,model_10.pt")
    Traceback (most recent call last):
    knn_cli.core.errors.KnnError: There is no checkpoint model_8.pt. Name files with commas between them, or how many.
    """
    if not re.fullmatch(r"\d{1,6}", average.strip()):
        return _named(path, average)
    if not path.exists():
        raise KnnError(f"There is no checkpoint {path}.", "Check the path.")
    count = int(average)
    folder = path / "models" if (path / "models").is_dir() else path
    if path.is_dir():
        found = [file for file in folder.iterdir() if _NUMBERED.fullmatch(file.name)]
    else:
        folder, (before, _, after) = path.parent, _parts(path.name)
        found = [file for file in folder.iterdir() if _parts(file.name)[::2] == (before, after)]
        found = [file for file in found if _number(file) <= _number(path)]
    found = sorted((file for file in found if file.is_file()), key=_number)
    if not 1 <= count <= len(found):
        raise KnnError(
            f"{path} has {len(found)} checkpoints such as model_12.pt, of which {count} cannot be averaged.",
            "Give a number of them, or name checkpoints with commas between them.",
        )
    return found[-count:]


def _parts(name: str) -> tuple[str, str, str]:
    """A name before, at and after its last number; the number is "" where there is none."""
    match = re.fullmatch(r"(.*?)(\d+)(\D*)", name)
    return (name, "", "") if match is None else (match[1], match[2], match[3])


def _number(file: Path) -> int:
    return int(_parts(file.name)[1] or 0)


def _named(path: Path, names: str) -> list[Path]:
    """The checkpoints of these names, and the one at `path`."""
    files = [Path(name.strip()) for name in names.split(",") if name.strip()]
    if missing := [file for file in files if not file.exists()]:
        raise KnnError(f"There is no checkpoint {missing[0]}.", "Name files with commas between them, or how many.")
    files = [*files, path]
    if len({file.resolve() for file in files}) < len(files):
        raise KnnError(f"{names} names a checkpoint twice, {path} included.", "Name each once.")
    return files


def averaged_state(states: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The mean of state dicts.

    Parameters
    ----------
    states : mapping of str to state dict
        By the name of their source, for messages. All have the same names, shapes and types.

    Returns
    -------
    dict of str to Tensor
        Summed in float64, and of the same types. Whole numbers are the mean without its fraction, as a counter of
        batches has it that is loaded from wespeaker's.

    Raises
    ------
    KnnError
        Names, shapes or types differ, or something is no tensor of numbers.

    Examples
    --------
    >>> import torch
    >>> states = {"a": {"w": torch.tensor([1.0]), "n": torch.tensor(4)}}
    >>> states["b"] = {"w": torch.tensor([2.0]), "n": torch.tensor(9)}
    >>> averaged_state(states)
    {'w': tensor([1.5000]), 'n': tensor(6)}
    """
    (first, base), *others = states.items()
    for source, state in others:
        differing = [key for key in [*base, *state] if _form(base.get(key)) != _form(state.get(key))]
        if differing:
            names = list_keys(sorted({str(key) for key in differing}))
            raise KnnError(
                f"{first} and {source} are of different networks: {names} differ.",
                "Average checkpoints of one training.",
            )
    if odd := [key for key, value in base.items() if _form(value) is None]:
        raise KnnError(f"{first} holds more than numbers: {list_keys(odd)}.", "Average checkpoints of weights.")
    return {key: _mean([state[key] for state in states.values()]) for key in base}


def _form(value: Any) -> tuple[Any, ...] | None:
    """Shape and type of a tensor of numbers; None for anything else."""
    if not isinstance(value, Tensor) or value.is_complex() or value.is_quantized:
        return None
    return tuple(value.shape), value.dtype


def _mean(values: Sequence[Tensor]) -> Tensor:
    first = values[0]
    if not first.is_floating_point():
        total = sum(value.long() for value in values[1:]) + first.long()
        return total.div(len(values), rounding_mode="trunc").to(first.dtype)
    total = first.double()
    for value in values[1:]:
        total = total + value.double()
    return (total / len(values)).to(first.dtype)


def averaged_content(contents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The content of the last checkpoint with the mean of the weights of all, under names without wrappers.

    Parameters
    ----------
    contents : mapping of str to mapping
        What `checkpoint_files.read` gave, by source.

    Raises
    ------
    KnnError
        As of `averaged_state`, or settings of the network that stand beside the weights differ.
    """
    *_, last = contents.values()
    kept = {key: last[key] for key in _SETTINGS if isinstance(last.get(key), dict | InertObject)}
    for source, content in contents.items():
        if not content:
            raise KnnError(f"{source} is no single file of weights, of which a mean could be taken.", "Name files.")
        if any(not _are_same(content.get(key), value) for key, value in kept.items()):
            raise KnnError(f"{source} has other settings of its network than the others.", "Average one training.")
    mean = averaged_state({source: weights_in(content) for source, content in contents.items()})
    return {**kept, "model": mean} if kept else mean


def _are_same(one: Any, other: Any) -> bool:
    """Whether settings are the same, tensors within them included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, InertObject):
        return plain_settings(one) == plain_settings(other)
    if isinstance(one, Tensor):
        return _form(one) == _form(other) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_are_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_are_same, one, other))
    return bool(one == other)
