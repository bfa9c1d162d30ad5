"""The mean and the squares of Muon's steps at one place, against buffers of real gradients."""

import pytest
import torch
from adaptive_runs import binary

from torchlimits.optim.batch_averages import PlainAverages
from torchlimits.optim.muon_averages import MuonAverages
from torchlimits.optim.muon_settings import MuonSettings

#: the remainder is O(1/N): with N = 256 it shows
N, RUNS, STEPS = 1024, 12, 500


def steps_of(problem, model, settings):
    """Steps of Muon at fixed parameters, in float64, ``(RUNS, STEPS, K, N)``."""
    generator = torch.Generator().manual_seed(3)
    W, B = model.first.weight.detach(), settings.batch_size
    x, y = problem.sample(B * RUNS * STEPS, generator=generator)
    x, y = x.reshape(-1, N), y.flatten()
    h = (x @ W.mT + model.first.bias.detach()).requires_grad_()
    loss = (model.head(h).squeeze(-1) - y).square().sum()
    (g,) = torch.autograd.grad(loss, h)
    G = torch.einsum("rsbk,rsbn->rskn", g.reshape(RUNS, STEPS, B, -1),
                     x.reshape(RUNS, STEPS, B, N)) / B  # fmt: skip
    buffer = torch.zeros_like(G[:, 0])
    steps = []
    for s in range(STEPS):
        beta = settings.momentum
        buffer = beta * buffer + (1 - beta) * G[:, s]
        X = (1 - beta) * G[:, s] + beta * buffer if settings.nesterov else buffer
        X = X / X.flatten(1).norm(dim=1)[:, None, None]
        for _ in range(5):
            C = X @ X.mT
            X = 3.4445 * X + (-4.7750 * C + 2.0315 * C @ C) @ X
        steps.append(X)
    return torch.stack(steps, 1)[:, 100:]  # the buffer has settled


@pytest.mark.parametrize(
    ("momentum", "nesterov", "batch"), [(0.5, False, 1), (0.8, True, 1), (0.5, True, 3)]
)
def test_mean_and_squares_are_those_of_steps(momentum, nesterov, batch, monkeypatch):
    """Within the error bars over runs; with the mean of buffers for each, far outside."""
    problem = binary(N)
    model = problem.model(generator=torch.Generator().manual_seed(0))
    settings = MuonSettings(1.0, momentum=momentum, nesterov=nesterov, batch_size=batch)
    steps = steps_of(problem, model, settings)
    E, W = problem.directions.double(), model.first.weight.detach()
    W_perp = W - W @ E.mT @ E
    rows = torch.cat([E, W_perp])
    along = (steps.mean(1) @ rows.mT).flatten(1)  # (RUNS, K (d + K))
    others = torch.linalg.qr(torch.cat([rows, torch.randn(N - 4, N).double()]).mT)[0][:, 4:]
    total = (steps @ others).sum(1)  # (RUNS, K, N - 4)
    squares = total @ total.mT / steps.shape[1]
    squares = squares.flatten(1)[:, [0, 1, 3]] / (N - 4)  # per coordinate and step

    def off(averages):
        means, _ = averages(problem.statistics(dict(model.named_parameters())).double().detach())
        mean = torch.cat([means.signal, means.across], dim=-1).flatten()
        pair = means.pair.flatten()[[0, 1, 3]]

        def z(measured, predicted):
            error = measured.std(0) / RUNS**0.5
            return float(((measured.mean(0) - predicted) / error).square().mean().sqrt())

        return z(along, mean), z(squares, pair)

    plain = PlainAverages(problem.dynamics(step_size=1.0).network, batch, torch.zeros(2, 0))
    averages = MuonAverages(plain, settings)
    assert max(off(averages)) < 2
    monkeypatch.setattr("torchlimits.optim.muon_averages.LONG_WINDOW", 0)
    if batch == 1:
        assert max(off(averages)) > 3
