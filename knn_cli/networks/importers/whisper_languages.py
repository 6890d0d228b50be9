"""Whisper's language tokens: which rows of its token embedding are languages, and the labels of these."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knn_cli.core.errors import KnnError
from knn_cli.core.languages import NO_SPEECH, find_language
from knn_cli.networks.importers.checkpoint_files import read_json

__all__ = ["WHISPER_LANGUAGES", "LanguageTokens", "language_tokens", "token_numbers"]

# In the order of their tokens. All but the last are in every multilingual Whisper, the last only in large-v3's.
WHISPER_LANGUAGES = tuple(
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue".split()
)
_LABELS = {"jw": "jv"}  # Javanese has another code in ISO 639
_START, _NO_SPEECH_TOKENS = "<|startoftranscript|>", ("<|nospeech|>", "<|nocaptions|>")
_ENGLISH_ONLY = 51864  # tokens of Whisper's English models, whose language tokens were never trained
_START_NUMBER = 50258  # the languages follow
_TOKENS_BESIDE_LANGUAGES = 51766
_FROM_LAST_LANGUAGE = 5  # translate, transcribe, startoflm, startofprev, nospeech


@dataclass(frozen=True)
class LanguageTokens:
    """The tokens that language identification needs.

    Attributes
    ----------
    start : int
        Number of the token that the decoder starts from.
    numbers : tuple of int
        Numbers of the languages' tokens, ascending; last, that of the token for no speech.
    labels : tuple of str
        Their ISO 639 codes; last, `NO_SPEECH`.
    """

    start: int
    numbers: tuple[int, ...]
    labels: tuple[str, ...]


def language_tokens(vocabulary: int, known: Mapping[str, int], path: Path) -> LanguageTokens | None:
    """Find the language tokens of a Whisper.

    Parameters
    ----------
    vocabulary : int
        Number of its tokens.
    known : mapping of str to int
        The numbers of tokens that its files name (`token_numbers`); without languages among them they follow from the
        vocabulary's size, which tells OpenAI's models apart.
    path : Path
        The checkpoint, for error messages.

    Returns
    -------
    LanguageTokens or None
        None: an English-only model, or one whose languages nothing tells.

    Raises
    ------
    KnnError
        Two tokens have one number, or a number is not in the vocabulary.
    """
    if vocabulary == _ENGLISH_ONLY:
        return None
    if not _languages(known):
        known = {**known, **_of_size(vocabulary)}
    languages = _languages(known)
    if not languages:
        return None
    tokens = [token for token in known if _code(token)]
    if len(languages) < len(tokens) or len(set(languages.values())) < len(tokens):
        raise KnnError(
            f"{path} gives two of its {len(tokens)} language tokens one number or one language.",
            "Check that its tokenizer and settings belong to it.",
        )
    start = known.get(_START, min(languages) - 1)
    last = max(languages) + _FROM_LAST_LANGUAGE
    no_speech = next((known[token] for token in _NO_SPEECH_TOKENS if token in known), last)
    numbers = (*sorted(languages), no_speech)
    if not all(0 <= number < vocabulary for number in (start, *numbers)) or {start, no_speech} & languages.keys():
        raise KnnError(
            f"{path} names language tokens that do not fit its vocabulary of {vocabulary} tokens.",
            "Check that its tokenizer and settings belong to it.",
        )
    return LanguageTokens(start, numbers, (*(languages[number] for number in sorted(languages)), NO_SPEECH))


def _languages(known: Mapping[str, int]) -> dict[int, str]:
    """Number -> label of the tokens that are languages."""
    codes = [(number, _code(token)) for token, number in known.items()]
    return {number: _LABELS.get(code, code) for number, code in codes if code}


def _code(token: str) -> str:
    """The language of a token, "" if it is none."""
    match = re.fullmatch(r"<\|([a-z]{2,3})\|>", token)
    return match[1] if match and find_language(match[1]) is not None else ""


def _of_size(vocabulary: int) -> dict[str, int]:
    """The numbers of the language tokens in OpenAI's multilingual vocabularies; none for another size."""
    count = vocabulary - _TOKENS_BESIDE_LANGUAGES
    if count not in (len(WHISPER_LANGUAGES) - 1, len(WHISPER_LANGUAGES)):
        return {}
    return {f"<|{code}|>": _START_NUMBER + 1 + place for place, code in enumerate(WHISPER_LANGUAGES[:count])}


def token_numbers(folder: Path) -> dict[str, int]:
    """Read the numbers of tokens that the files in a folder name: a tokenizer, generation_config.json, config.json.

    Languages are those of generation_config.json, else of the tokenizer, else of CTranslate2's `lang_ids`.

    Raises
    ------
    KnnError
        A file cannot be read.
    """

    def content(name: str) -> dict[str, Any]:
        return read_json(folder / name) if (folder / name).is_file() else {}

    added = content("tokenizer.json").get("added_tokens")
    listed = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    known = _numbers({str(token.get("content")): token.get("id") for token in listed})
    known |= _numbers(content("added_tokens.json"))
    if generated := _numbers(content("generation_config.json").get("lang_to_id")):
        languages = _languages(known)
        return {token: number for token, number in known.items() if number not in languages} | generated
    numbers = content("config.json").get("lang_ids")
    if not _languages(known) and isinstance(numbers, list):
        sizes = (len(WHISPER_LANGUAGES) - 1, len(WHISPER_LANGUAGES))
        if len(numbers) in sizes and all(type(number) is int for number in numbers):
            known |= {f"<|{code}|>": number for code, number in zip(WHISPER_LANGUAGES, sorted(numbers), strict=False)}
    return known


def _numbers(pairs: Any) -> dict[str, int]:
    """The pairs of a text and an integer in what should be a dictionary of them."""
    given = pairs if isinstance(pairs, dict) else {}
    return {str(token): number for token, number in given.items() if type(number) is int}
