"""3D-Speaker: files of the networks that it shares with wespeaker, whose filter bank has another window and scale."""

from __future__ import annotations

from knn_cli.core.errors import KnnError
from knn_cli.networks.importers.checkpoint_files import sources_hint
from knn_cli.networks.importers.components import ImportedModel, match_weights
from knn_cli.networks.importers.origins import SHARED, THREE_D_SPEAKER, WESPEAKER, origin_of
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.wespeaker_networks import Training, network_of

__all__ = ["from_3d_speaker"]

_3D_SPEAKER_NOTE = (
    "The weights keep the licence of their source; 3D-Speaker's model cards state Apache-2.0. Check before you pass "
    "them on."
)


def _is_shared(checkpoint: Checkpoint) -> bool:
    found = network_of(Training(checkpoint.path, checkpoint.weights))
    return found is not None and found[0] in SHARED


@importer("3D-Speaker", recognizes=_is_shared, takes_options=True)
def from_3d_speaker(checkpoint: Checkpoint) -> ImportedModel:
    """Import a CAM++, an ERes2Net or a ResNet of 3D-Speaker, whose sizes follow from the shapes of its weights.

    Raises
    ------
    KnnError
        The sizes do not follow, weights are missing, extra or mis-sized, or nothing tells that it is 3D-Speaker's:
        wespeaker's networks have the same weights, and hear waveforms of another scale through another window.
    """
    path = checkpoint.path
    training = Training(path, checkpoint.weights, window="povey")
    found = network_of(training)
    assert found is not None  # `_is_shared`
    name, build = found
    if origin_of(checkpoint) is None:
        raise KnnError(
            f"{path} may be a {name} of 3D-Speaker or of wespeaker, which have the same weights and hear different "
            "features.",
            f"Say which with `origin`, {THREE_D_SPEAKER} or {WESPEAKER}, or name the YAML of its training with "
            "`config`.",
        )
    if checkpoint.labels is not None:
        raise KnnError(f"{path} has no head, so `labels` name nothing.", sources_hint())
    components = match_weights(build(training), training.state, path, name, "3D-Speaker")
    return ImportedModel(components[0], f"3D-Speaker: {path.name}", _3D_SPEAKER_NOTE, components[1])
