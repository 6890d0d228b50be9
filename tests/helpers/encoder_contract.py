"""What must hold for every encoder that hears through a filter bank: called by the tests of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from knn_cli.core.errors import AudioError
from knn_cli.networks.network import Network


def sound(*lengths: int) -> torch.Tensor:
    """Noise with a moving loudness, 7 past each length: (B, max) float32."""
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.full((len(lengths), max(lengths)), 7.0)
    for row, length in zip(waveforms, lengths, strict=True):
        swell = 0.1 + torch.sin(torch.arange(length) / 900).abs()
        row[:length] = 0.1 * torch.randn(length, generator=generator) * swell
    return waveforms


def shaken(module: Any) -> Any:
    """The module in evaluation mode, its norms with statistics and weights of their own."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return module.eval()


def check_frames(encoder: Any) -> None:
    """`frames`, `layers`, `channels`, `stride` and `minimum` say what comes."""
    for extra in (0, 1, 159, 160, 161, 1280, 7777):
        samples = encoder.minimum + extra
        with torch.inference_mode():
            layers = list(encoder(sound(samples)))
        assert len(layers) == encoder.layers
        assert {layer.shape for layer in layers} == {(1, encoder.frames(samples), encoder.channels)}
        assert encoder.frames(torch.tensor([samples, 0])).tolist() == [encoder.frames(samples), 0]
        assert encoder.frames(samples + 10 * encoder.stride) == encoder.frames(samples) + 10
    assert encoder.frames(encoder.minimum) >= 1 and encoder.frames(encoder.minimum - 1) == 0
    for waveforms, lengths in ((sound(encoder.minimum - 1), None), (sound(9000, encoder.minimum - 1), True)):
        with pytest.raises(AudioError, match=f"{encoder.minimum - 1} samples is too short"):
            encoder(waveforms, torch.tensor([9000, encoder.minimum - 1]) if lengths else None)
    with pytest.raises(ValueError, match="do not fit"):
        encoder(sound(9000), torch.tensor([9001]))


def check_padding(encoder: Any, pooling: Any) -> None:
    """A clip gives the same frames, and the same embedding, in a padded batch as alone."""
    lengths = [16000, encoder.minimum, 9999, 12345, 1700]
    waveforms, network = sound(*lengths), Network(encoder, pooling)
    with torch.inference_mode():
        batch, embeddings = list(encoder(waveforms, torch.tensor(lengths))), network(waveforms, torch.tensor(lengths))
        assert embeddings.shape == (5, network.dimension) and bool(embeddings.isfinite().all())
        for row, length in enumerate(lengths):
            clip = waveforms[row : row + 1, :length]
            for together, alone in zip(batch, encoder(clip), strict=True):
                torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(embeddings[row], network(clip)[0], atol=1e-5, rtol=1e-5)


def check_gradient(encoder: Any, pooling: Any) -> None:
    """Gradient reaches every parameter, is finite, and training with clips of unequal lengths works."""
    network = Network(encoder, pooling).train()
    network(sound(8000, 6000, 5000), torch.tensor([8000, 6000, 5000])).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert parameter.grad.abs().sum() > 0, name
    network.eval()
