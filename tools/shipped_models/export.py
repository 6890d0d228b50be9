"""Export the trained speaker network as a bundle, with embeddings centred on the mean of training speakers.

    python -m tools.shipped_models.export --work WORK [--run voice] [--out models/voice] [--card CARD]

The weights are kept in half precision and checked by loading the bundle back.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from knn_cli.networks import bundle
from knn_cli.networks.network import Network
from tools.shipped_models.voice import ENCODER_ARGS, POOLING_ARGS, CropDataset, build, embed

BATCH, CROPS = 32, 4000


def centre(network: Network, dataset: CropDataset) -> None:
    """Subtract the mean over training speakers from all embeddings, in the bias of the last layer.

    The mean is over unwarped real crops of single speakers, clean and augmented by rooms, noise and channels.
    """
    rng = np.random.default_rng(3)
    rows = rng.permutation(np.flatnonzero(dataset.who.numpy() >= 0))[:CROPS]
    embeddings, batches = [], []
    for first in range(0, len(rows), BATCH):
        logs, _, _, speakers = dataset.batch(rng, rows[first : first + BATCH])
        with torch.inference_mode():
            embeddings.append(embed(network, logs))
        batches.append(speakers)
    x, labels = torch.cat(embeddings), torch.cat(batches)
    mean = torch.stack([x[labels == speaker].mean(0) for speaker in labels.unique()]).mean(0)
    with torch.no_grad():
        network.pooling.pooling_fc.bias.sub_(mean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", default="voice")
    parser.add_argument("--out", type=Path, default=Path("models/voice"))
    parser.add_argument("--card", type=Path, default=Path("tools/shipped_models/card-voice.md"))
    args = parser.parse_args()
    folder: Path = args.work / "runs" / args.run
    config = {
        "name": args.out.name,
        "kind": "embedder",
        "audio": {"rate": 16000, "scale": 1.0},
        "encoder": {"name": "whisper", "args": ENCODER_ARGS},
        "pooling": {"name": "mhfa", "args": POOLING_ARGS},
        "views": {"speaker": [0, POOLING_ARGS["dimension"]]},
        "training": {
            "script": "tools/shipped_models/run.sh",
            "arguments": json.loads((folder / "arguments.json").read_text()),
        },
    }
    torch.set_num_threads(1)
    network = build(None)
    network.load_state_dict(load_file(str(folder / "final.safetensors")), strict=True)
    centre(network.eval(), CropDataset(args.work / "cache"))
    state = {key: value.half() for key, value in network.state_dict().items()}
    exported = bundle.write(args.out, config, state=state, card=args.card.read_text(encoding="utf-8"), force=True)
    bundle.load_network(exported)  # checks that the bundle loads
    print(exported.fingerprint)


if __name__ == "__main__":
    main()
