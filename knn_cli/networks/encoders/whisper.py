"""Whisper's encoder of any size.

Radford et al., "Robust speech recognition via large-scale weak supervision", 2022 (arXiv:2212.04356).

Log-mel features, two convolutions, fixed sinusoidal position embeddings, then pre-norm transformer blocks; a frame
every 20 ms. Whisper pads every clip with silence to 30 seconds; here clips keep their length, so that short clips cost
little, and a clip has the same frames in a padded batch as on its own. Whisper learnt from clips with silence behind
them, of which `silence` gives it back as much as is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS
from knn_cli.networks.contracts import Encoder, Samples
from knn_cli.networks.features import check_clip_lengths, frame_mask, power_spectra, slaney_matrix, windows
from knn_cli.networks.int8 import linears
from knn_cli.networks.onnx_state import is_in_onnx_export

__all__ = ["Whisper", "WhisperMel"]

_MIN_POWER = 1e-10  # mel power
_DYNAMIC_RANGE_DECADES = 8.0  # below a clip's largest mel power; smaller powers are raised to that level
_MAX_POSITIONS = 1500  # frames (30 seconds) whose sinusoids are precomputed


class WhisperMel(nn.Module):
    """Whisper's features: 25 ms Hann windows centred at every 10 ms, `bins` Slaney mels, log10, two scalings.

    Values more than `_DYNAMIC_RANGE_DECADES` below a clip's largest are raised to that level. The clip is padded by
    reflection at its start, as in Whisper, and with silence at its end.

    Parameters
    ----------
    bins : int
        Mel bins F.
    level : float, optional
        log10 of the mean mel power that every clip is scaled to, so that loudness does not matter; None leaves the
        power unchanged, as Whisper does.
    """

    window: Tensor
    filters: Tensor

    rate, size, shift = 16000, 400, 160

    def __init__(self, bins: int = 80, level: float | None = None) -> None:
        super().__init__()
        self.level = level
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)
        self.register_buffer("filters", slaney_matrix(bins, self.size, self.rate), persistent=False)

    def powers(self, waveforms: Tensor) -> Tensor:
        """(B, S) float32, zero past a clip's end -> mel powers (B, S // 160, F) float32."""
        half = self.size // 2
        mirrored = torch.cat([waveforms[:, 1 : half + 1].flip(1), F.pad(waveforms, (0, half))], dim=1)
        frames = windows(mirrored[:, : mirrored.shape[1] - self.shift], self.size, self.shift) * self.window
        return power_spectra(frames, self.size) @ self.filters

    def features(self, powers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mel powers (B, N, F), mask (B, N) of real frames or None -> features (B, N, F), zero elsewhere."""
        if self.level is not None:
            weights = 1.0 if mask is None else mask.unsqueeze(2) / mask.float().mean(1)[:, None, None]
            mean = (powers * weights).mean((1, 2), keepdim=True).clamp_min(_MIN_POWER)
            powers = powers * (10**self.level / mean)
        logs = powers.clamp_min(_MIN_POWER).log10()
        within = logs if mask is None else logs.masked_fill(~mask.unsqueeze(2), -math.inf)
        features = torch.maximum(logs, within.amax((1, 2), keepdim=True) - _DYNAMIC_RANGE_DECADES) / 4 + 1
        return features if mask is None else features * mask.unsqueeze(2)


class WhisperBlock(nn.Module):
    """Pre-norm transformer block: attention, then two linear layers, each with a residual connection."""

    def __init__(self, channels: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.inner_norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, inner)
        self.narrow = nn.Linear(inner, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, C), mask (B, 1, 1, T) of real frames or None -> (B, T, C)."""
        y = self.norm(x)
        query, key, value = (
            z.view(*z.shape[:2], self.heads, -1).transpose(1, 2)  # (B, H, T, C / H)
            for z in linears(y, self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(y.transpose(1, 2).flatten(2))  # (B, T, C)
        return cast(Tensor, x + self.narrow(F.gelu(self.widen(self.inner_norm(x)))))


@ENCODERS.register("whisper")
class Whisper(Encoder):
    """Whisper's encoder.

    Yields `blocks` + 1 layers: the input of the first block, and the output of each; the final norm, if any, is applied
    to the last one.

    Parameters
    ----------
    channels, blocks, heads, inner : int
        Sizes of the transformer; the defaults are those of Whisper-tiny.
    bins : int
        Mel bins.
    final_norm : bool
        Whether the last layer is normalised, as in Whisper; False if only the first blocks of a Whisper are used.
    level : float, optional
        See `WhisperMel`.
    normalised : bool
        Whether each layer is normalised to mean 0 and variance 1 in every frame, so that a pooling weights layers of
        equal scale.
    silence : float
        Seconds of silence that are appended to every clip, and counted in `frames`.
    merge_after : int, optional
        After how many blocks each two neighbouring frames are averaged, so that the later blocks have half as many to
        process; the layers before are averaged when they are yielded. None keeps all frames.
    """

    places: Tensor

    rate = 16000
    longest_seconds = 30.0  # it was never trained on more

    def __init__(
        self,
        channels: int = 384,
        blocks: int = 4,
        heads: int = 6,
        inner: int = 1536,
        bins: int = 80,
        final_norm: bool = True,
        level: float | None = None,
        normalised: bool = False,
        silence: float = 0.0,
        merge_after: int | None = None,
    ) -> None:
        super().__init__()
        if min(channels - 3, heads, inner, bins, blocks + 1) < 1:
            raise KnnError("A size of Whisper is too small.", "Whisper-tiny has channels 384, blocks 4, heads 6.")
        if channels % (2 * heads):
            raise KnnError(f"Whisper's {channels} channels are no even multiple of its {heads} heads.")
        if not 0 <= silence < math.inf:
            raise KnnError(f"A clip of Whisper cannot have {silence} s of silence after it.", "Give 0 or more seconds.")
        if merge_after is not None and not 0 <= merge_after <= blocks:
            raise KnnError(f"Frames cannot be merged after {merge_after} of {blocks} blocks.")
        self.channels, self.layers, self.normalised, self.merge_after = channels, blocks + 1, normalised, merge_after
        self.silence = round(silence * self.rate)  # samples
        self.mel = WhisperMel(bins, level)
        self.stride = (2 if merge_after is None else 4) * self.mel.shift
        self.minimum = self.mel.size
        self.first = nn.Conv1d(bins, channels, 3, padding=1)
        self.second = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(WhisperBlock(channels, heads, inner) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels) if final_norm else nn.Identity()
        self.register_buffer("places", sinusoids(torch.arange(_MAX_POSITIONS), channels), persistent=False)

    def block_list(self) -> list[nn.Module]:
        """As `Encoder.block_list`."""
        return list(self.blocks)

    def frames(self, samples: Samples) -> Samples:
        """Number of frames of a clip of `samples`: int for int, int64 tensor for int64 tensor."""
        count = ((samples + self.silence) // self.mel.shift + 1) // 2
        count = count if self.merge_after is None else (count + 1) // 2
        if isinstance(samples, Tensor):
            return count.masked_fill(samples < self.minimum, 0)
        return count if samples >= self.minimum else 0

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Iterator[Tensor]:
        """(B, S) float32 in [-1, 1], clip lengths (B,) int64 in samples -> the layers, each (B, frames(S), C).

        With `lengths`, a clip's frames equal those of the clip on its own; frames past its end are undefined.

        Raises
        ------
        AudioError
            A clip is shorter than `minimum` samples.
        """
        check_clip_lengths(waveforms, lengths, self.minimum, "whisper")
        if lengths is not None:
            waveforms = waveforms * frame_mask(lengths, waveforms.shape[1])  # silence past the clip's end
            lengths = lengths + self.silence
        waveforms = F.pad(waveforms, (0, self.silence))
        with torch.autocast(waveforms.device.type, enabled=False):  # half precision cannot hold powers
            powers = self.mel.powers(waveforms.float())
        return self.encode(powers, None if lengths is None else lengths // self.mel.shift)

    def encode(self, powers: Tensor, counts: Tensor | None = None) -> Iterator[Tensor]:
        """Mel powers (B, N, F), of which the first `counts` (B,) int64 are real -> layers (B, T, C)."""
        mask = None if counts is None else frame_mask(counts, powers.shape[1])
        x = F.gelu(self.first(self.mel.features(powers, mask).transpose(1, 2)))  # (B, C, N)
        if mask is not None:
            x = x * mask.unsqueeze(1)  # the second convolution gets zeros past the end, as for a single clip
        x = F.gelu(self.second(x)).transpose(1, 2)  # (B, T, C)
        places = self.places
        if is_in_onnx_export() or x.shape[1] > len(places):
            places = sinusoids(torch.arange(x.shape[1], device=x.device), self.channels)
        x = x + places[: x.shape[1]]
        real = None if counts is None else frame_mask((counts + 1) // 2, x.shape[1])  # (B, T)
        merges = self.merge_after is not None
        for number, block in enumerate(self.blocks):
            if number == self.merge_after:
                x, real, merges = *pair_means(x, real), False
            yield self._output(pair_means(x, real)[0] if merges else x)
            x = block(x, None if real is None else real[:, None, None])
        x = self.norm(x)
        yield self._output(pair_means(x, real)[0] if merges else x)

    def _output(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.channels,)) if self.normalised else x


def pair_means(x: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Frames (B, T, C), which of them are real (B, T) or None -> means of each two, (B, ceil(T / 2), C), and which are.

    A real frame without a real second one stays as it is.
    """

    def sums(y: Tensor) -> Tensor:
        first, second = y[:, ::2], F.pad(y[:, 1::2], (0, 0, 0, 1))  # of odd T, the last frame goes with a zero
        return first + second[:, : first.shape[1]]

    weights = x.new_ones(1, x.shape[1], 1) if real is None else real.unsqueeze(2).to(x.dtype)
    counts = sums(weights)  # 0, 1 or 2
    means = sums(x if real is None else x * weights) / counts.clamp_min(1)
    return means, None if real is None else counts.squeeze(2) > 0


def sinusoids(places: Tensor, channels: int) -> Tensor:
    """(T,) positions -> (T, channels) float32: sines, then cosines, of wavelengths from 2 pi to 10,000 times that."""
    half = channels // 2
    rates = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half, device=places.device))
    angles = places[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
