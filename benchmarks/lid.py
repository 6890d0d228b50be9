"""Language identification on left-out families of recordings, with ablations and a channel-sensitive baseline.

    python -m benchmarks.lid --work WORK [--seeds 3]

WORK is the folder of `tools/shipped_models/run.sh` after `tools.shipped_models.features`. Each family is
left out in turn. The systems are: the pooling and the classifier of `tools.shipped_models.language`, trained on the
other families with real and synthetic speech (`mixed`), with real speech only and with synthetic speech only; the
ensemble of the `mixed` seeds, which is what the bundle contains (`ensemble`); and Gaussian mixture supervectors of
cepstra with linear discriminant analysis (Campbell et al. 2006), which need scikit-learn. Accuracy is averaged over the
languages of a family, then over families; intervals are from resampling languages and speakers. The ensemble and the
supervectors are also tested on a held-out random tenth of all recordings: the gap is due to the channel. Choices were
made on the four families of FOLDS; CHECKED are two more.

Calibration is cross-validated: each family is scored with the scale fitted on the scores of the other families. So is
the threshold below which a recording is in none of the fifteen languages: it is chosen for equal error on the other
families and half of the languages outside the fifteen, and tested on this family and the other half. Scores are saved
in WORK/lid (an interrupted run resumes), and in WORK/left-out-scores.npz for the calibration and threshold of the
bundle.
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
from tools.shipped_models.data import CHECKED, FOLDS, TARGET_LANGUAGES, Corpus
from tools.shipped_models.language import (
    STEPS,
    TESTED,
    Array,
    Backend,
    Learner,
    TrainingData,
    calibrate,
    embed,
    fit,
    train,
)

Lines = dict[str, dict[str, float]]

SYSTEMS = {"mixed": (True, True), "real only": (True, False), "synthetic only": (False, True)}
DURATIONS = {"3 s": 75, "5 s": 125, "whole": None}
RANDOM = "random tenth"
OTHERS = "others"  # scores of the networks of a fold for languages outside the fifteen


def supervectors(corpus: Corpus, numbers: Sequence[int], mixture: Any) -> Array:
    """(N, K D) mixture means adapted to each recording (MAP, relevance factor 16), minus the means of the mixture."""
    rows = []
    for number in numbers:
        x = cepstra(corpus, number)
        posteriors = mixture.predict_proba(x)  # (T, K)
        count = posteriors.sum(0)[:, None]
        shift = posteriors.T @ x / np.maximum(count, 1e-9) - mixture.means_
        rows.append((count / (count + 16) * shift / np.sqrt(mixture.covariances_)).ravel())
    return np.stack(rows)


def cepstra(corpus: Corpus, number: int) -> Array:
    """(T, 40) cepstra and their deltas, for the louder half of the frames of a recording."""
    logs = corpus.whole(number, 1200).astype(np.float64)
    static = dct(logs, norm="ortho", axis=1)[:, :20]
    x = np.hstack([static, np.gradient(static, axis=0)])
    loud = logsumexp(logs, axis=1)
    kept: Array = x[loud >= np.median(loud)]
    return kept


def baseline(data: TrainingData, work: Path, training_rows: Sequence[int], tested: Sequence[int], seed: int) -> Array:
    """Scores (N, 15) of the supervector system."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.mixture import GaussianMixture

    corpus, rows = Corpus(work / "cache", "mel-real"), data.some(training_rows, 8)
    numbers = data.real.numbers
    rng = np.random.default_rng(seed)
    frames = np.concatenate([cepstra(corpus, numbers[n])[::10] for n in rows])
    mixture = GaussianMixture(64, covariance_type="diag", max_iter=15, random_state=seed, reg_covar=1e-3)
    mixture.fit(frames[rng.permutation(len(frames))[:40000]])
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    lda.fit(supervectors(corpus, [numbers[n] for n in rows], mixture), [data.rows[n]["language"] for n in rows])
    predicted = lda.predict_log_proba(supervectors(corpus, [numbers[n] for n in tested], mixture))
    scores = np.full((len(tested), len(TARGET_LANGUAGES)), -1e3)
    scores[:, [TARGET_LANGUAGES.index(each) for each in lda.classes_]] = np.maximum(predicted, -1e3)
    return scores


@cache
def trained(
    data: TrainingData, training_rows: tuple[int, ...], synthetic: bool, seed: int, steps: int
) -> tuple[Learner, Backend]:
    """A pooling and its classifier; those trained without real speech are shared by all folds."""
    learner = train(data, training_rows, synthetic, seed, steps)
    return learner, fit(data, learner, training_rows, synthetic)


def macro(right: Array, truth: NDArray[np.str_]) -> float:
    """Macro-averaged accuracy: the mean over languages of the share of correct recordings."""
    return float(np.mean([right[truth == each].mean() for each in np.unique(truth)]))


def interval(
    parts: Sequence[tuple[Array, NDArray[np.str_], NDArray[np.str_]]], draws: int = 1000
) -> tuple[float, float]:
    """95 % interval of the mean over `parts` (right, truth, speaker) of their macro accuracies.

    The languages of a part are resampled, then the speakers of each. A language with a single speaker has nothing to
    resample, so the interval is rather too narrow.
    """
    rng = np.random.default_rng(0)
    accuracies_drawn = []
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
        accuracies_drawn.append(np.mean(means))
    low, high = np.percentile(accuracies_drawn, [2.5, 97.5])
    return float(low), float(high)


def scored(
    args: argparse.Namespace, data: TrainingData, system: str, fold: str, seed: int
) -> tuple[dict[str, Array], NDArray[np.str_], NDArray[np.str_]]:
    """Scores by duration, languages and speakers of the test part of a fold; read from WORK/lid if present."""
    path = args.work / "lid" / str(args.steps) / f"{system}-{fold}-{seed}.npz".replace(" ", "-")
    if fold == RANDOM:
        long = (n for n, row in enumerate(data.rows) if n % 10 == 7 and float(row["seconds"]) >= 5)
        tested = data.some(long, TESTED)
        training_rows = [n for n in range(len(data.rows)) if n % 10 != 7]
    else:
        tested = data.tested(fold)
        training_rows = [n for n, row in enumerate(data.rows) if row["family"] != fold]
    truth = np.array([data.rows[n]["language"] for n in tested])
    who = np.array([data.rows[n]["speaker"] for n in tested])
    if not path.exists():
        if system == "supervectors":
            result = {"whole": baseline(data, args.work, training_rows, tested, seed)}
        else:
            real, synthetic = SYSTEMS[system]
            learner, backend = trained(data, tuple(training_rows) if real else (), synthetic, seed, args.steps)
            result = {
                name: backend.scores(embed(learner, data.real, tested, frames)) for name, frames in DURATIONS.items()
            }
            result[OTHERS] = backend.scores(embed(learner, data.others, range(len(data.other_languages))))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path.with_suffix(".tmp.npz"), **result)  # type: ignore[arg-type]
        path.with_suffix(".tmp.npz").replace(path)
        right = np.array(TARGET_LANGUAGES)[result["whole"].argmax(1)] == truth
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
    data, names = TrainingData.read(args.work), np.array(TARGET_LANGUAGES)
    report: dict[str, Any] = {}
    for system, duration in (
        *(("ensemble", duration) for duration in DURATIONS),
        *((system, "whole") for system in (*SYSTEMS, "supervectors")),
    ):
        more = {"ensemble": (RANDOM, *CHECKED), "mixed": (RANDOM, *CHECKED), "supervectors": (RANDOM,)}
        parts = {}
        for fold in (*FOLDS, *more.get(system, ())):
            seed_scores, truth, who = seeds(args, data, system, fold, duration)
            parts[fold] = (np.mean([names[scores.argmax(1)] == truth for scores in seed_scores], axis=0), truth, who)
        each = {fold: 100 * macro(right, truth) for fold, (right, truth, _) in parts.items()}
        line: dict[str, object] = {fold: round(value, 1) for fold, value in each.items()}
        for name, some in (("mean", FOLDS), ("mean of confirmation families", CHECKED)):
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
    report["calibration"], report["open set"] = calibration(args, data)
    print(json.dumps(report, indent=1))
    print("\n| left out | accuracy | Cprimary | minimum | loss | Cllr (bits) |\n|---|--:|--:|--:|--:|--:|")
    for fold, row in report["calibration"].items():
        share = f"{100 * row['accuracy']:.1f}" if "accuracy" in row else ""
        print(f"| {fold} | {share} | {row['actual']} | {row['minimum']} | {row['loss']} | {row['Cllr']} |")
    (args.work / "lid" / "report.json").write_text(json.dumps(report, indent=1))


def seeds(
    args: argparse.Namespace, data: TrainingData, system: str, fold: str, key: str
) -> tuple[list[Array], NDArray[np.str_], NDArray[np.str_]]:
    """Scores of each seed, or of all seeds together for the "ensemble", with languages and speakers of the test."""
    several = [scored(args, data, "mixed" if system == "ensemble" else system, fold, n) for n in range(args.seeds)]
    values = [scores[key] for scores, _, _ in several]
    if system == "ensemble":  # log-likelihoods add up, as for independent embeddings
        values = [np.sum(values, axis=0)]
    return values, *several[0][1:]


def calibration(args: argparse.Namespace, data: TrainingData) -> tuple[Lines, Lines]:
    """Costs and Cllr per family and for a random tenth, with a scale fitted on the others; open-set error rates.

    Saves all scores, including those of other languages, for the bundle.
    """
    parts: dict[str, tuple[Array, list[str]]] = {}
    for fold in (*FOLDS, RANDOM):
        (whole,), truth, _ = seeds(args, data, "ensemble", fold, "whole")
        parts[fold] = (whole, truth.tolist())
    others = {fold: seeds(args, data, "ensemble", fold, OTHERS)[0][0] for fold in FOLDS}
    other_languages = np.array(data.other_languages)
    half = np.isin(other_languages, np.unique(other_languages)[::2])
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
        columns = [TARGET_LANGUAGES.index(each) for each in truth]
        right = np.array(TARGET_LANGUAGES)[scores.argmax(1)] == np.array(truth)
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
    actual, minimum = cprimary(llr, columns), min_cprimary(llr, columns)
    return {"actual": actual, "minimum": minimum, "loss": actual - minimum, "Cllr": cllr(scores, columns)}


def rates(known: Array, unknown: Array, threshold: float) -> dict[str, float]:
    """Rates of rejected recordings in the fifteen languages and of accepted recordings in other languages."""
    return {"false reject": float(np.mean(known < threshold)), "false accept": float(np.mean(unknown >= threshold))}


if __name__ == "__main__":
    main()
