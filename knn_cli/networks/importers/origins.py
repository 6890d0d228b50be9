"""Whose training wrote a checkpoint, where wespeaker and 3D-Speaker have networks with the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knn_cli.networks.importers.registry import Checkpoint

__all__ = ["EXTRACTOR", "ORIGINS", "PROJECTION", "SHARED", "THREE_D_SPEAKER", "WESPEAKER", "origin_in", "origin_of"]

WESPEAKER, THREE_D_SPEAKER = ORIGINS = ("wespeaker", "3d-speaker")
SHARED = ("CAM++", "ResNet", "ERes2Net", "ERes2NetV2", "Res2Net")  # networks of which both train their own
# Weights of an ERes2Net; the first is only in wespeaker's.
_ERES2NET = ("layer3.0.conv2_1.weight", "layer1_downsample.weight", "layer3_ds.weight")
EXTRACTOR, PROJECTION = "speaker_extractor.", "projection."  # wespeaker's prefixes of a network and of its head


def origin_of(checkpoint: Checkpoint) -> str | None:
    """One of `ORIGINS`, as the user, the names of the weights or the YAML say; None if nothing does.

    wespeaker keeps the head beside the network, and its YAML has `model_args`; the YAML of 3D-Speaker names classes of
    its package, speakerlab. Neither do the names of files count, nor sizes.
    """
    if checkpoint.origin is not None:
        return checkpoint.origin
    prefixes = (EXTRACTOR, PROJECTION, "resnet.")  # the last is pyannote's, of wespeaker's networks
    if any(str(key).startswith(prefixes) for key in checkpoint.keys):
        return WESPEAKER
    if found := [name for name in _ERES2NET if name in checkpoint.weights]:
        return WESPEAKER if found[0] == _ERES2NET[0] else THREE_D_SPEAKER
    return origin_in(checkpoint.settings)


def origin_in(settings: Mapping[str, Any]) -> str | None:
    """One of `ORIGINS`, as the YAML of a training says; None if it says nothing."""
    if isinstance(settings.get("model_args"), dict):
        return WESPEAKER
    return THREE_D_SPEAKER if "speakerlab." in str(settings) else None
