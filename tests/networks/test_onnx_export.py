"""ONNX: every encoder, pooling and head equals torch at lengths that were not traced; no incomplete file."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS
from knn_cli.networks import bundle, onnx_export
from knn_cli.networks.construction import build_network
from knn_cli.networks.conversion import convert
from knn_cli.networks.encoders.conformer_sizes import POSITIONS
from knn_cli.networks.onnx_export import export_onnx
from tests.helpers.encoder_contract import shaken, sound
from tests.helpers.small_networks import WAVLM

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

LARGE = {"convolution_norm": "layer", "convolution_bias": True, "norm_first": True, "normalize": True}
CONFORMER = {"channels": 16, "blocks": 2, "heads": 2, "inner": 24, "kernel": 5, "left": 6, "right": 2}
FBANK = {"channels": 16, "hidden": 24, "dilations": (1, 2)}
SMALL: list[tuple[str, dict[str, Any]]] = [
    ("wavlm", WAVLM),
    ("wavlm", {**WAVLM, **LARGE, "position_kernel": 15}),
    ("wavlm", {**WAVLM, "adapters": {"bottleneck": 8}}),
    ("wavlm", {**WAVLM, "adapters": {"bottleneck": 8, "kind": "mam", "prefix": 4}}),
    ("wav2vec2", {name: value for name, value in WAVLM.items() if name != "distance"}),
    ("wav2vec2", {**{name: value for name, value in WAVLM.items() if name != "distance"}, **LARGE, "adapter": 6}),
    *(("w2v-bert", {**CONFORMER, "positions": kind}) for kind in POSITIONS),
    ("w2v-bert", {**CONFORMER, "adapters_above": 2, "adapter_channels": 8, "between": True}),
    ("whisper", {"channels": 16, "blocks": 2, "heads": 2, "inner": 24, "bins": 40, "level": -2.0, "normalised": True}),
    ("whisper", {"channels": 16, "blocks": 1, "heads": 2, "inner": 24, "bins": 40}),
    ("fbank-tdnn", FBANK),
    ("resnet", {"depth": 18, "width": 2}),
    ("repvgg", {"widths": (4, 4, 8, 8, 8), "blocks": (1, 2, 1, 1), "groups": 2}),
    ("repvgg", {"widths": (4, 4, 8, 8, 8), "blocks": (1, 2, 1, 1), "squeeze": True}),
    ("res2net", {"width": 4, "inner": (4, 4, 4, 8), "blocks": (1, 1, 2, 1), "scale": 3, "bins": 41}),
    ("simam-resnet", {"width": 2, "blocks": (1, 1, 2, 1), "bins": 41}),
    ("df-resnet", {"widths": (4, 4, 6, 6, 8), "blocks": (1, 2, 1, 1)}),
    ("eres2net", {"width": 4, "inner": (4, 4, 4, 8), "blocks": (1, 1, 2, 1), "scale": 3, "bins": 41}),
    ("eres2net", {"width": 4, "inner": (4, 4, 4, 8), "blocks": (1, 1, 1, 1), "fusion": "last"}),
    ("redimnet", {"width": 4, "stages": [[1, 1, 2, 8], [2, 1, 1, 8]], "group": 2, "bins": 12}),
    ("redimnet", {"width": 4, "stages": [[2, 1, 1, 8]], "blocks": ["resnet-excited", "att"], "group": 2, "bins": 12}),
    ("xvector-tdnn", {"hidden": 8, "channels": 12}),
    ("ecapa-tdnn-fbank", {"width": 16, "channels": 24, "scale": 4, "squeeze": 6}),
    ("ecapa-tdnn", {"channels": (16, 16, 24, 16, 20), "scale": 4, "squeeze": 6, "bins": 24}),
    (
        "conv-asr",
        {"blocks": [{"channels": 16}, {"channels": 12, "kernel": 5, "repeat": 2, "residual": True}], "bins": 24},
    ),
    ("campplus", {"width": 4, "channels": 8, "growth": 4, "bottleneck": 2, "blocks": (1, 1, 1), "bins": 40}),
]


def random_bundle(
    folder: Path,
    encoder: str = "fbank-tdnn",
    args: dict[str, Any] | None = None,
    pooling: str = "mean",
    head: str | None = None,
    scale: float = 1.0,
) -> Path:
    """A bundle of random weights in `folder`."""
    config: dict[str, Any] = {
        "name": "random",
        "kind": "embedder",
        "audio": {"rate": 16000, "scale": scale},
        "encoder": {"name": encoder, "args": FBANK if args is None else args},
        "pooling": {"name": pooling, "args": {}},
        "views": {"speaker": [0, 4]},
    }
    if head is not None:
        config["head"] = {"name": head, "args": {}, "labels": ["čeština", "polski", "other"]}
    torch.manual_seed(0)
    bundle.write(folder / "random", config, state=shaken(build_network(config)).state_dict())
    return folder / "random"


def outputs(file: Path, clips: torch.Tensor) -> list[np.ndarray]:
    values: list[np.ndarray] = runtime.InferenceSession(file).run(None, {"waveforms": clips.numpy()})
    return values


def check(model: Path, file: Path) -> None:
    """The graph equals torch for the shortest clip, and for batches of shorter and longer clips than were traced."""
    export_onnx(model, file)
    network = bundle.load_network(bundle.find(model))
    for count, samples in ((1, network.minimum), (3, 7001), (1, 20000), (2, 52345)):
        clips = sound(*[samples] * count)
        with torch.inference_mode():
            expected = network(clips)
        np.testing.assert_allclose(outputs(file, clips)[0], expected.numpy(), atol=1e-4, rtol=1e-5)


def test_all_encoders_are_tried() -> None:
    assert {name for name, _ in SMALL} == set(ENCODERS.names())


@pytest.mark.parametrize(("encoder", "args"), SMALL)
def test_encoders(encoder: str, args: dict[str, Any], tmp_path: Path) -> None:
    check(random_bundle(tmp_path, encoder, args), tmp_path / "network.onnx")


@pytest.mark.parametrize("pooling", POOLINGS.names())
def test_poolings(pooling: str, tmp_path: Path) -> None:
    check(random_bundle(tmp_path, pooling=pooling), tmp_path / "network.onnx")


@pytest.mark.parametrize("head", HEADS.names())
def test_heads(head: str, tmp_path: Path) -> None:
    model = random_bundle(tmp_path, head=head)
    export_onnx(model, tmp_path / "network.onnx")
    network, clips = bundle.load_network(bundle.find(model)), sound(9000, 9000)
    with torch.inference_mode():
        expected = network.scores(network(clips))
    np.testing.assert_allclose(outputs(tmp_path / "network.onnx", clips)[1], expected.numpy(), atol=1e-4, rtol=1e-5)


def test_scale_and_facts_are_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.ONNX"
    model = random_bundle(tmp_path, "resnet", {"depth": 18, "width": 2}, head="softmax", scale=32768.0)
    result = convert(model, file).export
    assert result is not None and result.size == file.stat().st_size
    network, clips = bundle.load_network(bundle.find(model)), sound(9000) * 1e-4
    with torch.inference_mode():
        loud, quiet = network(clips * 32768).numpy(), network(clips).numpy()
    np.testing.assert_allclose(outputs(file, clips)[0], loud, atol=1e-4)
    assert np.abs(loud - quiet).max() > 0.001  # so the scale matters here
    session = runtime.InferenceSession(file)
    assert [(tensor.name, tensor.shape) for tensor in (*session.get_inputs(), *session.get_outputs())] == [
        ("waveforms", ["batch", "samples"]),
        ("embeddings", ["batch", network.dimension]),
        ("scores", ["batch", 3]),
    ]
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["name"], facts["rate"], facts["minimum_samples"]) == ("random", "16000", "400")
    assert facts["fingerprint"] == bundle.find(model).fingerprint
    assert (facts["batch"], facts["weights"], facts["head"]) == ("clips of one length", "float32", "softmax")
    assert json.loads(facts["views"]) == {"speaker": [0, 4]}
    assert json.loads(facts["labels"]) == ["čeština", "polski", "other"]


def test_int8_of_a_transformer(tmp_path: Path) -> None:
    """On the command line: much smaller, and the same embeddings of other sounds but for a little."""
    model, file = random_bundle(tmp_path, "wavlm", {**WAVLM, "channels": 128, "inner": 512}), tmp_path / "network.onnx"
    result = CliRunner().invoke(app, ["convert", str(model), str(file), "--int8"])
    assert result.exit_code == 0, result.output
    assert "without --int8" in result.stderr and "onnxruntime agrees with torch on 7 random clips" in result.stderr
    assert file.stat().st_size < 0.6 * (model / bundle.WEIGHTS).stat().st_size
    clips = sound(30000, 30000, 30000)
    with torch.inference_mode():
        expected = bundle.load_network(bundle.find(model))(clips).numpy()
    for output, other in zip(outputs(file, clips)[0], expected, strict=True):
        assert output @ other / np.linalg.norm(output) / np.linalg.norm(other) > 0.998


def test_refusals_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = random_bundle(tmp_path, pooling="mhfa"), tmp_path / "out"
    out.mkdir()
    alone = shutil.copytree(model, tmp_path / "alone")
    config = {"schema": 1, "name": "alone", "kind": "classifier", "embedder": "random@0"}
    (alone / "config.json").write_text(json.dumps(config))
    resnet = random_bundle(tmp_path / "r", "resnet", {"depth": 18, "width": 8})
    for source, file, int8, message in (
        (alone, out / "a.onnx", False, "has a classifier only"),
        (tmp_path / "nothing", out / "a.onnx", False, "There is no model"),
        (out, out / "a.onnx", False, "no model bundle"),
        (model, out / "a" / "a.onnx", False, "cannot be written"),
        (model, out / "a.h5", True, "no ONNX file"),
        (resnet, out / "a.onnx", True, r"hardly reduces the size.*`int8`"),
        (tmp_path / "w.pt", out / "a.onnx", False, "is a checkpoint"),
        ("hf:a/b", out / "a.onnx", False, "is a checkpoint"),
    ):
        with pytest.raises(KnnError, match=message):
            convert(source, file, int8=int8)
    with pytest.raises(KnnError, match="is made from a model as it is"):
        convert(model, out / "a.onnx", segment=3.0)
    monkeypatch.setattr(onnx_export, "MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(KnnError, match=r"random has 0\.0 GB of weights"):
        export_onnx(model, out / "a.onnx")
    assert not list(out.iterdir())


def test_a_graph_that_is_not_the_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = random_bundle(tmp_path, pooling="mhfa"), tmp_path / "network.onnx"
    file.write_text("the old one")
    with pytest.raises(KnnError, match="exists already"):
        export_onnx(model, file)
    trace, shifts = onnx_export._trace, [0.001, math.nan, 1.0, math.nan]

    def trace_another(graph: Any, rate: int, part: Path) -> None:
        other = copy.deepcopy(graph)
        other.network.pooling.pooling_fc.bias += shifts.pop(0)
        trace(other, rate, part)

    monkeypatch.setattr(onnx_export, "_trace", trace_another)
    monkeypatch.setattr(onnx_export, "INT8_MAX_SIZE_RATIO", 2.0)  # this network is too small to gain anything
    for int8 in (False, False, True, True):
        with pytest.raises(KnnError, match="not torch's"):
            export_onnx(model, file, int8=int8, force=True)
    assert file.read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.onnx", "random"]


def test_what_onnx_cannot_say_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, exporting = random_bundle(tmp_path), torch.onnx.export
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: False)
    with pytest.raises(KnnError, match=r"cannot be exported to ONNX: Unsupported: .* not accessible\."):  # torch's
        export_onnx(model, tmp_path / "network.onnx")
    monkeypatch.undo()
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: exporting(*a, **{**k, "dynamic_axes": None}))
    with pytest.raises(KnnError, match=r"random cannot be exported to ONNX: .*dimensions"):  # onnxruntime's
        export_onnx(model, tmp_path / "network.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["random"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_sentence(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = CliRunner().invoke(app, ["convert", str(random_bundle(tmp_path)), str(tmp_path / "network.onnx")])
    assert result.exit_code == 1
    assert result.stderr == f"knn: An ONNX file needs the package {package}.\n     pip install 'knn-cli[onnx]'\n"
    assert not (tmp_path / "network.onnx").exists()


def test_onnx_runtime_is_told_to_send_nothing(tmp_path: Path) -> None:
    """Its telemetry would leave a number of this machine in the cache folder."""
    program = "from knn_cli.networks.onnx_packages import onnx_package; onnx_package('onnxruntime')"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    assert not [*tmp_path.iterdir()]
