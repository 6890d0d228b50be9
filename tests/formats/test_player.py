"""The player: what its page holds, and how a browser plays it, renames a speaker and saves RTTM."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment

from knn_cli.core.errors import KnnError
from knn_cli.formats import player
from knn_cli.formats.rttm import write_rttm
from tests.helpers import browser as chromium
from tests.helpers.player_pages import NEEDS_BROWSER, clicks, saved, script_text, track_names, until, write_page
from tests.helpers.turns import by_track
from tests.helpers.turns import diarization as diarization_of

HOSTILE = "</script><img src=x onerror=alert(1)> & \"q\" 'r' <!-- \u2028"
SECONDS = 12.0
TURNS = [(0.25, 3.5, "SPEAKER_00"), (3.0004, 6.0, HOSTILE), (6.5, 8.0, "SPEAKER_00"), (8.25, 11.75, "SPEAKER_02")]


def annotated(names: dict[str, str] | None = None) -> Annotation:
    annotation = Annotation(uri="a talk </title>")
    for track, (start, end, speaker) in enumerate(TURNS):
        annotation[Segment(start, end), track] = (names or {}).get(speaker, speaker)
    return annotation


def rttm(annotation: Annotation) -> str:
    file = io.StringIO()
    write_rttm(annotation, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("player")
    sound = clicks(folder / "talk.wav", SECONDS)
    diarization = diarization_of(annotated(), by_track(annotated(), {0: 0.95, 1: 0.4, 2: 1.0}), seconds=SECONDS)
    write_page(diarization, folder / "talk.html", sound)
    return folder / "talk.html"


def test_what_the_page_holds(page: Path) -> None:
    data = json.loads(script_text(page, "data"))
    assert data["file"] == "a_talk_</title>" and data["seconds"] == SECONDS
    assert data["speakers"] == ["SPEAKER_00", HOSTILE, "SPEAKER_02"]
    assert data["turns"][:2] == [[250, 3500, 0, 0.95], [3000, 6000, 1, 0.4]] and data["turns"][3][3] is None
    assert base64.b64decode(script_text(page, "sound")) == page.with_suffix(".wav").read_bytes()
    assert data["kind"] == "audio/wav" and data["href"] == ""
    peaks = np.frombuffer(base64.b64decode(data["peaks"]), dtype=np.int8).reshape(-1, 2)
    assert len(peaks) == SECONDS / data["bin"] == 1200
    loud = np.flatnonzero(peaks[:, 1] > 100)
    assert loud.tolist() == [100 * second for second in range(1, 12)]


def test_names_are_data_and_never_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("</script>") == text.count("<script") == 5
    assert "<img" not in text and "<!--" not in text
    assert "<h1>a talk &lt;/title&gt;</h1>" in text and text.count("</title>") == 1
    # Names of an XML document, which nothing asks for.
    names = {"http://www.w3.org/2001/XMLSchema-instance", "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"}
    assert {*re.findall(r"""https?:[^"]+""", text)} == names and text.count("http") == 1 + len(names)
    assert "default-src 'none'" in text


def test_sound_that_browsers_may_not_find_their_way_in_is_encoded_anew(tmp_path: Path) -> None:
    source = tmp_path / "stereo.aiff"
    samples = np.random.default_rng(1).normal(0, 0.1, (3 * 22050, 2))
    samples[:, 1] = 0
    soundfile.write(source, samples, 22050)
    for channel, level in (("mix", 0.05), ("right", 0.0)):
        write_page(diarization_of(Annotation(uri="x")), tmp_path / "x.html", source, channel=channel)
        assert json.loads(script_text(tmp_path / "x.html", "data"))["kind"] == "audio/mpeg"
        sound, rate = soundfile.read(io.BytesIO(base64.b64decode(script_text(tmp_path / "x.html", "sound"))))
        assert rate == 16000 and abs(len(sound) - 48000) < 100 and sound.ndim == 1
        assert sound.std() == pytest.approx(level, abs=0.02)
    wave = clicks(tmp_path / "a.wav", 2.0)
    write_page(diarization_of(Annotation()), tmp_path / "x.html", wave, channel="left")
    assert json.loads(script_text(tmp_path / "x.html", "data"))["kind"] == "audio/wav"  # one channel is left and mix


def test_long_recordings_stay_beside_their_page(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    sound = clicks(tmp_path / "50% #1.wav", 3.0)
    wanted = tmp_path / "pages" / "x.html"
    write_page(diarization_of(Annotation()), tmp_path / "part", sound, location=wanted, embed_seconds=2.0)
    data = json.loads(script_text(tmp_path / "part", "data"))
    assert (
        data["kind"] == "" and data["href"] == "../50%25%20%231.wav" and script_text(tmp_path / "part", "sound") == ""
    )
    assert "not in this page but beside it" in (tmp_path / "part").read_text(encoding="utf-8")
    assert len(data["peaks"]) > 300


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(KnnError):
        write_page(diarization_of(Annotation()), tmp_path / "x.html", tmp_path / "a.wav")
    assert not (tmp_path / "x.html").exists()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=8), st.integers(1, 5), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_peaks_are_those_of_all_samples(sizes: list[int], first: int, max_bins: int, seed: int) -> None:
    samples = np.random.default_rng(seed).uniform(-1, 1, sum(sizes)).astype(np.float32)
    meter = player.PeakMeter(100, bin_samples=first, max_bins=max_bins)
    at = 0
    for size in sizes:
        meter.add(samples[at : at + size])
        at += size
    found = meter.peaks()
    width = round(found.bin_seconds * 100)
    assert found.total_seconds == len(samples) / 100
    assert len(found.values) == 2 * -(-len(samples) // width) <= 2 * (max_bins + 1)
    if not len(samples):
        return
    pieces = [samples[first : first + width] for first in range(0, len(samples), width)]
    truth = np.array([(piece.min(), piece.max()) for piece in pieces])
    loud = np.quantile(np.abs(truth).max(axis=1), 0.999)
    np.testing.assert_allclose(found.values.reshape(-1, 2), np.clip(truth * 120 / loud, -127, 127), atol=0.51)


@pytest.fixture(scope="module")
def opened(page: Path) -> Iterator[chromium.Browser]:
    if chromium.BINARY is None:
        pytest.skip(NEEDS_BROWSER)
    with chromium.Browser(width=1000, height=900) as browser:
        browser.open(page)
        yield browser


def foreign(browser: chromium.Browser, page: Path) -> list[str]:
    """What the page asked for that is not itself or in itself."""
    return [one for one in browser.requests if not one.startswith("blob:") and one != page.resolve().as_uri()]


def pause(browser: chromium.Browser) -> None:
    browser.evaluate("audio.pause()")


def rename(browser: chromium.Browser, speaker: int, name: str) -> None:
    browser.evaluate(f"""(() => {{ const input = document.querySelectorAll("#speakers input")[{speaker}];
        input.value = {json.dumps(name)};
        for (const event of ["input", "change"]) input.dispatchEvent(new Event(event)); }})()""")


def test_browser_loads_without_a_fault_or_a_request(page: Path, opened: chromium.Browser) -> None:
    until(opened, "audio.readyState >= 1")
    assert opened.evaluate("audio.duration") == pytest.approx(SECONDS, abs=0.05)
    assert track_names(opened) == ["SPEAKER_00", HOSTILE, "SPEAKER_02"]
    assert opened.evaluate("document.querySelectorAll('img').length") == 0
    assert opened.evaluate("document.querySelectorAll('#rows button').length") == len(TURNS)
    assert opened.evaluate("document.querySelector('#about').textContent") == "0:12 · 3 speakers · 4 turns"
    assert opened.evaluate("document.documentElement.scrollWidth") <= 1000
    unnamed = """[...document.querySelectorAll("button, input, select")].filter(
        one => !(one.textContent.trim() || one.ariaLabel || one.labels?.length)).length"""
    assert opened.evaluate(unnamed) == 0
    assert opened.errors == [] and foreign(opened, page) == []


def test_browser_plays_from_a_click(opened: chromium.Browser) -> None:
    for place, (start, _, _) in list(enumerate(TURNS))[1:3]:  # a turn of the list
        opened.evaluate(f"document.querySelectorAll('#rows button')[{place}].click()")
        until(opened, f"!audio.paused && audio.currentTime > {start}")
        assert opened.evaluate("audio.currentTime") < start + 2
        pause(opened)
    box = opened.evaluate("(({left, top, width}) => [left, top, width])(canvas.getBoundingClientRect())")
    x = box[0] + box[2] * 10.5 / SECONDS
    opened.click(x, box[1] + 118 + 2.5 * 26)  # inside the last turn, in its lane: from its start
    until(opened, "!audio.paused && audio.currentTime >= 8.25")
    assert opened.evaluate("audio.currentTime") < 10
    pause(opened)
    opened.click(x, box[1] + 40)  # on the waveform: from there
    until(opened, "!audio.paused && audio.currentTime >= 10.4")
    assert opened.evaluate("document.querySelector('#rows [aria-current]').dataset.turn") == "3"
    pause(opened)
    assert opened.errors == []


def test_browser_obeys_the_keyboard(opened: chromium.Browser) -> None:
    opened.evaluate("document.activeElement.blur(); audio.currentTime = 1")
    opened.press(" ", " ")
    until(opened, "!audio.paused")
    opened.press(" ", " ")
    until(opened, "audio.paused")
    opened.evaluate("audio.currentTime = 1")
    opened.press("ArrowRight")
    until(opened, "audio.currentTime === 6")
    opened.press("]")
    until(opened, "audio.currentTime === 6.5")
    opened.press("[")
    until(opened, "audio.currentTime === 3")
    before = opened.evaluate("scroller.scrollWidth")
    opened.press("+")
    until(opened, f"scroller.scrollWidth > {before} && !overview.hidden && overview.width > 500")
    opened.evaluate("whole.click()")
    until(opened, f"scroller.scrollWidth === {before}")
    opened.evaluate("document.querySelector('#speakers input').focus()")
    opened.press(" ", " ")  # a name may have spaces in it
    assert opened.evaluate("audio.paused")
    opened.evaluate("document.activeElement.blur()")
    rename(opened, 0, "SPEAKER_00")


def test_browser_renames_and_saves_what_knn_would_write(opened: chromium.Browser, tmp_path: Path) -> None:
    def text() -> str:
        return saved(opened, tmp_path, "save", ".rttm")

    assert text() == rttm(annotated())
    odd = " Zoë\x1c\u00a0de\u3000la\tCruz <b> "
    rename(opened, 0, odd)
    assert text() == rttm(annotated({"SPEAKER_00": odd}))
    rename(opened, 2, odd)  # two speakers of one name are one
    assert len(track_names(opened)) == 2
    assert "2 speakers" in opened.evaluate("document.querySelector('#about').textContent")
    assert opened.evaluate("document.querySelector('#speakers .share').textContent") == "8.3 s · 73.3 %"
    assert text() == rttm(annotated({"SPEAKER_00": odd, "SPEAKER_02": odd}))
    rename(opened, 0, "   ")  # no name keeps the one before
    assert text() == rttm(annotated({"SPEAKER_00": odd, "SPEAKER_02": odd}))
    opened.evaluate("undo.click()")
    assert len(track_names(opened)) == 3 and text() == rttm(annotated({"SPEAKER_00": odd}))
    opened.evaluate("undo.click()")
    assert text() == rttm(annotated())
    assert opened.errors == []


def test_browser_hears_encoded_sound_at_its_time(tmp_path: Path, opened: chromium.Browser) -> None:
    """A click at 1 s is heard at 1 s, though MP3 begins with an encoder's delay."""
    sound = clicks(tmp_path / "a.aiff", 4.0)
    write_page(diarization_of(Annotation(uri="a")), tmp_path / "a.html", sound)
    opened.open(tmp_path / "a.html")
    script = """(async () => {
        const bytes = Uint8Array.from(atob(ENCODED), letter => letter.charCodeAt(0));
        const heard = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes.buffer);
        return [heard.duration, heard.getChannelData(0).findIndex(value => Math.abs(value) > .4) / 16000];
    })()""".replace("ENCODED", json.dumps(script_text(tmp_path / "a.html", "sound")))
    length, first = opened.evaluate(script)
    assert length == pytest.approx(4.0, abs=0.08) and first == pytest.approx(1.0, abs=0.03)
    assert opened.evaluate("document.querySelector('#list').textContent") == "No speech was found."


def test_browser_plays_what_lies_beside_the_page_and_asks_for_what_is_gone(
    tmp_path: Path, opened: chromium.Browser
) -> None:
    sound = clicks(tmp_path / "50% #1.wav", 3.0)
    write_page(diarization_of(annotated()), tmp_path / "a.html", sound, embed_seconds=2.0)
    opened.open(tmp_path / "a.html")
    until(opened, "audio.readyState >= 1 && document.querySelector('#trouble').hidden")
    opened.evaluate("play.click()")
    until(opened, "audio.currentTime > 0.1")
    sound.unlink()
    opened.open(tmp_path / "a.html")
    until(opened, "!document.querySelector('#trouble').hidden")
