"""Fine-tune pyannote's segmentation-3.0 on simulated meetings of training speakers, held close to what it was.

    python -m tools.shipped_models.finetune_segmentation --original BUNDLE --work WORK --name NAME --out FOLDER
        [--data ../shared/data] [--conversations 240] [--steps 200] [--rate 1e-4] [--weight 0.5] [--share 1]

The loss of a window is the cross-entropy of its powerset classes, with speakers in the order that fits best (Plaquet
and Bredin 2023), plus `weight` times the divergence from the original's class probabilities, so that what it knows of
real meetings stays. Filters and convolutions stay as they are. Frames with more than two speakers, or with a speaker
who is not among the three most active of the window, count for the divergence alone.

WORK/meetings keeps the conversations, WORK/runs/NAME a checkpoint from which a run goes on. The bundle has `share` of
the moving average of the trained weights and the rest of the original's.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from pyannote.core import Annotation
from torch import Tensor
from torch.nn import functional as F

from knn_cli.core.values import Floats
from knn_cli.formats.rttm import read_rttm, write_rttm
from knn_cli.networks import bundle
from knn_cli.networks.segmenters.powerset import permuted_classes, to_powerset
from knn_cli.networks.segmenters.pyannet import PyanNet
from tools.shipped_models.conversations import MEETING_SCENES, RATE, SpeakerRecordings, simulate
from tools.shipped_models.data import held_out_speakers, is_multi_speaker, read_manifest, write_json
from tools.shipped_models.segmentation_errors import active_speakers, blend, load

SEED = 15_001
FROZEN = ("normalize", "sinc", "convolutions", "norms")  # modules that are not trained
DECAY = 0.99  # of the moving average of the weights
EVERY = 25  # steps between checkpoints
WARM = 20  # steps in which the rate rises
ORDERS = torch.tensor([permuted_classes(order) for order in permutations(range(3))])  # (6, 7)


def busiest(truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The three most active columns of a window (T, S), -1 if there are fewer speakers."""
    seconds = truth.sum(0).astype(np.int64)
    order = np.argsort(-seconds, kind="stable")[:3]
    return np.where(seconds[order] > 0, order, -1)


def columns(truth: NDArray[np.uint8], chosen: NDArray[np.int64]) -> Floats:
    """(T, 3) float32: the chosen columns, zeros for -1."""
    return np.where(chosen >= 0, truth[:, chosen], 0).astype(np.float32)


def permutation_invariant_loss(logs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of (B, T, 7) log-probabilities, with the best order of speakers in each window."""
    count = target.sum((1, 2)).clamp_min(1.0)
    each = torch.stack([-(target * logs[..., order]).sum((1, 2)) for order in ORDERS])  # (6, B)
    return (each.min(0).values / count).mean()


def learning_rate(step: int, steps: int, rate: float, warm: int = 100) -> float:
    """Linear warm-up over `warm` steps, then half a cosine."""
    return rate * min(1.0, (step + 1) / warm) * (0.02 + 0.98 * (0.5 + 0.5 * float(np.cos(np.pi * step / steps))))


def write_conversations(data: Path, work: Path, count: int) -> Path:
    """Write seeded conversations of training speakers, every other one an excerpt of a meeting; existing ones stay."""
    folder = work / "meetings"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(count) if not (folder / f"{number:04d}.rttm").exists()]
    if not missing:
        return folder
    rows = read_manifest(data / "speech" / "manifest.tsv")
    names = {name for row in rows if not is_multi_speaker(name := row["speaker"])} - set(held_out_speakers(rows))
    recordings = SpeakerRecordings(data, work, names)
    for number in missing:
        generator = np.random.default_rng([SEED, number])
        if number % 2:
            size = int(generator.integers(3, 6))
            made = simulate(recordings, generator, count=size, seconds=150.0, excerpt=75.0, scenes=MEETING_SCENES)
        else:
            made = simulate(recordings, generator)
        path = folder / f"{number:04d}.flac"
        soundfile.write(path, made.samples, RATE)
        made.truth.uri = path.stem
        with path.with_suffix(".tmp").open("w", encoding="utf-8") as file:
            write_rttm(made.truth, file)
        path.with_suffix(".tmp").replace(path.with_suffix(".rttm"))
    return folder


class Windows:
    """Windows of a folder's recordings and their classes."""

    def __init__(self, folder: Path, count: int, network: PyanNet) -> None:
        self.size = round(network.duration * network.rate)
        self.network, self.frames = network, network.frames(self.size)
        self.recordings: list[tuple[NDArray[np.int16], Annotation]] = []
        for number in range(count):
            samples, _ = soundfile.read(folder / f"{number:04d}.flac", dtype="int16")
            if len(samples) >= self.size:
                truth = read_rttm(folder / f"{number:04d}.rttm").get(f"{number:04d}", Annotation())
                self.recordings.append((samples, truth))

    def draw(self, generator: np.random.Generator) -> tuple[Floats, Floats]:
        """Samples (S,) and targets (T, 7), rows of zeros for frames that are ignored."""
        samples, truth = self.recordings[int(generator.integers(len(self.recordings)))]
        first = int(generator.integers(len(samples) - self.size + 1))
        active = active_speakers(self.network, truth, first / self.network.rate, self.frames)
        return samples[first : first + self.size].astype(np.float32) / 32768, targets(active)


def targets(active: NDArray[np.bool_]) -> Floats:
    """(T, speakers) bool -> (T, 7) float32: 1 for the class of a frame, zeros where no class is right.

    Classes are those of the three most active speakers, of whom two speak at once.
    """
    padded = np.pad(active.astype(np.uint8), ((0, 0), (0, max(0, 3 - active.shape[1]))))
    kept = columns(padded, busiest(padded))
    table = F.one_hot(to_powerset(torch.from_numpy(kept)), 7).float().numpy()
    table[(padded.sum(1) != kept.sum(1)) | (kept.sum(1) > 2)] = 0
    return table


def divergence(logs: Tensor, original: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of (B, T, C) log-probabilities from the original's."""
    return F.kl_div(logs, original, log_target=True, reduction="none").sum(2).mean()


def train(original: PyanNet, dataset: Windows, run: Path, arguments: argparse.Namespace) -> PyanNet:
    """The moving average of the trained weights; goes on from the checkpoint of `run` if there is one."""
    network, average = blend(original, original, 0.0), blend(original, original, 0.0)
    for name in FROZEN:
        getattr(network, name).requires_grad_(False)
    trained = [value for value in network.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=arguments.rate, weight_decay=0.0)
    first = 0
    if (run / "checkpoint.pt").exists():
        kept = torch.load(run / "checkpoint.pt", weights_only=True)
        network.load_state_dict(kept["network"]), average.load_state_dict(kept["average"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["step"]
    network.train()
    began, losses = time.time(), []
    for step in range(first, arguments.steps):
        generator = np.random.default_rng([SEED, step])
        torch.manual_seed(int(generator.integers(2**62)))
        drawn = [dataset.draw(generator) for _ in range(arguments.batch)]
        waveforms = torch.from_numpy(np.stack([samples for samples, _ in drawn]))
        with torch.inference_mode():
            kept_classes = original(waveforms)
        logs = network(waveforms)
        entropy = permutation_invariant_loss(logs, torch.from_numpy(np.stack([classes for _, classes in drawn])))
        apart = divergence(logs, kept_classes.clone())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.rate, WARM)
        optimizer.zero_grad()
        (entropy + arguments.weight * apart).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append((entropy.item(), apart.item()))
        decay = min(DECAY, (step + 1) / (step + 10))
        for key, value in network.state_dict().items():
            average.state_dict()[key].lerp_(value, 1 - decay)
        if (step + 1) % EVERY == 0 or step + 1 == arguments.steps:
            state = {"network": network.state_dict(), "average": average.state_dict(), "step": step + 1}
            torch.save(state | {"optimizer": optimizer.state_dict()}, run / "checkpoint.tmp")
            (run / "checkpoint.tmp").replace(run / "checkpoint.pt")
            means = [round(float(value), 4) for value in np.mean(losses[-EVERY:], axis=0)]
            minutes = round((time.time() - began) / 60, 1)
            print(json.dumps({"step": step + 1, "loss, divergence": means, "minutes": minutes}), flush=True)
    return average.eval()


def export(network: PyanNet, original: bundle.Bundle, out: Path, arguments: dict[str, object]) -> bundle.Bundle:
    """Write the bundle: the original's config with the new weights and what was done to them."""
    config = {key: value for key, value in original.config.items() if key not in ("schema", "weights_sha256")}
    config |= {
        "name": out.name,
        "training": {
            "script": "tools/shipped_models/finetune_segmentation.py",
            "arguments": arguments,
            "from": original.fingerprint,
        },
    }
    card = (
        f"# {out.name}\n\npyannote's segmentation-3.0 (MIT), fine-tuned on simulated meetings; see "
        "tools/shipped_models/finetune_segmentation.py.\n"
    )
    return bundle.write(out, config, state=network.state_dict(), card=card, force=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--original", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--conversations", type=int, default=240)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--share", type=float, default=1.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = arguments.work / "runs" / arguments.name
    run.mkdir(parents=True, exist_ok=True)
    kept = {key: getattr(arguments, key) for key in ("conversations", "steps", "batch", "rate", "weight", "share")}
    write_json(run / "arguments.json", kept)
    original = load(arguments.original)
    folder = write_conversations(arguments.data, arguments.work, arguments.conversations)
    network = train(original, Windows(folder, arguments.conversations, original), run, arguments)
    found = bundle.find(arguments.original, segmenter=True)
    print(export(blend(original, network, arguments.share), found, arguments.out, kept).fingerprint)


if __name__ == "__main__":
    main()
