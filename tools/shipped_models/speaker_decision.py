"""Measure when two embeddings are of the same speaker, and write it into the config of a bundle (`speaker_decision`).

    python -m tools.shipped_models.speaker_decision --model models/voice --write [--cache FILE.npz]

Speakers with three recordings or more give three clips of up to 8 s without a common recording; held-out LibriSpeech
speakers give one, as out-of-set speakers. `--held-out` takes the speakers of `data.held_out_speakers` only, for a model
that was trained on the others. Conditions: as recorded; limited to a telephone band; mixed, where a seeded draw for
each clip applies a measured room, babble of six speakers (5 to 20 dB), the telephone band, or any combination.

A user has enrolled 3, 5, 10 or 20 speakers by two clips each, in one condition; the third clips of these owners, and a
clip of every other speaker, are tested in the same or another one. Owners are refused if they do not get their own
name, others are accepted if they get any. All is chosen on half of the speakers: threshold and margin where both
shares, averaged over all users, have the least sum; the weight of the prior in the same way, with calibration; the
threshold of linking by the F1 of linked pairs; the likelihood ratio by logistic regression. Figures are those of the
other half.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.signal import butter, fftconvolve, sosfilt

from knn_cli.core.atomic import replacing_text
from knn_cli.core.values import Diarization, Doubles, EmbeddingSet, Floats, Turn
from knn_cli.core.vectors import l2_normalize
from knn_cli.diarization.linking import link_speakers
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks import bundle
from knn_cli.recognition.speaker_decision import SETTINGS, Clips, SpeakerDecision, calibrate, decision_of
from tools.shipped_models.data import Row, held_out_speakers, is_ambiguous_speaker, read_16k, read_manifest

RATE = 16000
CLIPS, CLIP_SECONDS, MIN_CLIP_SECONDS = 3, 8, 4
ENROLLED = (3, 5, 10, 20)
USERS = 20  # per condition and number of enrolled speakers
# (condition of the enrolled clips, of the tested ones)
DOMAINS = (
    ("recorded", "recorded"),
    ("recorded", "mixed"),
    ("recorded", "telephone"),
    ("telephone", "telephone"),
    ("mixed", "mixed"),
)
THRESHOLDS = np.arange(0.1, 0.9, 0.01)
MARGINS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1)
PRIORS = (2.0, 5.0, 10.0, 20.0, 50.0)
CHOSEN = "on half of the speakers; measured on the others (tools/shipped_models/speaker_decision.py)"
LINKING = np.arange(0.2, 0.8, 0.025)


@dataclass(frozen=True)
class Clip:
    """The waveform of a speaker."""

    speaker: str
    waveform: Floats


def choose_clips(data: Path, *, held_out: bool) -> list[Clip]:
    """Clips without a common recording: three of each speaker that has them, one of held-out LibriSpeech speakers."""
    rows = read_manifest(data / "speech" / "manifest.tsv")
    unheard = set(held_out_speakers(rows))
    of_speaker: dict[str, list[Row]] = {}
    for row in rows:
        if not is_ambiguous_speaker(row["speaker"]) and (row["speaker"] in unheard or not held_out):
            of_speaker.setdefault(row["speaker"], []).append(row)
    result = []
    for speaker in sorted(of_speaker):
        clips = list(_clips([data / "speech" / row["path"] for row in of_speaker[speaker]]))
        if len(clips) == CLIPS:
            result += [Clip(speaker, clip) for clip in clips]
        elif clips and speaker in unheard:
            result.append(Clip(speaker, clips[0]))
    return result


def _clips(paths: list[Path]) -> Iterator[Floats]:
    """Recordings one after the other until there are enough seconds, up to three times."""
    held: list[Floats] = []
    count = 0
    for left, path in zip(range(len(paths), 0, -1), paths, strict=True):
        held.append(read_16k(path))
        enough = sum(map(len, held)) >= CLIP_SECONDS * RATE or (left <= CLIPS - count and len(paths) >= CLIPS)
        if enough and sum(map(len, held)) >= MIN_CLIP_SECONDS * RATE:
            yield np.concatenate(held)[: CLIP_SECONDS * RATE]
            held, count = [], count + 1
            if count == CLIPS:
                return


def distinct_speakers(rows: list[Row]) -> set[str]:
    """Names that cannot be of a person who has another name too.

    The characters of a game are played by few actors. Volunteers without a name who recorded for one program may be
    those who recorded in the same language for another.
    """
    languages: dict[str, set[str]] = {}
    for row in rows:
        languages.setdefault(row["source"], set()).add(row["language"])
    others = {"klettres": ("gcompris",), "ktuberling": ("gcompris", "klettres")}
    return {
        row["speaker"]
        for row in rows
        if row["source"] != "hedgewars"
        and not any(row["language"] in languages.get(other, ()) for other in others.get(row["source"], ()))
    }


class Conditions:
    """Clips as other microphones, places and lines give them; every draw is seeded."""

    def __init__(self, clips: list[Clip], data: Path) -> None:
        self.clips = clips
        self.speakers = np.array([clip.speaker for clip in clips])
        self.rooms = [read_16k(path) for path in sorted((data / "noise" / "rir").glob("*.flac"))]
        self.band = butter(6, (300, 3400), "bandpass", fs=RATE, output="sos")

    def telephone(self) -> list[Floats]:
        """All clips in a telephone band."""
        return [_scaled(sosfilt(self.band, clip.waveform)) for clip in self.clips]

    def mixed(self, seed: int) -> list[Floats]:
        """Each clip in a room, in babble or on the telephone, or several of these."""
        rng = np.random.default_rng(seed)
        result = []
        for clip in self.clips:
            waveform, which = clip.waveform, rng.random(3) < 0.5
            if not which.any():
                which[rng.integers(3)] = True
            if which[0]:
                room = self.rooms[rng.integers(len(self.rooms))]
                waveform = fftconvolve(waveform, room[np.abs(room).argmax() :])[: len(waveform)]
            if which[1]:
                others = rng.choice(np.flatnonzero(self.speakers != clip.speaker), 6, replace=False)
                babble = sum(np.resize(self.clips[other].waveform, len(waveform)) for other in others)
                gain = np.sqrt(np.mean(waveform**2) / np.mean(babble**2) * 10 ** (-rng.uniform(5, 20) / 10))
                waveform = waveform + gain * babble
            if which[2]:
                waveform = sosfilt(self.band, waveform)
            result.append(_scaled(waveform))
        return result


def _scaled(waveform: NDArray[np.floating]) -> Floats:
    return (0.3 * waveform / np.abs(waveform).max()).astype(np.float32)


def embed(embedder: Embedder, clips: list[Clip], data: Path, cache: Path | None) -> dict[str, Floats]:
    """(N, D) unit vectors of all clips by condition, kept in `cache` as they are made."""
    conditions = Conditions(clips, data)
    recorded = [clip.waveform for clip in clips]
    _, first = np.unique(conditions.speakers, return_index=True)
    halves = [np.array_split(recorded[place], 2) for place in first]
    sounds = {
        "recorded": recorded,
        "mixed": conditions.mixed(5),
        "telephone": conditions.telephone(),
        "first half": [first_half for first_half, _ in halves],
        "second half": [second_half for _, second_half in halves],
    }
    done: dict[str, Floats] = {}
    made_by = np.array(f"{embedder.bundle.fingerprint} {len(clips)} {sum(map(len, recorded))}")
    if cache is not None and cache.exists():
        with np.load(cache) as held:
            done = {name: held[name] for name in held.files if held["made by"] == made_by}
    done["made by"] = made_by
    for name, waveforms in sounds.items():
        if name in done:
            continue
        rows = embedder(waveforms)[:, embedder.bundle.view("speaker")]
        done[name] = l2_normalize(rows.astype(np.float64)).astype(np.float32)
        print(f"{name}: {len(rows)} embeddings", flush=True)
        if cache is not None:
            np.savez(cache.with_suffix(".tmp.npz"), **done)
            cache.with_suffix(".tmp.npz").replace(cache)
    return {name: done[name] for name in sounds}


@dataclass(frozen=True)
class Measured:
    """Unit vectors of some speakers' clips by condition."""

    speakers: NDArray[np.str_]
    rows: dict[str, Floats]
    halves: float  # mean cosine of the halves of a clip

    def of(self, chosen: set[str]) -> Measured:
        """The clips of these speakers."""
        kept = np.isin(self.speakers, sorted(chosen))
        return replace(self, speakers=self.speakers[kept], rows={name: rows[kept] for name, rows in self.rows.items()})

    def places(self) -> dict[str, list[int]]:
        """Rows of each speaker."""
        result: dict[str, list[int]] = {}
        for place, name in enumerate(self.speakers.tolist()):
            result.setdefault(name, []).append(place)
        return result


@dataclass(frozen=True)
class User:
    """Enrolled speakers with two clips each, and the cosines (T, K) of tests, the first K of which are the owners'."""

    domain: tuple[str, str]
    clips: Clips
    cosines: Doubles


def users(measured: Measured, seed: int) -> Iterator[tuple[int, User]]:
    """Simulated users with their number of enrolled speakers."""
    rng = np.random.default_rng(seed)
    places = measured.places()
    several = sorted(name for name, rows in places.items() if len(rows) == CLIPS)
    for enrolled in ENROLLED:
        for domain in DOMAINS if enrolled < len(several) else ():
            for _ in range(USERS):
                known = rng.choice(several, enrolled, replace=False).tolist()
                order = [rng.permutation(places[name]) for name in known]
                data = measured.rows[domain[0]][np.array([row[:2] for row in order])].astype(np.float64)  # (K, 2, D)
                others = [int(rng.choice(places[name])) for name in sorted(set(places) - set(known))]
                tested = measured.rows[domain[1]][[row[2] for row in order] + others].astype(np.float64)
                clips, names = Clips(), np.repeat(known, 2)
                files = [f"{name}/{clip % 2}" for clip, name in enumerate(names)]
                clips.add(EmbeddingSet.from_columns(data.reshape(-1, data.shape[2]), files, speaker=names), slice(None))
                yield enrolled, User(domain, clips, tested @ l2_normalize(data.sum(axis=1)).T)


def error_rates(user: User, threshold: float, margin: float) -> tuple[float, float]:
    """Shares of owners that do not get their own name, and of others that get one."""
    count = user.cosines.shape[1]
    second, first = np.sort(user.cosines, axis=1)[:, -2:].T
    named = (first >= threshold) & (first - second >= margin)
    right = named[:count] & (user.cosines[:count].argmax(axis=1) == np.arange(count))
    return float(1 - right.mean()), float(named[count:].mean())


def choose_threshold(drawn: list[tuple[int, User]]) -> tuple[float, float]:
    """Threshold and margin with the least mean sum of both error rates over the users."""
    parts = []
    for enrolled, user in drawn:
        second, first = np.sort(user.cosines, axis=1)[:, -2:].T
        gain = np.full(len(first), -1 / (len(first) - enrolled))  # of naming a test: other speakers cost
        gain[:enrolled] = (user.cosines[:enrolled].argmax(axis=1) == np.arange(enrolled)) / enrolled
        parts.append(np.stack([first, first - second, gain]))
    highest, ahead, gains = np.concatenate(parts, axis=1)
    total = {
        (round(float(threshold), 2), margin): gains[(highest >= threshold) & (ahead >= margin)].sum()
        for threshold in THRESHOLDS
        for margin in MARGINS
    }
    return max(total, key=lambda pair: total[pair])


def likelihood_ratio(drawn: list[tuple[int, User]]) -> tuple[float, float]:
    """Scale and offset by logistic regression on cosines of owners with their own voice and of others with all."""
    same = np.concatenate([np.diag(user.cosines) for _, user in drawn])
    different = np.concatenate([user.cosines[user.cosines.shape[1] :].ravel() for _, user in drawn])

    def cost(values: Doubles) -> float:
        scale, offset = values
        same_cost = np.logaddexp(0, -(scale * same + offset)).mean()
        return float(same_cost + np.logaddexp(0, scale * different + offset).mean())

    scale, offset = minimize(cost, np.array([20.0, -8.0])).x
    return float(scale), float(offset)


def means(measured: Measured) -> dict[str, float]:
    """The mean cosines that `speaker_decision.calibrate` expects of clips as recorded."""
    clips = Clips()
    for name, places in measured.places().items():
        if len(places) == CLIPS:
            rows = measured.rows["recorded"][places[:2]]
            clips.add(EmbeddingSet.from_columns(rows, [f"{name}/0", f"{name}/1"], speaker=[name] * 2), slice(None))
    cosines = clips.cosines()
    return {
        "same_mean": float(np.mean(cosines.same)),
        "same_recording_mean": measured.halves,
        "different_mean": float(np.mean(cosines.different)),
    }


def linking_scores(measured: Measured, threshold: float, seed: int) -> tuple[float, float]:
    """Precision and recall of pairs of clips that get one label, over files of one to four speakers."""
    rng = np.random.default_rng(seed)
    hit = linked = wanted = 0
    for condition in ("recorded", "mixed"):
        left, files = rng.permutation(len(measured.speakers)).tolist(), []
        while left:
            size, file = rng.integers(1, 5), dict[str, int]()
            while left and len(file) < size:
                file.setdefault(str(measured.speakers[left[-1]]), left.pop())
            files.append(file)
        diarizations = [
            Diarization(
                tuple(Turn(place, place + 1, name) for place, name in enumerate(file)),
                speaker_embeddings={name: measured.rows[condition][row] for name, row in file.items()},
                clean_speech_seconds=dict.fromkeys(file, float(CLIP_SECONDS)),
                seconds=float(len(file)),
            )
            for file in files
        ]
        after = link_speakers(diarizations, threshold=threshold)
        truth = np.array([name for file in files for name in file])
        labels = np.array([turn.speaker for diarization in after for turn in diarization.turns])
        pairs = np.triu(np.ones((len(truth), len(truth)), dtype=bool), 1)
        alike, joined = (truth[:, None] == truth) & pairs, (labels[:, None] == labels) & pairs
        hit, linked, wanted = hit + (alike & joined).sum(), linked + joined.sum(), wanted + alike.sum()
    return float(hit / max(linked, 1)), float(hit / wanted)


def choose_linking(measured: Measured) -> float:
    """The linking threshold with the highest F1 of linked pairs."""

    def f1(threshold: float) -> float:
        precision, recall = np.mean([linking_scores(measured, threshold, seed) for seed in range(3)], axis=0)
        return float(2 * precision * recall / max(precision + recall, 1e-9))

    return round(float(max(LINKING, key=f1)), 3)


def choose(measured: Measured) -> dict[str, float]:
    """All settings, on these speakers."""
    drawn = list(users(measured, 0))
    threshold, margin = choose_threshold(drawn)
    scale, offset = likelihood_ratio(drawn)
    settings = {
        **{"threshold": threshold, "margin": margin, "linking_threshold": choose_linking(measured)},
        **{"llr_scale": scale, "llr_offset": offset, **means(measured), "prior_speakers": PRIORS[-1]},
    }
    costs = {}
    for prior in PRIORS:
        decision = decision_of({**settings, "prior_speakers": prior})
        costs[prior] = np.mean([sum(rates(decision, user, calibrated=True)) for _, user in drawn])
    settings["prior_speakers"] = min(costs, key=lambda prior: costs[prior])
    return {name: round(value, 4) for name, value in settings.items()}


def rates(decision: SpeakerDecision, user: User, *, calibrated: bool) -> tuple[float, float]:
    """Error rates of a user with the shipped decision, or with the one that is calibrated on the user's speakers."""
    decision = calibrate(decision, user.clips) if calibrated else decision
    return error_rates(user, decision.threshold, decision.margin)


def report(decision: SpeakerDecision, measured: Measured) -> list[dict[str, object]]:
    """Percentages of owners refused and others accepted, by domain and number of enrolled speakers."""
    found: dict[tuple[str, str, int], list[tuple[float, ...]]] = {}
    for enrolled, user in users(measured, 1):
        moved = calibrate(decision, user.clips).threshold
        shares = (*rates(decision, user, calibrated=False), *rates(decision, user, calibrated=True), moved)
        found.setdefault((*user.domain, enrolled), []).append(shares)
    table: list[dict[str, object]] = []
    for (enrolled_in, tested_in, enrolled), shares in found.items():
        refused, accepted, own_refused, own_accepted, moved = np.mean(shares, axis=0).tolist()
        table.append(
            {"enrolled in": enrolled_in, "tested in": tested_in, "enrolled": enrolled}
            | {
                "shipped: owners refused %": round(100 * refused, 1),
                "shipped: others accepted %": round(100 * accepted, 1),
            }
            | {"calibrated: owners refused %": round(100 * own_refused, 1)}
            | {"calibrated: others accepted %": round(100 * own_accepted, 1), "mean threshold": round(moved, 3)}
        )
    return table


def by_enrolled(table: list[dict[str, object]]) -> dict[str, dict[str, float]]:
    """Means of a report over the domains, by number of enrolled speakers."""
    counts = sorted({int(str(row["enrolled"])) for row in table})
    columns = [name for name in table[0] if "%" in name]
    return {
        f"{count} enrolled": {
            name: round(float(np.mean([float(str(row[name])) for row in table if row["enrolled"] == count])), 1)
            for name in columns
        }
        for count in counts
    }


def measure(embedder: Embedder, data: Path, *, held_out: bool, cache: Path | None) -> tuple[Measured, Measured]:
    """The half of the speakers to choose on, and the other half."""
    clips = choose_clips(data, held_out=held_out)
    rows = embed(embedder, clips, data, cache)
    halves = np.sum(rows.pop("first half") * rows.pop("second half"), axis=1)
    names, chosen = np.unique([clip.speaker for clip in clips]), np.random.default_rng(0)
    kept = np.isin(names, sorted(distinct_speakers(read_manifest(data / "speech" / "manifest.tsv"))))
    names, halves = names[kept], halves[kept]
    first = set(chosen.choice(names, len(names) // 2, replace=False).tolist())
    in_first = np.isin(names, sorted(first))
    everybody = Measured(np.array([clip.speaker for clip in clips]), rows, math.nan)
    return (
        replace(everybody.of(first), halves=float(halves[in_first].mean())),
        replace(everybody.of(set(names.tolist()) - first), halves=float(halves[~in_first].mean())),
    )


def write_settings(folder: Path, settings: dict[str, object]) -> None:
    """Put the settings into the config of a bundle, whose fingerprint stays."""
    path = folder / bundle.CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    with replacing_text(path) as file:
        file.write(json.dumps({**config, SETTINGS: settings}, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="voice")
    parser.add_argument("--embedder", help="bundle that embeds in place of it: the same network in other weights")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--cache", type=Path, help="keep the embeddings here")
    parser.add_argument("--write", action="store_true", help="into the config of the model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    embedder = Embedder(args.embedder or args.model, device="cpu")
    first, second = measure(embedder, args.data, held_out=args.held_out, cache=args.cache)
    settings = choose(first)
    table = report(decision_of(settings), second)
    for row in table:
        print(json.dumps(row), flush=True)
    precision, recall = np.mean([linking_scores(second, settings["linking_threshold"], s) for s in range(3)], axis=0)
    linked = {"precision %": round(100 * float(precision), 1), "recall %": round(100 * float(recall), 1)}
    print(json.dumps({"linking": linked}))
    print(json.dumps(settings))
    if args.write:
        whole = {**settings, "measured": {**by_enrolled(table), "linking": linked}, "chosen": CHOSEN}
        write_settings(bundle.find(args.model).folder, whole)


if __name__ == "__main__":
    main()
