"""The report of an evaluation: what the page says, what the folder holds, and how a browser takes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.evaluation.evaluate import evaluate
from knn_cli.formats.drawing import Plot, render
from knn_cli.reports import report
from knn_cli.reports.contents import ReportContents
from knn_cli.reports.notes import different_labels_note
from knn_cli.reports.report import check_report_folder, write_report
from tests.helpers import browser as chromium
from tests.helpers import evaluations
from tests.helpers.report_pages import HOSTILE, PageReader, tone

LABELS = ("deu", HOSTILE, "fra", "absent")


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
    families = ("Germanic", HOSTILE, "Romance", "Romance")  # of one model only: each figure costs a second
    for name, quality, groups in (("voice@1 $", 1.0, families), (HOSTILE, 2.0, ())):
        table = evaluations.scores(
            LABELS, 90, quality=quality, groups=groups, skip=("absent",), recording="rec{:03d} <b>.wav"
        )
        found = evaluations.evaluation(table, out_of_set={"kat": 7, HOSTILE + "2": 3}, unlabelled=4)
        models.append(evaluations.NamedEvaluation(name, found))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report, "render", drawn_or_not)
        contents = ReportContents(
            models,
            curves={"voice@1 $": evaluations.curve(), HOSTILE: evaluations.curve(0.98)},
            embeddings=evaluations.embeddings(models[0].evaluation.table),
            clip=tone,
            cards={"Model <voice>": "# Card\n<img src=x onerror=alert(1)>"},
            command=f"knn classify test.h5 --report '{HOSTILE}'",
            version="9.9",
            date="2026-11-23",
        )
        page = write_report(contents, folder)
    assert page == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def read(written: Path) -> PageReader:
    return PageReader((written / "report.html").read_text(encoding="utf-8"))


def test_names_are_text_and_never_markup(read: PageReader) -> None:
    assert len(read.all("script")) == 1  # ours
    assert not [one for one in read.all("img") if "onerror" in one]
    assert HOSTILE in read.text
    assert "<img src=x onerror=alert(1)>" in read.text
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]


def test_nothing_is_fetched(read: PageReader) -> None:
    for tag, attributes in read.elements:
        for name in ("src", "href", "xlink:href", "data", "poster", "srcset", "action"):
            if tag != "a" and (value := attributes.get(name)) is not None:
                assert value.startswith(("data:", "#")), (tag, value)
    policy = next(one["content"] for one in read.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_links_lead_to_files_of_the_folder(written: Path, read: PageReader) -> None:
    links = [one["href"] or "" for one in read.all("a")]
    ids = {attributes.get("id") for _, attributes in read.elements}
    assert all(link[1:] in ids if link.startswith("#") else (written / link).is_file() for link in links)


def test_ids_are_unique(read: PageReader) -> None:
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_page_is_accessible(read: PageReader) -> None:
    assert read.all("html")[0]["lang"] == "en"
    assert len(read.all("h1")) == 1
    assert all(one.get("aria-label") for one in read.all("audio") if one)
    images = [one for _, one in read.elements if one.get("role") == "img"]
    assert len(images) == len(read.all("figure")) == 10
    assert all(len(one["aria-label"] or "") > 20 for one in images)


def test_page_says_what_was_left_out(read: PageReader) -> None:
    assert "1 label of the model without a test row, so in no mean: absent." in read.text
    assert f"10 rows of labels that the model does not know: kat (7), {HOSTILE}2 (3);" in read.text
    assert "4 rows without a label." in read.text


def test_headline_shows_value_and_interval(written: Path, read: PageReader) -> None:
    listed = json.loads((written / "data" / "report.json").read_text())
    figure = listed["models"][0]["figures"]["accuracy"]
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
        listed = json.loads((written / "data" / f"{name}.json").read_text())
        lines = (written / "data" / f"{name}.tsv").read_text().splitlines()
        assert lines[0].split("\t") == listed["columns"]
        assert len(lines) - 1 == len(listed["rows"]) > 0


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
    listed = json.loads((tmp_path / "x" / "data" / "report.json").read_text(encoding="utf-8"))
    assert [one["priors"] for one in listed["models"]] == [{"a": 0.25, "b": 0.75}, None]
    assert listed["notes"] == [different_labels_note(models)] != [""]


def test_report_is_replaced_with_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "evaluation_figures", lambda *_: [])
    for date in ("first", "second"):
        page = write_report(ReportContents([evaluations.named()], date=date), tmp_path / "x", force=True)
        assert date in page.read_text(encoding="utf-8")
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
