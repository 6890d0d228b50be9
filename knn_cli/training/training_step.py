"""One step of the optimizer: forward and backward passes over the parts of a batch, gradients, rates, averages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from knn_cli.core.errors import KnnError
from knn_cli.networks.network import Network
from knn_cli.training.dataset import Rows
from knn_cli.training.distributed import ProcessGroup
from knn_cli.training.fine_tuning import FineTuner
from knn_cli.training.model_builder import TrainingModule
from knn_cli.training.optimization import (
    average_weights,
    build_optimizer,
    margin_schedule,
    restart_average,
    schedule_learning_rates,
)
from knn_cli.training.recipe import Recipe
from knn_cli.training.sampling import Batch

__all__ = ["NonFiniteLossError", "StepResult", "TrainingStep"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """The result of one step.

    Attributes
    ----------
    loss : float
        Mean over the batch of all processes.
    gradient_norm : float
        Before it is bounded; may be infinite with fp16, which then skips the step.
    rate : float
        The largest learning rate.
    stop : bool
        Whether any process was asked to stop.
    """

    loss: float
    gradient_norm: float
    rate: float
    stop: bool


class NonFiniteLossError(KnnError):
    """The loss of a step, or its gradient, is infinite or NaN."""


class TrainingStep:
    """All that a step changes: the network, its optimizer and their schedules, the loss scale, the average.

    Parameters
    ----------
    network
        Encoder, pooling and head, on the device.
    recipe
        The whole recipe.
    scale
        Factor on waveforms in [-1, 1].
    steps
        Steps per epoch.
    group
        The processes that share a batch.

    Raises
    ------
    KnnError
        If the recipe asks for what the device or the network does not have.
    """

    def __init__(self, network: Network, recipe: Recipe, scale: float, steps: int, group: ProcessGroup) -> None:
        self.network, self.recipe, self.group, self.steps = network, recipe, group, steps
        self.scaler = torch.amp.GradScaler("cuda", enabled=recipe.loop.precision == "fp16")
        self.fine_tuner = FineTuner(network, recipe)
        self.optimizer = build_optimizer(network, recipe.optimizer)
        self.scheduler = schedule_learning_rates(self.optimizer, recipe, steps, 0)
        self.module = TrainingModule(network, scale)
        self.margins = margin_schedule(recipe, steps)
        self.trained_weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.averaged = average_weights(network, recipe.loop.ema) if recipe.loop.ema else None
        self.model: nn.Module = self.module

    def distribute(self) -> None:
        """Join the processes, once the first weights are loaded."""
        device = self.group.device
        if self.group.size > 1:  # some poolings leave layers, and so their weights, unused
            ids = [device.index] if device.type == "cuda" else None
            self.model = DistributedDataParallel(self.module, device_ids=ids, find_unused_parameters=True)

    @property
    def average(self) -> dict[str, Tensor]:
        """The moving average's weights under the network's names; empty if the recipe asks for none."""
        return {} if self.averaged is None else self.averaged.module.state_dict()

    def run(self, step: int, epoch: int, labels: Rows, batches: Iterator[Batch], stop: bool) -> StepResult:
        """Take one step.

        Parameters
        ----------
        step, epoch
            Steps and epochs done before, in all.
        labels
            Classes of the clips of all processes.
        batches
            This process's clips, in `loop.accumulate` parts.
        stop
            Whether this process was asked to stop.

        Raises
        ------
        NonFiniteLossError
            If the loss or its gradient is not a number; the weights are then not changed.
        """
        recipe = self.recipe
        if self.margins is not None:
            self.module.head.set_margin(self.margins.at(step))
        seed = np.random.SeedSequence([recipe.seed, step, self.group.rank]).generate_state(1)
        torch.manual_seed(int(seed[0]))  # of dropout
        self.fine_tuner.draw(np.random.default_rng([recipe.seed, epoch, 2, step]))
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(2, dtype=torch.float64)
        total[0] = self._accumulate(labels, batches)
        total[1] = float(stop)
        total = self.group.sum(total)
        self.scaler.unscale_(self.optimizer)
        self.fine_tuner.change_gradients()
        norm = float(nn.utils.clip_grad_norm_(self.trained_weights, recipe.loop.clip or math.inf))
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        result = StepResult(float(total[0]), norm, rate, bool(total[1]))
        if not math.isfinite(result.loss) or (not math.isfinite(norm) and not self.scaler.is_enabled()):
            raise NonFiniteLossError(f"The loss or its gradient is not a number at step {step + 1}.")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        return result

    def _accumulate(self, labels: Rows, batches: Iterator[Batch]) -> Tensor:
        """Gradients of all parts of this process; the sum of their losses, a float64 scalar."""
        loop, device = self.recipe.loop, self.group.device
        whole, total = self._weight(labels), torch.zeros((), dtype=torch.float64)
        for number in range(loop.accumulate):
            batch = next(batches)
            # Parts of unequal class weights count as they would in one batch; joined processes take a mean, not a sum.
            share = self._weight(batch.labels) / whole
            waveforms, targets = (torch.from_numpy(array).to(device) for array in (batch.waveforms, batch.labels))
            self.fine_tuner.set_mask_seeds(batch.seeds)
            with self._joined(last=number == loop.accumulate - 1), self.autocast():
                loss = self.model(waveforms, None, targets) * share
                self.scaler.scale(loss * self.group.size).backward()
            total += loss.detach().double().cpu()
        return total

    def _weight(self, labels: Rows) -> float:
        """What clips of these classes weigh in the loss together; classes of other speeds weigh the same."""
        weights = self.module.head.class_weights
        return float(len(labels)) if weights is None else float(weights.cpu().double().numpy()[labels].sum())

    def _joined(self, *, last: bool) -> AbstractContextManager[Any]:
        """Processes exchange gradients at the last part of a step only."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            no_sync: AbstractContextManager[Any] = self.model.no_sync()
            return no_sync
        return nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """The recipe's precision, for a forward pass."""
        dtype = PRECISIONS[self.recipe.loop.precision]
        return torch.autocast(self.group.device.type, dtype, enabled=dtype is not torch.float32)

    def broadcast_statistics(self) -> None:
        """Give all processes the main one's statistics of batch norms, which each has taken from its own clips."""
        state = self.network.state_dict()
        names = [name for name, _ in self.network.named_buffers() if name in state]
        for each in filter(None, (state, self.average)):
            self.group.broadcast(each[name] for name in names)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """With the moving average in the network, if there is one.

        The weights are swapped, because the average's copy of the network shares the hooks of the network itself.
        """
        if self.averaged is None:
            yield
            return
        current = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        yield
        self.network.load_state_dict(current)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step needs, for a checkpoint."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.average,
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on from a checkpoint that was written after `step` steps."""
        rates = [group["initial_lr"] for group in self.optimizer.param_groups]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["initial_lr"] = rate
        self.scheduler = schedule_learning_rates(self.optimizer, self.recipe, self.steps, step)
        self.scaler.load_state_dict(state["scaler"])
        if self.averaged is not None:
            restart_average(self.averaged, state["ema"], step)
