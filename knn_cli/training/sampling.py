"""Sampling of training batches: clips are drawn, cut from the corpus, augmented and stacked.

A clip is identified by (epoch, position), its position in the epoch over all processes. All its random choices depend
only on these and on the recipe's seed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from knn_cli.core.errors import KnnError
from knn_cli.core.signals import become_helper
from knn_cli.core.values import Floats
from knn_cli.training.augmentation import Augmenter, change_speed
from knn_cli.training.dataset import Corpus, Rows, epoch_rows
from knn_cli.training.recipe import Recipe

Key = tuple[int, int, int]  # epoch, position in the epoch, index of the training row


@dataclass(frozen=True)
class Batch:
    """The clips of a single forward pass.

    They are arrays because each tensor would need a file and a socket to be passed between processes.

    Attributes
    ----------
    waveforms : (B, S) float32 array
        Samples in [-1, 1].
    labels : (B,) int64 array
        The class of each clip.
    seeds : (B,) int64 array
        The seed of each clip's masks (see `spec_augment.SpecAugment`).
    """

    waveforms: Floats
    labels: Rows
    seeds: Rows


class ClipDataset(Dataset[Batch]):
    """Single clips by key.

    Parameters
    ----------
    corpus : Corpus
        The corpus from which clips are cut.
    rows : (N,) int64 array
        Indices of the training rows in the corpus.
    classes : (N,) int64 array
        The class of each training row.
    count : int
        The number of labels.
    recipe : Recipe
        The recipe, for the clip length, augmentation and seed.
    """

    def __init__(self, corpus: Corpus, rows: Rows, classes: Rows, count: int, recipe: Recipe) -> None:
        self.corpus, self.rows, self.classes, self.count, self.recipe = corpus, rows, classes, count, recipe
        self.samples = round(recipe.data.seconds * corpus.rate)
        self.augmenter = Augmenter(recipe.augment, corpus.rate)

    def clip(self, key: Key) -> Batch:
        """A batch of a single clip."""
        epoch, position, number = key
        random = np.random.default_rng([self.recipe.seed, epoch, 1, position])
        speeds = self.augmenter.speeds
        chosen = int(random.integers(len(speeds)))
        needed = round(self.samples * speeds[chosen])
        row = int(self.rows[number])
        raw = self.corpus.clip(row, needed, self._position(row, needed / self.corpus.rate, random))
        clip = self.augmenter(change_speed(raw, self.samples, speeds[chosen]), random)
        label = int(self.classes[number]) + (self.count * chosen if self.augmenter.folds > 1 else 0)
        return Batch(clip[None], np.asarray([label], dtype=np.int64), random.integers(2**63, size=1, dtype=np.int64))

    def _position(self, row: int, seconds: float, random: np.random.Generator) -> float:
        """Where in a row a clip lies, from 0 to 1; in a row above the maximum, within a random part of that length."""
        position = float(random.random())
        maximum, length = self.recipe.data.maximum, float(self.corpus.columns.seconds[row])
        if maximum is None or length <= max(maximum, seconds):
            return position
        part = max(maximum, seconds)
        return ((length - part) * float(random.random()) + (part - seconds) * position) / (length - seconds)

    def __getitem__(self, key: Key) -> Batch | KnnError:  # type: ignore[override]
        """As `clip`, but an error is returned, not raised, so that it passes from a worker process unchanged."""
        try:
            return self.clip(key)
        except KnnError as error:
            return error


class BatchSampler:
    """Distributes clips over steps and processes.

    A step has `loop.batch` clips, which are divided into `loop.accumulate` parts for each process. An epoch has as many
    complete steps as its clips fill, at least one.

    Parameters
    ----------
    clips : ClipDataset
        The clips.
    recipe : Recipe
        The recipe.
    rank, processes : int
        The number of this process and the number of all processes.

    Raises
    ------
    KnnError
        The batch cannot be divided evenly.
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
        """The keys of all clips of an epoch, for all processes."""
        recipe = self._recipe
        count = self.steps * recipe.loop.batch
        order = epoch_rows(self._clips.classes, count=count, balance=recipe.data.balance, seed=recipe.seed, epoch=epoch)
        return [(epoch, position, int(number)) for position, number in enumerate(order)]

    def labels(self, keys: list[Key]) -> Rows:
        """The classes of clips, regardless of speed perturbation."""
        return self._clips.classes[[number for _, _, number in keys]]

    def batches(self, epoch: int, first: int) -> Iterator[tuple[list[Key], Iterator[Batch]]]:
        """Iterate over the steps of an epoch.

        Parameters
        ----------
        epoch : int
            The number of the epoch.
        first : int
            The step to start from.

        Yields
        ------
        keys : list of Key
            The clips of all processes in this step.
        batches : iterator of Batch
            This process's clips, in `loop.accumulate` parts, which must be consumed before the next step is requested.

        Raises
        ------
        KnnError
            A clip cannot be read.
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
            generator=torch.Generator(),  # so that the global generator, which dropout uses, is unaffected
            worker_init_fn=_as_helper,
        )
        self._clips.corpus.close()
        stream = iter(loader)
        for step in steps:
            yield step, (_raise_error(next(stream)) for _ in range(accumulate))


def _as_helper(worker: int) -> None:
    """Leave signals to the main process, with which the worker ends; SIGTERM leaves a minute to finish the step."""
    become_helper(os.getppid())
    if hasattr(signal, "SIGALRM"):  # which ends the process; schedulers send SIGTERM to all processes
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(60))


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
