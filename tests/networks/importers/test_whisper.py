"""Whisper as a language identifier: the languages of transformers, from every format, and of CTranslate2 for real."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.core.languages import find_language
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS
from knn_cli.networks.conversion import convert
from knn_cli.networks.importers.components import ImportedModel
from knn_cli.networks.importers.entry import import_embedding_network
from knn_cli.networks.importers.whisper import NO_SPEECH_BIAS, SILENCE
from knn_cli.networks.importers.whisper_languages import WHISPER_LANGUAGES, language_tokens, token_numbers
from knn_cli.networks.network import Network
from knn_cli.recognition.classifier import Classifier
from tests.helpers.encoder_contract import sound
from tests.helpers.oracles import load_transformers
from tests.helpers.whisper_checkpoints import (
    FIRST,
    SECONDS,
    START,
    ctranslate2_variables,
    log_probabilities,
    random_whisper,
    save_ctranslate2,
    save_openai,
    write_ctranslate2,
)

CASES: list[dict[str, int]] = [
    {},
    {"channels": 32, "bins": 128, "vocabulary": 51866, "encoder_attention_heads": 4, "decoder_layers": 1},
    {"channels": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "decoder_layers": 4},
]


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("transformers")
    return load_transformers()


@pytest.fixture(scope="module")
def model(transformers: Any) -> Any:
    return random_whisper(transformers)


def network(imported: ImportedModel, silence: float = 0.0) -> Network:
    """The imported network, with another silence after each clip."""
    assert imported.head is not None
    encoder = ENCODERS.build("whisper", **{**imported.encoder.args, "silence": silence})
    pooling = POOLINGS.build(
        "whisper-decoder", layers=encoder.layers, channels=encoder.channels, **imported.pooling.args
    )
    head = HEADS.build(
        imported.head.name, dimension=pooling.dimension, classes=len(imported.labels), **imported.head.args
    )
    result = Network(encoder, pooling, head).eval()
    result.load_state_dict(imported.state, strict=True)
    return result


def clips() -> Tensor:
    """Two clips with silence up to `SECONDS`, (2, S) float32."""
    waveforms = torch.zeros(2, round(16000 * SECONDS))
    for row, length in enumerate((27000, 9000)):
        waveforms[row, :length] = sound(length)[0]
    return waveforms


def ours(imported: ImportedModel) -> Tensor:
    """Log-probabilities (2, languages) of the clips, without that for no speech."""
    loaded = network(imported)
    with torch.inference_mode():
        return loaded.scores(loaded(clips()))[:, :-1].log_softmax(1)


@pytest.mark.parametrize("sizes", CASES)
def test_languages_are_those_of_transformers_from_every_format(
    transformers: Any, sizes: dict[str, int], tmp_path: Path
) -> None:
    reference = random_whisper(transformers, **sizes)
    count = 100 if reference.config.vocab_size == 51866 else 99
    extractor = transformers.WhisperFeatureExtractor(feature_size=sizes.get("bins", 80), chunk_length=SECONDS)
    features = extractor(list(clips().numpy()), sampling_rate=16000, return_tensors="pt")["input_features"]
    tokens = [*range(FIRST, FIRST + count)]
    expected = log_probabilities(reference, features, START, tokens)
    assert expected.std() > 0.3  # so a wrong row matters
    reference.generation_config.lang_to_id = {f"<|{c}|>": t for c, t in zip(WHISPER_LANGUAGES, tokens, strict=False)}
    best = reference.detect_language(input_features=features)
    assert (best - FIRST).tolist() == expected.argmax(1).tolist()
    reference.save_pretrained(tmp_path / "hf")
    save_openai(reference, tmp_path / "openai.pt")
    save_ctranslate2(reference, tmp_path / "ct2", count=count)
    for path in (tmp_path / "hf", tmp_path / "openai.pt", tmp_path / "ct2", tmp_path / "ct2" / "model.bin"):
        imported = import_embedding_network(path)
        assert imported.labels == (*(code.replace("jw", "jv") for code in WHISPER_LANGUAGES[:count]), "zxx")
        assert imported.encoder.args["silence"] == SILENCE and "MIT" in imported.licence_note
        torch.testing.assert_close(ours(imported), expected, atol=1e-4, rtol=0)


def test_no_speech_is_the_last_label(model: Any, tmp_path: Path) -> None:
    save_openai(model, tmp_path / "a.pt")
    loaded = network(import_embedding_network(tmp_path / "a.pt"))
    with torch.inference_mode():
        scores = loaded.scores(loaded(clips())) - NO_SPEECH_BIAS * torch.eye(100)[-1]
        features = loaded.encoder.mel.features(loaded.encoder.mel.powers(clips())).transpose(1, 2)  # type: ignore[union-attr,operator]
    expected = log_probabilities(model, features, START, [*range(FIRST, FIRST + 99), 50362])
    torch.testing.assert_close(scores.log_softmax(1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("precision", "error"), [("float16", 0.01), ("bfloat16", 0.2), ("int16", 0.05), ("int8", 0.4)])
def test_ctranslate2_s_smaller_weights_cost_what_their_bits_do(
    model: Any, precision: str, error: float, tmp_path: Path
) -> None:
    save_openai(model, tmp_path / "a.pt")
    save_ctranslate2(model, tmp_path / "ct2", precision)
    exact, rounded = (ours(import_embedding_network(tmp_path / name)) for name in ("a.pt", "ct2"))
    assert 0 < (exact - rounded).abs().max() < error


def test_windows_averaged_as_embeddings_are_log_probabilities_averaged(model: Any, tmp_path: Path) -> None:
    save_openai(model, tmp_path / "a.pt")
    loaded = network(import_embedding_network(tmp_path / "a.pt"), SILENCE)
    with torch.inference_mode():
        embeddings = loaded(clips())
        averaged = loaded.scores(embeddings.mean(0, keepdim=True)).log_softmax(1)
        expected = loaded.scores(embeddings).log_softmax(1).mean(0, keepdim=True).log_softmax(1)
    torch.testing.assert_close(averaged, expected, atol=1e-5, rtol=0)


def test_a_converted_whisper_classifies_by_name_and_alike_in_any_batch(
    model: Any, tmp_path: Path, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "models" / "whisper-mini")
    monkeypatch.chdir(tmp_path)
    classifier = Classifier("whisper-mini", device="cpu")
    table = classifier.score_file(example)
    assert table.labels == classifier.labels and len(table.labels) == 100 and np.isfinite(table.log_likelihood).all()
    card = classifier.bundle.card
    assert "MIT licence" in card and "`whisper-decoder`" in card and "100 labels: en, zh," in card
    waveforms = [sound(length)[0].numpy() for length in (16000, 400, 9999, 31234)]
    together = classifier.embedder(waveforms)
    for row, waveform in enumerate(waveforms):
        np.testing.assert_allclose(together[row], classifier.embedder([waveform])[0], atol=1e-4)


def test_weights_in_parts_are_read_and_a_missing_part_is_named(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(import_embedding_network(tmp_path).labels) == 100
    index = tmp_path / "model.safetensors.index.json"
    first = min(tmp_path.glob("model-*.safetensors"))
    first.rename(tmp_path / "elsewhere")
    with pytest.raises(KnnError, match=f"lacks parts of its weights: {first.name}"):
        import_embedding_network(tmp_path)
    wrong: list[Any] = [{"a": "../elsewhere"}, {"a": str(tmp_path / "elsewhere")}, {"a": ".."}, {}, []]
    for parts in wrong:
        index.write_text(json.dumps({"weight_map": parts}))
        with pytest.raises(KnnError, match=r"no index of files|no parts of the weights"):
            import_embedding_network(tmp_path)


@pytest.mark.parametrize("source", ["generation", "tokenizer", "added", "none"])
def test_languages_are_those_that_the_files_name(transformers: Any, source: str, tmp_path: Path) -> None:
    """A vocabulary of another size, in which Welsh and Javanese are tokens 5 and 7."""
    reference = random_whisper(transformers, vocabulary=300)
    named = {"<|startoftranscript|>": 3, "<|cy|>": 5, "<|jw|>": 7, "<|nocaptions|>": 9, "<|0.00|>": 11, "<|pad|>": 12}
    if source == "generation":
        reference.generation_config.lang_to_id = {"<|cy|>": 5, "<|jw|>": 7}
    reference.save_pretrained(tmp_path)
    tokens = [
        {"content": token, "id": number} for token, number in named.items() if source == "generation" or number < 12
    ]
    if source in ("generation", "tokenizer"):
        (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    if source == "added":
        (tmp_path / "added_tokens.json").write_text(json.dumps({t: n for t, n in named.items() if n < 12}))
    imported = import_embedding_network(tmp_path)
    if source == "none":
        assert imported.head is None and imported.pooling.name == "mean" and "silence" not in imported.encoder.args
        return
    assert imported.labels == ("cy", "jv", "zxx") and imported.head is not None
    table = reference.model.decoder.embed_tokens.weight.detach()
    torch.testing.assert_close(imported.head.state["trans.0.weight"], table[[5, 7, 9]])
    start = table[3] + reference.model.decoder.embed_positions.weight.detach()[0]
    torch.testing.assert_close(imported.pooling.state["start"], start)


def test_labels_are_codes_with_names() -> None:
    tokens = language_tokens(51866, {}, Path())
    assert tokens is not None
    for label in tokens.labels:
        language = find_language(label)
        assert language is not None and language.code == label


def test_language_tokens_by_hand(tmp_path: Path) -> None:
    for vocabulary, count, last in ((51865, 99, "su"), (51866, 100, "yue")):
        tokens = language_tokens(vocabulary, {}, tmp_path)
        assert tokens is not None and tokens.start == 50258 and tokens.labels[-2:] == (last, "zxx")
        assert tokens.numbers == (*range(50259, 50259 + count), 50263 + count) and len(tokens.labels) == count + 1
    assert language_tokens(51864, {"<|en|>": 50258}, tmp_path) is None and language_tokens(999, {}, tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"lang_ids": [*range(149, 50, -1)]}))
    tokens = language_tokens(200, token_numbers(tmp_path), tmp_path)
    assert tokens is not None and (tokens.start, tokens.numbers[0], tokens.numbers[-1]) == (50, 51, 154)
    for known in ({"<|en|>": 200}, {"<|en|>": -1}, {"<|en|>": 3, "<|nospeech|>": 3}, {"<|en|>": 197}):
        with pytest.raises(KnnError, match="do not fit its vocabulary of 200"):
            language_tokens(200, known, tmp_path)
    for known in ({"<|en|>": 100, "<|de|>": 100}, {"<|jw|>": 100, "<|jv|>": 101}):
        with pytest.raises(KnnError, match="two of its 2 language tokens"):
            language_tokens(200, known, tmp_path)
    tokens = language_tokens(200, {"<|en|>": 100, "<|de|>": 101, "<|pad|>": 150}, tmp_path)
    assert tokens is not None and tokens.labels == ("en", "de", "zxx")


def test_an_encoder_alone_and_english_models_are_encoders(transformers: Any, model: Any, tmp_path: Path) -> None:
    model.model.encoder.save_pretrained(tmp_path / "encoder")
    random_whisper(transformers, vocabulary=51864).save_pretrained(tmp_path / "english")
    for name in ("encoder", "english"):
        imported = import_embedding_network(tmp_path / name)
        assert imported.head is None and imported.pooling.name == "mean" and "silence" not in imported.encoder.args


def test_a_decoder_that_is_not_whole_is_refused(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.decoder.embed_positions.weight"
    for content, message in (
        ({key: value for key, value in state.items() if "encoder_attn.k_proj" not in key}, "2 missing"),
        ({**state, "model.decoder.layers.0.self_attn.k_proj.bias": torch.zeros(24)}, "1 extra"),
        ({key: value for key, value in state.items() if key != name}, f"{name.removeprefix('model.')} is missing"),
        ({**state, name: torch.zeros(8, 23)}, r"is \(8, 23\)"),
        ({**state, "proj_out.weight": torch.zeros(9, 24)}, "9 of 51865 tokens"),
    ):
        save_file(content, tmp_path / "model.safetensors")
        with pytest.raises(KnnError, match=message):
            import_embedding_network(tmp_path)


def test_an_output_projection_of_its_own_is_the_head(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "proj_out.weight": torch.full((51865, 24), 0.5)}, tmp_path / "model.safetensors")
    imported = import_embedding_network(tmp_path)
    assert imported.head is not None and (imported.head.state["trans.0.weight"] == 0.5).all()
    assert imported.pooling.state["start"].std() > 0


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_ctranslate2_file_cut_anywhere_is_refused(model: Any, precision: str, tmp_path: Path) -> None:
    save_ctranslate2(model, tmp_path, precision)
    file = tmp_path / "model.bin"
    whole = file.read_bytes()
    for length in (18, 22, 26, 27, 40, 60, 1000, len(whole) // 2, len(whole) - 3):
        file.write_bytes(whole[:length])
        with pytest.raises(KnnError, match="damaged"):
            import_embedding_network(file)


def test_ctranslate2_files_that_contradict_themselves_are_refused(model: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    variables, aliases = ctranslate2_variables(model, "int8")
    name = "encoder/conv1/weight"
    without_scale = {key: value for key, value in variables.items() if key != f"{name}_scale"}
    for content, message in (
        (without_scale, f"no scale that fits {name}"),
        ({**variables, f"{name}_scale": np.ones(5, np.float32)}, f"no scale that fits {name}"),
        ({**variables, f"{name}_scale": np.zeros(24, np.float32)}, "no number to divide by"),
        ({**variables, "decoder/activation": np.int8(0)}, "decoder/activation 0"),
        ({**variables, "encoder/odd/weight": np.zeros(2, np.float32)}, r"1 extra: encoder\.odd\.weight"),
        ({key: value for key, value in variables.items() if "layer_1/attention" not in key}, "missing: decoder"),
        ({key: value for key, value in variables.items() if key != "encoder/num_heads"}, "how many heads its encoder"),
        ({key: value for key, value in variables.items() if key != name}, "lacks encoder.conv1.weight"),
        ({**variables, "deep": np.zeros([1] * 9, np.int8)}, "deep has 9 axes"),
        ({**variables, "flat": np.zeros(2, np.float32)}, "'flat', which no Whisper has"),
        ({**variables, "encoder/empty": np.zeros((0, 2), np.float32)}, "encoder/empty of shape"),
        ({**variables, "encoder/num_heads": np.float32(np.nan)}, "how many heads its encoder"),
    ):
        write_ctranslate2(file, content, aliases)
        with pytest.raises(KnnError, match=message):
            import_embedding_network(file)
    write_ctranslate2(file, variables, {**aliases, "a": "nothing"})
    with pytest.raises(KnnError, match="a is a name of nothing"):
        import_embedding_network(file)
    for change, message in (({"kind": "TransformerSpec"}, "TransformerSpec"), ({"version": 5}, "version 5")):
        write_ctranslate2(file, variables, aliases, **change)
        with pytest.raises(KnnError, match=message):
            import_embedding_network(file)


def test_headers_that_lie_about_sizes_cost_no_memory(model: Any, tmp_path: Path) -> None:
    """2^32 variables, and a variable of 2^128 numbers: refused before anything is allocated."""
    save_ctranslate2(model, tmp_path)
    file = tmp_path / "model.bin"
    whole = bytearray(file.read_bytes())
    many = whole.copy()
    many[22:26] = b"\xff" * 4
    wide = whole[:26] + b"\x02\x00w\x00\x04" + b"\xff" * 16 + b"\x00" + b"\xff" * 4 + whole[26:]
    for content, message in ((many, "damaged"), (wide, "w of shape .* has 4,294,967,295 bytes")):
        file.write_bytes(content)
        with pytest.raises(KnnError, match=message):
            import_embedding_network(file)


def test_a_folder_is_read_by_the_weights_it_has(model: Any, tmp_path: Path) -> None:
    """A Hugging Face config beside CTranslate2's weights alone; with both weights, Hugging Face's are read."""
    save_ctranslate2(model, tmp_path)
    model.config.save_pretrained(tmp_path)
    assert import_embedding_network(tmp_path).source.startswith("CTranslate2")
    model.save_pretrained(tmp_path)
    assert import_embedding_network(tmp_path).source.startswith("Hugging Face")


@pytest.mark.skipif("KNN_WHISPER_BASE" not in os.environ, reason="needs a folder of faster-whisper-base")
def test_real_weights_say_what_ctranslate2_says(shared: Path) -> None:
    """The same best language on every clip; CTranslate2's float32 is up to 1e-3 of a probability from ours."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    from knn_cli.audio import reading

    folder = Path(os.environ["KNN_WHISPER_BASE"])
    loaded = network(import_embedding_network(folder), SILENCE)
    other = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32", intra_threads=1)
    labels = [code.replace("jw", "jv") for code in WHISPER_LANGUAGES[:99]]
    files = sorted((shared / "data" / "speech").rglob("*.opus"))[::400]
    assert files
    for file in files:
        samples = torch.from_numpy(reading.read(file, rate=16000).samples[: 16000 * 15])[None]
        mel: Any = loaded.encoder.mel
        padded = torch.nn.functional.pad(samples, (0, round(16000 * SILENCE)))
        features = mel.features(mel.powers(padded)).transpose(1, 2).contiguous().numpy()
        [pairs] = other.detect_language(ctranslate2.StorageView.from_array(features))
        expected = {token[2:-2].replace("jw", "jv"): probability for token, probability in pairs}
        with torch.inference_mode():
            probabilities = loaded.scores(loaded(samples))[0, :-1].softmax(0)
        assert labels[int(probabilities.argmax())] == max(expected, key=lambda label: expected[label])
        np.testing.assert_allclose(probabilities, [expected[label] for label in labels], atol=3e-3)
