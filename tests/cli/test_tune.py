"""`knn tune`: the table, the choice, the file for `knn diarize --preset`, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knn_cli.cli.tunable_settings import TunableSettings, default_grid, file_text, read_file, read_grid
from knn_cli.core.errors import KnnError
from knn_cli.diarization import kept_analysis
from knn_cli.diarization.kept_analysis import KeptAnalysis
from knn_cli.diarization.presets import PRESETS
from knn_cli.networks import bundle
from tests.helpers.command import done, knn
from tests.helpers.windows import windows_of

TURNS = [(0.0, 8.0, 0), (9.0, 16.0, 1), (16.0, 24.0, 2), (25.0, 36.0, 0), (36.0, 40.0, 1)]


@pytest.fixture
def meetings(tmp_path: Path) -> Path:
    """Seven kept recordings in kept/, with turns in rttm/ that end with the speech, without a margin."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "rttm").mkdir()
    maker = bundle.find("tiny-test").fingerprint
    for number in range(7):
        turns = [(start + 0.2 * number, end + 0.2 * number, speaker) for start, end, speaker in TURNS]
        windows = windows_of(turns, 42.0, np.eye(24)[:3], seed=number)
        analysis = KeptAnalysis(windows, f"m{number}", 42.0, "mix", maker, "silero-vad", "")
        kept_analysis.save(analysis, tmp_path / "kept" / f"m{number}.h5")
        lines = [f"SPEAKER m{number} 1 {a:.2f} {b - a:.2f} <NA> <NA> {c} <NA> <NA>\n" for a, b, c in turns]
        (tmp_path / "rttm" / f"m{number}.rttm").write_text("".join(lines))
    return tmp_path


def tuned(folder: Path, *more: str) -> list[list[str]]:
    """The rows of the table."""
    done("tune", folder / "kept", "--reference", folder / "rttm", "-o", folder / "mine.toml", *more)
    return [line.split("\t") for line in (folder / "mine.tsv").read_text().splitlines()]


def test_a_sure_gain_is_kept_and_diarize_takes_it(meetings: Path) -> None:
    rows = tuned(meetings, "--grid", "margin=0,0.4", "--folds", "3")
    assert rows[0] == ["setting", "kept", "DER", "missed", "false_alarm", "confusion", "fold_1", "fold_2", "fold_3"]
    assert [row[0] for row in rows[1:]] == [
        "(default)", "margin=0.0", "margin=0.4", "(chosen on the other folds)",
    ]  # fmt: skip
    assert [row[1] for row in rows[1:]] == ["", "yes", "", ""]
    assert rows[4][2:] == rows[2][2:] and float(rows[2][2]) < float(rows[1][2]) < float(rows[3][2])
    assert read_file(meetings / "mine.toml") == TunableSettings(margin=0.0)
    kept, reference = meetings / "kept", ("--reference", str(meetings / "rttm"))
    by_file = done("diarize", kept, "--preset", meetings / "mine.toml", *reference, "--out-dir", meetings / "a").stdout
    assert by_file == done("diarize", kept, "--margin", "0", *reference, "--out-dir", meetings / "a").stdout
    assert by_file.splitlines()[-1].split("\t")[1:5] == rows[2][2:6]
    stronger = done("diarize", kept / "m0.h5", "--preset", meetings / "mine.toml", "--margin", "0.2").stdout
    assert stronger == done("diarize", kept / "m0.h5").stdout != ""


def test_what_is_not_sure_leaves_the_default(meetings: Path) -> None:
    for number in (5, 6):
        (meetings / "kept" / f"m{number}.h5").unlink()
    result = knn("tune", meetings / "kept", "--reference", meetings / "rttm", "-o", meetings / "mine.toml", "--grid",
                 "margin=0")  # fmt: skip
    assert "kept        (default)" in result.stdout and "best        margin=0.0" in result.stdout
    assert read_file(meetings / "mine.toml") == TunableSettings()
    assert "rttm has turns of recordings that are not there: m5, m6." in result.stderr
    assert "5 recordings with 3.2 minutes of reference speech are few" in result.stderr


def test_a_recording_that_fails_is_named_and_left_out(meetings: Path) -> None:
    (meetings / "kept" / "m3.h5").write_bytes(b"damaged")
    arguments = ("--reference", meetings / "rttm", "-o", meetings / "mine.toml", "--grid", "margin=0")
    result = knn("tune", meetings / "kept", *arguments)
    assert result.exit_code == 1 and "m3.h5" in result.stderr and "on 6 recordings" in result.stdout


def test_the_sound_is_analysed_once(tmp_path: Path, example: Path) -> None:
    truth = example.with_suffix(".rttm").read_text()
    for name in ("a", "b"):
        (tmp_path / f"{name}.flac").write_bytes(example.read_bytes())
        (tmp_path / f"{name}.rttm").write_text(truth.replace(" meeting ", f" {name} "))
    arguments = ["tune", tmp_path, "--reference", tmp_path, "-o", tmp_path / "out" / "my.toml", "--model", "tiny-test"]
    arguments += ["--segmentation", "silero", "--device", "cpu", "--grid", "clusterer=ahc,spectral"]
    (tmp_path / "out").mkdir()
    first = done(*arguments).stdout
    (tmp_path / "out" / "my.tsv").unlink()
    kept = sorted((tmp_path / "out" / "my.toml.analyses").iterdir())
    times = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 2 and done(*arguments).stdout == first
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert read_file(tmp_path / "out" / "my.toml") == TunableSettings(segmentation="silero")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--grid", "margin=-1"], "margin cannot be -1"),
        (["--grid", "marign=1"], "Did you mean margin"),
        (["--grid", "margin"], "has no value"),
        (["--grid", "margin=1", "--grid", "margin=2"], "gives margin twice"),
        (["--grid", "clusterer=spectral", "--grid", "linkage=ward"], "linkage is not a setting of spectral"),
        (["--grid", "preset=pyannote-3.1", "--grid", "clusterer=ahc"], "preset and clusterer cannot be combined"),
        (["--grid", "clusterer=vbx"], "PLDA"),
        (["--grid", "preset=pyannote-3.1"], "other windows"),
        (["--num-speakers", "3", "--max-speakers", "2"], "is outside"),
        (["-o", "mine.tsv"], "is the name of the table"),
        (["--segmentation", "silero"], "needs the sound"),
    ],
)
def test_refusals(meetings: Path, change: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(meetings)
    result = knn("tune", "kept", "--reference", "rttm", "-o", "mine.toml", *change)
    assert result.exit_code != 0 and message in " ".join(result.output.split())
    assert not (meetings / "mine.toml").exists() and not (meetings / "mine.tsv").exists()


def test_a_recording_without_reference_is_named(meetings: Path) -> None:
    (meetings / "rttm" / "m4.rttm").unlink()
    result = knn("tune", meetings / "kept", "--reference", meetings / "rttm", "-o", meetings / "mine.toml")
    assert result.exit_code == 2 or result.exit_code == 1
    assert "has no turns of m4" in result.output
    one = knn("tune", meetings / "kept" / "m0.h5", "--reference", meetings / "rttm", "-o", meetings / "mine.toml")
    assert "have to be measured on another" in one.output


def test_the_grid_is_every_combination_that_there_is() -> None:
    grid = read_grid(["clusterer=ahc,spectral", "distance_threshold=0.5,0.7", "margin=0"])
    assert [each.name for each in grid] == [
        "(default)",
        "clusterer=ahc distance_threshold=0.5 margin=0.0",
        "clusterer=ahc distance_threshold=0.7 margin=0.0",
    ]
    assert default_grid(with_plda=True)[0] == TunableSettings() == default_grid(with_plda=False)[0]
    for plda in (True, False):
        grid = default_grid(plda)
        assert len(set(grid)) == len(grid) and all(each.options.step == TunableSettings().options.step for each in grid)
    with pytest.raises(KnnError, match="more than 10000"):
        read_grid([f"margin={','.join(map(str, range(200)))}", f"max_gap={','.join(map(str, range(200)))}"])


@pytest.mark.parametrize(
    "settings",
    [
        TunableSettings(),
        TunableSettings("ahc", "ward", 0.04, 3, 0.25, 0.5, 0.0),
        TunableSettings(preset="pyannote-3.1", segmentation='my "net"'),
    ],
)
def test_files_say_what_they_were_made_of(settings: TunableSettings, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(file_text(settings, ["a comment"]))
    assert read_file(tmp_path / "my.toml") == settings


def test_presets_and_files_with_mistakes(tmp_path: Path, meetings: Path) -> None:
    assert TunableSettings(preset="pyannote-3.1").options == PRESETS["pyannote-3.1"]
    path, kept = tmp_path / "my.toml", meetings / "kept" / "m0.h5"
    for text, message in [
        ("margin = ", "is not TOML"),
        ("marign = 1.0", "Did you mean margin"),
        ("margin = [1]", "margin in"),
        ("margin = true", "margin in"),
        ('clusterer = "ahc"\npreset = "pyannote-3.1"', "cannot be combined"),
        ('segmentation = "silero"', "needs the sound"),
    ]:
        path.write_text(text)
        result = knn("diarize", kept, "--preset", path)
        assert result.exit_code != 0 and message in " ".join(result.output.split()), text
    assert "There is no preset" in knn("diarize", kept, "--preset", "pyanote").output
