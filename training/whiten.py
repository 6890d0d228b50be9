"""Fold a within-speaker whitening of the speaker view into a run's last linear layer.

    python -m training.whiten --work WORK --run b --out b-white

The view's mean over training speakers is taken off and directions in which crops of one speaker differ are shrunk
(within-class covariance normalisation, Hatch et al. 2006), so that a plain cosine afterwards scores as if that had
been done to every embedding. Only speakers that training heard are used. The language view stays as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from training.data import Material
from training.evaluate import load
from training.teach import several_voices
from training.train import SPEAKER


def whitening(x: NDArray[np.float64], speakers: NDArray[np.int64], shrinkage: float) -> NDArray[np.float64]:
    """Inverse square root (D, D) of the shrunk covariance within speakers, every speaker counting the same."""
    names, which, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    means = np.stack([x[which == k].mean(0) for k in range(len(names))])
    rest = (x - means[which]) / np.sqrt(counts[which] - 1)[:, None]
    within = rest.T @ rest / len(names)
    within = (1 - shrinkage) * within + shrinkage * np.trace(within) / len(within) * np.eye(len(within))
    values, vectors = np.linalg.eigh(within)
    result: NDArray[np.float64] = vectors @ np.diag(values**-0.5) @ vectors.T
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--out", required=True, help="name of the run that is written")
    parser.add_argument("--shrinkage", type=float, default=0.1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    material = Material(args.work / "cache")
    network = load(args.work, args.run)
    rng = np.random.default_rng(0)
    views, speakers = [], []
    with torch.inference_mode():
        for number, (speaker, indices) in enumerate(material.by_speaker.items()):
            if several_voices(speaker):
                continue
            for index in indices[:: -(-len(indices) // 4)]:
                for _ in range(6 if len(indices) == 1 else 2):
                    logs = material.real.crop(index, int(rng.integers(50, 110)) * 3, rng)[0].astype(np.float32)
                    views.append(network(torch.from_numpy(logs).exp()[None])[0][0, SPEAKER].double().numpy())
                    speakers.append(number)
    x, who = np.stack(views), np.array(speakers)
    matrix = torch.from_numpy(whitening(x, who, args.shrinkage))
    centre = torch.from_numpy(np.stack([x[who == k].mean(0) for k in np.unique(who)]).mean(0))
    source, folder = args.work / "runs" / args.run, args.work / "runs" / args.out
    state = load_file(str(source / "final.safetensors"))
    weight, bias = state["pooling.pooling_fc.weight"], state["pooling.pooling_fc.bias"]
    weight[SPEAKER] = (matrix @ weight[SPEAKER].double()).float()
    bias[SPEAKER] = (matrix @ (bias[SPEAKER].double() - centre)).float()
    scale = float(1 / (matrix.diagonal().mean()))  # about as long as it was
    weight[SPEAKER] *= scale
    bias[SPEAKER] *= scale
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, str(folder / "final.safetensors"))
    shutil.copyfile(source / "checkpoint.pt", folder / "checkpoint.pt")
    plain = json.loads((source / "arguments.json").read_text()) | {"whitened": args.shrinkage}
    (folder / "arguments.json").write_text(json.dumps(plain))


if __name__ == "__main__":
    main()
