"""Identification: enrollment of speakers, and the names of enrolled speakers in a diarization.

An enrolled speaker is represented by the mean of the unit embeddings of its clips, weighted by their seconds, in the
speaker-discriminative part of the embedding (the view `speaker`). The similarity of two speakers is their cosine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio import reading
from knn_cli.core.errors import AudioError, KnnError, StoreError
from knn_cli.core.values import Diarization, Doubles, EmbeddingSet, Progress
from knn_cli.core.vectors import l2_normalize
from knn_cli.diarization.linking import check_threshold, rename_speakers, speaker_labels, unused_labels
from knn_cli.networks import bundle
from knn_cli.store import hdf5, labels
from knn_cli.store.hdf5 import Store

if TYPE_CHECKING:
    from knn_cli.embedding.embedder import Embedder

IDENTIFICATION_THRESHOLD = 0.55  # minimum cosine of a match: `python -m benchmarks.known_speakers`
# Clips of a name with a lower mean cosine may be of several speakers (docs/research.md).
MIN_CLIP_COSINE = 0.45
STORE_BLOCK_ROWS = 4096  # read at once
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
    """

    names: tuple[str, ...]
    vectors: Doubles
    clips: NDArray[np.int64]
    seconds: Doubles
    clip_cosines: Doubles
    view: slice = field(default_factory=lambda: slice(None))

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


@dataclass(frozen=True)
class SpeakerScore:
    """Cosine of a speaker of a recording with an enrolled speaker."""

    speaker: str
    enrolled: str
    cosine: float
    matched: bool


@dataclass(frozen=True, eq=False)
class IdentificationResult:
    """A diarization whose speakers have the names of the enrolled speakers that they match.

    Attributes
    ----------
    diarization : Diarization
        With the names; other speakers are SPEAKER_00, ... by first appearance, never an enrolled name.
    names : dict
        Original label -> enrolled name, for the speakers that match.
    speakers : tuple of S str
        Labels of `diarization`, by first appearance.
    enrolled : tuple of K str
        Names of the enrolled speakers.
    cosines : (S, K) float64 array
        NaN in the rows of speakers without an embedding.
    threshold : float
        Minimum cosine of a match.
    """

    diarization: Diarization
    names: dict[str, str]
    speakers: tuple[str, ...]
    enrolled: tuple[str, ...]
    cosines: Doubles
    threshold: float

    def scores(self) -> Iterator[SpeakerScore]:
        """Scores of each speaker with an embedding against the enrolled speakers, in descending order."""
        matched = set(self.names.values())
        for speaker, row in zip(self.speakers, self.cosines, strict=True):
            if np.isnan(row).any():
                continue
            for place in np.argsort(-row, kind="stable").tolist():
                yield SpeakerScore(
                    speaker, self.enrolled[place], float(row[place]), speaker == self.enrolled[place] in matched
                )

    def facts(self, max_cosines: int = MAX_LISTED) -> list[dict[str, Any]]:
        """The speakers as JSON: label, whether it is an enrolled name, and the highest cosines."""
        facts: dict[str, dict[str, Any]] = {
            name: {"speaker": name, "known": name in self.names.values(), "cosine": {}} for name in self.speakers
        }
        for score in self.scores():
            most_similar = facts[score.speaker]["cosine"]
            if len(most_similar) < max_cosines or score.matched:
                most_similar[score.enrolled] = round(score.cosine, 4)
        return list(facts.values())


class _EnrollmentSums:
    """Sums over clips, so that memory grows with the number of names, not of clips."""

    def __init__(self, view: slice) -> None:
        self.view = view
        self._sums: dict[str, tuple[Doubles, Doubles]] = {}

    def add(self, rows: EmbeddingSet) -> None:
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
            tuple(names), totals / lengths[:, None], clips.astype(np.int64), seconds, clip_cosines, self.view
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
    for done, file in enumerate(files, start=1):
        speaker = _speaker(PurePosixPath(file.relative_to(folder).as_posix()))
        label = labels.Labels(labels.recording_name(file), speaker=speaker)
        try:
            sums.add(embed_file(file, embedder, use_vad=use_vad, channel=channel, label=label))
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
    return labels.recording_name(PurePosixPath(first if len(path.parts) == 1 else f"{first}.folder"))


def _add_rows(sums: _EnrollmentSums, path: Path, embedder: Embedder, use_vad: bool, progress: Progress | None) -> None:
    with Store(path) as opened:
        named = opened.column("speaker")
        if unnamed := int((named == "").sum()):
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
    if silent := sorted(set(named.tolist()) - with_speech):
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


def identify(
    diarization: Diarization, enrolled: EnrolledSpeakers, *, threshold: float = IDENTIFICATION_THRESHOLD
) -> IdentificationResult:
    """Name the enrolled speakers in a diarization.

    A speaker gets at most one name and a name at most one speaker, only at or above the threshold. Of all such
    assignments, the one with the largest sum of (cosine - threshold) is taken, so that a weak match never replaces a
    strong one. Other speakers are renumbered SPEAKER_00, ... by first appearance, skipping enrolled names. The
    probability of a false match grows with the number of enrolled speakers.

    Parameters
    ----------
    diarization : Diarization
    enrolled : EnrolledSpeakers
    threshold : float
        Minimum cosine of a match, above 0.

    Returns
    -------
    IdentificationResult

    Raises
    ------
    KnnError
        For a threshold that is not a cosine above 0, and for embeddings of another size than the enrolled ones.
    """
    check_threshold(threshold)
    from scipy.optimize import linear_sum_assignment  # half a second to import

    present = speaker_labels(diarization)
    cosines = np.full((len(present), len(enrolled)), np.nan)
    for row, speaker in enumerate(present):
        if (vector := diarization.speaker_embeddings.get(speaker)) is None:
            continue
        embedding = np.asarray(vector, dtype=np.float64)[enrolled.view]
        if embedding.shape != enrolled.vectors.shape[1:]:
            both = f"{embedding.size} values, those of the known speakers {enrolled.vectors.shape[1]}"
            raise KnnError(f"The recording's speaker embeddings have {both}.", "Take one model for both.")
        if (length := float(np.linalg.norm(embedding))) > 0:
            cosines[row] = enrolled.vectors @ (embedding / length)
    above = cosines >= threshold  # False for NaN
    gain = np.where(above, np.nan_to_num(cosines) - threshold + 1e-9, 0.0)  # a cosine equal to the threshold matches
    pairs = zip(*(side.tolist() for side in linear_sum_assignment(gain, maximize=True)), strict=True)
    names = {present[row]: enrolled.names[place] for row, place in pairs if above[row, place]}
    fresh = unused_labels(enrolled.names)
    mapping = {speaker: names.get(speaker) or next(fresh) for speaker in present}
    labels_after = tuple(mapping[speaker] for speaker in present)
    return IdentificationResult(
        rename_speakers(diarization, mapping), names, labels_after, enrolled.names, cosines, threshold
    )
