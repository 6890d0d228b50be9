"""The structure that docs/architecture.md draws, kept true: levels, light imports, registries, one word a thing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "knn_cli"

LEVELS = [
    {"errors", "types", "registry", "atomic", "__init__"},
    {"audio", "sound_writer", "store", "labels", "report", "timeline_writers", "kaldi"},
    {
        "across",
        "averaging",
        "bundle",
        "calibration",
        "channels",
        "classifier",
        "cleaning",
        "closed_set",
        "clustering",
        "convert",
        "density",
        "der",
        "drawing",
        "edits",
        "eaf",
        "evaluation",
        "evaluation_report",
        "evaluation_tables",
        "exchange",
        "figures",
        "figures_scores",
        "fitting",
        "glc",
        "linkage",
        "measuring",
        "metrics",
        "open_set",
        "page",
        "partition",
        "player",
        "plda",
        "report",
        "resampling",
        "segments",
        "smoothing",
        "spectral",
        "split",
        "splitting",
        "stitching",
        "sweep",
        "transforms",
        "trials",
        "turn_figure",
        "vbx",
        "voice_plda",
    },
    {
        "adapters",
        "masks",
        "recompute",
        "wavlm",
        "whisper",
        "dialects",
        "importers",
        "importers_segmentation",
        "importers_speaker",
        "importers_wavlm",
        "importers_whisper",
        "known_speakers",
        "checkpoints",
        "fbank",
        "ecapa",
        "resnet",
        "campplus",
        "xvector",
        "encoders",
        "pyannet",
        "powerset",
        "segmentation",
        "segmentation_head",
        "local_voices",
        "pooling",
        "pooling_statistics",
        "heads",
        "heads_sphere",
        "network",
        "silero",
        "vad",
        "workers",
        "embedder",
        "export",
        "_torchaudio",
        "recipe",
        "recipe_reader",
        "corpus",
        "augment",
        "batches",
        "tuning",
        "learner",
        "lineage",
        "processes",
        "snapshots",
        "assessing",
    },
    {
        "classification",
        "classifying",
        "diarization",
        "diarizing",
        "timeline",
        "describe",
        "evaluating",
        "pipeline",
        "present",
        "terminal",
        "training",
        "turn_outputs",
        "finishing",
    },
    {"options", "cli_recognition", "cli_classify", "cli_diarize", "cli", "__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# Rooms below level 3 that reach up: only inside functions, and only to build what a bundle or checkpoint names.
LAZY = {("bundle", "network"), ("convert", "export"), ("convert", "importers")}


def imports(room: str) -> dict[str, bool]:
    """Rooms that a room imports -> whether at module level (type checking aside)."""
    found: dict[str, bool] = {}
    tree = ast.parse((PACKAGE / f"{room}.py").read_text(encoding="utf-8"))
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in guarded and (node.module or "").startswith("knn_cli"):
            parts = (node.module or "").split(".")
            for name in [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]:
                if name in LEVEL:
                    found[name] = found.get(name, False) or id(node) in top
    return found


def test_every_room_has_a_level() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(LEVEL)


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_imports_point_down(room: str) -> None:
    up = {
        other
        for other, at_top in imports(room).items()
        if LEVEL[other] > LEVEL[room] and (at_top or (room, other) not in LAZY)
    }
    assert not up


def test_no_room_imports_itself_in_a_circle() -> None:
    graph = {room: {other for other, at_top in imports(room).items() if at_top} for room in LEVEL}
    done: set[str] = set()

    def visit(room: str, path: tuple[str, ...]) -> None:
        assert room not in path, " -> ".join((*path, room))
        if room not in done:
            for other in graph[room]:
                visit(other, (*path, room))
            done.add(room)

    for room in graph:
        visit(room, ())


def test_no_room_is_longer_than_a_reader_can_hold() -> None:
    long = {path.name: lines for path in PACKAGE.glob("*.py") if (lines := len(path.read_text().splitlines())) > 520}
    assert not long


@pytest.mark.parametrize("arguments", [["--help"], ["diarize", "--help"], ["--version"]])
def test_help_is_light(arguments: list[str]) -> None:
    """No torch, scipy or h5py behind the help, and under half a second of processor time."""
    script = f"""
import sys, time
from knn_cli.cli import main
sys.argv = ["knn", *{arguments!r}]
try:
    main()
except SystemExit as leave:
    heavy = [name for name in ("torch", "scipy", "h5py", "pandas", "numpy", "pyannote.core") if name in sys.modules]
    print(leave.code, heavy, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"


def test_diarize_imports_what_it_needs(example: Path, tmp_path: Path) -> None:
    """What only pictures, scores, other commands and other methods need costs as much time as all of a short file."""
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "knn_cli",
        "diarize",
        str(example),
        "-o",
        str(tmp_path / "a.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    heavy = {"matplotlib", "scipy.optimize", "scipy.special", "scipy.signal", "pandas", "torchaudio", "silero_vad"}
    assert "torch" in imported and not imported & {*heavy, "knn_cli.glc", "knn_cli.evaluation", "knn_cli.vbx"}


def test_nothing_happens_at_import() -> None:
    """Importing every room neither opens a file of ours, nor warns, nor changes torch's threads."""
    rooms = [f"knn_cli.{room}" for room in sorted(LEVEL) if room not in {"__main__", "__init__"}]
    script = f"""
import torch, warnings, importlib
before = torch.get_num_threads()
with warnings.catch_warnings(record=True) as seen:
    for room in {rooms!r}:
        importlib.import_module(room)
assert torch.get_num_threads() == before
assert not [w for w in seen if "knn_cli" in str(w.filename)], seen
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=PACKAGE.parent)
