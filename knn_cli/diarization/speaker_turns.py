"""Turns of speakers from clusters of short windows.

Short windows say which speakers there are, long ones who speaks at the same time: `score_parts` lets both vote for each
frame. A speaker that only the clusters of short windows know is none (`merge_contradicted`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio.segments import FRAME_SECONDS
from knn_cli.core.values import Diarization, Doubles, Floats, Turn, sort_turns

if TYPE_CHECKING:
    from knn_cli.diarization.options import DiarizationOptions
    from knn_cli.diarization.pipeline import WindowEmbeddings
    from knn_cli.diarization.post_processing import FrameTurn
    from knn_cli.diarization.reconstruction import Labels, LocalSpeaker

SHORT_WINDOW_WEIGHT = 0.6  # of the scores of short windows beside those of long ones
SOFTMAX_TEMPERATURE = 0.1  # cosine by which one speaker is e times as likely as another
SHORT_WINDOW_AGREEMENT_COSINE = 0.5  # what full agreement with short windows is worth to a local speaker
FRAMES_AT_ONCE = 50_000  # whose scores are held at once: of ten hours with ninety speakers, all are 300 MB
LEAST_OWN_SHARE = 0.5  # of the clean frames of a cluster, in which its speaker is active


def score_parts(embeddings: WindowEmbeddings, labels: Labels) -> Iterator[tuple[int, Floats]]:
    """Yield for some frames after the other their first one, and the score (F, S) float32 of each speaker in each.

    Speakers are the clusters (N,) of short windows; -1: no embedding. A short window scores speakers by a softmax of
    the cosines of its embedding with theirs. A local speaker of a long window is assigned to one speaker, by its
    embedding and by the scores of the short windows within it, and two local speakers of one window are two speakers.
    So long windows say who speaks at the same time, and short ones who it is where a long one takes two speakers for
    one.
    """
    from knn_cli.core.vectors import l2_normalize
    from knn_cli.diarization.clustering.base import weighted_means

    rows = np.flatnonzero(labels >= 0)
    units = l2_normalize(embeddings.vectors[rows].astype(np.float64), overwrite=True)  # of ten hours, 66 MB
    centroids = l2_normalize(weighted_means(units, np.ones(len(rows)), labels[rows])[0])
    del units
    frames = embeddings.segmentation.frames
    for first in range(0, frames, FRAMES_AT_ONCE):
        last = min(first + FRAMES_AT_ONCE, frames)
        if embeddings.short_windows.several:
            yield first, _local_scores(embeddings, centroids, first, last)
        else:
            yield first, _scores_between(embeddings, labels, centroids, first, last)


def _local_scores(embeddings: WindowEmbeddings, centroids: Doubles, first: int, last: int) -> Floats:
    """(last - first, S) scores from local speakers of long windows that were clustered themselves."""
    from knn_cli.core.vectors import l2_normalize
    from knn_cli.diarization import reconstruction

    part = reconstruction.windows_between(embeddings.short_windows, embeddings.short, first, last)
    similarity = l2_normalize(embeddings.vectors[part.rows].astype(np.float64)) @ centroids.T
    scores = reconstruction.aggregate(part.segmentation, part.local, _assigned(part.local, similarity))
    return scores[first - part.first : last - part.first]


def _scores_between(embeddings: WindowEmbeddings, labels: Labels, centroids: Doubles, first: int, last: int) -> Floats:
    """(last - first, S) scores from short windows, and from long ones where there are any."""
    from knn_cli.core.vectors import l2_normalize
    from knn_cli.diarization import reconstruction

    # Long windows listen to short ones as far as they reach beyond the frames.
    long = reconstruction.windows_between(embeddings.segmentation, embeddings.local, first, last)
    begin, end = (long.first, long.last) if embeddings.local else (first, last)
    short = reconstruction.windows_between(embeddings.short_windows, embeddings.short, begin, end)
    known = labels[short.rows] >= 0
    units = l2_normalize(embeddings.vectors[short.rows][known].astype(np.float64))
    likelihoods = np.exp((units @ centroids.T - 1) / SOFTMAX_TEMPERATURE)
    soft_assignment = np.zeros((len(known), len(centroids)), dtype=np.float32)
    soft_assignment[known] = likelihoods / likelihoods.sum(1, keepdims=True)
    scores = reconstruction.aggregate(short.segmentation, short.local, soft_assignment)
    scores = scores[begin - short.first : end - short.first]
    if not embeddings.local:
        return scores
    similarity = l2_normalize(embeddings.local_vectors[long.rows].astype(np.float64)) @ centroids.T  # 0: no embedding
    for row, speaker in enumerate(long.local):
        mask = speaker.embedding_mask
        inside = scores[long.segmentation.starts[speaker.window] :][: len(mask)]
        agreement = mask[: len(inside)].astype(np.float32) @ inside / max(1, int(mask.sum()))
        similarity[row] += SHORT_WINDOW_AGREEMENT_COSINE * agreement
    scores *= SHORT_WINDOW_WEIGHT
    for at, block in reconstruction.score_blocks(long.segmentation, long.local, _assigned(long.local, similarity)):
        scores[at : at + len(block)] += np.float32(1 - SHORT_WINDOW_WEIGHT) * block
    return scores[first - begin : last - begin]


def _assigned(local: Sequence[LocalSpeaker], similarity: Doubles) -> Floats:
    """(L, S) 1 for the speaker to which a local speaker is assigned, of their similarity (L, S), else 0."""
    from knn_cli.diarization import reconstruction

    windows = np.array([speaker.window for speaker in local], dtype=np.int64)
    speakers = reconstruction.assign_speakers(similarity, windows)
    assigned: Floats = np.eye(similarity.shape[1], dtype=np.float32)[speakers]
    return assigned


@dataclass(frozen=True)
class SpeakerActivity:
    """Who is active in each frame, before turns are made of it.

    Attributes
    ----------
    active : (frames, S) bool array
    scores : (K,) float32 array
        Of the speakers that are active, frame by frame, as `active` has them.
    labels : (N,) int64 array
        Speaker of each short window, -1 without an embedding.
    """

    active: NDArray[np.bool_]
    scores: Floats
    labels: Labels


def reconstruct(
    embeddings: WindowEmbeddings,
    labels: Labels,
    options: DiarizationOptions,
    seconds: float,
    recording: str,
    *,
    min_speakers: int | None = None,
) -> Diarization:
    """Turns of the recording's speakers from the clusters (N,) of short windows, of at least `min_speakers`."""
    activity = find_activity(embeddings, labels, min_speakers=min_speakers)
    return make_turns(activity, embeddings, options, seconds, recording)


def find_activity(embeddings: WindowEmbeddings, labels: Labels, *, min_speakers: int | None = None) -> SpeakerActivity:
    """The activity of the speakers, of at least `min_speakers`, from the clusters (N,) of short windows."""
    from knn_cli.diarization import reconstruction

    if not (labels >= 0).any():
        nobody = np.zeros((embeddings.segmentation.frames, 0))
        return SpeakerActivity(nobody.astype(bool), np.zeros(0, dtype=np.float32), labels)
    counts = reconstruction.speaker_count(embeddings.segmentation)
    while True:
        active = np.zeros((len(counts), int(labels.max()) + 1), dtype=bool)
        scores = []
        for first, part in score_parts(embeddings, labels):
            some = active[first : first + len(part)]
            some[:] = reconstruction.select_active(counts[first : first + len(part)], part)
            scores.append(part[some])
        can_merge = labels.max() >= (min_speakers or 1)
        if not can_merge or (merged := merge_contradicted(embeddings, labels, active)) is None:
            break
        labels = merged
    if not active.any(0).all():
        reconstruction.ensure_every_speaker(active, embeddings.short_windows, embeddings.short, labels)
        scores = [part[active[first : first + len(part)]] for first, part in score_parts(embeddings, labels)]
    return SpeakerActivity(active, np.concatenate(scores), labels)


def make_turns(
    activity: SpeakerActivity, embeddings: WindowEmbeddings, options: DiarizationOptions, seconds: float, recording: str
) -> Diarization:
    """Turns from the activity of speakers, with the pauses, margins and shortest turn of the options."""
    from knn_cli.diarization import post_processing

    turns = post_processing.frame_turns(
        activity.active, embeddings.levels, min_turn=options.min_turn, max_gap=options.max_gap, margin=options.margin
    )
    return _to_diarization(turns, activity, embeddings, seconds, recording)


def merge_contradicted(embeddings: WindowEmbeddings, labels: Labels, active: NDArray[np.bool_]) -> Labels | None:
    """Labels without the cluster that long windows contradict most, or None where they contradict none.

    Music or noise within speech puts some short windows of one speaker into a cluster of their own. The local speakers
    of long windows around them are the speaker's all the same, so that the cluster's speaker is not active in most of
    the frames that it was made of. Those windows join the speaker who is.

    Parameters
    ----------
    embeddings : WindowEmbeddings
        Where short windows have no long ones beside them, nothing contradicts a cluster.
    labels : (N,) int64 array
        Clusters of short windows; -1 without an embedding.
    active : (frames, S) bool array
        Which speakers are active in which frames.
    """
    if not embeddings.local:
        return None
    shares = np.ones((active.shape[1], active.shape[1]))  # of the clean frames of a cluster, with each speaker
    for speaker in range(active.shape[1]):
        rows = np.flatnonzero((labels == speaker) & (embeddings.seconds > 0))
        if len(rows):
            shares[speaker] = active[_clean_frames(embeddings, rows)].mean(0)
    weakest = int(shares.diagonal().argmin())
    if shares[weakest, weakest] >= LEAST_OWN_SHARE:
        return None
    others = np.delete(np.arange(len(shares)), weakest)
    heir = others[shares[weakest, others].argmax()]
    merged: Labels = np.where(labels == weakest, heir, labels)
    merged[merged > weakest] -= 1
    return merged


def _to_diarization(
    frame_turns: list[FrameTurn],
    activity: SpeakerActivity,
    embeddings: WindowEmbeddings,
    seconds: float,
    recording: str,
) -> Diarization:
    """Turns with names by first appearance, confidences, and each speaker's embedding.

    The confidence of a turn is the mean score of its speaker: pauses and margins of a turn say nothing of it.
    """
    frames, speakers = np.nonzero(activity.active)
    order = np.argsort(speakers, kind="stable")  # speaker by speaker, in each frame by frame
    frames, scores = frames[order], activity.scores[order]
    begins = np.searchsorted(speakers[order], np.arange(activity.active.shape[1] + 1))
    labels = activity.labels
    names: dict[int, str] = {}
    turns: list[Turn] = []
    for first, last, speaker in frame_turns:
        name = names.setdefault(speaker, f"SPEAKER_{len(names):02d}")
        own = slice(begins[speaker], begins[speaker + 1])
        low, high = np.searchsorted(frames[own], [first, last])
        confidence = float(scores[own][low:high].mean())
        turns.append(Turn(first * FRAME_SECONDS, min(last * FRAME_SECONDS, seconds), name, confidence))
    rows_of = {name: np.flatnonzero(labels == speaker) for speaker, name in names.items()}
    rows_of = {name: rows for name, rows in rows_of.items() if len(rows)}
    vectors = {name: speaker_embedding(embeddings, rows) for name, rows in rows_of.items()}
    clean_speech = {name: clean_seconds(embeddings, rows) for name, rows in rows_of.items()}
    return Diarization(sort_turns(turns), recording, vectors, clean_speech, seconds)


def speaker_embedding(embeddings: WindowEmbeddings, rows: NDArray[np.int64]) -> Floats:
    """(E,) mean of unit embeddings, so that long vectors do not outweigh the others, by their seconds."""
    from knn_cli.core.vectors import l2_normalize

    weights = embeddings.seconds[rows].astype(np.float64)
    units = l2_normalize(embeddings.full_vectors[rows].astype(np.float64))
    mean: Floats = ((weights[:, None] * units).sum(0) / weights.sum()).astype(np.float32)
    return mean


def clean_seconds(embeddings: WindowEmbeddings, rows: NDArray[np.int64]) -> float:
    """Seconds of the recording behind the embeddings of these short windows, overlapping windows counted once."""
    return float(_clean_frames(embeddings, rows).sum() * FRAME_SECONDS)


def _clean_frames(embeddings: WindowEmbeddings, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(frames,) the frames behind the embeddings of these short windows."""
    used = np.zeros(embeddings.short_windows.frames, dtype=bool)
    speakers = [embeddings.short[row] for row in rows.tolist()]
    starts = embeddings.short_windows.starts[[speaker.window for speaker in speakers]]
    masks = np.stack([speaker.embedding_mask for speaker in speakers])
    used[(starts[:, None] + np.arange(masks.shape[1]))[masks]] = True
    return used
