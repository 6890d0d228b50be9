"""Whisper-base as the language bundle runs it: weights and products of 8 bits, and half a second of silence at the end.

    python -m tools.shipped_models.language_network --model WORK/whisper-base --out WORK/whisper-base-int8

The choices are measured by `benchmarks.whisper` and in docs/research.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from knn_cli.networks import bundle
from knn_cli.networks.bundle_weights import read_weights
from knn_cli.networks.int8 import quantised

SILENCE = 0.5  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--merge-after", type=int, help="average neighbouring frames after so many blocks: faster")
    parser.add_argument("--silence", type=float, default=SILENCE)
    args = parser.parse_args()
    source = bundle.find(args.model)
    args_of_encoder = {**source.config["encoder"]["args"], "silence": args.silence, "merge_after": args.merge_after}
    config = source.settings | {
        "name": args.out.name,
        "encoder": {**source.config["encoder"], "args": args_of_encoder},
        "products": bundle.INT8,
    }
    state = quantised(read_weights(source.folder / bundle.WEIGHTS, source.config["weights_sha256"]))
    bundle.write(args.out, config, state=state, card=source.card, force=True)


if __name__ == "__main__":
    main()
