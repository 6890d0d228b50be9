"""Train a tiny WavLM (4 layers of 64) with MHFA from scratch on three languages, and test on unseen recordings.

    python -m benchmarks.train_tiny --data ../shared/data/speech

The data are Spanish, French and Russian prompts of two sources that have all three languages, so that a source does not
reveal the language; a fifth of the recordings of each language is held out. Speakers are not: each language has a few
of its own, so the result shows that training works, not how well it generalises to new speakers.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from time import process_time, time

import torch

from knn_cli.networks.conversion import convert
from knn_cli.training.recipe_reader import parse
from knn_cli.training.trainer import train

LANGUAGES = ("es", "fr", "ru")
SOURCES = ("asterisk-core", "tuxpaint")
RECIPE = {
    "encoder": {
        "name": "wavlm",
        "convolutions": [[64, 10, 10], [64, 8, 8], [64, 4, 4]],
        "channels": 64,
        "blocks": 4,
        "heads": 4,
        "inner": 256,
        "position_kernel": 32,
        "position_groups": 4,
    },
    "pooling": {"name": "mhfa", "heads": 8, "compression": 32, "dimension": 64},
    "head": {"name": "aam-softmax", "scale": 16.0, "margin": 0.1},
    "data": {"label": "group", "seconds": 2.0, "held_out": 0.2, "clips": 1920},
    "augment": {"gain_decibels": 6.0},
    "optimizer": {"rate": 2e-3},
    "schedule": {"warmup": 1, "final_rate": 1e-4},
    "loop": {"batch": 32, "clip": 1.0},
}


def main() -> None:
    """Train once and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.tsv")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with (arguments.data / "manifest.tsv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["source"] in SOURCES]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for row in rows:
            if row["language"] in LANGUAGES:
                link = work / "sound" / row["path"]
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((arguments.data / row["path"]).resolve())
        convert(work / "sound", work / "corpus.h5", label_rule="group/*/file")
        recipe = parse(
            {**RECIPE, "seed": arguments.seed, "schedule": {**RECIPE["schedule"], "epochs": arguments.epochs}}
        )
        start, processor = time(), process_time()
        done = train(
            work / "corpus.h5", work / "model", recipe, device="cpu", report=lambda epoch: print(epoch.line, flush=True)
        )
        minutes, busy = (time() - start) / 60, (process_time() - processor) / 60
    print("\n".join(done.lines[:-1]))
    print(f"time        {minutes:.1f} minutes, {busy:.1f} of processor time, {arguments.threads} threads")


if __name__ == "__main__":
    main()
