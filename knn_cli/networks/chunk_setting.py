"""How much speech goes through a network at once: the entry `chunk` of a bundle, part of its fingerprint."""

from __future__ import annotations

from typing import Any, Literal

from knn_cli.core.errors import KnnError

__all__ = [
    "CHUNK_SECONDS",
    "LIMITS",
    "WHOLE",
    "Chunk",
    "chunk_seconds",
    "is_chunk",
    "parse_chunk",
]

Chunk = float | Literal["whole"]

CHUNK_SECONDS = 20.0  # of bundles without the entry
LIMITS = (0.25, 3600.0)  # seconds
WHOLE: Literal["whole"] = "whole"  # all speech of a recording or row at once, up to what the encoder takes


def is_chunk(value: Any) -> bool:
    """Whether a value is "whole" or a number of seconds within `LIMITS`."""
    if isinstance(value, str):
        return value == WHOLE
    return isinstance(value, (int, float)) and not isinstance(value, bool) and LIMITS[0] <= value <= LIMITS[1]


def parse_chunk(text: str | None) -> Chunk | None:
    """A text such as "40" or "whole" as a chunk, None as None; KnnError for others."""
    if text is None:
        return None
    try:
        chunk: Chunk = WHOLE if text == WHOLE else float(text)
    except ValueError:
        chunk = 0.0
    if is_chunk(chunk):
        return chunk
    raise KnnError(f"`chunk` cannot be {text!r}.", f"It is {WHOLE}, or {LIMITS[0]:g} to {LIMITS[1]:g} seconds.")


def chunk_seconds(chunk: Chunk, longest: float, name: str) -> float:
    """The most seconds of speech that go through a network at once.

    Parameters
    ----------
    chunk : float or "whole"
    longest : float
        The most that its encoder takes, `Encoder.longest_seconds`.
    name : str
        The model, for the message.

    Raises
    ------
    KnnError
        `chunk` is neither, or above `longest`.
    """
    if parse_chunk(str(chunk)) == WHOLE:
        return longest
    if float(chunk) > longest:
        raise KnnError(f"The model {name} takes up to {longest:g} s at once, not {chunk} s.", "Make `chunk` smaller.")
    return float(chunk)
