"""Drift and corrector of the mixture against one real SGD step, and against real SGD runs."""

import pytest
import torch

import torchlimits as tl

#: |z| of one of some 50 comparisons; a normal variable exceeds it once in 15,000 times
Z = 4.0


def one_step_increments(problem, model, lr, samples, batch=1):
    """(u after - u before)/lr of one real SGD step, from many copies of one point, shape (n, k)."""
    copies = problem.model(replicas=(samples,))
    for name, p in copies.named_parameters():
        p.data.copy_(model.get_parameter(name).detach())
    optimizer = torch.optim.SGD(copies.parameters(), lr=lr, weight_decay=problem.ridge)
    generator = torch.Generator().manual_seed(1)
    parameters = dict(copies.named_parameters())
    with torch.no_grad():
        before = problem.statistics(parameters)
    x, y = problem.sample(batch, replicas=(samples,), generator=generator)
    problem.loss(copies(x), y).backward()
    optimizer.step()
    with torch.no_grad():
        return (problem.statistics(parameters) - before) / lr


def own_means(**options):
    e = torch.linalg.qr(torch.randn(400, 2, dtype=torch.float64)).Q.T
    means = torch.stack([e[0], -e[1], (e[0] + e[1]) / 2, -e[0]])
    return tl.GaussianMixture(means, [1, 0, 1, 0], width=3, directions=e, **options)


PROBLEMS = {
    "binary": lambda **o: tl.GaussianMixture.binary(dim=400, width=2, **o),
    "one neuron": lambda **o: tl.GaussianMixture.binary(dim=400, width=1, **o),
    "xor": lambda **o: tl.GaussianMixture.xor(dim=400, width=4, directions="random", **o),
    "own means": own_means,
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("snr", [1.0, 20.0])
def test_one_sgd_step_has_the_predicted_mean(name, snr):
    """E[u(X_1) - u(X_0)]/lr is drift + corrector, up to O(1/N) in the corrector's |X|^2/N."""
    problem = PROBLEMS[name](snr=snr, ridge=0.1, dtype=torch.float64)
    model = problem.model(generator=torch.Generator().manual_seed(3))
    # second-layer weights of order 1, so that there is a corrector to be seen
    model.second.weight.data.copy_(torch.linspace(1.5, -1.0, problem.width))
    increments = one_step_increments(problem, model, lr=6.0 / problem.dim, samples=8000)
    u = problem.statistics({n: p.detach() for n, p in model.named_parameters()})
    dynamics = problem.dynamics(step_size=6.0)
    error = increments.std(0) / len(increments) ** 0.5
    # second-order terms that the limit drops: ridge^2 R/N and the |X_perp|^2 of N - d, not N
    slack = 5.0 / problem.dim * dynamics.corrector(u).abs() + 2e-4
    difference = (increments.mean(0) - dynamics(0.0, u)).abs()
    assert bool((difference < Z * error + slack).all())
    # negative control: without the corrector the same check fails, and clearly
    gap = (increments.mean(0) - dynamics.drift(u)).abs()
    assert float((gap / (Z * error + slack)).max()) > 2


def test_a_batch_divides_the_corrector():
    problem = PROBLEMS["binary"](snr=1.0, ridge=0.1, dtype=torch.float64)
    model = problem.model(generator=torch.Generator().manual_seed(3))
    increments = one_step_increments(problem, model, 2.0 / 400, samples=8000, batch=2)
    u = problem.statistics({n: p.detach() for n, p in model.named_parameters()})
    error = increments.std(0) / len(increments) ** 0.5
    for batch_size, fits in ((2, True), (1, False)):
        expected = problem.dynamics(step_size=2.0, batch_size=batch_size)(0.0, u)
        worst = float(((increments.mean(0) - expected).abs() / (Z * error + 1e-3)).max())
        assert (worst < 1) is fits


def test_split_and_join_are_inverse():
    dynamics = PROBLEMS["xor"](snr=1.0).dynamics(step_size=1.0)
    u = torch.randn(5, 22)
    v, m, R = dynamics.split(u)
    assert torch.equal(dynamics.join(v, m, R), u)
    assert torch.equal(R, R.mT)
    assert dynamics.names[4] == "m[0,0]"
    assert float(m[0, 1, 0]) == float(u[0, dynamics.names.index("m[1,0]")])
    assert float(R[0, 2, 1]) == float(u[0, dynamics.names.index("R[1,2]")])


def test_zero_corrector_where_there_is_none():
    dynamics = PROBLEMS["xor"](snr=1.0).dynamics(step_size=1.0)
    g = dynamics.corrector(dynamics.join(torch.ones(4), torch.ones(4, 2), torch.eye(4)))
    assert g[:12].tolist() == [0.0] * 12
    assert bool((g[12:] > 0).all())


@pytest.mark.parametrize("snr", [0.1, 1.0, 1e6])
def test_degenerate_points(snr):
    """Aligned neurons, R = 0, everything 0: finite, and the limit of nearby points."""
    dynamics = PROBLEMS["xor"](snr=snr).dynamics(step_size=1.0)
    v, m = torch.tensor([1.0, -2.0, 0.5, 0.0]).double(), torch.ones(4, 2).double()
    m[:, 1] = torch.tensor([0.0, 1.0, -1.0, 0.0])
    for R in (torch.zeros(4, 4), torch.ones(4, 4), torch.diag(torch.tensor([1.0, 0, 0, 0]))):
        u = dynamics.join(v, m, R.double())
        near = dynamics.join(v, m, R.double() + 1e-9 * torch.eye(4).double())
        assert bool(dynamics(0.0, u).isfinite().all())
        torch.testing.assert_close(dynamics(0.0, u), dynamics(0.0, near), rtol=1e-3, atol=2e-3)
    assert bool(dynamics(0.0, torch.zeros(22).double()).isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["binary", "xor"])
def test_fidelity_to_sgd(name):
    """100 runs of SGD from one start, N = 1000, t = 6: every mean within 0.005 of theory."""
    snr = {"binary": 2.0, "xor": 4.0}[name]
    make = getattr(tl.GaussianMixture, name)
    problem = make(dim=1000, snr=snr, ridge=0.05)
    start = problem.model(generator=torch.Generator().manual_seed(5))
    measured = tl.train(
        problem, step_size=1.0, time=6.0, runs=100, seed=1, start=start, every=100, progress=False
    )
    dynamics = problem.dynamics(step_size=1.0)
    predicted = dynamics.solve(measured.initial[0], measured.times)
    assert float(tl.compare(measured, predicted).sup_difference.max()) < 0.005
    # negative control: gradient flow misses by a wide margin, in R
    flow = dynamics.solve(measured.initial[0], measured.times, corrector=False)
    result = tl.compare(measured, flow)
    assert result.worst.startswith("R")
    assert float(result.sup_difference.max()) > (0.05 if name == "binary" else 0.007)


def test_momentum_against_sgd():
    """Drift 1/(1 - beta), corrector 1/(1 - beta)^2; the naive factor 1/(1 - beta) must fail."""
    problem = tl.GaussianMixture.binary(dim=400, width=2, snr=2.0, ridge=0.05)
    start = problem.model(generator=torch.Generator().manual_seed(5))
    measured = tl.train(
        problem, step_size=1.0, time=2.0, runs=60, momentum=0.6, batch_size=2, seed=1,
        start=start, every=100, progress=False,
    )  # fmt: skip
    u0 = measured.initial[0]
    right = problem.dynamics(step_size=1.0, momentum=0.6, batch_size=2)
    assert right.settings.corrector_factor == pytest.approx(1 / 0.4**2 / 2)
    result = tl.compare(measured, right.solve(u0, measured.times))
    # bias of order 1/N on top of the statistical error
    assert bool((result.sup_difference < Z * result.sup_standard_error + 0.01).all())
    naive = problem.dynamics(step_size=0.4, momentum=0.6, batch_size=2)
    assert naive.settings.corrector_factor == pytest.approx(1 / 0.4 / 2)
    result = tl.compare(measured, naive.solve(u0, measured.times))
    assert not bool((result.sup_difference < Z * result.sup_standard_error + 0.01).all())


def test_jacobian_at_generic_points():
    """jacfwd against central differences of a finer rule; K = 4 within the rule's own error."""
    for problem, tolerance in ((PROBLEMS["binary"], 1e-6), (PROBLEMS["xor"], 5e-3)):
        dynamics = problem(snr=3.0, ridge=0.1).dynamics(step_size=1.0)
        finer = problem(snr=3.0, ridge=0.1).dynamics(step_size=1.0, level=1)
        K = dynamics.width
        generator = torch.Generator().manual_seed(7)
        v = torch.randn(K, generator=generator).double()
        m = torch.randn(K, len(dynamics.coordinates) // 2, generator=generator).double()
        A = torch.randn(K, K, generator=generator).double()
        u = dynamics.join(v, m, A @ A.mT / K + 0.2 * torch.eye(K))
        direction = torch.randn(len(u), generator=generator).double()
        _, slope = torch.func.jvp(lambda u: dynamics(0.0, u), (u,), (direction,))  # noqa: B023
        difference = (finer(0.0, u + 1e-3 * direction) - finer(0.0, u - 1e-3 * direction)) / 2e-3
        assert float((slope - difference).abs().max()) < tolerance * float(slope.abs().max())


def test_jacobian_is_finite_where_neurons_align():
    dynamics = PROBLEMS["binary"](snr=3.0).dynamics(step_size=1.0)
    for R in (torch.zeros(2, 2), torch.ones(2, 2)):
        u = dynamics.join(torch.ones(2).double(), torch.ones(2, 1).double(), R.double())
        jacobian = torch.func.jacrev(lambda u: dynamics(0.0, u))(u)
        assert bool(jacobian.isfinite().all())
        # v and m move inside the range of [m, S]: right even here
        for i in range(2):
            step = 1e-4 * torch.eye(7, dtype=torch.float64)[i]
            difference = (dynamics(0.0, u + step) - dynamics(0.0, u - step)) / 2e-4
            torch.testing.assert_close(jacobian[:, i], difference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "batch"), [("binary", 1), ("xor", 1), ("binary", 3)])
def test_diffusion_is_the_covariance_of_one_sgd_step(name, batch):
    """n lr Cov(rise) of one real step, entry by entry; without the second order in R it fails."""
    c, samples = 6.0, 12_000
    problem = PROBLEMS[name](snr=2.0, dtype=torch.float64)
    model = problem.model(generator=torch.Generator().manual_seed(3))
    model.second.weight.data.copy_(torch.linspace(1.5, -1.0, problem.width))
    model.first.weight.data.mul_(1.5)
    rise = one_step_increments(problem, model, c / problem.dim, samples, batch)
    u = problem.statistics({n: p.detach() for n, p in model.named_parameters()})
    D = problem.dynamics(step_size=c, batch_size=batch).diffusion(u)
    rise = (rise - rise.mean(0)) * c**0.5
    products = rise[:, :, None] * rise[:, None, :]
    error = products.std(0) / samples**0.5
    # O(1/N): |X_perp|^2 has N - d coordinates and fluctuates
    slack = 0.03 * torch.outer(D.diag(), D.diag()).sqrt() + 1e-6
    difference = (products.mean(0) - D).abs()
    assert bool((difference < Z * error + slack).all()), (difference / (Z * error + slack)).max()
    assert float(torch.linalg.eigvalsh(D).min()) > -1e-6
    first_order = problem.dynamics(step_size=1e-9).diffusion(u) * 1e9 * c / batch
    gap = (products.mean(0) - first_order).abs()
    assert float((gap / (Z * error + slack)).max()) > 1.5


def test_diffusion_where_neurons_align():
    """Singular R: finite, and the limit of nearby points."""
    dynamics = PROBLEMS["xor"](snr=2.0).dynamics(step_size=1.0)
    v, m = torch.tensor([1.0, -2.0, 0.5, 0.0]).double(), torch.randn(4, 2).double()
    for R in (torch.zeros(4, 4).double(), torch.ones(4, 4).double()):
        near = R + 1e-10 * torch.eye(4)
        a, b = (dynamics.diffusion(dynamics.join(v, m, x)) for x in (R, near))
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_another_default_device_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    problem = tl.GaussianMixture.xor(dim=30, snr=5.0, ridge=0.05, generator=generator)
    sharp, u = problem.small_noise(), problem.starts(2, generator=generator)

    def numbers():
        dynamics, limit = problem.dynamics(step_size=1.0), sharp.dynamics(step_size=1.0)
        component = sharp.fixed_point_components()[0]
        return [
            dynamics.geometry.starts(dynamics, 3, torch.Generator().manual_seed(1)),
            dynamics(0.0, u), dynamics.diffusion(u), limit(0.0, u), limit.diffusion(u),
            component.point(torch.Generator().manual_seed(2)), component.distance(u),
        ]  # fmt: skip

    expected = numbers()
    with torch.device("meta"):
        found = numbers()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
