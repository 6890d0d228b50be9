"""Where model bundles are looked for, and what is said of those found there: to Python's log, which commands show."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import platformdirs

from knn_cli.core.errors import BundleError
from knn_cli.core.folders import is_folder, is_regular

CONFIG = "config.json"

_log = logging.getLogger(__name__)


def search_path() -> list[Path]:
    """Folders to search for bundles, in this order: KNN_MODELS, ./models, the user's folder, the shipped models."""
    package = Path(__file__).resolve().parents[1]
    named = [Path(part) for part in os.environ.get("KNN_MODELS", "").split(os.pathsep) if part]
    shipped = package / "models" if (package / "models").is_dir() else package.parent / "models"
    return [*named, Path("models"), user_folder(), shipped]


def user_folder() -> Path:
    """The folder of the user's bundles (XDG data folder on Linux)."""
    return Path(platformdirs.user_data_dir("knn")) / "models"


def bundle_folders() -> Iterator[Path]:
    """Yield the folders with a config on the search path, in its order; a place that cannot be listed holds none."""
    for root in search_path():
        with suppress(OSError):
            yield from (path.parent for path in sorted(root.glob(f"*/{CONFIG}")))


def note_shadowed(name: str, folder: Path) -> None:
    """Say it where a bundle is taken in place of the shipped one of this name."""
    shipped = search_path()[-1] / name
    if is_regular(shipped / CONFIG) and not (is_folder(folder) and folder.samefile(shipped)):
        _log.info("The model %s is that of %s, in place of the shipped one.", name, folder)


def first_usable(folders: Sequence[Path], check: Callable[[Path], object]) -> Path:
    """Return the first folder for which `check` raises no BundleError, else the last, for which it is not called.

    What is passed over is said.
    """
    for folder in folders[:-1]:
        try:
            check(folder)
            return folder
        except BundleError as error:
            _log.warning("%s It is passed over.", error.message)
    return folders[-1]
