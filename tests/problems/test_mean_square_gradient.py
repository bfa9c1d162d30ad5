"""The mean square of a gradient to order 1/N, against gradients by autograd in full space."""

import pytest
import torch
from adaptive_runs import binary, three_classes
from torch import nn

import torchlimits as tl

N = 24
SAMPLES = 20_000
Z = 4.0


def mixture():
    return tl.GaussianMixture.xor(N, 4, snr=2.0, weights=[0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def gelu():
    """Means on axes, labels of the class, no spread of coordinates."""
    return three_classes(32, width=2, head=nn.Sequential(nn.GELU(), nn.Linear(2, 3)), snr=2.0)


def teacher():
    torch.manual_seed(0)
    return tl.TeacherStudent(dim=N, width=2, teacher_width=2, noise=0.3, dtype=torch.float64)


def gradients(problem, count, batch=1):
    """Gradients of batches, ``{name: (count, size)}``, and the statistics where they are taken."""
    model = problem.model(generator=torch.Generator().manual_seed(0))
    at = {name: p.detach() for name, p in model.named_parameters()}
    x, y = problem.sample(count * batch, generator=torch.Generator().manual_seed(2))

    def loss(p, x, y):
        return problem.loss(torch.func.functional_call(model, p, (x,)), y)

    batches = (z.reshape(count, batch, *z.shape[1:]) for z in (x, y))
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(at, *batches)
    return {name: g.flatten(1) for name, g in found.items()}, at


def z_of(values, predicted):
    return float((values.mean() - predicted).abs() / (values.std() / len(values) ** 0.5))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "make", [lambda: binary(32), gelu, mixture, teacher], ids=["tanh", "gelu", "mixture", "teacher"]
)
def test_networks_have_the_mean_square_of_real_gradients(make, batch):
    problem = make()
    found, at = gradients(problem, SAMPLES // batch, batch)
    found, u = {name: g.square().sum(1) for name, g in found.items()}, problem.statistics(at)
    optimizer = tl.AdaGradNorm(problem.model().parameters(), initial=1.0 * N)
    field = problem.dynamics(optimizer).field.base
    total = sum(found.values())
    one, common = (x * problem.dim for x in field.mean_square_gradient(u))
    assert z_of(total, one / batch + (1 - 1 / batch) * common) < Z
    # negative control: the leading order alone
    gram = field.averages(u).gram
    assert z_of(total, gram.trace() / field.snr * problem.dim / batch) > Z
    # each parameter by itself
    for name, values in found.items():
        one, common = (x * problem.dim for x in field.mean_square_gradient(u, [name]))
        assert z_of(values, one / batch + (1 - 1 / batch) * common) < Z


@pytest.mark.parametrize(("order", "dim"), [(2, 40), (3, 12)])
def test_spiked_tensors_have_the_mean_square_of_real_gradients(order, dim):
    """By the dense sampler, the ground truth."""
    problem = tl.SpikedTensor(dim, order, snr=2.0, sampler="dense", dtype=torch.float64)
    start = problem.model(at=(0.7, 0.4), generator=torch.Generator().manual_seed(1))
    model = problem.model(replicas=(4000,))
    model.x.data.copy_(start.x.detach())
    x, y = problem.sample(1, replicas=(4000,), generator=torch.Generator().manual_seed(2))
    problem.loss(model(x), y).backward()
    field = problem.dynamics(step_size=1.0).field
    one, common = field.mean_square_gradient(torch.tensor([0.7, 0.4], dtype=torch.float64))
    assert z_of(model.x.grad.square().sum(-1), one * dim) < Z
    assert z_of(model.x.grad.square().sum(-1), field.gradient_length(
        torch.tensor([0.7, 0.4], dtype=torch.float64)) ** 2 * dim) > 2 * Z  # fmt: skip
    # the square of the mean, of many samples, has 1/4000 of the noise in it
    mean = float(model.x.grad.mean(0).square().sum())
    assert mean - float(one - common) * dim / 4000 == pytest.approx(float(common) * dim, rel=0.05)


@pytest.mark.parametrize(
    "make", [binary, lambda dim: tl.GaussianMixture.binary(dim, 2, snr=2.0, dtype=torch.float64)],
    ids=["tanh", "mixture"],
)  # fmt: skip
def test_how_squares_fluctuate_with_steps(make):
    """Cov(increment, |grad L|^2/N) and Var of that, of single samples."""
    dim, samples, c = 1024, 4000, 0.7
    problem = make(dim)
    found, at = gradients(problem, samples)
    square = sum(g.square().sum(1) for g in found.values()) / dim
    u = problem.statistics(at)
    moved = {n: at[n] - c / dim * g.reshape(-1, *at[n].shape) for n, g in found.items()}
    rise = (problem.statistics(moved) - u) * dim / c
    optimizer = tl.AdaGradNorm(problem.model().parameters(), initial=1.0 * dim)
    cross, variance = problem.dynamics(optimizer).field.base.square_covariance(u, c)
    off = square - square.mean()
    products = torch.cat([(rise - rise.mean(0)) * off[:, None], off[:, None] ** 2], -1)
    error = products.std(0) / samples**0.5
    expected = torch.cat([cross, variance[None]])
    # what is left out is O(1/N) of the products of standard deviations
    slack = 8 / dim * torch.cat([rise.std(0) * off.std(), off.var()[None]])
    assert bool(((products.mean(0) - expected).abs() < Z * error + slack).all())
    # negative controls: none, and another sign
    for wrong in (0 * expected, -expected):
        assert not bool(((products.mean(0) - wrong).abs() < Z * error + slack).all())
