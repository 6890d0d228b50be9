"""Language identification on left-out families of recordings, beside Whisper-base as it is and supervectors.

    python -m benchmarks.lid --data DATA --work WORK

WORK is the folder of `tools/shipped_models/language.sh`. Each family of sources is left out in turn: offsets,
temperature and threshold of `knn` are learnt from the other families (`tools.shipped_models.language`). `8-bit` is the
network of the bundle without any correction, `Whisper-base` the published network in 32 bits with its own language
tokens, and `supervectors` are Gaussian mixture supervectors of cepstra with linear discriminant analysis (Campbell et
al. 2006; needs scikit-learn, and WORK/cache of `tools.shipped_models.prepare`), trained on the other families. What the
network costs is measured by `benchmarks.whisper`.

Up to 12 recordings per language and family, drawn by a fixed seed. Accuracy is averaged over the languages of a family,
or over all languages; intervals are from resampling languages and speakers. "Closed" scores the 15 languages alone,
"open" all languages of the model; a declared set scores its members alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.fft import dct
from scipy.special import log_softmax, logsumexp

from knn_cli.core.values import Doubles
from knn_cli.evaluation.metrics import cllr, cprimary, detection_llr, min_cprimary
from tools.shipped_models.data import TARGET_LANGUAGES, UNLABELLED_FAMILIES, Corpus, read_manifest, rows_of_cells
from tools.shipped_models.language import NO_SPEECH, Mask, Recordings, Texts, largest_llr, left_out

PER_CELL = 12  # recordings of a language in a family
NOISE_SECONDS = 5.0
SETS = (
    "ca es", "gl es pt", "nl de af", "no da sv", "cs sk", "cs sk pl", "sr sl", "be ru uk", "hi ur pa", "id tr", "de da",
    "en es", "cs de",
)  # fmt: skip


def macro(right: Doubles, truth: Texts) -> float:
    """Macro-averaged accuracy: the mean over languages of the share of correct recordings."""
    return float(np.mean([right[truth == each].mean() for each in np.unique(truth)]))


def interval(right: Doubles, truth: Texts, speaker: Texts, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of `macro`: languages are resampled, then the speakers of each.

    A language with a single speaker has nothing to resample, so the interval is rather too narrow.
    """
    rng = np.random.default_rng(0)
    groups = []
    for each in np.unique(truth):
        _, which = np.unique(speaker[truth == each], return_inverse=True)
        groups.append((np.bincount(which, right[truth == each]), np.bincount(which).astype(float)))
    means = []
    for _ in range(draws):
        accuracies = []
        for language in rng.integers(len(groups), size=len(groups)):
            sums, counts = groups[language]
            drawn = rng.integers(len(sums), size=len(sums))
            accuracies.append(sums[drawn].sum() / counts[drawn].sum())
        means.append(np.mean(accuracies))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def supervector_scores(recordings: Recordings, tested: Mask, corpus: Corpus) -> Doubles:
    """(N, C) scores of the 15 languages, every family scored by a system of the others; -1000 elsewhere."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.mixture import GaussianMixture

    scores = np.full((len(tested), len(recordings.labels)), -1e3)
    of_15 = np.isin(recordings.language, TARGET_LANGUAGES) & ~np.isin(recordings.family, UNLABELLED_FAMILIES)
    for family in sorted(set(recordings.family[of_15])):
        rng = np.random.default_rng(0)
        training, test = (
            np.flatnonzero(of_15 & (recordings.family != family) & tested),
            np.flatnonzero(of_15 & (recordings.family == family) & tested),
        )
        frames = np.concatenate([cepstra(corpus, row)[::10] for row in training])
        mixture = GaussianMixture(64, covariance_type="diag", max_iter=15, random_state=0, reg_covar=1e-3)
        mixture.fit(frames[rng.permutation(len(frames))[:40000]])
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        lda.fit(supervectors(corpus, training, mixture), recordings.language[training])
        columns = [recordings.labels.index(label) for label in lda.classes_]
        scores[np.ix_(test, columns)] = lda.predict_log_proba(supervectors(corpus, test, mixture)).clip(-1e3)
    return scores


def supervectors(corpus: Corpus, rows: Sequence[int], mixture: Any) -> Doubles:
    """(N, K D) mixture means adapted to each recording (MAP, relevance factor 16), minus the means of the mixture."""
    result = []
    for row in rows:
        x = cepstra(corpus, row)
        posteriors = mixture.predict_proba(x)  # (T, K)
        count = posteriors.sum(0)[:, None]
        shift = posteriors.T @ x / np.maximum(count, 1e-9) - mixture.means_
        result.append((count / (count + 16) * shift / np.sqrt(mixture.covariances_)).ravel())
    return np.stack(result)


def cepstra(corpus: Corpus, row: int) -> Doubles:
    """(T, 40) cepstra and their deltas, for the louder half of the frames of a recording."""
    logs = corpus.whole(row, 1200).astype(np.float64)
    static = dct(logs, norm="ortho", axis=1)[:, :20]
    x = np.hstack([static, np.gradient(static, axis=0)])
    loud = logsumexp(logs, axis=1)
    kept: Doubles = x[loud >= np.median(loud)]
    return kept


class Report:
    """Prints the figures of several systems, whose scores are (N, C) log-likelihoods of the same recordings."""

    def __init__(self, recordings: Recordings, tested: Mask, systems: dict[str, Doubles]) -> None:
        self.recordings, self.systems = recordings, systems
        self.tested = tested
        self.labels = np.array(recordings.labels)
        self.fifteen = np.array([recordings.labels.index(label) for label in TARGET_LANGUAGES])
        self.of_15 = self.tested & np.isin(recordings.language, TARGET_LANGUAGES)
        self.of_15 &= ~np.isin(recordings.family, UNLABELLED_FAMILIES)
        self.others = (
            self.tested & np.isin(recordings.language, self.labels) & ~np.isin(recordings.language, TARGET_LANGUAGES)
        )
        self.families = sorted(set(recordings.family[self.of_15]))

    def right(self, scores: Doubles, columns: Any = slice(None)) -> Doubles:
        """(N,) 1 where the best of the columns is the language."""
        best = self.labels[columns][scores[:, columns].argmax(axis=1)]
        return (best == self.recordings.language).astype(float)

    def cell(self, right: Doubles, rows: Mask) -> str:
        """Accuracy in % with its interval."""
        truth, speaker = self.recordings.language[rows], self.recordings.speaker[rows]
        low, high = interval(right[rows], truth, speaker)
        return f"{100 * macro(right[rows], truth):.1f} ({100 * low:.0f} to {100 * high:.0f})"

    def families_table(self, title: str, columns: Any, systems: Sequence[str]) -> None:
        """Accuracy per family, and over all languages."""
        print(
            f"\n{title}\n\n| | {' | '.join(self.families)} | 15 languages |\n|---|{'--:|' * (len(self.families) + 1)}"
        )
        for name in systems:
            right = self.right(self.systems[name], columns)
            own = [self.cell(right, self.of_15 & (self.recordings.family == family)) for family in self.families]
            print(f"| {name} | {' | '.join(own)} | **{self.cell(right, self.of_15)}** |")

    def languages_table(self, systems: Sequence[str]) -> None:
        """Accuracy of each language, closed for the fifteen and open for all."""
        heads = " | ".join(f"{name}, {kind}" for name in systems for kind in ("closed", "open"))
        print(f"\n| language | families | {heads} |\n|---|--:|{'--:|' * (2 * len(systems))}")
        for language in np.unique(self.recordings.language[self.of_15 | self.others]):
            fifteen = language in TARGET_LANGUAGES
            rows = (self.of_15 if fifteen else self.others) & (self.recordings.language == language)
            cells = []
            for name in systems:
                closed = self.right(self.systems[name], self.fifteen)[rows].mean()
                cells += [
                    f"{100 * closed:.0f}" if fifteen else "",
                    f"{100 * self.right(self.systems[name])[rows].mean():.0f}",
                ]
            print(f"| {language} | {len(set(self.recordings.family[rows]))} | {' | '.join(cells)} |")
        for name in systems:
            print(f"other languages, open, {name}: {self.cell(self.right(self.systems[name]), self.others)}")

    def sets_table(self, systems: Sequence[str]) -> None:
        """Accuracy in declared sets."""
        print(f"\n| declared set | recordings | {' | '.join(systems)} |\n|---|--:|{'--:|' * len(systems)}")
        for text in SETS:
            members = text.split()
            columns = np.array([self.recordings.labels.index(label) for label in members])
            rows = self.tested & np.isin(self.recordings.language, members)
            cells = [self.cell(self.right(self.systems[name], columns), rows) for name in systems]
            print(f"| {' '.join(members)} | {rows.sum()} | {' | '.join(cells)} |")

    def costs_table(self, name: str) -> None:
        """Costs of the calibrated scores of the fifteen, per family."""
        print("\n| left out | Cprimary | minimum | loss | Cllr (bits) |\n|---|--:|--:|--:|--:|")
        scores = self.systems[name][:, self.fifteen]
        truth = np.array([TARGET_LANGUAGES.index(x) if x in TARGET_LANGUAGES else -1 for x in self.recordings.language])
        for family in (*self.families, "all"):
            rows = self.of_15 & ((self.recordings.family == family) | (family == "all"))
            llr = detection_llr(scores[rows])
            actual, minimum = cprimary(llr, truth[rows]), min_cprimary(llr, truth[rows])
            bits = cllr(scores[rows], truth[rows])
            print(f"| {family} | {actual:.3f} | {minimum:.3f} | {actual - minimum:.3f} | {bits:.2f} |")

    def unknown_table(self, name: str, threshold: Callable[[str], float]) -> None:
        """Shares of recordings that are called unknown, of known languages and of others, per family."""
        print("\n| left out | known called unknown | others called unknown |\n|---|--:|--:|")
        known = self.tested & np.isin(self.recordings.language, self.labels)
        other = self.tested & ~np.isin(self.recordings.language, self.labels)
        refused = np.zeros(len(known))
        for family in self.recordings.families:
            own = self.tested & (self.recordings.family == family)
            refused[own] = largest_llr(self.recordings.labels, self.systems[name][own]) < threshold(family)
        for family in (*self.recordings.families, "all"):
            shares = []
            for part in (known, other):
                rows = part & ((self.recordings.family == family) | (family == "all"))
                shares.append(
                    f"{100 * macro(refused[rows], self.recordings.language[rows]):.1f} ({rows.sum()})"
                    if rows.any()
                    else ""
                )
            print(f"| {family} | {' | '.join(shares)} |")

    def no_speech(self, name: str, noise: Sequence[Doubles]) -> None:
        """Shares of noise and music, and of speech, that are called no speech."""
        column = self.recordings.labels.index(NO_SPEECH)
        of_noise = np.mean([(scores.argmax(axis=1) == column).mean() for scores in noise])
        of_speech = (self.systems[name].argmax(axis=1) == column).astype(float)[self.tested]
        share = macro(of_speech, self.recordings.language[self.tested])
        print(f"\nCalled no speech: {100 * of_noise:.1f} % of noise and music, {100 * share:.1f} % of speech")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    work: Path = args.work
    recordings = Recordings.read(args.data, work / "whisper-base-int8", work / "scores" / "int8")
    plain = Recordings.read(args.data, work / "whisper-base", work / "scores" / "whole-precision")
    corrections = left_out(recordings)
    whole = {name: np.full_like(scores, np.nan) for name, scores in recordings.logits.items()}
    for family, correction in corrections.items():
        own = recordings.family == family
        for name, logits in recordings.logits.items():
            whole[name][own] = correction.apply(logits[own], recordings.durations(name)[own])
    systems = {
        "knn": whole["whole"],
        "8-bit": log_softmax(recordings.logits["whole"][:, :-1], axis=1),
        "Whisper-base": log_softmax(plain.logits["whole"][:, :-1], axis=1),
    }
    for name in ("8-bit", "Whisper-base"):  # as Whisper answers: one of its languages
        systems[name] = np.hstack([systems[name], np.full((len(systems[name]), 1), -np.inf)])
    rows = read_manifest(args.data / "speech" / "manifest.tsv")
    report = Report(recordings, rows_of_cells(rows, PER_CELL), systems)
    compared = ["knn", "8-bit", "Whisper-base"]
    if (work / "cache" / "mel-real.npy").exists():
        systems["supervectors"] = supervector_scores(recordings, report.tested, Corpus(work / "cache", "mel-real"))
    print(f"{len(rows)} recordings, of which {report.tested.sum()} are tested")
    report.families_table("Closed, 15 languages", report.fifteen, [*systems])
    report.families_table("Open, all languages", slice(None), compared)
    for name in ("5", "3"):
        present = np.isfinite(whole[name]).all(axis=1)
        part = report.of_15 & present
        print(f"knn, {name} s, closed: {report.cell(report.right(whole[name], report.fifteen), part)}")
    report.languages_table(compared)
    report.sets_table(compared)
    report.costs_table("knn")
    report.unknown_table("knn", lambda family: corrections[family].open_set.threshold)
    report.no_speech(
        "knn",
        [each.apply(recordings.noise, np.full(len(recordings.noise), NOISE_SECONDS)) for each in corrections.values()],
    )


if __name__ == "__main__":
    main()
