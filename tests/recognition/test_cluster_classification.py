"""Stores that workers score, where workers end: without a scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from knn_cli.core.cluster import Cluster
from knn_cli.core.errors import KnnError
from knn_cli.core.values import ScoreTable
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.recognition import classifier, cluster_classification
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.classify_files import classify_files
from knn_cli.recognition.cluster_classification import ClassifierPlace
from tests.helpers.command import done
from tests.helpers.head_bundles import write_head_bundle


class FailingCluster:
    """Workers here, which end at the rows from 3 on; those from 6 on fare better alone."""

    sound_seconds = 0.0

    def ordered(self, work: Callable[[Any], Any], units: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for unit in units:
            yield unit, KnnError("It ended 3 workers.") if unit.group.rows.start >= 3 else work(unit)

    def alone(self, work: Callable[[Any], Any], unit: Any) -> Any:
        return KnnError("It ended 3 workers.") if unit.group.rows.start < 6 else work(unit)


def test_rows_at_which_workers_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tone: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classifier, "ROWS_AT_ONCE", 3)
    write_head_bundle(Path("three"), ["cs", "pl", "sk"])
    done("convert", tone, "sound.h5", "--segment", "0.25", "--min-segment", "0.25")
    done("embed", "sound.h5", "--model", "three", "--no-vad", "-o", "rows.h5")
    model = Classifier(Path("three"))
    place = ClassifierPlace.of(model, {})

    def score_store(path: Path, use_vad: bool) -> Iterator[ScoreTable | KnnError]:
        cluster = cast(Cluster, FailingCluster())
        return cluster_classification.score_store_on_cluster(cluster, place, model, path, use_vad)

    options = EmbeddingOptions(use_vad=False)
    alone = [part for _, part in classify_files([Path("rows.h5")], model, options)]
    parts = [part for _, part in classify_files([Path("rows.h5")], model, options, score_store=score_store)]
    assert len(parts) == 3 and isinstance(parts[1], KnnError)
    assert parts[1].message == "rows.h5: rows 3 to 5 have no scores. It ended 3 workers."
    for place_in_list in (0, 2):
        one, other = parts[place_in_list], alone[place_in_list]
        assert isinstance(one, ScoreTable) and isinstance(other, ScoreTable)
        assert np.array_equal(one.log_likelihood, other.log_likelihood)
