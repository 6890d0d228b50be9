"""`knn diarize --keep`, what is done with kept analyses, and corrections of either."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knn_cli.diarization import kept_analysis
from knn_cli.diarization.kept_analysis import KeptAnalysis
from knn_cli.formats.rttm import read_rttm
from knn_cli.networks import bundle
from knn_cli.store import hdf5
from tests.helpers.command import done, knn, outputs_in
from tests.helpers.windows import windows_of

TINY = ["--model", "tiny-test", "--device", "cpu", "--segmentation", "silero"]
A, B, C = "SPEAKER_00", "SPEAKER_01", "SPEAKER_02"
TURNS = [(0.0, 8.0, 0), (8.4, 16.0, 1), (16.0, 24.0, 2), (24.4, 36.0, 0), (36.0, 40.0, 1)]
DIMENSION = 24  # of tiny-test's embeddings


def keep(path: Path, recording: str = "meeting", source: str = "meeting.flac") -> Path:
    windows = windows_of(TURNS, 40.0, np.eye(DIMENSION)[:3])
    maker = bundle.find("tiny-test").fingerprint
    kept_analysis.save(KeptAnalysis(windows, recording, 40.0, "mix", maker, "silero-vad", source), path)
    return path


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Forty seconds of three speakers: A, B, C, A, B."""
    return keep(tmp_path / "kept.h5")


def turns(*arguments: str | Path) -> list[str]:
    """Speakers of the turns in the JSON on stdout."""
    return [turn["speaker"] for turn in result(*arguments)["turns"]]


def result(*arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done("diarize", *arguments, "--json").stdout)
    return found


def test_the_turns_are_those_of_the_sound(example: Path, tmp_path: Path) -> None:
    target, options = tmp_path / "kept.h5", ["--num-speakers", "3", "--clusterer", "ahc", "--min-turn", "0.5"]
    wanted = done("diarize", example, *TINY, *options).stdout
    assert done("diarize", example, *TINY, "--keep", target).stdout != wanted
    assert done("diarize", target, *options).stdout == wanted
    assert "exists already" in knn("diarize", example, *TINY, "--keep", target, "--min-turn", "1").output
    info = done("info", target, "--json").stdout
    assert json.loads(info)["recording"] == "meeting" and json.loads(info)["segmentation"] == "silero-vad"
    page = tmp_path / "meeting.html"  # of the sound where it was
    done("diarize", target, "-o", page)
    assert page.stat().st_size > example.stat().st_size  # with the sound in it


def test_nothing_heavy_is_imported(kept: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "knn_cli", "diarize", str(kept), "--merge", f"{C}={B}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip() for line in ran.stderr.splitlines() if line.startswith("import time:")}
    assert "h5py" in imported
    assert not imported & {"torch", "scipy.optimize", "scipy.signal", "matplotlib", "pyannote.core", "pandas"}


def test_folders(tmp_path: Path, example: Path) -> None:
    (tmp_path / "a.flac").write_bytes(example.read_bytes())
    (tmp_path / "b.flac").write_bytes(example.read_bytes())
    both = [tmp_path / "a.flac", tmp_path / "b.flac"]
    assert "keeps one recording, not 2" in knn("diarize", *both, *TINY, "--keep", tmp_path / "k.h5").output
    done("diarize", *both, *TINY, "--keep", tmp_path / "kept", "--out-dir", tmp_path / "first")
    assert outputs_in(tmp_path / "kept") == ["a.h5", "b.h5"]
    done("diarize", tmp_path / "kept", "--out-dir", tmp_path / "again")
    for name in ("a.rttm", "b.rttm"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "first" / name).read_text()
    (tmp_path / "kept" / "aa.h5").write_text("damaged")
    one_of_three = knn("diarize", tmp_path / "kept", "--out-dir", tmp_path / "third")
    assert one_of_three.exit_code == 1 and "aa.h5 is no kept diarization, or is damaged" in one_of_three.stderr
    assert outputs_in(tmp_path / "third") == ["a.rttm", "b.rttm"]
    (tmp_path / "kept" / "aa.h5").unlink()
    assert "one recording, not of 2" in knn("diarize", tmp_path / "kept", "--rename", f"{A}=Anna").output


def test_edits_in_the_order_given(kept: Path) -> None:
    assert turns(kept) == [A, B, C, A, B]
    assert turns(kept, "--merge", f"{C}={B}", "--rename", f"{B}=Eva") == [A, "Eva", A, "Eva"]
    assert turns(kept, "--rename", f"{B}=Eva", "--merge", f"{C}=Eva") == [A, "Eva", A, "Eva"]
    swapped = ["--rename", f"{A}=x", "--rename", f"{B}={A}", "--rename", f"x={B}"]
    assert turns(kept, *swapped) == [B, A, C, B, A]
    wrong = knn("diarize", kept, "--merge", f"{C}=Eva", "--rename", f"{B}=Eva")
    assert wrong.exit_code == 1 and "Edit 1 (merge) does not fit" in wrong.stderr and not wrong.stdout
    assert turns(kept, "--num-speakers", "2", "--split", turns(kept, "--num-speakers", "2")[1]).count(C) == 1
    assert turns(kept, "--merge", f"{C}={B}", "--split", B) == [A, B, C, A, B]


def test_corrections_clean_the_speakers_that_are_saved(kept: Path, tmp_path: Path) -> None:
    first = result(kept)["turns"]
    edits = [
        {"edit": "reassign", "start": first[2]["start"], "end": first[2]["end"], "speaker": C, "to": "Jan"},
        {"edit": "delete", "start": first[4]["start"], "end": first[4]["end"], "speaker": B},
        {"edit": "rename", "speaker": A, "to": "Eva"},
    ]
    file, store = tmp_path / "meeting.corrections.json", tmp_path / "speakers.h5"
    file.write_text(json.dumps({"knn": "corrections", "version": 1, "recording": "meeting", "edits": edits}))
    given: list[str | Path] = ["--corrections", file, "--merge", f"{B}=Eva", "--save-embeddings", store]
    assert turns(kept, *given) == ["Eva", "Jan", "Eva"]
    rows = hdf5.read(store)
    assert rows.speaker.tolist() == ["Eva", "Jan"] and rows.name.tolist() == ["meeting", "meeting"]
    # Eva is the first voice and what is left of the second, Jan the third.
    shares = np.abs(rows.data) / np.linalg.norm(rows.data, axis=1, keepdims=True)
    assert shares[0].argmax() == 0 and shares[0, 1] > 0.2 and shares[1].argmax() == 2 and shares[1, 2] > 0.9
    other = keep(tmp_path / "other.h5", "lecture")
    assert "corrects meeting, which is not diarized here" in knn("diarize", other, "--corrections", file).output
    both = tmp_path / "both"
    both.mkdir()
    for path in (kept, other):
        path.rename(both / path.name)
    done("diarize", both, "--corrections", tmp_path, "--out-dir", tmp_path / "out")
    assert {len(read_rttm(path)) for path in (tmp_path / "out").glob("*.rttm")} == {1}
    assert "Eva" in (tmp_path / "out" / "kept.rttm").read_text()
    assert "Eva" not in (tmp_path / "out" / "other.rttm").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "voice"], "--model needs the sound"),
        (["--keep", "other.h5"], "--keep needs the sound"),
        (["--channel", "left"], "--channel needs the sound"),
        (["-o", "page.html"], "meeting of"),
        (["--merge", A], "does not name two speakers"),
        (["--rename", "=Anna"], "does not name two speakers"),
        (["--corrections", "none.json"], "none.json cannot be read"),
        (["--num-speakers", "900"], "too few for so many speakers"),
        (["sound.wav"], "is no recording"),
    ],
)
def test_refused(kept: Path, options: list[str], message: str) -> None:
    refused = knn("diarize", kept, *options)
    assert refused.exit_code == 1 and message in " ".join(refused.stderr.split()) and not refused.stdout


def test_what_is_no_kept_analysis_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("hello")
    refused = knn("diarize", tmp_path / "a.h5")
    assert refused.exit_code == 1 and "is no kept diarization, or is damaged" in refused.stderr
    assert "--keep" in refused.stderr
