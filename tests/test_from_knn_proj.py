"""The commands of docs/from-knn-proj.md, in order, in a folder laid out as the mother project leaves it.

Numbers are compared with its formulas, which `helpers.ancestor` has in numpy.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

from knn_cli.core.display_names import czech_dialect_names
from knn_cli.networks import bundle
from knn_cli.networks.importers.wespeaker_heads import CZECH_DIALECTS
from knn_cli.recognition.split_file import read_split
from knn_cli.store import hdf5, kaldi
from knn_cli.store.hdf5 import Store
from tests.cli.test_options import COMMANDS, options
from tests.helpers import ancestor, corpora
from tests.helpers.ancestor import Ancestor, answers, costs, log_likelihoods, softmax
from tests.helpers.command import done
from tests.helpers.corpora import PIECES
from tests.training.test_sound_pools import database, wav

PAGE = Path(__file__).resolve().parents[1] / "docs" / "from-knn-proj.md"
HAS_LMDB, HAS_ONNX = (importlib.util.find_spec(name) is not None for name in ("lmdb", "onnx"))
DIALECTS = [dialect for _, dialect in PIECES.values()]


def blocks() -> list[tuple[str, str]]:
    """(language, text) of the page's fenced blocks."""
    return re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, example: Path) -> Iterator[tuple[Ancestor, dict[str, str]]]:
    """The folder after all commands of the page, and what each wrote to stdout."""
    root = tmp_path_factory.mktemp("ancestor")
    made = ancestor.lay(root, example)
    if HAS_LMDB:
        noise = {key: wav(corpora.sound(key)) for key in PIECES}
        for name in ("musan", "rirs"):
            (root / "data" / name).mkdir()
            database(root / "data" / name / "lmdb", noise)
    (root / "trials").write_text("10_A 11_B target\n10_A 12_C nontarget\n")
    before = Path.cwd()
    os.chdir(root)
    said = {}
    for language, text in blocks():
        if language == "toml" and HAS_LMDB:
            recipe = Path("recipe.toml")
            recipe.write_text(recipe.read_text().replace("[augment]\n", f"[augment]\n{text}"))
        for line in text.replace("\\\n", " ").splitlines() if language == "console" else ():
            assert line.startswith("$ knn "), line
            if line.endswith(".onnx") and not HAS_ONNX:
                continue
            said[line.removeprefix("$ knn ")] = done(*shlex.split(line)[2:]).stdout
    yield made, said
    os.chdir(before)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines(), delimiter="\t"))


def test_every_command_of_the_page_ran(left: tuple[Ancestor, dict[str, str]]) -> None:
    _, said = left
    assert Counter(command.split()[0] for command in said) >= Counter(
        {"convert": 12, "classify": 4, "evaluate": 3, "embed": 2, "train": 2, "diarize": 3, "info": 2, "split": 1}
    )


def test_every_option_of_the_tables_is_there() -> None:
    """The column `here` names commands with options that they have, and other options that some command has."""
    known = {
        name: {flag for option in options(command).values() for flag in option.opts}
        for name, command in COMMANDS.items()
    }
    every = {flag for flags in known.values() for flag in flags}
    cells = [row.split("|")[2] for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    spans = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    assert len(spans) > 60
    for span in spans:
        words = span.split()
        command = words[1] if words[0] == "knn" else None
        assert command is None or command in known, span
        found = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--nproc-per-node"}
        assert found <= (every if command is None else known[command]), span


def test_an_experiment_answers_as_its_own_scripts(left: tuple[Ancestor, dict[str, str]]) -> None:
    """Keys, labels and probabilities of `knn classify`, and the accuracy of result.txt."""
    made, said = left
    expected = softmax(made.scores())
    rows = table(said["classify data/naki --model models/naki --no-vad"])
    assert [row["file"] for row in rows] == list(PIECES)
    labels = bundle.find("models/naki").head_labels
    assert labels == CZECH_DIALECTS
    assert {row["name"] for row in rows} <= set(czech_dialect_names().values())
    for row, probabilities in zip(rows, expected, strict=True):
        best = np.argsort(-probabilities)[:3]
        assert [row[name] for name in ("label", "label_2", "label_3")] == [labels[column] for column in best]
        shares = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        np.testing.assert_allclose(shares, probabilities[best], atol=2e-4)
    lines = answers(done("classify", "data/naki", "--model", "models/naki", "--no-vad", "--json").stdout)
    found = np.array([[line["probabilities"][label] for label in labels] for line in lines])
    np.testing.assert_allclose(found, expected, atol=2e-5)
    truth = np.array([labels.index(dialect) for dialect in DIALECTS])
    right = (expected.argmax(axis=1) == truth).mean()
    for command in (
        ("evaluate", "naki.h5", "--model", "models/naki", "--no-vad"),
        ("evaluate", "exp/NAKI-WavLM/embeddings/NAKI/avg_model/scores.h5", "--scores"),
    ):
        (figures,) = answers(done(*command, "--json", "--draws", "0").stdout)
        assert figures["rows"] == len(PIECES) and figures["figures"]["accuracy"][0] == pytest.approx(right, abs=1e-6)
    assert "1-1 Northeastern Bohemian" in Path("report/report.html").read_text()
    assert len(table(Path("answers.tsv").read_text())) == 1 and Path("report/report.html").is_file()


def test_lists_become_stores(left: tuple[Ancestor, dict[str, str]]) -> None:
    counts = {"naki": 6, "corpus": 6, "raw": 6, "shards": 6, "heard": 12, "emb": 6, "theirs": 6, "scores": 6}
    for name, rows in counts.items():
        known = hdf5.labels(Path(f"{name}.h5"))
        assert len(known) == rows, name
        pairs = Counter(zip(known.name.tolist(), known.subgroup.tolist(), strict=True))
        assert pairs == Counter({pair: rows // 3 for pair in PIECES.values()}), name
        assert set(known.speaker.tolist()) == {""}, name
    with Store(Path("heard.h5")) as store:
        spans = Counter((row.start, row.end) for row in store.segments())
    assert spans == {(0.5, 1.5): 6, (2.0, 2.75): 6}
    with Store(Path("shards.h5")) as store:
        found = sorted(float(np.square(row.waveform.samples).sum()) for row in store.segments())
    np.testing.assert_allclose(found, sorted(float(np.square(corpora.sound(key)).sum()) for key in PIECES), rtol=1e-3)


def test_embeddings_are_theirs(left: tuple[Ancestor, dict[str, str]]) -> None:
    made, said = left
    expected = made.embeddings()
    np.testing.assert_allclose(hdf5.read("emb.h5").data, expected, atol=1e-4)
    np.testing.assert_array_equal(hdf5.read("theirs.h5").data, expected)
    np.testing.assert_array_equal(hdf5.read("scores.h5").data, made.scores())
    np.testing.assert_allclose([row for _, row in kaldi.read_scp(Path("xvector.scp"))], expected, atol=1e-4)
    (line,) = said["embed recordings/1-1/10_A.wav --model models/naki --no-vad"].splitlines()
    assert line.startswith("10_A ") and len(line.strip("] ").split("[")[1].split()) == 6
    for name in ("text", "all"):
        rows = hdf5.read(f"{name}.h5")
        assert list(zip(rows.name.tolist(), rows.subgroup.tolist(), strict=True)) == [("10_A", "1-1")] * 2
        np.testing.assert_allclose(rows.data, made.ecapa[:2], rtol=1e-6)


def test_a_training_of_its_settings(left: tuple[Ancestor, dict[str, str]]) -> None:
    _, said = left
    trained = bundle.find("models/mine")
    assert trained.head_labels == tuple(sorted(set(DIALECTS))) and trained.chunk == "whole"
    assert len((Path("models/mine.training") / "metrics.jsonl").read_text().splitlines()) == 2
    rows = table(said["classify data/naki --model models/mine --no-vad"])
    assert [row["file"] for row in rows] == list(PIECES) and {row["label"] for row in rows} <= set(DIALECTS)
    assert Path("mine.onnx").is_file() == HAS_ONNX and "models/mine" in said["info models/mine"]
    assert "augment" in Path("recipe.toml").read_text() and (not HAS_LMDB or "lmdb" in Path("recipe.toml").read_text())


def test_the_mean_of_checkpoints(left: tuple[Ancestor, dict[str, str]]) -> None:
    """Those of epochs 19 and 20 lie around avg_model.pt, which their mean is."""
    averaged, whole = (bundle.load_network(bundle.find(f"models/{name}")).state_dict() for name in ("averaged", "naki"))
    assert averaged.keys() == whole.keys()
    for key, value in whole.items():
        np.testing.assert_allclose(averaged[key].numpy(), value.numpy(), rtol=1e-5, atol=1e-6, err_msg=key)


def test_a_linear_classifier_measures_as_glc_py(left: tuple[Ancestor, dict[str, str]]) -> None:
    made, _ = left
    assert bundle.find("models/glc").config["names"]["4-2"] == "Silesian-Polish"
    split = read_split(Path("split.tsv"))
    sides = split.part_of(np.array(made.names))
    test = sides == "test"
    train = sides == "train"
    labels = np.array(made.dialects)
    assert not (test & np.isin(labels, ancestor.GERMAN)).any()
    drawn = {
        (name, label)
        for name, label in zip(made.names, made.dialects, strict=True)
        if name in set(np.array(made.names)[test])
    }
    assert Counter(label for _, label in drawn) == dict.fromkeys(CZECH_DIALECTS, 15)
    classes = sorted(set(labels[train]))
    truth = np.array([classes.index(label) for label in labels[test]])
    scores = log_likelihoods(made.ecapa[train], labels[train].tolist(), made.ecapa[test])
    command = ("evaluate", "exp/ecapa/embeddings.h5", "--model", "models/glc", "--split", "split.tsv")
    (figures,) = answers(done(*command, "--json", "--draws", "0").stdout)
    assert figures["rows"] == test.sum()
    for name, value in costs(scores, truth).items():
        assert figures["figures"][name][0] == pytest.approx(value, abs=1e-6), name


def test_a_saved_classifier_answers(left: tuple[Ancestor, dict[str, str]]) -> None:
    made, said = left
    with h5py.File("exp/ecapa/glc.h5") as file:
        means = file["means"][()].T
        classes = [text.decode() for text in file["classes"][()]]
    best = np.square(made.ecapa[:, None] - means[None]).sum(axis=2).argmin(axis=1)
    rows = table(said["classify exp/ecapa/embeddings.h5 --model models/glc-of-theirs"])
    assert [row["label"] for row in rows] == [classes[place] for place in best]


def test_turns_and_cleaned_sound(left: tuple[Ancestor, dict[str, str]]) -> None:
    assert sorted(path.name for path in Path("turns/1-1").glob("[!.]*"))[:2] == ["10_A.csv", "10_A_cut.csv"]
    turns = list(csv.DictReader(Path("turns/1-1/10_A.csv").read_text().splitlines()))
    assert turns and list(turns[0]) == ["Start [s]", "End [s]", "Speaker"]
    assert all(float(turn["End [s]"]) - float(turn["Start [s]"]) >= 0.8 for turn in turns)
    kept = soundfile.info("without/1-1/10_A_cut.wav").duration
    assert kept == pytest.approx(21 - 2.0, abs=0.01)
    assert soundfile.info("cleaned/1-1/10_A_cut.wav").duration < 21 - 1.5 - 2.5


def test_trials_are_scored_by_cosine(left: tuple[Ancestor, dict[str, str]]) -> None:
    made, said = left
    unit = made.embeddings().reshape(3, 2, -1).mean(axis=1)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    scores = [float(row["score"]) for row in table(said["verify trials theirs.h5"])]
    np.testing.assert_allclose(scores, [unit[0] @ unit[1], unit[0] @ unit[2]], atol=1e-4)
