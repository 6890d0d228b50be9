"""Sound as it lies in a file, sample for sample: read exactly, changed elsewhere, written in the same form.

`audio` hears (float32, mono, one rate); this room keeps what archives keep: rate, channels, bit depth, the file's
format and its texts. Both stream. libsndfile gives neither BWF's own fields nor a WAV's channel mask; those are not
kept.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from knn_cli.audio import reading
from knn_cli.core.atomic import replacing
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.output_paths import check_output

Frames = NDArray[Any]  # (n, channels), int32 in units of the last bit or float64 with 1.0 as full scale

BLOCK_FRAMES = 1 << 17
LARGEST_WAV = 2**32 - 2**16  # bytes of sound; a WAV counts them in 32 bits, RF64 in 64

# Bits of the subtypes that libsndfile writes as it reads them. It reads A-law and mu-law as their 16-bit values;
# what it writes as 20-bit ALAC it does not read back.
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
_BYTES = {"DOUBLE": 8, "ULAW": 1, "ALAW": 1}  # of a sample where they are others than its bits, 4 for floats
_FLOATS = frozenset({"FLOAT", "DOUBLE"})
# Coded anew when written, at these compression levels of libsndfile: about 100 kbit/s a channel, 50 to 70 at 16 kHz.
_LOSSY = {"VORBIS": 0.2, "OPUS": 0.7, "MPEG_LAYER_III": 0.1}
# What a format's files are called, the usual name first.
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
class Form:
    """How a file's samples are kept, and how they are written again.

    format, subtype : libsndfile's names of what is written
    bits            : of a sample where they are whole numbers, None where they are floats
    suffix          : of a file in this form
    native          : whether libsndfile reads the source; else ffmpeg does
    kept            : whether it is the source's own form
    texts           : title, artist, date and their kin, with their values
    """

    format: str
    subtype: str
    rate: int
    channels: int
    bits: int | None
    suffix: str
    native: bool = True
    kept: bool = True
    texts: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.format} {self.subtype}"

    @property
    def full_scale(self) -> float:
        """What the largest sample counts: 1.0 of floats."""
        return 1.0 if self.bits is None else float(1 << (self.bits - 1))

    @property
    def exact(self) -> bool:
        """Whether what is written is read back sample for sample."""
        return self.subtype not in _LOSSY


def form(path: str | Path) -> Form:
    """The form in which sound of this file is written again: its own where libsndfile writes that, else 24-bit WAV.

    24 bits hold what ffmpeg decodes, lossless or not, and the 4-bit codings of WAV, without loss.
    Raises AudioError for what is not audio.
    """
    path = reading.existing_file(path)
    try:
        with reading.open_native(path) as file:
            texts = tuple((name, text) for name, text in file.copy_metadata().items() if text and name != "software")
            return _form(file.format, file.subtype, file.samplerate, file.channels, path.suffix, texts)
    except soundfile.LibsndfileError:
        pieces = reading.decoded_by_ffmpeg(path) if shutil.which("ffmpeg") else iter(())
        with closing(pieces):  # type: ignore[type-var]
            rate, frames = next(pieces, (0, np.zeros((0, 0), dtype=np.float32)))
        if not len(frames):
            raise reading.unreadable(path) from None
        return Form("WAV", "PCM_24", rate, frames.shape[1], 24, ".wav", native=False, kept=False)


def _form(
    kind: str, subtype: str, rate: int, channels: int, suffix: str, texts: tuple[tuple[str, str], ...] = ()
) -> Form:
    known = subtype in _BITS or subtype in _FLOATS or (kind in ("OGG", "MP3") and subtype in _LOSSY)
    if kind not in _SUFFIXES or not known or not soundfile.check_format(kind, subtype):
        return Form("WAV", "PCM_24", rate, channels, 24, ".wav", kept=False, texts=texts)
    usual = ".opus" if subtype == "OPUS" else _SUFFIXES[kind][0]
    own = suffix if suffix.lower() in _SUFFIXES[kind] else usual
    return Form(kind, subtype, rate, channels, _BITS.get(subtype), own, texts=texts)


def frames(path: str | Path, form: Form) -> Iterator[Frames]:
    """All samples of the file that `form` was taken of, in blocks: exactly as it holds them.

    Raises AudioError for a file that is missing, damaged or cut short.
    """
    path = reading.existing_file(path)
    if not form.native:
        top = 2**23
        for _, piece in reading.decoded_by_ffmpeg(path):
            yield np.clip(np.rint(piece.astype(np.float64) * top), -top, top - 1).astype(np.int32)
        return
    try:
        file = reading.open_native(path)
    except soundfile.LibsndfileError as error:
        raise reading.unreadable(path) from error
    with file:
        promised, got = file.frames, 0
        kind = "float64" if form.bits is None else "int32"
        try:
            while len(block := file.read(BLOCK_FRAMES, dtype=kind, always_2d=True)):
                got += len(block)
                yield block if form.bits is None else block >> (32 - form.bits)
        except soundfile.LibsndfileError as error:
            seconds = got / file.samplerate
            raise AudioError(f"{path} is damaged after {seconds:.1f} s.", "Copy or download it again.") from error
        reading.check_length(path, file, promised, got)


def beside(source: str | Path, form: Form, word: str, folder: str | Path | None = None) -> Path:
    """A name for what was made of `source`: its stem, `_word`, the form's suffix; in `folder`, else beside it."""
    path = Path(source)
    return (path.parent if folder is None else Path(folder)) / f"{path.stem}_{word}{form.suffix}"


def check_target(target: str | Path, source: str | Path, form: Form) -> None:
    """KnnError for a name that is the source's, or that promises another form than the file will have."""
    check_output(target, [source])
    names = _SUFFIXES[form.format]
    if Path(target).suffix.lower() not in names:
        kept = "as the source does" if form.kept else f"since the source's form cannot be written ({Path(source).name})"
        raise KnnError(f"{target} would hold {form.name}, {kept}.", f"Give it the suffix {' or '.join(names)}.")


def write(path: str | Path, form: Form, blocks: Iterable[Frames], count: int) -> None:
    """Write `count` samples a channel in this form, into a file that is whole or not there.

    A WAV of more than 4 GB is written as RF64, which is a WAV with longer counters.
    Raises KnnError for what the file system refuses, and whatever `blocks` raises.
    """
    size = count * form.channels * _BYTES.get(form.subtype, (form.bits or 32) // 8)
    kind = "RF64" if form.format in ("WAV", "WAVEX") and size > LARGEST_WAV else form.format
    done = 0
    with replacing(path) as part:
        name = str(part) if os.name == "nt" else os.fsencode(part)  # as in `audio`: a name need not be text
        try:
            with soundfile.SoundFile(
                name,
                "w",
                form.rate,
                form.channels,
                form.subtype,
                format=kind,
                compression_level=_LOSSY.get(form.subtype),
            ) as file:
                for key, text in form.texts:
                    with suppress(soundfile.LibsndfileError):  # formats differ in the texts that they hold
                        setattr(file, key, text)
                for block in blocks:
                    file.write(block if form.bits is None else block.astype(np.int32) << (32 - form.bits))
                    done += len(block)
            whole = not form.exact or soundfile.info(name).frames == count
        except soundfile.LibsndfileError as error:
            raise KnnError(
                f"{path} cannot be written: {error.error_string}", "Name a place with room that can be written to."
            ) from error
        if done != count:
            raise AudioError(f"A file changed while {path} was made of it.", "Try again when it is finished.")
        if not whole:
            raise KnnError(f"{path} could not be written to its end.", "Name a place with room for it.")
