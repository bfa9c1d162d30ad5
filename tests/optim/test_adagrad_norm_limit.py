"""The limit of `tl.AdaGradNorm`: what is read, one real step, fields of one's own, and refusals."""

import warnings

import pytest
import torch
from adaptive_runs import binary, copies
from torch import nn

import torchlimits as tl
from torchlimits.estimation.moves import moves_of

N = 256


@pytest.fixture(scope="module")
def problem():
    return binary()


@pytest.fixture
def model(problem):
    return problem.model(generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def start(problem):
    return problem.starts(1, generator=torch.Generator().manual_seed(0))[0]


def optimizer_of(model, **options):
    return tl.AdaGradNorm(model.parameters(), **{"lr": 0.5, "initial": 0.5 * N, **options})


class Decay(tl.VectorField):
    """One statistic that decays, with a gradient of a known length."""

    def terms(self, u):
        return -u, torch.ones_like(u)

    def increment_covariance(self, u, step_size):
        return torch.ones_like(u)[..., None]

    def gradient_length(self, u):
        return 2 + u[..., 0]


class Silent(tl.VectorField):
    """One that says nothing of its gradient."""

    def terms(self, u):
        return -u, torch.ones_like(u)


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
def test_options_are_those_of_the_optimizer(problem, model, start):
    optimizer = optimizer_of(model, weight_decay=0.3, maximize=True)
    dynamics = problem.dynamics(optimizer, batch_size=3)
    facts = dynamics.describe()
    expected = {"optimizer": "AdaGradNorm", "initial": 0.5 * N, "weight_decay": 0.3,
                "batch_size": 3, "maximize": True, "step_size": 0.5 * N}  # fmt: skip
    assert {name: facts[name] for name in expected} == expected
    assert dynamics.names == [*problem.names, "accumulator"]
    assert float(dynamics.started(start)[-1]) == pytest.approx(0.25)
    # a step takes a time of lr, N of them N lr
    assert dynamics.steps(torch.tensor([0.5 * N])).tolist() == [N]
    assert "dv/ds = (1/n) E|grad L|^2" in dynamics.equation()


def test_the_ridge_is_compared(problem, model):
    with pytest.warns(UserWarning, match=r"weight_decay=0.3 is not the problem's ridge=0"):
        problem.dynamics(optimizer_of(model, weight_decay=0.3))


def test_b_is_recorded_from_the_start(problem, model):
    optimizer = optimizer_of(model)
    dynamics = problem.dynamics(optimizer, model=model)
    with tl.track(model, optimizer, dynamics.statistics) as tracker:
        x, y = problem.sample(1)
        problem.loss(model(x), y).backward()
        optimizer.step()
    path = tracker.trajectory()
    square = sum(float(p.grad.square().sum()) for p in model.parameters())
    expected = [0.25, 0.25 + square / N**2]
    assert path["accumulator"].tolist() == pytest.approx(expected, rel=1e-12)
    assert path.times.tolist() == [0.0, 0.5]
    assert "accumulator" in str(tl.compare(path, dynamics.solve(path)))


def test_what_is_frozen_neither_moves_nor_counts(problem, model, start):
    model.head.requires_grad_(False)
    dynamics = problem.dynamics(optimizer_of(model), model=model)
    assert "first.weight.sum" in dynamics.statistics.parameter_dims
    head = [i for i, name in enumerate(dynamics.names) if name.startswith("head")]
    drift = dynamics.drift(dynamics.started(start))
    assert not bool(drift[head].any())
    model.head.requires_grad_(True)
    whole = problem.dynamics(optimizer_of(model), model=model)
    assert float(drift[-1]) < float(whole.drift(whole.started(start))[-1])


# --- one step -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_one_step_has_the_mean_and_the_covariance_of_the_limit(problem, batch):
    """Of the statistics and of v, which goes with them."""
    if batch > 1:  # with large v, as products of two samples' gradients are left out of batches'
        problem = tl.GaussianMixture.binary(N, 2, snr=1.0, dtype=torch.float64)
    samples, lr = 4000, 0.3
    stacked = copies(problem, samples)
    parameter = next(stacked.parameters())
    optimizer = optimizer_of(stacked, lr=lr, initial=0.3 * N, replica_dims=1)
    dynamics = problem.dynamics(optimizer, batch_size=batch, model=stacked)
    parameters = {name: p.detach() for name, p in stacked.named_parameters()}
    before = problem.statistics({name: p.clone() for name, p in parameters.items()})
    generator = torch.Generator().manual_seed(1)
    x, y = problem.sample(batch, replicas=(samples,), generator=generator)
    problem.loss(stacked(x), y).backward()
    optimizer.step()
    gained = optimizer.state[parameter]["sum"] / N**2 - 0.09
    moved = problem.statistics(parameters) - before
    rise = torch.cat([moved, gained[:, None]], -1) / lr
    u = dynamics.started(before[0])
    error = rise.std(0) / samples**0.5
    # a step has its own gradient in its b, which is worth 2 % here
    slack = 0.02 * rise.abs().mean(0)
    assert bool(((rise.mean(0) - dynamics(0.0, u)).abs() < 4 * error + slack).all())
    # with batches the corrector is a third
    for wrong in (dynamics.drift(u) if batch == 1 else 0 * u, 0.5 * dynamics(0.0, u)):
        assert not bool(((rise.mean(0) - wrong).abs() < 4 * error + slack).all())
    rise = (rise - rise.mean(0)) * (lr * N) ** 0.5
    products = rise[:, :, None] * rise[:, None, :]
    D = dynamics.diffusion(u)
    error = products.std(0) / samples**0.5
    slack = 0.05 * torch.outer(D.diag(), D.diag()).sqrt()
    assert bool(((products.mean(0) - D).abs() < 4 * error + slack).all())
    alone = D.clone()
    alone[-1, :-1], alone[:-1, -1] = 0, 0
    assert not bool(((products.mean(0) - alone).abs() < 4 * error + slack).all())


# --- fields of one's own --------------------------------------------------------------------------


def test_a_field_of_ones_own_takes_it():
    """Against Euler's method for the chain of means, step by step."""
    dim, steps, lr = 20_000, 20_000, 0.7
    x = nn.Parameter(torch.zeros(dim))
    optimizer = tl.AdaGradNorm([x], lr=lr, initial=0.5 * dim)
    dynamics = tl.EffectiveDynamics(Decay(["r"], dim=dim), optimizer, batch_size=2)
    r, square = 1.5, (0.5 * dim) ** 2
    for _ in range(steps):
        square += (2 + r) ** 2 / 2 * dim
        step = lr / square**0.5
        r += step * (-r + step * dim / 2)
    path = dynamics.solve(torch.tensor([1.5]).double(), [0.0, lr * steps])
    assert path["r"][-1].item() == pytest.approx(r, abs=1e-4)
    assert path["accumulator"][-1].item() == pytest.approx(square / dim**2, rel=1e-4)
    # negative control: b as it was
    assert abs(path["r"][-1].item() - (1.5 - 0.7) * torch.tensor(-1.4).exp().item() - 0.7) > 0.05


def test_the_band_is_that_of_a_chain_of_means():
    """Of r alone: a gradient whose length does not fluctuate drives v by r, and r by v."""
    dim, runs = 1000, 4000
    optimizer = tl.AdaGradNorm([nn.Parameter(torch.zeros(2))], lr=1.0, initial=0.5 * dim)
    dynamics = tl.EffectiveDynamics(Decay(["r"], dim=dim), optimizer)
    band = dynamics.solve(torch.tensor([1.5]).double(), [0.0, 1.0 * dim], band=True).std[-1]
    generator = torch.Generator().manual_seed(0)
    r = torch.full((runs,), 1.5, dtype=torch.float64)
    square = torch.full((runs,), (0.5 * dim) ** 2, dtype=torch.float64)
    for _ in range(dim):
        square += (2 + r) ** 2 * dim
        step = 1 / square.sqrt()
        r = r + step * (-r + step * dim + torch.randn(runs, generator=generator).double())
    assert float(r.std() / band[0]) == pytest.approx(1, abs=0.05)
    assert float((square / dim**2).std() / band[1]) == pytest.approx(1, abs=0.05)


def test_derivatives_are_those_of_differences():
    problem = tl.SpikedTensor(dim=10**6, order=3, snr=2.0)
    optimizer = tl.AdaGradNorm(problem.model().parameters(), initial=2e6)
    dynamics = problem.dynamics(optimizer)
    u = torch.tensor([0.5, 0.7], dtype=torch.float64, requires_grad=True)

    def end(u):
        return dynamics.solve(u, [0.0, 1e6])["m"][-1]

    (slope,) = torch.autograd.grad(end(u), u)
    shift = torch.tensor([1e-3, 0.0], dtype=torch.float64)
    with torch.no_grad():
        difference = (end(u + shift) - end(u - shift)) / 2e-3
    assert float(slope[0]) == pytest.approx(float(difference), rel=1e-3)


# --- what is refused ------------------------------------------------------------------------------


class Derived(tl.AdaGradNorm):
    """Something else, for all that is known."""


def test_what_has_no_limit_is_refused(problem, model):
    ours = optimizer_of(model)
    with pytest.raises(ValueError, match="expected plain gradients with AdaGradNorm"):
        problem.dynamics(ours, clip_norm=1.0)
    with pytest.raises(ValueError, match="expected momentum from the optimizer"):
        problem.dynamics(ours, momentum=0.5)
    several = [
        tl.AdaGradNorm(model.first.parameters(), initial=1.0 * N),
        torch.optim.SGD(model.head.parameters(), lr=1.0),
    ]
    with pytest.raises(TypeError, match="in one AdaGradNorm, got AdaGradNorm and SGD"):
        problem.dynamics(several)
    with pytest.raises(ValueError, match="expected a learning rate > 0 in AdaGradNorm"):
        problem.dynamics(optimizer_of(model, lr=0.0))
    with pytest.raises(NotImplementedError, match="options of AdaGradNorm as numbers"):
        problem.dynamics(optimizer_of(model, lr=torch.tensor(0.5, requires_grad=True)))
    with pytest.raises(TypeError, match="got Derived"):
        problem.dynamics(Derived(model.parameters(), initial=1.0))
    scaled = tl.TeacherStudent(dim=N, width=2, teacher_width=2, convention="sqrt")
    its = scaled.model()
    groups = [
        {"params": its.first.parameters()}, {"params": its.head.parameters(), "lr": 1 / N},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="expected convention='torch' with AdaGradNorm"):
        scaled.dynamics(tl.AdaGradNorm(groups, initial=1.0 * N), model=its)
    small = tl.GaussianMixture.binary(N, 2, snr=4.0).small_noise()
    with pytest.raises(ValueError, match="expected a finite snr with"):
        small.dynamics(tl.AdaGradNorm(small.model().parameters(), initial=1.0 * N))


def test_what_needs_rest_or_a_chain_is_refused(problem, model, start):
    dynamics = problem.dynamics(optimizer_of(model), model=model)
    spiked = tl.SpikedTensor(N, 2, snr=2.0)
    ours = tl.AdaGradNorm(spiked.model().parameters(), initial=1.0 * N)
    for call in (
        dynamics.fixed_points, lambda: dynamics.diffusive(dynamics.started(start)),
        spiked.dynamics(ours).exact_fixed_points, lambda: spiked.equator(ours),
        lambda: tl.optimal_schedule(dynamics, start, steps=100, objective=lambda u: u[..., 0]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="got AdaGradNorm, whose b grows without end"):
            call()
    for call in (
        dynamics.reduced_chain, lambda: problem.reduced_chain(optimizer_of(model), model=model),
        lambda: spiked.reduced_chain(ours),
    ):  # fmt: skip
        with pytest.raises(NotImplementedError, match="no exact chain is known for AdaGradNorm"):
            call()
    for call in (dynamics.langevin, spiked.dynamics(ours).langevin):
        with pytest.raises(NotImplementedError, match="for Langevin dynamics and laws, got AdaGr"):
            call()
    with pytest.raises(NotImplementedError, match="for Langevin dynamics and laws, got AdaGr"):
        dynamics.solve(start, [0.0, 1.0], band="law")
    probed = optimizer_of(model)
    with pytest.raises(TypeError, match="for a probe, got AdaGradNorm"):
        moves_of(probed, probed.param_groups[0], 1, 1)


def test_fields_have_to_know_their_gradients():
    ours = tl.AdaGradNorm([nn.Parameter(torch.zeros(2))], initial=100.0)
    with pytest.raises(ValueError, match=r"for Silent, got AdaGradNorm: .* mean_square_gradient"):
        tl.EffectiveDynamics(Silent(["r"], dim=100), ours)
    for call in (Silent(["r"], 100).mean_square_gradient, Silent(["r"], 100).square_covariance):
        with pytest.raises(NotImplementedError, match="squared gradients of Silent"):
            call(torch.ones(1), *([1.0] if "cov" in call.__name__ else []))
    several = [{"params": [nn.Parameter(torch.zeros(2))], "lr": lr} for lr in (0.1, 0.2)]
    with pytest.raises(ValueError, match="expected one lr, weight_decay and maximize"):
        tl.EffectiveDynamics(Decay(["r"], 100), tl.AdaGradNorm(several, initial=100.0))


def test_starts_that_b_cannot_have_are_refused_and_small_ones_warned_of(problem, model, start):
    dynamics = problem.dynamics(optimizer_of(model), model=model)
    whole = dynamics.started(start)
    whole[-1] = 0.0
    with pytest.raises(ValueError, match=r"expected accumulator = \(b/n\)\^2 > 0 in u0, got 0"):
        dynamics.solve(whole, [0.0, 1.0])
    with pytest.warns(UserWarning, match="grows by .* of itself in the first step"):
        problem.dynamics(optimizer_of(model, initial=5.0), model=model).started(start)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dynamics.started(start)
    warm = problem.dynamics(optimizer_of(model), schedule=lambda t: t, model=model)
    u = warm.started(start)
    with pytest.raises(ValueError, match="expected learning rates > 0 with AdaGradNorm"):
        warm.drift(u, 0.0)
