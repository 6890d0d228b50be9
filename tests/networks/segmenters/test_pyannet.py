"""PyanNet: outputs equal a plain implementation's and pyannote.audio's; its checkpoints as bundles; rejected input."""

from __future__ import annotations

import enum
import os
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.cli.info import describe
from knn_cli.core.errors import AudioError, BundleError, KnnError
from knn_cli.core.registry import SEGMENTERS
from knn_cli.networks import bundle
from knn_cli.networks.conversion import convert
from knn_cli.networks.importers.components import ImportedSegmenter
from knn_cli.networks.importers.entry import import_checkpoint, import_embedding_network
from knn_cli.networks.importers.weight_names import pyannet
from knn_cli.networks.segmenters.pyannet import PyanNet

Array = NDArray[np.float64]
SMALL: dict[str, Any] = {
    "filters": 8,
    "kernel": 31,
    "stride": 4,
    "widths": [5, 6],
    "reach": 3,
    "hidden": 4,
    "depth": 2,
    "linear": [7, 7],
    "speakers": 3,
    "most": 2,
    "duration": 2.0,
}
# pyannote.audio 3.3.2's log-probabilities of segmentation-3.0 for the first 10 s of examples/meeting.flac, by frame.
PUBLISHED = {
    0: [-0.1380, -6.0642, -4.2511, -2.1945, -10.0875, -9.0634, -7.1638],
    200: [-9.3690, -11.6918, -13.0612, -0.0002, -15.9715, -10.7448, -9.3355],
    400: [-8.3047, -8.2946, -0.0017, -9.8187, -9.0911, -14.9419, -6.8968],
    588: [-5.5553, -4.4899, -7.2573, -0.0197, -9.6993, -8.4024, -5.6776],
}


# --- the same network, written plainly in double precision, from weights under pyannote's names


def plain_filters(low: Array, band: Array, kernel: int, rate: int) -> Array:
    """Ideal band-passes e^{2 pi i f t} integrated over f from lower to upper edge, over the width of the band."""
    lower = 50 + np.abs(low)  # (K, 1)
    upper = np.minimum(lower + 50 + np.abs(band), rate / 2)
    t = np.arange(-(kernel // 2), kernel // 2 + 1) / rate  # (kernel,)
    t = np.where(t == 0, 1e-12, t)
    whole = (np.exp(2j * np.pi * upper * t) - np.exp(2j * np.pi * lower * t)) / (2j * np.pi * t) / (upper - lower)
    # The odd filters of a band have the sign of minus the sine.
    return np.concatenate([whole.real, -whole.imag]) * np.hamming(kernel)


def plain_convolution(x: Array, weight: Array, stride: int = 1) -> Array:
    """(C, T) and (D, C, K) -> (D, T')."""
    windows = sliding_window_view(x, weight.shape[2], axis=1)[:, ::stride]  # (C, T', K)
    return np.tensordot(weight, windows, ((1, 2), (0, 2)))


def plain_norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(1, keepdims=True)
    return cast(Array, centred / np.sqrt(x.var(1, keepdims=True) + 1e-5) * weight[:, None] + bias[:, None])


def leaky(x: Array) -> Array:
    return np.where(x > 0, x, 0.01 * x)


def maxima(x: Array) -> Array:
    frames = x.shape[1] // 3
    return cast(Array, x[:, : 3 * frames].reshape(len(x), frames, 3).max(2))  # (C, T)


def plain_lstm(x: Array, weights: list[Array]) -> Array:
    """(T, C) -> (T, H), one layer in one direction."""

    def sigmoid(z: Array) -> Array:
        return cast(Array, 1 / (1 + np.exp(-z)))

    inner, outer, bias, other = weights
    width = outer.shape[1]
    state = cell = np.zeros(width)
    states = []
    for frame in x:
        gates = inner @ frame + bias + outer @ state + other
        now, forget, out = (sigmoid(gates[part * width : (part + 1) * width]) for part in (0, 1, 3))
        cell = forget * cell + now * np.tanh(gates[2 * width : 3 * width])
        state = out * np.tanh(cell)
        states.append(state)
    return np.array(states)


def plain(named: Mapping[str, Any], waveform: Any, stride: int, together: bool = True, rate: int = 16000) -> Array:
    """(S,) -> (T, C) log-probabilities."""
    weights = {key: np.asarray(value, np.float64) for key, value in named.items()}
    start = "sincnet."
    x = np.asarray(waveform, np.float64)[None]
    x = plain_norm(x, weights[f"{start}wav_norm1d.weight"], weights[f"{start}wav_norm1d.bias"])
    bank = f"{start}conv1d.0.filterbank."
    kernel = 2 * len(weights[f"{bank}window_"]) + 1
    filters = plain_filters(weights[f"{bank}low_hz_"], weights[f"{bank}band_hz_"], kernel, rate)
    x = np.abs(plain_convolution(x, filters[:, None], stride))
    for number in range(3):
        if number:
            x = plain_convolution(x, weights[f"{start}conv1d.{number}.weight"])
            x = x + weights[f"{start}conv1d.{number}.bias"][:, None]
        norm = f"{start}norm1d.{number}."
        x = leaky(plain_norm(maxima(x), weights[f"{norm}weight"], weights[f"{norm}bias"]))
    x = x.T  # (T, C)
    layer = 0
    while (name := f"lstm.{{}}_l{layer}" if together else f"lstm.{layer}.{{}}_l0").format("weight_ih") in weights:
        kinds = [name.format(kind) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        directions = [plain_lstm(x, [weights[key] for key in kinds])]
        if f"{kinds[0]}_reverse" in weights:
            directions.append(plain_lstm(x[::-1], [weights[f"{key}_reverse"] for key in kinds])[::-1])
        x, layer = np.concatenate(directions, axis=1), layer + 1
    number = 0
    while f"linear.{number}.weight" in weights:
        x = leaky(x @ weights[f"linear.{number}.weight"].T + weights[f"linear.{number}.bias"])
        number += 1
    x = x @ weights["classifier.weight"].T + weights["classifier.bias"]
    x = x - x.max(1, keepdims=True)
    return cast(Array, x - np.log(np.exp(x).sum(1, keepdims=True)))


# --- checkpoints as pyannote writes them


class Pyannote:
    """Classes under pyannote's names, as its checkpoints hold objects of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task = types.ModuleType("pyannote.audio.core.task")
        names = ["BINARY_CLASSIFICATION", "MONO_LABEL_CLASSIFICATION", "MULTI_LABEL_CLASSIFICATION"]
        self.problem: Any = enum.Enum("Problem", names, start=0, module=task.__name__)
        self.resolution: Any = enum.Enum("Resolution", ["FRAME", "CHUNK"], module=task.__name__)
        self.specifications: Any = type("Specifications", (), {"__module__": task.__name__})
        vars(task).update(
            Problem=self.problem, Resolution=self.resolution, Specifications=self.specifications
        )  # pickle looks it up by name
        monkeypatch.setitem(sys.modules, task.__name__, task)

    def checkpoint(self, args: Mapping[str, Any], state: dict[str, Any], together: bool = True) -> dict[str, Any]:
        specifications = self.specifications()
        specifications.problem, specifications.resolution = (
            self.problem.MONO_LABEL_CLASSIFICATION,
            self.resolution.FRAME,
        )
        specifications.duration, specifications.powerset_max_classes = args["duration"], args["most"]
        specifications.classes = [f"speaker#{number + 1}" for number in range(args["speakers"])]
        return {
            "state_dict": state,
            "pytorch-lightning_version": "2.0.2",
            "hyper_parameters": {
                "sample_rate": 16000,
                "num_channels": 1,
                "sincnet": {"stride": args["stride"], "sample_rate": 16000},
                "lstm": {
                    "hidden_size": args["hidden"],
                    "num_layers": args["depth"],
                    "bidirectional": args.get("both", True),
                    "monolithic": together,
                    "dropout": 0.5,
                    "batch_first": True,
                },
                "linear": {"hidden_size": (args["linear"] or [128])[0], "num_layers": len(args["linear"])},
            },
            "pyannote.audio": {"architecture": {"class": "PyanNet"}, "specifications": specifications},
        }


@pytest.fixture
def pyannote(monkeypatch: pytest.MonkeyPatch) -> Pyannote:
    return Pyannote(monkeypatch)


def shaken(args: Mapping[str, Any]) -> PyanNet:
    torch.manual_seed(3)
    network = PyanNet(**args).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name not in ("sinc.low", "sinc.band"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


def published_names(network: PyanNet, together: bool = True) -> dict[str, Any]:
    state = {pyannet(together).source_name(key): value for key, value in network.state_dict().items()}
    half, start = len(network.sinc.window), "sincnet.conv1d.0.filterbank."
    state[f"{start}window_"] = torch.from_numpy(np.hamming(2 * half + 1)[:half]).float()
    state[f"{start}n_"] = 2 * np.pi * (torch.arange(-half, 0.0).view(1, -1) / 16000)
    return state


def sound(samples: int, seed: int = 0) -> torch.Tensor:
    swell = np.abs(np.sin(np.arange(samples) / 900))
    return torch.from_numpy((np.random.default_rng(seed).normal(0, 0.1, samples) * swell).astype(np.float32))


def imported(path: Path) -> tuple[ImportedSegmenter, PyanNet]:
    imported_model = import_checkpoint(path)
    assert isinstance(imported_model, ImportedSegmenter)
    network = SEGMENTERS.build(imported_model.network.name, **imported_model.network.args)
    network.load_state_dict(imported_model.network.state)
    return imported_model, network.eval()


# --- tests


@pytest.mark.parametrize(
    ("changes", "together"),
    [({}, True), ({}, False), ({"both": False, "depth": 1, "linear": [], "speakers": 2, "most": 1}, True)],
)
def test_a_checkpoint_gives_the_plain_network(
    tmp_path: Path, pyannote: Pyannote, changes: dict[str, Any], together: bool
) -> None:
    args = SMALL | changes
    state = published_names(shaken(args), together)
    torch.save(pyannote.checkpoint(args, state, together), tmp_path / "pytorch_model.bin")
    imported_model, network = imported(tmp_path)  # the folder of the file
    assert {key: imported_model.network.args[key] for key in args} == args and "MIT" in imported_model.licence_note
    for samples in (3000, 4321):
        clips = torch.stack([sound(samples), sound(samples, 1) * 0.01])
        with torch.inference_mode():
            ours = network(clips).numpy()
        assert ours.shape[1] == network.frames(samples)
        for clip, found_here in zip(clips, ours, strict=True):
            np.testing.assert_allclose(found_here, plain(state, clip, args["stride"], together), atol=2e-5)


def test_frames_are_those_of_pyannote() -> None:
    network = PyanNet(depth=1, hidden=2, linear=())
    assert (network.frames(160000), network.receptive, network.stride) == (589, 991, 270)
    assert (network.frames(990), network.frames(991), network.frames(991 + 270)) == (0, 1, 2)
    assert network.step_seconds == pytest.approx(270 / 16000) and network.first_seconds == 495.5 / 16000
    assert (network.duration, network.rate, network.speakers, network.most) == (10.0, 16000, 3, 2)
    counts = torch.tensor([100, 991, 160000])
    assert network.frames(counts).tolist() == [0, 1, 589]


def test_a_frame_for_every_step() -> None:
    network = shaken(SMALL)
    for samples in range(network.minimum, network.minimum + 2 * network.stride, 7):
        with torch.inference_mode():
            assert network(sound(samples)[None]).shape == (1, network.frames(samples), 7)
    with pytest.raises(AudioError, match="too short"):
        network(torch.zeros(1, network.minimum - 1))
    with torch.inference_mode():
        out = network(torch.zeros(2, 4000))
    torch.testing.assert_close(out.exp().sum(-1), torch.ones(2, network.frames(4000)))


def test_every_weight_learns() -> None:
    network = shaken(SMALL).train()
    network(sound(4000)[None])[0, :, 2].sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in network.parameters())


@pytest.mark.parametrize("change", [{"filters": 9}, {"kernel": 30}, {"most": 4}, {"hidden": 0}, {"duration": 0.0}])
def test_sizes_that_make_no_network(change: dict[str, Any]) -> None:
    with pytest.raises(KnnError, match="positive sizes"):
        PyanNet(**(SMALL | change))


def _several_labels(checkpoint: dict[str, Any], pyannote: Pyannote) -> None:
    given = checkpoint["pyannote.audio"]["specifications"]
    given.problem, given.powerset_max_classes = pyannote.problem.MULTI_LABEL_CLASSIFICATION, None


def _other_rate(checkpoint: dict[str, Any], _: Pyannote) -> None:
    checkpoint["hyper_parameters"]["sample_rate"] = 8000


def _no_specifications(checkpoint: dict[str, Any], _: Pyannote) -> None:
    del checkpoint["pyannote.audio"]


def _no_settings(checkpoint: dict[str, Any], _: Pyannote) -> None:
    del checkpoint["hyper_parameters"]


def _other_classes(checkpoint: dict[str, Any], _: Pyannote) -> None:
    checkpoint["pyannote.audio"]["specifications"].powerset_max_classes = 3


def _odd_specifications(checkpoint: dict[str, Any], _: Pyannote) -> None:
    checkpoint["pyannote.audio"]["specifications"].duration = "long"


def _other_depth(checkpoint: dict[str, Any], _: Pyannote) -> None:
    checkpoint["hyper_parameters"]["lstm"]["num_layers"] = 3


def _odd_setting(checkpoint: dict[str, Any], _: Pyannote) -> None:
    checkpoint["hyper_parameters"]["lstm"]["hidden_size"] = "wide"


def _other_window(checkpoint: dict[str, Any], _: Pyannote) -> None:
    key = "sincnet.conv1d.0.filterbank.window_"
    checkpoint["state_dict"][key] = torch.ones_like(checkpoint["state_dict"][key])


def _no_filters(checkpoint: dict[str, Any], _: Pyannote) -> None:
    del checkpoint["state_dict"]["sincnet.conv1d.0.filterbank.low_hz_"]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_several_labels, "does not classify each frame as a set of speakers"),
        (_other_rate, "sample_rate 8000"),
        (_no_specifications, "does not specify its classes"),
        (_no_settings, "no hyper_parameters"),
        (_other_classes, "has 7 classes; up to 3 of 3 speakers at once need 8"),
        (_odd_specifications, "specifications of another kind"),
        (_other_depth, r"8 missing: lstm.weight_ih_l2"),
        (_odd_setting, "settings of another kind.*hidden_size"),
        (_other_window, "other filters.*window_"),
        (_no_filters, "does not determine the sizes.*low_hz_"),
    ],
)
def test_refused(
    tmp_path: Path, pyannote: Pyannote, damage: Callable[[dict[str, Any], Pyannote], None], why: str
) -> None:
    content = pyannote.checkpoint(SMALL, published_names(shaken(SMALL)))
    damage(content, pyannote)
    torch.save(content, tmp_path / "some.ckpt")
    with pytest.raises(KnnError, match=why):
        import_checkpoint(tmp_path / "some.ckpt")


def test_it_is_no_embedder(tmp_path: Path, pyannote: Pyannote) -> None:
    path = tmp_path / "some.ckpt"
    torch.save(pyannote.checkpoint(SMALL, published_names(shaken(SMALL))), path)
    with pytest.raises(KnnError, match="computes no embeddings"):
        import_embedding_network(path)
    with pytest.raises(KnnError, match="needs no `config`"):
        import_checkpoint(path, config="x.yaml")


@pytest.fixture
def models(tmp_path: Path, pyannote: Pyannote, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models that holds the segmenter `who`."""
    torch.save(pyannote.checkpoint(SMALL, published_names(shaken(SMALL))), tmp_path / "pytorch_model.bin")
    result = convert(tmp_path / "pytorch_model.bin", tmp_path / "models" / "who")
    assert result.kind == "bundle" and result.rows == sum(each.numel() for each in shaken(SMALL).parameters())
    monkeypatch.setenv("KNN_MODELS", str(tmp_path / "models"), prepend=os.pathsep)
    return tmp_path / "models"


def test_a_bundle_is_the_same_network(models: Path) -> None:
    written = bundle.find("who", segmenter=True)
    network = bundle.load_segmenter(written)
    assert isinstance(network, PyanNet) and not network.training and written.rate == 16000 and "MIT" in written.card
    with torch.inference_mode():
        assert torch.equal(network(sound(5000)[None]), shaken(SMALL)(sound(5000)[None]))
    assert written.fingerprint.startswith("who@")
    other = bundle.Bundle(written.folder, {**written.config, "weights_sha256": "0" * 64})
    assert other.fingerprint != written.fingerprint


def test_segmenters_and_embedders_are_not_mixed_up(models: Path) -> None:
    assert "who" in bundle.available(segmenter=True) and "tiny-test" not in bundle.available(segmenter=True)
    assert "who" not in bundle.available() and {"who", "tiny-test"} <= bundle.available(segmenter=None).keys()
    for name in ("who", models / "who"):
        with pytest.raises(
            BundleError, match=r"'who' is a segmentation network, which does not embed.*tiny-test"
        ) as error:
            bundle.find(name)
        assert "who" not in (error.value.hint or "").split(";")[0]
        assert bundle.find(name, segmenter=None).is_segmenter
    with pytest.raises(BundleError, match=r"'tiny-test' is no segmentation network.*who"):
        bundle.find("tiny-test", segmenter=True)
    with pytest.raises(BundleError, match="no segmentation network"):
        bundle.load_segmenter(bundle.find("tiny-test"))
    with pytest.raises(BundleError, match="segmentation network only"):
        bundle.load_network(bundle.find("who", segmenter=True))


def test_damaged_bundles(models: Path) -> None:
    folder = models / "who"
    config = (folder / bundle.CONFIG).read_text()
    (folder / bundle.CONFIG).write_text(config.replace('"name": "pyannet"', '"named": "pyannet"'))
    with pytest.raises(BundleError, match="segmenter needs args, name"):
        bundle.find("who", segmenter=True)
    (folder / bundle.CONFIG).write_text(config.replace('"segmenter": {', '"other": {'))
    with pytest.raises(BundleError, match="lacks segmenter"):
        bundle.find("who", segmenter=True)
    (folder / bundle.CONFIG).write_text(config.replace('"hidden": 4', '"hidden": 5'))
    with pytest.raises(BundleError, match="does not fit the network"):
        bundle.load_segmenter(bundle.find("who", segmenter=True))
    (folder / bundle.CONFIG).write_text(config)
    (folder / bundle.WEIGHTS).write_bytes(b"other")
    with pytest.raises(BundleError, match="sha256 differs"):
        bundle.load_segmenter(bundle.find("who", segmenter=True))


def test_info_says_what_it_is(models: Path) -> None:
    facts = describe("who")
    assert facts["segmenter"].startswith("who@") and facts["network"] == "pyannet" and "embedder" not in facts
    assert (facts["speakers at most"], facts["speakers at once"], facts["seconds a chunk"]) == (3, 2, 2.0)
    done = CliRunner().invoke(app, ["info", str(models / "who")])
    assert done.exit_code == 0 and "pyannet" in done.stdout


@pytest.fixture
def published() -> Path:
    """segmentation-3.0's pytorch_model.bin, named by KNN_SEGMENTATION."""
    path = Path(os.environ.get("KNN_SEGMENTATION", ""))
    if not path.is_file():
        pytest.skip("needs KNN_SEGMENTATION, the path of segmentation-3.0's pytorch_model.bin")
    return path


def test_segmentation_3_equals_pyannote_audio(published: Path, example: Path) -> None:
    _, network = imported(published)
    clip, rate = soundfile.read(example, frames=160000, dtype="float32")
    assert rate == 16000
    with torch.inference_mode():
        ours = network(torch.from_numpy(clip)[None])[0].numpy()
    assert ours.shape == (589, 7) and np.bincount(ours.argmax(1)).tolist() == [85, 0, 167, 337]
    for frame, expected in PUBLISHED.items():
        np.testing.assert_allclose(ours[frame], expected, atol=1e-4)
    # Single precision shows in the phases of long filters, and so in logarithms of what hardly happens.
    np.testing.assert_allclose(np.exp(ours), np.exp(plain(published_names(network), clip, 10)), atol=5e-4)


@pytest.mark.parametrize("starts", [[0, 4032, 8064, 9000], [0, 4033], [0]])
def test_windows_that_share_sound(starts: list[int]) -> None:
    """Filtered once or one by one, with silence and a constant offset among them."""
    torch.manual_seed(0)
    network = cast(PyanNet, SEGMENTERS.build("pyannet", **SMALL)).eval()
    with torch.no_grad():
        network.normalize.weight.fill_(0.7)
        network.normalize.bias.fill_(0.2)
    sound = torch.randn(30_000) * torch.linspace(0, 0.3, 30_000)
    sound[:9000], sound[12_000:] = 0.0, sound[12_000:] + 0.1
    with torch.inference_mode():
        together = network.of_windows(sound, starts, 16_000)
        apart = torch.cat([network(sound[None, start : start + 16_000]) for start in starts])
    torch.testing.assert_close(together, apart, atol=2e-5, rtol=0)
    assert network.of_windows(sound, starts, 16_000).requires_grad  # as it is without them
