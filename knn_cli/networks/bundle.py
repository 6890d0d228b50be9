"""Model bundles: folders with a network, a classifier or both, found, read and written.

The entries of config.json, the files beside it and the layout of weights are described in docs/architecture.md.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from knn_cli.core.atomic import replacing_folder
from knn_cli.core.errors import BundleError
from knn_cli.core.folders import is_regular
from knn_cli.core.output_paths import check_folder
from knn_cli.core.registry import SEGMENTERS
from knn_cli.core.texts import did_you_mean
from knn_cli.networks.bundle_config import (
    SCHEMA,
    is_config,
    read_config,
    read_json,
    weight_bytes,
)
from knn_cli.networks.bundle_config import (
    SEGMENTER as SEGMENTER,
)
from knn_cli.networks.bundle_identity import CARD as CARD
from knn_cli.networks.bundle_identity import CLASSIFIER as CLASSIFIER
from knn_cli.networks.bundle_identity import PLDA as PLDA
from knn_cli.networks.bundle_identity import WEIGHTS as WEIGHTS
from knn_cli.networks.bundle_identity import Bundle as Bundle
from knn_cli.networks.bundle_identity import check_embedder as check_embedder
from knn_cli.networks.bundle_identity import same_embedder as same_embedder
from knn_cli.networks.bundle_search import CONFIG as CONFIG
from knn_cli.networks.bundle_search import bundle_folders, first_usable, note_shadowed
from knn_cli.networks.precision import FP32, without_suffix
from knn_cli.networks.precision import INT8 as INT8

if TYPE_CHECKING:
    import torch

    from knn_cli.networks.contracts import SegmentationNetwork
    from knn_cli.networks.network import Network

    Module = TypeVar("Module", bound=torch.nn.Module)

VOICE, LANGUAGE, SEGMENTATION = "voice", "language", "segmentation"  # the shipped bundles, which are the defaults


def available(*, segmenter: bool | None = False) -> dict[str, Path]:
    """Name -> folder of every bundle on the search path that embeds or classifies.

    With `segmenter=True` only bundles with segmentation networks, with None all bundles.
    """
    bundles: dict[str, Path] = {}
    for folder in bundle_folders():
        config = _bundle_config(folder)
        if config and segmenter in (None, config["kind"] == SEGMENTER):
            bundles.setdefault(folder.name, folder)
    return bundles


def find(model: str | Path | None = None, *, segmenter: bool | None = False) -> Bundle:
    """Find a bundle by its name or its path.

    Parameters
    ----------
    model : str or Path, optional
        None takes the default model of speaker embeddings, see `find_default`.
    segmenter : bool, optional
        True for a segmentation network, False for a bundle that embeds or classifies, None for either.

    Raises
    ------
    BundleError
        There is no such bundle (the message lists the available ones), it is of the other kind, or its config cannot
        be read, lacks keys, or has an unknown schema.

    Examples
    --------
    >>> from knn_cli import find_model
    >>> model = find_model("language")
    >>> model.name, model.rate, model.knows_labels
    ('language', 16000, True)
    """
    if model is None:
        return find_default(VOICE)
    as_path = Path(model)
    known, other = available(segmenter=segmenter), available(segmenter=None)
    broken = {folder.name: folder for folder in bundle_folders() if folder.name == str(model)}
    folder = (broken | other | known).get(str(model))
    if is_regular(as_path / CONFIG) and (folder is None or _bundle_config(as_path)):
        folder = as_path
    if folder is not None:
        opened = _open(folder)
        if segmenter not in (None, opened.is_segmenter):
            kind = "a segmentation network, which does not embed" if opened.is_segmenter else "no segmentation network"
            raise BundleError(f"The model {opened.name!r} is {kind}.", _known(known))
        note_shadowed(str(model), folder)
        return opened
    known |= _beside(as_path, segmenter)
    if as_path.is_dir():
        raise BundleError(f"{model} is no model bundle: the folder has no {CONFIG}.", _known(known))
    raise BundleError(f"There is no model {str(model)!r}.", did_you_mean(str(model), known) + _known(known))


def _beside(path: Path, segmenter: bool | None) -> dict[str, Path]:
    """The bundles in the folder in which `path` would be, by the path that finds them."""
    found: dict[str, Path] = {}
    with suppress(OSError):
        for config in sorted(path.parent.glob(f"*/{CONFIG}")):
            kind = _bundle_config(config.parent).get("kind")
            if kind is not None and segmenter in (None, kind == SEGMENTER):
                found[str(config.parent)] = config.parent
    return found


def find_default(name: str, *, segmenter: bool = False) -> Bundle:
    """Find a bundle that nobody asked for: of those on the search path with this name, the first that can be used.

    Those before it are passed over with a warning in Python's log, which also says where another than the shipped one
    is taken. BundleError if there is none.
    """
    same = [folder for folder in bundle_folders() if folder.name == name]
    if not same:
        raise BundleError(f"There is no model {name!r}.", _known(available(segmenter=segmenter)))
    bundle = _open(first_usable(same, lambda folder: _whole(folder, segmenter)))
    note_shadowed(name, bundle.folder)
    return bundle


def find_embedder(fingerprint: str) -> Bundle:
    """The bundle on the search path whose embeddings have this fingerprint; BundleError if there is none."""
    network, chunk, precision = without_suffix(fingerprint)
    same = [
        bundle.folder
        for bundle in usable()
        if bundle.has_network and same_embedder(without_suffix(bundle.fingerprint)[0], network)
    ]
    if not same:
        wanted = fingerprint or "an unknown model"
        raise BundleError(f"No model here computes embeddings of {wanted}.", _known(available()))
    return _open(first_usable(same, _whole)).with_settings(chunk=chunk, precision=precision)


def usable() -> Iterator[Bundle]:
    """The bundles on the search path that embed or classify and whose config can be read."""
    for folder in bundle_folders():
        with suppress(BundleError):
            if not (bundle := _open(folder)).is_segmenter:
                yield bundle


def _whole(folder: Path, segmenter: bool = False) -> Bundle:
    """The bundle of a folder; BundleError also where it is of the other kind, or its weights are not its own."""
    bundle = _open(folder)
    if bundle.is_segmenter != segmenter:
        raise BundleError(f"The model {folder} is of another kind than the default of its name.")
    if "weights_sha256" in bundle.config:
        weight_bytes(folder / WEIGHTS, bundle.config["weights_sha256"])
    return bundle


def load_network(bundle: Bundle, *, float_products: bool = False) -> Network:
    """The bundle's network with its weights, in evaluation mode, on the CPU.

    Parameters
    ----------
    bundle : Bundle
    float_products : bool
        Compute with floats even where the bundle's precision is of 8 bits, for training and export.

    Raises
    ------
    BundleError
        The bundle has no network, its weights are missing or not those of the config, or keys or sizes do not fit.
    """
    if not bundle.has_network:
        only = "segmentation network" if bundle.is_segmenter else "classifier"
        raise BundleError(f"The bundle {bundle.folder} has a {only} only.", "Name a model that embeds.")
    precision = FP32 if float_products else bundle.precision
    from knn_cli.networks.construction import build_network

    is_int8 = precision == INT8 == bundle.own_precision
    network = _loaded(lambda source: build_network(bundle.config, source), bundle, is_int8).eval()
    if precision == INT8 and not is_int8:
        from knn_cli.networks.int8 import quantised, with_int8_products

        with_int8_products(network, quantised(network.state_dict()))
    if not float_products:
        network.encoder.fold()
    return network


def load_segmenter(bundle: Bundle) -> SegmentationNetwork:
    """The bundle's segmentation network (`registry.SEGMENTERS`), as `load_network` returns and raises."""
    if not bundle.is_segmenter:
        raise BundleError(f"The bundle {bundle.folder} has no segmentation network.", "Name a model that has one.")
    from knn_cli.networks.construction import built

    part = bundle.config[SEGMENTER]

    def build(source: str) -> SegmentationNetwork:
        network: SegmentationNetwork = built(SEGMENTERS, part["name"], part["args"], source=source, error=BundleError)
        return network

    return _loaded(build, bundle).eval()


def _loaded(build: Callable[[str], Module], bundle: Bundle, int8_products: bool = False) -> Module:
    """The network that `build` makes, which messages say to be from its argument, with the bundle's weights."""
    from knn_cli.networks.bundle_weights import load_weights, read_weights
    from knn_cli.networks.construction import limited, without_new_weights

    path = bundle.folder / WEIGHTS
    state = read_weights(path, bundle.config["weights_sha256"])
    with limited(path), without_new_weights():
        network = build(str(bundle.folder / CONFIG))
    load_weights(network, state, str(path), int8_products=int8_products)
    return network


def write(
    folder: Path | str,
    config: Mapping[str, Any],
    *,
    state: Mapping[str, torch.Tensor] | None = None,
    weights: Path | None = None,
    classifier: Path | None = None,
    plda: Path | None = None,
    card: str = "",
    force: bool = False,
) -> Bundle:
    """Write a bundle folder, whole or not at all.

    Parameters
    ----------
    folder : Path or str
        The new bundle.
    config : mapping
        The config without `schema` and `weights_sha256`, which are added.
    state : mapping of str to Tensor, optional
        Weights of the network.
    weights, classifier, plda : Path, optional
        Existing weights.safetensors (in place of `state`), classifier.h5 and plda.safetensors, which are copied byte
        for byte.
    card : str
        Text of README.md.
    force : bool
        Replace an existing bundle.

    Raises
    ------
    KnnError
        The folder exists and must not be replaced, or cannot be written.
    """
    folder = Path(folder).resolve()  # "." would be another folder once it has been replaced
    check_free(folder, force)
    full = {"schema": SCHEMA, **config}
    with replacing_folder(folder, check=lambda: check_free(folder, force)) as new:
        if state is not None:
            from safetensors.torch import save

            data = save({key: value.detach().cpu().contiguous().clone() for key, value in state.items()})
        elif weights is not None:
            data = weights.read_bytes()
        if state is not None or weights is not None:
            full["weights_sha256"] = hashlib.sha256(data).hexdigest()
            (new / WEIGHTS).write_bytes(data)
        if classifier is not None:
            shutil.copyfile(classifier, new / CLASSIFIER)
        if plda is not None:
            shutil.copyfile(plda, new / PLDA)
        (new / CONFIG).write_text(json.dumps(full, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (new / CARD).write_text(card or f"# {folder.name}\n", encoding="utf-8")
    return _open(folder)


def check_free(folder: Path, force: bool) -> None:
    """Raise a KnnError if a bundle cannot be written to `folder`; call this before long computations.

    Only a folder that is a bundle and contains nothing but a bundle's files is ever replaced.
    """
    names = (CONFIG, WEIGHTS, CLASSIFIER, PLDA, CARD)
    check_folder(folder, "model bundle", lambda found: names if _bundle_config(found) else (), force)


def _bundle_config(folder: Path) -> dict[str, Any]:
    """The folder's config if it is that of a bundle, of any schema; other programs write config.json too."""
    try:
        config = read_json(folder / CONFIG)
    except BundleError:
        return {}
    return config if is_config(config) else {}


def _open(folder: Path) -> Bundle:
    return Bundle(folder, read_config(folder / CONFIG))


def _known(known: Mapping[str, Path]) -> str:
    return f"Models here: {', '.join(sorted(known)) or '(none)'}; a path to a bundle's folder works too."
