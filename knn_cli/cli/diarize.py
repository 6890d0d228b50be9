"""`knn diarize`: speaker turns, with enrolled speakers, speaker linking, speaker removal and scoring."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from knn_cli.cli.console import console, leave
from knn_cli.cli.diarization_options import (
    ClustererOption,
    ClusteringMethod,
    CutOption,
    LinkSpeakersOption,
    MarginOption,
    MaxGapOption,
    MaxSilenceOption,
    MaxSpeakersOption,
    MinSpeakersOption,
    MinTurnOption,
    MuteOption,
    PerChannelOption,
    PresetOption,
    ReferenceOption,
    RttmOption,
    SaveEmbeddingsOption,
    SegmentationOption,
    SpeakersOption,
    TurnFormat,
    UemOption,
    UnwantedOption,
)
from knn_cli.cli.diarization_settings import CLUSTERING_SETTINGS, DiarizationSettings, choose_clustering
from knn_cli.cli.options import (
    BatchOption,
    ChannelOption,
    Device,
    DeviceOption,
    FolderOption,
    ForceOption,
    JsonOption,
    ModelOption,
    NumSpeakersOption,
    QuietOption,
    SetOption,
    TextOption,
    VerboseOption,
    counted,
    epilog,
    format_option,
    note_model,
    read_settings,
    refuse_together,
    refuse_without,
)
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from knn_cli.diarization.identification import EnrolledSpeakers
    from knn_cli.diarization.recordings import RecordingResult
    from knn_cli.diarization.segmentation import Segmenter
    from knn_cli.embedding.embedder import Embedder

SILERO = "silero"

_TOGETHER = (  # at most one option of each group
    ("rttm", "out", "out_dir"),
    ("rttm", "as_json", "format"),
    ("preset", "clusterer"),
    ("mute", "cut"),
    ("per_channel", "channel"),
)
_NEEDS = {  # options that have no effect without one of others
    "uem": ("reference",),
    "mute": ("unwanted",),
    "cut": ("unwanted",),
    "unwanted": ("out_dir",),
    "max_silence": ("out_dir",),
    "force": ("save_embeddings", "mute", "cut", "max_silence"),
}
_SETTINGS_NEED = {  # settings that have no effect without an option
    "identification_threshold": "speakers",
    "linking_threshold": "link_speakers",
    "silence_threshold": "max_silence",
}

EPILOG = epilog(
    "knn diarize meeting.wav --rttm out.rttm",
    "knn diarize meeting.wav --num-speakers 4 -o meeting.html",
    "knn diarize tapes/ --link-speakers --out-dir turns/ --format csv",
    formats=TurnFormat,
    settings=DiarizationSettings,
)


def diarize(
    ctx: typer.Context,
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE", help="Audio files or folders of audio.")],
    channel: ChannelOption = "mix",
    rttm: RttmOption = None,
    out: TextOption = None,
    out_dir: FolderOption = None,
    format: Annotated[TurnFormat | None, format_option()] = None,
    as_json: JsonOption = False,
    save_embeddings: SaveEmbeddingsOption = None,
    force: ForceOption = False,
    num_speakers: NumSpeakersOption = None,
    min_speakers: MinSpeakersOption = None,
    max_speakers: MaxSpeakersOption = None,
    speakers: SpeakersOption = None,
    link_speakers: LinkSpeakersOption = False,
    per_channel: PerChannelOption = False,
    min_turn: MinTurnOption = 0.1,
    max_gap: MaxGapOption = 0.4,
    margin: MarginOption = 0.2,
    unwanted: UnwantedOption = None,
    mute: MuteOption = False,
    cut: CutOption = False,
    max_silence: MaxSilenceOption = None,
    reference: ReferenceOption = None,
    uem: UemOption = None,
    model: ModelOption = None,
    segmentation: SegmentationOption = None,
    clusterer: ClustererOption = ClusteringMethod.spectral,
    preset: PresetOption = None,
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    settings: SetOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Find out who spoke when: the turns of each speaker, on stdout or in files."""
    from knn_cli.audio import reading
    from knn_cli.cli import progress, turn_outputs
    from knn_cli.cli.diarization_writer import ResultWriter
    from knn_cli.core.output_paths import check_unique_stems
    from knn_cli.diarization import (
        identification,
        linking,
        recordings,
        removal_outputs,
        speaker_export,
        speaker_removal,
    )
    from knn_cli.diarization.options import DiarizationOptions, check_speakers
    from knn_cli.diarization.pipeline import build_clusterer
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.embedding.files import expand_folders

    refuse_together(ctx, _TOGETHER)
    refuse_without(ctx, _NEEDS)
    tuning = read_settings(DiarizationSettings, settings)
    _check_settings(ctx, tuning)
    vad = SILERO if segmentation == SILERO else "ours"
    network = None if vad == SILERO else segmentation
    check_speakers(num_speakers, min_speakers, max_speakers)
    reading.channel_index(channel)
    name_from = _default(tuning.identification_threshold, identification.IDENTIFICATION_THRESHOLD)
    link_from = _default(tuning.linking_threshold, linking.LINKING_THRESHOLD)
    for threshold in (name_from, link_from):
        linking.check_threshold(threshold)
    method, method_settings = choose_clustering(clusterer.value, preset and preset.value, tuning)
    options = DiarizationOptions(vad, network, method, method_settings, min_turn, max_gap, margin)

    paths = expand_folders(sources)
    check_unique_stems(paths)
    if rttm is not None:  # whatever its suffix
        outputs = turn_outputs.TurnOutputs("rttm", rttm, None, {})
    else:
        outputs = turn_outputs.choose(paths, out, out_dir, "json" if as_json else format and format.value)
    clean = None
    if unwanted is not None or max_silence is not None:
        assert out_dir is not None  # see _NEEDS
        how: Literal["mute", "cut"] | None = "mute" if mute else "cut" if cut else None
        level = _default(tuning.silence_threshold, speaker_removal.SILENCE_THRESHOLD_DB)
        clean = removal_outputs.SpeakerRemoval(out_dir, outputs.format, unwanted, how, max_silence, level, channel)
    truths = recordings.read_references(paths, reference, uem)
    others = [path for path in (reference, uem, speakers) if path is not None]
    turn_outputs.check(outputs, clean, save_embeddings, paths, others, force=force)

    embedder = Embedder(model, device=device.value, batch_seconds=batch_seconds)
    segmenter = _segmenter(vad, network, embedder)
    build_clusterer(method, method_settings, embedder.bundle)  # impossible settings are refused before any file
    detector = "silero-vad" if segmenter is None else segmenter.bundle.fingerprint
    chosen = model if segmentation is not None else None  # by the user, both of them
    note_model(chosen, embedder.bundle, f"speech by {detector}, on {embedder.device}")
    enrolled = None if speakers is None else _enrolled(speakers, embedder)
    names = enrolled_names = () if enrolled is None else enrolled.names

    def passes(path: Path) -> list[float]:
        return [progress.SEGMENTATION_PASS, progress.EMBEDDING_PASS] * (
            reading.info(path).channels if per_channel else 1
        )

    with progress.over_files("Diarizing", len(paths), passes) as finished:
        diarizations = recordings.diarize_recordings(
            paths,
            embedder,
            per_channel=per_channel,
            channel=channel,
            num_speakers=num_speakers,
            min_speakers=min_speakers,
            max_speakers=max_speakers,
            options=replace(options, segmentation=segmenter),
        )
        results: Iterable[tuple[Path, RecordingResult | KnnError]] = _with_progress(diarizations, finished)
        if enrolled is not None:
            results = recordings.identify_speakers(results, enrolled, threshold=name_from, keep_labels=per_channel)
        if link_speakers:
            view = embedder.bundle.view("speaker")
            results = together = recordings.link_recordings(results, known=names, threshold=link_from, view=view)
            good = [
                linking.speaker_labels(result.diarization) for _, result in together if not isinstance(result, KnnError)
            ]
            labels = {label for result in good for label in result}
            console.note(f"{counted(len(labels), 'speaker')} in {counted(len(good), 'recording')}.")
            names = (*names, *labels)
        asked = 1 if per_channel else num_speakers or min_speakers or 1
        writer = ResultWriter(outputs, clean, names, truths, save_embeddings is not None, channel, asked)
        writer.write(results)
    if writer.scores:  # where turns do not go to stdout, this is the data
        from knn_cli.cli import output

        output.diarization_scores(sys.stderr if outputs.stdout else sys.stdout, writer.scores)
    if save_embeddings is not None and writer.kept:
        fingerprint = embedder.bundle.fingerprint
        rows = speaker_export.export_speakers(
            writer.kept, fingerprint, save_embeddings, known=enrolled_names, linked=link_speakers, force=force
        )
        console.note(f"{save_embeddings}: {counted(rows, 'speaker embedding')} by {fingerprint}.")
    leave(writer.failures)


def _default(value: float | None, default: float) -> float:
    return default if value is None else value


def _check_settings(ctx: typer.Context, settings: DiarizationSettings) -> None:
    """Raise KnnError for a setting without the option that it belongs to."""
    for name, option in _SETTINGS_NEED.items():
        if getattr(settings, name) is not None and not ctx.params[option]:
            raise KnnError(f"The setting {name} requires --{option.replace('_', '-')}.", "Add it.")
    if ctx.params["preset"] is not None:
        for name in CLUSTERING_SETTINGS:
            if getattr(settings, name) is not None:
                raise KnnError(f"--preset and the setting {name} cannot be combined.", "Choose one of them.")


def _segmenter(vad: str, model: str | None, embedder: Embedder) -> Segmenter | None:
    from knn_cli.diarization.segmentation import Segmenter

    return None if vad == SILERO else Segmenter(model, embedder=embedder)


def _enrolled(path: Path, embedder: Embedder) -> EnrolledSpeakers:
    from knn_cli.diarization import identification

    with console.progress("Enrolling") as progress:
        enrolled = identification.enroll(path, embedder, progress=progress)
    console.detail(f"{path}: {counted(len(enrolled), 'known speaker')}, {counted(int(enrolled.clips.sum()), 'clip')}.")
    for name in enrolled.inconsistent:
        console.note(f"The clips of {name} are so unlike each other that they may be of several speakers.")
    return enrolled


def _with_progress(
    results: Iterable[tuple[Path, Any]], finished: Callable[[], None]
) -> Iterator[tuple[Path, RecordingResult | KnnError]]:
    from knn_cli.diarization.recordings import RecordingResult

    for path, result in results:
        finished()
        yield path, result if isinstance(result, KnnError) else RecordingResult(result)
