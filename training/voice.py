"""Train the speaker embedding: the trunk's first blocks and MHFA, taught by CAM++ through rooms, noise and lines.

    python -m training.voice --work WORK [--name voice] [--steps 1900]

Resumes from WORK/runs/<name>/checkpoint.pt. Every batch comes from a generator seeded by (seed, step), so a run that
was interrupted ends as one that was not. The result is WORK/runs/<name>/final.safetensors, a moving average of the
weights.

A crop's target is the teacher's embedding of the same crop, clean, less the mean of all targets. Losses: 1 - cosine to
the target; squared difference of all cosines within a batch from the teacher's; and additive margin softmax (Wang et
al. 2018, eq. 6) over the speakers with one voice whose crop is not warped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from knn_cli.network import Network
from knn_cli.registry import ENCODERS, POOLINGS
from knn_cli.whisper import Whisper
from training.augment import augment, warp_matrix
from training.data import Corpus, read_manifest, several_voices, write_json
from training.teach import LENGTH, corpora

ENCODER_ARGS = {"blocks": 2, "final_norm": False, "level": 0.97, "normalised": True}
POOLING_ARGS = {"heads": 16, "compression": 64, "dimension": 192}
SCALE, MARGIN = 24.0, 0.15


def build(trunk: Path | None) -> Network:
    """The network, its encoder's weights the first of the trunk's."""
    encoder = ENCODERS.build("whisper", **ENCODER_ARGS)
    if trunk is not None:
        theirs = load_file(str(trunk))
        encoder.load_state_dict({key: theirs[key] for key in encoder.state_dict()}, strict=True)
    pooling = POOLINGS.build("mhfa", layers=encoder.layers, channels=encoder.channels, **POOLING_ARGS)
    return Network(encoder, pooling)


def embed(network: Network, logs: Tensor) -> Tensor:
    """Natural log mel powers (B, N, 80) -> embeddings (B, E)."""
    encoder: Whisper = network.encoder
    embeddings: Tensor = network.pooling(encoder.encode(logs.exp()))
    return embeddings


class Material:
    """Taught crops, with the speaker of each: a number, or -1 for warped, synthetic and shared voices."""

    def __init__(self, cache: Path) -> None:
        self.crops = np.load(cache / "crops.npy")
        taught = np.load(cache / "crops-taught.npy")[: len(self.crops)]
        self.crops = self.crops[: len(taught)]
        done = ~np.isnan(taught[:, 0])
        self.crops, taught = self.crops[done], taught[done]
        self.centre = taught.mean(0)
        self.targets = F.normalize(torch.from_numpy(taught - self.centre), dim=1)
        self.heard, self.noise = corpora(cache, "mel"), Corpus(cache, "mel-noise")
        rows = read_manifest(cache / "reels.tsv")
        names = sorted({row["speaker"] for row in rows if not several_voices(row["speaker"])})
        self.speakers = len(names)
        numbers = {name: number for number, name in enumerate(names)}
        self.who = torch.tensor(
            [
                numbers.get(rows[int(index)]["speaker"], -1) if corpus == 0 and warp == 1 else -1
                for corpus, index, _, warp in self.crops
            ]
        )

    def batch(self, rng: np.random.Generator, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Crops `rows` (B,): log mel powers (B, N, 80) after augmentation, targets (B, 192), speakers (B,)."""
        length = int(rng.integers(LENGTH // 2, LENGTH + 1))
        logs = []
        for corpus, index, at, warp in self.crops[rows]:
            recording = self.heard[int(corpus)].whole(int(index))
            first = min(int(at) + int(rng.integers(LENGTH - length + 1)), len(recording) - length)
            crop = torch.from_numpy(recording[first : first + length].astype(np.float32))
            logs.append(crop if warp == 1 else crop @ warp_matrix(warp))
        heard = augment(torch.stack(logs), self.noise, rng, warp=0.0, plain=0.35)
        return heard, self.targets[rows], self.who[rows]


def losses(embeddings: Tensor, targets: Tensor, who: Tensor, voices: Tensor) -> dict[str, Tensor]:
    """Embeddings (B, E), targets (B, E) of length one, speakers (B,), their directions (K, E) -> losses by name."""
    units = F.normalize(embeddings, dim=1)
    result = {"target": 4 * (1 - (units * targets).sum(1)).mean()}
    result["relation"] = 4 * (units @ units.T - targets @ targets.T).square().mean()
    if bool((who >= 0).any()):
        known = who[who >= 0]
        cosines = units[who >= 0] @ F.normalize(voices, dim=1).T
        result["voice"] = 0.15 * F.cross_entropy(SCALE * (cosines - MARGIN * F.one_hot(known, len(voices))), known)
    return result


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    folder: Path = args.work / "runs" / args.name
    folder.mkdir(parents=True, exist_ok=True)
    material = Material(args.work / "cache")
    network = build(args.work / "trunk.safetensors").train()
    voices = nn.Parameter(torch.randn(material.speakers, 192) * 0.1)
    groups = [
        {"params": list(network.encoder.parameters()), "lr": args.trunk_rate, "base": args.trunk_rate},
        {"params": [*network.pooling.parameters(), voices], "lr": args.rate, "base": args.rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02, betas=(0.9, 0.98))
    average = {key: value.clone() for key, value in network.state_dict().items()}
    step, checkpoint = 0, folder / "checkpoint.pt"
    told = {key: value for key, value in vars(args).items() if key not in ("work", "threads")}
    if checkpoint.exists():
        before = json.loads((folder / "arguments.json").read_text())
        if {**before, "steps": args.steps} != told:  # more steps may follow, anything else is another run
            raise ValueError(f"{folder} holds a run of {before}; give this one another --name")
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"], strict=True)
        voices.data.copy_(state["voices"])
        optimizer.load_state_dict(state["optimizer"])
        average, step = state["average"], state["step"]

    def save() -> None:
        state = {
            "network": network.state_dict(), "voices": voices.data, "optimizer": optimizer.state_dict(),
            "average": average, "step": step,
        }  # fmt: skip
        torch.save(state, folder / "checkpoint.tmp")
        (folder / "checkpoint.tmp").replace(checkpoint)

    write_json(folder / "arguments.json", told)
    began = saved = time.monotonic()
    sums: dict[str, float] = {}
    while step < args.steps:
        rng = np.random.default_rng([args.seed, step])
        rows = rng.choice(len(material.crops), args.batch, replace=False)
        logs, targets, who = material.batch(rng, rows)
        share = min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = float(group["base"] * share)
        parts = losses(embed(network, logs), targets, who, voices)
        optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 2.0)  # type: ignore[attr-defined]
        optimizer.step()
        step += 1
        decay = min(0.99, step / (step + 20))
        for key, value in network.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        for key, part in parts.items():
            sums[key] = sums.get(key, 0.0) + part.item()
        if step % 25 == 0:
            shown = " ".join(f"{key} {value / 25:.3f}" for key, value in sums.items())
            print(f"{step}/{args.steps} {(time.monotonic() - began) / 60:.1f} min  {shown}", flush=True)
            sums = {}
        if time.monotonic() - saved > 120:
            save()
            saved = time.monotonic()
    save()
    save_file(average, str(folder / "final.tmp"))
    (folder / "final.tmp").replace(folder / "final.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", default="voice", help="of the run: the folder WORK/runs/<name>")
    parser.add_argument("--steps", type=int, default=1900)
    parser.add_argument("--batch", type=int, default=48, help="crops a step, of 1.5 to 3 seconds")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--trunk-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
