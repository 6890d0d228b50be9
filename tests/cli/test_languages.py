"""Declared sets, names beside codes, `unknown` and `zxx` on the command line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy.special import softmax

from knn_cli.cli import output
from knn_cli.recognition.predictions import predict
from knn_cli.store.writer import write_store
from tests.helpers.command import done, knn
from tests.helpers.head_bundles import OPEN_SET, embedded_scores, write_head_bundle

LABELS = ("cs", "de", "pl", "sk", "zxx")
SCORES = [[9.0, 0.0, 0.0, 8.0, -5.0], [0.0, 9.0, 0.5, 0.0, -5.0], [0.2, 0.1, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0, 9.0]]
TRUTH = ["cs", "de", "sk", "zxx"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model with a threshold, one of dialects, embeddings of four rows, a tone, and silence."""
    folder = tmp_path_factory.mktemp("work")
    write_head_bundle(folder / "m", LABELS, open_set=OPEN_SET)
    write_head_bundle(folder / "dialects", ["haná", "lach", "slovácko", "zxx"])
    write_store(folder / "emb.h5", embedded_scores(SCORES, truth=TRUTH))
    (folder / "sounds").mkdir()
    time = np.arange(3 * 16000) / 16000
    soundfile.write(folder / "sounds" / "tone.wav", 0.3 * np.sin(2 * np.pi * 440 * time), 16000)
    soundfile.write(folder / "sounds" / "silence.wav", np.zeros(3 * 16000), 16000)
    return {path.name: path for path in [folder, *folder.iterdir()]}


def lines(
    work: dict[str, Path], *more: str | Path, model: str = "m", command: str = "classify"
) -> list[dict[str, Any]]:
    result = done(command, work["emb.h5"], "--model", work[model], "--device", "cpu", "--json", *more)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_names_stand_beside_codes(work: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(work)
    assert [(line["label"], line["name"]) for line in found] == [
        ("cs", "Czech"), ("de", "German"), ("unknown", None), ("zxx", "no speech")
    ]  # fmt: skip
    head, *rows = (
        line.split("\t")
        for line in done("classify", work["emb.h5"], "--model", work["m"], "--top", "2").stdout.splitlines()
    )
    assert head == ["file", "start", "end", "label", "name", "probability", "label_2", "name_2", "probability_2"]
    assert rows[0][3:5] + rows[0][6:8] == ["cs", "Czech", "sk", "Slovak"]
    assert rows[2][3:8] == ["unknown", "", "", "cs", "Czech"]
    assert "name" not in lines(work, model="dialects")[0]


def test_an_answer_that_is_improbable_is_called_uncertain(work: dict[str, Path]) -> None:
    """Without the threshold, the third row is one of five like scores; without `zxx`, the fourth of four equal ones."""
    found = lines(work, "--no-unknown")
    assert [line["uncertain"] for line in found] == [line["probability"] < 0.5 for line in found]
    assert [line["uncertain"] for line in found] == [False, False, True, True]
    said = done("classify", work["emb.h5"], "--model", work["m"], "--no-unknown").stderr
    assert "; 2 uncertain." in said and "2 of 4 answers are uncertain, with a probability under 50 %" in said
    sure = done("classify", work["emb.h5"], "--model", work["m"]).stderr  # `unknown` is no guess
    assert "uncertain" not in sure


def test_a_declared_set_on_the_command_line(work: dict[str, Path]) -> None:
    """Codes, English and own names; probabilities are the softmax over the set; German is unknown in it."""
    found = lines(work, "--languages", "ces,Polish,slovenčina")
    assert [line["label"] for line in found] == ["cs", "unknown", "unknown", "zxx"]
    shares = [list(line["probabilities"].values()) for line in found]
    no_speech = softmax(np.array(SCORES), axis=1)[:, 4:]
    np.testing.assert_allclose(np.array(shares)[:, 3:], no_speech, atol=1e-6)
    languages = (1 - no_speech) * softmax(np.array(SCORES)[:, [0, 2, 3]], axis=1)
    np.testing.assert_allclose(np.array(shares)[:, :3], languages, atol=1e-6)
    assert list(found[0]["probabilities"]) == ["cs", "pl", "sk", "zxx"]
    always = lines(work, "--languages", "ces,Polish,slovenčina", "--no-unknown")
    assert [line["label"] for line in always] == ["cs", "pl", "cs", "cs"]
    assert list(always[0]["probabilities"]) == ["cs", "pl", "sk"]
    said = done("classify", work["emb.h5"], "--model", work["m"], "--languages", "cs,sk", "-v").stderr
    assert "which knows 5 labels, of which cs, sk and zxx are possible" in said


def test_labels_of_a_model_are_declared_as_they_are(work: dict[str, Path]) -> None:
    found = lines(work, "--languages", "HANA,lach", model="dialects")
    assert list(found[0]["probabilities"]) == ["haná", "lach", "zxx"]


@pytest.mark.parametrize(
    ("languages", "sentence"),
    [
        ("cs,Chinese", "The model m does not know Chinese (zh)."),
        ("cs,Slovakk", "neither a label of the model m nor a known language.\n     Did you mean Slovak (sk)?"),
        ("cs", "A set of languages has two or more, not cs."),
        (",", "A set of languages has two or more, not nothing."),
    ],
)
@pytest.mark.parametrize("command", ["classify", "evaluate", "timeline"])
def test_sets_that_are_refused(work: dict[str, Path], command: str, languages: str, sentence: str) -> None:
    result = knn(command, work["emb.h5"], "--model", work["m"], "--languages", languages)
    assert result.exit_code == 1 and sentence in result.stderr and result.stdout == ""


def test_an_evaluation_takes_both(work: dict[str, Path]) -> None:
    (every,), (some,), (always,) = (
        lines(work, "--draws", "0", *more, command="evaluate")
        for more in ([], ["--languages", "cs,sk"], ["--languages", "cs,sk", "--no-unknown"])
    )
    assert every["figures"]["accuracy"][0] == 0.75 and every["open_set"]["threshold"] == 2.0
    assert some["rows"] == 3 and some["open_set"]["false_accept"] == 0  # German is refused
    assert always["rows"] == 2 and always["open_set"]["false_accept"] == 1 and always["open_set"]["threshold"] is None


def test_recordings_without_speech_are_rows(work: dict[str, Path]) -> None:
    """Music and silence are answers of a model with that label, and errors of others."""
    result = done("classify", work["sounds"], "--model", work["m"], "--json")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == 2
    for line in found:
        assert (line["label"], line["name"], line["probability"]) == ("zxx", "no speech", None)
        assert (line["start"], line["end"], line["probabilities"], line["llr"]) == (0.0, 3.0, None, None)
    assert "2 recordings without speech." in result.stderr and "tone.wav: zxx no speech." in result.stderr
    table = done("classify", work["sounds"], "--model", work["m"]).stdout.splitlines()
    assert table[1].split("\t")[1:] == ["0", "3", "zxx", "no speech", *[""] * 7]
    refused = knn("classify", work["sounds"], "--model", work["m"], "--no-unknown")
    assert refused.exit_code == 1 and "tone.wav holds no speech" in refused.stderr and "--no-vad" in refused.stderr
    assert done("classify", work["sounds"] / "tone.wav", "--model", work["m"], "--no-unknown", "--no-vad").stdout


def test_a_table_on_a_terminal(work: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from knn_cli.recognition.classifier import Classifier

    table = Classifier(work["m"], device="cpu").score(embedded_scores(SCORES))
    output.score_table([(table, predict(table))], 2, "m", {})
    shown = " ".join(capsys.readouterr().out.split())
    assert "cs Czech 73.1%" in shown and "unknown" in shown and "zxx no speech 100.0%" in shown


def test_a_timeline_has_names(work: dict[str, Path]) -> None:
    command = ["timeline", work["sounds"] / "tone.wav", "--model", work["m"], "--no-vad", "--no-unknown"]
    result = done(*command, "--languages", "cs,sk", "--json")
    (span,) = json.loads(result.stdout)["spans"]
    names = {"cs": "Czech", "sk": "Slovak"}
    assert span["name"] == names[span["label"]] and set(span["alternatives"]) == set(names) - {span["label"]}
    assert f"tone.wav: {span['label']} {span['name']} 3 s." in result.stderr
    head, row = (line.split("\t") for line in done(*command, "--languages", "cs,sk").stdout.splitlines())
    assert head[4:7] == ["label", "name", "probability"] and row[5] == span["name"] and len(row) == len(head)


def test_a_set_is_kept_in_a_bundle(work: dict[str, Path], tmp_path: Path) -> None:
    result = done("convert", work["m"], tmp_path / "central", "--languages", "polski,cs,Slovak")
    assert "a model of the labels cs, pl, sk, zxx; name it with `knn classify --model`" in result.stderr
    found = done("classify", work["sounds"] / "tone.wav", "--model", tmp_path / "central", "--no-vad", "--json").stdout
    assert list(json.loads(found)["probabilities"]) == ["cs", "pl", "sk", "zxx"]
    for more, sentence in (
        (["--int8"], "--int8 cannot be combined with --languages"),
        (["--force", "--languages", "cs,x"], "'x' is neither a label of the model m nor a known language."),
    ):
        refused = knn("convert", work["m"], tmp_path / "other", "--languages", "cs,pl", *more)
        assert refused.exit_code == 1 and sentence in refused.stderr and not (tmp_path / "other").exists()


def test_info_lists_what_a_model_knows(work: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNN_MODELS", str(work["m"].parent), prepend=os.pathsep)
    measured = {"cs": {"accuracy": 0.975, "recordings": 40}, "pl": {"accuracy": None, "recordings": 7}}
    write_head_bundle(tmp_path / "m", LABELS, open_set={**OPEN_SET, "false_accept": None}, measured=measured)
    facts = json.loads(done("info", tmp_path / "m", "--json").stdout)
    assert facts["labels"] == list(LABELS) and facts["names"]["pl"] == "Polish" and facts["measured"] == measured
    assert facts["unknown"] == {"threshold": 2.0, "false reject": 0.05, "false accept": None}
    shown = [re.sub(r"^(\w+) {2,}", r"\1  ", line) for line in done("info", tmp_path / "m").stdout.splitlines()]
    assert "unknown  threshold 2.0, false reject 0.05, false accept not known" in shown
    at = shown.index("labels  5")
    assert shown[at : at + 7] == [
        "labels  5",
        "  label  name       accuracy  recordings",
        "  cs     Czech         0.975          40",
        "  de     German",
        "  pl     Polish                        7",
        "  sk     Slovak",
        "  zxx    no speech",
    ]
    assert re.search(r"^labels +cs, de, pl, sk, zxx$", done("info").stdout, flags=re.MULTILINE)
    assert re.search(r"^labels +haná, lach, slovácko, zxx$", done("info", work["dialects"]).stdout, flags=re.MULTILINE)
