"""The moving average and the schedules that come from torch, against the rules written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from knn_cli.networks.network import Network
from knn_cli.training.model_builder import ModelBuilder
from knn_cli.training.optimization import (
    average_weights,
    build_optimizer,
    learning_rate_factor,
    restart_average,
    schedule_learning_rates,
)
from knn_cli.training.recipe import Recipe, ScheduleConfig
from knn_cli.training.recipe_reader import parse

TABLES = {
    "encoder": {"name": "resnet", "depth": 18, "width": 4, "bins": 16},
    "pooling": {"name": "resnet"},
    "head": {"name": "softmax"},
}


def recipe() -> Recipe:
    return parse(
        {
            **TABLES,
            "optimizer": {"rate": 0.03, "encoder_rate": 0.007},
            "schedule": {"epochs": 3, "warmup": 1.0, "final_rate": 0.001},
        }
    )


def network() -> Network:
    return ModelBuilder(recipe()).build(["a", "b"], None, 1)


@torch.no_grad()
def change(model: nn.Module, step: int) -> None:
    """Other weights and statistics, batch norms' counters among them."""
    for number, value in enumerate(model.state_dict().values()):
        value.add_(0.1 * (number % 7) - 0.3 if value.is_floating_point() else step + 1)


def test_the_moving_average_is_the_rule_written_out_bit_for_bit() -> None:
    model, decay = network(), 0.9
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    averaged = average_weights(model, decay)
    for step in range(120):
        change(model, step)
        averaged.update_parameters(model)
        now = min(decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name].lerp_(value, 1 - now)
            else:
                expected[name].copy_(value)
        if step == 50:  # as an interrupted training does
            state = {name: value.clone() for name, value in averaged.module.state_dict().items()}
            averaged = average_weights(network(), decay)
            restart_average(averaged, state, step + 1)
        state = averaged.module.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in expected.items()), step


@pytest.mark.parametrize("first", [0, 1, 7])
def test_rates_follow_the_schedule_from_any_step(first: int) -> None:
    mine = recipe()
    optimizer = build_optimizer(network(), mine.optimizer)
    bases = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    scheduler = schedule_learning_rates(optimizer, mine, 5, first)
    assert {0.03, 0.007} == set(bases)
    for step in range(first, 15):
        factor = learning_rate_factor(mine.schedule, 0.03, step, 5)
        assert [group["lr"] for group in optimizer.param_groups] == [base * factor for base in bases]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0.0, [0.0, 0.00191956415, 0.00368472651, 0.00530480167, 0.00678860473, 0.0081444764, 0.00938030693,
               0.0105035588, 0.0115212885, 0.012440167, 0.0132664992, 0.0127329481]),
        (0.5, [0.01, 0.0105576028, 0.0110541795, 0.011493737, 0.0118800583, 0.0122167146, 0.0125070759,
               0.0127543214, 0.0129614496, 0.0131312874, 0.0132664992, 0.0127329481]),
    ],
)  # fmt: skip
def test_warm_up_is_that_of_wespeaker_step_by_step(start: float, expected: list[float]) -> None:
    """Rates that wespeaker's ExponentialDecrease gave: 5 steps in each of 4 epochs, 2 of them warm-up, from 0 and not.

    Its peak is 0.01 times 128 clips a step over 64, and falls to 0.44 of that.
    """
    schedule = ScheduleConfig(epochs=4, warmup=2, warmup_from=start, final_rate=0.0088)
    rates = [0.02 * learning_rate_factor(schedule, 0.02, step, 5) for step in range(len(expected))]
    assert rates == pytest.approx(expected, rel=1e-8)


def test_cycles_are_those_of_wespeaker_step_by_step() -> None:
    """Rates that wespeaker's TriAngular2 gave: 5 steps in each epoch, cycles of two epochs."""
    expected = [0.0044, 0.00552, 0.00664, 0.00776, 0.00888, 0.01, 0.00888, 0.00776, 0.00664, 0.00552, 0.0044, 0.00496,
                0.00552, 0.00608, 0.00664, 0.0072, 0.00664, 0.00608, 0.00552, 0.00496, 0.0044, 0.00468]  # fmt: skip
    schedule = ScheduleConfig(epochs=8, final_rate=0.0044, cycle=2)
    rates = [0.01 * learning_rate_factor(schedule, 0.01, step, 5) for step in range(len(expected))]
    assert rates == pytest.approx(expected, rel=1e-8)


def test_adam_and_decay_of_all_weights() -> None:
    mine = parse({**TABLES, "optimizer": {"name": "adam", "weight_decay": 0.1, "decay_all": True}})
    optimizer = build_optimizer(ModelBuilder(mine).build(["a", "b"], None, 1), mine.optimizer)
    assert type(optimizer) is torch.optim.Adam
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}
