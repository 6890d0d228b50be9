"""Languages over time on simulated code-switches: settings chosen on one half of the languages, reported on the other.

    python -m benchmarks.timelines --sets SETS [--model MODEL] [--window 3] [--step 1] [--switch 0.05,0.1,0.2]

SETS is the folder of `benchmarks.code_switches`. Every combination of the settings is tried on both halves, with all
languages of the model ("open") and with the two of the recording declared ("declared"); settings are to be chosen by
the half `chosen` and reported by the half `reported`, which share no language and no speaker. Scores of windows are
kept in SETS, for each model, window and step.

Columns: seconds of speech that have the right language, in %; switches of language found (a switch to another language
within 2 s, each counted once) of all; false switches an hour of recording; median and mean seconds from a switch to the
nearest one in the timeline, of the switches in recordings that have any (0 within the pause between two segments).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.code_switches import HALVES
from knn_cli.core.languages import NO_SPEECH
from knn_cli.core.values import ScoreTable, Segment
from knn_cli.formats.rttm import read_rttm
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.language_timeline import LanguageTimeline
from knn_cli.recognition.timeline import ScoredSpeech, TimelineOptions, score_speech, smooth
from knn_cli.recognition.timeline_smoothing import SpeechTrack

TOLERANCE_SECONDS = 2.0

Truth = list[tuple[float, float, str]]  # start, end, language of each region of speech


class Counts:
    """Sums over recordings."""

    def __init__(self) -> None:
        self.speech = self.right = self.seconds = 0.0
        self.switches = self.found = self.false = 0
        self.distances: list[float] = []

    def add(self, truth: Truth, timeline: LanguageTimeline) -> None:
        """Count a recording."""
        for start, end, language in truth:
            self.speech += end - start
            self.right += sum(
                max(0.0, min(end, span.end) - max(start, span.start))
                for span in timeline.spans
                if span.label == language
            )
        true = [(one[1], two[0]) for one, two in itertools.pairwise(truth) if one[2] != two[2]]
        distance = np.array(
            [[max(end - each.time, each.time - start, 0.0) for each in timeline.switches] for end, start in true]
        ).reshape(len(true), len(timeline.switches))
        close = distance <= TOLERANCE_SECONDS
        rows, columns = linear_sum_assignment(close, maximize=True)
        found = int(close[rows, columns].sum())
        self.seconds += timeline.seconds
        self.switches += len(true)
        self.found += found
        self.false += len(timeline.switches) - found
        self.distances += distance.min(axis=1).tolist() if timeline.switches else []

    def __str__(self) -> str:
        distances = self.distances or [float("nan")]
        return (
            f"{100 * self.right / self.speech:5.1f} {self.found:4d}/{self.switches}"
            f" {3600 * self.false / self.seconds:5.0f} {np.median(distances):6.2f} {np.mean(distances):6.2f}"
        )


def scored_recordings(
    sets: Path, half: str, classifier: Classifier, options: TimelineOptions
) -> Iterator[ScoredSpeech]:
    """The windows of each recording with their scores, kept in a file; CPU seconds go to stdout where they are new."""
    name = f"{classifier.bundle.fingerprint}-{options.window:g}-{options.step:g}.npz"
    for path in sorted((sets / half).glob("*.flac")):
        file = path.with_name(f"{path.stem}-{name}")
        if not file.exists():
            begin = time.process_time()
            scored = score_speech(path, classifier, options=options)
            write_scores(file, scored)
            print(f"# {path.stem}: {scored.seconds:.0f} s, {time.process_time() - begin:.1f} CPU s", flush=True)
        yield read_scores(file, path.stem, classifier.labels)


def write_scores(file: Path, scored: ScoredSpeech) -> None:
    """Keep the scores of a recording of which all speech is one track."""
    (track,), (table,) = scored.tracks, scored.tables
    speech, windows = ([(each.start, each.end) for each in segments] for segments in (track.speech, track.windows))
    threshold = np.nan if table.threshold is None else table.threshold
    np.savez(
        file, seconds=scored.seconds, speech=speech, windows=windows, scores=table.log_likelihood, threshold=threshold
    )


def read_scores(file: Path, name: str, labels: tuple[str, ...]) -> ScoredSpeech:
    """What `write_scores` kept."""
    with np.load(file) as kept:
        speech, windows = ([Segment(*times) for times in kept[key].tolist()] for key in ("speech", "windows"))
        start, end = kept["windows"].T
        threshold = None if np.isnan(kept["threshold"]) else float(kept["threshold"])
        table = ScoreTable(labels, kept["scores"], np.full(len(start), name), start, end, threshold=threshold)
        track = SpeechTrack("", speech, speech, windows)
        return ScoredSpeech(name, float(kept["seconds"]), labels, (track,), (table,), False)


def declared(scored: ScoredSpeech, languages: Sequence[str]) -> ScoredSpeech:
    """The scores of some of the languages, as with `Classifier(languages=...)`."""
    labels = [label for label in scored.labels if label in languages or label == NO_SPEECH]
    return replace(scored, labels=tuple(labels), tables=tuple(table.restrict(labels) for table in scored.tables))


def main() -> None:
    """Print a line for each setting, half and set of languages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--halves", default=",".join(HALVES))
    for name in ("window", "step", "switch"):
        parser.add_argument(f"--{name}", default=f"{getattr(TimelineOptions, name):g}")
    arguments = parser.parse_args()
    classifier = Classifier(arguments.model, device="cpu")
    grid = [[float(text) for text in getattr(arguments, name).split(",")] for name in ("window", "step", "switch")]
    for half in arguments.halves.split(","):
        for window, step, switch in itertools.product(*grid):
            options = TimelineOptions(window=window, step=step, switch=switch)
            counts = {"open": Counts(), "declared": Counts()}
            for scored in scored_recordings(arguments.sets, half, classifier, options):
                rttm = read_rttm(arguments.sets / half / f"{scored.name}.rttm")[scored.name]
                truth = [
                    (segment.start, segment.end, str(label)) for segment, _, label in rttm.itertracks(yield_label=True)
                ]
                counts["open"].add(truth, smooth(scored, options))
                pair = declared(scored, [language for _, _, language in truth])
                counts["declared"].add(truth, smooth(pair, options))
            for kind, values in counts.items():
                print(f"{half:9} {window:4g} {step:4g} {switch:5g} {kind:9} {values}", flush=True)


if __name__ == "__main__":
    main()
