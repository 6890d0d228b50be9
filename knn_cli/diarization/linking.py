"""Linking: one label per speaker over many recordings, by the embeddings of their diarizations' speakers.

Agglomerative clustering by average linkage: the similarity of two groups is the mean cosine of their pairs, each
speaker counted by its seconds of speech. Because that mean is the inner product of the groups' mean vectors, nothing of
the size speakers x speakers is ever held. Groups with speakers of one recording are never merged, nor are two
known speakers; both bans and the linkage are reducible (a merge never brings a third group nearer), so that chains of
nearest neighbours give what merging the most similar pair again and again would give (F. Murtagh, "A Survey of Recent
Advances in Hierarchical Clustering Algorithms", The Computer Journal 26(4), 1983), in quadratic time.
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

LINKING_THRESHOLD = 0.625  # mean cosine from which two groups are one speaker: `python -m benchmarks.known_speakers`
COSINE_TOLERANCE = (
    1e-9  # cosines that differ by less are equal: far above rounding, far below any difference of speakers
)


def check_threshold(threshold: float) -> None:
    """Raise KnnError for a threshold that is no cosine above 0, up to 1."""
    if not 0 < threshold <= 1:
        raise KnnError(
            f"The threshold {threshold:g} is no cosine of two similar speakers.", "Take one above 0, up to 1."
        )


def speaker_labels(diarization: Diarization) -> list[str]:
    """Its speakers in order of first appearance, those without a turn last."""
    return list(dict.fromkeys([*diarization.speakers, *sorted(diarization.speaker_embeddings)]))


def rename_speakers(diarization: Diarization, names: Mapping[str, str]) -> Diarization:
    """The same diarization with other names for some of its speakers. ValueError when two would share one."""
    labels = speaker_labels(diarization)
    if len({names.get(label, label) for label in labels}) < len(labels):
        raise ValueError("two speakers of a recording cannot have one name")
    turns = tuple(replace(turn, speaker=names.get(turn.speaker, turn.speaker)) for turn in diarization.turns)

    def moved(values: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(label, label): value for label, value in values.items()}

    return replace(
        diarization,
        turns=turns,
        speaker_embeddings=moved(diarization.speaker_embeddings),
        clean_speech_seconds=moved(diarization.clean_speech_seconds),
    )


def unused_labels(taken: Collection[str]) -> Iterator[str]:
    """SPEAKER_00, SPEAKER_01, ... but for names that are taken."""
    number = 0
    while True:
        if (name := f"SPEAKER_{number:02d}") not in taken:
            yield name
        number += 1


def link_speakers(
    diarizations: Sequence[Diarization],
    *,
    known: Collection[str] = (),
    threshold: float = LINKING_THRESHOLD,
    view: slice = slice(None),
) -> list[Diarization]:
    """Label diarizations so that one label is one speaker in all of them.

    known     : names of known speakers (see `identification.identify`): who has one keeps it, in every recording, and
                speakers without a name that are linked to it take it
    threshold : mean cosine from which on two groups of speakers are one speaker, above 0
    view      : the part of the embeddings that tells speakers apart

    Labels are known names, and SPEAKER_00, ... by first appearance in the order of the recordings. Two speakers of one
    recording never get the same label. A speaker without an embedding (or with one of zeros) that has no known name
    gets a label of its own. Deterministic; memory is that of the embeddings. Raises KnnError for a threshold that is
    no cosine above 0, and for embeddings of different sizes.
    """
    check_threshold(threshold)
    known = frozenset(known)
    owners = [(file, label) for file, one in enumerate(diarizations) for label in speaker_labels(one)]
    units, embedded = _units([diarizations[file].speaker_embeddings.get(label) for file, label in owners], view)
    weights = np.array(
        [max(float(diarizations[file].clean_speech_seconds.get(label, 1.0)), 1e-3) for file, label in owners]
    )
    named = np.array([label in known for _, label in owners], dtype=bool)
    names = sorted({label for _, label in owners if label in known})
    place = {label: number for number, label in enumerate(names)}
    start = np.arange(len(owners)) + len(names)  # known names are groups from the start
    for row in np.flatnonzero(named):
        start[row] = place[owners[row][1]]
    files = np.array([file for file, _ in owners], dtype=np.int64)
    group = _merged(units, np.where(embedded, weights, 0.0), files, start, len(names), threshold)
    fresh = unused_labels(known)
    labels: dict[int, str] = dict(enumerate(names))
    for one in group.tolist():
        if one not in labels:
            labels[one] = next(fresh)
    mappings: list[dict[str, str]] = [{} for _ in diarizations]
    for (file, label), one in zip(owners, group.tolist(), strict=True):
        mappings[file][label] = labels[one]
    return [rename_speakers(one, mapping) for one, mapping in zip(diarizations, mappings, strict=True)]


def _units(vectors: Sequence[Floats | None], view: slice) -> tuple[Doubles, NDArray[np.bool_]]:
    """(N, D) unit vectors, zeros where there is none, and which rows have one."""
    shapes = {vector.shape for vector in vectors if vector is not None}
    if len(shapes) > 1:
        raise KnnError("The recordings' speaker embeddings have different sizes.", "Diarize all with one model.")
    size = np.zeros(next(iter(shapes), (0,)))[view].shape
    rows = np.array([np.zeros(size) if one is None else one[view] for one in vectors], dtype=np.float64)
    rows = rows.reshape(len(vectors), *size)  # (N, D), of no rows too
    return l2_normalize(rows), np.linalg.norm(rows, axis=1) > 0


def _merged(
    units: Doubles, weights: Doubles, files: NDArray[np.int64], start: NDArray[np.int64], names: int, threshold: float
) -> NDArray[np.int64]:
    """(N,) groups of the rows, from those they `start` in; groups below `names` are never merged with each other.

    units   : (N, D); weights : (N,), 0 where a row says nothing; files : (N,) recordings that must not share a group
    """
    group: NDArray[np.int64] = start.copy()
    count = names + len(units)
    sums, total = np.zeros((count, units.shape[1])), np.zeros(count)
    np.add.at(sums, group, weights[:, None] * units)
    np.add.at(total, group, weights)
    alive = np.flatnonzero(total > 0)  # groups that may still merge, in order
    means = sums[alive] / total[alive, None]  # (n, D) of those
    chain: list[int] = []
    links: list[float] = []  # cosine of each chain element with the one before it
    spare = np.ones(len(alive), dtype=bool)  # rows of `means` that still count

    def ban(one: int) -> NDArray[np.bool_]:
        """(n,) groups that must not join a group."""
        own = np.zeros(files.max() + 1, dtype=bool)
        own[files[group == one]] = True
        banned = np.zeros(count, dtype=bool)
        banned[group[own[files]]] = True
        if one < names:
            banned[:names] = True
        banned[one] = True
        return banned[alive]

    while spare.any():
        if np.count_nonzero(spare) * 2 < len(alive):
            alive, means, spare = alive[spare], means[spare], np.ones(np.count_nonzero(spare), dtype=bool)
        if not chain:
            chain, links = [int(alive[spare][0])], [-np.inf]
        top = int(np.searchsorted(alive, chain[-1]))
        cosines = np.where(spare & ~ban(chain[-1]), means @ means[top], -np.inf)
        best = int(cosines.argmax())
        if cosines[best] > links[-1] + COSINE_TOLERANCE and cosines[best] >= threshold - COSINE_TOLERANCE:
            chain.append(int(alive[best]))
            links.append(float(cosines[best]))
        elif len(chain) > 1:  # the two are each other's nearest
            into, gone = sorted(chain[-2:])
            del chain[-2:], links[-2:]
            group[group == gone] = into
            sums[into] += sums[gone]
            total[into] += total[gone]
            means[np.searchsorted(alive, into)] = sums[into] / total[into]
            spare[np.searchsorted(alive, gone)] = False
        else:  # nothing is near enough, and no merge of others will be
            chain, links = [], []
            spare[top] = False
    return group
