"""Features in place of sound: recognised, and refused with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from knn_cli.core.errors import KnnError
from knn_cli.core.folders import is_folder
from knn_cli.store.corpora.kaldi_data import WAV_LIST
from knn_cli.store.corpora.recordings import Utterance
from knn_cli.store.corpora.registry import corpus_reader
from knn_cli.store.corpora.tar_shards import FEATURES_HINT
from knn_cli.store.corpora.wespeaker_lists import first_object

FEATURE_LIST = "feats.scp"


def _is_features(path: Path) -> bool:
    if is_folder(path):
        return (path / FEATURE_LIST).is_file() and not (path / WAV_LIST).is_file()
    return (path.name == FEATURE_LIST and path.is_file()) or {"key", "feat"} <= first_object(path).keys()


@corpus_reader("a list of features", _is_features)
def _refuse(path: Path) -> Iterable[Utterance]:
    raise KnnError(f"{path} lists features, not sound.", FEATURES_HINT)
