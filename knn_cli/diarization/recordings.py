"""Diarization of many recordings, with names and labels that mean the same speaker in all of them.

A recording that fails is replaced by its error; the others are not affected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from knn_cli.audio import fetched
from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.values import Diarization
from knn_cli.diarization import (
    channels,
    corrections,
    identification,
    kept_analysis,
    linking,
    pipeline,
    speaker_turns,
    speaker_windows,
)
from knn_cli.diarization.clustering.memory import remembering
from knn_cli.diarization.corrections import Edit, Merge
from knn_cli.diarization.enrollment import EnrolledSpeakers
from knn_cli.diarization.identification import IdentificationResult
from knn_cli.diarization.kept_analysis import KeptAnalysis
from knn_cli.diarization.options import DiarizationOptions
from knn_cli.formats import rttm, turn_readers
from knn_cli.formats.uem import read_uem
from knn_cli.networks import bundle
from knn_cli.recognition.speaker_decision import UNCALIBRATED, SpeakerDecision
from knn_cli.store.corpora.recording_map import at_once

if TYPE_CHECKING:
    from pyannote.core import Annotation, Timeline

    from knn_cli.diarization.clustering.base import Clusterer
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.networks.bundle import Bundle

EDITED = "named or made by a correction"
LINKED = "linked to this speaker of another recording"
# Raised where the arrays of a kept analysis do not belong together.
_CONTRADICTORY = (ArithmeticError, LookupError, TypeError, ValueError)
AnalysisUser = Callable[[Path, KeptAnalysis], None]


class RecordingResult(NamedTuple):
    """A recording's diarization and, where speakers are enrolled, the similarity of its speakers to them."""

    diarization: Diarization
    recognised: list[dict[str, Any]] | None = None  # see `IdentificationResult.facts`
    decision: SpeakerDecision = UNCALIBRATED  # by which they were recognised


def diarize_recordings(
    files: Sequence[Path],
    embedder: Embedder,
    *,
    per_channel: bool = False,
    channel: str = "mix",
    analysed: AnalysisUser | None = None,
    jobs: int | None = None,
    **settings: Any,
) -> Iterator[tuple[Path, Diarization | KnnError]]:
    """Diarize files, several at once on a CPU, with the same turns for any number.

    Parameters
    ----------
    files : sequence of Path
        Audio files; each diarization has the stem as its name.
    embedder : Embedder
        The embedding model of all recordings.
    per_channel : bool
        Diarize every channel separately and merge the results (see `channels.merge`). Channels with the same sound are
        diarized once, and named as without channels if there are no others. A file with a single channel gives an
        AudioError. Numbers of speakers are then per channel.
    channel : str
        The channel that is read; of its audio track all, where `per_channel` is True.
    analysed : callable, optional
        Called with each file and its `KeptAnalysis`; not where `per_channel` is True.
    jobs : int, optional
        Processors that are used on a CPU; see `recording_map.at_once`.
    **settings
        Further arguments of `pipeline.diarize`.

    Yields
    ------
    tuple of Path and (Diarization or KnnError)
    """
    keeps = analysed is not None
    work = partial(
        diarize_recording, embedder=embedder, per_channel=per_channel, channel=channel, keeps=keeps, **settings
    )
    for path, found in zip(files, at_once(embedder.device, jobs)(lambda: work, files, KnnError), strict=True):
        yield path, found if isinstance(found, KnnError) else found.used(path, analysed)


class DiarizedRecording(NamedTuple):
    """What a recording gives, and its analysis, which is there even if clustering fails."""

    result: Diarization | KnnError
    analysis: KeptAnalysis | None = None

    def used(self, path: Path, analysed: AnalysisUser | None) -> Diarization | KnnError:
        """The result, when `analysed` was called with the analysis; its error in place of a result."""
        if analysed is None or self.analysis is None:
            return self.result
        try:
            analysed(path, self.analysis)
        except KnnError as error:
            return error
        return self.result


def diarize_recording(
    path: Path, embedder: Embedder, *, per_channel: bool = False, channel: str = "mix", keeps: bool, **settings: Any
) -> DiarizedRecording:
    """Diarize one recording of `diarize_recordings`, with its analysis where it `keeps` it; KnnError if it fails."""
    with fetched.opened(path) as file:
        diarized = _diarize_file(file, embedder, per_channel, channel, keeps, settings)
    kept = diarized.analysis
    return diarized._replace(analysis=kept and replace(kept, source=str(path.resolve())))


def _diarize_file(
    path: Path, embedder: Embedder, per_channel: bool, channel: str, keeps: bool, settings: Mapping[str, Any]
) -> DiarizedRecording:
    if per_channel:
        return DiarizedRecording(channels.diarize_channels(path, embedder, channel, settings))
    if not keeps:
        return DiarizedRecording(pipeline.diarize(path, model=embedder, channel=channel, **settings))
    analysis = analyse_recording(path, embedder, settings["options"], channel)
    try:
        if _has_enough_windows(analysis, settings):
            result = diarize_analysis(analysis, embedder.bundle, **settings)
        else:  # so little sound that it costs nothing to embed it in shorter windows
            result = pipeline.diarize(path, model=embedder, channel=channel, **settings)
    except KnnError as error:  # after clustering, so that its tree is kept too
        return DiarizedRecording(error, analysis)
    return DiarizedRecording(result, analysis)


def diarize_kept(
    files: Sequence[Path], *, analysed: AnalysisUser | None = None, **settings: Any
) -> Iterator[tuple[Path, Diarization | KnnError]]:
    """Diarize kept analyses, with the same turns as from the sound; no network is loaded.

    Parameters
    ----------
    files : sequence of Path
        Kept analyses.
    analysed : callable, optional
        Called with each file and its `KeptAnalysis`.
    **settings
        Further arguments of `diarize_analysis`.

    Yields
    ------
    tuple of Path and (Diarization or KnnError)
    """
    for path in files:
        try:
            analysis = kept_analysis.load(path)
            if not _has_enough_windows(analysis, settings):
                count = np.count_nonzero(analysis.windows.seconds)
                raise KnnError(
                    f"{path} holds {count} embeddings, too few for so many speakers.", "Diarize the sound itself."
                )
            if analysed is not None:
                analysed(path, analysis)
            model = None
            if settings["options"].clusterer in (None, "vbx"):
                model = bundle.find_embedder(analysis.embedder)
            yield path, diarize_analysis(analysis, model, **settings)
        except KnnError as error:
            yield path, error
        except _CONTRADICTORY:  # windows that point beyond the arrays, as only a changed file has them
            hint = kept_analysis.KEEP_AGAIN
            yield path, StoreError(f"{path} is damaged: its windows contradict each other.", hint)


def diarize_analysis(
    analysis: KeptAnalysis, model: Bundle | None, *, options: DiarizationOptions, **numbers: int | None
) -> Diarization:
    """Cluster and reconstruct: what is left of a diarization when all that takes time is done.

    Parameters
    ----------
    analysis : KeptAnalysis
    model : Bundle or None
        The embedding model, for a clustering method that needs its PLDA.
    options : DiarizationOptions
        Of these, clustering and post-processing.
    **numbers
        `num_speakers`, `min_speakers` and `max_speakers` of `pipeline.diarize`.

    Returns
    -------
    Diarization

    Raises
    ------
    KnnError
        For numbers of speakers that contradict each other, and for settings that the method does not take.
    """
    kept_analysis.check_windows(analysis.windows, options)
    clusterer = pipeline.build_clusterer(options.clusterer, options.clusterer_settings, model)
    with remembering(analysis.clustering):
        labels = pipeline.cluster_windows(analysis.windows, clusterer, numbers)
    least = numbers.get("num_speakers") or numbers.get("min_speakers")
    return speaker_turns.reconstruct(
        analysis.windows, labels, options, analysis.seconds, analysis.recording, min_speakers=least
    )


def analyse_recording(path: Path, embedder: Embedder, options: DiarizationOptions, channel: str) -> KeptAnalysis:
    """All of a recording's diarization that takes time; AudioError for the file, BundleError for the models."""
    from knn_cli.diarization.segmentation import Segmenter

    network = kept_analysis.SILERO
    if options.vad != "silero":
        model = options.segmentation
        segmenter = model if isinstance(model, Segmenter) else Segmenter(model, embedder=embedder)
        options, network = replace(options, segmentation=segmenter), segmenter.bundle.fingerprint
    windows, seconds = pipeline.analyse(path, embedder, options, channel)
    fingerprint = embedder.bundle.fingerprint
    return KeptAnalysis(windows, path.stem, seconds, channel, fingerprint, network, str(path.resolve()))


def _has_enough_windows(analysis: KeptAnalysis, settings: Mapping[str, Any]) -> bool:
    """False where a diarization of the sound would embed shorter windows, for the speakers asked for."""
    asked = settings.get("num_speakers") or settings.get("min_speakers") or 1
    return not 0 < np.count_nonzero(analysis.windows.seconds) < asked


def identify_speakers(
    results: Iterable[tuple[Path, RecordingResult | KnnError]],
    enrolled: EnrolledSpeakers,
    *,
    decision: SpeakerDecision = UNCALIBRATED,
    keep_labels: bool = False,
) -> Iterator[tuple[Path, RecordingResult | KnnError]]:
    """Name the enrolled speakers in each recording (see `identification.identify`).

    With `keep_labels`, other speakers keep their labels unless an enrolled speaker has one of these names.
    """
    for path, result in results:
        if isinstance(result, KnnError):
            yield path, result
            continue
        try:
            identified = identification.identify(result.diarization, enrolled, decision=decision)
        except KnnError as error:
            yield path, error
            continue
        if keep_labels:
            identified = _with_labels(identified, linking.speaker_labels(result.diarization))
        yield path, RecordingResult(identified.diarization, identified.facts(), decision)


def _with_labels(identified: IdentificationResult, before: Sequence[str]) -> IdentificationResult:
    """The same result, with the labels that unknown speakers had `before`."""
    names = {new: old for old, new in zip(before, identified.speakers, strict=True) if old not in identified.names}
    if set(names.values()) & set(identified.enrolled):
        return identified
    speakers = tuple(names.get(label, label) for label in identified.speakers)
    return replace(identified, diarization=linking.rename_speakers(identified.diarization, names), speakers=speakers)


def link_recordings(
    results: Iterable[tuple[Path, RecordingResult | KnnError]],
    *,
    known: Collection[str] = (),
    threshold: float = UNCALIBRATED.linking_threshold,
    view: slice = slice(None),
) -> list[tuple[Path, RecordingResult | KnnError]]:
    """Give each speaker one label over all recordings (see `linking.link_speakers`)."""
    before = list(results)
    succeeded = [result for _, result in before if not isinstance(result, KnnError)]
    linked = iter(
        linking.link_speakers([result.diarization for result in succeeded], known=known, threshold=threshold, view=view)
    )
    after: list[tuple[Path, RecordingResult | KnnError]] = []
    for path, result in before:
        if isinstance(result, KnnError):
            after.append((path, result))
            continue
        diarization = next(linked)
        names = _renaming(result.diarization, diarization)
        facts = result.recognised and [_renamed(fact, names, known) for fact in result.recognised]
        after.append((path, RecordingResult(diarization, facts, result.decision)))
    return after


def _renaming(before: Diarization, after: Diarization) -> dict[str, str]:
    """Old label -> new label: turns and embeddings are the same, in the same order."""
    pairs = zip(_labels(before), _labels(after), strict=True)
    return dict([*pairs, *zip(before.speaker_embeddings, after.speaker_embeddings, strict=True)])


def _labels(diarization: Diarization) -> list[str]:
    return [turn.speaker for turn in diarization.turns]


def _renamed(fact: Mapping[str, Any], names: Mapping[str, str], known: Collection[str]) -> dict[str, Any]:
    label = names[fact["speaker"]]
    if label not in known:
        return {**fact, "speaker": label}
    return {**fact, "speaker": label, "known": True, "who": label, "reason": fact["reason"] and LINKED}


def correct_speakers(
    results: Iterable[tuple[Path, RecordingResult | KnnError]],
    edits: Mapping[Path, Sequence[Edit]],
    analyses: Mapping[Path, KeptAnalysis],
    clusterer: Clusterer,
) -> Iterator[tuple[Path, RecordingResult | KnnError]]:
    """Make the edits of each recording (see `speaker_windows.correct`), whose analysis may be at hand."""
    for path, result in results:
        if isinstance(result, KnnError) or not edits.get(path):
            yield path, result
            continue
        windows = analyses[path].windows if path in analyses else None
        try:
            corrected = speaker_windows.correct(result.diarization, edits[path], windows, clusterer)
        except KnnError as error:
            yield path, error
            continue
        facts = result.recognised and _corrected(result.recognised, corrected, edits[path])
        yield path, RecordingResult(corrected, facts, result.decision)


def _corrected(
    facts: Sequence[dict[str, Any]], diarization: Diarization, edits: Sequence[Edit]
) -> list[dict[str, Any]]:
    """Facts of the speakers after edits: those of a merged speaker go, new speakers are unknown."""
    before = {fact["speaker"]: fact for fact in facts}
    merged = {edit.speaker for edit in edits if isinstance(edit, Merge)}
    kept = {corrections.label_after(label, edits): fact for label, fact in before.items() if label not in merged}
    unknown = {"known": False, "who": None, "reason": EDITED}
    no_scores: dict[str, Any] = {"nearest": None, "llr": None, "probability": None, "cosine": {}}
    return [
        {**kept.get(label, unknown | no_scores), **({} if label in before else unknown), "speaker": label}
        for label in linking.speaker_labels(diarization)
    ]


def read_references(
    files: Sequence[Path], reference: Path | None, uem: Path | None, names: Mapping[Path, str] | None = None
) -> dict[str, tuple[Annotation, Timeline | None]]:
    """Read the reference turns of each recording and the part of it that is scored.

    Parameters
    ----------
    files : sequence of Path
        The recordings.
    reference : Path or None
        A file of turns, or a folder of them. A reference with a single recording is used for a single file, whatever
        its name.
    uem : Path or None
        The scored part of each recording, by the name of the file or of its reference; everything where None.
    names : mapping of Path to str, optional
        The names of the recordings; the stems of the files where None.

    Returns
    -------
    dict
        Name of a recording -> (turns, scored part or None). Empty without a `reference`.

    Raises
    ------
    KnnError
        For a recording that is missing in the reference or the UEM, and for two that would have the same turns, so that
        this is known before diarization.
    """
    if reference is None:
        return {}
    called = {path: path.stem if names is None else names[path] for path in files}
    rttm.check_names(called.values(), "recordings")
    turns = turn_readers.read_references(reference)
    scored = read_uem(uem) if uem is not None else None
    references: dict[str, tuple[Annotation, Timeline | None]] = {}
    for name in called.values():
        truth = rttm.turns_of_recording(name, turns, files, reference)
        if scored is None:
            references[name] = (truth, None)
            continue
        part = rttm.found_by_name(name, scored) or scored.get(str(truth.uri))
        if part is None:
            raise KnnError(f"{uem} has no line of {name}.", "Add one, or do not score this file.")
        references[name] = (truth, part)
    return references
