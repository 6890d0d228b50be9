"""`knn convert` with turns: every format to every other, several at once, with sound, words and given tiers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from knn_cli.core.values import Turn
from knn_cli.formats.span_formats import TURN_FORMATS
from knn_cli.formats.turn_readers import read_turns
from tests.helpers.command import done, knn, outputs_in
from tests.helpers.player_pages import clicks, script_text

TURNS = (Turn(0.5, 2.0, "anna"), Turn(1.5, 3.25, "ben"), Turn(3.5, 4.0, "anna"))
READABLE = [known for known in TURN_FORMATS.values() if not known.binary]
WORDS = {"segments": [{"start": 0.6, "end": 3.2, "text": "Well, no."}, {"start": 3.6, "end": 3.9, "text": "Oh."}]}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the turns of `talk` in RTTM, and its sound and words."""
    folder = tmp_path_factory.mktemp("given")
    lines = (
        f"SPEAKER talk 1 {one.start} {one.end - one.start:.3f} <NA> <NA> {one.speaker} <NA> <NA>\n" for one in TURNS
    )
    (folder / "talk.rttm").write_text("".join(lines))
    (folder / "talk.json").write_text(json.dumps(WORDS))
    clicks(folder / "talk.wav", 4.5)
    return folder


@pytest.mark.parametrize("one", READABLE, ids=lambda known: known.name)
def test_every_format_becomes_every_other(given: Path, tmp_path: Path, one) -> None:  # type: ignore[no-untyped-def]
    source = tmp_path / f"talk{one.suffix}"
    done("convert", given / "talk.rttm", source, "--format", one.name)
    for other in READABLE:
        if other.suffix == one.suffix:
            continue
        out = tmp_path / f"out{other.suffix}"
        done("convert", source, out, "--format", other.name, "--force")
        [found] = read_turns(out).values()
        assert found == TURNS, other.name


def test_a_player_has_the_sound(given: Path, tmp_path: Path) -> None:
    result = done("convert", given / "talk.rttm", tmp_path / "talk.html", "--audio", given / "talk.wav")
    assert "1 recording, 3 turns" in result.stderr
    data = json.loads(script_text(tmp_path / "talk.html", "data"))
    assert data["seconds"] == 4.5 and data["speakers"] == ["anna", "ben"] and data["kind"] == "audio/wav"
    done("convert", given / "talk.rttm", tmp_path / "talk.eaf", "--audio", given / "talk.wav")
    assert "RELATIVE_MEDIA_URL" in (tmp_path / "talk.eaf").read_text()
    refused = knn("convert", given / "talk.rttm", tmp_path / "x.html")
    assert refused.exit_code == 1 and "needs the recording" in refused.stderr


def test_several_formats_and_recordings_go_to_a_folder(given: Path, tmp_path: Path) -> None:
    text = (given / "talk.rttm").read_text()
    (tmp_path / "both.rttm").write_text(text + text.replace(" talk ", " tape/b "))
    out = tmp_path / "out"
    done("convert", tmp_path / "both.rttm", out, "--format", "eaf,srt")
    assert outputs_in(out) == ["talk.eaf", "talk.srt", "tape_b.eaf", "tape_b.srt"]
    done("convert", tmp_path / "both.rttm", tmp_path / "both.csv")
    lines = (tmp_path / "both.csv").read_text().splitlines()
    assert lines[0] == "file,start,end,speaker,confidence" and len(lines) == 7
    assert lines[1] == "talk,0.500,2.000,anna," and lines[4].startswith("tape/b,0.500")
    assert read_turns(tmp_path / "both.csv") == {"talk": TURNS, "tape/b": TURNS}
    refused = knn("convert", tmp_path / "both.rttm", tmp_path / "both.eaf")
    assert refused.exit_code == 1 and "could not be distinguished" in refused.stderr and "--format" in refused.stderr


def test_words_get_speakers(given: Path, tmp_path: Path) -> None:
    done(
        "convert",
        given / "talk.rttm",
        tmp_path,
        "--format",
        "srt,vtt,json,textgrid,eaf",
        "--words",
        given / "talk.json",
    )
    assert (tmp_path / "talk.srt").read_text().endswith("\n2\n00:00:03,600 --> 00:00:03,900\nanna: Oh.\n\n")
    assert "\n<v ben>Well, no.\n" in (tmp_path / "talk.vtt").read_text()
    segments = json.loads((tmp_path / "talk.json").read_text())["segments"]
    assert [(one["speaker"], one["text"]) for one in segments] == [("ben", "Well, no."), ("anna", "Oh.")]
    assert 'name = "ben transcription"' in (tmp_path / "talk.TextGrid").read_text()
    assert 'TIER_ID="anna transcription"' in (tmp_path / "talk.eaf").read_text()
    for suffix in (".eaf", ".json", ".TextGrid"):
        assert read_turns(tmp_path / f"talk{suffix}")["talk"] == TURNS, suffix
    refused = knn("convert", given / "talk.rttm", tmp_path / "x.rttm", "--words", given / "talk.json")
    assert refused.exit_code == 1 and "rttm say no words" in refused.stderr


def test_sound_and_words_are_those_of_the_recording(given: Path, tmp_path: Path) -> None:
    text = (given / "talk.rttm").read_text()
    names = ("my_talk", "r1/audio", "gone")
    (tmp_path / "all.rttm").write_text("".join(text.replace(" talk ", f" {name} ") for name in names))
    tapes = {"my talk.wav": 4.5, "r1/audio.wav": 5.5, "r2/audio.wav": 6.5}
    for name, seconds in tapes.items():
        (path := tmp_path / "tapes" / name).parent.mkdir(parents=True, exist_ok=True)
        clicks(path, seconds)
    result = done("convert", tmp_path / "all.rttm", tmp_path / "out.json", "--audio", tmp_path / "tapes")
    assert "tapes has no recording of gone." in " ".join(result.stderr.split())
    lines = [json.loads(line) for line in (tmp_path / "out.json").read_text().splitlines()]
    assert [(line["file"], line["duration"]) for line in lines] == [("my_talk", 4.5), ("r1/audio", 5.5), ("gone", 4.0)]
    (tmp_path / "one.rttm").write_text(text.replace(" talk ", " my_talk ") + text)
    words = tmp_path / "words"
    words.mkdir()
    for name in ("my talk", "talk"):
        (words / f"{name}.json").write_text(json.dumps(WORDS))
    done("convert", tmp_path / "one.rttm", tmp_path / "said.json", "--words", words)
    assert '"text": "Well, no."' in (tmp_path / "said.json").read_text()


@pytest.mark.parametrize("suffix", [".eaf", ".TextGrid"])
def test_turns_are_added_to_a_copy(given: Path, tmp_path: Path, suffix: str) -> None:
    mine = tmp_path / f"talk{suffix}"
    done("convert", given / "talk.rttm", mine, "--template")
    before = mine.read_bytes()
    done("convert", given / "talk.rttm", tmp_path / f"out{suffix}", "--add-to", mine)
    after = (tmp_path / f"out{suffix}").read_text()
    assert "anna (2)" in after and "anna transcription" in after and mine.read_bytes() == before
    refused = knn("convert", given / "talk.rttm", mine, "--add-to", mine, "--force")
    assert refused.exit_code == 1 and "one of the sources" in refused.stderr and mine.read_bytes() == before
    other = knn("convert", given / "talk.rttm", tmp_path / "out.srt", "--add-to", mine)
    assert other.exit_code == 1 and "nothing to add the turns of talk to" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x.wav", "--int8"), "names no format of turns"),
        (("x.srt", "--int8", "--format", "srt"), "cannot be combined"),
        (("x.srt", "--format", "vtt"), "is that of srt"),
        (("x.srt", "--format", "srt,vtt"), "cannot hold 2 formats"),
        (("folder",), "names no format of turns"),
        (("x.xyz", "--template"), "has not the suffix of a format"),
        (("talk.json", "--format", "json"), "exists already"),
    ],
)
def test_refused(given: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "talk.json").write_text("mine")
    out, *options = arguments
    result = knn("convert", given / "talk.rttm", tmp_path / out, *options)
    assert result.exit_code == 1 and message in " ".join(result.stderr.split())
    assert (tmp_path / "talk.json").read_text() == "mine"


def test_formats_that_there_are_not(given: Path, tmp_path: Path) -> None:
    result = knn("convert", given / "talk.rttm", tmp_path / "out", "--format", "rttm,textgird")
    assert result.exit_code == 2 and "Did you mean textgrid?" in " ".join(result.output.split())
    several = knn("timeline", given / "talk.wav", "--format", "json,srt")
    assert several.exit_code == 2 and "'json,srt' is none of" in " ".join(several.output.split())
