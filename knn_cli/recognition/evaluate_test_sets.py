"""Models on test sets: the labelled rows of stores to score tables, evaluations and duration curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from knn_cli.audio.speech_regions import no_speech
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, EmbeddingSet, Progress, ScoreTable, Texts
from knn_cli.embedding.stores import embed_rows
from knn_cli.evaluation.duration_curve import duration_curve
from knn_cli.evaluation.evaluate import evaluate
from knn_cli.evaluation.metrics import prior_weights
from knn_cli.evaluation.results import DurationPoint, Evaluation
from knn_cli.recognition.classifier import ROWS_AT_ONCE, Classifier
from knn_cli.recognition.split_file import Split, read_split
from knn_cli.recognition.splitters import Mask
from knn_cli.recognition.train_classifier import fitted_hash
from knn_cli.store import hdf5
from knn_cli.store.hdf5 import Store

MAX_SAMPLE_ROWS = 4000  # of the rows that a map shows


@dataclass(frozen=True)
class TestSetOptions:
    """How models are evaluated on test sets.

    Parameters
    ----------
    split : Path, optional
        A split file; only rows of one of its sides or folds are evaluated, and no others are embedded.
    part : str
        That side or fold.
    max_segments : int
        Also evaluate rows that are averages of 1 to so many segments of a recording; 0: no such curve.
    bootstrap : int
        Draws of recordings for the intervals.
    priors : mapping, "model" or None
        How likely the labels are, as `prior_weights` takes them, or as each model's training says; None: equal.
    use_vad : bool
        Embed only the speech of audio stores.
    """

    __test__ = False  # the name is not that of a test

    split: Path | None = None
    part: str = "test"
    max_segments: int = 0
    bootstrap: int = 1000
    priors: Mapping[str, float] | Literal["model"] | None = None
    use_vad: bool = True


@dataclass(frozen=True)
class EvaluatedModel:
    """A model on the test sets.

    Attributes
    ----------
    name : str
        Of its bundle, numbered where two have the same.
    classifier : Classifier
    evaluation : Evaluation
    curve : tuple of DurationPoint
        Empty where none was asked for.
    fitted_rows : int or None
        Evaluated rows of recordings that the model was fitted to; None where its bundle does not say.
    """

    name: str
    classifier: Classifier
    evaluation: Evaluation
    curve: tuple[DurationPoint, ...]
    fitted_rows: int | None

    @property
    def rows(self) -> int:
        """Evaluated rows."""
        return len(self.evaluation.table)

    @property
    def recordings(self) -> int:
        """Their recordings."""
        return len(np.unique(self.evaluation.table.name))


@dataclass
class TestSet:
    """What was evaluated of a store.

    Attributes
    ----------
    path : Path
    labels : Counter
        Rows of each label.
    recordings : set of str
    seconds : float
        NaN where a row has no length.
    embedder : str
        Fingerprint of the first model's embedder.
    """

    __test__ = False  # the name is not that of a test

    path: Path
    labels: Counter[str] = field(default_factory=Counter)
    recordings: set[str] = field(default_factory=set)
    seconds: float = 0.0
    embedder: str = ""

    def add(self, rows: EmbeddingSet, level: str) -> None:
        """Count some rows."""
        self.labels.update(rows.label(level).tolist())
        self.recordings.update(rows.name.tolist())
        self.seconds += float((rows.end - rows.start).sum())
        self.embedder = rows.embedder


@dataclass(frozen=True)
class TestSetResult:
    """Models on test sets.

    Attributes
    ----------
    models : tuple of EvaluatedModel
        In the order that they were given.
    test_sets : tuple of TestSet
        In the order of the stores.
    sample : EmbeddingSet
        At most `MAX_SAMPLE_ROWS` of the rows, drawn, with the embeddings of the first model.
    level : str
        Of the labels.
    split : Split or None
        The split whose `part` was evaluated.
    part : str
    """

    __test__ = False  # the name is not that of a test

    models: tuple[EvaluatedModel, ...]
    test_sets: tuple[TestSet, ...]
    sample: EmbeddingSet
    level: str
    split: Split | None
    part: str


def evaluate_test_sets(
    sources: Sequence[Path],
    models: Sequence[Classifier],
    options: TestSetOptions | None = None,
    *,
    progress: Progress | None = None,
) -> TestSetResult:
    """Evaluate models on the labelled rows of stores.

    Audio stores are embedded once for each embedder. Rows are scored block by block and only their scores kept, except
    that a curve needs all embeddings.

    Parameters
    ----------
    sources : sequence of Path
        Stores of sound or embeddings.
    models : sequence of Classifier
        One or more.
    options : TestSetOptions, optional
        What is evaluated.
    progress : callable, optional
        Called with (embedders done, all embedders).

    Raises
    ------
    KnnError
        A source is no store, a side has no rows, a prior is of no label; and as `Classifier.score` and `evaluate`.
    """
    options = options or TestSetOptions()
    for source in sources:
        if not hdf5.is_store(source):
            raise KnnError(f"{source} is no store, whose rows have labels.", "Make one with `knn convert`.")
    split = read_split(options.split) if options.split is not None else None
    if split is not None and options.part not in split.parts:
        raise KnnError(f"The split has no side or fold {options.part!r}.", f"It has {', '.join(split.parts)}.")
    priors = [model.priors if options.priors == "model" else options.priors for model in models]
    for model, weights in zip(models, priors, strict=True):
        prior_weights(weights or {}, model.labels)  # refuses an unknown label before any work
    level = str(models[0].meta.get("label", "group"))
    scored = _score(sources, models, options, split, level, progress)
    evaluated = []
    names = numbered([model.bundle.name for model in models])
    for name, model, table, weights in zip(names, models, scored.tables, priors, strict=True):
        evaluation = evaluate(table, bootstrap=options.bootstrap, priors=weights)
        curve = _curve(model, scored.kept[model.bundle.fingerprint], options, weights)
        fitted_rows = _count_fitted_rows(model, evaluation.table.name)
        evaluated.append(EvaluatedModel(name, model, evaluation, curve, fitted_rows))
    return TestSetResult(tuple(evaluated), tuple(scored.test_sets), scored.sample.rows(), level, split, options.part)


def numbered(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that occur more than once."""
    return [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names, start=1)]


@dataclass(eq=False)
class _Scored:
    """All that one pass over the stores yields.

    tables    : scores by each model
    kept      : embedder -> blocks of embeddings, for curves
    test_sets : what was evaluated of each store
    sample    : some of the rows
    """

    tables: list[ScoreTable]
    kept: dict[str, list[EmbeddingSet]]
    test_sets: list[TestSet]
    sample: _Sample


def _score(
    sources: Sequence[Path],
    models: Sequence[Classifier],
    options: TestSetOptions,
    split: Split | None,
    level: str,
    progress: Progress | None,
) -> _Scored:
    """Score all rows by all models, embedder after embedder."""
    embedders = list(dict.fromkeys(model.bundle.fingerprint for model in models))
    blocks: list[list[ScoreTable]] = [[] for _ in models]
    kept: dict[str, list[EmbeddingSet]] = {fingerprint: [] for fingerprint in embedders}
    test_sets, sample = [TestSet(source) for source in sources], _Sample()
    for number, fingerprint in enumerate(embedders):
        places = [place for place, model in enumerate(models) if model.bundle.fingerprint == fingerprint]
        for source, test_set in zip(sources, test_sets, strict=True):
            for rows in _labelled_rows(source, models[places[0]], split, options):
                for place in places:
                    blocks[place].append(models[place].score(rows, str(source)))
                rows = replace(rows, embedder=fingerprint)
                if options.max_segments:
                    kept[fingerprint].append(rows)
                if number == 0:
                    sample.add(rows)
                    test_set.add(rows, level)
        if not blocks[places[0]]:
            if split is None:
                raise no_speech(", ".join(map(str, sources)), options.use_vad)
            raise KnnError(f"No row is on the side {options.part!r} of the split.", "Is it the split of another store?")
        if progress is not None:
            progress(number + 1, len(embedders))
    return _Scored([ScoreTable.concatenate(tables) for tables in blocks], kept, test_sets, sample)


def _labelled_rows(
    source: Path, model: Classifier, split: Split | None, options: TestSetOptions
) -> Iterator[EmbeddingSet]:
    """The rows of a store that are on a side of a split, block after block, none of them empty."""

    def side(names: Texts) -> Mask:
        assert split is not None
        return np.asarray(split.part_of(names) == options.part)

    with Store(source) as store:
        if store.kind == "embeddings":
            for first in range(0, len(store), ROWS_AT_ONCE):
                block = store.labels(first, first + ROWS_AT_ONCE)
                rows = slice(None) if split is None else np.flatnonzero(side(block.name))
                if len(block.name[rows]):
                    yield replace(block, data=store.data(first, first + ROWS_AT_ONCE)).take(rows)
            return
        names = store.encoded("name")
        chosen = np.arange(len(store)) if split is None else np.flatnonzero(side(names.values)[names.codes])
    with Store(source, rows=chosen) as store:
        for group in embed_rows(store, model.embedder, use_vad=options.use_vad):
            if len(group.embeddings):
                yield group.embeddings


class _Sample:
    """Draws `MAX_SAMPLE_ROWS` of any number of rows uniformly, and keeps their order."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._parts: list[EmbeddingSet] = []
        self._draw = np.zeros(0)

    def add(self, rows: EmbeddingSet) -> None:
        self._parts.append(rows)
        self._draw = np.concatenate([self._draw, self._rng.random(len(rows))])
        if len(self._draw) > MAX_SAMPLE_ROWS:
            lowest = np.sort(np.argpartition(self._draw, MAX_SAMPLE_ROWS)[:MAX_SAMPLE_ROWS])
            self._parts, self._draw = [self.rows().take(lowest)], self._draw[lowest]

    def rows(self) -> EmbeddingSet:
        return EmbeddingSet.concatenate(self._parts)


def _curve(
    model: Classifier, kept: Sequence[EmbeddingSet], options: TestSetOptions, priors: Any
) -> tuple[DurationPoint, ...]:
    """Figures by the number of segments that are averaged."""
    if not options.max_segments:
        return ()

    def score(rows: EmbeddingSet, seconds: Doubles) -> ScoreTable:
        return model.score(rows, seconds=seconds)

    counts = range(1, options.max_segments + 1)
    return duration_curve(EmbeddingSet.concatenate(kept), score, counts, bootstrap=options.bootstrap, priors=priors)


def _count_fitted_rows(model: Classifier, names: Texts) -> int | None:
    """Rows of recordings that the model was fitted to; None where its bundle does not say."""
    if "fitted" not in model.meta:  # of an older knn, or of too many recordings to note
        return None
    fitted = set(model.meta["fitted"])
    distinct, counts = np.unique(names, return_counts=True)
    pairs = zip(distinct.tolist(), counts.tolist(), strict=True)
    return int(sum(count for name, count in pairs if fitted_hash(name) in fitted))
