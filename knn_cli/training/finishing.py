"""The end of a training: weights to a bundle, with a classifier fitted on its embeddings."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from knn_cli.audio import speech_regions
from knn_cli.core.errors import KnnError
from knn_cli.core.temporary import TemporaryFolder
from knn_cli.core.values import Floats, Texts, Waveform
from knn_cli.embedding.chunks import rechunk
from knn_cli.embedding.embedder import Embedder
from knn_cli.evaluation import metrics
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.networks.construction import build_network
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier, fit_calibrated
from knn_cli.recognition.classifier_file import write_classifier
from knn_cli.training.corpus_split import TrainingSplit
from knn_cli.training.dataset import Rows
from knn_cli.training.model_builder import ModelBuilder, without_speed_classes
from knn_cli.training.model_card import plain_recipe, write_card

__all__ = ["FinishedModel", "TrainedNetwork", "TrainingResult", "finish_model"]

MAX_ROW_SECONDS = 60.0  # of a row, for the classifier
SPEECH_BATCH_ROWS = 32  # rows whose speech is detected together


@dataclass(frozen=True)
class TrainedNetwork:
    """What the loop leaves.

    Attributes
    ----------
    state : dict
        Weights of the network with its head, low-rank changes merged (see `fine_tuning.merged_state`).
    accuracy : float
        Of the head on held-out rows, the mean over labels; NaN without such rows.
    facts : mapping
        What the bundle's config says of the training.
    history_note : str
        For the card: what the model that this one began with was trained on (see `lineage`).
    """

    state: dict[str, Tensor]
    accuracy: float
    facts: Mapping[str, Any]
    history_note: str


@dataclass(frozen=True)
class FinishedModel:
    """A bundle and the accuracy of its classifier.

    Attributes
    ----------
    bundle : Bundle
    accuracy : float
        Of the classifier on held-out rows; NaN if none are held out or there is no classifier.
    note : str
        Why there is no classifier, or what it lacks; "" if all is well.
    """

    bundle: Bundle
    accuracy: float
    note: str


@dataclass(frozen=True)
class TrainingResult:
    """A finished training.

    Attributes
    ----------
    labels : tuple of str
    train_rows, held_out_rows : int
        Numbers of rows.
    epochs : int
        How many were run.
    accuracy : float
        Of the network's head on held-out rows, the mean over labels, with the weights that were kept.
    finished : FinishedModel or None
        The bundle and its classifier; None in processes that are not the main one.
    """

    labels: tuple[str, ...]
    train_rows: int
    held_out_rows: int
    epochs: int
    accuracy: float
    finished: FinishedModel | None

    @property
    def lines(self) -> list[str]:
        """The same as lines of text."""
        lines = [
            f"labels      {len(self.labels)}: {', '.join(self.labels)}",
            f"trained on  {self.train_rows} rows, {self.epochs} epochs; held out {self.held_out_rows} rows",
        ]
        by_classifier = math.nan if self.finished is None else self.finished.accuracy
        for name, accuracy in (("head", self.accuracy), ("classifier", by_classifier)):
            if not math.isnan(accuracy):
                lines.append(f"accuracy    {accuracy:.1%} ({name}, held-out rows, mean over labels)")
        return lines + ([] if self.finished is None else [f"model       {self.finished.bundle.folder}"])


def finish_model(
    split: TrainingSplit,
    builder: ModelBuilder,
    trained: TrainedNetwork,
    out: Path,
    *,
    work: Path,
    device: str,
    use_vad: bool,
    force: bool,
) -> FinishedModel:
    """Write the bundle of a trained network.

    The classifier is fitted on embeddings of the rows that were trained on, and calibrated on those of held-out rows,
    which the network has never seen; without held-out rows it is calibrated by cross-validation, which flatters it.

    Parameters
    ----------
    split, builder, trained
        The rows, the parts of the network, and its weights.
    out
        The bundle's folder.
    work
        A folder for intermediate files.
    device, use_vad, force
        As of `trainer.train`.
    """
    recipe, labels = builder.recipe, split.labels
    config = builder.config(labels)
    dimension = build_network(config).dimension
    state = without_speed_classes(builder, trained.state, dimension, len(labels))
    accuracy = None if math.isnan(trained.accuracy) else trained.accuracy
    facts = {**trained.facts, "held_out_accuracy": accuracy, "recipe": plain_recipe(recipe)}
    config = {"name": out.name, "kind": "classifier", **config, "labels": list(labels), "training": facts}
    card = write_card(split, builder, facts, trained.accuracy, trained.history_note)

    def write(classifier: Path | None = None) -> Bundle:
        return bundle.write(out, config, state=state, classifier=classifier, card=card, force=force)

    if recipe.loop.classifier == "head":
        return FinishedModel(write(), math.nan, "")
    with TemporaryFolder(work / "network") as temporary_folder:
        embedder = Embedder(bundle.write(temporary_folder.path / "network", config, state=state), device=device)
    random = np.random.default_rng(recipe.seed)
    train = _embed(split, _draw_rows(split, split.train_rows, recipe.data.fit, random), embedder, use_vad)
    held_out = _embed(split, _draw_rows(split, split.held_out_rows, recipe.data.fit, random), embedder, use_vad)
    try:
        classifier, right, note = _classifier(train, held_out, labels, recipe.seed)
    except KnnError as error:
        note = f"The head classifies, for no other classifier could be fitted: {error.message}"
        return FinishedModel(write(), math.nan, note)
    meta = {"label": recipe.data.label, "view": "", "held_out": {"accuracy": None if math.isnan(right) else right}}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / bundle.CLASSIFIER
        write_classifier(path, replace(classifier, meta=meta))
        return FinishedModel(write(path), right, note)


@dataclass(frozen=True)
class _EmbeddedRows:
    """Embeddings (N, E) with the label and recording of each."""

    data: Floats
    truth: Texts
    names: Texts


def _classifier(
    train: _EmbeddedRows, held_out: _EmbeddedRows, labels: tuple[str, ...], seed: int
) -> tuple[CalibratedClassifier, float, str]:
    """The classifier, its accuracy on held-out rows, and what there is to say of it."""
    if missing := sorted(set(labels) - set(train.truth.tolist())):
        raise KnnError(f"no row of {missing[0]!r} holds speech.", "Try `use_vad=False`.")
    if set(held_out.truth.tolist()) == set(labels):
        model = fit_calibrated(
            train.data, train.truth, train.names, calibration_rows=(held_out.data, held_out.truth), seed=seed
        )
        scores, truth = model.classifier.log_likelihood(held_out.data), np.searchsorted(model.labels, held_out.truth)
        return model, metrics.balanced_accuracy(scores.argmax(axis=1), truth), ""
    model = fit_calibrated(train.data, train.truth, train.names, seed=seed)
    note = "The classifier is not calibrated."
    if model.is_calibrated:
        note = "The classifier was calibrated on rows that the network was trained on; its scores are overconfident."
    return model, math.nan, note


def _draw_rows(split: TrainingSplit, rows: Rows, count: int, random: np.random.Generator) -> Rows:
    """Up to `count` rows of each class, drawn at random."""
    chosen = [random.permutation(rows[split.classes[rows] == label])[:count] for label in range(len(split.labels))]
    return np.sort(np.concatenate(chosen))


def _embed(split: TrainingSplit, rows: Rows, embedder: Embedder, use_vad: bool) -> _EmbeddedRows:
    """Rows with enough speech."""
    speech = _speech(split, rows, embedder, use_vad)
    embeddings = embedder.averages(rechunk(speech, embedder.rate, embedder.chunk_seconds))
    kept = np.asarray(sorted(embeddings), dtype=np.int64)
    data = np.stack([embeddings[row] for row in kept]) if len(kept) else np.zeros((0, embedder.dimension), np.float32)
    return _EmbeddedRows(data, np.asarray(split.labels)[split.classes[kept]], split.corpus.columns.name[kept])


def _speech(split: TrainingSplit, rows: Rows, embedder: Embedder, use_vad: bool) -> Iterator[tuple[int, Floats]]:
    """(row, (S,) samples) of the speech of each row."""
    rate = embedder.rate
    for first in range(0, len(rows), SPEECH_BATCH_ROWS):
        batch = rows[first : first + SPEECH_BATCH_ROWS].tolist()
        clips = [Waveform(split.corpus.samples(row, 0.0, MAX_ROW_SECONDS), rate) for row in batch]
        for row, clip, regions in zip(batch, clips, speech_regions.of_clips(clips, use_vad=use_vad), strict=True):
            parts = [clip.crop(region.start, region.end).samples for region in regions]
            speech = np.concatenate([np.zeros(0, np.float32), *parts])
            if len(speech) >= embedder.minimum_seconds * rate and not speech_regions.is_silent(speech):
                yield row, speech
