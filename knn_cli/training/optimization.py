"""The optimizer, the schedules of learning rates and of the margin, and the moving average of weights."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from knn_cli.networks.heads.margins import MarginSchedule
from knn_cli.networks.network import Network
from knn_cli.training.fine_tuning import parameter_groups
from knn_cli.training.recipe import OptimizerConfig, Recipe, ScheduleConfig

__all__ = [
    "average_weights",
    "build_optimizer",
    "learning_rate_factor",
    "margin_schedule",
    "schedule_learning_rates",
]


def build_optimizer(network: Network, config: OptimizerConfig) -> Optimizer:
    """The recipe's optimizer over the weights of a network that are trained."""
    groups = parameter_groups(network, config)
    if config.name == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, lr=config.rate, momentum=config.momentum, nesterov=nesterov)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.rate, betas=config.betas)


def learning_rate_factor(schedule: ScheduleConfig, rate: float, step: int, steps: int) -> float:
    """Factor on all learning rates at a step.

    Warm-up is linear, begins at 0 or at the share `warmup_from` of the rates, and is multiplied with the decay: the
    formula of wespeaker's ExponentialDecrease, with and without `warm_from_zero`. With a `cycle` the rates are those of
    its TriAngular2, after Smith, "Cyclical learning rates for training neural networks", WACV 2017 (arXiv:1506.01186).

    Parameters
    ----------
    schedule
        The recipe's table [schedule].
    rate
        The head's learning rate, from which the way to `final_rate` begins.
    step
        Counted from 0 over the whole training.
    steps
        Steps per epoch.
    """
    epochs, decay, final = step / steps, schedule.decay, schedule.final_rate
    risen = min(1.0, epochs / schedule.warmup) if schedule.warmup else 1.0
    warm = schedule.warmup_from + (1 - schedule.warmup_from) * risen
    if final is None:
        return float(warm * decay**epochs)
    if schedule.cycle:
        length = max(2, int(schedule.cycle * steps))
        half, place = length // 2, step % length
        height = (1 - final / rate) * 0.5 ** (step // length)
        part = place / half if place <= half else 1 - (place - half) / half
        return float(warm * (final / rate + height * part))
    return float(warm * (final / rate) ** (epochs / schedule.epochs))


def schedule_learning_rates(optimizer: Optimizer, recipe: Recipe, steps: int, step: int) -> LambdaLR:
    """The schedule of `learning_rate_factor`, about to take step `step` of `steps` per epoch."""

    def factor(number: int) -> float:
        return learning_rate_factor(recipe.schedule, recipe.optimizer.rate, number, steps)

    return LambdaLR(optimizer, factor, last_epoch=step - 1)


def margin_schedule(recipe: Recipe, steps: int) -> MarginSchedule | None:
    """The margin's schedule for `steps` per epoch; None if the recipe has no table [margin]."""
    margin = recipe.margin
    if margin is None:
        return None
    first, last = round(margin.first * steps), round(margin.last * steps)
    return MarginSchedule(margin.start, margin.end, max(0, last - first), first, margin.kind)


def average_weights(network: Network, decay: float) -> AveragedModel:
    """An exponential moving average of a network's weights and statistics, updated by `update_parameters`.

    e <- d e + (1 - d) w at each step, with d = min(decay, n / (9 + n)) after n - 1 steps; integers are copied.

    The rule is our own, because `torch.optim.swa_utils.get_ema_multi_avg_fn` has a constant decay and copies the
    weights at the first update: other values, in which the first weights, which are random, stay for long.
    """

    @torch.no_grad()
    def update(averages: Any, weights: Any, count: Any) -> None:
        number = int(count)
        warm = min(decay, number / (9 + number))
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, 1 - warm)
            else:
                average.copy_(weight)

    averaged = AveragedModel(cast(nn.Module, network), multi_avg_fn=update, use_buffers=True)
    restart_average(averaged, averaged.module.state_dict(), step=0)
    return averaged


def restart_average(averaged: AveragedModel, state: dict[str, Tensor], step: int) -> None:
    """Go on from an average of `step` steps; the first weights count as one, so that they are not copied over."""
    averaged.module.load_state_dict(state)
    averaged.n_averaged.fill_(step + 1)
