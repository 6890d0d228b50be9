"""`knn diarize`: who spoke when; enrolled speakers, one label per speaker over files, speaker removal, scoring."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from knn_cli.cli.console import console, failed, leave
from knn_cli.cli.options import (
    INPUT,
    MODEL,
    OUTPUT,
    BatchOption,
    ChannelOption,
    Device,
    DeviceOption,
    FolderOption,
    ForceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    SetOption,
    TextOption,
    VerboseOption,
    complete_segmentation,
    counted,
    epilog,
    format_option,
    note_model,
    read_settings,
    refuse_together,
    refuse_without,
    setting,
    switch,
    valued,
)
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from knn_cli.cli.turn_outputs import TurnOutputs
    from knn_cli.core.errors import Failure
    from knn_cli.diarization.identification import Voices
    from knn_cli.diarization.recordings import RecordingResult
    from knn_cli.diarization.removal_outputs import Cleaning
    from knn_cli.diarization.segmentation import Segmenter
    from knn_cli.embedding.embedder import Embedder

SPEAKERS, EDITING = "Speakers and turns", "Speaker removal"
SILERO = "silero"


class ClusteringMethod(str, Enum):
    """How embeddings are clustered."""

    ahc = "ahc"
    spectral = "spectral"
    vbx = "vbx"
    hdbscan = "hdbscan"


class Preset(str, Enum):
    """Clustering methods with the settings of other programs."""

    pyannote = "pyannote-3.1"


class TurnFormat(str, Enum):
    """Formats of turns."""

    rttm = "rttm"
    csv = "csv"
    json = "json"
    textgrid = "textgrid"
    audacity = "audacity"
    srt = "srt"
    vtt = "vtt"
    eaf = "eaf"
    png = "png"
    html = "html"


@dataclass(frozen=True)
class DiarizationSettings:
    """Rarely used settings of `knn diarize`; None leaves each to the method."""

    linkage: Literal["average", "centroid", "ward"] | None = setting(None, "ahc: average, centroid, ward")
    distance_threshold: float | None = setting(None, "ahc, vbx: 0 to 2")
    min_cluster_size: int | None = setting(None, "ahc, hdbscan: embeddings")
    identification_threshold: float | None = setting(None, "cosine")
    linking_threshold: float | None = setting(None, "cosine")
    silence_threshold: float | None = setting(None, "dB")


# Settings of the clustering methods: what `--set` calls them -> what the methods do.
_CLUSTERING = {"linkage": "linkage", "distance_threshold": "threshold", "min_cluster_size": "minimum_size"}
_TOGETHER = (  # at most one option of each group
    ("rttm", "out", "out_dir"),
    ("rttm", "as_json", "format"),
    ("preset", "clusterer"),
    ("mute", "cut"),
    ("per_channel", "channel"),
)
_NEEDS = {  # options that do nothing without one of others
    "uem": ("reference",),
    "mute": ("unwanted",),
    "cut": ("unwanted",),
    "unwanted": ("out_dir",),
    "max_silence": ("out_dir",),
    "force": ("save_embeddings", "mute", "cut", "max_silence"),
}
_SETTINGS_NEED = {  # settings that do nothing without an option
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
    rttm: Annotated[
        Path | None,
        valued("--rttm", metavar="FILE", panel=OUTPUT, help="Write RTTM, whatever the suffix."),
    ] = None,
    out: TextOption = None,
    out_dir: FolderOption = None,
    format: Annotated[TurnFormat | None, format_option()] = None,
    as_json: JsonOption = False,
    save_embeddings: Annotated[
        Path | None,
        valued("--save-embeddings", metavar="STORE", panel=OUTPUT, help="Write the speaker embeddings here."),
    ] = None,
    force: ForceOption = False,
    num_speakers: Annotated[
        int | None, valued("--num-speakers", metavar="N", panel=SPEAKERS, help="Find exactly this many speakers.")
    ] = None,
    min_speakers: Annotated[
        int | None, valued("--min-speakers", metavar="N", panel=SPEAKERS, help="Find at least this many speakers.")
    ] = None,
    max_speakers: Annotated[
        int | None, valued("--max-speakers", metavar="N", panel=SPEAKERS, help="Find at most this many speakers.")
    ] = None,
    speakers: Annotated[
        Path | None,
        valued("--speakers", metavar="PATH", panel=INPUT, help="Name enrolled speakers: clips or a store."),
    ] = None,
    link_speakers: Annotated[
        bool, switch("--link-speakers", panel=SPEAKERS, help="Keep one label per speaker in all files.")
    ] = False,
    per_channel: Annotated[
        bool, switch("--per-channel", panel=SPEAKERS, help="Look for separate speakers in every channel.")
    ] = False,
    min_turn: Annotated[
        float,
        valued(
            "--min-turn",
            metavar="SECONDS",
            panel=SPEAKERS,
            help="Drop shorter turns (default 0.1).",
            show_default=False,
        ),
    ] = 0.1,
    max_gap: Annotated[
        float,
        valued(
            "--max-gap",
            metavar="SECONDS",
            panel=SPEAKERS,
            help="Fill shorter pauses of a speaker (0.4).",
            show_default=False,
        ),
    ] = 0.4,
    margin: Annotated[
        float,
        valued(
            "--margin",
            metavar="SECONDS",
            panel=SPEAKERS,
            help="Keep so much silence after a turn (0.2).",
            show_default=False,
        ),
    ] = 0.2,
    unwanted: Annotated[
        str | None,
        valued("--unwanted", metavar="SPEAKERS", panel=EDITING, help="List these (a,b or least: who speaks least)."),
    ] = None,
    mute: Annotated[bool, switch("--mute", panel=EDITING, help="Write the sound with them muted.")] = False,
    cut: Annotated[bool, switch("--cut", panel=EDITING, help="Write the sound with them cut out.")] = False,
    max_silence: Annotated[
        float | None,
        valued("--max-silence", metavar="SECONDS", panel=EDITING, help="Shorten longer silences to 0.2 s."),
    ] = None,
    reference: Annotated[
        Path | None,
        valued("--reference", metavar="PATH", panel=INPUT, help="Score against these true turns (RTTM)."),
    ] = None,
    uem: Annotated[
        Path | None, valued("--uem", metavar="FILE", panel=INPUT, help="Score only the regions in this file.")
    ] = None,
    model: ModelOption = None,
    segmentation: Annotated[
        str | None,
        valued(
            "--segmentation",
            metavar="MODEL",
            panel=MODEL,
            autocompletion=complete_segmentation,
            help="Use this network, or silero (no overlap).",
        ),
    ] = None,
    clusterer: Annotated[
        ClusteringMethod,
        valued(
            "--clusterer",
            metavar="METHOD",
            panel=MODEL,
            help="Cluster by spectral, ahc, vbx or hdbscan.",
            show_default=False,
        ),
    ] = ClusteringMethod.spectral,
    preset: Annotated[
        Preset | None, valued("--preset", metavar="NAME", panel=MODEL, help="Cluster as pyannote-3.1 does.")
    ] = None,
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    settings: SetOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Find out who spoke when: the turns of each speaker, on stdout or in files."""
    from dataclasses import replace

    from knn_cli.audio import reading
    from knn_cli.cli import turn_outputs
    from knn_cli.core.output_paths import check_unique_stems
    from knn_cli.diarization import identification, linking, recordings, removal_outputs, speaker_removal
    from knn_cli.diarization.pipeline import DiarizationOptions, build_clusterer, check_speakers
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
    name_from = _default(tuning.identification_threshold, identification.THRESHOLD)
    link_from = _default(tuning.linking_threshold, linking.THRESHOLD)
    for threshold in (name_from, link_from):
        linking.check_threshold(threshold)
    method, method_settings = _clustering(clusterer.value, preset and preset.value, tuning)
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
        level = _default(tuning.silence_threshold, speaker_removal.THRESHOLD)
        clean = removal_outputs.Cleaning(out_dir, outputs.format, unwanted, how, max_silence, level, channel)
    truths = recordings.read_references(paths, reference, uem)
    others = [path for path in (reference, uem, speakers) if path is not None]
    turn_outputs.check(outputs, clean, save_embeddings, paths, others, force=force)

    embedder = Embedder(model, device=device.value, batch_seconds=batch_seconds)
    segmenter = _segmenter(vad, network, embedder)
    build_clusterer(method, method_settings, embedder)  # impossible settings are refused before any file
    detector = "silero-vad" if segmenter is None else segmenter.bundle.fingerprint
    chosen = model if segmentation is not None else None  # by the user, both of them
    note_model(chosen, embedder.bundle, f"speech by {detector}, on {embedder.device}")
    enrolled = None if speakers is None else _enrolled(speakers, embedder)
    names = enrolled_names = () if enrolled is None else enrolled.names

    with console.progress("Diarizing") as progress:
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
        results: Iterable[tuple[Path, RecordingResult | KnnError]] = _with_progress(diarizations, progress, len(paths))
        if enrolled is not None:
            results = recordings.identify_speakers(results, enrolled, threshold=name_from, keep_labels=per_channel)
        if link_speakers:
            view = embedder.bundle.view("speaker")
            results = together = recordings.link_recordings(results, known=names, threshold=link_from, view=view)
            good = [linking.speakers(result.diarization) for _, result in together if not isinstance(result, KnnError)]
            labels = {label for result in good for label in result}
            console.note(f"{counted(len(labels), 'speaker')} in {counted(len(good), 'recording')}.")
            names = (*names, *labels)
        asked = 1 if per_channel else num_speakers or min_speakers or 1
        writer = _ResultWriter(outputs, clean, names, truths, save_embeddings is not None, channel, asked)
        writer.write(results)
    if writer.scores:  # where turns do not go to stdout, this is the data
        from knn_cli.cli import output

        output.diarization_scores(sys.stderr if outputs.stdout else sys.stdout, writer.scores)
    if save_embeddings is not None and writer.kept:
        maker = embedder.bundle.fingerprint
        rows = identification.export(
            writer.kept, maker, save_embeddings, known=enrolled_names, across=link_speakers, force=force
        )
        console.note(f"{save_embeddings}: {counted(rows, 'speaker embedding')} by {maker}.")
    leave(writer.failures)


def _default(value: float | None, default: float) -> float:
    return default if value is None else value


def _check_settings(ctx: typer.Context, settings: DiarizationSettings) -> None:
    """KnnError for a setting without the option that it belongs to."""
    for name, option in _SETTINGS_NEED.items():
        if getattr(settings, name) is not None and not ctx.params[option]:
            raise KnnError(f"The setting {name} goes with --{option.replace('_', '-')}.", "Add it.")
    if ctx.params["preset"] is not None:
        for name in _CLUSTERING:
            if getattr(settings, name) is not None:
                raise KnnError(f"--preset and the setting {name} do not go together.", "Choose one of them.")


def _clustering(clusterer: str, preset: str | None, settings: DiarizationSettings) -> tuple[str, dict[str, Any]]:
    """A clustering method and its settings. KnnError for a setting that it does not take."""
    from dataclasses import fields

    from knn_cli.core.registry import CLUSTERERS
    from knn_cli.diarization.clustering.base import PRESETS

    if preset is not None:
        method, values = PRESETS[preset]
        return method, dict(values)
    chosen = {name: value for name in _CLUSTERING if (value := getattr(settings, name)) is not None}
    if not chosen:
        return clusterer, {}
    takes = {name: {field.name for field in fields(CLUSTERERS.get(name))} for name in CLUSTERERS.names()}  # type: ignore[arg-type]
    for name in chosen:
        if _CLUSTERING[name] not in takes[clusterer]:
            others = " or ".join(f"--clusterer {method}" for method in takes if _CLUSTERING[name] in takes[method])
            raise KnnError(f"{name} is no setting of {clusterer}.", f"It goes with {others}.")
    if not 0 <= chosen.get("distance_threshold", 0) <= 2:
        raise KnnError(
            f"The distance threshold {chosen['distance_threshold']:g} is no cosine distance.", "Take 0 to 2."
        )
    return clusterer, {_CLUSTERING[name]: value for name, value in chosen.items()}


def _segmenter(vad: str, model: str | None, embedder: Embedder) -> Segmenter | None:
    from knn_cli.diarization.segmentation import Segmenter

    return None if vad == SILERO else Segmenter(model, embedder=embedder)


def _enrolled(path: Path, embedder: Embedder) -> Voices:
    from knn_cli.diarization import identification

    with console.progress("Enrolling") as progress:
        voices = identification.enrol(path, embedder, progress=progress)
    console.detail(f"{path}: {counted(len(voices), 'known speaker')}, {counted(int(voices.clips.sum()), 'clip')}.")
    for name in voices.doubtful:
        console.note(f"The clips of {name} are so unlike each other that they may be of several speakers.")
    return voices


def _with_progress(
    results: Iterable[tuple[Path, Any]], progress: Any, total: int
) -> Iterator[tuple[Path, RecordingResult | KnnError]]:
    from knn_cli.diarization.recordings import RecordingResult

    for done, (path, result) in enumerate(results, start=1):
        progress(done, total)
        yield path, result if isinstance(result, KnnError) else RecordingResult(result)


class _ResultWriter:
    """Writes the results of file after file; an error in one file costs none of the others."""

    def __init__(
        self,
        outputs: TurnOutputs,
        clean: Cleaning | None,
        known: Sequence[str],
        truths: Mapping[str, tuple[Any, Any]],
        keep: bool,
        channel: str,
        asked_speakers: int,
    ) -> None:
        self.outputs, self.clean, self.known, self.truths, self.channel = outputs, clean, known, truths, channel
        self._asked_speakers = asked_speakers
        self.failures: list[Failure] = []
        self.scores: dict[str, Any] = {}
        self.kept: list[tuple[str, Any]] = []  # (recording, its diarization)
        self._keep = keep
        self._lengths: list[dict[str, float]] = []

    def write(self, results: Iterable[tuple[Path, RecordingResult | KnnError]]) -> None:
        from knn_cli.core.atomic import replacing_text
        from knn_cli.formats.span_formats import TURN_FORMATS

        out, done = self.outputs.out, 0
        as_text = not TURN_FORMATS[self.outputs.format].binary
        with replacing_text(out) if out is not None and as_text else nullcontext(sys.stdout) as stream:
            for path, result in results:
                try:
                    if isinstance(result, KnnError):
                        raise result
                    self._write_recording(path, result, stream)
                    done += 1
                except KnnError as error:
                    self.failures.append(failed(str(path), error))
            if out is not None and not done:
                leave(self.failures)  # before an empty file takes the place of an older result
        if len(self._lengths) > 1:
            sums = {name: sum(lengths[name] for lengths in self._lengths) for name in self._lengths[0]}
            console.note(f"All {len(self._lengths)} recordings: {_lengths(sums)}.")

    def _write_recording(self, path: Path, result: RecordingResult, stream: TextIO) -> None:
        diarization = result.diarization
        if self.truths:
            from knn_cli.evaluation import diarization_error

            truth, scored = self.truths[path.stem]
            self.scores[path.stem] = diarization_error.score_diarization(truth, diarization.turns, uem=scored)
        if not diarization.turns:
            console.note(f"{path} holds no speech; nothing is in its {self.outputs.format}.")
        else:
            speakers = counted(len(diarization.turns.labels()), "speaker")
            console.detail(f"{path}: {speakers}, {counted(len(diarization.turns), 'turn')}.")
            if len(diarization.turns.labels()) < self._asked_speakers:
                console.note(f"{path}: {speakers}, not {self._asked_speakers}; there is too little speech for more.")
        if result.recognised is not None and diarization.turns:
            names = ", ".join(name if cos is None else f"{name} ({cos:.2f})" for name, cos in result.known.items())
            console.note(f"{path}: {names or 'nobody'} recognised.")
        if self._keep:
            self.kept.append((path.stem, diarization))
        self._write_turns(path, result, stream)
        if self.clean is not None:
            self._write_cleaned(self.clean, path, result)

    def _write_turns(self, path: Path, result: RecordingResult, stream: TextIO) -> None:
        from knn_cli.core.atomic import replacing_text
        from knn_cli.formats import span_formats
        from knn_cli.formats.spans import turn_document

        outputs = self.outputs
        document = turn_document(result.diarization, audio_path=path, channel=self.channel)
        target = outputs.targets.get(path)
        if outputs.format == "json" and result.recognised is not None:
            from knn_cli.cli import output

            with nullcontext(stream) if target is None else replacing_text(target) as file:
                output.recognised_turns(file, result.diarization, result.recognised)
        elif target is None and not span_formats.TURN_FORMATS[outputs.format].binary:
            span_formats.write_text(replace(document, location=outputs.out), stream, outputs.format)
        else:
            file_path = target or outputs.out
            assert file_path is not None  # see `turn_outputs.choose`
            span_formats.write(document, file_path, outputs.format)

    def _write_cleaned(self, clean: Cleaning, path: Path, result: RecordingResult) -> None:
        cleaning = clean.run(path, result.diarization, self.known)
        if clean.unwanted is not None:
            if not result.diarization.turns:
                console.note(f"{path}: nobody is unwanted, since nobody speaks there.")
            elif not cleaning.speakers:
                few = clean.unwanted.strip() == "least"
                why = "only one speaks there, so that nobody speaks least" if few else "they do not speak there"
                console.note(f"{path}: nobody is unwanted, since {why}.")
            else:
                seconds = sum(part.end - part.start for part in cleaning.parts)
                who = ", ".join(cleaning.speakers)
                console.note(f"{clean.listed(path)}: {counted(len(cleaning.parts), 'part')} of {who}, {seconds:.1f} s.")
        if (cleaned := cleaning.cleaned) is None:
            return
        if cleaned.note:
            console.note(cleaned.note)
        lengths = cleaned.seconds()
        if cleaned.how == "mute":
            lengths["muted"] = lengths.pop("unwanted")
        self._lengths.append(lengths)
        console.note(f"{cleaned.target}: {_lengths(lengths)}.")


def _lengths(seconds: Mapping[str, float]) -> str:
    """How much of a recording was kept, and what happened to the rest."""
    silence = "taken out as silence" + (", muted parts among it" if seconds.get("muted") else "")
    words = {"muted": "muted", "unwanted": "cut out as unwanted", "silence": silence}
    gone = [f"{seconds[name]:.1f} s {word}" for name, word in words.items() if seconds.get(name)]
    return ", ".join([f"{seconds['kept']:.1f} s of {seconds['whole']:.1f} s kept", *gone])
