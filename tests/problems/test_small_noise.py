"""The small-noise limit: against the formulas written out, finite snr, and its own components."""

import itertools
import math
from collections import Counter

import pytest
import torch

import torchlimits as tl
from torchlimits.dynamics import fixed_points
from torchlimits.problems.mixture import small_noise


def binary(width=2, ridge=0.1, **options):
    return tl.GaussianMixture.binary(dim=50, width=width, snr=10.0, ridge=ridge, **options)


def xor(width=4, ridge=0.1, **options):
    return tl.GaussianMixture.xor(dim=50, width=width, snr=10.0, ridge=ridge, **options)


def test_binary_against_the_proposition():
    """Proposition 4.2 written out neuron by neuron."""
    dynamics = binary(width=5, ridge=0.07).small_noise().dynamics(step_size=1.0)
    v, m = torch.randn(5).double(), torch.randn(5, 1).double()
    R = torch.eye(5).double()
    dv, dm, dR = dynamics.split(dynamics(0.0, dynamics.join(v, m, R)))
    plus = sum(float(v[i] * m[i]) for i in range(5) if m[i] > 0)
    minus = sum(float(v[i] * m[i].abs()) for i in range(5) if m[i] < 0)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    for i in range(5):
        if m[i] > 0:
            s, size = sigmoid(-plus) / 2, float(m[i])
            expected = s * size - 0.07 * v[i], s * v[i] - 0.07 * m[i, 0]
        else:
            s, size = sigmoid(minus) / 2, float(-m[i])
            expected = -s * size - 0.07 * v[i], s * v[i] - 0.07 * m[i, 0]
        assert float(dv[i]) == pytest.approx(float(expected[0]), abs=1e-14)
        assert float(dm[i, 0]) == pytest.approx(float(expected[1]), abs=1e-14)
    torch.testing.assert_close(dR, -0.14 * R)


@pytest.mark.parametrize("make", [binary, xor])
def test_is_the_limit_of_large_snr(make):
    problem = make(ridge=0.05)
    dynamics = problem.small_noise().dynamics(step_size=1.0)
    K, d = problem.width, len(problem.directions)
    v, m = torch.randn(20, K).double(), torch.randn(20, K, d).double()
    u = dynamics.join(v, m, 0.3 * torch.eye(K).double().expand(20, K, K))
    gaps = []
    for snr in (1e4, 1e8):
        other = type(problem)(problem.means, problem.labels, width=K, snr=snr, ridge=0.05).dynamics(
            step_size=1.0
        )
        gaps.append(float((other(0.0, u) - dynamics(0.0, u)).abs().max()))
    assert gaps[1] < 1e-3
    assert gaps[1] < gaps[0] / 3 or gaps[0] < 1e-3


def test_a_neuron_slides_where_both_sides_push_it():
    """XOR, serving mu, orthogonal to nu: held there, seeing nu and -nu in balance."""
    problem = xor(width=2, ridge=0.01)
    dynamics = problem.small_noise().dynamics(step_size=1.0)
    v = torch.tensor([1.0, -1.0]).double()
    # the second neuron serves nu, so that nu and -nu push with different strength
    m = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    R = torch.zeros(2, 2).double()
    _, dm, _ = dynamics.split(dynamics(0.0, dynamics.join(v, m, R)))
    assert float(dm[0, 1].abs()) < 1e-14
    # the same at a large snr, at the offset where the neuron rests
    offset = 1e-9
    for side in (-1, 1):
        off = m.clone()
        off[0, 1] = side * (offset + 0.02)
        _, dm, _ = dynamics.split(dynamics(0.0, dynamics.join(v, off, R)))
        assert float(dm[0, 1]) * side < -0.05
    # and the solver gets across: from 0.3 it reaches 0 and stays
    m[0, 1] = 0.3
    path = dynamics.solve(dynamics.join(v, m, R), torch.linspace(0, 20, 5))
    assert abs(float(path["m[0,1]"][-1])) < 1e-6


@pytest.mark.parametrize(
    ("make", "width", "count", "stable"),
    [(binary, 2, 9, 2), (binary, 3, 27, 6), (xor, 4, 625, 24), (xor, 2, 25, 12), (binary, 1, 3, 2)],
)
def test_counts(make, width, count, stable):
    components = make(width).small_noise().fixed_point_components()
    assert len(components) == count
    assert sum(c.stable for c in components) == stable
    assert [c.stable for c in components] == sorted((c.stable for c in components), reverse=True)


@pytest.mark.parametrize(("make", "width"), [(binary, 2), (binary, 4), (xor, 3)])
def test_components_are_what_the_numbers_say(make, width):
    """Every component: fixed points, their kind by eigenvalues, as many zeros as dimensions."""
    problem = make(width).small_noise()
    dynamics = problem.dynamics(step_size=1.0)
    generator = torch.Generator().manual_seed(0)
    for component in problem.fixed_point_components():
        u = component.point(generator)
        assert float(dynamics(0.0, u).abs().max()) < 1e-14
        assert float(component.distance(u)) < 1e-7
        values, kind, dimension, _ = fixed_points.classify(dynamics, u)
        if component.stable and component.dimension:
            # a sphere that attracts: marginal along itself
            assert (kind, dimension) == ("marginal", component.dimension)
            assert float(values.real[component.dimension]) < -1e-3
        else:
            assert kind == component.kind
        if None not in component.classes:
            assert dimension == component.dimension


@pytest.mark.slow
def test_all_625_of_xor():
    problem = xor(4).small_noise()
    dynamics = problem.dynamics(step_size=1.0)
    components = problem.fixed_point_components()
    u = torch.stack([c.point(torch.Generator().manual_seed(i)) for i, c in enumerate(components)])
    assert float(dynamics(0.0, u).abs().max()) < 1e-14
    kinds = Counter(c.kind for c in components)
    # empty means and idle neurons, counted by hand: inclusion-exclusion over the means
    full = sum((-1) ** j * math.comb(4, j) * (4 - j) ** 4 for j in range(5))
    assert kinds["stable"] == full == 24
    assert kinds["marginal"] == 4**4 - full
    assert kinds["unstable"] == 625 - 4**4
    # off every component the dynamics move
    assert float(dynamics(0.0, u + 0.1 * torch.randn(u.shape).double()).abs().amax(-1).min()) > 1e-4


def test_numbers_find_the_components_of_the_binary_mixture():
    """From random starts, without knowing them: both stable points, both rings, to 1e-8."""
    problem = binary(2).small_noise()
    components = problem.fixed_point_components()
    found = problem.dynamics(step_size=1.0).fixed_points(count=60)
    for point in found:
        nearest = min(components, key=lambda c: float(c.distance(point.u)))
        assert float(nearest.distance(point.u)) < 1e-8
    stable = [p.u for p in found if p.stable]
    exact = [c.point() for c in components if c.stable]
    assert len(stable) == len(exact) == 2
    for u in exact:
        assert min(float((u - x).abs().max()) for x in stable) < 1e-8
    rings = [p for p in found if p.kind == "marginal"]
    assert len(rings) == 2
    assert {p.dimension for p in rings} == {1}


def test_distance_is_the_smallest():
    """Against random points of the component's sphere."""
    problem = xor(5).small_noise()
    component = next(c for c in problem.fixed_point_components() if c.dimension == 2)
    generator = torch.Generator().manual_seed(0)
    others = torch.stack([component.point(generator) for _ in range(3000)])
    for _ in range(5):
        u = component.point(generator) + 0.1 * torch.randn(len(others[0]), generator=generator)
        brute = float((others - u).norm(dim=1).min())
        exact = float(component.distance(u))
        assert exact <= brute + 1e-12
        assert brute - exact < 0.02


def test_above_the_threshold_there_is_only_zero():
    for make, threshold in ((binary, 1 / 4), (xor, 1 / 8)):
        (only,) = make(ridge=threshold * 1.01).small_noise().fixed_point_components()
        assert only.stable
        assert float(only.point().abs().max()) == 0
        assert make(ridge=threshold * 1.01).success_probability() == 0
        problem = make(ridge=threshold * 0.99)
        assert len(problem.small_noise().fixed_point_components()) > 1
        assert problem.success_probability() > 0


def test_training_at_infinite_snr_draws_the_means():
    problem = xor(4).small_noise()
    x, _ = problem.sample(50)
    assert bool((x[:, None] - problem.means.float()).norm(dim=-1).min(1).values.eq(0).all())


def test_optimal_classifiers():
    problem = xor(4).small_noise()
    for component in itertools.islice(problem.fixed_point_components(), 0, 625, 7):
        assert bool(problem.is_optimal(component.point())) is component.stable is component.optimal
    assert problem.is_optimal(torch.zeros(3, 2, 22)).shape == (3, 2)


def test_errors():
    with pytest.raises(ValueError, match="call small_noise"):
        xor().fixed_point_components()
    with pytest.raises(ValueError, match="ridge > 0"):
        xor(ridge=0.0).small_noise().fixed_point_components()
    with pytest.raises(ValueError, match="at most 1000000"):
        xor(width=9).small_noise().fixed_point_components()
    other = tl.GaussianMixture(torch.eye(3, 20), [0, 1, 1], width=2, snr=1.0, ridge=0.1)
    with pytest.raises(ValueError, match="binary mixture"):
        other.small_noise().fixed_point_components()
    with pytest.raises(ValueError, match="binary mixture"):
        other.success_probability()
    with pytest.raises(ValueError, match="shape"):
        xor().is_optimal(torch.zeros(3))


def test_which_mixture():
    eye = torch.eye(2).double()
    four = torch.cat([eye, -eye])
    kind = small_noise.kind_of_mixture
    assert kind(four, torch.tensor([1.0, 0.0, 1.0, 0.0])) == "xor"
    assert kind(torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([1.0, 0.0])) == "binary"
    for labels in ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="XOR"):
            kind(four, torch.tensor(labels))
