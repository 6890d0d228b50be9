"""Whisper's encoder: its contract, and equality with the public implementation on shared random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, POOLINGS
from knn_cli.networks.encoders.whisper import Whisper, WhisperMel, sinusoids
from knn_cli.networks.importers.entry import import_embedding_network
from knn_cli.networks.importers.whisper_names import HUGGING_FACE, OPENAI
from tests.helpers.encoder_contract import check_frames, check_gradient, check_padding, shaken, sound
from tests.helpers.oracles import load_transformers

SMALL: dict[str, Any] = {"channels": 24, "blocks": 3, "heads": 3, "inner": 40, "bins": 80}
PLACES = "encoder.positional_embedding"


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("transformers")
    return load_transformers()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"level": 1.0},
        {"silence": 0.33},
        {"merge_after": 1},
        {"merge_after": 3, "silence": 0.33},
        {"normalised": True, "final_norm": False, "level": 1.0, "silence": 1.0},
    ],
)
def test_the_contract_of_encoders(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder = shaken(ENCODERS.build("whisper", **SMALL, **settings))
    pooling = shaken(POOLINGS.build("mhfa", layers=encoder.layers, channels=24, heads=3, compression=8, dimension=5))
    check_frames(encoder)
    check_padding(encoder, pooling)
    check_gradient(encoder, pooling)


def test_features_are_those_of_transformers(transformers: Any) -> None:
    clip = sound(54321)[0]
    reference = transformers.WhisperFeatureExtractor(feature_size=80)(clip.numpy(), sampling_rate=16000)[
        "input_features"
    ][0]
    mel = WhisperMel()
    whole = torch.cat([clip, torch.zeros(480000 - 54321)])[None]
    np.testing.assert_allclose(mel.features(mel.powers(whole))[0].T, reference, atol=2e-5)


@pytest.fixture(scope="module")
def reference(transformers: Any) -> Any:
    """A whole small Whisper of transformers with random weights."""
    config = transformers.WhisperConfig(
        d_model=24, encoder_layers=3, encoder_attention_heads=3, encoder_ffn_dim=96, max_source_positions=50,
        decoder_layers=1, decoder_attention_heads=3, decoder_ffn_dim=8, vocab_size=9, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(1)
    model = shaken(transformers.WhisperForConditionalGeneration(config))
    model.model.encoder.embed_positions.weight.data = sinusoids(torch.arange(50), 24)
    return model


@pytest.mark.parametrize("kind", ["whole", "encoder", "openai"])
def test_imported_layers_are_those_of_transformers(reference: Any, kind: str, tmp_path: Path) -> None:
    encoder = reference.model.encoder
    if kind == "openai":
        state = {"decoder.token_embedding.weight": torch.zeros(9, 24)}
        for key, value in encoder.state_dict().items():
            state[f"encoder.{OPENAI.encoder.source_name(ours_of(key))}" if "positions" not in key else PLACES] = value
        dims = {"n_audio_state": 24, "n_audio_layer": 3, "n_audio_head": 3, "n_mels": 80, "n_audio_ctx": 50}
        torch.save({"dims": dims, "model_state_dict": state}, tmp_path / "tiny.pt")
        imported = import_embedding_network(tmp_path / "tiny.pt")
    else:
        (reference if kind == "whole" else encoder).save_pretrained(tmp_path)
        imported = import_embedding_network(tmp_path)
    assert imported.encoder.args == {**SMALL, "inner": 96}
    ours = ENCODERS.build("whisper", **imported.encoder.args).eval()
    ours.load_state_dict(imported.encoder.state, strict=True)
    powers = torch.rand(2, 100, 80).square()
    with torch.inference_mode():
        expected = encoder(ours.mel.features(powers).transpose(1, 2), output_hidden_states=True).hidden_states
        for layer, other in zip(ours.encode(powers), expected, strict=True):
            torch.testing.assert_close(layer, other, atol=1e-5, rtol=1e-5)


def ours_of(key: str) -> str:
    """Our name of a weight of transformers'."""
    names = {HUGGING_FACE.encoder.source_name(name): name for name in Whisper(**{**SMALL, "inner": 96}).state_dict()}
    return names.get(key, key)


def test_what_is_no_plain_whisper_is_refused(reference: Any, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    trained = {**state, "model.encoder.embed_positions.weight": torch.rand(50, 24)}
    for content, message in (
        (trained, "trained position embeddings"),
        ({key: value for key, value in state.items() if "fc1.bias" not in key}, "3 missing"),
        ({**state, "model.encoder.adapter.weight": torch.zeros(1)}, "1 extra"),
    ):
        save_file(content, tmp_path / "model.safetensors")
        with pytest.raises(KnnError, match=message):
            import_embedding_network(tmp_path)


def test_a_level_makes_loudness_not_matter() -> None:
    encoder = Whisper(**SMALL, level=1.0).eval()
    clip = sound(8000)
    with torch.inference_mode():
        for loud, quiet in zip(encoder(clip), encoder(0.05 * clip), strict=True):
            torch.testing.assert_close(loud, quiet, atol=1e-4, rtol=1e-4)


def test_silence_is_that_of_the_clip_with_zeros_after_it() -> None:
    torch.manual_seed(0)
    silent, plain = (shaken(Whisper(**SMALL, silence=silence)) for silence in (0.5, 0.0))
    plain.load_state_dict(silent.state_dict())
    clip = sound(9001)
    assert silent.frames(9001) == plain.frames(17001)
    with torch.inference_mode():
        for ours, other in zip(silent(clip), plain(torch.nn.functional.pad(clip, (0, 8000))), strict=True):
            torch.testing.assert_close(ours, other, atol=0, rtol=0)
    with pytest.raises(KnnError, match=r"cannot have -1.0 s of silence"):
        Whisper(silence=-1.0)


def test_merged_frames_are_the_means_of_pairs() -> None:
    """Hand answer: after the last block only pairs of the final layer are averaged, an odd last frame stays."""
    torch.manual_seed(0)
    merged, plain = (shaken(Whisper(**SMALL, final_norm=False, merge_after=after)) for after in (3, None))
    plain.load_state_dict(merged.state_dict())
    clip = sound(9000)  # 28 frames
    for samples in (9000, 8700):
        with torch.inference_mode():
            layers = list(plain(clip[:, :samples]))
            for ours, other in zip(merged(clip[:, :samples]), layers, strict=True):
                whole = other[:, : 2 * (other.shape[1] // 2)].unflatten(1, (-1, 2)).mean(2)
                torch.testing.assert_close(ours[:, : whole.shape[1]], whole, atol=1e-6, rtol=1e-6)
                if other.shape[1] % 2:
                    torch.testing.assert_close(ours[:, -1], other[:, -1], atol=0, rtol=0)
    assert {plain.frames(samples) % 2 for samples in (9000, 8700)} == {0, 1}
    early, late = (shaken(Whisper(**SMALL, merge_after=after)) for after in (0, 3))
    with torch.inference_mode():
        *_, first = early(clip)
        *_, last = late(clip)
    assert first.shape == last.shape and not torch.allclose(first, last, atol=1e-3)
    with pytest.raises(KnnError, match="cannot be merged after 4 of 3 blocks"):
        Whisper(**SMALL, merge_after=4)


def test_a_clip_of_any_length_has_places() -> None:
    """Past the places at hand they are computed: the same sinusoids."""
    encoder = Whisper(**{**SMALL, "blocks": 0}, final_norm=False)
    encoder.places = encoder.places[:20]
    long = Whisper(**{**SMALL, "blocks": 0}, final_norm=False)
    long.load_state_dict(encoder.state_dict())
    for layer, other in zip(encoder(sound(16000)), long(sound(16000)), strict=True):
        torch.testing.assert_close(layer, other, atol=0, rtol=0)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(KnnError, match="384 channels"):
        Whisper(heads=5)
    for sizes in (
        {"heads": 0},
        {"channels": 12, "heads": -6},
        {"channels": 2, "heads": 1},
        {"blocks": -1},
        {"bins": 0},
    ):
        with pytest.raises(KnnError, match="too small"):
            Whisper(**sizes)
