"""Export of a bundle's network to an ONNX file that needs neither knn nor torch, with a check against torch.

    waveforms  (B, S) float32 in [-1, 1] at the bundle's rate; the bundle's scale is inside the graph
    embeddings (B, E) float32
    scores     (B, C) float32, before any softmax, if the bundle has a head, in the order of its labels

B is free, and so is S from the metadata's `minimum_samples` on. All clips of a batch have the same length: there is no
second input for the lengths of padded clips, so embed clips of unequal lengths one by one, or in batches of equal
length.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from knn_cli import __version__
from knn_cli.core.atomic import replacing
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Floats
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.networks.network import Network
from knn_cli.networks.onnx_packages import onnx_package
from knn_cli.store.writer import check_free

OPSET = 17
MAX_DIFFERENCE = 1e-4  # largest difference from torch, relative to the largest value if that is above 1
INT8_MIN_COSINE = 0.997  # smallest cosine between embeddings with int8 weights and torch's
INT8_MAX_SIZE_RATIO = 0.75  # a larger int8 file, relative to the float file, is not worth the loss of precision
MAX_WEIGHT_BYTES = 2**31 - 2**24  # a protobuf message holds at most 2 GiB, including the graph
_TRACED_CLIPS = (2, 1.25)  # clips, seconds of each
_CHECKED_CLIPS = ((1, 0.0), (3, 0.4), (2, 1.25), (1, 3.1))  # the first is the shortest possible


@dataclass(frozen=True)
class Export:
    """Result of an export: sizes, and the agreement of its outputs with torch.

    Attributes
    ----------
    parameters : int
        Number of weights.
    size : int
        Bytes of the file.
    float_size : int
        Bytes of the file without int8.
    difference : float
        Largest absolute difference between an output value of onnxruntime and of torch.
    cosine : float
        Smallest cosine between an embedding of onnxruntime and of torch.
    clips : int
        Number of random clips, of several lengths, that were compared.
    """

    parameters: int
    size: int
    float_size: int
    difference: float
    cosine: float
    clips: int


class _Graph(nn.Module):
    """Waveforms (B, S) in [-1, 1] to the graph's outputs."""

    def __init__(self, network: Network, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, waveforms: Tensor) -> tuple[Tensor, ...]:
        embeddings = self.network(waveforms * self.scale)
        return (embeddings,) if self.network.head is None else (embeddings, self.network.scores(embeddings))


def export_onnx(
    model: str | Path | Bundle | None, out: Path | str, *, int8: bool = False, force: bool = False
) -> Export:
    """Write the network of a bundle to the file `out`, whole or not at all.

    Parameters
    ----------
    model : str, Path or Bundle, optional
        Name or path of a bundle.
    out : Path or str
    int8 : bool
        Store the weights of matrix products in 8 bits (7 of them used, so that sums overflow on no processor), with a
        scale for each output. Activations are quantised at run time with one scale per batch, so that a clip's
        embedding depends a little on the other clips. Convolutions stay in float.
    force : bool
        Replace an existing file.

    Raises
    ------
    BundleError
        There is no such bundle, or it has no network.
    KnnError
        Packages are missing; the file exists or cannot be written; the network has more than 2 GB; onnxruntime's
        output is too far from torch's; int8 saves too little.
    """
    source = model if isinstance(model, Bundle) else bundle.find(model)
    out = Path(out)
    check_free(out, force)
    onnx, runtime = onnx_package("onnx"), onnx_package("onnxruntime")
    network = bundle.load_network(source, float_products=True)
    weights = list(network.state_dict().values())
    if (size := sum(each.nbytes for each in weights)) > MAX_WEIGHT_BYTES:
        raise KnnError(f"{source.name} has {size / 1e9:.1f} GB of weights; an ONNX file holds 2 GB.")
    graph = _Graph(network, source.scale).eval()
    with replacing(out) as part, torch.no_grad(), _readable_errors(source.name):
        _trace(graph, source.rate, part)
        onnx_model = onnx.load(part)
        float_size = onnx_model.ByteSize()
        if int8:
            _quantise(onnx_model, part)
            onnx_model = onnx.load(part)
            if onnx_model.ByteSize() > INT8_MAX_SIZE_RATIO * float_size:
                sizes = f"{float_size / 1e6:.1f} MB to {onnx_model.ByteSize() / 1e6:.1f}"
                raise KnnError(
                    f"int8 hardly reduces the size of {source.name}: {sizes}.",
                    "Its weights are convolutions, which stay in float; export it without `int8`.",
                )
        for output, width in zip(onnx_model.graph.output, (network.dimension, len(source.head_labels)), strict=False):
            output.type.tensor_type.shape.dim[1].dim_value = width  # the exporter does not always infer it
        onnx_model.producer_name, onnx_model.producer_version = "knn", __version__
        onnx.helper.set_model_props(onnx_model, _metadata(source, network, int8))
        onnx.save(onnx_model, part)
        size = part.stat().st_size
        difference, cosine = _check(graph, source.rate, part, runtime, int8)
    clips = sum(count for count, _ in _CHECKED_CLIPS)
    return Export(sum(each.numel() for each in weights), size, float_size, difference, cosine, clips)


@contextmanager
def _readable_errors(name: str) -> Iterator[None]:
    """Turn errors of the exporter and of onnxruntime into one sentence; hide warnings, because outputs are compared."""
    state = onnx_package("onnxruntime.capi.onnxruntime_pybind11_state")
    refusals = [state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (torch.onnx.errors.OnnxExporterError, *refusals) as error:
        reason = str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
        hint = "Try other versions of torch and onnxruntime; a custom component may use operations that ONNX lacks."
        raise KnnError(f"{name} cannot be exported to ONNX: {reason}.", hint) from error
    finally:
        logging.disable(before)


def _clips(graph: _Graph, rate: int, count: int, seconds: float) -> Tensor:
    """(count, S) float32: reproducible noise of varying level, of `seconds` or at least the network's minimum."""
    samples = max(round(seconds * rate), graph.network.minimum)
    noise = np.random.default_rng([count, samples]).normal(0, 0.1, (count, samples))
    return torch.from_numpy((noise * (0.1 + np.abs(np.sin(np.arange(samples) / 900)))).astype(np.float32))


def _trace(graph: _Graph, rate: int, part: Path) -> None:
    """Write the graph as an ONNX model; modules that differ for it ask `onnx_state`."""
    names = ["embeddings"] if graph.network.head is None else ["embeddings", "scores"]
    torch.onnx.export(
        graph,
        (_clips(graph, rate, *_TRACED_CLIPS),),
        part,
        dynamo=False,  # the other exporter cannot trace layers from a generator
        opset_version=OPSET,
        input_names=["waveforms"],
        output_names=names,
        dynamic_axes={"waveforms": {0: "batch", 1: "samples"}} | {name: {0: "batch"} for name in names},
    )


def _quantise(onnx_model: Any, part: Path) -> None:
    """Write `onnx_model` to `part` with int8 in place of the learnt matrices.

    Only learnt matrices are initializers of the graph. The Fourier matrix and the filters of the filter bank, which
    need float precision, are constants, because no bundle stores them.
    """
    quantization = onnx_package("onnxruntime.quantization")
    learnt = {each.name for each in onnx_model.graph.initializer}
    products = [node for node in onnx_model.graph.node if node.op_type in ("MatMul", "Gemm")]
    quantization.quantize_dynamic(
        onnx_model,
        part,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=[node.name for node in products if node.input[1] not in learnt],
        per_channel=True,
        reduce_range=True,
        weight_type=quantization.QuantType.QInt8,
    )


def _metadata(source: Bundle, network: Network, int8: bool) -> dict[str, str]:
    facts = {
        "name": source.name,
        "fingerprint": source.fingerprint,
        "rate": str(source.rate),
        "minimum_samples": str(network.minimum),
        "dimension": str(network.dimension),
        "views": json.dumps(source.config.get("views", {})),
        "batch": "clips of one length",
        "weights": "int8" if int8 else "float32",
    }
    if network.head is None:
        return facts
    labels = json.dumps(source.head_labels, ensure_ascii=False)
    return facts | {"head": str(source.config["head"]["name"]), "labels": labels}


def _check(graph: _Graph, rate: int, file: Path, runtime: Any, int8: bool) -> tuple[float, float]:
    """Largest difference and smallest cosine between onnxruntime and torch; KnnError if they differ too much."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    difference, cosine, near = 0.0, 1.0, True
    for count, seconds in _CHECKED_CLIPS:
        clips = _clips(graph, rate, count, seconds)
        with torch.inference_mode():
            expected_outputs = [output.numpy() for output in graph(clips)]
        outputs = session.run(None, {"waveforms": clips.numpy()})
        for output, expected in zip(outputs, expected_outputs, strict=True):
            distance = float(np.abs(output - expected).max())
            difference = float(np.maximum(difference, distance))  # keeps NaN
            near &= distance <= MAX_DIFFERENCE * max(1.0, float(np.abs(expected).max()))  # False for NaN
        cosine = float(np.minimum(cosine, _cosine(outputs[0], expected_outputs[0])))
    if not (cosine >= INT8_MIN_COSINE if int8 else near):
        raise KnnError(
            f"onnxruntime's embeddings are not torch's: a difference of {difference:.1e}, a cosine of {cosine:.5f}.",
            "Export it without `int8`." if int8 else "This network cannot be exported by this torch and onnxruntime.",
        )
    return difference, cosine


def _cosine(output: Floats, expected: Floats) -> float:
    """The smallest cosine between rows of (B, E) and (B, E); 0 for a row of zeros."""
    output, expected = output.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(output, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((output * expected).sum(1) / np.maximum(lengths, 1e-300)).min())
