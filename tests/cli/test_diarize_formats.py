"""`knn diarize` with several formats, several recordings in one CSV, words, and files that turns are added to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.core.values import Turn
from knn_cli.formats.turn_readers import read_turns
from tests.helpers.command import done, knn, outputs_in
from tests.helpers.player_pages import clicks

TURNS = (Turn(0.5, 2.0, "anna"), Turn(1.5, 3.25, "ben"))
CTM = "one 1 0.6 0.3 well\none 1 2.5 0.4 no\ntwo 1 0.1 0.2 oh\n"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings, with their turns in one RTTM and words in one CTM."""
    folder = tmp_path_factory.mktemp("given")
    lines = [
        f"SPEAKER {name} 1 {one.start} {one.end - one.start} <NA> <NA> {one.speaker} <NA> <NA>\n"
        for name in ("one", "two")
        for one in TURNS
    ]
    (folder / "turns.rttm").write_text("".join(lines))
    (folder / "words.ctm").write_text(CTM)
    for name in ("one", "two"):
        clicks(folder / f"{name}.wav", 4.0)
    return folder


def test_several_formats_in_one_run(given: Path, tmp_path: Path) -> None:
    sources = (given / "one.wav", given / "two.wav", "--turns", given / "turns.rttm")
    done("diarize", *sources, "--out-dir", tmp_path / "all", "--format", "rttm,eaf,html")
    names = [f"{name}.{suffix}" for name in ("one", "two") for suffix in ("eaf", "html", "rttm")]
    assert outputs_in(tmp_path / "all") == names
    assert read_turns(tmp_path / "all" / "two.eaf")["two"] == TURNS
    done("diarize", *sources, "-o", tmp_path / "all.csv", "--format", "csv,rttm,json")
    assert (tmp_path / "all.csv").read_text().splitlines() == [
        "file,start,end,speaker,confidence",
        *(f"{name},{row}," for name in ("one", "two") for row in ("0.500,2.000,anna", "1.500,3.250,ben")),
    ]
    assert {*read_turns(tmp_path / "all.rttm")} == {*read_turns(tmp_path / "all.json")} == {"one", "two"}
    assert done("diarize", *sources, "--format", "csv").stdout == (tmp_path / "all.csv").read_text()
    refused = knn("diarize", *sources, "--format", "csv,rttm")
    assert refused.exit_code == 1 and "not for stdout" in refused.stderr


def test_edited_sound_has_its_turns_in_all_formats(given: Path, tmp_path: Path) -> None:
    done(
        *("diarize", given / "one.wav", "--turns", given / "turns.rttm", "--unwanted", "ben", "--mute"),
        *("--out-dir", tmp_path, "--format", "rttm,srt"),
    )
    names = ["one.rttm", "one.srt", "one_muted.rttm", "one_muted.srt", "one_muted.wav", "one_unwanted.csv"]
    assert outputs_in(tmp_path) == names


def test_who_speaks_in_one_recording_may_be_unwanted_in_all(given: Path, tmp_path: Path) -> None:
    """A recording without that person is copied as it is; a name in none of them is a mistake."""
    lines = (given / "turns.rttm").read_text().splitlines(keepends=True)
    (tmp_path / "turns.rttm").write_text("".join(line for line in lines if " two " not in line or "ben" not in line))
    command = ("diarize", given / "one.wav", given / "two.wav", "--turns", tmp_path / "turns.rttm", "--mute")
    done(*command, "--unwanted", "ben", "--out-dir", tmp_path / "out")
    assert {"one_muted.wav", "two_muted.wav"} <= {*outputs_in(tmp_path / "out")}
    assert (tmp_path / "out" / "two_unwanted.csv").read_text().count("\n") == 1  # the header
    wrong = knn(*command, "--unwanted", "bne", "--out-dir", tmp_path / "wrong")
    assert wrong.exit_code == 1 and "No recording can have an unwanted speaker 'bne'." in wrong.stderr
    assert "Did you mean ben? It is one of anna, ben" in wrong.stderr and not outputs_in(tmp_path / "wrong")


def test_a_pause_that_hums_is_not_shortened_and_that_is_said(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "hum.wav", np.random.default_rng(0).normal(0, 0.01, 4 * 16000), 16000)
    (tmp_path / "hum.rttm").write_text("SPEAKER hum 1 0.0 1.5 <NA> <NA> anna <NA> <NA>\n")
    command = ("diarize", tmp_path / "hum.wav", "--turns", tmp_path / "hum.rttm", "--out-dir", tmp_path / "out")
    said = "no pause was shortened, since none is quieter than -50 dB for that long"
    assert said in done(*command, "--max-silence", "1").stderr
    assert said not in done(*command, "--max-silence", "3", "--force").stderr  # there is none to shorten


def test_words_and_given_tiers(given: Path, tmp_path: Path) -> None:
    common = ("diarize", given / "one.wav", given / "two.wav", "--turns", given / "turns.rttm", "--out-dir")
    done(*common, tmp_path / "words", "--format", "srt,json", "--words", given / "words.ctm")
    assert (tmp_path / "words" / "one.srt").read_text().count("anna: well\n") == 1
    assert json.loads((tmp_path / "words" / "two.json").read_text())["segments"][0]["speaker"] == "anna"
    done(*common, tmp_path / "mine", "--format", "eaf", "--template")
    before = (tmp_path / "mine" / "one.eaf").read_text()
    done(*common, tmp_path / "added", "--format", "eaf,csv", "--add-to", tmp_path / "mine")
    after = iter((tmp_path / "added" / "one.eaf").read_text().splitlines())
    assert all(line in after for line in before.splitlines() if "lastUsedAnnotationId" not in line)
    assert len(read_turns(tmp_path / "added" / "one.eaf")["one"]) == 2 * len(TURNS)
    same = knn(*common, tmp_path / "mine", "--format", "eaf", "--add-to", tmp_path / "mine", "--force")
    assert same.exit_code == 1 and "one of the sources" in same.stderr
    (tmp_path / "one.ctm").write_text("one 1 0 1 x\n")
    for arguments, message in (
        (("--format", "srt", "--words", tmp_path / "one.ctm"), "has no words of two"),
        (("--format", "textgrid", "--add-to", tmp_path / "mine"), "nothing to add the turns of one to"),
        (("--format", "csv", "--template"), "is for EAF and TextGrid"),
    ):
        refused = knn(*common, tmp_path / "refused", *arguments)
        assert refused.exit_code == 1 and message in refused.stderr and not (tmp_path / "refused").exists()
