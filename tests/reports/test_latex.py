"""LaTeX tables: what a paper shows, and nothing that LaTeX would take for a command."""

from __future__ import annotations

import io

import numpy as np

from knn_cli.core.values import ScoreTable
from knn_cli.evaluation.evaluate import evaluate
from knn_cli.reports.latex import escaped, write_latex
from knn_cli.reports.tables import NamedEvaluation


def test_tables_by_hand() -> None:
    scores = np.log([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
    names, nan = np.array(["r0", "r1", "r2", "r3"]), np.full(4, np.nan)
    table = ScoreTable(("1-1", "a&b_c"), scores, names, nan, nan, np.array(["1-1", "1-1", "a&b_c", "a&b_c"]))
    stream = io.StringIO()
    write_latex([NamedEvaluation("mine_50%", evaluate(table, bootstrap=0))], stream)
    headline, labels = stream.getvalue().split("\n\n")
    lines = headline.splitlines()
    assert lines[:5] == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r" & mine\_50\% \\",
        r"\midrule",
        r"Accuracy & 75.0 \% \\",
    ]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert labels.splitlines()[0] == r"\begin{tabular}{llrrrrr}"
    assert r"1-1 & mine\_50\% & 2 & 66.7 \% & 100.0 \% & 80.0 \%" in labels
    assert r"a\&b\_c & mine\_50\% & 2 & 100.0 \% & 50.0 \% & 66.7 \%" in labels


def test_what_latex_would_take_for_its_own() -> None:
    assert escaped("\\a{b}$c^d~e#") == r"\textbackslash{}a\{b\}\$c\textasciicircum{}d\textasciitilde{}e\#"
