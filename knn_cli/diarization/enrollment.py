"""Enrollment: the embeddings of speakers whose clips a user has.

An enrolled speaker is represented by the mean of the unit embeddings of its clips, weighted by their seconds, in the
speaker-discriminative part of the embedding (the view `speaker`). A few clips of each are kept, on which the threshold
of a match is calibrated (`recognition.speaker_decision`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio import reading
from knn_cli.core.errors import AudioError, KnnError, StoreError
from knn_cli.core.texts import tidy
from knn_cli.core.values import Doubles, EmbeddingSet, Progress
from knn_cli.core.vectors import l2_normalize
from knn_cli.networks import bundle
from knn_cli.recognition.speaker_decision import MIN_CLIP_SECONDS, Clips, read_decision
from knn_cli.store import hdf5, labels
from knn_cli.store.hdf5 import Store

if TYPE_CHECKING:
    from knn_cli.embedding.embedder import Embedder

# Clips of a name with a lower mean cosine may be of several speakers (docs/research.md).
MIN_CLIP_COSINE = 0.45
STORE_BLOCK_ROWS = 4096  # read at once
PART_OVERSIZE = 0.01  # seconds by which half a clip is longer than its half, so that rounding leaves no third
MAX_LISTED = 5  # files or names that an error lists


@dataclass(frozen=True, eq=False)
class EnrolledSpeakers:
    """Enrolled speakers.

    Attributes
    ----------
    names : tuple of K str
        Distinct names.
    vectors : (K, D) float64 array
        Unit vectors of the speaker view.
    clips : (K,) int64 array
        Number of enrollment clips (or rows of a store).
    seconds : (K,) float64 array
        Their total length, NaN where unknown.
    clip_cosines : (K,) float64 array
        Mean cosine of two clips of a speaker, weighted as in its vector; NaN for a single clip.
    view : slice
        The part of an embedding that `vectors` represent.
    compared : Clips
        A few clips of each speaker, which are compared to calibrate the threshold.
    """

    names: tuple[str, ...]
    vectors: Doubles
    clips: NDArray[np.int64]
    seconds: Doubles
    clip_cosines: Doubles
    view: slice = field(default_factory=lambda: slice(None))
    compared: Clips = field(default_factory=Clips)

    def __post_init__(self) -> None:
        rows = {len(column) for column in (self.names, self.vectors, self.clips, self.seconds, self.clip_cosines)}
        if self.vectors.ndim != 2 or rows != {len(set(self.names))}:
            raise ValueError("enrolled speakers have one row per name, and distinct names")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def inconsistent(self) -> list[str]:
        """Names whose clips are so dissimilar that they may be of several speakers."""
        return [
            name
            for name, cosine in zip(self.names, self.clip_cosines.tolist(), strict=True)
            if cosine < MIN_CLIP_COSINE
        ]


class _EnrollmentSums:
    """Sums over clips, so that memory grows with the number of names, not of clips."""

    def __init__(self, view: slice) -> None:
        self.view = view
        self._sums: dict[str, tuple[Doubles, Doubles]] = {}
        self._compared = Clips()

    def add(self, rows: EmbeddingSet, parts: EmbeddingSet | None = None) -> None:
        """Add clips, of which `parts` are compared instead."""
        self._compared.add(rows if parts is None else parts, self.view)
        units = l2_normalize(rows.data[:, self.view].astype(np.float64))
        seconds = rows.end - rows.start
        weights = np.where(seconds > 0, seconds, 1.0)  # clips of unknown length count as one second
        for name in dict.fromkeys(rows.speaker.tolist()):
            selected = rows.speaker == name
            weight = weights[selected]
            total, counts = self._sums.setdefault(name, (np.zeros(units.shape[1]), np.zeros(4)))
            total += weight @ units[selected]
            counts += (selected.sum(), seconds[selected].sum(), weight.sum(), np.square(weight).sum())

    def result(self, source: Path) -> EnrolledSpeakers:
        names = sorted(self._sums)
        totals = np.stack([self._sums[name][0] for name in names])  # (K, D)
        clips, seconds, weight, squares = np.stack([self._sums[name][1] for name in names], axis=1)
        lengths = np.linalg.norm(totals, axis=1)
        if unusable := [name for name, length in zip(names, lengths.tolist(), strict=True) if not length > 0]:
            raise KnnError(f"{source} has no usable embedding of {_listed(unusable)}.", "Embed again.")
        # |sum w u|^2 is the sum of w_i w_j cos_ij; the pairs of a clip with itself are subtracted.
        pairs = np.square(weight) - squares
        several = (clips > 1) & (pairs > 0)
        clip_cosines = np.where(several, (np.square(lengths) - squares) / np.where(several, pairs, 1.0), np.nan)
        return EnrolledSpeakers(
            tuple(names),
            totals / lengths[:, None],
            clips.astype(np.int64),
            seconds,
            clip_cosines,
            self.view,
            self._compared,
        )


def enroll(
    path: Path | str,
    embedder: Embedder,
    *,
    channel: str = "mix",
    use_vad: bool = True,
    progress: Progress | None = None,
) -> EnrolledSpeakers:
    """Enroll the speakers of a folder or a store, in the order of their names.

    Parameters
    ----------
    path : path
        A folder with clips such as `anna.wav`, with clips in folders such as `anna/`, or both; or an audio or embedding
        store whose rows have a Speaker.
    embedder : Embedder
    channel : str
        Channel of the folder's clips.
    use_vad : bool
        Embed speech only.
    progress : callable, optional

    Returns
    -------
    EnrolledSpeakers

    Raises
    ------
    KnnError
        Where there are no clips; for clips that cannot be read, are too short or hold no speech (none is skipped
        silently); for rows without a Speaker and a Speaker without speech; and for a store that is damaged, of another
        model or of another rate.
    """
    source, sums = Path(path), _EnrollmentSums(embedder.bundle.view("speaker"))
    if source.is_dir():
        _add_clips(sums, source, embedder, channel, use_vad, progress)
    elif source.suffix.lower() in hdf5.SUFFIXES or hdf5.kind_of(source) is not None:
        _add_rows(sums, source, embedder, use_vad, progress)
    else:
        problem = "is no folder of clips and no store" if source.exists() else "does not exist"
        raise KnnError(
            f"{source} {problem}.", "Give a folder with a clip anna.wav, or a folder anna/, for each speaker."
        )
    return sums.result(source)


def _add_clips(
    sums: _EnrollmentSums, folder: Path, embedder: Embedder, channel: str, use_vad: bool, progress: Progress | None
) -> None:
    from knn_cli.embedding.files import embed_file

    files = reading.find(folder)
    if not files:
        raise AudioError(f"{folder} holds no audio files.", "Put a clip such as anna.wav there for each speaker.")
    failures: list[AudioError] = []
    below = [PurePosixPath(file.relative_to(folder).as_posix()) for file in files]
    clips_of = Counter(map(_speaker, below))
    calibrates = read_decision(embedder.bundle).can_be_calibrated
    for done, (file, place) in enumerate(zip(files, below, strict=True), start=1):
        label = labels.Labels(str(place), speaker=_speaker(place))
        try:
            clip = embed_file(file, embedder, use_vad=use_vad, channel=channel, label=label)
            parts = None
            half = float(clip.end[0]) / 2
            if calibrates and clips_of[label.speaker] == 1 and half > MIN_CLIP_SECONDS:
                parts = embed_file(
                    file, embedder, segment=half + PART_OVERSIZE, use_vad=use_vad, channel=channel, label=label
                )
            sums.add(clip, parts)
        except AudioError as error:
            failures.append(error)
        if progress is not None:
            progress(done, len(files))
    if failures:
        messages = " ".join(failure.message for failure in failures[:MAX_LISTED])
        more = f" {len(failures) - MAX_LISTED} others fail too." if len(failures) > MAX_LISTED else ""
        raise AudioError(messages + more, "Repair these clips or remove them from the folder.")


def _speaker(path: PurePosixPath) -> str:
    """Speaker of a clip: its first folder, otherwise its file name up to `_SPLIT`."""
    first = path.parts[0]
    if not tidy(first if len(path.parts) > 1 else path.stem):
        raise AudioError(f"The name of {str(first)!r} is blank, so it names no speaker.", "Rename it.")
    return labels.recording_name(PurePosixPath(first if len(path.parts) == 1 else f"{first}.folder"))


def _add_rows(sums: _EnrollmentSums, path: Path, embedder: Embedder, use_vad: bool, progress: Progress | None) -> None:
    with Store(path) as opened:
        named = opened.encoded("speaker")
        if unnamed := int((named.values == "")[named.codes].sum()):
            message = f"{unnamed} of {len(named)} rows of {path} have no Speaker."
            raise StoreError(message, "Create it with a label rule that has speakers, such as speaker/file.")
        if not len(named):
            raise StoreError(f"{path} has no rows.", "Give a store with clips of each speaker.")
        with_speech: set[str] = set()
        for rows, done in _blocks(opened, path, embedder, use_vad):
            sums.add(rows)
            with_speech.update(rows.speaker.tolist())
            if progress is not None:
                progress(done, len(named))
    if silent := sorted({*named.values.tolist()} - with_speech):
        raise AudioError(f"{path} holds no speech of {_listed(silent)}.", "Give clips in which each speaker speaks.")


def _blocks(opened: Store, path: Path, embedder: Embedder, use_vad: bool) -> Iterator[tuple[EmbeddingSet, int]]:
    """Embeddings of an audio or embedding store, with the number of rows done."""
    if opened.kind == "audio":
        from knn_cli.embedding.stores import embed_rows

        yield from ((group.embeddings, group.done) for group in embed_rows(opened, embedder, use_vad=use_vad))
        return
    bundle.check_embedder(opened.embedder, embedder.bundle.fingerprint, str(path))
    if opened.dimension != embedder.dimension:
        model = f"those of {embedder.bundle.fingerprint} have {embedder.dimension}"
        raise StoreError(
            f"{path} holds embeddings of {opened.dimension} values, {model}.", "Embed again with this model."
        )
    done = 0
    for rows in opened.blocks(STORE_BLOCK_ROWS):
        done += len(rows)
        yield rows, done


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} others" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
