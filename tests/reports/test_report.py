"""The report of an evaluation: what the page says, what the folder holds, and how a browser takes it."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile

from knn_cli.core.errors import KnnError
from knn_cli.evaluation.evaluate import evaluate
from knn_cli.formats.drawing import Plot, render
from knn_cli.reports import report
from knn_cli.reports.contents import ReportContents
from knn_cli.reports.html_page import render_page
from knn_cli.reports.notes import different_labels_note, priors_note
from knn_cli.reports.report import check_report_folder, write_report
from knn_cli.reports.tables import Error, worst_errors
from tests.helpers import browser as chromium
from tests.helpers import evaluations

VILE = "<script>alert('x')</script> & \"q\""
LABELS = ("deu", VILE, "fra", "absent")


def tone(name: str, start: float, end: float) -> bytes | None:
    if name.startswith("rec000"):
        return None
    into = io.BytesIO()
    time = np.arange(round(16000 * (end - start))) / 16000
    soundfile.write(into, 0.2 * np.sin(2 * np.pi * 300 * time), 16000, format="FLAC")
    return into.getvalue()


def drawn_or_not(plot: Plot, kind: str) -> bytes:
    """What the folder holds; three of the PDFs alone, as it takes long to cut their fonts to size."""
    if kind == "pdf" and plot.name not in ("recall", "det", "map-pca"):
        return b"not drawn" * 100
    return render(plot, kind)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two models, with all that a report can have."""
    folder = tmp_path_factory.mktemp("reports") / "report"
    models = []
    families = ("Germanic", VILE, "Romance", "Romance")  # of one model only: each figure costs a second
    for name, quality, groups in (("voice@1 $", 1.0, families), (VILE, 2.0, ())):
        table = evaluations.scores(
            LABELS, 90, quality=quality, groups=groups, skip=("absent",), recording="rec{:03d} <b>.wav"
        )
        found = evaluations.evaluation(table, out_of_set={"kat": 7, VILE + "2": 3}, unlabelled=4)
        models.append(evaluations.NamedEvaluation(name, found))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report, "render", drawn_or_not)
        contents = ReportContents(
            models,
            curves={"voice@1 $": evaluations.curve(), VILE: evaluations.curve(0.98)},
            embeddings=evaluations.embeddings(models[0].evaluation.table),
            clip=tone,
            cards={"Model <voice>": "# Card\n<img src=x onerror=alert(1)>"},
            command=f"knn classify test.h5 --report '{VILE}'",
            version="9.9",
            date="2026-11-23",
        )
        made = write_report(contents, folder)
    assert made == folder / "report.html"
    return folder


class Reader(HTMLParser):
    """Elements, their attributes, and the text outside style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._quiet = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._quiet = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._quiet = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._quiet else data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def read(written: Path) -> Reader:
    return Reader((written / "report.html").read_text(encoding="utf-8"))


def test_names_are_text_and_never_markup(read: Reader) -> None:
    assert len(read.all("script")) == 1  # ours
    assert not [one for one in read.all("img") if "onerror" in one]
    assert VILE in read.text
    assert "<img src=x onerror=alert(1)>" in read.text
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]


def test_nothing_is_fetched(read: Reader) -> None:
    for tag, attributes in read.elements:
        for name in ("src", "href", "xlink:href", "data", "poster", "srcset", "action"):
            if tag != "a" and (value := attributes.get(name)) is not None:
                assert value.startswith(("data:", "#")), (tag, value)
    policy = next(one["content"] for one in read.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_links_lead_to_files_of_the_folder(written: Path, read: Reader) -> None:
    links = [one["href"] or "" for one in read.all("a")]
    ids = {attributes.get("id") for _, attributes in read.elements}
    assert all(link[1:] in ids if link.startswith("#") else (written / link).is_file() for link in links)


def test_ids_are_unique(read: Reader) -> None:
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_page_is_accessible(read: Reader) -> None:
    assert read.all("html")[0]["lang"] == "en"
    assert len(read.all("h1")) == 1
    assert all(one.get("aria-label") for one in read.all("audio") if one)
    images = [one for _, one in read.elements if one.get("role") == "img"]
    assert len(images) == len(read.all("figure")) == 9
    assert all(len(one["aria-label"] or "") > 20 for one in images)


def test_page_says_what_was_left_out(read: Reader) -> None:
    assert "1 label of the model without a test row, so in no mean: absent." in read.text
    assert f"10 rows of labels that the model does not know: kat (7), {VILE}2 (3);" in read.text
    assert "4 rows without a label." in read.text


def test_headline_shows_value_and_interval(written: Path, read: Reader) -> None:
    told = json.loads((written / "data" / "report.json").read_text())
    figure = told["models"][0]["figures"]["accuracy"]
    assert f"{100 * figure['value']:.1f}\u00a0%[{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]" in read.text


def test_every_figure_has_three_formats_and_its_numbers(written: Path) -> None:
    figures = {path.stem for path in (written / "figures").iterdir()}
    kinds = (
        "confusion-1",
        "confusion-2",
        "confusion-groups-1",
        "recall",
        "det",
        "reliability",
        "scores",
        "curve",
        "map",
    )
    assert all(any(name.startswith(kind) for name in figures) for kind in kinds)
    starts = {"png": b"\x89PNG", "pdf": b"%PDF"}
    assert all(
        (written / "figures" / f"recall.{kind}").read_bytes().startswith(start) for kind, start in starts.items()
    )
    for name in figures:
        assert all((written / "figures" / f"{name}.{kind}").stat().st_size > 500 for kind in ("svg", "png", "pdf"))
        assert ElementTree.parse(written / "figures" / f"{name}.svg").getroot().tag.endswith("}svg")
        told = json.loads((written / "data" / f"{name}.json").read_text())
        lines = (written / "data" / f"{name}.tsv").read_text().splitlines()
        assert lines[0].split("\t") == told["columns"]
        assert len(lines) - 1 == len(told["rows"]) > 0


def test_worst_errors_come_first_one_a_recording() -> None:
    model = evaluations.named(quality=0.5)
    found = worst_errors(model, 5)
    gaps = [one.log_ratio for one in found]
    table, index = model.evaluation.table, model.evaluation.index
    brute = table.log_likelihood.max(axis=1) - table.log_likelihood[np.arange(len(table)), index]
    assert gaps[0] == pytest.approx(brute.max())
    assert gaps == sorted(gaps, reverse=True)
    assert len({one.name for one in found}) == 5
    assert all(one.truth != one.predicted for one in found)


def test_page_says_what_calls_a_row_unknown() -> None:
    table = evaluations.scores(("deu", "fra", "unknown"), 30)
    limited = replace(evaluations.evaluation(table, out_of_set={"kat": 7}), table=replace(table, threshold=1.5))
    assert limited.open_set is not None
    free = replace(limited, table=table, open_set=replace(limited.open_set, threshold=math.nan, eer=0.25))
    plain = evaluations.evaluation(evaluations.scores(("deu", "fra"), 30), out_of_set={"kat": 7})
    assert plain.open_set is not None
    none = replace(plain, open_set=replace(plain.open_set, threshold=math.nan))
    said = []
    for found in (limited, free, none):
        text = Reader(render_page(ReportContents([evaluations.NamedEvaluation("m", found)]))).text
        said.append(text[text.index("Labels outside the model", 400) :][:400])
    assert "below the threshold on its largest detection log-likelihood ratio, or where the label unknown" in said[0]
    assert "No threshold: a row is called unknown where the label unknown is the likeliest." in said[1]
    assert "25.0\u00a0%" in said[1]
    assert "No threshold: no row is called unknown." in said[2]


def test_page_says_what_was_likely_before() -> None:
    table = evaluations.scores(("deu", "fra", VILE), 30)
    found = evaluate(table, bootstrap=0, priors={"fra": 2})
    words = f"m: labels are as likely before as fra 50\u00a0%, deu 25\u00a0%, {VILE} 25\u00a0%. Answers"
    assert words in Reader(render_page(ReportContents([evaluations.NamedEvaluation("m", found)]))).text
    many = evaluate(evaluations.scores(tuple(map(str, range(14))), 140), bootstrap=0, priors={"7": 4})
    assert "7 23.5\u00a0%, 0 5.88\u00a0%" in priors_note(evaluations.NamedEvaluation("m", many))
    assert ", 11 5.88\u00a0% and 2 others. " in priors_note(evaluations.NamedEvaluation("m", many))
    assert priors_note(evaluations.named()) == ""


def test_page_warns_of_models_that_know_different_labels() -> None:
    one, two = evaluations.named("one"), evaluations.named("two", ("a", "b"))
    assert "cannot be compared as they stand" in Reader(render_page(ReportContents([one, two]))).text
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


def test_only_a_report_of_ours_is_replaced_and_only_with_force(written: Path, tmp_path: Path) -> None:
    with pytest.raises(KnnError, match="exists already"):
        check_report_folder(written)
    check_report_folder(written, force=True)
    mine = tmp_path / "project"
    (mine / "data").mkdir(parents=True)
    (mine / "data" / "labels.tsv").write_text("mine")
    with pytest.raises(KnnError, match=r"no evaluation report: it holds data/labels\.tsv"):
        check_report_folder(mine, force=True)
    with pytest.raises(KnnError, match="one of the sources"):
        check_report_folder(mine, sources=[mine / "data" / "labels.tsv"], force=True)
    (mine / "data" / "labels.tsv").unlink()


def test_a_note_beside_a_report_keeps_it(written: Path) -> None:
    note = written / "figures" / "note.txt"
    note.write_text("mine")
    try:
        with pytest.raises(KnnError, match=r"figures/note\.txt"):
            check_report_folder(written, force=True)
    finally:
        note.unlink()


def test_nothing_is_left_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "evaluation_figures", lambda *_: [])
    with pytest.raises(ValueError, match="FLAC or WAV"):
        write_report(ReportContents([evaluations.named(quality=0.0)], clip=lambda *_: b"mp3?"), tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_the_list_of_a_report_holds_priors_and_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "evaluation_figures", lambda *_: [])
    table = evaluations.scores(("a", "b"), 20)
    models = [evaluations.NamedEvaluation("m", evaluate(table, bootstrap=0, priors={"b": 3})), evaluations.named("all")]
    write_report(ReportContents(models), tmp_path / "x")
    told = json.loads((tmp_path / "x" / "data" / "report.json").read_text(encoding="utf-8"))
    assert [one["priors"] for one in told["models"]] == [{"a": 0.25, "b": 0.75}, None]
    assert told["notes"] == [different_labels_note(models)] != [""]


def test_report_is_replaced_with_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "evaluation_figures", lambda *_: [])
    for date in ("first", "second"):
        made = write_report(ReportContents([evaluations.named()], date=date), tmp_path / "x", force=True)
        assert date in made.read_text(encoding="utf-8")
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


@pytest.fixture(scope="module")
def opened(written: Path) -> Iterator[chromium.Browser]:
    if chromium.BINARY is None:
        pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium; Ubuntu: snap install chromium)")
    with chromium.Browser(width=1000) as browser:
        browser.open(written / "report.html")
        yield browser


def test_browser_finds_no_fault_and_asks_for_nothing(written: Path, opened: chromium.Browser) -> None:
    assert opened.errors == []
    assert opened.requests == [(written / "report.html").resolve().as_uri()]
    assert opened.evaluate("document.documentElement.scrollWidth") <= 1000


def test_browser_sorts_by_a_click(opened: chromium.Browser) -> None:
    table = "document.querySelector('#labels').parentElement.querySelector('table')"

    def click(column: int) -> list[str]:
        opened.evaluate(f"{table}.tHead.rows[0].cells[{column}].querySelector('button').click()")
        return list(opened.evaluate(f"[...{table}.tBodies[0].rows].map(row => row.cells[{column}].dataset.value)"))

    recall = list(map(float, click(4)))
    assert recall == sorted(recall, reverse=True) and len(set(recall)) > 1
    assert opened.evaluate(f"{table}.tHead.rows[0].cells[4].getAttribute('aria-sort')") == "descending"
    assert list(map(float, click(4))) == recall[::-1]
    labels = click(0)
    assert labels[-1] in ("deu", "fra") and labels != click(0)
    assert opened.errors == []


def test_browser_plays_the_clips(opened: chromium.Browser) -> None:
    script = """Promise.all([...document.querySelectorAll("audio")].map(async one => {
        if (one.readyState < 1) await new Promise((done, fail) => { one.onloadedmetadata = done; one.onerror = fail; });
        await one.play();
        return [one.readyState, one.duration, one.error];
    }))"""
    found = opened.evaluate(script)
    assert len(found) > 2
    assert all(ready >= 2 and error is None and abs(length - 4) < 0.05 for ready, length, error in found)


def test_figures_of_the_page_have_names_as_they_are(written: Path) -> None:
    text = (written / "figures" / "recall.svg").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in text and "<script" not in text
    assert re.search(r"voice@1 \$", text)
