"""A fixed set of conversations simulated from held-out speakers, for `benchmarks/diarization.py`.

    python -m benchmarks.conversations --out FOLDER [--data ../shared/data]

The speakers are `tools.shipped_models.data.held_out_speakers`. Two to six of them take turns for
60 to 180 s, with some overlap at the ends of turns and some feedback in the middle of others' turns, each convolved
with a measured room impulse response, plus noise. References follow the speech regions of the clean recordings: pauses
of 0.3 s and longer are non-speech.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from pyannote.core import Annotation, Segment
from scipy.ndimage import binary_closing, binary_dilation, binary_opening
from scipy.signal import fftconvolve

from tools.shipped_models.data import held_out_speakers, is_ambiguous_speaker, read_16k, read_manifest

RATE = 16_000
HOP = 160  # samples per level frame: 10 ms
PAUSE = 0.3  # shorter pauses within a turn count as speech, in seconds
LONGEST_PAUSE = 0.8  # longer pauses are shortened to this, in seconds
SEED = 20_606
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SpeakerAudio:
    """The audio of a speaker at a common level, and its speech regions in samples."""

    samples: Floats
    spans: list[tuple[int, int]]


def activity(samples: Floats, probabilities: Floats) -> list[tuple[int, int]]:
    """Speech regions of a clean recording: loud frames near speech detected by silero-vad (frames of 512 samples).

    Loud means at most 32 dB below the 95th percentile of the level.
    Gaps under 0.3 s are filled, then spans under 0.1 s dropped.
    """
    frames = len(samples) // HOP
    power = np.square(samples[: frames * HOP].astype(np.float64)).reshape(frames, HOP).mean(1)
    level = 10 * np.log10(np.convolve(power, np.ones(3) / 3, "same") + 1e-12)
    is_speech = np.repeat(probabilities >= 0.5, 512)[: frames * HOP : HOP]
    is_speech = np.pad(is_speech, (0, frames - len(is_speech)))
    active = binary_dilation(is_speech, iterations=10) & (level > np.percentile(level, 95) - 32)
    gap = round(PAUSE * RATE / HOP)
    active = binary_closing(np.pad(active, gap), np.ones(gap))[gap:-gap]
    active = binary_opening(active, np.ones(10))
    edges = np.flatnonzero(np.diff(np.pad(active.astype(np.int8), 1)))
    return [(int(start) * HOP, int(end) * HOP) for start, end in edges.reshape(-1, 2)]


def read_speaker(paths: list[Path]) -> SpeakerAudio:
    """Some recordings of a speaker, concatenated."""
    from knn_cli.audio import speech_activity

    recordings = [read_16k(path) for path in paths]
    spans: list[tuple[int, int]] = []
    offset = 0
    for samples, probabilities in zip(recordings, speech_activity.probabilities(recordings), strict=True):
        spans += [(start + offset, end + offset) for start, end in activity(samples, probabilities)]
        offset += len(samples)
    whole = np.concatenate(recordings)
    speech = np.concatenate([whole[start:end] for start, end in spans])
    return SpeakerAudio(whole * np.float32(0.05 / np.sqrt(np.mean(np.square(speech)))), spans)


class SpeechSource:
    """The speech regions of a speaker, each used once: repeated words would make the speaker too easy to recognise."""

    def __init__(self, audio: SpeakerAudio) -> None:
        self.audio = audio
        self.number, self.place = 0, audio.spans[0][0]

    @property
    def seconds(self) -> float:
        """Seconds of speech that are left."""
        rest = self.audio.spans[self.number :]
        return sum(end - max(start, self.place) for start, end in rest) / RATE

    def take(self, seconds: float) -> tuple[Floats, list[tuple[int, int]]]:
        """The next `seconds` (approximately) of audio and the speech regions in it; long pauses are shortened."""
        parts: list[Floats] = []
        spoken: list[tuple[int, int]] = []
        left, slack = round(seconds * RATE), RATE // 4
        while left > slack and self.number < len(self.audio.spans):
            end = self.audio.spans[self.number][1]
            stop = end if end - self.place < left + slack else self.place + left
            size = sum(map(len, parts))
            spoken.append((size, size + stop - self.place))
            parts.append(self.audio.samples[self.place : stop])
            left -= stop - self.place
            self.place = stop
            if stop == end:
                self.number += 1
                if self.number == len(self.audio.spans):
                    break
                self.place = self.audio.spans[self.number][0]
                if left > slack:
                    pause = min(self.place - end, round(LONGEST_PAUSE * RATE))
                    parts.append(self.audio.samples[self.place - pause : self.place])
                    left -= pause
        piece = np.concatenate(parts[: 2 * len(spoken) - 1])
        ramp = np.arange(len(piece))
        return piece * np.minimum(1, np.minimum(ramp, ramp[::-1]) / 160).astype(np.float32), spoken


def simulate(
    speakers: dict[str, SpeakerAudio],
    rooms: list[Floats],
    noise: Floats,
    seconds: float,
    generator: np.random.Generator,
) -> tuple[Floats, Annotation]:
    """Waveform and reference of a conversation of all `speakers`, while at least two have speech left."""
    names = sorted(speakers)
    sources = {name: SpeechSource(speakers[name]) for name in names}
    spots = {name: rooms[int(generator.integers(len(rooms)))] for name in names}
    gains = {name: 10 ** (generator.uniform(-5, 5) / 20) for name in names}
    mix = np.zeros(round((seconds + 12) * RATE), dtype=np.float32)
    truth = Annotation()

    free = dict.fromkeys(names, 0)  # earliest sample at which each may speak again

    def say(name: str, start: int, length: float) -> int:
        piece, spoken = sources[name].take(length)
        wet = fftconvolve(piece * gains[name], spots[name])[: len(mix) - start]
        mix[start : start + len(wet)] += wet.astype(np.float32)
        for first, stop in spoken:
            truth[Segment((start + first) / RATE, (start + stop) / RATE), len(truth)] = name
        free[name] = start + len(piece) + RATE // 5
        return start + len(piece)

    now, last = RATE // 2, ""
    waiting = [str(name) for name in generator.permutation(names)]  # every speaker gets a turn
    while now < seconds * RATE:
        left = {name: source.seconds for name, source in sources.items() if source.seconds > 1}
        if len(left) < 2:
            break
        waiting = [name for name in waiting if name in left]
        if waiting and generator.random() < 0.5:
            speaker = waiting.pop()
        else:
            shares = np.sqrt(list(left.values()))  # speakers with more speech left speak more often
            speaker = str(generator.choice(list(left), p=shares / shares.sum()))
            if speaker == last and generator.random() < 0.8:
                continue
            waiting = [name for name in waiting if name != speaker]
        start = max(now, free[speaker])
        end = say(speaker, start, float(np.clip(generator.lognormal(0.9, 0.8), 0.5, 10.0)))
        others = [name for name in left if name != speaker and free[name] < start + RATE]
        if others and end - start > 3 * RATE and generator.random() < 0.25:  # short feedback
            other = str(generator.choice(others))
            say(other, int(generator.integers(start + RATE, end - RATE)), generator.uniform(0.4, 0.9))
        gap = generator.exponential(0.5) - 0.1 if generator.random() < 0.75 else -generator.uniform(0.1, 1.5)
        now, last = max(start + RATE // 2, end + round(gap * RATE)), speaker
    floor = np.resize(noise, len(mix))
    level = np.sqrt(np.mean(mix**2) / max(1e-12, float(np.mean(floor**2))))
    mix += floor * np.float32(level * 10 ** (-generator.uniform(12, 35) / 20))
    end = max(segment.end for segment in truth.itersegments())
    mix = mix[: round((end + 0.5) * RATE)]
    return mix * np.float32(0.5 / np.abs(mix).max()), truth


def write(data: Path, folder: Path, count: int = 12, seed: int = SEED) -> list[Path]:
    """Write seeded conversations as FOLDER/NAME.flac with NAME.rttm; existing files are kept."""
    hidden = set(held_out_speakers(read_manifest(data / "speech" / "manifest.tsv")))
    recordings: dict[str, list[Path]] = defaultdict(list)
    for row in read_manifest(data / "speech" / "manifest.tsv"):
        if row["speaker"] in hidden and not is_ambiguous_speaker(row["speaker"]):
            recordings[row["speaker"]].append(data / "speech" / row["path"])
    single = sorted(name for name, paths in recordings.items() if len(paths) == 1)
    several = sorted(set(recordings) - set(single))
    rooms = [np.ones(1, dtype=np.float32)]
    for path in sorted((data / "noise" / "rir").glob("*")):
        room = read_16k(path)
        first = int(np.abs(room).argmax())
        room = room[first : first + RATE // 2]
        rooms.append(room / np.sqrt(np.sum(room**2)))
    noises = sorted((data / "noise" / "esc10").glob("*.opus"))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        size = 2 + number % 5
        chosen = [*generator.choice(single, size // 3, replace=False)]  # short recordings: these speak little
        chosen += [*generator.choice(several, size - len(chosen), replace=False)]
        path = folder / f"conversation{number:02d}.flac"
        written.append(path)
        if path.with_suffix(".rttm").exists() and path.exists():
            continue
        speakers = {}
        for name in map(str, chosen):
            order = generator.permutation(len(recordings[name]))[:10]
            speakers[name] = read_speaker([recordings[name][index] for index in order])
        seconds = float(generator.uniform(60, 180))
        noise = read_16k(noises[int(generator.integers(len(noises)))])
        mix, truth = simulate(speakers, rooms, noise, seconds, generator)
        soundfile.write(path, mix, RATE)
        lines = [
            f"SPEAKER {path.stem} 1 {turn.start:.3f} {turn.duration:.3f} <NA> <NA> {who} <NA> <NA>\n"
            for turn, _, who in truth.itertracks(yield_label=True)
        ]
        path.with_suffix(".rttm").write_text("".join(lines), encoding="utf-8")
    return written


def main() -> None:
    """Write the set and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12)
    arguments = parser.parse_args()
    from knn_cli.formats.rttm import read_rttm

    for path in write(arguments.data, arguments.out, arguments.count):
        truth = read_rttm(path.with_suffix(".rttm"))[path.stem]
        seconds = soundfile.info(path).duration
        spoken, overlap = truth.get_timeline().support().duration(), truth.get_overlap().duration()
        print(
            f"{path.name}: {seconds:.0f} s, {len(truth.labels())} speakers, {len(truth)} spans, "
            f"speech {spoken / seconds:.0%}, overlap {overlap / spoken:.0%} of it"
        )


if __name__ == "__main__":
    main()
