"""Models tried on test sets: stores to evaluations, curves and a report; lists of speaker trials to scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from knn_cli import __version__, averaging, bundle, evaluation_report, pipeline, splitting, store, trials
from knn_cli.classifying import Classifier
from knn_cli.embedder import embed_store
from knn_cli.errors import KnnError
from knn_cli.evaluation import CurvePoint, evaluate
from knn_cli.evaluation_tables import Named
from knn_cli.store import Store
from knn_cli.types import Doubles, EmbeddingSet, Progress

ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Tested:
    """What `test` finds.

    models  : in the order that they were given, each under a name of its own
    curves  : by the name of the model, where more than one segment was to be averaged
    rows    : those that were tested, with the embeddings of the first model
    missing : sentences about what was left out
    sources : the stores; a player plays the rows of audio stores
    cards   : by the name of the model, its card
    level   : of the labels that were tried
    """

    models: tuple[Named, ...]
    curves: dict[str, tuple[CurvePoint, ...]]
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
    use_vad: bool = True,
    progress: Progress | None = None,
) -> Tested:
    """Every figure of every model on the labelled rows of stores.

    split, part : only rows of this side or fold of a file of `knn split`
    most        : also rows of 1 to `most` segments of a recording averaged; 0 makes no curve
    draws       : of the bootstrap over recordings

    Audio stores are embedded once for each embedder. Raises KnnError for sources that are no stores, a side without
    rows, and what `Classifier.score` and `evaluate` raise.
    """
    for source in sources:
        if not pipeline.is_store(source):
            raise KnnError(f"{source} is no store, whose rows have labels.", "Make one with `knn convert`.")
    made = splitting.read(split) if split is not None else None
    if made is not None and part not in made.parts:
        raise KnnError(f"The split has no side or fold {part!r}.", f"It has {', '.join(made.parts)}.")
    heard: dict[str, EmbeddingSet] = {}
    named: list[Named] = []
    curves: dict[str, tuple[CurvePoint, ...]] = {}
    cards: dict[str, str] = {}
    missing: list[str] = []
    for number, (name, model) in enumerate(zip(_names(models), models, strict=True)):
        maker = model.bundle.fingerprint
        if maker not in heard:
            rows = EmbeddingSet.concatenate([one for source in sources for one in _rows(source, model, use_vad)])
            heard[maker] = rows if made is None else _side(rows, made, part)
        rows = heard[maker]
        table = model.score(rows, str(sources[0]))
        found = Named(name, evaluate(table, bootstrap=draws))
        named.append(found)
        cards[name] = model.bundle.card
        notes = [*_left_out(found)]
        if made is not None and model.meta.get("refitted", True):
            notes.append("The model was fitted on all rows it was given; were rows of this side among them?")
        missing += [f"{name}: {one}" if len(models) > 1 else one for one in notes]
        if most:
            curves[name] = averaging.curve(rows, model.score, range(1, most + 1), bootstrap=draws)
        if progress is not None:
            progress(number + 1, len(models))
    rows = heard[models[0].bundle.fingerprint]
    level = str(models[0].meta.get("label", "group"))
    return Tested(tuple(named), curves, rows, tuple(missing), tuple(sources), cards, level)


def _rows(source: Path, model: Classifier, use_vad: bool) -> Iterator[EmbeddingSet]:
    with Store(source) as opened:
        if opened.kind == "embeddings":
            yield opened.embeddings()
            return
        for group in embed_store(opened, model.embedder, use_vad=use_vad):
            if len(group.embeddings):
                yield group.embeddings


def _side(rows: EmbeddingSet, made: splitting.Split, part: str) -> EmbeddingSet:
    kept = made.part_of(rows.name) == part
    if not kept.any():
        raise KnnError(f"No row is on the side {part!r} of the split.", "Is it the split of another store?")
    return rows.take(kept)


def _names(models: Sequence[Classifier]) -> list[str]:
    """The bundles' names, numbered where two are alike."""
    names = [model.bundle.name for model in models]
    return [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names, start=1)]


def _left_out(model: Named) -> Iterator[str]:
    found = model.evaluation
    if found.absent:
        yield f"No test row is of {', '.join(found.absent)}: left out of every mean."
    if found.strangers:
        rows = ", ".join(f"{label} ({count})" for label, count in found.strangers.items())
        yield f"The model does not know {rows}: counted in the open set only."
    if found.unlabelled:
        yield f"{found.unlabelled} rows have no label."
    if found.lone:
        yield f"One recording only of {', '.join(found.lone)}: the intervals cannot see it vary."


def write(folder: Path, tested: Tested, *, command: str, force: bool = False) -> Path:
    """The report of `tested` as a folder; the path of its page."""
    return evaluation_report.write(
        folder,
        tested.models,
        curves=tested.curves,
        embeddings=tested.rows,
        level=tested.level,
        clip=_clips(tested.sources),
        cards=tested.cards,
        command=command,
        version=f"knn {__version__}",
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        sources=tested.sources,
        force=force,
    )


def _clips(sources: Sequence[Path]) -> Callable[[str, float, float], bytes | None]:
    """What a player plays: the row of an audio store with that name and start, as FLAC."""

    def clip(name: str, start: float, end: float) -> bytes | None:
        for source in sources:
            with Store(source) as opened:
                if opened.kind == "audio" and (row := opened.find(name, start)) is not None:
                    return opened.flac(row)
        return None

    return clip


def trials_of(
    sources: Sequence[Path],
    listed: trials.Trials,
    model: str | None,
    *,
    cohort: Path | None = None,
    top: int | None = None,
    scorer: str = "auto",
) -> tuple[Doubles, trials.TrialFigures | None, str]:
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
    recordings = trials.pool(_blocks(sources))
    others = None
    if cohort is not None:
        level = "speaker" if (store.labels(cohort).speaker != "").any() else "name"
        others = trials.pool(_blocks([cohort]), level)
    scores = trials.score(
        listed, recordings, plda=plda, transform=chain, cohort=others, centre=others is not None, top=top
    )
    llr = plda is not None and top is None
    figures = None if listed.target is None else trials.figures(scores, listed.target, llr=llr)
    return scores, figures, "cosine" if plda is None else "PLDA"


def _blocks(sources: Sequence[Path]) -> Iterator[EmbeddingSet]:
    for source in sources:
        with Store(source, "embeddings") as opened:
            yield from opened.blocks(ROWS_AT_ONCE)
