"""Languages on a family of recordings that nothing heard, beside ablations and a baseline that hears the channel.

    python -m benchmarks.lid --work WORK [--seeds 3]

WORK is the folder of `tools/shipped_models/run.sh` after `tools.shipped_models.features`. For each family that is
left out: the pooling and the classifier of `tools.shipped_models.language`, trained without it on real and synthetic
speech (`mixed`), on real speech alone and on synthetic speech alone; the seeds of `mixed` together, which is what the
bundle is (`ensemble`); and Gaussian mixture supervectors with linear discriminant analysis on cepstra (Campbell et
al. 2006), which need scikit-learn. Accuracy is averaged over the languages that a family has, then over families;
intervals come from resampling languages and speakers. The ensemble and the supervectors also on a random tenth of all
recordings that they did not hear: the gap is the channel's. Choices were made while looking at the four families of
FOLDS; CHECKED are two more.

Calibration is cross-validated: each family is scored with the scale that the other families' scores gave; so is the
threshold below which a recording is of none of the fifteen languages, chosen for equal error on the other families
and on half of the languages outside the fifteen, and tried on this family and the other half. Scores stay in WORK/lid
(a run that was stopped goes on), and WORK/left-out-scores.npz for the bundle's calibration and its threshold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.special import logsumexp

from knn_cli.evaluation.metrics import cllr, cprimary, detection_llr, min_cprimary
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.open_set_threshold import choose_threshold
from tools.shipped_models.data import CHECKED, EXAM_LANGUAGES, FOLDS, Corpus
from tools.shipped_models.language import STEPS, TESTED, Array, Backend, Learner, Material, calibrate, embed, fit, train

Lines = dict[str, dict[str, float]]

SYSTEMS = {"mixed": (True, True), "real only": (True, False), "synthetic only": (False, True)}
DURATIONS = {"3 s": 75, "5 s": 125, "whole": None}
RANDOM = "random tenth"
OTHERS = "others"  # what a fold's network says of languages outside the fifteen


def supervectors(corpus: Corpus, numbers: Sequence[int], mixture: Any) -> Array:
    """(N, K D) means of a mixture adapted to each recording (relevance 16), less the mixture's own."""
    rows = []
    for number in numbers:
        x = cepstra(corpus, number)
        shares = mixture.predict_proba(x)  # (T, K)
        count = shares.sum(0)[:, None]
        shift = shares.T @ x / np.maximum(count, 1e-9) - mixture.means_
        rows.append((count / (count + 16) * shift / np.sqrt(mixture.covariances_)).ravel())
    return np.stack(rows)


def cepstra(corpus: Corpus, number: int) -> Array:
    """(T, 40) cepstra and their slopes of the louder half of a recording's frames."""
    logs = corpus.whole(number, 1200).astype(np.float64)
    static = dct(logs, norm="ortho", axis=1)[:, :20]
    x = np.hstack([static, np.gradient(static, axis=0)])
    loud = logsumexp(logs, axis=1)
    kept: Array = x[loud >= np.median(loud)]
    return kept


def baseline(material: Material, work: Path, heard: Sequence[int], tested: Sequence[int], seed: int) -> Array:
    """Scores (N, 15) of the supervector system."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.mixture import GaussianMixture

    corpus, rows = Corpus(work / "cache", "mel-real"), material.some(heard, 8)
    numbers = material.real.numbers
    rng = np.random.default_rng(seed)
    frames = np.concatenate([cepstra(corpus, numbers[n])[::10] for n in rows])
    mixture = GaussianMixture(64, covariance_type="diag", max_iter=15, random_state=seed, reg_covar=1e-3)
    mixture.fit(frames[rng.permutation(len(frames))[:40000]])
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    lda.fit(supervectors(corpus, [numbers[n] for n in rows], mixture), [material.rows[n]["language"] for n in rows])
    found = lda.predict_log_proba(supervectors(corpus, [numbers[n] for n in tested], mixture))
    scores = np.full((len(tested), len(EXAM_LANGUAGES)), -1e3)
    scores[:, [EXAM_LANGUAGES.index(each) for each in lda.classes_]] = np.maximum(found, -1e3)
    return scores


@cache
def trained(
    material: Material, heard: tuple[int, ...], synthetic: bool, seed: int, steps: int
) -> tuple[Learner, Backend]:
    """A pooling and its classifier; those that hear no family are the same for all folds."""
    learner = train(material, heard, synthetic, seed, steps)
    return learner, fit(material, learner, heard, synthetic)


def macro(right: Array, truth: NDArray[np.str_]) -> float:
    """Mean over languages of the share of recordings that are right."""
    return float(np.mean([right[truth == each].mean() for each in np.unique(truth)]))


def interval(
    parts: Sequence[tuple[Array, NDArray[np.str_], NDArray[np.str_]]], draws: int = 1000
) -> tuple[float, float]:
    """95 % interval of the mean over `parts` (right, truth, speaker) of their macro accuracies.

    Resampled: the languages of a part, then the speakers of each. With one speaker in a language nothing is left to
    resample there, so that the interval is still rather too narrow.
    """
    rng = np.random.default_rng(0)
    found = []
    cells = []
    for right, truth, who in parts:
        groups = []
        for each in np.unique(truth):
            _, which = np.unique(who[truth == each], return_inverse=True)
            groups.append((np.bincount(which, right[truth == each]), np.bincount(which).astype(float)))
        cells.append(groups)
    for _ in range(draws):
        means = []
        for groups in cells:
            accuracies = []
            for language in rng.integers(len(groups), size=len(groups)):
                sums, counts = groups[language]
                drawn = rng.integers(len(sums), size=len(sums))
                accuracies.append(sums[drawn].sum() / counts[drawn].sum())
            means.append(np.mean(accuracies))
        found.append(np.mean(means))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def scored(
    args: argparse.Namespace, material: Material, system: str, fold: str, seed: int
) -> tuple[dict[str, Array], NDArray[np.str_], NDArray[np.str_]]:
    """Scores by duration, languages and speakers of the fold's test; from WORK/lid where they are there already."""
    path = args.work / "lid" / str(args.steps) / f"{system}-{fold}-{seed}.npz".replace(" ", "-")
    if fold == RANDOM:
        long = (n for n, row in enumerate(material.rows) if n % 10 == 7 and float(row["seconds"]) >= 5)
        tested = material.some(long, TESTED)
        heard = [n for n in range(len(material.rows)) if n % 10 != 7]
    else:
        tested = material.tested(fold)
        heard = [n for n, row in enumerate(material.rows) if row["family"] != fold]
    truth = np.array([material.rows[n]["language"] for n in tested])
    who = np.array([material.rows[n]["speaker"] for n in tested])
    if not path.exists():
        if system == "supervectors":
            result = {"whole": baseline(material, args.work, heard, tested, seed)}
        else:
            real, synthetic = SYSTEMS[system]
            learner, backend = trained(material, tuple(heard) if real else (), synthetic, seed, args.steps)
            result = {
                name: backend.scores(embed(learner, material.real, tested, frames))
                for name, frames in DURATIONS.items()
            }
            result[OTHERS] = backend.scores(embed(learner, material.others, range(len(material.strange))))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path.with_suffix(".tmp.npz"), **result)  # type: ignore[arg-type]
        path.with_suffix(".tmp.npz").replace(path)
        right = np.array(EXAM_LANGUAGES)[result["whole"].argmax(1)] == truth
        print(f"  {system}, without {fold}, seed {seed}: {100 * macro(right, truth):.1f} %", flush=True)
    with np.load(path) as file:
        return {name: file[name] for name in file.files}, truth, who


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    material, names = Material.read(args.work), np.array(EXAM_LANGUAGES)
    report: dict[str, Any] = {}
    for system, duration in (
        *(("ensemble", duration) for duration in DURATIONS),
        *((system, "whole") for system in (*SYSTEMS, "supervectors")),
    ):
        more = {"ensemble": (RANDOM, *CHECKED), "mixed": (RANDOM, *CHECKED), "supervectors": (RANDOM,)}
        parts = {}
        for fold in (*FOLDS, *more.get(system, ())):
            found, truth, who = seeds(args, material, system, fold, duration)
            parts[fold] = (np.mean([names[scores.argmax(1)] == truth for scores in found], axis=0), truth, who)
        each = {fold: 100 * macro(right, truth) for fold, (right, truth, _) in parts.items()}
        line: dict[str, object] = {fold: round(value, 1) for fold, value in each.items()}
        for name, some in (("mean", FOLDS), ("mean of families not looked at", CHECKED)):
            if all(fold in parts for fold in some):
                edges = interval([parts[fold] for fold in some])
                line[name] = round(float(np.mean([each[fold] for fold in some])), 1)
                line[f"{name}, 95 %"] = [round(100 * edge, 1) for edge in edges]
        report[f"{system}, {duration}"] = line
        print(f"{system}, {duration}: {json.dumps(line)}", flush=True)
        if (system, duration) == ("ensemble", "whole"):
            right, truth = (np.concatenate([parts[fold][k] for fold in FOLDS]) for k in (0, 1))
            report["each language"] = {x: round(100 * float(right[truth == x].mean()), 1) for x in np.unique(truth)}
            report["pooled over families, mean over languages"] = round(100 * macro(right, truth), 1)
    report["calibration"], report["open set"] = calibration(args, material)
    print(json.dumps(report, indent=1))
    print("\n| left out | accuracy | Cprimary | minimum | loss | Cllr (bits) |\n|---|--:|--:|--:|--:|--:|")
    for fold, row in report["calibration"].items():
        share = f"{100 * row['accuracy']:.1f}" if "accuracy" in row else ""
        print(f"| {fold} | {share} | {row['actual']} | {row['least']} | {row['loss']} | {row['Cllr']} |")
    (args.work / "lid" / "report.json").write_text(json.dumps(report, indent=1))


def seeds(
    args: argparse.Namespace, material: Material, system: str, fold: str, key: str
) -> tuple[list[Array], NDArray[np.str_], NDArray[np.str_]]:
    """Scores of each seed, or of all seeds together for the "ensemble", with languages and speakers of the test."""
    several = [scored(args, material, "mixed" if system == "ensemble" else system, fold, n) for n in range(args.seeds)]
    found = [scores[key] for scores, _, _ in several]
    if system == "ensemble":  # the classifiers' log-likelihoods add up, as those of independent embeddings would
        found = [np.sum(found, axis=0)]
    return found, *several[0][1:]


def calibration(args: argparse.Namespace, material: Material) -> tuple[Lines, Lines]:
    """Costs and Cllr of each family, and of a random tenth, with a scale learnt on the others; then the open set.

    Keeps all scores, those of other languages too, for the bundle.
    """
    parts: dict[str, tuple[Array, list[str]]] = {}
    for fold in (*FOLDS, RANDOM):
        (whole,), truth, _ = seeds(args, material, "ensemble", fold, "whole")
        parts[fold] = (whole, truth.tolist())
    others = {fold: seeds(args, material, "ensemble", fold, OTHERS)[0][0] for fold in FOLDS}
    strange = np.array(material.strange)
    half = np.isin(strange, np.unique(strange)[::2])
    costs: Lines = {}
    opened: Lines = {}
    every: list[tuple[Array, list[int], Array, Array]] = []
    for fold, (scores, truth) in parts.items():
        rest = {key: value for key, value in parts.items() if key not in (fold, RANDOM)}
        fitted = calibrate(
            np.concatenate([part[0] for part in rest.values()]),
            [each for part in rest.values() for each in part[1]],
            [key for key, part in rest.items() for _ in part[1]],
        )
        columns = [EXAM_LANGUAGES.index(each) for each in truth]
        right = np.array(EXAM_LANGUAGES)[scores.argmax(1)] == np.array(truth)
        share = {"accuracy": macro(right, np.array(truth)), "scale": fitted.scale}
        costs[fold] = {**share, **figures(fitted.apply(scores), columns)}
        if fold == RANDOM:
            continue

        def best(some: Array, scale: Calibration = fitted) -> Array:
            largest: Array = detection_llr(scale.apply(some)).max(axis=1)
            return largest

        chosen = choose_threshold(
            np.concatenate([best(part[0]) for part in rest.values()]),
            np.concatenate([best(others[key][half]) for key in rest]),
        )
        known, unknown = best(scores), best(others[fold][~half])
        opened[fold] = rates(known, unknown, chosen.threshold)
        every.append((fitted.apply(scores), columns, known - chosen.threshold, unknown - chosen.threshold))
    calibrated, known, unknown = (np.concatenate([part[k] for part in every]) for k in (0, 2, 3))
    costs["all families together"] = figures(calibrated, [each for part in every for each in part[1]])
    opened["all families together"] = rates(known, unknown, 0.0)
    kept = [parts[fold] for fold in FOLDS]
    np.savez(
        args.work / "left-out-scores.npz",
        scores=np.concatenate([part[0] for part in kept]),
        truth=[each for part in kept for each in part[1]],
        families=[fold for fold in FOLDS for _ in parts[fold][1]],
        others=np.concatenate([others[fold] for fold in FOLDS]),
    )
    return tuple(  # type: ignore[return-value]
        {key: {name: round(value, 3) for name, value in row.items()} for key, row in lines.items()}
        for lines in (costs, opened)
    )


def figures(scores: Array, columns: Sequence[int]) -> dict[str, float]:
    """Costs of calibrated log-likelihoods (N, 15)."""
    llr = detection_llr(scores)
    actual, least = cprimary(llr, columns), min_cprimary(llr, columns)
    return {"actual": actual, "least": least, "loss": actual - least, "Cllr": cllr(scores, columns)}


def rates(known: Array, unknown: Array, threshold: float) -> dict[str, float]:
    """Shares of the fifteen languages that are called none of them, and of other languages that are named."""
    return {"false reject": float(np.mean(known < threshold)), "false accept": float(np.mean(unknown >= threshold))}


if __name__ == "__main__":
    main()
