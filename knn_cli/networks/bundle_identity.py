"""What a bundle is: its folder and its config, and the fingerprint by which stores and classifiers know it.

The fingerprint identifies the weights and everything else that determines an embedding, so that embeddings of different
models are never mixed by mistake.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knn_cli.core.errors import BundleError
from knn_cli.networks.bundle_config import IDENTITY, SEGMENTER, SEGMENTER_IDENTITY
from knn_cli.networks.chunk_setting import CHUNK_SECONDS, Chunk
from knn_cli.networks.precision import AUTO, FP32, INT8, Precision, with_suffix, without_suffix

WEIGHTS, CLASSIFIER, PLDA, CARD = "weights.safetensors", "classifier.h5", "plda.safetensors", "README.md"


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder and its config; weights are read by `load_network` and `load_segmenter`."""

    folder: Path
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name in the config."""
        return str(self.config["name"])

    @property
    def settings(self) -> dict[str, Any]:
        """The config without the entries that `write` adds, for a bundle that is made from this one."""
        return {key: value for key, value in self.config.items() if key not in ("schema", "weights_sha256")}

    @property
    def card(self) -> str:
        """Text of README.md, or "" without that file."""
        path = self.folder / CARD
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    @property
    def has_network(self) -> bool:
        """Whether the bundle has a network that computes embeddings."""
        return "encoder" in self.config

    @property
    def is_segmenter(self) -> bool:
        """Whether the bundle has a segmentation network, and neither embeds nor classifies."""
        return bool(self.config["kind"] == SEGMENTER)

    @property
    def rate(self) -> int:
        """Samples per second that the network takes."""
        return int(self.config["audio"]["rate"])

    @property
    def scale(self) -> float:
        """Factor on [-1, 1] samples before the network."""
        return float(self.config["audio"]["scale"])

    @property
    def chunk(self) -> Chunk:
        """The most seconds of speech that go through the network at once, or "whole"."""
        chunk: Chunk = self.config.get("chunk", CHUNK_SECONDS)
        return chunk

    @property
    def own_precision(self) -> Precision:
        """In which numbers the network computes unless another `precision` is asked for."""
        return INT8 if self.config.get("products") == INT8 else FP32

    @property
    def precision(self) -> Precision:
        """In which numbers the network computes, see `precision`."""
        precision: Precision = self.config.get("precision", self.own_precision)
        return precision

    def with_settings(self, *, chunk: Chunk | None = None, precision: Precision | None = None) -> Bundle:
        """The bundle with another `chunk` or `precision`; a classifier alone then needs an embedder with these.

        None leaves what the config says; "auto" is the bundle's own precision.
        """
        if self.has_network or self.is_segmenter:
            config = {**self.config, **({} if chunk is None else {"chunk": chunk})}
            if precision is not None:
                config["precision"] = self.own_precision if precision == AUTO else precision
            if config.get("precision") == self.own_precision:
                del config["precision"]
            return Bundle(self.folder, config)
        embedder, own_chunk, own_precision = without_suffix(self.fingerprint)
        suffix = own_chunk if chunk is None else chunk, own_precision if precision is None else precision
        return Bundle(self.folder, {**self.config, "embedder": with_suffix(embedder, *suffix)})

    @property
    def fingerprint(self) -> str:
        """`name@hash` of the embedder, for a classifier alone the one that it needs; or of the segmentation network.

        A `chunk` other than 20 s and a `precision` other than the bundle's own follow: `name@hash+whole+int8`.
        """
        if not self.has_network and not self.is_segmenter:
            return str(self.config.get("embedder", ""))
        keys = SEGMENTER_IDENTITY if self.is_segmenter else IDENTITY
        keys = (*keys, "products") if "products" in self.config else keys
        identity = json.dumps({key: self.config[key] for key in keys}, sort_keys=True)
        origin = self.config.get("embedder_name", self.name)
        hashed = f"{origin}@{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        return with_suffix(hashed, self.chunk, AUTO if self.precision == self.own_precision else self.precision)

    @property
    def head_labels(self) -> tuple[str, ...]:
        """Labels of the network's head, in the order of its scores; none where it has no head."""
        return tuple(str(label) for label in self.config.get("head", {}).get("labels", ()))

    @property
    def knows_labels(self) -> bool:
        """Whether recordings can be classified with this bundle."""
        return self.classifier is not None or bool(self.head_labels)

    @property
    def classifier(self) -> Path | None:
        """The classifier's file, or None."""
        path = self.folder / CLASSIFIER
        return path if path.is_file() else None

    def view(self, name: str) -> slice:
        """The part of the embedding for the view `name` (such as "speaker"); all of it if that view is not declared."""
        first, last = self.config.get("views", {}).get(name, (0, None))
        return slice(first, last)


def same_embedder(fingerprint: str, other: str) -> bool:
    """Whether two fingerprints are of the same embedder: only the hashes after the names are compared."""
    return fingerprint.rpartition("@")[2] == other.rpartition("@")[2]


def check_embedder(fingerprint: str, needed: str, source: str) -> None:
    """Raise a BundleError if embeddings and model do not belong together; an unknown embedder ("") is accepted."""
    if fingerprint and needed and not same_embedder(fingerprint, needed):
        raise BundleError(
            f"{source} holds embeddings of {fingerprint}, the model works on those of {needed}.",
            "Make the embeddings again with that model, or train a model on these.",
        )
