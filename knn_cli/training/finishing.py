"""The end of a training: weights to a bundle, with a classifier fitted on its embeddings."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from knn_cli.audio import speech_regions
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Floats, Texts, Waveform
from knn_cli.embedding.chunks import CHUNK_SECONDS
from knn_cli.embedding.embedder import Embedder
from knn_cli.evaluation import metrics
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier, fit_calibrated
from knn_cli.recognition.classifier_file import write_classifier
from knn_cli.training.dataset import Rows, Task
from knn_cli.training.model_builder import Design, plain_state
from knn_cli.training.recipe import Recipe

__all__ = ["Finished", "Trained", "finish"]

_HEARD_SECONDS = 60.0  # of a row, for the classifier
_ROWS_AT_ONCE = 32  # whose speech is looked for side by side
_PATHS = (("init", "model"), ("augment", "noise"), ("augment", "music"), ("augment", "rir"))  # in recipes


@dataclass(frozen=True)
class Finished:
    """A bundle, and its classifier's accuracy on held-out rows (NaN where none are held out or it has none).

    note : why there is no classifier, or what it lacks; "" where all is well
    """

    bundle: Bundle
    accuracy: float
    note: str


@dataclass(frozen=True)
class Trained:
    """A finished training.

    epochs   : how many were run
    accuracy : of the network's head on held-out rows, the mean over labels, at the weights that were kept
    finished : the bundle and its classifier; None in processes that are not the main one
    """

    labels: tuple[str, ...]
    rows: int
    held: int
    epochs: int
    accuracy: float
    finished: Finished | None

    @property
    def lines(self) -> list[str]:
        """The same for people."""
        told = [
            f"labels      {len(self.labels)}: {', '.join(self.labels)}",
            f"trained on  {self.rows} rows, {self.epochs} epochs; held out {self.held} rows",
        ]
        by_classifier = math.nan if self.finished is None else self.finished.accuracy
        for name, accuracy in (("head", self.accuracy), ("classifier", by_classifier)):
            if not math.isnan(accuracy):
                told.append(f"accuracy    {accuracy:.1%} ({name}, held-out rows, mean over labels)")
        return told + ([] if self.finished is None else [f"model       {self.finished.bundle.folder}"])


def finish(
    task: Task,
    design: Design,
    state: dict[str, Tensor],
    out: Path,
    facts: Mapping[str, Any],
    *,
    accuracy: float,
    past: str,
    work: Path,
    device: str,
    use_vad: bool,
    force: bool,
) -> Finished:
    """Write the bundle of a trained network.

    state    : weights of the network with its head, plain (see `tuning.merged_state`)
    facts    : what the bundle says of the training
    accuracy : of the head on held-out rows, for the card
    past     : for the card, what the model that this one began with heard (see `lineage`)
    work     : a folder for what is made on the way

    The classifier is fitted on embeddings of the rows that were trained on, and calibrated on those of held-out rows,
    which the network never heard; without held-out rows it is calibrated by cross-validation, which flatters it.
    """
    recipe = design.recipe
    config = design.config(task.labels)
    dimension = bundle.build_network(config).dimension
    state = plain_state(design, state, dimension, len(task.labels))
    facts = {**facts, "held_out_accuracy": None if math.isnan(accuracy) else accuracy, "recipe": _told(recipe)}
    config = {"name": out.name, "kind": "classifier", **config, "labels": list(task.labels), "training": facts}
    folder = work / "network"
    shutil.rmtree(folder, ignore_errors=True)
    network = bundle.write(folder, config, state=state)
    card = _card(task, design, facts, accuracy, past)
    if recipe.loop.classifier == "head":
        return Finished(bundle.write(out, config, state=state, card=card, force=force), math.nan, "")
    embedder = Embedder(network, device=device)
    random = np.random.default_rng(recipe.seed)
    fitted = _embedded(task, _some(task, task.fitted, recipe.data.fit, random), embedder, use_vad)
    held = _embedded(task, _some(task, task.held, recipe.data.fit, random), embedder, use_vad)
    try:
        classifier, right, note = _classifier(fitted, held, task.labels, recipe.seed)
    except KnnError as error:
        made = bundle.write(out, config, state=state, card=card, force=force)
        return Finished(
            made, math.nan, f"The head classifies, for no other classifier could be fitted: {error.message}"
        )
    meta = {"label": recipe.data.label, "view": "", "held_out": {"accuracy": None if math.isnan(right) else right}}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / bundle.CLASSIFIER
        write_classifier(path, replace(classifier, meta=meta))
        return Finished(bundle.write(out, config, state=state, classifier=path, card=card, force=force), right, note)


@dataclass(frozen=True)
class _Rows:
    """Embeddings (N, E) with the label and recording of each."""

    data: Floats
    truth: Texts
    names: Texts


def _classifier(
    fitted: _Rows, held: _Rows, labels: tuple[str, ...], seed: int
) -> tuple[CalibratedClassifier, float, str]:
    """The classifier, its accuracy on held-out rows, and what there is to say of it."""
    if missing := sorted(set(labels) - set(fitted.truth.tolist())):
        raise KnnError(f"no row of {missing[0]!r} holds speech.", "Try --no-vad.")
    if set(held.truth.tolist()) == set(labels):
        model = fit_calibrated(
            fitted.data, fitted.truth, fitted.names, calibration_rows=(held.data, held.truth), seed=seed
        )
        scores, truth = model.classifier.log_likelihood(held.data), np.searchsorted(model.labels, held.truth)
        return model, metrics.balanced_accuracy(scores.argmax(axis=1), truth), ""
    model = fit_calibrated(fitted.data, fitted.truth, fitted.names, seed=seed)
    note = "The classifier is not calibrated."
    if model.is_calibrated:
        note = "The classifier was calibrated on rows that the network was trained on; its costs are too sure."
    return model, math.nan, note


def _some(task: Task, rows: Rows, most: int, random: np.random.Generator) -> Rows:
    """At most so many rows of each class, drawn."""
    chosen = [random.permutation(rows[task.classes[rows] == one])[:most] for one in range(len(task.labels))]
    return np.sort(np.concatenate(chosen))


def _embedded(task: Task, rows: Rows, embedder: Embedder, use_vad: bool) -> _Rows:
    """Rows with enough speech."""
    found = embedder.averages(_speech(task, rows, embedder, use_vad))
    kept = np.asarray(sorted(found), dtype=np.int64)
    data = np.stack([found[row] for row in kept]) if len(kept) else np.zeros((0, embedder.dimension), np.float32)
    return _Rows(data, np.asarray(task.labels)[task.classes[kept]], task.corpus.columns.name[kept])


def _speech(task: Task, rows: Rows, embedder: Embedder, use_vad: bool) -> Iterator[tuple[int, Floats]]:
    """(row, (S,) samples) of the speech of each row, in chunks of the embedder's size."""
    rate = embedder.rate
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[first : first + _ROWS_AT_ONCE].tolist()
        clips = [Waveform(task.corpus.samples(row, 0.0, _HEARD_SECONDS), rate) for row in some]
        for row, clip, regions in zip(some, clips, speech_regions.of_clips(clips, use_vad=use_vad), strict=True):
            parts = [clip.crop(region.start, region.end).samples for region in regions]
            speech = np.concatenate([np.zeros(0, np.float32), *parts])
            if len(speech) >= embedder.minimum_seconds * rate and not speech_regions.is_silent(speech):
                for chunk in np.array_split(speech, math.ceil(len(speech) / (CHUNK_SECONDS * rate))):
                    yield row, chunk


def _told(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON has it, without what is left at its default; of paths, which are this machine's, the last
    part only.
    """
    default, mine = Recipe().plain(), recipe.plain()
    for table, key in _PATHS:
        mine[table][key] = Path(mine[table][key]).name
    if mine["data"]["labels"].endswith((".csv", ".tsv")):  # else it is a rule, not a file
        mine["data"]["labels"] = Path(mine["data"]["labels"]).name
    told: dict[str, Any] = {}
    for key, value in mine.items():
        if isinstance(value, dict) and isinstance(default[key], dict):
            value = {one: own for one, own in value.items() if one not in default[key] or own != default[key][one]}
        if value not in ({}, default[key]):
            told[key] = value
    return told


def _card(task: Task, design: Design, facts: Mapping[str, Any], accuracy: float, past: str) -> str:
    parts = ", ".join(f"{part} {one.name}" for part, one in design.parts.items())
    counts = [
        (int((task.classes[rows] == one).sum()) for rows in (task.fitted, task.held)) for one in range(len(task.labels))
    ]
    table = "\n".join(
        f"| {label} | {' | '.join(map(str, pair))} |" for label, pair in zip(task.labels, counts, strict=True)
    )
    first = (
        ""
        if design.origin is None
        else f" Its {', '.join(design.recipe.init.parts)} began as {design.origin.fingerprint}."
    )
    held = (
        "No rows were held out, so nothing is known of its accuracy."
        if math.isnan(accuracy)
        else f"On held-out {design.recipe.data.unit}s ({design.recipe.data.held_out:.0%} of each label, seed "
        f"{design.recipe.seed}) its head is right in {accuracy:.1%} of rows, the mean over labels. The\n"
        "classifier's calibration and, with keep = best, the weights were chosen on these rows, which flatters the "
        "figure."
    )
    return (
        f"# Network trained with the recipe {design.recipe.name}\n\n{len(task.labels)} labels "
        f"({design.recipe.data.label}); {parts}; {facts['epochs']} epochs, {facts['steps']} "
        f"steps.{first}\n\n{held}\n\n"
        f"| label | rows trained on | rows held out |\n|---|---|---|\n{table}\n\n"
        "Held-out recordings of speakers, rooms and microphones that training also heard flatter the figure too: the\n"
        "network may know the channel. Measure on recordings from elsewhere before trusting it.\n"
    ) + (f"\n{past}\n" if past else "")
