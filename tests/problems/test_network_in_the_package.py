"""What the rest of the package does with network problems: estimates, runs, pictures."""

import torch
from torch import nn
from torch.nn import functional as F

import torchlimits as tl


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def classes(dim=400, **given):
    """Three classes, labels flipped now and then by what x is, a head of two layers."""
    head = nn.Sequential(nn.GELU(), nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))
    arguments = {
        "loss": F.cross_entropy, "labels": torch.tensor([0, 1, 2]), "snr": 2.0, "ridge": 0.05,
        "label_flips": 0.1, "means": 1.0 * torch.eye(3, dim),
    }  # fmt: skip
    return tl.NetworkProblem(dim=dim, width=2, head=head, **{**arguments, **given})


def binary(dim=100, **given):
    """Two means +c and -c, one smooth neuron."""
    c = torch.eye(1, dim)
    arguments = {
        "loss": lambda output, y: F.softplus(-y * output).mean(), "means": torch.cat([c, -c]),
        "labels": torch.tensor([1.0, -1.0]), "snr": 4.0, "bias": False,
    }  # fmt: skip
    return tl.NetworkProblem(dim=dim, width=1, head=nn.Softplus(beta=5), **{**arguments, **given})


def own(dim=100):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(dim, 2), nn.Tanh(), nn.Linear(2, 1))
    problem = tl.NetworkProblem.of(
        model, loss=F.mse_loss, labels=torch.tensor([1.0, -1.0]), label_noise=0.2, snr=4.0,
        means=torch.eye(2, dim), ridge=0.1,
    )  # fmt: skip
    return model, problem


def point(problem, seed=0):
    """Statistics of order 1, unlike those at a start."""
    return problem.dynamics(step_size=1.0).field.geometry.random(1, generator(seed))[0]


def deviations(found, theory):
    return (found.value - theory)[found.standard_error > 0] / found.standard_error[
        found.standard_error > 0
    ]


def rms(x):
    return float(x.square().mean().sqrt())


# --- from data ------------------------------------------------------------------------------------


def test_theory_at_a_point_is_what_data_say_there():
    problem = classes()
    u, dynamics = point(problem), problem.dynamics(step_size=1.0)
    model = problem.model(dtype=torch.float64)
    lifted = tl.Lift(model, problem.statistics)(u)
    with torch.no_grad():
        for name, value in lifted.items():
            model.get_parameter(name).copy_(value)
    found = tl.estimate(
        model, problem.loss, problem.sample, problem.statistics, step_size=1 / problem.dim,
        samples=6000, weight_decay=0.05, generator=generator(),
    )  # fmt: skip
    assert torch.allclose(found.u, u)
    assert found.names == problem.names
    assert rms(deviations(found.drift, dynamics.drift(u))) < 1.4
    assert (
        rms(
            deviations(
                found.corrector,
                dynamics.corrector(u)[found.corrector.standard_error > 0]
                if False
                else dynamics.corrector(u),
            )
        )
        < 1.8
    )
    # a step's covariance, of the statistics' own
    own, error = found.increment_covariance.value, found.increment_covariance.standard_error
    theory = dynamics.diffusion(u) / problem.dim
    assert rms((own - theory)[error > 0] / error[error > 0]) < 1.6
    # negative controls: without flips; of W's rows without noise
    without = classes(label_flips=None).dynamics(step_size=1.0)
    assert rms(deviations(found.drift, without.drift(u))) > 4
    assert rms(deviations(found.corrector, 0.8 * dynamics.corrector(u))) > 4
