"""Linking: one label per speaker over many recordings, by the speaker embeddings of their diarizations.

Speakers are clustered by average linkage: the similarity of two groups is the mean cosine of their pairs, weighted by
seconds of speech. This mean is the inner product of the mean vectors of the groups, so that no matrix of speakers x
speakers is held in memory. Groups with speakers of the same recording are never merged, nor are two known speakers.
These constraints and the linkage are reducible (a merge never brings a third group nearer), so that nearest-neighbour
chains give the same result as repeatedly merging the most similar pair (F. Murtagh, "A Survey of Recent Advances in
Hierarchical Clustering Algorithms", The Computer Journal 26(4), 1983), in quadratic time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization, Doubles, Floats
from knn_cli.core.vectors import l2_normalize
from knn_cli.recognition.speaker_decision import UNCALIBRATED, check_threshold

# Cosines that differ by less are equal: far above rounding errors, far below differences between speakers.
COSINE_TOLERANCE = 1e-9


def speaker_labels(diarization: Diarization) -> list[str]:
    """Speakers of a diarization in order of first appearance, those without a turn last."""
    return list(dict.fromkeys([*diarization.speakers, *sorted(diarization.speaker_embeddings)]))


def rename_speakers(diarization: Diarization, names: Mapping[str, str]) -> Diarization:
    """Rename speakers of a diarization.

    Parameters
    ----------
    diarization : Diarization
    names : mapping
        Label -> new label; other speakers keep theirs.

    Returns
    -------
    Diarization

    Raises
    ------
    ValueError
        Where two speakers would have the same label.
    """
    labels = speaker_labels(diarization)
    if len({names.get(label, label) for label in labels}) < len(labels):
        raise ValueError("two speakers of a recording cannot have one name")
    turns = tuple(replace(turn, speaker=names.get(turn.speaker, turn.speaker)) for turn in diarization.turns)

    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(label, label): value for label, value in values.items()}

    return replace(
        diarization,
        turns=turns,
        speaker_embeddings=renamed(diarization.speaker_embeddings),
        clean_speech_seconds=renamed(diarization.clean_speech_seconds),
    )


def unused_labels(taken: Collection[str]) -> Iterator[str]:
    """SPEAKER_00, SPEAKER_01, ..., except names that are taken."""
    number = 0
    while True:
        if (name := f"SPEAKER_{number:02d}") not in taken:
            yield name
        number += 1


def link_speakers(
    diarizations: Sequence[Diarization],
    *,
    known: Collection[str] = (),
    threshold: float = UNCALIBRATED.linking_threshold,
    view: slice = slice(None),
) -> list[Diarization]:
    """Relabel diarizations so that a label means the same speaker in all of them.

    Two speakers of a recording never get the same label. A speaker that has neither a known name nor an embedding (or
    only one of zeros) gets a unique label. The result is deterministic; memory is that of the embeddings.

    Parameters
    ----------
    diarizations : sequence of Diarization
    known : collection of str
        Names of known speakers (see `identification.identify`). They keep their names in every recording, and speakers
        that are linked to them get these names.
    threshold : float
        Minimum mean cosine of two groups of the same speaker, above 0.
    view : slice
        The part of the embeddings that represents speakers.

    Returns
    -------
    list of Diarization
        Labels are known names, and SPEAKER_00, ... by first appearance in the order of the recordings.

    Raises
    ------
    KnnError
        For a threshold that is not a cosine above 0, and for embeddings of different sizes.
    """
    check_threshold(threshold)
    known = frozenset(known)
    owners = [(file, label) for file, diarization in enumerate(diarizations) for label in speaker_labels(diarization)]
    units, embedded = _units([diarizations[file].speaker_embeddings.get(label) for file, label in owners], view)
    weights = np.array(
        [max(float(diarizations[file].clean_speech_seconds.get(label, 1.0)), 1e-3) for file, label in owners]
    )
    named = np.array([label in known for _, label in owners], dtype=bool)
    names = sorted({label for _, label in owners if label in known})
    name_groups = {label: number for number, label in enumerate(names)}
    start = np.arange(len(owners)) + len(names)  # known names are groups from the start
    for row in np.flatnonzero(named):
        start[row] = name_groups[owners[row][1]]
    files = np.array([file for file, _ in owners], dtype=np.int64)
    group = _merged(units, np.where(embedded, weights, 0.0), files, start, len(names), threshold)
    fresh = unused_labels(known)
    labels: dict[int, str] = dict(enumerate(names))
    for number in group.tolist():
        if number not in labels:
            labels[number] = next(fresh)
    mappings: list[dict[str, str]] = [{} for _ in diarizations]
    for (file, label), number in zip(owners, group.tolist(), strict=True):
        mappings[file][label] = labels[number]
    return [rename_speakers(*pair) for pair in zip(diarizations, mappings, strict=True)]


def _units(vectors: Sequence[Floats | None], view: slice) -> tuple[Doubles, NDArray[np.bool_]]:
    """(N, D) unit vectors, zeros where there is no embedding, and which rows have one."""
    shapes = {vector.shape for vector in vectors if vector is not None}
    if len(shapes) > 1:
        raise KnnError("The recordings' speaker embeddings have different sizes.", "Diarize all with one model.")
    size = np.zeros(next(iter(shapes), (0,)))[view].shape
    rows = np.array([np.zeros(size) if vector is None else vector[view] for vector in vectors], dtype=np.float64)
    rows = rows.reshape(len(vectors), *size)  # (N, D) without rows too
    return l2_normalize(rows), np.linalg.norm(rows, axis=1) > 0


def _merged(
    units: Doubles, weights: Doubles, files: NDArray[np.int64], start: NDArray[np.int64], names: int, threshold: float
) -> NDArray[np.int64]:
    """(N,) groups of the rows, starting from the groups `start`; groups below `names` are never merged with each other.

    `units` is (N, D), `weights` (N,) with 0 for rows without an embedding; rows of the same `files` (N,) never share a
    group.
    """
    group: NDArray[np.int64] = start.copy()
    count = names + len(units)
    sums, total = np.zeros((count, units.shape[1])), np.zeros(count)
    np.add.at(sums, group, weights[:, None] * units)
    np.add.at(total, group, weights)
    alive = np.flatnonzero(total > 0)  # groups that may still be merged, in order
    means = sums[alive] / total[alive, None]  # (n, D)
    chain: list[int] = []
    links: list[float] = []  # cosine of each chain element with the one before it
    remaining = np.ones(len(alive), dtype=bool)  # rows of `means` that are still in use

    def excluded(number: int) -> NDArray[np.bool_]:
        """(n,) groups that must not be merged with a group."""
        group_files = np.zeros(files.max() + 1, dtype=bool)
        group_files[files[group == number]] = True
        result = np.zeros(count, dtype=bool)
        result[group[group_files[files]]] = True
        if number < names:
            result[:names] = True
        result[number] = True
        return result[alive]

    while remaining.any():
        if np.count_nonzero(remaining) * 2 < len(alive):
            alive, means, remaining = (
                alive[remaining],
                means[remaining],
                np.ones(np.count_nonzero(remaining), dtype=bool),
            )
        if not chain:
            chain, links = [int(alive[remaining][0])], [-np.inf]
        top = int(np.searchsorted(alive, chain[-1]))
        cosines = np.where(remaining & ~excluded(chain[-1]), means @ means[top], -np.inf)
        best = int(cosines.argmax())
        if cosines[best] > links[-1] + COSINE_TOLERANCE and cosines[best] >= threshold - COSINE_TOLERANCE:
            chain.append(int(alive[best]))
            links.append(float(cosines[best]))
        elif len(chain) > 1:  # the last two are mutual nearest neighbours
            into, gone = sorted(chain[-2:])
            del chain[-2:], links[-2:]
            group[group == gone] = into
            sums[into] += sums[gone]
            total[into] += total[gone]
            means[np.searchsorted(alive, into)] = sums[into] / total[into]
            remaining[np.searchsorted(alive, gone)] = False
        else:  # no group is similar enough, and no later merge will be
            chain, links = [], []
            remaining[top] = False
    return group
