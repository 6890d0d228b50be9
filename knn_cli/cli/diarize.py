"""`knn diarize`: speaker turns, with enrolled speakers, speaker linking, speaker removal and scoring."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from knn_cli.cli import stopping
from knn_cli.cli.analysis_files import AnalysisFiles
from knn_cli.cli.console import console, leave
from knn_cli.cli.diarization_options import (
    ClustererOption,
    CorrectionsOption,
    CutOption,
    KeepOption,
    LinkSpeakersOption,
    MarginOption,
    MaxGapOption,
    MaxSilenceOption,
    MaxSpeakersOption,
    MergeOption,
    MinSpeakersOption,
    MinTurnOption,
    MuteOption,
    OverlapOption,
    PerChannelOption,
    PresetOption,
    ReferenceOption,
    RenameOption,
    RttmOption,
    SaveEmbeddingsOption,
    SegmentationOption,
    SourcesArgument,
    SpeakersOption,
    SplitSpeakerOption,
    TurnFormat,
    UemOption,
    UnwantedOption,
)
from knn_cli.cli.diarization_settings import DiarizationSettings, check_settings
from knn_cli.cli.format_options import format_option, parse_formats
from knn_cli.cli.options import (
    AgainOption,
    BackupOption,
    BatchOption,
    ChannelOption,
    ClusterOption,
    Device,
    DeviceOption,
    FolderOption,
    ForceOption,
    JobsOption,
    JsonOption,
    ModelOption,
    NumSpeakersOption,
    QuietOption,
    SetOption,
    TextOption,
    TrackOption,
    TurnsOption,
    VerboseOption,
    counted,
    epilog,
    note_model,
    refuse_beside,
    refuse_together,
    refuse_without,
    sound_channel,
)
from knn_cli.cli.settings import read_settings
from knn_cli.cli.stdin import NameOption
from knn_cli.cli.tunable_settings import check_kept, chosen_options, segmenter_of
from knn_cli.cli.turn_additions import AddToOption, TemplateOption, TurnAdditions, WordsOption
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from knn_cli.diarization.kept_analysis import KeptAnalysis
    from knn_cli.diarization.recordings import RecordingResult
    from knn_cli.diarization.segmentation import Segmenter
    from knn_cli.embedding.embedder import Embedder

_TOGETHER = (  # at most one option of each group
    ("rttm", "out", "out_dir"),
    ("rttm", "as_json", "format"),
    ("preset", "clusterer"),
    ("mute", "cut"),
    ("per_channel", "channel"),
    ("per_channel", "keep"),
    ("jobs", "cluster"),
)
_NEEDS = {  # options that have no effect without one of others
    "uem": ("reference",),
    "mute": ("unwanted",),
    "cut": ("unwanted",),
    "unwanted": ("out_dir",),
    "overlap": ("out_dir",),
    "max_silence": ("out_dir",),
    "add_to": ("out", "out_dir"),
    "force": ("rttm", "out", "out_dir", "save_embeddings", "keep"),
    "backup": ("rttm", "out", "out_dir"),
    "again": ("rttm", "out", "out_dir", "keep"),
}
# Options that still say something where turns are given.
_BESIDE_TURNS = (
    "sources name channel track rttm out out_dir format as_json force backup again reference uem words add_to template "
    "merge rename corrections unwanted mute cut overlap max_silence settings quiet verbose"
).split()

EPILOG = epilog(
    "knn diarize meeting.wav --rttm out.rttm",
    "knn diarize tapes/ --link-speakers --out-dir turns/ --format csv",
    "knn diarize kept.h5 --merge SPEAKER_02=SPEAKER_00 -o meeting.html",
    formats=TurnFormat,
    settings=DiarizationSettings,
)


def diarize(
    ctx: typer.Context,
    sources: SourcesArgument,
    name: NameOption = None,
    channel: ChannelOption = "mix",
    track: TrackOption = None,
    rttm: RttmOption = None,
    out: TextOption = None,
    out_dir: FolderOption = None,
    format: Annotated[str | None, format_option(TurnFormat)] = None,
    as_json: JsonOption = False,
    save_embeddings: SaveEmbeddingsOption = None,
    keep: KeepOption = None,
    force: ForceOption = False,
    backup: BackupOption = False,
    again: AgainOption = False,
    num_speakers: NumSpeakersOption = None,
    min_speakers: MinSpeakersOption = None,
    max_speakers: MaxSpeakersOption = None,
    speakers: SpeakersOption = None,
    link_speakers: LinkSpeakersOption = False,
    per_channel: PerChannelOption = False,
    min_turn: MinTurnOption = None,
    max_gap: MaxGapOption = None,
    margin: MarginOption = None,
    merge: MergeOption = None,
    split: SplitSpeakerOption = None,
    rename: RenameOption = None,
    corrections: CorrectionsOption = None,
    unwanted: UnwantedOption = None,
    mute: MuteOption = False,
    cut: CutOption = False,
    overlap: OverlapOption = None,
    max_silence: MaxSilenceOption = None,
    reference: ReferenceOption = None,
    uem: UemOption = None,
    turns: TurnsOption = None,
    words: WordsOption = None,
    add_to: AddToOption = None,
    template: TemplateOption = False,
    model: ModelOption = None,
    segmentation: SegmentationOption = None,
    clusterer: ClustererOption = None,
    preset: PresetOption = None,
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    jobs: JobsOption = None,
    cluster: ClusterOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Find out who spoke when: the turns of each speaker, on stdout or in files."""
    from knn_cli.audio import reading
    from knn_cli.cli import (
        diarization_edits,
        diarization_sources,
        known_speakers,
        progress,
        resuming,
        stdin,
        turn_outputs,
    )
    from knn_cli.cli.diarization_writer import ResultWriter
    from knn_cli.cli.workers import recording_diarizer
    from knn_cli.diarization import (
        given_turns,
        linking,
        recordings,
        removal_outputs,
        speaker_export,
        speaker_removal,
    )
    from knn_cli.diarization.options import check_speakers
    from knn_cli.diarization.pipeline import build_clusterer
    from knn_cli.formats import rttm as rttm_files
    from knn_cli.recognition import speaker_decision

    refuse_together(ctx, _TOGETHER)
    refuse_without(ctx, _NEEDS)
    refuse_beside(ctx, "turns", _BESIDE_TURNS, "The turns are given, so none are looked for.")
    tuning = read_settings(DiarizationSettings, settings)
    check_settings(ctx, tuning)
    check_speakers(num_speakers, min_speakers, max_speakers)
    channel = sound_channel(channel, track)
    reading.track_and_channel(channel)
    for threshold in (tuning.identification_threshold, tuning.linking_threshold):
        if threshold is not None:
            speaker_decision.check_threshold(threshold)
    lengths = {"min_turn": min_turn, "max_gap": max_gap, "margin": margin}
    options = chosen_options(clusterer and clusterer.value, preset, tuning, lengths, segmentation)

    received = stdin.open_sources(ctx, sources, name)
    found = diarization_sources.find(ctx, received.paths)
    if found.kept:
        check_kept(preset, options, found.paths[0])
    given = diarization_sources.given_turns(found, turns)
    if cluster is not None and (found.kept or given is not None):
        raise KnnError("Kept analyses and given turns leave nothing for a cluster to do.", "Leave --cluster out.")
    paths, channel = found.paths, found.channels.get(found.paths[0], channel)
    edits = diarization_edits.read_edits(ctx, found.names, options.max_gap)
    if rttm is not None:  # whatever its suffix
        outputs = turn_outputs.TurnOutputs(("rttm",), {"rttm": rttm}, None, {})
    else:
        outputs = turn_outputs.choose(found.places, out, out_dir, ["json"] if as_json else parse_formats(format))
    additions = TurnAdditions.given(words, add_to, template)
    additions.check([*found.names.values()], outputs.formats)
    if "rttm" in outputs.formats:
        rttm_files.check_names(found.names.values(), "recordings")
    clean = None
    places = {found.sounds.get(path, path): place for path, place in found.places.items()}
    if unwanted is not None or overlap is not None or max_silence is not None:
        assert out_dir is not None  # see _NEEDS
        how: Literal["mute", "cut"] | None = "mute" if mute else "cut" if cut else None
        overlapped: Literal["keep", "mute", "cut"] | None = None if overlap is None else overlap.value
        level = speaker_removal.SILENCE_THRESHOLD_DB if tuning.silence_threshold is None else tuning.silence_threshold
        clean = removal_outputs.SpeakerRemoval(
            out_dir, outputs.formats, unwanted, how, overlapped, max_silence, level, channel, places
        )
    called = {path: path.stem if found.kept else found.names[path] for path in paths}
    truths = recordings.read_references(paths, reference, uem, called)
    others = [
        path
        for path in (*paths, *additions.read, reference, uem, turns, speakers, *(corrections or ()))
        if path is not None
    ]
    if "html" in outputs.formats or (clean is not None and clean.writes_sound):
        found.check_sounds("a player or edited audio")
    sound = [found.sounds.get(path, path) for path in paths]
    files = turn_outputs.check(outputs, clean, save_embeddings, sound, others, force=force, hold=ctx.with_resource)
    keep_files = diarization_sources.keep_targets(keep, found.places, others, ctx.with_resource)
    received.receive()

    needs_model = options.clusterer in (None, "vbx") or speakers is not None or link_speakers
    voice = found.model() if found.kept and needs_model else None
    embedder: Embedder | None = None
    segmenter: Segmenter | None = None
    if given is None and (not found.kept or speakers is not None):
        from knn_cli.embedding.embedder import Embedder

        embedder = Embedder(voice or model, device=device.value, batch_seconds=batch_seconds)
        voice = embedder.bundle
    fingerprint = found.embedder if embedder is None else embedder.bundle.fingerprint
    # Impossible settings are refused before any file.
    build = build_clusterer(options.clusterer, options.clusterer_settings, voice)
    if embedder is not None and not found.kept:
        segmenter = segmenter_of(options, embedder)
        detector = "silero-vad" if segmenter is None else segmenter.bundle.fingerprint
        chosen = model if segmentation is not None else None  # by the user, both of them
        note_model(chosen, embedder.bundle, f"speech by {detector}, on {embedder.device}")
    models = [one.bundle for one in (embedder, segmenter) if one is not None] or ([] if voice is None else [voice])
    joint = link_speakers or save_embeddings is not None or reference is not None
    resumed = resuming.Resumption(
        ctx,
        {path: files.get(path, []) for path in paths},
        models,
        kept=keep_files,
        whole=[*outputs.outs.values()],
        together=joint,
    )
    paths = resumed.left
    goes_on = (joint or outputs.outs) and len(found.paths) > 1 and not (found.kept or given or per_channel)
    beside = [*outputs.outs.values(), out_dir and out_dir / "knn", save_embeddings] if goes_on else []
    kept = AnalysisFiles(ctx, models, {path: found.names[path] for path in paths}, keep_files, beside)
    if not paths:
        kept.remove()
        leave(resumed.failures, done=resumed.finished)
        return
    enrolled = None if speakers is None or embedder is None else known_speakers.enrolled(speakers, embedder, jobs)
    names = enrolled_names = () if enrolled is None else enrolled.names
    if "rttm" in outputs.formats:
        rttm_files.check_names(names, "speakers")
    if given is not None:  # who speaks in one of the recordings may be unwanted in all
        known = [turns for turns in given.values() if not isinstance(turns, KnnError)]
        names = (*names, *sorted({turn.speaker for turns in known for turn in turns}))
    if clean is not None and not (edits or found.kept or per_channel):  # these give speakers other names
        clean.check_names(names, numbered=given is None)
    decision = known_speakers.decision_for(voice, enrolled, tuning, links=link_speakers)
    analyses: dict[Path, KeptAnalysis] = {}

    def analysed(path: Path, analysis: KeptAnalysis) -> None:
        kept.save(path, analysis)
        if path in edits:
            analyses[path] = analysis

    def passes(path: Path) -> list[float]:
        if given is not None:
            return []
        channels = reading.info(path, channel=channel).channels if per_channel and path.is_file() else 1
        return [progress.SEGMENTATION_PASS, progress.EMBEDDING_PASS][: 1 if cluster else 2] * channels

    with (
        recording_diarizer(cluster, device, jobs) as diarize_all,
        progress.over_files("Diarizing", len(paths), passes) as finished,
    ):
        more: dict[str, Any] = {
            "num_speakers": num_speakers,
            "min_speakers": min_speakers,
            "max_speakers": max_speakers,
            "options": replace(options, segmentation=segmenter),
            "analysed": analysed if kept or edits else None,
        }
        if given is not None:
            diarizations = given_turns.with_given_turns(paths, given, channel=channel)
        elif found.kept or embedder is None:
            diarizations = recordings.diarize_kept(paths, **more)
        else:
            diarize_sound = partial(diarize_all, embedder=embedder, per_channel=per_channel, channel=channel)
            diarizations = kept.diarized(diarize_sound, paths, **more)
        results: Iterable[tuple[Path, RecordingResult | KnnError]] = _with_progress(
            diarizations, finished, {} if found.kept else found.names
        )
        if enrolled is not None:
            results = recordings.identify_speakers(results, enrolled, decision=decision, keep_labels=per_channel)
        if link_speakers and voice is not None:
            results = together = recordings.link_recordings(
                results, known=names, threshold=decision.linking_threshold, view=voice.view("speaker")
            )
            good = [
                linking.speaker_labels(result.diarization) for _, result in together if not isinstance(result, KnnError)
            ]
            labels = {label for result in good for label in result}
            console.note(f"{counted(len(labels), 'speaker')} in {counted(len(good), 'recording')}.")
            names = (*names, *labels)
        if edits:
            corrected = recordings.correct_speakers(results, edits, analyses, build)
            results = diarization_edits.with_notes(corrected, edits)
        asked = 1 if per_channel or edits or given is not None else num_speakers or min_speakers or 1
        sounds, save = found.sounds, save_embeddings is not None
        temporary = received.temporary
        writer = ResultWriter(
            *(outputs, clean, names, truths, called, save, channel, asked, sounds, temporary, resumed, found.names),
            additions,
        )
        writer.write(results)
    if writer.scores:  # where turns do not go to stdout, this is the data
        from knn_cli.cli import diarization_output

        diarization_output.diarization_scores(sys.stderr if outputs.stdout else sys.stdout, writer.scores)
    if save_embeddings is not None and writer.kept:
        rows = speaker_export.export_speakers(
            writer.kept, fingerprint, save_embeddings, known=enrolled_names, linked=link_speakers, force=force
        )
        console.note(f"{save_embeddings}: {counted(rows, 'speaker embedding')} by {fingerprint}.")
    if not writer.failures:
        kept.remove()
    leave([*resumed.failures, *writer.failures], done=resumed.finished + writer.done)


def _with_progress(
    results: Iterable[tuple[Path, Any]], finished: Callable[[], None], names: Mapping[Path, str]
) -> Iterator[tuple[Path, RecordingResult | KnnError]]:
    from knn_cli.diarization.recordings import RecordingResult

    for path, result in results:
        finished()
        if isinstance(result, KnnError):
            yield path, result
        else:
            yield path, RecordingResult(replace(result, name=names.get(path, result.name)))
        stopping.advanced()
