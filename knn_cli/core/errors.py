"""Errors that a user can correct; the command line shows them as a message and a hint, without a traceback."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST = 4000  # characters of a message: what a damaged file holds may be in it, of any length
_GAP, _END = " [...] ", 200  # in the place of the middle of one that is longer; characters behind it


class KnnError(Exception):
    """A mistake that the user can correct.

    Parameters
    ----------
    message : str
        One sentence on what is wrong; of more than `LONGEST` characters, those in the middle are left out.
    hint : str
        One sentence on how to correct it. Parameters of functions stand between backticks, as in "`force=True`"; the
        command line puts its options in their place.

    Attributes
    ----------
    code : int
        Exit code of the command.

    Examples
    --------
    >>> from knn_cli import KnnError, read_audio
    >>> try:
    ...     read_audio("no_such_file.wav")
    ... except KnnError as error:
    ...     print(error.message)
    no_such_file.wav does not exist.
    """

    code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        if len(message) > LONGEST:
            message = message[: LONGEST - _END - len(_GAP)] + _GAP + message[-_END:]
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class AudioError(KnnError):
    """A recording that cannot be read, or that holds nothing usable."""


class SilenceError(AudioError):
    """A recording that can be read but holds no speech."""


class StoreError(KnnError):
    """An HDF5 store, or another file of embeddings, that cannot be read or is of the wrong kind."""


class BundleError(KnnError):
    """A model bundle that is missing, incomplete, altered, or trained on embeddings of another model."""


@dataclass(frozen=True)
class Failure:
    """A file that could not be processed, and why; the other files of the command are still processed."""

    file: str
    error: KnnError
