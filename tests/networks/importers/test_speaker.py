"""Checkpoints of speechbrain, wespeaker, pyannote and 3D-Speaker, laid out as they publish them, give their outputs."""

from __future__ import annotations

import json
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.cli.info import describe
from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS
from knn_cli.core.values import EmbeddingSet
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks import bundle
from knn_cli.networks.conversion import convert
from knn_cli.networks.importers.entry import import_embedding_network
from knn_cli.networks.importers.weight_names import (
    CAMPPLUS,
    CAMPPLUS_POOLING,
    ECAPA,
    ECAPA_POOLING,
    WeightNames,
    speechbrain_classifier,
)
from knn_cli.networks.importers.wespeaker_heads import CZECH_DIALECTS, VOXLINGUA107
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.train_classifier import train_classifier
from tests.helpers.public_outputs import OUTPUTS, clips, weights
from tests.helpers.speechbrain_settings import hyperparams
from tests.networks.importers.test_wavlm import (
    CHANNELS,
    hugging_face_layers,
    hugging_face_model,
    microsoft_checkpoint,
    waveforms,
)

LABELS = ["cs: Czech", "de: German", "sk: Slovak", "pl: Polish", "ab: Abkhazian"]
HYPERPARAMS = (
    hyperparams(classes=5)
    + """pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    paths:
        classifier: !apply:os.system [touch planted]
"""
)


def public(*parts: tuple[Any, WeightNames]) -> dict[str, Tensor]:
    """A state dict of the public implementation of `public_outputs`."""
    keys = {
        spelling.source_name(key): value for module, spelling in parts for key, value in module.state_dict().items()
    }
    return weights(keys)


@pytest.fixture
def speechbrain(tmp_path: Path) -> Path:
    folder = tmp_path / "lang-id"
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(HYPERPARAMS)
    encoder = ENCODERS.build("ecapa-tdnn", channels=[16] * 4 + [24], scale=4, squeeze=6, bins=60)
    pooling = POOLINGS.build("ecapa-tdnn", layers=1, channels=24, attention=8, dimension=12)
    torch.save(public((encoder, ECAPA), (pooling, ECAPA_POOLING)), folder / "embedding_model.ckpt")
    head = HEADS.build("deep-softmax", dimension=12, classes=5, hidden=[10])
    torch.save(public((head, speechbrain_classifier(1))), folder / "classifier.ckpt")
    lines = [f"{label!r} => {number}" for number, label in enumerate(LABELS)]
    (folder / "label_encoder.txt").write_text("\n".join([*lines[::-1], "=" * 16, "'starting_index' => 0", ""]))
    return folder


def outputs(model: Path) -> Tensor:
    return torch.from_numpy(Embedder(model, device="cpu")(list(clips().numpy())))


def test_a_folder_of_speechbrain_identifies_languages(speechbrain: Path, tmp_path: Path) -> None:
    """Converted, it gives speechbrain's embeddings and scores, with its labels in the order of the scores."""
    expected = np.load(OUTPUTS)
    convert(speechbrain, tmp_path / "lid")
    torch.testing.assert_close(outputs(tmp_path / "lid"), torch.from_numpy(expected["ecapa"]), atol=1e-4, rtol=1e-4)
    model = Classifier(tmp_path / "lid", device="cpu")
    assert model.labels == tuple(LABELS)
    scores = torch.from_numpy(model.embedder.scores(expected["ecapa"])).log_softmax(1)
    torch.testing.assert_close(scores, torch.from_numpy(expected["ecapa_scores"]), atol=1e-4, rtol=1e-4)
    assert not (tmp_path / "planted").exists() and not Path("planted").exists()
    card = (tmp_path / "lid" / "README.md").read_text()
    assert "ab: Abkhazian" in card and "Apache-2.0" in card


def test_a_head_in_a_bundle(speechbrain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told of, it stays when a classifier is trained on the embeddings, and then the classifier counts."""
    monkeypatch.setenv("KNN_MODELS", str(tmp_path), prepend=os.pathsep)
    convert(speechbrain, tmp_path / "lid")
    found = bundle.find("lid")
    assert describe("lid")["head"] == "deep-softmax" and describe("lid")["labels"] == LABELS
    random = np.random.default_rng(0)
    data = random.normal(size=(40, 12)) + np.repeat([[0.0], [3.0]], 20, axis=0)
    groups = np.repeat(["x", "y"], 20)
    rows = EmbeddingSet.from_columns(data, [f"r{n}" for n in range(40)], group=groups, embedder=found.fingerprint)
    made = train_classifier(rows, tmp_path / "xy", label="group").bundle
    assert bundle.same_embedder(made.fingerprint, found.fingerprint) and made.head_labels == tuple(LABELS)
    assert Classifier("xy", device="cpu").labels == ("x", "y")
    assert Classifier("xy", device="cpu").embedder.dimension == 12
    config = json.loads((tmp_path / "lid" / "config.json").read_text())
    del config["head"]["labels"]
    (tmp_path / "lid" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="head needs args, labels, name"):
        bundle.find("lid")


def test_from_the_command_line(tmp_path: Path) -> None:
    """`knn convert --config --labels`, then `knn classify` of a file."""
    training = Training(tmp_path, "arc_margin", classes=3)
    arguments = [str(training.path), str(tmp_path / "m"), "--config", str(training.config), "--labels", "cs,pl,sk"]
    assert CliRunner().invoke(app, ["convert", *arguments]).exit_code == 0
    soundfile.write(tmp_path / "a.wav", clips()[0].numpy(), 16000)
    done = CliRunner().invoke(app, ["classify", str(tmp_path / "a.wav"), "--model", str(tmp_path / "m"), "--no-vad"])
    assert done.exit_code == 0 and any(label in done.stdout for label in ("cs", "pl", "sk")), done.output


def test_objects_of_pyannote_beside_the_weights_are_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that names pyannote's classes is read without them, and others are refused."""
    task = types.ModuleType("pyannote.audio.core.task")
    specifications = type("Specifications", (), {"__module__": task.__name__})
    other = type("Other", (), {"__module__": task.__name__})
    vars(task).update(Specifications=specifications, Other=other)
    monkeypatch.setitem(sys.modules, task.__name__, task)
    state = {f"resnet.{key}": value for key, value in resnet_state(18, 2, False).items()}
    planted = specifications()
    planted.classes = ["a"]
    path = tmp_path / "pytorch_model.bin"
    torch.save({"state_dict": state, "pyannote.audio": {"specifications": planted}}, path)
    assert import_embedding_network(path).encoder.name == "resnet"
    torch.save({"state_dict": state, "pyannote.audio": {"specifications": other()}}, path)
    with pytest.raises(KnnError, match="objects beside weights"):
        import_embedding_network(path)


def test_another_classifier_of_speechbrain_is_left_out(speechbrain: Path) -> None:
    path = speechbrain / "hyperparams.yaml"
    path.write_text(HYPERPARAMS.replace("Xvector.Classifier", "ECAPA_TDNN.Classifier"))
    found = import_embedding_network(speechbrain)
    assert found.head is None and found.labels == () and found.pooling.name == "ecapa-tdnn"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("deltas: False", "deltas: True", "deltas True, and knn's filter bank supports False only"),
        ("std_norm: False", "std_norm: True", "std_norm True"),
        ("norm_type: sentence", "", "norm_type 'global'"),
        ("input_size: !ref <n_mels>", "input_size: 80", "input_size 80, and knn's ECAPA-TDNN supports 60 only"),
        ("lin_neurons: 12", "lin_neurons: 13", r"2 mis-sized: fc\.conv\.weight is \(12, 48, 1\), not \(13, 48, 1\)"),
        ("channels: [16, 16, 16, 16, 24]", "channels: 16", "another kind than an ECAPA-TDNN's: channels"),
        ("channels: [16, 16, 16, 16, 24]", "channels: [a]", "another kind than an ECAPA-TDNN's: channels"),
        ("lin_blocks: 1", "lin_blocks: 0", r"extra: .*DNN\.block_0\.linear\.w\.weight"),
        ("ECAPA_TDNN.ECAPA_TDNN", "Xvector.Xvector", "no embedding_model that knn supports"),
        ("out_n_neurons: 5", "out_n_neurons: 6", "does not name the 6 classes one by one"),
        ("n_mels: 60", "n_mels: [60", r"hyperparams\.yaml cannot be read"),
    ],
)
def test_speechbrain_faults(speechbrain: Path, old: str, new: str, why: str) -> None:
    assert old in HYPERPARAMS
    (speechbrain / "hyperparams.yaml").write_text(HYPERPARAMS.replace(old, new))
    with pytest.raises(KnnError, match=why):
        import_embedding_network(speechbrain)


def test_missing_files_of_speechbrain(speechbrain: Path) -> None:
    (speechbrain / "label_encoder.txt").write_text("cs => 0")
    with pytest.raises(KnnError, match="holds no labels of speechbrain"):
        import_embedding_network(speechbrain)
    (speechbrain / "embedding_model.ckpt").unlink()
    with pytest.raises(KnnError, match=r"embedding_model\.ckpt is missing"):
        import_embedding_network(speechbrain)
    with pytest.raises(KnnError, match="needs no `config`, which is only for"):
        import_embedding_network(speechbrain, config="x.yaml")


def resnet_state(depth: int, width: int, two: bool) -> dict[str, Tensor]:
    encoder = ENCODERS.build("resnet", depth=depth, width=width)
    pooling = POOLINGS.build("resnet", layers=1, channels=encoder.channels, dimension=12, two=two)
    return weights({**encoder.state_dict(), **pooling.state_dict()})


@pytest.mark.parametrize(("depth", "width", "two"), [(18, 4, False), (50, 2, True)])
@pytest.mark.parametrize("layout", ["wespeaker", "pyannote"])
def test_resnet(tmp_path: Path, depth: int, width: int, two: bool, layout: str) -> None:
    state: dict[str, Any] = resnet_state(depth, width, two)
    if layout == "wespeaker":
        state["projection.weight"] = torch.ones(7, 12)  # speakers without names
        state["bn1.num_batches_tracked"] = torch.tensor(7.5)  # as averaging of checkpoints leaves it
    else:
        hidden = {"pyannote.audio": {"versions": {"torch": torch.__version__}}}
        state = {"state_dict": {f"resnet.{key}": value for key, value in state.items()}, **hidden}
    torch.save(state, tmp_path / "avg_model.pt")
    source = tmp_path / "avg_model.pt"
    if two:  # as a whole folder is had from a hub
        (tmp_path / "hub").mkdir()
        name = "avg_model.pt" if layout == "wespeaker" else "pytorch_model.bin"
        source = source.rename(tmp_path / "hub" / name).parent
    convert(source, tmp_path / "r")
    expected = torch.from_numpy(np.load(OUTPUTS)[f"resnet{depth}"])
    torch.testing.assert_close(outputs(tmp_path / "r"), expected, atol=1e-4, rtol=1e-4)
    assert bundle.find(tmp_path / "r").scale == 32768.0
    with pytest.raises(KnnError, match="knows no labels"):
        Classifier(tmp_path / "r")


def test_resnet_faults(tmp_path: Path) -> None:
    path, state = tmp_path / "avg_model.pt", resnet_state(18, 2, False)
    for change, why in (
        ({"layer4.1.conv2.weight": None}, r"1 missing: layer4\.1\.conv2\.weight\."),
        ({"layer9.bias": torch.ones(1)}, r"1 extra: layer9\.bias\."),
        ({f"layer4.2.{key}": torch.ones(1) for key in ("conv1.weight",)}, "its stages have 2, 2, 2, 3 blocks"),
        ({"seg_1.bias": torch.ones(3)}, r"1 mis-sized: seg_1\.bias is \(3,\), not \(12,\)"),
    ):
        torch.save({key: value for key, value in {**state, **change}.items() if value is not None}, path)
        with pytest.raises(KnnError, match=why):
            import_embedding_network(path, origin="wespeaker")


def campplus_state() -> dict[str, Tensor]:
    encoder = ENCODERS.build("campplus", channels=8, growth=4)
    pooling = POOLINGS.build("campplus", layers=1, channels=encoder.channels, dimension=12)
    return public((encoder, CAMPPLUS), (pooling, CAMPPLUS_POOLING))


def test_campplus(tmp_path: Path) -> None:
    torch.save(campplus_state(), tmp_path / "campplus.bin")
    convert(tmp_path / "campplus.bin", tmp_path / "c", origin="3d-speaker")
    expected = torch.from_numpy(np.load(OUTPUTS)["campplus"])
    torch.testing.assert_close(outputs(tmp_path / "c"), expected, atol=1e-4, rtol=1e-4)


def test_campplus_faults(tmp_path: Path) -> None:
    path, state = tmp_path / "campplus.bin", campplus_state()
    for missing, why in (
        ("xvector.block2.tdnnd3.linear1.weight", r"1 missing: xvector\.block2\.tdnnd3\.linear1\.weight\."),
        ("xvector.dense.linear.weight", r"does not determine its network: xvector\.dense\.linear\.weight is missing"),
    ):
        torch.save({key: value for key, value in state.items() if key != missing}, path)
        with pytest.raises(KnnError, match=why):
            import_embedding_network(path, origin="3d-speaker")


SETTINGS: dict[str, Any] = {
    "model": "WavLM_Base_MHFA",
    "model_args": {"model_path": "WavLM-Base+.pt", "head_nb": 4, "embed_dim": 6, "pooling": "MHFA", "group": 1},
    "projection_args": {"project_type": "arc_margin_intertopk_subcenter", "scale": 32.0, "easy_margin": False},
    "dataset_args": {"raw_wav": True, "speed_perturb": False},
}


class Training:
    """What a training of the fork leaves behind, of a tiny network; `scores` are its formulas written out."""

    def __init__(self, folder: Path, kind: str, classes: int = 13, **settings: Any) -> None:
        self.path, self.config, self.kind, self.classes = folder / "model_20.pt", folder / "config.yaml", kind, classes
        self.base = hugging_face_model("base")
        microsoft = microsoft_checkpoint(self.base, "base")["model"]
        torch.manual_seed(3)
        self.pooling = POOLINGS.build("mhfa", layers=3, channels=CHANNELS, heads=4, compression=8, dimension=6)
        rows = classes * (3 if kind == "arc_margin_intertopk_subcenter" else 1)
        self.head: dict[str, Tensor] = {"weight": torch.randn(rows, 6)}
        if kind == "softmax":
            names = {"0.weight": (6,), "0.bias": (6,), "0.running_mean": (6,), "0.running_var": (6,)}
            shapes = {**names, "0.num_batches_tracked": (), "2.weight": (classes, 6), "2.bias": (classes,)}
            self.head = weights({f"trans.{name}": torch.empty(shape) for name, shape in shapes.items()})
        self.state = {f"speaker_extractor.model.{key}": value for key, value in microsoft.items()}
        self.state |= {f"speaker_extractor.back_end.{key}": value for key, value in self.pooling.state_dict().items()}
        self.state |= {f"projection.{key}": value for key, value in self.head.items()}
        torch.save(self.state, self.path)
        chosen = {**SETTINGS["projection_args"], "project_type": kind}
        self.config.write_text(json.dumps({**SETTINGS, "projection_args": chosen, **settings}))  # JSON is YAML

    @torch.no_grad()
    def embeddings(self) -> Tensor:
        model = self.base
        return self.pooling(hugging_face_layers(_scaled(model), "base"))

    def scores(self) -> Tensor:
        x = self.embeddings()
        if self.kind == "softmax":
            norm = [self.head[f"trans.0.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
            x = F.relu((x - norm[0]) / (norm[1] + 1e-5).sqrt() * norm[2] + norm[3])
            return x @ self.head["trans.2.weight"].T + self.head["trans.2.bias"]
        cosines = F.normalize(x) @ F.normalize(self.head["weight"]).T
        centers = len(self.head["weight"]) // self.classes
        nearest = [cosines[:, c * centers : (c + 1) * centers].max(1).values for c in range(self.classes)]
        return 32.0 * torch.stack(nearest, dim=1)


def _scaled(model: Any) -> Any:
    """The network behind the training's factor on waveforms."""

    def hear(clips: Tensor, **kwargs: Any) -> Any:
        return model(clips * 32768, **kwargs)

    return hear


@pytest.mark.parametrize("kind", ["arc_margin_intertopk_subcenter", "arc_margin", "add_margin", "softmax"])
def test_a_training_of_the_fork(tmp_path: Path, kind: str) -> None:
    """Converted with its YAML: embeddings, scores by the formulas written out, and the dialects' labels."""
    training = Training(tmp_path, kind)
    convert(training.path, tmp_path / "naki", config=training.config)
    model = Classifier(tmp_path / "naki", device="cpu")
    assert model.labels == CZECH_DIALECTS and model.meta["label"] == "subgroup" and model.bundle.scale == 32768.0
    found = model.embedder(list(waveforms().numpy()))
    torch.testing.assert_close(torch.from_numpy(found), training.embeddings(), atol=1e-4, rtol=1e-4)
    scores = torch.from_numpy(model.embedder.scores(found))
    torch.testing.assert_close(scores, training.scores(), atol=1e-4, rtol=1e-4)


def test_labels_of_a_training(tmp_path: Path) -> None:
    """Given in any order or in a file, sorted as the training sorted them; the number of classes must agree."""
    training = Training(tmp_path, "arc_margin", classes=3)
    with pytest.raises(KnnError, match=r"3 classes, whose names are unknown. Give `labels`"):
        convert(training.path, tmp_path / "m", config=training.config)
    (tmp_path / "names.txt").write_text("sk\ncs\n\npl\n")
    (tmp_path / "utt2spk").write_text("a/1.wav sk\na/2.wav cs\nb/1.wav sk\nb/2.wav pl\n")
    for given in ("sk, cs,pl", str(tmp_path / "names.txt"), str(tmp_path / "utt2spk")):
        convert(training.path, tmp_path / "m", config=training.config, label_rule=given, force=True)
        assert Classifier(tmp_path / "m").labels == ("cs", "pl", "sk")
    for given in ("cs,pl", "cs,pl,cs", "cs,pl,sk,de"):
        with pytest.raises(KnnError, match="The head has 3 classes"):
            convert(training.path, tmp_path / "n", config=training.config, label_rule=given)
    training.config.rename(tmp_path / "elsewhere.yaml")
    with pytest.raises(KnnError, match=r"it needs its settings.*`config`"):
        convert(training.path, tmp_path / "n")
    soundfile.write(tmp_path / "a.wav", clips()[0].numpy(), 16000)
    with pytest.raises(KnnError, match=r"a\.wav is no checkpoint"):
        convert(tmp_path / "a.wav", tmp_path / "a.h5", config=tmp_path / "elsewhere.yaml")


def test_classes_at_other_speeds_are_left_out(tmp_path: Path) -> None:
    training = Training(tmp_path, "arc_margin", classes=6, dataset_args={"speed_perturb": True})
    found = import_embedding_network(training.path, config=training.config, labels=["cs", "sk"])
    assert found.head is not None and torch.equal(found.head.state["weight"], training.head["weight"][:2])


def test_a_resnet_of_the_fork(tmp_path: Path) -> None:
    state = {f"speaker_extractor.{key}": value for key, value in resnet_state(18, 4, False).items()}
    head = {f"projection.{key}": value for key, value in Training(tmp_path, "softmax").head.items()}
    head = {key: torch.cat([value, value]) if value.shape == (6,) else value for key, value in head.items()}
    head["projection.trans.2.weight"] = torch.ones(13, 12)
    torch.save({**state, **head}, tmp_path / "model.pt")
    settings = {**SETTINGS, "model": "ResNet18", "model_args": {"feat_dim": 80, "embed_dim": 12}}
    settings["projection_args"] = {"project_type": "softmax"}
    (tmp_path / "resnet.yaml").write_text(json.dumps(settings))
    convert(tmp_path / "model.pt", tmp_path / "r", config=tmp_path / "resnet.yaml")
    expected = torch.from_numpy(np.load(OUTPUTS)["resnet18"])
    torch.testing.assert_close(outputs(tmp_path / "r"), expected, atol=1e-4, rtol=1e-4)
    assert Classifier(tmp_path / "r").labels == CZECH_DIALECTS


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": "XVEC"}, "the model 'XVEC', which is not in"),
        ({"model_args": 3}, "has no model_args"),
        ({"model_args": {**SETTINGS["model_args"], "pooling": "Mean"}}, "the pooling 'Mean'"),
        ({"model_args": {**SETTINGS["model_args"], "pooling": "MHFA_Context"}}, r"lacks .*att_head\.weight, or has"),
        (
            {"model": "WavLM_Base_Adapter", "model_args": {**SETTINGS["model_args"], "adapter_type": "LoRaAdapter"}},
            "adapters of the type 'LoRaAdapter'",
        ),
        ({"model_args": {**SETTINGS["model_args"], "head_nb": 5}}, r"mis-sized: .*back_end\.att_head\.weight is"),
        ({"model_args": {**SETTINGS["model_args"], "head_nb": "4"}}, "another kind than a pooling's: head_nb"),
        ({"projection_args": {"project_type": "circle"}}, "the project_type 'circle'"),
        ({"projection_args": {"project_type": "sphereface2", "margin_type": "B"}}, "the margin_type 'B'"),
        ({"projection_args": {"project_type": "softmax"}}, r"lacks projection\.trans\.2\.weight"),
        ({"projection_args": {**SETTINGS["projection_args"], "K": 2}}, "39 rows of .*, which is not divisible by 2"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    training = Training(tmp_path, "arc_margin_intertopk_subcenter")
    training.config.write_text(json.dumps({**SETTINGS, **change}))
    with pytest.raises(KnnError, match=why):
        import_embedding_network(training.path, config=training.config)


def test_a_missing_weight_of_a_training_is_named(tmp_path: Path) -> None:
    training = Training(tmp_path, "arc_margin")
    key = "speaker_extractor.model.encoder.layers.1.self_attn.k_proj.bias"
    torch.save({name: value for name, value in training.state.items() if name != key}, training.path)
    with pytest.raises(KnnError, match=rf"1 missing: {re.escape(key)}\."):
        import_embedding_network(training.path, config=training.config)


def test_known_sets_of_labels() -> None:
    """In the order in which wespeaker numbers them."""
    assert len(VOXLINGUA107) == 107 and list(VOXLINGUA107) == sorted(set(VOXLINGUA107))
    assert len(CZECH_DIALECTS) == 13 and list(CZECH_DIALECTS) == sorted(set(CZECH_DIALECTS))
