"""The same command goes on where it stopped; outputs that are finished, or were changed since, stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.helpers.command import done, knn, outputs_in

TINY = ("--model", "tiny-test", "--device", "cpu", "--segmentation", "silero")


@pytest.fixture
def tapes(tmp_path: Path, example: Path) -> Path:
    folder = tmp_path / "tapes"
    folder.mkdir()
    sound, rate = soundfile.read(example)
    for number, name in enumerate("abc"):
        soundfile.write(folder / f"{name}.wav", sound[number * rate : (number + 6) * rate], rate)
    return folder


def test_finished_recordings_are_skipped(tapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("diarize", tapes, *TINY, "--out-dir", out)
    done(*command)
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("*.rttm")}
    assert "Finished before: 3 of 3 recordings" in done(*command).stderr
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.rttm")} == made
    (out / "b.rttm").unlink()
    (tapes / "c.wav").write_bytes((tapes / "a.wav").read_bytes())
    assert "Finished before: 1 of 3 recordings" in done(*command).stderr
    assert outputs_in(out) == ["a.rttm", "b.rttm", "c.rttm"]
    assert (out / "a.rttm").stat().st_mtime_ns == made["a.rttm"]
    assert "Finished before" not in done(*command, "--again").stderr
    assert (out / "a.rttm").stat().st_mtime_ns != made["a.rttm"]
    assert "Finished before" not in done(*command, "--min-turn", "0.5").stderr  # another task
    assert "Finished before: 3 of 3 recordings" in done(*command, "--min-turn", "0.5", "--force").stderr


def test_corrected_outputs_stay(tapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("diarize", tapes, *TINY, "--out-dir", out, "--format", "eaf")
    done(*command)
    (out / "a.eaf").write_text("corrected")
    (out / "b.eaf").unlink()
    said = done(*command).stderr  # goes on with the others
    assert "a.wav was changed since, and stays as it is" in said and (out / "b.eaf").is_file()
    assert (out / "a.eaf").read_text() == "corrected"
    made = (out / "b.eaf").stat().st_mtime_ns
    for more in (["--again"], ["--min-turn", "1"]):  # the others are done all the same
        refused = knn(*command, *more)
        assert refused.exit_code == 1 and "a.eaf was changed since `knn diarize` wrote it, and stays" in refused.stderr
        assert "--force" in refused.stderr and "--backup" in refused.stderr
        assert "1 file failed; the other 2 are done: " in refused.stderr
        assert (out / "a.eaf").read_text() == "corrected" and (out / "b.eaf").stat().st_mtime_ns > made
        made = (out / "b.eaf").stat().st_mtime_ns
    done(*command, "--backup")
    assert (out / "a.eaf.bak").read_text() == "corrected" and (out / "a.eaf").read_text() != "corrected"
    assert "Finished before: 3 of 3" in done(*command, "--backup").stderr


def test_a_single_corrected_output_is_refused(tapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.TextGrid"
    command = ("diarize", tapes / "a.wav", *TINY, "-o", out)
    done(*command)
    done(*command)
    out.write_text("corrected")
    refused = knn(*command)
    assert refused.exit_code == 1 and "a.TextGrid exists already, and was changed since" in refused.stderr
    assert out.read_text() == "corrected"
    done(*command, "--force")
    assert out.read_text() != "corrected"


def test_outputs_of_other_recordings_of_the_same_names_stay(tapes: Path, tmp_path: Path) -> None:
    out, others = tmp_path / "out", tmp_path / "others"
    others.mkdir()
    sound, rate = soundfile.read(tapes / "a.wav")
    for name, seconds in (("a", 4), ("new", 5)):
        soundfile.write(others / f"{name}.wav", sound[: seconds * rate], rate)
    edited = ("--unwanted", "least", "--mute")
    done("diarize", tapes, *TINY, "--out-dir", out)
    done("diarize", tapes / "a.wav", *TINY, "--out-dir", tmp_path / "edited", *edited)
    before = {path.name: path.read_bytes() for path in (*out.glob("*.rttm"), *(tmp_path / "edited").glob("a*"))}
    refused = knn("diarize", others, *TINY, "--out-dir", out)
    assert refused.exit_code == 1 and "a.rttm is of another recording, and stays" in refused.stderr
    assert "--backup" in refused.stderr and (out / "new.rttm").is_file()
    refused = knn("diarize", others / "a.wav", *TINY, "--out-dir", tmp_path / "edited", *edited)
    assert refused.exit_code == 1 and "is of another recording than" in refused.stderr
    for path in (*out.glob("[abc].rttm"), *(tmp_path / "edited").glob("a*")):
        assert path.read_bytes() == before[path.name]
    done("diarize", others, *TINY, "--out-dir", out, "--backup")
    assert (out / "a.rttm.bak").read_bytes() == before["a.rttm"] != (out / "a.rttm").read_bytes()


def test_one_file_of_several_recordings_is_not_finished_without_one(tapes: Path, tmp_path: Path) -> None:
    (tapes / "b.wav").write_bytes(b"no sound")
    out = tmp_path / "all.rttm"
    command = ("diarize", tapes, *TINY, "--out-dir", tmp_path)
    knn(*command)
    assert "1 file failed; the other 2 are done: " in knn(*command).stderr
    command = ("diarize", tapes, *TINY, "--rttm", out)
    for _ in range(2):
        failed = knn(*command)
        assert failed.exit_code == 1 and "Finished before" not in failed.stderr
    soundfile.write(tapes / "b.wav", np.zeros(16000), 16000)
    done(*command)
    assert "Finished before: 3 of 3" in done(*command).stderr


def test_edited_sound_goes_on_too(tapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("diarize", tapes, *TINY, "--max-silence", "0.5", "--out-dir", out)
    done(*command)
    assert outputs_in(out) == sorted(
        f"{name}{end}" for name in "abc" for end in (".rttm", "_shortened.rttm", "_shortened.wav")
    )
    for name in "ab":
        (out / f"{name}_shortened.wav").unlink()
    said = done(*command).stderr
    assert "Finished before: 1 of 3 recordings" in said and "\nThese 2 recordings: " in said


def test_what_is_passed_over_in_a_folder_is_counted_and_named(tapes: Path, tmp_path: Path) -> None:
    (tapes / "notes.doc").write_text("x")
    (tapes / "a.csv").write_text("x")
    command = ("diarize", tapes, *TINY, "--out-dir", tmp_path / "out")
    said = done(*command).stderr
    assert "2 files of other kinds left out; -v names them." in said and "notes.doc" not in said
    said = done(*command, "-v").stderr
    assert f"Left out: {tapes / 'notes.doc'}." in said and f"Left out: {tapes / 'a.csv'}." in said


def test_a_stopped_command_says_what_is_done(tapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from knn_cli.cli import stopping
    from knn_cli.diarization import pipeline

    diarize, seen = pipeline.diarize, []

    def stopped_in_the_second(path: Path, **settings: object) -> object:
        seen.append(path)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return diarize(path, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "diarize", stopped_in_the_second)
    monkeypatch.setattr(stopping, "_state", stopping._State(number=2))
    command = ("diarize", tapes, *TINY, "--out-dir", tmp_path / "out")
    monkeypatch.setattr(stopping, "check", lambda: None)
    assert knn(*command).exit_code != 0
    assert (stopping._state.done, stopping._state.total) == (1, 3)
    assert outputs_in(tmp_path / "out") == ["a.rttm"]
    assert "Finished before: 1 of 3" in done(*command).stderr


def test_outputs_lie_as_their_recordings_do(tapes: Path, tmp_path: Path) -> None:
    """Files of one name, in one folder and in several, are neither refused nor mixed up."""
    (tapes / "day").mkdir()
    (tapes / "b.wav").rename(tapes / "day" / "a.wav")
    sound, rate = soundfile.read(tapes / "c.wav")
    soundfile.write(tapes / "day" / "a.flac", sound, rate)
    out, kept = tmp_path / "out", tmp_path / "kept"
    done("diarize", tapes, *TINY, "--max-silence", "0.5", "--out-dir", out, "--keep", kept)
    turns = ["a.rttm", "c.rttm", "day/a.flac.rttm", "day/a.wav.rttm"]
    assert [path for path in below(out) if "_shortened" not in path] == turns
    assert "day/a.flac_shortened.flac" in below(out) and "day/a.wav_shortened.wav" in below(out)
    assert below(kept) == [path.replace(".rttm", ".h5") for path in turns]
    done("diarize", kept, "--out-dir", tmp_path / "again")
    assert below(tmp_path / "again") == turns
    for path in turns:
        assert (tmp_path / "again" / path).read_text() == (out / path).read_text()
    assert (out / "day" / "a.flac.rttm").read_text().split()[1] == "a.flac"


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file())


def test_turns_in_folders_are_found_again(tapes: Path, tmp_path: Path) -> None:
    (tapes / "day").mkdir()
    (tapes / "b.wav").rename(tapes / "day" / "b.wav")
    done("diarize", tapes, *TINY, "--out-dir", tmp_path / "turns")
    given = done("diarize", tapes, "--turns", tmp_path / "turns", "--out-dir", tmp_path / "again")
    assert below(tmp_path / "again") == below(tmp_path / "turns") == ["a.rttm", "c.rttm", "day/b.rttm"], given.stderr


def test_a_recording_without_turns_costs_none_of_the_others(tapes: Path, tmp_path: Path) -> None:
    (tapes / "1983").mkdir()
    (tapes / "b.wav").rename(tapes / "1983" / "b.wav")
    done("diarize", tapes, *TINY, "--out-dir", tmp_path / "turns")
    (tmp_path / "turns" / "c.rttm").unlink()
    left = knn("diarize", tapes, "--turns", tmp_path / "turns", "--out-dir", tmp_path / "eaf", "--format", "eaf")
    assert left.exit_code == 1 and "has no turns of c" in left.stderr
    assert below(tmp_path / "eaf") == ["1983/b.eaf", "a.eaf"]
    done("diarize", tapes / "1983" / "b.wav", "--turns", tmp_path / "turns", "-o", tmp_path / "b.eaf")
    none = knn("diarize", tapes / "c.wav", tapes / "c.wav", "--turns", tmp_path / "turns", "-o", tmp_path / "c.csv")
    assert none.exit_code == 1 and not (tmp_path / "c.csv").exists()


def test_turns_of_recordings_of_one_name_are_read_back(tmp_path: Path) -> None:
    """In the folders that the recordings have, in any format."""
    tapes = tmp_path / "sound"
    (tapes / "day").mkdir(parents=True)
    for name in ("one.wav", "day/one.wav"):
        soundfile.write(tapes / name, np.zeros(48_000), 16_000)
    (tmp_path / "turns" / "day").mkdir(parents=True)
    for place, speaker in (("one", "anna"), ("day/one", "ben")):
        (tmp_path / "turns" / f"{place}.csv").write_text(f"start,end,speaker\n0.5,2,{speaker}\n")
    sources = (tapes / "one.wav", tapes / "day" / "one.wav")
    done("diarize", *sources, "--turns", tmp_path / "turns", "--out-dir", tmp_path / "out", "--format", "csv")
    shown = {str(file.relative_to(tmp_path / "out")): file.read_text() for file in (tmp_path / "out").rglob("*.csv")}
    assert len(shown) == 2 and all(("ben" in text) == ("day" in name) for name, text in shown.items())


def test_stores_are_gone_on_with(tapes: Path, tmp_path: Path) -> None:
    """What is finished is not done again, one bad file costs itself, and what changed is done."""
    (tapes / "b.wav").rename(tmp_path / "b.wav")
    (tapes / "b.wav").write_bytes(b"no sound")
    store, rows = tmp_path / "c.h5", tmp_path / "e.h5"
    for command, out in (
        (("convert", tapes, store), store),
        (("embed", tapes, "-o", rows, *TINY[:4]), rows),
    ):
        failed = knn(*command)
        assert failed.exit_code == 1 and "1 file failed; the other 2 are done: " in failed.stderr
        made = out.stat()
        again = knn(*command)
        assert again.exit_code == 1 and "Finished before: 2 of 3 recordings; --again" in again.stderr
        assert "1 file failed; the other 2 are done: " in again.stderr and out.stat() == made
        shutil.copy(tmp_path / "b.wav", tapes / "b.wav")
        assert "Finished before: 2 of 3 recordings" in done(*command).stderr
        made = out.stat()
        assert f"{out} was finished before; --again does it anew." in done(*command).stderr and out.stat() == made
        assert "before" not in done(*command, "--segment", "2").stderr  # our own file is replaced
        (tapes / "b.wav").write_bytes(b"no sound")
    command = ("embed", store, "-o", rows, *TINY[:4])
    assert "before" not in done(*command).stderr
    assert "was finished before" in done(*command).stderr
    assert "before" not in done(*command, "--again").stderr
    rows.write_bytes(rows.read_bytes() + b"changed")
    assert "was changed since `knn embed` wrote it" in knn(*command).stderr
    done(*command, "--backup")
    assert (tmp_path / "e.h5.bak").read_bytes().endswith(b"changed")


def test_embeddings_of_another_model_are_not_replaced(tapes: Path, tmp_path: Path) -> None:
    store = tmp_path / "e.h5"
    done("embed", tapes / "a.wav", "-o", store, "--no-vad", "--model", "tiny-test", "--device", "cpu")
    before = store.read_bytes()
    command = ("embed", tapes / "a.wav", "-o", store, "--no-vad", "--device", "cpu", "--chunk", "3")
    refused = knn(*command, "--model", "tiny-test")
    assert refused.exit_code == 1 and "was made with the model tiny-test@" in refused.stderr
    assert "--force" in refused.stderr and store.read_bytes() == before
    done(*command, "--model", "tiny-test", "--force")
    assert store.read_bytes() != before


def test_a_stopped_command_says_whether_anything_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    from knn_cli.cli import stopping

    for before, finished, hint in ((0, 0, "begins anew"), (0, 1, "goes on"), (2, 0, "goes on")):
        stopping._state = stopping._State(number=2)
        stopping.working(3, before=before, noun="rows")
        stopping.advanced(finished, 4)
        assert stopping.stopped() == 130
        text = " ".join(capsys.readouterr().err.split())
        assert f"Of 4 rows {finished} are done, {4 - finished} are left." in text and hint in text
    stopping._state = stopping._State(number=2)
    stopping.working(0)  # a store, whose rows are not counted yet
    assert stopping.stopped() == 130 and "begins anew" in " ".join(capsys.readouterr().err.split())
    stopping._state = stopping._State()


@pytest.fixture
def analysed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the recordings that are analysed; where `stop` is one, the command is stopped at the last."""
    from knn_cli.diarization import recordings

    analyse, seen = recordings.analyse_recording, list[str]()

    def noted(path: Path, *settings: object) -> object:
        seen.append(path.stem)
        if "stop" in seen and path.stem == "c":
            raise KeyboardInterrupt
        return analyse(path, *settings)  # type: ignore[arg-type]

    monkeypatch.setattr(recordings, "analyse_recording", noted)
    return seen


@pytest.mark.parametrize("more", [("--rttm", "turns/all.rttm"), ("--link-speakers", "--out-dir", "turns")])
def test_a_run_over_many_recordings_goes_on(
    tapes: Path, tmp_path: Path, analysed: list[str], more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs that follow from all recordings: what was analysed is not analysed again."""
    monkeypatch.chdir(tmp_path)
    Path("turns").mkdir()
    command = ("diarize", tapes, *TINY, *more)
    done(*command)
    expected = {path: path.read_text() for path in Path("turns").glob("*.rttm")}
    analysed[:] = ["stop"]
    assert knn(*command, "--again").exit_code != 0 and analysed == ["stop", "a", "b", "c"]
    for path in expected:
        path.unlink()
    analysed[:] = []
    assert "Analysed before: 2 of 3 recordings" in done(*command).stderr and analysed == ["c"]
    assert {path: path.read_text() for path in Path("turns").glob("*.rttm")} == expected
    assert not list(tmp_path.rglob("*.analyses"))
    left = tmp_path / "turns" / (".all.rttm.analyses" if "--rttm" in more else ".knn.analyses")
    left.mkdir()  # by a run that was killed when all was written
    (left / "0123456789abcdef.h5").touch()
    done(*command)
    assert not left.exists()


def written(path: Path) -> tuple[int, int]:
    """The file of a name and when it was written."""
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns


def test_a_kept_analysis_is_used_again(tapes: Path, tmp_path: Path, analysed: list[str]) -> None:
    command = ("diarize", tapes / "a.wav", *TINY, "--keep", tmp_path / "a.h5")
    turns = done(*command).stdout
    made = written(tmp_path / "a.h5")
    again = done(*command)
    assert again.stdout == turns != "" and analysed == ["a"] and written(tmp_path / "a.h5") == made
    assert "Analysed before: 1 of 1 recording" in again.stderr


@pytest.mark.parametrize("name", ["e.csv", "e.ark", "e.h5"])
def test_other_conversions_are_not_done_twice(tmp_path: Path, name: str) -> None:
    table, out = tmp_path / "rows.csv", tmp_path / name
    table.write_text("name,e0,e1\na,1,2\nb,3,4\n")
    store = tmp_path / "rows.h5"
    done("convert", table, store)
    command = ("convert", store if name != "e.h5" else table, out)
    done(*command)
    made = written(out)
    assert "was finished before" in done(*command).stderr and written(out) == made
    done(*command, "--again")
    done(*command, "--labels", "(?P<group>.)")  # other settings
    out.write_bytes(b"mine")
    refused = knn(*command)
    assert refused.exit_code == 1 and "was changed since `knn convert` wrote it" in refused.stderr
    done(*command, "--backup")
    assert (tmp_path / f"{name}.bak").read_bytes() == b"mine" != out.read_bytes()
