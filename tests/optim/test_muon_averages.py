"""The mean and the squares of Muon's steps at one place, against buffers of real gradients."""

import pytest
import torch
from adaptive_runs import binary

from torchlimits.optim.batch_averages import PlainAverages, averages_of
from torchlimits.optim.gradient_map import ClipNorm
from torchlimits.optim.muon_averages import MuonAverages
from torchlimits.optim.muon_settings import MuonSettings

N, RUNS, STEPS = 1024, 12, 500


def steps_of(problem, model, settings, largest=None):
    """Steps of Muon at fixed parameters, in float64, ``(RUNS, STEPS, K, N)``.

    Args:
        problem, model, settings: the network at one place, and Muon.
        largest: what the norm of a batch's gradient is clipped to before.
    """
    generator = torch.Generator().manual_seed(3)
    W, B = model.first.weight.detach(), settings.batch_size
    x, y = problem.sample(B * RUNS * STEPS, generator=generator)
    x, y = x.reshape(-1, N), y.flatten()
    h = (x @ W.mT + model.first.bias.detach()).requires_grad_()
    residual = model.head(h).squeeze(-1) - y
    (g,) = torch.autograd.grad(residual.square().sum(), h)

    def of_batches(gradient):
        return gradient.detach().reshape(RUNS, STEPS, B, -1).mean(2)

    # of W, one row after the other, as samples' gradients would not fit
    G = torch.stack([of_batches(g[:, k, None] * x) for k in range(2)], dim=2)
    if largest is not None:
        others = [of_batches(g), of_batches(2 * residual[:, None]),
                  of_batches(2 * residual[:, None] * h.tanh())]  # fmt: skip
        square = G.square().sum((2, 3)) + sum(x.square().sum(2) for x in others)
        G = G * (largest / square.sqrt()).clamp_max(1)[..., None, None]
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
    ("momentum", "nesterov", "batch", "largest"),
    [
        (0.5, True, 1, 4.0),
        pytest.param(0.5, False, 1, None, marks=pytest.mark.slow),
        pytest.param(0.8, True, 1, None, marks=pytest.mark.slow),
        pytest.param(0.5, True, 1, None, marks=pytest.mark.slow),
    ],
)
def test_mean_and_squares_are_those_of_steps(momentum, nesterov, batch, largest, monkeypatch):
    """Within the error bars over runs; with the mean of buffers for each, far outside."""
    problem = binary(N)
    model = problem.model(generator=torch.Generator().manual_seed(0))
    settings = MuonSettings(1.0, momentum=momentum, nesterov=nesterov, batch_size=batch)
    steps = steps_of(problem, model, settings, largest)
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

    network, axes = problem.dynamics(step_size=1.0).network, torch.zeros(2, 0).double()
    plain = MuonAverages(PlainAverages(network, batch, axes), settings)
    averages = plain
    if largest is not None:
        averages = MuonAverages(averages_of(network, ClipNorm(largest, N), batch, axes), settings)
        assert max(off(plain)) > 3
    assert max(off(averages)) < 2
    monkeypatch.setattr("torchlimits.optim.muon_averages.LONG_WINDOW", 0)
    if batch == 1 and largest is None:
        assert max(off(averages)) > 3
