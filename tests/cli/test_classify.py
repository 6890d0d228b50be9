"""`knn classify` on the command line: what it prints, what it refuses, what it never overwrites, and what it embeds."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from knn_cli.audio import reading, speech_regions
from knn_cli.cli import output
from knn_cli.core.errors import KnnError
from knn_cli.core.values import EmbeddingSet, ScoreTable
from knn_cli.embedding.row_groups import RowGroup
from knn_cli.evaluation.metrics import detection_llr
from knn_cli.recognition import evaluate_test_sets as test_sets
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.evaluate_test_sets import TestSetOptions
from knn_cli.recognition.make_split import SplitOptions, make_split
from knn_cli.recognition.predictions import predict
from knn_cli.recognition.split_file import read_split, write_split
from knn_cli.recognition.train_classifier import train_classifier
from knn_cli.reports.test_set_report import cards
from knn_cli.store import hdf5
from knn_cli.store.writer import write_store
from tests.helpers.command import done, knn

GROUPS = {"a1": "north", "a2": "north", "b1": "south"}


def refused(sentence: str, *arguments: str | Path) -> None:
    result = knn(*arguments)
    assert result.exit_code == 1 and sentence in result.stderr, result.output


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three dialects and an out-of-set label `x`, 10 recordings each of 3 rows; a split; a model of its train side."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    centres = {label: rng.normal(size=6) for label in (*GROUPS, "x")}
    rows = [
        (label, n, k, centre + rng.normal(size=6))
        for label, centre in centres.items()
        for n in range(10)
        for k in range(3)
    ]
    made = {name: folder / name for name in ("emb.h5", "split.tsv", "m")}
    embeddings = EmbeddingSet.from_columns(
        [row[3] for row in rows],
        [f"{label}-{recording}" for label, recording, _, _ in rows],
        subgroup=[row[0] for row in rows],
        start=[2.0 * row[2] for row in rows],
        end=[2.0 * row[2] + 2 for row in rows],
        embedder="nowhere@000000000000",
    )
    write_store(made["emb.h5"], embeddings)
    split = make_split(embeddings, SplitOptions(fraction=0.4, ignore=["x"]))
    write_split(made["split.tsv"], split)
    train_classifier(
        made["emb.h5"],
        made["m"],
        split=split,
        out_of_set=["x"],
        groups=GROUPS,
        priors={"a1": 8.0, "a2": 1.0, "b1": 1.0},
    )
    return made


def lines(work: dict[str, Path], *more: str | Path, command: str = "classify") -> tuple[list[dict[str, Any]], str]:
    result = done(command, work["emb.h5"], "--model", work["m"], "--json", *more)
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


# ---- what is printed ----


def test_priors_reach_the_detection_scores(work: dict[str, Path]) -> None:
    flat, own = lines(work)[0], lines(work, "--priors", "model")[0]
    scores = Classifier(work["m"]).score(hdf5.read(work["emb.h5"])).log_likelihood
    for found, priors in ((flat, None), (own, [8, 1, 1])):
        said = [[line["llr"][label] for label in GROUPS] for line in found]
        np.testing.assert_allclose(said, detection_llr(scores, priors), atol=1e-4)
    assert [line["llr"]["a1"] for line in own] == [line["llr"]["a1"] for line in flat]  # its rivals are alike as before
    assert [line["llr"]["b1"] for line in own] != [line["llr"]["b1"] for line in flat]


def test_priors_reach_the_figures_of_a_test_set(work: dict[str, Path]) -> None:
    flat, own, named = (
        lines(work, "--curve", "1", "--draws", "0", *more, command="evaluate")[0][0]
        for more in ([], ["--priors", "model"], ["--priors", "a1=8"])
    )
    assert own == named and own["curve"] != flat["curve"]
    assert own["figures"]["accuracy"] != flat["figures"]["accuracy"]
    assert own["curve"][0]["accuracy"] == own["figures"]["accuracy"][0]
    assert own["curve"][0]["cprimary"] == own["figures"]["cprimary"][0]
    refused(
        "not a label of the model", "evaluate", work["emb.h5"], "--model", work["m"], "--curve", "1", "--priors", "z=2"
    )


@pytest.mark.parametrize("more", [["--no-unknown"], [], ["--priors", "a1=99", "--no-unknown"], ["--priors", "model"]])
def test_the_share_that_is_right_is_of_the_labels_that_are_printed(work: dict[str, Path], more: list[str]) -> None:
    found, said = lines(work, *more)
    known = [line for line in found if not line["file"].startswith("x")]
    right = sum(line["label"] == line["file"].split("-")[0] for line in known)
    assert f"Of 90 rows with a label that the model knows, {right} are right" in said


def test_an_unknown_row_has_no_group_and_keeps_its_best_label(work: dict[str, Path], tmp_path: Path) -> None:
    flat, found = lines(work, "--no-unknown")[0], lines(work)[0]
    rejected = [row for row, line in enumerate(found) if line["label"] == "unknown"]
    assert rejected and all(found[row]["group"] is None and found[row]["probability"] is None for row in rejected)
    done("classify", work["emb.h5"], "--model", work["m"], "-o", tmp_path / "o.tsv")
    head, *table = (line.split("\t") for line in (tmp_path / "o.tsv").read_text().splitlines())
    for row, cells in enumerate(table):
        line = dict(zip(head, cells, strict=True))
        best = max(flat[row]["probabilities"], key=flat[row]["probabilities"].get)
        if row in rejected:
            assert (line["label"], line["probability"], line["label_2"]) == ("unknown", "", best)
            assert float(line["probability_2"]) == pytest.approx(flat[row]["probabilities"][best], abs=1e-4)
            assert (line["group"], line["group_probability"]) == ("", "")
        else:
            assert line["label"] == best and line["group"] == flat[row]["group"]


def test_predictions_by_hand() -> None:
    """A learnt class of out-of-set labels is a label like the others; priors can make it or another one the best."""
    scores = np.log([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    none = np.full(2, np.nan)
    table = ScoreTable(
        ("a", "b", "unknown"), scores, np.array(["r", "s"]), none, none, np.array(["a", "b"]), None, ("g", "h", "")
    )
    found = predict(table)
    assert found.label.tolist() == ["a", "unknown"] and found.group(1) is None
    assert found.ranked(table.labels, 1, 2) == [("unknown", pytest.approx(0.7)), ("b", pytest.approx(0.2))]
    assert found.group(0) == ("g", pytest.approx(0.5)) and output.correct(table, found) == (1, 2)
    found = predict(table, {"b": 9.0})
    assert found.label.tolist() == ["b", "b"] and output.correct(table, found) == (1, 2)


def test_figures_go_where_they_are_sent(work: dict[str, Path], tmp_path: Path) -> None:
    command = ["evaluate", work["emb.h5"], "--model", work["m"], "--curve", "2", "--draws", "0"]
    shown = done(*command).stdout
    assert shown and done(*command, "-o", tmp_path / "out.txt").stdout == ""
    assert (tmp_path / "out.txt").read_text() == shown
    refused("in the folder of the report", *command, "--report", tmp_path / "r", "-o", tmp_path / "r" / "out.txt")


# ---- test sets ----


def test_rows_that_the_model_was_fitted_on_are_counted(work: dict[str, Path]) -> None:
    command = ["evaluate", work["emb.h5"], "--model", work["m"], "--curve", "1", "--draws", "0"]
    assert "54 of 90 tested rows are of recordings that the model was fitted on" in done(*command).stderr
    apart = done(*command, "--split", work["split.tsv"]).stderr
    assert "fitted on" not in apart
    names = Classifier(work["m"]).meta["fitted"]
    train = [line.recording for line in read_split(work["split.tsv"]).lines if line.part == "train"]
    assert set(names) >= {hashlib.sha256(name.encode()).hexdigest()[:12] for name in train}


def test_a_store_whose_rows_fail_in_two_places_is_one_file(
    work: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(classifier: Classifier, jobs: int | None, path: Path, use_vad: bool) -> Iterator[ScoreTable | KnnError]:
        if path.parent == tmp_path:
            yield from (KnnError(f"{path}: rows {first} to {first + 9} have no scores.") for first in (0, 10))
        yield from classifier.score_store(path, use_vad=use_vad)

    monkeypatch.setattr("knn_cli.recognition.classify_files._score_here", score)
    broken = Path(shutil.copy(work["emb.h5"], tmp_path))
    result = knn("classify", broken, work["emb.h5"], "--model", work["m"])
    assert result.exit_code == 1 and "rows 0 to 9" in result.stderr and "rows 10 to 19" in result.stderr
    assert result.stderr.endswith(f"knn: 1 file failed; the other is done: {broken}\n")


def test_curve_ends_with_the_longest_recording(work: dict[str, Path]) -> None:
    found, said = lines(work, "--curve", "50", "--draws", "0", command="evaluate")
    assert [point["segments"] for point in found[0]["curve"]] == [1, 2, 3]
    assert "No recording has more than 3 segments" in said


def test_scores_block_by_block_are_those_of_all_rows(work: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = Classifier(work["m"])
    monkeypatch.setattr(test_sets, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(test_sets, "MAX_SAMPLE_ROWS", 11)
    tested = test_sets.evaluate_test_sets(
        [work["emb.h5"]], [model], TestSetOptions(split=work["split.tsv"], bootstrap=0)
    )
    rows = hdf5.read(work["emb.h5"])
    test = rows.take(read_split(work["split.tsv"]).part_of(rows.name) == "test")
    wanted = model.score(test)
    found = tested.models[0].evaluation.table
    assert found.name.tolist() == wanted.name.tolist()
    np.testing.assert_allclose(found.log_likelihood, wanted.log_likelihood, atol=1e-9)
    mapped, all_of = (set(zip(one.name, one.start, strict=True)) for one in (tested.sample, test))
    assert len(mapped) == len(tested.sample) == 11 and mapped < all_of
    card = cards(tested, ())["Data: emb.h5"].splitlines()
    assert card[:4] == ["file        emb.h5", "rows        36", "recordings  12", "hours       0.02"]
    assert "fraction 0.4" in card[5] and "seed 0" in card[5] and card[-1].split() == ["b1", "12"]


def test_only_the_side_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _noises(tmp_path / "wavs")
    done("convert", tmp_path / "wavs", tmp_path / "audio.h5", "--segment", "2")
    split = make_split(hdf5.labels(tmp_path / "audio.h5"), SplitOptions(label="group", fraction=0.25))
    write_split(tmp_path / "split.tsv", split)
    done("train", tmp_path / "audio.h5", "-o", tmp_path / "m", "--level", "group", "--model", "tiny-test", "--no-vad")
    heard: list[str] = []
    original = speech_regions.is_silent
    monkeypatch.setattr(speech_regions, "is_silent", lambda samples: heard.append("") or original(samples))
    command = ["evaluate", tmp_path / "audio.h5", "--model", tmp_path / "m", "--curve", "1", "--no-vad", "--draws", "0"]
    said = done(*command, "--split", tmp_path / "split.tsv", "--json").stdout
    assert len(heard) == json.loads(said)["rows"] == 6 and json.loads(said)["recordings"] == 2

    def one_by_one(store: hdf5.Store, *_: object) -> Iterator[RowGroup]:
        yield from (RowGroup(str(row), range(row, row + 1), 2.0) for row in range(len(store)))

    monkeypatch.setattr("knn_cli.embedding.stores.row_groups", one_by_one)
    assert done(*command, "--split", tmp_path / "split.tsv", "--json").stdout == said


# ---- refusals, and files that stay ----


@pytest.mark.parametrize(
    ("command", "options", "sentence"),
    [
        ("evaluate", ["--part", "train"], "--part requires --split"),
        ("evaluate", ["--force"], "--force requires --out or --report"),
        ("classify", ["--backup"], "--backup requires --out"),
        ("timeline", ["--force"], "--force requires --out or --out-dir"),
        ("timeline", ["--json", "--format", "srt"], "--json and --format cannot be combined"),
        ("timeline", ["--json", "-o", "x.srt"], "--json and the suffix of x.srt cannot be combined"),
        ("timeline", ["-o", "x.srt", "--out-dir", "x"], "--out and --out-dir cannot be combined"),
        ("timeline", ["--diarize", "--turns", "x.rttm"], "--turns and --diarize cannot be combined"),
        ("timeline", ["--num-speakers", "2"], "--num-speakers requires --diarize"),
        ("embed", ["--labels", "group/file"], "--labels requires --out"),
    ],
)
def test_no_option_is_passed_over(
    command: str,
    options: list[str],
    sentence: str,
    work: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(sentence, command, work["emb.h5"], "--model", work["m"], *options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("evaluate", ["--top", "--segment", "--channel", "--open-set"]),
        ("verify", ["--priors", "--no-unknown", "--languages", "--no-vad", "--device"]),
        ("timeline", ["--priors", "--segment", "--top", "--report"]),
        ("classify", ["--open-set", "--report", "--curve", "--turns", "--window", "--cohort", "--split"]),
    ],
)
def test_commands_have_only_the_options_that_they_use(command: str, options: list[str]) -> None:
    for option in options:
        result = knn(command, option, "x")
        assert result.exit_code == 2 and "No such option" in result.output, option


def _noises(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("hiss", "rumble"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            noise = rng.normal(size=6 * 16000) * 0.1
            sound = noise if label == "hiss" else np.cumsum(noise) * 0.01
            soundfile.write(folder / label / f"{label}{number}.wav", sound, 16000)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model `m`, `a/one.wav` and `b/one.wav`, turns of both."""
    folder = tmp_path_factory.mktemp("sounds")
    _noises(folder / "wavs")
    done("convert", folder / "wavs", folder / "audio.h5", "--segment", "2")
    done("train", folder / "audio.h5", "-o", folder / "m", "--level", "group", "--model", "tiny-test", "--no-vad")
    for place, label in (("a", "hiss"), ("b", "rumble")):
        (folder / place).mkdir()
        (folder / "wavs" / label / f"{label}0.wav").rename(folder / place / "one.wav")
    return folder


@pytest.fixture
def two(sounds: Path) -> list[str | Path]:
    model = ["--model", sounds / "m", "--no-vad", "--window", "2"]
    return ["timeline", sounds / "a" / "one.wav", sounds / "b" / "one.wav", *model]


def test_recordings_of_one_name_keep_a_file_each(two: list[str | Path], sounds: Path, tmp_path: Path) -> None:
    done(*two, "--out-dir", tmp_path / "out", "--format", "rttm")
    texts = {place: (tmp_path / "out" / place / "one.rttm").read_text() for place in "ab"}
    assert " hiss " in texts["a"] and " rumble " in texts["b"]
    assert texts["a"].startswith("SPEAKER a/one ")
    (sounds / "a" / "one.flac").write_bytes((sounds / "a" / "one.wav").read_bytes())
    more = [*two, sounds / "a" / "one.flac", "--out-dir", tmp_path / "more", "--format", "rttm"]
    done(*more)
    names = {path.name for path in (tmp_path / "more").glob("*.rttm")}
    assert names == {"one.wav.rttm", "one.flac.rttm", "one.rttm"}


def test_several_recordings_on_stdout(two: list[str | Path]) -> None:
    table = [line.split("\t") for line in done(*two).stdout.splitlines()]
    assert [line[0] for line in table].count("file") == 1 and {len(line) for line in table} == {len(table[0])}
    assert {line[0] for line in table[1:]} == {"a/one", "b/one"}
    assert [json.loads(line)["file"] for line in done(*two, "--json").stdout.splitlines()] == ["a/one", "b/one"]
    assert {line.split()[1] for line in done(*two, "--format", "rttm").stdout.splitlines()} == {"a/one", "b/one"}
    for form in ("textgrid", "srt", "vtt", "audacity"):
        refused("could not be distinguished", *two, "--format", form)


def test_the_language_of_each_speaker_in_one_command(sounds: Path, example: Path, tmp_path: Path) -> None:
    """The turns of `knn diarize`, and of a file with the same turns, give one timeline."""
    path = tmp_path / "meeting.wav"
    soundfile.write(path, reading.read(example).crop(0.0, 20.0).samples, 16000)
    done("diarize", path, "--num-speakers", "2", "--rttm", tmp_path / "turns.rttm", "--device", "cpu")
    command = ["timeline", path, "--model", sounds / "m", "--device", "cpu", "--json"]
    result = done(*command, "--diarize", "--num-speakers", "2")
    assert json.loads(result.stdout) == json.loads(done(*command, "--turns", tmp_path / "turns.rttm").stdout)
    speakers = [row["speaker"] for row in json.loads(result.stdout)["speakers"]]
    assert speakers == ["SPEAKER_00", "SPEAKER_01"]
    assert "SPEAKER_00 over all turns: " in result.stderr and "Model voice@" in result.stderr


def test_no_source_is_overwritten(two: list[str | Path], sounds: Path, tmp_path: Path) -> None:
    turns = tmp_path / "one.rttm"
    turns.write_text("SPEAKER one 1 0.0 6.0 <NA> <NA> ann <NA> <NA>\n")
    before = turns.read_text()
    one = [*two[:2], *two[3:], "--turns", turns]
    refused("one of the sources", *one, "-o", turns)
    refused("one of the sources", *one, "--out-dir", tmp_path, "--format", "rttm")
    assert turns.read_text() == before
    (tmp_path / "file").write_text("mine")
    refused("is a file", *one, "--out-dir", tmp_path / "file", "--format", "srt")
    refused("cannot be created", *one, "--out-dir", tmp_path / "file" / "below", "--format", "srt")
    assert (tmp_path / "file").read_text() == "mine"


def test_neither_split_nor_cohort_is_overwritten(work: dict[str, Path], tmp_path: Path) -> None:
    for name in ("split.tsv", "trials.txt", "cohort"):
        (tmp_path / name).write_bytes((work["split.tsv"] if name == "split.tsv" else work["emb.h5"]).read_bytes())
    (tmp_path / "trials.txt").write_text("a1-0 a1-1\n")
    test = ["evaluate", work["emb.h5"], "--model", work["m"], "--curve", "1", "--split", tmp_path / "split.tsv"]
    refused("one of the sources", *test, "-o", tmp_path / "split.tsv")
    pairs = ["verify", tmp_path / "trials.txt", work["emb.h5"], "--cohort", tmp_path / "cohort"]
    refused("one of the sources", *pairs, "-o", tmp_path / "cohort")
