"""Second derivatives are those of the function, or they are refused."""

import pytest
import torch
from torch import nn

import torchlimits as tl
from torchlimits import _linalg

HESSIANS = {
    "hessian": torch.func.hessian,
    "forward twice": lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
    "reverse twice": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "reverse over forward": lambda f: torch.func.jacrev(torch.func.jacfwd(f)),
    "autograd": lambda f: lambda u: torch.autograd.functional.hessian(f, u),
}


def field(width, quantity="rates"):
    """One number of the dynamics, or the risk, and a point where nothing is special."""
    dynamics = tl.GaussianMixture.binary(dim=100, width=width, snr=2.0).dynamics(
        step_size=1.0, level=0 if width < 3 else -1
    )
    generator = torch.Generator().manual_seed(3)
    v, m, B = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((width,), (width, 1), (width, width))
    )
    u = dynamics.join(v, m, B @ B.mT + 0.1 * torch.eye(width))
    weights = torch.linspace(1, 2, len(u), dtype=torch.float64)
    if quantity == "risk":
        return dynamics.risk, u
    return (lambda u: dynamics(0.0, u) @ weights), u


def by_differences(function, u, h=1e-4):
    """Differences of the first derivatives."""
    slope = torch.func.grad(function)
    eye = h * torch.eye(len(u), dtype=u.dtype)
    return torch.stack([(slope(u + e) - slope(u - e)) / (2 * h) for e in eye])


@pytest.mark.parametrize("ways", HESSIANS)
@pytest.mark.parametrize("width", [1, 2])
def test_mixtures(width, ways):
    function, u = field(width)
    assert torch.allclose(HESSIANS[ways](function)(u), by_differences(function, u), atol=1e-6)


def test_risk_of_a_mixture():
    function, u = field(2, "risk")
    assert torch.allclose(torch.func.hessian(function)(u), by_differences(function, u), atol=1e-6)


def test_at_the_point_where_it_was_wrong():
    """d2(dR/dt)/dm2 was 0.0577, where differences say 0.0204."""
    dynamics = tl.GaussianMixture.binary(dim=100, width=1, snr=2.0).dynamics(step_size=1.0)
    u = torch.tensor([0.7, 0.4, 0.5], dtype=torch.float64)
    second = torch.func.hessian(lambda u: dynamics(0.0, u)[2])(u)[1, 1]
    e = torch.tensor([0.0, 1e-3, 0.0], dtype=torch.float64)
    values = [float(dynamics(0.0, u + k * e)[2]) for k in (-1, 0, 1)]
    expected = (values[0] - 2 * values[1] + values[2]) / 1e-6
    assert float(second) == pytest.approx(expected, rel=1e-4)
    assert expected == pytest.approx(0.0204, abs=5e-5)


@pytest.mark.parametrize("ways", HESSIANS)
def test_more_neurons_are_refused(ways):
    for quantity in ("rates", "risk"):
        function, u = field(3, quantity)
        with pytest.raises(NotImplementedError, match="second ones, which are not known"):
            HESSIANS[ways](function)(u)
        assert torch.allclose(
            torch.func.jacfwd(function)(u), torch.func.jacrev(function)(u), atol=1e-12
        )


def test_the_root_is_right_to_third_order():
    """Where all eigenvalues are equal and eigenvectors have no derivative, too."""
    generator = torch.Generator().manual_seed(0)
    X, w = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    X = X + X.mT
    eye = torch.eye(3, dtype=torch.float64)
    for base in (eye, eye + X @ X):

        def along(s, base=base):
            return (w * _linalg.psd_sqrt(base + s * X)).sum()

        slope = torch.func.grad
        at, h = torch.zeros((), dtype=torch.float64), 1e-3
        one, two, three = slope(along), slope(slope(along)), slope(slope(slope(along)))
        for lower, higher in ((along, one), (one, two), (two, three)):
            moved = [lower(at + k * h) - lower(at - k * h) for k in (1, 2)]
            expected = (8 * moved[0] - moved[1]) / (12 * h)
            assert torch.allclose(higher(at), expected, rtol=1e-5, atol=1e-7)


def test_networks_with_kinks_have_a_risk_with_first_derivatives_alone():
    problem = tl.NetworkProblem(
        dim=100, width=2, head=nn.Sequential(nn.ReLU(), nn.Linear(2, 1)), snr=2.0,
        loss=nn.functional.mse_loss, means=torch.eye(2, 100), labels=torch.tensor([1.0, -1.0]),
    )  # fmt: skip
    dynamics = problem.dynamics(step_size=1.0, nodes=2**10)
    u = problem.starts(1, generator=torch.Generator().manual_seed(0))[0].requires_grad_()
    (slope,) = torch.autograd.grad(dynamics.risk(u), u, create_graph=True)
    with pytest.raises(NotImplementedError, match="second ones, which are not known"):
        torch.autograd.grad(slope.sum(), u)


def test_what_a_transformation_makes_first_is_not_kept():
    """Nodes that are made inside torch.func belonged to it, and the next call failed."""
    from torchlimits.problems.mixture import quadrature

    for cached in ("_lattice", "_gauss_legendre", "_directions", "_regions"):
        getattr(quadrature, cached).__wrapped__  # noqa: B018
    function, u = field(1)
    weights = torch.func.grad(function)(u)
    assert torch.equal(torch.func.grad(function)(u), weights)
    assert torch.equal(torch.func.jacfwd(function)(u), torch.func.jacfwd(function)(u))
