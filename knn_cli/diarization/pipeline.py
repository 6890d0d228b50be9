"""Who spoke when: the whole diarizer, as a sequence of steps.

`analyse` takes nearly all of the time: `get_segmentation` finds local speakers in long windows, then short windows and
local speakers are embedded. What follows needs no sound and can be repeated: a clustering method groups the short
windows (`cluster_windows`); `speaker_turns.reconstruct` combines both kinds of windows into scores per frame, and
`post_processing` makes turns of them.
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
from knn_cli.core.values import Diarization, Floats, Waveform
from knn_cli.diarization.options import DiarizationOptions, check_speakers

if TYPE_CHECKING:
    from knn_cli.diarization.clustering.base import Clusterer
    from knn_cli.diarization.reconstruction import Labels, LocalSpeaker, Segmentation
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.networks.bundle import Bundle

MIN_CLUSTERING_SECONDS = 0.6  # of speech, from which an embedding may shape clusters


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
    from knn_cli.diarization import speaker_turns
    from knn_cli.embedding.embedder import Embedder

    check_speakers(num_speakers, min_speakers, max_speakers)
    embedder = model if isinstance(model, Embedder) else Embedder(model, device=device)
    clusterer = build_clusterer(options.clusterer, options.clusterer_settings, embedder.bundle)
    embeddings, seconds = analyse(path, embedder, options, channel, num_speakers or min_speakers or 1)
    bounds = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    labels = cluster_windows(embeddings, clusterer, bounds)
    least = num_speakers or min_speakers
    return speaker_turns.reconstruct(embeddings, labels, options, seconds, Path(path).stem, min_speakers=least)


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
