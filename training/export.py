"""Make the bundle of a trained run: network, config and card; the classifier comes with fit_classifier.py.

python -m training.export --work WORK --run b --out models/small --card training/card.md

The weights are checked by loading the bundle back.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from knn_cli import bundle
from training.train import ENCODER, ENCODER_ARGS, LANGUAGE, POOLING_ARGS, SPEAKER


def config(name: str, training: dict[str, Any]) -> dict[str, Any]:
    """The bundle's config.json, without what `bundle.write` adds."""
    return {
        "name": name,
        "kind": "embedder",
        "audio": {"rate": 16000, "scale": 1.0},
        "encoder": {"name": ENCODER, "args": ENCODER_ARGS},
        "pooling": {"name": "mhfa", "args": POOLING_ARGS},
        "views": {"speaker": [SPEAKER.start, SPEAKER.stop], "language": [LANGUAGE.start, LANGUAGE.stop]},
        "training": training,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--out", type=Path, default=Path("models/small"))
    parser.add_argument("--card", type=Path, help="text of README.md in the bundle")
    args = parser.parse_args()
    folder: Path = args.work / "runs" / args.run
    training = json.loads((folder / "arguments.json").read_text())
    made = bundle.write(
        args.out,
        config(args.out.name, {"script": "training/run.sh", "arguments": training}),
        state=load_file(str(folder / "final.safetensors")),
        card=args.card.read_text(encoding="utf-8") if args.card else "",
        force=True,
    )
    bundle.load_network(made)  # strict: what was written can be read
    print(made.fingerprint)


if __name__ == "__main__":
    main()
