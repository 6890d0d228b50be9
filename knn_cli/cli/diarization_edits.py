"""The edits of `knn diarize`: --merge, --split, --rename and --corrections, in the order of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from knn_cli.cli.console import ORDER, console
from knn_cli.cli.options import counted
from knn_cli.core.errors import KnnError
from knn_cli.core.texts import tidy

if TYPE_CHECKING:
    from knn_cli.diarization.corrections import Edit
    from knn_cli.diarization.recordings import RecordingResult

SINGLE = ("merge", "split", "rename")  # options of one edit each, which name speakers of one recording
OPTIONS = (*SINGLE, "corrections")


def read_edits(ctx: typer.Context, names: Mapping[Path, str], max_gap: float) -> dict[Path, list[Edit]]:
    """Recording -> its edits, in the order of the command line; those without edits are left out.

    Parameters
    ----------
    ctx : typer.Context
    names : mapping of Path to str
        The names of the recordings.
    max_gap : float
        Seconds; pauses of speakers that are merged are filled as all others are.

    Raises
    ------
    KnnError
        For edits of single speakers beside several recordings, for corrections of another recording, and for values
        and files that cannot be read.
    """
    values = {name: iter(ctx.params[name] or ()) for name in OPTIONS}
    order = [name for name in ctx.meta.get(ORDER, ()) if name in values]
    edits: dict[Path, list[Edit]] = {}
    by_name = {name: path for path, name in names.items()}
    for option in order:
        text = next(values[option])
        if option == "corrections":
            for recording, found in _files(Path(text)):
                if recording not in by_name:
                    some = ", ".join(list(by_name)[:3])
                    raise KnnError(f"{text} corrects {recording}, which is not diarized here.", f"Here: {some}.")
                edits.setdefault(by_name[recording], []).extend(found)
            continue
        if len(names) > 1:
            raise KnnError(
                f"--{option} names a speaker of one recording, not of {len(names)}.",
                "Diarize them separately, or give --corrections, a file for each.",
            )
        edits.setdefault(next(iter(names)), []).append(_PARSERS[option](text, max_gap))
    return edits


def _files(path: Path) -> list[tuple[str, list[Edit]]]:
    """(recording, edits) of a file of corrections, or of those in a folder."""
    from knn_cli.diarization import corrections

    if not path.is_dir():
        return [corrections.read(path)]
    files = sorted(path.glob("*.corrections.json"))
    if not files:
        raise KnnError(f"{path} holds no files of corrections.", "Their names end in .corrections.json.")
    return [corrections.read(file) for file in files]


def _pair(option: str, text: str, example: str) -> tuple[str, str]:
    first, _, second = (tidy(part) for part in text.partition("="))
    if not first or not second:
        raise KnnError(f"--{option} {text} does not name two speakers.", f"Write it as --{option} {example}.")
    return first, second


def _merge(text: str, max_gap: float) -> Edit:
    from knn_cli.diarization.corrections import Merge

    return Merge(*_pair("merge", text, "SPEAKER_02=SPEAKER_00"), max_gap)


def _rename(text: str, max_gap: float) -> Edit:
    from knn_cli.diarization.corrections import Rename

    return Rename(*_pair("rename", text, "SPEAKER_00=Anna"))


def _split(text: str, max_gap: float) -> Edit:
    from knn_cli.diarization.corrections import SplitSpeaker

    return SplitSpeaker(tidy(text))


_PARSERS: dict[str, Callable[[str, float], Any]] = {"merge": _merge, "rename": _rename, "split": _split}


def with_notes(
    results: Iterable[tuple[Path, RecordingResult | KnnError]], edits: Mapping[Path, Sequence[Edit]]
) -> Iterator[tuple[Path, RecordingResult | KnnError]]:
    """The same results, with a note of each recording's speakers after its edits."""
    for path, result in results:
        if path in edits and not isinstance(result, KnnError):
            speakers = ", ".join(result.diarization.speakers) or "no speaker"
            console.note(f"{path}: {counted(len(edits[path]), 'edit')}, now {speakers}.")
        yield path, result
