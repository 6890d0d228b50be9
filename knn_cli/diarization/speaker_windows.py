"""Speakers and windows after clustering: whose windows are whose by the turns, and one speaker made two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio.segments import FRAME_SECONDS
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization, Doubles, Turn, sort_turns
from knn_cli.core.vectors import l2_normalize
from knn_cli.diarization import corrections, speaker_turns
from knn_cli.diarization.corrections import Delete, Edit, Move, Reassign
from knn_cli.diarization.linking import speaker_labels, unused_labels

if TYPE_CHECKING:
    from knn_cli.diarization.clustering.base import Clusterer
    from knn_cli.diarization.pipeline import WindowEmbeddings

MIN_PIECE_FRAMES = 12  # of a turn that goes to one half of a speaker that is split: a third of a window


def correct(
    diarization: Diarization, edits: Sequence[Edit], windows: WindowEmbeddings | None, clusterer: Clusterer
) -> Diarization:
    """Make edits, with all that the windows of the recording allow: speakers are split, and embeddings follow turns.

    Parameters
    ----------
    diarization : Diarization
    edits : sequence of Edit
    windows : WindowEmbeddings or None
        None where they are not at hand: see `corrections.apply`.
    clusterer : Clusterer
        Splits the embeddings of a speaker.

    Returns
    -------
    Diarization

    Raises
    ------
    KnnError
        For an edit that does not fit, with its number.
    """
    if windows is None:
        return corrections.apply(diarization, edits)

    def split(before: Diarization, speaker: str) -> Diarization:
        return split_speaker(before, windows, speaker, clusterer)

    after = corrections.apply(diarization, edits, split_speaker=split)
    touched: dict[str, None] = {}
    for number, edit in enumerate(edits, start=1):
        if isinstance(edit, (Reassign, Move, Delete)):
            labels = (edit.speaker, edit.to) if isinstance(edit, Reassign) else (edit.speaker,)
            touched |= dict.fromkeys(corrections.label_after(label, edits[number:]) for label in labels)
    return with_embeddings_of_turns(after, windows, touched)


def speaker_rows(diarization: Diarization, windows: WindowEmbeddings, speaker: str) -> NDArray[np.int64]:
    """Short windows whose embeddings are mostly of the speaker's turns, ascending."""
    inside = np.zeros(windows.short_windows.frames + windows.short_windows.probabilities.shape[1], dtype=bool)
    for turn in diarization.turns:
        if turn.speaker == speaker:
            inside[_frames(turn)] = True
    starts = windows.short_windows.starts.tolist()
    rows = [
        row
        for row in np.flatnonzero(windows.seconds).tolist()
        if inside[np.flatnonzero((one := windows.short[row]).embedding_mask) + starts[one.window]].mean() > 0.5
    ]
    return np.array(rows, dtype=np.int64)


def _frames(turn: Turn) -> slice:
    return slice(round(turn.start / FRAME_SECONDS), round(turn.end / FRAME_SECONDS))


def with_embeddings_of_turns(
    diarization: Diarization, windows: WindowEmbeddings, speakers: Iterable[str]
) -> Diarization:
    """The same turns, with the embeddings of these speakers made of the windows in their turns."""
    vectors, seconds = dict(diarization.speaker_embeddings), dict(diarization.clean_speech_seconds)
    for speaker in speakers:
        rows = speaker_rows(diarization, windows, speaker)
        if len(rows):
            vectors[speaker] = speaker_turns.speaker_embedding(windows, rows)
            seconds[speaker] = speaker_turns.clean_seconds(windows, rows)
        else:  # nothing that is left of it was embedded
            vectors.pop(speaker, None)
            seconds.pop(speaker, None)
    return replace(diarization, speaker_embeddings=vectors, clean_speech_seconds=seconds)


def split_speaker(
    diarization: Diarization, windows: WindowEmbeddings, speaker: str, clusterer: Clusterer
) -> Diarization:
    """Make a speaker two, by clustering the embeddings of its windows; turns of others stay as they are.

    Parameters
    ----------
    diarization : Diarization
    windows : WindowEmbeddings
    speaker : str
        The half that speaks longer keeps this label; the other one gets the first SPEAKER_00, ... that is free.
    clusterer : Clusterer

    Returns
    -------
    Diarization

    Raises
    ------
    KnnError
        Where there is too little speech for two speakers.
    """
    rows = speaker_rows(diarization, windows, speaker)
    too_little = KnnError(f"{speaker} has too little speech to be two speakers.", "Reassign single turns.")
    if len(rows) < 2:
        raise too_little
    labels = clusterer(windows.vectors[rows], weights=windows.seconds[rows], num_speakers=2)
    if not labels.any():
        raise too_little
    preference = _preference(windows, rows, labels)
    own = [turn for turn in diarization.turns if turn.speaker == speaker]
    halves = _pieces(own, preference, MIN_PIECE_FRAMES)
    if not all(halves):
        halves = _pieces(own, preference, 1)
    if not all(halves):
        raise too_little
    halves.sort(key=lambda turns: -sum(turn.duration for turn in turns))
    new = next(unused_labels(speaker_labels(diarization)))
    others = [turn for turn in diarization.turns if turn.speaker != speaker]
    turns = sort_turns([*others, *halves[0], *(replace(turn, speaker=new) for turn in halves[1])])
    return with_embeddings_of_turns(replace(diarization, turns=turns), windows, (speaker, new))


def _preference(windows: WindowEmbeddings, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Doubles:
    """(frames,) above 0 where the windows over a frame are more like the first half, as the mean of their cosines."""
    units = l2_normalize(windows.vectors[rows].astype(np.float64))
    centroids = l2_normalize(np.stack([units[labels == half].mean(0) for half in (0, 1)]))
    cosines = units @ (centroids[0] - centroids[1])
    size = windows.short_windows.probabilities.shape[1]
    total, count = np.zeros((2, windows.short_windows.frames + size))
    for row, cosine in zip(rows.tolist(), cosines.tolist(), strict=True):
        one = windows.short[row]
        frames = np.flatnonzero(one.active) + windows.short_windows.starts[one.window]
        total[frames] += cosine
        count[frames] += 1
    covered = np.flatnonzero(count)
    preference: Doubles = np.interp(np.arange(len(count)), covered, total[covered] / count[covered])
    return preference


def _pieces(turns: Sequence[Turn], preference: Doubles, minimum: int) -> list[list[Turn]]:
    """Turns of the two halves: pieces of the turns, of at least so many frames where a turn has that many."""
    halves: list[list[Turn]] = [[], []]
    for turn in turns:
        first = preference[_frames(turn)] >= 0
        if not len(first):  # shorter than a frame
            first = preference[[int(turn.start / FRAME_SECONDS)]] >= 0
        edges = _edges(first, minimum)
        times = [turn.start, *(turn.start + edge * FRAME_SECONDS for edge in edges[1:-1]), turn.end]
        for place, edge in enumerate(edges[:-1]):
            piece = replace(turn, start=times[place], end=times[place + 1])
            halves[0 if first[edge] else 1].append(piece)
    return halves


def _edges(first: NDArray[np.bool_], minimum: int) -> list[int]:
    """Where runs of equal values begin, and the length; runs shorter than `minimum` are turned over, in place."""
    while True:
        edges = [0, *(np.flatnonzero(np.diff(first)) + 1).tolist(), len(first)]
        lengths = np.diff(edges)
        shortest = int(lengths.argmin())
        if len(lengths) == 1 or lengths[shortest] >= minimum:
            return edges
        first[edges[shortest] : edges[shortest + 1]] ^= True
