"""Learning rates against torch's schedules and by hand; the moving average against its sum."""

import numpy as np
import pytest
import torch
from torch import nn

from edgekd import recipe
from edgekd.distill.optimization import Average, learning_rate, optimizer_of


def rates(steps=40, **settings):
    return [learning_rate(recipe.Training(**settings), step, steps) for step in range(steps)]


@pytest.mark.parametrize("warmup", [0.3, 0.1, 0.26])
def test_one_cycle_is_torchs(warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=40, pct_start=warmup, cycle_momentum=False)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates(schedule="one-cycle", learning_rate=0.5, warmup=warmup), expected, rtol=1e-9)


def test_cosine_rises_straight_and_falls_to_nothing():
    found = rates(schedule="cosine", learning_rate=1.0, warmup=0.1)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[4] == pytest.approx(1.0)
    assert found[22] == pytest.approx(0.5)  # half way down: step 4 + 36 / 2
    assert found[-1] < 0.01
    assert found[4:] == sorted(found[4:], reverse=True)


def test_constant_stays():
    assert rates(10, schedule="constant", learning_rate=2.0, warmup=0.2) == pytest.approx([1.0, *[2.0] * 9])


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_trainings_have_a_rate(schedule, warmup, steps):
    assert all(0 <= rate <= 2 for rate in rates(steps, schedule=schedule, warmup=warmup, learning_rate=2.0))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_and_norms_do_not_decay(name):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    optimizer = optimizer_of(net, recipe.Training(optimizer=name, weight_decay=0.3))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {key: decays[id(p)] for key, p in net.named_parameters()} == {
        "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 0.3, "3.bias": 0.0,
    }  # fmt: skip


def test_sgd_is_nesterov():
    weight = nn.Parameter(torch.tensor([[1.0]]))
    module = nn.Module()
    module.register_parameter("weight", weight)
    optimizer = optimizer_of(module, recipe.Training(optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.0))
    expected, velocity = 1.0, 0.0
    for gradient in (1.0, -2.0, 0.5):
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        velocity = 0.9 * velocity + gradient
        expected -= 0.1 * (gradient + 0.9 * velocity)
    assert weight.item() == pytest.approx(expected, rel=1e-6)


def test_average_is_the_weighted_sum_of_the_weights_so_far():
    net = nn.BatchNorm1d(1)
    average = Average(net, 0.75)
    expected = 1.0
    for step in range(1, 30):
        with torch.no_grad():
            net.weight.fill_(step)
            net.num_batches_tracked.fill_(step)
        average.update(step)
        decay = min(0.75, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert average.module.num_batches_tracked.item() == 29
