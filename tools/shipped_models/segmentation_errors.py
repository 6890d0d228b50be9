"""How well a segmentation network does inside its windows, before any clustering.

    python -m tools.shipped_models.segmentation_errors BUNDLE [BUNDLE ...] --sets FOLDER [FOLDER ...] [--blend 0.25 0.5]

A FOLDER has NAME.flac with NAME.rttm. Windows of the network's duration begin every quarter of it; the local speakers
of each are matched to the reference's speakers as well as possible, so that errors are missed and false speech and
confusion inside windows, as a share of the reference's speaker time. With `--blend`, weights between those of the first
bundle and of each other one (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022) are measured too.
The tables are those of `benchmarks.folds`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyannote.core import Annotation
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.folds import markdown
from knn_cli.core.values import Floats
from knn_cli.formats.rttm import read_rttm
from knn_cli.networks import bundle
from knn_cli.networks.segmenters.powerset import to_multilabel
from knn_cli.networks.segmenters.pyannet import PyanNet
from tools.shipped_models.data import read_16k

BATCH = 16
Table = dict[str, dict[str, float]]


def load(model: str | Path) -> PyanNet:
    """The network of a bundle; ValueError for another kind of segmenter."""
    network = bundle.load_segmenter(bundle.find(model, segmenter=True))
    if not isinstance(network, PyanNet):
        raise ValueError(f"{model} is not a PyanNet")
    return network.eval()


def window_starts(network: PyanNet, samples: int) -> list[int]:
    """First samples of the windows of a recording of `samples`; a shorter one has a single window."""
    size = round(network.duration * network.rate)
    return list(range(0, max(1, samples - size + 1), size // 4))


def windows(network: PyanNet, samples: Floats) -> Floats:
    """(S,) -> (W, duration) float32, zeros after the end of the recording."""
    size = round(network.duration * network.rate)
    padded = np.pad(samples, (0, max(0, size - len(samples))))
    return np.stack([padded[start : start + size] for start in window_starts(network, len(samples))])


def active_speakers(network: PyanNet, truth: Annotation, start: float, frames: int) -> NDArray[np.bool_]:
    """(frames, speakers of `truth`) bool: who speaks in the middle of each frame, from `start` seconds on."""
    times = start + network.first_seconds + np.arange(frames) * network.step_seconds
    table = np.zeros((frames, len(truth.labels())), dtype=bool)
    for column, label in enumerate(truth.labels()):
        for span in truth.label_timeline(label):
            table[(times >= span.start) & (times < span.end), column] = True
    return table


def window_errors(reference: NDArray[np.bool_], found: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Missed, false and confused speaker frames of (T, K) and (T, L), and those of the reference, best matched."""
    alike = reference.T.astype(np.int64) @ found.astype(np.int64)
    rows, columns = linear_sum_assignment(alike, maximize=True)
    spoken, claimed = reference.sum(1), found.sum(1)
    missed, false = np.maximum(spoken - claimed, 0).sum(), np.maximum(claimed - spoken, 0).sum()
    confused = np.minimum(spoken, claimed).sum() - alike[rows, columns].sum()
    return np.array([missed, false, confused, spoken.sum()])


def classes(network: PyanNet, samples: Floats) -> Tensor:
    """(W, T, C) log-probabilities of a recording's windows."""
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in torch.from_numpy(windows(network, samples)).split(BATCH)])


def recording_errors(network: PyanNet, samples: Floats, truth: Annotation) -> NDArray[np.int64]:
    """Sums of `window_errors` over the windows of a recording."""
    logs = classes(network, samples)
    found = to_multilabel(logs, network.speakers, network.most, hard=True).numpy() > 0.5
    starts = [start / network.rate for start in window_starts(network, len(samples))]
    reference = [active_speakers(network, truth, start, logs.shape[1]) for start in starts]
    return np.sum([window_errors(*pair) for pair in zip(reference, found, strict=True)], axis=0)


def set_errors(network: PyanNet, folder: Path) -> dict[str, NDArray[np.int64]]:
    """`recording_errors` of each recording of a folder."""
    return {
        path.stem: recording_errors(
            network, read_16k(path), read_rttm(path.with_suffix(".rttm")).get(path.stem, Annotation())
        )
        for path in sorted(folder.glob("*.flac"))
    }


def blend(first: PyanNet, second: PyanNet, share: float) -> PyanNet:
    """A new network with weights between those of two, `share` of the second."""
    other = second.state_dict()
    state = {key: torch.lerp(value, other[key], share) for key, value in first.state_dict().items()}
    network = deepcopy(first)
    network.load_state_dict(state)
    return network


def describe(errors: Iterable[NDArray[np.int64]]) -> str:
    """Mean rates of recordings in percent: all, then missed, false and confused; then the pooled rate."""
    rows = np.array(list(errors), dtype=np.float64)
    missed, false, confused = (100 * rows[:, :3] / np.maximum(rows[:, 3:], 1)).mean(0)
    pooled = 100 * rows[:, :3].sum() / max(rows[:, 3].sum(), 1)
    return f"{missed + false + confused:.1f} ({missed:.1f}, {false:.1f}, {confused:.1f}), pooled {pooled:.1f}"


def candidates(models: Sequence[str], shares: Sequence[float]) -> dict[str, PyanNet]:
    """The networks that are measured, by name."""
    networks = {Path(model).name: load(model) for model in models}
    first = networks[Path(models[0]).name]
    for name, network in list(networks.items())[1:]:
        networks |= {f"{share:g} of {name}": blend(first, network, share) for share in shares}
    return networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--sets", type=Path, nargs="+", required=True)
    parser.add_argument("--blend", type=float, nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    networks = candidates(arguments.models, arguments.blend)
    for folder in arguments.sets:
        table: Table = {}
        print(f"\n## {folder}\n", flush=True)
        for name, network in networks.items():
            errors = set_errors(network, folder)
            print(f"{name}: {describe(errors.values())}", flush=True)
            table[name] = {key: float(row[:3].sum() / max(row[3], 1)) for key, row in errors.items()}
        print("\n" + markdown(table), flush=True)


if __name__ == "__main__":
    main()
