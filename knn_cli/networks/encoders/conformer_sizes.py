"""The sizes of a w2v-BERT 2.0: those of the release, and all that a config may change."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from knn_cli.core.errors import KnnError

__all__ = ["ACTIVATIONS", "POSITIONS", "W2V_BERT_SIZES", "W2vBertSizes"]

ACTIVATIONS = ("relu", "gelu", "swish")
POSITIONS = ("key", "relative", "rotary", "none")
_MAY_BE_0 = ("left", "right", "adapters_above", "adapter_channels")


@dataclass(frozen=True)
class W2vBertSizes:
    """The hyperparameters of a w2v-BERT 2.0.

    Attributes
    ----------
    bins : int
        Mel bins.
    stack : int
        Frames of the filter bank, 10 ms apart, that make one frame of the network.
    channels : int
        Width of the conformer.
    blocks : int
        Number of conformer blocks.
    heads : int
        Attention heads of a block.
    inner : int
        Width of the feed-forward layers.
    kernel : int
        Frames that a block's convolution sees: the present one and those before it. Odd.
    activation : str
        Of feed-forward layers and convolutions, one of `ACTIVATIONS`.
    positions : str
        How attention sees positions: "key" adds to each key a learnt vector of its distance, clipped to `left` and
        `right` (Shaw et al. 2018, arXiv:1803.02155, equation 4); "relative" has sinusoids of the distance
        (Dai et al. 2019, arXiv:1901.02860, section 3.3); "rotary" turns frames (Su et al. 2021, arXiv:2104.09864);
        "none".
    left, right : int
        Largest distance of a key before and behind its query that has a vector of its own.
    rotary_base : int
        Base of the wavelengths of "rotary".
    between : bool
        Whether a feed-forward layer stands between the blocks and the adapters above them.
    adapters_above : int
        Number of layers above the blocks that take several frames together; 0 for none. With such layers the network
        has a single output, theirs.
    adapter_channels : int
        Width of these layers; 0 for that of the blocks.
    adapter_kernel, adapter_stride : int
        Frames that such a layer sees at once, and frames from one of its outputs to the next.
    adapter_activation : str
        Of their feed-forward layers, one of `ACTIVATIONS`.
    """

    network: ClassVar[str] = "w2v-BERT 2.0"

    bins: int = 80
    stack: int = 2
    channels: int = 1024
    blocks: int = 24
    heads: int = 16
    inner: int = 4096
    kernel: int = 31
    activation: str = "swish"
    positions: str = "key"
    left: int = 64
    right: int = 8
    rotary_base: int = 10000
    between: bool = False
    adapters_above: int = 0
    adapter_channels: int = 0
    adapter_kernel: int = 3
    adapter_stride: int = 2
    adapter_activation: str = "relu"

    def __post_init__(self) -> None:
        """Reject sizes that no network can have."""
        for wrong, why in self._faults():
            if wrong:
                raise KnnError(f"These sizes make no {self.network}: {why}.", f"They are {self}.")

    @property
    def width(self) -> int:
        """Width of the layers that the encoder yields."""
        return (self.adapter_channels or self.channels) if self.adapters_above else self.channels

    def _faults(self) -> list[tuple[bool, str]]:
        """What no network can have: whether it is so here, and the rule that it breaks."""
        numbers = {field.name: value for field in fields(self) if type(value := getattr(self, field.name)) is int}
        least = [value - (0 if name in _MAY_BE_0 else 1) for name, value in numbers.items()]
        if min(least) < 0:
            return [(True, f"sizes must be at least 1, {', '.join(_MAY_BE_0)} at least 0")]
        positions = self.positions
        odd = positions in ("relative", "rotary") and (self.channels // self.heads) % 2 > 0
        return [
            (self.channels % self.heads > 0 or self.width % self.heads > 0, "heads must divide channels"),
            (self.kernel % 2 == 0, "kernel must be odd"),
            (positions not in POSITIONS, f"positions must be one of {', '.join(POSITIONS)}"),
            (odd, f"{positions} positions need heads of an even width"),
            (
                not {self.activation, self.adapter_activation} <= {*ACTIVATIONS},
                f"activations must be among {', '.join(ACTIVATIONS)}",
            ),
            (self.between and not self.adapters_above, "between needs adapters_above"),
            (
                self.adapters_above > 0 and self.adapter_kernel // 2 != self.adapter_stride // 2,
                "adapter_kernel and adapter_stride must have the same half",
            ),
        ]


W2V_BERT_SIZES = {"2.0": W2vBertSizes()}
