"""VBx: Bayesian clustering of embeddings by a hidden Markov model whose states are speakers.

Landini, Profant, Diez & Burget, "Bayesian HMM clustering of x-vector sequences (VBx) in speaker diarization: theory,
implementation and analysis on standard tasks", Computer Speech & Language 71, 2022 (arXiv 2012.14952). Equation numbers
and symbols are the paper's. Embeddings are in the coordinates of `plda`, where an embedding x of speaker s is
N(V y_s, 1), V = diag(sqrt(Phi)) and y_s is N(0, 1) (eq. 5).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import CLUSTERERS
from knn_cli.core.values import Doubles
from knn_cli.diarization.clustering.ahc import MAX_TREE_POINTS, Tree
from knn_cli.diarization.clustering.base import BaseClusterer, Bounds, Labels, by_first_appearance
from knn_cli.diarization.clustering.memory import remembered
from knn_cli.diarization.clustering.plda import EmbeddingPLDA
from knn_cli.diarization.clustering.spectral import SpectralClustering

MIN_PRIOR = 1e-7  # prior below which a speaker is dropped
MAX_CALIBRATION_ROWS = 1500  # embeddings whose pairs calibrate the tree's threshold
MIN_CLUSTER_SIZE = 4  # embeddings of a speaker where the tree is cut into a given number
START_DISTANCES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)  # cosine distances at which the tree is cut to start
CUT_DISTANCE = 0.6  # near which it is cut into a number of speakers to start
MAX_START_ROWS = 800  # embeddings on which starts are compared
ROWS_AT_ONCE = 8192  # embeddings whose probabilities are computed at once
MIN_GAIN = 20.0  # nats of the evidence lower bound by which a start has to exceed spectral clustering
LN_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True, eq=False)
class Inference:
    """Result of `infer`.

    Attributes
    ----------
    responsibilities : (N, S) float64 array
        Posterior probability of each speaker for each embedding; rows sum to 1.
    priors : (S,) float64 array
        Prior probabilities of the speakers.
    elbo : tuple of float
        Evidence lower bound after each iteration, eq. 25.
    """

    responsibilities: Doubles
    priors: Doubles
    elbo: tuple[float, ...]


@dataclass(frozen=True)
class InferenceSettings:
    """Settings of `infer`, with the paper's names.

    Parameters
    ----------
    fa, fb : float
        Scale of the statistics, and of the speakers' regularisation: a larger fb leaves fewer speakers.
    loop : float
        Probability of staying with a speaker from one embedding to the next; with 0 the model is a mixture, and the
        order of embeddings has no influence.
    iterations : int
        Maximum number of iterations.
    tolerance : float
        Iterations end when the evidence lower bound increases by less.
    """

    fa: float
    fb: float
    loop: float = 0.0
    iterations: int = 40
    tolerance: float = 1e-6


def infer(
    x: Doubles,
    phi: Doubles,
    responsibilities: Doubles,
    settings: InferenceSettings,
    *,
    weights: Doubles | None = None,
    drop: bool = True,
    overwrite: bool = False,
) -> Inference:
    """Variational Bayes inference, until the evidence lower bound increases by less than the tolerance.

    Parameters
    ----------
    x : (N, D) float64 array
        Embeddings with within-speaker covariance 1.
    phi : (D,) float64 array
        Between-speaker variances.
    responsibilities : (N, S) float64 array
        Initial responsibilities.
    settings : InferenceSettings
    weights : (N,) float64 array, optional
        Additional factors of the statistics of each embedding, beside fa.
    drop : bool
        Drop speakers whose prior falls below MIN_PRIOR; otherwise all speakers stay, with equal priors.
    overwrite : bool
        The responsibilities given may be overwritten, which saves the memory of as many.

    Returns
    -------
    Inference
    """
    fa, fb = settings.fa, settings.fb
    gamma = responsibilities
    prior = np.full(gamma.shape[1], 1 / gamma.shape[1])
    scale = np.full((len(x), 1), fa) if weights is None else fa * weights[:, None]  # (N, 1)
    rho = x * np.sqrt(phi)
    rho *= scale  # (N, D) eq. 18, scaled
    constant = -0.5 * scale * (np.einsum("nd,nd->n", x, x)[:, None] + x.shape[1] * LN_2PI)  # (N, 1)
    bounds: list[float] = []
    for _ in range(settings.iterations):
        counts = gamma.T @ scale  # (S, 1) fa times those of eq. 17
        precision = 1 / (1 + counts / fb * phi)  # (S, D) the inverse of L_s, eq. 17
        alpha = precision * (gamma.T @ rho) / fb  # (S, D) eq. 16
        out = np.empty_like(gamma) if gamma is responsibilities and not overwrite else gamma
        penalty = 0.5 * ((precision + alpha**2) @ phi)  # (S,)
        _fill_log_likelihoods(out, rho, alpha, penalty, scale, constant)  # eq. 23
        gamma, following, evidence = _posterior(out, prior, settings.loop)
        divergence = 0.5 * float(np.sum(np.log(precision) - precision - alpha**2 + 1))
        bounds.append(evidence + fb * divergence)  # eq. 25
        if drop:
            prior = following
            kept = prior >= MIN_PRIOR
            if not kept.all():
                gamma, prior = gamma[:, kept], prior[kept] / prior[kept].sum()
                gamma /= gamma.sum(axis=1, keepdims=True)
        if len(bounds) > 1 and bounds[-1] - bounds[-2] < settings.tolerance:
            break
    return Inference(gamma, prior, tuple(bounds))


def _fill_log_likelihoods(
    log_p: Doubles, rho: Doubles, alpha: Doubles, penalty: Doubles, scale: Doubles, constant: Doubles
) -> None:
    """Set log_p (N, S) from rho (N, D), alpha (S, D), penalty (S,), scale and constant (N, 1), block by block."""
    for at in range(0, len(rho), ROWS_AT_ONCE):
        some = slice(at, at + ROWS_AT_ONCE)
        np.matmul(rho[some], alpha.T, out=log_p[some])
        log_p[some] -= penalty * scale[some]
        log_p[some] += constant[some]


def _posterior(log_p: Doubles, prior: Doubles, loop: float) -> tuple[Doubles, Doubles, float]:
    """Responsibilities (N, S) (eq. 19), the next priors (S,) (eq. 24), and log p of all embeddings (eq. 22).

    They take the place of log_p (N, S).
    """
    top = log_p.max(axis=1, keepdims=True)
    log_p -= top
    p = np.exp(log_p, out=log_p)
    if loop == 0:
        p *= prior
        each = p.sum(axis=1, keepdims=True)
        p /= each
        return p, p.mean(axis=0), float(np.log(each).sum() + top.sum())
    # Forwards and backwards (eq. 20-21) with every step scaled to sum to 1: the transitions of eq. 1 are a multiple of
    # the identity and a matrix of equal rows, so that a step costs O(S), not O(S^2).
    forward, backward, sums = np.empty_like(p), np.ones_like(p), np.empty(len(p))
    arriving = prior
    for t in range(len(p)):
        row = arriving * p[t]
        sums[t] = row.sum()
        forward[t] = row / sums[t]
        arriving = loop * forward[t] + (1 - loop) * prior
    for t in range(len(p) - 1, 0, -1):
        row = p[t] * backward[t] / sums[t]
        backward[t - 1] = loop * row + (1 - loop) * (prior @ row)
    gamma = forward * backward
    gamma /= gamma.sum(axis=1, keepdims=True)
    entered = (1 - loop) * prior * (p[1:] * backward[1:] / sums[1:, None]).sum(axis=0)  # (S,)
    following = gamma[0] + entered
    return gamma, following / following.sum(), float(np.log(sums).sum() + top.sum())


def calibrated_threshold(rows: Doubles, iterations: int = 20) -> float:
    """The cosine that separates pairs of the same speaker from pairs of two speakers.

    Two Gaussians with a common variance are fitted by EM to the cosines of all pairs; the threshold is where both are
    equally likely.

    Parameters
    ----------
    rows : (N, D) float64 array
        Embeddings of length 1; every k-th is used where there are more than MAX_CALIBRATION_ROWS.
    iterations : int
        Number of EM iterations.

    Returns
    -------
    float
    """
    from scipy.special import expit

    rows = rows[:: -(-len(rows) // MAX_CALIBRATION_ROWS)]
    first, second = np.triu_indices(len(rows))
    cosines = (rows @ rows.T)[first, second]  # (pairs,)
    weights = np.where(first == second, 1.0, 2.0) / len(rows) ** 2  # a pair counts twice, a row with itself once
    mean = float(weights @ cosines)
    variance = float(weights @ np.square(cosines - mean))
    share = np.array([0.5, 0.5])
    centres = mean + np.sqrt(variance) * np.array([-1.0, 1.0])
    square = variance + mean**2
    if variance < 1e-12:
        return float(centres[0])  # all pairs are equal
    for _ in range(iterations):
        gap = centres[1] - centres[0]
        upper = expit(np.log(share[1] / share[0]) + gap / variance * (cosines - centres.mean()))  # (pairs,)
        upper *= weights
        high, sum_high = float(upper.sum()), float(upper @ cosines)
        if not 0 < high < 1:
            break
        share = np.array([1 - high, high])
        centres = np.array([(mean - sum_high) / (1 - high), sum_high / high])
        variance = max(square - float(share @ centres**2), 1e-12)
    gap = centres[1] - centres[0]
    return float(centres.mean() - variance * np.log(share[1] / share[0]) / gap) if gap > 0 else float(centres[0])


@CLUSTERERS.register("vbx")
@dataclass(frozen=True)
class VBxClustering(BaseClusterer):
    """VBx, initialized with the labels of other methods; the variational posterior gives the number of speakers.

    Inference finds a local optimum. So it starts from spectral clustering and from several cuts of the tree of average
    linkage. The start with the largest evidence lower bound is kept where it gains at least MIN_GAIN over that of
    spectral clustering, which recordings with little speech need: their bounds differ by chance.

    Parameters
    ----------
    plda : EmbeddingPLDA
        PLDA of the embedding model (`plda.load`).
    fa, fb : float
        See `InferenceSettings`.
    loop : float
        See `InferenceSettings`; above 0 only where embeddings follow each other in time at a regular step.
    starts : int
        Inference starts from spectral clustering, from the tree cut into 1, 2, ... `starts` speakers, and from the tree
        cut at START_DISTANCES; with 0, as in the paper, only from the tree cut at `threshold`.
    threshold : float, optional
        Cosine distance at which the tree is cut for the initial labels; where None, it is estimated by
        `calibrated_threshold`.
    bias : float
        Added to the cosine that `calibrated_threshold` returns.
    smoothing : float
        The initial responsibilities are the softmax of this times the one-hot labels of the tree.
    dimension : int, optional
        Number of PLDA coordinates, the most discriminative first; all where None.
    max_initial_speakers : int
        Maximum number of initial speakers; where more are requested, the labels are those of the tree.
    scale : float
        Weight (seconds of speech) from which an embedding counts fully; with less it counts in proportion. Without
        weights, all embeddings count equally.
    limit : int
        Number of embeddings above which blocks are condensed first, for the tree only.

    Raises
    ------
    KnnError
        Where there is no PLDA, or for a number outside its range.
    """

    plda: EmbeddingPLDA | None = None
    fa: float = 0.6
    fb: float = 2.0
    loop: float = 0.0
    starts: int = 8
    threshold: float | None = 0.6
    bias: float = -0.015
    smoothing: float = 5.0
    dimension: int | None = None
    max_initial_speakers: int = 200
    scale: float = 4.0
    limit: int = MAX_TREE_POINTS

    def __post_init__(self) -> None:
        if not isinstance(self.plda, EmbeddingPLDA):
            raise KnnError(
                "VBx needs the PLDA of the embedding model.",
                "Choose another clustering method, or a model that has one, such as `voice`.",
            )
        if not 0 <= self.loop < 1:
            raise KnnError(f"The loop probability {self.loop:g} is not in [0, 1).", "Take 0 for no order, or 0.99.")
        if (
            min(self.fa, self.fb, self.smoothing, self.scale) <= 0
            or min(self.max_initial_speakers, self.dimension or 1, self.starts + 1) < 1
        ):
            raise KnnError("A setting of VBx is too small.", "Take larger numbers.")

    def partition(self, embeddings: Doubles, bounds: Bounds, weights: Doubles | None) -> Labels:
        """See `BaseClusterer.partition`."""
        assert self.plda is not None  # checked when built
        arrays = (embeddings, *(() if weights is None else (weights,)), *self.plda.arrays())
        numbers = tuple(getattr(self, field.name) for field in fields(self) if field.name != "plda")
        (labels,) = remembered(
            lambda: (self._partition(embeddings, bounds, weights),),
            "vbx, all starts",
            *arrays,
            settings=(*numbers, *bounds),
        )
        return labels

    def _partition(self, embeddings: Doubles, bounds: Bounds, weights: Doubles | None) -> Labels:
        """Labels (N,) by inference from the best start.

        Where there are too many speakers, VBx starts again with those of the largest responsibilities. Where there are
        too few, it starts again with the tree cut into as many as needed, with equal priors.
        """
        assert self.plda is not None  # checked when built
        plda = self.plda if self.dimension is None else self.plda.keep(self.dimension)
        # Ten hours of rows are 66 MB: those of each method are made when it needs them.
        spectral = SpectralClustering().partition(embeddings, bounds, weights) if self.starts else None
        rows = plda.normalised(embeddings)
        x = plda.from_normalised(rows)
        factors = None if weights is None else np.clip(weights / self.scale, 1e-3, 1.0)
        distance = 1 - calibrated_threshold(rows) - self.bias if self.threshold is None else self.threshold
        if spectral is None:
            first = self._cut(self._tree(rows), distance)
        else:
            first = self._best_start(spectral, rows, x, plda.between, factors)
        del rows
        gamma = self._infer(x, plda.between, self._smoothed(first), factors).responsibilities
        if _count(gamma) > bounds.high:
            gamma = gamma[:, np.sort(np.argsort(-gamma.sum(axis=0), kind="stable")[: bounds.high])] + 1e-12
            gamma = gamma / gamma.sum(axis=1, keepdims=True)
            gamma = self._infer(x, plda.between, gamma, factors).responsibilities
        labels: Labels = gamma.argmax(axis=1)
        if _count(gamma) >= bounds.low:
            return labels
        exact = self._tree(plda.normalised(embeddings)).speakers(
            distance, MIN_CLUSTER_SIZE, Bounds(bounds.low, bounds.low, True)
        )
        if bounds.low > self.max_initial_speakers:
            return exact
        gamma = self._infer(x, plda.between, self._smoothed(exact), factors, drop=False).responsibilities
        labels = gamma.argmax(axis=1)
        return labels if _count(gamma) == bounds.low else exact

    def _tree(self, rows: Doubles) -> Tree:
        return Tree.grow(rows, "average", self.limit)

    def _cut(self, tree: Tree, distance: float) -> Labels:
        """(N,) labels of the tree cut at a distance, at most `max_initial_speakers` different ones."""
        return tree.labels(max(tree.steps(distance), len(tree.points) - self.max_initial_speakers))

    def _best_start(self, spectral: Labels, rows: Doubles, x: Doubles, phi: Doubles, factors: Doubles | None) -> Labels:
        """(N,) labels from which inference reaches the largest evidence lower bound, on every k-th embedding.

        They are `spectral` unless others gain MIN_GAIN. Cuts of the tree are the same for all numbers of speakers.
        """
        chosen = slice(None, None, -(-len(x) // MAX_START_ROWS))
        some = None if factors is None else factors[chosen]

        def reached(labels: Labels) -> float:
            return self._infer(x[chosen], phi, self._smoothed(labels[chosen]), some).elbo[-1]

        def compare_cuts() -> tuple[Labels, Doubles]:
            cuts = self._cuts(self._tree(rows))
            return np.stack(cuts), np.array([reached(labels) for labels in cuts])

        numbers = (self.fa, self.fb, self.loop, self.smoothing, self.starts, self.limit, self.max_initial_speakers)
        arrays = (rows, x, phi, *(() if factors is None else (factors,)))
        cuts, bounds = remembered(compare_cuts, "all starts", *arrays, settings=numbers)
        best = int(np.argmax(bounds))
        (own,) = remembered(lambda: (np.array([reached(spectral)]),), "start", *arrays, spectral, settings=numbers)
        return cuts[best] if bounds[best] >= own[0] + MIN_GAIN else spectral

    def _cuts(self, tree: Tree) -> list[Labels]:
        """The different cuts of the tree that inference starts from, each (N,) labels."""
        counts = range(1, min(self.starts, len(tree.points)) + 1)
        cuts = [self._cut(tree, distance) for distance in START_DISTANCES]
        cuts += [tree.speakers(CUT_DISTANCE, MIN_CLUSTER_SIZE, Bounds(count, count, True)) for count in counts]
        ordered = [by_first_appearance(labels) for labels in cuts]
        return list({labels.tobytes(): labels for labels in ordered}.values())

    def _infer(self, x: Doubles, phi: Doubles, gamma: Doubles, factors: Doubles | None, drop: bool = True) -> Inference:
        settings = InferenceSettings(self.fa, self.fb, self.loop)
        return infer(x, phi, gamma, settings, weights=factors, drop=drop, overwrite=True)

    def _smoothed(self, labels: Labels) -> Doubles:
        """(N,) labels to (N, S) responsibilities, the softmax of `smoothing` times the labels' indicators."""
        count = int(labels.max()) + 1
        high = np.exp(self.smoothing)
        gamma = np.full((len(labels), count), 1 / (high + count - 1))
        gamma[np.arange(len(labels)), labels] = high / (high + count - 1)
        return gamma


def _count(gamma: Doubles) -> int:
    """Number of speakers that are the most likely one of some embedding."""
    return int(np.count_nonzero(np.bincount(gamma.argmax(axis=1))))
