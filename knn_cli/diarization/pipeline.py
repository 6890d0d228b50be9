"""Who spoke when: the whole diarizer, as a sequence of steps.

`analyse` takes nearly all of the time: `get_segmentation` finds local speakers in long windows, then short windows and
local speakers are embedded. What follows needs no sound and can be repeated: a clustering method groups the short
windows (`cluster_windows`); `reconstruct` combines both kinds of windows into scores per frame (`aggregate_scores`),
and `post_processing` makes turns of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio import reading
from knn_cli.audio.segments import EPSILON, FRAME_SECONDS
from knn_cli.core.registry import CLUSTERERS
from knn_cli.core.values import Diarization, Doubles, Floats, Turn, Waveform, sort_turns
from knn_cli.diarization.options import DiarizationOptions, check_speakers

if TYPE_CHECKING:
    from knn_cli.diarization.clustering.base import Clusterer
    from knn_cli.diarization.post_processing import FrameTurn
    from knn_cli.diarization.reconstruction import Labels, LocalSpeaker, Segmentation
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.networks.bundle import Bundle

MIN_CLUSTERING_SECONDS = 0.6  # of speech, from which an embedding may shape clusters
SHORT_WINDOW_WEIGHT = 0.6  # of the scores of short windows beside those of long ones
SOFTMAX_TEMPERATURE = 0.1  # cosine by which one speaker is e times as likely as another
SHORT_WINDOW_AGREEMENT_COSINE = 0.5  # what full agreement with short windows is worth to a local speaker


DEFAULT_OPTIONS = DiarizationOptions()


def diarize(
    path: Path | str,
    *,
    num_speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
    model: str | Path | Embedder | None = None,
    options: DiarizationOptions = DEFAULT_OPTIONS,
    channel: str = "mix",
    device: str = "auto",
) -> Diarization:
    """Find the speaker turns of one audio file of any length, in bounded memory.

    Parameters
    ----------
    path : path
        Audio file.
    num_speakers, min_speakers, max_speakers : int, optional
        Number of speakers where known; obeyed where there is enough speech.
    model : str, Path or Embedder, optional
        Embedding model, by name, by path or loaded already; the shipped speaker model where None.
    options : DiarizationOptions
        Speech detection, clustering and post-processing.
    channel : str
        Channel of the file, or "mix" for the mean of all.
    device : str
        Device of a model that is loaded here.

    Returns
    -------
    Diarization
        Speakers are SPEAKER_00, SPEAKER_01, ... by first appearance; none without speech.

    Raises
    ------
    KnnError
        For numbers of speakers that contradict each other; AudioError for the file, BundleError for the models.

    Examples
    --------
    >>> import knn_cli
    >>> result = knn_cli.diarize("meeting.flac", num_speakers=4)
    >>> sorted(result.speakers)
    ['SPEAKER_00', 'SPEAKER_01', 'SPEAKER_02', 'SPEAKER_03']
    """
    from knn_cli.embedding.embedder import Embedder

    check_speakers(num_speakers, min_speakers, max_speakers)
    embedder = model if isinstance(model, Embedder) else Embedder(model, device=device)
    clusterer = build_clusterer(options.clusterer, options.clusterer_settings, embedder.bundle)
    embeddings, seconds = analyse(path, embedder, options, channel, num_speakers or min_speakers or 1)
    bounds = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    labels = cluster_windows(embeddings, clusterer, bounds)
    return reconstruct(embeddings, labels, options, seconds, Path(path).stem)


@dataclass(frozen=True)
class WindowEmbeddings:
    """Embeddings of short windows, and of the local speakers of long ones.

    Attributes
    ----------
    segmentation : Segmentation
        The long windows, or the short ones where there are no others.
    levels : (frames,) int8 array
        Level of each frame in dBFS.
    short_windows : Segmentation
        Windows with one local speaker each; the long windows where their local speakers are clustered.
    short : sequence of N LocalSpeaker
        Those of them that speak, whose embeddings are clustered.
    vectors : (N, D) float32 array
        Of `short`, in the view for speakers.
    seconds : (N,) float32 array
        Seconds of sound behind each; 0 without an embedding.
    full_vectors : (N, E) float32 array
        Of `short`, whole embeddings.
    local : sequence of L LocalSpeaker
        Local speakers of long windows beside `short`; none where those are all.
    local_vectors : (L, D) float32 array
        Of `local`, in the view for speakers.
    """

    segmentation: Segmentation
    levels: NDArray[np.int8]
    short_windows: Segmentation
    short: Sequence[LocalSpeaker]
    vectors: Floats
    seconds: Floats
    full_vectors: Floats
    local: Sequence[LocalSpeaker]
    local_vectors: Floats


def analyse(
    path: Path | str, embedder: Embedder, options: DiarizationOptions, channel: str = "mix", min_windows: int = 1
) -> tuple[WindowEmbeddings, float]:
    """Everything that needs the sound: the windows of a recording with their embeddings, and its seconds.

    Parameters
    ----------
    path : path
        Audio file.
    embedder : Embedder
    options : DiarizationOptions
        Of these, the speech detection.
    channel : str
    min_windows : int
        Speakers asked for; where fewer windows have an embedding, shorter windows are embedded.

    Returns
    -------
    tuple of WindowEmbeddings and float

    Raises
    ------
    KnnError
        AudioError for the file, BundleError for the segmentation network.
    """
    from knn_cli.diarization import reconstruction

    segmentation, levels, seconds = get_segmentation(path, embedder, options, channel)
    embeddings = _embed(path, embedder, segmentation, levels, channel, options.short_windows)
    if 0 < np.count_nonzero(embeddings.seconds) < min_windows:
        shorter = reconstruction.shorter_windows(segmentation, min_windows)
        embeddings = _embed(path, embedder, shorter, levels, channel)
    return embeddings, seconds


def get_segmentation(
    path: Path | str, embedder: Embedder, options: DiarizationOptions, channel: str
) -> tuple[Segmentation, NDArray[np.int8], float]:
    """Local speakers of the recording's windows, the level of its frames in dBFS (frames,), and its seconds.

    They come from the segmentation network, or one at a time from the speech regions of silero-vad.
    """
    from knn_cli.audio import speech_activity
    from knn_cli.diarization import reconstruction
    from knn_cli.diarization.segmentation import FrameLevels, Segmenter

    seconds = 0.0

    def blocks(rate: int) -> Iterator[Waveform]:
        nonlocal seconds
        for block in reading.blocks(path, rate=rate, channel=channel):
            seconds = block.start + block.seconds
            yield block

    if options.vad == "silero":
        levels = FrameLevels(speech_activity.RATE)
        regions = speech_activity.speech(levels.through(blocks(speech_activity.RATE)))
        speech = np.zeros(math.ceil(seconds / FRAME_SECONDS - EPSILON), dtype=np.float32)
        for region in regions:
            speech[round(region.start / FRAME_SECONDS) : round(region.end / FRAME_SECONDS)] = 1
        return reconstruction.single_speaker_windows(speech), levels.decibels(), seconds
    segmenter = options.segmentation
    if not isinstance(segmenter, Segmenter):
        segmenter = Segmenter(segmenter, embedder=embedder)
    levels = FrameLevels(segmenter.rate)
    hop = max(1, round(options.step / FRAME_SECONDS))
    segmentation = segmenter(levels.through(blocks(segmenter.rate)), hop)
    return segmentation, levels.decibels(), seconds


def _embed(
    path: Path | str,
    embedder: Embedder,
    segmentation: Segmentation,
    levels: NDArray[np.int8],
    channel: str,
    short_windows: bool = True,
) -> WindowEmbeddings:
    """Short windows and local speakers; sound is encoded once for both."""
    from knn_cli.diarization import reconstruction, window_embeddings

    several = segmentation.several and short_windows
    windows = segmentation
    if several:
        windows = reconstruction.single_speaker_windows(reconstruction.speech_probability(segmentation))
    short = reconstruction.local_speakers(windows)
    if several:  # overlapped frames say little of either speaker
        size = windows.probabilities.shape[1]
        alone = np.append(reconstruction.speaker_count(segmentation) == 1, np.zeros(size, dtype=bool))
        starts_of = windows.starts.tolist()
        short = [
            replace(speaker, clean=speaker.active & alone[(start := starts_of[speaker.window]) : start + size])
            for speaker in short
        ]
    local = reconstruction.local_speakers(segmentation) if several else []
    starts = [int(windows.starts[speaker.window]) for speaker in short]
    starts += [int(segmentation.starts[speaker.window]) for speaker in local]
    masks = [speaker.embedding_mask for speaker in (*short, *local)]
    order = np.argsort(starts, kind="stable")
    ordered = [window_embeddings.FrameMask(starts[row], masks[row]) for row in order]
    ordered_vectors, ordered_seconds = window_embeddings.embed_masks(path, embedder, ordered, channel=channel)
    full, seconds = np.empty_like(ordered_vectors), np.empty_like(ordered_seconds)
    full[order], seconds[order] = ordered_vectors, ordered_seconds
    vectors, split = full[:, embedder.bundle.view("speaker")], len(short)
    return WindowEmbeddings(
        segmentation, levels, windows, short, vectors[:split], seconds[:split], full[:split], local, vectors[split:]
    )


def build_clusterer(name: str | None, settings: Mapping[str, Any], model: Bundle | None) -> Clusterer:
    """A clustering method with its settings, what diarization wants, and for vbx the embedding model's PLDA.

    Without a name, it is vbx where the model has a PLDA, otherwise spectral. Raises KnnError for settings that it does
    not take, and where the model has no PLDA; only vbx needs a model.
    """
    from knn_cli.diarization.clustering import plda

    if name is None:
        name = "vbx" if model is not None and (model.folder / plda.FILE).is_file() else "spectral"
    arguments: dict[str, Any] = {"reliable": MIN_CLUSTERING_SECONDS, **settings}
    if name == "vbx" and "plda" not in arguments and model is not None:
        arguments["plda"] = plda.load(model)
    clusterer: Clusterer = CLUSTERERS.build(name, **arguments)
    return clusterer


def cluster_windows(embeddings: WindowEmbeddings, clusterer: Clusterer, bounds: Mapping[str, int | None]) -> Labels:
    """(N,) cluster of each short window, -1 without an embedding.

    bounds : `num_speakers`, `min_speakers` and `max_speakers`, None where unknown
    """
    labels = np.full(len(embeddings.short), -1, dtype=np.int64)
    rows = np.flatnonzero(embeddings.seconds)
    if len(rows):
        labels[rows] = clusterer(embeddings.vectors[rows], weights=embeddings.seconds[rows], **bounds)
    return labels


def aggregate_scores(embeddings: WindowEmbeddings, labels: Labels) -> Floats:
    """(frames, S) score of each speaker in each frame, from the clusters (N,) of short windows; -1: no embedding.

    A short window scores speakers by a softmax of the cosines of its embedding with theirs. A local speaker of a long
    window is assigned to one speaker, by its embedding and by the scores of the short windows within it, and two local
    speakers of one window are two speakers. So long windows say who speaks at the same time, and short ones who it is
    where a long one takes two speakers for one.
    """
    from knn_cli.core.vectors import l2_normalize
    from knn_cli.diarization import reconstruction
    from knn_cli.diarization.clustering.base import weighted_means

    segmentation = embeddings.segmentation
    rows = np.flatnonzero(labels >= 0)
    units = l2_normalize(embeddings.vectors[rows].astype(np.float64))
    centroids, _ = weighted_means(units, np.ones(len(rows)), labels[rows])
    centroids = l2_normalize(centroids)
    if embeddings.short_windows.several:
        similarity = l2_normalize(embeddings.vectors.astype(np.float64)) @ centroids.T
        return _score_long_windows(embeddings.short_windows, embeddings.short, similarity)
    likelihoods = np.exp((units @ centroids.T - 1) / SOFTMAX_TEMPERATURE)
    soft_assignment = np.zeros((len(labels), len(centroids)), dtype=np.float32)
    soft_assignment[rows] = likelihoods / likelihoods.sum(1, keepdims=True)
    scores = reconstruction.aggregate(embeddings.short_windows, embeddings.short, soft_assignment)
    del units, likelihoods, soft_assignment  # ten hours of them are as much as the scores
    if not embeddings.local:
        return scores
    similarity = l2_normalize(embeddings.local_vectors.astype(np.float64)) @ centroids.T  # (L, S), 0 without embedding
    for row, speaker in enumerate(embeddings.local):
        mask = speaker.embedding_mask
        inside = scores[segmentation.starts[speaker.window] :][: len(mask)]
        agreement = mask[: len(inside)].astype(np.float32) @ inside / max(1, int(mask.sum()))
        similarity[row] += SHORT_WINDOW_AGREEMENT_COSINE * agreement
    scores *= SHORT_WINDOW_WEIGHT
    long = _score_long_windows(segmentation, embeddings.local, similarity)
    long *= 1 - SHORT_WINDOW_WEIGHT
    scores += long
    return scores


def _score_long_windows(segmentation: Segmentation, local: Sequence[LocalSpeaker], similarity: Doubles) -> Floats:
    """(frames, S) score of each speaker by the local speakers that are assigned to it, of their similarity (L, S)."""
    from knn_cli.diarization import reconstruction

    windows = np.array([speaker.window for speaker in local], dtype=np.int64)
    assigned = reconstruction.assign_speakers(similarity, windows)
    hard_assignment = np.eye(similarity.shape[1], dtype=np.float32)[assigned]
    return reconstruction.aggregate(segmentation, local, hard_assignment)


def reconstruct(
    embeddings: WindowEmbeddings, labels: Labels, options: DiarizationOptions, seconds: float, recording: str
) -> Diarization:
    """Turns of the recording's speakers from the clusters (N,) of short windows."""
    from knn_cli.diarization import post_processing, reconstruction

    if not (labels >= 0).any():
        return Diarization((), recording, seconds=seconds)
    scores = aggregate_scores(embeddings, labels)
    active = reconstruction.select_active(reconstruction.speaker_count(embeddings.segmentation), scores)
    reconstruction.ensure_every_speaker(active, embeddings.short_windows, embeddings.short, labels)
    turns = post_processing.frame_turns(
        active, embeddings.levels, min_turn=options.min_turn, max_gap=options.max_gap, margin=options.margin
    )
    scores[~active] = np.nan
    return _to_diarization(turns, scores, embeddings, labels, seconds, recording)


def _to_diarization(
    frame_turns: list[FrameTurn],
    scores: Floats,
    embeddings: WindowEmbeddings,
    labels: Labels,
    seconds: float,
    recording: str,
) -> Diarization:
    """Turns with names by first appearance, confidences, and each speaker's embedding.

    scores : (frames, S), NaN where a speaker is not active: pauses and margins of a turn say nothing of it
    """
    names: dict[int, str] = {}
    turns: list[Turn] = []
    for first, last, speaker in frame_turns:
        name = names.setdefault(speaker, f"SPEAKER_{len(names):02d}")
        confidence = float(np.nanmean(scores[first:last, speaker]))
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
    used = np.zeros(embeddings.short_windows.frames, dtype=bool)
    speakers = [embeddings.short[row] for row in rows.tolist()]
    starts = embeddings.short_windows.starts[[speaker.window for speaker in speakers]]
    masks = np.stack([speaker.embedding_mask for speaker in speakers])
    used[(starts[:, None] + np.arange(masks.shape[1]))[masks]] = True
    return float(used.sum() * FRAME_SECONDS)
