"""Train the small network: stage A on synthetic speech, stage B on synthetic and real speech together.

    python -m training.train --work WORK --name a --steps 2000
    python -m training.train --work WORK --name b-kde --init a --stage b --leave-out kde --steps 600

Resumes from WORK/runs/<name>/checkpoint.pt. Every batch comes from a generator seeded by (seed, step), so a run that
was interrupted ends as one that was not. The result is WORK/runs/<name>/final.safetensors, a moving average of
the weights, with the keys `encoder.*` and `pooling.*` of the shipped network.

Losses, all on one embedding of 320 values whose slices are the views:
  speaker [0:192]    1 - cosine to CAM++'s centred embedding of the whole clean recording, and additive margin softmax
                     over training voices (a warped twin is a voice of its own);
  language [192:320] additive margin softmax over languages, and supervised contrastive loss, in which real and
                     synthetic speech of one language attract each other;
  frames             phone targets, on synthetic speech.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from knn_cli.registry import ENCODERS, POOLINGS
from training.data import LANGUAGES, Batch, Material

ENCODER = "fbank-tdnn"
ENCODER_ARGS = {"channels": 192, "hidden": 256, "dilations": [1, 1, 2, 2, 3, 3, 4, 4]}
POOLING_ARGS = {"heads": 12, "compression": 64, "dimension": 320}
SPEAKER, LANGUAGE = slice(0, 192), slice(192, 320)


class Trained(nn.Module):
    """Encoder and pooling, as they are shipped."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ENCODERS.build(ENCODER, **ENCODER_ARGS)
        self.pooling = POOLINGS.build(
            "mhfa", layers=self.encoder.layers, channels=self.encoder.channels, **POOLING_ARGS
        )

    def forward(self, powers: Tensor) -> tuple[Tensor, Tensor]:
        """Mel powers (B, N, 80) -> embeddings (B, 320) and the last layer (B, T, C)."""
        layers = list(self.encoder.encode(powers))
        return self.pooling(layers), layers[-1]


class Heads(nn.Module):
    """What is thrown away after training."""

    def __init__(self, voices: int, phones: int) -> None:
        super().__init__()
        self.language = nn.Parameter(torch.randn(len(LANGUAGES), 128) * 0.1)
        self.voice = nn.Parameter(torch.randn(voices, 192) * 0.1)
        self.phone = nn.Linear(ENCODER_ARGS["channels"], phones)  # type: ignore[arg-type]


def margin_softmax(x: Tensor, classes: Tensor, target: Tensor, scale: float, margin: float) -> Tensor:
    """Additive margin softmax (Wang et al. 2018, eq. 6): x (B, D), classes (K, D), target (B,) -> mean loss."""
    cosines = F.normalize(x, dim=1) @ F.normalize(classes, dim=1).T
    return F.cross_entropy(scale * (cosines - margin * F.one_hot(target, len(classes))), target)


def contrast(x: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2): x (B, D), target (B,) -> mean over those with a mate."""
    x = F.normalize(x, dim=1)
    same = (target[:, None] == target) & ~torch.eye(len(x), dtype=torch.bool)
    logits = (x @ x.T / temperature).masked_fill(torch.eye(len(x), dtype=torch.bool), -1e9)
    mates = same.sum(1)
    losses = -(logits.log_softmax(1) * same).sum(1) / mates.clamp_min(1)
    return losses[mates > 0].mean() if bool((mates > 0).any()) else x.sum() * 0


def losses(network: nn.Module, heads: Heads, batch: Batch, args: argparse.Namespace) -> dict[str, Tensor]:
    """Weighted losses by name; their sum is what is minimised."""
    embeddings, last = network(batch.powers)
    result: dict[str, Tensor] = {}
    named = batch.language >= 0
    if bool(named.any()):
        views, target = embeddings[named][:, LANGUAGE], batch.language[named]
        result["language"] = args.language * margin_softmax(views, heads.language, target, 16.0, 0.1)
        if args.contrast:
            result["contrast"] = args.contrast * contrast(views, target, 0.15)
    synthetic = batch.phones[:, 0] >= 0
    if bool(synthetic.any()):
        steps = torch.arange(last.shape[1]) * 3 + 1  # the middle mel frame of each frame
        phones = batch.phones[synthetic][:, steps]
        result["phone"] = args.phone * F.cross_entropy(heads.phone(last[synthetic]).flatten(0, 1), phones.flatten())
    taught = ~batch.teacher[:, 0].isnan()
    if bool(taught.any()):
        views = embeddings[taught][:, SPEAKER]
        result["teacher"] = args.teacher * (1 - F.cosine_similarity(views, batch.teacher[taught])).mean()
    known = batch.voice >= 0
    if bool(known.any()):
        views = embeddings[known][:, SPEAKER]
        result["voice"] = args.voice * margin_softmax(views, heads.voice, batch.voice[known], 24.0, 0.15)
    return result


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    folder: Path = args.work / "runs" / args.name
    folder.mkdir(parents=True, exist_ok=True)
    plain = {key: value for key, value in vars(args).items() if key != "work"}
    (folder / "arguments.json").write_text(json.dumps(plain))
    leave_out = tuple(args.leave_out.split(",")) if args.leave_out else ()
    material = Material(args.work / "cache", leave_out, ("gcompris",) if args.stage == "a" else ())
    network, heads = Trained(), Heads(2 * len(material.speakers), material.phone_count)
    if args.init:
        start = torch.load(args.work / "runs" / args.init / "checkpoint.pt", weights_only=True)
        network.load_state_dict(start["average"], strict=True)
        heads.load_state_dict(start["heads"], strict=True)
    for parameter in heads.parameters():
        parameter.grad = torch.zeros_like(parameter)  # a batch without a head's labels leaves it at zero
    if args.ranks > 1:
        meeting = f"file://{(folder / 'meeting').resolve()}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=args.rank, world_size=args.ranks)
    average = {k: v.clone() for k, v in network.state_dict().items()}
    parameters = [*network.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, weight_decay=0.02, betas=(0.9, 0.98))
    step = 0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"], strict=True)
        heads.load_state_dict(state["heads"], strict=True)
        optimizer.load_state_dict(state["optimizer"])
        average, step = state["average"], state["step"]

    def save() -> None:
        if args.rank > 0:
            return
        state = {
            "network": network.state_dict(), "heads": heads.state_dict(), "optimizer": optimizer.state_dict(),
            "average": average, "step": step,
        }  # fmt: skip
        torch.save(state, folder / "checkpoint.tmp")
        (folder / "checkpoint.tmp").replace(checkpoint)
        save_file(average, str(folder / "final.tmp"))
        (folder / "final.tmp").replace(folder / "final.safetensors")

    began = saved = time.monotonic()
    sums: dict[str, float] = {}
    while step < args.steps:
        if step % 200 == 0:
            material.reload_teacher()
        rng = np.random.default_rng([args.seed, args.stage == "b", step])
        length = int(rng.integers(args.shortest // 3, args.longest // 3 + 1)) * 3
        rng = np.random.default_rng([args.seed, args.stage == "b", step, args.rank])
        clips = args.frames // length
        shares = (0.8, 0.0, 0.2) if args.stage == "a" else (0.4, 0.35, 0.25)
        synthetic, labelled, voices = (round(clips * share) for share in shares)
        batch = material.batch(rng, length, synthetic, labelled, voices)
        warm = min(1.0, (step + 1) / 100)
        rate = args.rate * warm * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        parts = losses(network, heads, batch, args)
        optimizer.zero_grad(set_to_none=False)
        torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        if args.ranks > 1:
            gradients = nn.utils.parameters_to_vector([p.grad for p in parameters])  # type: ignore[misc]
            torch.distributed.all_reduce(gradients)
            place = 0
            for parameter in parameters:
                size = parameter.numel()
                parameter.grad = (gradients[place : place + size] / args.ranks).view_as(parameter)
                place += size
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        step += 1
        decay = min(0.995, step / (step + 20))
        for key, value in network.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        for key, part in parts.items():
            sums[key] = sums.get(key, 0.0) + part.item()
        if step % 50 == 0:
            shown = " ".join(f"{key} {value / 50:.3f}" for key, value in sums.items())
            print(f"{step}/{args.steps} {(time.monotonic() - began) / 60:.1f} min  {shown}", flush=True)
            sums = {}
        if time.monotonic() - saved > 60:
            save()
            saved = time.monotonic()
    save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the run: the folder WORK/runs/<name>")
    parser.add_argument("--stage", choices=("a", "b"), default="a")
    parser.add_argument("--init", help="run whose averaged weights this one starts from")
    parser.add_argument("--leave-out", default="", help="families that are not heard, with commas between")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--frames", type=int, default=14400, help="mel frames in a batch")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--contrast", type=float, default=0.5)
    parser.add_argument("--shortest", type=int, default=150, help="mel frames of the shortest crop")
    parser.add_argument("--longest", type=int, default=450, help="mel frames of the longest crop")
    parser.add_argument("--language", type=float, default=1.0)
    parser.add_argument("--phone", type=float, default=0.5)
    parser.add_argument("--teacher", type=float, default=3.0)
    parser.add_argument("--voice", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1, help="processes that train together, started one by one")
    parser.add_argument("--rank", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
