"""Speaker trials on embedding stores: the scores of a list of trials, and how good they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import Doubles, EmbeddingSet
from knn_cli.evaluation.verification_metrics import VerificationMetrics, verification_metrics
from knn_cli.networks import bundle
from knn_cli.recognition.classifier import ROWS_AT_ONCE, Classifier
from knn_cli.recognition.plda import PLDA
from knn_cli.recognition.speaker_decision import Clips, SpeakerDecision, calibrate, read_decision
from knn_cli.recognition.trials import Trials
from knn_cli.recognition.verification import MeanEmbeddings, mean_embeddings, score_trials
from knn_cli.store.hdf5 import Store

_UNDECIDED = "a model of speakers or a cohort makes other scores, for which no threshold was measured"
Scorer = Literal["auto", "cosine", "plda"]


@dataclass(frozen=True, eq=False)
class VerificationResult:
    """Scored trials.

    Attributes
    ----------
    scores : (T,) float64 array
        In the order of the trials; log-likelihood ratios (natural logarithm) of a PLDA, else cosines.
    metrics : VerificationMetrics or None
        None where the trials have no keys.
    scorer : {"cosine", "PLDA"}
        What scored them.
    decision : SpeakerDecision or None
        What the scores mean; None where they cannot be judged.
    undecided : str
        Why not, in words.
    """

    scores: Doubles
    metrics: VerificationMetrics | None
    scorer: str
    decision: SpeakerDecision | None = None
    undecided: str = ""


def verify_trials(
    sources: Sequence[Path],
    trials: Trials,
    model: str | Path | None = None,
    *,
    scorer: Scorer = "auto",
    cohort: Path | None = None,
    as_norm: int | None = None,
    speakers: Path | None = None,
) -> VerificationResult:
    """Score a list of speaker trials, and decide on cosines whose model says what they mean.

    Parameters
    ----------
    sources : sequence of Path
        Embedding stores that hold the recordings.
    trials : Trials
        Pairs of recordings.
    model : str or Path, optional
        A bundle that was trained at the level speaker, whose transforms and PLDA are used. None: cosines of the
        embeddings as they are.
    scorer : {"auto", "cosine", "plda"}
        "auto" is the PLDA where the model has one.
    cohort : Path, optional
        Embedding store of other speakers, whose mean is subtracted.
    as_norm : int, optional
        Normalise by so many of the best scores against the cohort's speakers (recordings, where it names no speakers).
    speakers : Path, optional
        Embedding store of speakers on whose rows the threshold is calibrated.

    Raises
    ------
    KnnError
        `speakers` are given and scores are no plain cosines; a PLDA is asked for and there is none; and as
        `score_trials`.
    """
    if speakers is not None and (model is not None or cohort is not None):
        raise KnnError("Only cosines of embeddings as they are can be calibrated.", "Leave out model and cohort.")
    transform, plda = (None, None) if model is None else _speaker_model(model, sources, scorer)
    if scorer == "plda" and plda is None:
        raise KnnError(
            f"The model {model} has no PLDA." if model else "A PLDA comes with a model.",
            "Train a model at the level speaker, with several recordings of each speaker, and name it as `model`.",
        )
    recordings, others = mean_embeddings(_blocks(sources)), None if cohort is None else _cohort(cohort)
    scores = score_trials(
        trials,
        recordings,
        plda=plda,
        transform=transform,
        cohort=others,
        subtract_mean=others is not None,
        as_norm_top_n=as_norm,
    )
    metrics = None
    if trials.is_target is not None:
        metrics = verification_metrics(scores, trials.is_target, llr=plda is not None and as_norm is None)
    plain = transform is None and others is None
    decision, undecided = _decision(recordings, speakers) if plain else (None, _UNDECIDED)
    return VerificationResult(scores, metrics, "cosine" if plda is None else "PLDA", decision, undecided)


def _cohort(path: Path) -> MeanEmbeddings:
    """Means of the cohort's speakers, of its recordings where it names no speakers."""
    with Store(path) as store:
        named = store.encoded("speaker").values.tolist() != [""]
    return mean_embeddings(_blocks([path]), "speaker" if named else "name")


def _decision(recordings: MeanEmbeddings, speakers: Path | None) -> tuple[SpeakerDecision | None, str]:
    """The decision on cosines of these embeddings, calibrated on speakers if there are some; or why there is none."""
    try:
        embedder = bundle.find_embedder(recordings.embedder)
    except BundleError:
        return None, f"the model {recordings.embedder or 'of these embeddings'} is not here"
    decision, view = read_decision(embedder), embedder.view("speaker")
    if not decision.can_be_calibrated:
        return None, decision.source
    if view.indices(recordings.data.shape[1])[:2] != (0, recordings.data.shape[1]):
        return None, "these are cosines of whole embeddings, of which only a part represents speakers"
    if speakers is None:
        return decision, ""
    clips = Clips()
    with Store(speakers, "embeddings") as store:
        bundle.check_embedder(store.embedder, embedder.fingerprint, str(speakers))
    for block in _blocks([speakers]):
        clips.add(block, view)
    return calibrate(decision, clips), ""


def _speaker_model(
    model: str | Path, sources: Sequence[Path], scorer: Scorer
) -> tuple[Callable[[Doubles], Doubles], PLDA | None]:
    """What is done to embeddings first, and the PLDA; BundleError for embeddings of another model."""
    classifier = Classifier(model)
    for source in sources:
        with Store(source, "embeddings") as store:
            bundle.check_embedder(store.embedder, classifier.bundle.fingerprint, str(source))
    trained = classifier.trained
    return classifier.transform, trained.plda if trained is not None and scorer != "cosine" else None


def _blocks(sources: Sequence[Path]) -> Iterator[EmbeddingSet]:
    for source in sources:
        with Store(source, "embeddings") as store:
            yield from store.blocks(ROWS_AT_ONCE)
