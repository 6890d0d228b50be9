"""Reading of NeMo's `.nemo`: a tar, older ones gzipped, of model_config.yaml and model_weights.ckpt.

Nothing of it is unpacked but these two, into a temporary folder, and nothing in them is run.
"""

from __future__ import annotations

import lzma
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from knn_cli.core.errors import KnnError
from knn_cli.core.input_files import check_regular
from knn_cli.core.lfs import check_pointer
from knn_cli.networks.construction import first_line
from knn_cli.networks.importers.checkpoint_files import read_weights, read_yaml

__all__ = ["SUFFIX", "is_nemo", "read_nemo"]

SUFFIX = ".nemo"
_SETTINGS, _WEIGHTS = "model_config.yaml", "model_weights.ckpt"
_MOST_TIMES = 8  # that a file unpacks to; weights hardly compress
_FEW_BYTES = 1 << 24


def is_nemo(path: Path) -> bool:
    """Whether a file is one of NeMo's, by its suffix."""
    return path.suffix.lower() == SUFFIX and not path.is_dir()


def read_nemo(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read settings and weights.

    Raises
    ------
    KnnError
        The file is no tar of these, is damaged, or claims to hold more than its size allows.
    """
    check_regular(path, "a model of NeMo")
    check_pointer(path)
    with tempfile.TemporaryDirectory(prefix="knn-nemo-") as folder:
        try:
            with tarfile.open(path, "r:*") as archive:
                found = _unpacked(archive, path, Path(folder))
        except (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise KnnError(
                f"{path} is no model of NeMo, or damaged: {first_line(error)}.", "Download it again."
            ) from error
        if missing := [name for name in (_SETTINGS, _WEIGHTS) if name not in found]:
            raise KnnError(f"{path} has no {missing[0]} in it, as models of NeMo have.", "Download it again.")
        try:
            return read_yaml(found[_SETTINGS]), read_weights(found[_WEIGHTS])
        except KnnError as error:
            message = error.message.replace(f"{folder}/", f"{path}: ")
            raise KnnError(message, error.hint.replace(f"{folder}/", "")) from error


def _unpacked(archive: tarfile.TarFile, path: Path, folder: Path) -> dict[str, Path]:
    """The settings and the weights as files of a folder. KnnError for what unpacks to more than a model has."""
    most = _MOST_TIMES * path.stat().st_size + _FEW_BYTES
    found: dict[str, Path] = {}
    for member in archive:
        name = PurePosixPath(member.name).name
        if member.size > most or member.offset_data > most:
            raise KnnError(f"{path} claims to unpack to {member.size:,} bytes, which no model does.", "Is it another?")
        if not member.isreg() or member.issparse() or name not in (_SETTINGS, _WEIGHTS) or name in found:
            continue
        source = archive.extractfile(member)
        assert source is not None  # a regular member
        found[name] = folder / name
        with found[name].open("xb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    return found
