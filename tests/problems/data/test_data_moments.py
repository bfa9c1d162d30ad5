"""Moments, limits and risks of data against naive twins, in float64."""

import numpy as np
import pytest
import torch

import torchlimits as tl
from torchlimits.problems.data import expected_risk as risk_module
from torchlimits.problems.data import rows as module
from torchlimits.problems.data.expected_risk import expected_risk
from torchlimits.problems.data.moments import Moments
from torchlimits.problems.data.rows import Rows


def heavy(rows=60, dim=3, seed=0):
    """Data with long rows, and residuals that are larger there."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, dim, generator=g).double() * torch.tensor([1.5, 1.0, 0.7]).double()[:dim]
    x = z * torch.randn(rows, 1, generator=g).double().exp() ** 0.7
    y = x[:, 0] - x[:, 1] + 0.3 * x.norm(dim=1) * torch.randn(rows, generator=g).double()
    return x, y


def moments_of(**how):
    return Moments.of(Rows.of(*heavy(**how)))


def step_map(x, lr):
    """E[(I - lr v v^T) (x) (I - lr v v^T)], what a step does to E(w - w*)(w - w*)^T."""
    total = 0
    for v in x:
        one = torch.eye(len(v), dtype=torch.float64) - lr * torch.outer(v, v)
        total = total + torch.kron(one, one) / len(x)
    return total


def radius(x, lr):
    return float(torch.linalg.eigvals(step_map(x, lr)).abs().max())


def test_fourth_moments_are_sums_over_rows(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 3 * 7)  # blocks of 7 rows
    found = moments_of()
    quartic, noise = found.fourth
    for n in range(3):
        for m in range(3):
            products = [float(v[n] ** 2 * v[m] ** 2) for v in found.coordinates]
            assert float(quartic[n, m]) == pytest.approx(sum(products) / 60)
        products = [
            float(r**2 * v[n] ** 2)
            for r, v in zip(found.residuals[:, 0], found.coordinates, strict=True)
        ]
        assert float(noise[n]) == pytest.approx(sum(products) / 60)


@pytest.mark.parametrize("block", [60, 2**18])
def test_residuals_of_classes_are_those_of_least_squares(block, monkeypatch):
    """With means far apart and scales of three decades, over blocks of 32 rows or all at once."""
    monkeypatch.setattr(module, "_BLOCK", block)
    g = torch.Generator().manual_seed(5)
    x = torch.randn(500, 6, generator=g).double() * torch.logspace(0, -3, 6)
    y = torch.randint(0, 3, (500,), generator=g)
    x = x + 100 * torch.randn(3, 6, generator=g).double()[y]
    rows = Rows.of(x, y)
    found = Moments.of(rows)
    total = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    best = torch.linalg.lstsq(total, rows.numbers).solution
    torch.testing.assert_close(found.residuals, rows.numbers - total @ best, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.slopes @ found.basis, best[:-1].mT, rtol=1e-8, atol=1e-8)
    within = torch.linalg.lstsq(rows.deviations, rows.numbers).solution  # a control
    assert (found.residuals - rows.numbers + rows.deviations @ within).abs().max() > 0.1


def test_gaussian_data_have_the_gaussian_numbers():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(40_000, 6, generator=g).double()
    data = Moments.of(Rows.of(x, x[:, 0] + torch.randn(40_000, generator=g).double()))
    value, error = data.concentration
    assert abs(value - data.gaussian_concentration) < 4 * error
    value, error = data.kappa
    assert abs(value - 1) < 4 * error
    assert data.sufficient == pytest.approx(data.gaussian_sufficient, rel=0.05)
    quartic, _ = data.fourth
    lam = data.eigenvalues
    torch.testing.assert_close(
        quartic, torch.outer(lam, lam) + 2 * torch.diag(lam**2), rtol=0.1, atol=0.1
    )


def test_standard_errors_are_those_of_samples():
    """Over 200 samples, standard deviations agree with the mean of the errors."""
    drawn = []
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(400, 2, generator=g) * (0.5 + torch.rand(400, 1, generator=g))
        y = x[:, 0] + x.norm(dim=1) * torch.randn(400, generator=g)
        drawn.append(Moments.of(Rows.of(x, y)))
    for name in ("concentration", "kappa"):
        values = torch.tensor([getattr(one, name) for one in drawn])
        # a standard deviation of 200 values is known to 5 %
        assert float(values[:, 1].mean() / values[:, 0].std()) == pytest.approx(1, abs=0.2)


def test_the_mean_square_limit_is_where_the_radius_of_the_step_map_is_1():
    found = moments_of()
    x = found.coordinates
    limit = found.mean_square
    assert radius(x, 0.995 * limit) < 1 < radius(x, 1.005 * limit)
    # a control: neither the Gaussian limit nor the sufficient one is that
    assert radius(x, found.gaussian_mean_square) > 1.05
    assert radius(x, 1.05 * found.sufficient) < 1


def test_the_sufficient_limit_is_where_a_step_may_lengthen():
    found = moments_of()
    x, lam = found.coordinates, found.eigenvalues

    def worst(lr):
        change = lr**2 * (x.square().sum(1)[:, None] * x).mT @ x / len(x) - 2 * lr * torch.diag(lam)
        return float(torch.linalg.eigvalsh(change)[-1])

    assert worst(0.999 * found.sufficient) < 0 < worst(1.001 * found.sufficient)


def exact_risks(found, lr, steps):
    """E r^2 after each step of SGD on rows drawn with replacement, as maps of moments."""
    x, e = found.coordinates, found.residuals[:, 0]
    d = -found.slopes[0]
    S = torch.outer(d, d)
    risks = []
    for _ in range(steps + 1):
        risks.append(float((found.eigenvalues * S.diagonal()).sum() + e.square().mean()))
        A = torch.eye(3, dtype=torch.float64) - lr * x[:, :, None] * x[:, None]
        shift = lr * e[:, None] * x
        cross = (A @ d)[:, :, None] * shift[:, None]
        S = (A @ S @ A.mT + cross + cross.mT + shift[:, :, None] * shift[:, None]).mean(0)
        d = (A @ d + shift).mean(0)
    return torch.tensor(risks, dtype=torch.float64)


def test_expected_risk_is_that_of_the_exact_recursion(monkeypatch):
    found = moments_of(seed=1)
    lr = 0.02 * found.mean_square
    _, coarse, theory = expected_risk(found, lr, 1000 * lr)
    monkeypatch.setattr(risk_module, "_TIMES", 100)
    times, fine, gaussian = expected_risk(found, lr, 1000 * lr)
    exact = np.interp(times / lr, np.arange(1001), exact_risks(found, lr, 1000))
    ratios = fine.numpy() / exact
    np.testing.assert_allclose(ratios, 1, atol=0.003)  # continuous time is off by lr lambda_max
    # the errors of few times cancel in the ratio to the theory
    assert float(coarse[-1] / theory[-1] / (fine[-1] / gaussian[-1])) == pytest.approx(1, abs=0.003)
    # a control: the theory is further off
    assert float(np.abs(gaussian.numpy() / exact - 1).max()) > 0.01


def test_divergence_is_told():
    found = moments_of()
    _, risks, gaussian = expected_risk(found, 1.5 * found.mean_square, 400 * found.mean_square)
    assert float(risks[-1]) > 100 * float(risks[0])
    assert bool(gaussian.isfinite().all())


@pytest.mark.parametrize("batch", [1, 4])
def test_verdicts(batch):
    x, y = heavy(rows=400)
    data = tl.Covariance.of_data(x, y)
    limit = batch * data.moments.mean_square
    lower = data.diagnose(lr=0.01 * limit, steps=100, batch_size=batch)
    assert lower.verdict == "holds"
    assert data.diagnose(lr=0.5 * limit, steps=1000, batch_size=batch).verdict == "fails"
    above = data.diagnose(lr=1.01 * limit, batch_size=batch)
    assert above.verdict == "fails"
    assert "grows without bound from lr" in above.sentence
    assert above["largest stable lr"].value == pytest.approx(limit)
    halved = data.diagnose(lr=limit, momentum=0.5, batch_size=batch)["largest stable lr"]
    assert halved.value == pytest.approx(limit / 2)


def test_gaussian_data_hold():
    g = torch.Generator().manual_seed(5)
    x = torch.randn(3000, 40, generator=g)
    data = tl.Covariance.of_data(x, x[:, 0] + torch.randn(3000, generator=g))
    for lr in (0.002, 0.01):
        report = data.diagnose(lr=lr, steps=2000)
        assert report.verdict == "holds", str(report)
    assert data.diagnose(lr=0.06).verdict == "fails"  # 2 / tr Lambda = .05


def test_classes_with_covariances_of_their_own():
    g = torch.Generator().manual_seed(5)
    x, y = torch.randn(3000, 10, generator=g), torch.arange(3000) % 2
    alike = tl.Covariance.of_data(x, y).diagnose()["classes' covariances"]
    assert alike.level == "holds"
    assert alike.value == pytest.approx(alike.reference, rel=0.3)
    x[y == 1, :5] *= 2
    apart = tl.Covariance.of_data(x, y).diagnose()["classes' covariances"]
    assert apart.level == "doubtful"


def test_residuals_that_grow_with_length():
    x, y = heavy(rows=2000, seed=4)
    report = tl.Covariance.of_data(x, y).diagnose(lr=1e-2)
    assert report["kappa"].value > 2
    assert "larger where inputs are long" in report["kappa"].sentence
    with pytest.raises(KeyError, match="expected one of"):
        report["nothing"]
