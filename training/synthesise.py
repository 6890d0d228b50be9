"""Synthesise reels of espeak-ng speech with phone targets, as mel powers.

    python -m training.synthesise --work WORK [--minutes 80] [--other-minutes 20] [--seed 0]

A reel is one voice (language, regional variety, voice variant, rate, pitch, range) that says isolated words and
phrases of words drawn from frequency lists, with short pauses between, about 12 seconds in all. For each language
WORK/cache gets `synth-<language>.npy` (+ `.offsets.npy`, as in prepare.py) and `synth-<language>.phones.npy`
(one int16 a mel frame, an index into `phones.json`, which holds the IPA names met, index 0 being silence).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import espeakng_loader  # type: ignore[import-untyped]
import numpy as np
import soxr
import torch
import wordfreq
from numpy.typing import NDArray

from knn_cli.encoders import MelPower
from training.prepare import EXAM_LANGUAGES, log_mel, write_array, write_cache

RATE = 22050
# espeak-ng voices for each of the fifteen languages; the regional ones belong to the same language here
VOICES = {
    "bg": ("bg",), "ca": ("ca", "ca", "ca-ba", "ca-nw", "ca-va"), "cs": ("cs",), "da": ("da",), "de": ("de",),
    "el": ("el",), "en": ("en-us", "en-us", "en", "en", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc"),
    "es": ("es", "es-419"), "fr": ("fr", "fr", "fr-be", "fr-ch"), "it": ("it",), "nl": ("nl",), "pl": ("pl",),
    "ro": ("ro",), "ru": ("ru",), "zh": ("cmn",),
}  # fmt: skip
OTHERS = {
    "pt": ("pt", "pt-br"), "sv": ("sv",), "nb": ("nb",), "fi": ("fi",), "hu": ("hu",), "tr": ("tr",), "uk": ("uk",),
    "sk": ("sk",), "sl": ("sl",), "sh": ("hr",), "mk": ("mk",), "lt": ("lt",), "lv": ("lv",), "hi": ("hi",),
    "ar": ("ar",), "id": ("id",), "ko": ("ko",), "vi": ("vi",), "fa": ("fa",), "bn": ("bn",),
}  # fmt: skip
SCRIPTS = {
    "bg": "CYRILLIC", "ru": "CYRILLIC", "uk": "CYRILLIC", "mk": "CYRILLIC", "el": "GREEK", "zh": "CJK",
    "hi": "DEVANAGARI", "ar": "ARABIC", "fa": "ARABIC", "ko": "HANGUL", "bn": "BENGALI",
}  # fmt: skip
UNFIT = ("whisper", "Demonic", "croak", "Storm", "announcer", "fast", "obo")  # no voice of a person


class Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("string", ctypes.c_char * 8),
    )


class Espeak:
    """espeak-ng through ctypes: text -> 22,050 Hz samples and phones with their times."""

    _PHONEME = 7
    _CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))

    def __init__(self) -> None:
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
        rate = self.library.espeak_Initialize(2, 0, data.encode(), 1 | 2)  # synchronous; phone events in IPA
        if rate != RATE:
            raise RuntimeError(f"espeak-ng gives {rate} Hz, {RATE} expected")
        self.variants = sorted(
            path.name for path in (Path(data) / "voices" / "!v").iterdir() if not any(u in path.name for u in UNFIT)
        )
        self._audio: list[NDArray[np.int16]] = []
        self._phones: list[tuple[int, str]] = []
        self._callback: Callable[..., int] = self._CALLBACK(self._take)  # kept: C holds only a pointer
        self.library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: object, count: int, events: object) -> int:
        if count and samples:
            self._audio.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != 0:  # type: ignore[index]
            event = events[index]  # type: ignore[index]
            if event.type == self._PHONEME:
                self._phones.append((event.audio_position, event.string.decode("utf-8", "ignore")))
            index += 1
        return 0

    def set_voice(self, voice: str, rate: int, pitch: int, spread: int) -> None:
        """RuntimeError for a voice that espeak-ng does not know: it would silently keep the last one."""
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((1, rate), (3, pitch), (4, spread)):
            self.library.espeak_SetParameter(parameter, value, 0)

    def say(self, text: str) -> tuple[NDArray[np.int16], list[tuple[int, str]]]:
        """Samples (S,) and [(milliseconds, IPA)], in order of time."""
        self._audio, self._phones = [], []
        raw = text.encode()
        self.library.espeak_Synth(raw, len(raw) + 1, 0, 1, 0, 1, None, None)  # positions in characters, UTF-8
        audio = np.concatenate(self._audio) if self._audio else np.zeros(0, np.int16)
        return audio, self._phones


def vocabulary(language: str) -> list[str]:
    """Words of the language in its own script, most frequent first."""
    import unicodedata

    script = SCRIPTS.get(language, "LATIN")

    def fits(word: str) -> bool:
        return all(unicodedata.name(c, "").startswith(script) or unicodedata.combining(c) for c in word)

    return [word for word in wordfreq.top_n_list(language, 30000) if fits(word)]


def make_text(words: list[str], rng: np.random.Generator, joint: str) -> str:
    """One word, a short phrase, or a dozen words: common words more often, rare ones often enough."""
    kind = rng.random()
    count = 1 if kind < 0.35 else int(rng.integers(2, 5)) if kind < 0.7 else int(rng.integers(5, 13))
    ranks = (len(words) ** rng.random(count)).astype(int) if rng.random() < 0.5 else rng.integers(0, len(words), count)
    return joint.join(words[min(rank, len(words) - 1)] for rank in ranks)


def make_reel(
    espeak: Espeak, words: list[str], rng: np.random.Generator, joint: str, seconds: float
) -> tuple[NDArray[np.float32], list[tuple[float, str]]]:
    """Phrases of one voice with pauses: samples (S,) at 16 kHz and [(second, IPA)]; "" marks a pause."""
    parts: list[NDArray[np.int16]] = []
    phones: list[tuple[float, str]] = [(0.0, "")]
    total = 0
    while total < seconds * RATE:
        audio, events = espeak.say(make_text(words, rng, joint))
        loud = np.flatnonzero(np.abs(audio) > 300)
        if len(loud) == 0:
            continue
        first, last = loud[0], loud[-1] + 1
        for milliseconds, name in events:
            at = milliseconds / 1000 * RATE
            if first <= at < last:
                phones.append(((total + at - first) / RATE, name))
        total += last - first
        phones.append((total / RATE, ""))
        pause = np.zeros(int(rng.uniform(0.05, 0.3) * RATE), np.int16)
        parts += [audio[first:last], pause]
        total += len(pause)
    joined = np.concatenate(parts).astype(np.float32) / 32768
    return soxr.resample(joined, RATE, 16000, quality="MQ"), phones


def frame_targets(phones: list[tuple[float, str]], frames: int, names: dict[str, int]) -> NDArray[np.int16]:
    """One phone index a mel frame, by the middle of its window; unseen names are added to `names`."""
    targets = np.zeros(frames, np.int16)
    for (start, name), end in zip(phones, [start for start, _ in phones[1:]] + [frames / 100], strict=True):
        plain = name.strip("ˈˌː_ \u0329").replace("\u0361", "").rstrip("0123456789˥˦˧˨˩ː")
        index = names.setdefault(plain, len(names))
        targets[max(0, round(start * 100 - 1)) : max(0, round(end * 100 - 1))] = index
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=80, help="for each of the fifteen languages")
    parser.add_argument("--other-minutes", type=float, default=20, help="for each other language")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cache: Path = args.work / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    espeak, mel = Espeak(), MelPower()
    table = cache / "phones.json"
    names: dict[str, int] = json.loads(table.read_text()) if table.exists() else {"": 0}

    for language, voices in (VOICES | OTHERS).items():
        if (cache / f"synth-{language}.phones.npy").exists():
            continue
        rng = np.random.default_rng([args.seed, zlib.crc32(language.encode())])
        words, joint = vocabulary(language), "" if language == "zh" else " "
        minutes = args.minutes if language in EXAM_LANGUAGES else args.other_minutes
        mels, targets, frames = [], [], 0
        while frames < minutes * 6000:
            voice = f"{rng.choice(voices)}+{rng.choice(espeak.variants)}"
            espeak.set_voice(voice, int(rng.integers(110, 260)), int(rng.integers(15, 90)), int(rng.integers(20, 90)))
            waveform, phones = make_reel(espeak, words, rng, joint, 12.0)
            mels.append(log_mel(waveform, mel))
            targets.append(frame_targets(phones, len(mels[-1]), names))
            frames += len(mels[-1])
        write_cache(cache, f"synth-{language}", mels)
        table.write_text(json.dumps(names, ensure_ascii=False))
        write_array(cache / f"synth-{language}.phones.npy", np.concatenate(targets))
        print(f"{language}: {len(mels)} reels, {frames / 6000:.0f} min, {len(words)} words", flush=True)


if __name__ == "__main__":
    main()
