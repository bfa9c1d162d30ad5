"""Logistic regression and phase retrieval on a spectrum: blocks against quadrature and SGD."""

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import nn

import torchlimits as tl

DOUBLE = torch.float64
SPECTRUM = [(0.5, 0.4), (1.0, 0.4), (4.0, 0.2)]
EIGENVALUES = torch.tensor([0.5, 1.0, 4.0], dtype=DOUBLE)
FRACTIONS = torch.tensor([0.4, 0.4, 0.2], dtype=DOUBLE)
#: what the teacher, a unit vector, has in each block
PARTS = torch.tensor([0.48, 0.64, 0.6], dtype=DOUBLE)
SNR, NOISE, RIDGE, STEEP = 2.0, 0.3, 0.05, 3.0


class Square(nn.Module):
    def forward(self, h):
        return h.square()


class LogisticTeacher:
    """y = 1 with the probability sigmoid(3 s), else 0, for s = <w*, x>."""

    def law(self, x_parallel, component):
        one = torch.sigmoid(STEEP * x_parallel[:, 0])
        targets = torch.tensor([0.0, 1.0]).to(x_parallel).expand(len(one), 2)
        return targets, torch.stack([1 - one, one], 1)

    def sample(self, x_parallel, component, generator):
        one = torch.sigmoid(STEEP * x_parallel[:, 0])
        return torch.bernoulli(one, generator=generator)


def problem_of(kind, dim=500):
    vector = torch.zeros(dim, dtype=DOUBLE)
    vector[[dim // 10, dim // 2, 9 * dim // 10]] = PARTS
    given = {
        "logistic": {
            "head": nn.Identity(), "labels": LogisticTeacher(),
            "loss": nn.functional.binary_cross_entropy_with_logits,
        },
        "phase": {
            "head": Square(), "labels": lambda x, _: x[:, 0].square(), "label_noise": NOISE,
            "loss": nn.functional.mse_loss,
        },
    }[kind]  # fmt: skip
    return tl.NetworkProblem(
        dim=dim, width=1, bias=False, snr=SNR, directions=vector[None], ridge=RIDGE, dtype=DOUBLE,
        covariance=SPECTRUM, **given,
    )  # fmt: skip


def slope(kind, h, s):
    """dl/dh and its square, averaged over the labels' own noise."""
    if kind == "logistic":
        one = torch.sigmoid(STEEP * s)
        p = torch.sigmoid(h)
        return p - one, one * (1 - p).square() + (1 - one) * p.square()
    off = h.square() - s.square()
    return 4 * h * off, 16 * h.square() * (off.square() + NOISE**2)


def by_quadrature(kind, m, R, c, points=120):
    """Drift and corrector of (m, R), by a Gauss-Hermite rule over the law of (h, s)."""
    lam = EIGENVALUES / SNR
    cross = (lam * m * PARTS).sum()
    C = torch.stack([(lam * (m.square() + R)).sum(), cross, cross, (lam * PARTS**2).sum()])
    C = C.reshape(2, 2)
    nodes, weights = (torch.tensor(x, dtype=DOUBLE) for x in hermegauss(points))
    weights = weights / weights.sum()
    z = torch.cartesian_prod(nodes, nodes)
    w = torch.cartesian_prod(weights, weights).prod(1)
    h, s = (z @ torch.linalg.cholesky(C).mT).unbind(1)
    g, square = slope(kind, h, s)
    moments = torch.stack([w @ (g * h), w @ (g * s)])

    def with_gradient(h_part, s_part):
        """E[g q] of a normal q with these covariances with h and s."""
        return torch.stack([h_part, s_part], 1) @ torch.linalg.solve(C, moments)

    dm = -with_gradient(lam * m, lam * PARTS) - RIDGE * m
    dR = -2 * with_gradient(lam * R, torch.zeros(3, dtype=DOUBLE)) - 2 * RIDGE * R
    kick = c * FRACTIONS * lam * (w @ square)
    return torch.cat([dm, dR]), torch.cat([torch.zeros(3, dtype=DOUBLE), kick])


POINTS = [
    ([0.2, -0.1, 0.3], [0.4, 0.3, 0.2]),
    ([0.0, 0.0, 0.0], [0.3, 0.5, 0.1]),
    ([0.9, 0.5, -0.7], [0.1, 0.8, 0.4]),
]


@pytest.mark.parametrize("kind", ["logistic", "phase"])
@pytest.mark.parametrize("point", POINTS)
def test_drift_and_corrector_are_those_of_a_quadrature(kind, point):
    m, R = (torch.tensor(x, dtype=DOUBLE) for x in point)
    c = 0.7
    problem = problem_of(kind)
    assert problem.names == [f"{x}[{block},0,0]" for x in "mR" for block in range(3)]
    dynamics, u = problem.dynamics(step_size=c), torch.cat([m, R])
    drift, corrector = by_quadrature(kind, m, R, c)
    torch.testing.assert_close(dynamics.drift(u), drift, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dynamics.corrector(u), corrector, rtol=1e-6, atol=1e-6)
    # noise that is spread evenly over the dimensions is another
    even = corrector[3:].sum() * FRACTIONS
    assert float((dynamics.corrector(u)[3:] / even - 1).abs().min()) > 0.2


def informed(problem):
    """A model with overlap 0.5 with the teacher: m = 0 is a saddle of phase retrieval."""
    model = problem.model(generator=torch.Generator().manual_seed(0))
    first, teacher = model.get_parameter("first.weight"), problem.directions
    with torch.no_grad():
        first += (0.5 - first @ teacher.mT) @ teacher
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "c", "time"), [("logistic", 2.0, 4.0), ("phase", 0.05, 0.3)])
def test_runs_of_sgd_follow_the_dynamics(kind, c, time):
    """N = 500, 40 runs from one start; sizes and seeds fixed beforehand."""
    problem, runs = problem_of(kind), 40
    model = informed(problem)
    steps = round(time * problem.dim / c)
    measured = tl.train(
        problem, step_size=c, time=time, runs=runs, start=model, seed=1, progress=False,
        every=steps // 4,
    )  # fmt: skip
    dynamics, u = problem.dynamics(step_size=c), measured.initial[0]
    mean, error = measured.values.mean(0)[1:], measured.values.std(0)[1:] / runs**0.5

    def rms(**given):
        z = (mean - dynamics.solve(u, measured.times, **given).values[1:]) / error
        return float(z.square().mean().sqrt())

    assert rms() < 1.3
    assert rms(corrector=False) > 10
