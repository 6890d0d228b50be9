"""The table of languages: codes, names, and which label of a model a text means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.languages import choose_labels, find_label, find_language, label_names, languages

ISO_CODES = Path("/usr/share/iso-codes/json")
# Codes of OpenAI's Whisper, in its order.
WHISPER = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
).split()
KNOWN = ["cs", "sk", "pl", "no", "he", "zh", "tl", "jv", "zxx"]


def test_no_text_means_two_languages() -> None:
    """Every code and name of a language leads back to it, however it is written."""
    for language in languages():
        for text in (*language.codes, language.name, language.own_name, *language.other_names):
            for written in (text, text.upper(), f" {text.lower()} ", text.replace(" ", "_")):
                assert find_language(written) == language, (written, language)


def test_the_table_has_what_models_and_corpora_have() -> None:
    codes = {language.code for language in languages()}
    assert len(codes) == len(languages()) and len([code for code in codes if len(code) == 2]) == 183
    assert len({found.code for code in WHISPER if (found := find_language(code)) is not None}) == len(WHISPER) == 100
    assert all(not language.nearest or language.nearest in codes for language in languages())
    assert all(find_language(code) is not None for code in "ast wa nds yue haw gsw ceb mo iw".split())
    assert str(find_language("zxx")) == "no speech (zxx)"


def test_codes_are_those_of_iso_639() -> None:
    """Against the package iso-codes of Debian, where it is installed."""
    if not ISO_CODES.is_dir():
        pytest.skip("needs iso-codes")

    def entries(part: str) -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads((ISO_CODES / f"iso_{part}.json").read_text(encoding="utf-8"))[part]
        return found

    three = {entry["alpha_3"]: entry.get("alpha_2") for entry in entries("639-3")}
    bibliographic = {entry["alpha_3"]: entry.get("bibliographic") for entry in entries("639-2")}
    for language in languages():
        own = language.codes[0] if len(language.code) == 3 else language.codes[1]
        assert own in three and (three[own] in (language.code, "sh", None)), language
        assert bibliographic.get(own) is None or bibliographic[own] in language.codes, language


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("cs", "cs"), ("CES", "cs"), ("cze", "cs"), ("Czech", "cs"), ("čeština", "cs"), ("Cestina", "cs"),
        ("polski", "pl"), ("slovenčina", "sk"), ("nb", "no"), ("Bokmål", "no"), ("nno", "no"), ("cmn", "zh"),
        ("中文", "zh"), ("iw", "he"), ("fil", "tl"), ("jw", "jv"), ("no speech", "zxx"), ("de", None), ("x", None),
    ],
)  # fmt: skip
def test_label_of_a_text(text: str, label: str | None) -> None:
    assert find_label(text, KNOWN) == label


def test_labels_of_a_model_come_first() -> None:
    """Dialects may be called as languages are, and models may have other codes, names, or one of two relatives."""
    assert find_label("no", ["no", "nb"]) == "no" and find_label("nb", ["no", "nb"]) == "nb"
    assert find_label("North", ["north", "south"]) == "north" and find_label("jiho_cesky", ["jiho český"]) is not None
    assert find_label("cs", ["ces", "slk"]) == "ces" and find_label("slk", ["Czech", "Slovak"]) == "Slovak"
    assert find_label("Norwegian", ["nb", "en"]) == "nb" and find_label("Norwegian", ["nb", "nn"]) is None
    assert find_label("a", ["A", "Á"]) is None and find_label("A", ["A", "a"]) == "A"


def test_a_set_in_the_order_of_the_model() -> None:
    assert choose_labels(["Polish", "sk", "cs", "ces"], KNOWN, "m") == ("cs", "sk", "pl")
    assert choose_labels(["cs", "zxx"], KNOWN, "m") == ("cs", "zxx")


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (["cs", "zulu"], "The model m does not know Zulu (zu). It knows cs, sk, pl, no, he, zh, tl, jv, zxx."),
        (["cs", "Slovk"], "'Slovk' is neither a label of the model m nor a known language. Did you mean "
         "Slovak (sk)"),
        (["cs", "Czeck"], "Did you mean Czech (cs)"),
        (["cs", "Czech"], "A set of languages has two or more, not cs, Czech."),
        ([], "A set of languages has two or more, not nothing."),
        (["zulu", "cs", "Slovk", "Czeck"], "The model m does not know Zulu (zu). 'Slovk' is neither a label of the "
         "model m nor a known language. 'Czeck' is neither a label of the model m nor a known language. "
         "Did you mean Slovak (sk) for Slovk, Czech (cs) for Czeck? It knows cs, sk,"),
    ],
)  # fmt: skip
def test_sets_that_cannot_be(wanted: list[str], sentence: str) -> None:
    with pytest.raises(KnnError) as error:
        choose_labels(wanted, KNOWN, "m")
    assert sentence in str(error.value)


def test_a_hundred_labels_are_not_listed() -> None:
    with pytest.raises(
        KnnError, match=r"Did you mean l7 or l97 or l87\? It knows 100 labels, which `knn info m` lists\."
    ):
        choose_labels(["l1", "l7x"], [f"l{number}" for number in range(100)], "m")


def test_relatives_are_suggested() -> None:
    with pytest.raises(KnnError, match=r"Did you mean Norwegian Bokmål \(nb\) or Norwegian Nynorsk \(nn\)\?"):
        choose_labels(["no", "en"], ["nb", "nn", "en"], "m")
    with pytest.raises(KnnError, match=r"'nort' is neither .* Did you mean north\? It knows north, south\."):
        choose_labels(["nort", "south"], ["north", "south"], "m")


def test_names_beside_codes_only_where_labels_are_codes() -> None:
    assert label_names(["cs", "slk", "zxx"]) == {"cs": "Czech", "slk": "Slovak", "zxx": "no speech"}
    assert label_names(["cs", "sk", "cieszyn"]) == {"cs": "Czech", "sk": "Slovak"}
    assert label_names(["ann", "ben", "tom", "kim"]) == label_names(["Czech", "German"]) == label_names([]) == {}
