"""Who spoke when: local speakers of windows, an embedding each, clusters of embeddings, votes of windows, turns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from knn_cli import audio
from knn_cli.errors import KnnError
from knn_cli.registry import CLUSTERERS
from knn_cli.segments import FRAME_SECONDS
from knn_cli.types import Diarization, Floats, Waveform

if TYPE_CHECKING:
    from knn_cli.embedder import Embedder
    from knn_cli.segmentation import Segmenter
    from knn_cli.stitching import Labels, LocalSpeaker, Segmentation

CLUSTERER = "spectral"
RELIABLE = 1.0  # seconds of clean speech from which an embedding may shape clusters
MAX_GAP_SECONDS = 0.5  # pauses up to this long inside one speaker's turn are part of it


def diarize(
    path: Path | str,
    *,
    model: str | Path | Embedder | None = None,
    segmentation: str | Path | Segmenter | None = None,
    vad: str = "silero",
    clusterer: str = CLUSTERER,
    settings: dict[str, object] | None = None,
    num_speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
    min_turn: float = 0.0,
    max_gap: float = MAX_GAP_SECONDS,
    channel: str = "mix",
    device: str = "auto",
) -> Diarization:
    """Speaker turns of one audio file of any length, in bounded memory.

    model        : an embedder's bundle by name or path, or an Embedder that is loaded already
    segmentation : a segmenter's, likewise
    vad          : "ours": the segmentation network, which hears overlap; "silero": silero-vad, one speaker at a time
    clusterer    : a name in `registry.CLUSTERERS`; `settings` are its arguments
    num_speakers, min_speakers, max_speakers : how many, where known; obeyed where there is that much speech
    min_turn     : seconds; shorter turns are dropped or go to their neighbours, but each speaker keeps its longest
    max_gap      : pauses of a speaker up to so many seconds are filled

    Speakers are SPEAKER_00, SPEAKER_01, ... in order of first appearance; without speech there are none.
    Raises AudioError (see `audio.read`), KnnError for bounds that contradict each other, BundleError for the models.
    """
    from pyannote.core import Annotation

    from knn_cli import stitching
    from knn_cli.embedder import Embedder
    from knn_cli.local_voices import local_voices

    check_speakers(num_speakers, min_speakers, max_speakers)
    check_turns(min_turn, max_gap)
    embedder = model if isinstance(model, Embedder) else Embedder(model, device=device)
    arguments = cluster_settings(clusterer, settings, embedder)
    heard = _segment(path, segmentation, vad, embedder, channel)
    bounds = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    least = num_speakers or min_speakers or 1

    def embedded(windows: Segmentation) -> tuple[list[LocalSpeaker], Floats, Floats]:
        found = stitching.local_speakers(windows)
        vectors, seconds = local_voices(path, embedder, windows, found, channel=channel)
        return found, vectors, seconds

    local, vectors, seconds = embedded(heard)
    if 0 < np.count_nonzero(seconds) < least:  # more speakers than local ones: cut finer
        heard = stitching.finer(heard, least)
        local, vectors, seconds = embedded(heard)
    length = heard.frames * FRAME_SECONDS
    if not seconds.any():
        return Diarization(Annotation(uri=Path(path).stem), seconds=length)
    rows = np.flatnonzero(seconds)
    voices = vectors[rows][:, embedder.bundle.view("speaker")]
    clusters = CLUSTERERS.build(clusterer, **arguments)(voices, weights=seconds[rows], **bounds)
    labels = _labelled(heard, local, voices, rows, clusters)
    votes = stitching.vote(heard, local, labels, int(clusters.max()) + 1)
    active = stitching.decide(heard, local, labels, votes)
    turns = stitching.turns(active, min_turn=min_turn, max_gap=max_gap)
    return _described(turns, votes, vectors, seconds, labels, length, Path(path).stem)


def _segment(
    path: Path | str, segmentation: str | Path | Segmenter | None, vad: str, embedder: Embedder, channel: str
) -> Segmentation:
    """Local speakers of the recording's windows, by the network or, one at a time, where silero-vad hears speech."""
    from knn_cli import segmentation as room
    from knn_cli import stitching
    from knn_cli import vad as silero

    if vad == "silero":
        if segmentation is not None:
            raise KnnError("--vad silero leaves nothing for --segmentation to do.", "Choose one of the two.")
        seconds = 0.0

        def heard() -> Iterator[Waveform]:
            nonlocal seconds
            for block in audio.blocks(path, rate=silero.RATE, channel=channel):
                seconds = block.start + block.seconds
                yield block

        regions = silero.speech(heard())
        speech = np.zeros(round(seconds / FRAME_SECONDS), dtype=np.float32)
        for region in regions:
            speech[round(region.start / FRAME_SECONDS) : round(region.end / FRAME_SECONDS)] = 1
        return stitching.of_speech(speech)
    segmenter = segmentation
    if not isinstance(segmenter, room.Segmenter):
        segmenter = room.Segmenter(segmenter, device=embedder.device)
    return segmenter(audio.blocks(path, rate=segmenter.rate, channel=channel))


def cluster_settings(clusterer: str, settings: Mapping[str, Any] | None, embedder: Embedder) -> dict[str, Any]:
    """A method's settings: the user's, what diarization wants, and for vbx the model's PLDA.

    Raises KnnError where the model has none.
    """
    from knn_cli import voice_plda

    found: dict[str, Any] = {"reliable": RELIABLE, **(settings or {})}
    if clusterer == "vbx" and "plda" not in found:
        found["plda"] = voice_plda.load(embedder.bundle)
    return found


def _labelled(
    heard: Segmentation,
    local: Sequence[LocalSpeaker],
    voices: Floats,
    rows: NDArray[np.int64],
    clusters: Labels,
) -> Labels:
    """The speaker (N,) of every local speaker, from the clusters of those `rows` that have an embedding.

    Two of one window are two speakers, as far as there are enough. A voice that said too little for an embedding is
    the speaker whom other windows hear in its place; -1 where they hear nobody.
    """
    from knn_cli import stitching
    from knn_cli.clustering import means, unit

    units = unit(voices.astype(np.float64))
    centroids, _ = means(units, np.ones(len(units)), clusters)
    windows = np.array([one.window for one in local], dtype=np.int64)
    similarity = units @ unit(centroids).T  # (rows, S)
    similarity[np.arange(len(rows)), clusters] += 2.0  # the method's word, unless two of a window contradict each other
    labels = np.full(len(local), -1, dtype=np.int64)
    labels[rows] = stitching.assign(similarity, windows[rows])
    votes = stitching.vote(heard, local, labels, len(centroids))
    for row in np.flatnonzero(labels < 0).tolist():
        one = local[row]
        frames = np.flatnonzero(one.active) + heard.starts[one.window]
        there = votes[frames[frames < len(votes)]].sum(0)
        there[labels[windows == one.window].clip(0)] -= 1e-6  # of equal ones not another voice of this window
        if there.max() > 0:
            labels[row] = int(there.argmax())
    return labels


def _described(
    turns: list[tuple[int, int, int]],
    votes: Floats,
    vectors: Floats,
    seconds: Floats,
    labels: Labels,
    length: float,
    uri: str,
) -> Diarization:
    """Turns with names by first appearance, confidences, and each speaker's embedding."""
    from pyannote.core import Annotation, Segment

    names: dict[int, str] = {}
    found, confidence = Annotation(uri=uri), {}
    for track, (first, last, speaker) in enumerate(turns):
        name = names.setdefault(speaker, f"SPEAKER_{len(names):02d}")
        found[Segment(first * FRAME_SECONDS, min(last * FRAME_SECONDS, length)), track] = name
        confidence[track] = float(votes[first:last, speaker].mean())
    voices, spoken = {}, {}
    for speaker, name in names.items():
        rows = np.flatnonzero((labels == speaker) & (seconds > 0))
        if len(rows):
            # Unit vectors, so that long ones do not drown the others.
            units = vectors[rows] / np.linalg.norm(vectors[rows], axis=1, keepdims=True)
            voices[name] = (seconds[rows, None] * units).sum(0) / seconds[rows].sum()
            spoken[name] = sum((last - first) * FRAME_SECONDS for first, last, one in turns if one == speaker)
    return Diarization(found, confidence, voices, spoken, length)


def check_speakers(number: int | None, least: int | None, most: int | None) -> None:
    """KnnError for counts that no recording can obey."""
    for name, value in (("--num-speakers", number), ("--min-speakers", least), ("--max-speakers", most)):
        if value is not None and value < 1:
            raise KnnError(f"{name} is {value}; a recording has at least one speaker.")
    if least is not None and most is not None and least > most:
        raise KnnError(f"--min-speakers {least} is above --max-speakers {most}.")
    if number is not None and not (least or 1) <= number <= (most or number):
        raise KnnError(f"--num-speakers {number} is outside --min-speakers and --max-speakers.")


def check_turns(min_turn: float, max_gap: float) -> None:
    """KnnError for lengths that are none."""
    for name, value in (("--min-turn", min_turn), ("--max-gap", max_gap)):
        if not 0 <= value < math.inf:
            raise KnnError(f"{name} is {value:g}; it is a number of seconds, 0 or more.")
