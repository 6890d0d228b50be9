"""Rooms with several places in each: impulse responses from talkers at different distances to one microphone.

With distance the direct sound gets weaker and the diffuse field does not, so that talkers of the same room differ in
level and in how reverberant they are (Kuttruff, "Room Acoustics"): at the critical distance both have equal energy.
A measured impulse response gives the colour and decay of its room; other places in it have the same magnitudes over
time and frequency with random phases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import istft, stft

from knn_cli.core.values import Floats

RATE = 16_000
DIRECT = 40  # samples (2.5 ms) that belong to the direct sound
LONGEST = RATE // 2  # samples of a response
WINDOW = 128  # samples of the windows in which phases are drawn


@dataclass(frozen=True)
class Room:
    """Direct sound (D,) and diffuse tail (T,), both of energy 1, and the distance in metres at which they are equal."""

    direct: Floats
    tail: Floats
    critical: float

    def response(self, distance: float, generator: np.random.Generator) -> Floats:
        """Impulse response (S,) float32 of a new place at `distance` metres; the direct sound at 1 m has energy 1."""
        tail = self.diffuse(generator) / np.float32(self.critical)
        response = np.zeros(len(self.direct) + len(tail), dtype=np.float32)
        response[: len(self.direct)] = self.direct / np.float32(distance)
        response[len(self.direct) :] += tail
        return response

    def diffuse(self, generator: np.random.Generator) -> Floats:
        """The tail (T,) float32 at another place, of energy 1: what is heard of a source out of sight."""
        _, _, cells = stft(self.tail, nperseg=WINDOW)
        cells = np.abs(cells) * np.exp(2j * np.pi * generator.random(cells.shape))
        tail = istft(cells, nperseg=WINDOW)[1][: len(self.tail)]
        return (tail / np.sqrt(np.sum(tail**2))).astype(np.float32)


def measured(response: Floats, critical: float) -> Room:
    """The room of a measured impulse response (S,)."""
    first = max(0, int(np.abs(response).argmax()) - 8)
    response = np.pad(response[first:][:LONGEST], (0, max(0, 2 * WINDOW - len(response) + first)))
    direct, tail = response[:DIRECT], response[DIRECT:]
    return Room(_unit(direct), _unit(tail), critical)


def synthetic(reverberation: float, critical: float, generator: np.random.Generator) -> Room:
    """A room whose tail is noise that decays by 60 dB in `reverberation` seconds (Polack), weaker at high pitch."""
    times = np.arange(round(min(0.8 * reverberation, LONGEST / RATE) * RATE)) / RATE
    tail = generator.standard_normal(len(times)) * 10 ** (-3 * times / reverberation)
    smooth = np.convolve(tail, np.ones(3) / 3, "same")
    share = np.clip(times / (0.5 * reverberation), 0, 1)  # air and walls take high frequencies first
    direct = np.zeros(DIRECT, dtype=np.float32)
    direct[0] = 1.0
    return Room(direct, _unit((1 - share) * tail + share * smooth), critical)


def _unit(samples: Floats) -> Floats:
    return (samples / np.sqrt(np.sum(np.square(samples, dtype=np.float64)) + 1e-20)).astype(np.float32)
