"""From a corpus to batches: which clips make a step, cut, augmented and stacked.

A clip is known by (epoch, place): the place is its number in the epoch of all processes together. Everything random
about it follows from that and the recipe's seed.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Floats
from knn_cli.training.augmentation import Augmenter, change_speed
from knn_cli.training.dataset import Corpus, Rows, epoch_rows
from knn_cli.training.recipe import Recipe

Key = tuple[int, int, int]  # epoch, place, number among the training rows


@dataclass(frozen=True)
class Batch:
    """Clips of one pass through the network, as arrays: tensors would take a file and a socket each between processes.

    waveforms : (B, S) float32
    labels    : (B,) int64
    seeds     : (B,) int64, of each clip's masks, see `spec_augment.SpecAugment`
    """

    waveforms: Floats
    labels: Rows
    seeds: Rows


class ClipDataset(Dataset[Batch]):
    """Single clips by key.

    corpus  : where they are cut from
    rows    : (N,) the corpus's rows to train on
    classes : (N,) int64, the class of each
    """

    def __init__(self, corpus: Corpus, rows: Rows, classes: Rows, count: int, recipe: Recipe) -> None:
        self.corpus, self.rows, self.classes, self.count, self.recipe = corpus, rows, classes, count, recipe
        self.samples = round(recipe.data.seconds * corpus.rate)
        self.augmenter = Augmenter(recipe.augment, corpus.rate)

    def clip(self, key: Key) -> Batch:
        """A batch of one clip."""
        epoch, place, number = key
        random = np.random.default_rng([self.recipe.seed, epoch, 1, place])
        speeds = self.augmenter.speeds
        chosen = int(random.integers(len(speeds)))
        needed = round(self.samples * speeds[chosen])
        raw = self.corpus.clip(int(self.rows[number]), needed, float(random.random()))
        clip = self.augmenter(change_speed(raw, self.samples, speeds[chosen]), random)
        label = int(self.classes[number]) + (self.count * chosen if self.augmenter.folds > 1 else 0)
        return Batch(clip[None], np.asarray([label], dtype=np.int64), random.integers(2**63, size=1, dtype=np.int64))

    def __getitem__(self, key: Key) -> Batch | KnnError:  # type: ignore[override]
        """As `clip`; a clip that cannot be read is returned as its error, which so crosses from a worker whole."""
        try:
            return self.clip(key)
        except KnnError as error:
            return error


class BatchSampler:
    """Which clips each process gets at each step.

    Each step has `loop.batch` clips, cut into `accumulate` parts for each of `processes`. An epoch has as many whole
    steps as its clips fill, one at least.

    Raises KnnError when the batch cannot be cut so.
    """

    def __init__(self, clips: ClipDataset, recipe: Recipe, rank: int, processes: int) -> None:
        batch, accumulate = recipe.loop.batch, recipe.loop.accumulate
        if batch % (processes * accumulate):
            raise KnnError(
                f"A batch of {batch} cannot be shared by {processes} processes of {accumulate} parts each.",
                "Change loop.batch or loop.accumulate.",
            )
        self._clips, self._recipe, self._rank, self._processes = clips, recipe, rank, processes
        self.part = batch // (processes * accumulate)  # clips that go through the network at once
        self.steps = max(1, (recipe.data.clips or len(clips.rows)) // batch)  # of an epoch

    def keys(self, epoch: int) -> list[Key]:
        """All clips of an epoch, of all processes."""
        recipe = self._recipe
        count = self.steps * recipe.loop.batch
        order = epoch_rows(self._clips.classes, count=count, balance=recipe.data.balance, seed=recipe.seed, epoch=epoch)
        return [(epoch, place, int(number)) for place, number in enumerate(order)]

    def labels(self, keys: list[Key]) -> Rows:
        """Classes of clips, without regard to speed."""
        return self._clips.classes[[number for _, _, number in keys]]

    def batches(self, epoch: int, first: int) -> Iterator[tuple[list[Key], Iterator[Batch]]]:
        """Of each step of an epoch from `first` on: the clips of all processes, and this process's own in parts.

        The parts must be taken before the next step is asked for. Raises KnnError for a clip that cannot be read.
        """
        size, accumulate = self._recipe.loop.batch, self._recipe.loop.accumulate
        keys = self.keys(epoch)[first * size :]
        steps = [keys[start : start + size] for start in range(0, len(keys), size)]
        batches = []
        for step in steps:
            for number in range(accumulate):
                start = (self._rank * accumulate + number) * self.part
                batches.append(step[start : start + self.part])
        loader: DataLoader[Batch] = DataLoader(
            self._clips,
            batch_sampler=batches,
            collate_fn=_stacked,
            num_workers=self._recipe.data.workers,
            generator=torch.Generator(),  # so that the global one, which dropout uses, is left alone
            worker_init_fn=_ignore_sigterm_for_a_minute,
        )
        self._clips.corpus.close()
        stream = iter(loader)
        for step in steps:
            yield step, (_raise_error(next(stream)) for _ in range(accumulate))


def _ignore_sigterm_for_a_minute(worker: int) -> None:
    """Let a worker go on for a minute after SIGTERM, which schedulers send to every process: its step needs it."""
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(60))  # SIGALRM ends the process


def _stacked(clips: list[Batch | KnnError]) -> Batch | KnnError:
    for clip in clips:
        if isinstance(clip, KnnError):
            return clip
    fields = [tuple(vars(clip).values()) for clip in clips]
    return Batch(*(np.concatenate(column) for column in zip(*fields, strict=True)))


def _raise_error(batch: Batch | KnnError) -> Batch:
    if isinstance(batch, KnnError):
        raise batch
    return batch
