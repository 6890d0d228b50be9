"""Models tried on test sets: stores to evaluations, curves and a report; lists of speaker trials to scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np

from knn_cli import __version__
from knn_cli.audio.speech_regions import no_speech
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, EmbeddingSet, Progress, ScoreTable, Texts
from knn_cli.embedding.stores import embed_rows
from knn_cli.evaluation import duration_curve
from knn_cli.evaluation.evaluate import evaluate
from knn_cli.evaluation.metrics import prior_weights
from knn_cli.evaluation.results import DurationPoint
from knn_cli.evaluation.verification_metrics import VerificationMetrics, verification_metrics
from knn_cli.networks import bundle
from knn_cli.recognition import verification
from knn_cli.recognition.classifier import ROWS_AT_ONCE, Classifier
from knn_cli.recognition.split_file import Split, read_split
from knn_cli.recognition.train_classifier import fitted_hash
from knn_cli.recognition.trials import Trials
from knn_cli.reports.contents import ReportContents
from knn_cli.reports.notes import different_labels_note, priors_note
from knn_cli.reports.report import write_report
from knn_cli.reports.tables import NamedEvaluation, counted
from knn_cli.store import hdf5
from knn_cli.store.hdf5 import Store

Priors = Mapping[str, float] | Literal["model"] | None

MAPPED = 4000  # rows of a map


@dataclass(frozen=True)
class Tested:
    """What `test` finds.

    models  : in the order that they were given, each under a name of its own
    curves  : by the name of the model, where more than one segment was to be averaged
    rows    : for a map: `MAPPED` of those that were tested at most, with the embeddings of the first model
    missing : sentences about what was left out, and what to know before the figures are trusted or compared
    sources : the stores; a player plays the rows of audio stores
    cards   : by "Data: " and the name of the source what was tried of it, by "Notes" what is missing, and by the name
              of the model its card
    level   : of the labels that were tried
    """

    models: tuple[NamedEvaluation, ...]
    curves: dict[str, tuple[DurationPoint, ...]]
    rows: EmbeddingSet
    missing: tuple[str, ...]
    sources: tuple[Path, ...]
    cards: dict[str, str]
    level: str


def test(
    sources: Sequence[Path],
    models: Sequence[Classifier],
    *,
    split: Path | None = None,
    part: str = "test",
    most: int = 0,
    draws: int = 1000,
    priors: Priors = None,
    use_vad: bool = True,
    progress: Progress | None = None,
) -> Tested:
    """Every figure of every model on the labelled rows of stores.

    split, part : only rows of this side or fold of a file of `knn split`; no others are embedded
    most        : also rows of 1 to `most` segments of a recording averaged; 0 makes no curve
    draws       : of the bootstrap over recordings
    priors      : how likely the labels are beforehand, as `prior_weights` takes them, or "model": as each model's
                  training was told; None: all alike

    Audio stores are embedded once for each embedder. Rows are scored block by block and only their scores kept, but
    that a curve needs all embeddings. Raises KnnError for sources that are no stores, a side without rows, and what
    `Classifier.score` and `evaluate` raise.
    """
    for source in sources:
        if not hdf5.is_store(source):
            raise KnnError(f"{source} is no store, whose rows have labels.", "Make one with `knn convert`.")
    made = read_split(split) if split is not None else None
    if made is not None and part not in made.parts:
        raise KnnError(f"The split has no side or fold {part!r}.", f"It has {', '.join(made.parts)}.")
    names = _apart([model.bundle.name for model in models])
    weights = [model.priors if priors == "model" else priors for model in models]
    for model, weight in zip(models, weights, strict=True):
        prior_weights(weight or {}, model.labels)  # refuses a strange label before any work
    level = str(models[0].meta.get("label", "group"))
    makers = list(dict.fromkeys(model.bundle.fingerprint for model in models))
    scored: list[list[ScoreTable]] = [[] for _ in models]
    kept: dict[str, list[EmbeddingSet]] = {maker: [] for maker in makers}  # for curves
    drawn = _Sample()
    data = {source: _Data() for source in sources}
    for number, maker in enumerate(makers):
        own = [place for place, model in enumerate(models) if model.bundle.fingerprint == maker]
        for source in sources:
            for rows in _blocks_of(source, models[own[0]], made, part, use_vad):
                for place in own:
                    scored[place].append(models[place].score(rows, str(source)))
                if most:
                    kept[maker].append(replace(rows, embedder=maker))
                if number == 0:
                    drawn.add(replace(rows, embedder=maker))
                    data[source].add(rows, level)
        if not scored[own[0]]:
            if made is None:
                raise no_speech(", ".join(map(str, sources)), use_vad)
            raise KnnError(f"No row is on the side {part!r} of the split.", "Is it the split of another store?")
        if progress is not None:
            progress(number + 1, len(makers))
    named: list[NamedEvaluation] = []
    curves: dict[str, tuple[DurationPoint, ...]] = {}
    missing: list[str] = []
    for name, model, weight, tables in zip(names, models, weights, scored, strict=True):
        found = NamedEvaluation(
            name,
            evaluate(ScoreTable.concatenate(tables), bootstrap=draws, priors=weight),
        )
        named.append(found)
        notes = [*_left_out(found), *_seen(found, model, made is not None)]
        if most:
            rows = EmbeddingSet.concatenate(kept[model.bundle.fingerprint])
            curves[name] = duration_curve.duration_curve(
                rows, _scorer(model), range(1, most + 1), bootstrap=draws, priors=weight
            )
            if len(curves[name]) < most:
                notes.append(
                    f"No recording has more than {counted(len(curves[name]), 'segment')}: the curve ends there."
                )
        missing += [f"{name}: {one}" if len(models) > 1 else one for one in notes]
    missing += [words for words in (different_labels_note(named), *map(priors_note, named)) if words]
    of = "" if made is None else f"{part!r} of a split: {_rule(made)}"
    titles = zip(sources, _apart([source.name for source in sources]), strict=True)
    cards = {f"Data: {title}": data[source].card(source, level, of) for source, title in titles}
    cards |= {"Notes": "\n".join(missing) + "\n"} if missing else {}
    cards |= {name: model.bundle.card for name, model in zip(names, models, strict=True)}
    return Tested(tuple(named), curves, drawn.rows(), tuple(missing), tuple(sources), cards, level)


def _blocks_of(source: Path, model: Classifier, made: Split | None, part: str, use_vad: bool) -> Iterator[EmbeddingSet]:
    """The rows of a store that are on a side of a split, block after block, none of them empty."""

    def wanted(names: Texts) -> slice | np.ndarray[tuple[int], np.dtype[np.int64]]:
        return slice(None) if made is None else np.flatnonzero(made.part_of(names) == part)

    with Store(source) as opened:
        kind = opened.kind
        if kind == "embeddings":
            for first in range(0, len(opened), ROWS_AT_ONCE):
                block = opened.labels(first, first + ROWS_AT_ONCE)
                rows = wanted(block.name)
                if len(block.name[rows]):
                    yield replace(block, data=opened.data(first, first + ROWS_AT_ONCE)).take(rows)
            return
        chosen = np.arange(len(opened))[wanted(opened.column("name"))]
    with Store(source, rows=chosen) as opened:
        for group in embed_rows(opened, model.embedder, use_vad=use_vad):
            if len(group.embeddings):
                yield group.embeddings


class _Sample:
    """`MAPPED` rows of any number, every one as likely, in their order."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._parts: list[EmbeddingSet] = []
        self._draw = np.zeros(0)

    def add(self, rows: EmbeddingSet) -> None:
        self._parts.append(rows)
        self._draw = np.concatenate([self._draw, self._rng.random(len(rows))])
        if len(self._draw) > MAPPED:
            lowest = np.sort(np.argpartition(self._draw, MAPPED)[:MAPPED])
            self._parts, self._draw = [self.rows().take(lowest)], self._draw[lowest]

    def rows(self) -> EmbeddingSet:
        return EmbeddingSet.concatenate(self._parts)


@dataclass
class _Data:
    """What was tried of a source: for its card."""

    labels: Counter[str] = field(default_factory=Counter)
    recordings: set[str] = field(default_factory=set)
    seconds: float = 0.0
    embedder: str = ""

    def add(self, rows: EmbeddingSet, level: str) -> None:
        self.labels.update(rows.label(level).tolist())
        self.recordings.update(rows.name.tolist())
        self.seconds += float((rows.end - rows.start).sum())
        self.embedder = rows.embedder

    def card(self, source: Path, level: str, side: str) -> str:
        """Lines of text: how much, of what, by what."""
        hours = "not known" if np.isnan(self.seconds) else f"{self.seconds / 3600:.2f}"
        lines = [
            f"file        {source.name}",
            f"rows        {self.labels.total():,}",
            f"recordings  {len(self.recordings):,}",
            f"hours       {hours}",
            f"embedder    {self.embedder or 'not known'}",
            *([f"side        {side}"] if side else []),
            f"labels      {level}, with their rows:",
            *(f"            {label or '(none)'}  {count:,}" for label, count in sorted(self.labels.items())),
        ]
        return "\n".join(lines) + "\n"


def _rule(made: Split) -> str:
    """How a split was drawn, in words."""
    words = (f"{key} {', '.join(value) if isinstance(value, list) else value}" for key, value in made.rule.items())
    return "; ".join(one for one in (*words, f"seed {made.seed}") if not one.endswith(" "))


def _apart(names: Sequence[str]) -> list[str]:
    """The names, numbered where two are alike."""
    return [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names, start=1)]


def _scorer(model: Classifier) -> duration_curve.SegmentScorer:
    return lambda rows, seconds: model.score(rows, seconds=seconds)


def _seen(found: NamedEvaluation, model: Classifier, on_side: bool) -> Iterator[str]:
    """Whether tested rows are of recordings that the model was fitted on, which flatters its figures."""
    names = found.evaluation.table.name
    if "fitted" not in model.meta:  # of an older knn, or of more recordings than are noted
        if on_side and model.meta.get("refitted", True):
            yield "The model was fitted on all rows it was given; were rows of this side among them?"
        return
    fitted = set(model.meta["fitted"])
    distinct, rows = np.unique(names, return_counts=True)
    seen = sum(
        count for name, count in zip(distinct.tolist(), rows.tolist(), strict=True) if fitted_hash(name) in fitted
    )
    if seen:
        yield (
            f"{seen:,} of {counted(len(names), 'tested row')} are of recordings that the model was fitted on: "
            "its figures on others will be worse."
        )


def _left_out(model: NamedEvaluation) -> Iterator[str]:
    found = model.evaluation
    if found.absent:
        yield f"No test row is of {', '.join(found.absent)}: left out of every mean."
    if found.out_of_set:
        rows = ", ".join(f"{label} ({count})" for label, count in found.out_of_set.items())
        yield f"The model does not know {rows}: counted in the open set only."
    if found.unlabelled:
        yield f"{found.unlabelled} rows have no label."
    if found.single_recording:
        yield f"One recording only of {', '.join(found.single_recording)}: the intervals cannot see it vary."


def write(folder: Path, tested: Tested, *, command: str, force: bool = False) -> Path:
    """The report of `tested` as a folder; the path of its page."""
    with ExitStack() as stack:
        opened = [stack.enter_context(Store(source)) for source in tested.sources]
        contents = ReportContents(
            tested.models,
            curves=tested.curves,
            embeddings=tested.rows,
            level=tested.level,
            clip=_clips([one for one in opened if one.kind == "audio"]),
            cards=tested.cards,
            command=command,
            version=f"knn {__version__}",
            date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        )
        return write_report(contents, folder, sources=tested.sources, force=force)


def _clips(stores: Sequence[Store]) -> Callable[[str, float, float], bytes | None]:
    """What a player plays: the row of an audio store with that name and start, as FLAC."""

    def clip(name: str, start: float, end: float) -> bytes | None:
        for opened in stores:
            if (row := opened.find(name, start)) is not None:
                return opened.flac(row)
        return None

    return clip


def trials_of(
    sources: Sequence[Path],
    listed: Trials,
    model: str | None,
    *,
    cohort: Path | None = None,
    top: int | None = None,
    scorer: str = "auto",
) -> tuple[Doubles, VerificationMetrics | None, str]:
    """(T,) scores of a list of trials, figures where it has keys, and what scored: cosine or PLDA.

    sources : embedding stores that hold the recordings
    model   : a bundle trained at the level speaker, whose transforms and PLDA are used; None takes cosines as they are
    cohort  : store of other speakers, whose mean is taken off
    top     : AS-norm by so many of its speakers (recordings, where it names no speakers)
    scorer  : "cosine", "plda", or "auto": the PLDA where the model has one
    """
    chain, plda = None, None
    if model is not None:
        classifier = Classifier(model)
        for source in sources:
            with Store(source, "embeddings") as opened:
                bundle.check_embedder(opened.embedder, classifier.bundle.fingerprint, str(source))
        chain = classifier.transform
        plda = classifier.trained.plda if classifier.trained is not None and scorer != "cosine" else None
    if scorer == "plda" and plda is None:
        raise KnnError(
            f"The model {model} has no PLDA." if model else "A PLDA comes with a model.",
            "Train one with `knn train --label speaker`, several recordings a speaker, and name it with --model.",
        )
    recordings = verification.mean_embeddings(_blocks(sources))
    others = None
    if cohort is not None:
        level = "speaker" if (hdf5.labels(cohort).speaker != "").any() else "name"
        others = verification.mean_embeddings(_blocks([cohort]), level)
    scores = verification.score_trials(
        listed,
        recordings,
        plda=plda,
        transform=chain,
        cohort=others,
        subtract_mean=others is not None,
        as_norm_top_n=top,
    )
    llr = plda is not None and top is None
    figures = None if listed.is_target is None else verification_metrics(scores, listed.is_target, llr=llr)
    return scores, figures, "cosine" if plda is None else "PLDA"


def _blocks(sources: Sequence[Path]) -> Iterator[EmbeddingSet]:
    for source in sources:
        with Store(source, "embeddings") as opened:
            yield from opened.blocks(ROWS_AT_ONCE)
