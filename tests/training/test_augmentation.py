"""Augmentation: each change does what it says, keeps the length, and is repeated by its seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Floats
from knn_cli.training import augmentation
from knn_cli.training.augmentation import Augmenter
from knn_cli.training.recipe import CODECS, AugmentConfig

RATE = 16000


def tone(hertz: float, seconds: float = 1.0) -> Floats:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def loudest(clip: Floats) -> float:
    """Frequency in Hz of the highest peak of the spectrum."""
    return float(np.abs(np.fft.rfft(clip * np.hanning(len(clip)))).argmax() * RATE / len(clip))


def level(clip: Floats, low: float, high: float) -> float:
    """Decibels of a band."""
    spectrum = np.abs(np.fft.rfft(clip)) ** 2
    hertz = np.fft.rfftfreq(len(clip), 1 / RATE)
    return float(10 * np.log10(spectrum[(hertz >= low) & (hertz < high)].sum() + 1e-12))


def test_a_band_above_half_the_rate_is_refused() -> None:
    with pytest.raises(KnnError, match="goes up to 10000 Hz"):
        Augmenter(AugmentConfig(band_share=0.5, band=(3000.0, 10000.0)), 16000)


def test_speed_changes_pitch_and_length() -> None:
    faster = augmentation.change_speed(tone(400, 1.1), RATE, 1.1)
    assert len(faster) == RATE and loudest(faster[:15000]) == pytest.approx(440, abs=2)
    np.testing.assert_array_equal(augmentation.change_speed(tone(400), RATE, 1.0), tone(400))


@pytest.mark.parametrize("semitones", [-3.0, 4.0])
def test_pitch_changes_and_length_does_not(semitones: float) -> None:
    clip = augmentation.shift_pitch(tone(400), semitones, RATE)
    assert clip.shape == (RATE,) and clip.dtype == np.float32
    assert loudest(clip[2000:14000]) == pytest.approx(400 * 2 ** (semitones / 12), rel=0.02)


def test_noise_is_mixed_at_its_ratio() -> None:
    speech, noise = tone(400), np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    added = augmentation.add_noise(speech, noise, 10.0) - speech
    assert 10 * np.log10(np.square(speech).sum() / np.square(added).sum()) == pytest.approx(10, abs=1e-3)
    silence = np.zeros(RATE, np.float32)
    assert augmentation.add_noise(speech, silence, 10.0) is speech
    assert augmentation.add_noise(silence, noise, 10.0) is silence


def test_a_room_of_one_delayed_sound_changes_nothing() -> None:
    response = np.zeros(500, np.float32)
    response[100] = -0.5
    np.testing.assert_allclose(augmentation.add_reverberation(tone(400), response), -tone(400), atol=1e-5)
    response[300] = 0.4
    wet = augmentation.add_reverberation(tone(400), response)
    assert np.square(wet).sum() == pytest.approx(np.square(tone(400)).sum(), rel=1e-3)
    assert augmentation.add_reverberation(tone(400), np.zeros(9, np.float32)).shape == (RATE,)


def test_equalizer_and_band_limit_do_what_they_say() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    gains = np.array([0.0, 0.0, 0.0, 12.0, 0.0, 0.0])
    louder = augmentation.equalize(noise, gains, RATE)
    assert level(louder, 990, 1010) - level(noise, 990, 1010) == pytest.approx(12, abs=0.3)
    assert level(louder, 100, 300) == pytest.approx(level(noise, 100, 300), abs=0.3)
    narrow = augmentation.limit_band(noise, 3000, RATE)
    assert level(narrow, 3300, 8000) < level(noise, 3300, 8000) - 40
    assert level(narrow, 100, 2500) == pytest.approx(level(noise, 100, 2500), abs=0.2)
    assert augmentation.limit_band(noise, 8000, RATE) is noise


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_keep_the_tone_and_not_every_sample(codec: str) -> None:
    clip = augmentation.apply_codec(tone(400), codec, RATE)
    assert clip.shape == (RATE,) and clip.dtype == np.float32
    assert loudest(clip) == pytest.approx(400, abs=2)
    assert np.abs(clip - tone(400)).max() > 0
    np.testing.assert_array_equal(clip, augmentation.apply_codec(tone(400), codec, RATE))


def test_everything_at_once_is_repeated_by_its_seed(tmp_path: Path) -> None:
    for name, sound in (("noise", tone(3000, 0.2)), ("music", tone(700, 2.0)), ("rir", tone(50, 0.01))):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "one.flac", sound, RATE)
    folders = {name: str(tmp_path / name) for name in ("noise", "music", "rir")}
    shares = ("noise", "music", "rir", "band", "codec", "eq", "pitch")
    recipe = AugmentConfig(**folders, **{f"{one}_share": 0.7 for one in shares}, gain_decibels=6.0)
    made = Augmenter(recipe, RATE)
    clips = [made(tone(400), np.random.default_rng(seed)) for seed in (1, 1, 2, 3)]
    assert all(clip.shape == (RATE,) and clip.dtype == np.float32 and np.isfinite(clip).all() for clip in clips)
    np.testing.assert_array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2]) and not np.array_equal(clips[2], clips[3])


def test_a_codec_that_libsndfile_lacks_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "check_format", lambda form, subtype: form != "MP3")
    Augmenter(AugmentConfig(codec_share=0.5, codecs=("vorbis", "mu-law")), RATE)
    with pytest.raises(KnnError, match=r"The codec mp3 of augment\.codecs is missing from libsndfile"):
        Augmenter(AugmentConfig(codec_share=0.5, codecs=("vorbis", "mp3")), RATE)


def test_no_augmentation_is_none_and_folders_are_checked(tmp_path: Path) -> None:
    np.testing.assert_array_equal(Augmenter(AugmentConfig(), RATE)(tone(400), np.random.default_rng(0)), tone(400))
    assert Augmenter(AugmentConfig(speeds=(0.9, 1.0), speed_classes=True), RATE).folds == 2
    with pytest.raises(KnnError, match="missing or holds no audio"):
        Augmenter(AugmentConfig(noise=str(tmp_path)), RATE)
