"""Digests of files of any size, read block by block."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits; OSError where it cannot be read."""
    return file_digest(path, hashlib.sha256())


def file_digest(path: Path, begun: Any) -> str:
    """Hexadecimal digits of a digest of `hashlib` that goes on with the bytes of a file."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            begun.update(block)
    digits: str = begun.hexdigest()
    return digits
