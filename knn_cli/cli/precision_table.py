"""`knn info MODEL --precisions SOUND`: how near other precisions come to float32, on sound of one's own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from knn_cli.cli.console import console
from knn_cli.core.errors import KnnError


def write(models: Sequence[str], sound: Sequence[Path], as_json: bool) -> None:
    """Write a line for each precision of each model: cosines over clips, and processor seconds; fp32 is 1."""
    from knn_cli.cli import output
    from knn_cli.embedding.files import expand_folders
    from knn_cli.embedding.precision_comparison import compare_precisions, speech_clips
    from knn_cli.networks import bundle

    if not models:
        raise KnnError("There is no model to measure.", "Name models: `knn info voice --precisions meeting.wav`.")
    if not as_json:
        typer.echo("model\tprecision\tleast cosine\tmean cosine\tclips\tCPU seconds, fp32 = 1")
    for name in models:
        found = bundle.find(name)
        for figures in compare_precisions(found, speech_clips(expand_folders(sound), found.rate)):
            if isinstance(figures, KnnError):
                console.note(f"{found.name}: {figures.message}")
                continue
            cells = {"precision": figures.precision, "least": round(figures.least, 5), "mean": round(figures.mean, 5)}
            facts = {"model": found.name, **cells, "clips": figures.clips, "cost": round(figures.cost, 2)}
            if as_json:
                output.json_line(sys.stdout, facts)
            else:
                typer.echo("\t".join(map(str, facts.values())))
