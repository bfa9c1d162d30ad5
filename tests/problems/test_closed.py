"""Closed forms of two-layer networks: against loops over indices, quadrature, and known numbers."""

import itertools
import math

import numpy as np
import pytest
import torch

from torchlimits.problems.network import sector
from torchlimits.problems.network.closed import (
    CLOSED_FORMS,
    TwoLayerAverages,
    generalization_error,
)

DOUBLE = {"dtype": torch.float64}
SLOPES = {
    "erf": lambda x: (2 / math.pi) ** 0.5 * torch.exp(-(x**2) / 2),
    "relu": lambda x: (x > 0).to(x),
    "square": lambda x: 2 * x,
    "linear": torch.ones_like,
}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def covariance(L, *batch, seed=0, rank=None):
    """Of random fields, of variances around 1."""
    factor = torch.randn(*batch, L, rank or L + 1, generator=generator(seed), **DOUBLE)
    return factor @ factor.mT / factor.shape[-1]


def numbers(*shape, seed=1):
    return torch.randn(*shape, generator=generator(seed), **DOUBLE)


# --- against naive loops over indices


def saad_solla(S, p, q, r=None, s=None):
    """I_2, I_3 = E[phi'(p) q phi(r)] and I_4 = E[phi'(p) phi'(q) phi(r) phi(s)] as printed."""
    c = S.tolist()
    if r is None:
        return 2 / math.pi * math.asin(c[p][q] / ((1 + c[p][p]) * (1 + c[q][q])) ** 0.5)
    if s is None:
        L3 = (1 + c[p][p]) * (1 + c[r][r]) - c[p][r] ** 2
        top = c[q][r] * (1 + c[p][p]) - c[p][q] * c[p][r]
        return 2 / math.pi * top / (L3**0.5 * (1 + c[p][p]))
    one, other, both = 1 + c[p][p], 1 + c[q][q], c[p][q]
    L4 = one * other - both**2
    L0 = (
        L4 * c[r][s] - c[q][r] * c[q][s] * one - c[p][r] * c[p][s] * other
        + both * c[p][r] * c[q][s] + both * c[p][s] * c[q][r]
    )  # fmt: skip

    def length(x):
        return (
            L4 * (1 + c[x][x]) - c[q][x] ** 2 * one - c[p][x] ** 2 * other
            + 2 * both * c[p][x] * c[q][x]
        )  # fmt: skip

    return 4 / math.pi**2 / L4**0.5 * math.asin(L0 / (length(r) * length(s)) ** 0.5)


def wick(S, indices):
    """E of a product of Gaussian fields, over all pairings."""
    if not indices:
        return 1.0
    first, rest = indices[0], indices[1:]
    return sum(float(S[first, x]) * wick(S, rest[:n] + rest[n + 1 :]) for n, x in enumerate(rest))


def moments(name, S):
    """Functions of indices: E[phi phi], E[phi'(i) p phi(q)] and E[phi'(i) phi'(j) phi phi]."""
    if name == "erf":
        return (
            lambda p, q: saad_solla(S, p, q),
            lambda i, p, q: saad_solla(S, i, p, q),
            lambda i, j, p, q: saad_solla(S, i, j, p, q),
        )
    n = 2 if name == "square" else 1

    def slope(*indices):  # phi'(x) = n x^(n-1)
        return n ** len(indices), [i for i in indices for _ in range(n - 1)]

    def mean(slopes, others, powers):
        factor, indices = slope(*slopes)
        return factor * wick(S, [*indices, *others, *(p for p in powers for _ in range(n))])

    return (
        lambda p, q: mean([], [], [p, q]),
        lambda i, p, q: mean([i], [p], [q]),
        lambda i, j, p, q: mean([i, j], [], [p, q]),
    )


def slope_pair(name, S, i, j):
    """E[phi'(i) phi'(j)]."""
    if name == "erf":
        c = S.tolist()
        return 2 / math.pi / ((1 + c[i][i]) * (1 + c[j][j]) - c[i][j] ** 2) ** 0.5
    return {"linear": 1.0, "square": 4 * float(S[i, j])}[name]


@pytest.mark.parametrize("name", ["erf", "square", "linear"])
@pytest.mark.parametrize(("K", "M"), [(1, 1), (2, 1), (2, 3)])
def test_averages_are_those_of_loops_over_indices(name, K, M):
    S, v, w, s = covariance(K + M, seed=K + M), numbers(K), numbers(M, seed=2), 0.7
    found = TwoLayerAverages.of(CLOSED_FORMS[name], S, v, w, noise=s)
    two, three, four = moments(name, S)
    a, fields = [*v.tolist(), *(-w).tolist()], range(K + M)
    error = sum(a[p] * a[q] * two(p, q) for p in fields for q in fields) / 2
    assert float(found.error) == pytest.approx(error, abs=1e-12)
    assert float(generalization_error(CLOSED_FORMS[name], S, v, w)) == pytest.approx(error)
    for i in range(K):
        head = sum(a[p] * two(p, i) for p in fields)
        assert float(found.head[i]) == pytest.approx(head, abs=1e-12)
        for x in fields:
            mean = a[i] * sum(a[p] * three(i, x, p) for p in fields)
            assert float(found.fields[i, x]) == pytest.approx(mean, abs=1e-12)
        for j in range(K):
            squares = sum(a[p] * a[q] * four(i, j, p, q) for p in fields for q in fields)
            mean = a[i] * a[j] * (squares + s**2 * slope_pair(name, S, i, j))
            assert float(found.gram[i, j]) == pytest.approx(mean, abs=1e-11)


# --- against quadrature


def plane_nodes(factor, radii=12, points=12):
    """Nodes and weights of two independent normals, exact for polynomials between the kinks."""
    line, weight = np.polynomial.laguerre.laggauss(radii)
    r = torch.from_numpy(np.sqrt(2 * line))
    zeros = torch.atan2(factor[:, 0], -factor[:, 1]) % math.pi
    cuts = torch.cat([zeros, zeros + math.pi, (zeros.min() + 2 * math.pi)[None]]).sort().values
    x, w = (torch.from_numpy(y) for y in np.polynomial.legendre.leggauss(points))
    widths = cuts.diff()[:, None] / 2
    phi, share = (cuts[:-1, None] + widths * (x + 1)).flatten(), (widths * w).flatten()
    z = r[:, None, None] * torch.stack([phi.cos(), phi.sin()], -1)
    weights = torch.from_numpy(weight)[:, None] * share / (2 * math.pi)
    return z.flatten(0, 1), weights.flatten()


def grid_nodes(points):
    line, weight = np.polynomial.hermite_e.hermegauss(points)
    weight = weight / weight.sum()
    z = torch.from_numpy(np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2))
    return z, torch.from_numpy(np.outer(weight, weight).ravel())


def integrated(name, factor, v, w, noise, nodes):
    """The averages by nodes, with fields that are combinations of two normals."""
    z, weight = nodes
    x, a, K = z @ factor.mT, torch.cat([v, -w]), len(v)
    phi = CLOSED_FORMS[name].activation(x)
    e, slopes = phi @ a, SLOPES[name](x[:, :K]) * v

    def mean(value):
        return (weight.reshape(-1, *(1,) * (value.ndim - 1)) * value).sum(0)

    g = e[:, None] * slopes
    squares = (e**2 + noise**2)[:, None, None] * slopes[:, :, None] * slopes[:, None, :]
    return TwoLayerAverages(
        mean(e**2) / 2, mean(e[:, None] * phi[:, :K]), torch.empty(K, len(a)),
        mean(g[:, :, None] * x[:, None, :]), mean(squares),
    )  # fmt: skip


def largest_difference(one, other):
    """Over all averages but the response."""
    fields = ("error", "head", "fields", "gram")
    return max(float((getattr(one, f) - getattr(other, f)).abs().max()) for f in fields)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_averages_are_those_of_quadrature(name):
    """Fields of two normals: singular covariances, of five fields in one plane."""
    factor, v, w = numbers(5, 2, seed=5) * 0.8, numbers(3, seed=6), numbers(2, seed=7)
    nodes = plane_nodes(factor) if name == "relu" else grid_nodes(90)
    S = factor @ factor.mT
    expected = integrated(name, factor, v, w, 0.5, nodes)
    found = TwoLayerAverages.of(CLOSED_FORMS[name], S, v, w, noise=0.5)
    assert largest_difference(found, expected) < 1e-7
    # a wrong one is noticed
    wrong = TwoLayerAverages.of(CLOSED_FORMS[name], S, v, w, noise=0.501)
    assert largest_difference(wrong, expected) > 1e-4


def cone_moment(S, i, j, c, d, points=2**18):
    """E[1{i, j > 0} c^+ d^+] of four fields, over a Sobol set on the sphere of their space.

    The radial part is exact: the mean of a homogeneous function of degree 2 in four dimensions.
    """
    z = torch.quasirandom.SobolEngine(4, scramble=True, seed=3).draw(points, **DOUBLE)
    z = torch.special.ndtri(z.clamp(1e-12, 1 - 1e-12))
    x = (z / z.norm(dim=1, keepdim=True)) @ torch.linalg.cholesky(S).mT
    both = (x[:, i] > 0) & (x[:, j] > 0)
    return 4 * float((both * x[:, c].relu() * x[:, d].relu()).mean())


def four_point(S):
    """E[1{0, 1 > 0} x_2^+ x_3^+], by second differences of the average in the weights."""
    zero, at = torch.zeros((), **DOUBLE), {}
    for sign in (1, -1):
        a = torch.tensor([0.0, 0.0, 1.0, sign], **DOUBLE)
        at[sign] = float(CLOSED_FORMS["relu"].gram(S, a, 2, zero)[0, 1])
    return (at[1] - at[-1]) / 4


def test_the_four_point_function_of_relu():
    """Generic fields; and two pairs that are independent, each E[1{x > 0} y^+] on its own."""
    S = covariance(4, seed=8)
    assert four_point(S) == pytest.approx(cone_moment(S, 0, 1, 2, 3), abs=1e-4)
    assert abs(four_point(S) - float(S[2, 3]) / 8) > 1e-2
    pairs, expected = torch.eye(4, **DOUBLE), 1 / (8 * math.pi)
    for (x, y), rho in {(0, 2): 0.6, (1, 3): -0.3}.items():
        pairs[x, y] = pairs[y, x] = rho
        expected *= 1 + rho
    assert four_point(pairs) == pytest.approx(expected, abs=1e-9)


def test_the_angle_of_relu_is_integrated_to_quadrature_precision(monkeypatch):
    relu, zero = CLOSED_FORMS["relu"], torch.zeros((), **DOUBLE)
    for K, M, rank in ((2, 1, None), (3, 2, None), (4, 4, None), (4, 4, 4), (3, 2, 2)):
        S, a = covariance(K + M, 5, seed=K, rank=rank), numbers(5, K + M, seed=9)
        found = relu.gram(S, a, K, zero)
        with monkeypatch.context() as patch:
            patch.setattr(sector, "_FEWEST", 100)
            patch.setattr(sector, "_APART", 0.9999)
            many = relu.gram(S, a, K, zero)
        assert float((found - many).abs().max()) < 1e-8 * float(many.abs().max())


# --- derivatives


def combined(name, K, M):
    """A number that all averages enter, as a function of the fields' factor and second layer."""
    form, rest = CLOSED_FORMS[name], numbers(200, seed=11)

    def function(factor, v):
        averages = TwoLayerAverages.of(form, factor @ factor.mT, v, torch.ones(M, **DOUBLE), 0.3)
        flat = [averages.error[None], averages.head, averages.fields, averages.gram]
        flat = torch.cat([x.flatten() for x in flat])
        return flat @ rest[: len(flat)]

    return function


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize(("K", "M", "rank"), [(1, 1, 3), (2, 1, 3), (3, 2, 6), (3, 2, 4)])
def test_derivatives_are_differences(name, K, M, rank):
    point = (numbers(K + M, rank, seed=12) * 0.6, numbers(K, seed=13))
    function = combined(name, K, M)
    slopes = torch.autograd.functional.jacobian(function, point)
    step = 1e-4
    for slot, slope in enumerate(slopes):
        for n in range(slope.numel()):
            move = torch.zeros_like(point[slot]).flatten()
            move[n] = step
            moved = [list(point), list(point)]
            for sign, values in zip((1, -1), moved, strict=True):
                values[slot] = point[slot] + sign * move.reshape(point[slot].shape)
            difference = float(function(*moved[0]) - function(*moved[1])) / (2 * step)
            assert float(slope.flatten()[n]) == pytest.approx(difference, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_derivatives_where_the_student_is_the_teacher(name):
    """h = t: the covariance is singular, and the averages that vanish there have derivatives."""
    T = covariance(2, seed=14)
    ones = torch.ones(2, **DOUBLE)

    def fields(m):
        h = torch.linalg.cholesky(T) + m
        x = torch.cat([h, torch.linalg.cholesky(T)])
        return TwoLayerAverages.of(CLOSED_FORMS[name], x @ x.mT, ones, ones)

    zero, step = torch.zeros(2, 2, **DOUBLE), 1e-5
    slopes = torch.autograd.functional.jacobian(lambda m: fields(m).fields, zero)
    assert (
        float(torch.autograd.functional.jacobian(lambda m: fields(m).gram, zero).abs().max()) < 1e-6
    )
    for i, j in itertools.product(range(2), repeat=2):
        move = zero.clone()
        move[i, j] = step
        difference = (fields(move).fields - fields(-move).fields) / (2 * step)
        assert torch.allclose(slopes[..., i, j], difference, atol=1e-4)


# --- shapes


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_leading_dimensions_are_points_one_by_one(name):
    S, v, w = covariance(5, 2, 3, seed=15), numbers(2, 3, 3, seed=16), numbers(2, seed=17)
    many = TwoLayerAverages.of(CLOSED_FORMS[name], S, v, w, noise=0.1)
    assert many.error.shape == (2, 3)
    one = TwoLayerAverages.of(CLOSED_FORMS[name], S[1, 2], v[1, 2], w, noise=0.1)
    for field in ("error", "head", "response", "fields", "gram"):
        assert torch.allclose(getattr(many, field)[1, 2], getattr(one, field), atol=1e-12)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_tensors_are_made_where_the_covariance_is(name):
    """With another default device, on which nothing has values."""
    S, v = covariance(4, seed=15), numbers(2, seed=16)
    with torch.device("meta"):
        averages = TwoLayerAverages.of(CLOSED_FORMS[name], S, v, v, noise=0.1)
    assert averages.gram.device.type == "cpu"
    assert averages.gram.dtype == torch.float64


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_wide_student_of_a_wide_teacher(name):
    K = 8 if name == "relu" else 16  # half a second
    S, ones = covariance(2 * K, seed=18), torch.ones(K, **DOUBLE)
    averages = TwoLayerAverages.of(CLOSED_FORMS[name], S, ones, ones)
    assert averages.gram.shape == (K, K)
    assert float(torch.linalg.eigvalsh(averages.gram).min()) > -1e-10


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_neurons_that_are_the_same_or_off(name):
    """Two equal neurons move alike, and one of length 0 has finite averages."""
    S = covariance(4, seed=19)
    same = torch.tensor([0, 0, 1, 2, 3])
    ones = torch.ones(3, **DOUBLE)
    averages = TwoLayerAverages.of(CLOSED_FORMS[name], S[same][:, same], ones, ones[:2], noise=0.2)
    assert torch.allclose(averages.fields[0], averages.fields[1], atol=1e-10)
    assert torch.allclose(averages.gram[0, 1], averages.gram[0, 0], atol=1e-7)
    off = S.clone()
    off[0], off[:, 0] = 0, 0
    off.requires_grad_()
    averages = TwoLayerAverages.of(CLOSED_FORMS[name], off, ones[:2], ones[:2])
    total = averages.error + averages.fields.sum() + averages.gram.sum()
    (slope,) = torch.autograd.grad(total, off)
    assert bool(torch.isfinite(total))
    assert bool(slope.isfinite().all())


# --- the numbers of the literature


def order_parameters(Q, C, T):
    """The covariance of (h, t)."""
    return torch.cat([torch.cat([Q, C], -1), torch.cat([C.mT, T], -1)], -2)


def flow(name, S, K, *, eta, noise=0.0, v=None):
    """d(Q, C)/d(steps/N) of SGD with the learning rate eta/N on the first layer."""
    M = S.shape[-1] - K
    v, w = torch.ones(K, **DOUBLE) if v is None else v, torch.ones(M, **DOUBLE)
    averages = TwoLayerAverages.of(CLOSED_FORMS[name], S, v, w, noise)
    dQ = -averages.fields[..., :K]
    return eta * (dQ + dQ.mT) + eta**2 * averages.gram, -eta * averages.fields[..., K:]


@pytest.mark.parametrize(("K", "error"), [(2, 0.0116108), (3, 0.0202966), (5, 0.0362263)])
def test_the_symmetric_plateau_of_soft_committee_machines(K, error):
    """Saad and Solla (1995): all overlaps are equal, and gradient flow stands still."""
    ones = torch.ones(K, K, **DOUBLE)
    S = order_parameters(
        ones / (2 * K - 1), ones / (K * (2 * K - 1)) ** 0.5, torch.eye(K, **DOUBLE)
    )
    dQ, dC = flow("erf", S, K, eta=1.0)
    gram = TwoLayerAverages.of(CLOSED_FORMS["erf"], S, ones[0], ones[0]).gram
    assert float((dQ - gram).abs().max()) < 1e-12
    assert float(dC.abs().max()) < 1e-12
    found = float(generalization_error(CLOSED_FORMS["erf"], S, ones[0], ones[0]))
    assert found == pytest.approx(
        K / math.pi * (math.pi / 6 - K * math.asin(1 / (2 * K))), abs=1e-12
    )
    assert found == pytest.approx(error, abs=5e-8)


def unpack(u, K, M):
    i, j = torch.triu_indices(K, K)
    Q = torch.zeros(K, K, **DOUBLE).index_put((i, j), u[: len(i)])
    Q = Q + Q.mT - torch.diag(Q.diagonal())
    return order_parameters(Q, u[len(i) :].reshape(K, M), torch.eye(M, **DOUBLE))


def right_hand_side(u, K, M, **options):
    dQ, dC = flow("erf", unpack(u, K, M), K, **options)
    i, j = torch.triu_indices(K, K)
    return torch.cat([dQ[i, j], dC.flatten()])


def fixed_point(u, K, M, **options):
    """By Newton's method; directions in which the point is not alone are left as they are."""
    for _ in range(60):
        value = right_hand_side(u, K, M, **options)
        J = torch.autograd.functional.jacobian(lambda x: right_hand_side(x, K, M, **options), u)
        u = u - torch.linalg.pinv(J, rtol=1e-10) @ value
        if float(value.abs().max()) < 1e-15:
            return u
    raise AssertionError(f"not solved: {value}")


@pytest.mark.parametrize(
    ("K", "eta", "variance", "ratio"),
    [(2, 0.1, 0.01, 1.045), (2, 0.02, 0.01, 1.0086), (4, 0.1, 0.01, 1.114), (2, 0.1, 0.25, 1.036),
     (2, 0.02, 0.25, 1.0071), (4, 0.1, 0.25, 1.109)],
)  # fmt: skip
def test_the_final_error_with_label_noise(K, eta, variance, ratio):
    """Goldt et al. (2019): eta s^2 (K - M + M / sqrt 3) / 2 pi to first order in eta."""
    M = 2
    i, j = torch.triu_indices(K, K)
    Q = torch.diag(torch.tensor([1.0] * M + [0.05] * (K - M), **DOUBLE))
    start = torch.cat([Q[i, j], torch.eye(K, M, **DOUBLE).flatten()])
    u = fixed_point(start, K, M, eta=eta, noise=variance**0.5)
    ones = torch.ones(K, **DOUBLE)
    error = float(generalization_error(CLOSED_FORMS["erf"], unpack(u, K, M), ones, ones[:M]))
    law = eta * variance * (K - M + M / 3**0.5) / (2 * math.pi)
    assert error / law == pytest.approx(ratio, abs=6e-4)


@pytest.mark.parametrize(("K", "largest"), [(1, 4.0558), (2, 2.3068)])
def test_the_largest_stable_learning_rate(K, largest):
    i, j = torch.triu_indices(K, K)
    perfect = torch.cat([torch.eye(K, **DOUBLE)[i, j], torch.eye(K, **DOUBLE).flatten()])

    def growth(eta):
        J = torch.autograd.functional.jacobian(lambda u: right_hand_side(u, K, K, eta=eta), perfect)
        return float(torch.linalg.eigvals(J).real.max())

    assert growth(largest - 1e-4) < 0 < growth(largest + 1e-4)
    if K == 1:
        assert largest == pytest.approx(3**0.5 * math.pi * 5**0.5 / 3, abs=5e-5)


def test_the_polynomials_of_phase_retrieval():
    """theory of one unit with phi(x) = x^2; exact in the order parameters m and Q."""
    for m, Q, c in ((0.3, 0.9, 0.2), (-1.0, 1.0, 1.0), (0.0, 1 / 3, 0.05), (0.7, 2.0, 0.5)):
        S = torch.tensor([[Q, m], [m, 1.0]], **DOUBLE)
        dQ, dm = flow("square", S, 1, eta=1.0)
        gram = TwoLayerAverages.of(
            CLOSED_FORMS["square"], S, torch.ones(1, **DOUBLE), torch.ones(1, **DOUBLE)
        ).gram
        assert float(dm) == pytest.approx(6 * m * (1 - Q), abs=1e-12)
        drift, corrector = float(dQ - gram), c * float(gram)
        assert drift == pytest.approx(-4 * (3 * Q**2 - Q - 2 * m**2), abs=1e-12)
        expected = 4 * c * (15 * Q**3 - 6 * Q**2 - 24 * Q * m**2 + 3 * Q + 12 * m**2)
        assert corrector == pytest.approx(expected, abs=1e-12)


def test_the_plateau_of_a_committee_depends_on_its_width():
    """The same start for each neuron: the error after a while differs for K = 1, 2, 3."""
    errors = []
    for K in (1, 2, 3):
        u = torch.cat([
            torch.eye(K, **DOUBLE)[tuple(torch.triu_indices(K, K))] * 0.1,
            torch.full((K * 2,), 1e-3, **DOUBLE) * numbers(2 * K, seed=20),
        ])  # fmt: skip
        for _ in range(100):
            u = u + 0.4 * right_hand_side(u, K, 2, eta=0.3)
        ones = torch.ones(3, **DOUBLE)
        error = generalization_error(CLOSED_FORMS["erf"], unpack(u, K, 2), ones[:K], ones[:2])
        errors.append(float(error))
    assert min(abs(x - y) for x, y in itertools.combinations(errors, 2)) > 0.002, errors
