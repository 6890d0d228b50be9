"""Reading and writing sound sample for sample, in the format of its file.

`reading` returns float32 mono at one rate for models; this module preserves rate, channels, bit depth, file format and
tags. Both stream. libsndfile gives access neither to the fields of BWF nor to a WAV's channel mask; those are lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from knn_cli.audio import sources
from knn_cli.core.atomic import replacing
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.output_paths import check_output

Frames = NDArray[Any]  # (n, channels), int32 in units of the last bit or float64 with 1.0 as full scale

BLOCK_FRAMES = 1 << 17
MAX_WAV_BYTES = 2**32 - 2**16  # of sound; WAV has 32-bit sizes, RF64 64-bit ones

# Bits of the subtypes that libsndfile reads and writes without loss. It reads A-law and mu-law as 16-bit values; it
# cannot read the 20-bit ALAC that it writes.
_BITS = {
    "PCM_S8": 8,
    "PCM_U8": 8,
    "PCM_16": 16,
    "PCM_24": 24,
    "PCM_32": 32,
    "ULAW": 16,
    "ALAW": 16,
    "ALAC_16": 16,
    "ALAC_24": 24,
    "ALAC_32": 32,
}
_BYTES = {"DOUBLE": 8, "ULAW": 1, "ALAW": 1}  # per sample, where not bits / 8; FLOAT has 4
_FLOATS = frozenset({"FLOAT", "DOUBLE"})
# Encoded again when written, at these compression levels of libsndfile: about 100 kbit/s per channel, 50 to 70 at
# 16 kHz.
_LOSSY = {"VORBIS": 0.2, "OPUS": 0.7, "MPEG_LAYER_III": 0.1}
# Suffixes of a format's files, the usual one first.
_SUFFIXES = {
    "WAV": (".wav", ".wave", ".rf64"),
    "WAVEX": (".wav", ".wave", ".rf64"),
    "RF64": (".wav", ".wave", ".rf64"),
    "FLAC": (".flac",),
    "OGG": (".ogg", ".oga", ".opus"),
    "MP3": (".mp3",),
    "AIFF": (".aif", ".aiff", ".aifc"),
    "AU": (".au", ".snd"),
    "CAF": (".caf",),
    "W64": (".w64",),
    "NIST": (".sph", ".nist", ".wav"),
    "VOC": (".voc",),
}


@dataclass(frozen=True)
class AudioFormat:
    """How the samples of a file are stored, and how edited sound is written.

    Attributes
    ----------
    format, subtype : str
        libsndfile's names of the format that is written.
    rate : int
        Samples per second.
    channels : int
    bits : int or None
        Per integer sample; None for floats.
    suffix : str
        Suffix of files in this format.
    matches_source : bool
        Whether it is the format of the source.
    tags : tuple of (str, str)
        Title, artist, date and so on, with their values.
    track : int
        Which audio track of the source is read, from 1; 0 for the first.
    """

    format: str
    subtype: str
    rate: int
    channels: int
    bits: int | None
    suffix: str
    matches_source: bool = True
    tags: tuple[tuple[str, str], ...] = ()
    track: int = 0

    @property
    def name(self) -> str:
        """Format and subtype."""
        return f"{self.format} {self.subtype}"

    @property
    def full_scale(self) -> float:
        """Value of the largest sample: 1.0 for floats."""
        return 1.0 if self.bits is None else float(1 << (self.bits - 1))

    @property
    def exact(self) -> bool:
        """Whether a written file is read back sample for sample."""
        return self.subtype not in _LOSSY


def output_format(path: str | Path, *, track: int = 0) -> AudioFormat:
    """Return the format for an edited copy of a file, or of a track: the same if libsndfile writes it, else 24-bit WAV.

    24 bits hold the samples of codecs that libsndfile does not write, and those of WAV's 4-bit encodings, without loss.

    Raises
    ------
    AudioError
        If the file is not audio.
    """
    path = sources.existing_file(path)
    found = sources.facts(path, track=track)
    form = _writable(found.format, found.subtype, found.rate, found.channels, path.suffix, found.tags)
    return replace(form, track=track)


def _writable(
    kind: str, subtype: str, rate: int, channels: int, suffix: str, tags: tuple[tuple[str, str], ...] = ()
) -> AudioFormat:
    """The given format if libsndfile writes it, else 24-bit WAV."""
    known = subtype in _BITS or subtype in _FLOATS or (kind in ("OGG", "MP3") and subtype in _LOSSY)
    if kind not in _SUFFIXES or not known or not soundfile.check_format(kind, subtype):
        return AudioFormat("WAV", "PCM_24", rate, channels, 24, ".wav", matches_source=False, tags=tags)
    usual = ".opus" if subtype == "OPUS" else _SUFFIXES[kind][0]
    output_suffix = suffix if suffix.lower() in _SUFFIXES[kind] else usual
    return AudioFormat(kind, subtype, rate, channels, _BITS.get(subtype), output_suffix, tags=tags)


def read_frames(path: str | Path, audio_format: AudioFormat) -> Iterator[Frames]:
    """Yield the samples of a file in blocks, unchanged; `audio_format` is its `output_format`.

    Raises
    ------
    AudioError
        If the file is missing, damaged or cut short.
    """
    path = sources.existing_file(path)
    seconds, form = 0.0, (audio_format.rate, audio_format.channels)
    numbers: sources.Numbers = "float64" if audio_format.bits is None else "int32"
    for rate, block in sources.pieces(path, numbers, track=audio_format.track):
        if (rate, block.shape[1]) != form:
            raise AudioError(
                f"{path} changes after {seconds:.1f} s to {rate:,} samples per second in {block.shape[1]} channels.",
                "An edited copy has one rate; make a WAV of it first.",
            )
        seconds += len(block) / rate
        yield block if audio_format.bits is None else block >> (32 - audio_format.bits)


def derived_path(source: str | Path, audio_format: AudioFormat, word: str, folder: str | Path | None = None) -> Path:
    """Return `STEM_WORD.SUFFIX` for a file derived from `source`, in `folder` or beside the source."""
    path = Path(source)
    return (path.parent if folder is None else Path(folder)) / f"{path.stem}_{word}{audio_format.suffix}"


def check_target(target: str | Path, source: str | Path, audio_format: AudioFormat) -> None:
    """Raise KnnError for a target that is the source, or whose suffix is not one of the format to be written."""
    check_output(target, [source])
    names = _SUFFIXES[audio_format.format]
    if Path(target).suffix.lower() not in names:
        cannot = f"since the source's format cannot be written ({Path(source).name})"
        reason = "as the source does" if audio_format.matches_source else cannot
        raise KnnError(
            f"{target} would hold {audio_format.name}, {reason}.", f"Give it the suffix {' or '.join(names)}."
        )


def write_frames(
    path: str | Path, audio_format: AudioFormat, blocks: Iterable[Frames], count: int, *, part: Path | None = None
) -> None:
    """Write `count` samples per channel; the file appears only once it is complete.

    A WAV of more than 4 GB is written as RF64, which is WAV with 64-bit sizes. Exceptions of `blocks` are passed on.
    With `part`, that file is written, and who gave it will move it to `path`.

    Raises
    ------
    KnnError
        If the file cannot be written.
    """
    size = count * audio_format.channels * _BYTES.get(audio_format.subtype, (audio_format.bits or 32) // 8)
    kind = "RF64" if audio_format.format in ("WAV", "WAVEX") and size > MAX_WAV_BYTES else audio_format.format
    written = 0
    with replacing(path) if part is None else nullcontext(part) as file_path:
        name = str(file_path) if os.name == "nt" else os.fsencode(file_path)  # as in `sources.open_native`
        try:
            with soundfile.SoundFile(
                name,
                "w",
                audio_format.rate,
                audio_format.channels,
                audio_format.subtype,
                format=kind,
                compression_level=_LOSSY.get(audio_format.subtype),
            ) as file:
                for key, text in audio_format.tags:
                    with suppress(soundfile.LibsndfileError):  # formats differ in the tags that they hold
                        setattr(file, key, text)
                for block in blocks:
                    file.write(
                        block if audio_format.bits is None else block.astype(np.int32) << (32 - audio_format.bits)
                    )
                    written += len(block)
            whole = not audio_format.exact or soundfile.info(name).frames == count
        except soundfile.LibsndfileError as error:
            raise KnnError(
                f"{path} cannot be written: {error.error_string}", "Name a place with room that can be written to."
            ) from error
        if written != count:
            raise AudioError(f"A file changed while {path} was written from it.", "Try again when it is finished.")
        if not whole:
            raise KnnError(f"{path} could not be written to its end.", "Name a place with room for it.")
