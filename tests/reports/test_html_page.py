"""The page of a report: what it says of unknown rows and priors, and the sound it asks for."""

from __future__ import annotations

import math
from dataclasses import replace

from knn_cli.evaluation.evaluate import evaluate
from knn_cli.reports.contents import ReportContents
from knn_cli.reports.html_page import render_page
from knn_cli.reports.notes import priors_note
from knn_cli.reports.tables import Error
from tests.helpers import evaluations
from tests.helpers.report_pages import HOSTILE, PageReader, tone


def test_page_says_what_calls_a_row_unknown() -> None:
    table = evaluations.scores(("deu", "fra", "unknown"), 30)
    limited = replace(evaluations.evaluation(table, out_of_set={"kat": 7}), table=replace(table, threshold=1.5))
    assert limited.open_set is not None
    free = replace(limited, table=table, open_set=replace(limited.open_set, threshold=math.nan, eer=0.25))
    plain = evaluations.evaluation(evaluations.scores(("deu", "fra"), 30), out_of_set={"kat": 7})
    assert plain.open_set is not None
    none = replace(plain, open_set=replace(plain.open_set, threshold=math.nan))
    captions = []
    for evaluation in (limited, free, none):
        text = PageReader(render_page(ReportContents([evaluations.NamedEvaluation("m", evaluation)]))).text
        captions.append(text[text.index("Labels outside the model", 400) :][:400])
    assert (
        "below the threshold on its largest detection log-likelihood ratio, or where the label unknown" in captions[0]
    )
    assert "No threshold: a row is called unknown where the label unknown is the likeliest." in captions[1]
    assert "25.0\u00a0%" in captions[1]
    assert "No threshold: no row is called unknown." in captions[2]


def test_page_says_what_was_likely_before() -> None:
    table = evaluations.scores(("deu", "fra", HOSTILE), 30)
    evaluation = evaluate(table, bootstrap=0, priors={"fra": 2})
    words = f"m: label priors are fra 50\u00a0%, deu 25\u00a0%, {HOSTILE} 25\u00a0%. Answers"
    assert words in PageReader(render_page(ReportContents([evaluations.NamedEvaluation("m", evaluation)]))).text
    many = evaluate(evaluations.scores(tuple(map(str, range(14))), 140), bootstrap=0, priors={"7": 4})
    assert "7 23.5\u00a0%, 0 5.88\u00a0%" in priors_note(evaluations.NamedEvaluation("m", many))
    assert ", 11 5.88\u00a0% and 2 others. " in priors_note(evaluations.NamedEvaluation("m", many))
    assert priors_note(evaluations.named()) == ""


def test_page_warns_of_models_that_know_different_labels() -> None:
    one, two = evaluations.named("one"), evaluations.named("two", ("a", "b"))
    assert "cannot be compared as they stand" in PageReader(render_page(ReportContents([one, two]))).text
    assert "cannot be compared" not in render_page(ReportContents([one, evaluations.named("two")]))


def test_clips_are_asked_for_sparingly() -> None:
    asked: list[tuple[str, float, float]] = []

    def clip(name: str, start: float, end: float) -> bytes | None:
        asked.append((name, start, end))
        return tone("x", start, end) if name != "gone" else None

    errors = [Error("m", "gone", 0, 1, "a", "b", 3.0, 0.9), Error("m", "all", math.nan, math.nan, "a", "b", 2.0, 0.8)]
    errors += [Error("m", f"r{n}", 5, 65, "a", "b", 1.0, 0.7) for n in range(5)]
    text = render_page(ReportContents([evaluations.named()], clip=clip, max_clips=3), errors=errors)
    assert asked == [("gone", 0, 1), ("all", 0, 10), ("r0", 5, 15), ("r1", 5, 15)]
    assert text.count("<audio") == 3
