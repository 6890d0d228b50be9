"""Labels of the rows of other programs' files, by the rule that paths have too (see `store.labels`).

A key or an utterance's name is read as a path where it is one: where it ends as a file of sound does
(`NAKI/1-1/REC_SPLIT_000.wav`), or as a numbered piece of one (`1-1/REC_SPLIT_000`). Any other name stands for itself,
unless a rule was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from knn_cli.audio import reading
from knn_cli.core.texts import path_text
from knn_cli.core.values import EmbeddingSet, Texts
from knn_cli.store import labels
from knn_cli.store.labels import Labels

TIMED_UTTERANCE = re.compile(r"(?P<name>.+)-(?P<start>\d{5,}\.\d\d)-(?P<end>\d{5,}\.\d\d)")
_CHUNK = re.compile(r"_\d{3,4}$")
_PIECE = re.compile(rf".+{labels.SPLIT_MARK}_\d{{1,4}}")  # the names that knn makes distinct have five digits


class KeyPath(PurePosixPath):
    """A key as a path: what follows its last dot is a suffix only where files of sound have it.

    The number that `utt_chunk` of KNN-proj's wespeaker puts behind keys when it cuts utterances is no part of it.

    Examples
    --------
    >>> KeyPath("1-1/REC.v2").stem, KeyPath("1-1/REC.v2.wav").stem, KeyPath("1-1/REC.wav_002").stem
    ('REC.v2', 'REC.v2', 'REC')
    """

    @property
    def suffix(self) -> str:
        """What files of sound have behind the name, without a number of a chunk; else what PurePath says."""
        whole = super().suffix
        bare = _CHUNK.sub("", whole)
        return bare if bare.lower() in reading.SUFFIXES else whole

    @property
    def stem(self) -> str:
        """The name without such a suffix."""
        return super().stem if self.suffix.lower() in reading.SUFFIXES else self.name


def is_path(key: str) -> bool:
    """Whether a key is the path of a recording or of a piece of one.

    Examples
    --------
    >>> is_path("NAKI/1-1/REC.wav"), is_path("REC_SPLIT_000"), is_path("r1/audio"), is_path("REC_SPLIT_00002")
    (True, True, False, False)
    """
    return KeyPath(key).suffix.lower() in reading.SUFFIXES or _PIECE.fullmatch(key) is not None


def untimed(key: str) -> str:
    """Return a key without the times that `embedding_writers.utterance_ids` has put behind a name.

    Examples
    --------
    >>> untimed("meeting-00004.00-00008.00")
    'meeting'
    """
    timed = TIMED_UTTERANCE.fullmatch(key)
    return timed["name"] if timed else key


def of_keys(keys: Sequence[str], rule: str = labels.DEFAULT_RULE, *, paths: bool = False) -> list[Labels]:
    """Return the labels of keys.

    Parameters
    ----------
    keys : sequence of str
    rule : str
        See `labels.rule`. One that is not the default is applied to all keys, the default to those that are paths.
    paths : bool
        Whether all keys are paths.

    Raises
    ------
    KnnError
        If the rule does not match: how many keys, and one of them.

    Examples
    --------
    >>> of_keys(["NAKI/1-1/REC_SPLIT_000.wav"])
    [Labels(name='REC', group='1', subgroup='1-1', speaker='')]
    >>> of_keys(["NAKI/1-1/REC_SPLIT_000.wav_000"])
    [Labels(name='REC', group='1', subgroup='1-1', speaker='')]
    """
    unique = list(dict.fromkeys(keys))
    named = [key for key in unique if key and (paths or rule != labels.DEFAULT_RULE or is_path(key))]
    known = {key: Labels(key) for key in unique}
    known.update(zip(named, labels.label_all(labels.rule(rule), [KeyPath(key) for key in named]), strict=True))
    return [known[key] for key in keys]


def labelled(rows: EmbeddingSet, rule: str = labels.DEFAULT_RULE, *, paths: bool = False) -> EmbeddingSet:
    """Return rows named after their recordings in place of keys, with labels from the keys where they state none.

    A rule other than the default counts before what the rows state. A speaker that is the folder of
    its key is none: `utt2spk` holds the class that is trained, which need not be a speaker.

    Parameters
    ----------
    rows : EmbeddingSet
        With the labels that their file states.
    rule, paths
        See `of_keys`.

    Raises
    ------
    KnnError
        As `of_keys`.
    """
    keys = rows.name.tolist()
    found = of_keys(keys, rule, paths=paths)
    columns = {field: np.array([getattr(label, field) for label in found], dtype=np.str_) for field in labels.FIELDS}
    folders = np.array([path_text(KeyPath(key).parent.name) if is_path(key) else "" for key in keys], dtype=np.str_)
    speaker = np.where((folders != "") & (rows.speaker == folders), "", rows.speaker)
    if rule == labels.DEFAULT_RULE:
        stated = (rows.group != "") | (rows.subgroup != "")
        group, subgroup = (np.where(stated, getattr(rows, field), columns[field]) for field in ("group", "subgroup"))
        return replace(rows, name=columns["name"], group=group, subgroup=subgroup, speaker=speaker)
    rows = replace(rows, speaker=speaker)
    found_or_kept: dict[str, Any] = {
        field: np.where(column != "", column, getattr(rows, field)) for field, column in columns.items()
    }
    return replace(rows, **found_or_kept)


def recordings(keys: Texts) -> Texts:
    """Return keys (N,) as names of recordings; folders stay in front, so that each is known without the others.

    Examples
    --------
    >>> recordings(np.array(["1-1/REC_SPLIT_000.wav", "r1/audio"])).tolist()
    ['1-1/REC', 'r1/audio']
    """
    return _mapped(keys, lambda path: path.with_name(labels.recording_name(path)).as_posix())


def folder_labels(keys: Texts, field: str) -> Texts:
    """Return the group or subgroup (N,) that the folders of keys give, "" for names that are no paths."""
    found = _mapped(keys, lambda path: getattr(labels.by_folder(path), field))
    return np.where([is_path(key) for key in keys.tolist()], found, "")


def _mapped(keys: Texts, change: Callable[[KeyPath], str]) -> Texts:
    """Keys that are paths, changed; the others as they are."""
    unique, place = np.unique(keys, return_inverse=True)
    return np.array([change(KeyPath(key)) if is_path(key) else key for key in unique.tolist()], dtype=np.str_)[place]
