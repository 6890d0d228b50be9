"""The figures of what a model's scores and embeddings look like: DET curves, histograms, a map in two dimensions.

DET curves: A. Martin et al., "The DET curve in assessment of detection task performance", Eurospeech 1997.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy.special import ndtri

from knn_cli.core.tables import CellValue, Table
from knn_cli.core.values import Doubles, EmbeddingSet
from knn_cli.evaluation.metrics import LRE_BETAS, bayes_threshold, error_rates
from knn_cli.evaluation.results import DetCurve, Evaluation
from knn_cli.formats.drawing import COLOURS, GREY, LINES, PALE, Plot, add_title, new_figure, style
from knn_cli.reports.tables import Named, counted, in_title

_RATES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # ticks of a DET curve


def det(models: Sequence[Named]) -> Plot:
    """Miss against false alarm rate on probit axes: of each label for one model, of all labels pooled for several."""
    rows: list[tuple[CellValue, ...]] = []
    alone = len(models) == 1
    many = len(models[0].evaluation.det_curves) > 22  # too many to tell apart
    with style():
        figure, (axes,) = new_figure(8 if alone else 6, 5.6 if alone else 6.4)
        axes.plot(ndtri([5e-4, 0.9]), ndtri([5e-4, 0.9]), color=GREY, linewidth=0.8, linestyle=":", label="equal")
        for rank, model in enumerate(models):
            wanted = model.evaluation.det_curves if alone else model.evaluation.det_curves[:1]
            for place, one in reversed(list(enumerate(wanted))):
                pooled = place == 0
                points = _thinned(one)
                rows += [(model.name, one.name, *map(float, point)) for point in zip(*points, strict=True)]
                _, alarm, miss = points
                colour = rank if not alone else place - 1
                label = f"{model.name}: all labels" if pooled else one.name
                label += "" if alone else f", {model.counts}"
                axes.plot(
                    _probit(alarm),
                    _probit(miss),
                    color="black" if alone and pooled else GREY if many and not pooled else COLOURS[colour % 7],
                    linestyle=LINES[rank % 5] if pooled else LINES[(place - 1) // 7 % 5],
                    linewidth=2 if pooled else 1 if not many else 0.4,
                    label=None if many and not pooled else f"{label} ({one.targets:,} / {one.nontargets:,})",
                )
                for beta, marker in zip(LRE_BETAS, "os", strict=True) if pooled else ():
                    missed, accepted = operating_point(model.evaluation, beta)
                    axes.plot(
                        _probit(accepted),
                        _probit(missed),
                        marker=marker,
                        color="black" if alone else COLOURS[rank % 7],
                        markerfacecolor="white",
                        linestyle="none",
                        label=f"threshold log {beta:g}" if rank == 0 else None,
                    )
        for limits, ticks, along in ((axes.set_xlim, axes.set_xticks, "x"), (axes.set_ylim, axes.set_yticks, "y")):
            limits(ndtri(0.0007), ndtri(0.85))
            ticks(ndtri(_RATES), [f"{100 * rate:g}" for rate in _RATES])
            axes.grid(axis=along, color=PALE, linewidth=0.5)  # type: ignore[arg-type]
        axes.set_xlabel("false alarm rate / % (probit scale)")
        axes.set_ylabel("miss rate / % (probit scale)")
        title = f"DET{in_title(models)}"
        add_title(figure, title)
        handles, names = axes.get_legend_handles_labels()
        legend = figure.legend(
            handles[::-1] if alone else handles,
            names[::-1] if alone else names,
            loc="outside right center" if alone else "outside lower center",
            title="(target / non-target trials)",
            fontsize=8,
        )
        legend.get_title().set_fontsize(8)
    eers = [
        f"{one.name} {one.evaluation.metrics['eer'].value:.1%}" for one in models if "eer" in one.evaluation.metrics
    ]
    alt = f"Detection error trade-off curves. Equal error rate, mean over labels: {', '.join(eers) or 'not known'}."
    return Plot("det", alt, figure, Table(title, ("model", "label", "threshold", "false alarm", "miss"), tuple(rows)))


def operating_point(evaluation: Evaluation, beta: float) -> tuple[float, float]:
    """Miss and false alarm rate at the threshold log(beta), means over labels: miss + beta * alarm is Cavg."""
    miss, alarm = error_rates(evaluation.llr, evaluation.index, bayes_threshold(beta))
    return float(miss.mean()), float(alarm.mean())


def histograms(models: Sequence[Named], bins: int = 60) -> Plot:
    """Detection LLRs of trials with labels that occur; the outermost bins hold what lies beyond."""
    rows: list[tuple[CellValue, ...]] = []
    overlaps = []
    with style():
        figure, panels = new_figure(max(5.4, 4.2 * len(models)), 3.9, columns=len(models))
        for axes, model in zip(panels, models, strict=True):
            targets, others = trial_scores(model.evaluation)
            ends = [np.percentile(scores, [0.5, 99.5]) for scores in (targets, others) if len(scores)]
            low, high = np.min(ends), np.max(ends)
            edges = np.linspace(min(low, -1.0), max(high, 1.0), bins + 1)
            named = (("target", targets, 0, ""), ("non-target", others, 1, "////"))
            drawn = []
            for name, scores, colour, hatch in named:
                counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
                drawn.append(counts)
                axes.stairs(
                    100 * counts / max(len(scores), 1),
                    edges,
                    fill=True,
                    alpha=0.45,
                    facecolor=COLOURS[colour],
                    edgecolor=COLOURS[colour],
                    hatch=hatch,
                    label=f"{name} ({len(scores):,} trials)",
                )
            for beta, line in zip(LRE_BETAS, ("-", "--"), strict=True):
                axes.axvline(
                    math.log(beta), color="black", linewidth=1, linestyle=line, label=f"threshold log {beta:g}"
                )
            if (
                model.evaluation.table.threshold is not None and not model.evaluation.detection_priors
            ):  # it is of labels alike
                mark: dict[str, Any] = {"color": GREY, "linewidth": 1.5, "linestyle": ":"}
                axes.axvline(model.evaluation.table.threshold, label="below: unknown", **mark)
            axes.set_title(f"{model.name}: {model.counts}")
            axes.set(xlabel="detection log-likelihood ratio / nats", ylabel="trials of the kind / %")
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
            overlaps.append(f"{model.name} {np.mean(targets < 0):.1%} and {np.mean(others >= 0):.1%}")
            rows += [
                (model.name, float(left), float(right), int(one), int(two))
                for left, right, one, two in zip(edges[:-1], edges[1:], *drawn, strict=True)
            ]
        title = "Scores of target and non-target trials"
        add_title(figure, title)
    alt = f"Histograms. Targets below 0 and non-targets above: {'; '.join(overlaps)}."
    columns = ("model", "from", "to", "targets", "non-targets")
    return Plot("scores", alt, figure, Table(title, columns, tuple(rows)))


def trial_scores(evaluation: Evaluation) -> tuple[Doubles, Doubles]:
    """Detection LLRs of (targets, non-targets): of every row against every label that occurs in the test set."""
    llr = evaluation.llr
    is_target = np.arange(llr.shape[1]) == evaluation.index[:, None]  # (N, C)
    occurs = np.isin(np.arange(llr.shape[1]), evaluation.index)
    return llr[is_target], llr[~is_target & occurs]


def maps(embeddings: EmbeddingSet, level: str = "group", most: int = 4000) -> list[Plot]:
    """The rows in two dimensions: by principal components, and by UMAP where umap-learn is installed.

    level : which label colours them, as in `EmbeddingSet.label`; rows without one and rows with NaN are left out
    most  : rows drawn; of more, so many evenly spaced ones

    UMAP: L. McInnes et al., "UMAP: Uniform Manifold Approximation and Projection", JOSS 3 (2018).
    """
    labels = embeddings.label(level)
    usable = np.flatnonzero((labels != "") & np.isfinite(embeddings.data).all(axis=1))
    if len(usable) < 3:
        return []
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, min(most, len(usable))).astype(np.int64))]
    rows = embeddings.take(chosen)
    counts = f"{len(rows):,} of {len(usable):,} rows" if len(rows) < len(usable) else counted(len(rows), "row")
    counts += f" of {counted(len(np.unique(rows.name)), 'recording')}"
    vectors = rows.data.astype(np.float64)  # (N, D)
    places, shares = principal(vectors)
    names = [f"principal component {rank} ({share:.0%} of variance)" for rank, share in enumerate(shares, 1)]
    made = [_map("map-pca", f"Embeddings, principal components: {counts}", rows, labels[chosen], places, names)]
    if find_spec("umap") is not None:
        from umap import UMAP

        near = np.asarray(UMAP(n_neighbors=min(15, len(rows) - 1), random_state=0, n_jobs=1).fit_transform(vectors))
        names = ["UMAP 1 (no unit)", "UMAP 2 (no unit)"]
        made.append(_map("map-umap", f"Embeddings, UMAP: {counts}", rows, labels[chosen], near, names))
    return made


def principal(vectors: Doubles) -> tuple[Doubles, Doubles]:
    """(N, 2) coordinates along the two directions of most variance, and each one's share of all variance.

    Each direction's largest entry is positive, so that the map does not depend on the machine's choice of sign.
    """
    centred = vectors - vectors.mean(axis=0)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    first = directions[:2]
    first = first * np.sign(first[np.arange(len(first)), np.abs(first).argmax(axis=1)])[:, None]
    places = np.zeros((len(vectors), 2))
    places[:, : len(first)] = centred @ first.T
    shares = np.zeros(2)
    shares[: len(first)] = lengths[:2] ** 2 / max(float((lengths**2).sum()), 1e-300)
    return places, shares


def _map(name: str, title: str, rows: EmbeddingSet, labels: Any, places: Doubles, axis_names: Sequence[str]) -> Plot:
    from matplotlib.patheffects import withStroke

    unique = sorted(set(labels.tolist()))
    with style():
        figure, (axes,) = new_figure(8 if len(unique) <= 40 else 7, 5.6)
        for rank, label in enumerate(unique):
            mine = places[labels == label]
            axes.scatter(
                mine[:, 0],
                mine[:, 1],
                s=10,
                color=COLOURS[rank % len(COLOURS)],
                marker="osD^vPX*"[rank // len(COLOURS) % 8],
                linewidth=0,
                alpha=0.7,
                rasterized=len(rows) > 1500,
                label=f"{label} ({len(mine):,})",
            )
            x, y = np.median(mine, axis=0)
            outline = [withStroke(linewidth=2.5, foreground="white")]
            axes.text(x, y, label, size=8, ha="center", va="center", weight="bold", path_effects=outline)
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
        add_title(figure, title)
        if len(unique) <= 40:
            figure.legend(loc="outside right upper", ncols=1 + (len(unique) > 24), fontsize=8, title="label (rows)")
    alt = f"Scatter plot of {counted(len(rows), 'row')} of {counted(len(unique), 'label')} in two dimensions."
    columns = ("recording", "start", "end", "label", "x", "y")
    points = tuple(
        (str(one), float(start), float(end), str(label), float(x), float(y))
        for one, start, end, label, (x, y) in zip(rows.name, rows.start, rows.end, labels, places, strict=True)
    )
    return Plot(name, alt, figure, Table(title, columns, points))


def _probit(rate: Any) -> Any:
    return ndtri(np.clip(rate, 2e-4, 1 - 2e-4))


def _thinned(one: DetCurve, most: int = 400) -> tuple[Doubles, Doubles, Doubles]:
    """Threshold, false alarm and miss rate at the corners of a curve, at most so many, evenly along what is seen."""
    along, up = _probit(one.false_alarm), _probit(one.miss)
    steps = np.hypot(np.diff(along), np.diff(up))
    keep = np.concatenate([[True], steps > 0])
    travelled = np.concatenate([[0.0], np.cumsum(steps)])
    if keep.sum() > most:
        chosen = np.searchsorted(travelled, np.linspace(0, travelled[-1], most))
        keep = np.zeros(len(keep), dtype=bool)
        keep[np.clip(chosen, 0, len(keep) - 1)] = True
    return one.threshold[keep], one.false_alarm[keep], one.miss[keep]
