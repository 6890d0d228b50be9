"""From sound to embeddings with a bundle's network: speech found, chunks batched by length, rows averaged.

One embedding stands for a file, a segment of a file, a row of an audio store or a window. All of them go through
`Embedder.__call__`, which gives a clip the same embedding in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np
import soxr
import torch
from pyannote.core import Segment, Timeline

from knn_cli.audio import reading, segments, speech_activity
from knn_cli.core.device import torch_device
from knn_cli.core.errors import AudioError, KnnError, SilenceError
from knn_cli.core.values import Doubles, EmbeddingSet, Floats, Waveform
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.networks.contracts import Encoder, FramePooling
from knn_cli.store import labels
from knn_cli.store.hdf5 import AudioRow, Store

CHUNK_SECONDS = 20.0  # speech that one pass of the network hears at most
MINIMUM_SECONDS = 0.25  # speech under this has no embedding worth the name
QUIET = 1e-4  # peak under which a waveform is silence whatever a detector says: -80 dBFS
BATCH_SECONDS = 120.0


class Embedder:
    """A bundle's network on a device.

    model         : name or path of a bundle, None for the default
    device        : auto, cpu, cuda or mps
    batch_seconds : sound that goes through the network at once

    Raises BundleError for a model that cannot be loaded, KnnError for a device that is not there.
    """

    def __init__(
        self, model: str | Path | Bundle | None = None, *, device: str = "auto", batch_seconds: float = BATCH_SECONDS
    ) -> None:
        self.bundle = model if isinstance(model, Bundle) else bundle.find(model)
        if batch_seconds <= 0:
            raise KnnError(f"Batches of {batch_seconds:g} s hold nothing.", "Give --batch-seconds above 0.")
        self.device = torch_device(device)
        self.batch_seconds = batch_seconds
        self._network = bundle.load_network(self.bundle).to(self.device)
        pooling = self._network.pooling
        self._frame_pooling = pooling if isinstance(pooling, FramePooling) else None

    @property
    def rate(self) -> int:
        """Samples a second that the network hears."""
        return self.bundle.rate

    @property
    def encoder(self) -> Encoder:
        """The network's encoder."""
        return self._network.encoder

    @property
    def dimension(self) -> int:
        """Values an embedding."""
        return self._network.dimension

    @property
    def minimum_samples(self) -> int:
        """Samples of the shortest clip that the encoder takes."""
        return self._network.minimum

    @property
    def minimum_seconds(self) -> float:
        """Speech that an embedding needs."""
        return max(MINIMUM_SECONDS, self._network.minimum / self.rate)

    def __call__(self, waveforms: Sequence[Floats]) -> Floats:
        """(S,) float32 waveforms of any lengths at `rate` -> (N, E) float32 embeddings, in their order.

        Clips shorter than the network's minimum are filled up with silence on both sides.
        """
        result = np.zeros((len(waveforms), self.dimension), dtype=np.float32)
        for rows in self._batches([len(waveform) for waveform in waveforms]):
            lengths = [max(len(waveforms[row]), self._network.minimum) for row in rows]
            batch = np.zeros((len(rows), max(lengths)), dtype=np.float32)
            for clip, row, length in zip(batch, rows, lengths, strict=True):
                lead = (length - len(waveforms[row])) // 2
                clip[lead : lead + len(waveforms[row])] = waveforms[row]
            sound = torch.from_numpy(batch * np.float32(self.bundle.scale)).to(self.device)  # (B, S)
            unequal = None if min(lengths) == max(lengths) else torch.tensor(lengths, device=self.device)
            try:
                with torch.inference_mode():
                    result[rows] = self._network(sound, unequal).float().cpu().numpy()
            except torch.OutOfMemoryError as error:
                hint = f"Lower --batch-seconds, now {self.batch_seconds:g}, or take --device cpu."
                raise KnnError(f"The {self.device.type} device has too little memory.", hint) from error
        return result

    def frames(self, waveforms: Sequence[Floats]) -> list[torch.Tensor]:
        """(S,) float32 waveforms, none under the network's minimum -> what `pool` wants of each, (X, T, C).

        That is the encoder's layers, or where the pooling can make less of them (X = 1), its frames.
        """
        encoder, pooling = self._network.encoder, self._frame_pooling
        result: list[torch.Tensor] = [torch.zeros(0)] * len(waveforms)
        for rows in self._batches([len(waveform) for waveform in waveforms]):
            lengths = torch.tensor([len(waveforms[row]) for row in rows], device=self.device)
            batch = np.zeros((len(rows), int(lengths.max())), dtype=np.float32)
            for clip, row in zip(batch, rows, strict=True):
                clip[: len(waveforms[row])] = waveforms[row]
            sound = torch.from_numpy(batch * np.float32(self.bundle.scale)).to(self.device)  # (B, S)
            with torch.inference_mode():
                layers = encoder(sound, lengths)
                whole = torch.stack(list(layers)) if pooling is None else pooling.frames(layers)[None]
            for number, row in enumerate(rows):
                result[row] = whole[:, number, : encoder.frames(len(waveforms[row]))]  # (X, T, C)
        return result

    def pool(self, frames: torch.Tensor, masks: torch.Tensor) -> Floats:
        """`frames` (X, T, C), of one clip or of several joined, and K choices of them (K, T) bool -> (K, E) float32."""
        masks = masks.to(self.device)
        with torch.inference_mode():
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

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Row numbers in batches of like lengths, of at most `batch_seconds` with their padding."""
        limit = self.batch_seconds * self.rate
        batch: list[int] = []
        for row in sorted(range(len(lengths)), key=lengths.__getitem__):
            if batch and (len(batch) + 1) * lengths[row] > limit:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def averages(self, chunks: Iterable[tuple[int, Floats]]) -> dict[int, Floats]:
        """(row, (S,) waveform) pairs -> row: (E,) mean of the embeddings of its waveforms, weighted by their lengths.

        The waveforms may be a stream: no more than a batch of them is held.
        """
        sums: dict[int, Doubles] = {}
        weights: dict[int, int] = {}
        for batch in _held(chunks, self.batch_seconds * self.rate):
            for (row, chunk), vector in zip(batch, self([chunk for _, chunk in batch]), strict=True):
                sums[row] = sums.get(row, 0.0) + len(chunk) * vector.astype(np.float64)
                weights[row] = weights.get(row, 0) + len(chunk)
        return {row: (total / weights[row]).astype(np.float32) for row, total in sums.items()}

    def spans(self, path: Path | str, spans: Sequence[Segment], *, channel: str = "mix") -> Floats:
        """(N, E) embeddings of spans (sorted by start, none empty) of one file of any length."""
        crops = reading.crops(path, spans, rate=self.rate, channel=channel)
        rows = self.averages(enumerate(crops)).values()
        return np.stack(list(rows)) if rows else np.zeros((0, self.dimension), dtype=np.float32)


def _held(chunks: Iterable[tuple[int, Floats]], samples: float) -> Iterator[list[tuple[int, Floats]]]:
    held: list[tuple[int, Floats]] = []
    count = 0
    for row, chunk in chunks:
        held.append((row, chunk))
        count += len(chunk)
        if count >= samples:
            yield held
            held, count = [], 0
    if held:
        yield held


def _pieces(span: Segment) -> list[Segment]:
    """A span in parts of up to CHUNK_SECONDS, so that reading it needs no more memory than one of them."""
    edges = np.arange(span.start, span.end, CHUNK_SECONDS).tolist()
    return [Segment(start, end) for start, end in pairwise([*edges, span.end])]


def no_speech(what: str, use_vad: bool) -> SilenceError:
    hint = "If there is, --no-vad takes all of it." if use_vad else "Check the recording's level."
    return SilenceError(f"{what} holds no speech.", hint)


def embed_file(
    path: Path | str,
    embedder: Embedder,
    *,
    segment: float | None = None,
    use_vad: bool = True,
    channel: str = "mix",
    label: labels.Labels | None = None,
) -> EmbeddingSet:
    """Embeddings of one audio file of any length, in bounded memory.

    segment : seconds a row; None makes one row of the whole file
    use_vad : embed speech only; segments without any are left out

    Raises AudioError (see `audio.read`; too short) and SilenceError (no speech).
    """
    regions, seconds = _regions(path, embedder, use_vad, channel)
    if segment is None:
        units = [Segment(0.0, seconds)]
    else:
        units, _ = segments.cut(seconds, segment, min(embedder.minimum_seconds, segment))
    spoken = {row: list(regions.crop(unit)) for row, unit in enumerate(units)}
    if not any(spoken.values()):
        raise no_speech(str(path), use_vad)
    needed = embedder.minimum_seconds
    kept = [row for row, spans in spoken.items() if sum(span.duration for span in spans) >= needed]
    if not kept:
        raise AudioError(
            f"{path} holds {regions.duration():.2f} s of speech, at least {needed:.2f} s are needed.",
            "Give a longer clip, or take all of it with --no-vad.",
        )
    spans = [(row, piece) for row in kept for span in spoken[row] for piece in _pieces(span)]
    crops = reading.crops(path, [span for _, span in spans], rate=embedder.rate, channel=channel)
    rows = embedder.averages(_chunked(zip((row for row, _ in spans), crops, strict=True), embedder.rate))
    label = label or labels.Labels(labels.recording_name(Path(path)))
    return _labelled(rows, [units[row] for row in kept], [label] * len(kept), embedder)


@dataclass(frozen=True)
class Group:
    """Embeddings of neighbouring rows of an audio store.

    key    : names the group, the same in every run with the same batch size
    silent : rows left out for want of speech
    done   : rows of the store up to here
    """

    key: str
    embeddings: EmbeddingSet
    silent: int
    done: int


def embed_store(
    store: Store, embedder: Embedder, *, use_vad: bool = True, skip: Collection[str] = ()
) -> Iterator[Group]:
    """Embeddings of an audio store's rows, many rows at a time.

    skip : keys of groups that are not wanted again

    Raises KnnError when the store's rate is not the model's.
    """
    if store.rate != embedder.rate:
        raise KnnError(
            f"{store.path} holds sound at {store.rate} Hz, {embedder.bundle.name} hears {embedder.rate} Hz.",
            f"Convert again with --rate {embedder.rate}.",
        )
    done = 0
    for number, group in enumerate(_groups(store.segments(), 4 * embedder.batch_seconds)):
        done += len(group)
        if str(number) in skip:
            continue
        if use_vad:
            sound = [_for_vad(row.waveform) for row in group]
            regions = [
                segments.binarize(found, speech_activity.FRAME / speech_activity.RATE, end=row.waveform.seconds)
                for found, row in zip(speech_activity.probabilities(sound), group, strict=True)
            ]
        else:
            regions = [_loud(row.waveform) for row in group]
        kept = [row for row, found in enumerate(regions) if found.duration() >= embedder.minimum_seconds]
        spoken = (
            (row, group[row].waveform.crop(region.start, region.end).samples) for row in kept for region in regions[row]
        )
        rows = embedder.averages(_chunked(spoken, embedder.rate))
        spans = [Segment(group[row].start, group[row].end) for row in kept]
        known = [labels.Labels(*(getattr(group[row], field) for field in labels.FIELDS)) for row in kept]
        yield Group(str(number), _labelled(rows, spans, known, embedder), len(group) - len(kept), done)


def _for_vad(waveform: Waveform) -> Floats:
    samples = waveform.samples
    resampled: Floats = (
        samples
        if waveform.rate == speech_activity.RATE
        else soxr.resample(samples, waveform.rate, speech_activity.RATE)
    )
    return resampled


def _loud(waveform: Waveform) -> Timeline:
    return Timeline([Segment(0.0, waveform.seconds)] if np.abs(waveform.samples).max(initial=0.0) > QUIET else [])


def _groups(rows: Iterable[AudioRow], seconds: float) -> Iterator[list[AudioRow]]:
    group: list[AudioRow] = []
    held = 0.0
    for row in rows:
        group.append(row)
        held += row.waveform.seconds
        if held >= seconds:
            yield group
            group, held = [], 0.0
    if group:
        yield group


def _regions(path: Path | str, embedder: Embedder, use_vad: bool, channel: str) -> tuple[Timeline, float]:
    """What of a file is to be embedded, and the file's seconds."""
    seconds, peak = 0.0, 0.0

    def heard() -> Iterator[Waveform]:
        nonlocal seconds, peak
        for block in reading.blocks(path, rate=embedder.rate, channel=channel):
            seconds = block.start + block.seconds
            peak = max(peak, float(np.abs(block.samples).max()))
            yield block

    if use_vad:
        regions = speech_activity.speech(heard())
    else:
        for _ in heard():
            pass
        regions = Timeline([Segment(0.0, seconds)])
    if seconds < embedder.minimum_seconds:
        raise AudioError(
            f"{path} is too short: {seconds:.2f} s, at least {embedder.minimum_seconds:.2f} s are needed.",
            "Give a longer clip.",
        )
    return (regions if peak > QUIET else Timeline()), seconds


def _chunked(spoken: Iterable[tuple[int, Floats]], rate: int) -> Iterator[tuple[int, Floats]]:
    """(row, waveform) pairs, a row's one after the other -> the same sound in chunks of up to CHUNK_SECONDS.

    A row's waveforms are joined and cut again, its last two chunks evened out so that no stub is left.
    """
    size = round(CHUNK_SECONDS * rate)
    for row, pairs in groupby(spoken, key=itemgetter(0)):
        held = np.zeros(0, dtype=np.float32)
        for _, waveform in pairs:
            held = np.concatenate([held, waveform])
            while len(held) >= 2 * size:
                yield row, held[:size]
                held = held[size:]
        for chunk in np.array_split(held, math.ceil(len(held) / size)):
            yield row, chunk


def _labelled(
    rows: Mapping[int, Floats], spans: list[Segment], known: list[labels.Labels], embedder: Embedder
) -> EmbeddingSet:
    return EmbeddingSet.from_columns(
        np.stack(list(rows.values())) if rows else np.zeros((0, embedder.dimension)),
        [label.name for label in known],
        group=[label.group for label in known],
        subgroup=[label.subgroup for label in known],
        speaker=[label.speaker for label in known],
        start=[span.start for span in spans],
        end=[span.end for span in spans],
        embedder=embedder.bundle.fingerprint,
    )
