"""How alike two recordings of one voice are: what the threshold of known and of linked speakers is chosen by.

    python -m benchmarks.known_speakers --data ../shared/data --model voice

Voices: `training.data.held_out_speakers` but for doubtful names; no training heard them. Recordings of a voice are put
together to clips of 10 to 20 s, at most six a voice; a voice of one recording gives its two halves. One clip enrols,
another, cut to 5, 10 or 20 s, is recognised; every pair of clips that share no recording is a trial (the halves of one
recording are impostors of others only). Conditions: as recorded, or mixed: the tested clips, or both, through a
measured room, the babble of six others (5 to 20 dB) or a telephone's band, as in `benchmarks.speakers`.

Printed: equal errors; the cosine that lets 1 % of the impostors in, and what it costs; false accepts and rejects at the
default threshold, which is where 1 % of the impostors get in, all tests of clips enrolled as recorded together. Then
whole tasks with the same clips: five enrolled voices of which two speak, beside two strangers (`recognise`), and
speakers of up to 60 files given one label a voice (`across.link`; its default is where precision and recall balance
best over both conditions), for several thresholds.
`--meetings` adds the AMI excerpts: voices of true turns of 3 s or more, compared across excerpts.
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
from knn_cli.diarization import linking as across
from knn_cli.embedding.embedder import Embedder
from knn_cli.evaluation.metrics import eer
from knn_cli.formats.rttm import read_rttm
from tools.shipped_models.data import doubtful, held_out_speakers, read_16k, read_manifest

Floats = NDArray[np.float32]
RATE = 16000
CLIPS = 6
LEAST, MOST = 10, 20
TESTS = (5, 10, MOST)
THRESHOLDS = (0.45, 0.5, 0.55, 0.6, 0.625, 0.65, 0.7)
TESTED = ("as recorded", "mixed")


@dataclass(frozen=True)
class Clip:
    """Sound of one voice, and the recordings that it is from."""

    speaker: str
    recordings: frozenset[str]
    waveform: Floats


def clips(data: Path) -> list[Clip]:
    """Up to six clips of every voice."""
    rows = read_manifest(data / "speech" / "manifest.tsv")
    hidden = {name for name in held_out_speakers(rows) if not doubtful(name)}
    of: dict[str, list[str]] = {}
    for row in rows:
        if row["speaker"] in hidden:
            of.setdefault(row["speaker"], []).append(row["path"])
    found = []
    for speaker, paths in of.items():
        if len(paths) == 1:
            sound = read_16k(data / "speech" / paths[0])
            found += [Clip(speaker, frozenset(paths), half) for half in np.array_split(sound, 2)]
            continue
        held: list[str] = []
        parts: list[Floats] = []
        made = 0
        for path in paths:
            held.append(path)
            parts.append(read_16k(data / "speech" / path))
            if sum(map(len, parts)) >= LEAST * RATE and made < CLIPS:
                found.append(Clip(speaker, frozenset(held), np.concatenate(parts)[: MOST * RATE]))
                held, parts, made = [], [], made + 1
    return found


def mixed(found: list[Clip], data: Path, seed: int) -> list[Floats]:
    """Each clip through a room, others' babble, a telephone's band, by a seeded draw; none stays as it is."""
    rng = np.random.default_rng(seed)
    rooms = [read_16k(path) for path in sorted((data / "noise" / "rir").glob("*.flac"))]
    band = butter(6, (300, 3400), "bandpass", fs=RATE, output="sos")
    who, result = np.array([clip.speaker for clip in found]), []
    for clip in found:
        waveform, which = clip.waveform, rng.random(3) < 0.5
        if not which.any():
            which[rng.integers(3)] = True
        if which[0]:
            room = rooms[rng.integers(len(rooms))]
            waveform = fftconvolve(waveform, room[np.abs(room).argmax() :])[: len(waveform)]
        if which[1]:
            others = rng.choice(np.flatnonzero(who != clip.speaker), 6, replace=False)
            babble = sum(np.resize(found[other].waveform, len(waveform)) for other in others)
            gain = np.sqrt(np.mean(waveform**2) / np.mean(babble**2) * 10 ** (-rng.uniform(5, 20) / 10))
            waveform = waveform + gain * babble
        if which[2]:
            waveform = sosfilt(band, waveform)
        result.append((0.3 * waveform / np.abs(waveform).max()).astype(np.float32))
    return result


def units(embedder: Embedder, waveforms: list[Floats]) -> Floats:
    """(N, D) unit vectors of the speaker view."""
    rows = embedder(waveforms)[:, embedder.bundle.view("speaker")]
    made: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return made


def trials(found: list[Clip]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N, N) targets, and impostors: pairs of clips of one voice, and of two, that share no recording."""
    who = np.array([clip.speaker for clip in found])
    same = who[:, None] == who
    apart = np.array([[not (one.recordings & other.recordings) for other in found] for one in found])
    return same & apart, ~same


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


def said(voices: dict[str, tuple[Floats, float]]) -> Diarization:
    """A diarization of one turn a voice."""
    return Diarization(
        tuple(Turn(place, place + 1, name) for place, name in enumerate(voices)),
        speaker_embeddings={name: vector for name, (vector, _) in voices.items()},
        clean_speech_seconds={name: seconds for name, (_, seconds) in voices.items()},
        seconds=float(len(voices)),
    )


def recognition(
    enrolled: Floats, tested: Floats, found: list[Clip], threshold: float, draws: int = 2000
) -> dict[str, float]:
    """Of the known voices that speak, in percent: named rightly, left without a name; and strangers given a name.

    Five voices are enrolled, two of them speak, and two strangers.
    """
    rng = np.random.default_rng(0)
    of: dict[str, list[int]] = {}
    for place, clip in enumerate(found):
        of.setdefault(clip.speaker, []).append(place)
    several = sorted(
        name for name, places in of.items() if not found[places[0]].recordings & found[places[-1]].recordings
    )
    right = missed = wrong = named = 0
    for _ in range(draws):
        known = rng.choice(several, 5, replace=False)
        strangers = rng.choice(sorted(set(of) - set(known)), 2, replace=False)
        pairs = [rng.choice(of[name], 2, replace=False) for name in known]
        vectors, ones = enrolled[[one for one, _ in pairs]].astype(np.float64), np.ones(5)
        voices = identification.EnrolledSpeakers(tuple(known), vectors, ones.astype(np.int64), 10 * ones, np.nan * ones)
        rows = [other for _, other in pairs[:2]] + [rng.choice(of[name]) for name in strangers]
        heard = said({f"SPEAKER_{place:02d}": (tested[row], 10.0) for place, row in enumerate(rows)})
        names = identification.identify(heard, voices, threshold=threshold).names
        got = [names.get(f"SPEAKER_{place:02d}") for place in range(4)]
        right += sum(got[place] == known[place] for place in range(2))
        missed += sum(got[place] is None for place in range(2))
        wrong += sum(got[place] not in (None, known[place]) for place in range(2))
        named += sum(one is not None for one in got[2:])
    counts = {"right": right, "left out": missed, "another's name": wrong, "strangers named": named}
    return {what: round(100 * count / (2 * draws), 1) for what, count in counts.items()}


def linking(rows: Floats, found: list[Clip], threshold: float, draws: int = 10, files: int = 60) -> dict[str, float]:
    """Precision and recall in percent of pairs of clips that have one label, over files of one to four voices each."""
    rng = np.random.default_rng(0)
    hit = linked = wanted = labels = voices = 0
    for _ in range(draws):
        left, drawn = list(rng.permutation(len(found))), []
        while left and len(drawn) < files:
            file: dict[str, int] = {}
            while left and len(file) < rng.integers(1, 5):
                place = int(left.pop())
                file.setdefault(found[place].speaker, place)
            drawn.append(file)
        told = across.link_speakers(
            [said({name: (rows[place], 10.0) for name, place in file.items()}) for file in drawn], threshold=threshold
        )
        truth = np.array([name for file in drawn for name in file])
        given = np.array([turn.speaker for one in told for turn in one.turns])
        pairs = np.triu(np.ones((len(truth), len(truth)), bool), 1)
        alike, joined = (truth[:, None] == truth) & pairs, (given[:, None] == given) & pairs
        hit, linked, wanted = hit + (alike & joined).sum(), linked + joined.sum(), wanted + alike.sum()
        labels, voices = labels + len(set(given)), voices + len(set(truth))
    return {
        "precision": round(100 * float(hit / max(linked, 1)), 1),
        "recall": round(100 * float(hit / wanted), 1),
        "labels a voice": round(labels / voices, 2),
    }


def meetings(embedder: Embedder, data: Path) -> None:
    """Cosines across the AMI excerpts."""
    names, made, places = [], [], []
    for path in sorted((data / "diar" / "ami").glob("*.flac")):
        turns = next(iter(read_rttm(path.with_suffix(".rttm")).values()))
        for name in turns.labels():
            others = turns.subset([name], invert=True).get_timeline().support()
            own = turns.label_timeline(name).support()
            clean = [piece for piece in own.extrude(others) if piece.duration >= 0.5]
            if sum(piece.duration for piece in clean) < 3:
                continue
            rows = embedder.spans(path, clean)[:, embedder.bundle.view("speaker")]
            made.append(np.average(rows, axis=0, weights=[piece.duration for piece in clean]))
            names.append(name)
            places.append(path.stem)
    rows = np.stack(made) / np.linalg.norm(made, axis=1, keepdims=True)
    cosines = rows @ rows.T
    for one in range(len(names)):
        for other in range(one):
            if places[one] != places[other] and names[one] == names[other]:
                print(f"{names[one]} in {places[other]} and {places[one]}: {cosines[one, other]:.2f}")
    different = [cosines[i, j] for i in range(len(names)) for j in range(i) if names[i] != names[j]]
    print(f"Different voices: {len(different)} pairs, {np.median(different):.2f}, highest {max(different):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="voice")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--meetings", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    embedder = Embedder(args.model, device="cpu")
    found = clips(args.data)
    targets, impostors = trials(found)
    print(f"{embedder.bundle.fingerprint}: {len(found)} clips of {len({clip.speaker for clip in found})} voices")
    sounds = {
        "as recorded": [clip.waveform for clip in found],
        "mixed": mixed(found, args.data, 5),
        "mixed otherwise": mixed(found, args.data, 6),
    }
    rows = {  # clips are no longer than MOST, so those of 20 s are whole
        (name, seconds): units(embedder, [waveform[: seconds * RATE] for waveform in waveforms])
        for name, waveforms in sounds.items()
        for seconds in (TESTS if name in TESTED else TESTS[-1:])
    }
    whole = {name: rows[name, MOST] for name in sounds}
    for enrolled, tested in (("as recorded", "as recorded"), ("as recorded", "mixed"), ("mixed otherwise", "mixed")):
        for seconds in TESTS:
            cosines = whole[enrolled] @ rows[tested, seconds].T
            row = figures(cosines, targets, impostors, identification.IDENTIFICATION_THRESHOLD)
            print(json.dumps({"enrolled": enrolled, "tested": tested, "seconds": seconds} | row), flush=True)
    cosines = np.concatenate([whole["as recorded"] @ rows[name, seconds].T for name in TESTED for seconds in TESTS])
    times = (len(TESTED) * len(TESTS), 1)
    row = figures(cosines, np.tile(targets, times), np.tile(impostors, times), identification.IDENTIFICATION_THRESHOLD)
    print(json.dumps({"enrolled": "as recorded", "tested": "all of that"} | row), flush=True)
    for threshold in THRESHOLDS:
        for name in TESTED:
            task = {"threshold": threshold, "tested": name}
            print(json.dumps(task | recognition(whole["as recorded"], whole[name], found, threshold)), flush=True)
            print(json.dumps(task | linking(whole[name], found, threshold)), flush=True)
    if args.meetings:
        meetings(embedder, args.data)


if __name__ == "__main__":
    main()
