"""Outputs for the turns of recordings and their format, and checks that no file is replaced by mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from knn_cli.audio import reading
from knn_cli.cli.options import check_text_output
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.locks import locked_files
from knn_cli.core.output_paths import check_output, make_output_folder
from knn_cli.formats.span_formats import TURN_FORMATS, find_format, format_by_suffix
from knn_cli.store import hdf5
from knn_cli.store.writer import check_free

if TYPE_CHECKING:
    from knn_cli.diarization.removal_outputs import SpeakerRemoval

Hold = Callable[[AbstractContextManager[None]], object]


@dataclass(frozen=True)
class TurnOutputs:
    """Outputs for turns, and their formats: a file for all recordings, files for each in a folder, or stdout.

    Attributes
    ----------
    formats : tuple of str
        Names of the formats, of TURN_FORMATS.
    outs : mapping of str to Path
        Format -> the single file for all recordings.
    folder : Path or None
        The folder of `targets`.
    targets : mapping of Path to (mapping of str to Path)
        The files of each recording, by format.
    """

    formats: tuple[str, ...]
    outs: Mapping[str, Path]
    folder: Path | None
    targets: Mapping[Path, Mapping[str, Path]]

    @property
    def stdout(self) -> bool:
        return not self.outs and self.folder is None


def choose(places: Mapping[Path, Path], out: Path | None, folder: Path | None, names: Sequence[str]) -> TurnOutputs:
    """Return the outputs in the named formats, by default that of the suffix of `out`, or RTTM.

    Several formats have a file each: `out` with the suffixes of all of them.

    Parameters
    ----------
    places : mapping of Path to Path
        Recording -> its place in `folder`, without a suffix.
    out, folder : Path or None
    names : sequence of str
        The formats.

    Raises
    ------
    KnnError
        If the names and the suffix contradict each other, no format has the suffix, or a format cannot be written to
        the output.
    """
    by_suffix = None if out is None else format_by_suffix("turns", out)
    if not names and out is not None and by_suffix is None:
        known = ", ".join(known.suffix for known in TURN_FORMATS.values() if not known.named_only)
        raise KnnError(f"The suffix of {out} names no format of turns.", f"Known: {known}; or give --format.")
    wanted = [find_format("turns", name) for name in names or [by_suffix.name if by_suffix is not None else "rttm"]]
    if by_suffix is not None and by_suffix.suffix not in {known.suffix for known in wanted}:
        message = f"The suffix of {out} is that of {by_suffix.name}, not of {' or '.join(names)}."
        raise KnnError(message, "Name one format only.")
    formats = tuple(known.name for known in wanted)
    if folder is not None:
        targets = {
            path: {known.name: folder / f"{place}{known.suffix}" for known in wanted} for path, place in places.items()
        }
        return TurnOutputs(formats, {}, folder, targets)
    if len(places) > 1 and (single := [known.name for known in wanted if not known.multiple]):
        message = f"Several recordings in one {single[0]} file could not be distinguished."
        raise KnnError(message, "Give --out-dir.")
    if out is None:
        if len(wanted) > 1:
            raise KnnError(f"{len(wanted)} formats are not for stdout.", "Give -o or --out-dir.")
        if wanted[0].binary:
            raise KnnError(f"The format {wanted[0].name} is not for stdout.", "Give -o or --out-dir.")
        return TurnOutputs(formats, {}, None, {})
    if len(wanted) == 1:
        return TurnOutputs(formats, {formats[0]: out}, None, {})
    stem = out.stem if by_suffix is not None else out.name
    return TurnOutputs(formats, {known.name: out.with_name(f"{stem}{known.suffix}") for known in wanted}, None, {})


def check(
    outputs: TurnOutputs,
    clean: SpeakerRemoval | None,
    speaker_store: Path | None,
    sources: Sequence[Path],
    others: Sequence[Path] = (),
    *,
    force: bool = False,
    hold: Hold = lambda lock: None,
) -> dict[Path, list[Path]]:
    """Check the outputs before hours of work, and create their folder and lock the files in it.

    Parameters
    ----------
    outputs : TurnOutputs
    clean : SpeakerRemoval or None
        The speaker removal whose outputs are written besides the turns.
    speaker_store : Path or None
        The store to write speaker embeddings to.
    sources : sequence of Path
        The recordings.
    others : sequence of Path
        Other files that are read, or folders with RTTM or audio files.
    force : bool
        Whether an existing store may be replaced.
    hold : callable
        Enters the lock until the command ends.

    Returns
    -------
    dict of Path to list of Path
        The files that are written for each recording alone.

    Raises
    ------
    KnnError
        If an output would replace a file that is read, or another output, or cannot be written; or if a store exists
        already and `force` is false.
    """
    read = [*sources, *others]
    for folder in filter(Path.is_dir, others):
        read += [*folder.rglob("*.rttm"), *reading.find(folder)]
    for out in outputs.outs.values():
        check_text_output(out, read)
    if speaker_store is not None:
        if speaker_store.suffix.lower() not in hdf5.SUFFIXES:
            raise KnnError(f"{speaker_store} is not a name for a store.", "Name a file such as speakers.h5.")
        check_output(speaker_store, read)
        check_free(speaker_store, force)
    for file in (*outputs.outs.values(), speaker_store):
        if file is not None and not file.parent.is_dir():
            raise KnnError(f"{file} cannot be written: there is no folder {file.parent}.", "Create the folder first.")
    files = {path: [*by_format.values()] for path, by_format in outputs.targets.items()}
    if clean is not None:
        for path, source in zip(files, sources, strict=True):
            files[path] += _cleaned(clean, source)
    targets = [*outputs.outs.values(), *(file for each in files.values() for file in each)]
    if len(set(targets)) < len(targets):
        target = Counter(targets).most_common(1)[0][0]
        raise KnnError(f"Two outputs would be called {target}.", "Rename a recording, or process it separately.")
    if outputs.folder is not None:
        make_output_folder(outputs.folder, targets, read)
        hold(locked_files(targets))
    return files


def _cleaned(clean: SpeakerRemoval, source: Path) -> list[Path]:
    """Files that speaker removal writes for a recording; unreadable ones are reported later."""
    listed = [clean.list_path(source)] if clean.lists else []
    if not clean.writes_sound:
        return listed
    try:
        audio, turns = clean.audio_path(source), clean.turns_paths(source)
    except AudioError:
        return listed
    return [*listed, audio, *turns]
