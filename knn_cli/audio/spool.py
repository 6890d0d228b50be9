"""Sound from a stream that can be read only once, such as a pipe: copied to a file that can be read often.

The bytes are copied as they are, so that rate, channels and resolution stay. Only sizes that the writer of a WAV did
not know are filled in, as RF64 (EBU Tech 3306) above 4 GiB.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

from knn_cli.core.errors import AudioError, KnnError

HEAD_BYTES = 1 << 16  # in which the kind of the sound is recognised
COPY_BYTES = 1 << 20  # that are copied at once
MIN_UNKNOWN_SIZE = 0x7FFFF000  # writers to pipes give this size or a larger one, or 0
MAX_RIFF_BYTES = 0xFFFFFFFF
_DS64 = struct.Struct("<4sIQQQI")  # the chunk of RF64 with 64-bit sizes: name, size, RIFF, data, samples, table
_BEGINNINGS = {  # of a file -> suffix
    b"fLaC": ".flac",
    b"OggS": ".ogg",
    b"ID3": ".mp3",
    b"FORM": ".aiff",
    b".snd": ".au",
    b"dns.": ".au",
    b"caff": ".caf",
    b"riff": ".w64",
    b"NIST_1A": ".sph",
    b"Creative Voice File": ".voc",
    b"\x1aE\xdf\xa3": ".mka",
    b"#!AMR": ".amr",
    b"wvpk": ".wv",
    b"MAC ": ".ape",
    b"0&\xb2u\x8ef\xcf\x11": ".wma",
    b"\x0bw": ".ac3",
}
_WAVE_BEGINNINGS = {b"RIFF", b"RIFX", b"RF64"}


@dataclass(frozen=True)
class _Sizes:
    """Where a WAV has the sizes that its writer did not know.

    data  : position of the data chunk in the head
    large : whether there is a ds64 chunk already
    """

    data: int
    large: bool


class Spool:
    """A copy of a stream, for as long as `spooled` lasts; see there.

    Parameters
    ----------
    stream : binary file
    name : str
        Of the copy, without its suffix.
    folder : Path
    title : str
        What messages call the stream.
    """

    def __init__(self, stream: BufferedIOBase, name: str, folder: Path, title: str) -> None:
        self._stream, self._title = stream, title
        self._head = stream.read(HEAD_BYTES)
        if not self._head:
            raise AudioError(f"{title} is empty (0 bytes).", "See whether the command before the pipe has failed.")
        self.path = folder / f"{name}{_suffix(self._head, title)}"

    def fill(self, progress: Callable[[int], None] = lambda copied: None) -> None:
        """Copy the stream to `path`, to its end.

        Parameters
        ----------
        progress : callable
            Called with the number of bytes so far.

        Raises
        ------
        KnnError
            Where the temporary folder has no room.
        """
        sizes = _unknown_sizes(self._head)
        head, added = self._head, 0
        if sizes is not None and not sizes.large:  # room for 64-bit sizes; other programs skip the chunk
            junk = _DS64.pack(b"JUNK", _DS64.size - 8, 0, 0, 0, 0)
            head, added = head[:12] + junk + head[12:], len(junk)
        try:
            with self.path.open("wb") as file:
                file.write(head)
                while piece := self._stream.read1(COPY_BYTES):  # so that a signal need not wait for so much
                    file.write(piece)
                    progress(file.tell())
                if sizes is not None:
                    _fill_in(file, sizes.data + added, large=sizes.large)
        except OSError as error:
            raise KnnError(
                f"{self._title} could not be copied to {self.path.parent}: {error.strerror or error}.",
                "Name a folder with more room in the variable TMPDIR.",
            ) from error


@contextmanager
def spooled(stream: BufferedIOBase, *, name: str = "stdin", title: str = "stdin") -> Iterator[Spool]:
    """Copy a stream to a file in the temporary folder, which is deleted at the end of the block.

    Parameters
    ----------
    stream : binary file
        Its beginning is read at once, the rest by `Spool.fill`.
    name : str
        Of the file, without its suffix.
    title : str
        What messages call the stream.

    Yields
    ------
    Spool
        Its `path` ends with the suffix of its kind of sound.

    Raises
    ------
    AudioError
        For a stream that is empty, or whose beginning is that of no audio file.
    """
    with tempfile.TemporaryDirectory(prefix="knn-") as folder:
        yield Spool(stream, name, Path(folder), title)


def _suffix(head: bytes, title: str) -> str:
    """The suffix of a file that begins like this; AudioError for sound without a header and what is no sound."""
    if head[:4] in _WAVE_BEGINNINGS and head[8:12] == b"WAVE":
        return ".wav"
    if head[4:8] == b"ftyp":
        return ".m4a"
    if head.startswith(b"OggS") and b"OpusHead" in head[:128]:
        return ".opus"
    for beginning, suffix in _BEGINNINGS.items():
        if head.startswith(beginning):
            return suffix
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return ".aac"  # ADTS: twelve bits of ones, and a layer of 0
    layers_2_and_3 = head[1] & 0xE6 in (0xE2, 0xE4) if len(head) > 2 else False
    if layers_2_and_3 and head[0] == 0xFF and head[2] >> 4 != 15 and head[2] & 12 != 12:
        return ".mp3"  # MPEG audio, of possible bit and sampling rates
    raise AudioError(
        f"{title} is not audio with a header that can be read here.",
        "Raw samples do not tell their rate; give them a header: "
        "ffmpeg -f s16le -ar 16000 -ac 1 -i - -f wav - (or sox, with -t wav).",
    )


def _unknown_sizes(head: bytes) -> _Sizes | None:
    """Where the sizes of a WAV have to be filled in; None for other files and where they are known."""
    if head[8:12] != b"WAVE" or head[:4] not in (b"RIFF", b"RF64"):
        return None
    large, data_size, at = head[:4] == b"RF64", None, 12
    while at + 8 <= len(head) and head[at : at + 4] != b"data":
        if head[at : at + 4] == b"ds64" and at + _DS64.size <= len(head):
            data_size = _DS64.unpack_from(head, at)[3]
        at += 8 + (size := struct.unpack_from("<I", head, at + 4)[0]) + size % 2
    if at + 8 > len(head):
        return None
    if large:
        return _Sizes(at, large) if data_size in (0, 2**64 - 1) and head[12:16] == b"ds64" else None
    size = struct.unpack_from("<I", head, at + 4)[0]
    return _Sizes(at, large) if size == 0 or size >= MIN_UNKNOWN_SIZE else None


def _fill_in(file: BinaryIO, data: int, *, large: bool) -> None:
    """Write the sizes of a WAV that ends with the data chunk at `data`, behind a chunk for 64-bit sizes."""
    end = file.tell()
    if large or end - 8 > MAX_RIFF_BYTES:
        file.seek(0)
        file.write(struct.pack("<4sI4s", b"RF64", MAX_RIFF_BYTES, b"WAVE"))
        file.write(_DS64.pack(b"ds64", _DS64.size - 8, end - 8, end - data - 8, 0, 0))
        size = MAX_RIFF_BYTES
    else:
        file.seek(4)
        file.write(struct.pack("<I", end - 8))
        size = end - data - 8
    file.seek(data + 4)
    file.write(struct.pack("<I", size))
