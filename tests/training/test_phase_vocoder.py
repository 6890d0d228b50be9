"""The phase vocoder against torchaudio's, and on a tone."""

from __future__ import annotations

import math

import pytest
import torch

from knn_cli.training.phase_vocoder import phase_vocoder
from tests.helpers.oracles import load_torchaudio


@pytest.mark.parametrize("rate", [0.5, 0.7937005259840998, 0.97, 1.0, 1.122462048309373, 1.3, 2.0])
@pytest.mark.parametrize("dtype", [torch.cfloat, torch.cdouble])
def test_equals_torchaudio_bit_for_bit(rate: float, dtype: torch.dtype) -> None:
    theirs = load_torchaudio().functional.phase_vocoder
    spectrum = torch.randn(257, 300, dtype=dtype, generator=torch.Generator().manual_seed(0))
    spectrum[:, 40:50] = 0
    advance = torch.linspace(0, math.pi * 128, 257)[:, None]
    ours = phase_vocoder(spectrum, rate, hop=128)
    assert ours.shape == (257, math.ceil(300 / rate)) and ours.dtype == dtype
    assert torch.equal(ours, theirs(spectrum, rate, advance))


@pytest.mark.parametrize("rate", [0.8, 1.25])
def test_a_tone_keeps_its_pitch_and_becomes_longer_or_shorter(rate: float) -> None:
    size, hop, samples = 512, 128, 16000
    window = torch.hann_window(size)
    tone = torch.sin(2 * math.pi * 1000 / 16000 * torch.arange(samples))
    spectrum = torch.stft(tone, size, hop, window=window, return_complex=True)
    stretched = torch.istft(phase_vocoder(spectrum, rate, hop), size, hop, window=window)
    assert len(stretched) == pytest.approx(samples / rate, abs=2 * hop)
    middle = stretched[2000 : 2000 + 8000]
    peak = torch.fft.rfft(middle * torch.hann_window(8000)).abs().argmax()
    assert int(peak) * 16000 / 8000 == pytest.approx(1000, abs=2)
