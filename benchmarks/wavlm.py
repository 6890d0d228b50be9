"""Time and memory of our WavLM-Base + MHFA, compared with transformers' WavLM and a literal MHFA.

    python benchmarks/wavlm.py [--seconds 10 40] [--threads 1] [--runs 3]
    python benchmarks/wavlm.py --utterances 200 [--threads 1] [--runs 2]

Both have the same random weights. Each measurement is a separate process. Times are the best of `--runs` after a short
warm-up clip; on a shared machine, CPU seconds are more reliable than wall-clock time. Memory is the peak resident size
from then on, with and without the size before.

`--utterances` embeds so many clips of 2 to 20 s, with a third network: ours with int8 weights and products
(`networks.int8`). transformers takes one clip at a time with as many threads as `--threads` says; ours take as many
clips at a time, one thread each, as `knn embed` does. The rounds take turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from knn_cli.core.parallel import parallel_map
from knn_cli.core.registry import ENCODERS
from knn_cli.networks.importers.entry import import_embedding_network
from knn_cli.networks.int8 import quantised, with_int8_products
from knn_cli.networks.network import Network
from knn_cli.networks.pooling.mhfa import MHFA
from tests.helpers.oracles import load_transformers

MODELS = ("ours", "transformers")
SHORTEST, LONGEST = 2.0, 20.0  # seconds of an utterance


def write_model(folder: Path) -> None:
    load_transformers()
    from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(0)
    WavLMModel(WavLMConfig()).save_pretrained(folder)
    torch.save(MHFA(13, 768).state_dict(), folder / "mhfa.pt")


def our_network(folder: Path) -> nn.Module:
    imported = import_embedding_network(folder).encoder
    with torch.device("meta"):
        encoder = ENCODERS.build(imported.name, **imported.args)
    encoder.load_state_dict(imported.state, assign=True)
    network = Network(encoder, head(folder)).eval()
    network.encoder.fold()  # as `bundle.load_network` does
    return network


def int8_network(folder: Path) -> nn.Module:
    network = our_network(folder)
    with_int8_products(network, quantised(network.state_dict()))
    return network


def their_network(folder: Path) -> nn.Module:
    load_transformers()
    from transformers import WavLMModel

    still = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
    settings: dict[str, object] = {**dict.fromkeys(still, 0.0), "apply_spec_augment": False}  # for training
    return Literal(WavLMModel.from_pretrained(folder, **settings), LiteralMHFA(head(folder))).eval()


class LiteralMHFA(nn.Module):
    """The published computation: all layers are stacked, and all heads are weighted at once."""

    def __init__(self, mhfa: MHFA) -> None:
        super().__init__()
        self.mhfa = mhfa

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        mhfa, stack = self.mhfa, torch.stack(tuple(layers), dim=-1)  # (B, T, C, L)
        keys = mhfa.cmp_linear_k((stack * mhfa.weights_k.softmax(dim=0)).sum(dim=-1))  # (B, T, D)
        values = mhfa.cmp_linear_v((stack * mhfa.weights_v.softmax(dim=0)).sum(dim=-1))  # (B, T, D)
        attention = mhfa.att_head(keys).softmax(dim=1)  # (B, T, H)
        pooled = (values.unsqueeze(-2) * attention.unsqueeze(-1)).sum(dim=1)  # (B, T, H, D) -> (B, H, D)
        embeddings: Tensor = mhfa.pooling_fc(pooled.flatten(1))
        return embeddings


class Literal(nn.Module):
    def __init__(self, wavlm: nn.Module, pooling: nn.Module) -> None:
        super().__init__()
        self.wavlm, self.pooling = wavlm, pooling

    def forward(self, waveforms: Tensor) -> Tensor:
        embeddings: Tensor = self.pooling(self.wavlm(waveforms, output_hidden_states=True).hidden_states)
        return embeddings


def head(folder: Path) -> MHFA:
    mhfa = MHFA(13, 768)
    mhfa.load_state_dict(torch.load(folder / "mhfa.pt", weights_only=True))
    return mhfa.eval()


def resident(field: str) -> float:
    """Resident size of this process in MiB: VmRSS now, VmHWM the peak since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        return float(status.read_text().partition(f"{field}:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes, cannot be reset


def forget_peak() -> None:
    """Reset the peak, which loading a checkpoint has raised (Linux only)."""
    counter = Path("/proc/self/clear_refs")
    if counter.exists():
        counter.write_text("5")


@torch.inference_mode()
def measure(model: str, folder: Path, seconds: float, threads: int, runs: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    embed = {"ours": our_network, "transformers": their_network}[model](folder)
    clip = torch.randn(1, int(seconds * 16000), generator=torch.Generator().manual_seed(1)) * 0.1
    embed(clip[:, :8000])
    gc.collect()
    forget_peak()
    before = resident("VmRSS")
    wall = busy = float("inf")
    for _ in range(runs):
        start, began = time.perf_counter(), time.process_time()
        embedding = embed(clip)
        wall = min(wall, time.perf_counter() - start)
        busy = min(busy, time.process_time() - began)
    top = resident("VmHWM")
    return {"wall": wall, "busy": busy, "peak": top, "above": top - before, "embedding": embedding[0].tolist()}


@torch.inference_mode()
def measure_utterances(model: str, folder: Path, count: int, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    embed = {"ours": our_network, "transformers": their_network, "int8": int8_network}[model](folder)
    random = torch.Generator().manual_seed(2)
    lengths = (torch.rand(count, generator=random) * (LONGEST - SHORTEST) + SHORTEST) * 16000
    clips = (torch.randn(1, length, generator=random) * 0.1 for length in lengths.int().tolist())
    embed(torch.randn(1, 16000, generator=random))
    gc.collect()
    forget_peak()
    wall, busy = time.perf_counter(), time.process_time()
    if model == "transformers":
        embeddings = [embed(clip)[0].tolist() for clip in clips]
    else:
        with parallel_map(torch.device("cpu"), jobs=threads) as each:
            embeddings = [found[0].tolist() for found in each(torch.inference_mode()(embed.forward), clips)]
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    seconds = lengths.sum().item() / 16000
    return {"wall": wall, "busy": busy, "peak": resident("VmHWM"), "seconds": seconds, "embedding": embeddings}


def compare_utterances(count: int, threads: int, rounds: int) -> None:
    """Print the rates of all networks, and how far their embeddings are from those of transformers."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        command = [sys.executable, __file__, "--utterances", str(count), "--threads", str(threads), "--measure"]
        results: dict[str, list[dict[str, Any]]] = {}
        for _ in range(rounds):
            for model in ("transformers", *MODELS[:1], "int8"):
                pages = {} if model == "transformers" else {"THP_MEM_ALLOC_ENABLE": "1"}  # as `knn` sets it
                done = subprocess.run(
                    [*command, model, folder], check=True, capture_output=True, text=True, env=os.environ | pages
                )
                results.setdefault(model, []).append(json.loads(done.stdout.splitlines()[-1]))
    theirs = results["transformers"]
    print(f"{count} utterances of {theirs[0]['seconds']:.0f} s, {threads} thread(s), medians of {rounds}")
    print("| network | utterances a second | ratio | CPU s each | rate by CPU s | peak | largest difference ", end="")
    print("| least cosine |\n|---|--:|--:|--:|--:|--:|--:|--:|")
    truth = torch.tensor(theirs[0]["embedding"])
    for model, rows in results.items():
        busy, wall, peak = (median(row[key] for row in rows) for key in ("busy", "wall", "peak"))
        ratio, faster = (
            median(their[key] / row[key] for their, row in zip(theirs, rows, strict=True)) for key in ("busy", "wall")
        )
        found = torch.tensor(rows[0]["embedding"])
        cosine = torch.cosine_similarity(found, truth).min().item()
        print(
            f"| {model} | {count / wall:.2f} | {faster:.2f} | {busy / count:.2f} | {ratio:.2f} | {peak:.0f} MiB "
            f"| {(found - truth).abs().max().item():.0e} | {cosine:.5f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 40.0], help="clip lengths")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--utterances", type=int, metavar="N", help="compare N clips of 2 to 20 s instead")
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        model, folder = options.measure
        if options.utterances:
            result = measure_utterances(model, Path(folder), options.utterances, options.threads)
        else:
            result = measure(model, Path(folder), options.seconds[0], options.threads, options.runs)
        print(json.dumps(result))
        return
    if options.utterances:
        compare_utterances(options.utterances, options.threads, options.runs)
        return
    print(f"WavLM-Base + MHFA, fp32, {options.threads} thread(s), best of {options.runs}, torch {torch.__version__}")
    print(f"{'clip':>6} {'network':>13} {'wall s':>8} {'CPU s':>8} {'RTF':>7} {'peak MiB':>9} {'above loaded':>13}")
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        for seconds in options.seconds:
            results = {}
            for model in MODELS:
                command = [sys.executable, __file__, "--measure", model, folder, "--seconds", str(seconds)]
                command += ["--threads", str(options.threads), "--runs", str(options.runs)]
                lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
                row = results[model] = json.loads(lines[-1])
                print(
                    f"{seconds:5g}s {model:>13} {row['wall']:8.2f} {row['busy']:8.2f} "
                    f"{row['wall'] / seconds:7.3f} {row['peak']:9.0f} {row['above']:13.0f}"
                )
            ours, theirs = (results[model] for model in MODELS)
            ratios = {key: ours[key] / theirs[key] for key in ("wall", "busy", "peak", "above")}
            difference = (torch.tensor(ours["embedding"]) - torch.tensor(theirs["embedding"])).abs().max().item()
            print(
                f"{seconds:5g}s {'ratio':>13} {ratios['wall']:8.2f} {ratios['busy']:8.2f} {'':7} {ratios['peak']:9.2f} "
                f"{ratios['above']:13.2f}   embeddings differ by {difference:.1e}"
            )


if __name__ == "__main__":
    main()
