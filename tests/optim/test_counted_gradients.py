"""clip_norm= counts the gradients there are: frozen layers, parameters that nobody steps."""

import dataclasses

import pytest
import torch
from adaptive_runs import binary, misses, runs_of
from torch import nn

import torchlimits as tl
from torchlimits.optim.sgd_limit import SGDLimit

N = 256
SGD, Adam = torch.optim.SGD, torch.optim.Adam


def enlarge_head(model):
    """Much of the gradient is that of the first layer."""
    with torch.no_grad():
        weight = model.head[1].weight
        weight.copy_(torch.tensor([[2.0, -1.5]]).expand_as(weight))


def frozen_first(model):
    """The first layer requires no gradient."""
    enlarge_head(model)
    model.first.weight.requires_grad_(False)
    return SGD(model.parameters(), lr=2 / N)


def still_first(model):
    """The first layer has a gradient, and a learning rate of 0."""
    enlarge_head(model)
    groups = [{"params": [*model.head.parameters()]},
              {"params": [*model.first.parameters()], "lr": 0.0}]  # fmt: skip
    return SGD(groups, lr=2 / N)


def head_alone(model):
    """What `optimizer.zero_grad()` leaves of the first layer's gradient adds up."""
    enlarge_head(model)
    return SGD(model.head.parameters(), lr=2 / N)


def counting(dynamics, among):
    """The same dynamics with other gradients in the norm."""
    changed = dataclasses.replace(dynamics.limit.map, among=among)
    limit = dataclasses.replace(dynamics.limit, map=changed)
    return type(dynamics)(dynamics.network, limit)


def unclipped(dynamics):
    """The same dynamics without the clipping."""
    limit = dynamics.limit
    return type(dynamics)(dynamics.network, SGDLimit.of(limit.settings, limit.layers))


def off(measured, dynamics, count):
    """How far off the first statistics are, those that move, in standard errors."""
    predicted = dynamics.solve(measured.initial[0], measured.times)
    assert predicted.values[-1, count:].equal(measured.initial[0, count:])
    return misses(measured, predicted, count)


def test_frozen_gradients_do_not_count():
    measured, dynamics = runs_of(binary(N), frozen_first, steps=250, runs=40, clip_norm=0.5)
    assert dynamics.limit.map.among == {"first.bias", "head.1.weight", "head.1.bias"}
    assert off(measured, dynamics, 5) < 2
    assert off(measured, counting(dynamics, None), 5) > 9
    assert off(measured, unclipped(dynamics), 5) > 100


def test_gradients_of_what_does_not_move_count():
    measured, dynamics = runs_of(binary(N), still_first, steps=250, runs=40, clip_norm=5.0)
    assert dynamics.limit.map.among is None
    assert off(measured, dynamics, 3) < 2
    head = frozenset({"head.1.weight", "head.1.bias"})
    assert off(measured, counting(dynamics, head), 3) > 90
    assert off(measured, unclipped(dynamics), 3) > 100


def test_gradients_that_nobody_zeroes_are_refused():
    """With `optimizer.zero_grad()` they add up, and the run is not that of fresh ones."""
    problem = binary(N)
    model = problem.model()
    optimizer = head_alone(model)
    with pytest.raises(ValueError, match=r"one without first.weight, first.bias: .* add up"):
        problem.dynamics(optimizer, model=model, clip_norm=3.0)
    with pytest.raises(ValueError, match="add up from step to step"):
        problem.dynamics(Adam(model.head.parameters(), lr=1 / N), model=model, clip_norm=3.0)
    problem.dynamics(optimizer, model=model, clip_value=3.0)  # each entry by itself
    model.first.requires_grad_(False)
    dynamics = problem.dynamics(optimizer, model=model, clip_norm=3.0)
    assert dynamics.limit.map.among == {"head.1.weight", "head.1.bias"}


def test_they_add_up():
    """The reason why they are refused: the same loop, but for the group with lr=0."""
    problem, rows = binary(N), []
    for make in (still_first, head_alone):
        model = problem.model(generator=torch.Generator().manual_seed(0))
        optimizer, generator = make(model), torch.Generator().manual_seed(1)
        for _ in range(100):
            x, y = problem.sample(1, generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            size = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
            optimizer.step()
        rows.append(float(size))
    assert rows[1] > 4 * rows[0]


def test_what_has_a_gradient_has_to_be_known():
    problem = binary(N)
    model = problem.model()
    model.first.weight.requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=1 / N)
    with pytest.raises(ValueError, match=r"does not train first.weight: pass model="):
        problem.dynamics(optimizer, clip_norm=3.0)
    problem.dynamics(optimizer)
    known = problem.dynamics(optimizer, model=model, clip_norm=3.0)
    assert known.limit.describe()["clip_norm.of"] == ["first.bias", "head.1.bias", "head.1.weight"]


def test_numbers_alone_take_the_problems_own_parameters():
    network = nn.Sequential(nn.Linear(N, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    network[0].weight.requires_grad_(False)
    problem = tl.NetworkProblem.of(
        network, "0", loss=nn.functional.mse_loss, snr=4.0, means=torch.eye(2, N).double(),
        labels=torch.tensor([1.0, -1.0]).double(),
    )  # fmt: skip
    limit = problem.dynamics(step_size=1.0, clip_norm=3.0).limit
    assert limit.map.among == {"0.bias", "2.weight", "2.bias"}
    # the module that the optimizer trains is known to be the problem's own
    optimizer = SGD(network.parameters(), lr=1 / N)
    assert problem.dynamics(optimizer, clip_norm=3.0).limit.map.among == limit.map.among


def test_norms_of_parts_are_those_of_gradients():
    """|G|^2 of the parameters that count, against the gradients of real batches."""
    problem = binary(N)
    model = problem.model(generator=torch.Generator().manual_seed(0))
    start = problem.statistics(dict(model.named_parameters())).double()
    dynamics = problem.dynamics(SGD(model.parameters(), lr=1 / N), clip_norm=3.0, batch_size=2)
    generator, names = torch.Generator().manual_seed(1), [n for n, _ in model.named_parameters()]
    sizes, parameters = [], list(model.parameters())
    for _ in range(1500):
        x, y = problem.sample(2, generator=generator)
        grads = torch.autograd.grad(problem.loss(model(x), y), parameters)
        sizes.append(torch.stack([g.square().sum() for g in grads]))
    sizes = torch.stack(sizes).detach()
    for name, column in zip(names, sizes.mT, strict=True):
        field = counting(dynamics, frozenset({name})).field
        batches, changed = field.base.batches(start, 2), field.averages.batches
        square = changed._square(start, batches, batches.gram / 4.0)
        error = float(column.std() / len(column) ** 0.5)
        mean = float(batches.weight @ square.detach()) * N
        assert mean == pytest.approx(float(column.mean()), abs=4 * error)
