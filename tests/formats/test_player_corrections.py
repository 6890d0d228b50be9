"""Corrections in the player: what a browser makes of them, what it saves, and that they outlive a reload."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knn_cli.core.values import Diarization, Turn
from knn_cli.formats import span_formats
from knn_cli.formats.spans import turn_document
from tests.helpers.browser import BINARY, Browser
from tests.helpers.player_pages import NEEDS_BROWSER, clicks, rttm_of, saved, track_names, until, write_page

NAME = "Über \"talk\" <b>&'1'"
EVA = "</script><img src=x onerror=alert(1)> \"Zoë\" 'de' 💬 \u2028"
TURNS = [(0.25, 3.5, "A"), (3.0004, 6.0, "B b"), (3.0004, 6.0, "C"), (6.5, 8.0, "A"), (8.25, 11.75, "C")]

pytestmark = pytest.mark.skipif(BINARY is None, reason=NEEDS_BROWSER)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clicks(tmp_path_factory.mktemp("player") / "talk.wav", 12.0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(width=1000, height=900) as started:
        yield started


@pytest.fixture
def page(browser: Browser, sound: Path, tmp_path: Path) -> Path:
    """A page that is open and whose corrections nothing remembers."""
    diarization = Diarization(tuple(Turn(*turn, 0.5) for turn in TURNS), name=NAME, seconds=12.0)
    write_page(diarization, tmp_path / "talk.html", sound)
    browser.errors.clear()
    browser.open(tmp_path / "talk.html")
    browser.evaluate("localStorage.clear()")
    browser.open(tmp_path / "talk.html")
    until(browser, "audio.readyState >= 1")
    return tmp_path / "talk.html"


def click(browser: Browser, selector: str) -> None:
    """Press the mouse in the middle of an element."""
    x, y = browser.evaluate(f"""(() => {{ const one = document.querySelector({json.dumps(selector)});
        one.scrollIntoView({{block: "center"}});
        const box = one.getBoundingClientRect();
        return [box.left + box.width / 2, box.top + box.height / 2]; }})()""")
    browser.click(x, y)


def choose(browser: Browser, place: int) -> None:
    click(browser, f"#rows [data-turn='{place}']")
    browser.evaluate("audio.pause()")


def select(browser: Browser, name: str, label: str) -> None:
    browser.evaluate(f"""(() => {{ const one = document.getElementById({json.dumps(name)});
        one.value = [...one.options].find(option => option.textContent === {json.dumps(label)}).value;
        one.dispatchEvent(new Event("change")); }})()""")


def rename(browser: Browser, track: int, name: str) -> None:
    """Type a name over that of a speaker, and Enter."""
    click(browser, f"#speakers li:nth-child({track + 1}) input")
    browser.evaluate("document.activeElement.select()")
    browser.write(name)
    browser.press("Enter", "\r")


def place_cursor(browser: Browser, seconds: float) -> None:
    browser.evaluate(f"audio.pause(); audio.currentTime = {seconds}")
    until(browser, f"!audio.seeking && audio.currentTime === {seconds}")


def text(browser: Browser, selector: str) -> str:
    return str(browser.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))


def faults(browser: Browser) -> list[str]:
    """Errors, without the browser's remark that a page nobody touched may not ask when it is left."""
    return [error for error in browser.errors if "beforeunload" not in error]


def saved_turns(browser: Browser, page: Path) -> str:
    return saved(browser, page.parent, "save", ".rttm")


def saved_corrections(browser: Browser, page: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(saved(browser, page.parent, "save-corrections", ".corrections.json"))
    return loaded


def test_each_kind_of_correction(browser: Browser, page: Path) -> None:
    assert saved_turns(browser, page) == rttm_of(TURNS, NAME)

    select(browser, "merge-from", "C")
    select(browser, "merge-into", "A")
    click(browser, "#merge")
    assert track_names(browser) == ["A", "B b"]
    merged = [(*times, "A" if speaker == "C" else speaker) for *times, speaker in TURNS]
    assert saved_turns(browser, page) == rttm_of(merged, NAME)  # type: ignore[arg-type]

    choose(browser, 3)
    select(browser, "speaker", "B b")
    choose(browser, 4)
    select(browser, "speaker", "New speaker")
    assert track_names(browser) == ["A", "B b", "SPEAKER_00"]
    rename(browser, 2, EVA)
    place_cursor(browser, 9.5)
    click(browser, "#split")
    assert text(browser, "#chosen") == "0:09.5 – 0:11.8"  # the second part, whose speaker may be another
    browser.press("1")
    choose(browser, 0)
    click(browser, "#remove")

    expected = [(3.0, 6.0, "B b"), (3.0, 6.0, "A"), (6.5, 8.0, "B b"), (8.25, 9.5, EVA), (9.5, 11.75, "A")]
    assert saved_turns(browser, page) == rttm_of(expected, NAME)
    assert saved_corrections(browser, page) == {
        "knn": "corrections",
        "version": 1,
        "recording": NAME,
        "edits": [
            {"edit": "merge", "speaker": "C", "into": "A"},
            {"edit": "reassign", "start": 6.5, "end": 8.0, "speaker": "A", "to": "B b"},
            {"edit": "reassign", "start": 8.25, "end": 11.75, "speaker": "A", "to": "SPEAKER_00"},
            {"edit": "rename", "speaker": "SPEAKER_00", "to": EVA.strip()},
            {"edit": "split", "at": 9.5, "start": 8.25, "end": 11.75, "speaker": EVA.strip()},
            {"edit": "reassign", "start": 9.5, "end": 11.75, "speaker": EVA.strip(), "to": "A"},
            {"edit": "delete", "start": 0.25, "end": 3.5, "speaker": "A"},
        ],
    }
    assert text(browser, "#about") == "0:12 · 3 speakers · 5 turns"
    shares = browser.evaluate("[...document.querySelectorAll('#speakers .share')].map(one => one.textContent)")
    assert shares == ["5.3 s · 47.7 %", "4.5 s · 40.9 %", "1.3 s · 11.4 %"]
    assert browser.evaluate("document.querySelectorAll('img').length") == 0 and faults(browser) == []


def edge(browser: Browser, seconds: float, track: int) -> tuple[float, float]:
    """The place in the window of a time in the row of a speaker."""
    left, top, wide = browser.evaluate("""(() => { canvas.scrollIntoView({block: "center"});
        const {left, top, width} = canvas.getBoundingClientRect(); return [left, top, width]; })()""")
    return left + wide * seconds / 12.0, top + 118 + (track + 0.5) * 26


def test_boundaries_move(browser: Browser, page: Path) -> None:
    choose(browser, 3)
    browser.drag(edge(browser, 8.0, 0), edge(browser, 9.0, 0))
    start, end, speaker = TURNS[3]
    [moved] = saved_corrections(browser, page)["edits"]
    assert moved["edit"] == "move" and (moved["to_start"], moved["end"], moved["speaker"]) == (start, end, speaker)
    assert moved["to_end"] == pytest.approx(9.0, abs=0.02) and browser.evaluate("audio.paused")
    browser.drag(edge(browser, 6.5, 0), edge(browser, 10.0, 0))  # no further than its end
    assert saved_corrections(browser, page)["edits"][1]["to_start"] == pytest.approx(moved["to_end"] - 0.01)
    click(browser, "#undo-all")

    choose(browser, 4)
    place_cursor(browser, 9.0)
    click(browser, "#begin")
    assert text(browser, "#chosen") == "0:09.0 – 0:11.8"
    place_cursor(browser, 10.5)
    browser.press("e")
    assert saved_turns(browser, page) == rttm_of([*TURNS[:4], (9.0, 10.5, "C")], NAME)
    place_cursor(browser, 2.0)
    click(browser, "#end")
    assert text(browser, "#message") == "The cursor is before the turn."
    click(browser, "#undo")
    click(browser, "#undo")
    assert saved_turns(browser, page) == rttm_of(TURNS, NAME)
    browser.press("y", control=True)
    assert saved_turns(browser, page) == rttm_of([*TURNS[:4], (9.0, 11.75, "C")], NAME) and faults(browser) == []


def test_a_drag_can_be_given_up(browser: Browser, page: Path) -> None:
    browser.drag(edge(browser, 8.0, 0), edge(browser, 9.0, 0))  # no turn is chosen: this is a click
    browser.evaluate("audio.pause()")
    assert saved_corrections(browser, page)["edits"] == []


def test_what_is_saved_is_what_knn_writes(browser: Browser, page: Path) -> None:
    browser.evaluate("document.querySelector('#rows [data-turn=\"0\"]').click(); audio.pause()")
    rename(browser, 2, 'odd\u200e "<&>" name')
    turns = tuple(Turn(start, end, 'odd\u200e "<&>" name' if who == "C" else who) for start, end, who in TURNS)
    document = turn_document(Diarization(turns, name=NAME, seconds=12.0), audio_path=page.parent / "talk.wav")
    varying = re.compile(r'( DATE| RELATIVE_MEDIA_URL)="[^"]*"|MEDIA_URL="[^"]*"')
    for name, suffix in (("save-textgrid", ".TextGrid"), ("save-eaf", ".eaf")):
        file = io.StringIO()
        span_formats.write_text(document, file, suffix[1:].lower())
        found = saved(browser, page.parent, name, suffix)
        assert varying.sub("", found) == varying.sub("", file.getvalue())
    assert 'RELATIVE_MEDIA_URL="./talk.wav"' in found


def test_what_is_undone_is_left_out(browser: Browser, page: Path) -> None:
    rename(browser, 1, "Bea")
    rename(browser, 2, "Bea")  # the name of another speaker: one speaker
    assert track_names(browser) == ["A", "Bea"]
    browser.press("z", control=True)
    assert track_names(browser) == ["A", "Bea", "C"]
    click(browser, "#undo")
    assert saved_turns(browser, page) == rttm_of(TURNS, NAME)
    assert saved_corrections(browser, page)["edits"] == []
    browser.press("y", control=True)
    click(browser, "#redo")
    assert [edit["edit"] for edit in saved_corrections(browser, page)["edits"]] == ["rename", "merge"]
    assert browser.evaluate("document.getElementById('redo').disabled")
    click(browser, "#undo")
    choose(browser, 0)
    browser.press("Delete")
    assert browser.evaluate("document.getElementById('redo').disabled")  # another way was taken
    assert [edit["edit"] for edit in saved_corrections(browser, page)["edits"]] == ["rename", "delete"]
    click(browser, "#undo-all")
    assert track_names(browser) == ["A", "B b", "C"] and text(browser, "#about").endswith("5 turns")


def test_the_keyboard_does_all_of_it(browser: Browser, page: Path) -> None:
    place_cursor(browser, 6.0)
    browser.press("]")
    until(browser, "audio.currentTime === 6.5")
    browser.press("2")
    browser.press("ArrowRight")
    until(browser, "audio.currentTime === 11.5")
    browser.press("[")
    until(browser, "audio.currentTime === 8.25")
    browser.press("n")
    place_cursor(browser, 10.0)
    browser.press("s")
    browser.press("Delete")
    browser.press("9")  # there are four speakers
    browser.press("s")  # there is no turn now
    assert text(browser, "#message") == "There is no turn around the cursor."
    expected = [*TURNS[:3], (6.5, 8.0, "B b"), (8.25, 10.0, "SPEAKER_00")]
    assert saved_turns(browser, page) == rttm_of(expected, NAME)
    browser.press("z", control=True)
    assert saved_turns(browser, page) == rttm_of([*expected, (10.0, 11.75, "SPEAKER_00")], NAME)


def test_turns_are_split_only_inside(browser: Browser, page: Path) -> None:
    for at in (0.25, 0.255, 8.1, 11.745):
        place_cursor(browser, at)
        click(browser, "#split")
    assert saved_corrections(browser, page)["edits"] == []
    choose(browser, 1)
    place_cursor(browser, 3.2)
    click(browser, "#split")  # of three turns there, the chosen one
    assert saved_corrections(browser, page)["edits"][0]["speaker"] == "B b"


def test_corrections_outlive_a_reload_and_leaving_asks(browser: Browser, page: Path) -> None:
    browser.dialogs.clear()
    rename(browser, 0, EVA)
    choose(browser, 4)
    click(browser, "#remove")
    click(browser, "#undo")
    assert "not saved" in text(browser, "#kept")
    browser.open(page)
    assert browser.dialogs == ["beforeunload"]
    assert track_names(browser)[0] == EVA.strip() and "with 1 correction" in text(browser, "#message")
    click(browser, "#redo")
    expected = [(*times, EVA if speaker == "A" else speaker) for *times, speaker in TURNS[:4]]
    assert saved_turns(browser, page) == rttm_of(expected, NAME)  # type: ignore[arg-type]
    assert text(browser, "#kept") == ""
    browser.dialogs.clear()
    browser.open(page)  # what is saved may be left
    assert browser.dialogs == [] and track_names(browser)[0] == EVA.strip() and text(browser, "#kept") == ""


def test_other_turns_are_another_page(browser: Browser, page: Path, sound: Path) -> None:
    rename(browser, 0, "Ada")
    diarization = Diarization(tuple(Turn(*turn) for turn in TURNS[:2]), name=NAME, seconds=12.0)
    write_page(diarization, page, sound)
    browser.open(page)
    assert track_names(browser) == ["A", "B b"]


def test_kept_edits_that_do_not_fit_are_left_out(browser: Browser, page: Path) -> None:
    rename(browser, 0, "Ada")
    browser.evaluate("""(() => { const [key] = Object.keys(localStorage), kept = JSON.parse(localStorage[key]);
        kept.edits.push({edit: "merge", speaker: "A", into: "C"}, {edit: "toString"});
        localStorage[key] = JSON.stringify({...kept, done: 9}); })()""")
    browser.open(page)
    assert track_names(browser) == ["Ada", "B b", "C"]
    browser.evaluate("localStorage[Object.keys(localStorage)[0]] = '{'")
    browser.open(page)
    assert track_names(browser) == ["A", "B b", "C"] and faults(browser) == []


def test_a_browser_that_keeps_nothing_says_so(page: Path) -> None:
    with Browser() as browser:
        browser.before("Object.defineProperty(window, 'localStorage', {get() { throw new Error('refused'); }})")
        browser.open(page)
        assert text(browser, "#kept") == ""
        rename(browser, 0, "Ada")
        assert text(browser, "#kept") == (
            "This browser cannot keep the corrections: save them before you leave the page."
        )
        assert faults(browser) == []


def test_all_turns_may_go(browser: Browser, page: Path) -> None:
    choose(browser, 0)
    for _ in TURNS:
        browser.press("Delete")
    assert text(browser, "#list") == "All turns are deleted." and saved(browser, page.parent, "save-corrections", "n")
    assert track_names(browser) == [] and browser.evaluate("document.querySelectorAll('#speakers li').length") == 0
    click(browser, "#undo-all")
    assert track_names(browser) == ["A", "B b", "C"] and faults(browser) == []
