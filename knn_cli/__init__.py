"""`knn`: spoken language and dialect identification, and speaker diarization.

>>> import knn_cli
>>> result = knn_cli.diarize("meeting.flac")
>>> len(result.speakers)
4
>>> result.save("meeting.TextGrid")  # and .rttm, .eaf, .csv, .json, .srt, ...; result.turns, result.annotation
>>> scores = knn_cli.Classifier("language").score_file("meeting.flac")
>>> scores.best.tolist()  # and scores.probabilities, scores.to_frame(), scores.to_csv("scores.csv")
['en']

Embeddings are made by `Embedder` and `embed_file`, stores by `convert`, classifiers by `train_classifier`; `evaluate`
and `diarization_error` measure. What can be mended is a `KnnError` with a message and a hint.

Importing this package is free: each public name is imported from its module when it is first used (PEP 562).
`docs/architecture.md` is the map.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from knn_cli.audio.reading import read as read_audio
    from knn_cli.core.errors import KnnError
    from knn_cli.core.values import Diarization, EmbeddingSet, ScoreTable, Waveform
    from knn_cli.diarization.pipeline import diarize
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.embedding.files import embed_file
    from knn_cli.evaluation.diarization_error import diarization_error
    from knn_cli.evaluation.evaluate import evaluate
    from knn_cli.formats.rttm import read_rttm, write_rttm
    from knn_cli.networks.bundle import find as find_model
    from knn_cli.networks.conversion import convert
    from knn_cli.recognition.classifier import Classifier
    from knn_cli.recognition.train_classifier import train_classifier

__version__ = "0.2.0"

__all__ = [
    "Classifier",
    "Diarization",
    "Embedder",
    "EmbeddingSet",
    "KnnError",
    "ScoreTable",
    "Waveform",
    "__version__",
    "convert",
    "diarization_error",
    "diarize",
    "embed_file",
    "evaluate",
    "find_model",
    "read_audio",
    "read_rttm",
    "train_classifier",
    "write_rttm",
]

_PUBLIC = {  # public name -> the module that defines it, and what it is called there
    "Classifier": ("knn_cli.recognition.classifier", "Classifier"),
    "Diarization": ("knn_cli.core.values", "Diarization"),
    "Embedder": ("knn_cli.embedding.embedder", "Embedder"),
    "EmbeddingSet": ("knn_cli.core.values", "EmbeddingSet"),
    "KnnError": ("knn_cli.core.errors", "KnnError"),
    "ScoreTable": ("knn_cli.core.values", "ScoreTable"),
    "Waveform": ("knn_cli.core.values", "Waveform"),
    "convert": ("knn_cli.networks.conversion", "convert"),
    "diarization_error": ("knn_cli.evaluation.diarization_error", "diarization_error"),
    "diarize": ("knn_cli.diarization.pipeline", "diarize"),
    "embed_file": ("knn_cli.embedding.files", "embed_file"),
    "evaluate": ("knn_cli.evaluation.evaluate", "evaluate"),
    "find_model": ("knn_cli.networks.bundle", "find"),
    "read_audio": ("knn_cli.audio.reading", "read"),
    "read_rttm": ("knn_cli.formats.rttm", "read_rttm"),
    "train_classifier": ("knn_cli.recognition.train_classifier", "train_classifier"),
    "write_rttm": ("knn_cli.formats.rttm", "write_rttm"),
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
