"""Files, lists of them and stores to scores or language timelines, one after the other: a bad file costs no other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from knn_cli.audio import fetched, reading
from knn_cli.audio.speech_regions import no_speech
from knn_cli.core.errors import AudioError, BundleError, KnnError, SilenceError, StoreError
from knn_cli.core.languages import NO_SPEECH
from knn_cli.core.values import EmbeddingSet, ScoreTable, Segment
from knn_cli.embedding.options import EmbeddingOptions, RowsWithoutSpeech
from knn_cli.formats.rttm import turns_of_recording
from knn_cli.formats.turn_readers import read_references
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.language_timeline import LanguageTimeline
from knn_cli.recognition.timeline import TimelineOptions, timeline
from knn_cli.store import hdf5
from knn_cli.store.corpora.recording_map import at_once
from knn_cli.store.corpora.recordings import CorpusPart, CorpusRecording, SoundSource
from knn_cli.store.labels import Labels, recording_names

if TYPE_CHECKING:
    from pyannote.core import Annotation

    SourceScorer = Callable[[Sequence[Path | CorpusRecording]], Iterator[ScoreTable | KnnError]]
    StoreScorer = Callable[[Path, bool], Iterator[ScoreTable | KnnError]]
    SpeakerTurns = Callable[[Path, str], Annotation]

CAUGHT = (AudioError, StoreError, BundleError)  # errors that cost no other source


def expand_sources(paths: Sequence[Path]) -> list[Path | CorpusRecording]:
    """What `classify_files` takes of paths as users name them, each once.

    Parameters
    ----------
    paths : sequence of Path
        Audio files and stores, which stay what they are; folders, for the audio files below them; and all other corpora
        that `registry.read_corpus` reads, such as Kaldi data directories, for their recordings.

    Raises
    ------
    KnnError
        A folder without audio, or a list that cannot be read.
    """
    from knn_cli.embedding.files import expand_folders
    from knn_cli.store.corpora import registry

    found: list[Path | CorpusRecording] = []
    for path in paths:
        kind = None if path.suffix.lower() in hdf5.SUFFIXES else registry.kind_of(path)
        found += expand_folders([path]) if kind is None or kind.is_sound else registry.read_corpus(path)
    return list(dict.fromkeys(found))


def classify_files(
    sources: Sequence[Path | CorpusRecording],
    classifier: Classifier,
    options: EmbeddingOptions | None = None,
    *,
    score: SourceScorer | None = None,
    score_store: StoreScorer | None = None,
    jobs: int | None = None,
) -> Iterator[tuple[Path | SoundSource, ScoreTable | RowsWithoutSpeech | KnnError]]:
    """Score audio files, recordings of corpora, and stores.

    Parameters
    ----------
    sources : sequence of Path or CorpusRecording
        Audio files, audio stores and embedding stores; and recordings of lists, see `expand_sources`.
    classifier : Classifier
        The model, with its labels.
    options : EmbeddingOptions, optional
        How the sound of files becomes rows.
    score : callable, optional
        What scores recordings that are in no store, in their order; by default `score_source`, here.
    score_store : callable, optional
        What scores a store, by its path and whether speech only counts; by default `Classifier.score_store`, here.
    jobs : int, optional
        Processors that are used on a CPU; see `recording_map.at_once`.

    Yields
    ------
    (Path or SoundSource, ScoreTable)
        Scores of a file, whose rows are named by its path; of a recording, named by the keys of its list; or of a block
        of a store's rows, named by recording. Sound without speech has one row with NaN in place of scores, if `zxx` is
        a possible answer of the classifier.
    (Path, RowsWithoutSpeech)
        After the scores of a store: how many of its rows were left out.
    (Path or SoundSource, KnnError)
        Why a source has no scores.

    Raises
    ------
    KnnError
        A length of segments is given for a store.
    """
    options = options or EmbeddingOptions()
    for in_store, group in groupby(sources, _is_in_store):
        if in_store:
            for source in group:
                assert isinstance(source, Path)
                for part in _score_store(source, options, score_store or partial(_score_here, classifier, jobs)):
                    yield source, part
            continue
        found = list(group)
        if score is None and classifier.device.type != "cpu" and _load_network(classifier):
            results = _score_in_full_batches(found, classifier, options, jobs)
        elif score is None:
            results = at_once(classifier.device, jobs)(partial(_scorer, classifier, options), found, CAUGHT)
        else:
            results = score(found)
        for source, result in zip(found, results, strict=True):
            yield source.sound if isinstance(source, CorpusRecording) else source, result


def _is_in_store(source: Path | CorpusRecording) -> bool:
    """Whether a source is a store, or is said to be one by its suffix."""
    try:
        return not isinstance(source, CorpusRecording) and hdf5.is_store(source)
    except StoreError:
        return True


def _scorer(classifier: Classifier, options: EmbeddingOptions) -> Callable[[Path | CorpusRecording], ScoreTable]:
    """What scores a source, when the network is loaded."""
    _load_network(classifier)
    return partial(score_source, classifier=classifier, options=options)


def _score_in_full_batches(
    sources: Sequence[Path | CorpusRecording], classifier: Classifier, options: EmbeddingOptions, jobs: int | None
) -> Iterator[ScoreTable | KnnError]:
    """The scores of sources that an accelerator embeds, with batches across files."""
    from knn_cli.embedding.files import embed_recordings

    recordings = [_named_by_key(source) for source in sources]
    embedded = embed_recordings(recordings, classifier.embedder, options, jobs=jobs)
    for recording, (_, rows) in zip(recordings, embedded, strict=True):
        try:
            yield _score_rows(recording, rows, classifier)
        except CAUGHT as error:
            yield error


def _load_network(classifier: Classifier) -> bool:
    """Whether the network is loaded now, before threads use it; where it cannot be, each recording says so."""
    with suppress(BundleError):
        return classifier.embedder is not None
    return False


def score_source(source: Path | CorpusRecording, classifier: Classifier, options: EmbeddingOptions) -> ScoreTable:
    """Score an audio file, or a recording of a list; one of `CAUGHT` says why it has no scores."""
    from knn_cli.embedding.files import embed_recording

    recording = _named_by_key(source)
    try:
        rows: EmbeddingSet | KnnError = embed_recording(recording, classifier.embedder, options)
    except SilenceError as error:
        rows = error
    return _score_rows(recording, rows, classifier)


def _named_by_key(source: Path | CorpusRecording) -> CorpusRecording:
    """A source as a recording, whose rows are named by the keys of its parts; those of a file by its path."""
    if isinstance(source, Path):
        return CorpusRecording(SoundSource(source), (CorpusPart(str(source), Labels(str(source))),))
    parts = [replace(part, labels=replace(part.labels, name=part.key)) for part in source.parts]
    return replace(source, parts=tuple(parts))


def _score_rows(recording: CorpusRecording, rows: EmbeddingSet | KnnError, classifier: Classifier) -> ScoreTable:
    """The scores of a recording's rows, or what silence is answered with; other errors are raised."""
    if isinstance(rows, SilenceError) and NO_SPEECH in classifier.labels:
        with recording.sound.opened() as path:
            return _without_speech(classifier, path, {part.key: part.span for part in recording.parts})
    if isinstance(rows, KnnError):
        raise rows
    return classifier.score(rows, str(recording.sound))


def _without_speech(classifier: Classifier, path: Path, spans: Mapping[str, Segment | None]) -> ScoreTable:
    """Rows of sound that holds no speech, with the name of each and its part, None for all; as `reading.info`."""
    whole = Segment(0.0, reading.info(path).seconds)
    parts = [whole if span is None else span & whole for span in spans.values()]
    scores = np.full((len(parts), len(classifier.labels)), np.nan)
    times = np.array([[part.start, part.end] for part in parts]).T
    return ScoreTable(classifier.labels, scores, np.array(list(spans)), *times)


def _score_here(classifier: Classifier, jobs: int | None, path: Path, use_vad: bool) -> Iterator[ScoreTable]:
    return classifier.score_store(path, use_vad=use_vad, jobs=jobs)


def _score_store(
    path: Path, options: EmbeddingOptions, score: StoreScorer
) -> Iterator[ScoreTable | RowsWithoutSpeech | KnnError]:
    """The tables of a store, and errors of rows; then how many rows have none, or why there are no more."""
    scored, is_whole = 0, True
    try:
        hdf5.is_store(path)  # says what it is in place of one
        options.check_store()
        for table in score(path, options.use_vad):
            if isinstance(table, KnnError):
                is_whole = False
            else:
                scored += len(table)
            yield table
        if is_whole and not scored:
            raise no_speech(str(path), options.use_vad)
        with hdf5.Store(path) as store:
            if is_whole and scored < len(store):
                yield RowsWithoutSpeech(len(store) - scored)
    except CAUGHT as error:
        yield error


def speakers_from_rttm(rttm: Path, files: Sequence[Path]) -> SpeakerTurns:
    """The turns of each of the files in an RTTM file, or a folder of such files, as `language_timelines` takes them.

    They are looked up by the names that `recording_names` gives the files. Turns of a single recording go with a single
    file, whatever it is called. KnnError if the turns cannot be read.
    """
    turns = read_references(rttm)
    return lambda path, name: turns_of_recording(name, turns, files, rttm)


def language_timelines(
    files: Sequence[Path],
    classifier: Classifier,
    speakers: SpeakerTurns | None = None,
    options: TimelineOptions | None = None,
    *,
    chosen: Collection[Path] | None = None,
    jobs: int | None = None,
) -> Iterator[tuple[Path, LanguageTimeline | KnnError]]:
    """Find the languages of each file over time.

    Parameters
    ----------
    files : sequence of Path
        Audio files.
    classifier : Classifier
        The model, with its labels.
    speakers : callable, optional
        Called with a file and its name of `recording_names`, returns the turns of its speakers as
        pyannote.core.Annotation, or raises KnnError.
    options : TimelineOptions, optional
        How the language is followed.
    chosen : collection of Path, optional
        Those of the files that timelines are found for; all where None.
    jobs : int, optional
        Processors that are used on a CPU; see `recording_map.at_once`.

    Yields
    ------
    (Path, LanguageTimeline) or (Path, KnnError)
        A timeline, which has the file's name of `recording_names`, or why there is none.
    """
    names = dict(zip(files, recording_names(files), strict=True))
    wanted = set(files if chosen is None else chosen)
    left = [path for path in names if path in wanted]

    def follow(path: Path) -> LanguageTimeline | KnnError:
        try:
            turns = None if speakers is None else speakers(path, names[path])
        except KnnError as error:
            return error
        with fetched.opened(path) as file:
            found = timeline(file, classifier, speakers=turns, options=options)
        return replace(found, name=names[path])

    def prepared() -> Callable[[Path], LanguageTimeline | KnnError]:
        _load_network(classifier)
        return follow

    yield from zip(left, at_once(classifier.device, jobs)(prepared, left), strict=True)
