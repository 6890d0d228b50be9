"""A bundle's network in ONNX Runtime: embeddings of whole clips, from a file that is exported once and kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import platformdirs

from knn_cli.core.errors import KnnError
from knn_cli.core.folders import is_regular
from knn_cli.core.values import Floats
from knn_cli.networks.bundle_identity import Bundle
from knn_cli.networks.onnx_packages import onnx_package
from knn_cli.networks.precision import FP32, without_suffix

__all__ = ["OnnxNetwork"]

_log = logging.getLogger(__name__)


class OnnxNetwork:
    """A bundle's network in ONNX Runtime, on the CPU.

    Parameters
    ----------
    bundle : Bundle
        Its export (`onnx_export`, compared with torch) is kept in the user's cache folder, under its fingerprint.

    Raises
    ------
    KnnError
        Packages are missing, or the network cannot be exported.
    """

    def __init__(self, bundle: Bundle) -> None:
        runtime = onnx_package("onnxruntime", "`precision=onnx`")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1  # clips are computed in parallel, see `core.parallel`
        options.log_severity_level = 4
        path = _exported(bundle)
        try:
            self._session: Any = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has classes of errors of its own, which it does not document
            reason = str(error).rstrip(".")
            raise KnnError(f"ONNX Runtime cannot load {path}: {reason}.", "Delete that file.") from error

    def __call__(self, waveforms: Floats) -> Floats:
        """Embed waveforms (B, S) float32 of one length in [-1, 1], not scaled -> (B, E) float32."""
        embeddings: Floats = self._session.run(["embeddings"], {"waveforms": waveforms})[0]
        return embeddings


def _place(bundle: Bundle) -> Path:
    fingerprint, _, _ = without_suffix(bundle.fingerprint)
    return Path(platformdirs.user_cache_dir("knn")) / "onnx" / f"{fingerprint.rpartition('@')[2]}.onnx"


def _exported(bundle: Bundle) -> Path:
    """The file of a bundle's network, which is made where there is none."""
    path = _place(bundle)
    if not is_regular(path):
        from knn_cli.networks.onnx_export import export_onnx

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"The network cannot be kept for ONNX Runtime: {path.parent} cannot be made, {error.strerror}."
            raise KnnError(message, "Let XDG_CACHE_HOME name a folder that you may write to.") from error
        export = export_onnx(bundle.with_settings(precision=FP32), path, force=True)
        _log.warning("%s is exported for ONNX Runtime, once: %s, %.0f MB.", bundle.name, path, export.size / 1e6)
    return path
