"""Local speakers window by window: the same windows and answers however the sound arrives, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.registry import SEGMENTERS
from knn_cli.core.values import Waveform
from knn_cli.diarization.reconstruction import Segmentation
from knn_cli.diarization.segmentation import HOP_FRAMES, WINDOW_FRAMES, FrameLevels, Segmenter, slide
from knn_cli.networks import bundle
from knn_cli.networks.construction import build_network
from knn_cli.networks.segmenters.encoder_lstm import SegmentationHead
from knn_cli.networks.segmenters.pyannet import PyanNet

RATE, FRAME = 16000, 640
AUDIO = {"rate": RATE, "scale": 1.0}
NETWORK: dict[str, Any] = {
    "audio": AUDIO,
    "encoder": {"name": "whisper", "args": {"channels": 16, "blocks": 1, "heads": 2, "inner": 16, "bins": 16}},
    "pooling": {"name": "mean", "args": {}},
}
SMALL_HEAD = {"layers": 2, "channels": 16, "width": 8, "hidden": 4, "depth": 2}
SMALL_PYANNET = {"filters": 8, "stride": 20, "widths": [5], "hidden": 4, "depth": 1, "linear": [6]}


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    sound = np.random.default_rng(seed).normal(size=round(seconds * RATE)) * 0.1
    return (sound * (0.1 + np.sin(np.arange(len(sound)) / 9000) ** 2)).astype(np.float32)


def blocks(sound: np.ndarray, seconds: float = 60.0) -> Iterator[Waveform]:
    size = round(seconds * RATE)
    return (Waveform(sound[first : first + size], RATE, first / RATE) for first in range(0, len(sound), size))


def make_embedder(folder: Path, **changes: Any) -> bundle.Bundle:
    torch.manual_seed(0)
    config = {"name": folder.name, "kind": "embedder", **NETWORK, **changes}
    return bundle.write(folder, config, state=build_network(config).state_dict())


def make_segmenter(folder: Path, name: str, args: dict[str, Any], **more: Any) -> bundle.Bundle:
    torch.manual_seed(1)
    config = {"name": folder.name, "kind": "segmenter", "audio": AUDIO, "segmenter": {"name": name, "args": args}}
    network = SEGMENTERS.build(name, **args)
    with torch.no_grad():
        network.classifier.weight *= 20  # random weights would say the same of every frame
    return bundle.write(folder, {**config, **more}, state=network.state_dict())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    voice = make_embedder(folder / "small-voice")
    make_segmenter(folder / "head", "encoder-lstm", SMALL_HEAD, embedder=voice.fingerprint)
    make_segmenter(folder / "pyannet", "pyannet", SMALL_PYANNET)
    return folder


@pytest.fixture(params=["head", "pyannet"])
def segmenter(request: pytest.FixtureRequest, models: Path, monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    monkeypatch.setenv("KNN_MODELS", str(models), prepend=os.pathsep)
    return Segmenter(request.param)


# --- windows


def brute_force(rows: int, size: int, hop: int, unit: int) -> list[tuple[int, int]]:
    """(start, end) of all windows of a recording that is there at once."""
    if rows == 0:
        return []
    if rows < size:
        return [(0, rows)]
    starts = list(range(0, rows - size + 1, hop))
    whole = rows // unit * unit
    if starts[-1] + size < whole:
        starts.append((rows - size) // unit * unit)
    return [(start, start + size) for start in starts]


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.integers(0, 40), max_size=12),
    unit=st.integers(1, 4),
    size=st.integers(1, 8),
    hop=st.integers(1, 8),
    tensors=st.booleans(),
)
def test_windows_are_those_of_the_whole(pieces: list[int], unit: int, size: int, hop: int, tensors: bool) -> None:
    hop = min(hop, size)
    rows = np.arange(sum(pieces), dtype=np.float32)
    edges = np.cumsum([0, *pieces]).tolist()
    cut: list[Any] = [rows[first:last] for first, last in pairwise(edges)]
    found = list(slide([torch.from_numpy(one) for one in cut] if tensors else cut, size * unit, hop * unit, unit))
    expected = brute_force(len(rows), size * unit, hop * unit, unit)
    assert [(start, start + len(window)) for start, window in found] == expected
    for start, window in found:
        assert np.array_equal(np.asarray(window), rows[start : start + len(window)])


def test_last_window_ends_with_the_last_whole_unit() -> None:
    windows = [start for start, _ in slide([np.zeros(1003, np.float32)], 250, 50, 10)]
    assert windows == [*range(0, 751, 50)]  # 750 + 250 is the end of the last whole unit
    windows = [start for start, _ in slide([np.zeros(1019, np.float32)], 250, 50, 10)]
    assert windows == [*range(0, 751, 50), 760]


def test_windows_hold_no_more_than_they_need() -> None:
    """A stream of an hour of small pieces is never joined."""
    sizes = []

    def pieces() -> Iterator[np.ndarray]:
        for _ in range(1000):
            yield np.zeros(100, np.float32)

    for _, window in slide(pieces(), 250, 50, 1):
        sizes.append(len(window) if window.base is None else len(window.base))
    assert max(sizes) <= 250 + 2 * 100


# --- networks on sound


@pytest.mark.parametrize("seconds", [0.03, 0.3, 5.0, 9.99, 10.02, 12.5, 41.01])
def test_shape_and_windows(segmenter: Segmenter, seconds: float) -> None:
    found = segmenter(blocks(noise(seconds)))
    frames = -(-round(seconds * RATE) // FRAME)
    assert found.frames == frames and found.starts.dtype == np.int64
    assert (
        found.probabilities.shape == (len(found.starts), WINDOW_FRAMES, 3) and found.probabilities.dtype == np.float16
    )
    assert np.array_equal(found.starts[:-1], np.arange(len(found.starts) - 1) * HOP_FRAMES)
    assert found.starts[0] == 0 and (np.diff(found.starts) <= HOP_FRAMES).all()
    last = int(found.starts[-1])
    assert last == 0 or last + WINDOW_FRAMES in (frames, frames - 1)  # a network on sound hears whole frames only
    inside = found.probabilities[0, : min(frames, WINDOW_FRAMES)]
    assert ((found.probabilities >= 0) & (found.probabilities <= 1)).all() and (inside.sum(1) > 0).all()
    if frames < WINDOW_FRAMES:
        assert (found.probabilities[0, frames:] == 0).all()


def test_blocks_change_nothing(segmenter: Segmenter) -> None:
    sound = noise(43.37)
    once = segmenter([Waveform(sound, RATE)])
    assert once.probabilities.any()  # the network hears somebody
    for seconds in (0.77, 3.0, 20.0, 31.0):
        again = segmenter(blocks(sound, seconds))
        assert again.frames == once.frames and np.array_equal(again.starts, once.starts)
        assert np.array_equal(again.probabilities, once.probabilities)


def test_threads_play_no_part(segmenter: Segmenter) -> None:
    sound = noise(70.0)
    threads = torch.get_num_threads()
    found = []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(segmenter(blocks(sound)))
    torch.set_num_threads(threads)
    assert np.array_equal(found[0].probabilities, found[1].probabilities)


def test_nothing_gives_no_windows(segmenter: Segmenter) -> None:
    found = segmenter([])
    assert found.frames == 0 and len(found.starts) == 0 and found.probabilities.shape == (0, WINDOW_FRAMES, 3)


def test_frames_lie_where_the_sound_is(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound that begins a hop later gives what the window before gave."""
    monkeypatch.setenv("KNN_MODELS", str(models), prepend=os.pathsep)
    sound = noise(10.0)
    hop = noise(HOP_FRAMES * FRAME / RATE, 7)
    one = Segmenter("pyannet")
    early, late = one(blocks(sound)), one(blocks(np.concatenate([hop, sound, noise(3.0, 8)])))
    assert late.starts.tolist() == [0, HOP_FRAMES, 2 * HOP_FRAMES, HOP_FRAMES + 75]
    moved = Segmenter("pyannet")(blocks(np.concatenate([hop, sound])))
    assert moved.starts.tolist() == [0, HOP_FRAMES]
    assert np.array_equal(moved.probabilities[1], early.probabilities[0])


def test_head_on_frames_is_the_head_on_its_encoder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to twenty seconds, nothing is cut: all windows are those of one pass over all the sound."""
    monkeypatch.setenv("KNN_MODELS", str(models), prepend=os.pathsep)
    sound = noise(15.6)
    found = Segmenter("head")(blocks(sound))
    encoder = bundle.load_network(bundle.find("small-voice")).encoder
    head = bundle.load_segmenter(bundle.find("head", segmenter=True))
    with torch.inference_mode():
        frames = head.begin(encoder(torch.from_numpy(sound)[None]))[0]  # type: ignore[operator]
        for start, probabilities in zip(found.starts.tolist(), found.probabilities, strict=True):
            classes = head.classify(frames[None, start : start + WINDOW_FRAMES])[0].argmax(1).numpy()  # type: ignore[operator]
            assert np.array_equal(probabilities[:, 0], np.isin(classes, [1, 4, 5]))  # classes of the first speaker
    assert found.starts.tolist() == [0, HOP_FRAMES, 2 * HOP_FRAMES, 140]


def test_a_head_without_its_embedder_is_refused(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNN_MODELS", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(BundleError, match="No model here computes embeddings of small-voice@"):
        Segmenter(models / "head")


def test_an_embedder_is_no_segmenter(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNN_MODELS", str(models), prepend=os.pathsep)
    with pytest.raises(BundleError, match="is no segmentation network"):
        Segmenter("small-voice")
    with pytest.raises(BundleError, match="no segmentation network"):
        Segmenter(bundle.find("small-voice"))


def test_devices_are_those_of_the_embedder(models: Path) -> None:
    assert Segmenter(models / "pyannet", device="auto").device.type in ("cpu", "cuda", "mps")
    with pytest.raises(KnnError):
        Segmenter(models / "pyannet", device="gpu")


@pytest.mark.parametrize("fault", ["no embedder", "layers", "pace"])
def test_a_head_that_does_not_fit_its_encoder_is_refused(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WavLM's frames are one fewer: two for 40 ms minus one at every chunk's end, which would drift."""
    monkeypatch.setenv("KNN_MODELS", str(tmp_path), prepend=os.pathsep)
    voice = bundle.find("tiny-test") if fault == "pace" else make_embedder(tmp_path / "small-voice")
    args = {**SMALL_HEAD, **({"channels": 17} if fault == "layers" else {})}
    args = {**args, **({"layers": 3, "channels": 32} if fault == "pace" else {})}
    more = {} if fault == "no embedder" else {"embedder": voice.fingerprint}
    make_segmenter(tmp_path / "head", "encoder-lstm", args, **more)
    with pytest.raises(BundleError):
        Segmenter("head")


def test_levels_of_frames_whatever_the_blocks() -> None:
    sound = noise(1.23)
    frames = [sound[first : first + FRAME].astype(np.float64) for first in range(0, len(sound), FRAME)]
    expected = [round(10 * np.log10(max(float(np.mean(one**2)), 1e-12))) for one in frames]
    for seconds in (0.007, 0.04, 0.5, 9.0):
        levels = FrameLevels(RATE)
        passed = list(levels.through(blocks(sound, seconds)))
        assert np.array_equal(np.concatenate([one.samples for one in passed]), sound)
        assert levels.decibels().tolist() == expected
    assert FrameLevels(RATE).decibels().shape == (0,)


# --- the head by itself


def test_head_shapes_and_parts() -> None:
    torch.manual_seed(0)
    head = SegmentationHead(**SMALL_HEAD).eval()
    for frames in (2, 7, 100):
        layers = [torch.randn(3, frames, 16) for _ in range(2)]
        encode = head.begin(iter(layers))
        assert encode.shape == (3, frames // 2, 8)
        logs = head(layers)
        assert logs.shape == (3, frames // 2, 7) and torch.equal(logs, head.classify(encode))
        torch.testing.assert_close(logs.exp().sum(-1), torch.ones(3, frames // 2))


def test_head_refuses_other_layers() -> None:
    head = SegmentationHead(**SMALL_HEAD)
    with pytest.raises(ValueError, match="3 layers came, 2 expected"):
        head.begin(torch.zeros(3, 1, 4, 16))
    for wrong in ({"width": 0}, {"speakers": 1, "most": 2}, {"most": 0}):
        with pytest.raises(KnnError):
            SegmentationHead(**{**SMALL_HEAD, **wrong})


def test_both_networks_have_what_segmenters_have() -> None:
    assert {"encoder-lstm", "pyannet"} <= set(SEGMENTERS.names())
    for network in (SegmentationHead(**SMALL_HEAD), PyanNet(**SMALL_PYANNET)):
        assert (network.speakers, network.most) == (3, 2)


def test_segmentation_is_a_value() -> None:
    with pytest.raises(AttributeError):
        Segmentation(np.zeros(0, np.int64), np.zeros((0, 1, 1), np.float16), 0).frames = 3  # type: ignore[misc]
