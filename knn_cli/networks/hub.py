"""Models on the Hugging Face hub: which files of a repository a conversion needs, and where they lie.

Only settings, the card and one kind of weights are fetched, never code. What will be fetched is said before.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Progress
from knn_cli.networks.hub_download import (
    HubFile,
    asked,
    check_cached,
    download,
    full_disk,
    hub_errors,
    is_settled,
    place,
    storage_of,
)

__all__ = ["HUB", "Address", "HubModel", "fetched"]

HUB = "hf:"
CARD = "README.md"
SETTINGS = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json"),
    *("tokenizer.json", "added_tokens.json", "hyperparams.yaml", "label_encoder.txt", "config.yaml", CARD),
)
# Kinds of weights in the order in which they are looked for: many repositories have the same weights in several formats
# and precisions, of which one is fetched. Of the last two, a repository must have exactly one.
WEIGHTS: tuple[tuple[str, ...], ...] = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("embedding_model.ckpt", "classifier.ckpt"),  # speechbrain's
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
    ("avg_model.pt",),  # wespeaker's
    ("model.bin",),  # CTranslate2's
)
ALONE: tuple[tuple[str, ...], ...] = (
    ("*.nemo",),
    ("*.safetensors", "*.pt", "*.pth", "*.ckpt", "*.bin"),
)  # one file, whatever its name
COMMIT = "[0-9a-f]{40}"
MAIN = "main"  # the branch that is meant where none is named
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_SPOKEN = f"{HUB}OWNER/NAME, {HUB}OWNER/NAME/FILE or {HUB}OWNER/NAME@REVISION"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """What `hf:OWNER/NAME/INSIDE@REVISION` says.

    Attributes
    ----------
    repository : str
        OWNER/NAME, or NAME alone of the hub's oldest models.
    inside : str
        A file or a folder of the repository; "" for all of it.
    revision : str or None
        A branch, tag or commit; None for the main branch.
    """

    repository: str
    inside: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address with or without "hf:". KnnError if it is none.

        Examples
        --------
        >>> from knn_cli.networks.hub import Address
        >>> Address.parse("hf:facebook/mms-lid-256@main")
        Address(repository='facebook/mms-lid-256', inside='', revision='main')
        """
        name, _, revision = text.removeprefix(HUB).partition("@")
        parts = name.split("/")
        names = [*parts, *revision.split("/")] if "@" in text else parts  # a branch may be named feature/x
        if not all(re.fullmatch(_NAME, name) for name in names):
            raise KnnError(f"{text} names no model on the Hugging Face hub.", f"It is {_SPOKEN}.")
        return cls("/".join(parts[:2]), "/".join(parts[2:]), revision or None)

    def __str__(self) -> str:
        inside = f"/{self.inside}" if self.inside else ""
        return f"{HUB}{self.repository}{inside}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class HubModel:
    """A model of the hub whose files are on this machine.

    Attributes
    ----------
    address : Address
    path : Path
        The folder or file to be imported.
    commit : str
        Hash of the commit.
    licence : str
        As its card states it; "" where it does not.
    """

    address: Address
    path: Path
    commit: str
    licence: str

    def facts(self) -> dict[str, str]:
        """Origin, revision and licence, for the config of a bundle."""
        facts = {"origin": str(Address(self.address.repository, self.address.inside)), "revision": self.commit}
        return facts | ({"licence": self.licence} if self.licence else {})


def fetched(text: str, progress: Progress | None = None) -> HubModel:
    """Find a model of the hub in the cache, or fetch what a conversion needs of it.

    Parameters
    ----------
    text : str
        See `Address`.
    progress : callable, optional
        Called with the bytes that are there, and with all that are needed.

    Raises
    ------
    KnnError
        huggingface_hub is missing, the address is none, the hub has no such model or revision or does not give it away,
        it has no weights that knn reads, the network fails, the disk is full, or a file's hash differs.
    """
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise KnnError(f"{HUB} needs the package huggingface_hub.", "pip install 'knn-cli[hub]'") from error
    errors: Any = import_module("huggingface_hub.errors")
    address = Address.parse(text)
    cache = Path(constants.HF_HUB_CACHE)
    try:
        found = _cached(address, cache)
        unsettled = [] if found is None else _unsettled(found, cache)
        if found is not None and not unsettled:
            return _checked(found)
    except OSError as error:
        message = f"The Hugging Face cache {cache} cannot be read: {error.strerror or error}."
        raise KnnError(message, "Name another folder with HF_HOME.") from error
    with hub_errors(address.repository, address.revision, cache):
        try:
            return _downloaded(address, cache, progress)
        except (errors.HTTPError, errors.OfflineModeIsEnabled):
            if found is None:
                raise
            _log.warning(
                f"{address} is taken from the cache, which lacks {', '.join(unsettled)}, and the hub, which may have "
                "them, cannot be asked."
            )
            return _checked(found)


def _checked(model: HubModel) -> HubModel:
    """A model of the cache. KnnError if a file is not what its hash says."""
    for file in sorted(model.path.iterdir() if model.path.is_dir() else [model.path]):
        if file.is_file():
            check_cached(file)
    return model


def _unsettled(model: HubModel, cache: Path) -> list[str]:
    """Files beside the weights of a model in the cache, of which it does not know whether the hub has them.

    Programs that need fewer files leave some out, and without its settings a model would be read with others.
    """
    storage, inside = storage_of(model.address.repository, cache), model.address.inside
    names = _beside(inside, is_file=(storage / "snapshots" / model.commit / inside).is_file())
    return [name for name in names if not is_settled(storage, model.commit, name)]


def _beside(inside: str, *, is_file: bool) -> list[str]:
    """Names of the files that are fetched beside weights: the card, and for a folder of a repository its settings."""
    settings = [] if is_file else [f"{inside}/{name}" if inside else name for name in SETTINGS]
    return list(dict.fromkeys([*settings, CARD]))


def _cached(address: Address, cache: Path) -> HubModel | None:
    """The model as far as the cache has it, without asking the hub; None where weights or parts of them are missing."""
    storage = storage_of(address.repository, cache)
    commit = address.revision or MAIN
    if not re.fullmatch(COMMIT, commit):
        reference = storage / "refs" / commit
        commit = reference.read_text(encoding="utf-8", errors="replace").strip() if reference.is_file() else ""
    root = storage / "snapshots" / commit
    if not re.fullmatch(COMMIT, commit) or not root.is_dir():
        return None
    path = root / address.inside
    if path.is_dir():
        names = [file.name for file in path.iterdir() if file.is_file()]
        try:
            chosen = _weights(names, address)
        except KnnError:
            return None
        path = path / chosen[0] if chosen[0] not in _named(names) else path
        complete = _has_all_parts(root / address.inside, chosen)
    else:
        complete = path.is_file()
    return HubModel(address, path, commit, _stated_licence(root)) if complete else None


def _downloaded(address: Address, cache: Path, progress: Progress | None) -> HubModel:
    """Fetch a model, after saying what will come."""
    revision = quote(address.revision or MAIN, safe="")
    with asked(f"api/models/{address.repository}/revision/{revision}?blobs=true") as response:
        info = json.loads(response.read())
    commit, licence = str(info["sha"]), _licence(info)
    if not re.fullmatch(COMMIT, commit):
        raise ValueError("it names no commit")
    files = _listed(info)
    chosen, inside = _chosen(files, address)
    storage = storage_of(address.repository, cache)
    total = sum(file.size for file in chosen)
    missing = sum(file.size for file in chosen if not (storage / "blobs" / file.digest).is_file())
    listed = ", ".join(file.name for file in chosen)
    there = f", of which {(total - missing) / 1e6:,.1f} MB are in the cache" if missing < total else ""
    _log.info(
        f"{address}: {total / 1e6:,.1f} MB{there}, licence {licence or 'not stated'}, revision {commit[:8]}: {listed}."
    )
    cache.mkdir(parents=True, exist_ok=True)
    if missing > shutil.disk_usage(cache).free:
        raise full_disk(address.repository, cache, missing)
    before = 0
    for file in chosen:
        download(address.repository, commit, file, storage, partial(_add, progress, before, total))
        before += file.size
    names = {file.name for file in files}
    absent = [name for name in _beside(address.inside, is_file=address.inside in names) if name not in names]
    place(storage, address.revision or MAIN, commit, chosen, absent)
    return HubModel(address, storage / "snapshots" / commit / inside, commit, licence)


def _add(progress: Progress | None, before: int, total: int, now: int) -> None:
    if progress is not None:
        progress(before + now, total)


def _listed(info: Mapping[str, Any]) -> list[HubFile]:
    """The files of a repository with sizes and hashes."""
    files = []
    for each in info["siblings"]:
        name, digest = str(each["rfilename"]), str((each.get("lfs") or {}).get("sha256") or each["blobId"])
        is_plain = not name.startswith("/") and ".." not in name.split("/")
        if is_plain and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest):
            files.append(HubFile(name, int(each["size"]), digest))
    return files


def _chosen(files: Sequence[HubFile], address: Address) -> tuple[list[HubFile], str]:
    """The files that are needed, weights last, and which of them, or which folder, is to be imported."""
    by_name = {file.name: file for file in files}
    if address.inside in by_name:
        names = [*_beside(address.inside, is_file=True), address.inside]
        return [by_name[name] for name in names if name in by_name], address.inside
    folder = f"{address.inside}/" if address.inside else ""
    names = [name.removeprefix(folder) for name in by_name if name.startswith(folder)]
    names = [name for name in names if "/" not in name]
    weights = _weights(names, address)
    settings = [name for name in _beside(address.inside, is_file=False) if name in by_name]
    listed = [*sorted(settings), *(folder + name for name in weights)]
    alone = weights[0] not in _named(names)
    return [by_name[name] for name in dict.fromkeys(listed)], folder + weights[0] if alone else folder.rstrip("/")


def _named(names: Sequence[str]) -> set[str]:
    """Those of the names under which importers look for weights in a folder."""
    return {name for name in names for kind in WEIGHTS for pattern in kind if fnmatchcase(name, pattern)}


def _weights(names: Sequence[str], address: Address) -> list[str]:
    """The weights among the files of a folder: the first kind that is there. KnnError if there is none, or a choice."""
    for kind in WEIGHTS:
        found = sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in kind))
        if any(not name.endswith(".json") for name in found):
            return found
    for kind in ALONE:
        found = sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in kind))
        if len(found) == 1:
            return found
        if found:
            hint = f"Name one of them, such as {HUB}{address.repository}/{found[0]}."
            raise KnnError(f"{address} has several files that may be weights: {', '.join(found)}.", hint)
    raise KnnError(
        f"{address} has no weights that knn reads.", "`knn models` lists what does; folders of weights convert, too."
    )


def _has_all_parts(folder: Path, weights: Sequence[str]) -> bool:
    """Whether weights that lie in several files are complete."""
    from knn_cli.networks.importers.checkpoint_files import weight_parts

    with suppress(KnnError):
        for name in weights:
            if name.endswith(".index.json"):
                weight_parts(folder / name)
        return any(name.endswith(".index.json") for name in weights) or not any("-of-" in name for name in weights)
    return False


def _licence(info: Mapping[str, Any]) -> str:
    """The licence that the hub states of a repository, "" if none."""
    data = info.get("cardData") or {}
    stated = data.get("license")
    if stated == "other":
        stated = data.get("license_name") or stated
    tags = [tag.removeprefix("license:") for tag in info.get("tags") or [] if tag.startswith("license:")]
    return _plain(stated) or _plain(tags)


def _stated_licence(folder: Path) -> str:
    """The licence in the head of a repository's card, "" if there is none."""
    import yaml

    with suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
        text = (folder / CARD).read_bytes()[: 1 << 16].decode("utf-8", "replace")
        head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        data = yaml.safe_load(head[1]) if head else None
        if isinstance(data, dict):
            other = data.get("license_name") if data.get("license") == "other" else None
            return _plain(other or data.get("license"))
    return ""


def _plain(value: Any) -> str:
    """A text, or several with commas between them, in one line of a possible length."""
    values = value if isinstance(value, list) else [value]
    return " ".join(", ".join(str(each) for each in values if each).split())[:200]
