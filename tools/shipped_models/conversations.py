"""Conversations simulated from recordings of single speakers (meetings, calls, broadcasts), with exact references.

    generator = np.random.default_rng(seed)
    speakers = SpeakerRecordings(data, work, names)
    conversation = simulate(speakers, generator)

Turn-taking follows what corpora of conversation agree on: most changes of speaker come after a gap of about 0.2 to
0.6 s or with a short overlap (Heldner and Edlund, "Pauses, gaps and overlaps in conversations", J. Phonetics 2010),
listeners give short feedback while others speak, and all of this varies between conversations. A turn is a section
of a single recording with the pauses in it; pauses of MAX_PAUSE and longer are non-speech in the reference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray
from pyannote.core import Annotation, Segment, Timeline
from scipy.signal import butter, fftconvolve, sosfilt

from knn_cli.audio import segments, speech_activity
from knn_cli.core.values import Floats
from tools.shipped_models.data import read_16k, read_manifest, write_array

RATE = 16_000
MAX_PAUSE = 0.6  # seconds of silence inside a turn that still count as speech
Region = tuple[int, int]  # first sample, one past the last


@dataclass(frozen=True)
class Conversation:
    """A waveform (S,) float32 at 16 kHz and its reference: who speaks when."""

    samples: Floats
    truth: Annotation

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


class SpeakerRecordings:
    """Recordings of `speakers` with their speech regions, plus room impulse responses, noises and music to mix with.

    Decoded waveforms and speech regions are cached in WORK/cache, all recordings of the manifest concatenated.
    """

    def __init__(self, data: Path, work: Path, speakers: set[str]) -> None:
        rows = read_manifest(data / "speech" / "manifest.tsv")
        cache = work / "cache"
        if not (cache / "speech-regions.npy").exists():
            _prepare([data / "speech" / row["path"] for row in rows], cache)
        self.sound: NDArray[np.int16] = np.load(cache / "speech-16k.npy", mmap_mode="r")
        regions = np.load(cache / "speech-regions.npy")  # (R, 3): recording, first and last sample
        self.reels: dict[str, list[list[Region]]] = defaultdict(list)
        split = np.searchsorted(regions[:, 0], np.arange(len(rows) + 1))
        for index, row in enumerate(rows):
            spans = [(int(first), int(last)) for _, first, last in regions[split[index] : split[index + 1]]]
            if row["speaker"] in speakers and spans:
                self.reels[row["speaker"]].append(spans)
        self.names = sorted(self.reels)
        self.rooms = [_direct(read_16k(path)) for path in sorted((data / "noise" / "rir").glob("*.flac"))]
        self.noises = [read_16k(path) for path in sorted((data / "noise" / "esc10").glob("*.opus"))]
        self.music = [read_16k(path) for path in sorted((data / "noise" / "music").glob("*.*"))]

    def turn(self, speaker: str, seconds: float, generator: np.random.Generator) -> tuple[Floats, list[Region]]:
        """About `seconds` of a recording (S,), and its speech regions; long pauses are shortened."""
        reel = self.reels[speaker][int(generator.integers(len(self.reels[speaker])))]
        place, wanted = int(generator.integers(len(reel))), round(seconds * RATE)
        parts: list[Floats] = []
        active: list[Region] = []
        length = 0
        while length < wanted and place < len(reel):
            first, last = reel[place]
            if not parts and last - first > wanted:  # start anywhere inside a long region
                first += int(generator.integers(last - first - wanted + 1))
            last = min(last, first + wanted - length)
            parts.append(self.sound[first:last].astype(np.float32) / 32768)
            active.append((length, length + last - first))
            length += last - first
            place += 1
            if place < len(reel) and length < wanted:
                pause = min(reel[place][0] - last, round(generator.uniform(0.1, 0.7) * RATE))
                parts.append(self.sound[last : last + pause].astype(np.float32) / 32768)
                length += pause
        sound = np.concatenate(parts)
        edge = min(80, len(sound) // 2)
        sound[:edge] *= np.linspace(0, 1, edge, dtype=np.float32)
        sound[len(sound) - edge :] *= np.linspace(1, 0, edge, dtype=np.float32)
        return sound, active


def _prepare(paths: list[Path], cache: Path) -> None:
    """Decode all recordings once and detect speech in the clean waveforms."""
    offset, sounds, regions = 0, [], []
    for batch in range(0, len(paths), 64):
        recordings = [read_16k(path) for path in paths[batch : batch + 64]]
        for number, (samples, probabilities) in enumerate(
            zip(recordings, speech_activity.probabilities(recordings), strict=True), start=batch
        ):
            end = len(samples) / RATE
            speech = segments.binarize(
                probabilities, speech_activity.FRAME / speech_activity.RATE, end=end, min_silence=0.12, pad=0.02
            )
            regions += [(number, offset + round(span.start * RATE), offset + round(span.end * RATE)) for span in speech]
            sounds.append((samples.clip(-1, 1) * 32767).astype(np.int16))
            offset += len(samples)
    write_array(cache / "speech-16k.npy", np.concatenate(sounds))
    write_array(cache / "speech-regions.npy", np.array(regions, dtype=np.int64).reshape(-1, 3))


def _direct(room: Floats) -> Floats:
    """A room impulse response cut to begin at the direct sound, normalised to an energy of 1."""
    room = room[int(np.abs(room).argmax()) :][: RATE // 2]
    return room / np.float32(np.sqrt(np.sum(room**2)))


def _synthetic_room(generator: np.random.Generator) -> Floats:
    """Direct sound and an exponentially decaying tail of noise (Polack's model), T60 0.15 to 0.8 s, energy 1."""
    t60 = generator.uniform(0.15, 0.8)
    times = np.arange(round(0.7 * t60 * RATE)) / RATE
    tail = generator.standard_normal(len(times)) * 10 ** (-3 * times / t60)
    tail[: round(generator.uniform(0.001, 0.01) * RATE)] = 0
    room = tail / np.sqrt(np.sum(tail**2)) * 10 ** (-generator.uniform(-3, 15) / 20)
    room[0] = 1.0
    return (room / np.sqrt(np.sum(room**2))).astype(np.float32)


def _level(samples: Floats) -> float:
    """Root mean square of the samples that are not silent."""
    power = np.square(samples)
    loud = power[power > 1e-4 * power.max(initial=0.0)]
    return float(np.sqrt(loud.mean())) if len(loud) else 1e-6


def _take_turns(
    count: int, seconds: float, say: Callable[[int, float, float], float], generator: np.random.Generator
) -> None:
    """Let `count` speakers take turns: `say(speaker, start, target seconds)` returns the actual duration in seconds."""
    share = generator.dirichlet(np.full(count, 2.0))
    overlaps, listens = generator.uniform(0.05, 0.5), generator.uniform(0, 0.4)
    usual, gap = generator.uniform(0.2, 1.3), generator.uniform(0.1, 0.6)
    silent = generator.random() < 0.5  # long periods of silence
    now, last = min(seconds / 2, float(generator.exponential(10.0 if silent else 0.7))), -1
    while now < seconds:
        others = [other for other in range(count) if other != last]
        again = not others or (last >= 0 and generator.random() < 0.12)
        speaker = last if again and last >= 0 else int(generator.choice(others, p=share[others] / share[others].sum()))
        length = say(speaker, now, float(np.clip(generator.lognormal(usual, 0.8), 0.4, 15.0)))
        listeners = [other for other in range(count) if other != speaker]
        inside = float(generator.exponential(1.5))
        while listeners and inside < length - 0.5 and generator.random() < listens:  # feedback from listeners
            inside += say(int(generator.choice(listeners)), now + inside, float(generator.uniform(0.3, 1.2)))
            inside += float(generator.exponential(1.5))
        end, last = now + length, speaker
        if count > 1 and generator.random() < overlaps:
            now = max(now + 0.3, end - float(generator.exponential(0.7)))
        else:
            now = end + float(generator.exponential(gap))
            if generator.random() < (0.2 if silent else 0.06):
                now += float(generator.exponential(10.0 if silent else 3.0))


def simulate(
    recordings: SpeakerRecordings,
    generator: np.random.Generator,
    *,
    count: int | None = None,
    seconds: float | None = None,
) -> Conversation:
    """A conversation of `count` speakers (a random 1 to 5 if None) of about `seconds` (a random 30 to 90 if None)."""
    count = int(generator.choice([1, 2, 3, 4, 5], p=[0.08, 0.34, 0.28, 0.2, 0.1])) if count is None else count
    seconds = float(generator.uniform(30, 90)) if seconds is None else seconds
    names = list(generator.choice(recordings.names, count, replace=False))
    scene = str(generator.choice(["close", "room", "phone"], p=[0.35, 0.45, 0.2]))
    speeds = generator.uniform(0.92, 1.09, count)
    gains = 10 ** (generator.normal(0, 3 if scene == "close" else 6, count) / 20)
    shared_room = _synthetic_room(generator)
    rooms = [
        recordings.rooms[int(generator.integers(len(recordings.rooms)))]
        if generator.random() < 0.4
        else _synthetic_room(generator)
        for _ in range(count)
    ]
    if scene == "room" and generator.random() < 0.3:
        rooms = [shared_room] * count
    tilts = [_tilt(generator) for _ in range(count)]
    mix = np.zeros(round((seconds + 20) * RATE), dtype=np.float32)
    active: dict[int, list[Segment]] = defaultdict(list)
    levels: dict[int, float] = {}

    def say(speaker: int, start: float, length: float) -> float:
        speed = speeds[speaker]
        sound, regions = recordings.turn(names[speaker], length * speed, generator)
        sound = soxr.resample(sound, RATE * speed, RATE, quality="LQ").astype(np.float32)
        length = len(sound) / RATE
        level = levels.setdefault(speaker, _level(sound))
        now = 10 ** (generator.normal(-2 if length < 1.2 else 0, 2.5) / 20)  # short utterances are quieter
        sound = sosfilt(tilts[speaker], sound).astype(np.float32) * np.float32(0.05 * gains[speaker] * now / level)
        if scene == "room":
            sound = fftconvolve(sound, rooms[speaker]).astype(np.float32)
        first = round(start * RATE)
        sound = sound[: max(0, len(mix) - first)]
        mix[first : first + len(sound)] += sound
        active[speaker] += [Segment(start + a / RATE / speed, start + b / RATE / speed) for a, b in regions]
        return length

    _take_turns(count, seconds, say, generator)
    last = max(span.end for spans in active.values() for span in spans)
    last = last + generator.exponential(0.8) if generator.random() < 0.7 else max(last, seconds)
    mix = mix[: round(min(last, len(mix) / RATE) * RATE)]
    mix = _line(_noisy(mix, scene, recordings, generator), scene, generator)
    peak = float(np.abs(mix).max())
    mix *= np.float32(generator.uniform(0.1, 0.95) / max(peak, 1e-6))
    truth, track = Annotation(), 0
    for speaker, spans in active.items():
        for span in Timeline(spans).support(collar=MAX_PAUSE):
            truth[span, track] = str(names[speaker])
            track += 1
    return Conversation(mix, truth.crop(Segment(0, len(mix) / RATE)))


def _tilt(generator: np.random.Generator) -> NDArray[np.float64]:
    """A gentle first-order low- or high-pass filter, which imitates a different microphone."""
    if generator.random() < 0.5:
        return butter(1, generator.uniform(2000, 7500), "lowpass", fs=RATE, output="sos")
    return butter(1, generator.uniform(20, 300), "highpass", fs=RATE, output="sos")


def _noisy(mix: Floats, scene: str, recordings: SpeakerRecordings, generator: np.random.Generator) -> Floats:
    """Add continuous or intermittent recorded noise, occasional music, and hiss."""
    level, size = _level(mix), len(mix)
    if generator.random() < 0.6:
        floor = np.zeros(size, dtype=np.float32)
        place = 0
        steady = generator.random() < 0.5
        while place < size:
            source = recordings.noises if generator.random() < 0.75 else recordings.music
            noise = source[int(generator.integers(len(source)))]
            noise = noise[int(generator.integers(max(1, len(noise) // 2))) :][: RATE * 8]
            noise = noise[: size - place] / np.float32(max(_level(noise), 1e-5))
            floor[place : place + len(noise)] = noise
            place += len(noise) + (0 if steady else round(generator.exponential(6.0) * RATE))
        snr = generator.uniform(8, 35) if steady else generator.uniform(-8, 25)
        mix = mix + floor * np.float32(level * 10 ** (-snr / 20))
    hiss = generator.standard_normal(size).astype(np.float32)
    if generator.random() < 0.6:
        hiss = sosfilt(butter(1, generator.uniform(100, 3000), "lowpass", fs=RATE, output="sos"), hiss).astype(
            np.float32
        )
    snr = generator.uniform(12, 40) if scene == "room" else generator.uniform(20, 60)
    return mix + hiss * np.float32(level * 10 ** (-snr / 20) / max(_level(hiss), 1e-6))


def _line(mix: Floats, scene: str, generator: np.random.Generator) -> Floats:
    """Telephone band and mu-law quantisation for calls; an occasional low-pass filter for other scenes."""
    if scene == "phone":
        band = butter(
            4, (generator.uniform(150, 350), generator.uniform(3100, 3800)), "bandpass", fs=RATE, output="sos"
        )
        mix = sosfilt(band, mix).astype(np.float32)
        peak = np.float32(np.abs(mix).max() + 1e-9)
        steps = np.round(127 * np.sign(mix) * np.log1p(255 * np.abs(mix / peak)) / np.log(256)) / 127
        return (peak * np.sign(steps) * np.expm1(np.abs(steps) * np.log(256)) / 255).astype(np.float32)
    if generator.random() < 0.25:
        return sosfilt(butter(6, generator.uniform(3400, 7000), "lowpass", fs=RATE, output="sos"), mix).astype(
            np.float32
        )
    return mix
