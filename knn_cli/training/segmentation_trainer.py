"""Training of a segmentation network on recordings with reference turns: `Trainer`'s loop with windows of turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from knn_cli.core.errors import KnnError
from knn_cli.core.locks import locked
from knn_cli.core.registry import SEGMENTERS
from knn_cli.core.values import Progress
from knn_cli.evaluation.diarization_error import DiarizationError
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.networks.construction import built
from knn_cli.networks.contracts import WaveformSegmenter
from knn_cli.networks.segmenters.permutation_loss import divergence, permutation_invariant_loss
from knn_cli.networks.segmenters.powerset import to_multilabel
from knn_cli.training.checkpoints import check_free
from knn_cli.training.distributed import process_group
from knn_cli.training.model_card import plain_recipe
from knn_cli.training.segmentation_data import (
    TurnCorpus,
    WindowDataset,
    active_speakers,
    frame_times,
    split_recordings,
)
from knn_cli.training.segmentation_recipe import SegmentationRecipe
from knn_cli.training.trainer import Report, Trainer
from knn_cli.training.validation import EpochResult

__all__ = ["SegmentationTraining", "train_segmentation"]


class NoEncoder(nn.Module):
    """Stands where other networks have an encoder: it has no weights and no blocks."""

    norm_after_blocks = False

    def block_list(self) -> list[nn.Module]:
        """No blocks."""
        return []


class SegmentationLoss(nn.Module):
    """The loss of (B, T, C) log-probabilities, in the place of a head.

    With `divergence`, log-probabilities (B, T, 2 C) are those of the network and of the one that it began with.
    """

    has_margin, margin, class_weights = False, 0.0, None

    def __init__(self, speakers: int, most: int, weight: float) -> None:
        super().__init__()
        self.speakers, self.most, self.weight = speakers, most, weight

    def loss(self, log_probabilities: Tensor, classes: Tensor) -> Tensor:
        """The powerset cross-entropy, and the weighted divergence."""
        if not self.weight:
            return permutation_invariant_loss(log_probabilities, classes, self.speakers, self.most)
        own, original = log_probabilities.chunk(2, dim=-1)
        entropy = permutation_invariant_loss(own, classes, self.speakers, self.most)
        return entropy + self.weight * divergence(own, original)


class SegmentationModel(nn.Module):
    """A segmentation network as the trainer sees one: an encoder without weights, the network, and its loss."""

    def __init__(self, segmenter: WaveformSegmenter, original: WaveformSegmenter | None, weight: float) -> None:
        super().__init__()
        self.encoder, self.segmenter = NoEncoder(), segmenter
        self.head = SegmentationLoss(segmenter.speakers, segmenter.most, weight)
        self._original = [original] if original is not None and weight else []  # no part of the state

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, S) waveforms -> (B, T, C) log-probabilities, or (B, T, 2 C), see `SegmentationLoss`."""
        own = self.segmenter(waveforms)
        if not self._original or not self.training:
            return own
        with torch.no_grad():
            original = self._original[0].to(waveforms.device)(waveforms)
        return torch.cat([own, original], dim=-1)


class SegmentationBuilder:
    """Builds the segmentation network of a recipe.

    Raises
    ------
    KnnError
        For a model that is missing or takes the layers of an encoder, and for impossible arguments.
    """

    def __init__(self, recipe: SegmentationRecipe) -> None:
        self.recipe = recipe
        self.origin: Bundle | None = bundle.find(recipe.init.model, segmenter=True) if recipe.init.model else None
        self.scale = recipe.scale if self.origin is None else self.origin.scale
        network = self._network()
        if not isinstance(network, WaveformSegmenter):
            raise KnnError("This segmentation network takes an encoder's layers.", "Only pyannet can be trained.")
        self.rate: int = getattr(network, "rate", 16000)

    @property
    def component(self) -> dict[str, Any]:
        """Name and arguments of the network."""
        if self.origin is not None:
            return dict(self.origin.config[bundle.SEGMENTER])
        return {"name": self.recipe.segmenter.name, "args": self.recipe.segmenter.args}

    def model(self) -> SegmentationModel:
        """The network with its first weights, drawn with the recipe's seed or those of the bundle."""
        torch.manual_seed(self.recipe.seed)
        original = None if self.origin is None else cast(WaveformSegmenter, self._network().eval())
        return SegmentationModel(
            cast(WaveformSegmenter, self._network()), original, self.recipe.segmentation.divergence
        )

    def _network(self) -> nn.Module:
        if self.origin is not None:
            return bundle.load_segmenter(self.origin)
        component = self.component
        network: nn.Module = built(SEGMENTERS, component["name"], component["args"], source="[segmenter]")
        return network


@dataclass(frozen=True)
class SegmentationEpoch(EpochResult):
    """The result of an epoch; `accuracy` is 1 - the local diarization error rate of held-out recordings."""

    @property
    def line(self) -> str:
        """The same as a line of text."""
        if math.isnan(self.accuracy):
            return super().line
        return f"Epoch {self.number}: loss {self.loss:.4f}, held-out local DER {1 - self.accuracy:.1%}" + (
            " (best)." if self.best else "."
        )


class SegmentationTrainer(Trainer):
    """`Trainer` on windows of turns."""

    epoch_result = SegmentationEpoch

    def _clips(self) -> WindowDataset:
        self.network = self.builder.model()  # type: ignore[attr-defined]
        segmenter = cast(SegmentationModel, self.network).segmenter
        return WindowDataset(self.split, segmenter, self.recipe)

    def _build(self, clips: Any) -> Any:
        return self.network

    def _evaluate(self) -> tuple[float, float]:
        error = self.held_out_error()
        return (math.nan, math.nan) if error is None else (1 - error.rate, 1 - error.rate)

    def held_out_error(self) -> DiarizationError | None:
        """Errors of held-out recordings, see `local_error`; None without any."""
        rows = self.split.held_out_rows
        if not len(rows):
            return None
        self.network.eval()
        segmenter = cast(SegmentationModel, self.network).segmenter
        corpus = cast(TurnCorpus, self.split.corpus)
        seconds = self.recipe.data.seconds
        return local_error(segmenter, corpus, rows.tolist(), seconds, self.builder.scale, self.group.device)


@torch.no_grad()
def local_error(
    network: WaveformSegmenter,
    corpus: TurnCorpus,
    rows: Sequence[int],
    seconds: float,
    scale: float,
    device: torch.device,
) -> DiarizationError:
    """Errors inside windows, one after the other over recordings, each with its best order of speakers.

    What is annotated counts, with all speakers of the reference, in seconds of the network's frames.
    """
    from knn_cli.evaluation.diarization_error import frame_error

    samples = round(seconds * corpus.rate)
    times = frame_times(network, samples, corpus.rate)
    total = DiarizationError(0.0, 0.0, 0.0, 0.0)
    for row in rows:
        for start in np.arange(0.0, float(corpus.columns.seconds[row]), seconds).tolist():
            sound = corpus.samples(row, start, seconds)[:samples]
            if not len(sound):
                continue
            window = torch.from_numpy(np.pad(sound, (0, samples - len(sound))))[None].to(device)
            found = to_multilabel(network(window * scale)[0].cpu(), network.speakers, network.most, hard=True)
            used = corpus.annotated(row, start + times)
            truth = active_speakers(corpus.truths[row][0], start + times)[used]
            total += frame_error(truth, found.numpy()[used].astype(bool), seconds / len(times))
    return total


@dataclass(frozen=True)
class SegmentationTraining:
    """A finished training.

    Attributes
    ----------
    train_recordings, held_out_recordings : int
    epochs : int
    error, before : DiarizationError or None
        Errors inside windows of held-out recordings, of the trained network and of the one that it began with.
    model : Bundle or None
        None in processes that are not the main one.
    """

    train_recordings: int
    held_out_recordings: int
    epochs: int
    error: DiarizationError | None
    before: DiarizationError | None
    model: Bundle | None

    @property
    def lines(self) -> list[str]:
        """The same as lines of text."""
        lines = [
            f"trained on  {self.train_recordings} recordings, {self.epochs} epochs; held out {self.held_out_recordings}"
        ]
        for name, error in (("local DER", self.error), ("before", self.before)):
            if error is not None:
                parts = (error.missed, error.false_alarm, error.confusion)
                missed, false, confused = (f"{part / max(error.total, 1e-9):.1%}" for part in parts)
                lines.append(f"{name:<12}{error.rate:.1%} (missed {missed}, false alarm {false}, confusion {confused})")
        return lines + ([] if self.model is None else [f"model       {self.model.folder}"])


def train_segmentation(
    source: Path | str,
    out: Path | str,
    recipe: SegmentationRecipe,
    *,
    device: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
    report: Report | None = None,
) -> SegmentationTraining:
    """Train a segmentation network on recordings with turns, and write it as a bundle for the diarizer.

    Parameters are those of `trainer.train`, which it follows; `source` is a recording or a folder of them.

    Raises
    ------
    TrainingStopped, KnnError
        As `trainer.train`, and for recordings without turns.
    """
    source, out = Path(source), Path(out)
    with process_group(device) as group, ExitStack() as held:
        group.in_main(lambda: held.enter_context(locked(out, is_folder=True)))
        group.in_main(lambda: check_free(out, force))
        builder = SegmentationBuilder(recipe)
        where = recipe.segmentation
        corpus = TurnCorpus(source, Path(where.references), Path(where.uem) if where.uem else None, builder.rate)
        trainer = SegmentationTrainer(split_recordings(corpus, recipe), cast(Any, builder), out, group, force=force)
        trainer.fit(progress, report)
        state, _ = trainer.select_weights()
        error, before = trainer.held_out_error(), None
        rows = trainer.split.held_out_rows.tolist()
        if builder.origin is not None and rows:
            first = builder.model().segmenter.eval().to(group.device)
            before = local_error(first, corpus, rows, recipe.data.seconds, builder.scale, group.device)
        counts = len(trainer.split.train_rows), len(rows)
        training = SegmentationTraining(*counts, trainer.state.epochs, error, before, None)
        if not group.is_main:
            return training
        model = _write(trainer, builder, training, state, out, force)
        trainer.folder.drop_weights()
        return replace(training, model=model)


def _write(
    trainer: SegmentationTrainer,
    builder: SegmentationBuilder,
    training: SegmentationTraining,
    state: dict[str, Tensor],
    out: Path,
    force: bool,
) -> Bundle:
    """Write the bundle of a trained network."""
    facts = {**trainer.summary(), "recipe": plain_recipe(builder.recipe)}
    if training.error is not None:
        facts["held_out_local_der"] = training.error.rate
    config = {
        "name": out.name,
        "kind": bundle.SEGMENTER,
        "audio": {"rate": builder.rate, "scale": builder.scale},
        bundle.SEGMENTER: builder.component,
        "training": facts,
    }
    card = "\n".join(
        [
            f"# Segmentation network trained with the recipe {builder.recipe.name}\n",
            *training.lines,
            "\nErrors are inside windows, with the best order of speakers in each. The weights of the best epoch were",
            "chosen on the held-out recordings, which flatters the figure.\n",
        ]
    )
    own = {name.removeprefix("segmenter."): value for name, value in state.items()}
    return bundle.write(out, config, state=own, card=card, force=force)
