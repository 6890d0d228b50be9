"""Turns in `knn convert`: from any of their formats to any other, with the sound, words, and tiers that there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from knn_cli.cli.console import console, failed, leave
from knn_cli.cli.format_options import parse_formats
from knn_cli.cli.options import INPUT, counted, refuse_beside, valued
from knn_cli.cli.own_outputs import check_own_outputs
from knn_cli.cli.turn_additions import TurnAdditions
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from knn_cli.core.errors import Failure
    from knn_cli.core.output_records import OutputTask
    from knn_cli.core.values import Diarization, Turn
    from knn_cli.formats.spans import SpanDocument

OPTIONS = ("audio", "format", "words", "add_to", "template")  # that are for turns alone
_ALLOWED = ("sources", "out", *OPTIONS, "channel", "track", "force", "quiet", "verbose")
# Suffixes of files that can hold nothing but turns.
_OF_TURNS = (".rttm", ".textgrid", ".eaf", ".srt", ".vtt")

AudioOption = Annotated[
    Path | None,
    valued("--audio", metavar="PATH", panel=INPUT, help="Turns: the recording, or a folder of such."),
]


def is_of_turns(ctx: typer.Context, src: Path, out: Path) -> bool:
    """Whether a conversion is one of turns: by its options, or by the suffixes of source and target."""
    from knn_cli.formats.span_formats import TURN_FORMATS, format_by_suffix
    from knn_cli.formats.turn_readers import TURN_READERS, files_of_turns

    if any(ctx.params[name] for name in OPTIONS):
        return True
    if format_by_suffix("turns", out) is None:
        if src.suffix.lower() in _OF_TURNS and src.is_file():
            known = ", ".join(known.suffix for known in TURN_FORMATS.values() if not known.named_only)
            raise KnnError(f"The suffix of {out} names no format of turns.", f"Known: {known}; for a folder, --format.")
        return False
    if src.is_dir():
        return bool(files_of_turns(src))
    return src.suffix.lower() in TURN_READERS


def convert_turns(ctx: typer.Context, src: Path, out: Path, additions: TurnAdditions, channel: str) -> None:
    """Write the turns of a file or folder in other formats, and report what was written.

    Raises
    ------
    KnnError
        For options of other conversions, sources that are no turns, and targets that cannot be.
    """
    from knn_cli.core.locks import locked_files
    from knn_cli.core.output_paths import check_outputs, make_output_folder
    from knn_cli.formats import rttm
    from knn_cli.formats.turn_readers import read_given_turns

    option = next((name for name in OPTIONS if ctx.params[name]), None)
    if option is not None:
        refuse_beside(ctx, option, _ALLOWED, "It is for turns, or the other option is for other sources.")
    turns = read_given_turns(src)
    names = [*turns]
    formats, targets = _targets(names, out, parse_formats(ctx.params["format"]))
    audio = _sounds(ctx.params["audio"], names)
    additions.check(names, formats)
    if "rttm" in formats:
        rttm.check_names(names, "recordings")
    if "html" in formats and ctx.params["audio"] is None:
        raise KnnError("A player needs the recording.", "Give it by --audio.")
    files = [file for by_format in targets.values() for file in by_format.values()] if targets else [out]
    if twice := [file for file, count in Counter(files).items() if count > 1]:
        raise KnnError(f"Two outputs would be called {twice[0]}.", "Rename a recording.")
    read = [src, *audio.values(), *additions.read]
    read += src.iterdir() if src.is_dir() else []
    if targets:
        make_output_folder(out, files, read)
        ctx.with_resource(locked_files(files))
    else:
        check_outputs(files, read)
    task = check_own_outputs(ctx, *files)
    failures: list[Failure] = []
    writer = _Writer(task, out, formats, targets, additions, audio, channel)
    written = writer.write(turns, failures)
    where = out if targets else files[0]
    console.note(f"{where}: {counted(written, 'recording')}, {counted(writer.turns, 'turn')}.")
    leave(failures)


def _targets(names: Sequence[str], out: Path, asked: tuple[str, ...]) -> tuple[list[str], dict[str, dict[str, Path]]]:
    """The formats, and the file of each recording in each of them; no files where `out` is the only one."""
    from knn_cli.formats.span_formats import TURN_FORMATS, find_format, format_by_suffix

    by_suffix = None if out.is_dir() else format_by_suffix("turns", out)
    if by_suffix is not None and len(asked) < 2:
        known = find_format("turns", asked[0]) if asked else by_suffix
        if known.suffix != by_suffix.suffix:
            raise KnnError(
                f"The suffix of {out} is that of {by_suffix.name}, not of {known.name}.", "Name one of them."
            )
        if len(names) > 1 and not known.multiple:
            message = f"{len(names)} recordings in one {known.name} file could not be distinguished."
            raise KnnError(message, "Name a folder, and the format by --format.")
        return [known.name], {}
    if not asked:
        problem = "is a folder" if out.is_dir() else "has not the suffix of a format of turns, so it would be a folder"
        raise KnnError(f"{out} {problem}.", "Say by --format what to write into it.")
    if by_suffix is not None:
        raise KnnError(f"{out} cannot hold {len(asked)} formats.", "Name a folder.")
    stems = {name: name.replace("/", "_").replace("\\", "_") for name in names}
    return [*asked], {
        name: {known: out / f"{stem}{TURN_FORMATS[known].suffix}" for known in asked} for name, stem in stems.items()
    }


def _sounds(audio: Path | None, names: Sequence[str]) -> dict[str, Path]:
    """The recordings by name, as far as they are there. KnnError for one file for several."""
    from knn_cli.audio import reading
    from knn_cli.formats.rttm import by_rttm_name, found_by_name
    from knn_cli.store.labels import recording_names

    if audio is None:
        return {}
    if not audio.is_dir():
        if len(names) > 1:
            raise KnnError(f"{audio} is one recording, the turns are of {len(names)}.", "Name a folder of recordings.")
        return dict.fromkeys(names, audio)
    files = reading.find(audio)
    known = by_rttm_name(dict(zip(recording_names(files), files, strict=True)))
    found = {name: file for name in names if (file := found_by_name(name, known)) is not None}
    if missing := [name for name in names if name not in found]:
        more = f" and {counted(len(missing) - 1, 'other')}" if len(missing) > 1 else ""
        console.note(f"{audio} has no recording of {missing[0]}{more}.")
    return found


class _Writer:
    """Writes the turns of recordings one after the other; an error in one does not affect the others."""

    def __init__(
        self,
        task: OutputTask,
        out: Path,
        formats: Sequence[str],
        targets: Mapping[str, Mapping[str, Path]],
        additions: TurnAdditions,
        audio: Mapping[str, Path],
        channel: str,
    ) -> None:
        self.turns = 0
        self._task, self._out, self._formats, self._targets = task, out, formats, targets
        self._additions, self._audio, self._channel = additions, audio, channel

    def write(self, turns: Mapping[str, Sequence[Turn]], failures: list[Failure]) -> int:
        """Write the turns of all recordings; return how many of these were written."""
        from knn_cli.core.atomic import replacing_text
        from knn_cli.formats import span_formats

        several = not self._targets and len(turns) > 1
        done = 0
        with replacing_text(self._out, task=self._task) if several else nullcontext() as stream:
            for name, found in self._checked(turns):
                try:
                    if isinstance(found, KnnError):
                        raise found
                    document = self._document(name, found, len(turns))
                    if stream is not None:
                        span_formats.write_text(replace(document, place=done), stream, self._formats[0])
                    for format in self._formats if stream is None else ():
                        target = self._targets[name][format] if self._targets else self._out
                        self._additions.write(document, target, format, name, self._task)
                except KnnError as error:
                    failures.append(failed(name, error))
                    continue
                self.turns += len(found.turns)
                done += 1
            if several and not done:
                leave(failures)  # before an empty file replaces an older one
        return done

    def _checked(self, turns: Mapping[str, Sequence[Turn]]) -> Iterable[tuple[str, Diarization | KnnError]]:
        """Each recording with its turns, as far as its sound reaches where that is there."""
        from knn_cli.core.values import Diarization, sort_turns
        from knn_cli.diarization.given_turns import with_given_turns

        for name, found in turns.items():
            if (sound := self._audio.get(name)) is None:
                end = max((turn.end for turn in found), default=0.0)
                yield name, Diarization(sort_turns(found), name, seconds=end)
                continue
            for _, result in with_given_turns([sound], {sound: found}, channel=self._channel):
                yield name, result if isinstance(result, KnnError) else replace(result, name=name)

    def _document(self, name: str, diarization: Diarization, recordings: int) -> SpanDocument:
        from knn_cli.formats.spans import turn_document

        document = turn_document(diarization, audio_path=self._audio.get(name), channel=self._channel)
        return self._additions.completed(document, name, diarization.turns, recordings)
