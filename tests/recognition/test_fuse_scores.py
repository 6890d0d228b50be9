"""Fusion of files of scores: rows side by side, held-out figures, the file, and quality measures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import ScoreTable
from knn_cli.recognition.fuse_scores import fuse, fused_figures, train_fusion
from knn_cli.recognition.fusion_file import read_fusion, write_fusion
from knn_cli.recognition.quality_measures import quality_of
from knn_cli.recognition.score_tables import read_score_table, write_score_table
from knn_cli.recognition.split_file import Split, SplitLine
from knn_cli.recognition.system_scores import read_systems
from tests.helpers.command import done, knn

LABELS = ("cs", "pl", "sk")


def write_tables(folder: Path, *, rows: int = 90, seed: int = 0, part: str = "dev") -> list[Path]:
    """Scores of two systems that err independently, the second in another unit and order."""
    rng = np.random.default_rng(seed)
    truth = np.arange(rows) % 3
    names = np.asarray([f"{part}{row}" for row in range(rows)])
    paths = []
    for number, unit in enumerate((4.0, 0.2)):
        scores = unit * (3 * np.eye(3)[truth] + 1.5 * rng.normal(size=(rows, 3)))
        table = ScoreTable(LABELS, scores, names, np.zeros(rows), np.full(rows, 5.0), np.asarray(LABELS)[truth])
        paths.append(folder / f"{part}_{'ab'[number]}.tsv")
        with paths[-1].open("w", encoding="utf-8") as file:
            write_score_table(table.take(np.arange(rows)[:: 1 - 2 * number]), file)
    return paths


def write_trials(folder: Path, speakers: int = 12, clips: int = 3, seed: int = 0) -> list[Path]:
    rng = np.random.default_rng(seed)
    names = [f"s{speaker}-{clip}" for speaker in range(speakers) for clip in range(clips)]
    pairs = [(one, two) for place, one in enumerate(names) for two in names[place + 1 :]]
    target = np.asarray([one.split("-")[0] == two.split("-")[0] for one, two in pairs])
    paths = [folder / "trials_a.tsv", folder / "trials_b.txt"]
    scores = rng.normal(size=(2, len(pairs))) + target * 2.0
    rows = zip(pairs, scores[0], target, strict=True)
    table = "".join(f"{one}\t{two}\t{score:.6f}\t{int(key)}\n" for (one, two), score, key in rows)
    paths[0].write_text("enrol\ttest\tscore\ttarget\n" + table)
    lines = [f"{one} {two} {score:.6f}\n" for (one, two), score in zip(pairs, scores[1], strict=True)]
    paths[1].write_text("".join(reversed(lines)))
    return paths


def test_fusion_of_languages(tmp_path: Path) -> None:
    systems = read_systems(write_tables(tmp_path))
    trained = train_fusion(systems)
    figures = {(row.name, row.scores): row.figures for row in trained.figures}
    assert trained.tested == 90 and list(figures) == [
        ("dev_a", "as given"),
        ("dev_a", "calibrated"),
        ("dev_b", "as given"),
        ("dev_b", "calibrated"),
        ("fusion", "fused"),
    ]
    for name in ("dev_a", "dev_b"):
        assert figures[name, "calibrated"]["cllr"] < figures[name, "as given"]["cllr"]
        assert figures["fusion", "fused"]["cllr"] < figures[name, "calibrated"]["cllr"]
        assert figures["fusion", "fused"]["eer"] < figures[name, "calibrated"]["eer"]
    write_fusion(tmp_path / "fusion.json", trained.model)
    model = read_fusion(tmp_path / "fusion.json")
    test = read_systems(write_tables(tmp_path, seed=1, part="test"))
    fused = fuse(model, test)
    assert isinstance(fused, ScoreTable) and fused.truth.tolist() == test.truth.tolist()
    np.testing.assert_allclose(fused.log_likelihood, trained.model.fusion.apply(test.scores))
    assert fused_figures(fused)["cllr"] < 0.5


def test_held_out_rows_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores without information stay without, which they do not if what is measured is trained on."""
    systems = read_systems(write_tables(tmp_path, rows=30))

    noise = np.random.default_rng(0).normal(size=(8, 30, 3))
    blind = replace(systems, scores=noise, systems=tuple("abcdefgh"))
    trained = train_fusion(blind)
    own = fused_figures(fuse(trained.model, blind))
    assert own["cllr"] < np.log2(3) < trained.figures[-1].figures["cllr"]


def test_folds_of_a_split(tmp_path: Path) -> None:
    """A side that is held out is what is tested."""
    systems = read_systems(write_tables(tmp_path))
    assert isinstance(systems.rows, ScoreTable)
    names = systems.rows.name.tolist()
    lines = [SplitLine(name, name, "", "test" if row < 30 else "train") for row, name in enumerate(names)]
    split = Split(tuple(lines), {"kind": "held-out", "label": "group", "units": "name", "ignore": []}, 0)
    assert train_fusion(systems, folds=split).tested == 30


def test_trials_of_held_out_speakers(tmp_path: Path) -> None:
    systems = read_systems(write_trials(tmp_path))
    trained = train_fusion(systems, folds=3)
    figures = {(row.name, row.scores): row.figures for row in trained.figures}
    assert trained.tested == 3 * (12 // 3 * 3) * (12 // 3 * 3 - 1) // 2  # all pairs of the 12 clips of each fold
    assert figures["fusion", "fused"]["cllr"] < figures["trials_a", "calibrated"]["cllr"] < 1
    assert trained.model.kind == "trials"
    fused = fuse(trained.model, systems)
    assert isinstance(fused, tuple) and fused_figures(fused)["eer"] < 0.12
    with pytest.raises(KnnError, match="12 speakers are too few for 12 folds"):
        train_fusion(systems, folds=12)


def test_quality_measures(tmp_path: Path) -> None:
    systems = read_systems(write_tables(tmp_path))
    assert quality_of(systems, ["seconds"]).tolist() == [[pytest.approx(np.log(5))]] * 90
    table = tmp_path / "quality.tsv"
    table.write_text("name\tstart\tend\tsnr\tspeech_seconds\ndev0\t0\t5\t12\t2.5\ndev1\t\t\t20\t4\ndev2\t5\t9\t1\t1\n")
    measures = quality_of(systems, ["snr", "speech_seconds"], table)
    assert measures[0].tolist() == [12, pytest.approx(np.log(2.5))] and measures[1, 0] == 20
    assert np.isnan(measures[2:]).all()
    with pytest.raises(KnnError, match="The quality measure level is not known"):
        quality_of(systems, ["level"], table)
    trials = read_systems(write_trials(tmp_path))
    table.write_text("name\tsnr\ns0-0\t10\ns0-1\t20\n")
    assert quality_of(trials, ["snr"], table)[0, 0] == 15  # the first trial is of these two


def _without_the_last(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def test_what_does_not_go_together_is_named(tmp_path: Path) -> None:
    paths = write_tables(tmp_path)
    trials = write_trials(tmp_path)
    with pytest.raises(KnnError, match=r"scores of speaker trials, and .*dev_a.tsv scores of labels"):
        read_systems([paths[0], trials[0]])
    other = tmp_path / "other.tsv"
    other.write_text(paths[1].read_text().replace("\tpl\t", "\thu\t", 1))
    with pytest.raises(KnnError, match=r"have different labels: hu, pl, the first only in .*other.tsv"):
        read_systems([paths[0], other])
    head, first, *rest = paths[1].read_text().splitlines(keepends=True)
    other.write_text("".join([head, first.replace("\tsk\t", "\tcs\t"), *rest]))
    with pytest.raises(KnnError, match="has the true label 'cs' for 'dev89', others 'sk'"):
        read_systems([paths[0], other])
    _without_the_last(paths[1])
    with pytest.raises(KnnError, match=r"dev_b.tsv lacks 1 of the 90 rows of .*dev_a.tsv: 'dev0' 0-5 s"):
        read_systems(paths)
    _without_the_last(trials[1])
    with pytest.raises(KnnError, match=r"trials_b.txt lacks 1 of the 630 rows of .*trials_a.tsv: s0-0 s0-1"):
        read_systems(trials)


def test_refusals_of_a_fusion(tmp_path: Path) -> None:
    paths = write_tables(tmp_path)
    model = train_fusion(read_systems(paths), folds=0).model
    with pytest.raises(KnnError, match="of 2 systems, dev_a, dev_b, and there are 1 files"):
        fuse(model, read_systems(paths[:1]))
    with pytest.raises(KnnError, match="is of labels"):
        fuse(model, read_systems(write_trials(tmp_path)))
    write_fusion(tmp_path / "fusion.json", model)
    content = json.loads((tmp_path / "fusion.json").read_text())
    for change in ({"weights": [[1.0]]}, {"schema": 9}, {"kind": "x"}, {"offsets": [[1], [2], [None]]}, {"labels": 3}):
        (tmp_path / "bad.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(KnnError, match=r"bad\.json (is not a fusion|has the schema 9)"):
            read_fusion(tmp_path / "bad.json")


def test_command(tmp_path: Path) -> None:
    dev, test = write_tables(tmp_path), write_tables(tmp_path, seed=1, part="test")
    fusion, out = tmp_path / "fusion.json", tmp_path / "fused.tsv"
    result = done("fuse", *dev, "-o", fusion)
    assert result.stdout.splitlines()[0].split("\t")[:4] == ["system", "scores", "weight", "accuracy"]
    assert result.stdout.splitlines()[-1].startswith("fusion\tfused\t")
    result = done("fuse", *test, "--fusion", fusion, "-o", out)
    assert "cllr" in result.stderr and read_score_table(out).labels == LABELS
    lines = done("fuse", *test, "--fusion", fusion, "--json").stdout.splitlines()
    assert len(lines) == 90 and json.loads(lines[0])["label"] in LABELS
    assert "cannot be combined" in knn("fuse", *test, "--fusion", fusion, "--seed", "1").stderr
    assert "needs a file" in knn("fuse", *test).stderr


def test_command_with_trials_keys_and_priors(tmp_path: Path) -> None:
    trials = write_trials(tmp_path)
    fusion = tmp_path / "fusion.json"
    done("fuse", *trials, "--folds", "3", "--priors", "target=1,nontarget=9", "-o", fusion)
    result = done("fuse", *trials, "--fusion", fusion)
    assert result.stdout.splitlines()[0] == "enrol\ttest\tscore\ttarget" and "min_dcf_0.01" in result.stderr
    keys = tmp_path / "keys.txt"
    rows = [line.split("\t") for line in trials[0].read_text().splitlines()[1:]]
    keys.write_text("".join(f"{row[0]} {row[1]} {'nontarget' if row[3] == '0' else 'target'}\n" for row in rows))
    keyed = tmp_path / "keyed.json"
    done("fuse", trials[1], "--keys", keys, "--folds", "0", "-o", keyed)
    weights: NDArray[np.float64] = read_fusion(keyed).fusion.weights
    assert weights.shape == (1, 1) and weights[0, 0] > 1
