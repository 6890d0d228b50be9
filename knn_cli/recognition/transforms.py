"""What is done to embeddings before a classifier: an explicit chain of centring, whitening, LDA, length normalisation.

center  x - mean of all rows
whiten  x C^(-1/2), the symmetric inverse square root of the total covariance C
lda:K   x V, the K generalised eigenvectors with B v = l W v of largest l, v' W v = 1 (between- and within-class
        covariance; Fukunaga, "Introduction to Statistical Pattern Recognition", 1990, section 10.2)
length  x sqrt(D) / |x| (Garcia-Romero & Espy-Wilson, "Analysis of i-vector Length Normalization in Speaker
        Recognition Systems", Interspeech 2011); the root keeps a value of the order of one

Every step does what its line says and no more: whiten and lda are linear, only center moves the origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles
from knn_cli.recognition.glc import BLOCK, Statistics, cholesky, float64_rows, oas_shrinkage

Blocks = Callable[[], Iterable[tuple[ArrayLike, ArrayLike]]]
NAMES = ("center", "whiten", "lda", "length")
_LEARNT = {"center": 1, "whiten": 2, "lda": 2, "length": 1}  # dimensions of the array that a step learns


class Spec(NamedTuple):
    """One step that is asked for; `size` is the K of lda:K, 0 for the others."""

    name: str
    size: int = 0


@dataclass(frozen=True, eq=False)
class Step:
    """One step that has been learnt.

    values : center (D,) the mean; whiten (D, D); lda (D, K); length (0,)
    """

    name: str
    values: Doubles

    def __post_init__(self) -> None:
        if self.name not in NAMES or self.values.ndim != _LEARNT[self.name]:
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
class Chain:
    """Steps that have been learnt, in the order of their application; the empty chain changes nothing."""

    steps: tuple[Step, ...] = ()

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
        """What `parse` reads: center,whiten,lda:14,length."""
        return ",".join(f"lda:{one.values.shape[1]}" if one.name == "lda" else one.name for one in self.steps)

    @property
    def dimension(self) -> int | None:
        """Of the rows that it takes; None: any."""
        return next((len(step.values) for step in self.steps if step.name != "length"), None)

    @property
    def output_dimension(self) -> int | None:
        """Of the rows that it gives; None: that of those it takes."""
        return next((int(step.values.shape[-1]) for step in reversed(self.steps) if step.name != "length"), None)

    def apply(self, X: ArrayLike) -> Doubles:
        """Rows (N, D) to (N, D') float64, BLOCK at a time.

        Raises KnnError for another D than that of the training rows, and for NaN or infinite values.
        """
        rows = np.asarray(X)
        width = rows.shape[-1] if self.dimension is None else self.dimension
        out = np.empty((len(rows), self.output_dimension or width))
        for first in range(0, max(len(rows), 1), BLOCK):
            block = float64_rows(rows[first : first + BLOCK], width)
            for step in self.steps:
                block = step.apply(block)
            out[first : first + BLOCK] = block
        return out

    def to_arrays(self) -> dict[str, Doubles]:
        """Named arrays that a file may hold, one a step: 0-center, 1-whiten, ..."""
        return {f"{place}-{step.name}": step.values for place, step in enumerate(self.steps)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> Chain:
        """The chain of `to_arrays`. ValueError for what is none."""
        found = dict(name.split("-", 1) for name in arrays if "-" in name)
        if len(found) != len(arrays) or set(found) != {str(place) for place in range(len(arrays))}:
            raise ValueError(f"the steps {', '.join(map(repr, arrays))} are no chain")
        order = [f"{place}-{found[str(place)]}" for place in range(len(arrays))]
        return cls(tuple(Step(one.split("-", 1)[1], np.asarray(arrays[one], dtype=np.float64)) for one in order))


def parse(text: str) -> list[Spec]:
    """The steps of "center,whiten,lda:14,length"; none of an empty text. Raises KnnError for what is no step."""
    specs = []
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, colon, size = part.partition(":")
        if name not in NAMES:
            raise KnnError(f"There is no transform {name!r}.", "Known: center, whiten, lda:K, length.")
        if name != "lda" and colon:
            raise KnnError(f"The transform {name} takes no number, {part!r} gives one.")
        if name == "lda" and not (size.isascii() and size.isdigit() and int(size)):
            raise KnnError(f"{part!r} does not say how many dimensions to keep.", "Write lda:14.")
        specs.append(Spec(name, int(size or 0)))
    return specs


def fit(spec: str | Sequence[Spec], blocks: Blocks, labels: ArrayLike, *, balanced: bool = False) -> Chain:
    """Learn a chain from rows that may be larger than memory.

    spec     : text for `parse`, or what it gave
    blocks   : called once a pass: gives (X (n, D), y (n,)) after (X, y), the same rows each time
    labels   : (N,) labels of all the rows to come
    balanced : every class counts alike in the mean and in the covariances, instead of every row

    Memory is that of `glc.Statistics` and one block. Center, whiten and lda are linear, so that the statistics behind
    them follow from those before; only length, and only with steps behind it, costs a pass of its own.
    Raises KnnError: more LDA dimensions than classes less one or than there are, rows that are all the same, and what
    `Statistics.add` refuses.
    """
    specs = parse(spec) if isinstance(spec, str) else list(spec)
    chain, statistics = Chain(), None
    for one in specs:
        if one.name == "length":
            chain, statistics = Chain((*chain.steps, Step("length", np.zeros(0)))), None
            continue
        if statistics is None:
            statistics = _collect(chain, blocks, labels, balanced)
        step = _learn(one, statistics)
        chain, statistics = Chain((*chain.steps, step)), _mapped(statistics, step)
    return chain


def _collect(chain: Chain, blocks: Blocks, labels: ArrayLike, balanced: bool) -> Statistics:
    statistics = None
    for X, y in blocks():
        rows = chain.apply(X) if chain.steps else np.asarray(X)
        if statistics is None:
            if rows.ndim != 2:
                raise KnnError(f"Rows of shape {rows.shape} are no embeddings.")
            statistics = Statistics.empty(labels, rows.shape[1], balanced=balanced)
        statistics = statistics.add(rows, y)
    if statistics is None or not statistics.rows:
        raise KnnError("There are no rows to learn transforms from.")
    return statistics


def _mapped(statistics: Statistics, step: Step) -> Statistics:
    """The statistics of the rows behind a linear step, from those of the rows before it."""
    if step.name == "center":
        return replace(statistics, means=step.apply(statistics.means))
    scatter = step.values.T @ statistics.scatter @ step.values
    return replace(statistics, means=step.apply(statistics.means), scatter=scatter)


def _learn(spec: Spec, statistics: Statistics) -> Step:
    rows = statistics.rows
    share = statistics.weights * statistics.counts / rows  # (C,) sum to 1
    mean = share @ statistics.means
    if spec.name == "center":
        return Step("center", mean)
    spread = np.sqrt(share)[:, None] * (statistics.means - mean)
    within, between = statistics.scatter / rows, spread.T @ spread  # (D, D) both
    if spec.name == "whiten":
        values, vectors = linalg.eigh(_invertible(within + between, rows, "total"))
        return Step("whiten", (vectors / np.sqrt(values)) @ vectors.T)
    most = min(len(statistics.classes) - 1, statistics.dimension)
    if not 1 <= spec.size <= most:
        raise KnnError(
            f"LDA of {len(statistics.classes)} classes in {statistics.dimension} dimensions keeps at most "
            f"{max(most, 0)}, not {spec.size}.",
            f"Write lda:{most}." if most > 0 else "LDA needs two classes or more.",
        )
    last = statistics.dimension - 1
    _, vectors = linalg.eigh(
        between, _invertible(within, rows, "within-class"), subset_by_index=(last - spec.size + 1, last)
    )
    vectors = vectors[:, ::-1]  # (D, K) the most telling first
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(spec.size)])  # so that no library decides them
    return Step("lda", vectors * signs)


def _invertible(covariance: Doubles, rows: int, what: str) -> Doubles:
    """The covariance (D, D) itself, or shrunk towards the scaled identity (`glc.oas_shrinkage`) if it is singular."""
    level = float(np.trace(covariance)) / len(covariance)
    if not level > 0:
        raise KnnError(f"The {what} covariance of {rows} rows is zero.", "Give rows that differ.")
    if cholesky(covariance) is not None:
        return covariance
    weight = oas_shrinkage(covariance, rows)
    shrunk: Doubles = (1 - weight) * covariance + weight * level * np.eye(len(covariance))
    return shrunk
