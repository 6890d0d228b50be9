"""A folder laid out as KNN-proj and its fork of wespeaker leave it, with networks of random weights and small data.

What the commands of docs/from-knn-proj.md should give is computed here by the ancestor's formulas, in numpy.
"""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import soundfile
import torch
import yaml
from numpy.typing import NDArray
from torch.nn import functional as F

from knn_cli.networks.importers.wespeaker_heads import CZECH_DIALECTS
from knn_cli.store import kaldi
from tests.helpers import corpora
from tests.helpers.corpora import PIECES, RATE
from tests.networks.importers.test_speaker import Training
from tests.networks.importers.test_wavlm import microsoft_checkpoint

Matrix = NDArray[np.float64]

GERMAN = ("5", "7")  # places in the borderland, which its scripts ignore
TURNS = ("0.2,6.0,SPEAKER_00", "1.0,2.5,SPEAKER_01", "13.5,20.0,SPEAKER_00")
UNWANTED = ("1.0,2.5,SPEAKER_01", "4.0,4.5,OVERLAPPED")


@dataclass
class Ancestor:
    """The folder, and what is in its files.

    Attributes
    ----------
    root : Path
    training : Training
        Of exp/NAKI-WavLM: its network and head.
    ecapa : (N, 8) float64 array
        Rows of exp/ecapa/embeddings.h5.
    names, dialects : list of N str
        Their recordings and subgroups.
    """

    root: Path
    training: Training
    ecapa: Matrix
    names: list[str]
    dialects: list[str]

    @torch.no_grad()
    def embeddings(self) -> NDArray[np.float32]:
        """(6, 6) what `extract_V2.py` gives of the pieces, in their order."""
        clips = torch.from_numpy(np.stack([corpora.sound(key) for key in PIECES])) * 32768
        out = self.training.base(clips, output_hidden_states=True)
        layers = [*out.hidden_states[:-1], out.last_hidden_state]
        return np.asarray(self.training.pooling(layers).numpy())

    def scores(self) -> NDArray[np.float32]:
        """(6, 13) what `evaluate_V2.py` gives of the pieces: the outputs of the softmax projection."""
        head = self.training.head
        mean, variance, scale, shift = (
            head[f"trans.0.{key}"].numpy() for key in ("running_mean", "running_var", "weight", "bias")
        )
        hidden = np.maximum((self.embeddings() - mean) / np.sqrt(variance + 1e-5) * scale + shift, 0)
        return np.asarray(hidden @ head["trans.2.weight"].numpy().T + head["trans.2.bias"].numpy())


def lay(root: Path, meeting: Path) -> Ancestor:
    """Write everything; `meeting` is a recording of several speakers, 18 s of which are used."""
    _data(root)
    training = _experiment(root)
    rows, names, dialects = _ecapa(root)
    ancestor = Ancestor(root, training, rows, names, dialects)
    _extracted(ancestor)
    _recordings(root, meeting)
    return ancestor


def _data(root: Path) -> None:
    """data/naki with wav.scp, utt2spk, raw.list, shards and a list of speech by file names."""
    data = root / "data" / "naki"
    data.mkdir(parents=True)
    corpora.kaldi(data)
    (data / "reco2dur").unlink()
    lines: dict[str, list[str]] = {}
    for key, (_, dialect) in PIECES.items():
        lines.setdefault(dialect, []).append(key)
    (data / "spk2utt").write_text("".join(f"{dialect} {' '.join(keys)}\n" for dialect, keys in lines.items()))
    corpora.raw_list(data)
    corpora.shard_list(data)
    (data / "shards").mkdir()
    for shard in sorted(data.glob("*.tar")):
        shutil.move(shard, data / "shards" / shard.name)
    shards = sorted(path.name for path in (data / "shards").iterdir())
    (data / "shard.list").write_text("".join(f"data/naki/shards/{name}\n" for name in shards))
    files = [key.rsplit("/", 1)[1] for key in PIECES]
    (data / "vad").write_text("".join(f"{name} 0.5 1.5\n{name} 2 2.75\n" for name in files))


def _experiment(root: Path) -> Training:
    """exp/NAKI-WavLM with config.yaml and checkpoints, the pretrained network, and conf/naki.yaml."""
    folder = root / "exp" / "NAKI-WavLM"
    (folder / "models").mkdir(parents=True)
    training = Training(folder, "softmax")
    for number, factor in ((19, 1.25), (20, 0.75)):  # their mean is avg_model.pt
        state = {key: value * factor if value.is_floating_point() else value for key, value in training.state.items()}
        torch.save(state, folder / "models" / f"model_{number}.pt")
    training.path.rename(folder / "models" / "avg_model.pt")
    pretrained = root / "data" / "models" / "pretrained" / "WavLM-Base+.pt"
    pretrained.parent.mkdir(parents=True)
    torch.save(microsoft_checkpoint(training.base, "base"), pretrained)
    (root / "conf").mkdir()
    (root / "conf" / "naki.yaml").write_text(yaml.safe_dump(_settings()))
    return training


def _settings() -> dict[str, Any]:
    """As conf/wavlm_base_MHFA_LR_softmax_20_naki.yaml, with fewer epochs, shorter crops and a smaller network."""
    return {
        "exp_dir": "exp/NAKI-WavLM",
        "gpus": "[0]",
        "num_avg": 2,
        "enable_amp": False,
        "seed": 42,
        "num_epochs": 2,
        "save_epoch_interval": 1,
        "log_batch_interval": 1,
        "dataloader_args": {"batch_size": 3, "num_workers": 0, "drop_last": True},
        "dataset_args": {
            "sample_num_per_epoch": 0,
            "filter": True,
            "filter_args": {"min_num_frames": 100, "max_num_frames": 800},
            "resample_rate": RATE,
            "speed_perturb": False,
            "num_frms": 100,
            "aug_prob": 0.6,
            "raw_wav": True,
            "spec_aug": False,
        },
        "model": "WavLM_Base_MHFA",
        "model_init": None,
        "model_args": {
            "model_path": "data/models/pretrained/WavLM-Base+.pt",
            "head_nb": 4,
            "embed_dim": 6,
            "pooling": "MHFA",
            "group": 1,
        },
        "projection_args": {"project_type": "softmax"},
        "margin_scheduler": "MarginScheduler",
        "margin_update": {"initial_margin": 0.0, "final_margin": 0.0, "update_margin": True, "increase_type": "exp"},
        "loss": "CrossEntropyLoss",
        "loss_args": {},
        "optimizer": "SGD",
        "optimizer_args": {"momentum": 0.9, "nesterov": True, "weight_decay": 1.0e-6},
        "scheduler": "ExponentialDecrease",
        "scheduler_args": {"initial_lr": 1.0e-2, "final_lr": 4.4e-3, "warm_up_epoch": 1, "warm_from_zero": True},
    }


def _ecapa(root: Path) -> tuple[Matrix, list[str], list[str]]:
    """exp/ecapa: embeddings.h5 of `h5_convert.py`, two .i.gz files, and a classifier that was saved."""
    folder = root / "exp" / "ecapa"
    (folder / "gz" / "1-1").mkdir(parents=True)
    random = np.random.default_rng(0)
    labels = [*CZECH_DIALECTS, *GERMAN]
    means = random.normal(size=(len(labels), 8)) * 1.2
    rows, names, dialects = [], [], []
    for mean, label in zip(means, labels, strict=True):
        for recording in range(32):
            for _ in range(int(random.integers(2, 7))):
                rows.append(mean + random.normal(size=8))
                names.append(f"{label}_{recording:02d}-Obec")
                dialects.append(label)
    _legacy(folder / "embeddings.h5", np.stack(rows), names, dialects)
    for piece in range(2):
        text = " ".join(map(str, rows[piece])).encode()
        (folder / "gz" / "1-1" / f"10_A_SPLIT_{piece:03d}.i.gz").write_bytes(gzip.compress(text))
    with h5py.File(folder / "glc.h5", "w") as file:  # as GLC.save
        file["WC"], file["means"] = np.eye(8), means[: len(CZECH_DIALECTS)].T
        file["classes"] = np.array([label.encode() for label in CZECH_DIALECTS])
    return np.stack(rows), names, dialects


def _legacy(path: Path, data: NDArray[Any], names: list[str], dialects: list[str]) -> None:
    """The HDF5 of `h5_convert.py` and `scp2h5.py`: bytes in columns, in chunks that can grow."""
    with h5py.File(path, "w") as file:
        file.create_dataset("Data", data=data, compression="gzip", chunks=True, maxshape=(None, data.shape[1]))
        columns = {"Name": names, "GroupID": [label[0] for label in dialects], "SubgroupID": dialects}
        for name, texts in columns.items():
            values = np.array([[text.encode()] for text in texts])
            file.create_dataset(name, data=values, compression="gzip", chunks=True, maxshape=(None, 1))


def _extracted(ancestor: Ancestor) -> None:
    """exp/NAKI-WavLM/embeddings/NAKI/avg_model: xvector.scp, scores.scp, their archives, and both as HDF5."""
    folder = ancestor.root / "exp" / "NAKI-WavLM" / "embeddings" / "NAKI" / "avg_model"
    folder.mkdir(parents=True)
    names, dialects = map(list, zip(*PIECES.values(), strict=True))
    chunks = [f"{key}_000" for key in PIECES]  # `utt_chunk` numbers what it cuts
    for name, keys, rows in (("xvector", [*PIECES], ancestor.embeddings()), ("scores", chunks, ancestor.scores())):
        with (folder / f"{name}_000.ark").open("wb") as file:
            offsets = kaldi.write_ark(file, keys, rows)
        places = [f"{folder}/{name}_000.ark:{offset}" for offset in offsets]
        (folder / f"{name}.scp").write_text(
            "".join(f"{key} {place}\n" for key, place in zip(keys, places, strict=True))
        )
        _legacy(folder / f"{name}.h5", rows, names, dialects)


def _recordings(root: Path, meeting: Path) -> None:
    """recordings/1-1/10_A.wav with 3 s of silence, and labels/1-1 as `diarization.py` writes them."""
    sound, rate = soundfile.read(meeting, frames=18 * RATE)
    (root / "recordings" / "1-1").mkdir(parents=True)
    (root / "labels" / "1-1").mkdir(parents=True)
    sound = np.concatenate([sound[: 10 * rate], np.zeros(3 * rate), sound[10 * rate :]])
    soundfile.write(root / "recordings" / "1-1" / "10_A.wav", sound, rate)
    for name, lines in (("10_A", TURNS), ("10_A_unwanted", UNWANTED)):
        (root / "labels" / "1-1" / f"{name}.csv").write_text("\n".join(["Start [s],End [s],Speaker", *lines]) + "\n")


def softmax(scores: NDArray[Any]) -> Matrix:
    """(N, C) probabilities of log-likelihoods at equal priors."""
    return np.asarray(F.softmax(torch.from_numpy(np.asarray(scores, dtype=np.float64)), dim=1).numpy())


def log_likelihoods(train: Matrix, labels: list[str], test: Matrix) -> Matrix:
    """(N, C) of the ancestor's GLC: covariance within classes over all rows, without shrinkage."""
    classes = sorted(set(labels))
    truth = np.array([classes.index(label) for label in labels])
    means = np.stack([train[truth == place].mean(axis=0) for place in range(len(classes))])
    residuals = train - means[truth]
    precision = np.linalg.inv(residuals.T @ residuals / len(train))
    difference = test[:, None] - means[None]
    return np.asarray(-0.5 * np.einsum("ncd,de,nce->nc", difference, precision, difference))


def costs(scores: Matrix, truth: NDArray[np.int64]) -> dict[str, float]:
    """What `report_avg_cdet_mincdet_eer` gives at the targets 0.5 and 0.1, and `glc.py` makes of it."""
    size = scores.shape[1]
    hits = np.eye(size)[truth]
    counts = hits.sum(axis=0)
    actual, least = {0.5: 0.0, 0.1: 0.0}, {0.5: 0.0, 0.1: 0.0}
    for label in range(size):
        others = np.delete(scores, label, axis=1)
        top = others.max(axis=1)
        ratio = scores[:, label] - top - np.log(np.exp(others - top[:, None]).mean(axis=1))
        weights = np.full(size, 1 / (size - 1))
        weights[label] = 0
        curve = np.vstack([np.zeros(size), hits[np.argsort(-ratio)].cumsum(axis=0)]) / counts
        for target in actual:
            passed = hits[ratio > np.log((1 - target) / target)].sum(axis=0) / counts
            actual[target] += (weights @ passed * (1 - target) + (1 - passed[label]) * target) / size
            least[target] += (curve @ weights * (1 - target) + (1 - curve[:, label]) * target).min() / size
    return {
        "accuracy": float((scores.argmax(axis=1) == truth).mean()),
        "cprimary": 5 * actual[0.1] + actual[0.5],
        "min_cprimary_by_label": 5 * least[0.1] + least[0.5],
    }


def answers(text: str) -> list[dict[str, Any]]:
    """The objects of JSON lines."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
