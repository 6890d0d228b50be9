"""VBx against the authors' own output, and its parts against plain formulas; the PLDA that it works with."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from pyannote.core import Annotation, Segment
from safetensors.numpy import save_file

from knn_cli.core.errors import BundleError, KnnError, StoreError
from knn_cli.core.values import Doubles
from knn_cli.diarization.clustering import plda as voice_plda
from knn_cli.diarization.clustering import vbx
from knn_cli.diarization.clustering.memory import remembering
from knn_cli.diarization.clustering.plda import EmbeddingPLDA
from knn_cli.diarization.clustering.vbx import InferenceSettings, VBxClustering, calibrated_threshold, infer
from knn_cli.evaluation.diarization_error import diarization_error
from knn_cli.formats.rttm import read_rttm
from knn_cli.networks.bundle import Bundle, find
from knn_cli.recognition.plda import PLDA
from knn_cli.store.kaldi import read_ark, read_plda
from tools.shipped_models import plda as training_plda


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "reference" / "vbx"


@pytest.fixture(scope="module")
def their_plda(folder: Path) -> EmbeddingPLDA:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "transform.h5") as file:
        mean1, lda, mean2 = (file[name][:] for name in ("mean1", "lda", "mean2"))
    return EmbeddingPLDA.from_kaldi(read_plda(folder / "plda"), mean1, lda, mean2)


def spheres(dimension: int, between: float = 10.0) -> EmbeddingPLDA:
    """Coordinates are ten times the unit vectors."""
    zeros, eye = np.zeros(dimension), np.eye(dimension)
    return EmbeddingPLDA(zeros, eye, zeros, zeros, 10 * eye, np.full(dimension, between))


# ---- the authors' answer ----


def test_equals_the_authors_output(folder: Path, their_plda: EmbeddingPLDA) -> None:
    windows = [line.split() for line in (folder / "ES2005a.seg").read_text().splitlines()]
    vectors = dict(read_ark(folder / "ES2005a.ark"))
    method = VBxClustering(
        plda=their_plda, dimension=128, threshold=None, starts=0, bias=-0.015, fa=0.3, fb=17, loop=0.99
    )
    labels = method(np.array([vectors[row[0]] for row in windows]))
    pieces: list[list[float]] = []  # start, end, label; where windows of two speakers overlap, the border is the middle
    for row, label in zip(windows, labels, strict=True):
        start, end = float(row[2]), float(row[3])
        if pieces and pieces[-1][2] == label and start <= pieces[-1][1] + 1e-9:
            pieces[-1][1] = end
        else:
            pieces.append([start, end, label])
    for one, two in itertools.pairwise(pieces):
        if two[0] < one[1]:
            one[1] = two[0] = (one[1] + two[0]) / 2
    ours = Annotation()
    for track, (start, end, label) in enumerate(pieces):
        ours[Segment(start, end), track] = str(label)
    theirs = list(read_rttm(folder / "ES2005a.vbx-output.rttm")["ES2005a"].itertracks(yield_label=True))
    assert len(theirs) == len(pieces)
    spans = np.array([(segment.start, segment.end) for segment, _, _ in theirs])
    np.testing.assert_allclose([piece[:2] for piece in pieces], spans, atol=1e-6)
    pairs = {(label, piece[2]) for (_, _, label), piece in zip(theirs, pieces, strict=True)}
    assert len(pairs) == len({one for one, _ in pairs}) == len({two for _, two in pairs})  # other names, same speakers
    truth = read_rttm(folder / "ES2005a.ref.rttm")["ES2005a"]
    assert 100 * diarization_error(truth, ours, collar=0.25, skip_overlap=True).rate == pytest.approx(7.06, abs=0.01)
    assert 100 * diarization_error(truth, ours).rate == pytest.approx(26.28, abs=0.01)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 12])
def test_a_meeting_told_how_many(folder: Path, their_plda: EmbeddingPLDA, number: int) -> None:
    rows = np.array([vector for _, vector in read_ark(folder / "ES2005a.ark")])[::4]
    labels = VBxClustering(plda=their_plda, threshold=None, fa=0.3, fb=17)(rows, num_speakers=number)
    assert set(labels.tolist()) == set(range(number))


# ---- the inference ----


def conversation(seed: int = 0) -> tuple[Doubles, Doubles, Doubles]:
    generator = np.random.default_rng(seed)
    phi = np.array([6.0, 3.0, 1.0])
    speakers = generator.normal(size=(2, 3)) * np.sqrt(phi)
    x = speakers[generator.integers(0, 2, 7)] + generator.normal(size=(7, 3))
    return x, phi, generator.dirichlet(np.ones(3), 7)


@pytest.mark.parametrize("loop", [0.0, 0.6])
def test_one_iteration_equals_the_sum_over_all_sequences(loop: float) -> None:
    """Eq. 16, 17, 23 element by element, then every one of the 3^7 state sequences (eq. 1-2)."""
    x, phi, gamma = conversation()
    fa, fb = 0.4, 2.0
    inverse = np.array([[1 / (1 + fa / fb * gamma[:, s].sum() * p) for p in phi] for s in range(3)])
    alpha = np.array(
        [fa / fb * inverse[s] * sum(gamma[t, s] * np.sqrt(phi) * x[t] for t in range(7)) for s in range(3)]
    )
    log_p = np.empty((7, 3))
    for t, s in itertools.product(range(7), range(3)):
        fit = alpha[s] @ (np.sqrt(phi) * x[t]) - 0.5 * (inverse[s] + alpha[s] ** 2) @ phi
        log_p[t, s] = fa * (fit - 1.5 * np.log(2 * np.pi) - 0.5 * x[t] @ x[t])
    prior = np.full(3, 1 / 3)
    move = loop * np.eye(3) + (1 - loop) * prior
    expected, total = np.zeros((7, 3)), 0.0
    for states in itertools.product(range(3), repeat=7):
        chance = prior[states[0]] * np.prod([move[a, b] for a, b in itertools.pairwise(states)])
        chance *= np.exp(sum(log_p[t, s] for t, s in enumerate(states)))
        total += chance
        expected[np.arange(7), states] += chance
    bound = np.log(total) + fb / 2 * np.sum(np.log(inverse) - inverse - alpha**2 + 1)  # eq. 25
    found = infer(x, phi, gamma, InferenceSettings(fa, fb, loop, iterations=1))
    np.testing.assert_allclose(found.responsibilities, expected / total, atol=1e-12)
    assert found.elbo == pytest.approx((bound,), abs=1e-9)


@pytest.mark.parametrize("loop", [0.0, 0.9])
@pytest.mark.parametrize("drop", [False, True])
def test_the_bound_never_falls(loop: float, drop: bool) -> None:
    generator = np.random.default_rng(3)
    x = np.repeat(generator.normal(size=(4, 6)) * 4, 25, axis=0) + generator.normal(size=(100, 6))
    found = infer(
        x, np.full(6, 9.0), generator.dirichlet(np.ones(8), 100), InferenceSettings(0.5, 4, loop), drop=drop,
        weights=generator.uniform(0.2, 1, 100),
    )  # fmt: skip
    assert (np.diff(found.elbo) > -1e-5).all()
    np.testing.assert_allclose(found.responsibilities.sum(axis=1), 1)
    assert found.priors.sum() == pytest.approx(1)
    assert len(found.priors) == (8 if not drop else len(found.priors)) and (drop or np.ptp(found.priors) == 0)


def test_a_weight_is_a_factor_of_fa() -> None:
    x, phi, gamma = conversation(1)
    halved = infer(x, phi, gamma, InferenceSettings(0.8, 2), weights=np.full(7, 0.5))
    plain = infer(x, phi, gamma, InferenceSettings(0.4, 2))
    np.testing.assert_allclose(halved.responsibilities, plain.responsibilities, atol=1e-12)


def test_a_larger_fb_leaves_fewer_speakers() -> None:
    generator = np.random.default_rng(5)
    rows = np.repeat(generator.normal(size=(6, 20)), 15, axis=0) + 0.5 * generator.normal(size=(90, 20))
    counts = [VBxClustering(plda=spheres(20), fa=0.3, fb=fb)(rows).max() + 1 for fb in (0.5, 5, 500, 50000)]
    assert counts[0] == 6 and counts[-1] == 1 and sorted(counts, reverse=True) == counts


def test_short_embeddings_sway_less() -> None:
    """Six embeddings between two voices are a third one with seconds behind them, and none with hardly any."""
    right, up, between = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]), np.array([0.8, 0.6, 0.0])
    rows = np.array([right] * 4 + [up] * 4 + [between] * 6)
    method = VBxClustering(plda=spheres(3), fa=1.0, fb=1.0, threshold=0.15, scale=4.0)
    labels = [method(rows, weights=np.array([4.0] * 8 + [seconds] * 6)).tolist() for seconds in (4.0, 0.01)]
    assert labels == [[0] * 4 + [1] * 4 + [2] * 6, [0] * 4 + [1] * 4 + [0] * 6]
    assert method(rows).tolist() == labels[0]


def test_threshold_between_two_gaussians() -> None:
    """Pairs of the same direction have cosine 1 or so, others 0: the threshold lies between."""
    generator = np.random.default_rng(0)
    rows = np.repeat(np.eye(30)[:3], 40, axis=0) + 0.05 * generator.normal(size=(120, 30))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert 0.3 < calibrated_threshold(rows) < 0.7
    assert calibrated_threshold(np.tile(rows[:1], (9, 1))) == pytest.approx(1.0)


def test_order_plays_no_part_without_transitions() -> None:
    generator = np.random.default_rng(2)
    rows = np.repeat(generator.normal(size=(3, 12)), 20, axis=0) + 0.6 * generator.normal(size=(60, 12))
    order = generator.permutation(60)
    method = VBxClustering(plda=spheres(12), fa=0.3, fb=2)
    one, two = method(rows), method(rows[order])
    assert len({(a, b) for a, b in zip(one[order], two, strict=True)}) == one.max() + 1


# ---- the PLDA ----


def test_fitted_plda_whitens_voices() -> None:
    """Embeddings on a sphere whose speakers differ in three of eight directions."""
    generator = np.random.default_rng(0)
    speakers = np.repeat(np.arange(60), 12)
    spread = np.array([3.0, 2.0, 1.5, 0, 0, 0, 0, 0])
    rows = (generator.normal(size=(60, 8)) * spread)[speakers] + generator.normal(size=(720, 8)) + 5
    plda = EmbeddingPLDA.fit(rows, speakers, dimension=3)
    x = plda.coordinates(rows)
    means = np.stack([x[speakers == k].mean(axis=0) for k in range(60)])
    np.testing.assert_allclose(np.cov((x - means[speakers]).T), np.eye(3) * 660 / 719, atol=0.05)
    np.testing.assert_allclose(np.cov(means.T), np.diag(plda.between + 1 / 12), rtol=0.15, atol=0.4)
    assert np.linalg.norm(plda.normalised(rows), axis=1) == pytest.approx(1)
    assert plda.keep(2).coordinates(rows) == pytest.approx(x[:, :2])


def test_kaldis_plda_is_ours(their_plda: EmbeddingPLDA, folder: Path) -> None:
    """Log-likelihood ratios by `plda.PLDA` with the covariances that Kaldi's file stands for, and by coordinates."""
    mean, transform, psi = read_plda(folder / "plda")
    back = np.linalg.inv(transform)
    model = PLDA(mean, back * psi @ back.T, back @ back.T)
    rows = np.array([vector for _, vector in read_ark(folder / "ES2005a.ark")])[:5]
    unit, x, phi = their_plda.normalised(rows), their_plda.coordinates(rows), their_plda.between
    simple = PLDA(np.zeros(len(phi)), np.diag(phi), np.eye(len(phi)))
    np.testing.assert_allclose(model.llr(unit, unit), simple.llr(x, x), atol=1e-6)
    again = EmbeddingPLDA.of(model, their_plda.centre, their_plda.lda, their_plda.shift)
    np.testing.assert_allclose(again.between, phi, atol=1e-8)


def test_damaged_kaldi_plda(folder: Path, tmp_path: Path) -> None:
    data = (folder / "plda").read_bytes()
    for name, content in (("short", data[:-9]), ("cut", data[:5000]), ("other", b"\0BFV " + data[9:]), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreError):
            read_plda(tmp_path / name)


def bundle(folder: Path) -> Bundle:
    parts = {"audio": {}, "encoder": {}, "pooling": {}, "weights_sha256": "0"}
    return Bundle(folder, {"name": "mine", "kind": "embedder", **parts})


def test_plda_of_a_bundle_goes_round(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    plda = EmbeddingPLDA.fit(generator.normal(size=(80, 6)), np.arange(80) % 8, dimension=4)
    plda.save(tmp_path / voice_plda.FILE, embedder=bundle(tmp_path).fingerprint)
    again = voice_plda.load(bundle(tmp_path))
    rows = generator.normal(size=(5, 6))
    np.testing.assert_allclose(again.coordinates(rows), plda.coordinates(rows), rtol=1e-4, atol=1e-4)


def test_bad_plda_of_a_bundle(tmp_path: Path) -> None:
    path, mine = tmp_path / voice_plda.FILE, bundle(tmp_path)
    with pytest.raises(KnnError, match="no PLDA"):
        voice_plda.load(mine)
    plda = spheres(3)
    plda.save(path, embedder="other@123456789abc")
    with pytest.raises(BundleError, match="other@123456789abc"):
        voice_plda.load(mine)
    plda.save(path, embedder=mine.fingerprint)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BundleError, match="damaged"):
        voice_plda.load(mine)
    arrays = {name: np.asarray(getattr(plda, name), np.float32) for name in plda.__dataclass_fields__}
    about = {"schema": "1", "embedder": mine.fingerprint}
    for wrong in ({"extra": np.zeros(1)}, {"mean": np.zeros(4)}, {"mean": np.full(3, np.nan)}):
        save_file({**arrays, **wrong}, path, metadata=about)
        with pytest.raises(BundleError, match="does not fit"):
            voice_plda.load(mine)
    save_file(arrays, path, metadata={**about, "schema": "9"})
    with pytest.raises(BundleError, match="schema 9"):
        voice_plda.load(mine)


def test_the_shipped_voice_model_has_one() -> None:
    model = find("voice")
    plda = voice_plda.load(model)
    view = model.view("speaker")
    assert len(plda.centre) == (view.stop or 192) - view.start
    assert plda.between[0] > 1


def test_recordings_that_the_plda_is_trained_on() -> None:
    rows = [{"speaker": name, "path": str(k), "active_seconds": "3"} for k, name in enumerate("aaaaabcdd")]
    rows += [{"speaker": "e_mix", "path": "9", "active_seconds": "3"}, {**rows[0], "active_seconds": "1.0"}]
    heard = training_plda.choose_recordings(rows, {"c"}, np.random.default_rng(0))
    assert [(row["speaker"], disturbed) for row, disturbed in heard] == [
        ("a", False), ("a", True), ("a", False), ("b", False), ("b", True), ("d", False), ("d", True)
    ]  # fmt: skip
    assert heard[3][0] is heard[4][0] and len({row["path"] for row, _ in heard[:3]}) == 3


def test_pauses_are_no_speech() -> None:
    sound = np.concatenate([np.zeros(640), np.full(960, 0.5), np.full(320, 1e-4), np.full(500, 0.2)]).astype(np.float32)
    assert training_plda.spoken(sound, 7, 320).tolist() == [2, 3, 4, 6]


def test_several_starts_escape_a_bad_one() -> None:
    """Three speakers in one cluster are a local optimum, which no other start reaches."""
    generator = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 30)
    points = np.eye(8)[truth] + 0.1 * generator.normal(size=(90, 8))
    one = VBxClustering(plda=spheres(8), starts=0, threshold=2.0)
    assert len(set(one(points).tolist())) == 1
    several = VBxClustering(plda=spheres(8), threshold=2.0)
    assert np.array_equal(several(points), truth)


def test_many_speakers_are_not_few() -> None:
    """Starts with more speakers than a meeting has are compared as well."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(60), 12)
    voices = rng.normal(size=(60, 32)) / np.sqrt(32)
    labels = VBxClustering(plda=spheres(32))(voices[truth] + rng.normal(0, 0.05, (len(truth), 32)))
    assert len(set(labels)) == len(set(zip(labels.tolist(), truth.tolist(), strict=True))) == 60


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, phi, gamma = conversation()
    whole = infer(x, phi, gamma, InferenceSettings(0.6, 2.0))
    monkeypatch.setattr(vbx, "ROWS_AT_ONCE", 3)
    blocks = infer(x, phi, gamma, InferenceSettings(0.6, 2.0))
    np.testing.assert_allclose(blocks.responsibilities, whole.responsibilities, atol=1e-9)
    np.testing.assert_allclose(blocks.elbo, whole.elbo, rtol=1e-12)


def test_a_gain_that_chance_explains_leaves_spectral_clustering(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    points = np.eye(8)[np.repeat(np.arange(2), 20)] + 0.1 * generator.normal(size=(40, 8))
    method = VBxClustering(plda=spheres(8))
    spectral = np.zeros(40, dtype=np.int64)
    rows = method.plda.normalised(points)  # type: ignore[union-attr]
    x = method.plda.coordinates(points)  # type: ignore[union-attr]
    between = method.plda.between  # type: ignore[union-attr]
    assert len(np.unique(method._best_start(spectral, rows, x, between, None))) == 2
    monkeypatch.setattr(vbx, "MIN_GAIN", 1e6)
    assert np.array_equal(method._best_start(spectral, rows, x, between, None), spectral)


@pytest.mark.parametrize("first, second", [({}, {"num_speakers": 2}), ({"num_speakers": 4}, {})])
def test_memory_changes_no_labels(first: dict[str, int], second: dict[str, int]) -> None:
    generator = np.random.default_rng(2)
    points = np.eye(8)[np.repeat(np.arange(3), 30)] + 0.3 * generator.normal(size=(90, 8))
    method = VBxClustering(plda=spheres(8))
    wanted = [method(points, **numbers) for numbers in (first, second)]
    other = VBxClustering(plda=spheres(8), fb=20.0)(points)
    with remembering({}):
        for _ in range(2):
            for numbers, labels in zip((first, second), wanted, strict=True):
                assert np.array_equal(method(points, **numbers), labels)
        assert np.array_equal(VBxClustering(plda=spheres(8), fb=20.0)(points), other)
