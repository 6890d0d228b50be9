"""Transforms of embeddings before a classifier: a chain of centring, whitening, LDA and length normalisation.

center  x - mean of all rows
whiten  x C^(-1/2), the symmetric inverse square root of the total covariance C
lda:K   x V, the K generalised eigenvectors of B v = l W v with the largest l, scaled to v' W v = 1, where B and W are
        the between- and within-class covariances
length  x sqrt(D) / |x|; the root keeps values of the order of one

Every step does only what its line says: whiten and lda are linear, and only center moves the origin.

References
----------
K. Fukunaga, "Introduction to Statistical Pattern Recognition", 1990, section 10.2 (LDA).
D. Garcia-Romero and C. Espy-Wilson, "Analysis of i-vector Length Normalization in Speaker Recognition Systems",
Interspeech 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles
from knn_cli.recognition.covariance import cholesky, oas_shrinkage
from knn_cli.recognition.gaussian_statistics import BLOCK_ROWS, GaussianStatistics
from knn_cli.recognition.row_checks import float64_rows

Blocks = Callable[[], Iterable[tuple[ArrayLike, ArrayLike]]]
_NDIM = {"center": 1, "whiten": 2, "lda": 2, "length": 1}  # of the array that a transform learns, by its name


class TransformSpec(NamedTuple):
    """A transform to be learned: its name, and for lda the number K of dimensions to keep (0 for the others)."""

    name: str
    size: int = 0


@dataclass(frozen=True, eq=False)
class TransformStep:
    """A learned transform.

    Attributes
    ----------
    name : str
    values : float64 array
        center: (D,) the mean; whiten: (D, D); lda: (D, K); length: (0,).
    """

    name: str
    values: Doubles

    def __post_init__(self) -> None:
        if self.name not in _NDIM or self.values.ndim != _NDIM[self.name]:
            raise ValueError(f"no step {self.name!r} with values of shape {self.values.shape}")
        square = self.name != "whiten" or self.values.shape[0] == self.values.shape[1]
        if not square or (self.name == "length") != (self.values.size == 0):
            raise ValueError(f"the step {self.name} has values of shape {self.values.shape}")
        if not np.isfinite(self.values).all():
            raise ValueError(f"the step {self.name} holds NaN or infinite values")

    def apply(self, rows: Doubles) -> Doubles:
        """Rows (N, D) to (N, D') float64. A row of zeros has no direction and stays as it is under length."""
        if self.name == "center":
            return rows - self.values
        if self.name == "length":
            norms: Doubles = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
            mapped: Doubles = rows * (np.sqrt(rows.shape[1]) / np.where(norms > 0, norms, 1.0))
        else:
            mapped = rows @ self.values
        return mapped


@dataclass(frozen=True, eq=False)
class TransformChain:
    """Learned transforms in the order of their application; the empty chain changes nothing."""

    steps: tuple[TransformStep, ...] = ()

    def __post_init__(self) -> None:
        size = None
        for step in self.steps:
            if step.name == "length":
                continue
            if size is not None and len(step.values) != size:
                raise ValueError(f"the step {step.name} takes {len(step.values)} dimensions, it gets {size}")
            size = step.values.shape[-1]

    @property
    def spec(self) -> str:
        """The text that `parse_transforms` reads: center,whiten,lda:14,length."""
        return ",".join(f"lda:{step.values.shape[1]}" if step.name == "lda" else step.name for step in self.steps)

    @property
    def dimension(self) -> int | None:
        """D of the input rows; None: any."""
        return next((len(step.values) for step in self.steps if step.name != "length"), None)

    @property
    def output_dimension(self) -> int | None:
        """D' of the output rows; None: that of the input."""
        return next((int(step.values.shape[-1]) for step in reversed(self.steps) if step.name != "length"), None)

    def apply(self, X: ArrayLike) -> Doubles:
        """Apply the transforms to rows, BLOCK_ROWS at a time.

        Parameters
        ----------
        X : (N, D) array_like

        Returns
        -------
        (N, D') float64

        Raises
        ------
        KnnError
            For another D than that of the training rows, and for NaN or infinite values.
        """
        rows = np.asarray(X)
        width = rows.shape[-1] if self.dimension is None else self.dimension
        out = np.empty((len(rows), self.output_dimension or width))
        for first in range(0, max(len(rows), 1), BLOCK_ROWS):
            block = float64_rows(rows[first : first + BLOCK_ROWS], width)
            for step in self.steps:
                block = step.apply(block)
            out[first : first + BLOCK_ROWS] = block
        return out

    def to_arrays(self) -> dict[str, Doubles]:
        """Named arrays to be stored in a file, one per transform: 0-center, 1-whiten, ..."""
        return {f"{place}-{step.name}": step.values for place, step in enumerate(self.steps)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> TransformChain:
        """The chain with the arrays of `to_arrays`; ValueError if they do not make one."""
        names = dict(name.split("-", 1) for name in arrays if "-" in name)
        if len(names) != len(arrays) or set(names) != {str(place) for place in range(len(arrays))}:
            raise ValueError(f"the steps {', '.join(map(repr, arrays))} do not make a chain")
        order = [f"{place}-{names[str(place)]}" for place in range(len(arrays))]
        return cls(
            tuple(TransformStep(key.split("-", 1)[1], np.asarray(arrays[key], dtype=np.float64)) for key in order)
        )


def parse_transforms(text: str) -> list[TransformSpec]:
    """The transforms of a text such as "center,whiten,lda:14,length", none of an empty one; KnnError for others."""
    specs = []
    for part in filter(None, (field.strip() for field in text.split(","))):
        name, colon, size = part.partition(":")
        if name not in _NDIM:
            raise KnnError(f"There is no transform {name!r}.", "Known: center, whiten, lda:K, length.")
        if name != "lda" and colon:
            raise KnnError(f"The transform {name} takes no number, {part!r} gives one.")
        if name == "lda" and not (size.isascii() and size.isdigit() and int(size)):
            raise KnnError(f"{part!r} does not say how many dimensions to keep.", "Write lda:14.")
        specs.append(TransformSpec(name, int(size or 0)))
    return specs


def fit_transforms(
    spec: str | Sequence[TransformSpec], blocks: Blocks, labels: ArrayLike, *, balanced: bool = False
) -> TransformChain:
    """Learn a chain from rows that may be larger than memory.

    The memory needed is that of `GaussianStatistics` and one block. Center, whiten and lda are linear, so the
    statistics after them follow from those before; only length, and only if other transforms follow it, costs another
    pass.

    Parameters
    ----------
    spec : str or sequence of TransformSpec
        Text for `parse_transforms`, or its result.
    blocks : callable
        Called once per pass: yields (X (n, D), y (n,)) pairs, the same rows each time.
    labels : (N,) array_like
        Labels of all the rows to come.
    balanced : bool
        Every class counts alike in the mean and in the covariances, instead of every row.

    Returns
    -------
    TransformChain

    Raises
    ------
    KnnError
        For more LDA dimensions than the embeddings have or than classes less one, for rows that are all the same, and
        as `GaussianStatistics.add` does.
    """
    specs = parse_transforms(spec) if isinstance(spec, str) else list(spec)
    return learnt_transforms(specs, lambda chain: _collect(chain, blocks, labels, balanced))


def learnt_transforms(specs: Sequence[TransformSpec], collect: Callable[[TransformChain], Any]) -> TransformChain:
    """Learn a chain from what `collect` gives: the `GaussianStatistics` of all rows behind a chain, by one pass."""
    chain, statistics = TransformChain(), None
    for wanted in specs:
        if wanted.name == "length":
            chain, statistics = TransformChain((*chain.steps, TransformStep("length", np.zeros(0)))), None
            continue
        if statistics is None:
            statistics = collect(chain)
        step = _learn(wanted, statistics)
        chain, statistics = TransformChain((*chain.steps, step)), _mapped(statistics, step)
    return chain


def _collect(chain: TransformChain, blocks: Blocks, labels: ArrayLike, balanced: bool) -> GaussianStatistics:
    """The statistics of all rows after the chain: one pass."""
    statistics = None
    for X, y in blocks():
        rows = chain.apply(X) if chain.steps else np.asarray(X)
        if statistics is None:
            if rows.ndim != 2:
                raise KnnError(f"Rows of shape {rows.shape} are no embeddings.")
            statistics = GaussianStatistics.empty(labels, rows.shape[1], balanced=balanced)
        statistics = statistics.add(rows, y)
    if statistics is None or not statistics.rows:
        raise KnnError("There are no rows to learn transforms from.")
    return statistics


def _mapped(statistics: GaussianStatistics, step: TransformStep) -> GaussianStatistics:
    """The statistics of the rows after a linear transform, from those of the rows before it."""
    if step.name == "center":
        return replace(statistics, means=step.apply(statistics.means))
    scatter = step.values.T @ statistics.scatter @ step.values
    return replace(statistics, means=step.apply(statistics.means), scatter=scatter)


def _learn(spec: TransformSpec, statistics: GaussianStatistics) -> TransformStep:
    """Learn one linear transform."""
    rows = statistics.rows
    class_weight = statistics.weights * statistics.counts / rows  # (C,) sum to 1
    mean = class_weight @ statistics.means
    if spec.name == "center":
        return TransformStep("center", mean)
    spread = np.sqrt(class_weight)[:, None] * (statistics.means - mean)
    within, between = statistics.scatter / rows, spread.T @ spread  # (D, D) both
    if spec.name == "whiten":
        values, vectors = scipy.linalg.eigh(_invertible(within + between, rows, "total"))
        return TransformStep("whiten", (vectors / np.sqrt(values)) @ vectors.T)
    max_size = min(len(statistics.classes) - 1, statistics.dimension)
    if not 1 <= spec.size <= max_size:
        raise KnnError(
            f"LDA of {len(statistics.classes)} classes in {statistics.dimension} dimensions keeps at most "
            f"{max(max_size, 0)}, not {spec.size}.",
            f"Write lda:{max_size}." if max_size > 0 else "LDA needs two classes or more.",
        )
    last = statistics.dimension - 1
    _, vectors = scipy.linalg.eigh(
        between, _invertible(within, rows, "within-class"), subset_by_index=(last - spec.size + 1, last)
    )
    vectors = vectors[:, ::-1]  # (D, K) by falling eigenvalue
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(spec.size)])  # independent of the library
    return TransformStep("lda", vectors * signs)


def _invertible(covariance: Doubles, rows: int, what: str) -> Doubles:
    """The covariance (D, D) itself, or shrunk towards the scaled identity (`oas_shrinkage`) if it is singular."""
    mean_variance = float(np.trace(covariance)) / len(covariance)
    if not mean_variance > 0:
        raise KnnError(f"The {what} covariance of {rows} rows is zero.", "Give rows that differ.")
    if cholesky(covariance) is not None:
        return covariance
    weight = oas_shrinkage(covariance, rows)
    shrunk: Doubles = (1 - weight) * covariance + weight * mean_variance * np.eye(len(covariance))
    return shrunk
