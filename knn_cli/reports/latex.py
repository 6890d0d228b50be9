r"""Tables of an evaluation for papers: LaTeX with the rules of the package booktabs.

>>> print(escaped("95 % of a_b & c"))
95 \% of a\_b \& c
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TextIO

from knn_cli.core.visible_text import visible
from knn_cli.evaluation.results import MetricValue
from knn_cli.reports.tables import METRICS, NamedEvaluation, class_table

_SPECIAL = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "β": r"$\beta$",
    }
)
_SHARES = ("precision", "recall", "F1", "EER")  # columns of the labels' table


def escaped(text: str) -> str:
    """Return text with the characters that mean something to LaTeX written as such."""
    return visible(text).translate(_SPECIAL)


def write_latex(models: Sequence[NamedEvaluation], file: TextIO) -> None:
    r"""Write two tables: the headline figures of each model with their intervals, and the figures of every label.

    They are `tabular` environments, so that captions and places remain the author's; `\usepackage{booktabs}` is needed.
    Shares are in percent.

    Parameters
    ----------
    models : sequence of NamedEvaluation
    file : text file
    """
    names = [name for name in METRICS if any(name in model.evaluation.metrics for model in models)]
    missing = MetricValue(math.nan)
    rows = [
        [METRICS[name].title, *(_with_interval(model.evaluation.metrics.get(name, missing), name) for model in models)]
        for name in names
    ]
    _write_tabular(file, ["", *(model.name for model in models)], rows, texts=1)
    table = class_table(models)
    texts = table.columns.index("rows")
    kept = [*range(texts + 1), *(table.columns.index(name) for name in _SHARES)]
    shares = {table.columns.index(name) for name in _SHARES}
    rows = [[_cell(row[column], column in shares) for column in kept] for row in table.rows]
    file.write("\n")
    _write_tabular(file, [table.columns[column] for column in kept], rows, texts=texts)


def _with_interval(figure: MetricValue, name: str) -> str:
    value, low, high = (_cell(end, METRICS[name].is_share) for end in (figure.value, figure.low, figure.high))
    return f"{value} ({low}–{high})" if low else value


def _cell(value: object, is_share: bool) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{100 * value:.1f} %" if is_share else f"{value:.4f}"


def _write_tabular(file: TextIO, columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> None:
    """Write a table whose first `texts` columns are flush left, the others flush right."""
    lines = [" & ".join(map(escaped, cells)) + r" \\" for cells in (columns, *rows)]
    file.write(f"\\begin{{tabular}}{{{'l' * texts}{'r' * (len(columns) - texts)}}}\n\\toprule\n{lines[0]}\n\\midrule\n")
    file.write("\n".join([*lines[1:], r"\bottomrule", r"\end{tabular}"]) + "\n")
