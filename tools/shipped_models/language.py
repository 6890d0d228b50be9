"""Train the language embedding and its classifier on the layers of the trunk (the pretrained encoder).

    python -m tools.shipped_models.language --work WORK --bundle models/language

There are two small steps, because the trunk is not trained:

1. MHFA on the trunk's layers, by additive margin softmax over the fifteen languages (Wang et al. 2018, eq. 6).
   Languages are drawn uniformly; within a language real or synthetic speech, then family, speaker and recording.
   A learned offset is added to synthetic speech before the softmax, so that "synthetic" is not encoded in the
   directions of languages that have no real speech.
2. A Gaussian linear classifier on the embeddings. Synthetic embeddings are first shifted by the mean difference
   between real and synthetic speech over the languages that have both (`Backend`).

For the bundle, MEMBERS networks are trained on all recordings with different seeds, and their embeddings are
concatenated. The classifier is fitted on embeddings of whole recordings, separately for each member (so that their
log-likelihoods add up). The calibration and the threshold for languages outside the fifteen are fitted on the scores of
left-out families that `benchmarks/lid.py` saved.
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
from tools.shipped_models.data import TARGET_LANGUAGES, Corpus, Row, read_manifest
from tools.shipped_models.features import ENCODER_ARGS, LIMIT, trunk

Array = NDArray[np.float64]
POOLING_ARGS = {"heads": 16, "compression": 64, "dimension": 192}
LAYERS = ENCODER_ARGS["blocks"] + 1
SCALE, MARGIN = 16.0, 0.1
BATCH, STEPS = 48, 400
SHORTEST, LONGEST = 75, 250  # frames of 40 ms in a crop
SHARE = 0.4  # of crops that are synthetic, in a language that also has real ones
FITTED, TESTED, SYNTHETIC_FITTED = 6, 25, 25  # recordings per speaker and language, and per synthetic language
SYNTHETIC_WEIGHT, SHRINKAGE = 0.3, 0.1
MEMBERS = 3


class Layers:
    """Encoder layers of a set of recordings, in one or more augmented copies: (T, L, C) float16 each."""

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
        """`length` frames of a random copy; a shorter recording is repeated cyclically."""
        copy = int(rng.integers(len(self.frames)))
        start, end = self.offsets[copy][row : row + 2]
        if end - start > length:
            first = start + rng.integers(end - start - length + 1)
            crop: NDArray[np.float16] = self.frames[copy][first : first + length]
            return crop
        crop = self.frames[copy][start + (rng.integers(end - start) + np.arange(length)) % (end - start)]
        return crop


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Trunk layers of real and synthetic speech of the fifteen languages, and of other languages."""

    rows: list[Row]  # manifest rows of `real`, in its order
    real: Layers
    synthetic: Layers
    others: Layers  # languages outside the fifteen
    synthetic_languages: list[str]  # language of each synthetic recording
    other_languages: list[str]  # language of each of `others`

    @classmethod
    def read(cls, work: Path) -> TrainingData:
        manifest = read_manifest(work / "cache" / "reels.tsv")
        real, synthetic = Layers(work / "feats", "real-0", "real-1"), Layers(work / "feats", "synth-1")
        others = Layers(work / "feats", "other-0")
        synthetic_languages = [TARGET_LANGUAGES[number // 1000] for number in synthetic.numbers]
        other_languages = [manifest[number]["language"] for number in others.numbers]
        return cls(
            [manifest[number] for number in real.numbers], real, synthetic, others, synthetic_languages, other_languages
        )

    def groups(self, rows: Iterable[int]) -> dict[str, dict[str, dict[str, list[int]]]]:
        """Rows of `real` by language, family and speaker."""
        tree: dict[str, dict[str, dict[str, list[int]]]] = {}
        for row in rows:
            labels = self.rows[row]
            families = tree.setdefault(labels["language"], {})
            families.setdefault(labels["family"], {}).setdefault(labels["speaker"], []).append(row)
        return tree

    def tested(self, family: str) -> list[int]:
        """A family's recordings of 5 seconds or more, up to TESTED per speaker and language."""
        long = [n for n, row in enumerate(self.rows) if row["family"] == family and float(row["seconds"]) >= 5]
        return self.some(long, TESTED)

    def some(self, rows: Iterable[int], quota: int) -> list[int]:
        """Up to `quota` of `rows` per speaker, language and family."""
        tree = self.groups(rows)
        speakers_rows = (
            speaker for families in tree.values() for speakers in families.values() for speaker in speakers.values()
        )
        return sorted(row for speaker in speakers_rows for row in speaker[:quota])

    def labels(self, rows: Iterable[int]) -> list[tuple[str, str, str]]:
        """(language, family, speaker) of recordings."""
        return [(self.rows[n]["language"], self.rows[n]["family"], self.rows[n]["speaker"]) for n in rows]


class Learner(nn.Module):
    """MHFA and, for training only, a direction per language and the offset of synthetic speech."""

    def __init__(self) -> None:
        super().__init__()
        self.pooling = POOLINGS.build("mhfa", layers=LAYERS, channels=384, **POOLING_ARGS)
        size = POOLING_ARGS["dimension"]
        self.directions = nn.Parameter(torch.randn(len(TARGET_LANGUAGES), size) * 0.1)
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
    data: TrainingData, training_rows: Sequence[int], synthetic: bool, seed: int, steps: int, batch: int = BATCH
) -> Learner:
    """Train a pooling on the real recordings `training_rows`, with or without synthetic speech."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tree = data.groups(training_rows)
    languages = [each for each in TARGET_LANGUAGES if each in tree or synthetic]
    synthetic_rows = {
        each: [n for n, language in enumerate(data.synthetic_languages) if language == each]
        for each in TARGET_LANGUAGES
    }
    learner = Learner().train()
    rate = 2e-3
    optimizer = torch.optim.AdamW(learner.parameters(), lr=rate, weight_decay=0.05)
    average = {key: value.clone() for key, value in learner.state_dict().items()}
    for step in range(steps):
        length = int(rng.integers(SHORTEST, LONGEST + 1))
        crops, truth, offsets = [], [], []
        for _ in range(batch):
            language = languages[int(rng.integers(len(languages)))]
            is_synthetic = synthetic and (language not in tree or rng.random() < SHARE)
            if is_synthetic:
                row = synthetic_rows[language][int(rng.integers(len(synthetic_rows[language])))]
                crops.append(data.synthetic.crop(row, length, rng))
            else:
                group: object = tree[language]
                while isinstance(group, dict):
                    group = list(group.values())[int(rng.integers(len(group)))]
                assert isinstance(group, list)
                crops.append(data.real.crop(group[int(rng.integers(len(group)))], length, rng))
            truth.append(TARGET_LANGUAGES.index(language))
            offsets.append(float(is_synthetic))
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


def fit(data: TrainingData, learner: Learner, training_rows: Sequence[int], synthetic: bool) -> Backend:
    """Fit the classifier behind a pooling on the training data of the pooling."""
    rows = data.some(training_rows, FITTED)
    real = embed(learner, data.real, rows) if rows else np.zeros((0, POOLING_ARGS["dimension"]))
    selected = [n for n, number in enumerate(data.synthetic.numbers) if number % 1000 < SYNTHETIC_FITTED and synthetic]
    other = embed(learner, data.synthetic, selected) if selected else real[:0]
    return Backend(real, data.labels(rows), other, [data.synthetic_languages[n] for n in selected])


def recording_weights(labels: Sequence[tuple[str, str, str]]) -> Array:
    """Weights of recordings: equal for families of a language, speakers of a family, recordings of a speaker."""
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
    labels          : (language, family, speaker) of the real embeddings
    spoken          : languages of the synthetic embeddings

    Synthetic embeddings are shifted by the difference between the real and the synthetic mean, averaged over the
    languages that have both kinds. In such languages, synthetic speech has SYNTHETIC_WEIGHT of the total weight.
    """

    def __init__(
        self, real: Array, labels: Sequence[tuple[str, str, str]], synthetic: Array, spoken: Sequence[str]
    ) -> None:
        real_languages = np.array([label[0] for label in labels], dtype=str)
        synthetic_languages = np.array(spoken, dtype=str)
        weights = recording_weights(labels)
        parts, languages, shares = [real], [real_languages], [weights]
        if len(synthetic):
            both = sorted(set(real_languages) & set(synthetic_languages))
            if both:
                gaps = [
                    np.average(real[real_languages == each], axis=0, weights=weights[real_languages == each])
                    - synthetic[synthetic_languages == each].mean(0)
                    for each in both
                ]
                synthetic = synthetic + np.mean(gaps, axis=0)
            alone = ~np.isin(synthetic_languages, both)
            each_share = np.array([1 / np.sum(synthetic_languages == each) for each in synthetic_languages])
            parts.append(synthetic)
            languages.append(synthetic_languages)
            shares = [
                weights * np.where(np.isin(real_languages, both), 1 - SYNTHETIC_WEIGHT, 1.0),
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
        """(N, 15) log-likelihoods up to a constant per row, very low for languages that the back end lacks."""
        known = concatenated([self]).log_likelihood(x)
        result = np.full((len(x), len(TARGET_LANGUAGES)), known.min() - 1e3)
        result[:, [TARGET_LANGUAGES.index(each) for each in self.classes]] = known
        return result


def concatenated(backends: Sequence[Backend]) -> GaussianLinearClassifier:
    """A classifier of concatenated embeddings, taken as independent: log-likelihoods are the sums of the members'."""
    first = backends[0]
    if any(each.classes != first.classes for each in backends):
        raise ValueError("back ends with different sets of classes")
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
    """Fit one scale for all languages by cross-entropy, with equal weight for every language of every family.

    Offsets per language stay at zero: a language has one or two speakers in a family, and offsets that were fitted
    on them were wrong for every other family.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, key in enumerate(zip(families, truth, strict=True)):
        groups.setdefault(key, []).append(number)
    columns = np.array([TARGET_LANGUAGES.index(each) for each in truth])

    def loss(log_scale: float) -> float:
        logs = log_softmax(np.exp(log_scale) * scores, axis=1)[np.arange(len(columns)), columns]
        return -float(np.mean([logs[rows].mean() for rows in groups.values()]))

    minimum = minimize_scalar(loss, bounds=(-8.0, 2.0), method="bounded")
    return Calibration(float(np.exp(minimum.x)), np.zeros(len(TARGET_LANGUAGES)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=Path("models/language"))
    parser.add_argument("--card", type=Path, default=Path("tools/shipped_models/card-language.md"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = TrainingData.read(args.work)
    everything = range(len(data.rows))
    members = [train(data, everything, True, args.seed + n, args.steps).pooling for n in range(MEMBERS)]
    pooling_args = {**POOLING_ARGS, "dimension": MEMBERS * POOLING_ARGS["dimension"], "members": MEMBERS}
    pooling = POOLINGS.build("mhfa-ensemble", layers=LAYERS, channels=384, **pooling_args)
    for member, trained in zip(pooling.members, members, strict=True):
        member.load_state_dict(trained.state_dict(), strict=True)
    network = Network(trunk(args.work), pooling).eval()

    # The classifier is fitted on embeddings of the finished network: frames of 20 ms, not the averages in the caches.
    noise = Corpus(args.work / "cache", "mel-noise")

    def embed_recording(corpus: Corpus, number: int, seed: int | None) -> Tensor:
        logs = torch.from_numpy(corpus.whole(number, LIMIT).astype(np.float32))[None]
        if seed is not None:
            logs = augment(logs, noise, np.random.default_rng([1, seed]), warp=0.6, plain=0.3)
        with torch.inference_mode():
            embedding: Tensor = network.pooling(network.encoder.encode(logs.exp()))
        return embedding

    fitted = data.some(everything, FITTED)
    recordings = Corpus(args.work / "cache", "mel-real")
    real = torch.cat([embed_recording(recordings, data.real.numbers[row], None) for row in fitted]).double().numpy()
    selected = [row for row, number in enumerate(data.synthetic.numbers) if number % 1000 < SYNTHETIC_FITTED]
    parts = []
    for row in selected:
        number = data.synthetic.numbers[row]
        corpus = Corpus(args.work / "cache", f"mel-synth-{TARGET_LANGUAGES[number // 1000]}")
        parts.append(embed_recording(corpus, number % 1000, number))
    synthetic = torch.cat(parts).double().numpy()
    synthetic_languages = [data.synthetic_languages[row] for row in selected]
    backends = [
        Backend(real_part, data.labels(fitted), synthetic_part, synthetic_languages)
        for real_part, synthetic_part in zip(np.split(real, MEMBERS, 1), np.split(synthetic, MEMBERS, 1), strict=True)
    ]
    classifier = concatenated(backends)
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
    bundle.load_network(written)  # checks that the bundle loads
    print(json.dumps({"bundle": written.fingerprint, "scale": calibration.scale, "open set": asdict(open_set)}))


if __name__ == "__main__":
    main()
