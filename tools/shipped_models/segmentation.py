"""Train the segmentation head: powerset classes from frames of the voice encoder, on simulated conversations.

    python -m tools.shipped_models.segmentation --work WORK [--steps 3400] [--name segmentation]

Resumes from WORK/runs/<name>/checkpoint.pt; every batch comes from a generator seeded by (seed, step). Draws from the
shards of `training.segmentation_data` that there are by then. The result is WORK/runs/<name>/final.safetensors, a
moving average of the weights.

A frame's target is a mixture of the truth and of what segmentation-3.0 says (Hinton et al. 2015, "Distilling the
knowledge in a neural network"), speakers in the order that suits the truth best (Plaquet and Bredin 2023). Frames with
more than two speakers, or with one who is not among the window's three busiest, do not count.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from knn_cli.diarization.segmentation import WINDOW_FRAMES
from knn_cli.networks import bundle
from knn_cli.networks.segmenters.encoder_lstm import SegmentationHead
from knn_cli.networks.segmenters.powerset import permuted_classes, powerset, to_powerset
from tools.shipped_models.data import write_json
from tools.shipped_models.segmentation_data import busiest, columns

ORDERS = torch.tensor([permuted_classes(order) for order in permutations(range(3))])  # (6, 7)
CLASSES = powerset(3, 2)
HEAD_ARGS: dict[str, Any] = {"layers": 3, "channels": 384}
TEACHING = 0.4  # share of the teacher in a target


class Material:
    """Windows of the shards that there are."""

    def __init__(self, folder: Path, first: int = 0, last: int | None = None) -> None:
        self.folder, self.first, self.last = folder, first, last
        self.shards: list[tuple[NDArray[np.float16], dict[str, NDArray[np.generic]]]] = []
        self.read()

    def read(self) -> None:
        """Take in shards that have appeared."""
        for path in sorted(self.folder.glob("[0-9][0-9][0-9].npz"))[self.first : self.last][len(self.shards) :]:
            with np.load(path) as table:
                self.shards.append(
                    (np.load(path.with_suffix(".npy"), mmap_mode="r"), {key: table[key] for key in table})
                )

    def window(self, rng: np.random.Generator, length: int) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        """Frames (2 * length, F) and targets (length, 7), rows of zeros where nothing is to be learnt."""
        while True:
            frames, table = self.shards[int(rng.integers(len(self.shards)))]
            offsets = table["offsets"]
            one = int(rng.integers(len(offsets) - 1))
            if offsets[one + 1] - offsets[one] >= length:
                break
        start = int(rng.integers(offsets[one], offsets[one + 1] - length + 1))
        return cut(frames, table, start, length)


def cut(
    frames: NDArray[np.float16], table: dict[str, NDArray[np.generic]], start: int, length: int
) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """See `Material.window`."""
    part = slice(start, start + length)
    truth = table["truth"][part]
    chosen = busiest(truth)
    kept = columns(truth, chosen)
    target = np.zeros((length, len(CLASSES)), dtype=np.float32)
    target[np.arange(length), to_powerset(torch.from_numpy(kept)).numpy()] = 1 - TEACHING
    taught, who = table["taught"][part].astype(np.float32), table["who"][part]
    change = np.flatnonzero(np.any(np.diff(who, axis=0), axis=1)) + 1
    for piece in np.split(np.arange(length), change):
        local = who[piece[0]]
        place = {int(column): number for number, column in enumerate(chosen) if column >= 0}
        for number, one in enumerate(CLASSES):
            mine = tuple(sorted(place[int(local[k])] for k in one if int(local[k]) in place))
            target[piece, CLASSES.index(mine)] += TEACHING * taught[piece, number]
    target[truth.sum(1) != kept.sum(1)] = 0  # somebody who is not among the three
    target[truth.sum(1) > 2] = 0
    return frames[2 * start : 2 * (start + length)], target


def loss_of(logs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of (B, T, 7) log-probabilities, speakers of each window in their best order."""
    count = target.sum((1, 2)).clamp_min(1.0)
    each = torch.stack([-(target * logs[..., order]).sum((1, 2)) for order in ORDERS])  # (6, B)
    return (each.min(0).values / count).mean()


def error_of(logs: Tensor, target: Tensor) -> tuple[float, float]:
    """(wrong speaker frames, speaker frames) of windows, speakers in their best order; frames of no target left out."""
    table = torch.tensor([[float(k in one) for k in range(3)] for one in CLASSES])
    counted = target.sum(2) > 0
    truth, said = table[target.argmax(2)], table[logs.argmax(2)]  # (B, T, 3)
    wrong = []
    for order in permutations(range(3)):
        moved = said[..., list(order)]
        both = torch.minimum(truth, moved).sum(2)
        wrong.append((torch.maximum(truth.sum(2), moved.sum(2)) - both).mul(counted).sum(1))
    return float(torch.stack(wrong).min(0).values.sum()), float(truth.sum(2).mul(counted).sum())


def rate_at(step: int, steps: int, rate: float) -> float:
    """Warm-up over 100 steps, then half a cosine."""
    return rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (0.5 + 0.5 * float(np.cos(np.pi * step / steps))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", default="segmentation")
    parser.add_argument("--steps", type=int, default=3400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="models/voice")
    parser.add_argument("--out", type=Path, default=Path("models/segmentation"))
    parser.add_argument("--card", type=Path, default=Path("tools/shipped_models/card-segmentation.md"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    run = args.work / "runs" / args.name
    run.mkdir(parents=True, exist_ok=True)
    write_json(
        run / "arguments.json",
        {key: value for key, value in vars(args).items() if key not in ("work", "out", "card", "model")},
    )
    checked = Material(args.work / "segmentation", 0, 1)  # a shard for checking, of the same voices
    material = Material(args.work / "segmentation", 1)
    head = SegmentationHead(**HEAD_ARGS)
    average = {key: value.clone() for key, value in head.state_dict().items()}
    optimizer = torch.optim.AdamW(head.parameters(), lr=args.rate, weight_decay=0.02)
    first = 0
    if (run / "checkpoint.pt").exists():
        kept = torch.load(run / "checkpoint.pt", weights_only=True)
        head.load_state_dict(kept["head"]), optimizer.load_state_dict(kept["optimizer"])
        average, first = kept["average"], kept["step"]
    began, losses = time.time(), []
    for step in range(first, args.steps):
        rng = np.random.default_rng([args.seed, step])
        torch.manual_seed(int(rng.integers(2**62)))
        if step % 50 == 0:
            material.read()
        length = WINDOW_FRAMES if rng.random() < 0.85 else int(rng.integers(25, WINDOW_FRAMES))
        batch = [
            material.window(rng, length)
            for _ in range(args.batch * WINDOW_FRAMES // length if length < 100 else args.batch)
        ]
        frames = torch.from_numpy(np.stack([one for one, _ in batch])).float()
        target = torch.from_numpy(np.stack([one for _, one in batch]))
        loss = loss_of(head([frames * (1 + 0.1 * torch.randn_like(frames[:, :1]))]), target)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, args.steps, args.rate)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        decay = min(0.997, (step + 1) / (step + 10))
        for key, value in head.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            torch.save(
                {"head": head.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step + 1},
                run / "checkpoint.tmp",
            )
            (run / "checkpoint.tmp").replace(run / "checkpoint.pt")
            print(
                json.dumps(
                    {
                        "step": step + 1,
                        "loss": round(float(np.mean(losses[-200:])), 4),
                        "error": check(average, checked),
                        "shards": len(material.shards),
                        "minutes": round((time.time() - began) / 60, 1),
                    }
                ),
                flush=True,
            )
    save_file({key: value.contiguous() for key, value in average.items()}, str(run / "final.safetensors"))
    arguments = json.loads((run / "arguments.json").read_text())
    print(export(run / "final.safetensors", arguments, args.out, args.model, args.card).fingerprint)


def export(weights: Path, arguments: dict[str, object], out: Path, model: str, card: Path) -> bundle.Bundle:
    """The bundle of trained weights, in half precision; it names the embedder whose encoder it listens to."""
    config = {
        "name": out.name,
        "kind": "segmenter",
        "audio": {"rate": 16000, "scale": 1.0},
        "segmenter": {"name": "encoder-lstm", "args": HEAD_ARGS},
        "embedder": bundle.find(model).fingerprint,
        "training": {"script": "tools/shipped_models/run.sh", "arguments": arguments},
    }
    state = {key: value.half() for key, value in load_file(str(weights)).items()}
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    made = bundle.write(out, config, state=state, card=text, force=True)
    bundle.load_segmenter(made)  # strict: what was written can be read
    return made


def check(weights: dict[str, Tensor], material: Material) -> float:
    """Share of speaker time that is wrong inside windows, in percent."""
    head = SegmentationHead(**HEAD_ARGS)
    head.load_state_dict(weights)
    head.eval()
    wrong = total = 0.0
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for _ in range(4):
            batch = [material.window(rng, WINDOW_FRAMES) for _ in range(32)]
            logs = head([torch.from_numpy(np.stack([one for one, _ in batch])).float()])
            one, all_of = error_of(logs, torch.from_numpy(np.stack([one for _, one in batch])))
            wrong, total = wrong + one, total + all_of
    return round(100 * wrong / total, 2)


if __name__ == "__main__":
    main()
