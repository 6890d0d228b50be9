"""Known speakers: enrolment clips to voices, voices to names in a diarization, a diarization's voices to a store.

A voice is the mean of the unit embeddings of its clips, each counted by its seconds, in the part of the embedding that
tells speakers apart (the view `speaker`). How alike two voices are is the cosine.
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
from knn_cli.diarization.linking import check_threshold, numbered, renamed, speakers
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.files import embed_file
from knn_cli.embedding.stores import embed_rows
from knn_cli.networks import bundle
from knn_cli.store import hdf5, labels
from knn_cli.store.hdf5 import Store
from knn_cli.store.writer import write_store

THRESHOLD = 0.55  # cosine from which on a speaker is a known voice: `python -m benchmarks.known_speakers`
DOUBT = 0.45  # clips of one name that are less alike than this on average may be of several voices (docs/research.md)
ROWS = 4096  # of a store at once
SHOWN = 5  # files or names that an error lists


@dataclass(frozen=True, eq=False)
class Voices:
    """Known speakers.

    names   : K, distinct
    vectors : (K, D) float64 unit vectors of the speaker view
    clips   : (K,) how many clips (or rows of a store) each was enrolled with
    seconds : (K,) their length together, NaN where unknown
    alike   : (K,) mean cosine of two clips of the voice, weighted as they are in it; NaN where there is one clip
    view    : the part of an embedding that `vectors` are of
    """

    names: tuple[str, ...]
    vectors: Doubles
    clips: NDArray[np.int64]
    seconds: Doubles
    alike: Doubles
    view: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        rows = {len(column) for column in (self.names, self.vectors, self.clips, self.seconds, self.alike)}
        if self.vectors.ndim != 2 or rows != {len(set(self.names))}:
            raise ValueError("voices have one row a name, and every name once")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def doubtful(self) -> list[str]:
        """Names whose clips are so little alike that they may be of several voices: worth a note."""
        return [name for name, cosine in zip(self.names, self.alike.tolist(), strict=True) if cosine < DOUBT]


@dataclass(frozen=True)
class Score:
    """How alike a speaker of a recording and a known voice are."""

    speaker: str
    voice: str
    cosine: float
    matched: bool


@dataclass(frozen=True, eq=False)
class Recognised:
    """A diarization whose speakers have the names of the voices that they match.

    diarization : with the names; other speakers are SPEAKER_00, ... by first appearance, never called like a voice
    names       : name of each speaker before -> the voice's, for those that match
    speakers    : S labels of `diarization`, by first appearance
    voices      : K names of the known voices
    cosines     : (S, K), NaN in the rows of speakers without an embedding
    threshold   : what a match needs
    """

    diarization: Diarization
    names: dict[str, str]
    speakers: tuple[str, ...]
    voices: tuple[str, ...]
    cosines: Doubles
    threshold: float

    def scores(self) -> Iterator[Score]:
        """Every pair of a speaker that has an embedding with a voice, the likest voice of a speaker first."""
        matched = set(self.names.values())
        for speaker, row in zip(self.speakers, self.cosines, strict=True):
            if np.isnan(row).any():
                continue
            for place in np.argsort(-row, kind="stable").tolist():
                yield Score(speaker, self.voices[place], float(row[place]), speaker == self.voices[place] in matched)

    def facts(self, most: int = SHOWN) -> list[dict[str, Any]]:
        """What JSON says of the speakers: label, whether it is a known voice, cosines of the likest voices."""
        told: dict[str, dict[str, Any]] = {
            name: {"speaker": name, "known": name in self.names.values(), "cosine": {}} for name in self.speakers
        }
        for score in self.scores():
            likest = told[score.speaker]["cosine"]
            if len(likest) < most or score.matched:
                likest[score.voice] = round(score.cosine, 4)
        return list(told.values())


class _Sums:
    """Voices as they grow clip by clip: memory is that of the names, not of the clips."""

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

    def voices(self, source: Path) -> Voices:
        names = sorted(self._of)
        totals = np.stack([self._of[name][0] for name in names])  # (K, D)
        clips, seconds, weight, squares = np.stack([self._of[name][1] for name in names], axis=1)
        lengths = np.linalg.norm(totals, axis=1)
        if lost := [name for name, length in zip(names, lengths.tolist(), strict=True) if not length > 0]:
            raise KnnError(f"{source} has no usable embedding of {_listed(lost)}.", "Make the embeddings again.")
        # |sum w u|^2 is the sum of w_i w_j cos_ij: less the clips with themselves, over the weights of what is left.
        pairs = np.square(weight) - squares
        several = (clips > 1) & (pairs > 0)
        alike = np.where(several, (np.square(lengths) - squares) / np.where(several, pairs, 1.0), np.nan)
        return Voices(tuple(names), totals / lengths[:, None], clips.astype(np.int64), seconds, alike, self.view)


def enrol(
    path: Path | str,
    embedder: Embedder,
    *,
    channel: str = "mix",
    use_vad: bool = True,
    progress: Progress | None = None,
) -> Voices:
    """The known speakers of a folder or a store, in the order of their names.

    path    : a folder with clips such as `anna.wav`, or with any clips below `anna/`, or both; or a store of either
              kind whose rows have a Speaker
    channel : of the folder's clips
    use_vad : speech only

    Enrolment has to be right, so no clip is left out in silence. Raises KnnError: no clips; clips that cannot be read,
    are too short or hold no speech, all of them told; rows of a store without a Speaker; a Speaker without any speech;
    a store that is damaged, of another model (both named), or of another rate.
    """
    source, sums = Path(path), _Sums(embedder.bundle.view("speaker"))
    if source.is_dir():
        _add_clips(sums, source, embedder, channel, use_vad, progress)
    elif source.suffix.lower() in hdf5.SUFFIXES or hdf5.kind_of(source) is not None:
        _add_rows(sums, source, embedder, use_vad, progress)
    else:
        what = "is no folder of voices and no store" if source.exists() else "does not exist"
        raise KnnError(f"{source} {what}.", "Give a folder with a clip anna.wav, or a folder anna/, for each speaker.")
    return sums.voices(source)


def _add_clips(
    sums: _Sums, folder: Path, embedder: Embedder, channel: str, use_vad: bool, progress: Progress | None
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
        told = " ".join(one.message for one in failures[:SHOWN])
        more = f" {len(failures) - SHOWN} others fail too." if len(failures) > SHOWN else ""
        raise AudioError(told + more, "Mend these clips or take them out of the folder.")


def _speaker(path: PurePosixPath) -> str:
    """Whose clip it is: by the first folder that it lies in, else by its own name up to `_SPLIT`."""
    first = path.parts[0]
    return labels.recording_name(PurePosixPath(first if len(path.parts) == 1 else f"{first}.folder"))


def _add_rows(sums: _Sums, path: Path, embedder: Embedder, use_vad: bool, progress: Progress | None) -> None:
    with Store(path) as opened:
        named = opened.column("speaker")
        if without := int((named == "").sum()):
            message = f"{without} of {len(named)} rows of {path} have no Speaker."
            raise StoreError(message, "Make it with a label rule that has speakers, such as --labels speaker/file.")
        if not len(named):
            raise StoreError(f"{path} has no rows.", "Give a store with clips of each speaker.")
        heard: set[str] = set()
        for rows, done in _blocks(opened, path, embedder, use_vad):
            sums.add(rows)
            heard.update(rows.speaker.tolist())
            if progress is not None:
                progress(done, len(named))
    if silent := sorted(set(named.tolist()) - heard):
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
    for rows in opened.blocks(ROWS):
        done += len(rows)
        yield rows, done


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} others" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def recognise(diarization: Diarization, voices: Voices, *, threshold: float = THRESHOLD) -> Recognised:
    """Name the speakers that are known.

    A speaker gets at most one voice and a voice at most one speaker, those at or above the threshold only: of all such
    assignments the one with the largest sum of (cosine - threshold), so that a weak match never costs a strong one its
    voice. The others are renumbered SPEAKER_00, ... by first appearance, past names that a voice has. Scores are
    cosines; each voice more is one more chance of a false match.

    Raises KnnError for a threshold that is none, and for embeddings of another size than the voices'.
    """
    check_threshold(threshold)
    from scipy.optimize import linear_sum_assignment  # half a second to import

    present = speakers(diarization)
    cosines = np.full((len(present), len(voices)), np.nan)
    for row, speaker in enumerate(present):
        if (vector := diarization.speaker_embeddings.get(speaker)) is None:
            continue
        own = np.asarray(vector, dtype=np.float64)[voices.view]
        if own.shape != voices.vectors.shape[1:]:
            both = f"{own.size} values, those of the known speakers {voices.vectors.shape[1]}"
            raise KnnError(f"The recording's voices have {both}.", "Take one model for both.")
        if (length := float(np.linalg.norm(own))) > 0:
            cosines[row] = voices.vectors @ (own / length)
    above = cosines >= threshold  # NaN is not
    gain = np.where(above, np.nan_to_num(cosines) - threshold + 1e-9, 0.0)  # what is just at the threshold counts too
    pairs = zip(*(side.tolist() for side in linear_sum_assignment(gain, maximize=True)), strict=True)
    names = {present[row]: voices.names[place] for row, place in pairs if above[row, place]}
    fresh = numbered(voices.names)
    mapping = {speaker: names.get(speaker) or next(fresh) for speaker in present}
    told = tuple(mapping[speaker] for speaker in present)
    return Recognised(renamed(diarization, mapping), names, told, voices.names, cosines, threshold)


def export(
    diarizations: Iterable[tuple[str, Diarization]],
    embedder: str,
    path: Path | str,
    *,
    known: Collection[str] = (),
    across: bool = False,
    force: bool = False,
    sources: Iterable[str | Path] = (),
) -> int:
    """Write the voices of recordings into an embedding store; how many rows it has.

    diarizations : (recording, its diarization)
    embedder     : fingerprint of the model of the voices
    known        : names that mean the same speaker in every recording
    across       : all labels do (see `across.link`)
    sources      : files that must not be replaced

    One row a recording and speaker: Name is the recording, Speaker the label, `recording/label` where the same label
    means somebody else in another recording, so that `enrol` never makes one voice of two. Start is the beginning of
    the speaker's first turn; End is as much later as seconds of speech made the embedding, because lengths weigh rows
    and calibrate scores, and NaN where that is unknown. Speakers without an embedding are left out. Raises StoreError
    when the store exists and `force` is not set, KnnError when there is no voice at all.
    """
    check_output(path, sources)
    recordings = list(diarizations)
    bare = across or len(recordings) < 2
    vectors, names, who, starts, seconds = [], [], [], [], []
    for name, one in recordings:
        for speaker in speakers(one):
            if speaker not in one.speaker_embeddings:
                continue
            vectors.append(np.asarray(one.speaker_embeddings[speaker], dtype=np.float32))
            names.append(name)
            who.append(speaker if bare or speaker in known else f"{name}/{speaker}")
            starts.append(next((turn.start for turn in one.turns if turn.speaker == speaker), np.nan))
            seconds.append(one.clean_speech_seconds.get(speaker, np.nan))
    if not vectors:
        raise KnnError(f"There is no voice to write into {path}.", "Nobody speaks, or too briefly for an embedding.")
    if len({vector.shape for vector in vectors}) > 1:
        raise KnnError("The recordings' voices are embeddings of different sizes.", "Diarize all with one model.")
    end = np.asarray(starts) + np.asarray(seconds)
    rows = EmbeddingSet.from_columns(np.stack(vectors), names, speaker=who, start=starts, end=end, embedder=embedder)
    write_store(path, rows, force=force)
    return len(rows)
