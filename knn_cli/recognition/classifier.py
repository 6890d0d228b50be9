"""`Classifier`: a bundle that turns audio, stores and embeddings into scores of its labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from knn_cli.core.device import torch_device
from knn_cli.core.display_names import display_names
from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.languages import NO_SPEECH, choose_labels
from knn_cli.core.values import Doubles, EmbeddingSet, Floats, ScoreTable
from knn_cli.evaluation.metrics import weighted
from knn_cli.evaluation.open_set import UNKNOWN, possible_answers
from knn_cli.networks import bundle
from knn_cli.networks.chunk_setting import Chunk
from knn_cli.networks.precision import AUTO, Precision
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier
from knn_cli.recognition.classifier_file import read_classifier
from knn_cli.recognition.head_settings import HeadSettings, read_head_settings
from knn_cli.store import hdf5

if TYPE_CHECKING:
    import torch

    from knn_cli.embedding.embedder import Embedder

ROWS_AT_ONCE = 1 << 14  # rows of a store that are scored together


class Classifier:
    """A model that knows labels; its embedder is loaded when it is first needed.

    Scores come from the bundle's classifier, or, where it has none, from the head that the network was trained with.

    With `languages`, probabilities are over these labels alone; the threshold of the open set still compares the best
    of them with all labels of the model (`evaluation.open_set`). Sound without speech (`zxx`) and a trained label
    `unknown` remain possible answers, unless `open_set` is false; no speech is as probable as without the set.

    Parameters
    ----------
    model : str or Path, optional
        Name or folder of a bundle; None: the shipped model `language`.
    device : str
        As for `Embedder`.
    batch_seconds : float, optional
        Sound that goes through the network at once.
    chunk : float or "whole", optional
        The most seconds of a clip that it hears at once, see `Embedder`; None takes what the bundle says.
    precision : str
        In which numbers the network computes, see `Embedder`.
    languages : sequence of str, optional
        The labels that are possible, as `core.languages.find_label` takes them: labels of the model, ISO 639 codes,
        names in English or in the language itself. None: all labels of the model.
    open_set : bool
        Whether rows may have none of the languages: where the bundle has a threshold, score tables carry it, and `zxx`
        and `unknown` are labels where the model knows them. False: every row gets a language.

    Attributes
    ----------
    bundle : Bundle
    labels : tuple of str
        (C,) possible answers in the order of the scores, which is that of the model.
    meta : dict
        What the bundle notes of its training.
    trained : CalibratedClassifier or None
        What classifier.h5 holds; None: the labels are those of the network's head.
    head : HeadSettings or None
        What the config says of the head's scores; None with a classifier.

    Raises
    ------
    BundleError
        The bundle has neither a classifier nor a head, or there is no such bundle, or the settings of its head are no
        good.
    KnnError
        The model does not know one of the languages, or fewer than two labels remain.

    Examples
    --------
    >>> from knn_cli import Classifier
    >>> classifier = Classifier()
    >>> table = classifier.score_file("meeting.flac")
    >>> table.labels[table.log_likelihood[0].argmax()]
    'en'
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        batch_seconds: float | None = None,
        chunk: Chunk | None = None,
        precision: Precision = AUTO,
        languages: Sequence[str] | None = None,
        open_set: bool = True,
    ) -> None:
        found = bundle.find_default(bundle.LANGUAGE) if model is None else bundle.find(model)
        self.bundle = found.with_settings(chunk=chunk, precision=None if precision == AUTO else precision)
        if not self.bundle.knows_labels:
            with_labels = sorted({known.folder.name for known in bundle.usable() if known.knows_labels})
            raise BundleError(
                f"The model {self.bundle.name} knows no labels.",
                f"Train one with `knn train`; models with labels here: {', '.join(with_labels) or '(none)'}.",
            )
        self.trained: CalibratedClassifier | None = None  # classifier.h5, with its transforms, PLDA and open set
        self.head: HeadSettings | None = None
        if self.bundle.classifier is not None:
            self.trained = read_classifier(self.bundle.classifier)
            self._all_labels, threshold = self.trained.labels, self.trained.threshold
            self.meta: dict[str, Any] = self.trained.meta
        else:
            self.head = read_head_settings(self.bundle)
            self._all_labels = self.bundle.head_labels
            threshold = None if self.head.open_set is None else self.head.open_set.threshold
            self.meta = {"label": self.bundle.config["head"].get("level", "group")}
        self.labels = _answers(self._all_labels, languages, open_set, self.bundle.name)
        self._threshold = threshold if open_set else None
        self._device, self._batch_seconds = device, batch_seconds
        self._embedder: Embedder | None = None

    @property
    def known_labels(self) -> tuple[str, ...]:
        """All labels that the model knows; `labels` are those that are possible answers."""
        return self._all_labels

    @property
    def names(self) -> dict[str, str]:
        """Label -> name of the labels and groups that have one: those of the bundle, otherwise of languages."""
        given: dict[str, str] = self.bundle.config.get("names", {})
        groups = () if self.trained is None else self.trained.label_groups
        return display_names(self.labels, given) | {group: given[group] for group in groups if group in given}

    @property
    def priors(self) -> dict[str, float]:
        """Label -> prior probability: that of the training; equal for the labels of a head."""
        weights = dict.fromkeys(self.labels, 1.0)
        if self.trained is not None:
            trained = dict(zip(self._all_labels, self.trained.classifier.priors_.tolist(), strict=True))
            weights = {label: trained[label] for label in self.labels}
        total = sum(weights.values())
        return {label: weight / total for label, weight in weights.items()}

    @property
    def device(self) -> torch.device:
        """Where sound is embedded."""
        return torch_device(self._device)

    @property
    def embedder(self) -> Embedder:
        """The network in front of the classifier."""
        if self._embedder is None:
            from knn_cli.embedding.embedder import BATCH_SECONDS, Embedder

            source = self.bundle if self.bundle.has_network else bundle.find_embedder(self.bundle.fingerprint)
            seconds = BATCH_SECONDS if self._batch_seconds is None else self._batch_seconds
            self._embedder = Embedder(source, device=self._device, batch_seconds=seconds)
        return self._embedder

    def score(
        self, embeddings: EmbeddingSet, source: str = "The store", *, seconds: Doubles | None = None
    ) -> ScoreTable:
        """Score embeddings.

        Parameters
        ----------
        embeddings : EmbeddingSet
            (N, D) of this model's embedder.
        source : str
            Where they are from, for messages.
        seconds : (N,) array, optional
            Seconds of sound in each row, for a calibration that depends on it; None: from its start to its end.

        Returns
        -------
        ScoreTable
            (N, C) calibrated log-likelihoods. A head's scores are its logits behind the calibration of the config:
            log-likelihoods up to a constant for each row, if its training balanced the classes.

        Raises
        ------
        BundleError
            Another model made the embeddings.
        """
        bundle.check_embedder(embeddings.embedder, self.bundle.fingerprint, source)
        data = self._select_view(embeddings.data)
        seconds = embeddings.end - embeddings.start if seconds is None else seconds
        groups: tuple[str, ...] = ()
        if self.trained is not None:
            scores, groups = self.trained.score_unbounded(data, seconds), self.trained.label_groups
        else:
            assert self.head is not None
            scores = self.head.calibration.apply(self.embedder.scores(data), seconds)
        truth = embeddings.label(str(self.meta.get("label", "group")))
        name, start, end = embeddings.name, embeddings.start, embeddings.end
        table = ScoreTable(self._all_labels, scores, name, start, end, truth, self._threshold, groups)
        table = table.restrict(self.labels)
        if self.trained is None:
            return table
        return replace(table, log_likelihood=self.trained.calibration.bounded(table.log_likelihood))

    def transform(self, data: Floats | Doubles) -> Doubles:
        """(N, D') what the classifier and its PLDA take of embeddings (N, D): their view, behind the transforms."""
        data = self._select_view(data)
        return data.astype(np.float64) if self.trained is None else self.trained.transforms.apply(data)

    def _select_view(self, data: Any) -> Any:
        view = str(self.meta.get("view") or "")
        return data[:, self.bundle.view(view)] if view else data

    def score_file(
        self, path: Path | str, *, segment: float | None = None, use_vad: bool = True, channel: str = "mix"
    ) -> ScoreTable:
        """Score an audio file: one row, or one every `segment` seconds. Takes and raises what `embed_file` does."""
        from knn_cli.embedding.files import embed_file

        embeddings = embed_file(path, self.embedder, segment=segment, use_vad=use_vad, channel=channel)
        return self.score(embeddings, str(path))

    def score_store(self, path: Path | str, *, use_vad: bool = True, jobs: int | None = None) -> Iterator[ScoreTable]:
        """Score a store of any size, block of rows after block; an audio store is embedded, see `embed_rows`."""
        with hdf5.Store(path) as store:
            if store.kind == "embeddings":
                for block in store.blocks(ROWS_AT_ONCE):
                    yield self.score(block, str(path))
                return
            from knn_cli.embedding.stores import embed_rows

            for group in embed_rows(store, self.embedder, use_vad=use_vad, jobs=jobs):
                if len(group.embeddings):
                    yield self.score(group.embeddings, str(path))


def _answers(labels: tuple[str, ...], languages: Sequence[str] | None, open_set: bool, model: str) -> tuple[str, ...]:
    """The labels that are possible answers, in the order of the model; KnnError if there are fewer than two."""
    none = {NO_SPEECH, UNKNOWN}
    declared = labels if languages is None else choose_labels(languages, labels, model)
    if open_set:
        return tuple(label for label in labels if label in none or label in declared)
    answers = tuple(label for label in declared if languages is not None or label not in none)
    if len(answers) < 2:
        raise KnnError(f"The model {model} knows only {', '.join(answers) or 'no language'}.", "Name another model.")
    return answers


def posteriors(table: ScoreTable, priors: Mapping[str, float] | None = None) -> Doubles:
    """Probabilities of a score table.

    Parameters
    ----------
    table : ScoreTable
        (N, C) log-likelihoods. Beside a declared set, `zxx` keeps its probability (`open_set.possible_answers`).
    priors : mapping, optional
        How likely each label is, as `metrics.prior_weights` takes them; None: equal.

    Returns
    -------
    (N, C) float64 array
        Rows sum to 1.
    """
    scores = weighted(possible_answers(table), priors).log_likelihood
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Doubles = odds / odds.sum(axis=1, keepdims=True)
    return result
