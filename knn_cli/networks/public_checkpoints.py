"""Public checkpoints that `conversion.convert` reads: a table with licences, published figures and their sources.

The table is `public_checkpoints.tsv`. A field that is empty is not known: nothing in it is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from knn_cli.core.errors import KnnError
from knn_cli.core.languages import find_language
from knn_cli.core.texts import did_you_mean

__all__ = ["SHIPPED", "PublicCheckpoint", "find_checkpoints", "public_checkpoints"]

SHIPPED = "shipped"


@dataclass(frozen=True)
class PublicCheckpoint:
    """A row of the table.

    Attributes
    ----------
    name : str
    task : str
        "languages" (identifies them), "speakers" (embeddings), "segmentation" (of speakers), or "pre-trained".
    languages : tuple of str
        Codes of the languages that it knows, or was trained on; () if they do not matter.
    parameters : float or None
        In millions.
    megabytes : float or None
        Of the weights.
    licence : str
    importer : str
        `SHIPPED`, or a key of `weight_names.SOURCES`.
    encoder : str
        Name of the encoder or segmentation network in the registry.
    figure : str
        As it was published, or for a shipped model as we measured it.
    source : str
        Where facts and figure were read.
    command : str
        What brings it, or uses a shipped one.
    """

    name: str
    task: str
    languages: tuple[str, ...]
    parameters: float | None
    megabytes: float | None
    licence: str
    importer: str
    encoder: str
    figure: str
    source: str
    command: str

    def spoken(self) -> str:
        """The languages in a few characters.

        Examples
        --------
        >>> from knn_cli.networks.public_checkpoints import find_checkpoints
        >>> [(found.name, found.spoken()) for found in find_checkpoints("ambernet")]
        [('ambernet', '107 languages')]
        """
        return " ".join(self.languages) if len(self.languages) < 4 else f"{len(self.languages)} languages"


@cache
def public_checkpoints() -> tuple[PublicCheckpoint, ...]:
    """All checkpoints, in the order of the table."""
    lines = Path(__file__).with_name("public_checkpoints.tsv").read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines[1:]:
        name, task, languages, parameters, megabytes, *texts = line.split("\t")
        millions, size = (float(text) if text else None for text in (parameters, megabytes))
        rows.append(PublicCheckpoint(name, task, tuple(languages.split()), millions, size, *texts))
    return tuple(rows)


def find_checkpoints(text: str = "") -> list[PublicCheckpoint]:
    """Checkpoints to which all words of a text belong.

    Parameters
    ----------
    text : str
        Words of names, tasks, licences, importers and commands; codes and names of languages. "" finds all.

    Raises
    ------
    KnnError
        There is none.

    Examples
    --------
    >>> from knn_cli.networks.public_checkpoints import find_checkpoints
    >>> [found.name for found in find_checkpoints("speakers nemo cc-by-4.0")]
    ['titanet-large']
    """
    rows = public_checkpoints()
    whole = find_language(text)
    asked = [text] if whole is not None else text.split()
    found = [row for row in rows if all(_fits(row, word) for word in asked)]
    if not found:
        known = {word for row in rows for word in (row.name, row.task, row.licence)}
        hint = did_you_mean(text, known, 3).rstrip() or "Without a text, all of them are listed."
        raise KnnError(f"No public checkpoint in the table fits {text!r}.", hint)
    return found


def _fits(row: PublicCheckpoint, word: str) -> bool:
    """Whether a word is part of a row's texts, or a language that it knows."""
    texts: Sequence[str] = (row.name, row.task, row.licence, row.importer, row.encoder, row.command)
    if len(word) > 3 and any(word.casefold() in each.casefold() for each in texts):
        return True
    if any(word.casefold() == each.casefold() for each in (*texts, *row.name.split("-"))):
        return True
    language = find_language(word)
    return language is not None and any(code in row.languages for code in language.codes)
