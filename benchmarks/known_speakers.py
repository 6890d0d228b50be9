"""Similarity of recordings of the same speaker, from which the identification and linking thresholds are chosen.

    python -m benchmarks.known_speakers --data ../shared/data --model voice

The speakers are `tools.shipped_models.data.held_out_speakers` except for ambiguous names. The recordings of a speaker
are concatenated into clips of 10 to 20 s, at most six per speaker; a single recording is split into halves. One
clip is enrolled; another one, cut to 5, 10 or 20 s, is tested. Every pair of clips without a common recording is a
trial (the halves of a recording are used in non-target trials only). Conditions: as recorded, or mixed, where the test
clips, or both, are convolved with a measured room impulse response, mixed with babble of six other speakers (5 to
20 dB) or band-limited to a telephone band, as in `benchmarks.speakers`.

Printed are: the equal error rate; the cosine at a false-acceptance rate of 1 %, with its false-rejection rate; and both
rates at the default threshold, which has 1 % false acceptances over all tests of clips enrolled as recorded. Two tasks
with the same clips follow, for several thresholds: identification of two of five enrolled speakers beside two
out-of-set speakers (`identification.identify`), and linking of the speakers of up to 60 files
(`diarization.linking.link_speakers`, whose default balances precision and recall over both conditions). `--meetings`
adds the speaker embeddings of reference turns in the AMI excerpts (3 s or more per speaker), compared between excerpts.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, sosfilt

from knn_cli.core.values import Diarization, Turn
from knn_cli.diarization import identification
from knn_cli.diarization import linking as speaker_linking
from knn_cli.diarization.enrollment import EnrolledSpeakers
from knn_cli.embedding.embedder import Embedder
from knn_cli.evaluation.metrics import eer
from knn_cli.formats.rttm import read_rttm
from knn_cli.recognition.speaker_decision import read_decision
from tools.shipped_models.data import held_out_speakers, is_ambiguous_speaker, read_16k, read_manifest

Floats = NDArray[np.float32]
RATE = 16000
CLIPS = 6
MIN_CLIP_SECONDS, MAX_CLIP_SECONDS = 10, 20
TESTS = (5, 10, MAX_CLIP_SECONDS)
THRESHOLDS = (0.45, 0.5, 0.55, 0.6, 0.625, 0.65, 0.7)
TESTED = ("as recorded", "mixed")


@dataclass(frozen=True)
class Clip:
    """The waveform of a speaker, and the recordings that it comes from."""

    speaker: str
    recordings: frozenset[str]
    waveform: Floats


def clips(data: Path) -> list[Clip]:
    """Up to six clips of each speaker."""
    rows = read_manifest(data / "speech" / "manifest.tsv")
    hidden = {name for name in held_out_speakers(rows) if not is_ambiguous_speaker(name)}
    paths_of: dict[str, list[str]] = {}
    for row in rows:
        if row["speaker"] in hidden:
            paths_of.setdefault(row["speaker"], []).append(row["path"])
    result = []
    for speaker, paths in paths_of.items():
        if len(paths) == 1:
            sound = read_16k(data / "speech" / paths[0])
            result += [Clip(speaker, frozenset(paths), half) for half in np.array_split(sound, 2)]
            continue
        held: list[str] = []
        parts: list[Floats] = []
        count = 0
        for path in paths:
            held.append(path)
            parts.append(read_16k(data / "speech" / path))
            if sum(map(len, parts)) >= MIN_CLIP_SECONDS * RATE and count < CLIPS:
                result.append(Clip(speaker, frozenset(held), np.concatenate(parts)[: MAX_CLIP_SECONDS * RATE]))
                held, parts, count = [], [], count + 1
    return result


def mixed(cases: list[Clip], data: Path, seed: int) -> list[Floats]:
    """Each clip with a room, babble or telephone band by a seeded draw; at least one of them is always applied."""
    rng = np.random.default_rng(seed)
    rooms = [read_16k(path) for path in sorted((data / "noise" / "rir").glob("*.flac"))]
    band = butter(6, (300, 3400), "bandpass", fs=RATE, output="sos")
    who, result = np.array([clip.speaker for clip in cases]), []
    for clip in cases:
        waveform, which = clip.waveform, rng.random(3) < 0.5
        if not which.any():
            which[rng.integers(3)] = True
        if which[0]:
            room = rooms[rng.integers(len(rooms))]
            waveform = fftconvolve(waveform, room[np.abs(room).argmax() :])[: len(waveform)]
        if which[1]:
            others = rng.choice(np.flatnonzero(who != clip.speaker), 6, replace=False)
            babble = sum(np.resize(cases[other].waveform, len(waveform)) for other in others)
            gain = np.sqrt(np.mean(waveform**2) / np.mean(babble**2) * 10 ** (-rng.uniform(5, 20) / 10))
            waveform = waveform + gain * babble
        if which[2]:
            waveform = sosfilt(band, waveform)
        result.append((0.3 * waveform / np.abs(waveform).max()).astype(np.float32))
    return result


def units(embedder: Embedder, waveforms: list[Floats]) -> Floats:
    """(N, D) unit vectors of the speaker view."""
    rows = embedder(waveforms)[:, embedder.bundle.view("speaker")]
    vectors: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors


def trials(cases: list[Clip]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N, N) target and non-target trials: pairs of clips of the same speaker without a common recording, or of two."""
    who = np.array([clip.speaker for clip in cases])
    same = who[:, None] == who
    disjoint = np.array([[not (first.recordings & second.recordings) for second in cases] for first in cases])
    return same & disjoint, ~same


def figures(cosines: Floats, targets: NDArray[np.bool_], impostors: NDArray[np.bool_], at: float) -> dict[str, float]:
    """Errors in percent; every pair of cosines (enrolled, tested) that is a target or an impostor counts once."""
    yes, no = cosines[targets], cosines[impostors]
    strict = float(np.quantile(no, 0.99))
    return {
        "EER": round(100 * eer(yes, no), 2),
        "threshold at FA 1": round(strict, 3),
        "FR there": round(100 * float((yes < strict).mean()), 1),
        "FA at default": round(100 * float((no >= at).mean()), 2),
        "FR at default": round(100 * float((yes < at).mean()), 1),
        "targets 5 %, median": [round(float(value), 2) for value in np.percentile(yes, (5, 50))],
        "impostors median, 99 %": [round(float(value), 2) for value in np.percentile(no, (50, 99))],
    }


def diarization(speakers: dict[str, tuple[Floats, float]]) -> Diarization:
    """A diarization with one turn per speaker."""
    return Diarization(
        tuple(Turn(place, place + 1, name) for place, name in enumerate(speakers)),
        speaker_embeddings={name: vector for name, (vector, _) in speakers.items()},
        clean_speech_seconds={name: seconds for name, (_, seconds) in speakers.items()},
        seconds=float(len(speakers)),
    )


def recognition(
    enrolled: Floats, tested: Floats, cases: list[Clip], threshold: float, draws: int = 2000
) -> dict[str, float]:
    """Percentages of enrolled speakers correct, rejected or confused, and of out-of-set speakers accepted.

    Five speakers are enrolled; two of them and two out-of-set speakers speak.
    """
    rng = np.random.default_rng(0)
    places_of: dict[str, list[int]] = {}
    for place, clip in enumerate(cases):
        places_of.setdefault(clip.speaker, []).append(place)
    several = sorted(
        name for name, places in places_of.items() if not cases[places[0]].recordings & cases[places[-1]].recordings
    )
    right = missed = wrong = named = 0
    for _ in range(draws):
        known = rng.choice(several, 5, replace=False)
        out_of_set = rng.choice(sorted(set(places_of) - set(known)), 2, replace=False)
        pairs = [rng.choice(places_of[name], 2, replace=False) for name in known]
        vectors, ones = enrolled[[first for first, _ in pairs]].astype(np.float64), np.ones(5)
        enrolled_speakers = EnrolledSpeakers(tuple(known), vectors, ones.astype(np.int64), 10 * ones, np.nan * ones)
        rows = [second for _, second in pairs[:2]] + [rng.choice(places_of[name]) for name in out_of_set]
        hypothesis = diarization({f"SPEAKER_{place:02d}": (tested[row], 10.0) for place, row in enumerate(rows)})
        names = identification.identify(hypothesis, enrolled_speakers, threshold=threshold).names
        got = [names.get(f"SPEAKER_{place:02d}") for place in range(4)]
        right += sum(got[place] == known[place] for place in range(2))
        missed += sum(got[place] is None for place in range(2))
        wrong += sum(got[place] not in (None, known[place]) for place in range(2))
        named += sum(name is not None for name in got[2:])
    counts = {"correct": right, "rejected": missed, "confused": wrong, "out-of-set named": named}
    return {what: round(100 * count / (2 * draws), 1) for what, count in counts.items()}


def linking(rows: Floats, cases: list[Clip], threshold: float, draws: int = 10, files: int = 60) -> dict[str, float]:
    """Precision and recall in percent of pairs of clips that have one label, over files of 1 to 4 speakers."""
    rng = np.random.default_rng(0)
    hit = linked = wanted = labels = speakers = 0
    for _ in range(draws):
        left, drawn = list(rng.permutation(len(cases))), []
        while left and len(drawn) < files:
            file: dict[str, int] = {}
            while left and len(file) < rng.integers(1, 5):
                place = int(left.pop())
                file.setdefault(cases[place].speaker, place)
            drawn.append(file)
        linked_files = speaker_linking.link_speakers(
            [diarization({name: (rows[place], 10.0) for name, place in file.items()}) for file in drawn],
            threshold=threshold,
        )
        truth = np.array([name for file in drawn for name in file])
        given = np.array([turn.speaker for linked_file in linked_files for turn in linked_file.turns])
        pairs = np.triu(np.ones((len(truth), len(truth)), bool), 1)
        alike, joined = (truth[:, None] == truth) & pairs, (given[:, None] == given) & pairs
        hit, linked, wanted = hit + (alike & joined).sum(), linked + joined.sum(), wanted + alike.sum()
        labels, speakers = labels + len(set(given)), speakers + len(set(truth))
    return {
        "precision": round(100 * float(hit / max(linked, 1)), 1),
        "recall": round(100 * float(hit / wanted), 1),
        "labels per speaker": round(labels / speakers, 2),
    }


def meetings(embedder: Embedder, data: Path) -> None:
    """Print cosines between speakers of different AMI excerpts."""
    names, means, places = [], [], []
    for path in sorted((data / "diar" / "ami").glob("*.flac")):
        turns = next(iter(read_rttm(path.with_suffix(".rttm")).values()))
        for name in turns.labels():
            others = turns.subset([name], invert=True).get_timeline().support()
            speech = turns.label_timeline(name).support()
            clean = [span for span in speech.extrude(others) if span.duration >= 0.5]
            if sum(span.duration for span in clean) < 3:
                continue
            rows = embedder.spans(path, clean)[:, embedder.bundle.view("speaker")]
            means.append(np.average(rows, axis=0, weights=[span.duration for span in clean]))
            names.append(name)
            places.append(path.stem)
    rows = np.stack(means) / np.linalg.norm(means, axis=1, keepdims=True)
    cosines = rows @ rows.T
    for i in range(len(names)):
        for j in range(i):
            if places[i] != places[j] and names[i] == names[j]:
                print(f"{names[i]} in {places[j]} and {places[i]}: {cosines[i, j]:.2f}")
    different = [cosines[i, j] for i in range(len(names)) for j in range(i) if names[i] != names[j]]
    print(f"Different speakers: {len(different)} pairs, {np.median(different):.2f}, highest {max(different):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="voice")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--meetings", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    embedder = Embedder(args.model, device="cpu")
    cases = clips(args.data)
    default = read_decision(embedder.bundle).threshold
    targets, impostors = trials(cases)
    print(f"{embedder.bundle.fingerprint}: {len(cases)} clips of {len({clip.speaker for clip in cases})} speakers")
    sounds = {
        "as recorded": [clip.waveform for clip in cases],
        "mixed": mixed(cases, args.data, 5),
        "mixed otherwise": mixed(cases, args.data, 6),
    }
    rows = {  # clips are no longer than MAX_CLIP_SECONDS, so those of 20 s are whole
        (name, seconds): units(embedder, [waveform[: seconds * RATE] for waveform in waveforms])
        for name, waveforms in sounds.items()
        for seconds in (TESTS if name in TESTED else TESTS[-1:])
    }
    whole = {name: rows[name, MAX_CLIP_SECONDS] for name in sounds}
    for enrolled, tested in (("as recorded", "as recorded"), ("as recorded", "mixed"), ("mixed otherwise", "mixed")):
        for seconds in TESTS:
            cosines = whole[enrolled] @ rows[tested, seconds].T
            row = figures(cosines, targets, impostors, default)
            print(json.dumps({"enrolled": enrolled, "tested": tested, "seconds": seconds} | row), flush=True)
    cosines = np.concatenate([whole["as recorded"] @ rows[name, seconds].T for name in TESTED for seconds in TESTS])
    times = (len(TESTED) * len(TESTS), 1)
    row = figures(cosines, np.tile(targets, times), np.tile(impostors, times), default)
    print(json.dumps({"enrolled": "as recorded", "tested": "all of these"} | row), flush=True)
    for threshold in THRESHOLDS:
        for name in TESTED:
            task = {"threshold": threshold, "tested": name}
            print(json.dumps(task | recognition(whole["as recorded"], whole[name], cases, threshold)), flush=True)
            print(json.dumps(task | linking(whole[name], cases, threshold)), flush=True)
    if args.meetings:
        meetings(embedder, args.data)


if __name__ == "__main__":
    main()
