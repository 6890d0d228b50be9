"""Local speakers: which of a few speakers are active, window by window over a recording.

A window is ten seconds long, and the next one begins a quarter of that later. Each distinguishes at most three
speakers, by itself: its first speaker and the next window's first speaker need not be the same person. All networks
give frames of FRAME_SECONDS here, whatever their own are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knn_cli.audio.segments import FRAME_SECONDS
from knn_cli.core.device import torch_device
from knn_cli.core.errors import BundleError
from knn_cli.core.parallel import OrderedMap, parallel_map
from knn_cli.core.values import Floats, Waveform
from knn_cli.diarization.reconstruction import Segmentation
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.networks.contracts import Encoder, LayerSegmenter, SegmentationNetwork, WaveformSegmenter
from knn_cli.networks.segmenters.powerset import to_multilabel

WINDOW_FRAMES = 250
HOP_FRAMES = 63  # from one window to the next, unless said
CHUNK_SECONDS = 20.0  # of sound that an encoder gets at once
WINDOWS_PER_BATCH = 32  # windows of encoder frames that are classified at once
WAVEFORM_WINDOWS_PER_BATCH = 8  # windows of sound that are classified at once

Array = TypeVar("Array", Floats, Tensor)


class Segmenter:
    """A segmentation network on a device.

    Parameters
    ----------
    model : str, Path, Bundle or None
        A bundle of the kind `segmenter`, its name or path; None is the shipped one.
    device : torch.device or str
        See `core.device.torch_device`.
    embedder : Embedder, optional
        Its device and, where the model names it, its encoder are used, so that an encoder is loaded once.

    Raises
    ------
    BundleError
        For a model that cannot be loaded, or whose encoder is missing.
    KnnError
        For the device.
    """

    def __init__(
        self,
        model: str | Path | Bundle | None = None,
        *,
        device: torch.device | str = "cpu",
        embedder: Embedder | None = None,
    ) -> None:
        if model is None:
            self.bundle = bundle.find_default(bundle.SEGMENTATION, segmenter=True)
        else:
            self.bundle = model if isinstance(model, Bundle) else bundle.find(model, segmenter=True)
        if embedder is not None:
            device = embedder.device
        self.device = device if isinstance(device, torch.device) else torch_device(device)
        network = bundle.load_segmenter(self.bundle).to(self.device)
        encoder: Encoder | None = None
        self._scale = self.bundle.scale
        if "embedder" in self.bundle.config:
            named = str(self.bundle.config["embedder"])
            if embedder is not None and bundle.same_embedder(embedder.bundle.fingerprint, named):
                encoder, self._scale = embedder.encoder, embedder.bundle.scale
            else:
                encoder_bundle = bundle.find_embedder(named)
                encoder = bundle.load_network(encoder_bundle).encoder.to(self.device).eval()
                self._scale = encoder_bundle.scale
        self.speakers = network.speakers
        self._windows = self._windowing(network, encoder)

    @property
    def rate(self) -> int:
        """Samples per second of the network's input."""
        return self.bundle.rate

    def _windowing(
        self, network: SegmentationNetwork, encoder: Encoder | None
    ) -> Callable[[Iterator[Floats], int, int, OrderedMap], Iterator[tuple[int, Floats]]]:
        """How windows are classified: from sound or from an encoder's layers. BundleError where the two do not fit."""
        if encoder is None and isinstance(network, WaveformSegmenter):
            return partial(self._waveform_windows, network)
        if encoder is not None and isinstance(network, LayerSegmenter):
            frame = round(FRAME_SECONDS * self.rate)
            fits = (network.layers, network.channels) == (encoder.layers, encoder.channels)
            if fits and all(encoder.frames(count * frame) == count * network.pace for count in (1, WINDOW_FRAMES)):
                return partial(self._layer_windows, network, encoder)
        raise BundleError(
            f"{self.bundle.folder}: the segmentation network does not fit the encoder that the bundle names.",
            "A head on an encoder needs the embedder that it was trained with.",
        )

    def __call__(self, blocks: Iterable[Waveform], hop: int = HOP_FRAMES) -> Segmentation:
        """Local speakers of one recording from its consecutive blocks at `rate`, in bounded memory.

        Each frame has the most probable set of speakers, so probabilities are 0 or 1.

        hop : frames from one window to the next
        """
        frame = round(FRAME_SECONDS * self.rate)
        samples = 0

        def scaled() -> Iterator[Floats]:
            nonlocal samples
            for block in blocks:
                samples += len(block.samples)
                yield block.samples * np.float32(self._scale)

        with parallel_map(self.device) as each:
            windows = [
                (start, probabilities.astype(np.float16))
                for start, probabilities in self._windows(scaled(), hop, frame, each)
            ]
        frames = -(-samples // frame)
        table = np.zeros((len(windows), WINDOW_FRAMES, self.speakers), dtype=np.float16)
        for row, (_, probabilities) in zip(table, windows, strict=True):
            row[: len(probabilities)] = probabilities
        return Segmentation(np.array([start for start, _ in windows], dtype=np.int64), table, frames)

    def _waveform_windows(
        self, network: WaveformSegmenter, pieces: Iterator[Floats], hop: int, frame: int, each: OrderedMap
    ) -> Iterator[tuple[int, Floats]]:
        """(first frame, probabilities) of windows, for a network on ten seconds of sound."""
        size = WINDOW_FRAMES * frame
        middles = (np.arange(WINDOW_FRAMES) + 0.5) * FRAME_SECONDS
        chosen = torch.from_numpy(network.nearest(middles, network.frames(size)))

        def classify(group: Sequence[tuple[int, Floats]]) -> list[tuple[int, Floats]]:
            starts = [start - group[0][0] for start, _ in group]
            joined = np.zeros(starts[-1] + size, dtype=np.float32)
            for first, (_, sound) in zip(starts, group, strict=True):
                joined[first : first + len(sound)] = sound
            with torch.inference_mode():
                logs = network.of_windows(torch.from_numpy(joined).to(self.device), starts, size).cpu()[:, chosen]
            probabilities = to_multilabel(logs, network.speakers, network.most, hard=True).numpy()
            return [
                (start // frame, window[: -(-len(sound) // frame)])
                for (start, sound), window in zip(group, probabilities, strict=True)
            ]

        for rows in each(classify, _groups(slide(pieces, size, hop * frame, frame), WAVEFORM_WINDOWS_PER_BATCH)):
            yield from rows

    def _layer_windows(
        self, head: LayerSegmenter, encoder: Encoder, pieces: Iterator[Floats], hop: int, frame: int, each: OrderedMap
    ) -> Iterator[tuple[int, Floats]]:
        """(first frame, probabilities) of windows, for a network on an encoder's layers; sound is encoded once."""

        def encode(chunk: Floats) -> Tensor:
            with torch.inference_mode():
                frames = head.begin(encoder(torch.from_numpy(chunk)[None].to(self.device)))[0]
            return frames

        def classify(group: Sequence[tuple[int, Tensor]]) -> list[tuple[int, Floats]]:
            with torch.inference_mode():
                logs = head.classify(torch.stack([frames for _, frames in group])).cpu()
            probabilities = to_multilabel(logs, head.speakers, head.most, hard=True).numpy()
            return [(start, window) for (start, _), window in zip(group, probabilities, strict=True)]

        chunks = _chunks(pieces, round(CHUNK_SECONDS * self.rate), frame)
        windows = slide(each(encode, chunks), WINDOW_FRAMES, hop, 1)
        for rows in each(
            classify, (equal for group in _groups(windows, WINDOWS_PER_BATCH) for equal in _of_equal_length(group))
        ):
            yield from rows


class FrameLevels:
    """Level of each frame of a recording, measured while its blocks pass through."""

    def __init__(self, rate: int) -> None:
        self._frame = round(FRAME_SECONDS * rate)
        self._rest = np.zeros(0, dtype=np.float32)
        self._powers: list[Floats] = []

    def through(self, blocks: Iterable[Waveform]) -> Iterator[Waveform]:
        """The same blocks, unchanged."""
        for block in blocks:
            samples = np.concatenate([self._rest, block.samples])
            whole = len(samples) // self._frame * self._frame
            self._powers.append(np.square(samples[:whole].reshape(-1, self._frame)).mean(1))
            self._rest = samples[whole:]
            yield block

    def decibels(self) -> NDArray[np.int8]:
        """(frames,) int8 dBFS of all that went through; the last frame may not be whole."""
        rest = [np.square(self._rest).mean(keepdims=True)] if len(self._rest) else []
        powers = np.concatenate([*self._powers, *rest]) if self._powers or rest else np.zeros(0)
        levels: NDArray[np.int8] = np.rint(10 * np.log10(np.clip(powers, 1e-12, 1e12))).astype(np.int8)
        return levels


def _groups(windows: Iterator[tuple[int, Array]], size: int) -> Iterator[list[tuple[int, Array]]]:
    """Batches of at most `size` windows."""
    while group := list(islice(windows, size)):
        yield group


def _of_equal_length(group: Iterable[tuple[int, Tensor]]) -> Iterator[list[tuple[int, Tensor]]]:
    """Consecutive windows of one length."""
    held: list[tuple[int, Tensor]] = []
    for start, frames in group:
        if held and len(held[0][1]) != len(frames):
            yield held
            held = []
        held.append((start, frames))
    if held:
        yield held


def slide(pieces: Iterable[Array], size: int, hop: int, unit: int) -> Iterator[tuple[int, Array]]:
    """(start, window) of `size` rows every `hop`, from consecutive pieces; the last one ends with the last whole unit.

    A recording shorter than a window gives one of its own length; one without rows gives none.
    """
    held: Array | None = None
    first, last = 0, -1  # index of the first row in hand, where the last window began
    start = 0
    for piece in pieces:
        held = piece if held is None else _joined(held, piece)
        while len(held) - (start - first) >= size:
            yield start, held[start - first : start - first + size]
            last, start = start, start + hop
        keep = max(
            0, min(len(held), max(0, last) - first)
        )  # the last window may have to begin right after the one before
        held, first = held[keep:], first + keep
    if held is None or not len(held):
        return
    end = first + len(held)
    if last < 0:
        yield 0, held
    elif last + size < end - end % unit:
        begin = (end - size) // unit * unit
        yield begin, held[begin - first : begin - first + size]


def _joined(one: Array, other: Array) -> Array:
    if isinstance(one, Tensor):
        return torch.cat([one, other])
    return cast(Array, np.concatenate([one, other]))


def _chunks(pieces: Iterator[Floats], size: int, unit: int) -> Iterator[Floats]:
    """Chunks of `size` samples, the last two evened out, all whole numbers of units; silence fills the last unit."""
    held = np.zeros(0, dtype=np.float32)
    for piece in pieces:
        held = np.concatenate([held, piece])
        while len(held) >= 2 * size:
            yield held[:size]
            held = held[size:]
    if not len(held):
        return
    held = np.pad(held, (0, -len(held) % unit))
    count = -(-len(held) // size)
    edges = np.linspace(0, len(held) // unit, count + 1).round().astype(int) * unit
    for begin, end in pairwise(edges.tolist()):
        yield held[begin:end]
