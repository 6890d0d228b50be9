"""Train the language embedding and its classifier on the trunk's layers, with or without a family of recordings.

    python -m tools.shipped_models.language --work WORK --bundle models/language

Two steps, each small, because the trunk is not trained:

1. MHFA on the trunk's layers, by additive margin softmax over the fifteen languages (Wang et al. 2018, eq. 6).
   Languages are drawn alike; within a language real and synthetic speech, then families, speakers, recordings.
   Synthetic speech gets a learnt offset before the softmax, so that "synthetic" need not hide in the directions of
   languages that have nothing else.
2. A Gaussian linear classifier on the embeddings. What synthetic speech has in common that real speech has not is
   taken off first: the mean difference of the languages that have both (`Backend`).

Given a bundle, MEMBERS networks that hear everything are trained from as many seeds, and their embeddings put side by
side. The classifier is fitted on embeddings of whole recordings, each member's by itself (so that log-likelihoods add
up), and calibrated with the scores that `benchmarks/lid.py` left of families that were left out; likewise the threshold
for languages outside the fifteen.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor, nn

from knn_cli.core.registry import POOLINGS
from knn_cli.evaluation.metrics import detection_llr
from knn_cli.networks import bundle
from knn_cli.networks.network import Network
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.classifier_file import write_classifier
from knn_cli.recognition.glc import GaussianLinearClassifier
from knn_cli.recognition.open_set_threshold import choose_threshold
from tools.shipped_models.augment import augment
from tools.shipped_models.data import EXAM_LANGUAGES, Corpus, Row, read_manifest
from tools.shipped_models.features import ENCODER_ARGS, LIMIT, trunk

Array = NDArray[np.float64]
POOLING_ARGS = {"heads": 16, "compression": 64, "dimension": 192}
LAYERS = ENCODER_ARGS["blocks"] + 1
SCALE, MARGIN = 16.0, 0.1
BATCH, STEPS = 48, 400
SHORTEST, LONGEST = 75, 250  # frames of 40 ms in a crop
SHARE = 0.4  # of crops that are synthetic, where a language has real ones too
FITTED, TESTED, SYNTHETIC_FITTED = 6, 25, 25  # recordings of a speaker and language, and of a synthetic language
SYNTHETIC_WEIGHT, SHRINKAGE = 0.3, 0.1
MEMBERS = 3


class Layers:
    """One set's recordings in one or more copies: (T, L, C) float16 each."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.frames = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in names]
        tables = [np.load(folder / f"{name}.npz") for name in names]
        self.offsets = [table["offsets"] for table in tables]
        self.numbers: list[int] = tables[0]["numbers"].tolist()

    def whole(self, row: int) -> Tensor:
        """The first copy of a recording: (1, T, L, C) float32."""
        start, end = self.offsets[0][row : row + 2]
        return torch.from_numpy(self.frames[0][start:end].astype(np.float32))[None]

    def crop(self, row: int, length: int, rng: np.random.Generator) -> NDArray[np.float16]:
        """`length` frames of any copy, going round where the recording is shorter."""
        copy = int(rng.integers(len(self.frames)))
        start, end = self.offsets[copy][row : row + 2]
        if end - start > length:
            first = start + rng.integers(end - start - length + 1)
            crop: NDArray[np.float16] = self.frames[copy][first : first + length]
            return crop
        crop = self.frames[copy][start + (rng.integers(end - start) + np.arange(length)) % (end - start)]
        return crop


@dataclass(frozen=True, eq=False)
class Material:
    """Real and synthetic speech of the fifteen languages, as the trunk hears it."""

    rows: list[Row]  # of `real`, in its order
    real: Layers
    synthetic: Layers
    others: Layers  # languages outside the fifteen
    spoken: list[str]  # language of each synthetic recording
    strange: list[str]  # language of each of `others`

    @classmethod
    def read(cls, work: Path) -> Material:
        manifest = read_manifest(work / "cache" / "reels.tsv")
        real, synthetic = Layers(work / "feats", "real-0", "real-1"), Layers(work / "feats", "synth-1")
        others = Layers(work / "feats", "other-0")
        spoken = [EXAM_LANGUAGES[number // 1000] for number in synthetic.numbers]
        strange = [manifest[number]["language"] for number in others.numbers]
        return cls([manifest[number] for number in real.numbers], real, synthetic, others, spoken, strange)

    def groups(self, rows: Iterable[int]) -> dict[str, dict[str, dict[str, list[int]]]]:
        """Rows of `real` by language, family and speaker."""
        tree: dict[str, dict[str, dict[str, list[int]]]] = {}
        for row in rows:
            labels = self.rows[row]
            families = tree.setdefault(labels["language"], {})
            families.setdefault(labels["family"], {}).setdefault(labels["speaker"], []).append(row)
        return tree

    def tested(self, family: str) -> list[int]:
        """A family's recordings of 5 seconds or more, up to TESTED of a speaker in a language."""
        long = [n for n, row in enumerate(self.rows) if row["family"] == family and float(row["seconds"]) >= 5]
        return self.some(long, TESTED)

    def some(self, rows: Iterable[int], quota: int) -> list[int]:
        """Up to `quota` of `rows` of a speaker in a language and family."""
        tree = self.groups(rows)
        each = (
            speaker for families in tree.values() for speakers in families.values() for speaker in speakers.values()
        )
        return sorted(row for speaker in each for row in speaker[:quota])

    def labels(self, rows: Iterable[int]) -> list[tuple[str, str, str]]:
        """(language, family, speaker) of recordings."""
        return [(self.rows[n]["language"], self.rows[n]["family"], self.rows[n]["speaker"]) for n in rows]


class Learner(nn.Module):
    """MHFA and, for its training only, a direction a language and the offset of synthetic speech."""

    def __init__(self) -> None:
        super().__init__()
        self.pooling = POOLINGS.build("mhfa", layers=LAYERS, channels=384, **POOLING_ARGS)
        size = POOLING_ARGS["dimension"]
        self.directions = nn.Parameter(torch.randn(len(EXAM_LANGUAGES), size) * 0.1)
        self.synthetic = nn.Parameter(torch.zeros(size))

    def forward(self, layers: Tensor) -> Tensor:
        """(B, T, L, C) -> embeddings (B, E)."""
        embeddings: Tensor = self.pooling(layers.unbind(2))
        return embeddings

    def loss(self, layers: Tensor, languages: Tensor, synthetic: Tensor) -> Tensor:
        """Margin softmax; languages (B,), synthetic (B,) 0 or 1."""
        units = F.normalize(self(layers) + self.synthetic * synthetic[:, None], dim=1)
        cosines = units @ F.normalize(self.directions, dim=1).T
        return F.cross_entropy(SCALE * (cosines - MARGIN * F.one_hot(languages, len(self.directions))), languages)


def train(
    material: Material, heard: Sequence[int], synthetic: bool, seed: int, steps: int, batch: int = BATCH
) -> Learner:
    """A pooling that meets the real recordings `heard`, and synthetic speech or not."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tree = material.groups(heard)
    languages = [each for each in EXAM_LANGUAGES if each in tree or synthetic]
    voices = {each: [n for n, said in enumerate(material.spoken) if said == each] for each in EXAM_LANGUAGES}
    learner = Learner().train()
    rate = 2e-3
    optimizer = torch.optim.AdamW(learner.parameters(), lr=rate, weight_decay=0.05)
    average = {key: value.clone() for key, value in learner.state_dict().items()}
    for step in range(steps):
        length = int(rng.integers(SHORTEST, LONGEST + 1))
        crops, truth, offsets = [], [], []
        for _ in range(batch):
            language = languages[int(rng.integers(len(languages)))]
            made = synthetic and (language not in tree or rng.random() < SHARE)
            if made:
                voice = voices[language][int(rng.integers(len(voices[language])))]
                crops.append(material.synthetic.crop(voice, length, rng))
            else:
                group: object = tree[language]
                while isinstance(group, dict):
                    group = list(group.values())[int(rng.integers(len(group)))]
                assert isinstance(group, list)
                crops.append(material.real.crop(group[int(rng.integers(len(group)))], length, rng))
            truth.append(EXAM_LANGUAGES.index(language))
            offsets.append(float(made))
        share = min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / steps)))
        optimizer.param_groups[0]["lr"] = float(rate * share)
        layers = torch.from_numpy(np.stack(crops)).float()  # (B, T, L, C)
        loss = learner.loss(layers, torch.tensor(truth), torch.tensor(offsets))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learner.parameters(), 2.0)
        optimizer.step()
        decay = min(0.99, step / (step + 10))
        for key, value in learner.state_dict().items():
            average[key].lerp_(value, 1 - decay)
    learner.load_state_dict(average)
    return learner.eval()


def embed(learner: Learner, layers: Layers, rows: Iterable[int], frames: int | None = None) -> Array:
    """(N, E) embeddings of recordings, whole or their first `frames` of 40 ms."""
    with torch.inference_mode():
        return torch.cat([learner(layers.whole(row)[:, :frames]) for row in rows]).double().numpy()


def fit(material: Material, learner: Learner, heard: Sequence[int], synthetic: bool) -> Backend:
    """The classifier behind a pooling, from what the pooling heard."""
    rows = material.some(heard, FITTED)
    real = embed(learner, material.real, rows) if rows else np.zeros((0, POOLING_ARGS["dimension"]))
    made = [n for n, number in enumerate(material.synthetic.numbers) if number % 1000 < SYNTHETIC_FITTED and synthetic]
    other = embed(learner, material.synthetic, made) if made else real[:0]
    return Backend(real, material.labels(rows), other, [material.spoken[n] for n in made])


def weighted(labels: Sequence[tuple[str, str, str]]) -> Array:
    """A weight a recording: within a language its families weigh alike, in them speakers, in them recordings."""
    families: dict[str, set[str]] = {}
    speakers: dict[tuple[str, str], set[str]] = {}
    count: dict[tuple[str, str, str], int] = {}
    for language, family, speaker in labels:
        families.setdefault(language, set()).add(family)
        speakers.setdefault((language, family), set()).add(speaker)
        count[language, family, speaker] = count.get((language, family, speaker), 0) + 1
    return np.array([1 / (len(families[a]) * len(speakers[a, b]) * count[a, b, c]) for a, b, c in labels])


class Backend:
    """Means of the languages and one covariance, from real and synthetic embeddings.

    real, synthetic : embeddings (N, E), (M, E)
    labels          : (language, family, speaker) of the real ones
    spoken          : languages of the synthetic ones

    Synthetic embeddings are moved by the mean, over the languages that have both kinds, of the difference between
    the real and the synthetic mean. Where a language has both, synthetic speech has SYNTHETIC_WEIGHT of its weight.
    """

    def __init__(
        self, real: Array, labels: Sequence[tuple[str, str, str]], synthetic: Array, spoken: Sequence[str]
    ) -> None:
        named, said = np.array([label[0] for label in labels], dtype=str), np.array(spoken, dtype=str)
        weights = weighted(labels)
        parts, languages, shares = [real], [named], [weights]
        if len(synthetic):
            both = sorted(set(named) & set(said))
            if both:
                gaps = [
                    np.average(real[named == each], axis=0, weights=weights[named == each])
                    - synthetic[said == each].mean(0)
                    for each in both
                ]
                synthetic = synthetic + np.mean(gaps, axis=0)
            alone = ~np.isin(said, both)
            each_share = np.array([1 / np.sum(said == each) for each in said])
            parts.append(synthetic)
            languages.append(said)
            shares = [
                weights * np.where(np.isin(named, both), 1 - SYNTHETIC_WEIGHT, 1.0),
                each_share * np.where(alone, 1.0, SYNTHETIC_WEIGHT),
            ]
        x, y, w = np.concatenate(parts), np.concatenate(languages), np.concatenate(shares)
        self.classes = sorted(set(y.tolist()))
        self.counts = np.array([int(np.sum(y == each)) for each in self.classes])
        self.means = np.stack([np.average(x[y == each], axis=0, weights=w[y == each]) for each in self.classes])
        rest = x - self.means[[self.classes.index(each) for each in y]]
        scatter = (rest * w[:, None]).T @ rest / w.sum()
        size = len(scatter)
        self.covariance = (1 - SHRINKAGE) * scatter + SHRINKAGE * np.trace(scatter) / size * np.eye(size)

    def scores(self, x: Array) -> Array:
        """(N, 15) log-likelihoods up to a constant a row, a very small one for languages that the back end lacks."""
        found = side_by_side([self]).log_likelihood(x)
        result = np.full((len(x), len(EXAM_LANGUAGES)), found.min() - 1e3)
        result[:, [EXAM_LANGUAGES.index(each) for each in self.classes]] = found
        return result


def side_by_side(backends: Sequence[Backend]) -> GaussianLinearClassifier:
    """One classifier of embeddings that stand side by side, as if independent: its log-likelihoods are the sums."""
    first = backends[0]
    if any(each.classes != first.classes for each in backends):
        raise ValueError("back ends of several sets of classes")
    return GaussianLinearClassifier.restored(
        classes=np.array(first.classes),
        counts=first.counts,
        means=np.hstack([each.means for each in backends]),
        covariance=block_diag(*(each.covariance for each in backends)),
        priors=np.full(len(first.classes), 1 / len(first.classes)),
        balanced=True,
        shrinkage=SHRINKAGE,
    )


def calibrate(scores: Array, truth: Sequence[str], families: Sequence[str]) -> Calibration:
    """One scale for all languages by cross-entropy, every language of every family weighing alike; no offsets.

    Offsets a language are left at zero: a language has one or two voices in a family, and offsets learnt there were
    wrong on every other family.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, key in enumerate(zip(families, truth, strict=True)):
        groups.setdefault(key, []).append(number)
    columns = np.array([EXAM_LANGUAGES.index(each) for each in truth])

    def loss(log_scale: float) -> float:
        logs = log_softmax(np.exp(log_scale) * scores, axis=1)[np.arange(len(columns)), columns]
        return -float(np.mean([logs[rows].mean() for rows in groups.values()]))

    found = minimize_scalar(loss, bounds=(-8.0, 2.0), method="bounded")
    return Calibration(float(np.exp(found.x)), np.zeros(len(EXAM_LANGUAGES)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=Path("models/language"))
    parser.add_argument("--card", type=Path, default=Path("tools/shipped_models/card-language.md"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    material = Material.read(args.work)
    everything = range(len(material.rows))
    members = [train(material, everything, True, args.seed + n, args.steps).pooling for n in range(MEMBERS)]
    pooling_args = {**POOLING_ARGS, "dimension": MEMBERS * POOLING_ARGS["dimension"], "members": MEMBERS}
    pooling = POOLINGS.build("mhfa-ensemble", layers=LAYERS, channels=384, **pooling_args)
    for own, trained in zip(pooling.members, members, strict=True):
        own.load_state_dict(trained.state_dict(), strict=True)
    network = Network(trunk(args.work), pooling).eval()

    # The classifier sees what the finished network makes of sound: frames of 20 ms, not the averages of the caches.
    noise = Corpus(args.work / "cache", "mel-noise")

    def heard(corpus: Corpus, number: int, seed: int | None) -> Tensor:
        logs = torch.from_numpy(corpus.whole(number, LIMIT).astype(np.float32))[None]
        if seed is not None:
            logs = augment(logs, noise, np.random.default_rng([1, seed]), warp=0.6, plain=0.3)
        with torch.inference_mode():
            embedding: Tensor = network.pooling(network.encoder.encode(logs.exp()))
        return embedding

    fitted = material.some(everything, FITTED)
    recordings = Corpus(args.work / "cache", "mel-real")
    real = torch.cat([heard(recordings, material.real.numbers[row], None) for row in fitted]).double().numpy()
    made = [row for row, number in enumerate(material.synthetic.numbers) if number % 1000 < SYNTHETIC_FITTED]
    parts = []
    for row in made:
        number = material.synthetic.numbers[row]
        corpus = Corpus(args.work / "cache", f"mel-synth-{EXAM_LANGUAGES[number // 1000]}")
        parts.append(heard(corpus, number % 1000, number))
    synthetic = torch.cat(parts).double().numpy()
    spoken = [material.spoken[row] for row in made]
    backends = [
        Backend(ours, material.labels(fitted), theirs, spoken)
        for ours, theirs in zip(np.split(real, MEMBERS, 1), np.split(synthetic, MEMBERS, 1), strict=True)
    ]
    classifier = side_by_side(backends)
    with np.load(args.work / "left-out-scores.npz") as file:
        calibration = calibrate(file["scores"], file["truth"].tolist(), file["families"].tolist())
        known, unknown = (detection_llr(calibration.apply(file[key])).max(axis=1) for key in ("scores", "others"))
    open_set = choose_threshold(known, unknown)
    meta = {
        "label": "group",
        "view": "language",
        "calibrated_on": "families of recordings that neither the pooling nor the classifier had heard",
    }
    config = {
        "name": args.bundle.name,
        "kind": "embedder",
        "audio": {"rate": 16000, "scale": 1.0},
        "encoder": {"name": "whisper", "args": ENCODER_ARGS},
        "pooling": {"name": "mhfa-ensemble", "args": pooling_args},
        "views": {"language": [0, pooling_args["dimension"]]},
        "labels": classifier.classes_.tolist(),
        "training": {"script": "tools/shipped_models/run.sh", "seed": args.seed, "steps": args.steps},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / bundle.CLASSIFIER
        write_classifier(path, CalibratedClassifier(classifier, calibration, meta, open_set=open_set))
        state = {key: value.half() for key, value in network.state_dict().items()}
        written = bundle.write(
            args.bundle, config, state=state, classifier=path, card=args.card.read_text(encoding="utf-8"), force=True
        )
    bundle.load_network(written)  # strict: what was written can be read
    print(json.dumps({"bundle": written.fingerprint, "scale": calibration.scale, "open set": asdict(open_set)}))


if __name__ == "__main__":
    main()
