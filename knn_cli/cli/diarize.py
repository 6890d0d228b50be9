"""`knn diarize`: who spoke when; known speakers, labels over many recordings, cleaned sound, scores."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from knn_cli.cli.console import console, failed, leave
from knn_cli.cli.options import (
    BatchOption,
    ChannelOption,
    Device,
    DeviceOption,
    ForceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    VerboseOption,
    refuse_together,
    refuse_without,
    say_model,
)
from knn_cli.core.errors import KnnError
from knn_cli.core.output_paths import check_unique_stems

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from knn_cli.cli.turn_outputs import TurnOutputs
    from knn_cli.core.errors import Failure
    from knn_cli.diarization.identification import Voices
    from knn_cli.diarization.post_processing import Cleaning
    from knn_cli.diarization.recordings import RecordingResult
    from knn_cli.diarization.segmentation import Segmenter
    from knn_cli.embedding.embedder import Embedder

VOICES, KNOWN, CLEANING, SCORING = "How voices are told apart", "Known speakers", "Cleaning", "Scoring"


class Vad(str, Enum):
    ours = "ours"
    silero = "silero"


class Linkage(str, Enum):
    average = "average"
    centroid = "centroid"
    ward = "ward"


class Clusterer(str, Enum):
    ahc = "ahc"
    spectral = "spectral"
    vbx = "vbx"
    hdbscan = "hdbscan"


class Preset(str, Enum):
    pyannote = "pyannote-3.1"


class TurnForm(str, Enum):
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


def diarize(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="Audio files or folders of audio.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File to write, its form by the suffix; default stdout.")
    ] = None,
    rttm: Annotated[Path | None, typer.Option("--rttm", help="The same, always RTTM.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out-dir", help="Folder for one output a file.")] = None,
    form: Annotated[TurnForm | None, typer.Option("--format", help="Of the turns; default rttm.")] = None,
    as_json: JsonOption = False,
    num_speakers: Annotated[int | None, typer.Option("--num-speakers", help="How many there are.")] = None,
    min_speakers: Annotated[int | None, typer.Option("--min-speakers", help="How many at least.")] = None,
    max_speakers: Annotated[int | None, typer.Option("--max-speakers", help="How many at most.")] = None,
    min_turn: Annotated[
        float,
        typer.Option("--min-turn", help="Seconds; shorter turns go, or to neighbours; 0.8 leaves interjections out."),
    ] = 0.1,
    max_gap: Annotated[float, typer.Option("--max-gap", help="Seconds; shorter pauses of a speaker are filled.")] = 0.4,
    margin: Annotated[float, typer.Option("--margin", help="Seconds of silence that a turn keeps at its end.")] = 0.2,
    vad: Annotated[
        Vad, typer.Option("--vad", help="What hears speech: our network, which hears overlap, or silero-vad.")
    ] = Vad.ours,
    segmentation: Annotated[
        str | None, typer.Option("--segmentation", help="Another network for --vad ours, by name or folder.")
    ] = None,
    per_channel: Annotated[
        bool, typer.Option("--per-channel", help="Each channel has speakers of its own, as many as asked for.")
    ] = False,
    channel: ChannelOption = "mix",
    model: ModelOption = None,
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    clusterer: Annotated[
        Clusterer, typer.Option("--clusterer", help="The method.", rich_help_panel=VOICES)
    ] = Clusterer.spectral,
    linkage: Annotated[Linkage | None, typer.Option("--linkage", help="Of ahc.", rich_help_panel=VOICES)] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Of ahc and vbx: distance, 0 to 2.", rich_help_panel=VOICES)
    ] = None,
    min_cluster_size: Annotated[
        int | None,
        typer.Option("--min-cluster-size", help="Of ahc and hdbscan: embeddings a speaker.", rich_help_panel=VOICES),
    ] = None,
    preset: Annotated[
        Preset | None, typer.Option("--preset", help="Method and settings of others.", rich_help_panel=VOICES)
    ] = None,
    speakers: Annotated[
        Path | None,
        typer.Option("--speakers", help="Folder or store with clips of each; names turns.", rich_help_panel=KNOWN),
    ] = None,
    speaker_threshold: Annotated[
        float | None, typer.Option("--speaker-threshold", help="Cosine that a name needs.", rich_help_panel=KNOWN)
    ] = None,
    across: Annotated[
        bool, typer.Option("--across", help="One label a voice over all files.", rich_help_panel=KNOWN)
    ] = False,
    across_threshold: Annotated[
        float | None, typer.Option("--across-threshold", help="Cosine that makes one voice.", rich_help_panel=KNOWN)
    ] = None,
    voices: Annotated[
        Path | None, typer.Option("--voices", help="Store (.h5) for the speakers' embeddings.", rich_help_panel=KNOWN)
    ] = None,
    unwanted: Annotated[
        str | None,
        typer.Option(
            "--unwanted", help="Speakers a,b or least (who speaks least): listed as CSV.", rich_help_panel=CLEANING
        ),
    ] = None,
    mute: Annotated[bool, typer.Option("--mute", help="Sound with them muted.", rich_help_panel=CLEANING)] = False,
    cut: Annotated[bool, typer.Option("--cut", help="Sound with them cut out.", rich_help_panel=CLEANING)] = False,
    max_silence: Annotated[
        float | None,
        typer.Option("--max-silence", help="Of longer silences 0.2 s stay; seconds.", rich_help_panel=CLEANING),
    ] = None,
    silence_threshold: Annotated[
        float,
        typer.Option("--silence-threshold", help="What silence is, dB of full scale.", rich_help_panel=CLEANING),
    ] = -50.0,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Truth, RTTM file or folder: prints error rates.", rich_help_panel=SCORING),
    ] = None,
    uem: Annotated[
        Path | None, typer.Option("--uem", help="What of each file is scored.", rich_help_panel=SCORING)
    ] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Who spoke when: turns of each speaker as RTTM, CSV, JSON, TextGrid, EAF, labels, subtitles, picture or player."""
    from knn_cli.audio import reading
    from knn_cli.cli import turn_outputs
    from knn_cli.diarization import identification, linking, post_processing, recordings
    from knn_cli.diarization.pipeline import check_hearing, check_speakers, check_turns
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.embedding.files import expand_folders

    refuse_together(ctx, _APART)
    refuse_without(ctx, _NEEDS)
    check_hearing(vad.value, segmentation)
    check_speakers(num_speakers, min_speakers, max_speakers)
    check_turns(min_turn, max_gap, margin)
    reading.channel_index(channel)
    name_from = identification.THRESHOLD if speaker_threshold is None else speaker_threshold
    link_from = linking.THRESHOLD if across_threshold is None else across_threshold
    for one in (name_from, link_from):
        linking.check_threshold(one)
    own = {"linkage": linkage and linkage.value, "threshold": threshold, "minimum_size": min_cluster_size}
    method, settings = _method(clusterer.value, preset and preset.value, own)

    sources = expand_folders(files)
    check_unique_stems(sources)
    if rttm is not None:  # whatever its suffix
        ways = turn_outputs.TurnOutputs("rttm", rttm, None, {})
    else:
        ways = turn_outputs.choose(sources, out, out_dir, "json" if as_json else form and form.value)
    clean = None
    if unwanted is not None or max_silence is not None:
        assert out_dir is not None  # see _NEEDS
        how: Literal["mute", "cut"] | None = "mute" if mute else "cut" if cut else None
        clean = post_processing.Cleaning(out_dir, ways.format, unwanted, how, max_silence, silence_threshold, channel)
    truths = recordings.read_references(sources, reference, uem)
    others = [one for one in (reference, uem, speakers) if one is not None]
    turn_outputs.check(ways, clean, voices, sources, others, force=force)

    embedder = Embedder(model, device=device.value, batch_seconds=batch_seconds)
    segmenter = _segmenter(vad, segmentation, embedder)
    _check_method(method, settings, embedder)
    heard_by = "silero-vad" if segmenter is None else segmenter.bundle.fingerprint
    chosen = model if segmentation is not None or segmenter is None else None  # by the user, all of them
    say_model(chosen, embedder.bundle, f"speech by {heard_by}, on {embedder.device}")
    known = None if speakers is None else _enrolled(speakers, embedder)
    names = known_names = () if known is None else known.names

    counts = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    turns = {"min_turn": min_turn, "max_gap": max_gap, "margin": margin}
    hearing = {"vad": vad.value, "segmentation": segmenter}
    clusters = {"clusterer": method, "settings": settings}
    with console.progress("Listening") as progress:
        found = recordings.diarize_recordings(
            sources, embedder, per_channel=per_channel, channel=channel, **counts, **turns, **hearing, **clusters
        )
        results: Iterable[tuple[Path, RecordingResult | KnnError]] = _counted(found, progress, len(sources))
        if known is not None:
            results = recordings.identify_speakers(results, known, threshold=name_from, keep_labels=per_channel)
        if across:
            view = embedder.bundle.view("speaker")
            results = together = recordings.link_recordings(results, known=names, threshold=link_from, view=view)
            good = [linking.speakers(one.diarization) for _, one in together if not isinstance(one, KnnError)]
            labels = {label for one in good for label in one}
            console.note(f"{_many(len(labels), 'voice')} in {_many(len(good), 'recording')}.")
            names = (*names, *labels)
        least = 1 if per_channel else num_speakers or min_speakers or 1
        work = _Work(ways, clean, names, truths, voices is not None, channel, least)
        work.write(results)
    if work.scores:  # where turns do not go to stdout, this is the data
        from knn_cli.cli import output

        output.diarization_scores(sys.stderr if ways.stdout else sys.stdout, work.scores)
    if voices is not None and work.kept:
        fingerprint = embedder.bundle.fingerprint
        rows = identification.export(work.kept, fingerprint, voices, known=known_names, across=across, force=force)
        console.note(f"{voices}: {_many(rows, 'voice')} by {fingerprint}.")
    leave(work.failures)


_APART = (  # options of which at most one can be said
    ("rttm", "out", "out_dir"),
    ("rttm", "as_json", "form"),
    ("preset", "clusterer"),
    ("preset", "linkage"),
    ("preset", "threshold"),
    ("preset", "min_cluster_size"),
    ("mute", "cut"),
    ("per_channel", "channel"),
)
_NEEDS = {  # options that do nothing without one of others
    "uem": ("reference",),
    "speaker_threshold": ("speakers",),
    "across_threshold": ("across",),
    "mute": ("unwanted",),
    "cut": ("unwanted",),
    "silence_threshold": ("max_silence",),
    "unwanted": ("out_dir",),
    "max_silence": ("out_dir",),
    "force": ("voices", "mute", "cut", "max_silence"),
}


def _method(clusterer: str, preset: str | None, own: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A clustering method and its settings. KnnError for a setting that it does not take."""
    from dataclasses import fields

    from knn_cli.core.registry import CLUSTERERS
    from knn_cli.diarization.clustering.base import PRESETS

    if preset is not None:
        method, settings = PRESETS[preset]
        return method, dict(settings)
    said = {name: value for name, value in own.items() if value is not None}
    if not said:
        return clusterer, {}
    takes = {name: {field.name for field in fields(CLUSTERERS.get(name))} for name in CLUSTERERS.names()}  # type: ignore[arg-type]
    flags = {"linkage": "--linkage", "threshold": "--threshold", "minimum_size": "--min-cluster-size"}
    for name in said:
        if name not in takes[clusterer]:
            others = " or ".join(f"--clusterer {one}" for one in takes if name in takes[one])
            raise KnnError(f"{flags[name]} is no setting of {clusterer}.", f"It goes with {others}.")
    if "threshold" in said and not 0 <= said["threshold"] <= 2:
        raise KnnError(f"The clustering threshold {said['threshold']:g} is no cosine distance.", "Take 0 to 2.")
    return clusterer, said


def _check_method(method: str, settings: dict[str, Any], embedder: Embedder) -> None:
    """KnnError for settings that cannot be, and for a model without what the method needs: before any file."""
    from knn_cli.core.registry import CLUSTERERS
    from knn_cli.diarization.pipeline import cluster_settings

    CLUSTERERS.build(method, **cluster_settings(method, settings, embedder))


def _segmenter(vad: Vad, model: str | None, embedder: Embedder) -> Segmenter | None:
    from knn_cli.diarization.segmentation import Segmenter

    return None if vad is Vad.silero else Segmenter(model, embedder=embedder)


def _enrolled(path: Path, embedder: Embedder) -> Voices:
    from knn_cli.diarization import identification

    with console.progress("Enrolling") as progress:
        voices = identification.enrol(path, embedder, progress=progress)
    console.detail(f"{path}: {_many(len(voices), 'known speaker')}, {_many(int(voices.clips.sum()), 'clip')}.")
    for name in voices.doubtful:
        console.note(f"The clips of {name} are so little alike that they may be of several voices.")
    return voices


def _counted(
    results: Iterable[tuple[Path, Any]], progress: Any, total: int
) -> Iterator[tuple[Path, RecordingResult | KnnError]]:
    from knn_cli.diarization.recordings import RecordingResult

    for done, (path, one) in enumerate(results, start=1):
        progress(done, total)
        yield path, one if isinstance(one, KnnError) else RecordingResult(one)


class _Work:
    """Writing what was found, file after file; what one file refuses costs none of the others."""

    def __init__(
        self,
        ways: TurnOutputs,
        clean: Cleaning | None,
        known: Sequence[str],
        truths: Mapping[str, tuple[Any, Any]],
        keep: bool,
        channel: str,
        least: int,
    ) -> None:
        self.ways, self.clean, self.known, self.truths, self.channel = ways, clean, known, truths, channel
        self._least = least  # speakers that the user asked for
        self.failures: list[Failure] = []
        self.scores: dict[str, Any] = {}
        self.kept: list[tuple[str, Any]] = []  # (recording, its diarization)
        self._keep = keep
        self._lengths: list[dict[str, float]] = []

    def write(self, results: Iterable[tuple[Path, RecordingResult | KnnError]]) -> None:
        from knn_cli.core.atomic import replacing_text
        from knn_cli.formats.span_formats import TURN_FORMATS

        out, done = self.ways.out, 0
        as_text = not TURN_FORMATS[self.ways.format].binary
        with replacing_text(out) if out is not None and as_text else nullcontext(sys.stdout) as stream:
            for path, found in results:
                try:
                    if isinstance(found, KnnError):
                        raise found
                    self._one(path, found, stream)
                    done += 1
                except KnnError as error:
                    self.failures.append(failed(str(path), error))
            if out is not None and not done:
                leave(self.failures)  # before an empty file takes the place of an older result
        if len(self._lengths) > 1:
            sums = {name: sum(one[name] for one in self._lengths) for name in self._lengths[0]}
            console.note(f"All {len(self._lengths)} recordings: {_lengths(sums)}.")

    def _one(self, path: Path, found: RecordingResult, stream: TextIO) -> None:
        one = found.diarization
        if self.truths:
            from knn_cli.evaluation import diarization_error

            truth, scored = self.truths[path.stem]
            self.scores[path.stem] = diarization_error.score(truth, one.turns, uem=scored)
        if not one.turns:
            console.note(f"{path} holds no speech; nothing is in its {self.ways.format}.")
        else:
            there = _many(len(one.turns.labels()), "speaker")
            console.detail(f"{path}: {there}, {_many(len(one.turns), 'turn')}.")
            if len(one.turns.labels()) < self._least:
                console.note(f"{path}: {there}, not {self._least}; there is too little speech for more.")
        if found.recognised is not None and one.turns:
            heard = ", ".join(name if cos is None else f"{name} ({cos:.2f})" for name, cos in found.known.items())
            console.note(f"{path}: {heard or 'nobody'} recognised.")
        if self._keep:
            self.kept.append((path.stem, one))
        self._turns(path, found, stream)
        if self.clean is not None:
            self._clean(self.clean, path, found)

    def _turns(self, path: Path, found: RecordingResult, stream: TextIO) -> None:
        from knn_cli.core.atomic import replacing_text
        from knn_cli.formats import span_formats
        from knn_cli.formats.spans import turn_document

        ways = self.ways
        document = turn_document(found.diarization, audio_path=path, channel=self.channel)
        target = ways.targets.get(path)
        if ways.format == "json" and found.recognised is not None:
            from knn_cli.cli import output

            with nullcontext(stream) if target is None else replacing_text(target) as file:
                output.recognised_turns(file, found.diarization, found.recognised)
        elif target is None and not span_formats.TURN_FORMATS[ways.format].binary:
            span_formats.write_text(replace(document, location=ways.out), stream, ways.format)
        else:
            to = target or ways.out
            assert to is not None  # see `turn_outputs.choose`
            span_formats.write(document, to, ways.format)

    def _clean(self, clean: Cleaning, path: Path, found: RecordingResult) -> None:
        result = clean.run(path, found.diarization, self.known)
        if clean.unwanted is not None:
            if not found.diarization.turns:
                console.note(f"{path}: nobody is unwanted, since nobody speaks there.")
            elif not result.speakers:
                few = clean.unwanted.strip() == "least"
                why = "only one speaks there, who is not the least of anybody" if few else "they do not speak there"
                console.note(f"{path}: nobody is unwanted, since {why}.")
            else:
                seconds = sum(part.end - part.start for part in result.parts)
                who = ", ".join(result.speakers)
                console.note(f"{clean.listed(path)}: {_many(len(result.parts), 'part')} of {who}, {seconds:.1f} s.")
        if (cleaned := result.cleaned) is None:
            return
        if cleaned.note:
            console.note(cleaned.note)
        lengths = cleaned.seconds()
        if cleaned.how == "mute":
            lengths["muted"] = lengths.pop("unwanted")
        self._lengths.append(lengths)
        console.note(f"{cleaned.target}: {_lengths(lengths)}.")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _lengths(seconds: Mapping[str, float]) -> str:
    """What of a recording's sound stayed and what did not."""
    silence = "taken out as silence" + (", muted parts among it" if seconds.get("muted") else "")
    words = {"muted": "muted", "unwanted": "cut out as unwanted", "silence": silence}
    gone = [f"{seconds[name]:.1f} s {word}" for name, word in words.items() if seconds.get(name)]
    return ", ".join([f"{seconds['kept']:.1f} s of {seconds['whole']:.1f} s kept", *gone])
