"""A Whisper language identifier in 32, 16 and 8 bits, and with merged frames: size, time, memory, faithfulness.

    knn convert CTRANSLATE2 models/whisper-base
    python -m benchmarks.whisper models/whisper-base [--ctranslate2 CTRANSLATE2] [--corpus FOLDER] [--files FOLDER]

MODEL is a bundle of floats. It is written in each variant to a temporary folder. One thread computes the language of a
clip of 10.6 s of noise, once with each variant in turn, `--runs` times; CPU seconds are medians, since other processes
of a machine disturb single runs. CTranslate2 (the folder of its model.bin; needs the package) gets the features of the
same clip with the same silence after it, not padded to 30 s. Loading and peak memory are those of a process that
labels one clip of 20 s.

With --corpus (a folder with manifest.tsv: path, language, family) all variants label a few recordings of each of
--languages and family: how often the best of these languages is right (mean over families of the mean over languages),
how often the best of all labels is that of the first variant, and by how much the log-probabilities of these languages,
less their mean, differ from it, on average. With --files, those audio files go through `classify_files`, and the CPU
seconds of its parts are told apart.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from knn_cli.audio import reading, speech_regions
from knn_cli.core.values import Floats
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks import bundle, int8
from knn_cli.networks.bundle_weights import read_weights
from knn_cli.networks.encoders.whisper import WhisperMel
from knn_cli.networks.network import Network
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.classify_files import classify_files

VARIANTS: dict[str, tuple[str, bool, int | None]] = {  # weights, int8 products, merge_after
    "float32": ("float32", False, None),
    "float16": ("float16", False, None),
    "int8 weights": ("int8", False, None),
    "int8": ("int8", True, None),
    **{f"int8, merged after {after}": ("int8", True, after) for after in (3, 2, 1)},
}
SECONDS, LONGEST = 10.6, 20.0
SILENT_GAP = 0.3  # seconds kept around speech


def write_variants(source: bundle.Bundle, folder: Path) -> dict[str, bundle.Bundle]:
    """The source's network in every variant."""
    state = {
        key: value.float()
        for key, value in int8.dequantised(
            read_weights(source.folder / bundle.WEIGHTS, source.config["weights_sha256"])
        ).items()
    }
    weights = {
        "float32": state,
        "float16": {key: value.half() for key, value in state.items()},
        "int8": int8.quantised(state),
    }
    result = {}
    for name, (kind, products, after) in VARIANTS.items():
        config = {key: value for key, value in source.config.items() if key not in {"schema", "weights_sha256"}}
        config.pop("products", None)
        args = {**config["encoder"]["args"], "merge_after": after}
        config |= {"encoder": {"name": "whisper", "args": args}} | ({"products": bundle.INT8} if products else {})
        result[name] = bundle.write(folder / name.replace(" ", "-"), config, state=weights[kind])
    return result


def child(folder: str) -> None:
    """Print the CPU seconds of loading and the peak memory in MB, before and after labelling a clip of 20 s."""
    torch.set_num_threads(1)
    before = time.process_time()
    embedder = Embedder(folder, device="cpu")
    seconds = time.process_time() - before
    embedder.scores(embedder([noise(20.0)]))
    status = Path("/proc/self/status").read_text()  # getrusage counts what the process was before it became this one
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps([seconds, peak / 1024]))


def noise(seconds: float) -> Floats:
    samples: Floats = np.random.default_rng(0).normal(0, 0.06, round(16000 * seconds)).astype(np.float32)
    return samples


def ctranslate2_detector(folder: Path, kind: str, silence: float) -> Callable[[], Any]:
    """A function that computes the languages of the clip, with `silence` seconds after it, with CTranslate2."""
    import ctranslate2

    model = ctranslate2.models.Whisper(str(folder), compute_type=kind, inter_threads=1, intra_threads=1)
    mel = WhisperMel()
    clip = torch.from_numpy(np.pad(noise(SECONDS), (0, round(silence * mel.rate))))[None]

    def run() -> Any:
        with torch.inference_mode():
            features = mel.features(mel.powers(clip))
        array = np.ascontiguousarray(features.transpose(1, 2).numpy())
        return model.detect_language(ctranslate2.StorageView.from_array(array))

    return run


def cpu_seconds(functions: dict[str, Callable[[], Any]], runs: int) -> dict[str, NDArray[np.float64]]:
    """CPU seconds (runs,) of each function, called in turn, after one call that does not count."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for run in range(runs + 1):
        for name, function in functions.items():
            before = time.process_time()
            function()
            if run:
                times[name].append(time.process_time() - before)
    return {name: np.array(values) for name, values in times.items()}


def corpus_clips(folder: Path, languages: list[str], per_cell: int) -> list[tuple[dict[str, str], Floats]]:
    """The speech of a few recordings of each language and family, up to 20 s of each."""
    with (folder / "manifest.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    cells: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for number in np.random.default_rng(0).permutation(len(rows)):
        if rows[number]["language"] in languages:
            cells[rows[number]["language"], rows[number]["family"]].append(rows[number])
    clips = []
    for row in (row for key in sorted(cells) for row in cells[key][:per_cell]):
        sound = reading.read(folder / row["path"])
        (regions,) = speech_regions.of_clips([sound])
        parts = [sound.samples[round(16000 * each.start) : round(16000 * each.end)] for each in regions]
        speech = np.concatenate(parts) if parts else sound.samples
        clips.append((row, speech[: round(16000 * LONGEST)]))
    return clips


def faithfulness(
    models: dict[str, bundle.Bundle], clips: list[tuple[dict[str, str], Floats]]
) -> dict[str, list[float]]:
    """Accuracy in the closed set, share of the first variant's answers, and mean difference of log-probabilities."""
    labels = next(iter(models.values())).head_labels
    closed = [labels.index(label) for label in sorted({row["language"] for row, _ in clips})]
    result: dict[str, list[float]] = {}
    first: NDArray[np.float64] | None = None
    for name, model in models.items():
        embedder = Embedder(model, device="cpu", batch_seconds=0.01)
        scores = embedder.scores(embedder([clip for _, clip in clips])).astype(np.float64)
        inside = scores[:, closed] - np.logaddexp.reduce(scores[:, closed], axis=1, keepdims=True)
        right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        for (row, _), best in zip(clips, inside.argmax(1), strict=True):
            right[row["family"]][row["language"]].append(labels[closed[best]] == row["language"])
        accuracy = np.mean([np.mean([np.mean(each) for each in of.values()]) for of in right.values()])
        first = scores if first is None else first
        exact = first[:, closed] - np.logaddexp.reduce(first[:, closed], axis=1, keepdims=True)
        same = np.mean(scores.argmax(1) == first.argmax(1))
        centred = (inside - inside.mean(1, keepdims=True)) - (exact - exact.mean(1, keepdims=True))
        result[name] = [float(accuracy), float(same), float(np.abs(centred).mean())]
    print(f"{len(clips)} recordings of {len(closed)} languages")
    return result


def whole_path(model: bundle.Bundle, files: list[Path]) -> str:
    """CPU seconds of `classify_files`, of its network, and of its search for speech."""
    spent = {"network": 0.0}
    forward = Network.forward

    def timed(self: Network, *args: Any) -> Any:
        before = time.process_time()
        result = forward(self, *args)
        spent["network"] += time.process_time() - before
        return result

    Network.forward = timed  # type: ignore
    try:
        start = time.process_time()
        classifier = Classifier(model.folder, device="cpu")
        classifier.embedder  # noqa: B018
        loaded = time.process_time()
        count = sum(1 for _ in classify_files(files, classifier))
        end = time.process_time()
    finally:
        Network.forward = forward  # type: ignore
    return (
        f"{count} files: imports {start:.2f} s, loading {loaded - start:.2f}, classifying {end - loaded:.2f}, of which "
        f"the network {spent['network']:.2f}; classifying / network {(end - loaded) / spent['network']:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--ctranslate2", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--languages", default="bg,ca,cs,da,de,el,en,es,fr,it,nl,pl,ro,ru,zh")
    parser.add_argument("--per-cell", type=int, default=2)
    parser.add_argument("--files", type=Path)
    parser.add_argument("--variant", default="int8", help="of --files")
    parser.add_argument("--runs", type=int, default=11)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        models = write_variants(bundle.find(args.model), Path(folder))
        if args.files is not None:  # first, so that imports are those of a fresh process
            print(whole_path(models[args.variant], sorted(each for each in args.files.iterdir() if each.is_file())))
        embedders = {name: Embedder(model, device="cpu") for name, model in models.items()}
        functions: dict[str, Callable[[], Any]] = {
            name: partial(embedder, [noise(SECONDS)]) for name, embedder in embedders.items()
        }
        silence = bundle.find(args.model).config["encoder"]["args"].get("silence", 0.0)
        if args.ctranslate2 is not None:
            for kind in ("int8", "float32"):
                functions[f"CTranslate2 {kind}"] = ctranslate2_detector(args.ctranslate2, kind, silence)
        times = cpu_seconds(functions, args.runs)
        base = times.get("CTranslate2 int8", times["float32"])
        figures = {}
        if args.corpus is not None:
            figures = faithfulness(models, corpus_clips(args.corpus, args.languages.split(","), args.per_cell))
        print("| | MB | load, CPU s | peak MB | CPU s a clip | of the reference | closed set | same | difference |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
        for name, values in times.items():
            cells = [""] * 3
            if name in models:
                command = [
                    sys.executable,
                    "-c",
                    f"from benchmarks.whisper import child; child({str(models[name].folder)!r})",
                ]
                loading, peak = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
                size = (models[name].folder / bundle.WEIGHTS).stat().st_size
                cells = [f"{size / 1e6:.1f}", f"{loading:.2f}", f"{peak:.0f}"]
            cells += [f"{np.median(values):.3f}", f"{np.median(values / base):.2f}"]
            cells += [f"{figure:.3f}" for figure in figures.get(name, [])] or [""] * 3
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
