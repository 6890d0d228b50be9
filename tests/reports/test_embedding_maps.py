"""Maps of embeddings: principal components, UMAP where installed, rows drawn at most."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from knn_cli.reports import embedding_maps
from knn_cli.reports.tables import NamedEvaluation
from tests.helpers import evaluations


@pytest.fixture(scope="module")
def model() -> NamedEvaluation:
    return evaluations.named("voice", ("a", "b", "c"), 60, quality=1.5)


def test_principal_components_are_those_of_the_covariance() -> None:
    data = np.random.default_rng(1).normal(size=(200, 5)) * [5, 3, 1, 1, 1]
    places, shares = embedding_maps.principal_components(data)
    values = np.linalg.eigvalsh(np.cov(data.T))[::-1]
    assert places.var(axis=0, ddof=1) == pytest.approx(values[:2])
    assert shares == pytest.approx(values[:2] / values.sum())
    assert embedding_maps.principal_components(data)[0] == pytest.approx(places)


def test_umap_is_used_where_installed(model: NamedEvaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, **options: object) -> None:
            assert options["random_state"] == 0

        def fit_transform(self, data: np.ndarray) -> np.ndarray:
            return data[:, :2]

    module = types.ModuleType("umap")
    module.UMAP = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    monkeypatch.setattr(embedding_maps, "find_spec", lambda name: name == "umap")
    names = [one.name for one in embedding_maps.embedding_maps(evaluations.embeddings(model.evaluation.table))]
    assert names == ["map-pca", "map-umap"]


def test_map_draws_a_part_of_many_rows_and_says_so(model: NamedEvaluation) -> None:
    (plot,) = embedding_maps.embedding_maps(evaluations.embeddings(model.evaluation.table), max_rows=20)
    assert "20 of 60 rows" in plot.title and len(plot.table.rows) == 20
