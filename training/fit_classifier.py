"""Fit the fifteen-language classifier of a bundle, and calibrate it on families that the fold's network never heard.

    python -m training.fit_classifier --work WORK --bundle models/small --folds b-tuxpaint b-kde ...

The classifier is fitted on the language view of all labelled recordings and of synthetic reels. Its calibration is
learned from the scores that `evaluate languages` kept for each fold: there network and classifier met neither the
speakers nor the channel, which is how a user's recordings will come. Held-out recordings of known families would
make it far too sure of itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from knn_cli import bundle
from knn_cli.calibration import Calibration
from knn_cli.classifier import write_classifier
from knn_cli.glc import GaussianLinearClassifier
from training.data import NO_LABELS, Corpus
from training.evaluate import SHRINKAGE, Array, at_most, balance, embed, fit_gaussians, macro_accuracy
from training.prepare import EXAM_LANGUAGES, read_manifest
from training.train import LANGUAGE, Trained


def fold_scores(work: Path, folds: list[str]) -> dict[str, tuple[Array, list[str]]]:
    """Scores (n, 15) and true labels of every fold's unheard family."""
    result = {}
    for fold in folds:
        with np.load(work / "runs" / fold / "scores.npz") as file:
            if file["classes"].tolist() != sorted(EXAM_LANGUAGES):
                raise ValueError(f"{fold} knows other classes")
            result[fold] = (file["scores"], file["truth"].tolist())
    return result


def calibrate(parts: list[tuple[Array, list[str]]]) -> Calibration:
    """One scale for all classes, learned on the pooled scores of several folds by cross-entropy.

    Every language of every fold weighs the same. Offsets a language are left at zero: each language has one or two
    voices in a fold, and offsets learned there were wrong on every other fold.
    """
    names = sorted(EXAM_LANGUAGES)
    chosen = [np.array([names.index(label) for label in labels]) for _, labels in parts]

    def loss(log_scale: float) -> float:
        total = 0.0
        for (scores, _), truth in zip(parts, chosen, strict=True):
            logs = log_softmax(np.exp(log_scale) * scores, axis=1)[np.arange(len(truth)), truth]
            total -= sum(logs[truth == k].mean() for k in np.unique(truth))
        return total

    found = minimize_scalar(loss, bounds=(-10.0, 2.0), method="bounded")
    return Calibration(float(np.exp(found.x)), np.zeros(len(names)))


def cross_validated(folds: dict[str, tuple[Array, list[str]]]) -> dict[str, float]:
    """Macro accuracy and balanced cross-entropy (bits) of each fold, calibrated on the others."""
    names = sorted(EXAM_LANGUAGES)
    result = {}
    for fold, (scores, truth) in folds.items():
        calibration = calibrate([part for other, part in folds.items() if other != fold])
        posteriors = calibration.posteriors(scores)
        result[f"{fold} accuracy"] = macro_accuracy([names[k] for k in posteriors.argmax(1)], truth)[0]
        true = posteriors[np.arange(len(truth)), [names.index(label) for label in truth]]
        bits = [-np.log2(true[np.array(truth) == label]).mean() for label in sorted(set(truth))]
        result[f"{fold} bits"] = float(np.mean(bits))
    for kind in ("accuracy", "bits"):
        result[f"mean {kind}"] = float(np.mean([v for k, v in result.items() if k.endswith(kind)]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=Path("models/small"))
    parser.add_argument("--folds", nargs="+", required=True, help="runs whose scores calibrate")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folds = fold_scores(args.work, args.folds)
    print(json.dumps(cross_validated(folds), indent=1))
    calibration = calibrate(list(folds.values()))

    made = bundle.find(args.bundle)
    state = load_file(str(args.bundle / bundle.WEIGHTS))
    network = Trained()
    network.load_state_dict(state, strict=True)
    network.eval()
    cache = args.work / "cache"
    rows = read_manifest(cache / "reels.tsv")
    usable = [i for i, r in enumerate(rows) if r["language"] in EXAM_LANGUAGES and r["family"] not in NO_LABELS]
    usable = at_most(usable, rows, 15)
    parts = [embed(network, Corpus(cache, "real"), usable)[:, LANGUAGE]]
    labels = [rows[i]["language"] for i in usable]
    weights = [balance([(rows[i]["language"], rows[i]["speaker"]) for i in usable])]
    for language in EXAM_LANGUAGES:
        parts.append(embed(network, Corpus(cache, f"synth-{language}"), list(range(40)))[:, LANGUAGE])
        labels += [language] * len(parts[-1])
        weights.append(balance([(language,)] * len(parts[-1])))
    classes, means, covariance = fit_gaussians(np.concatenate(parts), labels, np.concatenate(weights))
    classifier = GaussianLinearClassifier.restored(
        classes=np.array(classes),
        counts=np.array([labels.count(name) for name in classes]),
        means=means,
        covariance=covariance,
        priors=np.full(len(classes), 1 / len(classes)),
        balanced=True,
        shrinkage=SHRINKAGE,
    )
    meta = {
        "label": "group",
        "view": "language",
        "calibrated_on": "families of recordings that neither the fold's network nor its classifier had heard",
        "families": [fold.split("-", 1)[1] for fold in args.folds],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / bundle.CLASSIFIER
        write_classifier(path, classifier, calibration, meta)
        config = {k: v for k, v in made.config.items() if k not in ("schema", "weights_sha256")}
        config["labels"] = classes
        card = (args.bundle / bundle.CARD).read_text(encoding="utf-8")
        bundle.write(args.bundle, config, state=state, classifier=path, card=card, force=True)
    print(f"scale {calibration.scale:.4f}")


if __name__ == "__main__":
    main()
