"""Checks of output paths, made before any work is done: nothing is overwritten that must stay."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from knn_cli.core.errors import KnnError


def check_output(path: str | Path | None, sources: Iterable[str | Path]) -> None:
    """Refuse an output that would replace one of the sources.

    Parameters
    ----------
    path : path of the output, None for no output
    sources : paths of the files that are read

    Raises
    ------
    KnnError
        If `path` is one of the sources, also by way of a link. No option allows that.
    """
    if path is not None:
        check_outputs([path], sources)


def check_outputs(paths: Iterable[str | Path], sources: Iterable[str | Path]) -> None:
    """Do what `check_output` does for many outputs, in time that is linear in their number."""
    resolved = {Path(source).resolve() for source in sources}
    for path in paths:
        if Path(path).resolve() in resolved:
            raise KnnError(f"{path} is one of the sources.", "Name another file for the output.")


def check_folder(path: Path, kind: str, own_names: Collection[str], force: bool) -> None:
    """Refuse a folder that an output folder of ours cannot replace.

    Parameters
    ----------
    path : the output folder
    kind : what such a folder is, for the message
    own_names : names that such a folder may hold; a folder that holds anything else is never replaced
    force : whether a folder that holds only `own_names` may be replaced

    Raises
    ------
    KnnError
        If the folder holds other files, or is not empty and `force` is false.
    """
    if not path.exists():
        return
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in own_names) if path.is_dir() else []
    if not path.is_dir():
        foreign = [path.name]
    if foreign:
        hint = "Name another folder; this one will not be replaced."
        raise KnnError(f"{path} exists and is no {kind}: it holds {foreign[0]}.", hint)
    if any(path.iterdir()) and not force:
        raise KnnError(f"The {kind} {path} exists already.", "Name another folder, or replace it with `force=True`.")


def make_output_folder(folder: Path, targets: Sequence[Path], sources: Sequence[Path]) -> None:
    """Create an output folder, and the folders of the files that go into it.

    Parameters
    ----------
    folder : the output folder
    targets : paths of the files that will be written
    sources : paths of the files that are read

    Raises
    ------
    KnnError
        If a target is one of the sources, if `folder` is a file, or if a folder cannot be created.
    """
    check_outputs(targets, sources)
    if folder.exists() and not folder.is_dir():
        raise KnnError(f"{folder} is a file.", "Name a folder for one file per recording, or one output file.")
    try:
        for parent in dict.fromkeys([folder, *(target.parent for target in targets)]):
            parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KnnError(f"The folder {folder} cannot be created: {error.strerror}.", "Name another folder.") from error


def check_unique_stems(files: Sequence[Path]) -> None:
    """Refuse two files of one stem, such as `a.wav` and `a.flac`: their outputs could not be told apart.

    Raises
    ------
    KnnError
        If two of the files have the same name up to the suffix.
    """
    first: dict[str, Path] = {}
    for path in files:
        if (other := first.setdefault(path.stem, path)) is not path:
            raise KnnError(
                f"Two files are called {path.stem}, so their turns could not be told apart: {other} and {path}.",
                "Rename one.",
            )
