"""The contract of encoders, on the small ones; the WavLM networks have separate tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from knn_cli.core.errors import AudioError
from knn_cli.core.registry import ENCODERS
from knn_cli.networks.encoders.fbank_tdnn import FbankTDNN
from knn_cli.networks.features import MelPower, mel_matrix
from tests.helpers.oracles import load_torchaudio

SMALL: dict[str, dict[str, Any]] = {"fbank-tdnn": {"channels": 16, "hidden": 24, "dilations": (1, 2)}}


@pytest.fixture(params=sorted(SMALL))
def encoder(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return ENCODERS.build(request.param, **SMALL[request.param]).eval()


def speech(*lengths: int) -> torch.Tensor:
    """Noise with a moving loudness, zero past each length: (B, max) float32."""
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.zeros(len(lengths), max(lengths))
    for row, length in zip(waveforms, lengths, strict=True):
        swell = 0.1 + torch.sin(torch.arange(length) / 900).abs()
        row[:length] = 0.1 * torch.randn(length, generator=generator) * swell
    return waveforms


@pytest.mark.parametrize("extra", [0, 1, 159, 160, 479, 480, 7777])
def test_frames_say_how_many_come(encoder: Any, extra: int) -> None:
    samples = encoder.minimum + extra
    layers = list(encoder(speech(samples)))
    assert len(layers) == encoder.layers
    assert {layer.shape for layer in layers} == {(1, encoder.frames(samples), encoder.channels)}
    assert encoder.frames(torch.tensor([samples])).tolist() == [encoder.frames(samples)]
    assert encoder.frames(samples + 10 * encoder.stride) == encoder.frames(samples) + 10


def test_the_minimum_is_the_least(encoder: Any) -> None:
    assert encoder.frames(encoder.minimum) == 1
    assert encoder.frames(encoder.minimum - 1) == 0
    assert encoder.frames(torch.tensor([0, 100])).tolist() == [0, 0]
    with pytest.raises(AudioError, match="too short"):
        list(encoder(speech(encoder.minimum - 1)))


def test_a_padded_batch_is_the_clips_alone(encoder: Any) -> None:
    lengths = [16000, encoder.minimum, 9999, 12345]
    waveforms = speech(*lengths)
    waveforms[2, 9999:] = 7.0  # what lies past the end must not matter
    with torch.inference_mode():
        batch = list(encoder(waveforms, torch.tensor(lengths)))
        for row, length in enumerate(lengths):
            alone = list(encoder(waveforms[row : row + 1, :length]))
            for together, single in zip(batch, alone, strict=True):
                torch.testing.assert_close(together[row, : single.shape[1]], single[0], atol=1e-5, rtol=1e-5)


def test_lengths_of_whole_rows_change_nothing(encoder: Any) -> None:
    waveforms = speech(8000, 8000)
    with torch.inference_mode():
        for a, b in zip(encoder(waveforms), encoder(waveforms, torch.tensor([8000, 8000])), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_every_parameter_gets_a_gradient(encoder: Any) -> None:
    last = list(encoder(speech(8000)))[-1]
    last.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_state_dict_round_trip(encoder: Any, tmp_path: Any) -> None:
    save_file(encoder.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    other = type(encoder)(**SMALL["fbank-tdnn"]).eval()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)
    with torch.inference_mode():
        assert torch.equal(list(encoder(speech(8000)))[-1], list(other(speech(8000)))[-1])


def test_layers_come_one_after_the_other(encoder: Any) -> None:
    layers = encoder(speech(8000))
    assert iter(layers) is layers
    next(layers)


def test_loudness_does_not_matter() -> None:
    torch.manual_seed(0)
    encoder = FbankTDNN(**SMALL["fbank-tdnn"]).eval()
    with torch.inference_mode():
        for a, b in zip(encoder(speech(8000)), encoder(speech(8000) * 0.01), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_silence_gives_finite_layers() -> None:
    encoder = FbankTDNN(**SMALL["fbank-tdnn"])
    assert all(bool(layer.isfinite().all()) for layer in encoder(torch.zeros(2, 4000), torch.tensor([4000, 900])))


def test_half_precision_does_not_reach_the_filter_bank() -> None:
    mel = MelPower()
    with torch.autocast("cpu", torch.bfloat16):
        powers = mel(speech(4000))
    assert powers.dtype == torch.float32
    torch.testing.assert_close(powers, mel(speech(4000)))


def test_a_tone_falls_into_its_mel_bin() -> None:
    steps = torch.arange(4000) / 16000
    for hertz in (250.0, 1000.0, 3000.0):
        powers = MelPower()(torch.sin(2 * math.pi * hertz * steps)[None])[0].mean(0)  # (80,)
        edges = np.linspace(1127 * math.log1p(20 / 700), 1127 * math.log1p(8000 / 700), 82)
        expected = int(np.argmin(np.abs(edges[1:-1] - 1127 * math.log1p(hertz / 700))))
        assert abs(int(powers.argmax()) - expected) <= 1


def test_mel_triangles_by_hand() -> None:
    # two bins over 0 to 4 kHz at 8 kHz: edges at 0, 715.4, 1430.8 and 2146.1 mel
    matrix = mel_matrix(2, 8, 8000, 0.0, 4000.0)
    mel = 1127 * np.log1p(np.arange(5) * 1000 / 700)
    edges = np.linspace(0, mel[-1], 4)
    assert matrix.shape == (5, 2)
    assert matrix[0].tolist() == [0.0, 0.0]
    assert matrix[1, 0] == pytest.approx((edges[2] - mel[1]) / (edges[2] - edges[1]))
    assert matrix[1, 1] == pytest.approx((mel[1] - edges[1]) / (edges[2] - edges[1]))
    assert matrix[4, 1] == pytest.approx(0.0, abs=1e-6)


def test_filter_bank_equals_kaldi() -> None:
    load_torchaudio()
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    waveform = speech(16000)
    expected = kaldi.fbank(waveform, num_mel_bins=80, dither=0.0, sample_frequency=16000)
    ours = MelPower()(waveform)[0].clamp_min(1.1920929e-07).log()
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
