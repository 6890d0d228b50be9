"""Names of languages: codes of ISO 639, English names and own names, and labels that are languages.

The table is `languages.tsv`: all languages of ISO 639-1, and others that speech corpora have. Its columns: `code`, the
one of ISO 639-1 or else of 639-3; `iso639_3`; `iso639_2b`, where the bibliographic code of ISO 639-2 differs;
`english`; `own`; `other`, more names between semicolons; `aliases`, withdrawn codes; `nearest`, the language that a
model may know instead, such as the macrolanguage. The code zxx of ISO 639-2 stands for sound without speech.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from knn_cli.core.errors import KnnError
from knn_cli.core.texts import similar, suggestion

NO_SPEECH = "zxx"  # label of sound without speech
MAX_LISTED = 20  # labels that a message lists
# Letters that have no decomposition, as people without them on the keyboard write them; apostrophes are left out.
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ı": "i", "ə": "e", "æ": "ae", "œ": "oe", "þ": "th", "-": " ", "_": " "}
    | dict.fromkeys("'’‘ʻʼʹ`")
)


@dataclass(frozen=True)
class Language:
    """A language.

    Attributes
    ----------
    code : str
        Of ISO 639-1, or of 639-3 where it has none there.
    name : str
        In English.
    own_name : str
        In the language itself.
    other_names : tuple of str
    codes : tuple of str
        All its codes: `code`, those of ISO 639-3 and 639-2, and withdrawn ones.
    nearest : str
        Code of the language that stands for it in models that do not know it, such as its macrolanguage; "" if none.
    """

    code: str
    name: str
    own_name: str
    other_names: tuple[str, ...]
    codes: tuple[str, ...]
    nearest: str

    def __str__(self) -> str:
        return f"{self.name} ({self.code})"


@cache
def languages() -> tuple[Language, ...]:
    """Return all languages of the table, sorted as in the file; "no speech" (zxx) is the last."""
    lines = Path(__file__).with_name("languages.tsv").read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines[1:]:
        code, iso639_3, iso639_2b, english, own, other, aliases, nearest = line.split("\t")
        codes = dict.fromkeys([code, iso639_3, iso639_2b, *aliases.split()])
        names = tuple(filter(None, other.split(";")))
        rows.append(Language(code, english, own, names, tuple(filter(None, codes)), nearest))
    return tuple(rows)


@cache
def _by_code() -> Mapping[str, Language]:
    return {code: language for language in languages() for code in language.codes}


@cache
def _by_key() -> Mapping[str, Language]:
    """Codes and names as `_key` writes them."""
    return {key: language for language in languages() for key in _keys(language)}


def _keys(language: Language) -> list[str]:
    return [_key(text) for text in (*language.codes, language.name, language.own_name, *language.other_names)]


def _key(text: str) -> str:
    """A text without case, accents and apostrophes, with single spaces between its words."""
    letters = unicodedata.normalize("NFKD", text.casefold().translate(_PLAIN))
    return " ".join("".join(letter for letter in letters if unicodedata.category(letter) != "Mn").split())


def find_language(text: str) -> Language | None:
    """Return the language of a code or name, whatever its case and accents; None if there is none.

    Examples
    --------
    >>> from knn_cli.core.languages import find_language
    >>> [find_language(text).code for text in ("ces", "cze", "Czech", "CESTINA", "iw", "Norsk")]
    ['cs', 'cs', 'cs', 'cs', 'he', 'no']
    """
    return _by_key().get(_key(text))


def label_names(labels: Iterable[str]) -> dict[str, str]:
    """Return the English names of the labels that are codes of languages.

    Other labels are left out, and all of them are where no more than half are codes: among speakers, `ben` is not
    Bengali.

    Examples
    --------
    >>> from knn_cli.core.languages import label_names
    >>> label_names(["cs", "slk", "cieszyn", "zxx"])
    {'cs': 'Czech', 'slk': 'Slovak', 'zxx': 'no speech'}
    >>> label_names(["ann", "ben"])
    {}
    """
    listed = list(labels)
    names = {label: _by_code()[label].name for label in listed if label in _by_code()}
    return names if 2 * len(names) > len(listed) else {}


def find_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the label that a text means.

    A label as it is written comes first, then one that differs in case and accents; then the label of the language
    that the text names, then that of the nearest one (`cmn` is `zh`, where `zh` is all that a model knows), and then
    the only label whose nearest language the text names (`no` is `nb`, in a model without `nn`).

    Parameters
    ----------
    text : str
        A label, a code or a name.
    labels : sequence of str
        What a model knows; codes of any kind, names, or no languages at all.

    Returns
    -------
    str or None
        None where it means none of them.
    """
    if text in labels:
        return text
    if (label := _only(label for label in labels if _key(label) == _key(text))) is not None:
        return label
    language = find_language(text)
    if language is None:
        return None
    of_labels = {label: found for label in labels if (found := find_language(label)) is not None}
    for wanted in (
        [label for label, found in of_labels.items() if found.code == language.code],
        [label for label, found in of_labels.items() if found.code == language.nearest],
        [label for label, found in of_labels.items() if found.nearest == language.code],
    ):
        if (label := _only(wanted)) is not None:
            return label
    return None


def _only(values: Iterable[str]) -> str | None:
    """The value, if it is a single one."""
    listed = list(values)
    return listed[0] if len(listed) == 1 else None


def choose_labels(wanted: Sequence[str], labels: Sequence[str], model: str) -> tuple[str, ...]:
    """Return the labels of a declared set.

    Parameters
    ----------
    wanted : sequence of str
        Labels, codes or names, as `find_label` takes them; several may mean the same label.
    labels : sequence of str
        All that the model knows.
    model : str
        Its name, for messages.

    Returns
    -------
    tuple of str
        The labels meant, in the order of `labels`, each once.

    Raises
    ------
    KnnError
        The model does not know some of them, all of which are named, or they are fewer than two labels.
    """
    found = {text: find_label(text, labels) for text in wanted}
    if unknown := [text for text, label in found.items() if label is None]:
        raise KnnError(" ".join(_refusal(text, model) for text in unknown), _hint(unknown, labels, model))
    chosen = tuple(label for label in labels if label in found.values())
    if len(chosen) < 2:
        given = ", ".join(wanted) or "nothing"
        raise KnnError(f"A set of languages has two or more, not {given}.", "Name at least two different ones.")
    return chosen


def _refusal(text: str, model: str) -> str:
    language = find_language(text)
    if language is None:
        return f"{text!r} is neither a label of the model {model} nor a known language."
    return f"The model {model} does not know {language}."


def _hint(unknown: Sequence[str], labels: Sequence[str], model: str) -> str:
    """What may have been meant, and what the model knows."""
    if len(unknown) == 1:
        meant = suggestion(_relatives(unknown[0], labels))
    else:
        near = [f"{' or '.join(found)} for {text}" for text in unknown if (found := _relatives(text, labels))]
        meant = f"Did you mean {', '.join(near)}? " if near else ""
    if len(labels) > MAX_LISTED:
        return f"{meant}It knows {len(labels)} labels, which `knn info {model}` lists."
    return f"{meant}It knows {', '.join(labels)}."


def _relatives(text: str, labels: Sequence[str]) -> list[str]:
    """Labels of related languages and of similar names, as messages show them."""
    keys: dict[str, str] = {}
    language = find_language(text)
    related = []
    for label in labels:
        own = find_language(label)
        keys |= dict.fromkeys([_key(label), *(_keys(own) if own is not None else [])], label)
        if own is not None and language is not None and own.nearest in {language.code, language.nearest} - {""}:
            related.append(label)
    near = list(dict.fromkeys([*related, *(keys[key] for key in similar(_key(text), keys, 4))]))[:3]
    names = label_names(labels)
    return [f"{names[label]} ({label})" if label in names else label for label in near]
