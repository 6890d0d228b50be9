"""Training and scoring as functions: what is held out, what is refused, what a bundle carries."""

from __future__ import annotations

import dataclasses
import hashlib
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import EmbeddingSet, ScoreTable
from knn_cli.evaluation import metrics
from knn_cli.networks import bundle
from knn_cli.recognition import splitters
from knn_cli.recognition import train_classifier as train_module
from knn_cli.recognition.calibration import Calibration, smoothing_of
from knn_cli.recognition.classifier import Classifier, posteriors
from knn_cli.recognition.classifier_file import read_classifier
from knn_cli.recognition.glc import GaussianLinearClassifier, cross_validated_log_likelihood
from knn_cli.recognition.make_split import SplitOptions, make_split
from knn_cli.recognition.split_file import read_split, write_split
from knn_cli.recognition.train_classifier import fitted_hash, train_classifier
from knn_cli.recognition.training_steps import cross_validation, embedding_source, held_out_scoring
from knn_cli.recognition.training_steps.options import parse_shrinkage
from knn_cli.recognition.training_steps.rows import TrainingRows
from knn_cli.store.writer import write_store
from tests.helpers.embedding_sets import blobs, labelled


def test_figures_are_those_of_held_out_recordings(tmp_path: Path) -> None:
    rows = blobs()
    done = train_classifier(rows, tmp_path / "m")
    assert done.units == "recordings" and done.calibrated
    assert {one: sum(counts) for one, counts in done.counts.items()} == {"a": 48, "b": 48, "c": 48}
    assert all(held % 8 == 0 and held for _, held in done.counts.values())  # whole recordings
    assert 0.8 < done.accuracy <= 1 and done.min_cprimary <= done.cprimary < 0.5
    assert done.bundle.config["training"]["held_out"]["accuracy"] == done.accuracy
    assert f"{done.accuracy:.1%}" in (tmp_path / "m" / "README.md").read_text()


def test_the_bundle_is_calibrated_on_rows_it_never_saw(tmp_path: Path) -> None:
    train_classifier(blobs(0), tmp_path / "m")
    classifier = Classifier(tmp_path / "m")
    table = classifier.score(blobs(1))
    index = np.searchsorted(table.labels, blobs(1).subgroup)
    llr = metrics.detection_llr(table.log_likelihood)
    assert metrics.cprimary(llr, index) - metrics.min_cprimary(llr, index) < 0.15  # six recordings of each class
    assert abs(llr).max() < np.log(13)
    chances = posteriors(table)
    assert np.allclose(chances.sum(axis=1), 1)
    assert 0.75 < chances.max(axis=1).mean() < metrics.accuracy(chances.argmax(axis=1), index) + 0.06


def test_what_few_recordings_support(tmp_path: Path) -> None:
    """Classes that are far apart: scores are bounded by their recordings, the bundle says so, and that they are few."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], [12, 24])
    rows = EmbeddingSet.from_columns(
        rng.normal(size=(36, 3)) + 100.0 * (labels == "b")[:, None],
        [f"{label}{row // 2}" for row, label in enumerate(labels)],
        subgroup=labels,
    )
    done = train_classifier(rows, tmp_path / "m")
    assert done.separates and done.few_units == {"a": 6}
    certainty = done.bundle.config["training"]["certainty"]
    assert certainty["units"] == {"a": 6, "b": 12} and certainty["smoothing"] == pytest.approx((2 / 8 + 2 / 14) / 2)
    llr = metrics.detection_llr(Classifier(tmp_path / "m").score(rows).log_likelihood)
    assert certainty["least_llr"] <= llr.min() and llr.max() <= certainty["largest_llr"] < np.log(13)
    assert "more would be no evidence" in (tmp_path / "m" / "README.md").read_text()
    assert llr.max() > np.log(7)
    raw = train_classifier(rows, tmp_path / "raw", calibration="none")
    assert "certainty" not in raw.bundle.config["training"]
    assert metrics.detection_llr(Classifier(tmp_path / "raw").score(rows).log_likelihood).max() > 100


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    first, again, other = (train_classifier(blobs(), tmp_path / f"m{n}", seed=seed) for n, seed in enumerate((1, 1, 2)))
    assert first.cprimary == again.cprimary != other.cprimary


def test_ignored_and_unlabelled_rows_are_left_out(tmp_path: Path) -> None:
    rows = blobs()
    rows.subgroup[:8] = ""
    done = train_classifier(rows, tmp_path / "m", ignore=["c"])
    assert done.left_out == 56 and list(done.counts) == ["a", "b"]


def test_refusals(tmp_path: Path) -> None:
    one_recording = EmbeddingSet.from_columns(
        np.random.default_rng(0).normal(size=(12, 3)),
        ["x"] * 6 + [f"y{i}" for i in range(6)],
        subgroup=["a"] * 6 + ["b"] * 6,
    )
    for rows, arguments, message in (
        (blobs(), {"label": "colour"}, "no label level"),
        (blobs(), {"label": "group"}, "there is none"),
        (blobs(), {"ignore": ["a", "b"]}, "there is only 'c'"),
        (blobs(), {"view": "speaker"}, "no view 'speaker'"),
        (one_recording, {}, "'a'"),
    ):
        with pytest.raises(KnnError, match=message):
            train_classifier(rows, tmp_path / "m", **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_embeddings_of_another_model_are_refused_and_unknown_ones_taken(tmp_path: Path) -> None:
    train_classifier(blobs(embedder="one@111"), tmp_path / "m")
    classifier = Classifier(tmp_path / "m")
    with pytest.raises(BundleError, match="of two@222, the model works on those of one@111"):
        classifier.score(blobs(embedder="two@222"))
    assert len(classifier.score(blobs(embedder="renamed@111"))) == 144
    assert len(classifier.score(blobs())) == 144
    with pytest.raises(BundleError, match="No model here computes embeddings of one@111"):
        classifier.embedder  # noqa: B018


def test_a_bundle_takes_its_embedder_along(tmp_path: Path) -> None:
    tiny = bundle.find("tiny-test")
    rows = blobs(embedder=tiny.fingerprint)
    wide = EmbeddingSet.from_columns(
        np.tile(rows.data, (1, 5))[:, :24], rows.name, subgroup=rows.subgroup, embedder=rows.embedder
    )
    noisy = EmbeddingSet.from_columns(
        wide.data + 0.1 * np.random.default_rng(0).normal(size=wide.data.shape),
        rows.name,
        subgroup=rows.subgroup,
        embedder=rows.embedder,
    )
    made = train_classifier(noisy, tmp_path / "m").bundle
    assert made.has_network and bundle.same_embedder(made.fingerprint, tiny.fingerprint)
    assert Classifier(made.folder).embedder.dimension == 24


def test_a_model_without_labels_is_refused() -> None:
    with pytest.raises(BundleError, match="knows no labels"):
        Classifier("tiny-test")


EVERYTHING: list[dict[str, Any]] = [
    {},
    {"balanced": True, "priors": "empirical", "calibration": "temperature"},
    {"transforms": "center,whiten,lda:3,length", "duration_aware": True, "ignore": ["e"]},
    {"units": "speaker", "out_of_set": ["d", "e"], "groups": {"a": "x", "b": "x", "c": "y"}},
    {"out_of_set": ["d", "e"], "out_of_set_class": True, "groups": {"a": "x", "b": "x", "c": "y"}},
    {"calibration": "none", "priors": {"a": 2, "b": 1, "c": 1, "d": 1, "e": 1}, "false_reject": 0.1},
    {"label": "speaker", "transforms": "length", "balanced": True, "refit": False},
    {"label": "name"},
]


@pytest.mark.parametrize("options", EVERYTHING)
def test_a_store_gives_the_same_bits_as_its_rows_and_all_comes_back(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_source, "MAX_BLOCK_VALUES", 1)  # several blocks
    monkeypatch.setattr(embedding_source, "BLOCK_ROWS", 64)
    monkeypatch.setattr(held_out_scoring, "MAX_CALIBRATION_ROWS", 100)
    rows = labelled()
    write_store(tmp_path / "rows.h5", rows)
    kept = dataclasses.asdict(train_classifier(rows, tmp_path / "memory" / "m", **options))
    done = train_classifier(tmp_path / "rows.h5", tmp_path / "store" / "m", **options)
    assert repr({**dataclasses.asdict(done), "bundle": 0}) == repr({**kept, "bundle": 0})
    with (
        h5py.File(tmp_path / "memory" / "m" / "classifier.h5") as one,
        h5py.File(tmp_path / "store" / "m" / "classifier.h5") as two,
    ):
        names: list[str] = []
        one.visit(names.append)
        other: list[str] = []
        two.visit(other.append)
        assert names == other
        for name in names:
            if isinstance(one[name], h5py.Dataset):
                assert np.asarray(one[name][()]).tobytes() == np.asarray(two[name][()]).tobytes() or (
                    one[name].dtype.kind == "O" and np.array_equal(one[name][()], two[name][()])
                )
    model = Classifier(tmp_path / "store" / "m")
    assert sum(model.priors.values()) == pytest.approx(1) and list(model.priors) == list(model.labels)
    if isinstance(options.get("priors"), dict):
        assert model.priors["a"] == pytest.approx(2 / 6)
    assert model.trained is not None
    assert model.trained.transforms.spec == options.get("transforms", "")
    assert (model.trained.plda is not None) == done.plda == (options.get("label") == "speaker")
    assert repr(model.trained.open_set) == repr(done.open_set)  # NaN for what there was no row for
    assert (model.trained.calibration.exponent != 0) == options.get("duration_aware", False)
    whole = model.score(rows)
    parts = list(model.score_store(tmp_path / "rows.h5"))
    np.testing.assert_array_equal(ScoreTable.concatenate(parts).log_likelihood, whole.log_likelihood)
    assert whole.threshold == (None if done.open_set is None else done.open_set.threshold)
    if groups := options.get("groups"):
        assert whole.groups == tuple({**groups, "unknown": "unknown"}[one] for one in whole.labels)
    assert model.transform(rows.data).shape == (len(rows), model.trained.classifier.means_.shape[1])


def test_figures_are_of_classifiers_that_saw_none_of_the_rows(tmp_path: Path) -> None:
    """By brute force: each fold of a split of sources, a plain classifier of the others, its own calibration folds."""
    rows = labelled(recordings=9)
    made = make_split(rows, SplitOptions(kind="leave-one-out", units="group"))
    done = train_classifier(rows, tmp_path / "m", split=made, calibration="none")
    scores = np.empty((len(rows), 5))
    for group in ("g0", "g1", "g2"):
        test = rows.group == group
        plain = GaussianLinearClassifier(shrinkage="auto").fit(rows.data[~test], rows.subgroup[~test])
        scores[test] = plain.log_likelihood(rows.data[test])
    index = np.searchsorted(list("abcde"), rows.subgroup)
    assert done.accuracy == metrics.accuracy(scores.argmax(axis=1), index)
    assert done.cllr == pytest.approx(metrics.cllr(scores, index), rel=1e-9)
    assert done.counts == {one: (54, 54) for one in "abcde"} and done.units == "groups"


@pytest.mark.parametrize("balanced", [False, True])
def test_calibration_is_that_of_a_plain_cross_validation(tmp_path: Path, balanced: bool) -> None:
    rows = labelled()
    train_classifier(rows, tmp_path / "m", balanced=balanced)
    plain = GaussianLinearClassifier(shrinkage="auto", balanced=balanced)
    folds = splitters.folds(rows.name, rows.subgroup, count=5, seed=0)
    crossed = cross_validated_log_likelihood(plain, rows.data, rows.subgroup, folds)
    units = [len(np.unique(rows.name[rows.subgroup == label])) for label in "abcde"]
    expected = Calibration.fit(crossed, rows.subgroup, list("abcde"), smoothing=smoothing_of(units))
    found = Classifier(tmp_path / "m").trained
    assert found is not None and found.calibration.smoothing == expected.smoothing
    assert found.calibration.scale == pytest.approx(expected.scale, rel=1e-6)
    np.testing.assert_allclose(found.calibration.offsets, expected.offsets, atol=1e-6)
    plain.fit(rows.data, rows.subgroup)
    np.testing.assert_allclose(found.classifier.covariance_, plain.covariance_, rtol=1e-12, atol=1e-12)


def test_a_split_from_a_file_decides_what_is_held_out(tmp_path: Path) -> None:
    rows = labelled()
    made = make_split(rows, SplitOptions(kind="quartiles", number=2, ignore=["e"]))
    write_split(tmp_path / "s.tsv", made)
    done = train_classifier(rows, tmp_path / "m", split=read_split(tmp_path / "s.tsv"))
    assert done.counts == {one: (12, 24) for one in "abcd"} and done.left_out == 36
    assert done.bundle.config["training"]["split"] == {
        **made.rule,
        "seed": 0,
        "sha256": hashlib.sha256((tmp_path / "s.tsv").read_bytes()).hexdigest(),
    }
    # The bundle has not seen the side test, and is what the figures are of.
    side = made.part_of(rows.name)
    model = Classifier(tmp_path / "m")
    assert not done.refitted and model.trained is not None and model.trained.classifier.counts_.tolist() == [12] * 4
    table = model.score(rows.take(side == "test"))
    index = np.searchsorted(table.labels, table.truth)
    assert done.accuracy == metrics.accuracy(table.log_likelihood.argmax(axis=1), index)
    assert done.cllr == metrics.cllr(table.log_likelihood, index)
    again = train_classifier(rows, tmp_path / "r", split=made, refit=True)
    assert again.cllr == pytest.approx(done.cllr, rel=1e-9) and again.refitted
    assert Classifier(tmp_path / "r").trained.classifier.counts_.tolist() == [36] * 4  # type: ignore[union-attr]
    with pytest.raises(KnnError, match="no side to fit"):
        train_classifier(rows, tmp_path / "o", split=make_split(rows, SplitOptions(kind="folds")), refit=False)
    some = rows.take(~np.isin(rows.name, ["a5", "e0"]))
    test_side = [line.recording for line in made.lines if line.part == "test"]
    assert train_classifier(some, tmp_path / "n", split=made).not_in_store == ("a5",)
    with pytest.raises(KnnError, match="'b' has no recording on the side test"):
        gone = np.isin(rows.name, test_side) & (rows.subgroup == "b")
        train_classifier(rows.take(~gone), tmp_path / "o", split=made)
    with pytest.raises(KnnError, match="does not know the recording 'zz'"):
        rows.name[3] = "zz"
        train_classifier(rows, tmp_path / "o", split=made)


def test_out_of_set_rows_choose_the_threshold_and_others_report(tmp_path: Path) -> None:
    rows = labelled(recordings=10)
    done = train_classifier(rows, tmp_path / "m", out_of_set=["d", "e"])
    opened = done.open_set
    assert opened is not None and list(done.counts) == ["a", "b", "c"]
    assert opened.unknown == 60 and opened.known == sum(held for _, held in done.counts.values())
    assert opened.false_accept < 0.5 and opened.false_reject < 0.5
    assert 0 < opened.threshold < 20 and "held-out" in opened.chosen
    assert Classifier(tmp_path / "m").score(rows).threshold == opened.threshold
    assert Classifier(tmp_path / "m", open_set=False).score(rows).threshold is None
    strict = train_classifier(rows, tmp_path / "n", out_of_set=["d", "e"], false_reject=0.0).open_set
    assert strict is not None and strict.threshold < opened.threshold and strict.false_accept > opened.false_accept
    explicit = train_classifier(rows, tmp_path / "o", out_of_set=["d", "e"], out_of_set_class=True)
    assert explicit.open_set is None and list(explicit.counts) == ["a", "b", "c", "unknown"]


def test_more_refusals(tmp_path: Path) -> None:
    rows = labelled(recordings=2)
    for arguments, message in (
        ({"calibration": "isotonic"}, "no calibration 'isotonic'"),
        ({"units": "colour"}, "no label level 'colour'"),
        ({"transforms": "rotate"}, "no transform 'rotate'"),
        ({"transforms": "lda:9"}, "keeps at most 4"),
        ({"priors": dict.fromkeys("abcdef", 1)}, "'f' has a prior and is not a label"),
        ({"priors": dict.fromkeys("abcde", 0)}, "positive"),
        ({"groups": {"a": "x"}}, "has no group: 'b'"),
        ({"out_of_set": ["z"]}, "outside the closed set: z"),
        ({"out_of_set": ["d"], "out_of_set_class": True, "false_reject": 0.1}, "no threshold"),
        ({"out_of_set": ["e"]}, "the 4 classes has too few recordings to choose .* 'a', 'b', 'c', 'd'"),
        ({"out_of_set": ["d"], "false_reject": 1.0}, "lies in"),
        ({"false_reject": -0.1}, "lies in"),
        ({"out_of_set_class": True}, "Name them"),
        ({"calibration": "none", "duration_aware": True}, "not calibrated"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"split": make_split(rows), "units": "speaker"}, "keeps recordings disjoint"),
        ({"split": make_split(rows), "fraction": 0.2}, "already defines the held-out recordings"),
        ({"units": "speaker"}, r"Each of the 5 classes has a single .* 'a', 'b', 'c', 'd', 'e'. Add recordings, or"),
        ({"label": "name", "units": "speaker"}, "cannot be kept whole"),
    ):
        with pytest.raises(KnnError, match=message):
            train_classifier(rows, tmp_path / "m", **arguments)  # type: ignore[arg-type]
    silent = EmbeddingSet.from_columns(rows.data, rows.name, subgroup=rows.subgroup)
    with pytest.raises(KnnError, match="no start and end"):
        train_classifier(silent, tmp_path / "m", duration_aware=True)
    assert list(tmp_path.iterdir()) == []


def test_posteriors_with_priors() -> None:
    blank, none = np.array([""]), np.array([np.nan])
    table = ScoreTable(("a", "b"), np.log([[0.5, 0.5]]), blank, none, none)
    np.testing.assert_allclose(posteriors(table, {"a": 3}), [[0.75, 0.25]])  # others 1


def test_out_of_set_rows_on_the_side_test_do_not_choose_the_threshold(tmp_path: Path) -> None:
    rows = labelled(recordings=10)
    made = make_split(rows, SplitOptions(units="speaker"))
    side = made.part_of(rows.name)
    strange = np.isin(rows.subgroup, ["d", "e"])

    def opened(shifted: Any, name: str) -> Any:
        data = rows.data.copy()
        data[shifted] = rows.data[rows.subgroup == "a"][0]  # for all the world a row of a
        return train_classifier(
            dataclasses.replace(rows, data=data), tmp_path / name, out_of_set=["d", "e"], split=made
        )

    plain = opened(np.zeros(len(rows), bool), "plain")
    assert plain.open_set == opened(strange & (side == "test"), "test").open_set
    assert plain.open_set != opened(strange & (side == "train"), "train").open_set
    assert plain.open_set is not None and plain.disjoint_by == "labels" and "other labels" in plain.open_set.chosen
    per_label = [int(np.sum((rows.subgroup == one) & (side == "train"))) for one in "de"]
    assert plain.open_set.unknown in per_label  # the one label chooses, the other reports
    assert "chose the threshold are of other labels" in (tmp_path / "plain" / "README.md").read_text()
    assert plain.left_out == 0
    one = train_classifier(rows, tmp_path / "one", out_of_set=["e"], ignore=["d"], split=made)
    assert one.disjoint_by == "speakers" and one.open_set is not None and 0 < one.open_set.unknown < per_label[1]
    gone = rows.take(~(strange & (side == "train")))
    with pytest.raises(KnnError, match="on the side test"):
        train_classifier(gone, tmp_path / "m", out_of_set=["d", "e"], split=made)
    ignoring = make_split(rows, SplitOptions(units="speaker", ignore=["d", "e"]))
    known = train_classifier(rows, tmp_path / "ignoring", out_of_set=["d", "e"], split=ignoring).open_set
    assert known is not None and known.unknown == 60  # strangers of no side are all there to choose and report
    with pytest.raises(KnnError, match="No row outside the closed set is on a side"):
        train_classifier(rows, tmp_path / "m", out_of_set=["d", "e"], split=ignoring, out_of_set_class=True)


def test_out_of_set_rows_of_a_fold_choose_for_the_other_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = labelled(recordings=10)
    made = make_split(rows, SplitOptions(kind="folds", count=3))
    fold = made.part_of(rows.name)
    seen: dict[str, tuple[held_out_scoring.HeldOutScores, TrainingRows]] = {}
    plain = held_out_scoring.HeldOutScorer.score

    def part(
        self: held_out_scoring.HeldOutScorer, one: cross_validation.TrainTestSplit, models: Any
    ) -> held_out_scoring.HeldOutScores:
        outcome = plain(self, one, models)
        seen[one.name] = outcome, self.rows
        return outcome

    monkeypatch.setattr(held_out_scoring.HeldOutScorer, "score", part)
    done = train_classifier(rows, tmp_path / "m", split=made, out_of_set=["d", "e"])
    assert sorted(seen) == ["", "0", "1", "2"] and done.open_set is not None and done.refitted
    for name, (outcome, own) in seen.items():
        half = [own.half == 0, own.half == 1]
        assert {len(set(rows.subgroup[one])) for one in half} == {1}
        if name:
            assert len(outcome.choosing) == np.sum(half[0] & (fold != name))
            np.testing.assert_array_equal(outcome.reporting_rows, np.flatnonzero(half[1] & (fold == name)))
        else:
            assert len(outcome.choosing) == 60
    assert done.open_set.unknown == 60
    nested = make_split(rows, SplitOptions(kind="leave-one-out", units="group"))
    nested = dataclasses.replace(
        nested,
        lines=tuple(one._replace(part="g0") if one.label in "de" and one.part else one for one in nested.lines),
    )
    with pytest.raises(KnnError, match="Outside one of the folds"):
        train_classifier(rows, tmp_path / "n", split=nested, out_of_set=["d", "e"])


def test_a_bundle_knows_what_it_was_fitted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fitted(**options: Any) -> Any:
        train_classifier(rows, tmp_path / "m", force=True, **options)
        assert "fitted" not in bundle.find(tmp_path / "m").config["training"]  # the card of a bundle is for people
        return Classifier(tmp_path / "m").meta.get("fitted")

    rows = labelled()
    made = make_split(rows)
    assert fitted() == sorted({fitted_hash(name) for name in rows.name.tolist()})
    train_side = set(rows.name[made.part_of(rows.name) == "train"].tolist())
    assert fitted(split=made) == sorted(map(fitted_hash, train_side))
    assert len(fitted(out_of_set=["d"], ignore=["e"])) == 18 + 3  # half of the strangers choose the threshold
    assert len(fitted(label="name")) == 30
    assert fitted_hash("a") == hashlib.sha256(b"a").hexdigest()[:12]
    monkeypatch.setattr(train_module, "MAX_FITTED_HASHES", 29)
    assert fitted() is None


def test_labels_of_a_store_take_few_bytes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the names are: by the peak of what numpy and Python allocate, a few blocks included."""
    monkeypatch.setattr(embedding_source, "LABEL_BLOCK_ROWS", 1000)
    monkeypatch.setattr(embedding_source, "BLOCK_ROWS", 1000)
    monkeypatch.setattr(embedding_source, "MAX_BLOCK_VALUES", 1)
    monkeypatch.setattr(held_out_scoring, "MAX_CALIBRATION_ROWS", 1000)
    monkeypatch.setattr(held_out_scoring, "MAX_MEASURED_ROWS", 1000)
    rows, name = 30_000, "n" * 120
    generator = np.random.default_rng(0)
    recording = np.arange(rows) // 100
    whole = EmbeddingSet.from_columns(
        generator.normal(size=(rows, 2)) + np.eye(2)[recording % 2],
        [f"{name}{one}" for one in recording],
        subgroup=[f"{'l' * 60}{one % 2}" for one in recording],
    )
    write_store(tmp_path / "rows.h5", whole)
    del whole
    tracemalloc.start()
    try:
        train_classifier(tmp_path / "rows.h5", tmp_path / "m")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6  # the names alone are 4 MB in the store, and 15 MB each time that numpy holds them as texts


def test_the_covariance_is_shrunk_as_asked(tmp_path: Path) -> None:
    rows = blobs()
    means = {label: rows.data[rows.subgroup == label].astype(float) for label in ("a", "b", "c")}
    residuals = np.concatenate([own - own.mean(axis=0) for own in means.values()])
    pooled = residuals.T @ residuals / len(residuals)  # maximum likelihood, as the mother project's classifier
    identity = np.eye(len(pooled)) * np.trace(pooled) / len(pooled)
    for shrinkage in (0.0, 0.25, 1.0):
        done = train_classifier(rows, tmp_path / f"{shrinkage}", shrinkage=shrinkage)
        classifier = read_classifier(done.bundle.folder / bundle.CLASSIFIER).classifier
        assert classifier.shrinkage_ == shrinkage
        assert np.allclose(classifier.covariance_, (1 - shrinkage) * pooled + shrinkage * identity, atol=1e-6)

    assert [parse_shrinkage(text) for text in ("none", "auto", "0.25")] == [0.0, "auto", 0.25]
    for text in ("nan", "1.5", "-0.1", "ledoit"):
        with pytest.raises(KnnError, match=f"shrinkage cannot be '{text}'"):
            parse_shrinkage(text)
    few = rows.take(slice(None, None, 4))
    wide = dataclasses.replace(few, data=np.random.default_rng(0).normal(size=(len(few), 200)).astype(np.float32))
    with pytest.raises(KnnError, match="has no inverse") as refused:
        train_classifier(wide, tmp_path / "few", shrinkage=0.0)
    assert "shrink the covariance" in str(refused.value.hint)
