"""Train the segmentation head: powerset classes from frames of the `voice` encoder, on simulated conversations.

    python -m tools.shipped_models.segmentation --work WORK [--steps 3400] [--name segmentation]

Resumes from WORK/runs/<name>/checkpoint.pt; every batch is drawn with a generator seeded by (seed, step), from the
shards that `tools.shipped_models.segmentation_data` has written so far. The result is
WORK/runs/<name>/final.safetensors, a moving average of the weights.

The target of a frame is a mixture of the reference and of the probabilities of segmentation-3.0 (Hinton et al. 2015,
"Distilling the knowledge in a neural network"), with speakers in the order that fits the reference best (Plaquet and
Bredin 2023). Frames with more than two speakers, or with a speaker who is not among the three most active of the
window, are ignored.
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
TEACHER_WEIGHT = 0.4  # weight of the teacher in a target


class WindowDataset:
    """Windows drawn from the shards that have been written so far."""

    def __init__(self, folder: Path, first: int = 0, last: int | None = None) -> None:
        self.folder, self.first, self.last = folder, first, last
        self.shards: list[tuple[NDArray[np.float16], dict[str, NDArray[np.generic]]]] = []
        self.read()

    def read(self) -> None:
        """Load new shards."""
        for path in sorted(self.folder.glob("[0-9][0-9][0-9].npz"))[self.first : self.last][len(self.shards) :]:
            with np.load(path) as table:
                self.shards.append(
                    (np.load(path.with_suffix(".npy"), mmap_mode="r"), {key: table[key] for key in table})
                )

    def window(self, rng: np.random.Generator, length: int) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        """Frames (2 * length, F) and targets (length, 7), rows of zeros for ignored frames."""
        while True:
            frames, table = self.shards[int(rng.integers(len(self.shards)))]
            offsets = table["offsets"]
            index = int(rng.integers(len(offsets) - 1))
            if offsets[index + 1] - offsets[index] >= length:
                break
        start = int(rng.integers(offsets[index], offsets[index + 1] - length + 1))
        return cut(frames, table, start, length)


def cut(
    frames: NDArray[np.float16], table: dict[str, NDArray[np.generic]], start: int, length: int
) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """A window of a shard and its targets: see `WindowDataset.window`."""
    part = slice(start, start + length)
    truth = table["truth"][part]
    chosen = busiest(truth)
    kept = columns(truth, chosen)
    target = np.zeros((length, len(CLASSES)), dtype=np.float32)
    target[np.arange(length), to_powerset(torch.from_numpy(kept)).numpy()] = 1 - TEACHER_WEIGHT
    taught, who = table["taught"][part].astype(np.float32), table["who"][part]
    change = np.flatnonzero(np.any(np.diff(who, axis=0), axis=1)) + 1
    for block in np.split(np.arange(length), change):
        local = who[block[0]]
        place = {int(column): number for number, column in enumerate(chosen) if column >= 0}
        for number, speakers in enumerate(CLASSES):
            active = tuple(sorted(place[int(local[k])] for k in speakers if int(local[k]) in place))
            target[block, CLASSES.index(active)] += TEACHER_WEIGHT * taught[block, number]
    target[truth.sum(1) != kept.sum(1)] = 0  # a speaker outside the three most active
    target[truth.sum(1) > 2] = 0
    return frames[2 * start : 2 * (start + length)], target


def permutation_invariant_loss(logs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of (B, T, 7) log-probabilities, with the best order of speakers in each window."""
    count = target.sum((1, 2)).clamp_min(1.0)
    each = torch.stack([-(target * logs[..., order]).sum((1, 2)) for order in ORDERS])  # (6, B)
    return (each.min(0).values / count).mean()


def speaker_error(logs: Tensor, target: Tensor) -> tuple[float, float]:
    """(wrong, total) speaker frames of windows with the best order of speakers; frames without target are ignored."""
    table = torch.tensor([[float(k in speakers) for k in range(3)] for speakers in CLASSES])
    counted = target.sum(2) > 0
    truth, predicted = table[target.argmax(2)], table[logs.argmax(2)]  # (B, T, 3)
    wrong = []
    for order in permutations(range(3)):
        permuted = predicted[..., list(order)]
        both = torch.minimum(truth, permuted).sum(2)
        wrong.append((torch.maximum(truth.sum(2), permuted.sum(2)) - both).mul(counted).sum(1))
    return float(torch.stack(wrong).min(0).values.sum()), float(truth.sum(2).mul(counted).sum())


def learning_rate(step: int, steps: int, rate: float, warm: int = 100) -> float:
    """Linear warm-up over `warm` steps, then half a cosine."""
    return rate * min(1.0, (step + 1) / warm) * (0.02 + 0.98 * (0.5 + 0.5 * float(np.cos(np.pi * step / steps))))


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
    validation = WindowDataset(args.work / "segmentation", 0, 1)  # a validation shard with the same speakers
    dataset = WindowDataset(args.work / "segmentation", 1)
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
            dataset.read()
        length = WINDOW_FRAMES if rng.random() < 0.85 else int(rng.integers(25, WINDOW_FRAMES))
        batch = [
            dataset.window(rng, length)
            for _ in range(args.batch * WINDOW_FRAMES // length if length < 100 else args.batch)
        ]
        frames = torch.from_numpy(np.stack([window for window, _ in batch])).float()
        target = torch.from_numpy(np.stack([targets for _, targets in batch]))
        loss = permutation_invariant_loss(head([frames * (1 + 0.1 * torch.randn_like(frames[:, :1]))]), target)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
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
                        "error": check(average, validation),
                        "shards": len(dataset.shards),
                        "minutes": round((time.time() - began) / 60, 1),
                    }
                ),
                flush=True,
            )
    save_file({key: value.contiguous() for key, value in average.items()}, str(run / "final.safetensors"))
    arguments = json.loads((run / "arguments.json").read_text())
    print(export(run / "final.safetensors", arguments, args.out, args.model, args.card).fingerprint)


def export(weights: Path, arguments: dict[str, object], out: Path, model: str, card: Path) -> bundle.Bundle:
    """Write the bundle of trained weights in half precision; it names the embedder whose encoder it uses."""
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
    exported = bundle.write(out, config, state=state, card=text, force=True)
    bundle.load_segmenter(exported)  # checks that the bundle loads
    return exported


def check(weights: dict[str, Tensor], dataset: WindowDataset) -> float:
    """Wrong speaker time inside windows, in percent of speaker time."""
    head = SegmentationHead(**HEAD_ARGS)
    head.load_state_dict(weights)
    head.eval()
    wrong = total = 0.0
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for _ in range(4):
            batch = [dataset.window(rng, WINDOW_FRAMES) for _ in range(32)]
            logs = head([torch.from_numpy(np.stack([window for window, _ in batch])).float()])
            errors, frames = speaker_error(logs, torch.from_numpy(np.stack([targets for _, targets in batch])))
            wrong, total = wrong + errors, total + frames
    return round(100 * wrong / total, 2)


if __name__ == "__main__":
    main()
