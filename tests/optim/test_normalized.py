"""`NormalizedSGD`: the optimizer itself, and the dynamics of normalised gradients against it."""

import copy
import pickle

import pytest
import torch
from real_sgd import copies, misses, one_step, train

import torchlimits as tl
from torchlimits.optim.sgd import SGDSettings
from torchlimits.problems.spiked.dynamics import SpikedDynamics

Z = 4.0


# --- the optimizer --------------------------------------------------------------------------------


def quadratic(x):
    return (x * torch.arange(1.0, 1 + x.shape[-1])).square().sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.7},
        {"momentum": 0.7, "nesterov": True, "weight_decay": 0.3},
        {"momentum": 0.7, "dampening": 0.2, "maximize": True},
        {"foreach": True, "weight_decay": 0.1},
    ],
)
def test_steps_are_sgd_on_scaled_gradients(options):
    """Against torch.optim.SGD fed with gradients scaled by hand, replica by replica."""
    start = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours, theirs = tl.NormalizedSGD([x], lr=0.1, **options), torch.optim.SGD([y], lr=0.1, **options)
    for _ in range(5):
        for p in (x, y):
            p.grad = None
            quadratic(p).backward()
        raw = x.grad.clone()
        for r in range(3):
            y.grad[r] *= 5**0.5 / y.grad[r].norm()
        ours.step()
        theirs.step()
        torch.testing.assert_close(x, y)
        assert torch.equal(x.grad, raw)


def test_closures_hooks_schedulers_and_copies():
    x = torch.nn.Parameter(torch.ones(4))
    torch.optim.SGD([x], lr=0.1)  # torch puts its hooks around both classes' steps
    optimizer = tl.NormalizedSGD([x], lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        optimizer.zero_grad()
        loss = quadratic(x)
        loss.backward()
        return loss

    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    before = x.detach().clone()
    assert float(optimizer.step(closure).detach()) == 30.0
    assert calls == ["before", "after"]
    assert float((x.detach() - before).norm()) == pytest.approx(0.1 * 2.0, rel=1e-6)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        y = twin.param_groups[0]["params"][0]
        y.grad = 100 * torch.ones(4)
        at = y.detach().clone()
        twin.step()
        assert float((y.detach() - at).norm()) == pytest.approx(0.05 * 2.0, rel=1e-6)


def test_zero_and_bad_gradients():
    x = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = tl.NormalizedSGD([x], lr=0.1)
    x.grad = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    optimizer.step()
    torch.testing.assert_close(x.data, torch.tensor([[1, 1, 1], [1, 1 - 0.1 * 3**0.5, 1]]))
    x.grad = torch.full((2, 3), torch.nan)
    optimizer.step()
    assert bool(x.isnan().all())
    with pytest.raises(ValueError, match="got a scalar"):
        tl.NormalizedSGD([torch.nn.Parameter(torch.zeros(()))])
    with pytest.raises(ValueError, match="differentiable=False"):
        tl.NormalizedSGD([x], differentiable=True)
    with pytest.raises(ValueError, match="learning rate"):
        tl.NormalizedSGD([x], lr=-1.0)
    y = torch.nn.Parameter(torch.ones(4, 2))
    y.grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 2), (4, 2), check_invariants=True)
    with pytest.raises(ValueError, match="dense gradients"):
        tl.NormalizedSGD([y], lr=0.1).step()


# --- its dynamics ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
@pytest.mark.parametrize(
    ("order", "batch", "options"),
    [(2, 1, {}), (3, 1, {"weight_decay": 0.5}), (2, 3, {"maximize": True, "weight_decay": 0.5})],
)
def test_one_step_of_normalised_gradients(order, batch, options):
    """Mean and covariance; eta left out, or to another power, fails."""
    n, c, samples = 800, 3.0, 6000
    problem = tl.SpikedTensor(n, order, snr=1.5, dtype=torch.float64)
    start = problem.model(at=(0.6, 0.5), generator=torch.Generator().manual_seed(1))

    def make(model):
        return tl.NormalizedSGD(model.parameters(), lr=c / n, **options)

    rise = one_step(problem, start, make, samples=samples, batch=batch)
    u = problem.statistics({"x": start.x.detach()})
    dynamics = problem.dynamics(make(copies(problem, start, 1)), batch_size=batch)
    error = rise.std(0) / samples**0.5
    slack = 20 / n
    assert bool(((rise.mean(0) - dynamics(0.0, u)).abs() < Z * error + slack).all())
    plain = problem.dynamics(torch.optim.SGD([torch.nn.Parameter(start.x.detach())], lr=c / n,
                                             **options), batch_size=batch)  # fmt: skip
    eta = float(dynamics.limit.eta(dynamics.field, u))
    for wrong in (plain(0.0, u), eta * plain(0.0, u), dynamics.drift(u)):
        assert not bool(((rise.mean(0) - wrong).abs() < Z * error + slack).all())
    rise = (rise - rise.mean(0)) * c**0.5
    products = rise[:, :, None] * rise[:, None, :]
    D = dynamics.diffusion(u)
    error = products.std(0) / samples**0.5
    # O(1/n) relative; r2 has its second order's fluctuation besides, Var = 2 c^3/n
    slack = 0.02 * torch.outer(D.diag(), D.diag()).sqrt()
    assert bool(((products.mean(0) - D).abs() < Z * error + slack).all())
    for wrong in (plain.diffusion(u), eta * plain.diffusion(u)):
        assert not bool(((products.mean(0) - wrong).abs() < Z * error + slack).all())


def test_runs_with_momentum_and_a_schedule():
    n, runs = 500, 50
    problem = tl.SpikedTensor(n, 2, snr=1.5)
    start = problem.model(at=(0.4, 0.8), generator=torch.Generator().manual_seed(1))
    model = copies(problem, start, runs)
    optimizer = tl.NormalizedSGD(model.parameters(), lr=1 / n, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.996)
    dynamics = problem.dynamics(optimizer, schedule=scheduler)
    measured = train(problem, model, optimizer, 500, scheduler=scheduler, every=50)
    u0, slack = measured.initial[0], 8 / n
    assert misses(measured, dynamics.solve(u0, measured.times), slack=slack) < 1
    plain = torch.optim.SGD(model.parameters(), lr=1 / n, momentum=0.5)
    naive = problem.dynamics(plain).solve(u0, measured.times)
    assert misses(measured, naive, slack=slack) > 3
    constant = tl.NormalizedSGD(model.parameters(), lr=1 / n, momentum=0.5)
    naive = problem.dynamics(constant).solve(u0, measured.times)
    assert misses(measured, naive, slack=slack) > 1.5


def settings(c, **options):
    return SGDSettings(c, normalized=True, **options)


def dynamics_of(order, snr, c, **options):
    return SpikedDynamics(order=order, snr=snr, dim=100, settings=settings(c, **options))


@pytest.mark.parametrize("c", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("snr", [0.2, 0.6, 2.0])
def test_fixed_points_of_matrix_pca(c, snr):
    """Closed form and numbers; they have r2 = c eta, and exist from c^(2/3)/2 on."""
    dynamics = dynamics_of(2, snr, c)
    exact = dynamics.exact_fixed_points()
    assert len(exact) == (3 if snr > c ** (2 / 3) / 2 else 1)
    found = dynamics.fixed_points(count=50)
    assert [p.kind for p in found] == [p.kind for p in exact]
    for p, q in zip(exact, found, strict=True):
        torch.testing.assert_close(p.u, q.u, rtol=1e-8, atol=1e-8)
        assert p.residual < 1e-12 * max(1.0, c)
        m, r2 = p.u.tolist()
        assert r2 == pytest.approx(c / (2 * 2**0.5 * (m**2 + r2) ** 0.5))
    assert exact[0].stable
    assert exact[0].u[0] != 0 or len(exact) == 1


def test_the_threshold_is_where_the_overlap_begins():
    for options in ({}, {"momentum": 0.5}, {"batch_size": 4}, {"momentum": 0.6, "batch_size": 2}):
        threshold = dynamics_of(2, 1.0, 1.0, **options).critical_snr
        for factor, kinds in ((0.99, ["stable"]), (1.01, ["stable", "stable", "unstable"])):
            found = dynamics_of(2, factor * threshold, 1.0, **options).fixed_points(count=50)
            assert [p.kind for p in found] == kinds
    assert dynamics_of(2, 1.0, 1.0).critical_snr == pytest.approx(0.5)
    assert tl.SpikedTensor(100, 2, snr=1.0).dynamics(step_size=1.0).critical_snr == 1.0


def test_fixed_points_of_tensor_pca_are_numerical():
    dynamics = dynamics_of(3, 3.0, 1.0)
    with pytest.raises(ValueError, match=r"order 3, normalized: use fixed_points\(\)"):
        dynamics.exact_fixed_points()
    with pytest.raises(ValueError, match="closed form"):
        _ = dynamics.critical_snr
    found = dynamics.fixed_points()
    assert [p.kind for p in found] == ["stable", "stable", "unstable"]
    for p in found:
        m, r2 = p.u.tolist()
        assert r2 == pytest.approx(1 / (2 * 3**0.5 * (m**2 + r2)), rel=1e-6)
        assert m == 0 or 3.0 * m == pytest.approx((m**2 + r2) ** 2, rel=1e-6)


@pytest.mark.slow
def test_sgd_u_finds_a_spike_that_sgd_does_not():
    """lambda = 0.75, between the thresholds 1/2 and 1: |m| of real runs of both."""
    n, c, snr = 400, 1.0, 0.75
    problem = tl.SpikedTensor(n, 2, snr=snr)
    start = problem.model(at=(0.3, 0.5), generator=torch.Generator().manual_seed(1))
    found = {}
    for kind in (tl.NormalizedSGD, torch.optim.SGD):
        model = copies(problem, start, 20)
        optimizer = kind(model.parameters(), lr=c / n)
        late = train(problem, model, optimizer, 6000, every=50)["m"][:, 60:].mean(1)
        (m, *_) = [p.u[0] for p in problem.dynamics(optimizer).exact_fixed_points() if p.u[0] >= 0]
        found[kind] = float(late.mean()), float(late.std()) / 20**0.5, float(m)
    mean, error, m = found[tl.NormalizedSGD]
    assert m == pytest.approx((snr - 1 / (8 * snr) ** 0.5) ** 0.5)
    assert abs(mean - m) < Z * error + 8 / n
    mean, error, m = found[torch.optim.SGD]
    assert m == 0.0
    assert abs(mean) < Z * error + 8 / n


def test_what_normalised_gradients_have_no_limit_for():
    mixture = tl.GaussianMixture.binary(dim=20, snr=1.0)
    model = mixture.model()
    optimizer = tl.NormalizedSGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="NormalizedSGD: its limit is known"):
        mixture.dynamics(optimizer)
    tl.track(model, optimizer, mixture.statistics).close()
    problem = tl.SpikedTensor(20, 2, snr=1.0)
    optimizer = tl.NormalizedSGD(problem.model().parameters(), lr=0.1)
    for call in (problem.equator, problem.reduced_chain):
        with pytest.raises(ValueError, match="normali"):
            call(optimizer)
    assert "eta" in problem.dynamics(optimizer).equation()


def test_the_origin_is_left():
    for order in (2, 3):
        dynamics = dynamics_of(order, 1.0, 0.7)
        origin = torch.zeros(2, dtype=torch.float64)
        torch.testing.assert_close(dynamics(0.0, origin), torch.tensor([0.0, 0.7]).double())
        assert bool(dynamics.jacobian(origin[None]).isfinite().all())
        assert bool(dynamics.solve(origin, [0.0, 1.0]).values.isfinite().all())


def copied(optimizer):
    """By copy.copy, the parameters with their optimizer."""
    return copy.copy(optimizer)


def reloaded(optimizer):
    other = tl.NormalizedSGD(optimizer.param_groups[0]["params"], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    return other


@pytest.mark.parametrize("of", [lambda optimizer: optimizer, copied, reloaded])
@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_changes_no_step(of, fused):
    """Fused steps of torch's unscale gradients themselves; here their scale is lost before."""
    ends = []
    for scale in (1.0, 1024.0):
        x = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        optimizer = of(tl.NormalizedSGD([x], lr=0.5, fused=fused))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        scaler.scale((3 * x).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        ends.append(x.detach().clone())
    torch.testing.assert_close(*ends)
    torch.testing.assert_close(ends[1], torch.full((2,), 0.5))


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_skips_infinite_gradients(fused):
    x = torch.nn.Parameter(torch.ones(2))
    optimizer = tl.NormalizedSGD([x], lr=0.5, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((x * float("inf")).sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(x.detach(), torch.ones(2))
