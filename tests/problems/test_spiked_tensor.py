"""Spiked tensors: both samplers, the loss, and the dynamics against real SGD."""

import copy
import math
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torchlimits as tl
from torchlimits.problems.spiked import samplers

#: |z| of one of some 50 comparisons
Z = 4.0


def gradients(problem, x, count, seed=0):
    """Stochastic gradients at x through autograd, (count, n)."""
    model = problem.model(replicas=(count,), dtype=torch.float64)
    model.x.data.copy_(x)
    features, target = problem.sample(
        1, replicas=(count,), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    problem.loss(model(features), target).backward()
    return model.x.grad


def law_of_gradient(order, snr, x, v):
    """Mean and covariance by the formulas."""
    R2, m, n = float(x @ x), float(x @ v), len(x)
    mean = 2 * order * (R2 ** (order - 1) * x - snr * m ** (order - 1) * v)
    eye = torch.eye(n, dtype=torch.float64)
    V = order * R2 ** (order - 1) * eye
    V = V + order * (order - 1) * R2 ** (order - 2) * torch.outer(x, x)
    return mean, 4 * V


@pytest.mark.parametrize("order", [2, 3, 4])
def test_both_samplers_draw_the_same_gradient(order):
    """Mean and covariance at a fixed x, dense and implicit, against the formula for both."""
    n, count = 5, 30_000
    x = torch.tensor([0.7, -0.4, 0.5, 0.1, 0.3], dtype=torch.float64)
    options = {"snr": 1.3, "dtype": torch.float64, "direction": "random"}
    found = {}
    for sampler in ("dense", "implicit"):
        problem = tl.SpikedTensor(
            n, order, sampler=sampler, generator=torch.Generator().manual_seed(4), **options
        )
        mean, V = law_of_gradient(order, 1.3, x, problem.direction)
        G = gradients(problem, x, count)
        error = (V.diag() / count).sqrt()
        assert bool(((G.mean(0) - mean).abs() < Z * error).all())
        # Var of a sample covariance of Gaussians: (V_ii V_jj + V_ij^2)/count
        spread = ((torch.outer(V.diag(), V.diag()) + V**2) / count).sqrt()
        assert bool(((G.mT.cov() - V).abs() < Z * spread).all())
        found[sampler] = (G.mT.cov(), spread)
        # negative control: noise of the same size in all directions is told apart
        flat = torch.diag(V.diag().mean().expand(n))
        assert bool(((G.mT.cov() - flat).abs() > Z * spread).any())
    (a, spread), (b, _) = found["dense"], found["implicit"]
    assert bool(((a - b).abs() < Z * 2**0.5 * spread).all())


@pytest.mark.parametrize("order", [2, 3])
def test_both_losses_have_the_same_law(order):
    """Mean and variance of L - ||Y||^2, and its covariance with the gradient."""
    n, count = 4, 40_000
    x = torch.tensor([0.9, -0.4, 0.5, 0.2], dtype=torch.float64)
    found = []
    for sampler in ("dense", "implicit"):
        problem = tl.SpikedTensor(n, order, snr=1.3, sampler=sampler, dtype=torch.float64)
        problem.model()
        generator = torch.Generator().manual_seed(1)
        rows = x.expand(count, n).clone().requires_grad_()
        _, target = problem.sample(1, replicas=(count,), generator=generator)
        values = torch.func.vmap(lambda x, t: problem.loss(x, t), chunk_size=4096)(rows, target)  # noqa: B023
        if sampler == "dense":
            values = values - target.flatten(1).square().sum(1)
        (G,) = torch.autograd.grad(values.sum(), rows)
        both = torch.cat([values.detach()[:, None], G], dim=1)
        found.append((both.mean(0), both.mT.cov()))
    (mean_a, cov_a), (mean_b, cov_b) = found
    scale = cov_a.diag()
    assert bool(((mean_a - mean_b).abs() < Z * (2 * scale / count).sqrt()).all())
    spread = (2 * (torch.outer(scale, scale) + cov_a**2) / count).sqrt()
    assert bool(((cov_a - cov_b).abs() < Z * spread).all())


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_dense_loss_is_the_squared_distance(order):
    problem = tl.SpikedTensor(4, order, snr=2.0, sampler="dense", dtype=torch.float64)
    model = problem.model(replicas=(3,), generator=torch.Generator().manual_seed(0))
    features, Y = problem.sample(2, replicas=(3,), generator=torch.Generator().manual_seed(0))
    naive = torch.zeros((), dtype=torch.float64)
    for r in range(3):
        cube = model.x[r]
        for _ in range(order - 1):
            cube = cube[..., None] * model.x[r]
        naive = naive + (Y[r] - cube).square().sum() / 2
    loss = problem.loss(model(features), Y)
    torch.testing.assert_close(loss, naive)
    (a,) = torch.autograd.grad(loss, model.x)
    (b,) = torch.autograd.grad(naive, model.x)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("direction", ["axis", "random"])
def test_the_dense_tensor_has_its_spike(direction):
    problem = tl.SpikedTensor(
        3, 3, snr=5.0, sampler="dense", direction=direction, dtype=torch.float64
    )
    _, Y = problem.sample(20_000, generator=torch.Generator().manual_seed(0))
    v = problem.direction
    spike = 5 * torch.einsum("i,j,k->ijk", v, v, v)
    assert float((Y.mean(0) - spike).abs().max()) < Z / 20_000**0.5
    assert float((Y.var(0) - 1).abs().max()) < Z * (2 / 20_000) ** 0.5


def test_starts_and_statistics():
    problem = tl.SpikedTensor(400, 2, snr=1.0, direction="random", dtype=torch.float64)
    model = problem.model(replicas=(500,), generator=torch.Generator().manual_seed(1))
    u = problem.statistics(dict(model.named_parameters())).detach()
    assert abs(float(u[:, 0].square().mean()) * 400 - 1) < Z * (2 / 500) ** 0.5
    assert abs(float(u[:, 1].mean()) - 1) < Z * (2 / 400 / 500) ** 0.5 + 1 / 400
    placed = problem.model(at=(0.3, 0.8), replicas=(4,))
    u = problem.statistics(dict(placed.named_parameters())).detach()
    torch.testing.assert_close(u, torch.tensor([0.3, 0.8]).double().expand(4, 2))
    assert problem.names == problem.statistics.names_of(dict(problem.model().named_parameters()))


@pytest.mark.parametrize("order", [2, 3, 4])
def test_one_sgd_step_has_the_predicted_mean_and_covariance(order):
    """(u after - u before)/lr: drift + corrector, and diffusion/c_delta."""
    n, count, c = 1000, 8000, 0.7
    problem = tl.SpikedTensor(n, order, snr=1.5, dtype=torch.float64)
    model = problem.model(at=(0.6, 0.5), replicas=(count,))
    optimizer = torch.optim.SGD(model.parameters(), lr=c / n)
    before = problem.statistics(dict(model.named_parameters())).detach()
    features, target = problem.sample(
        1, replicas=(count,), generator=torch.Generator().manual_seed(1)
    )
    problem.loss(model(features), target).backward()
    optimizer.step()
    rise = (problem.statistics(dict(model.named_parameters())).detach() - before) * n / c
    dynamics = problem.dynamics(step_size=c)
    u = before[0]
    error = rise.std(0) / count**0.5
    bias = 5 / n * dynamics.corrector(u).abs() + 5 / n
    assert bool(((rise.mean(0) - dynamics(0.0, u)).abs() < Z * error + bias).all())
    assert float((rise.mean(0) - dynamics.drift(u))[1].abs() / (Z * error + bias)[1]) > 2
    D = dynamics.diffusion(u) / c
    # the limit drops 2 n (4 k R^(2k-2))^2 c^2/n^2 in the variance of r2
    spread = Z * ((torch.outer(D.diag(), D.diag()) + D**2) / count).sqrt()
    slack = 10 * c**2 * (4 * order * 0.86 ** (order - 1)) ** 2 / n
    assert bool(((rise.mT.cov() - D).abs() < spread + slack).all())
    without = D - torch.diag(D.diag()) / 2  # negative control
    assert not bool(((rise.mT.cov() - without).abs() < spread + slack).all())


@pytest.mark.slow
@pytest.mark.parametrize(("order", "snr"), [(2, 1.5), (3, 6.0)])
def test_fidelity_to_sgd(order, snr):
    problem = tl.SpikedTensor(1000, order, snr=snr)
    measured = tl.train(
        problem, step_size=0.5, time=1.0, runs=200, seed=1, every=50, progress=False,
        start=problem.model(at=(0.8, 1.0)),
    )  # fmt: skip
    dynamics = problem.dynamics(step_size=0.5)
    result = tl.compare(measured, dynamics.solve(measured.initial[0], measured.times))
    # the finite-n bias is O(1/n) with the stiff rates of order 3 in front
    assert bool((result.sup_difference < Z * result.sup_standard_error + 0.01).all())
    flow = dynamics.solve(measured.initial[0], measured.times, corrector=False)
    assert float(tl.compare(measured, flow).sup_difference[1]) > 0.2


def test_the_trajectories_of_both_samplers_agree_in_law():
    """Means and variances of (m, r2) at three times, 400 runs each; c_delta is told apart."""
    found = {}
    for name, sampler, c in (
        ("dense", "dense", 1.0),
        ("implicit", "implicit", 1.0),
        ("other", "implicit", 0.6),
    ):
        problem = tl.SpikedTensor(30, 2, snr=1.5, sampler=sampler)
        path = tl.train(
            problem, step_size=c, time=2.0, runs=400, seed=3, every=round(20 / c), progress=False,
            start=problem.model(at=(0.3, 0.9), generator=torch.Generator().manual_seed(1)),
        )  # fmt: skip
        rows = path.values[:, 1:4]
        found[name] = rows.mean(0), rows.var(0), (rows - rows.mean(0)).pow(4).mean(0)
    mean, variance, fourth = found["dense"]
    mean_error = (2 * variance / 400).sqrt()
    variance_error = (2 * (fourth - variance**2) / 400).sqrt()
    for name, agrees in (("implicit", True), ("other", False)):
        close_mean = (found[name][0] - mean).abs() < Z * mean_error
        close_variance = (found[name][1] - variance).abs() < Z * variance_error
        assert bool((close_mean & close_variance).all()) is agrees


@pytest.mark.slow
def test_subcritical_steps_follow_gradient_flow():
    """lr = n^-1.5: within 3 sigma + O(c_delta) of step_size=0, which lr = 1/n is not."""
    problem = tl.SpikedTensor(900, 2, snr=1.5)
    flow = problem.dynamics(step_size=0.0)
    start = problem.model(at=(0.5, 0.8))
    for exponent, close in ((1.5, True), (1.0, False)):
        c = 900 ** (1 - exponent)
        measured = tl.train(
            problem, step_size=c, time=1.0, runs=4, every=900, start=start, progress=False
        )
        predicted = flow.solve(measured.initial, measured.times)
        gap = float(tl.compare(measured, predicted).sup_difference.max())
        assert (gap < 0.06) is close, gap
        corrected = problem.dynamics(step_size=c).solve(measured.initial, measured.times)
        assert float(tl.compare(measured, corrected).sup_difference.max()) < 0.06


@pytest.mark.slow
def test_momentum_and_batches_in_the_radius():
    """At m = 0 the radius settles at c_delta/(B (1 - beta)), which the closed form knows."""
    problem = tl.SpikedTensor(1000, 2, snr=0.01)
    dynamics = problem.dynamics(step_size=0.4, momentum=0.6, batch_size=2)
    (stable,) = [p for p in dynamics.exact_fixed_points() if p.stable]
    torch.testing.assert_close(stable.u, torch.tensor([0.0, 0.5]).double())
    measured = tl.train(
        problem, step_size=0.4, momentum=0.6, batch_size=2, time=1.5, runs=20, progress=False,
        start=problem.model(at=(0.0, 0.5)),
    )  # fmt: skip
    late = measured["r2"][:, len(measured) // 2 :].mean(1)
    assert abs(float(late.mean()) - 0.5) < Z * float(late.std()) / 20**0.5 + 0.01
    # the naive factor, c_delta/B, is far off
    assert abs(float(late.mean()) - 0.2) > 0.2


def test_the_optimizer_is_read():
    problem = tl.SpikedTensor(100, 3, snr=2.0)
    optimizer = torch.optim.SGD(problem.model().parameters(), lr=0.02, momentum=0.5)
    assert problem.dynamics(optimizer).settings.effective_step_size == pytest.approx(4.0)
    assert problem.equator(optimizer).settings == problem.dynamics(optimizer).settings
    with pytest.warns(UserWarning, match="ridge"):
        problem.dynamics(torch.optim.SGD(problem.model().parameters(), lr=0.02, weight_decay=0.1))


def test_the_ridge_is_in_the_dynamics():
    problem = tl.SpikedTensor(200, 2, snr=1.0, ridge=0.7, dtype=torch.float64)
    u = torch.tensor([0.4, 0.9], dtype=torch.float64)
    without = tl.SpikedTensor(200, 2, snr=1.0).dynamics(step_size=1.0)
    difference = problem.dynamics(step_size=1.0)(0.0, u) - without(0.0, u)
    torch.testing.assert_close(difference, torch.tensor([-0.28, -1.26]).double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "order >= 2"),
        ({"snr": 0.0}, "snr"),
        ({"snr": -1.0}, "snr"),
        ({"snr": math.nan}, "snr"),
        ({"dim": 1}, "dim >= 2"),
        ({"sampler": "sparse"}, "sampler"),
        ({"direction": "east"}, "direction"),
        ({"direction": torch.ones(10)}, "unit vector"),
        ({"ridge": -1.0}, "ridge"),
        ({"device": "nowhere"}, "device"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        tl.SpikedTensor(**{"dim": 10, "order": 2, "snr": 1.0, **options})


def test_a_dense_tensor_that_does_not_fit():
    with pytest.raises(ValueError, match=r"need [\d.]+ GiB. Use sampler='implicit'"):
        tl.SpikedTensor(10_000, 4, snr=1.0, sampler="dense")
    problem = tl.SpikedTensor(500, 3, snr=1.0, sampler="dense")
    with pytest.raises(ValueError, match="implicit"):
        problem.sample(10_000)


def test_memory_is_asked_for_once_a_size(monkeypatch):
    asked = []

    def free(device):
        asked.append(device)
        return 2**30

    monkeypatch.setattr(samplers, "_free_memory", free)
    problem = tl.SpikedTensor(5, 2, snr=1.0, sampler="dense")
    for batch in (1, 4, 2, 4, 5):
        problem.sample(batch)
    assert len(asked) == 3  # 1, 4, 5
    with pytest.raises(ValueError, match="implicit"):
        problem.sample(10**8)
    with pytest.raises(ValueError, match="implicit"):
        problem.sample(10**8)


def test_data_do_not_follow_models_made_in_passing():
    problem = tl.SpikedTensor(5, 2, snr=1.0)
    model = problem.model(dtype=torch.float64)
    problem.model()
    tl.train(problem, step_size=0.1, time=0.2, progress=False)
    _, normal = problem.sample(1, dtype=torch.float64)
    assert normal.dtype == torch.float64
    problem.loss(model(), normal).backward()
    assert problem.sample(1)[1].dtype == torch.float32


class NoCopies(TorchDispatchMode):
    """Fails where a tensor is copied from one device to another, as no CUDA graph can hold."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = args[0 if function.overloadpacket is torch.ops.aten._to_copy else 1]
            assert source.device == result.device, f"{function} {source.device} {result.device}"
        return result


def spikes():
    for order in (2, 3):
        for sampler in ("implicit", "dense"):
            for direction in ("axis", "random"):
                yield tl.SpikedTensor(5, order, snr=1.0, sampler=sampler, direction=direction)


@pytest.mark.parametrize(
    "problem",
    [
        tl.GaussianMixture.binary(10, snr=2.0),
        tl.GaussianMixture.xor(10, snr=2.0, directions="random"),
        tl.GaussianMixture.binary(10, snr=2.0, weights=[0.7, 0.3]),
        *spikes(),
    ],
    ids=repr,
)
def test_steps_copy_nothing_between_devices(problem):
    """Nor do they ask for a value; after the first, which prepares what it needs."""
    model = problem.model(replicas=(3,), device="meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = dict(model.named_parameters())
    statistics = problem.statistics.near(parameters)

    def step():
        x, y = problem.sample(2, replicas=(3,), device="meta")
        optimizer.zero_grad()
        problem.loss(model(x), y).backward()
        optimizer.step()
        statistics(parameters)

    step()
    with NoCopies():
        step()


def test_copies_are_noticed():
    """The negative control: statistics whose directions are elsewhere."""
    problem = tl.SpikedTensor(5, 2, snr=1.0)
    x = problem.model(device="meta").x
    with NoCopies(), pytest.raises(ValueError, match="AssertionError: aten"):
        problem.statistics({"x": x})


def test_a_step_copies_no_direction():
    """That of the model is kept by `model`, and nothing that torch.func makes on the way."""
    problem = tl.SpikedTensor(6, 3, snr=2.0, direction="random", dtype=torch.float64)
    model = problem.model()
    _, normal = problem.sample(3)
    loss = problem.loss(model.x, normal)
    # in another dtype it is copied, and the copy forgotten
    x, normal32 = model.x.detach().float(), normal.float()
    torch.func.grad(problem.loss)(x, normal32)
    assert list(problem.spike.kept) == [(x.device, torch.float64)]
    problem.spike.direction = None
    torch.testing.assert_close(problem.loss(model.x, normal), loss)


def test_statistics_know_their_derivatives():
    problem = tl.SpikedTensor(6, 2, snr=2.0, direction="random", dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x, centre = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    gradients = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    v, near = problem.direction, {"x": x.float()}
    for name, square in (("m", torch.zeros(6, 6)), ("r2", torch.eye(6) - torch.outer(v, v))):
        statistic, square = problem.statistics.functions[name], square.double()
        slope = torch.func.grad(lambda y, f=statistic: f({"x": y}))(x)
        along, bend, kick = statistic.changes({"x": x}, gradients, centre)
        torch.testing.assert_close(along, gradients @ slope)
        torch.testing.assert_close(statistic.along({"x": x}, gradients), along)
        for found, h in ((bend, gradients - centre), (kick, gradients)):
            expected = torch.einsum("bi,ij,bj->b", h, square, h)
            torch.testing.assert_close(
                torch.zeros(4).double() if found is None else found, expected
            )
        assert statistic.near(near).v.dtype == torch.float32
        torch.testing.assert_close(statistic.near(near)(near), statistic({"x": x}).float())


def test_problems_and_statistics_are_pickled():
    problem = tl.SpikedTensor(6, 3, snr=2.0, direction="random")
    x = problem.model().x.detach()
    for copied in (pickle.loads(pickle.dumps(problem)), copy.deepcopy(problem)):
        assert torch.equal(copied.statistics({"x": x}), problem.statistics({"x": x}))


def test_another_default_device_changes_nothing():
    def numbers():
        generator = torch.Generator().manual_seed(3)
        problem = tl.SpikedTensor(
            6, 2, snr=2.0, direction="random", generator=generator, device="cpu"
        )
        x = problem.lift(torch.tensor([0.5, 1.0], device="cpu"))["x"]
        points = problem.dynamics(step_size=1.0).fixed_points()
        equator = problem.equator(step_size=1.0)
        return [x, *problem.random_start(), *(p.u for p in points), equator.centre, equator.scale]

    expected = numbers()
    with torch.device("meta"):
        found = numbers()
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_data_of_another_problem():
    problem = tl.SpikedTensor(5, 2, snr=1.0, sampler="dense")
    _, target = tl.SpikedTensor(5, 2, snr=1.0).sample(1)
    with pytest.raises(ValueError, match="from this problem's sample"):
        problem.loss(problem.model()(None), target)
    for at in ((0.1, -1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="expected"):
            problem.model(at=at)


def test_tracked_by_hand():
    """The loop of a user: one model, one optimizer, no replicas."""
    problem = tl.SpikedTensor(40, 3, snr=4.0, sampler="dense")
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5 / 40)
    with tl.track(model, optimizer, problem.statistics) as tracker:
        for _ in range(20):
            features, Y = problem.sample(1)
            optimizer.zero_grad()
            problem.loss(model(features), Y).backward()
            optimizer.step()
    measured = tracker.trajectory()
    predicted = problem.dynamics(optimizer).solve(measured.initial, measured.times)
    assert tl.compare(measured, predicted).names == ["m", "r2"]
