"""Training a network on labelled audio: `train` runs a recipe, `Trainer` is its loop.

The result depends only on recipe, corpus and first weights: whatever is random at a step follows from the seed and the
step's number, and the batch of a step is the same for any number of processes. So an interrupted training resumes to
the same weights, and the losses of two processes follow those of one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from knn_cli.core.errors import KnnError
from knn_cli.core.locks import locked
from knn_cli.core.values import Progress
from knn_cli.networks.network import Network
from knn_cli.training import lineage
from knn_cli.training.checkpoints import TrainingFolder, check_free, load, plan_digest, save
from knn_cli.training.corpus_split import TrainingSplit, split_corpus
from knn_cli.training.dataset import open_corpus
from knn_cli.training.distributed import ProcessGroup, StopSignals, TrainingStopped, process_group, stop_signals
from knn_cli.training.fine_tuning import merged_state
from knn_cli.training.finishing import TrainedNetwork, TrainingResult, finish_model
from knn_cli.training.metrics_log import MetricsLog, draw, tensorboard_writer
from knn_cli.training.model_builder import ModelBuilder, class_weights
from knn_cli.training.recipe import Recipe
from knn_cli.training.sampling import BatchSampler, ClipDataset
from knn_cli.training.training_step import NonFiniteLossError, StepResult, TrainingStep
from knn_cli.training.validation import EpochResult, evaluate_held_out

__all__ = ["Report", "Trainer", "train"]

Report = Callable[[EpochResult], None]


def train(
    source: Path | str,
    out: Path | str,
    recipe: Recipe,
    *,
    device: str = "auto",
    use_vad: bool = True,
    force: bool = False,
    progress: Progress | None = None,
    report: Report | None = None,
) -> TrainingResult:
    """Train a network on labelled audio and write it as a bundle that classifies.

    An interrupted training resumes from its last checkpoint. Under `torchrun` all processes call this.

    Parameters
    ----------
    source
        An audio store, a folder of recordings or tar shards (see `dataset.open_corpus`).
    out
        The bundle's folder; checkpoints and metrics are in `OUT.training` beside it.
    recipe
        See `recipe_reader.read`.
    device
        auto, cpu, cuda or mps.
    use_vad
        Whether the classifier is fitted on speech only; training clips are cut from all of the audio.
    force
        Replace the bundle, and drop an unfinished training of another recipe.
    progress, report
        Called in the main process after each step and each epoch.

    Raises
    ------
    TrainingStopped
        If SIGTERM, SIGUSR1, SIGHUP or Ctrl-C came; a checkpoint was written.
    KnnError
        If the recipe or the corpus lacks something, the loss is not a number, or the disk is full.
    """
    source, out = Path(source), Path(out)
    with process_group(device) as group, ExitStack() as held:
        group.in_main(lambda: held.enter_context(locked(out, is_folder=True)))
        group.in_main(lambda: check_free(out, force))
        builder = ModelBuilder(recipe)
        builder.check()
        data = recipe.data
        corpus = open_corpus(source, rule=data.labels, speech=data.speech or None, rate=builder.rate)
        split = split_corpus(corpus, data, recipe.seed)
        history = lineage.check(split, builder)
        trainer = Trainer(split, builder, out, group, force=force)
        trainer.fit(progress, report)
        state, accuracy = trainer.select_weights()
        finished = None
        if group.is_main:
            trained = TrainedNetwork(state, accuracy, trainer.summary() | {"splits": history.splits}, history.note)
            options: dict[str, Any] = {"device": str(group.device), "use_vad": use_vad, "force": force}
            finished = finish_model(split, builder, trained, out, work=trainer.folder.path, **options)
            trainer.folder.drop_weights()
        rows = len(split.train_rows), len(split.held_out_rows)
        return TrainingResult(split.labels, *rows, trainer.state.epochs, accuracy, finished)


@dataclass
class TrainingState:
    """How far a training is. All of it is part of a checkpoint, under the names in `checkpoint`.

    Attributes
    ----------
    epochs : int
        Epochs done.
    epoch_steps : int
        Steps done of the current epoch.
    steps : int
        Steps done in all.
    best_accuracy : float
        Best accuracy on held-out rows so far.
    stale_epochs : int
        Epochs since then.
    window : list of two floats
        Sum and number of the losses since the last line of the log.
    epoch_loss : float
        Sum of the losses of the current epoch.
    """

    epochs: int = 0
    epoch_steps: int = 0
    steps: int = 0
    best_accuracy: float = -math.inf
    stale_epochs: int = 0
    window: list[float] = field(default_factory=lambda: [0.0, 0.0])
    epoch_loss: float = 0.0

    @property
    def checkpoint(self) -> dict[str, Any]:
        """The values as a checkpoint names them."""
        return dict(zip(_CHECKPOINT_KEYS, vars(self).values(), strict=True))

    @classmethod
    def from_checkpoint(cls, state: dict[str, Any]) -> TrainingState:
        """The values in a checkpoint."""
        return cls(*(state[key] for key in _CHECKPOINT_KEYS))

    def add_step(self, loss: float) -> None:
        """Count a step and its loss."""
        self.steps, self.epoch_steps = self.steps + 1, self.epoch_steps + 1
        self.epoch_loss += loss
        self.window = [self.window[0] + loss, self.window[1] + 1]


_CHECKPOINT_KEYS = ("epoch", "place", "step", "best", "stale", "window", "total")


class Trainer:
    """The loop of one training, in one of its processes.

    Everything that the next step needs is in a checkpoint, from which the constructor resumes.

    Parameters
    ----------
    split
        Rows to train on and held-out rows.
    builder
        Builds the network of the recipe.
    out
        The bundle's folder.
    group
        The processes that train together.
    force
        Begin again where the training folder is of another recipe or damaged.

    Raises
    ------
    KnnError
        If the recipe asks for what the device, the network or the corpus does not have, or the folder cannot be used.
    """

    epoch_result = EpochResult

    def __init__(
        self, split: TrainingSplit, builder: ModelBuilder, out: Path, group: ProcessGroup, *, force: bool
    ) -> None:
        recipe = builder.recipe
        self.split, self.builder, self.recipe, self.group = split, builder, recipe, group
        if recipe.loop.precision == "fp16" and group.device.type != "cuda":
            raise KnnError(f"loop.precision fp16 needs a CUDA device, not {group.device.type}.", "Take bf16 or fp32.")
        clips = self._clips()
        self.sampler = BatchSampler(clips, recipe, group.rank, group.size)
        self.network = self._build(clips).to(group.device)
        self._check_batch_norms()
        self.step = TrainingStep(self.network, recipe, builder.scale, self.sampler.steps, group)
        self.state = TrainingState()
        self.plan: dict[str, Any] = {}
        self.folder = self._open_folder(out, force)
        self._resume()
        self.step.distribute()

    def _clips(self) -> ClipDataset:
        split = self.split
        classes = split.classes[split.train_rows]
        return ClipDataset(split.corpus, split.train_rows, classes, len(split.labels), self.recipe)

    def _build(self, clips: ClipDataset) -> Network:
        """The network with its first weights."""
        weights = class_weights(self.recipe, self.split.labels, clips.classes)
        return self.builder.build(self.split.labels, weights, clips.augmenter.folds)

    def fit(self, progress: Progress | None, report: Report | None) -> None:
        """Train to the last epoch, or until `loop.patience` epochs brought nothing on held-out rows."""
        loop, total = self.recipe.loop, self.recipe.schedule.epochs * self.sampler.steps
        with self._tensorboard() as writer, stop_signals() as stopping:
            while self.state.epochs < self.recipe.schedule.epochs:
                if loop.patience and self.state.stale_epochs >= loop.patience:
                    break
                self.step.fine_tuner.train()
                for keys, batches in self.sampler.batches(self.state.epochs, self.state.epoch_steps):
                    labels = self.sampler.labels(keys)
                    result = self._run_step(labels, batches, bool(stopping))
                    self._log_step(result, writer)
                    if result.stop:
                        self._save()
                        raise self._stopped(stopping)
                    if self.state.steps % loop.checkpoint == 0 and self.state.epoch_steps < self.sampler.steps:
                        self._save()
                    if progress is not None and self.group.is_main:
                        progress(self.state.steps, total)
                epoch = self._end_epoch(writer, stopping)
                if report is not None and self.group.is_main:
                    report(epoch)
                if self.group.any(bool(stopping)):
                    raise self._stopped(stopping)

    def select_weights(self) -> tuple[dict[str, Tensor], float]:
        """The weights that the recipe keeps, and their accuracy on held-out rows (NaN without such rows)."""
        loop = self.recipe.loop
        self.group.broadcast_text("")  # no process reads before the main one has written
        if loop.average > 1:
            self.network.load_state_dict(self.folder.average(self.state.epochs - 1, loop.average))
        elif loop.keep == "best" and len(self.split.held_out_rows):
            self.network.load_state_dict(load(self.folder.best))
        elif loop.ema:
            self.network.load_state_dict(self.step.average)
        accuracy, _ = self._evaluate()
        return dict(merged_state(self.network)), accuracy

    def summary(self) -> dict[str, Any]:
        """What the bundle's config says of its training."""
        origin = self.builder.origin
        return {
            "name": self.recipe.name,
            "epochs": self.state.epochs,
            "steps": self.state.steps,
            "seed": self.recipe.seed,
            "rows": len(self.split.train_rows),
            "held_out": len(self.split.held_out_rows),
            "plan": plan_digest(self.plan),
            **({} if origin is None else {"init": origin.fingerprint}),
        }

    def _run_step(self, labels: Any, batches: Any, stop: bool) -> StepResult:
        try:
            result = self.step.run(self.state.steps, self.state.epochs, labels, batches, stop)
        except NonFiniteLossError as error:
            kept = f"the checkpoint in {self.folder.path} is of before"
            kept = kept if self.folder.last.is_file() else "there is no checkpoint yet"
            hint = "Lower the learning rate or bound the gradient (loop.clip), and begin again with `force`."
            raise KnnError(f"{error.message.rstrip('.')}; {kept}.", hint) from error
        self.state.add_step(result.loss)
        return result

    def _end_epoch(self, writer: Any, stopping: StopSignals) -> EpochResult:
        """Evaluate on held-out rows, keep the weights that `select_weights` may want, log and save."""
        self._save()  # evaluation takes its time, and may be killed
        if self.group.any(bool(stopping)):
            raise self._stopped(stopping)
        self.step.broadcast_statistics()
        state, has_held_out = self.state, len(self.split.held_out_rows) > 0
        stopping.is_interruptible = self.group.size == 1
        with self.step.averaged_weights():
            accuracy, row_accuracy = self._evaluate()
        stopping.is_interruptible = False
        loss, state.epoch_loss = state.epoch_loss / self.sampler.steps, 0.0
        better = bool(accuracy > state.best_accuracy) or not has_held_out
        state.best_accuracy = accuracy if better else state.best_accuracy
        state.stale_epochs = 0 if better else state.stale_epochs + 1
        epoch = self.epoch_result(state.epochs + 1, state.steps, loss, accuracy, row_accuracy, better)
        if self.group.is_main:
            self._keep_weights(better and has_held_out)
            self._log_epoch(epoch, has_held_out, writer)
        state.epochs, state.epoch_steps = state.epochs + 1, 0
        self._save()
        return epoch

    def _keep_weights(self, best: bool) -> None:
        weights = self.step.average or self.network.state_dict()
        if self.recipe.loop.average > 1:
            self.folder.keep_epoch(self.state.epochs, weights, self.recipe.loop.average)
        elif best:
            save(self.folder.best, weights)

    def _evaluate(self) -> tuple[float, float]:
        arguments = self.builder.scale, self.group, self.sampler.part, self.step.autocast
        return evaluate_held_out(self.network, self.split, self.recipe, *arguments)

    def _log_step(self, result: StepResult, writer: Any) -> None:
        if self.state.steps % self.recipe.loop.log:
            return
        facts: dict[str, Any] = {
            "step": self.state.steps,
            "loss": self.state.window[0] / self.state.window[1],
            "rate": result.rate,
            "gradient": result.gradient_norm if math.isfinite(result.gradient_norm) else None,
            "margin": self.step.module.head.margin,
        }
        if self.recipe.tuning.pull:
            facts["pull"] = self.step.fine_tuner.l2_sp.value()
        self.state.window = [0.0, 0.0]
        if self.group.is_main:
            self.metrics.write({**facts, "time": round(time.time(), 1)})
            draw(writer, facts)

    def _log_epoch(self, epoch: EpochResult, has_held_out: bool, writer: Any) -> None:
        held_out = {"accuracy": epoch.accuracy, "accuracy_rows": epoch.row_accuracy, "best": epoch.best}
        facts = {"step": epoch.step, "epoch_loss": epoch.loss, **(held_out if has_held_out else {})}
        self.metrics.write({"epoch": epoch.number, **facts})
        draw(writer, facts)

    def _tensorboard(self) -> AbstractContextManager[Any]:
        wanted = self.recipe.loop.tensorboard and self.group.is_main
        return tensorboard_writer(self.folder.path / "tensorboard", self.state.steps) if wanted else nullcontext()

    def _open_folder(self, out: Path, force: bool) -> TrainingFolder:
        """The training's folder, made or checked by the main process; its KnnError is raised in all of them."""
        origin = self.builder.origin
        folder = TrainingFolder(out)

        def prepare() -> None:
            self.plan = {
                "recipe": self.recipe.result_config,
                "corpus": self.split.corpus.identity,
                "sound": self.split.corpus.sound_digest,
                "init": None if origin is None else [origin.fingerprint, origin.config["weights_sha256"]],
            }
            folder.prepare(self.plan, force=force, fits=self._fits)

        self.group.in_main(prepare)
        return folder

    def _fits(self, checkpoint: Mapping[str, Any]) -> bool:
        """Whether a checkpoint holds all that the next step needs, of such a network."""
        own = self.step.state_dict()
        weights = checkpoint.get("network")
        return (
            {*own, *_CHECKPOINT_KEYS} <= set(checkpoint)
            and isinstance(weights, Mapping)
            and {name: getattr(value, "shape", None) for name, value in weights.items()}
            == {name: value.shape for name, value in own["network"].items()}
        )

    def _resume(self) -> None:
        """Go on from the folder's checkpoint, if it has one."""
        if self.folder.last.is_file():
            checkpoint = load(self.folder.last)
            self.state = TrainingState.from_checkpoint(checkpoint)
            self.step.load_state_dict(checkpoint, self.state.steps)
        self.group.broadcast_text("")  # no process writes before all have read
        if self.group.is_main:
            self.metrics = MetricsLog(self.folder.metrics, self.state.steps, self.state.epochs)

    def _save(self) -> None:
        if self.group.is_main:
            self.folder.save({**self.step.state_dict(), **self.state.checkpoint})

    def _stopped(self, stopping: StopSignals) -> TrainingStopped:
        hint = f"The checkpoint is in {self.folder.path}; the same command goes on with it."
        return TrainingStopped(f"Stopped after step {self.state.steps}.", hint, stopping.number)

    def _check_batch_norms(self) -> None:
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
        if self.sampler.part < 2 and any(isinstance(module, norms) for module in self.network.modules()):
            raise KnnError("Batch norm needs two clips at once or more.", "Raise loop.batch or lower loop.accumulate.")
