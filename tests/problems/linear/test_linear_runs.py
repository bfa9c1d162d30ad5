"""Least squares by torch.optim.SGD in full space: predictions, bands and the exact chain."""

import math

import pytest
import torch
from real_sgd import train
from two_samples import alike

import torchlimits as tl
from torchlimits.dynamics.solver import integrate

PAIRS = [(4.0, 0.1), (1.0, 0.4), (0.25, 0.5)]
ERRORS = [0.6, 0.3, 0.8]


def make(dim, **given):
    return tl.LinearModel(
        dim, covariance=PAIRS, noise=0.7, errors=ERRORS, dtype=torch.float64, **given
    )


def rms(measured, values):
    """Root mean square z of the means, over times and statistics."""
    runs = measured.values.shape[0]
    error = measured.values.std(0)[1:] / runs**0.5
    z = (measured.values.mean(0)[1:] - values[1:]) / error
    return float(z.square().mean().sqrt())


def flat(problem, c, times, q=1.0):
    """The solution with tau f_l in place of lambda_l f_l, tau the mean eigenvalue."""
    lam, f = (torch.tensor(x, dtype=torch.float64) for x in zip(*PAIRS, strict=True))
    tau = lam @ f

    def rhs(t, u):
        return -2 * q * lam * u + q * q * c * f * tau * (0.49 + u @ lam)[..., None]

    return integrate(rhs, problem.initial, times, 1e-9, 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "momentum"), [(1, 0.0), (2, 0.5)])
def test_runs_of_torch_sgd_follow_the_prediction(batch, momentum):
    problem, c, runs = make(500), 0.9, 150
    model = problem.model(replicas=(runs,))
    sgd = torch.optim.SGD(model.parameters(), lr=c / 500, momentum=momentum)
    measured = train(problem, model, sgd, 1200 // batch, batch=batch, every=100)
    dynamics = problem.dynamics(sgd, batch_size=batch)
    predicted = dynamics.solve(measured.initial[0], measured.times, band=True)
    assert rms(measured, predicted.values) < 1.3
    ratio = (measured.values.std(0) / predicted.std)[1:]
    assert 0.95 < float(ratio.mean()) < 1.05
    # negative controls: no corrector, and noise that is spread evenly over the dimensions
    none = dynamics.solve(measured.initial[0], measured.times, corrector=False)
    assert rms(measured, none.values) > 10
    q = 1 / (1 - momentum)
    assert rms(measured, flat(problem, c / batch, measured.times, q)) > 10
    assert float(problem.risk(predicted.values[-1])) < 0.6 * float(problem.risk(problem.initial))


@pytest.mark.parametrize(
    ("batch", "options"),
    [(1, {}), (3, {"momentum": 0.6, "nesterov": True}), (2, {"momentum": 0.9})],
)
def test_the_chain_has_the_law_of_torch_sgd(batch, options):
    """At N = 12 with levels of 1, 2 and 9 dimensions, from w = 0."""
    pairs = [(2.0, 1 / 12), (1.0, 2 / 12), (0.3, 9 / 12)]
    given = {"covariance": pairs, "noise": 0.5, "dtype": torch.float64}
    problem, runs, lr = tl.LinearModel(12, **given), 3000, 0.1
    model = problem.model(replicas=(runs,))
    sgd = torch.optim.SGD(model.parameters(), lr=lr * (1 - options.get("momentum", 0.0)), **options)
    measured = train(problem, model, sgd, 24, batch=batch, every=8)
    chain = problem.reduced_chain(sgd, batch_size=batch)
    generator = torch.Generator().manual_seed(1)
    drawn = chain.run(problem.initial, 24, runs=runs, every=8, generator=generator)
    a, b = (x.values[:, 1:].transpose(0, 1) for x in (measured, drawn))
    assert alike(a, b)
    # negative control: another noise
    other = tl.LinearModel(12, **{**given, "noise": 0.6})
    wrong = other.reduced_chain(sgd, batch_size=batch)
    drawn = wrong.run(problem.initial, 24, runs=runs, every=8, generator=generator)
    assert not alike(a, drawn.values[:, 1:].transpose(0, 1))


@pytest.mark.slow
def test_bands_and_means_are_those_of_the_chain():
    problem, c = make(1000), 0.8
    dynamics = problem.dynamics(step_size=c)
    times = torch.linspace(0, 0.9, 4, dtype=torch.float64)
    path = dynamics.solve(problem.initial, times, band=True)
    law = dynamics.solve(problem.initial, times, band="law")
    z = (law.values - path.values)[1:] / law.std[1:] * 2000**0.5
    assert float(z.square().mean().sqrt()) < 2  # and O(1/n)
    ratio = law.std[1:] / path.std[1:]
    assert float(ratio.min()) > 0.95
    assert float(ratio.max()) < 1.05


@pytest.mark.slow
def test_runs_diverge_above_the_limit_and_settle_at_the_plateau_below():
    problem = make(200)
    limit = problem.critical_step_size
    generator = torch.Generator().manual_seed(0)

    def risks(c, time):
        chain = problem.reduced_chain(step_size=c)
        steps = round(time * problem.dim / c)
        path = chain.run(problem.initial, steps, runs=200, every=steps // 4, generator=generator)
        return problem.risk(path.values)

    grown = risks(1.4 * limit, 15.0).mean(0)
    assert bool((grown.diff() > 0).all())
    assert float(grown[-1]) > 4 * float(grown[0])
    last = risks(0.5 * limit, 12.0)[:, -1]
    error = float(last.std()) / 200**0.5
    plateau = problem.plateau(0.5 * limit)
    assert plateau == pytest.approx(0.49, rel=1e-12)  # s^2 / 2 over 1 - 1/2
    assert abs(float(last.mean()) - plateau) < 4 * error
    assert abs(float(last.mean()) - 0.245) > 10 * error


def test_the_best_step_size_is_best_in_runs():
    problem, steps = make(200), 400
    best = problem.optimal_step_size(steps)
    generator = torch.Generator().manual_seed(0)

    def final(c):
        path = problem.reduced_chain(step_size=c).run(
            problem.initial, steps, runs=1000, every=steps, generator=generator
        )
        risk = problem.risk(path.final)
        return float(risk.mean()), float(risk.std()) / 1000**0.5

    at_best, error = final(best)
    predicted = problem.dynamics(step_size=best).solve(problem.initial, [0.0, steps * best / 200])
    assert math.isclose(at_best, float(problem.risk(predicted.final)), rel_tol=0.02)
    for factor in (0.5, 2.0):
        other, other_error = final(best * factor)
        assert other - at_best > 4 * math.hypot(error, other_error)


def test_train_and_compare_work_with_it():
    problem = make(100)
    measured = tl.train(
        problem, step_size=0.5, time=1.0, runs=8, every=50, dtype=torch.float64, progress=False
    )
    predicted = problem.dynamics(step_size=0.5).solve(measured, band=True)
    assert "D[0]" in str(tl.compare(measured, predicted))
    model = problem.model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.5 / 100)
    with tl.track(model, sgd, problem.statistics) as tracker:
        for _ in range(5):
            x, y = problem.sample(1)
            sgd.zero_grad()
            problem.loss(model(x), y).backward()
            sgd.step()
    assert tracker.trajectory().names == problem.names
