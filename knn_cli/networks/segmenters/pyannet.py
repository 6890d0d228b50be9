"""PyanNet, the segmentation network of pyannote.audio: which of a few local speakers speak in each frame of a chunk.

Bredin and Laurent, "End-to-end speaker segmentation for overlap-aware resegmentation", Interspeech 2021
(arXiv:2104.04045): band-pass filters with learnt cut-offs (Ravanelli and Bengio, "Speaker recognition from raw waveform
with SincNet", SLT 2018, arXiv:1808.00158), two convolutions, bidirectional LSTM, linear layers. Classes are those of
`powerset`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import SEGMENTERS
from knn_cli.networks.contracts import Samples, WaveformSegmenter
from knn_cli.networks.features import check_clip_lengths
from knn_cli.networks.segmenters.powerset import powerset

__all__ = ["PyanNet", "SincFilters"]

POOL_FRAMES = 3  # frames per maximum, after each convolution
MIN_FILTER_HZ = 50.0  # of a filter's lower edge and of its width


@SEGMENTERS.register("pyannet")
class PyanNet(WaveformSegmenter):
    """Waveforms to log-probabilities of who speaks; with the defaults 589 frames of 10 s, one every 270 samples.

    Each chunk is normalised separately, so that each of its frames depends on the whole chunk.

    Parameters
    ----------
    filters : int
        Band-pass filters, half of them even and half odd.
    kernel : int
        Length of a filter in samples, an odd number.
    stride : int
        Samples between applications of the filters.
    widths : sequence of int
        Channels of the convolutions that follow.
    reach : int
        Kernel size of these convolutions, in frames.
    hidden : int
        Width of the LSTM in one direction.
    depth : int
        Layers of the LSTM.
    both : bool
        Whether the LSTM is bidirectional.
    linear : sequence of int
        Widths of the linear layers before the classifier.
    dropout : float
        Dropout probability between the layers of the LSTM, in training.
    speakers : int
        Number of speakers that a chunk can have.
    most : int
        Number of speakers that can speak in one frame.
    duration : float
        Length in seconds of the chunks that the network was trained on.
    rate : int
        Samples per second.
    """

    def __init__(
        self,
        filters: int = 80,
        kernel: int = 251,
        stride: int = 10,
        widths: Sequence[int] = (60, 60),
        reach: int = 5,
        hidden: int = 128,
        depth: int = 4,
        both: bool = True,
        linear: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        speakers: int = 3,
        most: int = 2,
        duration: float = 10.0,
        rate: int = 16000,
    ) -> None:
        super().__init__()
        sizes = [filters // 2, kernel, stride, *widths, reach, hidden, depth, *linear, rate]
        if min(sizes) < 1 or filters % 2 or kernel % 2 == 0 or not 0 < most <= speakers or not duration > 0:
            raise KnnError("A PyanNet has positive sizes, an even number of filters, and filters of odd length.")
        self.rate, self.duration, self.speakers, self.most = rate, float(duration), speakers, most
        self.normalize = nn.InstanceNorm1d(1, affine=True)
        self.sinc = SincFilters(filters, kernel, stride, rate)
        channels = [filters, *widths]
        self.convolutions = nn.ModuleList(nn.Conv1d(before, after, reach) for before, after in pairwise(channels))
        self.norms = nn.ModuleList(nn.InstanceNorm1d(width, affine=True) for width in channels)
        dropout = dropout if depth > 1 else 0.0
        self.lstm = nn.LSTM(channels[-1], hidden, depth, batch_first=True, bidirectional=both, dropout=dropout)
        widths = [hidden * (2 if both else 1), *linear]
        self.linears = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.classifier = nn.Linear(widths[-1], len(powerset(speakers, most)))
        # Kernel and stride of each layer up to the LSTM, from which the receptive field and the frame rate follow.
        self._steps = [(kernel, stride), (POOL_FRAMES, POOL_FRAMES)] + [(reach, 1), (POOL_FRAMES, POOL_FRAMES)] * (
            len(channels) - 1
        )
        self.receptive, self.stride = 1, 1
        for size, step in self._steps:
            self.receptive += (size - 1) * self.stride
            self.stride *= step
        self.minimum = self.receptive + self.stride  # a single frame cannot be normalised over time

    @property
    def step_seconds(self) -> float:
        """Seconds from one frame to the next."""
        return self.stride / self.rate

    @property
    def first_seconds(self) -> float:
        """Seconds from the start of a chunk to the centre of its first frame's receptive field."""
        return self.receptive / 2 / self.rate

    def nearest(self, seconds: NDArray[np.floating[Any]], frames: int) -> NDArray[np.int64]:
        """Index of the nearest of a chunk's `frames` to each time, in seconds from the chunk's start."""
        places = np.round((seconds - self.first_seconds) / self.step_seconds)
        return places.clip(0, frames - 1).astype(np.int64)

    def frames(self, samples: Samples) -> Samples:
        """Number of frames of a chunk of `samples`: int for int, int64 tensor for int64 tensor."""
        for size, step in self._steps:
            samples = (samples - size) // step + 1
        return samples.clamp_min(0) if isinstance(samples, Tensor) else max(samples, 0)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, S) float32 in [-1, 1], chunks of equal length -> (B, frames(S), C) float32 log-probabilities of classes.

        Raises
        ------
        AudioError
            S is below `minimum`.
        """
        check_clip_lengths(waveforms, None, self.minimum, "this segmentation network")
        return self._classified(self.sinc(self.normalize(waveforms.unsqueeze(1))).abs())

    def of_windows(self, waveform: Tensor, starts: Sequence[int], size: int) -> Tensor:
        """As `WaveformSegmenter.of_windows`; sound that windows share is filtered once if their distances allow it.

        A window is normalised by a gain g and a shift s, and filters are linear: of g x + s they make g times what they
        make of x, plus s times the sum of their values.
        """
        if torch.is_grad_enabled() or any((start - starts[0]) % self.sinc.stride for start in starts):
            return super().of_windows(waveform, starts, size)
        middle = waveform.mean()  # taken off first, so that little is subtracted from little
        waveform = waveform - middle
        kernels = self.sinc.kernels()  # (filters, 1, kernel)
        filtered = F.conv1d(waveform[None, starts[0] :][None], kernels, stride=self.sinc.stride)[0]  # (filters, T)
        sums = kernels.sum(2)  # (filters, 1)
        count = (size - kernels.shape[2]) // self.sinc.stride + 1
        x = waveform.new_empty(len(starts), len(sums), count)
        for row, start in zip(x, starts, strict=True):
            variance, mean = torch.var_mean(waveform[start : start + size], correction=0)
            gain = self.normalize.weight * (variance + self.normalize.eps).rsqrt()
            first = (start - starts[0]) // self.sinc.stride
            shift = (self.normalize.bias - gain * mean) * sums
            torch.add(shift, filtered[:, first : first + count], alpha=float(gain), out=row)
        return self._classified(x.abs_())

    def _classified(self, x: Tensor) -> Tensor:
        """Absolute values (B, filters, T) of filtered sound -> log-probabilities."""
        x = self._pooled(x, self.norms[0])
        for convolution, norm in zip(self.convolutions, list(self.norms)[1:], strict=True):
            x = self._pooled(convolution(x), norm)
        x, _ = self.lstm(x.transpose(1, 2))  # (B, T, hidden in all directions)
        for linear in self.linears:
            x = F.leaky_relu(linear(x))
        return F.log_softmax(self.classifier(x), dim=-1)

    def _pooled(self, x: Tensor, norm: nn.Module) -> Tensor:
        return F.leaky_relu(norm(F.max_pool1d(x, POOL_FRAMES)))


class SincFilters(nn.Module):
    """Band-pass filters with learnt edges: even filters (cosine), then odd ones (sine) of the same bands.

    Pariente et al., "Filterbank design for end-to-end speech separation", ICASSP 2020 (arXiv:1910.10400). A filter's
    lower edge is 50 Hz + |low|, its upper edge 50 Hz + |band| above that, at most half the rate; both parts of a pair
    have a Hamming window and are scaled so that the even one is 1 in the middle.
    """

    window: Tensor
    times: Tensor

    def __init__(self, filters: int, kernel: int, stride: int, rate: int) -> None:
        super().__init__()
        self.stride, self.highest = stride, rate / 2
        edges = torch.linspace(_mel(30.0), _mel(rate / 2 - 2 * MIN_FILTER_HZ), filters // 2 + 1, dtype=torch.float64)
        hertz = (700 * (10 ** (edges / 2595) - 1)).float()
        self.low = nn.Parameter(hertz[:-1, None].clone())  # (filters / 2, 1) Hz
        self.band = nn.Parameter(hertz.diff()[:, None])  # (filters / 2, 1) Hz
        # The half before a filter's middle; the other half is its mirror image.
        half = kernel // 2
        hamming = torch.hamming_window(kernel, periodic=False, dtype=torch.float64)[:half].float()
        self.register_buffer("window", hamming, persistent=False)
        times = 2 * math.pi * (torch.arange(-half, 0.0) / rate)  # (half,) seconds times 2 pi
        self.register_buffer("times", times, persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, 1, S) -> (B, filters, T)."""
        return F.conv1d(waveforms, self.kernels(), stride=self.stride)

    def kernels(self) -> Tensor:
        """The filters' (filters, 1, kernel) values."""
        low = MIN_FILTER_HZ + self.low.abs()
        high = (low + MIN_FILTER_HZ + self.band.abs()).clamp(max=self.highest)
        band = high - low  # (filters / 2, 1)
        # The order of operations matters: for a silent chunk, the norms that follow amplify rounding errors.
        even = ((high * self.times).sin() - (low * self.times).sin()) / (self.times / 2) * self.window
        odd = ((low * self.times).cos() - (high * self.times).cos()) / (self.times / 2) * self.window
        cosines = torch.cat([even, 2 * band, even.flip(1)], dim=1)
        sines = torch.cat([odd, torch.zeros_like(band), -odd.flip(1)], dim=1)
        return (torch.cat([cosines, sines]) / (2 * band).repeat(2, 1)).unsqueeze(1)  # (filters, 1, kernel)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)
