"""The PLDA of an embedding model: a map to coordinates in which VBx and verification trials are simple.

An embedding is centred, normalized to length 1, reduced by LDA, and centred and normalized again. It is then mapped to
the coordinates of a two-covariance PLDA (`recognition.plda`), in which embeddings have within-speaker covariance 1 and
speaker means have zero mean and a diagonal covariance (Landini et al. 2022, see `vbx`, eq. 4-5). The folder of a model
holds it as `plda.safetensors`, with the fingerprint of the embedder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knn_cli.core.atomic import replacing
from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.lfs import check_pointer
from knn_cli.core.values import Doubles
from knn_cli.core.vectors import NORM_ROWS, l2_normalize
from knn_cli.networks import bundle as bundles
from knn_cli.networks.bundle import Bundle, check_embedder
from knn_cli.recognition.row_checks import float64_rows

if TYPE_CHECKING:
    from knn_cli.recognition.plda import PLDA

FILE = bundles.PLDA
SCHEMA = "1"


@dataclass(frozen=True, eq=False)
class EmbeddingPLDA:
    """Map from embeddings (E values) to the space after LDA (D values) and to PLDA coordinates (K values).

    Attributes
    ----------
    centre : (E,) float64 array
        Mean of the embeddings.
    lda : (E, D) float64 array
        LDA projection.
    shift : (D,) float64 array
        Mean after LDA.
    mean : (D,) float64 array
        Mean of the PLDA.
    transform : (D, K) float64 array
        To coordinates with within-speaker variance 1, the largest between-speaker variance first.
    between : (K,) float64 array
        Between-speaker variance of each coordinate, in descending order.
    """

    centre: Doubles
    lda: Doubles
    shift: Doubles
    mean: Doubles
    transform: Doubles
    between: Doubles

    def __post_init__(self) -> None:
        if self.lda.ndim != 2 or self.transform.ndim != 2:
            raise ValueError("LDA and transform are matrices")
        outer, inner, kept = *self.lda.shape, self.transform.shape[1]
        shapes = ((outer,), (outer, inner), (inner,), (inner,), (inner, kept), (kept,))
        for field, shape in zip(fields(self), shapes, strict=True):
            array = getattr(self, field.name)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{field.name} of the PLDA is {array.shape}, not {shape}, or not finite")
        if (self.between < 0).any() or (np.diff(self.between) > 0).any():
            raise ValueError("the between-speaker variances are negative or not in descending order")

    def arrays(self) -> tuple[Doubles, ...]:
        """All arrays, in the order of the attributes."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def normalised(self, embeddings: NDArray[np.floating]) -> Doubles:
        """(N, E) -> (N, D) of length 1 after LDA, to be compared by their cosines. KnnError for another E."""
        rows = float64_rows(embeddings, len(self.centre))
        result = np.empty((len(rows), self.lda.shape[1]))
        for at in range(0, len(rows), NORM_ROWS):
            block = slice(at, at + NORM_ROWS)
            result[block] = l2_normalize(l2_normalize(rows[block] - self.centre) @ self.lda - self.shift)
        return result

    def coordinates(self, embeddings: NDArray[np.floating]) -> Doubles:
        """(N, E) -> (N, K) with within-speaker covariance 1 and between-speaker covariance diag(`between`)."""
        return self.from_normalised(self.normalised(embeddings))

    def from_normalised(self, rows: Doubles) -> Doubles:
        """Coordinates (N, K) from the rows (N, D) that `normalised` returns."""
        result: Doubles = (rows - self.mean) @ self.transform
        return result

    @classmethod
    def fit(cls, embeddings: ArrayLike, speakers: ArrayLike, *, dimension: int) -> EmbeddingPLDA:
        """Estimate LDA, then PLDA by maximum likelihood.

        Parameters
        ----------
        embeddings : (N, E) array
        speakers : (N,) array
            Speaker of each embedding.
        dimension : int
            Dimension D after LDA.

        Returns
        -------
        EmbeddingPLDA

        Raises
        ------
        KnnError
            For too few speakers or embeddings (see `transforms.fit_transforms`, `PLDA.fit`).
        """
        from knn_cli.recognition import transforms
        from knn_cli.recognition.plda import PLDA

        rows, names = np.asarray(embeddings, dtype=np.float64), np.asarray(speakers)
        chain = transforms.fit_transforms(
            f"center,length,lda:{dimension},center,length", lambda: [(rows, names)], names
        )
        centre, _, lda, shift, _ = (step.values for step in chain.steps)
        shift = shift / np.sqrt(
            len(centre)
        )  # transforms normalize to the square root of the dimension, this class to 1
        unit = l2_normalize(l2_normalize(rows - centre) @ lda - shift)
        return cls.of(PLDA.fit(unit, names), centre, lda, shift)

    @classmethod
    def of(cls, model: PLDA, centre: Doubles, lda: Doubles, shift: Doubles) -> EmbeddingPLDA:
        """Combine LDA with a PLDA of length-normalised rows."""
        return cls(centre, lda, shift, model.mean, *_diagonalised(model))

    @classmethod
    def from_kaldi(
        cls, arrays: tuple[Doubles, Doubles, Doubles], centre: Doubles, lda: Doubles, shift: Doubles
    ) -> EmbeddingPLDA:
        """Combine LDA with Kaldi's PLDA (mean, transform, psi; see `kaldi.read_plda`).

        Its y = transform (x - mean) has within-speaker covariance 1 and between-speaker covariance diag(psi).
        """
        mean, transform, psi = arrays
        order = np.argsort(-psi, kind="stable")
        return cls(centre, lda, shift, mean, transform[order].T.copy(), psi[order])

    def adapted(self, adapt: Callable[[PLDA], PLDA]) -> EmbeddingPLDA:
        """The same map with another PLDA, which `adapt` makes of that in the coordinates: mean 0, within 1."""
        from knn_cli.recognition.plda import PLDA

        size = len(self.between)
        model = adapt(PLDA(np.zeros(size), np.diag(self.between), np.eye(size)))
        # Coordinates of the mean are those of `mean` + shift for any shift with shift @ transform = model.mean.
        mean = self.mean + model.mean @ np.linalg.pinv(self.transform)
        transform, between = _diagonalised(model)
        return replace(self, mean=mean, transform=self.transform @ transform, between=between)

    def keep(self, dimension: int) -> EmbeddingPLDA:
        """The same map to the first `dimension` coordinates only, the most discriminative ones."""
        first = slice(dimension)
        columns = self.transform[:, first]
        return EmbeddingPLDA(self.centre, self.lda, self.shift, self.mean, columns, self.between[first])

    def save(self, path: Path, *, embedder: str) -> None:
        """Write float32 arrays with the fingerprint of their embedder, atomically."""
        from safetensors.numpy import save

        arrays = {field.name: np.ascontiguousarray(getattr(self, field.name), np.float32) for field in fields(self)}
        with replacing(path) as part:
            part.write_bytes(save(arrays, metadata={"schema": SCHEMA, "embedder": embedder}))


def _diagonalised(model: PLDA) -> tuple[Doubles, Doubles]:
    """`transform` and `between` of a PLDA in its own space."""
    from scipy import linalg

    ratios, vectors = linalg.eigh(model.between, model.within)
    return vectors[:, ::-1].copy(), np.maximum(ratios[::-1], 0.0)


def load(bundle: Bundle) -> EmbeddingPLDA:
    """Load the PLDA of an embedding model.

    Parameters
    ----------
    bundle : Bundle
        The embedding model.

    Returns
    -------
    EmbeddingPLDA

    Raises
    ------
    KnnError
        Where the model has no PLDA.
    BundleError
        Where the file is damaged, or belongs to another schema or another embedder.
    """
    from safetensors import SafetensorError, safe_open

    path = bundle.folder / FILE
    if not path.is_file():
        raise KnnError(
            f"The model {bundle.name!r} has no PLDA ({FILE}), which vbx needs.",
            "Choose another clustering method, or a model that has one, such as `voice`.",
        )
    check_pointer(path, error=BundleError)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            arrays = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} is damaged: {error}.", "Copy the whole folder again.") from error
    if metadata.get("schema") != SCHEMA:
        raise BundleError(
            f"{path} has schema {metadata.get('schema')}; this knn reads {SCHEMA}.", "Install another knn."
        )
    check_embedder(metadata.get("embedder", ""), bundle.fingerprint, str(path))
    expected = {field.name for field in fields(EmbeddingPLDA)}
    if differing := sorted(expected ^ set(arrays)):
        raise BundleError(f"{path} does not fit: {', '.join(differing)} missing or extra.", "Copy the folder again.")
    try:
        return EmbeddingPLDA(**arrays)
    except ValueError as error:
        raise BundleError(f"{path} does not fit: {error}.", "Copy the whole folder again.") from error
