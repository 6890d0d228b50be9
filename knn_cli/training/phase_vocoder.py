"""A phase vocoder: sound made longer or shorter without a change of pitch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def phase_vocoder(spectrum: Tensor, rate: float, hop: int) -> Tensor:
    """Play a short-time spectrum `rate` times as fast.

    New frames lie every `rate` old ones. Magnitudes are interpolated linearly between the two neighbouring frames. The
    phase of a bin goes on from frame to frame by its instantaneous frequency: by the advance of the bin's centre over
    one hop, plus the deviation from it between the two neighbours, taken to [-pi, pi].

    Parameters
    ----------
    spectrum : (F, T) complex tensor
        Of a real signal, bins from 0 to half the sampling rate.
    rate : float
        Above 1 the result is shorter, below 1 it is longer.
    hop : int
        Samples from one frame to the next.

    Returns
    -------
    (F, ceil(T / rate)) complex tensor

    References
    ----------
    J. L. Flanagan and R. M. Golden, "Phase vocoder", Bell System Technical Journal 45(9), 1966.
    J. Laroche and M. Dolson, "Improved phase vocoder time-scale modification of audio", IEEE Transactions on Speech and
    Audio Processing 7(3), 1999, section II.
    """
    import torch

    if rate == 1.0:
        return spectrum
    bins, frames = spectrum.shape
    advance = torch.linspace(0, math.pi * hop, bins)[:, None]  # (F, 1) radians per hop, of each bin's centre
    times = torch.arange(0, frames, rate, dtype=spectrum.real.dtype)  # (T',) in old frames
    fraction = times % 1.0
    padded = torch.nn.functional.pad(spectrum, [0, 2])
    left, right = padded[:, times.long()], padded[:, (times + 1).long()]  # (F, T') neighbours of each new frame
    deviation = right.angle() - left.angle() - advance
    deviation = deviation - 2 * math.pi * torch.round(deviation / (2 * math.pi))
    steps = torch.cat([spectrum[:, :1].angle(), (deviation + advance)[:, :-1]], dim=-1)
    magnitude = fraction * right.abs() + (1 - fraction) * left.abs()
    return torch.polar(magnitude, torch.cumsum(steps, -1))
