"""`knn classify` as functions: sound or embeddings to scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from knn_cli.core.errors import BundleError
from knn_cli.core.values import Doubles, EmbeddingSet, Floats, ScoreTable
from knn_cli.evaluation.metrics import weighted
from knn_cli.networks import bundle
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier
from knn_cli.recognition.classifier_file import read_classifier
from knn_cli.store import hdf5

if TYPE_CHECKING:
    from knn_cli.embedding.embedder import Embedder

ROWS_AT_ONCE = 1 << 14  # rows of a store that are scored together


class Classifier:
    """A bundle that knows labels; its embedder is loaded when it is first needed.

    Scores come from the classifier, or, in a bundle that has none, from the head that the network was trained with.

    open_set : whether score tables carry the bundle's threshold, where it has one, so that rows may be unknown

    Raises BundleError for a bundle with neither.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        batch_seconds: float | None = None,
        open_set: bool = True,
    ) -> None:
        self.bundle = bundle.find(bundle.LANGUAGE if model is None else model)
        if not self.bundle.knows_labels:
            have = [name for name, folder in bundle.available().items() if bundle.find(folder).knows_labels]
            raise BundleError(
                f"The model {self.bundle.name} knows no labels.",
                f"Train one with `knn train`; models with labels here: {', '.join(have) or '(none)'}.",
            )
        self.trained: CalibratedClassifier | None = None  # classifier.h5, with its transforms, PLDA and open set
        self.labels = self.bundle.head_labels
        self.meta: dict[str, Any] = {"label": self.bundle.config.get("head", {}).get("level", "group")}
        if self.bundle.classifier is not None:
            self.trained = read_classifier(self.bundle.classifier)
            self.labels = self.trained.labels
            self.meta = self.trained.meta
        self._device, self._batch_seconds, self._open_set = device, batch_seconds, open_set
        self._embedder: Embedder | None = None

    @property
    def priors(self) -> dict[str, float]:
        """Label -> how likely it is beforehand, as the training was told; a head's labels are all alike."""
        weights = [1 / len(self.labels)] * len(self.labels)
        if self.trained is not None:
            weights = self.trained.classifier.priors_.tolist()
        return dict(zip(self.labels, weights, strict=True))

    @property
    def embedder(self) -> Embedder:
        """The network in front of the classifier."""
        if self._embedder is None:
            from knn_cli.embedding.embedder import BATCH_SECONDS, Embedder

            source = self.bundle if self.bundle.has_network else bundle.find_embedder(self.bundle.fingerprint)
            seconds = BATCH_SECONDS if self._batch_seconds is None else self._batch_seconds
            self._embedder = Embedder(source, device=self._device, batch_seconds=seconds)
        return self._embedder

    def score(self, embeddings: EmbeddingSet, what: str = "The store", *, seconds: Doubles | None = None) -> ScoreTable:
        """Log-likelihoods (calibrated, of a classifier) of (N, D) embeddings; BundleError when another model made them.

        seconds : (N,) of sound in each row, for a calibration that asks how long it is; None: from its start to its end

        A head's scores are its logits: log-likelihoods up to a constant a row, if its training saw all classes alike.
        """
        bundle.check_embedder(embeddings.embedder, self.bundle.fingerprint, what)
        data, threshold = self._viewed(embeddings.data), None
        groups: tuple[str, ...] = ()
        if self.trained is None:
            scores = self.embedder.scores(data).astype(np.float64)
        else:
            scores = self.trained.score(data, embeddings.end - embeddings.start if seconds is None else seconds)
            threshold = self.trained.threshold if self._open_set else None
            groups = self.trained.label_groups
        truth = embeddings.label(str(self.meta.get("label", "group")))
        name, start, end = embeddings.name, embeddings.start, embeddings.end
        return ScoreTable(self.labels, scores, name, start, end, truth, threshold, groups)

    def transform(self, data: Floats | Doubles) -> Doubles:
        """(N, D') what the classifier and its PLDA take of vectors (N, D): their view, behind the transforms."""
        data = self._viewed(data)
        return data.astype(np.float64) if self.trained is None else self.trained.transforms.apply(data)

    def _viewed(self, data: Any) -> Any:
        view = str(self.meta.get("view") or "")
        return data[:, self.bundle.view(view)] if view else data

    def file(
        self, path: Path | str, *, segment: float | None = None, use_vad: bool = True, channel: str = "mix"
    ) -> ScoreTable:
        """Scores of one audio file: one row, or one every `segment` seconds. Raises as `embedding.files.embed_file`."""
        from knn_cli.embedding.files import embed_file

        embeddings = embed_file(path, self.embedder, segment=segment, use_vad=use_vad, channel=channel)
        return self.score(embeddings, str(path))

    def store(self, path: Path | str, *, use_vad: bool = True) -> Iterator[ScoreTable]:
        """Scores of a store of any size, block of rows after block; an audio store is embedded on the way."""
        with hdf5.Store(path) as opened:
            if opened.kind == "embeddings":
                for block in opened.blocks(ROWS_AT_ONCE):
                    yield self.score(block, str(path))
                return
            from knn_cli.embedding.stores import embed_rows

            for group in embed_rows(opened, self.embedder, use_vad=use_vad):
                if len(group.embeddings):
                    yield self.score(group.embeddings, str(path))


def posteriors(table: ScoreTable, priors: Mapping[str, float] | None = None) -> Doubles:
    """(N, C) probabilities of a score table; rows sum to 1.

    priors : how likely each label is beforehand, as `metrics.prior_weights` takes them; all alike where left out
    """
    scores = weighted(table, priors).log_likelihood
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Doubles = odds / odds.sum(axis=1, keepdims=True)
    return result
