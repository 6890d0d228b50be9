"""In which numbers a network computes: the setting `precision`, and the suffix of fingerprints that says it.

    fp32  float32
    bf16  bfloat16 products by torch's autocast, where the processor or the GPU has them
    int8  8-bit integer products on a CPU (`int8`), from weights that are rounded when they are loaded
    onnx  float32 by ONNX Runtime, for embeddings of whole clips (`onnx_network`)

"auto" is the model's own, on every machine: fp32, or int8 where the bundle says so. So embeddings do not depend on
where they are computed, unless that was asked for.
"""

from __future__ import annotations

import re
from typing import Literal

from knn_cli.core.errors import KnnError
from knn_cli.networks.chunk_setting import CHUNK_SECONDS, WHOLE, Chunk, is_chunk

__all__ = [
    "AUTO",
    "BF16",
    "FP32",
    "INT8",
    "ONNX",
    "PRECISIONS",
    "Precision",
    "check_precision",
    "with_suffix",
    "without_suffix",
]

Precision = Literal["auto", "fp32", "bf16", "int8", "onnx"]

AUTO: Literal["auto"] = "auto"
FP32: Literal["fp32"] = "fp32"
BF16: Literal["bf16"] = "bf16"
INT8: Literal["int8"] = "int8"
ONNX: Literal["onnx"] = "onnx"
PRECISIONS: tuple[Precision, ...] = (FP32, BF16, INT8, ONNX)

_SECONDS = r"\d+(?:\.\d+)?"


def check_precision(precision: str) -> Precision:
    """A text as a precision, or "auto"; KnnError for others."""
    for known in (AUTO, *PRECISIONS):
        if precision == known:
            return known
    raise KnnError(f"`precision` cannot be {precision!r}.", f"Known: {', '.join((AUTO, *PRECISIONS))}.")


def with_suffix(fingerprint: str, chunk: Chunk = CHUNK_SECONDS, precision: Precision = AUTO) -> str:
    """A fingerprint without a suffix -> the one that says `chunk`, unless it is 20 s, and `precision`, unless "auto".

    Examples
    --------
    >>> with_suffix("voice@4f1c", "whole", "int8")
    'voice@4f1c+whole+int8'
    """
    if not fingerprint:
        return fingerprint
    settings = [] if chunk == CHUNK_SECONDS else [chunk if chunk == WHOLE else format(chunk, "g")]
    settings += [] if precision == AUTO else [precision]
    return "+".join([fingerprint, *settings])


def without_suffix(fingerprint: str) -> tuple[str, Chunk, Precision]:
    """A fingerprint -> the one without a suffix, and the chunk and the precision that it says.

    Files may state any text: what no `with_suffix` writes is no suffix.
    """
    match = re.fullmatch(
        rf"(.*@\w+?)(?:\+({WHOLE}|{_SECONDS}))?(?:\+({'|'.join(PRECISIONS)}))?", fingerprint, re.DOTALL
    )
    if match is None:
        return fingerprint, CHUNK_SECONDS, AUTO
    chunk: Chunk = CHUNK_SECONDS if match[2] is None else WHOLE if match[2] == WHOLE else float(match[2])
    if not is_chunk(chunk):
        return fingerprint, CHUNK_SECONDS, AUTO
    return match[1], chunk, AUTO if match[3] is None else check_precision(match[3])
