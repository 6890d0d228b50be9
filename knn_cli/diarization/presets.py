"""Recipes of other programs as options: the same windows, clustering and post-processing, with our networks.

Networks are those of `DiarizationOptions` and of the embedder, which need not be the ones of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from knn_cli.diarization.options import DiarizationOptions

_LOCAL_SPEAKERS = {"step": 1.0, "short_windows": False, "min_turn": 0.0, "max_gap": 0.0, "margin": 0.0}

# "pyannote-3.1" cuts centroid linkage of unit vectors at a Euclidean distance of 0.7046; ours is half the squared
# distance. "pyannote-community-1" is VBx from average linkage, with the settings of that pipeline.
PRESETS: Mapping[str, DiarizationOptions] = MappingProxyType(
    {
        "pyannote-3.1": DiarizationOptions(
            clusterer="ahc",
            clusterer_settings={"linkage": "centroid", "threshold": 0.7045654963945799**2 / 2, "minimum_size": 12},
            **_LOCAL_SPEAKERS,  # type: ignore[arg-type]
        ),
        "pyannote-community-1": DiarizationOptions(
            clusterer="vbx",
            clusterer_settings={"threshold": 0.6, "starts": 0, "fa": 0.07, "fb": 0.8},
            **_LOCAL_SPEAKERS,  # type: ignore[arg-type]
        ),
    }
)
