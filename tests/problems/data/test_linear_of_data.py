"""`LinearModel` of data: what it takes from them, and its prediction of SGD on them."""

import pytest
import torch

import torchlimits as tl
from torchlimits.problems.data.moments import Moments
from torchlimits.problems.data.rows import Rows


def heavy(rows=1500, dim=20):
    """Inputs whose length varies, with noise that grows with it."""
    g = torch.Generator().manual_seed(0)
    length = 0.3 + 1.4 * torch.rand(rows, 1, generator=g).double() ** 2
    scales = torch.linspace(0.5, 1.5, dim).double()
    x = torch.randn(rows, dim, generator=g).double() * scales * length
    noise = length[:, 0] ** 2 * torch.randn(rows, generator=g).double()
    return x - x.mean(0), x @ torch.linspace(-0.5, 0.5, dim).double() + noise


def risks_of_sgd(x, y, lr, steps, runs):
    """Mean and standard error over runs of E (<w, x> - y)^2 on the rows, by torch.optim.SGD."""
    g = torch.Generator().manual_seed(1)
    weights = torch.nn.Parameter(torch.zeros(runs, x.shape[1], dtype=torch.float64))
    optimizer = torch.optim.SGD([weights], lr=lr)
    for _ in range(steps):
        drawn = torch.randint(len(x), (runs,), generator=g)
        optimizer.zero_grad()
        ((weights * x[drawn]).sum(1) - y[drawn]).square().sum().div(2).backward()
        optimizer.step()
    risks = (weights.detach() @ x.mT - y).square().mean(1)
    return float(risks.mean()), float(risks.std()) / runs**0.5


def test_fourth_moments_of_data_repair_the_prediction():
    x, y = heavy()
    data = tl.Covariance.of_data(x, y)
    lr, steps = 0.02, 600
    mean, error = risks_of_sgd(x, y, lr, steps, runs=600)
    found = {}
    for fourth in (False, True):
        problem = tl.LinearModel(covariance=data, fourth_moments=fourth)
        c = lr * problem.dim
        path = problem.dynamics(step_size=c).solve(problem.initial, [0.0, c * steps / problem.dim])
        found[fourth] = 2 * float(problem.risk(path.values[-1]))
    assert abs(found[True] - mean) < 4 * error + 0.01 * mean
    # a control: the Gaussian corrector is further off than that
    assert abs(found[False] - mean) > 4 * error + 0.05 * mean
    report = data.diagnose(lr=lr, steps=steps)
    assert report.verdict != "holds"
    worst = report["risk / Gaussian risk"]
    assert worst.value == pytest.approx(mean / found[False], abs=4 * error / found[False] + 0.02)


def test_what_is_taken_from_data():
    x, y = heavy(200, 4)
    data = tl.Covariance.of_data(x, y)
    problem = tl.LinearModel(covariance=data, fourth_moments=True)
    assert problem.dim == 4
    assert problem.noise == data.residual
    torch.testing.assert_close(problem.target, data.target)
    given = tl.LinearModel(4, covariance=data, noise=0.5, errors=[1.0, 2.0, 3.0, 4.0])
    assert given.noise == 0.5
    assert given.initial.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert problem.stability_limit() < tl.LinearModel(covariance=data).stability_limit()
    assert problem.stability_limit() > 4 * data.moments.sufficient


def test_data_without_labels_say_nothing_of_the_target():
    data = tl.Covariance.of_data(heavy(200, 4)[0])
    assert tl.LinearModel(covariance=data, noise=0.1).initial.sum() == pytest.approx(1)
    for how in ({}, {"noise": 0.1, "fourth_moments": True}):
        with pytest.raises(ValueError, match=r"covariance=tl\.Covariance\.of_data\(x, y\)"):
            tl.LinearModel(covariance=data, **how)


def test_refused():
    x, y = heavy(200, 4)
    with pytest.raises(ValueError, match="expected dim="):
        tl.LinearModel(noise=0.1)
    with pytest.raises(ValueError, match="got classes"):
        tl.LinearModel(covariance=tl.Covariance.of_data(x, (y > 0).long()))
    with pytest.raises(ValueError, match="y with 2 columns"):
        tl.LinearModel(covariance=tl.Covariance.of_data(x, torch.stack([y, y], 1)))
    data = tl.Covariance.of_data(x, y)
    with pytest.raises(ValueError, match="leave out noise"):
        tl.LinearModel(covariance=data, noise=0.1, fourth_moments=True)


def test_time_and_memory_at_1000_dimensions():
    """Moments of 2,000 rows are gathered over blocks that stay in the cache."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 1000, generator=g).double()
    moments = Moments.of(Rows.of(x, x[:, 0]))
    sizes = [part.numel() for part, _ in moments.chunks()]
    assert sum(sizes) == x.numel()
    assert max(sizes) <= 2**18
    assert moments.mean_square == pytest.approx(moments.gaussian_mean_square, rel=0.02)
