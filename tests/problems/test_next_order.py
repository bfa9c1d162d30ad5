"""Momentum near 1 at finite N: the buffer's dynamics against SGD, for parameters and for y."""

import pytest
import torch
from torch import nn

import torchlimits as tl

N, RUNS = 250, 100
CASES = [
    pytest.param({"momentum": 0.97, "weight_decay": 0.3}, 1, 250, id="heavy"),
    # the buffer holds about 33 steps
    pytest.param({"momentum": 0.97}, 16, 25, id="filling"),
    pytest.param(
        {"momentum": 0.97, "nesterov": True}, 1, 250, id="nesterov", marks=pytest.mark.slow
    ),
    pytest.param(
        {"momentum": 0.97, "dampening": 0.5}, 2, 250, id="dampened", marks=pytest.mark.slow
    ),
]


def teacher(x, component):
    return torch.tanh(x[:, 0] - 0.5 * x[:, 1]) + 0.3


def problem_of(ridge=0.0):
    torch.manual_seed(0)
    head = nn.Sequential(nn.Tanh(), nn.Linear(2, 1))
    return tl.NetworkProblem(
        dim=N, width=2, head=head, loss=nn.functional.mse_loss, directions=torch.eye(2, N),
        labels=teacher, snr=1.0, label_noise=0.3, ridge=ridge, dtype=torch.float64,
    )  # fmt: skip


def trained(problem, options, batch, c, steps):
    """Start, and the ends of RUNS runs: of the parameters and of the slow variable."""
    generator = torch.Generator().manual_seed(1)
    start = problem.model(generator=torch.Generator().manual_seed(0))
    u0 = problem.statistics(dict(start.named_parameters())).detach()
    model = problem.model(replicas=(RUNS,), generator=generator)
    with torch.no_grad():
        for p, one in zip(model.parameters(), start.parameters(), strict=True):
            p.copy_(one.expand_as(p))
    optimizer = torch.optim.SGD(model.parameters(), lr=c / N, **options)
    slow = tl.statistics.slow_variable(problem.statistics)
    with tl.track(model, optimizer, slow, every=steps) as tracker:
        for _ in range(steps):
            x, y = problem.sample(batch, replicas=(RUNS,), generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
    w = problem.statistics(dict(model.named_parameters())).detach()
    return u0, w, tracker.trajectory().final, optimizer


def rms_z(runs, predicted):
    z = (runs.mean(0) - predicted) / (runs.std(0) / len(runs) ** 0.5)
    return float(z.square().mean().sqrt())


@pytest.mark.parametrize(("options", "batch", "steps"), CASES)
def test_the_buffer_at_finite_n_is_what_runs_do(options, batch, steps):
    """rms z over the statistics falls from 5 to 24 to that of noise."""
    problem, c = problem_of(options.get("weight_decay", 0.0)), 0.03
    c = c / (1 - options.get("dampening", 0.0))
    u0, w, y, optimizer = trained(problem, options, batch, c, steps)
    dynamics = problem.dynamics(optimizer, batch_size=batch)
    times = [0.0, steps * c / N]
    first, ahead = dynamics.solve(u0, times).final, tl.NextOrder(dynamics)
    for runs, slow in ((w, False), (y, True)):
        # negative controls: the limit, and the other variable
        assert rms_z(runs, first) > 4, slow
        assert rms_z(runs, ahead.solve(u0, times, slow=not slow).final) > 3, slow
        assert rms_z(runs, ahead.solve(u0, times, slow=slow).final) < 1.5, slow


def test_without_momentum_it_is_the_limit():
    problem = problem_of()
    dynamics = problem.dynamics(step_size=0.5, batch_size=3, nodes=2**9)
    u0, times = problem.starts(2), [0.0, 0.25, 0.5]
    found = tl.NextOrder(dynamics).solve(u0, times, slow=True, rtol=1e-8, atol=1e-10)
    expected = dynamics.solve(u0, times, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-6, atol=1e-7)
    assert "slow variable" in found.metadata["equation"]


def test_what_it_is_not_known_for():
    spiked = tl.SpikedTensor(dim=20, order=2, snr=2.0).dynamics(step_size=1.0, momentum=0.5)
    with pytest.raises(TypeError, match=r"tl.GaussianMixture or tl.NetworkProblem under SGD"):
        tl.NextOrder(spiked)
    problem = problem_of()
    with pytest.raises(ValueError, match="constant step size for the next order"):
        tl.NextOrder(problem.dynamics(step_size=1.0, schedule=lambda t: 1.0))
    with pytest.raises(ValueError, match="step_size"):
        tl.NextOrder(problem.dynamics(step_size=0.0))
    model = problem.model()
    groups = [{"params": p, "lr": lr} for p, lr in zip(model.parameters(), (1, 2, 3), strict=False)]
    with pytest.raises(ValueError, match="one learning rate, momentum and weight decay for all"):
        tl.NextOrder(problem.dynamics(torch.optim.SGD(groups, momentum=0.5), model=model))
    ascent = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    with pytest.raises(ValueError, match="plain SGD for the next order"):
        tl.NextOrder(problem.dynamics(ascent))


def test_dynamics_hand_out_their_next_order():
    """Of networks and mixtures; of Adam there is none."""
    mixture = tl.GaussianMixture.binary(dim=N, snr=2.0)
    for problem in (problem_of(), mixture):
        dynamics = problem.dynamics(step_size=0.05, momentum=0.9)
        ahead = dynamics.next_order()
        assert isinstance(ahead, tl.NextOrder)
        assert ahead.dynamics is dynamics
    adam = torch.optim.Adam(problem_of().model().parameters(), lr=0.5 / N)
    with pytest.raises(TypeError, match="under SGD"):
        problem_of().dynamics(adam).next_order()
