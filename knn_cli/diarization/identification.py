"""Identification: clips of speakers enrolled, speakers of a diarization named, their embeddings written to a store.

An enrolled speaker is the mean of the unit embeddings of its clips, each weighted by its seconds, in the part of the
embedding that tells speakers apart (the view `speaker`). The similarity of two speakers is their cosine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio import reading
from knn_cli.core.errors import AudioError, KnnError, StoreError
from knn_cli.core.output_paths import check_output
from knn_cli.core.values import Diarization, Doubles, EmbeddingSet, Progress
from knn_cli.core.vectors import l2_normalize
from knn_cli.diarization.linking import check_threshold, rename_speakers, speaker_labels, unused_labels
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.files import embed_file
from knn_cli.embedding.stores import embed_rows
from knn_cli.networks import bundle
from knn_cli.store import hdf5, labels
from knn_cli.store.hdf5 import Store
from knn_cli.store.writer import write_store

IDENTIFICATION_THRESHOLD = 0.55  # cosine from which a speaker is an enrolled one: `python -m benchmarks.known_speakers`
MIN_CLIP_COSINE = (
    0.45  # mean cosine of the clips of a name under which they may be of several speakers (docs/research.md)
)
STORE_BLOCK_ROWS = 4096  # read at once
MAX_LISTED = 5  # files or names that an error lists


@dataclass(frozen=True, eq=False)
class EnrolledSpeakers:
    """Enrolled speakers.

    names   : K, distinct
    vectors : (K, D) float64 unit vectors of the speaker view
    clips   : (K,) how many clips (or rows of a store) each was enrolled with
    seconds : (K,) their length together, NaN where unknown
    clip_cosines : (K,) mean cosine of two clips of a speaker, weighted as in its vector; NaN where there is one clip
    view    : the part of an embedding that `vectors` are of
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
        """Names whose clips are so unlike each other that they may be of several speakers: worth a note."""
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

    diarization : with the names; other speakers are SPEAKER_00, ... by first appearance, never an enrolled name
    names       : label of each speaker before -> the enrolled name, for those that match
    speakers    : S labels of `diarization`, by first appearance
    enrolled    : K names of the enrolled speakers
    cosines     : (S, K), NaN in the rows of speakers without an embedding
    threshold   : cosine that a match needs
    """

    diarization: Diarization
    names: dict[str, str]
    speakers: tuple[str, ...]
    enrolled: tuple[str, ...]
    cosines: Doubles
    threshold: float

    def scores(self) -> Iterator[SpeakerScore]:
        """Pairs of a speaker that has an embedding with an enrolled one, the most similar first for each speaker."""
        matched = set(self.names.values())
        for speaker, row in zip(self.speakers, self.cosines, strict=True):
            if np.isnan(row).any():
                continue
            for place in np.argsort(-row, kind="stable").tolist():
                yield SpeakerScore(
                    speaker, self.enrolled[place], float(row[place]), speaker == self.enrolled[place] in matched
                )

    def facts(self, max_cosines: int = MAX_LISTED) -> list[dict[str, Any]]:
        """The speakers as JSON: label, whether it is an enrolled name, the highest cosines."""
        facts: dict[str, dict[str, Any]] = {
            name: {"speaker": name, "known": name in self.names.values(), "cosine": {}} for name in self.speakers
        }
        for score in self.scores():
            most_similar = facts[score.speaker]["cosine"]
            if len(most_similar) < max_cosines or score.matched:
                most_similar[score.enrolled] = round(score.cosine, 4)
        return list(facts.values())


class _EnrollmentSums:
    """Sums over clips: memory grows with the names, not with the clips."""

    def __init__(self, view: slice) -> None:
        self.view = view
        self._of: dict[str, tuple[Doubles, Doubles]] = {}

    def add(self, rows: EmbeddingSet) -> None:
        units = l2_normalize(rows.data[:, self.view].astype(np.float64))
        seconds = rows.end - rows.start
        weights = np.where(seconds > 0, seconds, 1.0)  # of unknown length: one second
        for name in dict.fromkeys(rows.speaker.tolist()):
            own = rows.speaker == name
            weight = weights[own]
            total, counts = self._of.setdefault(name, (np.zeros(units.shape[1]), np.zeros(4)))
            total += weight @ units[own]
            counts += (own.sum(), seconds[own].sum(), weight.sum(), np.square(weight).sum())

    def result(self, source: Path) -> EnrolledSpeakers:
        names = sorted(self._of)
        totals = np.stack([self._of[name][0] for name in names])  # (K, D)
        clips, seconds, weight, squares = np.stack([self._of[name][1] for name in names], axis=1)
        lengths = np.linalg.norm(totals, axis=1)
        if lost := [name for name, length in zip(names, lengths.tolist(), strict=True) if not length > 0]:
            raise KnnError(f"{source} has no usable embedding of {_listed(lost)}.", "Make the embeddings again.")
        # |sum w u|^2 is the sum of w_i w_j cos_ij: less the clips with themselves, over the weights of what is left.
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

    path    : a folder with clips such as `anna.wav`, or with any clips below `anna/`, or both; or a store of either
              kind whose rows have a Speaker
    channel : of the folder's clips
    use_vad : speech only

    Enrollment has to be right, so no clip is skipped silently. Raises KnnError: no clips; clips that cannot be read,
    are too short or hold no speech, all of them listed; rows of a store without a Speaker; a Speaker without any
    speech; a store that is damaged, of another model (both named), or of another rate.
    """
    source, sums = Path(path), _EnrollmentSums(embedder.bundle.view("speaker"))
    if source.is_dir():
        _add_clips(sums, source, embedder, channel, use_vad, progress)
    elif source.suffix.lower() in hdf5.SUFFIXES or hdf5.kind_of(source) is not None:
        _add_rows(sums, source, embedder, use_vad, progress)
    else:
        what = "is no folder of clips and no store" if source.exists() else "does not exist"
        raise KnnError(f"{source} {what}.", "Give a folder with a clip anna.wav, or a folder anna/, for each speaker.")
    return sums.result(source)


def _add_clips(
    sums: _EnrollmentSums, folder: Path, embedder: Embedder, channel: str, use_vad: bool, progress: Progress | None
) -> None:
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
        raise AudioError(messages + more, "Mend these clips or take them out of the folder.")


def _speaker(path: PurePosixPath) -> str:
    """Whose clip it is: by the first folder that it lies in, else by its own name up to `_SPLIT`."""
    first = path.parts[0]
    return labels.recording_name(PurePosixPath(first if len(path.parts) == 1 else f"{first}.folder"))


def _add_rows(sums: _EnrollmentSums, path: Path, embedder: Embedder, use_vad: bool, progress: Progress | None) -> None:
    with Store(path) as opened:
        named = opened.column("speaker")
        if unnamed := int((named == "").sum()):
            message = f"{unnamed} of {len(named)} rows of {path} have no Speaker."
            raise StoreError(message, "Make it with a label rule that has speakers, such as speaker/file.")
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
    """Embeddings of a store of either kind, and how many rows are done."""
    if opened.kind == "audio":
        yield from ((group.embeddings, group.done) for group in embed_rows(opened, embedder, use_vad=use_vad))
        return
    bundle.check_embedder(opened.embedder, embedder.bundle.fingerprint, str(path))
    if opened.dimension != embedder.dimension:
        maker = f"{embedder.bundle.fingerprint} makes {embedder.dimension}"
        raise StoreError(f"{path} holds embeddings of {opened.dimension} values, {maker}.", "Make them again with it.")
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

    A speaker gets at most one name and a name at most one speaker, only at or above the threshold: of all such
    assignments the one with the largest sum of (cosine - threshold), so that a weak match never costs a strong one its
    name. The others are renumbered SPEAKER_00, ... by first appearance, past names that are enrolled. Scores are
    cosines; each enrolled speaker more is one more chance of a false match.

    Raises
    ------
    KnnError
        For a threshold that is no cosine above 0, and for embeddings of another size than the enrolled ones.
    """
    check_threshold(threshold)
    from scipy.optimize import linear_sum_assignment  # half a second to import

    present = speaker_labels(diarization)
    cosines = np.full((len(present), len(enrolled)), np.nan)
    for row, speaker in enumerate(present):
        if (vector := diarization.speaker_embeddings.get(speaker)) is None:
            continue
        own = np.asarray(vector, dtype=np.float64)[enrolled.view]
        if own.shape != enrolled.vectors.shape[1:]:
            both = f"{own.size} values, those of the known speakers {enrolled.vectors.shape[1]}"
            raise KnnError(f"The recording's speaker embeddings have {both}.", "Take one model for both.")
        if (length := float(np.linalg.norm(own))) > 0:
            cosines[row] = enrolled.vectors @ (own / length)
    above = cosines >= threshold  # NaN is not
    gain = np.where(above, np.nan_to_num(cosines) - threshold + 1e-9, 0.0)  # what is just at the threshold counts too
    pairs = zip(*(side.tolist() for side in linear_sum_assignment(gain, maximize=True)), strict=True)
    names = {present[row]: enrolled.names[place] for row, place in pairs if above[row, place]}
    fresh = unused_labels(enrolled.names)
    mapping = {speaker: names.get(speaker) or next(fresh) for speaker in present}
    labels_after = tuple(mapping[speaker] for speaker in present)
    return IdentificationResult(
        rename_speakers(diarization, mapping), names, labels_after, enrolled.names, cosines, threshold
    )


def export_speakers(
    diarizations: Iterable[tuple[str, Diarization]],
    embedder: str,
    path: Path | str,
    *,
    known: Collection[str] = (),
    linked: bool = False,
    force: bool = False,
    sources: Iterable[str | Path] = (),
) -> int:
    """Write the speaker embeddings of recordings into an embedding store; returns the number of rows.

    diarizations : (recording, its diarization)
    embedder     : fingerprint of their embedding model
    known        : names that mean the same speaker in every recording
    across       : all labels do (see `linking.link_speakers`)
    sources      : files that must not be replaced

    One row per recording and speaker: Name is the recording, Speaker the label, `recording/label` where the same label
    means somebody else in another recording, so that `enroll` never enrolls two speakers as one. Start is the beginning
    of the speaker's first turn; End is as much later as seconds of speech made the embedding, because lengths weigh
    rows and calibrate scores, and NaN where that is unknown. Speakers without an embedding are left out. Raises
    StoreError when the store exists and `force` is not set, KnnError when there is no embedding at all.
    """
    check_output(path, sources)
    recordings = list(diarizations)
    bare = linked or len(recordings) < 2
    vectors, names, who, starts, seconds = [], [], [], [], []
    for name, one in recordings:
        for speaker in speaker_labels(one):
            if speaker not in one.speaker_embeddings:
                continue
            vectors.append(np.asarray(one.speaker_embeddings[speaker], dtype=np.float32))
            names.append(name)
            who.append(speaker if bare or speaker in known else f"{name}/{speaker}")
            starts.append(next((turn.start for turn in one.turns if turn.speaker == speaker), np.nan))
            seconds.append(one.clean_speech_seconds.get(speaker, np.nan))
    if not vectors:
        raise KnnError(
            f"There is no speaker embedding to write into {path}.", "Nobody speaks, or too briefly for an embedding."
        )
    if len({vector.shape for vector in vectors}) > 1:
        raise KnnError("The recordings' speaker embeddings have different sizes.", "Diarize all with one model.")
    end = np.asarray(starts) + np.asarray(seconds)
    rows = EmbeddingSet.from_columns(np.stack(vectors), names, speaker=who, start=starts, end=end, embedder=embedder)
    write_store(path, rows, force=force)
    return len(rows)
