"""`knn split`, `train`, `evaluate`, `timeline` and `verify` on the command line, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from knn_cli.core.values import EmbeddingSet
from knn_cli.store.writer import write_store
from tests.helpers.command import done, knn

DIALECTS = {"a1": "north", "a2": "north", "b1": "south", "x": ""}  # x: outside the closed set


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of 4 dialects, 10 recordings each of two speakers with 3 rows of 2 seconds; groups, split, two models."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    centres = {label: rng.normal(size=6) * 2 for label in DIALECTS}
    rows = []
    for label in DIALECTS:
        for recording in range(10):
            voice = centres[label] + 0.6 * np.random.default_rng(recording % 2).normal(size=6)
            rows += [(label, recording, n, voice + 0.5 * rng.normal(size=6)) for n in range(3)]
    embeddings = EmbeddingSet.from_columns(
        [row[3] for row in rows],
        [f"{label}-{recording}" for label, recording, _, _ in rows],
        subgroup=[row[0] for row in rows],
        speaker=[f"{label}-{recording % 2}" for label, recording, _, _ in rows],
        start=[2.0 * row[2] for row in rows],
        end=[2.0 * row[2] + 2 for row in rows],
        embedder="nowhere@000000000000",
    )
    made = {name: folder / name for name in ("emb.h5", "split.tsv", "groups.csv", "one", "two", "voices", "page")}
    write_store(made["emb.h5"], embeddings)
    made["groups.csv"].write_text("label,group\n" + "".join(f"{x},{y}\n" for x, y in DIALECTS.items() if y))
    done("split", made["emb.h5"], "-o", made["split.tsv"], "--ignore", "x", "--held-out", "0.4")
    options = ["--split", made["split.tsv"], "--groups", made["groups.csv"], "--out-of-set", "x"]
    done("train", made["emb.h5"], "-o", made["one"], *options, "--priors", "a1=2,a2=1,b1=1")
    done("train", made["emb.h5"], "-o", made["two"], "--ignore", "x", "--transforms", "center,lda:2")
    done("train", made["emb.h5"], "-o", made["voices"], "--level", "speaker")
    return made


def test_split_says_what_each_side_has(work: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "folds.tsv"
    lines = done("split", work["emb.h5"], "-o", out, "--kind", "folds", "--folds", "2", "--units", "speaker").stdout
    table = [line.split("\t") for line in lines.splitlines()]
    assert table[0] == ["class", "part", "rows", "recordings", "seconds"]
    assert [row[2:] for row in table[1:]] == [["15", "5", "30"]] * 8  # four classes, one speaker in each fold
    assert out.read_text().startswith("# knn split\t1\n")
    assert "exists" in knn("split", work["emb.h5"], "-o", out).stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--kind", "folds", "--number", "3"], "--number requires --kind quartiles, not folds"),
        (["--folds", "3"], "--folds requires --kind folds"),
        (["--side", "test"], "--side requires --kind quartiles"),
        (["--kind", "quartiles", "--number", "2", "--held-out", "0.2"], "--held-out requires --kind held-out"),
        (
            ["--kind", "quartiles", "--number", "2", "--units", "speaker"],
            "--units requires --kind folds",
        ),
        (["--kind", "leave-one-out", "--units", "speaker", "--seed", "3"], "--seed requires --kind folds or"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_split_refuses_what_it_would_ignore(
    options: list[str], sentence: str, work: dict[str, Path], tmp_path: Path
) -> None:
    result = knn("split", work["emb.h5"], "-o", tmp_path / "s.tsv", *options)
    assert result.exit_code != 0 and sentence in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--split", "split.tsv", "--held-out", "0.2"], "already defines the held-out recordings"),
        (["--split", "split.tsv", "--units", "name"], "already keeps recordings disjoint"),
        (["--calibration", "none", "--set", "duration_aware=true"], "cannot depend on the length of a row"),
        (["--set", "out_of_set_class=true"], "--out-of-set"),
        (["--out-of-set", "x", "--set", "false_reject=1.5"], "false_reject cannot be 1.5"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_train_refuses_what_it_would_ignore(
    options: list[str], sentence: str, work: dict[str, Path], tmp_path: Path
) -> None:
    options = [str(work["split.tsv"]) if one == "split.tsv" else one for one in options]
    result = knn("train", work["emb.h5"], "-o", tmp_path / "m", *options)
    assert result.exit_code != 0 and sentence in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_train_says_what_the_split_and_the_strangers_were(work: dict[str, Path], tmp_path: Path) -> None:
    report = done("train", work["emb.h5"], "-o", tmp_path / "m", "--out-of-set", "x,b1").stdout
    assert "of 30 rows of other labels than chose the threshold" in report
    report = done("train", work["emb.h5"], "-o", tmp_path / "n", "--out-of-set", "x").stdout
    assert "of 15 rows of other recordings than chose the threshold" in report
    by_speaker = tmp_path / "s.tsv"
    done("split", work["emb.h5"], "-o", by_speaker, "--level", "speaker")
    said = done("train", work["emb.h5"], "-o", tmp_path / "o", "--split", by_speaker).stderr
    assert "drawn by speaker, the labels here are of the level subgroup" in said


def test_train_reports_all_that_it_was_asked(work: dict[str, Path], tmp_path: Path) -> None:
    report = done(
        *("train", work["emb.h5"], "-o", tmp_path / "m", "--groups", work["groups.csv"], "--out-of-set", "x"),
        *("--calibration", "temperature", "--set", "duration_aware=true", "--transforms", "center,whiten,length"),
    ).stdout
    lines = dict(line.split(maxsplit=1) for line in report.splitlines())
    assert lines["labels"] == "3: a1, a2, b1" and lines["Cllr"].endswith("bits")
    assert lines["of"].startswith("groups") and lines["open"].startswith("set")


def test_test_side_alone_is_tried(work: dict[str, Path]) -> None:
    done_with = done(
        "evaluate", work["emb.h5"], "--model", work["one"], "--split", work["split.tsv"], "--curve", "3", "--json"
    )
    line = json.loads(done_with.stdout)
    assert (line["rows"], line["recordings"]) == (36, 12)  # 4 of 10 recordings of three dialects
    value, low, high = line["figures"]["accuracy"]
    assert 0.8 < low <= value <= high <= 1 and value > 0.9
    assert [(point["segments"], point["rows"], point["seconds"]) for point in line["curve"]] == [
        (1, 36, 2.0), (2, 24, 3.0), (3, 12, 6.0)
    ]  # fmt: skip
    assert line["groups"]["accuracy"] >= value


def test_report_compares_models(work: dict[str, Path]) -> None:
    command = ["evaluate", work["emb.h5"], "--model", work["one"], "--compare", work["two"], "--report", work["page"]]
    result = done(*command, "--draws", "50")
    assert "The model does not know x (30)" in result.stderr and "fitted on all rows" not in result.stderr
    assert "one: 90 rows of 30 recordings" in result.stdout and "two: 90 rows" in result.stdout
    assert "open set" in result.stdout
    page = (work["page"] / "report.html").read_text()
    assert "<h1" in page and (work["page"] / "figures" / "det.svg").is_file()
    figures = json.loads((work["page"] / "data" / "headline.json").read_text())
    assert figures["rows"][0]["figure"] == "accuracy"
    assert "exists" in knn(*command).stderr
    done(*command, "--force", "--draws", "0")


def test_unknown_is_an_answer_unless_it_is_refused(work: dict[str, Path]) -> None:
    def labels(*more: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for line in done("classify", work["emb.h5"], "--model", work["one"], *more).stdout.splitlines()[1:]:
            name, _, _, label, *_ = line.split("\t")
            found.setdefault(name.split("-")[0], set()).add(label)
        return found

    assert "unknown" in labels()["x"]
    assert "unknown" not in set.union(*labels("--no-unknown").values())


def test_priors_and_groups_are_in_the_scores(work: dict[str, Path]) -> None:
    def scores(*more: str) -> list[dict[str, Any]]:
        command = ["classify", work["emb.h5"], "--model", work["one"], "--json", "--no-unknown"]
        lines = done(*command, *more).stdout.splitlines()
        return [json.loads(line) for line in lines]

    flat, own, named = scores(), scores("--priors", "model"), scores("--priors", "a1=2,a2=1,b1=1")
    assert own == named and [one["llr"] for one in own] != [one["llr"] for one in flat]
    row = int(np.argmin([one["probability"] for one in flat]))  # the least certain one
    first, second = ([one[row]["probabilities"][x] for x in ("a1", "a2")] for one in (own, flat))
    assert np.divide(*first) == pytest.approx(2 * np.divide(*second), rel=0.05)
    north = sum(flat[row]["probabilities"][label] for label in ("a1", "a2"))
    assert flat[row]["groups"]["north"] == pytest.approx(north, abs=2e-6)


def test_trials(work: dict[str, Path], tmp_path: Path) -> None:
    trials, out = tmp_path / "trials.txt", tmp_path / "scores.tsv"
    pairs = [
        (f"a1-{i}", f"{label}-{j}", int(label == "a1" and i % 2 == j % 2))
        for label in ("a1", "b1")
        for i in range(4)
        for j in range(4, 8)
    ]
    trials.write_text("".join(f"{key} {left} {right}\n" for left, right, key in pairs))
    said = done("verify", trials, work["emb.h5"], "-o", out).stderr
    assert "32 trials scored by cosine" in said and "EER" in said and "Cllr" not in said
    said = done("verify", trials, work["emb.h5"], "--model", work["voices"], "-o", out).stderr
    assert "scored by PLDA" in said and "Cllr" in said
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert rows[0] == ["enrol", "test", "score", "target"] and len(rows) == 33
    first = json.loads(done("verify", trials, work["emb.h5"], "--json").stdout.splitlines()[0])
    assert first["verdict"] is None and first["reason"] and first["scorer"] == "cosine" and first["target"]
    said = done("verify", trials, work["emb.h5"], "--cohort", work["emb.h5"], "--as-norm", "4").stderr
    assert "normalised" in said
    assert "no PLDA" in knn("verify", trials, work["emb.h5"], "--model", work["two"], "--scorer", "plda").stderr


def test_timeline_in_every_form(tmp_path: Path) -> None:
    wavs = tmp_path / "wavs"
    rng = np.random.default_rng(0)
    for label in ("hiss", "rumble"):
        (wavs / label).mkdir(parents=True)
        for number in range(4):
            noise = rng.normal(size=6 * 16000) * 0.1
            soundfile.write(
                wavs / label / f"{label}{number}.wav", noise if label == "hiss" else np.cumsum(noise) * 0.01, 16000
            )
    parts = [soundfile.read(wavs / label / f"{label}0.wav")[0] for label in ("hiss", "rumble")]
    soundfile.write(tmp_path / "both.wav", np.concatenate(parts), 16000)
    done("convert", wavs, tmp_path / "audio.h5", "--segment", "2")
    done("train", tmp_path / "audio.h5", "-o", tmp_path / "m", "--level", "group", "--model", "tiny-test", "--no-vad")
    command = ["timeline", tmp_path / "both.wav", "--model", tmp_path / "m", "--no-vad", "--window", "2"]
    result = done(*command, "--json")
    found = json.loads(result.stdout)
    assert [span["label"] for span in found["spans"]] == ["hiss", "rumble"]
    assert found["spans"][0]["end"] == pytest.approx(6, abs=1)
    assert "from hiss to rumble" in result.stderr
    for suffix in ("tsv", "TextGrid", "txt", "srt", "vtt", "rttm"):
        done(*command, "-o", tmp_path / f"out.{suffix}")
        assert "rumble" in (tmp_path / f"out.{suffix}").read_text()
    (tmp_path / "turns.rttm").write_text("SPEAKER both 1 0.0 12.0 <NA> <NA> ann <NA> <NA>\n")
    assert "ann over all turns: " in done(*command, "--turns", tmp_path / "turns.rttm").stderr
    done(*command, "--out-dir", tmp_path / "out", "--format", "srt")
    assert (tmp_path / "out" / "both.srt").is_file()
    assert "no turns of" in knn(*command, wavs / "hiss" / "hiss1.wav", "--turns", tmp_path / "turns.rttm").stderr


@pytest.mark.parametrize(
    ("command", "options", "sentence"),
    [
        ("classify", ["--priors", "a1=much"], "not a label with its prior"),
        ("classify", ["--priors", "zz=2"], "not a label of the model"),
        ("classify", ["--priors", "empirical"], "not a label with its prior"),
        ("evaluate", ["--split", "nowhere.tsv"], "nowhere.tsv"),
        ("timeline", ["-o", "out.doc"], "names no format"),
    ],
)
def test_refusals(
    command: str,
    options: list[str],
    sentence: str,
    work: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = knn(command, work["emb.h5"], "--model", work["one"], *options)
    assert result.exit_code != 0 and sentence in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_trials_are_checked_before_a_model_is_loaded(work: dict[str, Path], tmp_path: Path) -> None:
    trials = tmp_path / "trials.txt"
    trials.write_text("a1-0 a1-1\n")
    for arguments, sentence in (
        ([tmp_path / "nowhere.txt", work["emb.h5"]], "nowhere.txt"),
        ([trials, work["emb.h5"], "--as-norm", "4"], "--as-norm requires --cohort"),
        ([trials, work["emb.h5"], "--scorer", "plda"], "PLDA needs a model"),
    ):
        result = knn("verify", *arguments)
        assert result.exit_code == 1 and sentence in result.stderr, result.output


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dialect,region\na1,n\n", "columns label and group"),
        ("label,group\na1,n\na1,s\n", "twice"),
        ("label,group\na1\n", "Line 2"),
        ("label,group\na1,n\n", "a2"),
    ],
)
def test_tables_of_groups_that_cannot_be(text: str, sentence: str, work: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text(text)
    result = knn("train", work["emb.h5"], "-o", tmp_path / "m", "--groups", tmp_path / "groups.csv")
    assert result.exit_code == 1 and sentence in result.stderr
    assert not (tmp_path / "m").exists()
