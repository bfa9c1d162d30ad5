"""Diffusive limits: the SDE solver, the generic construction, and the paper's special cases."""

import itertools
import math

import pytest
import torch

import torchlimits as tl
from torchlimits.dynamics.diffusive import DiffusiveDynamics, LinearDiffusion, flow_and_noise
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit

Z = 4.0
SETTINGS = SGDLimit(SGDSettings(1.0))


def linear(A, D, dim=100):
    A, D = (torch.tensor(x, dtype=torch.float64) for x in (A, D))
    return LinearDiffusion(
        torch.zeros(len(A)).double(), A, D, names=list("abc")[: len(A)], dim=dim, limit=SETTINGS
    )


OU = linear([[-1.0, 2.0], [0.0, -3.0]], [[1.0, 0.5], [0.5, 2.0]])


class Geometric(DiffusiveDynamics):
    """dX = mu X dt + sigma X dB: the exact solution is known path by path."""

    mu, sigma = -0.5, 0.8

    def __init__(self):
        one = torch.ones(1).double()
        super().__init__(["x"], 10, SETTINGS, 0 * one, one)

    def drift(self, u):
        return self.mu * u

    def diffusion(self, u):
        return (self.sigma * u).square()[..., None]

    rate = 1.0


def strong_error(dynamics, u0, exact, steps, fine=512, paths=4000):
    """Mean |X_T - exact| with the Brownian path of `fine` increments summed up to `steps`."""
    generator = torch.Generator().manual_seed(0)
    k = u0.shape[-1]
    dB = torch.randn(fine, paths, k, generator=generator, dtype=torch.float64) / fine**0.5
    u = u0.expand(paths, k)
    for increment in dB.unflatten(0, (steps, -1)).sum(1):
        u = dynamics._advance(u, 1 / steps, increment)
    return float((u - exact(dB)).norm(dim=-1).mean())


def test_strong_order_one_with_a_constant_diffusion():
    """Against the same Brownian path, 512 steps and the exponential integrator exact in A."""

    def exact(dB):
        h = 1 / len(dB)
        half = torch.linalg.matrix_exp(OU.jacobian * h / 2)
        u = torch.ones(2).double().expand(dB.shape[1], 2)
        for increment in dB:  # kick in the middle of each fine step
            u = (u @ half.mT + increment @ OU.factor.mT) @ half.mT
        return u

    u0 = torch.ones(2).double()
    errors = [strong_error(OU, u0, exact, steps) for steps in (4, 8, 16, 32)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(0.85 < slope < 1.4 for slope in slopes), (errors, slopes)


def test_strong_order_one_half_in_general():
    dynamics = Geometric()

    def exact(dB):
        return torch.exp((dynamics.mu - dynamics.sigma**2 / 2) + dynamics.sigma * dB.sum(0))

    errors = [strong_error(dynamics, torch.ones(1).double(), exact, n) for n in (8, 32, 128)]
    slopes = [math.log2(a / b) / 2 for a, b in itertools.pairwise(errors)]
    assert all(0.4 < slope < 0.75 for slope in slopes), (errors, slopes)
    assert errors[-1] < 0.06


def test_stationary_covariance_solves_lyapunov_and_the_paths_have_it():
    P = OU.stationary_covariance()
    residual = OU.jacobian @ P + P @ OU.jacobian.mT + OU.matrix
    assert float(residual.abs().max()) < 1e-14
    torch.testing.assert_close(OU.covariance([0.0, 30.0])[1], P)
    paths = 20_000
    end = OU.solve(
        torch.zeros(2), [0.0, 6.0], paths=paths, generator=torch.Generator().manual_seed(1)
    ).final
    spread = ((torch.outer(P.diag(), P.diag()) + P**2) / paths).sqrt()
    assert bool(((end.mT.cov() - P).abs() < Z * spread + 2e-3).all())
    # negative control: half the noise is told apart
    assert not bool(((end.mT.cov() - P / 2).abs() < Z * spread + 2e-3).any())


def test_covariance_against_quadrature_and_for_degenerate_matrices():
    times = torch.tensor([0.0, 0.3, 2.0]).double()
    for dynamics in (OU, linear([[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]])):
        for t, P in zip(times.tolist(), dynamics.covariance(times), strict=True):
            s = (torch.arange(2000).double() + 0.5) / 2000 * t
            flow = torch.linalg.matrix_exp(s[:, None, None] * dynamics.jacobian)
            brute = (flow @ dynamics.matrix @ flow.mT).sum(0) * t / 2000
            torch.testing.assert_close(P, brute, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no stationary law"):
        dynamics.stationary_covariance()


@pytest.mark.parametrize("time", [1e-6, 0.1, 40.0])
def test_flow_and_noise_against_the_exponential_of_twice_the_size(time):
    """Of matrices whose times differ by 10^4, and by Lyapunov's equation where that overflows."""
    generator = torch.Generator().manual_seed(0)
    A, D = torch.randn(2, 6, 4, 4, generator=generator, dtype=torch.float64)
    D, h = D @ D.mT, time * torch.logspace(-4, 0, 6, dtype=torch.float64)[:, None, None]
    A = A - 2.5 * torch.eye(4)
    flow, gained = flow_and_noise(A, D, h)
    torch.testing.assert_close(flow, torch.linalg.matrix_exp(A * h), rtol=1e-10, atol=1e-13)
    residual = A @ gained + gained @ A.mT + D - flow @ D @ flow.mT
    assert float(residual.abs().max()) < 1e-11 * float(D.abs().max())
    assert not float((residual + 1e-3 * D).abs().max()) < 1e-11 * float(D.abs().max())
    if time < 1:
        block = torch.cat([torch.cat([-A, D], -1), torch.cat([0 * A, A.mT], -1)], -2)
        twice = torch.linalg.matrix_exp(block * h)
        brute = twice[:, 4:, 4:].mT @ twice[:, :4, 4:]
        torch.testing.assert_close(gained, brute, rtol=1e-10, atol=1e-18)


def test_seeded_and_batched():
    u0 = torch.randn(3, 2)

    def solve(seed, **options):
        generator = torch.Generator().manual_seed(seed)
        return OU.solve(u0, [0.0, 0.5, 1.0], generator=generator, **options).values

    assert torch.equal(solve(1, paths=4), solve(1, paths=4))
    assert not torch.equal(solve(1), solve(2))
    assert solve(1).shape == (3, 3, 2)
    assert solve(1, paths=4).shape == (4, 3, 3, 2)
    assert solve(1).dtype == torch.float64
    torch.testing.assert_close(solve(1)[:, 0], u0.double())


@pytest.mark.gpu
def test_on_cuda():
    generator = torch.Generator("cuda").manual_seed(0)
    path = OU.solve(torch.zeros(2, device="cuda"), [0.0, 1.0], paths=5000, generator=generator)
    P = OU.covariance([0.0, 1.0])[1]
    assert float((path.final.mT.cov() - P).abs().max()) < 0.1


def test_rescaling_is_undone():
    limit = tl.SpikedTensor(dim=400, order=2, snr=3.0).diffusive(
        at=torch.tensor([2**0.5, 1.0]).double()
    )
    u = tl.Trajectory(
        torch.tensor([0.0]), torch.tensor([0]), torch.tensor([[2**0.5 + 0.1, 1.0]]), ["m", "r2"]
    )
    torch.testing.assert_close(
        limit.rescale(u).values, torch.tensor([[2.0, 0.0]]).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(limit.unscale(limit.rescale(u)).values, u.values)


# --- the paper's special cases --------------------------------------------------------------------


@pytest.mark.parametrize(("order", "c"), [(2, 1.0), (2, 0.5), (3, 1.0), (4, 0.7)])
def test_generic_reproduces_the_equator(order, c):
    """At (0, c) the generic construction is Proposition 3.3 linearised, Lambda = 0 for k >= 3."""
    problem = tl.SpikedTensor(dim=900, order=order, snr=0.3)
    at = torch.tensor([0.0, c]).double()
    generic, closed = problem.diffusive(at, step_size=c), problem.equator(step_size=c)
    torch.testing.assert_close(generic.matrix[0], closed.diffusion(at)[0])
    slope = torch.func.jacfwd(closed.drift)(at)
    torch.testing.assert_close(generic.jacobian, slope)
    # written out: rate 4 lambda 1{k=2} - 2 k c^(k-1), noise 4 k c^k
    rate = 4 * 0.3 * (order == 2) - 2 * order * c ** (order - 1)
    assert float(generic.jacobian[0, 0]) == pytest.approx(rate)
    assert float(generic.matrix[0, 0]) == pytest.approx(4 * order * c**order)


def test_the_equator_is_the_ballistic_equation_rescaled():
    """drift(sqrt(n) m, r2) is sqrt(n) dm/dt at small m, with lambda_n = Lambda n^((k-2)/2)."""
    for order, Lambda in ((2, 1.4), (3, 0.8), (4, 2.0)):
        gaps = []
        for n in (10**4, 10**8):
            problem = tl.SpikedTensor(dim=n, order=order, snr=Lambda * n ** ((order - 2) / 2))
            limit, ballistic = problem.equator(step_size=0.9), problem.dynamics(step_size=0.9)
            assert limit.scaled_snr == pytest.approx(Lambda)
            u = torch.tensor([1.3, 0.8]).double()
            scaled = ballistic(0.0, u / limit.scale) * limit.scale
            gaps.append(float((scaled - limit.drift(u)).abs().max()))
        assert gaps[1] < 1e-6
        assert gaps[1] < gaps[0] / 1000 + 1e-12


@pytest.mark.slow
def test_sgd_at_the_equator_has_the_stationary_variance():
    """n = 300, k = 2, c_delta = 1, lambda = 0.5: Var(sqrt(n) m) = 1/(1 - lambda), 3 sigma."""
    problem = tl.SpikedTensor(dim=300, order=2, snr=0.5)
    runs, limit = 600, problem.equator(step_size=1.0)
    start = problem.model(at=(0.0, 1.0))
    measured = tl.train(
        problem, step_size=1.0, time=3.0, runs=runs, seed=2, every=900, start=start, progress=False
    )
    m = limit.rescale(measured)["m"][:, -1]
    variance, error = float(m.var()), float(m.var()) * (2 / runs) ** 0.5
    expected = 1 / (1 - 0.5)
    generic = problem.diffusive(torch.tensor([0.0, 1.0]).double())
    assert float(generic.stationary_covariance()[0, 0]) == pytest.approx(expected)
    assert abs(variance - expected) < 3 * error
    # negative control: the law of the start, N(0, 1), is told apart
    assert abs(variance - 1) > 3 * error


@pytest.mark.slow
def test_momentum_at_the_equator():
    """The variance is that of plain SGD with c_delta/(1 - beta): c'/(1 - lambda/c') at rate 1."""
    problem = tl.SpikedTensor(dim=1500, order=2, snr=0.3)
    limit = problem.dynamics(step_size=0.4, momentum=0.6).diffusive(
        torch.tensor([0.0, 1.0]).double()
    )
    plain = problem.diffusive(torch.tensor([0.0, 1.0]).double())
    expected = float(limit.stationary_covariance()[0, 0])
    assert expected == pytest.approx(float(plain.stationary_covariance()[0, 0]))
    measured = tl.train(
        problem, step_size=0.4, momentum=0.6, time=1.0, runs=300, seed=2, every=3750,
        start=problem.model(at=(0.0, 1.0)), progress=False,
    )  # fmt: skip
    m = limit.rescale(measured)["m"][:, -1]
    assert abs(float(m.var()) / expected - 1) < 3 * (2 / 300) ** 0.5


def paper_linear(a, alpha, strength, rings):
    """Drift of (v~, m~) as Propositions 4.3 and 5.1 have it (m along each neuron's own mean)."""
    K = len(a)
    A = torch.zeros(2 * K, 2 * K).double()
    for i in range(K):
        A[i, K + i] += alpha
        A[i, i] -= alpha
        A[K + i, i] += alpha
        A[K + i, K + i] -= alpha
        for k in range(K):
            if rings[i] == rings[k]:
                A[[i, K + i], k] -= a[i] * strength * a[k]
                A[[i, K + i], K + k] -= a[i] * strength * a[k]
    return A


def test_generic_reproduces_the_quarter_circle():
    """Proposition 4.3: rank 1, alpha^2 a_i a_j in every entry."""
    alpha = 0.1
    problem = tl.GaussianMixture.binary(dim=250, snr=100.0, ridge=alpha).small_noise()
    component = next(c for c in problem.fixed_point_components() if c.classes == (0, 0))
    u = component.point(torch.Generator().manual_seed(3))
    limit = problem.diffusive(at=u, step_size=1.0)
    a = u[:2]
    assert float(a.square().sum()) == pytest.approx(math.log(4))
    torch.testing.assert_close(
        limit.jacobian[:4, :4], paper_linear(a, alpha, alpha - 2 * alpha**2, [0, 0])
    )
    expected = alpha**2 * torch.outer(a.repeat(2), a.repeat(2))
    torch.testing.assert_close(limit.matrix[:4, :4], expected)
    assert limit.rank() == 1
    assert float(limit.matrix[4:].abs().max()) == 0
    assert limit.names == problem.names


def test_generic_reproduces_the_pair_of_rings():
    """Proposition 5.1: rank 2; 3 alpha^2 a_i a_j within a ring, -alpha^2 across up to signs."""
    alpha = 0.1
    problem = tl.GaussianMixture.xor(dim=250, snr=1000.0, ridge=alpha).small_noise()
    # means are +mu, -mu (label 1), +nu, -nu (label 0)
    component = next(c for c in problem.fixed_point_components() if c.classes == (0, 0, 2, 2))
    u = component.point(torch.Generator().manual_seed(3))
    limit = problem.diffusive(at=u)
    v, m = u[:4], u[4:12].unflatten(0, (4, 2))
    assert bool((v[:2] > 0).all())
    assert bool((v[2:] < 0).all())
    size = v.abs()
    assert float(size[:2].square().sum()) == pytest.approx(math.log(1.5))
    own = [4, 6, 9, 11]  # m[0,0], m[1,0], m[2,1], m[3,1]
    keep = [0, 1, 2, 3, *own]
    sign = torch.cat([v.sign(), m[[0, 1, 2, 3], [0, 0, 1, 1]].sign()])
    # in terms of |v| and |m| both rings have the paper's form
    J = limit.jacobian[keep][:, keep] * torch.outer(sign, sign)
    expected = paper_linear(size, alpha, alpha - 4 * alpha**2, [0, 0, 1, 1])
    torch.testing.assert_close(J, expected)
    D = limit.matrix[keep][:, keep] * torch.outer(sign, sign)
    ring = torch.tensor([0, 0, 1, 1]).repeat(2)
    factor = torch.where(ring[:, None] == ring, 3 * alpha**2, -(alpha**2))
    torch.testing.assert_close(D, factor * torch.outer(size.repeat(2), size.repeat(2)))
    assert limit.rank() == 2


@pytest.mark.parametrize("mixture", ["binary", "xor"])
def test_sgd_around_the_rings(mixture):
    """Runs from a point of the rings at snr = infinity: mean and covariance of the SDE, all t."""
    make = {"binary": tl.GaussianMixture.binary, "xor": tl.GaussianMixture.xor}[mixture]
    problem = make(dim=4000, snr=1.0, ridge=0.1, dtype=torch.float64).small_noise()
    classes = {"binary": (0, 0), "xor": (0, 0, 2, 2)}[mixture]
    component = next(c for c in problem.fixed_point_components() if c.classes == classes)
    u, K = component.point(torch.Generator().manual_seed(3)), problem.width
    start = problem.model()
    start.second.weight.data[0] = u[:K]
    d = len(problem.directions)
    start.first.weight.data.copy_(u[K : K + K * d].unflatten(0, (K, d)) @ problem.directions)
    # the other coordinates of x do nothing at infinite snr: n = 4000 steps a unit of time are cheap
    small = make(dim=8, snr=1.0, ridge=0.1, dtype=torch.float64).small_noise()
    tiny = small.model()
    tiny.second.weight.data[0] = u[:K]
    tiny.first.weight.data.copy_(u[K : K + K * d].unflatten(0, (K, d)) @ small.directions)
    runs = 600
    measured = tl.train(
        small, step_size=8 / 1000, time=4.0, runs=runs, seed=5, every=1000, start=tiny,
        dtype=torch.float64, progress=False,
    )  # fmt: skip
    limit = problem.diffusive(at=u)
    rescaled = (measured.values - limit.centre) * 1000**0.5
    covariance = limit.covariance(measured.times)
    for step in (1, 4):
        rows, P = rescaled[:, step], covariance[step]
        spread = ((torch.outer(P.diag(), P.diag()) + P**2) / runs).sqrt()
        # next order: a drift of second order in u - u*, O(n^-1/2)
        assert bool((rows.mean(0).abs() < Z * (P.diag() / runs).sqrt() + 0.02).all())
        assert bool(((rows.mT.cov() - P).abs() < Z * spread + 0.1 * P.diag().max()).all())
        assert not bool(((rows.mT.cov() - P / 2).abs() < Z * spread).all())


def test_not_a_fixed_point():
    problem = tl.SpikedTensor(dim=100, order=2, snr=2.0)
    with pytest.raises(ValueError, match="expected a fixed point, got one where dm/dt"):
        problem.diffusive(torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="one finite point"):
        problem.diffusive(torch.zeros(3, 2))
    mixture = tl.GaussianMixture.binary(dim=50, snr=5.0, ridge=0.1)
    ring = mixture.small_noise().fixed_point_components()[2].point()
    with pytest.raises(ValueError, match="fixed_points"):
        mixture.diffusive(ring)


@pytest.mark.slow
def test_at_a_fixed_point_of_finite_snr():
    """The band that the linear limit predicts is that of SGD around a stable classifier."""
    problem = tl.GaussianMixture.binary(dim=300, snr=10.0, ridge=0.1)
    dynamics = problem.dynamics(step_size=1.0)
    found = dynamics.fixed_points(count=8)
    best = next(p for p in found if p.stable and bool(problem.is_optimal(p.u)))
    limit = problem.diffusive(best.u)
    P = limit.stationary_covariance()
    assert float(torch.linalg.eigvalsh(P).min()) > -1e-6


def test_bad_calls():
    for options, message in (
        ({"u0": torch.zeros(3), "times": [0.0, 1.0]}, "shape"),
        ({"u0": torch.full((2,), torch.nan), "times": [0.0, 1.0]}, "finite"),
        ({"u0": torch.zeros(2), "times": [1.0, 0.0]}, "do not fall"),
        ({"u0": torch.zeros(2), "times": [0.0, 1.0], "paths": 0}, "paths"),
        ({"u0": torch.zeros(2), "times": [0.0, 1.0], "max_step": 0.0}, "max_step"),
    ):
        with pytest.raises(ValueError, match=message):
            OU.solve(**options)
    with pytest.raises(TypeError, match="Generator"):
        OU.solve(torch.zeros(2), [0.0, 1.0], generator=3)
    escape = tl.SpikedTensor(dim=100, order=4, snr=1000.0).equator(step_size=1.0)
    with pytest.raises(RuntimeError, match="left the diffusive phase"):
        escape.solve(torch.tensor([3.0, 1.0]), [0.0, 5.0])
    with pytest.raises(ValueError, match="scaled_snr"):
        tl.SpikedTensor(dim=100, order=4, snr=1.0).equator(step_size=1.0, scaled_snr=-1.0)
    plain = tl.EffectiveDynamics(Decay(["a"], 10), step_size=1.0)
    with pytest.raises(NotImplementedError, match="diffusion matrix of"):
        plain.diffusive(torch.zeros(1))


class Decay(tl.VectorField):
    """du/dt = -u, with nothing known of its diffusion."""

    def terms(self, u):
        return -u, 0 * u
