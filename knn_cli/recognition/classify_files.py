"""Files and stores to scores or language timelines, one after the other: a bad file costs none of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from knn_cli.audio import reading
from knn_cli.audio.speech_regions import no_speech
from knn_cli.core.errors import AudioError, BundleError, KnnError, SilenceError, StoreError
from knn_cli.core.languages import NO_SPEECH
from knn_cli.core.values import ScoreTable
from knn_cli.embedding.options import EmbeddingOptions, RowsWithoutSpeech
from knn_cli.formats.rttm import turns_of_recording
from knn_cli.formats.turn_readers import read_references
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.language_timeline import LanguageTimeline
from knn_cli.recognition.timeline import TimelineOptions, timeline
from knn_cli.store import hdf5
from knn_cli.store.labels import recording_names

if TYPE_CHECKING:
    from pyannote.core import Annotation

    SpeakerTurns = Callable[[Path, str], Annotation]


def classify_files(
    sources: Sequence[Path], classifier: Classifier, options: EmbeddingOptions | None = None
) -> Iterator[tuple[Path, ScoreTable | RowsWithoutSpeech | KnnError]]:
    """Score audio files and stores.

    Parameters
    ----------
    sources : sequence of Path
        Audio files, audio stores and embedding stores.
    classifier : Classifier
        The model, with its labels.
    options : EmbeddingOptions, optional
        How the sound of files becomes rows.

    Yields
    ------
    (Path, ScoreTable)
        Scores of a file, whose rows are named by its path, or of a block of a store's rows, named by recording. A file
        without speech has one row with NaN in place of scores, if `zxx` is a possible answer of the classifier.
    (Path, RowsWithoutSpeech)
        After the scores of a store: how many of its rows were left out.
    (Path, KnnError)
        Why a source has no scores.

    Raises
    ------
    KnnError
        A length of segments is given for a store.
    """
    options = options or EmbeddingOptions()
    for path in sources:
        try:
            if hdf5.is_store(path):
                options.check_store()
                yield from ((path, result) for result in _score_store(path, classifier, options.use_vad))
            else:
                table = classifier.score_file(path, **vars(options))
                yield path, replace(table, name=np.full(len(table), str(path)))
        except SilenceError as error:
            result: ScoreTable | KnnError = error
            if NO_SPEECH in classifier.labels and not hdf5.is_store(path):
                try:
                    result = _without_speech(path, classifier)
                except AudioError as unreadable:
                    result = unreadable
            yield path, result
        except (AudioError, StoreError, BundleError) as error:
            yield path, error


def _without_speech(path: Path, classifier: Classifier) -> ScoreTable:
    """The row of a file that holds no speech; AudioError as of `reading.info`."""
    times = np.zeros(1), np.array([reading.info(path).seconds])
    return ScoreTable(classifier.labels, np.full((1, len(classifier.labels)), np.nan), np.array([str(path)]), *times)


def _score_store(path: Path, classifier: Classifier, use_vad: bool) -> Iterator[ScoreTable | RowsWithoutSpeech]:
    """The tables of a store, then how many rows have none."""
    scored = 0
    for table in classifier.score_store(path, use_vad=use_vad):
        scored += len(table)
        yield table
    if not scored:
        raise no_speech(str(path), use_vad)
    with hdf5.Store(path) as store:
        if scored < len(store):
            yield RowsWithoutSpeech(len(store) - scored)


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

    Yields
    ------
    (Path, LanguageTimeline) or (Path, KnnError)
        A timeline, which has the file's name of `recording_names`, or why there is none.

    Raises
    ------
    KnnError
        Two files have one name.
    """
    for path, name in zip(files, recording_names(files), strict=True):
        try:
            turns = None if speakers is None else speakers(path, name)
        except KnnError as error:
            yield path, error
            continue
        try:
            yield path, replace(timeline(path, classifier, speakers=turns, options=options), name=name)
        except AudioError as error:
            yield path, error
