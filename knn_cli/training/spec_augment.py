"""SpecAugment: masking of training features, on a filter bank's output or on the frames of WavLM.

Park et al., "SpecAugment", Interspeech 2019 (arXiv:1904.08779), section 2, is used for filter banks: a band
of mel bins and a range of frames per clip are masked. For WavLM, masks are the spans of wav2vec 2.0's fine-tuning
(Baevski et al., NeurIPS 2020, arXiv:2006.11477, section 4.3 and appendix B) over the frames that its front end
projects: their number, over frames and over channels, is such that they would cover the recipe's share if none
overlapped.

Masked features are set to 0, which is the mean of a filter bank's features here. wav2vec 2.0 masks frames with a learnt
vector instead, which torchaudio's checkpoints lack and knn's omit, because only training needs it; masked channels are
0 there too.
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

BoolMask = NDArray[np.bool_]


class SpecAugment:
    """Masks an encoder's features during training.

    Parameters
    ----------
    encoder : Encoder
        The encoder, on which the masks are installed.
    recipe : AugmentConfig
        The recipe's table [augment].

    Attributes
    ----------
    seeds : (B,) int64 array or None
        The seed of each clip's masks, to be set before each batch, so that masks do not depend on the batch.

    Raises
    ------
    KnnError
        The recipe asks for masks that do not suit this encoder.
    """

    def __init__(self, encoder: Encoder, recipe: AugmentConfig) -> None:
        self.seeds: NDArray[np.int64] | None = None
        self._encoder, self._recipe = encoder, recipe
        self._bank = recipe.mask_share > 0
        spanned = "mask_time_share" if recipe.mask_time_share else "mask_feature_share"
        if self._bank and (recipe.mask_time_share or recipe.mask_feature_share):
            raise KnnError(
                f"augment.mask_share is for filter banks and augment.{spanned} for wavlm; no encoder supports both.",
                "Take one out.",
            )
        if self._bank and encoder.mask_kind != "filter bank":
            hint = "These are resnet, ecapa-tdnn, campplus and fbank-tdnn; transformers have mask_time_share."
            raise KnnError("augment.mask_share needs an encoder with a filter bank in front.", hint)
        if not self._bank and encoder.mask_kind != "frames":
            raise KnnError(
                f"augment.{spanned} needs wavlm, wav2vec2 or w2v-bert.", "For a filter bank take mask_share."
            )
        encoder.mask_features(self)

    def __call__(self, features: Tensor) -> Tensor:
        """Mask the features (B, T, F) of a batch; outside training they are returned unchanged."""
        if self.seeds is None or not self._encoder.training:
            return features
        draw, (_, frames, width) = mask_bands if self._bank else mask_spans, features.shape
        masks = [draw(self._recipe, frames, width, np.random.default_rng(int(seed))) for seed in self.seeds]
        times, channels = (torch.from_numpy(np.stack(mask)).to(features.device) for mask in zip(*masks, strict=True))
        return features.masked_fill(times[:, :, None] | channels[:, None, :], 0.0)  # (B, T), (B, F)


def mask_bands(recipe: AugmentConfig, frames: int, bins: int, random: np.random.Generator) -> tuple[BoolMask, BoolMask]:
    """Draw masks for a filter bank's features.

    Parameters
    ----------
    recipe : AugmentConfig
        Clips are masked with probability `mask_share`, up to `mask_frames` frames and `mask_bins` bins wide.
    frames, bins : int
        The size of the features.
    random : np.random.Generator
        The random generator.

    Returns
    -------
    (frames,) and (bins,) bool arrays
        True where features are masked: a contiguous range of each, or nothing.
    """

    def contiguous(size: int, max_width: int) -> BoolMask:
        width = int(random.integers(min(max_width, size) + 1))
        first = int(random.integers(size - width + 1))
        positions = np.arange(size)
        mask: BoolMask = (positions >= first) & (positions < first + width)
        return mask

    chosen = random.random() < recipe.mask_share
    times, channels = contiguous(frames, recipe.mask_frames), contiguous(bins, recipe.mask_bins)
    return times & chosen, channels & chosen


def mask_spans(
    recipe: AugmentConfig, frames: int, channels: int, random: np.random.Generator
) -> tuple[BoolMask, BoolMask]:
    """Draw masks for WavLM's frames.

    Parameters
    ----------
    recipe : AugmentConfig
        Shares and lengths of the spans: `mask_time_share`, `mask_time_length`, `mask_feature_share` and
        `mask_feature_length`.
    frames, channels : int
        The size of the features.
    random : np.random.Generator
        The random generator.

    Returns
    -------
    (frames,) and (channels,) bool arrays
        True where features are masked: spans of fixed length, which may overlap.
    """

    def spanned(size: int, share: float, length: int) -> BoolMask:
        length = min(length, size)
        count = min(int(share * size / length + random.random()), size - length + 1)  # stochastic rounding
        first: Any = random.choice(size - length + 1, count, replace=False)
        mask = np.zeros(size, dtype=np.bool_)
        mask[(first[:, None] + np.arange(length)).ravel()] = True  # (count, length)
        return mask

    return (
        spanned(frames, recipe.mask_time_share, recipe.mask_time_length),
        spanned(channels, recipe.mask_feature_share, recipe.mask_feature_length),
    )
