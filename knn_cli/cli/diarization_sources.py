"""What `knn diarize` is given: recordings, or kept analyses of them; and where it keeps the analyses that it makes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from knn_cli.cli.options import flag, given
from knn_cli.cli.skipped import note_skipped
from knn_cli.cli.stdin import STORE_SUFFIXES
from knn_cli.core.errors import KnnError
from knn_cli.core.folders import files_below
from knn_cli.core.locks import locked_files
from knn_cli.core.output_paths import make_output_folder
from knn_cli.core.urls import UrlPath
from knn_cli.core.visible_text import readable

if TYPE_CHECKING:
    from knn_cli.cli.turn_outputs import Hold
    from knn_cli.core.values import Turn
    from knn_cli.networks.bundle import Bundle

# Options that say something about sound or its networks, which a kept analysis has behind it.
_NEED_SOUND = ("model", "segmentation", "channel", "track", "per_channel", "keep", "batch_seconds")


@dataclass(frozen=True)
class Sources:
    """Recordings, or kept analyses.

    Attributes
    ----------
    paths : list of Path
    names : mapping of Path to str
        The names of the recordings.
    places : mapping of Path to Path
        Where outputs belong in a folder, without a suffix, see `labels.output_places`.
    sounds : mapping of Path to Path
        The sound of each, as far as it is there; a recording's is itself.
    channels : mapping of Path to str
        The channel of each kept analysis.
    embedder : str
        Fingerprint of the embedding model of kept analyses, "" for recordings.
    kept : bool
    """

    paths: list[Path]
    names: Mapping[Path, str]
    places: Mapping[Path, Path]
    sounds: Mapping[Path, Path]
    channels: Mapping[Path, str] = field(default_factory=dict)
    embedder: str = ""
    kept: bool = False

    def model(self) -> Bundle:
        """The embedding model of kept analyses. BundleError where it is not here."""
        from knn_cli.networks import bundle

        return bundle.find_embedder(self.embedder)

    def check_sounds(self, why: str) -> None:
        """Raise KnnError where the sound of a kept analysis is not there, or is at a URL."""
        for path in self.paths:
            if isinstance(path, UrlPath):
                raise KnnError(f"{path} is at a URL, and {why} needs a file.", "Download it first.")
            if path not in self.sounds:
                raise KnnError(
                    f"The recording {self.names[path]} of {path} is needed for {why}, and is not where it was.",
                    f"Put it into the folder of {path.name}.",
                )


def find(ctx: typer.Context, sources: Sequence[Path]) -> Sources:
    """Recordings and folders of these, or kept analyses and folders of these.

    Raises
    ------
    KnnError
        For both together, for two of the same name, and for options that need sound beside kept analyses.
    """
    if any(path.suffix.lower() in STORE_SUFFIXES or path.is_dir() for path in sources):
        from knn_cli.audio import reading

        kept, sound = [], []
        for path in sources:
            if path.suffix.lower() in STORE_SUFFIXES and not path.is_dir():
                kept.append(path)
            elif path.is_dir() and not reading.find(path) and (below := _kept_below(path)):
                kept += below
            else:
                sound.append(path)
        if kept:
            if sound:
                raise KnnError(f"{kept[0]} is no recording, {sound[0]} is one.", "Diarize them separately.")
            found = _kept_sources(sources, list(dict.fromkeys(kept)))
            names = given(ctx)
            for name in _NEED_SOUND:
                if name in names:
                    raise KnnError(f"{flag(ctx, name)} needs the sound, not {kept[0]}.", "Leave it out.")
            return found
    from knn_cli.embedding.files import expand_folders
    from knn_cli.store import labels

    paths = expand_folders(sources)
    note_skipped(sources)
    called = {path: readable(name) for path, name in zip(paths, labels.recording_names(paths), strict=True)}
    return Sources(paths, called, labels.output_places(sources, paths), {path: path for path in paths})


def given_turns(found: Sources, turns: Path | None) -> dict[Path, tuple[Turn, ...] | KnnError] | None:
    """The turns of each recording out of files of them, None where none are given; an error for one that has none.

    Raises
    ------
    KnnError
        For kept analyses, where no recording has turns, and as `formats.turn_readers.read_given_turns`.
    """
    if turns is None:
        return None
    from knn_cli.formats.rttm import turns_of_recording
    from knn_cli.formats.turn_readers import read_given_turns

    if found.kept:
        raise KnnError(f"{found.paths[0]} is no recording, to which {turns} could belong.", "Name the sound instead.")
    by_name = read_given_turns(turns)
    given: dict[Path, tuple[Turn, ...] | KnnError] = {}
    for path, name in found.names.items():
        try:
            given[path] = turns_of_recording(name, by_name, found.paths, turns)
        except KnnError as error:
            given[path] = error
    errors = [one for one in given.values() if isinstance(one, KnnError)]
    if len(errors) == len(given):
        raise errors[0]
    return given


def _kept_below(folder: Path) -> list[Path]:
    """Kept analyses of a folder, and damaged files among them, which are reported in their turn."""
    from knn_cli.core.errors import StoreError
    from knn_cli.diarization.kept_analysis import is_kept
    from knn_cli.store import hdf5

    def is_store(path: Path) -> bool:
        try:
            return hdf5.kind_of(path) is not None
        except StoreError:
            return False

    files = files_below(folder, STORE_SUFFIXES)
    return [path for path in files if not is_store(path)] if any(map(is_kept, files)) else []


def _kept_sources(sources: Sequence[Path], paths: list[Path]) -> Sources:
    from knn_cli.diarization import kept_analysis
    from knn_cli.networks.bundle import same_embedder
    from knn_cli.store import labels

    names, sounds, channels, embedders = {}, {}, {}, {}
    for path in paths:
        names[path] = path.stem
        try:
            facts = kept_analysis.describe(path)
        except KnnError:
            if len(paths) == 1:
                raise
            continue  # reported in its turn
        names[path], channels[path], embedders[path] = facts["recording"], facts["channel"], facts["embedder"]
        first = next(iter(embedders))
        if not same_embedder(embedders[path], embedders[first]):
            both = f"{embedders[path]}, {first} by {embedders[first]}"
            raise KnnError(f"{path} was embedded by {both}.", "Diarize them separately.")
        places = (Path(facts["source"]), path.parent / Path(facts["source"]).name)
        if (sound := next(filter(Path.is_file, places), None)) is not None:
            sounds[path] = sound
    _check_distinct(names)
    return Sources(
        paths,
        names,
        labels.output_places(sources, paths),
        sounds,
        channels,
        next(iter(embedders.values()), ""),
        kept=True,
    )


def _check_distinct(names: Mapping[Path, str]) -> None:
    """Raise KnnError for two kept analyses of recordings of one name."""
    first: dict[str, Path] = {}
    for path, name in names.items():
        if (other := first.setdefault(name, path)) is not path:
            raise KnnError(
                f"Two analyses are of {name}, so their turns could not be distinguished: {other} and {path}.",
                "Diarize them separately.",
            )


def keep_targets(
    keep: Path | None, places: Mapping[Path, Path], read: Collection[Path], hold: Hold
) -> dict[Path, Path]:
    """Recording -> the file that its analysis is kept in: `keep` itself, or a file per recording in that folder.

    `hold` enters the lock of the files in a folder until the command ends.

    Raises
    ------
    KnnError
        For one file for several recordings, for files that are read, and for a folder that is none.
    """
    if keep is None:
        return {}
    from knn_cli.core.output_paths import check_outputs

    if keep.suffix.lower() in STORE_SUFFIXES and not keep.is_dir():
        if len(places) > 1:
            raise KnnError(f"{keep} keeps one recording, not {len(places)}.", "Name a folder, such as kept/.")
        if not keep.parent.is_dir():
            raise KnnError(f"{keep} cannot be written: there is no folder {keep.parent}.", "Create the folder first.")
        targets = {path: keep for path in places}
        check_outputs(targets.values(), read)
    else:
        targets = {path: keep / f"{place}.h5" for path, place in places.items()}
        make_output_folder(keep, list(targets.values()), list(read))
        hold(locked_files(targets.values()))
    return targets
