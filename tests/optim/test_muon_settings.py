"""What is read from torch.optim.Muon, against its own steps."""

import pytest
import torch
from torch import nn

from torchlimits.optim.muon_settings import MuonSettings
from torchlimits.optim.newton_schulz import NewtonSchulz

DEFAULT = NewtonSchulz((3.4445, -4.7750, 2.0315), 5)


def muon(weight, **options):
    return torch.optim.Muon([weight], **{"lr": 1.0, "weight_decay": 0.0, **options})


@pytest.mark.parametrize("steps", [1, 5])
def test_the_polynomial_acts_on_singular_values(steps):
    """Of matrices of one to five rows: against the scalar iteration, by the SVD."""
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 2, 5):
        X = torch.randn(rows, 40, generator=generator, dtype=torch.float64)
        X = X / X.norm()
        left, values, right = torch.linalg.svd(X, full_matrices=False)
        for _ in range(steps):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        iteration = NewtonSchulz((3.4445, -4.7750, 2.0315), steps)
        torch.testing.assert_close(iteration(X @ X.mT) @ X, left * values @ right)


def test_a_step_of_torch_is_the_polynomial_of_the_gradient():
    """To the rounding of bfloat16; the polar factor is off by more."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(3, 500))
    weight.grad = torch.randn(3, 3, generator=generator) @ torch.randn(3, 500, generator=generator)
    muon(weight, momentum=0.0, nesterov=False).step()
    X = weight.grad / weight.grad.norm()
    expected = DEFAULT(X @ X.mT) @ X
    assert float((-weight.detach() - expected).norm() / expected.norm()) < 0.02
    left, _, right = torch.linalg.svd(X, full_matrices=False)
    assert float((-weight.detach() - left @ right).norm() / expected.norm()) > 0.1


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_weights_are_those_of_torchs_buffer(momentum, nesterov):
    """With a gradient along another coordinate at each step, a step shows how much of each."""
    weight = nn.Parameter(torch.zeros(1, 30))
    optimizer = muon(weight, momentum=momentum, nesterov=nesterov)
    for s in range(30):
        weight.grad = torch.zeros(1, 30)
        weight.grad[0, s] = 1.0
        before = weight.detach().clone()
        optimizer.step()
    last = (before - weight.detach()).flip(1)[0]
    settings = MuonSettings(1.0, momentum=momentum, nesterov=nesterov)
    w = settings.weights()[:30]
    expected = torch.zeros(30)
    expected[: len(w)] = w.float()
    torch.testing.assert_close(last / last.norm(), expected / expected.norm(), rtol=0, atol=5e-3)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
def test_weights_add_up_to_one_and_squares_to_kappa(momentum, nesterov):
    settings = MuonSettings(1.0, momentum=momentum, nesterov=nesterov, batch_size=4)
    w = settings.weights()
    assert float(w.sum()) == pytest.approx(1, abs=1e-6)
    assert float(w.square().sum()) == pytest.approx(settings.energy, rel=1e-9)
    assert settings.window == pytest.approx(4 / settings.energy)


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw", None])
@pytest.mark.parametrize("shape", [(2, 100), (50, 20)])
def test_learning_rates_are_adjusted_as_by_torch(adjust, shape):
    """A gradient of rank one along one entry, whose image is p(1) there."""
    weight = nn.Parameter(torch.zeros(*shape))
    optimizer = muon(weight, lr=0.5, momentum=0.0, nesterov=False, adjust_lr_fn=adjust)
    weight.grad = torch.zeros(*shape)
    weight.grad[0, 0] = 1.0
    optimizer.step()
    settings = MuonSettings.of_group(optimizer.param_groups[0], dim=10)
    p = float(DEFAULT(torch.ones(1, 1)))
    assert -float(weight.detach()[0, 0]) == pytest.approx(
        0.5 * p * settings.adjusted(*shape), rel=0.02
    )
    assert settings.step_size == 5.0


def test_decay_is_of_the_learning_rate_before_it_is_adjusted():
    weight = nn.Parameter(torch.ones(2, 100))
    optimizer = muon(weight, lr=0.5, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    weight.grad = torch.zeros(2, 100)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 100), 1 - 0.5 * 0.1))
    assert MuonSettings.of_group(optimizer.param_groups[0], dim=10).decay == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "expected momentum < 1 in Muon, got 1"),
        ({"step_size": -1.0}, "expected step_size"),
        ({"adjust": "other"}, "expected adjust_lr_fn"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MuonSettings(**{"step_size": 1.0, **options})
