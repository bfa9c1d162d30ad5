"""The Gaussian expectations against references that share nothing with the rule."""

import itertools
import math

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from scipy import integrate, special

from torchlimits._linalg import factor_gaussian, psd_sqrt
from torchlimits.problems.mixture import quadrature
from torchlimits.problems.mixture.expectations import (
    expect,
    mixture_moments,
    relu_moments,
)

D = torch.float64


def draw(points, width, seed, snr=None):
    """Random mean, factor, v, label as the dynamics of a mixture make them."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=D, generator=g)  # noqa: E731
    v, m, a = normal(points, width), normal(points, width, 2), normal(points, width, width)
    if snr is None:
        snr = 10 ** (7 * torch.rand(points, dtype=D, generator=g) - 1)
    snr = torch.as_tensor(snr, dtype=D).expand(points)
    factor, _ = factor_gaussian(m, a @ a.mT / math.sqrt(width), snr)
    label = torch.randint(0, 2, (points,), generator=g).to(D)
    return m[..., 0], factor, v, label


def largest(got, expected):
    return max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))


def by_quad(mean, factor, v, label):
    """K = 1: adaptive quadrature with the kink as a break point."""
    kink = -mean / factor if factor else 0.0

    def integral(power, square):
        def f(t):
            h = mean + factor * t
            s = special.expit(v * max(h, 0.0)) - label
            return (h >= 0) * t**power * s ** (1 + square) * math.exp(-t * t / 2)

        edges = sorted({-9.0, 9.0, *np.clip([kink, kink - 0.1, kink + 0.1, 0.0], -9, 9)})
        pieces = itertools.pairwise(edges)
        return sum(integrate.quad(f, *e, epsabs=1e-12, limit=200)[0] for e in pieces)

    return [integral(*which) / math.sqrt(2 * math.pi) for which in ((0, 0), (1, 0), (0, 1))]


def by_polar(mean, factor, v, label, angles=24, radii=40):
    """K = 2: polar coordinates about the point where both kinks cross.

    Kinks are rays there, so that sectors between them are smooth; nothing is shared with the rule
    but Gauss-Legendre. The factor must be well-conditioned.
    """
    centre = np.linalg.solve(factor, -mean)
    kinks = [math.atan2(r[0], -r[1]) for r in (*factor, v @ factor)]  # and psi = 0
    rays = [kink + offset for kink in kinks for offset in (-0.2, -0.05, 0.0, 0.05, 0.2)]
    rays += [math.atan2(-centre[1], -centre[0]) + offset for offset in (-0.3, 0.0, 0.3)]
    rays = np.array(rays) % math.pi
    edges = np.unique(np.concatenate([rays, rays + math.pi, np.linspace(0, 2 * math.pi, 13)]))
    x, w = np.polynomial.legendre.leggauss(angles)
    half = np.diff(edges)[:, None] / 2
    theta = ((edges[1:] + edges[:-1])[:, None] / 2 + half * x).ravel()
    d_theta = (half * w).ravel()
    direction = np.stack([np.cos(theta), np.sin(theta)])
    nearest = -(centre @ direction)
    low, high = np.maximum(nearest - 9, 0), np.maximum(nearest + 9, 1e-9)
    # psi is linear along a ray: a cubed variable resolves sigmoid near the centre
    cuts = low + (high - low) * np.linspace(0, 1, 13)[:, None] ** 2
    y, u = np.polynomial.legendre.leggauss(radii)
    half_r = (np.diff(cuts, axis=0) / 2)[:, None]
    r = (cuts[1:] + cuts[:-1])[:, None] / 2 + half_r * y[:, None]
    weight = half_r * u[:, None] * r * d_theta
    xi = centre[:, None, None, None] + direction[:, None, None] * r
    weight = weight * np.exp(-(xi**2).sum(0) / 2) / (2 * math.pi)
    h = np.einsum("ij,jabc->iabc", factor, xi - centre[:, None, None, None])
    active = (h >= 0).astype(float)
    s = special.expit(np.einsum("i,iabc->abc", v, h * active)) - label
    return (
        np.einsum("iabc,abc->i", active, s * weight),
        np.einsum("iabc,jabc,abc->ij", active, xi, s * weight),
        np.einsum("iabc,jabc,abc->ij", active, active, s * s * weight),
    )


def by_sampling(mean, factor, v, label, seed, batches=16, size=2**16):
    """Plain Monte-Carlo moments and their standard errors, for one point."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(batches):
        xi = torch.randn(size, len(v), dtype=D, generator=g)
        h = mean + xi @ factor.T
        active = (h >= 0).to(D)
        s = torch.sigmoid((h * active) @ v) - label
        t1 = (active * s[:, None]).T @ xi / size
        t2 = (active * s.square()[:, None]).T @ active / size
        rows.append(torch.cat([(active * s[:, None]).mean(0), t1.ravel(), t2.ravel()]))
    rows = torch.stack(rows)
    return rows.mean(0), rows.std(0) / math.sqrt(batches)


def flat(moments):
    return torch.cat([x.reshape(-1) for x in moments])


def test_one_neuron_against_adaptive_quadrature():
    for mean, factor, v, label in zip(*draw(40, 1, seed=1), strict=True):
        expected = by_quad(mean.item(), factor.item(), v.item(), label.item())
        got = flat(relu_moments(mean, factor, v, label)).tolist()
        assert got == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("snr", [0.1, 1.0, 30.0])
def test_two_neurons_against_polar_quadrature(snr):
    checked = 0
    for mean, factor, v, label in zip(*draw(12, 2, seed=2, snr=snr), strict=True):
        if torch.linalg.cond(factor) > 10 or torch.linalg.solve(factor, mean).norm() > 5:
            continue
        expected = by_polar(mean.numpy(), factor.numpy(), v.numpy(), label.item())
        got = relu_moments(mean, factor, v, label)
        assert largest(got, [torch.tensor(x) for x in expected]) < 1e-6
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize(
    ("width", "snr"), [(3, 0.5), (4, 0.2), (4, 5.0), (6, 1.0), (8, 1.0), (12, 2)]
)
def test_many_neurons_against_sampling(width, snr):
    mean, factor, v, label = (x[0] for x in draw(1, width, seed=width, snr=snr))
    expected, error = by_sampling(mean, factor, v, label, seed=7)
    got = flat(relu_moments(mean, factor, v, label))
    # 5.5 standard errors from 16 batches (Student t, 15 degrees) for up to 300 entries, and the
    # error of the rule
    assert bool(((got - expected).abs() < 5.5 * error + 2e-3 * (width > 4)).all())


@pytest.mark.parametrize(("width", "bound"), [(1, 1e-9), (2, 1e-8), (3, 5e-6), (4, 5e-5)])
def test_levels_converge(width, bound):
    inputs = draw(20 if width < 3 else 5, width, seed=20 + width)
    levels = [flat(relu_moments(*inputs, level=level)) for level in (-1, 0, 1, 2)]
    errors = [float((x - levels[-1]).square().mean().sqrt()) for x in levels[:-1]]
    assert errors[1] < bound
    assert errors[2] < errors[0] / 5
    # negative control: the same check fails a rule of few lines and few nodes
    coarse = quadrature.Resolution(3, (0.0,), 6.0, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quadrature, "resolution", lambda *_: coarse)
        got = flat(relu_moments(*inputs))
    assert float((got - levels[-1]).square().mean().sqrt()) > 10 * bound


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_jacobians_are_those_of_the_integral(width):
    mean, factor, v, label = (x[0] for x in draw(1, width, seed=31, snr=2.0))

    def moments(theta, level=0):
        parts = theta.split([width, width * width, width])
        return flat(
            relu_moments(parts[0], parts[1].reshape(width, width), parts[2], label, level=level)
        )

    theta = torch.cat([mean, factor.ravel(), v])
    step = 1e-3 if width > 2 else 1e-4
    shifts = step * torch.eye(len(theta), dtype=D)
    level = 2 if width <= 2 else 1
    differences = torch.stack(
        [(moments(theta + e, level) - moments(theta - e, level)) / (2 * step) for e in shifts], 1
    )
    bound = 2e-6 if width <= 2 else 4e-3
    reverse = torch.func.jacrev(moments)(theta)
    assert float((reverse - differences).abs().max()) < bound
    assert torch.allclose(torch.func.jacfwd(moments)(theta), reverse, atol=1e-12)
    plain = torch.autograd.functional.jacobian(moments, theta)
    assert torch.allclose(plain, reverse, atol=1e-12)
    # negative control: through fixed nodes, the delta of the indicator is dropped
    fixed = torch.func.jacrev(lambda x: fixed_nodes(x, width, label))(theta)
    assert float((fixed - differences).abs().max()) > 20 * bound


def fixed_nodes(theta, width, label):
    g = torch.Generator().manual_seed(0)
    xi = torch.randn(2**14, width, dtype=D, generator=g)
    mean, factor, v = theta.split([width, width * width, width])
    h = mean + xi @ factor.reshape(width, width).T
    active = (h >= 0).to(D)
    s = torch.sigmoid((h * active) @ v) - label
    t1 = (active * s[:, None]).T @ xi / len(xi)
    t2 = (active * s.square()[:, None]).T @ active / len(xi)
    return torch.cat([(active * s[:, None]).mean(0), t1.ravel(), t2.ravel()])


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_point_does_not_depend_on_its_batch(width):
    inputs = draw(60 if width < 3 else 5, width, seed=4)
    together = relu_moments(*inputs)
    alone = [relu_moments(*(x[i] for x in inputs)) for i in range(len(inputs[0]))]
    assert largest(together, [torch.stack(x) for x in zip(*alone, strict=True)]) < 1e-13
    assert all(torch.equal(a, b) for a, b in zip(together, relu_moments(*inputs), strict=True))


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    relu_moments(*draw(1, 5, seed=0))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("width", [1, 2, 3, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_singular_factors(width):
    mean, factor, v, label = draw(4, width, seed=5)
    factor[0] = 0.0
    factor[1] = factor[1, :1]
    factor[2, -1] = 0.0
    mean[3] *= 1e8
    inputs = [x.clone().requires_grad_() for x in (mean, factor, v)]
    moments = relu_moments(*inputs, label)
    flat(moments).sum().backward()
    assert bool(flat(moments).isfinite().all())
    assert all(bool(x.grad.isfinite().all()) for x in inputs)
    # without noise the expectation is the value at the mean
    active = (mean[0] >= 0).to(D)
    s = torch.sigmoid(v[0] @ mean[0].relu()) - label[0]
    point = [x[0].detach() for x in moments]
    exact = [active * s, torch.zeros(width, width, dtype=D), torch.outer(active, active) * s**2]
    assert largest(point, exact) < (1e-8 if width <= 2 else 1e-5)


def test_exactly_zero_is_active():
    zero = torch.zeros(2, dtype=D)
    first, _, second = relu_moments(zero, torch.zeros(2, 2, dtype=D), torch.ones(2, dtype=D), 0.0)
    assert torch.allclose(first, torch.full((2,), 0.5, dtype=D))
    assert torch.allclose(second, torch.full((2, 2), 0.25, dtype=D))


def test_aligned_neurons_are_one_neuron():
    # two equal neurons with v = (a, b) are one with v = a + b
    mean, factor = torch.tensor([0.3], dtype=D), torch.tensor([[1.2]], dtype=D)
    one = relu_moments(mean, factor, torch.tensor([1.5], dtype=D))
    rows = torch.tensor([[1.2, 0.0], [1.2, 0.0]], dtype=D)
    two = relu_moments(mean.expand(2), rows, torch.tensor([2.0, -0.5], dtype=D))
    assert (
        largest([two.first, two.second[0]], [one.first.expand(2), one.second[0].expand(2)]) < 1e-8
    )


def test_broadcasting_dtype_and_vmap():
    mean, factor, v, _ = draw(3, 2, seed=6)
    wide = relu_moments(mean[:, None], factor[0], v, 1.0)
    assert wide.first.shape == (3, 3, 2)
    assert wide.xi.shape == wide.second.shape == (3, 3, 2, 2)
    assert torch.allclose(wide.first[1, 2], relu_moments(mean[1], factor[0], v[2]).first)
    single = relu_moments(mean.float(), factor.float(), v.float())
    assert single.first.dtype == torch.float32
    assert largest([x.double() for x in single], relu_moments(mean, factor, v)) < 1e-5
    mapped = torch.func.vmap(relu_moments)(mean, factor, v)
    assert largest(mapped, relu_moments(mean, factor, v)) < 1e-13
    assert relu_moments(mean[:0], factor[:0], v[:0]).xi.shape == (0, 2, 2)


def test_wrong_shapes_say_what_was_expected():
    # the checker of annotations speaks first where it is installed, as in this suite
    with pytest.raises((ValueError, TypeCheckError), match="factor"):
        relu_moments(torch.zeros(2), torch.zeros(3, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="expected level"):
        relu_moments(torch.zeros(1), torch.zeros(1, 1), torch.zeros(1), level=-4)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_expect_takes_any_integrand(width):
    mean, factor, v, label = draw(3, width, seed=8)

    def integrand(xi, h, psi, y):
        s = torch.sigmoid(psi) - y[:, None]
        return torch.cat([(h >= 0) * s[..., None], xi.square(), xi[..., :1] ** 4], -1)

    got = expect(integrand, mean, factor, v, label)
    assert torch.allclose(got[:, :width], relu_moments(mean, factor, v, label).first, atol=1e-9)
    assert torch.allclose(got[:, width:-1], torch.ones(3, width, dtype=D), atol=1e-4)
    assert torch.allclose(got[:, -1], torch.full((3,), 3.0, dtype=D), atol=1e-3)


def test_factor_gaussian_factors_the_covariance():
    g = torch.Generator().manual_seed(9)
    m = torch.randn(5, 3, 2, dtype=D, generator=g)
    a = torch.randn(5, 3, 3, dtype=D, generator=g)
    a[0] = 0.0
    a[1, :, 1:] = 0.0
    gram = a @ a.mT
    factor, q = factor_gaussian(m, gram, 4.0)
    assert torch.allclose(factor @ factor.mT, (m @ m.mT + gram) / 4, atol=1e-12)
    table = torch.cat([m, psd_sqrt(gram)], -1) / 2
    assert torch.allclose(factor @ q, table, atol=1e-7)
    assert torch.allclose(q @ q.mT, torch.eye(3, dtype=D).expand(5, 3, 3), atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_square_root_has_the_right_derivative(scale):
    g = torch.Generator().manual_seed(10)
    a = torch.randn(3, 3, dtype=D, generator=g) * scale
    gram = torch.eye(3, dtype=D) + a @ a.T  # scale 0: all eigenvalues equal
    direction = torch.randn(3, 3, dtype=D, generator=g)
    direction = direction + direction.T
    step = 1e-5
    expected = (psd_sqrt(gram + step * direction) - psd_sqrt(gram - step * direction)) / (2 * step)
    forward = torch.func.jvp(psd_sqrt, (gram,), (direction,))[1]
    jacobian = torch.func.jacrev(psd_sqrt)(gram)
    assert torch.allclose(forward, expected, atol=1e-8)
    assert torch.allclose(torch.einsum("ijkl,kl->ij", jacobian, direction), expected, atol=1e-8)
    assert torch.allclose(torch.func.jacfwd(psd_sqrt)(gram), jacobian, atol=1e-10)
    assert torch.allclose(torch.func.vmap(psd_sqrt)(gram[None])[0], psd_sqrt(gram))


def test_square_root_at_the_edge_is_finite():
    for gram in (torch.zeros(2, 2, dtype=D), torch.diag(torch.tensor([1.0, -1e-17], dtype=D))):
        assert bool(psd_sqrt(gram).isfinite().all())
        assert bool(torch.func.jacrev(psd_sqrt)(gram).isfinite().all())


def drift(u, snr=2.0):
    """E[P_j 1_i s] and E[X_par 1_i s] of two neurons: the full chain from (v, m, R)."""
    v, m = u[:2], u[2:4, None]
    gram = torch.stack([u[4], u[5], u[5], u[6]]).reshape(2, 2)
    factor, q = factor_gaussian(m, gram, snr)
    first, xi, _ = relu_moments(m[:, 0], factor, v)
    zeta = xi @ q / math.sqrt(snr)
    return torch.cat([first + zeta[:, 0], (zeta[:, 1:] @ psd_sqrt(gram)).ravel()])


@pytest.mark.parametrize("gram", [(1.0, 0.0, 1.0), (1.5, 0.4, 0.7)])
def test_jacobian_of_the_whole_chain(gram):
    u = torch.tensor([1.2, -0.7, 0.5, -0.9, *gram], dtype=D)
    step = 1e-4
    expected = torch.stack(
        [(drift(u + e) - drift(u - e)) / (2 * step) for e in step * torch.eye(7, dtype=D)], 1
    )
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        assert float((transform(drift)(u) - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("width", [1, 2, 3, 9])
def test_another_default_device_changes_nothing(width):
    """Lattices too, which are kept."""
    inputs = draw(3, width, seed=0)
    level = -3 if width == 9 else 0
    expected = relu_moments(*inputs, level=level)
    for kept in (quadrature._lattice, quadrature._directions, quadrature._regions):
        kept.cache_clear()
    with torch.device("meta"):
        found = relu_moments(*inputs, level=level)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def mixture(points=8, seed=0):
    """Means of five components, two pairs of them opposite, and what they have in common."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, dtype=D, generator=g)  # noqa: E731
    a, b, c = normal(3, points, 4)
    mean = torch.stack([a, b, -a, c, -b], 1)
    factor, v = normal(points, 4, 4), normal(points, 4)
    # an idle neuron, which counts as active, and two that are parallel
    mean[0, :, 1], factor[0, 1] = 0.0, 0.0
    factor[1, 3] = factor[1, 2]
    return mean, factor, v, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0], dtype=D)


def test_borders_are_sorted():
    rule = quadrature.Resolution(4, (-1.0, 1.0), 3.0, 16)
    kinks = torch.randn(5, 4, 9, dtype=D, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    # out of reach, equal to another, and on a split
    kinks[0, 1], kinks[1, 2], kinks[2, 3] = 3.0, kinks[1, 0], 1.0
    fixed = torch.tensor([-3.0, -1.0, 1.0, 3.0], dtype=D)[:, None].expand(5, 4, 9)
    expected = torch.cat([kinks, fixed], 1).sort(dim=1).values
    assert torch.equal(quadrature._with_splits(kinks, rule, 4), expected)
    kinks[:, 2:] = 3.0
    expected = torch.cat([kinks[:, :2], fixed], 1).sort(dim=1).values
    assert torch.equal(quadrature._with_splits(kinks, rule, 2), expected)


@pytest.mark.parametrize("level", [-3, 0])
def test_opposite_means_have_their_nodes_in_common(level):
    mean, factor, v, label = mixture()
    one_by_one = relu_moments(mean, factor[:, None], v[:, None], label, level=level)
    shared = mixture_moments(mean, factor, v, label, [(0, 2), (1, 4)], level=level)
    assert largest(shared, one_by_one) < 1e-13
    # in single precision and with fewer lines, by an even rule alone
    fast = mixture_moments(mean, factor, v, label, [(0, 2), (1, 4)], level=level, fast=True)
    if level == 0:
        assert largest(fast, one_by_one) == 0.0
        return
    fine = relu_moments(mean, factor[:, None], v[:, None], label, level=0)
    assert 0 < largest(fast, one_by_one) < 2 * largest(one_by_one, fine)
    # negative control: means that are not opposite
    wrong = mixture_moments(mean, factor, v, label, [(0, 1), (2, 4)], level=level)
    assert largest(wrong, one_by_one) > 0.1
