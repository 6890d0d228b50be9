"""Synthesise espeak-ng speech and cache its log powers.

    python -m tools.shipped_models.synthesise --work WORK [--minutes 40] [--seed 0]

A recording is about 12 seconds of isolated words and phrases, drawn from frequency lists and separated by short pauses,
spoken by one espeak-ng voice (language, regional variety, voice variant, rate, pitch, range). Writes, per
language, `mel-synth-<language>.npy` and `fbank-synth-<language>.npy` to WORK/cache (with offsets, as in prepare.py).
"""

from __future__ import annotations

import argparse
import ctypes
import zlib
from collections.abc import Callable
from pathlib import Path

import espeakng_loader  # type: ignore[import-untyped]
import numpy as np
import soxr
import torch
import wordfreq
from numpy.typing import NDArray

from knn_cli.networks.encoders.whisper import WhisperMel
from knn_cli.networks.features import MelPower
from tools.shipped_models.data import write_cache
from tools.shipped_models.prepare import log_powers

RATE = 22050
# espeak-ng voices for each of the fifteen languages; regional voices count as the same language here
ESPEAK_VOICES = {
    "bg": ("bg",), "ca": ("ca", "ca", "ca-ba", "ca-nw", "ca-va"), "cs": ("cs",), "da": ("da",), "de": ("de",),
    "el": ("el",), "en": ("en-us", "en-us", "en", "en", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc"),
    "es": ("es", "es-419"), "fr": ("fr", "fr", "fr-be", "fr-ch"), "it": ("it",), "nl": ("nl",), "pl": ("pl",),
    "ro": ("ro",), "ru": ("ru",), "zh": ("cmn",),
}  # fmt: skip
SCRIPTS = {"bg": "CYRILLIC", "ru": "CYRILLIC", "el": "GREEK", "zh": "CJK"}
UNFIT = ("whisper", "Demonic", "croak", "Storm", "announcer", "fast", "obo")  # do not sound like a person


class Espeak:
    """espeak-ng through ctypes: text -> 22,050 Hz samples."""

    _CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def __init__(self) -> None:
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
        rate = self.library.espeak_Initialize(2, 0, data.encode(), 0)  # 2: samples at once, to the callback
        if rate != RATE:
            raise RuntimeError(f"espeak-ng gives {rate} Hz, {RATE} expected")
        self.variants = sorted(
            path.name for path in (Path(data) / "voices" / "!v").iterdir() if not any(u in path.name for u in UNFIT)
        )
        self._audio: list[NDArray[np.int16]] = []
        self._callback: Callable[..., int] = self._CALLBACK(self._take)  # keep a reference: C holds only a pointer
        self.library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: object, count: int, events: object) -> int:
        if count and samples:
            self._audio.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def set_voice(self, voice: str, rate: int, pitch: int, spread: int) -> None:
        """Raises RuntimeError for an unknown voice, for which espeak-ng would silently keep the previous voice."""
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((1, rate), (3, pitch), (4, spread)):
            self.library.espeak_SetParameter(parameter, value, 0)

    def say(self, text: str) -> NDArray[np.int16]:
        """Samples (S,)."""
        self._audio = []
        raw = text.encode()
        self.library.espeak_Synth(raw, len(raw) + 1, 0, 1, 0, 1, None, None)  # positions in characters, UTF-8
        return np.concatenate(self._audio) if self._audio else np.zeros(0, np.int16)


def vocabulary(language: str) -> list[str]:
    """Words of the language in its own script, most frequent first."""
    import unicodedata

    script = SCRIPTS.get(language, "LATIN")

    def fits(word: str) -> bool:
        return all(unicodedata.name(c, "").startswith(script) or unicodedata.combining(c) for c in word)

    return [word for word in wordfreq.top_n_list(language, 30000) if fits(word)]


def make_text(words: list[str], rng: np.random.Generator, joint: str) -> str:
    """A word, a short phrase, or a dozen words; half of the texts favour frequent words, half draw uniformly."""
    kind = rng.random()
    count = 1 if kind < 0.35 else int(rng.integers(2, 5)) if kind < 0.7 else int(rng.integers(5, 13))
    ranks = (len(words) ** rng.random(count)).astype(int) if rng.random() < 0.5 else rng.integers(0, len(words), count)
    return joint.join(words[min(rank, len(words) - 1)] for rank in ranks)


def make_recording(
    espeak: Espeak, words: list[str], rng: np.random.Generator, joint: str, seconds: float
) -> NDArray[np.float32]:
    """Phrases of the current voice with pauses: samples (S,) at 16 kHz."""
    parts: list[NDArray[np.int16]] = []
    total = 0
    while total < seconds * RATE:
        audio = espeak.say(make_text(words, rng, joint))
        loud = np.flatnonzero(np.abs(audio) > 300)
        if len(loud) == 0:
            continue
        pause = np.zeros(int(rng.uniform(0.05, 0.3) * RATE), np.int16)
        parts += [audio[loud[0] : loud[-1] + 1], pause]
        total += loud[-1] + 1 - loud[0] + len(pause)
    return soxr.resample(np.concatenate(parts).astype(np.float32) / 32768, RATE, 16000, quality="MQ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40, help="of speech for each language")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cache: Path = args.work / "cache"
    espeak, mel, fbank = Espeak(), WhisperMel(), MelPower()
    for language, variants in ESPEAK_VOICES.items():
        if (cache / f"fbank-synth-{language}.offsets.npy").exists():
            continue
        rng = np.random.default_rng([args.seed, zlib.crc32(language.encode())])
        words, joint = vocabulary(language), "" if language == "zh" else " "
        mels, fbanks, frames = [], [], 0
        while frames < args.minutes * 6000:
            voice = f"{rng.choice(variants)}+{rng.choice(espeak.variants)}"
            espeak.set_voice(voice, int(rng.integers(110, 260)), int(rng.integers(15, 90)), int(rng.integers(20, 90)))
            waveform = make_recording(espeak, words, rng, joint, 12.0)
            mels.append(log_powers(waveform, mel.powers))
            fbanks.append(log_powers(waveform, fbank))
            frames += len(mels[-1])
        write_cache(cache, f"mel-synth-{language}", mels)
        write_cache(cache, f"fbank-synth-{language}", fbanks)
        print(f"{language}: {len(mels)} reels, {frames / 6000:.0f} min, {len(words)} words", flush=True)


if __name__ == "__main__":
    main()
