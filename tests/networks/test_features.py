"""Filter banks against Kaldi's in torchaudio and speechbrain's, written out and as it gave them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from knn_cli.core.errors import KnnError
from knn_cli.networks.features import DecibelMel, LogMel
from tests.helpers.encoder_contract import sound
from tests.helpers.oracles import load_torchaudio
from tests.helpers.public_outputs import OUTPUTS, clips


@pytest.mark.parametrize("window", ["povey", "hamming"])
@pytest.mark.parametrize("scale", [1.0, 32768.0])
@pytest.mark.parametrize("bins", [40, 80])
def test_log_mel_equals_kaldi(window: str, scale: float, bins: int) -> None:
    load_torchaudio()
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    waveform = sound(16000) * scale
    waveform[:, 5000:9000] = 0  # Kaldi's floor
    expected = kaldi.fbank(
        waveform, num_mel_bins=bins, dither=0.0, sample_frequency=16000, window_type=window, use_energy=False
    )
    ours = LogMel(bins, window=window)(waveform)[0]
    torch.testing.assert_close(ours, expected - expected.mean(0), atol=1e-4, rtol=1e-4)


def test_decibels_equal_speechbrain_written_out() -> None:
    """Every step separately, in float64, with windows cut by hand."""
    waveform = sound(4000)[0].double()
    padded = torch.nn.functional.pad(waveform, (200, 200))
    steps = torch.arange(400, dtype=torch.float64)
    window = 0.54 - 0.46 * torch.cos(2 * math.pi * steps / 400)  # periodic
    frames = [padded[start : start + 400] * window for start in range(0, 4001, 160)]
    turns = torch.exp(-2j * math.pi * torch.outer(torch.arange(201.0, dtype=torch.float64), steps) / 400)
    powers = torch.stack([(turns @ frame.to(turns.dtype)).abs() ** 2 for frame in frames])  # (26, 201)
    mels = torch.linspace(0, 2595 * math.log10(1 + 8000 / 700), 62, dtype=torch.float64)
    hertz = 700 * (10 ** (mels / 2595) - 1)
    filters = torch.zeros(201, 60, dtype=torch.float64)
    for point in range(201):
        for bin in range(60):
            slope = (point * 40 - hertz[bin + 1]) / (hertz[bin + 1] - hertz[bin])
            filters[point, bin] = max(0.0, min(float(slope) + 1, 1 - float(slope)))
    decibels = 10 * (powers @ filters).clamp_min(1e-10).log10()
    decibels = decibels.clamp_min(float(decibels.max()) - 80)
    ours = DecibelMel(60)(waveform.float()[None])[0]
    torch.testing.assert_close(ours, (decibels - decibels.mean(0)).float(), atol=1e-3, rtol=0)


def test_decibels_equal_speechbrain() -> None:
    expected = torch.from_numpy(np.load(OUTPUTS)["decibels"])
    torch.testing.assert_close(DecibelMel(60)(clips()[:1])[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("front", [LogMel(40), LogMel(20, window="hamming"), DecibelMel(40)])
def test_a_padded_batch_is_the_clips_alone(front: LogMel | DecibelMel) -> None:
    lengths = [16000, 5001, 400, 9760]
    waveforms = sound(*lengths)
    batch = front(waveforms, torch.tensor(lengths))
    assert batch.shape == (4, front.frames(16000), front.bins)
    assert front.frames(torch.tensor(lengths)).tolist() == [front.frames(length) for length in lengths]
    for row, length in enumerate(lengths):
        alone = front(waveforms[row : row + 1, :length])[0]
        assert alone.shape[0] == front.frames(length)
        torch.testing.assert_close(batch[row, : len(alone)], alone, atol=1e-4, rtol=1e-4)
        assert bool((batch[row, len(alone) :] == 0).all())
        torch.testing.assert_close(alone.mean(0), torch.zeros(front.bins), atol=1e-4, rtol=0)
        torch.testing.assert_close(front(waveforms)[row], front(waveforms[row : row + 1])[0], atol=1e-4, rtol=1e-4)


def test_frames_by_hand() -> None:
    assert [LogMel().frames(samples) for samples in (0, 399, 400, 559, 560)] == [0, 0, 1, 1, 2]
    assert [DecibelMel().frames(samples) for samples in (0, 1, 159, 160)] == [0, 1, 1, 2]
    assert DecibelMel().frames(torch.tensor([0, 160])).tolist() == [0, 2]


def test_silence_and_half_precision() -> None:
    for front in (LogMel(), DecibelMel()):
        assert bool(front(torch.zeros(2, 1000), torch.tensor([1000, 500])).isfinite().all())
        with torch.autocast("cpu", torch.bfloat16):
            features = front(sound(4000))
        torch.testing.assert_close(features, front(sound(4000)))


def test_an_unknown_window_is_refused() -> None:
    with pytest.raises(KnnError, match="no window 'hann'"):
        LogMel(window="hann")
