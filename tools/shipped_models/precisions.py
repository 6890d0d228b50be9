"""Write into the config of shipped bundles how near their embeddings in other precisions come to those in float32.

    python -m tools.shipped_models.precisions --data ../shared/data [--clips 48] [voice language]

The clips are 10 s of speech, one of each of so many recordings of different speakers. bfloat16 is computed by torch's
autocast also where the processor has no such products, and is slow there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from unittest.mock import patch

import numpy as np

from knn_cli.core.atomic import replacing
from knn_cli.core.errors import KnnError
from knn_cli.embedding.precision_comparison import CLIP_SECONDS, compare_precisions
from knn_cli.networks import bundle
from tools.shipped_models.data import read_16k, read_manifest


def clips(data: Path, count: int) -> list[np.ndarray]:
    """The first 10 s of recordings of different speakers, drawn at random."""
    size = round(CLIP_SECONDS * 16_000)
    rows = {
        row["speaker"]: row
        for row in read_manifest(data / "speech" / "manifest.tsv")
        if float(row["active_seconds"]) > 8
    }
    chosen = np.random.default_rng(0).permutation(sorted(rows))[:count]
    return [read_16k(data / "speech" / rows[speaker]["path"])[:size] for speaker in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[bundle.VOICE, bundle.LANGUAGE])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=48)
    arguments = parser.parse_args()
    sound = clips(arguments.data, arguments.clips)
    for name in arguments.models:
        found, cosines = bundle.find(name), {}
        with patch("knn_cli.embedding.embedder.has_bfloat16", return_value=True):
            for figures in compare_precisions(found, sound):
                if isinstance(figures, KnnError):
                    raise figures
                cosines[figures.precision] = {
                    "least": round(figures.least, 5),
                    "mean": round(figures.mean, 5),
                    "clips": figures.clips,
                }
                print(name, figures, flush=True)
        path = found.folder / bundle.CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        config["precision_cosines"] = {key: value for key, value in cosines.items() if key != "fp32"}
        with replacing(path) as part:
            part.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
