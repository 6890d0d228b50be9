"""Make meeting.flac and meeting.rttm: four espeak-ng voices hold a short meeting in a small room.

    pip install espeakng-loader==0.2.4
    python examples/make_meeting.py [FOLDER]

The truth is where each sentence was placed, with the silence around it trimmed before the room was added. Pauses of one
speaker under 0.3 s are part of the turn, as in NIST's Rich Transcription rules.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from pyannote.core import Annotation, Segment
from scipy.signal import fftconvolve

from knn_cli.formats.rttm import write_rttm

Samples = NDArray[np.float64]

RATE = 16000
SEED = 20
SENTENCE_GAP = 0.25  # seconds between two sentences of one speaker
SAME_TURN = 0.3  # seconds of silence that end a turn
PEAK = 0.7
NOISE = 10 ** (-58 / 20)  # root mean square of the noise floor
REVERBERATION = 0.22  # seconds for the room to fall by 60 dB


@dataclass(frozen=True)
class Voice:
    """An espeak-ng voice and variant, with pitch (0-100), speed (words a minute), loudness, and reverberant share."""

    name: str
    pitch: int
    speed: int
    gain: float
    wet: float


VOICES = {
    "ruth": Voice("en+f2", 50, 165, 1.0, 0.06),
    "otto": Voice("en-us+m7", 25, 150, 1.0, 0.10),
    "ines": Voice("en-gb-scotland+steph", 75, 170, 0.9, 0.14),
    "paul": Voice("en-029+m3", 70, 175, 0.8, 0.08),
}

# Who, after how many seconds of silence (below zero: while the last one still talks), says what.
Line = tuple[str, float, Sequence[str]]
SCRIPT: tuple[Line, ...] = (
    ("ruth", 0.6, ["Good morning, everyone.", "We have twelve boxes of tape to sort before lunch."]),
    ("otto", 0.5, ["Twelve?", "The list on my desk says eleven."]),
    ("ruth", 0.3, ["One more came from the lighthouse on Friday."]),
    ("ines", 0.4, ["That is the one I told you about.", "The keeper recorded his neighbours for thirty years."]),
    ("paul", 0.6, ["Do we know which villages they came from?"]),
    ("ines", 0.3, ["Mostly from the north shore, but some of those voices sound like islanders to me."]),
    ("otto", 0.7, ["Then we should not trust the labels.", "Let us listen first and write later."]),
    ("paul", 0.4, ["I agree.", "I can play the first reel this afternoon."]),
    ("ruth", -0.7, ["Please make a copy before you play it."]),
    ("paul", 0.4, ["Of course.", "The old glue does not last for ever."]),
    ("ines", 0.8, ["How long is each reel?"]),
    ("otto", 0.3, ["About half an hour a side.", "Some of them are mostly wind and gulls."]),
    ("ruth", 0.5, ["Then mark the parts where somebody speaks, and note who it is."]),
    ("paul", 0.4, ["And if two people talk at once?"]),
    ("otto", -0.5, ["Then we write down both of them."]),
    ("ines", 0.3, ["It happens all the time.", "His neighbours never let anybody finish a sentence."]),
    ("ruth", 0.6, ["Neither do we.", "Let us meet again at four o'clock."]),
    ("otto", 0.5, ["Four is fine.", "I will bring the coffee."]),
)
TAIL = 0.8  # seconds after the last word


class Speaker:
    """espeak-ng inside this process, through its C interface (speak_lib.h)."""

    SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback, calls return when done
    CHARACTERS = 1  # espeak_POSITION_TYPE
    UTF8 = 1  # flag of espeak_Synth
    SPEED, PITCH = 1, 3  # espeak_PARAMETER

    def __init__(self) -> None:
        import espeakng_loader

        self._espeak = ctypes.CDLL(espeakng_loader.get_library_path())
        self._data = Path(espeakng_loader.get_data_path())
        self.rate = self._espeak.espeak_Initialize(self.SYNCHRONOUS, 0, str(self._data.parent).encode(), 0)
        if self.rate <= 0:
            raise RuntimeError("espeak-ng does not start")
        self._espeak.espeak_ng_SetRandSeed(ctypes.c_long(SEED))  # its hiss is seeded by the clock otherwise
        self._heard: list[NDArray[np.int16]] = []
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._hear)  # kept: espeak holds only its address
        self._espeak.espeak_SetSynthCallback(self._callback)

    def _hear(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: int) -> int:
        if samples and count > 0:
            self._heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: Voice) -> Samples:
        """One sentence at RATE, full scale 1, without the silence around it."""
        # An unknown voice is told only by what this call returns, an unknown variant not even by that.
        variant = self._data / "voices" / "!v" / voice.name.partition("+")[2]
        if self._espeak.espeak_SetVoiceByName(voice.name.encode()) != 0 or not variant.is_file():
            raise ValueError(f"espeak-ng has no voice {voice.name!r}")
        self._espeak.espeak_SetParameter(self.SPEED, voice.speed, 0)
        self._espeak.espeak_SetParameter(self.PITCH, voice.pitch, 0)
        self._heard.clear()
        words = text.encode()
        if self._espeak.espeak_Synth(words, len(words) + 1, 0, self.CHARACTERS, 0, self.UTF8, None, None) != 0:
            raise RuntimeError(f"espeak-ng cannot say {text!r}")
        sound = np.concatenate(self._heard) / 32768
        return trim(soxr.resample(sound, self.rate, RATE))


def trim(sound: Samples, step: int = RATE // 100, below: float = 0.01) -> Samples:
    """Leave out 10 ms frames at both ends that stay under `below` times the peak (40 dB down)."""
    frames = sound[: len(sound) // step * step].reshape(-1, step)  # (frames, samples)
    loud = np.flatnonzero(np.abs(frames).max(axis=1) > below * np.abs(sound).max())
    return sound[loud[0] * step : (loud[-1] + 1) * step]


def room(generator: np.random.Generator, wet: float) -> Samples:
    """Impulse response: the direct sound, then decaying noise with `wet` times its energy."""
    count = int(REVERBERATION * 1.2 * RATE)
    tail = generator.standard_normal(count) * 10 ** (-3 * np.arange(count) / (REVERBERATION * RATE))
    tail[: RATE // 250] = 0  # the first reflection comes after 4 ms
    tail *= np.sqrt(wet / np.square(tail).sum())
    tail[0] = 1.0
    return tail


def make() -> tuple[Samples, Annotation]:
    """The meeting's samples (S,) at RATE, and who speaks when."""
    espeak = Speaker()
    generator = np.random.default_rng(SEED)
    rooms = {who: room(generator, voice.wet) for who, voice in VOICES.items()}
    truth = Annotation(uri="meeting")
    placed: list[tuple[int, Samples]] = []
    now = 0
    for who, pause, sentences in SCRIPT:
        now += round(pause * RATE)
        for number, sentence in enumerate(sentences):
            now += round(SENTENCE_GAP * RATE) if number else 0
            dry = espeak.say(sentence, VOICES[who])
            dry *= VOICES[who].gain * 0.1 / np.sqrt(np.square(dry).mean())
            placed.append((now, fftconvolve(dry, rooms[who])))
            truth[Segment(now / RATE, (now + len(dry)) / RATE), len(placed)] = who
            now += len(dry)
    count = now + round(TAIL * RATE)
    sound = np.zeros(count)
    for start, wet in placed:
        end = min(count, start + len(wet))
        sound[start:end] += wet[: end - start]
    sound *= PEAK / np.abs(sound).max()
    return sound + NOISE * generator.standard_normal(count), truth.support(SAME_TURN)


def main(folder: Path) -> None:
    """Write meeting.flac and meeting.rttm into a folder."""
    sound, truth = make()
    soundfile.write(folder / "meeting.flac", sound, RATE, subtype="PCM_16")
    with (folder / "meeting.rttm").open("w", encoding="utf-8", newline="") as file:
        write_rttm(truth, file)
    print(f"{len(sound) / RATE:.1f} s, {len(truth)} turns, {len(truth.labels())} speakers")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
