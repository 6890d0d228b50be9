"""`knn classify`: recognise the language or dialect of recordings and of the rows of stores."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knn_cli.cli import stdin, stopping
from knn_cli.cli.console import console, failed, leave
from knn_cli.cli.label_lists import NamesOption, parse_languages, parse_priors
from knn_cli.cli.limits import MOST_COUNT, within
from knn_cli.cli.options import (
    OUTPUT,
    AgainOption,
    BackupOption,
    BatchOption,
    ChannelOption,
    ChunkOption,
    ClusterOption,
    Device,
    DeviceOption,
    ForceOption,
    JobsOption,
    JsonOption,
    LanguagesOption,
    ModelOption,
    NoUnknownOption,
    NoVadOption,
    PrecisionName,
    PrecisionOption,
    PriorsOption,
    QuietOption,
    SegmentOption,
    TextOption,
    TrackOption,
    VerboseOption,
    check_text_output,
    counted,
    epilog,
    note_classifier,
    note_silent_rows,
    refuse_together,
    refuse_without,
    sound_channel,
    valued,
)
from knn_cli.cli.own_outputs import check_own_outputs, output_task, task_digest
from knn_cli.cli.skipped import note_skipped
from knn_cli.core.errors import Failure, KnnError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from knn_cli.cli.result_files import Form
    from knn_cli.core.output_records import OutputTask
    from knn_cli.core.values import ScoreTable
    from knn_cli.recognition.classifier import Classifier
    from knn_cli.recognition.predictions import Predictions
    from knn_cli.recognition.score_journal import Scored, ScoreJournal
    from knn_cli.store.corpora.recordings import CorpusRecording

_BEGINS_ANEW = "Repeat the command; with -o FILE it goes on where it was stopped."

EPILOG = epilog(
    "knn classify talk.mp3",
    "knn classify folder/ --model my-dialects --json > answers.jsonl",
    "knn classify tapes/ --languages cs,Slovak,polski",
)


def classify(
    ctx: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE", help="Audio files, URLs, folders and lists of them, stores, or -."),
    ],
    segment: SegmentOption = None,
    channel: ChannelOption = "mix",
    track: TrackOption = None,
    no_vad: NoVadOption = False,
    out: TextOption = None,
    as_json: JsonOption = False,
    force: ForceOption = False,
    backup: BackupOption = False,
    again: AgainOption = False,
    names: NamesOption = None,
    top: Annotated[
        int,
        valued(
            "--top",
            metavar="N",
            callback=within(1, MOST_COUNT),
            panel=OUTPUT,
            help="Show this many labels, best first.",
        ),
    ] = 3,
    model: ModelOption = None,
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    chunk: ChunkOption = None,
    precision: PrecisionOption = PrecisionName.auto,
    priors: PriorsOption = "",
    languages: LanguagesOption = "",
    no_unknown: NoUnknownOption = False,
    jobs: JobsOption = None,
    cluster: ClusterOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Recognise the language or dialect of recordings, with calibrated probabilities.

    Results are shown as a table on a terminal, and written as tab-separated lines to a pipe, and to a file as its
    suffix says: .tsv, .csv, .json or .jsonl. JSON has the probabilities and detection log-likelihood ratios of all
    labels. Recordings without speech are labelled zxx, by models with that label. See also `knn evaluate` and
    `knn timeline`.
    """
    from knn_cli.cli import result_files
    from knn_cli.cli.workers import on_cluster
    from knn_cli.core.display_names import read_names
    from knn_cli.core.output_records import OutputRecords
    from knn_cli.embedding.options import EmbeddingOptions
    from knn_cli.networks.chunk_setting import parse_chunk
    from knn_cli.networks.precision import check_precision
    from knn_cli.recognition.classifier import Classifier
    from knn_cli.recognition.classify_files import classify_files, expand_sources
    from knn_cli.recognition.score_journal import ScoreJournal

    refuse_together(ctx, [("jobs", "cluster")])
    refuse_without(ctx, {"force": ("out",), "backup": ("out",), "again": ("out",)})
    weights = None if priors == "model" else parse_priors(priors)
    options = EmbeddingOptions(segment=segment, use_vad=not no_vad, channel=sound_channel(channel, track))
    form = result_files.form_of(out, as_json)
    received = stdin.open_sources(ctx, sources)
    received.receive()
    sources = received.paths
    recordings = expand_sources(sources)
    note_skipped(sources)
    read = [*sources, *(one if isinstance(one, Path) else one.sound.path for one in recordings)]
    check_text_output(out, read)
    check_own_outputs(ctx, out)
    shown_names = {} if names is None else read_names(names)
    settings: dict[str, Any] = {
        "device": device.value,
        "batch_seconds": batch_seconds,
        "chunk": parse_chunk(chunk),
        "precision": check_precision(precision.value),
        "languages": parse_languages(languages),
        "open_set": not no_unknown,
    }
    classifier = Classifier(model, **settings)
    note_classifier(model, classifier)
    weights = classifier.priors if priors == "model" else weights
    shown_names = {**classifier.names, **shown_names}
    task = output_task(ctx, task_digest(ctx, [classifier.bundle], read))
    if out is not None and not again and OutputRecords().is_finished(out, task):
        console.note(f"{out} was finished before; --again does it anew.")
        return
    with ScoreJournal(out, task.digest, again=again) as journal:
        if journal.finished:
            console.note(f"Finished before: {len(journal.finished)} of {counted(len(recordings), 'recording')}.")
        with ExitStack() as held:
            classify = partial(classify_files, classifier=classifier, options=options, jobs=jobs)
            if cluster is not None:
                from knn_cli.recognition import cluster_classification as by_workers

                workers = held.enter_context(on_cluster(cluster))
                place = by_workers.ClassifierPlace.of(classifier, settings)
                score = partial(by_workers.score_on_cluster, workers, place, options)
                score_store = partial(by_workers.score_store_on_cluster, workers, place, classifier)
                classify = partial(classify, score=score, score_store=score_store)
            if received.temporary:
                classify = partial(_named, stdin.TITLE, classify)
            _classify(recordings, classify, classifier, top, weights, shown_names, form, out, task, journal)


def _named(
    name: str,
    classify: Callable[[Sequence[Path | CorpusRecording]], Iterator[Scored]],
    sources: Sequence[Path | CorpusRecording],
) -> Iterator[Scored]:
    """Results under a name of their own, in place of that of a temporary file."""
    import numpy as np

    from knn_cli.core.values import ScoreTable

    for path, scores in classify(sources):
        named = replace(scores, name=np.full(len(scores), name)) if isinstance(scores, ScoreTable) else scores
        yield path, named


def _classify(
    sources: list[Path | CorpusRecording],
    classify: Callable[[Sequence[Path | CorpusRecording]], Iterator[Scored]],
    classifier: Classifier,
    top: int,
    priors: Mapping[str, float] | None,
    names: Mapping[str, str],
    form: Form,
    out: Path | None,
    task: OutputTask,
    journal: ScoreJournal,
) -> None:
    """Classify the sources and write each result as soon as it is ready; on a terminal, all as one table at the end."""
    from knn_cli.cli import output, progress, result_files
    from knn_cli.core.output_records import note_incomplete
    from knn_cli.embedding.options import RowsWithoutSpeech
    from knn_cli.recognition.predictions import predict

    failures: dict[str, Failure] = {}  # by file: rows of a store fail in several places
    tables: list[tuple[ScoreTable, Predictions]] = []
    as_json = result_files.is_json(form)
    as_table = out is None and sys.stdout.isatty() and not as_json
    written = rows = right = known = silent = guesses = 0
    passes = [progress.SPEECH_PASS, progress.SCORING_PASS]
    before: object = None
    with (
        result_files.writing(out, form, task) as stream,
        progress.over_files("Classifying", len(sources), lambda _: passes) as finished,
    ):
        stopping.working(len(sources), _BEGINS_ANEW if out is None else stopping.GOES_ON)
        for path, scores in journal.resumed(sources, classify):
            if path != before:  # a store has several results
                finished()
                stopping.advanced()
                before = path
            if isinstance(scores, KnnError):
                failures[str(path)] = failed(str(path), scores)
                continue
            if isinstance(scores, RowsWithoutSpeech):
                note_silent_rows(scores.rows)
                continue
            predictions = predict(scores, priors)
            if predictions.silent.any():
                console.detail(f"{path} holds no speech.")
                silent += 1
            guesses += int(output.uncertain(scores, predictions).sum())
            counts = output.correct(scores, predictions)
            right, known = right + counts[0], known + counts[1]
            if as_table:
                tables.append((scores, predictions))
            elif as_json:
                output.score_lines(stream, scores, predictions, priors, names)
            else:
                output.score_rows(stream, scores, predictions, top, header=not written, given=names)
            written, rows = written + 1, rows + len(scores)
            if not as_table:
                console.note(f"{path}: {output.answers_in_words(scores, predictions, names)}.")
        if not written:
            leave([*failures.values()])  # before an empty file replaces an older result
    journal.remove()
    if out is not None:
        if failures:
            note_incomplete(out, task)
        console.note(f"{out}: {counted(rows, 'row')}.")
    if tables:
        output.score_table(tables, top, classifier.bundle.name, names)
    if guesses:
        of = f"{guesses} of {counted(rows, 'answer')} {'is' if guesses == 1 else 'are'} uncertain"
        console.note(f"{of}, with a probability under 50 %; --languages says which are possible.")
    if silent:
        console.note(f"{counted(silent, 'recording')} without speech.")
    if known:
        console.note(f"Of {known} rows with a label that the model knows, {right} are right ({right / known:.1%}).")
    leave([*failures.values()], done=len(sources) - len(failures))
