"""NeMo's `.nemo` files: features, encoders, poolings and heads by its formulas; and files that are refused."""

from __future__ import annotations

import copy
import io
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks import bundle
from knn_cli.networks.conversion import convert
from knn_cli.networks.features import StandardMel
from knn_cli.networks.importers.components import ImportedModel
from knn_cli.networks.importers.entry import import_embedding_network
from tests.helpers.encoder_contract import shaken
from tests.helpers.nemo_reference import LabelModel, block, config, features, librosa_mel, nemo_file

LABELS = ["cs", "de", "iw", "pl", "zh"]
BINS = 24
BLOCKS = [block(16, 3), block(16, 7, 3), block(24, 5, 2, dilation=[2]), block(20, 1, residual=False)]
STRIDED = [
    block(16, 3, stride=[2], se=False),
    block(16, 5, 2, stride=[2], stride_last=True, residual_mode="stride_add"),
    block(16, 3, separable=False, residual=False, groups=1),
]
DECODERS: dict[str, dict[str, Any]] = {
    "xvector": {"pool_mode": "xvector", "emb_sizes": 12, "num_classes": 5},
    "deep": {"pool_mode": "xvector", "emb_sizes": [14, 12], "num_classes": 5},
    "tap": {"pool_mode": "tap", "emb_sizes": [12], "num_classes": 5},
    "attention": {"pool_mode": "attention", "emb_sizes": 12, "num_classes": 5, "attention_channels": 8},
}


def waveform(samples: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=samples) * (0.02 + 0.1 * np.sin(np.arange(samples) / 900) ** 2)).astype(np.float32)


def model_of(settings: dict[str, Any]) -> tuple[LabelModel, dict[str, Tensor]]:
    """A model with random weights and the norms of some clips, and its state dict as NeMo saves it."""
    torch.manual_seed(0)
    model = shaken(LabelModel(copy.deepcopy(settings)))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = 1.0  # the next batch's mean and deviation
    with torch.no_grad():
        heard = torch.randn(16, BINS, 8).repeat_interleave(10, dim=2) + 0.3 * torch.randn(16, BINS, 80)
        model.train()(heard, torch.full((16,), 80))
    model.eval()
    fixed = {
        "preprocessor.featurizer.fb": torch.from_numpy(librosa_mel(BINS, 512)).float()[None],
        "preprocessor.featurizer.window": torch.hann_window(400, periodic=False),
        "loss.weight": torch.ones(5),
    }
    return model, {**fixed, **model.state_dict()}


def test_mels_are_those_of_the_definition() -> None:
    front = StandardMel(80)
    np.testing.assert_allclose(front.filters.T.numpy(), librosa_mel(80, 512), atol=1e-7)
    for samples in (160, 161, 479, 480, 16000, 20321):
        clip = waveform(samples)
        ours = front(torch.from_numpy(clip)[None])[0].T.numpy()
        assert ours.shape == (80, samples // 160)
        np.testing.assert_allclose(ours, features(clip, 80), atol=1e-3 if samples < 480 else 1e-4)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("blocks", [BLOCKS, STRIDED], ids=["titanet", "strided"])
@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_embeddings_and_scores_equal_nemo_s(
    decoder: str, blocks: list[dict[str, Any]], mode: str, tmp_path: Path
) -> None:
    """Alone and in a padded batch, as NeMo masks it."""
    settings = config(blocks, BINS, DECODERS[decoder], LABELS)
    reference, weights = model_of(settings)
    nemo_file(tmp_path / "ambernet.nemo", settings, weights, mode)
    convert(tmp_path / "ambernet.nemo", tmp_path / "lid")
    network = bundle.load_network(bundle.find(tmp_path / "lid"))
    lengths = [16000, 9999, 4000]
    clips, counts = [waveform(length, seed) for seed, length in enumerate(lengths)], torch.tensor(lengths) // 160
    padded, mels = torch.zeros(3, 16000), torch.zeros(3, BINS, 112)  # NeMo pads features to a multiple of 16
    for row, clip in enumerate(clips):
        padded[row, : len(clip)] = torch.from_numpy(clip)
        mels[row, :, : counts[row]] = torch.from_numpy(features(clip, BINS))
    with torch.inference_mode():
        logits, embeddings = reference(mels, counts)
        assert embeddings.std(0).mean() > 0.05  # clips differ
        ours = network(padded, torch.tensor(lengths))
        torch.testing.assert_close(ours, embeddings, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(network.scores(ours), logits, atol=1e-4, rtol=1e-4)
    alone = np.stack([Embedder(tmp_path / "lid", device="cpu")([clip])[0] for clip in clips])
    np.testing.assert_allclose(alone, embeddings.numpy(), atol=1e-4, rtol=1e-4)
    model = bundle.find(tmp_path / "lid")
    assert list(model.head_labels) == LABELS and "NeMo: ambernet.nemo" in model.card


def test_speakers_of_an_angular_loss_are_left_out(tmp_path: Path) -> None:
    decoder = {**DECODERS["attention"], "angular": True}
    settings = config(BLOCKS, BINS, decoder, LABELS)
    folder = tmp_path / "titanet"
    folder.mkdir()
    nemo_file(folder / "titanet-s.nemo", settings, model_of(settings)[1])
    for source in (folder, folder / "titanet-s.nemo"):
        imported = import_embedding_network(source)
        assert isinstance(imported, ImportedModel) and imported.head is None
        assert (imported.encoder.name, imported.pooling.name) == ("conv-asr", "ecapa-tdnn")


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    settings = config(BLOCKS, BINS, DECODERS["xvector"], LABELS)
    _, weights = model_of(settings)
    path = tmp_path / "a.nemo"

    def refused(match: str, **changes: Any) -> None:
        changed = {**settings, **{key: {**settings[key], **value} for key, value in changes.items()}}
        with pytest.raises(KnnError, match=match):
            import_embedding_network(nemo_file(path, changed, weights))

    refused("has normalize 'all_features'", preprocessor={"normalize": "all_features"})
    refused("has a?nother|other preprocessor.featurizer.window|another", preprocessor={"window_size": 0.02})
    refused("has other values in preprocessor.featurizer.window", preprocessor={"window": "hamming"})
    refused("has activation 'swish'", encoder={"activation": "swish"})
    refused("has conv_mask False", encoder={"conv_mask": False})
    refused("ConformerEncoder as encoder", encoder={"_target_": "nemo.ConformerEncoder"})
    refused("has groups 2", encoder={"jasper": [{**BLOCKS[0], "groups": 2}]})
    refused("missing.*decoder.emb_layers.1.0.weight", decoder={"emb_sizes": [12, 12]})
    refused("does not name its 6 classes", decoder={"num_classes": 6})
    refused("pool_mode 'max'", decoder={"pool_mode": "max"})
    refused("a convolution of 3e.09 frames", encoder={"jasper": [{**BLOCKS[0], "kernel_size_factor": 1e9}]})
    refused("a block that repeats 1000000000 times", encoder={"jasper": [{**BLOCKS[0], "repeat": 10**9}]})
    refused("settings of another kind", encoder={"jasper": [{**BLOCKS[0], "repeat": "1"}]})
    for extra in ({"encoder.more": torch.zeros(1)}, {"decoder.final.bias": torch.zeros(4)}):
        with pytest.raises(KnnError, match=r"extra: encoder.more|mis-sized: decoder.final.bias"):
            import_embedding_network(nemo_file(path, settings, {**weights, **extra}))


def test_archives_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.nemo"
    for data in (b"", b"text" * 300, b"\x1f\x8b\x08\x00" + b"x" * 99):
        path.write_bytes(data)
        with pytest.raises(KnnError, match=r"is no model of NeMo, or damaged|has no model_config.yaml"):
            import_embedding_network(path)
    settings = config(BLOCKS, BINS, DECODERS["xvector"])
    whole = nemo_file(path, settings, model_of(settings)[1]).read_bytes()
    for end in (5000, len(whole) // 2):
        path.write_bytes(whole[:end])
        with pytest.raises(KnnError):
            import_embedding_network(path)
    packed = bytearray(lzma.compress(whole))
    packed[len(packed) // 2] ^= 255
    path.write_bytes(packed)
    with pytest.raises(KnnError):
        import_embedding_network(path)
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("model_weights.ckpt")
        member.size = 1 << 28
        archive.addfile(member, io.BytesIO(bytes(1 << 28)))
    with pytest.raises(KnnError, match="claims to unpack to 268,435,456 bytes"):
        import_embedding_network(path)
    with tarfile.open(path, "w:") as archive:
        for name in ("model_config.yaml", "model_weights.ckpt"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    with pytest.raises(KnnError, match=r"has no model_config.yaml in it"):
        import_embedding_network(path)
