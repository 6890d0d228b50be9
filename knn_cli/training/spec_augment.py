"""SpecAugment: features of training clips masked, over a filter bank's output or over the frames of WavLM.

Park et al., "SpecAugment", Interspeech 2019 (arXiv:1904.08779), section 2, for filter banks: one band of mel bins and
one stretch of frames a clip. For WavLM the spans of wav2vec 2.0's fine-tuning (Baevski et al., NeurIPS 2020,
arXiv:2006.11477, section 4.3 and appendix B) over the frames that its front end projects: so many spans of frames, and
so many of channels, that they would cover the recipe's share if none overlapped.

Masked features are 0. That is the mean of a filter bank's features here. For WavLM's frames wav2vec 2.0 has a learnt
vector, which torchaudio's checkpoints lack and ours leave out, being of no use but in training; masked channels are 0
there too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.contracts import Encoder
from knn_cli.training.recipe import AugmentConfig

__all__ = ["SpecAugment", "mask_bands", "mask_spans"]

Places = NDArray[np.bool_]


class SpecAugment:
    """Masks on an encoder's features while it trains.

    `seeds` (B,) int64 are to be set before each batch: a clip's masks follow from its own, whatever batch it is in.

    Raises KnnError for masks that are not for this encoder.
    """

    def __init__(self, encoder: Encoder, recipe: AugmentConfig) -> None:
        self.seeds: NDArray[np.int64] | None = None
        self._encoder, self._recipe = encoder, recipe
        self._bank = recipe.mask_share > 0
        spanned = "mask_time_share" if recipe.mask_time_share else "mask_feature_share"
        if self._bank and (recipe.mask_time_share or recipe.mask_feature_share):
            raise KnnError(
                f"augment.mask_share is for filter banks and augment.{spanned} for wavlm; no encoder has both.",
                "Take one out.",
            )
        if self._bank and encoder.mask_kind != "filter bank":
            hint = "These are resnet, ecapa-tdnn, campplus and fbank-tdnn; wavlm has mask_time_share."
            raise KnnError("augment.mask_share needs an encoder with a filter bank in front.", hint)
        if not self._bank and encoder.mask_kind != "frames":
            raise KnnError(f"augment.{spanned} needs wavlm.", "For a filter bank take mask_share.")
        encoder.mask_features(self)

    def __call__(self, features: Tensor) -> Tensor:
        """Features (B, T, F) with this batch's masks, in training."""
        if self.seeds is None or not self._encoder.training:
            return features
        drawn, (_, frames, width) = mask_bands if self._bank else mask_spans, features.shape
        places = [drawn(self._recipe, frames, width, np.random.default_rng(int(seed))) for seed in self.seeds]
        times, channels = (torch.from_numpy(np.stack(one)).to(features.device) for one in zip(*places, strict=True))
        return features.masked_fill(times[:, :, None] | channels[:, None, :], 0.0)  # (B, T), (B, F)


def mask_bands(recipe: AugmentConfig, frames: int, bins: int, random: np.random.Generator) -> tuple[Places, Places]:
    """(frames,) and (bins,) bool, True where a filter bank's features are masked: one stretch of each, or none."""

    def stretch(size: int, widest: int) -> Places:
        width = int(random.integers(min(widest, size) + 1))
        first = int(random.integers(size - width + 1))
        places = np.arange(size)
        found: Places = (places >= first) & (places < first + width)
        return found

    chosen = random.random() < recipe.mask_share
    times, channels = stretch(frames, recipe.mask_frames), stretch(bins, recipe.mask_bins)
    return times & chosen, channels & chosen


def mask_spans(recipe: AugmentConfig, frames: int, channels: int, random: np.random.Generator) -> tuple[Places, Places]:
    """(frames,) and (channels,) bool, True where WavLM's frames are masked: spans of fixed lengths, which overlap."""

    def spanned(size: int, share: float, length: int) -> Places:
        length = min(length, size)
        count = min(int(share * size / length + random.random()), size - length + 1)  # rounded by chance
        first: Any = random.choice(size - length + 1, count, replace=False)
        places = np.zeros(size, dtype=np.bool_)
        places[(first[:, None] + np.arange(length)).ravel()] = True  # (count, length)
        return places

    return (
        spanned(frames, recipe.mask_time_share, recipe.mask_time_length),
        spanned(channels, recipe.mask_feature_share, recipe.mask_feature_length),
    )
