"""Meetings, calls and conversations simulated from recordings of single speakers, with references like annotators'.

    generator = np.random.default_rng(seed)
    recordings = SpeakerRecordings(data, work, names)
    conversation = simulate(recordings, generator)

`turn_taking` says who takes the floor when, `rooms` how a place in a room sounds. A scene is recorded by close
microphones, by headsets whose signals are added, by one far microphone on a table, or over the telephone.

    python -m tools.shipped_models.conversations --work WORK --out FOLDER [--data ../shared/data]

writes the development set: FOLDER/meetings has 24 excerpts of 30 s, cut out of longer meetings of three or four
speakers who often overlap, FOLDER/conversations has 16 of 1 to 3 minutes with two to six speakers. They are those
whom `held_out_speakers` keeps out of every training.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from pyannote.core import Annotation, Segment, Timeline
from scipy.signal import butter, fftconvolve, sosfilt

from knn_cli.audio import segments, speech_activity
from knn_cli.core.values import Floats
from knn_cli.formats.rttm import write_rttm
from tools.shipped_models import rooms
from tools.shipped_models.data import held_out_speakers, is_ambiguous_speaker, read_16k, read_manifest, write_array
from tools.shipped_models.turn_taking import take_turns

RATE = 16_000
MAX_PAUSE = 0.8  # seconds of silence inside a turn that still count as speech: AMI's annotators leave no shorter ones
LEAD, TRAIL = 0.05, 0.15  # seconds by which annotators begin a turn before the first sound and end it after the last
SHORT = 1.0  # seconds; shorter utterances are whole sounds of the speaker where there are any
SCENES = {"far": 0.35, "headsets": 0.3, "close": 0.2, "phone": 0.15}
MEETING_SCENES = {"far": 0.5, "headsets": 0.5}
DISTURBANCES = ("person_sneeze", "clock_tick", "dog_bark")  # recorded sounds that occur in a room
SEED = 15_003  # of the development set
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
    """Recordings of `speakers` with their speech regions, plus rooms, noises and music to mix with.

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
        self.rooms = [read_16k(path) for path in sorted((data / "noise" / "rir").glob("*.flac"))]
        noises = sorted((data / "noise" / "esc10").glob("*.opus"))
        self.noises = [read_16k(path) for path in noises]
        self.disturbances = [
            samples for path, samples in zip(noises, self.noises, strict=True) if path.name.startswith(DISTURBANCES)
        ]
        self.music = [read_16k(path) for path in sorted((data / "noise" / "music").glob("*.*"))]


class Voice:
    """A speaker of one conversation: goes through the recordings in a random order, so that words seldom recur."""

    def __init__(self, recordings: SpeakerRecordings, name: str, generator: np.random.Generator) -> None:
        reels = recordings.reels[name]
        self.name, self.sound, self.generator = name, recordings.sound, generator
        self.regions = [region for place in generator.permutation(len(reels)) for region in reels[int(place)]]
        self.place, self.done = int(generator.integers(len(self.regions))), 0
        self.lengths = np.array([last - first for first, last in self.regions]) / RATE

    def say(self, seconds: float) -> Floats:
        """About `seconds` of speech (S,) float32 with short pauses, at a common level."""
        near = np.flatnonzero(np.abs(self.lengths / seconds - 1) < 0.35)
        if seconds < SHORT and len(near):
            first, last = self.regions[int(self.generator.choice(near))]
            sound = self._cut(first, last)
        else:
            sound = self._go_on(round(seconds * RATE))
        return sound * np.float32(0.05 / max(_level(sound), 1e-6))

    def _go_on(self, wanted: int) -> Floats:
        parts: list[Floats] = []
        length = 0
        while length < wanted:
            first, last = self.regions[self.place]
            first += self.done
            stop = min(last, first + wanted - length)
            parts.append(self._cut(first, stop))
            length, self.done = length + stop - first, self.done + stop - first
            if stop == last:
                self.place, self.done = (self.place + 1) % len(self.regions), 0
                pause = round(float(np.clip(self.generator.lognormal(-1.5, 0.5), 0.08, 0.75)) * RATE)
                if length + pause < wanted - RATE // 10:
                    breath = self.sound[last : last + min(pause, self._silence(last))].astype(np.float32) / 32768
                    parts.append(np.pad(breath, (0, pause - len(breath))))
                    length += pause
                else:
                    break
        return np.concatenate(parts)

    def _silence(self, last: int) -> int:
        """Samples between the region that ends at `last` and the next one of the same recording, 0 if none follows."""
        first = self.regions[self.place][0]
        return first - last if 0 <= first - last < RATE else 0

    def _cut(self, first: int, last: int) -> Floats:
        sound = self.sound[first:last].astype(np.float32) / 32768
        edge = min(80, len(sound) // 2)
        sound[:edge] *= np.linspace(0, 1, edge, dtype=np.float32)
        sound[len(sound) - edge :] *= np.linspace(1, 0, edge, dtype=np.float32)
        return sound


def _prepare(paths: list[Path], cache: Path) -> None:
    """Decode all recordings once and detect speech in the clean waveforms."""
    cache.mkdir(parents=True, exist_ok=True)
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


def _level(samples: Floats) -> float:
    """Root mean square of the samples that are not silent."""
    power = np.square(samples)
    loud = power[power > 1e-4 * power.max(initial=0.0)]
    return float(np.sqrt(loud.mean())) if len(loud) else 1e-6


@dataclass(frozen=True)
class Utterance:
    """What a speaker says (S,), and when it starts, in seconds."""

    speaker: int
    start: float
    sound: Floats

    @property
    def end(self) -> float:
        return self.start + len(self.sound) / RATE


def simulate(
    recordings: SpeakerRecordings,
    generator: np.random.Generator,
    *,
    count: int | None = None,
    seconds: float | None = None,
    excerpt: float | None = None,
    scenes: dict[str, float] | None = None,
    phases: dict[str, float] | None = None,
) -> Conversation:
    """A conversation of `count` speakers (a random 1 to 5 if None) of about `seconds` (a random 30 to 90 if None).

    With `excerpt`, only so many seconds out of it, from a random place at which somebody speaks. `scenes` and `phases`
    weigh SCENES and `turn_taking.PHASES`.
    """
    count = int(generator.choice([1, 2, 3, 4, 5], p=[0.08, 0.27, 0.28, 0.27, 0.1])) if count is None else count
    seconds = float(generator.uniform(30, 90)) if seconds is None else seconds
    weights = np.array(list((scenes or SCENES).values()))
    scene = str(generator.choice(list(scenes or SCENES), p=weights / weights.sum()))
    voices = [Voice(recordings, str(name), generator) for name in generator.choice(recordings.names, count, False)]
    speeds = generator.uniform(0.92, 1.09, count)
    said: list[Utterance] = []

    def say(speaker: int, start: float, length: float) -> float:
        speed = speeds[speaker]
        sound = voices[speaker].say(length * speed)
        said.append(Utterance(speaker, start, soxr.resample(sound, RATE * speed, RATE, quality="LQ")))
        return len(said[-1].sound) / RATE

    take_turns(count, seconds, say, generator, phases)
    size = max(each.end for each in said)
    if excerpt is None:
        first, size = 0.0, size + float(generator.exponential(0.8))
    else:
        start = said[int(generator.integers(len(said)))].start - excerpt * generator.random()
        first = min(max(0.0, start), max(0.0, size - excerpt))
        size = excerpt
    said = [each for each in said if each.start < first + size and each.end + 0.5 > first]
    mix, room = _recorded(said, first, size, count, scene, recordings, generator)
    mix = _line(_noisy(mix, scene, room, recordings, generator), scene, generator)
    mix *= np.float32(10 ** (-generator.uniform(0.5, 26) / 20) / max(float(np.abs(mix).max()), 1e-6))
    return Conversation(mix, _reference(said, [voice.name for voice in voices], first, size))


def _reference(said: list[Utterance], names: list[str], first: float, size: float) -> Annotation:
    """Turns as annotators mark them, from `first` seconds on: generous, through short pauses."""
    truth = Annotation()
    for speaker, name in enumerate(names):
        spans = [Segment(each.start - LEAD, each.end + TRAIL) for each in said if each.speaker == speaker]
        for span in Timeline(spans).support(collar=MAX_PAUSE):
            if min(span.end - first, size) - max(span.start - first, 0.0) > LEAD:
                truth[Segment(max(span.start - first, 0.0), min(span.end - first, size)), len(truth)] = name
    return truth


def _recorded(
    said: list[Utterance],
    first: float,
    size: float,
    count: int,
    scene: str,
    recordings: SpeakerRecordings,
    generator: np.random.Generator,
) -> tuple[Floats, rooms.Room]:
    """What is recorded from `first` seconds on, without noise (S,), and the room of it."""
    room = _room(recordings, generator)
    distances = generator.uniform(0.5, 4.0, count) if scene == "far" else generator.uniform(0.12, 0.5, count)
    responses = [room.response(distance, generator) for distance in distances]
    if scene != "far":  # microphones of the same distance, whose levels were set by hand
        responses = [response / np.sqrt(np.sum(response**2)) for response in responses]
    gains = generator.normal(0, {"far": 2.5, "headsets": 5.0}.get(scene, 3.0), count).clip(-10, 10)
    tilts = [_tilt(generator) for _ in range(count)]
    mix = np.zeros(round(size * RATE), dtype=np.float32)
    for each in said:
        quiet = -3 if len(each.sound) < SHORT * RATE else 0  # feedback is said in a lower voice
        gain = np.float32(10 ** ((gains[each.speaker] + generator.normal(quiet, 2.5)) / 20))
        sound = sosfilt(tilts[each.speaker], each.sound).astype(np.float32) * gain
        if scene in ("far", "headsets"):
            sound = fftconvolve(sound, responses[each.speaker]).astype(np.float32)
        start = round((each.start - first) * RATE)
        sound, start = sound[max(0, -start) :], max(0, start)
        sound = sound[: max(0, len(mix) - start)]
        mix[start : start + len(sound)] += sound
    return mix, room


def _room(recordings: SpeakerRecordings, generator: np.random.Generator) -> rooms.Room:
    critical = float(generator.uniform(0.6, 1.8))
    if generator.random() < 0.5:
        return rooms.measured(recordings.rooms[int(generator.integers(len(recordings.rooms)))], critical)
    return rooms.synthetic(float(generator.uniform(0.2, 0.8)), critical, generator)


def _tilt(generator: np.random.Generator) -> NDArray[np.float64]:
    """A gentle first-order low- or high-pass filter, which imitates a different microphone."""
    if generator.random() < 0.5:
        return butter(1, generator.uniform(2000, 7500), "lowpass", fs=RATE, output="sos")
    return butter(1, generator.uniform(20, 300), "highpass", fs=RATE, output="sos")


def _noisy(
    mix: Floats, scene: str, room: rooms.Room, recordings: SpeakerRecordings, generator: np.random.Generator
) -> Floats:
    """Add noise from a distance, now and then a sneeze or a clock, music, and the hiss of the microphones."""
    level, size = _level(mix), len(mix)
    if generator.random() < 0.6:
        noise = _background(size, recordings, generator)
        if scene in ("far", "headsets"):
            noise = fftconvolve(noise, room.diffuse(generator))[:size].astype(np.float32)
        ratio = generator.uniform(*{"far": (3, 30), "headsets": (12, 40)}.get(scene, (5, 35)))
        mix = mix + noise * np.float32(level * 10 ** (-ratio / 20) / max(_level(noise), 1e-6))
    if scene in ("far", "headsets") and generator.random() < 0.4:
        for start in np.cumsum(generator.exponential(25 * RATE, 1 + size // (25 * RATE))).astype(int):
            sound = recordings.disturbances[int(generator.integers(len(recordings.disturbances)))][: 4 * RATE]
            sound = fftconvolve(sound / np.float32(max(_level(sound), 1e-5)), room.diffuse(generator))
            sound = sound[: max(0, size - start)] * level * 10 ** (generator.uniform(-15, 3) / 20)
            mix[start : start + len(sound)] += sound.astype(np.float32)
    hiss = generator.standard_normal(size).astype(np.float32)
    if generator.random() < 0.6:
        hiss = sosfilt(butter(1, generator.uniform(100, 3000), "lowpass", fs=RATE, output="sos"), hiss).astype(
            np.float32
        )
    ratio = generator.uniform(*{"far": (12, 40), "headsets": (25, 50)}.get(scene, (20, 60)))
    return mix + hiss * np.float32(level * 10 ** (-ratio / 20) / max(_level(hiss), 1e-6))


def _background(size: int, recordings: SpeakerRecordings, generator: np.random.Generator) -> Floats:
    """Recorded noise or music (size,), steady or now and then."""
    floor = np.zeros(size, dtype=np.float32)
    place, steady = 0, generator.random() < 0.5
    while place < size:
        source = recordings.noises if generator.random() < 0.85 else recordings.music
        noise = source[int(generator.integers(len(source)))]
        noise = noise[int(generator.integers(max(1, len(noise) // 2))) :][: RATE * 8][: size - place]
        floor[place : place + len(noise)] = noise / np.float32(max(_level(noise), 1e-5))
        place += len(noise) + (0 if steady else round(generator.exponential(6.0) * RATE))
    return floor


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


def write_development(data: Path, work: Path, folder: Path) -> None:
    """Write the development set as FOLDER/SET/NAME.flac with NAME.rttm, each file seeded by its number."""
    hidden = {
        name
        for name in held_out_speakers(read_manifest(data / "speech" / "manifest.tsv"))
        if not is_ambiguous_speaker(name)
    }
    recordings = SpeakerRecordings(data, work, hidden)
    for number in range(40):
        generator = np.random.default_rng([SEED, number])
        if number < 24:
            name, phases = f"meetings/meeting{number:02d}", {"discussion": 0.6, "presentation": 0.3, "work": 0.1}
            conversation = simulate(
                recordings,
                generator,
                count=3 + number % 2,
                seconds=120.0,
                excerpt=30.0,
                scenes=MEETING_SCENES,
                phases=phases,
            )
        else:
            name = f"conversations/talk{number - 24:02d}"
            length = float(generator.uniform(60, 180))
            conversation = simulate(recordings, generator, count=2 + number % 5, seconds=length)
        path = folder / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, conversation.samples, RATE)
        conversation.truth.uri = path.stem
        with path.with_suffix(".rttm").open("w", encoding="utf-8") as file:
            write_rttm(conversation.truth, file)
        print(f"{name}: {summary(conversation)}", flush=True)


def summary(conversation: Conversation) -> str:
    """Seconds, speakers, turns, share of speech, and share of overlap in it."""
    truth = conversation.truth
    spoken, overlap = truth.get_timeline().support().duration(), truth.get_overlap().duration()
    return (
        f"{conversation.seconds:.0f} s, {len(truth.labels())} speakers, {len(truth)} turns, "
        f"speech {spoken / conversation.seconds:.0%}, overlap {overlap / max(spoken, 1e-9):.0%} of it"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write_development(arguments.data, arguments.work, arguments.out)


if __name__ == "__main__":
    main()
