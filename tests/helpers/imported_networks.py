"""The network that an importer makes of a checkpoint, ready to be run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knn_cli.networks.construction import build_network
from knn_cli.networks.importers.entry import import_embedding_network
from knn_cli.networks.network import Network


def imported_network(path: Path) -> Network:
    """In evaluation mode, built from the names and arguments that a bundle would keep."""
    imported = import_embedding_network(path)
    config: dict[str, Any] = {
        "encoder": {"name": imported.encoder.name, "args": imported.encoder.args},
        "pooling": {"name": imported.pooling.name, "args": imported.pooling.args},
    }
    if imported.head is not None:
        config["head"] = {"name": imported.head.name, "args": imported.head.args, "labels": imported.labels}
    network = build_network(config)
    network.load_state_dict(imported.state)
    return network.eval()
