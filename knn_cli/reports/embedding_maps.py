"""Maps of embeddings in two dimensions: by principal components, and by UMAP where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import MappingProxyType

import numpy as np

from knn_cli.core.display_names import named
from knn_cli.core.tables import Table
from knn_cli.core.values import Doubles, EmbeddingSet, Texts
from knn_cli.formats.drawing import COLOURS, Plot, add_title, new_figure, style
from knn_cli.reports.tables import counted

MAX_ROWS = 4000
MAX_VECTOR_ROWS = 1500  # more are drawn as pixels
MAX_LEGEND_LABELS = 40


def embedding_maps(
    embeddings: EmbeddingSet,
    level: str = "group",
    max_rows: int = MAX_ROWS,
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[Plot]:
    """Draw embeddings in two dimensions: by principal components, and by UMAP where umap-learn is installed.

    Parameters
    ----------
    embeddings : EmbeddingSet
    level : str
        The label that colours them, see `EmbeddingSet.label`; rows without one and rows with NaN are left out.
    max_rows : int
        Largest number of rows drawn; of more rows, this many evenly spaced ones.
    names : mapping of str to str
        Names of labels, for the legend.

    Returns
    -------
    list of Plot
        Empty if fewer than three rows are left.

    References
    ----------
    L. McInnes et al., "UMAP: Uniform Manifold Approximation and Projection", JOSS 3 (2018).
    """
    labels = embeddings.label(level)
    usable = np.flatnonzero((labels != "") & np.isfinite(embeddings.data).all(axis=1))
    if len(usable) < 3:
        return []
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, min(max_rows, len(usable))).astype(np.int64))]
    rows = embeddings.take(chosen)
    counts = f"{len(rows):,} of {len(usable):,} rows" if len(rows) < len(usable) else counted(len(rows), "row")
    counts += f" of {counted(len(np.unique(rows.name)), 'recording')}"
    vectors = rows.data.astype(np.float64)  # (N, D)
    points, variance = principal_components(vectors)
    axis_names = [f"principal component {rank} ({share:.0%} of variance)" for rank, share in enumerate(variance, 1)]
    title = f"Embeddings, principal components: {counts}"
    maps = [_scatter_plot("map-pca", title, rows, labels[chosen], points, axis_names, names)]
    if find_spec("umap") is not None:
        from umap import UMAP

        points = np.asarray(UMAP(n_neighbors=min(15, len(rows) - 1), random_state=0, n_jobs=1).fit_transform(vectors))
        axis_names = ["UMAP 1 (no unit)", "UMAP 2 (no unit)"]
        title = f"Embeddings, UMAP: {counts}"
        maps.append(_scatter_plot("map-umap", title, rows, labels[chosen], points, axis_names, names))
    return maps


def principal_components(vectors: Doubles) -> tuple[Doubles, Doubles]:
    """(N, 2) coordinates along the two directions of largest variance, and (2,) the share of the variance along each.

    Each direction's largest entry is positive, so that the map does not depend on the machine's choice of sign.
    """
    centred = vectors - vectors.mean(axis=0)
    _, singular_values, directions = np.linalg.svd(centred, full_matrices=False)
    first = directions[:2]
    first = first * np.sign(first[np.arange(len(first)), np.abs(first).argmax(axis=1)])[:, None]
    points = np.zeros((len(vectors), 2))
    points[:, : len(first)] = centred @ first.T
    shares = np.zeros(2)
    shares[: len(first)] = singular_values[:2] ** 2 / max(float((singular_values**2).sum()), 1e-300)
    return points, shares


def _scatter_plot(
    name: str,
    title: str,
    rows: EmbeddingSet,
    labels: Texts,
    points: Doubles,
    axis_names: Sequence[str],
    names: Mapping[str, str],
) -> Plot:
    """Draw rows in the colour and marker of their label, with the label at their median."""
    from matplotlib.patheffects import withStroke

    unique = sorted(set(labels.tolist()))
    with style():
        figure, (axes,) = new_figure(8 if len(unique) <= MAX_LEGEND_LABELS else 7, 5.6)
        for rank, label in enumerate(unique):
            label_points = points[labels == label]
            axes.scatter(
                label_points[:, 0],
                label_points[:, 1],
                s=10,
                color=COLOURS[rank % len(COLOURS)],
                marker="osD^vPX*"[rank // len(COLOURS) % 8],
                linewidth=0,
                alpha=0.7,
                rasterized=len(rows) > MAX_VECTOR_ROWS,
                label=f"{named(label, names)} ({len(label_points):,})",
            )
            x, y = np.median(label_points, axis=0)
            outline = [withStroke(linewidth=2.5, foreground="white")]
            axes.text(x, y, label, size=8, ha="center", va="center", weight="bold", path_effects=outline)
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
        add_title(figure, title)
        if len(unique) <= MAX_LEGEND_LABELS:
            figure.legend(loc="outside right upper", ncols=1 + (len(unique) > 24), fontsize=8, title="label (rows)")
    alt = f"Scatter plot of {counted(len(rows), 'row')} of {counted(len(unique), 'label')} in two dimensions."
    columns = ("recording", "start", "end", "label", "x", "y")
    cells = tuple(
        (str(recording), float(start), float(end), str(label), float(x), float(y))
        for recording, start, end, label, (x, y) in zip(rows.name, rows.start, rows.end, labels, points, strict=True)
    )
    return Plot(name, alt, figure, Table(title, columns, cells))
