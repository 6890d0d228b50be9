"""Train the speaker embedding: the first blocks of the trunk and MHFA, distilled from CAM++ with augmentation.

    python -m tools.shipped_models.voice --work WORK [--name voice] [--steps 3300] [--start RUN]

Resumes from WORK/runs/<name>/checkpoint.pt. Every batch is drawn with a generator seeded by (seed, step), so an
interrupted run ends with the same weights. The result is WORK/runs/<name>/final.safetensors, a moving average of the
weights.

The target of a crop is the teacher embedding of the same clean crop, minus the mean of the first FIRST targets. Losses:
1 - cosine to the target; squared difference between the cosines within a batch and those of the teacher; squared
difference between a linear map of the frames of the last layer and the frames that the teacher pools (Romero et al.
2015, "FitNets"; the map is dropped afterwards); and additive margin softmax (Wang et al. 2018, eq. 6) over single
speakers whose crop is not warped. Step s draws from the first FIRST + GROWTH s crops, so that
`tools.shipped_models.teach` may still be running.
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

from knn_cli.core.registry import ENCODERS, POOLINGS
from knn_cli.networks.encoders.whisper import Whisper
from knn_cli.networks.network import Network
from tools.shipped_models.augment import augment, warp_matrix
from tools.shipped_models.data import Corpus, is_multi_speaker, read_manifest, write_json
from tools.shipped_models.teach import LENGTH, corpora

ENCODER_ARGS = {"blocks": 2, "final_norm": False, "level": 0.97, "normalised": True}
POOLING_ARGS = {"heads": 16, "compression": 64, "dimension": 192}
SCALE, MARGIN = 24.0, 0.15
FIRST, GROWTH = 2000, 12
PLAIN_SHARE = 0.5  # of clips that get only a random channel response


def build(trunk: Path | None) -> Network:
    """The network, with encoder weights from the first blocks of the trunk."""
    encoder = ENCODERS.build("whisper", **ENCODER_ARGS)
    if trunk is not None:
        weights = load_file(str(trunk))
        encoder.load_state_dict({key: weights[key] for key in encoder.state_dict()}, strict=True)
    pooling = POOLINGS.build("mhfa", layers=encoder.layers, channels=encoder.channels, **POOLING_ARGS)
    return Network(encoder, pooling)


def embed(network: Network, logs: Tensor) -> Tensor:
    """Natural log mel powers (B, N, 80) -> embeddings (B, E)."""
    return embed_with_frames(network, logs)[0]


def embed_with_frames(network: Network, logs: Tensor) -> tuple[Tensor, Tensor]:
    """Natural log mel powers (B, N, 80) -> embeddings (B, E), and the encoder's last layer (B, N / 2, C)."""
    encoder: Whisper = network.encoder
    layers = list(encoder.encode(logs.exp()))
    embeddings: Tensor = network.pooling(iter(layers))
    return embeddings, layers[-1]


class CropDataset:
    """Crops with teacher targets and speaker indices, -1 for warped, synthetic and multi-speaker crops."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.crops = np.load(cache / "crops.npy")
        self.frames = np.load(cache / "crops-frames.npy", mmap_mode="r")
        self.corpora, self.noise = corpora(cache, "mel"), Corpus(cache, "mel-noise")
        rows = read_manifest(cache / "reels.tsv")
        names = sorted({row["speaker"] for row in rows if not is_multi_speaker(row["speaker"])})
        self.speakers = len(names)
        numbers = {name: number for number, name in enumerate(names)}
        self.who = torch.tensor(
            [
                numbers.get(rows[int(index)]["speaker"], -1) if corpus == 0 and warp == 1 else -1
                for corpus, index, _, warp in self.crops
            ]
        )
        self.read()

    def read(self) -> None:
        """Load the targets that are done so far, centred on the mean of the first FIRST crops."""
        taught = np.load(self.cache / "crops-taught.npy")
        done = ~np.isnan(taught[:, 0])
        self.ready = len(done) if done.all() else int(done.argmin())
        if self.ready < min(FIRST, len(done)):
            raise ValueError(
                f"{self.ready} crops have targets, {FIRST} are needed to begin: run tools.shipped_models.teach"
            )
        self.targets = F.normalize(torch.from_numpy(taught - taught[:FIRST].mean(0)), dim=1)

    def wait(self, step: int) -> int:
        """The number of crops that step `step` draws from; waits until so many have targets."""
        wanted = min(len(self.crops), FIRST + GROWTH * step)
        while self.ready < wanted:
            time.sleep(20)
            self.read()
        return wanted

    def batch(self, rng: np.random.Generator, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of crops `rows` (B,): log mel powers (B, N, 80) after augmentation, targets (B, 192), frames, speakers (B,).

        The teacher's frames are (B, N / 2, A), NaN for synthetic crops, whose versions for student and teacher may
        differ by a few frames.
        """
        length = 2 * int(rng.integers(LENGTH // 4, LENGTH // 2 + 1))
        logs, frames = [], []
        for row, (corpus, index, at, warp) in zip(rows, self.crops[rows], strict=True):
            recording = self.corpora[int(corpus)].whole(int(index))
            later = 2 * int(rng.integers((LENGTH - length) // 2 + 1))  # even, as a teacher frame is two frames long
            first = min(int(at) + later, len(recording) - length)
            crop = torch.from_numpy(recording[first : first + length].astype(np.float32))
            logs.append(crop if warp == 1 else crop @ warp_matrix(warp))
            taught = self.frames[row, later // 2 : (later + length) // 2]
            frames.append(taught if corpus == 0 else np.full_like(taught, np.nan))
        augmented = augment(torch.stack(logs), self.noise, rng, warp=0.0, plain=PLAIN_SHARE)
        return augmented, self.targets[rows], torch.from_numpy(np.stack(frames)).float(), self.who[rows]


def losses(
    embeddings: Tensor, targets: Tensor, mapped: Tensor, frames: Tensor, who: Tensor, speaker_weights: Tensor
) -> dict[str, Tensor]:
    """Losses by name.

    embeddings (B, E), targets (B, E) of unit length; mapped frames and teacher frames (B, T, A); speakers (B,), -1 if
    unknown, and softmax weights of speakers (K, E).
    """
    units = F.normalize(embeddings, dim=1)
    result = {"target": 4 * (1 - (units * targets).sum(1)).mean()}
    aligned = ~frames[:, 0, 0].isnan()
    result["frames"] = 2 * (mapped[aligned] - frames[aligned]).square().mean()
    result["relation"] = 4 * (units @ units.T - targets @ targets.T).square().mean()
    if bool((who >= 0).any()):
        known = who[who >= 0]
        cosines = units[who >= 0] @ F.normalize(speaker_weights, dim=1).T
        result["speaker"] = 0.15 * F.cross_entropy(
            SCALE * (cosines - MARGIN * F.one_hot(known, len(speaker_weights))), known
        )
    return result


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    folder: Path = args.work / "runs" / args.name
    folder.mkdir(parents=True, exist_ok=True)
    dataset = CropDataset(args.work / "cache")
    network = build(args.work / "trunk.safetensors").train()
    if args.start:
        start = load_file(str(args.work / "runs" / args.start / "final.safetensors"))
        network.load_state_dict(start, strict=True)
    speaker_weights = nn.Parameter(torch.randn(dataset.speakers, 192) * 0.1)
    to_frames = nn.Linear(network.encoder.channels, dataset.frames.shape[2])
    groups = [
        {"params": list(network.encoder.parameters()), "lr": args.trunk_rate, "base": args.trunk_rate},
        {
            "params": [*network.pooling.parameters(), *to_frames.parameters(), speaker_weights],
            "lr": args.rate,
            "base": args.rate,
        },
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02, betas=(0.9, 0.98))
    average = {key: value.clone() for key, value in network.state_dict().items()}
    step, checkpoint = 0, folder / "checkpoint.pt"
    arguments = {key: value for key, value in vars(args).items() if key not in ("work", "threads")}
    if checkpoint.exists():
        before = json.loads((folder / "arguments.json").read_text())
        if {**before, "steps": args.steps} != arguments:  # only the number of steps may change
            raise ValueError(f"{folder} holds a run with other arguments: {before}; choose another --name")
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"], strict=True)
        speaker_weights.data.copy_(state["voices"])
        to_frames.load_state_dict(state["to_frames"], strict=True)
        optimizer.load_state_dict(state["optimizer"])
        average, step = state["average"], state["step"]

    def save() -> None:
        state = {
            "network": network.state_dict(), "voices": speaker_weights.data, "to_frames": to_frames.state_dict(),
            "optimizer": optimizer.state_dict(), "average": average, "step": step,
        }  # fmt: skip
        torch.save(state, folder / "checkpoint.tmp")
        (folder / "checkpoint.tmp").replace(checkpoint)

    write_json(folder / "arguments.json", arguments)
    began = saved = time.monotonic()
    sums: dict[str, float] = {}
    while step < args.steps:
        rng = np.random.default_rng([args.seed, step])
        rows = rng.choice(dataset.wait(step), args.batch, replace=False)
        logs, targets, frames, who = dataset.batch(rng, rows)
        share = min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = float(group["base"] * share)
        embeddings, layer = embed_with_frames(network, logs)
        parts = losses(embeddings, targets, to_frames(layer), frames, who, speaker_weights)
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
    parser.add_argument("--name", default="voice", help="name of the run, whose folder is WORK/runs/<name>")
    parser.add_argument("--steps", type=int, default=3300)
    parser.add_argument("--start", default="", help="start from the weights of this run instead of the trunk")
    parser.add_argument("--batch", type=int, default=48, help="crops per step, of 1.5 to 3 seconds")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--trunk-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
