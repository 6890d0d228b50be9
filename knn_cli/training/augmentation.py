"""Augmentation of training clips: speed, pitch, reverberation, noise, music, equalizer, bandwidth, codec.

Every choice comes from the random generator that is passed in, so that a clip of an epoch is always the same.
All functions map (S,) float32 to (S,) float32 of the same length.
"""

from __future__ import annotations

import math

import numpy as np
import soundfile
import soxr
from scipy.signal import fftconvolve

from knn_cli.audio.flac_bytes import memory_file
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, Floats
from knn_cli.training.phase_vocoder import phase_vocoder
from knn_cli.training.recipe import AugmentConfig
from knn_cli.training.sound_pools import sound_pool

MIN_POWER = 1e-8  # mean square under which a signal is too quiet for a signal-to-noise ratio
EQUALIZER_HZ = (60.0, 150.0, 400.0, 1000.0, 2500.0, 6000.0)
_FORMATS = {"gsm": ("WAV", "GSM610"), "vorbis": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS")}
_FORMATS["mp3"] = ("MP3", "MPEG_LAYER_III")
TELEPHONE_RATE = 8000  # Hz


class Augmenter:
    """The augmentation that a recipe asks for.

    Parameters
    ----------
    recipe
        The recipe's table [augment].
    rate
        Samples per second of the clips.

    Raises
    ------
    KnnError
        If a folder or LMDB of noise, music or impulse responses is missing or holds no audio, or this machine's
        libsndfile does not have a codec.
    """

    def __init__(self, recipe: AugmentConfig, rate: int) -> None:
        self.recipe, self.rate = recipe, rate
        self.speeds = (1.0, *[speed for speed in recipe.speeds if speed != 1.0])
        if recipe.band_share and max(recipe.band) >= rate / 2:
            hint = f"Sound at {rate} Hz has frequencies up to {rate / 2:g} Hz."
            raise KnnError(f"augment.band goes up to {max(recipe.band):g} Hz.", hint)
        self._noise, self._music, self._responses = map(sound_pool, (recipe.noise, recipe.music, recipe.rir))
        for codec in recipe.codecs if recipe.codec_share else ():
            if codec in _FORMATS and not soundfile.check_format(*_FORMATS[codec]):
                version = soundfile.__libsndfile_version__
                raise KnnError(
                    f"The codec {codec} of augment.codecs is missing from libsndfile {version}.",
                    "Take it out of augment.codecs, or install a newer libsndfile.",
                )

    @property
    def folds(self) -> int:
        """How many classes each label becomes: one for each speed where these are classes of their own."""
        return len(self.speeds) if self.recipe.speed_classes else 1

    def __call__(self, clip: Floats, random: np.random.Generator) -> Floats:
        """(S,) float32 of a clip after all changes but speed, which takes a longer clip: see `change_speed`."""
        recipe, count = self.recipe, len(clip)

        def chosen(share: float) -> bool:
            return bool(random.random() < share)

        if chosen(recipe.pitch_share):
            clip = shift_pitch(clip, random.uniform(-recipe.pitch_semitones, recipe.pitch_semitones), self.rate)
        rir_share, noise_share, music_share = recipe.rir_share, recipe.noise_share, recipe.music_share
        if recipe.one_share:  # one or the other
            reverberant = chosen(0.5)
            rir_share, noise_share = recipe.one_share * reverberant, recipe.one_share * (not reverberant)
            music_share = 0.0
        if self._responses and chosen(rir_share):
            clip = add_reverberation(clip, self._responses.draw(self.rate, random))
        if self._noise and chosen(noise_share):
            noise = self._noise.draw_part(count, self.rate, random)
            clip = add_noise(clip, noise, _between(recipe.noise_snr, random))
        if self._music and chosen(music_share):
            music = self._music.draw_part(count, self.rate, random)
            clip = add_noise(clip, music, _between(recipe.music_snr, random))
        if chosen(recipe.eq_share):
            gains = random.uniform(-recipe.eq_decibels, recipe.eq_decibels, len(EQUALIZER_HZ))
            clip = equalize(clip, gains, self.rate)
        if chosen(recipe.band_share):
            clip = limit_band(clip, _between(recipe.band, random), self.rate)
        if chosen(recipe.codec_share):
            clip = apply_codec(clip, recipe.codecs[int(random.integers(len(recipe.codecs)))], self.rate)
        if recipe.gain_decibels:
            clip = clip * np.float32(10 ** (random.uniform(-recipe.gain_decibels, recipe.gain_decibels) / 20))
        return clip.astype(np.float32, copy=False)


def change_speed(clip: Floats, count: int, speed: float) -> Floats:
    """(count,) float32: a clip of about count * speed samples played `speed` times as fast; pitch changes along."""
    if speed == 1.0:
        return np.resize(clip, count) if len(clip) < count else clip[:count]
    return _pad_or_cut(soxr.resample(clip, speed, 1.0), count)


def shift_pitch(clip: Floats, semitones: float, rate: int) -> Floats:
    """The clip at another pitch and the same speed: stretched by a phase vocoder, then resampled."""
    import torch

    size = 2 ** round(math.log2(rate * 0.032))
    factor = 2 ** (semitones / 12)
    window = torch.hann_window(size)
    spectrum = torch.stft(torch.from_numpy(clip), size, size // 4, window=window, return_complex=True)  # (F, T)
    stretched = phase_vocoder(spectrum, 1 / factor, size // 4)
    longer = torch.istft(stretched, size, size // 4, window=window).numpy()
    return _pad_or_cut(soxr.resample(longer, factor, 1.0), len(clip))


def add_reverberation(clip: Floats, response: Floats) -> Floats:
    """The clip in the room of an impulse response, in step with the clip and as loud."""
    response = response[int(np.abs(response).argmax()) :]  # so that the direct sound is not delayed
    energy = float(np.square(response, dtype=np.float64).sum())
    if energy <= 0:
        return clip
    wet = fftconvolve(clip, response / np.float32(math.sqrt(energy)))[: len(clip)].astype(np.float32)
    before, after = _power(clip), _power(wet)
    louder: Floats = wet * np.float32(math.sqrt(before / max(after, 1e-30)))
    return louder if after > MIN_POWER * before else clip


def add_noise(clip: Floats, noise: Floats, snr: float) -> Floats:
    """The clip with a noise of equal length `snr` decibels under it; a silent clip or noise changes nothing."""
    speech, other = _power(clip), _power(noise)
    if min(speech, other) < MIN_POWER:
        return clip
    together: Floats = clip + noise * np.float32(math.sqrt(speech / other) * 10 ** (-snr / 20))
    return together


def equalize(clip: Floats, decibels: Doubles, rate: int) -> Floats:
    """The clip with gains at 60, 150, 400, 1000, 2500 and 6000 Hz, straight lines between over log-frequency."""
    spectrum = np.fft.rfft(clip)
    hertz = np.fft.rfftfreq(len(clip), 1 / rate)
    gains = np.interp(np.log(np.maximum(hertz, 1.0)), np.log(EQUALIZER_HZ), decibels)
    changed: Floats = np.fft.irfft(spectrum * 10 ** (gains / 20), len(clip)).astype(np.float32)
    return changed


def limit_band(clip: Floats, hertz: float, rate: int) -> Floats:
    """The clip without what lies above `hertz`."""
    low = min(2 * hertz, rate)
    return clip if low >= rate else _pad_or_cut(soxr.resample(soxr.resample(clip, rate, low), low, rate), len(clip))


def apply_codec(clip: Floats, codec: str, rate: int) -> Floats:
    """The clip after a codec: mu-law and gsm at 8 kHz as on a telephone, vorbis, opus and mp3 at the clip's rate."""
    clip = np.clip(clip, -1.0, 1.0)
    if codec in ("mu-law", "gsm"):
        narrow = np.clip(soxr.resample(clip, rate, TELEPHONE_RATE), -1.0, 1.0)
        decoded = _mu_law(narrow) if codec == "mu-law" else _through(narrow, codec, TELEPHONE_RATE)
        return _pad_or_cut(soxr.resample(decoded, TELEPHONE_RATE, rate), len(clip))
    return _pad_or_cut(_through(clip, codec, rate), len(clip))


def _mu_law(clip: Floats) -> Floats:
    """ITU-T G.711's curve with 8 bits, continuous: sign(x) ln(1 + 255 |x|) / ln 256, rounded to 1/127."""
    pressed = np.sign(clip) * np.log1p(255 * np.abs(clip)) / math.log(256)
    pressed = np.round(pressed * 127) / 127
    expanded: Floats = (np.sign(pressed) * np.expm1(np.abs(pressed) * math.log(256)) / 255).astype(np.float32)
    return expanded


def _through(clip: Floats, codec: str, rate: int) -> Floats:
    container, subtype = _FORMATS[codec]
    with memory_file() as file:
        with soundfile.SoundFile(file.fileno(), "w", rate, 1, subtype, format=container, closefd=False) as encoder:
            encoder.write(clip)
        file.seek(0)
        with soundfile.SoundFile(file.fileno(), closefd=False) as decoder:
            decoded: Floats = decoder.read(decoder.frames, dtype="float32")
    return decoded


def _pad_or_cut(clip: Floats, count: int) -> Floats:
    """The first `count` samples, silence after the last where there are fewer."""
    return np.pad(clip[:count], (0, max(0, count - len(clip)))).astype(np.float32, copy=False)


def _power(clip: Floats) -> float:
    return float(np.square(clip, dtype=np.float64).mean()) if len(clip) else 0.0


def _between(pair: tuple[float, ...], random: np.random.Generator) -> float:
    return random.uniform(pair[0], pair[1])
