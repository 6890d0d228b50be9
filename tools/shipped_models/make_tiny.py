"""Write tests/data/tiny-test: a tiny WavLM with MHFA and seeded random weights, for tests of the commands."""

from __future__ import annotations

from pathlib import Path

import torch

from knn_cli.networks import bundle
from knn_cli.networks.construction import build_network

CONFIG = {
    "name": "tiny-test",
    "kind": "embedder",
    "audio": {"rate": 16000, "scale": 1.0},
    "encoder": {
        "name": "wavlm",
        "args": {
            "convolutions": [[16, 10, 5], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 2, 2], [16, 2, 2]],
            "channels": 32,
            "blocks": 2,
            "heads": 4,
            "inner": 64,
            "position_kernel": 16,
            "position_groups": 4,
            "buckets": 32,
            "distance": 80,
        },
    },
    "pooling": {"name": "mhfa", "args": {"heads": 4, "compression": 16, "dimension": 24}},
    "training": {"made_by": "tools/shipped_models/make_tiny.py", "data": "none: seeded random weights"},
}
CARD = "# tiny-test\n\nRandom weights for tests. It knows nothing: do not use it for anything else.\n"

if __name__ == "__main__":
    torch.manual_seed(0)
    network = build_network(CONFIG)
    folder = Path(__file__).resolve().parents[2] / "tests" / "data" / "tiny-test"
    written = bundle.write(folder, CONFIG, state=network.state_dict(), card=CARD, force=True)
    print(f"{written.folder}: {written.fingerprint}, {(written.folder / bundle.WEIGHTS).stat().st_size} bytes")
