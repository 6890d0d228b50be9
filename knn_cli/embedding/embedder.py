"""The embedder: waveforms to embeddings with a bundle's network, in batches of similar length.

One embedding stands for a file, a segment of a file, a row of an audio store or a window. All of them go through
`Embedder.__call__`, which gives a clip the same embedding in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from knn_cli.audio import reading, reading_notes
from knn_cli.core.device import has_bfloat16, torch_device
from knn_cli.core.errors import KnnError
from knn_cli.core.parallel import MAX_PARALLEL_ITEMS, parallel_map
from knn_cli.core.values import EmbeddingSet, Floats, Segment
from knn_cli.embedding.chunks import Averages, rechunk
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.networks.chunk_setting import WHOLE, Chunk, chunk_seconds
from knn_cli.networks.contracts import Encoder, FramePooling
from knn_cli.networks.precision import AUTO, BF16, INT8, ONNX, Precision
from knn_cli.store.labels import Labels

if TYPE_CHECKING:
    from knn_cli.networks.onnx_network import OnnxNetwork

__all__ = ["BATCH_SECONDS", "MIN_SPEECH_SECONDS", "Embedder"]

MIN_SPEECH_SECONDS = 0.25  # less speech than this has no embedding worth the name
BATCH_SECONDS = 120.0
CPU_BATCH_SECONDS = 20.0  # layers of longer batches leave the caches: with CAM++, 120 s take 1.3 times as long


Key = TypeVar("Key")


class Embedder:
    """A bundle's network on a device.

    Parameters
    ----------
    model : str, Path or Bundle, optional
        Name or path of a bundle; None takes the shipped model of speaker embeddings.
    device : str
        "auto", "cpu", "cuda" or "mps".
    batch_seconds : float
        Seconds of sound that go through the network at once; on a CPU no more than `CPU_BATCH_SECONDS`.
    chunk : float or "whole", optional
        The most seconds of a clip's speech that go through it at once; longer speech is cut evenly, and the embeddings
        of its chunks are averaged. None takes what the bundle says; another becomes part of the fingerprint.
    precision : str
        In which numbers the network computes: "fp32", "bf16", "int8" or "onnx", see `networks.precision`. "auto" takes
        what the bundle says; another becomes part of the fingerprint.

    Raises
    ------
    BundleError
        The model cannot be loaded.
    KnnError
        The device is not there, `batch_seconds` is not a number above 0, `chunk` is longer than the encoder takes, or
        the device cannot compute with that `precision`.

    Examples
    --------
    >>> from knn_cli import Embedder, read_audio
    >>> embedder = Embedder(device="cpu")
    >>> sound = read_audio("meeting.flac", rate=embedder.rate)
    >>> embedder([sound.samples[:16000], sound.samples[16000:64000]]).shape
    (2, 192)
    """

    def __init__(
        self,
        model: str | Path | Bundle | None = None,
        *,
        device: str = "auto",
        batch_seconds: float = BATCH_SECONDS,
        chunk: Chunk | None = None,
        precision: Precision = AUTO,
    ) -> None:
        found = model if isinstance(model, Bundle) else bundle.find(model)
        self.bundle = found.with_settings(chunk=chunk, precision=None if precision == AUTO else precision)
        if not 0 < batch_seconds < math.inf:
            raise KnnError(f"Batches cannot be {batch_seconds:g} s long.", "Give `batch_seconds` above 0.")
        self.device = torch_device(device)
        self.batch_seconds = batch_seconds
        self.precision = _checked(self.bundle.precision, self.device)
        self._network = bundle.load_network(self.bundle).to(self.device)
        longest = self._network.encoder.longest_seconds
        self.chunk_seconds = chunk_seconds(self.bundle.chunk, longest, self.bundle.name)  # of speech in a chunk at most
        pooling = self._network.pooling
        self._frame_pooling = pooling if isinstance(pooling, FramePooling) else None
        self._onnx: OnnxNetwork | None = None
        if self.precision == ONNX:
            from knn_cli.networks.onnx_network import OnnxNetwork

            self._onnx = OnnxNetwork(self.bundle)

    @property
    def rate(self) -> int:
        """Samples per second that the network takes."""
        return self.bundle.rate

    @property
    def encoder(self) -> Encoder:
        """The network's encoder."""
        return self._network.encoder

    @property
    def dimension(self) -> int:
        """Values of an embedding."""
        return self._network.dimension

    @property
    def minimum_samples(self) -> int:
        """Samples of the shortest clip that the encoder takes."""
        return self._network.minimum

    @property
    def minimum_seconds(self) -> float:
        """Seconds of speech that an embedding needs."""
        return max(MIN_SPEECH_SECONDS, self._network.minimum / self.rate)

    def __call__(self, waveforms: Sequence[Floats]) -> Floats:
        """Embed waveforms, each by itself.

        Parameters
        ----------
        waveforms : sequence of (S,) float32
            Samples in [-1, 1] at `rate`, of any lengths. Clips shorter than the network's minimum are filled up with
            silence on both sides.

        Returns
        -------
        (N, E) float32
            Embeddings in the order of the waveforms.
        """
        result = np.zeros((len(waveforms), self.dimension), dtype=np.float32)
        batches = [*self._batches([len(waveform) for waveform in waveforms])]
        with parallel_map(self.device, max(1, min(MAX_PARALLEL_ITEMS, len(batches)))) as each:
            vectors = each(lambda rows: self._embed([waveforms[row] for row in rows]), batches)
            for rows, found in zip(batches, vectors, strict=True):
                result[rows] = found
        return result

    def _embed(self, waveforms: Sequence[Floats]) -> Floats:
        """(B, E) embeddings of a batch."""
        lengths = [max(len(waveform), self._network.minimum) for waveform in waveforms]
        batch = np.zeros((len(waveforms), max(lengths)), dtype=np.float32)
        for clip, waveform, length in zip(batch, waveforms, lengths, strict=True):
            lead = (length - len(waveform)) // 2
            clip[lead : lead + len(waveform)] = waveform
        if self._onnx is not None:
            return self._onnx(batch)
        sound = torch.from_numpy(batch * np.float32(self.bundle.scale))
        if is_cuda := self.device.type == "cuda":
            sound = sound.pin_memory()  # from where it is copied while the processor goes on
        sound = sound.to(self.device, non_blocking=is_cuda)  # (B, S)
        unequal = None if min(lengths) == max(lengths) else torch.tensor(lengths, device=self.device)
        try:
            with torch.inference_mode(), self._products():
                vectors: Floats = self._network(sound, unequal).float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            hint = f"Lower `batch_seconds`, now {self.batch_seconds:g}, or take `device=cpu`."
            raise KnnError(f"The {self.device.type} device has too little memory.", hint) from error
        return vectors

    def frames(self, waveforms: Sequence[Floats]) -> list[torch.Tensor]:
        """Frames of waveforms, from which `pool` makes embeddings of any parts.

        Parameters
        ----------
        waveforms : sequence of (S,) float32
            Samples in [-1, 1] at `rate`, none shorter than the network's minimum.

        Returns
        -------
        list of (X, T, C) float
            The layers of the encoder; of a `FramePooling` its frames (X = 1), which are less.
        """
        if self._onnx is not None:
            raise KnnError("ONNX Runtime embeds whole clips only.", "Take another `precision`.")
        encoder, pooling = self._network.encoder, self._frame_pooling
        result: list[torch.Tensor] = [torch.zeros(0)] * len(waveforms)
        for rows in self._batches([len(waveform) for waveform in waveforms]):
            lengths = torch.tensor([len(waveforms[row]) for row in rows], device=self.device)
            batch = np.zeros((len(rows), int(lengths.max())), dtype=np.float32)
            for clip, row in zip(batch, rows, strict=True):
                clip[: len(waveforms[row])] = waveforms[row]
            sound = torch.from_numpy(batch * np.float32(self.bundle.scale)).to(self.device)  # (B, S)
            with torch.inference_mode(), self._products():
                layers = encoder(sound, lengths)
                frames = torch.stack(list(layers)) if pooling is None else pooling.frames(layers)[None]
            for number, row in enumerate(rows):
                result[row] = frames[:, number, : encoder.frames(len(waveforms[row]))]  # (X, T, C)
        return result

    def pool(self, frames: torch.Tensor, masks: torch.Tensor) -> Floats:
        """Embed parts of frames.

        Parameters
        ----------
        frames : (X, T, C) float
            What `frames` returned of one clip, or of several joined along T.
        masks : (K, T) bool
            K choices of frames.

        Returns
        -------
        (K, E) float32
        """
        masks = masks.to(self.device)
        with torch.inference_mode(), self._products():
            layers = [layer.expand(len(masks), -1, -1) for layer in frames]
            if self._frame_pooling is None:
                vectors = self._network.pooling(iter(layers), masks)
            else:
                vectors = self._frame_pooling.pool(layers[0], masks)
            result: Floats = vectors.float().cpu().numpy()
        return result

    def scores(self, embeddings: Floats) -> Floats:
        """(N, E) float32 embeddings -> (N, C) float32 scores of the network's head, in the order of `head_labels`."""
        with torch.inference_mode():
            scores: Floats = self._network.scores(torch.from_numpy(embeddings).to(self.device)).cpu().numpy()
        return scores

    def averages(self, chunks: Iterable[tuple[int, Floats]]) -> dict[int, Floats]:
        """Average the embeddings of each row's waveforms, weighted by their lengths.

        Parameters
        ----------
        chunks : iterable of (int, (S,) float32)
            Row number and samples. They may be a stream: no more than a batch of them is held.

        Returns
        -------
        dict of int to (E,) float32
        """
        averages = Averages()
        for row, samples, vector in self.embedded(chunks, self.batch_seconds):
            averages.add(row, samples, vector)
        return averages.of_rows()

    def embedded(self, chunks: Iterable[tuple[Key, Floats]], seconds: float) -> Iterator[tuple[Key, int, Floats]]:
        """(key, samples, (E,) embedding) of a stream of chunks with keys, so many seconds of which are held."""
        for held in _streamed(chunks, seconds * self.rate):
            vectors = self([chunk for _, chunk in held])
            yield from ((key, len(chunk), vector) for (key, chunk), vector in zip(held, vectors, strict=True))

    def note_parts(self, path: Path | str, seconds: float) -> None:
        """Tell the listener of `reading_notes` if so much speech of a row is to be heard whole and is too much."""
        if self.bundle.chunk == WHOLE and seconds > self.chunk_seconds:
            parts = math.ceil(seconds / self.chunk_seconds)
            most = f"{self.chunk_seconds:g} s, the most that {self.bundle.name} hears at once"
            reading_notes.note(Path(path), f"is heard in {parts} parts: a row has {seconds:.0f} s, above {most}")

    def spans(self, path: Path | str, spans: Sequence[Segment], *, channel: str = "mix") -> Floats:
        """(N, E) embeddings of spans (sorted by start, none empty) of one file of any length."""
        crops = reading.crops(path, spans, rate=self.rate, channel=channel)
        rows = self.averages(rechunk(enumerate(crops), self.rate, self.chunk_seconds)).values()
        return np.stack(list(rows)) if rows else np.zeros((0, self.dimension), dtype=np.float32)

    def embedding_set(
        self, rows: Mapping[int, Floats], spans: Sequence[Segment], known: Sequence[Labels]
    ) -> EmbeddingSet:
        """The embeddings of `averages`, with the span (in seconds) and the labels of each."""
        return EmbeddingSet.from_columns(
            np.stack(list(rows.values())) if rows else np.zeros((0, self.dimension)),
            [label.name for label in known],
            group=[label.group for label in known],
            subgroup=[label.subgroup for label in known],
            speaker=[label.speaker for label in known],
            start=[span.start for span in spans],
            end=[span.end for span in spans],
            embedder=self.bundle.fingerprint,
        )

    def _products(self) -> AbstractContextManager[object]:
        """Within it, products are of bfloat16 where that is the precision."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == BF16 else nullcontext()

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Row numbers in batches of similar lengths, of at most `batch_seconds` with their padding; less on a CPU.

        Where products are of 8 bits, each by itself: rounding makes much of the last digits, which a batch may change.
        Also for ONNX Runtime, whose batches have clips of one length.
        """
        seconds = min(self.batch_seconds, CPU_BATCH_SECONDS) if self.device.type == "cpu" else self.batch_seconds
        limit = 0.0 if self.precision in (INT8, ONNX) else seconds * self.rate
        batch: list[int] = []
        for row in sorted(range(len(lengths)), key=lengths.__getitem__):
            if batch and (len(batch) + 1) * lengths[row] > limit:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch


def _checked(precision: Precision, device: torch.device) -> Precision:
    """The precision; KnnError if the device cannot compute so."""
    if precision == BF16 and not has_bfloat16(device):
        what = "processor" if device.type == "cpu" else f"{device.type} device"
        raise KnnError(f"This {what} cannot compute in bf16.", "Take `precision=fp32`.")
    if precision == ONNX and device.type != "cpu":
        raise KnnError("ONNX Runtime is used on the CPU only.", "Take `device=cpu` too.")
    return precision


def _streamed(chunks: Iterable[tuple[Key, Floats]], samples: float) -> Iterator[list[tuple[Key, Floats]]]:
    """Consecutive chunks, of at least so many samples together."""
    batch: list[tuple[Key, Floats]] = []
    count = 0
    for row, chunk in chunks:
        batch.append((row, chunk))
        count += len(chunk)
        if count >= samples:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch
