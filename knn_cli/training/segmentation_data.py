"""Recordings with reference turns as windows of sound and powerset classes, for segmentation networks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyannote.core import Annotation, Timeline

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles
from knn_cli.diarization.recordings import read_references
from knn_cli.embedding.files import expand_folders
from knn_cli.networks.contracts import WaveformSegmenter
from knn_cli.networks.segmenters.permutation_loss import IGNORED
from knn_cli.networks.segmenters.powerset import to_powerset
from knn_cli.store.corpora.recordings import CorpusPart, CorpusRecording, SoundSource
from knn_cli.store.labels import Labels, recording_names
from knn_cli.training.corpus_split import TrainingSplit
from knn_cli.training.dataset import RecordingCorpus
from knn_cli.training.recipe import Recipe
from knn_cli.training.sampling import Batch, ClipDataset, Key
from knn_cli.training.segmentation_recipe import SegmentationRecipe

Active = NDArray[np.bool_]


class TurnCorpus(RecordingCorpus):
    """Recordings with their turns.

    Parameters
    ----------
    source : Path
        A recording or a folder of recordings.
    references : Path
        A file or folder of turns, see `diarization.recordings.read_references`.
    uem : Path or None
        What of each recording is annotated; all of it where None.
    rate : int
        Samples per second.

    Raises
    ------
    KnnError
        For sound that cannot be read, and for recordings without turns.
    """

    def __init__(self, source: Path, references: Path, uem: Path | None, rate: int) -> None:
        paths = expand_folders([source])
        names = dict(zip(paths, recording_names(paths), strict=True))
        known = read_references(paths, references, uem, names)
        self.truths: list[tuple[Annotation, Timeline | None]] = [known[names[path]] for path in paths]
        recordings = [
            CorpusRecording(SoundSource(path), (CorpusPart(name, Labels(name, "", "", "")),))
            for path, name in names.items()
        ]
        super().__init__(recordings, source, rate)
        if empty := [path for row, path in enumerate(paths) if not len(self.spans(row))]:
            raise KnnError(f"The UEM names no part of {empty[0]}.", "Leave the recording out, or mend its line.")

    @property
    def identity(self) -> str:
        """A hash of names, lengths and turns, by which a resumed training recognizes its corpus."""
        turns = [
            sorted((segment.start, segment.end, str(label)) for segment, _, label in truth.itertracks(yield_label=True))
            for truth, _ in self.truths
        ]
        regions = [None if scored is None else [(part.start, part.end) for part in scored] for _, scored in self.truths]
        known = [self.columns.name.tolist(), self.columns.seconds.tolist(), turns, regions]
        return hashlib.sha256(repr(known).encode()).hexdigest()

    def frame_classes(self, row: int, times: Doubles, network: WaveformSegmenter) -> NDArray[np.int64]:
        """(T,) powerset class of a recording at each time; IGNORED where there is none.

        The local speakers are those who speak most at these times, as many as the network knows. Times with one of the
        others, with more speakers than classes have, and outside the annotated regions have no class.
        """
        active = active_speakers(self.truths[row][0], times)
        chosen = np.argsort(-active.sum(0), kind="stable")[: network.speakers]
        kept = np.zeros((len(times), network.speakers), dtype=bool)
        kept[:, : len(chosen)] = active[:, chosen]
        classes = to_powerset(torch.from_numpy(kept), network.speakers, network.most).numpy()
        classes[(active.sum(1) != kept.sum(1)) | (kept.sum(1) > network.most)] = IGNORED
        classes[~self.annotated(row, times)] = IGNORED
        return classes

    def spans(self, row: int) -> Doubles:
        """(S, 2) seconds at which the annotated parts of a recording start and end, longer than nothing."""
        seconds, scored = float(self.columns.seconds[row]), self.truths[row][1]
        spans = [(0.0, seconds)] if scored is None else [(part.start, min(part.end, seconds)) for part in scored]
        return np.asarray([(start, end) for start, end in spans if start < end]).reshape(-1, 2)

    def annotated(self, row: int, times: Doubles) -> Active:
        """(T,) which times of a recording are annotated: those within it, and within its UEM where there is one."""
        inside: Active = times < self.columns.seconds[row]
        scored = self.truths[row][1]
        return inside if scored is None else inside & _within(scored, times)


def active_speakers(truth: Annotation, times: Doubles) -> Active:
    """(T, speakers) who speaks at each time, by label."""
    columns = [_within(truth.label_timeline(label), times) for label in truth.labels()]
    return np.stack(columns, axis=1) if columns else np.zeros((len(times), 0), dtype=bool)


def _within(spans: Timeline, times: Doubles) -> Active:
    """(T,) which times lie in any of the spans."""
    inside = np.zeros(len(times), dtype=bool)
    for span in spans:
        inside |= (times >= span.start) & (times < span.end)
    return inside


def frame_times(network: WaveformSegmenter, samples: int, rate: int) -> Doubles:
    """(T,) seconds from the start of a window of `samples` to the middle of each of the network's frames."""
    frames = int(network.frames(samples))
    grid = np.linspace(0, samples / rate, 20 * frames)
    nearest = network.nearest(grid, frames)
    return np.array([grid[nearest == frame].mean() for frame in range(frames)])


def split_recordings(corpus: TurnCorpus, recipe: SegmentationRecipe) -> TrainingSplit:
    """Hold out a share of the recordings, at least one where the share is not 0. KnnError for too few recordings."""
    count = len(corpus)
    held_out = max(1, round(recipe.data.held_out * count)) if recipe.data.held_out else 0
    if held_out >= count:
        raise KnnError(
            f"{count} recordings are too few to hold {held_out} out.", "Add recordings, or set data.held_out = 0."
        )
    order = np.random.default_rng([recipe.seed, 3]).permutation(count).astype(np.int64)
    classes = np.zeros(count, dtype=np.int64)
    return TrainingSplit(corpus, ("speech",), classes, np.sort(order[held_out:]), np.sort(order[:held_out]))


class WindowDataset(ClipDataset):
    """Windows of recordings, drawn by the annotated length of each, with the class of each frame.

    Parameters
    ----------
    split : TrainingSplit
        Of a `TurnCorpus`.
    network : WaveformSegmenter
        The network, for its frames and classes.
    recipe : Recipe
        For the length of windows, augmentation and seed.
    """

    def __init__(self, split: TrainingSplit, network: WaveformSegmenter, recipe: Recipe) -> None:
        super().__init__(split.corpus, split.train_rows, split.classes[split.train_rows], 1, recipe)
        self.network = network
        self.times = frame_times(network, self.samples, split.corpus.rate)
        # A recording is listed once for each window that it holds, so that long ones are drawn more often.
        assert isinstance(split.corpus, TurnCorpus)
        lengths = np.asarray([np.diff(split.corpus.spans(row)).sum() for row in self.rows.tolist()])
        counts = np.maximum(1, np.floor(lengths / recipe.data.seconds)).astype(int)
        self.rows = np.repeat(self.rows, counts)
        self.classes = np.zeros(len(self.rows), dtype=np.int64)

    def clip(self, key: Key) -> Batch:
        """A batch of a single window; `labels` are (1, T) classes of its frames. Short recordings end in silence."""
        epoch, position, number = key
        random = np.random.default_rng([self.recipe.seed, epoch, 1, position])
        row, corpus = int(self.rows[number]), self.corpus
        assert isinstance(corpus, TurnCorpus)
        seconds = self.samples / corpus.rate
        start = self._start(row, seconds, random)
        sound = corpus.samples(row, start, seconds)[: self.samples]
        sound = np.pad(sound, (0, self.samples - len(sound)))
        classes = corpus.frame_classes(row, start + self.times, self.network)
        return Batch(self.augmenter(sound, random)[None], classes[None], np.zeros(1, dtype=np.int64))

    def _start(self, row: int, seconds: float, random: np.random.Generator) -> float:
        """Where a window of a recording starts: within an annotated part, or around one that is shorter."""
        corpus = self.corpus
        assert isinstance(corpus, TurnCorpus)
        spans = corpus.spans(row)
        lengths = spans[:, 1] - spans[:, 0]
        first, end = spans[random.choice(len(spans), p=lengths / lengths.sum())]
        low, high = sorted((first, end - seconds))
        start = float(random.uniform(low, high))
        return min(max(start, 0.0), max(0.0, float(corpus.columns.seconds[row]) - seconds))
