"""Figures of detection scores: DET curves, and histograms of target and non-target trials.

DET curves: A. Martin et al., "The DET curve in assessment of detection task performance", Eurospeech 1997.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from knn_cli.core.display_names import named
from knn_cli.core.tables import CellValue, Table
from knn_cli.core.values import Doubles
from knn_cli.evaluation.metrics import LRE_BETAS, bayes_threshold, error_rates
from knn_cli.evaluation.results import DetCurve, Evaluation
from knn_cli.formats.drawing import COLOURS, GREY, LINES, PALE, Plot, add_title, new_figure, style
from knn_cli.reports.tables import NamedEvaluation, counts_in_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DET_TICKS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # rates
MAX_LEGEND_CURVES = 22  # of a DET figure; with more, the curves of labels are grey and have no names
MAX_CURVE_POINTS = 400
PROBIT_RATES = (2e-4, 1 - 2e-4)  # rates beyond are drawn at these


def det_curves(models: Sequence[NamedEvaluation]) -> Plot:
    """Draw miss against false alarm rate on probit axes: of each label for one model, of all labels pooled for several.

    Circles and squares mark the operating points of LRE_BETAS.
    """
    single = len(models) == 1
    rows: list[tuple[CellValue, ...]] = []
    with style():
        figure, (axes,) = new_figure(8 if single else 6, 5.6 if single else 6.4)
        axes.plot(ndtri([5e-4, 0.9]), ndtri([5e-4, 0.9]), color=GREY, linewidth=0.8, linestyle=":", label="equal")
        for rank, model in enumerate(models):
            curves = model.evaluation.det_curves if single else model.evaluation.det_curves[:1]
            for place in reversed(range(len(curves))):
                points = _thin(curves[place])
                rows += [(model.name, curves[place].name, *map(float, point)) for point in zip(*points, strict=True)]
                _, false_alarm, miss = points
                axes.plot(_probit(false_alarm), _probit(miss), **_det_line(models, rank, place))
            _mark_operating_points(axes, model.evaluation, "black" if single else COLOURS[rank % 7], rank == 0)
        for limits, ticks, axis in ((axes.set_xlim, axes.set_xticks, "x"), (axes.set_ylim, axes.set_yticks, "y")):
            limits(ndtri(0.0007), ndtri(0.85))
            ticks(ndtri(DET_TICKS), [f"{100 * rate:g}" for rate in DET_TICKS])
            axes.grid(axis=axis, color=PALE, linewidth=0.5)  # type: ignore[arg-type]
        axes.set_xlabel("false alarm rate / % (probit scale)")
        axes.set_ylabel("miss rate / % (probit scale)")
        title = f"DET{counts_in_title(models)}"
        add_title(figure, title)
        handles, names = axes.get_legend_handles_labels()
        legend = figure.legend(
            handles[::-1] if single else handles,
            names[::-1] if single else names,
            loc="outside right center" if single else "outside lower center",
            title="(target / non-target trials)",
            fontsize=8,
        )
        legend.get_title().set_fontsize(8)
    metrics = [(model.name, model.evaluation.metrics.get("eer")) for model in models]
    eers = ", ".join(f"{name} {eer.value:.1%}" for name, eer in metrics if eer is not None)
    alt = f"Detection error trade-off curves. Equal error rate, mean over labels: {eers or 'not known'}."
    return Plot("det", alt, figure, Table(title, ("model", "label", "threshold", "false alarm", "miss"), tuple(rows)))


def _det_line(models: Sequence[NamedEvaluation], rank: int, place: int) -> dict[str, Any]:
    """Colour, line and label of a curve; the first curve of a model is the one of all labels pooled."""
    single, model = len(models) == 1, models[rank]
    curve = model.evaluation.det_curves[place]
    trials = f"({curve.targets:,} / {curve.nontargets:,})"
    if place == 0:
        counts = "" if single else f", {model.counts}"
        look = {"color": "black" if single else COLOURS[rank % 7], "linestyle": LINES[rank % 5], "linewidth": 2}
        return {**look, "label": f"{model.name}: all labels{counts} {trials}"}
    line = LINES[(place - 1) // 7 % 5]
    if len(models[0].evaluation.det_curves) > MAX_LEGEND_CURVES:
        return {"color": GREY, "linestyle": line, "linewidth": 0.4, "label": None}
    return {
        "color": COLOURS[(place - 1) % 7],
        "linestyle": line,
        "linewidth": 1,
        "label": f"{named(curve.name, model.label_names)} {trials}",
    }


def _mark_operating_points(axes: Axes, evaluation: Evaluation, colour: str, in_legend: bool) -> None:
    for beta, marker in zip(LRE_BETAS, "os", strict=True):
        miss, false_alarm = operating_point(evaluation, beta)
        axes.plot(
            _probit(false_alarm),
            _probit(miss),
            marker=marker,
            color=colour,
            markerfacecolor="white",
            linestyle="none",
            label=f"threshold log {beta:g}" if in_legend else None,
        )


def operating_point(evaluation: Evaluation, beta: float) -> tuple[float, float]:
    """Miss and false alarm rate at the threshold log(beta), means over labels: miss + beta * alarm is Cavg."""
    miss, alarm = error_rates(evaluation.llr, evaluation.index, bayes_threshold(beta))
    return float(miss.mean()), float(alarm.mean())


def score_histograms(models: Sequence[NamedEvaluation], bins: int = 60) -> Plot:
    """Draw the detection LLRs of trials with labels that occur; the outermost bins hold the scores beyond them."""
    rows: list[tuple[CellValue, ...]] = []
    overlaps = []
    with style():
        figure, panels = new_figure(max(5.4, 4.2 * len(models)), 3.9, columns=len(models))
        for axes, model in zip(panels, models, strict=True):
            targets, nontargets = trial_scores(model.evaluation)
            ends = [np.percentile(scores, [0.5, 99.5]) for scores in (targets, nontargets) if len(scores)]
            edges = np.linspace(min(np.min(ends), -1.0), max(np.max(ends), 1.0), bins + 1)
            counts = _draw_histograms(axes, {"target": targets, "non-target": nontargets}, edges)
            _draw_thresholds(axes, model.evaluation)
            axes.set_title(f"{model.name}: {model.counts}")
            axes.set(xlabel="detection log-likelihood ratio / nats", ylabel="trials of the kind / %")
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
            overlaps.append(f"{model.name} {np.mean(targets < 0):.1%} and {np.mean(nontargets >= 0):.1%}")
            rows += [
                (model.name, float(left), float(right), int(target), int(nontarget))
                for left, right, target, nontarget in zip(edges[:-1], edges[1:], *counts, strict=True)
            ]
        title = "Scores of target and non-target trials"
        add_title(figure, title)
    alt = f"Histograms. Targets below 0 and non-targets above: {'; '.join(overlaps)}."
    columns = ("model", "from", "to", "targets", "non-targets")
    return Plot("scores", alt, figure, Table(title, columns, tuple(rows)))


def _draw_histograms(axes: Axes, trials: dict[str, Doubles], edges: Doubles) -> list[NDArray[np.int64]]:
    """Counts in the bins of targets and of non-targets, drawn as shares of their kind."""
    drawn = []
    for (kind, scores), colour, hatch in zip(trials.items(), COLOURS[:2], ("", "////"), strict=True):
        counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
        drawn.append(counts)
        axes.stairs(
            100 * counts / max(len(scores), 1),
            edges,
            fill=True,
            alpha=0.45,
            facecolor=colour,
            edgecolor=colour,
            hatch=hatch,
            label=f"{kind} ({len(scores):,} trials)",
        )
    return drawn


def _draw_thresholds(axes: Axes, evaluation: Evaluation) -> None:
    for beta, line in zip(LRE_BETAS, ("-", "--"), strict=True):
        axes.axvline(math.log(beta), color="black", linewidth=1, linestyle=line, label=f"threshold log {beta:g}")
    threshold = evaluation.table.threshold
    # It holds for equally likely labels, and against all that the model knows.
    if threshold is not None and not evaluation.detection_priors and evaluation.table.rivals is None:
        axes.axvline(threshold, label="below: unknown", color=GREY, linewidth=1.5, linestyle=":")


def trial_scores(evaluation: Evaluation) -> tuple[Doubles, Doubles]:
    """Detection LLRs of (targets, non-targets): of every row against every label that occurs in the test set."""
    llr = evaluation.llr
    is_target = np.arange(llr.shape[1]) == evaluation.index[:, None]  # (N, C)
    occurs = np.isin(np.arange(llr.shape[1]), evaluation.index)
    return llr[is_target], llr[~is_target & occurs]


def _probit(rate: Any) -> Any:
    return ndtri(np.clip(rate, *PROBIT_RATES))


def _thin(curve: DetCurve, max_points: int = MAX_CURVE_POINTS) -> tuple[Doubles, Doubles, Doubles]:
    """Threshold, false alarm and miss rate at the corners of a curve; of many, so many evenly along the drawn line."""
    x, y = _probit(curve.false_alarm), _probit(curve.miss)
    steps = np.hypot(np.diff(x), np.diff(y))
    keep = np.concatenate([[True], steps > 0])
    travelled = np.concatenate([[0.0], np.cumsum(steps)])
    if keep.sum() > max_points:
        chosen = np.searchsorted(travelled, np.linspace(0, travelled[-1], max_points))
        keep = np.zeros(len(keep), dtype=bool)
        keep[np.clip(chosen, 0, len(keep) - 1)] = True
    return curve.threshold[keep], curve.false_alarm[keep], curve.miss[keep]
