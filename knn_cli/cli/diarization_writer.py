"""Writes the results of `knn diarize`: turns, scores, notes and cleaned sound."""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from knn_cli.cli.console import console, failed, leave
from knn_cli.cli.options import counted
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from knn_cli.cli.resuming import Resumption
    from knn_cli.cli.turn_additions import TurnAdditions
    from knn_cli.cli.turn_outputs import TurnOutputs
    from knn_cli.core.errors import Failure
    from knn_cli.core.values import Diarization
    from knn_cli.diarization.recordings import RecordingResult
    from knn_cli.diarization.removal_outputs import SpeakerRemoval


class ResultWriter:
    """Writes the results of files one after the other; an error in one file does not affect the others."""

    def __init__(
        self,
        outputs: TurnOutputs,
        clean: SpeakerRemoval | None,
        known: Sequence[str],
        truths: Mapping[str, tuple[Any, Any]],
        called: Mapping[Path, str],
        keep: bool,
        channel: str,
        asked_speakers: int,
        sounds: Mapping[Path, Path],
        temporary: bool,
        resumed: Resumption,
        names: Mapping[Path, str],
        additions: TurnAdditions,
    ) -> None:
        self.outputs, self.clean, self.known, self.truths, self.channel = outputs, clean, known, truths, channel
        self._called = called
        self._sounds, self._temporary, self._resumed = sounds, temporary, resumed
        self._asked_speakers, self._names, self._additions = asked_speakers, names, additions
        self._streams: dict[str, TextIO] = {}  # of formats in which one file, or stdout, holds all recordings
        self.done = 0
        self.failures: list[Failure] = []
        self.scores: dict[str, Any] = {}
        self.kept: list[tuple[str, Any]] = []  # (recording, its diarization)
        self._keep = keep
        self._lengths: list[dict[str, float]] = []

    def write(self, results: Iterable[tuple[Path, RecordingResult | KnnError]]) -> None:
        from knn_cli.core.atomic import replacing_text
        from knn_cli.core.output_records import note_incomplete
        from knn_cli.formats.span_formats import TURN_FORMATS

        outs, whole = self.outputs.outs, self._resumed.whole
        with ExitStack() as opened:
            if self.outputs.stdout:
                self._streams[self.outputs.formats[0]] = sys.stdout
            for name, out in outs.items():
                if TURN_FORMATS[name].multiple:
                    self._streams[name] = opened.enter_context(replacing_text(out, task=whole))
            for path, result in results:
                try:
                    if isinstance(result, KnnError):
                        raise result
                    self._write_recording(path, result)
                    self.done += 1
                except KnnError as error:
                    self.failures.append(failed(str(path), error))
            if outs and not self.done:
                leave([*self._resumed.failures, *self.failures])  # before an empty file replaces an older result
        for out in outs.values() if self.failures else ():
            note_incomplete(out, whole)
        if len(self._lengths) > 1:
            sums = {name: sum(lengths[name] for lengths in self._lengths) for name in self._lengths[0]}
            which = "These" if self._resumed.finished else "All"
            console.note(f"{which} {len(self._lengths)} recordings: {_lengths(sums)}.")

    def _write_recording(self, path: Path, result: RecordingResult) -> None:
        diarization = result.diarization
        sound = self._sounds.get(path)
        if "json" in self.outputs.formats and sound is not None:
            from knn_cli.diarization.no_speech import with_no_speech_probability

            diarization = with_no_speech_probability(diarization, sound, channel=self.channel)
            result = result._replace(diarization=diarization)
        if self.truths:
            from knn_cli.cli import beyond
            from knn_cli.evaluation import diarization_error

            name = self._called[path]
            truth, scored = self.truths[name]
            self.scores[name] = diarization_error.score_diarization(truth, diarization.annotation, uem=scored)
            beyond.note_beyond(path, "reference", truth.get_timeline(), diarization.seconds)
            beyond.note_beyond(path, "UEM", scored, diarization.seconds)
        if not diarization.turns:
            console.note(f"{path} holds no speech; its {' and '.join(self.outputs.formats)} output has no turns.")
        else:
            speakers = counted(len(diarization.speakers), "speaker")
            files = [str(file) for file in self.outputs.targets.get(path, {}).values()]
            place = f", in {' and '.join(files)}" if files else ""
            console.note(f"{path}: {speakers}, {counted(len(diarization.turns), 'turn')}{place}.")
            if len(diarization.speakers) < self._asked_speakers:
                console.note(f"{path}: {speakers}, not {self._asked_speakers}; there is too little speech for more.")
        if result.recognised is not None and diarization.turns:
            console.note(f"{path}: {_who(result.recognised)}.")
        if self._keep:
            self.kept.append((diarization.name or self._called[path], diarization))
        self._write_turns(path, result)
        if self.clean is not None:
            self._write_cleaned(self.clean, path, result)

    def _write_turns(self, path: Path, result: RecordingResult) -> None:
        from knn_cli.core.atomic import replacing_text
        from knn_cli.formats import span_formats
        from knn_cli.formats.spans import turn_document

        outputs, name, count = self.outputs, self._names[path], len(self._names)
        document = turn_document(result.diarization, audio_path=self._sounds.get(path), channel=self.channel)
        document = replace(document, audio_stays=not self._temporary)
        document = self._additions.completed(document, name, result.diarization.turns, count)
        for format in outputs.formats:
            target, stream = outputs.targets.get(path, {}).get(format), self._streams.get(format)
            task = self._resumed.whole if target is None else self._resumed.task(path)
            file_path = target or outputs.outs.get(format)
            if format == "json" and result.recognised is not None:
                from knn_cli.cli import diarization_output

                assert stream is not None or file_path is not None  # see `turn_outputs.choose`
                with nullcontext(stream) if stream is not None else replacing_text(str(file_path), task=task) as opened:
                    diarization_output.recognised_turns(opened, document, result.recognised, result.decision)
            elif stream is not None:
                place = self.done if count > 1 else None
                span_formats.write_text(replace(document, location=file_path, place=place), stream, format)
            else:
                assert file_path is not None  # see `turn_outputs.choose`
                self._additions.write(document, file_path, format, name, task)

    def _write_cleaned(self, clean: SpeakerRemoval, path: Path, result: RecordingResult) -> None:
        task, path = self._resumed.task(path), self._sounds.get(path, path)
        cleaning = clean.apply(path, result.diarization, self.known, task=task)
        if clean.lists:
            if not result.diarization.turns:
                console.note(f"{path}: no unwanted speaker, since there is no speech.")
            elif clean.unwanted is not None and not cleaning.speakers:
                few = clean.unwanted.strip() == "least"
                why = "there is only one speaker" if few else "they do not speak there"
                console.note(f"{path}: no unwanted speaker, since {why}.")
            else:
                seconds = sum(part.end - part.start for part in cleaning.parts)
                who = ", ".join([*cleaning.speakers, *["overlapped speech"] * (clean.overlap_removal is not None)])
                console.note(
                    f"{clean.list_path(path)}: {counted(len(cleaning.parts), 'part')} of {who}, {seconds:.1f} s."
                )
        if (cleaned := cleaning.cleaned) is None:
            return
        if cleaned.note:
            console.note(cleaned.note)
        lengths = cleaned.seconds()
        self._lengths.append(lengths)
        console.note(f"{cleaned.target}: {_lengths(lengths)}.")
        unchanged = clean.max_silence is not None and not cleaned.silences
        if unchanged and _longest_pause(result.diarization) > (clean.max_silence or 0):
            why = f"none is quieter than {clean.threshold:g} dB for that long"
            console.note(f"{path}: no pause was shortened, since {why}; --set silence_threshold=-40 takes louder ones.")


def _longest_pause(diarization: Diarization) -> float:
    """Seconds of the longest stretch in which nobody speaks, to the ends of the recording too."""
    turns = sorted(diarization.turns, key=lambda turn: turn.start)
    ends = accumulate((turn.end for turn in turns), max, initial=0.0)
    return max(
        start - end for end, start in zip(ends, [*(turn.start for turn in turns), diarization.seconds], strict=True)
    )


def _who(facts: Sequence[Mapping[str, Any]]) -> str:
    """Who is who, with what speaks for it; `who: nobody known` where none of the speakers is."""
    named = [fact for fact in facts if fact["known"]]
    others = [fact for fact in facts if not fact["known"]]
    texts = [f"{fact['speaker']}{_evidence(fact, fact['speaker'])}" for fact in named]
    if not named:
        texts.append("who: nobody known")
    texts += [f"{fact['speaker']} is nobody known ({fact['reason']})" for fact in others]
    return ", ".join(texts)


def _evidence(fact: Mapping[str, Any], name: str) -> str:
    cosine = fact["cosine"].get(name)
    if fact["reason"] is not None or cosine is None:
        return f" ({fact['reason']})"
    chance = "" if fact["probability"] is None else f", same speaker with {fact['probability']:.1%} at even odds"
    return f" ({cosine:.2f}{chance})"


def _lengths(seconds: Mapping[str, float]) -> str:
    """How much of a recording was kept, and what happened to the rest."""
    silence = "cut out as silence" + (", including muted parts" if seconds.get("muted") else "")
    words = {"muted": "muted", "cut": "cut out as unwanted", "silence": silence}
    removed = [f"{seconds[name]:.1f} s {word}" for name, word in words.items() if seconds.get(name)]
    return ", ".join([f"{seconds['kept']:.1f} s of {seconds['whole']:.1f} s kept", *removed])
