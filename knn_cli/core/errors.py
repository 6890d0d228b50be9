"""What a user can do wrong. Every such mistake ends in one of these, never in a traceback."""

from __future__ import annotations

from dataclasses import dataclass


class KnnError(Exception):
    """A mistake that the user can mend: one sentence that says what is wrong, one hint that says what to do."""

    code = 1  # what the command exits with

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class AudioError(KnnError):
    """A recording that cannot be read, or holds nothing that can be used."""


class SilenceError(AudioError):
    """A recording that reads well and holds no speech."""


class StoreError(KnnError):
    """An HDF5 store (or another file of embeddings) that is not what the command needs."""


class BundleError(KnnError):
    """A model bundle that is missing, incomplete, altered, or made for other embeddings."""


@dataclass(frozen=True)
class Failure:
    """A file that a command over many files could not do, and why; the others are done all the same."""

    file: str
    error: KnnError
