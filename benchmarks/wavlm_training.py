"""A training step of our WavLM-Base + MHFA, compared with transformers' WavLM and a literal MHFA.

    python -m benchmarks.wavlm_training [--threads 2] [--steps 5] [--batch 4] [--seconds 3]

Both have the same random weights, clips, loss (cross-entropy of a linear layer over 107 classes), optimizer (SGD with
momentum 0.9) and float32; both are in training mode, without dropout, layer drop or masking, which our network
does not have. Each is a separate process. A step is forward, backward and optimizer; the first step creates the
optimizer state and is not measured.

Memory is the peak resident size as the kernel counts it (VmHWM of /proc), including what allocators hold:
peak          of the whole process, interpreter and libraries included
above imports weights, momentum, gradients, activations
above weights momentum, gradients, activations
of the step   above the size between two steps: gradients, activations

The second part is the pooling alone, without gradients, on the 13 layers of a clip of 40 s: above the resident size
while one layer is held (ours: the encoder yields layers one by one), or all layers (literal: it needs
all at once; "with layers" counts the layers too).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.wavlm import MODELS, LiteralMHFA, forget_peak, head, our_network, resident, their_network, write_model
from knn_cli.core.registry import ENCODERS
from tests.helpers.oracles import load_transformers

CLASSES = 107


def settle() -> float:
    """Resident MiB after free memory has been returned to the system."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return resident("VmRSS")


def warm_up(model: str) -> None:
    """A step of a tiny network, so that late imports and library initialisation count as imports."""
    if model == "ours":
        network: nn.Module = ENCODERS.build("wavlm", channels=48, blocks=1, heads=4, inner=8)
    else:
        load_transformers()
        from transformers import WavLMConfig, WavLMModel

        network = WavLMModel(
            WavLMConfig(
                hidden_size=48,
                num_hidden_layers=1,
                num_attention_heads=4,
                intermediate_size=8,
                apply_spec_augment=False,
            )
        )
    optimizer = torch.optim.SGD(network.train().parameters(), lr=1e-3)
    output = network(torch.randn(1, 16000))
    last = list(output)[-1] if model == "ours" else output.last_hidden_state
    last.square().mean().backward()
    optimizer.step()


def train(model: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    build = {"ours": our_network, "transformers": their_network}[model]
    warm_up(model)
    imported = settle()
    network = build(folder).train()
    torch.manual_seed(2)
    classes = nn.Linear(256, CLASSES)
    weights = [*network.parameters(), *classes.parameters()]
    for weight in weights:
        weight.data = weight.data.clone()  # so that no weight is a memory-mapped page of a file
    optimizer = torch.optim.SGD(weights, lr=1e-2, momentum=0.9)
    samples = int(options.seconds * 16000)
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(options.steps + 1, options.batch, samples, generator=generator) * 0.1
    labels = torch.randint(CLASSES, (options.steps + 1, options.batch), generator=generator)
    losses = []

    def step(number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(classes(network(clips[number])), labels[number])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    loaded = settle()
    forget_peak()
    step(0)
    optimizer.zero_grad(set_to_none=True)
    resting = settle()
    wall, busy = [], []
    for number in range(1, options.steps + 1):
        start, began = time.perf_counter(), time.process_time()
        step(number)
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - began)
    peak = resident("VmHWM")
    return {
        "wall": statistics.median(wall),
        "busy": statistics.median(busy),
        "peak": peak,
        "imports": peak - imported,
        "weights": peak - loaded,
        "step": peak - resting,
        "losses": losses,
    }


def pool(model: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    mhfa = head(folder) if model == "ours" else LiteralMHFA(head(folder))
    frames = 1999

    def layers() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(3)
        for _ in range(13):
            yield torch.randn(1, frames, 768, generator=generator)

    with torch.inference_mode():
        mhfa([layer[:, :50] for layer in layers()])
        bare = settle()
        given = next(layers()) if model == "ours" else list(layers())
        before = resident("VmRSS")
        forget_peak()
        start = time.process_time()
        mhfa(given for _ in range(13)) if model == "ours" else mhfa(given)
        busy = time.process_time() - start
        peak = resident("VmHWM")
        del given
        settle()
        embedding = mhfa(layers() if model == "ours" else list(layers()))
    return {"busy": busy, "pooling": peak - before, "layers": peak - bare, "embedding": embedding[0].tolist()}


def measure(task: str, model: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """The result of a measurement in a separate process."""
    command = [sys.executable, "-m", "benchmarks.wavlm_training", "--measure", task, model, folder]
    for name in ("threads", "steps", "batch", "seconds"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(results: dict[str, dict[str, Any]], columns: dict[str, str]) -> None:
    print(f"\n| | {' | '.join(columns.values())} |\n|---|{'--:|' * len(columns)}")
    ours, theirs = (results[model] for model in MODELS)
    ratios = {key: ours[key] / theirs[key] for key in columns}
    for name, row in {**{model: results[model] for model in MODELS}, "ratio": ratios}.items():
        print(f"| {name} | {' | '.join(f'{row[key]:.2f}' for key in columns)} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="steps measured; the median is shown")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--measure", nargs=3, metavar=("TASK", "MODEL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        task, model, folder = options.measure
        torch.set_num_threads(options.threads)
        tasks: dict[str, Callable[..., dict[str, Any]]] = {"train": train, "pool": pool}
        print(json.dumps(tasks[task](model, Path(folder), options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        print(
            f"Training step, WavLM-Base + MHFA, {options.batch} x {options.seconds:g} s, {options.threads} thread(s), "
            f"median of {options.steps}, torch {torch.__version__}; memory in MiB"
        )
        steps = {model: measure("train", model, folder, options) for model in MODELS}
        for result in steps.values():
            result["rate"] = options.batch / result["wall"]
        memory = {"peak": "peak", "imports": "above imports", "weights": "above weights", "step": "of the step"}
        table(steps, {"wall": "wall s", "busy": "CPU s", "rate": "clips/s", **memory})
        losses = [[f"{loss:.5f}" for loss in steps[model]["losses"]] for model in MODELS]
        print(f"losses {' '.join(losses[0])}\n       {' '.join(losses[1])}")
        print("\nMHFA alone, no gradients, 13 layers of 1999 frames x 768; memory in MiB")
        pools = {model: measure("pool", model, folder, options) for model in MODELS}
        table(pools, {"busy": "CPU s", "pooling": "pooling", "layers": "with layers"})
        ours, theirs = (torch.tensor(pools[model]["embedding"]) for model in MODELS)
        print(f"embeddings differ by {(ours - theirs).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
