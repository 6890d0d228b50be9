"""Errors of a diarizer under many settings: what takes time is done once for each recording and shared by them.

Settings that cluster alike share clusters and activity, and differ in how turns are made; settings of one kind of
windows share an analysis. A folder keeps the analyses, so that a run that was stopped goes on after the last one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.file_digests import file_sha256
from knn_cli.diarization import kept_analysis, pipeline, recordings, speaker_turns
from knn_cli.diarization.clustering.memory import remembering
from knn_cli.diarization.kept_analysis import KeptAnalysis
from knn_cli.diarization.options import DiarizationOptions
from knn_cli.evaluation.diarization_error import DiarizationError, diarization_error

if TYPE_CHECKING:
    from pyannote.core import Annotation, Timeline

    from knn_cli.diarization.segmentation import Segmenter
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.networks.bundle import Bundle

AnalysisSource = Callable[[DiarizationOptions], AbstractContextManager[KeptAnalysis]]


@dataclass(frozen=True)
class Scoring:
    """What is scored, and how.

    Attributes
    ----------
    collar : float
        Seconds on each side of reference boundaries that are not scored.
    skip_overlap : bool
        Whether overlapped reference speech is left out.
    num_speakers, min_speakers, max_speakers : int or None
        Number of speakers of every recording, where known.
    """

    collar: float = 0.0
    skip_overlap: bool = False
    num_speakers: int | None = None
    min_speakers: int | None = None
    max_speakers: int | None = None

    @property
    def bounds(self) -> dict[str, int | None]:
        """The numbers of speakers as `pipeline.cluster_windows` takes them."""
        return {name: getattr(self, name) for name in ("num_speakers", "min_speakers", "max_speakers")}


class AnalysisFolder:
    """A folder of the analyses of recordings, which are made where they are not there or out of date.

    Parameters
    ----------
    folder : Path
    embedder : Embedder
    segmenters : mapping
        Segmentation network as `segmentation_name` gives it -> the network, loaded; None for silero-vad.
    channel : str
        The channel that is read.
    """

    def __init__(
        self, folder: Path, embedder: Embedder, segmenters: Mapping[str, Segmenter | None], channel: str
    ) -> None:
        self._folder, self._embedder, self._segmenters, self._channel = folder, embedder, segmenters, channel
        self._sound: dict[Path, str] = {}  # SHA-256 of the file of each recording

    def path(self, recording: Path, options: DiarizationOptions) -> Path:
        """The file of the analysis of a recording's sound, as it is now, with the windows of these options."""
        if recording not in self._sound:
            with suppress(OSError):  # whoever reads the sound is told
                self._sound[recording] = file_sha256(recording)
        key = f"{self._sound.get(recording)} {windows_key(options)!r}"
        return self._folder / f"{recording.stem}.{hashlib.sha256(key.encode()).hexdigest()[:12]}.h5"

    @contextmanager
    def opened(self, recording: Path, options: DiarizationOptions) -> Iterator[KeptAnalysis]:
        """The analysis of a recording, read, or made and kept; at the end, what clustering has added to it is kept too.

        Raises KnnError for the sound, the models or the disk.
        """
        file = self.path(recording, options)
        analysis = self._kept(recording, options, file)
        if analysis is None:
            loaded = replace(options, segmentation=self._segmenters[segmentation_name(options)])
            analysis = recordings.analyse_recording(recording, self._embedder, loaded, self._channel)
            kept_analysis.save(analysis, file, force=True)
        before = len(analysis.clustering)
        yield analysis
        if len(analysis.clustering) > before:
            kept_analysis.save(analysis, file, force=True)

    def _kept(self, recording: Path, options: DiarizationOptions, file: Path) -> KeptAnalysis | None:
        """The analysis in a file; None where it is not of this sound, these models and these windows."""
        try:
            analysis = kept_analysis.load(file)
            kept_analysis.check_windows(analysis.windows, options)
        except KnnError:
            return None
        segmenter = self._segmenters[segmentation_name(options)]
        network = kept_analysis.SILERO if segmenter is None else segmenter.bundle.fingerprint
        wanted = str(recording.resolve()), self._channel, self._embedder.bundle.fingerprint, network
        found = analysis.source, analysis.channel, analysis.embedder, analysis.segmentation
        return analysis if found == wanted else None


def segmentation_name(options: DiarizationOptions) -> str:
    """The segmentation network of options as a text: its name or path, "silero", or "" for the shipped one."""
    return options.vad if options.vad == "silero" else str(options.segmentation or "")


def windows_key(options: DiarizationOptions) -> tuple[object, ...]:
    """What of options decides about windows: options alike in it share an analysis."""
    return segmentation_name(options), options.step, options.short_windows


def kept_source(path: Path) -> AnalysisSource:
    """The source of a kept analysis, which has the windows that it has; StoreError where it cannot be read."""
    analysis = kept_analysis.load(path)

    @contextmanager
    def opened(options: DiarizationOptions) -> Iterator[KeptAnalysis]:
        name = segmentation_name(options)
        if name and (name == "silero") != (analysis.segmentation == kept_analysis.SILERO):
            raise StoreError(f"{path} was made with {analysis.segmentation}, not {name}.", "Tune on the sound itself.")
        kept_analysis.check_windows(analysis.windows, options)
        yield analysis

    return opened


def score_settings(
    settings: Sequence[DiarizationOptions],
    source: AnalysisSource,
    model: Bundle | None,
    truth: tuple[Annotation, Timeline | None],
    scoring: Scoring,
) -> list[DiarizationError]:
    """Errors of one recording under each of many settings.

    Parameters
    ----------
    settings : sequence of DiarizationOptions
    source : callable
        Opens the recording's analysis with the windows of some options; called once for each kind of windows.
    model : Bundle or None
        The embedding model, for a clustering method that needs its PLDA.
    truth : Annotation and Timeline or None
        The recording's reference turns, and what of it is scored (see `recordings.read_references`).
    scoring : Scoring

    Returns
    -------
    list of DiarizationError
        In the order of the settings, each of the turns that `recordings.diarize_analysis` gives.

    Raises
    ------
    KnnError
        For numbers of speakers that contradict each other, and as `source`.
    """
    errors: dict[int, DiarizationError] = {}
    for same_windows in _grouped(settings, range(len(settings)), windows_key):
        with source(settings[same_windows[0]]) as analysis:
            for alike in _grouped(settings, same_windows, _clustering_key):
                activity = _activity(analysis, model, settings[alike[0]], scoring)
                for number in alike:
                    errors[number] = _error(analysis, activity, settings[number], truth, scoring)
    return [errors[number] for number in range(len(settings))]


def _activity(
    analysis: KeptAnalysis, model: Bundle | None, options: DiarizationOptions, scoring: Scoring
) -> speaker_turns.SpeakerActivity:
    """The activity of speakers with the clustering of some options."""
    clusterer = pipeline.build_clusterer(options.clusterer, options.clusterer_settings, model)
    with remembering(analysis.clustering):
        labels = pipeline.cluster_windows(analysis.windows, clusterer, scoring.bounds)
    least = scoring.num_speakers or scoring.min_speakers
    return speaker_turns.find_activity(analysis.windows, labels, min_speakers=least)


def _error(
    analysis: KeptAnalysis,
    activity: speaker_turns.SpeakerActivity,
    options: DiarizationOptions,
    truth: tuple[Annotation, Timeline | None],
    scoring: Scoring,
) -> DiarizationError:
    """The error of the turns that some options make of the activity of speakers."""
    turns = speaker_turns.make_turns(activity, analysis.windows, options, analysis.seconds, analysis.recording)
    reference, scored = truth
    collar, skip_overlap = scoring.collar, scoring.skip_overlap
    return diarization_error(reference, turns.annotation, collar=collar, skip_overlap=skip_overlap, uem=scored)


def _clustering_key(options: DiarizationOptions) -> tuple[object, ...]:
    return options.clusterer, tuple(sorted(options.clusterer_settings.items()))


def _grouped(
    settings: Sequence[DiarizationOptions],
    numbers: Sequence[int],
    key: Callable[[DiarizationOptions], tuple[object, ...]],
) -> list[list[int]]:
    """The numbers of settings with equal keys, by their first."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number in numbers:
        groups.setdefault(key(settings[number]), []).append(number)
    return list(groups.values())
