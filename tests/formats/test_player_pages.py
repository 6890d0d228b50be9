"""The player on paper and on a phone: all that there is to read is printed, and names can be read at 390 pixels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from knn_cli.core.values import Diarization, Turn
from tests.helpers.browser import BINARY, Browser
from tests.helpers.player_pages import NEEDS_BROWSER, clicks, until, write_page

pytestmark = pytest.mark.skipif(BINARY is None, reason=NEEDS_BROWSER)
NAMES = ("Prof. Anna-Maria Novotna (host)", "SPEAKER_01", "Jean-Baptiste de La Fontaine")


def page(folder: Path, count: int, names: tuple[str, ...] = NAMES) -> Path:
    """A page of many turns, each of a second."""
    sound = clicks(folder / "talk.wav", 60.0, rate=8000)
    turns = tuple(Turn(at * 60 / count, (at + 0.9) * 60 / count, names[at % len(names)]) for at in range(count))
    write_page(Diarization(turns, name="talk", seconds=60.0), folder / "talk.html", sound)
    return folder / "talk.html"


def printed(browser: Browser) -> tuple[int, bool]:
    """The number of pages, and whether the first holds a picture and no later one does."""
    pdf = browser.pdf()
    pages = re.findall(rb"/Type\s*/Page\b(?!s).*?endobj", pdf, flags=re.DOTALL)
    pictures = [b"/XObject" in one for one in pages]
    return len(pages), pictures == [True, *[False] * (len(pages) - 1)]


def test_as_many_pages_are_printed_as_there_is_to_read(tmp_path: Path) -> None:
    with Browser(width=1000, height=800) as browser:
        counts = {}
        for count in (6, 60, 400):
            browser.open(page(tmp_path, count))
            browser.evaluate("for (const _ of Array(4)) document.getElementById('in').click()")
            assert browser.evaluate("dispatchEvent(new Event('beforeprint'))")
            rows = browser.evaluate("document.querySelectorAll('#paper tbody')[1].rows.length")
            order = browser.evaluate("[...document.getElementById('paper').children].map(one => one.tagName)")
            assert rows == count and order == ["IMG", "H2", "TABLE", "H2", "TABLE"]
            counts[count], first = printed(browser)
            assert first, "the timeline stands on the first page alone"
        assert counts[6] == 1 and 2 <= counts[60] <= 3 and 8 <= counts[400] <= 14
        assert browser.evaluate("document.querySelectorAll('#rows button').length") < 60  # on the screen as before
        assert browser.errors == []


def test_the_picture_is_drawn_in_light_colours(tmp_path: Path) -> None:
    with Browser() as browser:
        browser.open(page(tmp_path, 6))
        browser.evaluate("dispatchEvent(new Event('beforeprint'))")
        until(browser, "document.querySelector('#paper img').naturalWidth === 3000")
        drawn = browser.evaluate("""(() => { const one = document.querySelector('#paper img'), wide = one.naturalWidth;
            const copy = new OffscreenCanvas(wide, one.naturalHeight).getContext("2d");
            copy.drawImage(one, 0, 0);
            const row = copy.getImageData(0, one.naturalHeight - 34, wide, 1).data;
            return [...Array(wide).keys()].filter(at => row[4 * at + 3]).length / wide; })()""")
        assert 0.15 < drawn < 0.6  # names and turns of the last speaker
        browser.evaluate("dispatchEvent(new Event('afterprint'))")
        assert browser.evaluate("document.getElementById('paper').children.length") == 0


def test_names_can_be_read_on_a_phone(tmp_path: Path) -> None:
    with Browser(width=390, height=844) as browser:
        browser.open(page(tmp_path, 9))
        assert browser.evaluate("innerWidth") == 390 and browser.evaluate("document.documentElement.scrollWidth") <= 390
        cut = browser.evaluate("""[...document.querySelectorAll("#names span:last-child, #rows .name, #speakers input")]
            .filter(one => !one.clientWidth || one.scrollWidth > one.clientWidth + 1).map(one => one.textContent)""")
        assert cut == []
        names = browser.evaluate("""[...document.querySelectorAll("#names div")].map(one => one.offsetHeight)""")
        assert names == [42] * 3
        # Names stand over the rows of their speakers, and what is below them can be clicked.
        hit = browser.evaluate("""(() => { const {left, top} = canvas.getBoundingClientRect();
            return document.elementFromPoint(left + 30, top + 118 + 10).id; })()""")
        assert hit == "canvas"
        assert browser.errors == []
