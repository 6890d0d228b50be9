"""Sound in memory: libsndfile on a file without a name, since Python code that it called back would swallow signals."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import numpy as np
import soundfile

from knn_cli.core.values import Floats

_SILENT_FORMATS = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM", b"caff", b".snd")  # their decoders write nothing
_STDERR = threading.Lock()


@contextmanager
def memory_file(data: bytes = b"") -> Iterator[IO[bytes]]:
    """Yield a file that holds the bytes, in memory where the system has such files; libsndfile opens its `fileno()`."""
    in_memory = hasattr(os, "memfd_create")
    with os.fdopen(os.memfd_create("knn"), "w+b") if in_memory else tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file


@contextmanager
def memory_sound(data: bytes) -> Iterator[soundfile.SoundFile]:
    """Yield the sound of the bytes of a file, opened by libsndfile; LibsndfileError where it cannot.

    Its decoder of MP3 writes to stderr what it thinks of a file, which is kept from there.
    """
    quiet = nullcontext() if data.startswith(_SILENT_FORMATS) else _no_stderr()
    with memory_file(data) as file, quiet, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
        yield sound


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Let nothing that is written to the process's stderr get there; one thread at a time."""
    with _STDERR:
        try:
            kept = os.dup(2)
        except OSError:  # there is none
            yield
            return
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def encode_flac(samples: Floats, rate: int) -> bytes:
    """Return 16-bit FLAC bytes of (S,) float32 samples; values beyond [-1, 1] are clipped."""
    with memory_file() as file:
        clipped = np.clip(samples, -1.0, 1.0)
        with soundfile.SoundFile(file.fileno(), "w", rate, 1, "PCM_16", format="FLAC", closefd=False) as flac:
            flac.write(clipped)
        file.seek(0)
        return file.read()


def decode_flac(data: bytes) -> Floats:
    """Return the (S,) float32 samples of FLAC bytes from `encode_flac`."""
    with memory_file(data) as file, soundfile.SoundFile(file.fileno(), closefd=False) as flac:
        samples: Floats = flac.read(dtype="float32")
    return samples
