"""Crops of cached mel powers, and everything that happens to them before the network hears them.

All of it works on log mel powers, where a channel is an addition, noise an addition of powers, a room a smearing of
powers over time, another vocal tract a stretch of the mel axis: no waveform and no Fourier transform in training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.prepare import EXAM_LANGUAGES, read_manifest
from training.synthesise import OTHERS
from training.teach import QUOTAS, SYNTHETIC, several_voices, speaker_warps, warp_matrix

Frames = NDArray[np.float16]
LANGUAGES = EXAM_LANGUAGES + tuple(OTHERS)  # classes of the language head; those past the fifteen are synthetic only
NO_LABELS = ("gcompris",)  # families whose recordings carry no language label in training: see README.md
NEPER = 10 / np.log(10)  # decibels in one unit of a natural log power


def random_tenth(index: int) -> bool:
    """Recordings that no fold of the evaluation hears: they give the random-split figure beside the honest one."""
    return index % 10 == 7


class Corpus:
    """Recordings end to end in one memory-mapped array of log mel powers (frames, 80)."""

    def __init__(self, cache: Path, name: str) -> None:
        self.frames: Frames = np.load(cache / f"{name}.npy", mmap_mode="r")
        self.offsets: NDArray[np.int64] = np.load(cache / f"{name}.offsets.npy")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def crop(self, index: int, length: int, rng: np.random.Generator) -> tuple[Frames, NDArray[np.int64]]:
        """`length` frames from a random place, going round where the recording is shorter; and their places."""
        start, end = self.offsets[index], self.offsets[index + 1]
        if end - start > length:
            places = start + rng.integers(end - start - length + 1) + np.arange(length)
        else:
            places = start + (rng.integers(end - start) + np.arange(length)) % (end - start)
        return self.frames[places], places


@dataclass(frozen=True)
class Batch:
    """Crops of one length. Absent language, voice or phone labels are -1, absent teacher targets NaN."""

    powers: Tensor  # (B, N, 80) float32, mel powers after augmentation
    language: Tensor  # (B,) int64, index into LANGUAGES
    voice: Tensor  # (B,) int64: speaker index, or number of speakers + speaker index for a warped twin
    teacher: Tensor  # (B, 192) float32
    phones: Tensor  # (B, N) int64


class Material:
    """What one training run may hear.

    Args:
        cache: folder written by prepare.py, synthesise.py and teach.py.
        leave_out: families that are not heard at all, in any loss; with any, a random tenth of the rest is not either.
        keep_only: when given, the only families of real speech that are heard.
    """

    def __init__(self, cache: Path, leave_out: tuple[str, ...] = (), keep_only: tuple[str, ...] = ()) -> None:
        self.cache = cache
        self.rows = read_manifest(cache / "reels.tsv")
        self.real, self.noise = Corpus(cache, "real"), Corpus(cache, "noise")
        self.synthetic = [Corpus(cache, f"synth-{language}") for language in LANGUAGES]
        self.phones = [np.load(cache / f"synth-{language}.phones.npy", mmap_mode="r") for language in LANGUAGES]
        self.phone_count = len(json.loads((cache / "phones.json").read_text()))
        hidden = set(json.loads((cache / "split.json").read_text())["held_out_speakers"])
        heard = [
            i
            for i, row in enumerate(self.rows)
            if row["family"] not in leave_out
            and (not keep_only or row["family"] in keep_only)
            and row["speaker"] not in hidden
            and not (leave_out and random_tenth(i))
        ]
        self.speakers = sorted({row["speaker"] for row in self.rows})
        self.by_speaker: dict[str, list[int]] = {}
        self.by_language: dict[str, dict[str, dict[str, list[int]]]] = {}  # language, family, speaker
        for i in heard:
            row = self.rows[i]
            self.by_speaker.setdefault(row["speaker"], []).append(i)
            if row["language"] in EXAM_LANGUAGES and row["family"] not in NO_LABELS:
                families = self.by_language.setdefault(row["language"], {})
                families.setdefault(row["family"], {}).setdefault(row["speaker"], []).append(i)
        self.twins = [
            {speaker: warp_matrix(factor) for speaker, factor in speaker_warps(self.speakers, version).items()}
            for version in range(1, len(QUOTAS))
        ]
        self.warps = torch.from_numpy(np.stack([warp_matrix(f) for f in np.linspace(0.84, 1.18, 18)]))
        self.reload_teacher()

    def reload_teacher(self) -> None:
        """Read the teacher's targets again: teach.py may be at work beside the training."""
        targets = np.load(self.cache / "teacher.npy")
        self.teacher_mean = np.nanmean(targets[:, 0], axis=0)
        targets = targets - self.teacher_mean
        targets /= np.linalg.norm(targets, axis=2, keepdims=True)
        own: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            if not several_voices(row["speaker"]):
                own.setdefault(row["speaker"], []).append(index)
        for indices in own.values():  # one voice: what its recordings have in common is the target for all of them
            for version in range(targets.shape[1]):
                known = targets[indices, version][~np.isnan(targets[indices, version, 0])]
                if len(known):
                    targets[indices, version] = known.mean(0)
        self.teacher = targets
        self.synthetic_teacher = []
        for language in EXAM_LANGUAGES:
            taught = np.load(self.cache / f"teacher-synth-{language}.npy") - self.teacher_mean
            self.synthetic_teacher.append(taught / np.linalg.norm(taught, axis=1, keepdims=True))

    def batch(self, rng: np.random.Generator, length: int, synthetic: int, labelled: int, voices: int) -> Batch:
        """A batch of `synthetic` + `labelled` (real, with a language) + `voices` (real, any language) crops."""
        crops: list[Frames] = []
        language, voice, teacher, phones = [], [], [], []
        nothing, nothing_taught = np.full(length, -1, np.int64), np.full(192, np.nan, np.float32)
        may_warp: list[bool] = []
        for _ in range(synthetic):
            exam = rng.random() < 0.75
            label = int(rng.integers(15) if exam else rng.integers(15, len(LANGUAGES)))
            corpus = self.synthetic[label]
            taught = exam and rng.random() < 0.5
            index = int(rng.integers(SYNTHETIC if taught else len(corpus)))
            crop, places = corpus.crop(index, length, rng)
            crops.append(crop)
            language.append(label)
            voice.append(-1)
            teacher.append(self.synthetic_teacher[label][index] if taught else nothing_taught)
            may_warp.append(not taught)
            phones.append(self.phones[label][places].astype(np.int64))
        names = sorted(self.by_language)
        for k in range(labelled + voices):
            if k < labelled:
                name = str(rng.choice(names))
                families = self.by_language[name]
                people = families[str(rng.choice(sorted(families)))]
                language.append(LANGUAGES.index(name))
            else:
                people = self.by_speaker
                language.append(-1)
            who = list(people)
            weights = np.sqrt([len(people[p]) for p in who])
            speaker = who[int(rng.choice(len(who), p=weights / weights.sum()))]
            index = int(rng.choice(people[speaker]))
            crop, _ = self.real.crop(index, length, rng)
            there = np.flatnonzero(~np.isnan(self.teacher[index, 1:, 0])) + 1
            version = int(rng.choice(there)) if len(there) and rng.random() < 0.5 else 0
            if version:
                crop = (crop.astype(np.float32) @ self.twins[version - 1][speaker]).astype(np.float16)
            crops.append(crop)
            known = version < 2 and not several_voices(speaker)
            voice.append(self.speakers.index(speaker) + version * len(self.speakers) if known else -1)
            teacher.append(self.teacher[index, version])
            may_warp.append(False)
            phones.append(nothing)
        logs = torch.from_numpy(np.stack(crops)).float()  # (B, N, 80)
        powers = self.augment(logs, torch.tensor(may_warp), rng)
        return Batch(
            powers, torch.tensor(language), torch.tensor(voice), torch.from_numpy(np.stack(teacher)),
            torch.from_numpy(np.stack(phones)),
        )  # fmt: skip

    def augment(self, logs: Tensor, may_warp: Tensor, rng: np.random.Generator) -> Tensor:
        """Log mel powers (B, N, 80) -> powers (B, N, 80), each clip through a random voice, room, line and noise.

        `may_warp` (B,) bool: clips that have no speaker target, whose vocal tract may be changed.
        """
        size, length, bins = logs.shape
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(size, 1, 1, generator=generator)

        def chance(p: float) -> Tensor:
            return torch.rand(size, 1, 1, generator=generator) < p

        which = torch.randint(len(self.warps), (size,), generator=generator)
        warped = torch.bmm(logs, self.warps[which])
        logs = torch.where(chance(0.7) & may_warp[:, None, None], warped, logs)
        logs = logs - logs.amax((1, 2), keepdim=True)

        # room: powers smeared by an exponential decay, the direct sound standing out by -3 to 15 dB
        rows = logs.new_tensor(rng.random(size) < 0.4).nonzero()[:, 0]
        powers = logs.exp()
        if len(rows):
            decay = 10 ** (-6 / (100 * uniform(0.15, 0.8)[rows]))  # power after one frame; T60 in seconds
            lag = (torch.arange(length)[:, None] - torch.arange(length)).float()  # (N, N)
            tail = torch.where(lag > 0, decay ** lag.clamp_min(0), 0.0) * (1 - decay)  # (b, N, N)
            wet = 10 ** (-uniform(-3, 15)[rows] / 10)
            powers[rows] += wet * torch.bmm(tail, powers[rows])

        # line: a smooth random response, a tilt, sometimes a band limit
        place = torch.linspace(0, 1, bins)
        curve = sum(
            torch.randn(size, 1, 1, generator=generator) * torch.cos(np.pi * k * place) / k**0.5 for k in range(1, 7)
        )
        powers = powers * torch.exp(uniform(0, 5) / NEPER * curve)
        plain = torch.exp(logs + uniform(0, 5) / NEPER * curve)  # what a third of the clips stay at
        top, bottom = uniform(0.66, 0.98), uniform(0.02, 0.16)  # of the mel axis: 3 to 7.6 kHz, 30 to 330 Hz
        top = torch.where(chance(0.4), uniform(0.70, 0.75), top)  # a telephone
        cut = torch.where(chance(0.35) & (place > top), -50.0 / NEPER * ((place - top) * 20).clamp(0, 1), 0.0)
        low = -30.0 / NEPER * ((bottom - place) * 20).clamp(0, 1)
        cut = cut + torch.where(chance(0.2) & (place < bottom), low, 0.0)
        powers = powers * cut.exp()

        # noise: recorded, and a coloured hiss
        mean = powers.mean((1, 2), keepdim=True)
        noise = np.stack([self.noise.crop(int(rng.integers(len(self.noise))), length, rng)[0] for _ in range(size)])
        extra = torch.from_numpy(noise).float().exp()
        extra = extra / extra.mean((1, 2), keepdim=True).clamp_min(1e-20)
        powers = powers + torch.where(chance(0.5), mean * 10 ** (-uniform(3, 30) / 10), 0.0) * extra
        hiss = torch.exp(uniform(-6, 2) * place) * torch.empty(logs.shape).exponential_(generator=generator)
        hiss = hiss / hiss.mean((1, 2), keepdim=True)
        powers = powers + torch.where(chance(0.6), mean * 10 ** (-uniform(15, 55) / 10), 0.0) * hiss

        powers = torch.where(chance(0.35), plain, powers)

        # gaps: bins and frames at their mean over time, which the encoder's normalisation turns to nothing
        flat = powers.log().mean(1, keepdim=True).exp()
        for _ in range(2):
            first, width = uniform(0, bins), uniform(0, 9)
            steps = torch.arange(bins).float()
            powers = torch.where((steps >= first) & (steps < first + width), flat, powers)
            first, width = uniform(0, length), uniform(0, 15)
            steps = torch.arange(length).float()[:, None]
            powers = torch.where((steps >= first) & (steps < first + width), flat, powers)
        return powers
