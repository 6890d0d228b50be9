"""Who spoke when: local speakers of long windows, voices of short ones, clusters of voices, votes of both, turns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio import reading
from knn_cli.audio.segments import EPSILON, FRAME_SECONDS, MAX_GAP_SECONDS
from knn_cli.core.errors import KnnError
from knn_cli.core.registry import CLUSTERERS
from knn_cli.core.values import Diarization, Floats, Waveform
from knn_cli.core.vectors import l2_normalize

if TYPE_CHECKING:
    from knn_cli.diarization.reconstruction import Labels, LocalSpeaker, Segmentation, Turn
    from knn_cli.diarization.segmentation import Segmenter
    from knn_cli.embedding.embedder import Embedder

CLUSTERER = "spectral"
RELIABLE = 0.6  # seconds of speech from which an embedding may shape clusters
SHORT = 0.6  # weight of short windows' votes beside those of long ones
SHARPNESS = 0.1  # cosine by which one speaker is e times as likely as another
PIECE = 750  # frames of doubt that are settled together at most
WARM_UP = 2.0  # seconds that silero-vad hears before a stretch
SECOND = 0.2  # its probability of speech that settles a doubt
AGREEMENT = 0.5  # cosine that full agreement with short windows is worth to a local speaker
MIN_TURN_SECONDS = 0.1  # shorter turns are strays of the votes
MARGIN_SECONDS = 0.2  # of silence behind a turn that are part of it


def diarize(
    path: Path | str,
    *,
    model: str | Path | Embedder | None = None,
    segmentation: str | Path | Segmenter | None = None,
    vad: str = "ours",
    clusterer: str = CLUSTERER,
    settings: dict[str, object] | None = None,
    num_speakers: int | None = None,
    min_speakers: int | None = None,
    max_speakers: int | None = None,
    min_turn: float = MIN_TURN_SECONDS,
    max_gap: float = MAX_GAP_SECONDS,
    margin: float = MARGIN_SECONDS,
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
    max_gap      : pauses of a speaker up to so many seconds are filled, before margins
    margin       : seconds of silence that a turn's end keeps, its beginning a fifth of that; whole frames

    Speakers are SPEAKER_00, SPEAKER_01, ... in order of first appearance; without speech there are none.
    Raises AudioError (see `audio.read`), KnnError for bounds that contradict each other, BundleError for the models.
    """
    from pyannote.core import Annotation

    from knn_cli.diarization import reconstruction
    from knn_cli.embedding.embedder import Embedder

    check_speakers(num_speakers, min_speakers, max_speakers)
    check_turns(min_turn, max_gap, margin)
    check_hearing(vad, segmentation)
    embedder = model if isinstance(model, Embedder) else Embedder(model, device=device)
    cluster = CLUSTERERS.build(clusterer, **cluster_settings(clusterer, settings, embedder))
    heard, length = _segment(path, segmentation, vad, embedder, channel)
    least = num_speakers or min_speakers or 1
    voices = _voices(path, embedder, heard, channel)
    if 0 < np.count_nonzero(voices.seconds) < least:  # fewer windows than speakers: cut finer
        heard = reconstruction.finer(heard, least)
        voices = _voices(path, embedder, heard, channel)
    if not voices.seconds.any():
        return Diarization(Annotation(uri=Path(path).stem), seconds=length)
    rows = np.flatnonzero(voices.seconds)
    labels = np.full(len(voices.small), -1, dtype=np.int64)
    labels[rows] = cluster(
        voices.vectors[rows],
        weights=voices.seconds[rows],
        num_speakers=num_speakers,
        min_speakers=min_speakers,
        max_speakers=max_speakers,
    )
    votes = _votes(heard, voices, labels)
    active = reconstruction.decide(reconstruction.count(heard), votes)
    reconstruction.give_everybody_a_place(active, voices.windows, voices.small, labels)
    turns = reconstruction.turns(active, min_turn=min_turn, max_gap=max_gap, margin=margin)
    return _described(turns, np.where(active, votes, np.nan), voices, labels, length, Path(path).stem)


@dataclass(frozen=True)
class _Voices:
    """Embeddings of short windows, and of the local speakers of long ones.

    windows, small   : windows with one local speaker each, and those of them that speak
    vectors, seconds : of `small`, see `local_voices.embeddings`; the first are of the view for speakers
    whole            : of `small`, whole embeddings
    local            : local speakers of windows with several; none where the windows have one each already
    local_vectors, local_seconds : likewise of `local`
    """

    windows: Segmentation
    small: Sequence[LocalSpeaker]
    vectors: Floats
    seconds: Floats
    whole: Floats
    local: Sequence[LocalSpeaker]
    local_vectors: Floats
    local_seconds: Floats


def _voices(path: Path | str, embedder: Embedder, heard: Segmentation, channel: str) -> _Voices:
    """Sound is encoded once for both."""
    from knn_cli.diarization import reconstruction, window_embeddings

    several = heard.probabilities.shape[2] > 1
    windows = reconstruction.of_speech(reconstruction.speech(heard)) if several else heard
    small = reconstruction.local_speakers(windows)
    if several:  # frames that are shared say little of either voice
        alone = np.append(reconstruction.count(heard) == 1, np.zeros(windows.probabilities.shape[1], dtype=bool))
        size = windows.probabilities.shape[1]
        starts_of = windows.starts.tolist()
        small = [replace(one, clean=one.active & alone[(at := starts_of[one.window]) : at + size]) for one in small]
    local = reconstruction.local_speakers(heard) if several else []
    starts = [int(windows.starts[one.window]) for one in small] + [int(heard.starts[one.window]) for one in local]
    chosen = [one.chosen for one in (*small, *local)]
    order = np.argsort(starts, kind="stable")
    parts = [window_embeddings.Part(starts[row], chosen[row]) for row in order]
    found, found_seconds = window_embeddings.embeddings(path, embedder, parts, channel=channel)
    whole, seconds = np.empty_like(found), np.empty_like(found_seconds)
    whole[order], seconds[order] = found, found_seconds
    vectors, split = whole[:, embedder.bundle.view("speaker")], len(small)
    return _Voices(
        windows, small, vectors[:split], seconds[:split], whole[:split], local, vectors[split:], seconds[split:]
    )


def _votes(heard: Segmentation, voices: _Voices, labels: Labels) -> Floats:
    """(frames, S) how much each speaker speaks, from the clusters (N,) of short windows; -1: no embedding, no vote.

    A short window votes for the speakers as its embedding is like theirs. A local speaker of a long window is the
    speaker that its embedding and the short windows within it say, but two of one window are two; so long windows
    say who speaks at the same time, and short ones who it is where a long one takes two voices for one.
    """
    from knn_cli.diarization import reconstruction
    from knn_cli.diarization.clustering.base import means

    rows = np.flatnonzero(labels >= 0)
    units = l2_normalize(voices.vectors[rows].astype(np.float64))
    centroids, _ = means(units, np.ones(len(rows)), labels[rows])
    centroids = l2_normalize(centroids)
    like = np.exp((units @ centroids.T - 1) / SHARPNESS)
    shares = np.zeros((len(labels), len(centroids)), dtype=np.float32)
    shares[rows] = like / like.sum(1, keepdims=True)
    votes = reconstruction.vote(voices.windows, voices.small, shares)
    if not voices.local:
        return votes
    own = l2_normalize(voices.local_vectors.astype(np.float64)) @ centroids.T  # (N, S), 0 without an embedding
    for row, one in enumerate(voices.local):
        there = votes[heard.starts[one.window] :][: len(one.chosen)]
        own[row] += AGREEMENT * there[one.chosen[: len(there)]].sum(0) / max(1, np.count_nonzero(one.chosen))
    who = reconstruction.assign(own, np.array([one.window for one in voices.local], dtype=np.int64))
    long = reconstruction.vote(heard, voices.local, np.eye(len(centroids), dtype=np.float32)[who])
    votes *= SHORT
    votes += (1 - SHORT) * long
    return votes


def _segment(
    path: Path | str, segmentation: str | Path | Segmenter | None, vad: str, embedder: Embedder, channel: str
) -> tuple[Segmentation, float]:
    """Local speakers of the recording's windows, and its seconds.

    Those are of the network, or one at a time of where silero-vad hears speech.
    """
    from knn_cli.audio import speech_activity as silero
    from knn_cli.diarization import reconstruction
    from knn_cli.diarization import segmentation as room

    seconds = 0.0

    def blocks(rate: int) -> Iterator[Waveform]:
        nonlocal seconds
        for block in reading.blocks(path, rate=rate, channel=channel):
            seconds = block.start + block.seconds
            yield block

    if vad == "silero":
        regions = silero.speech(blocks(silero.RATE))
        speech = np.zeros(math.ceil(seconds / FRAME_SECONDS - EPSILON), dtype=np.float32)
        for region in regions:
            speech[round(region.start / FRAME_SECONDS) : round(region.end / FRAME_SECONDS)] = 1
        return reconstruction.of_speech(speech), seconds
    segmenter = segmentation
    if not isinstance(segmenter, room.Segmenter):
        segmenter = room.Segmenter(segmenter, embedder=embedder)
    levels = room.Levels(segmenter.rate)
    heard = segmenter(levels.through(blocks(segmenter.rate)))
    nobody, doubt = reconstruction.doubted(heard, levels.decibels())
    _ask_again(path, doubt, nobody, channel)
    return reconstruction.without(heard, nobody), seconds


def _ask_again(path: Path | str, doubt: Sequence[tuple[int, int]], nobody: NDArray[np.bool_], channel: str) -> None:
    """Where silero-vad hears no speech in stretches of doubt, nobody speaks: write it into `nobody` (frames,).

    It is not asked elsewhere: it hears little of speech in noise.
    """
    from pyannote.core import Segment

    from knn_cli.audio import speech_activity as silero

    pieces = [(at, min(at + PIECE, last)) for first, last in doubt for at in range(first, last, PIECE)]
    around = [Segment(max(0.0, first * FRAME_SECONDS - WARM_UP), last * FRAME_SECONDS) for first, last in pieces]
    sounds = reading.crops(path, around, rate=silero.RATE, channel=channel)
    for (first, last), heard, chances in zip(pieces, around, silero.probabilities(sounds), strict=True):
        middles = (np.arange(first, last) + 0.5) * FRAME_SECONDS - heard.start
        frames = (middles * silero.RATE / silero.FRAME).astype(np.int64).clip(0, len(chances) - 1)
        nobody[first:last] = chances[frames] < SECOND


def cluster_settings(clusterer: str, settings: Mapping[str, Any] | None, embedder: Embedder) -> dict[str, Any]:
    """A method's settings: the user's, what diarization wants, and for vbx the model's PLDA.

    Raises KnnError where the model has none.
    """
    found: dict[str, Any] = {"reliable": RELIABLE, **(settings or {})}
    if clusterer == "vbx" and "plda" not in found:
        from knn_cli.diarization.clustering import plda

        found["plda"] = plda.load(embedder.bundle)
    return found


def _described(
    turns: list[Turn], votes: Floats, voices: _Voices, labels: Labels, length: float, uri: str
) -> Diarization:
    """Turns with names by first appearance, confidences, and each speaker's embedding.

    votes : (frames, S) of the frames in which each speaks, NaN elsewhere: a turn's pauses and margins say nothing of it
    """
    from pyannote.core import Annotation, Segment

    names: dict[int, str] = {}
    found, confidence = Annotation(uri=uri), {}
    for track, (first, last, speaker) in enumerate(turns):
        name = names.setdefault(speaker, f"SPEAKER_{len(names):02d}")
        found[Segment(first * FRAME_SECONDS, min(last * FRAME_SECONDS, length)), track] = name
        confidence[track] = float(np.nanmean(votes[first:last, speaker]))
    of_speaker, spoken = {}, {}
    for speaker, name in names.items():
        rows = np.flatnonzero(labels == speaker)
        if len(rows):
            weights = voices.seconds[rows].astype(np.float64)
            units = l2_normalize(voices.whole[rows].astype(np.float64))  # so that long ones do not drown the others
            of_speaker[name] = ((weights[:, None] * units).sum(0) / weights.sum()).astype(np.float32)
            clean = np.zeros(len(votes), dtype=bool)
            for one in (voices.small[row] for row in rows.tolist()):
                clean[np.flatnonzero(one.chosen) + voices.windows.starts[one.window]] = True
            spoken[name] = float(clean.sum() * FRAME_SECONDS)
    return Diarization(found, confidence, of_speaker, spoken, length)


def check_speakers(number: int | None, least: int | None, most: int | None) -> None:
    """KnnError for counts that no recording can obey."""
    for name, value in (("--num-speakers", number), ("--min-speakers", least), ("--max-speakers", most)):
        if value is not None and value < 1:
            raise KnnError(f"{name} is {value}; a recording has at least one speaker.")
    if least is not None and most is not None and least > most:
        raise KnnError(f"--min-speakers {least} is above --max-speakers {most}.")
    if number is not None and not (least or 1) <= number <= (most or number):
        raise KnnError(f"--num-speakers {number} is outside --min-speakers and --max-speakers.")


def check_hearing(vad: str, segmentation: object) -> None:
    """KnnError for a detector that there is not, and for a segmentation network that it would not ask."""
    if vad not in ("ours", "silero"):
        raise KnnError(f"There is no speech detector named {vad!r}.", "Known: ours, silero.")
    if vad == "silero" and segmentation is not None:
        raise KnnError("--vad silero leaves nothing for --segmentation to do.", "Choose one of the two.")


def check_turns(min_turn: float, max_gap: float, margin: float) -> None:
    """KnnError for lengths that are none."""
    for name, value in (("--min-turn", min_turn), ("--max-gap", max_gap), ("--margin", margin)):
        if not 0 <= value < math.inf:
            raise KnnError(f"{name} is {value:g}; it is a number of seconds, 0 or more.")
