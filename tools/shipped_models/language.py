"""Correct the scores of a Whisper bundle for languages, and write the shipped bundle.

    python -m tools.shipped_models.language --data DATA --model WORK/whisper-base-int8 --scores WORK/scores/int8
        [--out models/language]

Nothing of the network is trained: twelve hours in fifty languages teach it sources rather than languages (see
docs/research.md). What is learnt are three things on top of its own language scores:

- `offsets`: a label that speech of other languages draws is lowered, by how much it draws (`attraction`); a label of
  which no speech was at hand is lowered by `UNSEEN_PENALTY` more, because nothing shows that its answers are right;
- a temperature, with an exponent for the duration (`fit_temperature`);
- the threshold below which an answer is `unknown`: at most `FALSE_REJECT` of read speech is lost.

`left_out` gives the scores of each family of sources from offsets, temperature and threshold of the other families;
`benchmarks/lid.py` reports these.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from knn_cli.core.values import Doubles, Floats, ScoreTable
from knn_cli.evaluation.open_set import best_llr
from knn_cli.networks import bundle
from knn_cli.networks.bundle_weights import read_weights
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.open_set_threshold import OpenSetThreshold, choose_threshold
from tools.shipped_models.data import Row, read_manifest
from tools.shipped_models.language_scores import DURATIONS, NOISE, read

NO_SPEECH = "zxx"
SAME_LANGUAGE = {"nb": "no"}  # codes of the manifest that the labels write otherwise
ATTRACTION_TEMPERATURE = 0.4  # between the mean of the log-probabilities (0) and the log of the mean (1)
ATTRACTION_SHARE = 0.9  # of it that is taken off
UNSEEN_PENALTY = 1.0  # nats
SPEECH_LOST = 0.01  # share of speech that may be called no speech
FALSE_REJECT = 0.05  # share of known languages in READ_SPEECH that may be called unknown
READ_SPEECH = "corpora"

Texts = NDArray[np.str_]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Recordings:
    """What the corrections are learnt from.

    Attributes
    ----------
    labels : tuple of str
        (C,) of the network's head, the last is `NO_SPEECH`.
    logits : dict of str to (N, C) float64
        Scores of the head at each of `DURATIONS`; NaN for recordings with less speech, or not scored.
    seconds : (N,) float64
        Speech behind the logits of "whole".
    language, family, speaker : (N,) str
    noise : (M, C) float64
        Scores of noise and music.
    """

    labels: tuple[str, ...]
    logits: dict[str, Doubles]
    seconds: Doubles
    language: Texts
    family: Texts
    speaker: Texts
    noise: Doubles

    @classmethod
    def read(cls, data: Path, model: Path, scores: Path) -> Recordings:
        """The embeddings in `scores`, through the head of `model`."""
        rows: list[Row] = read_manifest(data / "speech" / "manifest.tsv")
        found = bundle.find(model)
        network = bundle.load_network(found)

        def logits(embeddings: Floats) -> Doubles:
            with torch.inference_mode():
                return network.scores(torch.from_numpy(embeddings)).double().numpy()

        return cls(
            found.head_labels,
            {name: logits(read(scores, rows, name)) for name in DURATIONS},
            read(scores, rows, "seconds").astype(np.float64),
            np.array([SAME_LANGUAGE.get(row["language"], row["language"]) for row in rows]),
            np.array([row["family"] for row in rows]),
            np.array([row["speaker"] for row in rows]),
            logits(read(scores, rows, NOISE)),
        )

    @property
    def families(self) -> list[str]:
        """Names of the families."""
        return sorted(set(self.family))

    @property
    def scored(self) -> Mask:
        """(N,) recordings that have scores."""
        return np.isfinite(self.logits["whole"]).all(axis=1)

    def durations(self, name: str) -> Doubles:
        """(N,) seconds of speech behind the logits of a duration."""
        return self.seconds if name == "whole" else np.full(len(self.seconds), DURATIONS[name])

    def columns(self) -> NDArray[np.int64]:
        """(N,) column of each recording's language, -1 where the head does not know it."""
        place = {label: column for column, label in enumerate(self.labels)}
        return np.array([place.get(language, -1) for language in self.language])


@dataclass(frozen=True)
class Correction:
    """Offsets, temperature and threshold, as the config of the bundle has them."""

    offsets: Doubles
    calibration: Calibration
    open_set: OpenSetThreshold

    def apply(self, logits: Doubles, seconds: Doubles) -> Doubles:
        """Calibrated log-likelihoods (N, C)."""
        return self.calibration.apply(log_softmax(logits + self.offsets, axis=1), seconds)


def cell_weights(language: Texts, family: Texts, chosen: Mask) -> Doubles:
    """(N,) weights of the chosen rows: languages weigh alike, and in each its families, whose rows weigh alike."""
    cells = Counter(zip(language[chosen].tolist(), family[chosen].tolist(), strict=True))
    families = Counter(each for each, _ in cells)
    weights = np.zeros(len(language))
    for row in np.flatnonzero(chosen):
        cell = (str(language[row]), str(family[row]))
        weights[row] = 1 / cells[cell] / families[cell[0]]
    return weights


def attraction(logits: Doubles, columns: NDArray[np.int64], weights: Doubles) -> Doubles:
    """How much each label draws speech of other languages.

    Parameters
    ----------
    logits : (N, C) float64
        Scores of languages, without `NO_SPEECH`.
    columns : (N,) int64
        The true column of each row, -1 for a language without a column.
    weights : (N,) float64

    Returns
    -------
    (C,) float64
        (1 / t) log of the weighted mean of p(label)^t over the rows of other languages, t =
        `ATTRACTION_TEMPERATURE`, minus its median over the labels.
    """
    scaled = ATTRACTION_TEMPERATURE * log_softmax(logits, axis=1)
    result = np.empty(logits.shape[1])
    for column in range(logits.shape[1]):
        others = (columns != column) & (weights > 0)
        result[column] = logsumexp(scaled[others, column], b=weights[others] / weights[others].sum())
    result /= ATTRACTION_TEMPERATURE
    return result - np.median(result)


def fit_offsets(recordings: Recordings, chosen: Mask) -> Doubles:
    """(C,) offsets of the labels, learnt from the chosen recordings, and from noise for `NO_SPEECH`."""
    logits, columns = recordings.logits["whole"], recordings.columns()
    weights = cell_weights(recordings.language, recordings.family, chosen)
    seen = np.isin(np.arange(logits.shape[1] - 1), columns)  # in any family: which languages are at hand is known
    with_noise = np.concatenate([logits, recordings.noise])[:, :-1], np.append(columns, [-1] * len(recordings.noise))
    noise_weights = np.full(len(recordings.noise), 1 / len(recordings.noise))  # together those of a language
    offsets = -ATTRACTION_SHARE * attraction(*with_noise, np.append(weights, noise_weights))
    offsets -= UNSEEN_PENALTY * ~seen
    # No speech is answered above the level that only few recordings of speech reach.
    margins = logits[chosen, -1] - (logits[chosen, :-1] + offsets).max(axis=1)
    order = np.argsort(margins)[::-1]
    lost = np.cumsum(weights[chosen][order]) / weights[chosen].sum()
    return np.append(offsets, -margins[order][np.searchsorted(lost, SPEECH_LOST)])


def fit_temperature(logits: Doubles, columns: NDArray[np.int64], seconds: Doubles, weights: Doubles) -> Calibration:
    """Scale and exponent by weighted cross-entropy over all labels; rows of languages without a column are left out."""
    known = (columns >= 0) & (weights > 0) & np.isfinite(logits).all(axis=1)
    scores, truth, weight = log_softmax(logits[known], axis=1), columns[known], weights[known] / weights[known].sum()
    reference = float(np.exp((weight * np.log(seconds[known])).sum()))
    ratios = np.log(seconds[known] / reference)

    def loss(parameters: Doubles) -> float:
        scaled = np.exp(parameters[0] + parameters[1] * ratios)[:, None] * scores
        return -float((weight * log_softmax(scaled, axis=1)[np.arange(len(truth)), truth]).sum())

    log_scale, exponent = minimize(loss, np.zeros(2), method="Nelder-Mead").x
    return Calibration(float(np.exp(log_scale)), np.zeros(logits.shape[1]), float(exponent), reference)


def fit(recordings: Recordings, chosen: Mask) -> Correction:
    """Learn a correction from the chosen recordings.

    Temperature and threshold are learnt from scores of each chosen family with offsets of the other chosen ones.
    """
    columns = recordings.columns()
    scores: dict[str, Doubles] = {name: np.full_like(each, np.nan) for name, each in recordings.logits.items()}
    for family in set(recordings.family[chosen]):
        own = chosen & (recordings.family == family)
        offsets = fit_offsets(recordings, chosen & ~own)
        for name, logits in recordings.logits.items():
            scores[name][own] = logits[own] + offsets
    weights = cell_weights(recordings.language, recordings.family, chosen)
    calibration = fit_temperature(
        np.concatenate([scores[name] for name in DURATIONS]),
        np.concatenate([columns] * len(DURATIONS)),
        np.concatenate([recordings.durations(name) for name in DURATIONS]),
        np.concatenate([weights] * len(DURATIONS)),
    )
    best = np.full(len(columns), np.nan)
    best[chosen] = largest_llr(
        recordings.labels, calibration.apply(scores["whole"][chosen], recordings.seconds[chosen])
    )
    read_speech = chosen & (columns >= 0) & (recordings.family == READ_SPEECH)
    if not read_speech.any():  # the family itself is left out
        read_speech = chosen & (columns >= 0) & np.isin(recordings.family, ("artikulate", "telephone-prompts"))
    threshold = choose_threshold(best[read_speech], best[chosen & (columns < 0)], false_reject=FALSE_REJECT)
    return Correction(fit_offsets(recordings, chosen), calibration, threshold)


def largest_llr(labels: tuple[str, ...], scores: Doubles) -> Doubles:
    """(N,) what the threshold is compared with."""
    names, times = np.full(len(scores), ""), np.full(len(scores), np.nan)
    return best_llr(ScoreTable(labels, scores, names, times, times))


def left_out(recordings: Recordings) -> dict[str, Correction]:
    """Family -> the correction that is learnt from all other families."""
    families, scored = recordings.families, recordings.scored
    return {family: fit(recordings, scored & (recordings.family != family)) for family in families}


def measured(recordings: Recordings, corrections: dict[str, Correction]) -> dict[str, dict[str, float]]:
    """Label -> recordings, sources' families, and the share named right out of all labels, families left out."""
    columns, right = recordings.columns(), np.zeros(len(recordings.language))
    for family, correction in corrections.items():
        own = recordings.scored & (recordings.family == family)
        scores = correction.apply(recordings.logits["whole"][own], recordings.seconds[own])
        right[own] = scores.argmax(axis=1) == columns[own]
    result = {}
    for column in np.unique(columns[recordings.scored & (columns >= 0)]):
        rows = recordings.scored & (columns == column)
        result[recordings.labels[column]] = {
            "recordings": int(rows.sum()),
            "families": len(set(recordings.family[rows])),
            "accuracy": round(float(right[rows].mean()), 3),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("models/language"))
    parser.add_argument("--card", type=Path, default=Path("tools/shipped_models/card-language.md"))
    args = parser.parse_args()
    recordings = Recordings.read(args.data, args.model, args.scores)
    correction = fit(recordings, recordings.scored)
    write(args.model, args.out, correction, measured(recordings, left_out(recordings)), args.card.read_text("utf-8"))
    print(json.dumps(vars(correction.open_set)), correction.calibration.scale, correction.calibration.exponent)


def write(model: Path, out: Path, correction: Correction, figures: dict[str, dict[str, float]], card: str) -> None:
    """Write the bundle of `model` with the correction in its head."""
    source = bundle.find(model)
    state = read_weights(source.folder / bundle.WEIGHTS, source.config["weights_sha256"])
    bias = state["head.trans.0.bias"]
    state["head.trans.0.bias"] = bias + torch.from_numpy(correction.offsets).to(bias.dtype)
    head: dict[str, Any] = dict(source.config["head"])
    calibration = correction.calibration
    head["calibration"] = {
        "scale": round(calibration.scale, 6),
        "exponent": round(calibration.exponent, 6),
        "reference": round(calibration.reference, 6),
    }
    head["open_set"] = {
        key: round(value, 6) if isinstance(value, float) else value for key, value in vars(correction.open_set).items()
    }
    head["measured"] = figures
    config = source.settings | {"name": out.name, "head": head, "training": {"script": "tools/shipped_models/run.sh"}}
    bundle.write(out, config, state=state, card=card, force=True)
    bundle.load_network(bundle.find(out))  # checks that the bundle loads


if __name__ == "__main__":
    main()
