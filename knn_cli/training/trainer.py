"""`knn train --recipe` as a function: from labelled sound to a bundle with a network of its own.

The loop is written so that its result is a function of recipe, corpus and first weights: whatever is random at a step
follows from the seed and the step's number, and the batch of a step is the same for any number of processes. So a run
that was killed and goes on ends in the same weights, and two processes follow one's losses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Progress
from knn_cli.networks import bundle
from knn_cli.training import lineage
from knn_cli.training.checkpoints import Metrics, Snapshots, board, load, save
from knn_cli.training.dataset import Rows, Task, make_task, open_corpus
from knn_cli.training.distributed import Processes, Stopped, asked_to_stop, processes
from knn_cli.training.fine_tuning import Tuned, merged_state
from knn_cli.training.finishing import Trained, finish
from knn_cli.training.model_builder import Design, Learner, class_weights, factor, margins, optimizer
from knn_cli.training.recipe import Recipe
from knn_cli.training.sampling import Batch, Clips, Key, Plan
from knn_cli.training.validation import Epoch, assess

Report = Callable[[Epoch], None]

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
) -> Trained:
    """Train a network on labelled sound and write it as a bundle that classifies.

    source   : an audio store, a folder of recordings or tar shards (see `corpus.open_corpus`)
    use_vad  : whether the classifier is fitted on speech only; training clips are cut from all of the sound
    force    : replace the bundle, drop an unfinished training of another recipe
    progress, report : called in the main process after each step and each epoch

    A training that was interrupted goes on where its last checkpoint is. Under `torchrun` all processes call this.

    Raises KnnError: whatever the recipe or the corpus lacks; a loss that is not a number; a full disk; `Stopped` when
    SIGTERM or SIGUSR1 came.
    """
    source, out = Path(source), Path(out)
    bundle.check_free(out, force)
    with processes(device) as team:
        design = Design(recipe)
        design.check()
        task = make_task(open_corpus(source, rule=recipe.data.labels, rate=design.rate), recipe.data, recipe.seed)
        past = lineage.check(task, design)
        run = Run(task, design, out, team, force=force)
        run.train(progress, report)
        state, accuracy = run.chosen()
        finished = None
        if team.main:
            finished = finish(
                task,
                design,
                state,
                out,
                run.facts() | {"splits": past.splits},
                accuracy=accuracy,
                past=past.note,
                work=run.snapshots.folder,
                device=str(team.device),
                use_vad=use_vad,
                force=force,
            )
            run.snapshots.finish()
        rows = len(task.fitted), len(task.held)
        return Trained(task.labels, *rows, run.epoch, accuracy, finished)


class Run:
    """One training, in one of its processes.

    Everything that the next step needs is in `state`, from which `restore` goes on.
    """

    def __init__(self, task: Task, design: Design, out: Path, team: Processes, *, force: bool) -> None:
        recipe = design.recipe
        self.task, self.design, self.recipe, self.team = task, design, recipe, team
        self._precision(team.device)
        clips = Clips(task.corpus, task.fitted, task.classes[task.fitted], len(task.labels), recipe)
        self.plan = Plan(clips, recipe, team.rank, team.count)
        weights = class_weights(recipe, task.labels, clips.classes)
        self.network = design.build(task.labels, weights, clips.augmenter.folds).to(team.device)
        self._check_sizes()
        self.tuned = Tuned(self.network, recipe)
        self.optimizer = optimizer(self.network, recipe.optimizer)
        self.learner = Learner(self.network, design.scale)
        self.margins = margins(recipe, self.plan.steps)
        self.moving = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.ema = {name: one.clone() for name, one in self.network.state_dict().items()} if recipe.loop.ema else {}
        self.epoch, self.place, self.step = 0, 0, 0  # epochs done, steps done of this one, steps done in all
        self.best, self.stale, self.window, self.total = -math.inf, 0, [0.0, 0.0], 0.0
        self._begin(out, force)
        ids = [team.device.index] if team.device.type == "cuda" else None
        self.model: nn.Module = self.learner
        if team.count > 1:  # some poolings leave layers, and so their weights, unused
            self.model = DistributedDataParallel(self.learner, device_ids=ids, find_unused_parameters=True)

    def train(self, progress: Progress | None, report: Report | None) -> None:
        """Train to the end, or to where held-out recordings have no more to give."""
        loop, total = self.recipe.loop, self.recipe.schedule.epochs * self.plan.steps
        with self._board() as writer, asked_to_stop() as asked:
            while self.epoch < self.recipe.schedule.epochs and not (loop.patience and self.stale >= loop.patience):
                self.tuned.train()
                for keys, batches in self.plan.batches(self.epoch, self.place):
                    loss, norm, stop = self._step(keys, batches, asked.is_set())
                    self._log(loss, norm, writer)
                    if stop:
                        self._save()
                        raise self._stopped()
                    if self.step % loop.checkpoint == 0 and self.place < self.plan.steps:
                        self._save()
                    if progress is not None and self.team.main:
                        progress(self.step, total)
                done = self._end_epoch(writer)
                if report is not None and self.team.main:
                    report(done)
                if self.team.any(asked.is_set()):
                    raise self._stopped()

    def chosen(self) -> tuple[dict[str, Tensor], float]:
        """The weights that the recipe keeps, and their accuracy on held-out rows (NaN without such)."""
        loop = self.recipe.loop
        self.team.agree("")  # nobody reads before the main process has written
        if loop.average > 1:
            self.network.load_state_dict(self.snapshots.average(self.epoch - 1, loop.average))
        elif loop.keep == "best" and len(self.task.held):
            self.network.load_state_dict(load(self.snapshots.best))
        elif self.ema:
            self.network.load_state_dict(self.ema)
        accuracy, _ = self._evaluate()
        return dict(merged_state(self.network)), accuracy

    def facts(self) -> dict[str, Any]:
        """What the bundle says of its training."""
        facts: dict[str, Any] = {
            "name": self.recipe.name,
            "epochs": self.epoch,
            "steps": self.step,
            "seed": self.recipe.seed,
        }
        facts |= {"rows": len(self.task.fitted), "held_out": len(self.task.held)}
        return facts | ({"init": self.design.origin.fingerprint} if self.design.origin is not None else {})

    def _stopped(self) -> Stopped:
        hint = f"The checkpoint is in {self.snapshots.folder}; the same command goes on with it."
        return Stopped(f"The training was asked to stop after step {self.step}.", hint)

    def _step(self, keys: list[Key], batches: Iterator[Batch], asked: bool) -> tuple[float, float, bool]:
        """One step of the optimizer: loss, gradient norm, and whether any process was asked to stop."""
        recipe, team = self.recipe, self.team
        self._set_rates()
        state = np.random.SeedSequence([recipe.seed, self.step, team.rank]).generate_state(1)
        torch.manual_seed(int(state[0]))  # of dropout
        if self.tuned.drop is not None:
            self.tuned.drop.draw(np.random.default_rng([recipe.seed, self.epoch, 2, self.step]))
        self.optimizer.zero_grad(set_to_none=True)
        whole = self._weight(self.plan.labels(keys))
        total = torch.zeros(2, dtype=torch.float64)
        for number in range(recipe.loop.accumulate):
            batch = next(batches)
            # Parts of unequal class weights count as they would in one batch; joined processes take a mean, not a sum.
            share = self._weight(batch.labels % len(self.task.labels)) / whole
            sound, labels = (torch.from_numpy(one).to(team.device) for one in (batch.waveforms, batch.labels))
            if self.tuned.spec is not None:
                self.tuned.spec.seeds = batch.seeds
            with self._joined(last=number == recipe.loop.accumulate - 1), self._autocast():
                loss = self.model(sound, None, labels) * share
                self.scaler.scale(loss * team.count).backward()
            total[0] += loss.detach().double().cpu()
        total[1] = float(asked)
        total = team.sum(total)
        loss = float(total[0])
        self.scaler.unscale_(self.optimizer)
        self.tuned.change_gradients()
        bound = recipe.loop.clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.moving, bound))
        if not math.isfinite(loss) or (not math.isfinite(norm) and not self.scaler.is_enabled()):
            kept = (
                f"the checkpoint in {self.snapshots.folder} is of before"
                if self.snapshots.last.is_file()
                else ("there is no checkpoint yet")
            )
            raise KnnError(
                f"The loss or its gradient is not a number at step {self.step + 1}; {kept}.",
                "Lower the learning rate or bound the gradient (loop.clip), and begin again with --force.",
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._follow()
        self.total += loss
        self.step, self.place = self.step + 1, self.place + 1
        return loss, norm, bool(total[1])

    def _end_epoch(self, writer: Any) -> Epoch:
        self._save()  # measuring takes its time, and may be killed
        self._align()
        loop, weights = self.recipe.loop, self.ema or self.network.state_dict()
        with self._holding(self.ema):
            accuracy, rows = self._evaluate()
        loss, self.total = self.total / self.plan.steps, 0.0
        better = bool(accuracy > self.best) or not len(self.task.held)
        self.best, self.stale = (accuracy, 0) if better else (self.best, self.stale + 1)
        done = Epoch(self.epoch + 1, self.step, loss, accuracy, rows, better)
        if self.team.main:
            if loop.average > 1:
                self.snapshots.keep_epoch(self.epoch, weights, loop.average)
            elif better and len(self.task.held):
                save(self.snapshots.best, weights)
            held = {"accuracy": accuracy, "accuracy_rows": rows, "best": better} if len(self.task.held) else {}
            told = {"step": self.step, "epoch_loss": loss, **held}
            self.metrics.write({"epoch": done.number, **told})
            _draw(writer, told)
        self.epoch, self.place = self.epoch + 1, 0
        self._save()
        return done

    def _align(self) -> None:
        """The main process's statistics of batch norms in all of them, which each has taken from its own clips."""
        whole = self.network.state_dict()
        names = [name for name, _ in self.network.named_buffers() if name in whole]
        for state in filter(None, (whole, self.ema)):
            self.team.align(state[name] for name in names)

    def _evaluate(self) -> tuple[float, float]:
        return assess(
            self.network, self.task, self.recipe, self.design.scale, self.team, self.plan.part, self._autocast
        )

    def _begin(self, out: Path, force: bool) -> None:
        """Open the run's folder, and go on from its checkpoint where it has one."""
        origin = self.design.origin
        plan = {
            "recipe": self.recipe.result_config,
            "corpus": self.task.corpus.identity,
            "init": None if origin is None else [origin.fingerprint, origin.config["weights_sha256"]],
        }
        failure = ""
        if self.team.main:
            try:
                self.snapshots = Snapshots(out, plan, force=force)
            except KnnError as error:
                failure = "\0".join((error.message, error.hint))
        if failure := self.team.agree(failure):
            raise KnnError(*failure.split("\0"))
        if not self.team.main:
            self.snapshots = Snapshots(out, plan, main=False)
        if self.snapshots.last.is_file():
            self._restore(load(self.snapshots.last))
        self.team.agree("")  # nobody writes before all have read
        if self.team.main:
            self.metrics = Metrics(self.snapshots.metrics, self.step, self.epoch)

    def _save(self) -> None:
        if not self.team.main:
            return
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema,
            **{name: getattr(self, name) for name in _COUNTERS},
        }
        save(self.snapshots.last, state)

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.ema = {name: value.to(self.team.device) for name, value in state["ema"].items()}
        for name in _COUNTERS:
            setattr(self, name, state[name])

    def _set_rates(self) -> None:
        rate = self.recipe.optimizer.rate
        now = factor(self.recipe.schedule, rate, self.step, self.plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * now
        if self.margins is not None:
            self.learner.head.set_margin(self.margins.at(self.step))

    @torch.no_grad()
    def _follow(self) -> None:
        """Let the moving average follow: e <- decay e + (1 - decay) w; whole numbers are copied.

        The decay rises to the recipe's, or the first weights, which know nothing, would stay for long.
        """
        decay = min(self.recipe.loop.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items() if self.ema else ():
            if value.is_floating_point():
                self.ema[name].lerp_(value, 1 - decay)
            else:
                self.ema[name].copy_(value)

    @contextmanager
    def _holding(self, state: dict[str, Tensor]) -> Iterator[None]:
        """With these weights in the network, where there are any."""
        if not state:
            yield
            return
        own = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(state)
        yield
        self.network.load_state_dict(own)

    def _log(self, loss: float, norm: float, writer: Any) -> None:
        self.window = [self.window[0] + loss, self.window[1] + 1]
        if self.step % self.recipe.loop.log:
            return
        facts: dict[str, Any] = {
            "step": self.step,
            "loss": self.window[0] / self.window[1],
            "rate": max(group["lr"] for group in self.optimizer.param_groups),
            "gradient": norm if math.isfinite(norm) else None,
            "margin": self.learner.head.margin,
        }
        if self.recipe.tuning.pull:
            facts["pull"] = self.tuned.pull.value()
        self.window = [0.0, 0.0]
        if self.team.main:
            self.metrics.write({**facts, "time": round(time.time(), 1)})
            _draw(writer, facts)

    def _board(self) -> AbstractContextManager[Any]:
        wanted = self.recipe.loop.tensorboard and self.team.main
        return board(self.snapshots.folder / "tensorboard", self.step) if wanted else nullcontext()

    def _weight(self, labels: Rows) -> float:
        """What these clips weigh in the loss together."""
        weights = self.learner.head.class_weights
        return float(len(labels)) if weights is None else float(weights.cpu().double().numpy()[labels].sum())

    def _joined(self, *, last: bool) -> AbstractContextManager[Any]:
        """Processes exchange gradients at the last part of a step only."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return cast(AbstractContextManager[Any], self.model.no_sync())
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        kind = _PRECISIONS[self.recipe.loop.precision]
        return torch.autocast(self.team.device.type, kind, enabled=kind is not torch.float32)

    def _precision(self, device: torch.device) -> None:
        wanted = self.recipe.loop.precision
        if wanted == "fp16" and device.type != "cuda":
            raise KnnError(f"loop.precision fp16 needs a CUDA device, not {device.type}.", "Take bf16 or fp32.")
        self.scaler = torch.amp.GradScaler("cuda", enabled=wanted == "fp16")

    def _check_sizes(self) -> None:
        norms = [one for one in self.network.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
        if norms and self.plan.part < 2:
            raise KnnError("Batch norm needs two clips at once or more.", "Raise loop.batch or lower loop.accumulate.")


def _draw(writer: Any, facts: dict[str, Any]) -> None:
    """The numbers among facts of a step to TensorBoard, where it is asked for."""
    for name, value in facts.items() if writer is not None else ():
        if name != "step" and isinstance(value, float):
            writer.add_scalar(name, value, facts["step"])


_COUNTERS = ("epoch", "place", "step", "best", "stale", "window", "total")
