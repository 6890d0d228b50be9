"""3D-Speaker: CAM++ files, whose sizes come from the shapes of their weights."""

from __future__ import annotations

from knn_cli.core.errors import KnnError
from knn_cli.networks.importers.checkpoint_files import list_keys, sources_hint
from knn_cli.networks.importers.components import ImportedModel, encoder_to_fill, match_weights, pooling_to_fill
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.weight_names import CAMPPLUS, CAMPPLUS_POOLING

__all__ = ["from_3d_speaker"]

_3D_SPEAKER_NOTE = (
    "The weights keep the licence of their source; 3D-Speaker's model cards state Apache-2.0. Check before you pass "
    "them on."
)


def _has_campplus(checkpoint: Checkpoint) -> bool:
    return any(key.startswith("xvector.block1.") for key in checkpoint.keys)


@importer("3D-Speaker", recognizes=_has_campplus)
def from_3d_speaker(checkpoint: Checkpoint) -> ImportedModel:
    """Import a CAM++ of 3D-Speaker, whose sizes follow from the shapes of its weights; KnnError where they do not."""
    content, path = checkpoint.weights, checkpoint.path
    blocks = []
    for number in range(1, 4):
        start = f"xvector.block{number}.tdnnd"
        blocks.append(len({key.removeprefix(start).split(".")[0] for key in content if key.startswith(start)}))
    axes_of = {
        "head.conv1.weight": 4,
        "xvector.tdnn.linear.weight": 3,
        "xvector.block1.tdnnd1.cam_layer.linear_local.weight": 3,
        "xvector.dense.linear.weight": 3,
    }
    wrong = [key for key, axes in axes_of.items() if getattr(content.get(key), "ndim", 0) != axes]
    if wrong:
        raise KnnError(
            f"{path} does not determine the sizes of its CAM++: missing or mis-sized {list_keys(wrong)}.",
            sources_hint(),
        )
    stem, tdnn, local, dense = (tuple(content[key].shape) for key in axes_of)
    args = {
        "width": stem[0],
        "channels": tdnn[0],
        "growth": local[0],
        "bottleneck": local[1] // local[0],
        "blocks": blocks,
        "bins": 8 * tdnn[1] // stem[0],
    }
    encoder = encoder_to_fill("campplus", args, CAMPPLUS)
    pooling = pooling_to_fill(encoder, "campplus", {"dimension": dense[0]}, CAMPPLUS_POOLING)
    components = match_weights([encoder, pooling], content, path, "CAM++", "3D-Speaker")
    return ImportedModel(components[0], f"3D-Speaker: {path.name}", _3D_SPEAKER_NOTE, components[1])
