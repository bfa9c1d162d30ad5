"""`tl.AdaGradNorm` in full space against its limit, b included."""

import pytest
import torch
from adaptive_runs import binary, copies

import torchlimits as tl

N = 250


def network():
    return binary(512)


def mixture():
    return tl.GaussianMixture.binary(N, 2, snr=4.0, ridge=0.1, dtype=torch.float64)


def xor():
    return tl.GaussianMixture.xor(N, 4, snr=4.0, dtype=torch.float64)


def spiked():
    return tl.SpikedTensor(1000, 2, snr=2.0, dtype=torch.float64)


def placed(problem, runs):
    """Runs from one start; that of a spiked tensor is warm."""
    if not isinstance(problem, tl.SpikedTensor):
        return copies(problem, runs)
    start = problem.model(at=(0.4, 0.8), generator=torch.Generator().manual_seed(0))
    model = problem.model(replicas=(runs,))
    model.x.data.copy_(start.x.detach())
    return model


def layers(model):
    """Twice the learning rate and a decay of its own in the first layer."""
    groups = [
        {"params": [*model.head.parameters()]},
        {"params": [*model.first.parameters()], "lr": 0.8, "weight_decay": 0.2},
    ]
    return tl.AdaGradNorm(groups, lr=0.4, initial=0.4 * 512, replica_dims=1)


def same(lr, part, **options):
    """model -> optimizer with b_0 a part of N."""
    return lambda model: tl.AdaGradNorm(
        model.parameters(), lr=lr, initial=part * next(model.parameters()).shape[-1],
        replica_dims=1, **options,
    )  # fmt: skip


def runs_of(problem, make, *, runs, time, batch=1, schedule=None, seed=1):
    """Measured runs over so many times N steps, and the dynamics."""
    model = placed(problem, runs)
    optimizer = make(model)
    plan = schedule(optimizer) if schedule else None
    options = {} if isinstance(problem, tl.SpikedTensor) else {"model": model}
    dynamics = problem.dynamics(optimizer, batch_size=batch, schedule=plan, **options)
    generator, steps = torch.Generator().manual_seed(seed), int(time * problem.dim)
    with tl.track(model, optimizer, dynamics.statistics, every=steps // 5) as tracker:
        for _ in range(steps):
            x, y = problem.sample(batch, replicas=(runs,), generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
            if plan:
                plan.step()
    return tracker.trajectory(), dynamics


def z_of(measured, predicted):
    """rms z of the problem's statistics, and of (b/N)^2."""
    values = measured.values[:, 1:]
    z = (values.mean(0) - predicted.values[1:]) / (values.std(0) / len(values) ** 0.5)
    rms = z.square().mean(0)
    return float(rms[:-1].mean().sqrt()), float(rms[-1].sqrt())


def leading(dynamics):
    """The mean square of gradients without its terms of order 1/N, for a network."""
    base, B = dynamics.field.base, dynamics.limit.plain.settings.batch_size

    def square(u):
        return (base.averages(u).gram.diagonal(dim1=-2, dim2=-1).sum(-1) / base.snr / B)[..., None]

    return square


def third(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1.0 if s < 256 else 0.3)


slow = pytest.mark.slow
#: problem, optimizer, options of the runs
CASES = [
    pytest.param(mixture, same(0.5, 0.3, weight_decay=0.1), {"time": 2}, id="mixture"),
    pytest.param(xor, same(1.0, 0.3), {"time": 3, "batch": 2}, id="xor", marks=slow),
    pytest.param(
        spiked, same(1.0, 2.0), {"time": 1, "batch": 3, "runs": 40}, id="spiked", marks=slow
    ),
    pytest.param(
        network, same(0.6, 0.3), {"time": 1, "batch": 4, "runs": 40}, id="batches", marks=slow
    ),
    pytest.param(network, layers, {"time": 1.5, "runs": 40}, id="layers", marks=slow),
    pytest.param(
        network, same(0.4, 0.3), {"time": 1.5, "schedule": third, "runs": 40}, id="schedule",
        marks=slow,
    ),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
@pytest.mark.parametrize(("make_problem", "make", "options"), CASES)
def test_runs_follow_the_limit(make_problem, make, options):
    """In rms z; without the corrector and with the b of the start it is missed."""
    measured, dynamics = runs_of(make_problem(), make, **{"runs": 60, **options})
    assert measured.names == dynamics.names
    start = measured.initial[0]
    ours, b = z_of(measured, dynamics.solve(start, measured.times))
    assert ours < 2
    assert b < 2.5
    without = dynamics.solve(start, measured.times, corrector=False)
    assert z_of(measured, without)[0] > 3
    field = dynamics.field
    square = field.square
    field.square = lambda u: 0 * square(u)
    still, grown = z_of(measured, dynamics.solve(start, measured.times))
    assert still > 3
    assert grown > 30


@pytest.mark.slow
def test_b_needs_the_terms_of_order_1_over_n():
    """At N = 250, and the band is that of the runs."""
    measured, dynamics = runs_of(
        mixture(), same(0.5, 0.3, weight_decay=0.1), runs=200, time=3, seed=2
    )
    start = measured.initial[0]
    predicted = dynamics.solve(start, measured.times, band=True)
    assert z_of(measured, predicted)[1] < 2
    ratio = measured.values.std(0)[1:] / predicted.std[1:]
    # the standard error of a standard deviation is 5 %
    assert float((ratio.median() - 1).abs()) < 0.05
    assert float((ratio[:, -1] - 1).abs().max()) < 0.2
    dynamics.field.square = leading(dynamics)
    assert z_of(measured, dynamics.solve(start, measured.times))[1] > 5


@pytest.mark.slow
def test_the_second_half_of_a_run_is_predicted_from_its_middle():
    """With the recorded b, and not as if the optimizer were fresh."""
    measured, dynamics = runs_of(spiked(), same(1.0, 2.0), runs=60, time=2.5)
    late = measured.times[2:] - measured.times[2]
    middle = measured.values[:, 2]
    difference = measured.values[:, 3:] - dynamics.solve(middle, late).values[:, 1:]
    fresh = measured.values[:, 3:] - dynamics.solve(middle[:, :2], late).values[:, 1:]

    def z(x):
        return float((x.mean(0) / (x.std(0) / len(x) ** 0.5)).square().mean().sqrt())

    assert z(difference) < 2.5
    assert z(fresh) > 10
