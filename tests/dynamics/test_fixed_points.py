"""Fixed points found numerically, against closed forms and by what runs do around them."""

import copy
import math
import pickle

import pytest
import torch

import torchlimits as tl
from torchlimits.dynamics import fixed_points


def spiked(order, snr, c, **options):
    return tl.SpikedTensor(dim=100, order=order, snr=snr, **options).dynamics(step_size=c)


@pytest.mark.parametrize(
    ("order", "snr", "c"),
    [
        (2, 0.8, 1.0), (2, 1.2, 1.0), (2, 3.0, 0.4), (3, 6.0, 1.0), (3, 2.0, 0.3), (3, 3.0, 1.0),
        (4, 20.0, 1.0), (4, 5.0, 1.0), (5, 40.0, 1.0), (2, 1.0, 0.0), (3, 1.0, 0.0), (4, 1.0, 0.0),
    ],
)  # fmt: skip
def test_numbers_agree_with_the_closed_form(order, snr, c):
    dynamics = spiked(order, snr, c)
    found, exact = dynamics.fixed_points(), dynamics.exact_fixed_points()
    assert len(found) == len(exact)
    for point in exact:
        assert point.residual < 1e-10
        nearest = min(found, key=lambda p: float((p.u - point.u).abs().max()))
        assert float((nearest.u - point.u).abs().max()) < 1e-8
        assert nearest.kind == point.kind


def test_the_number_of_fixed_points():
    """k = 2: 2 below lambda_c, 4 above; k = 3: 2 and 4 (no negative m); k = 4: 2 and 6."""
    for order, below, above in ((2, 2, 4), (3, 2, 4), (4, 2, 6)):
        threshold = spiked(order, 1.0, 0.7).critical_snr
        assert len(spiked(order, 0.99 * threshold, 0.7).exact_fixed_points()) == below
        assert len(spiked(order, 1.01 * threshold, 0.7).exact_fixed_points()) == above


@pytest.mark.parametrize("order", [3, 4, 6])
@pytest.mark.parametrize("c", [0.3, 1.0, 2.0])
def test_the_critical_snr_is_a_saddle_node(order, c):
    """lambda_c is the smallest of (m^2 + c)^(k-1) / m^(k-2), and the roots meet there."""
    threshold = spiked(order, 1.0, c).critical_snr
    m = torch.logspace(-3, 1, 400_001, dtype=torch.float64)
    brute = float(((m**2 + c) ** (order - 1) / m ** (order - 2)).min())
    assert threshold == pytest.approx(brute, rel=1e-8)
    dynamics = spiked(order, threshold * (1 + 1e-10), c)
    meeting = math.sqrt(c * (order - 2) / order)
    assert dynamics.m_star() == pytest.approx(meeting, rel=1e-4)
    assert dynamics.m_dagger() == pytest.approx(meeting, rel=1e-4)


def test_stability_of_the_closed_forms():
    kinds = {
        tuple(round(x, 3) for x in p.u.tolist()): p.kind
        for p in spiked(3, 6.0, 1.0).exact_fixed_points()
    }
    assert kinds == {
        (0.0, 0.0): "unstable", (0.0, 1.0): "stable",
        (0.177, 1.0): "unstable", (1.364, 1.0): "stable",
    }  # fmt: skip
    (critical,) = [p for p in spiked(2, 1.0, 1.0).exact_fixed_points() if p.u[1] == 1]
    # the cubic term decides, and attracts: dm/dt = -4 m^3 on r2 = 1
    assert (critical.kind, critical.bifurcation) == ("stable", "pitchfork")


@pytest.mark.slow
def test_warm_and_cold_starts_part_at_m_dagger():
    """Just above and below on r2 = c the ODE goes to m_star and to 0; gradient flow always up."""
    dynamics = spiked(3, 6.0, 1.0)
    barrier = dynamics.m_dagger()
    starts = torch.tensor([[barrier * 1.02, 1.0], [barrier * 0.98, 1.0]]).double()
    final = dynamics.solve(starts, [0.0, 10.0]).final[:, 0]
    assert float(final[0]) == pytest.approx(dynamics.m_star(), abs=1e-6)
    assert abs(float(final[1])) < 1e-6
    flow = dynamics.solve(starts[1], [0.0, 10.0], corrector=False).final[0]
    assert float(flow) == pytest.approx(6.0 ** (1 / 3), abs=1e-3)


def test_odd_orders_have_no_negative_overlap():
    dynamics = spiked(3, 6.0, 1.0)
    for root in (dynamics.m_star, dynamics.m_dagger):
        with pytest.raises(ValueError, match="odd order k=3"):
            root(-1)
    assert spiked(4, 20.0, 1.0).m_star(-1) == -spiked(4, 20.0, 1.0).m_star()
    with pytest.raises(ValueError, match=r"expected snr >= lambda_c = 3\.07"):
        spiked(3, 3.0, 1.0).m_star()
    with pytest.raises(ValueError, match="no m_dagger"):
        spiked(2, 3.0, 1.0).m_dagger()
    with pytest.raises(ValueError, match="sign"):
        dynamics.m_star(2)
    with pytest.raises(ValueError, match="weight_decay 0"):
        _ = spiked(2, 3.0, 1.0, ridge=0.1).critical_snr


def test_with_a_ridge_they_are_found_numerically():
    dynamics = spiked(2, 3.0, 1.0, ridge=0.4)
    best = next(p for p in dynamics.fixed_points() if p.stable and p.u[0] > 0)
    assert best.residual < 1e-11
    path = dynamics.solve(best.u + 0.01, [0.0, 20.0])
    torch.testing.assert_close(path.final, best.u, atol=1e-6, rtol=0)


def test_at_finite_snr():
    """Binary, K = 2: the stable points attract runs of the ODE, and SGD ends near them."""
    problem = tl.GaussianMixture.binary(dim=500, snr=10.0, ridge=0.1)
    dynamics = problem.dynamics(step_size=1.0)
    found = dynamics.fixed_points(count=12)
    stable = [p for p in found if p.stable]
    assert stable
    assert all(p.residual < 1e-6 for p in found)
    optimal = [p for p in stable if bool(problem.is_optimal(p.u))]
    assert optimal
    for point in optimal:
        back = dynamics.solve(dynamics.geometry.project(point.u + 0.01), [0.0, 150.0]).final
        torch.testing.assert_close(back, point.u, atol=1e-3, rtol=0)


class Rotor(tl.VectorField):
    """A circle of fixed points, |u| = 1."""

    def __init__(self):
        super().__init__(["a", "b"], 10)

    def terms(self, u):
        return u * (1 - u.square().sum(-1, keepdim=True)), torch.zeros_like(u)


def flow_of(field):
    return tl.EffectiveDynamics(field(), step_size=0.0)


def test_a_circle_counts_once():
    generator = torch.Generator().manual_seed(0)
    found = flow_of(Rotor).fixed_points(torch.randn(40, 2, generator=generator))
    assert [p.kind for p in found] == ["marginal", "unstable"]
    assert found[0].dimension == 1
    assert len(found[0].members) > 20
    assert float((found[0].members.norm(dim=1) - 1).abs().max()) < 1e-10


class Semistable(Rotor):
    """da/dt = a^2, db/dt = -b: zero eigenvalue, and a way out on one side."""

    def terms(self, u):
        return torch.stack([u[..., 0] ** 2, -u[..., 1]], -1), torch.zeros_like(u)


class Nowhere(Rotor):
    """du/dt = 1 + u^2 has no fixed point."""

    def terms(self, u):
        return 1 + u**2, torch.zeros_like(u)


def test_semistable_points_are_unstable():
    (point,) = flow_of(Semistable).fixed_points(torch.randn(10, 2), flow=0.0)
    assert point.kind == "unstable"


def test_nothing_found():
    with pytest.raises(RuntimeError, match="no fixed point found from 10 starts"):
        flow_of(Nowhere).fixed_points(torch.randn(10, 2), flow=0.0)


def test_bad_starts():
    with pytest.raises(ValueError, match="expected starts"):
        flow_of(Rotor).fixed_points()
    for starts in (torch.zeros(2), torch.zeros(0, 2), torch.full((3, 2), torch.nan)):
        with pytest.raises(ValueError, match="starts of shape"):
            flow_of(Rotor).fixed_points(starts)
    with pytest.raises(ValueError, match="shape"):
        flow_of(Rotor).fixed_points(torch.zeros(3, 5))


def test_a_list_of_fixed_points_is_a_list_and_shows_a_table():
    points = spiked(2, 2.0, 1.0).fixed_points()
    assert points == list(points)
    assert points[1:] == list(points)[1:]
    assert [len(pickle.loads(pickle.dumps(points))), len(copy.deepcopy(points))] == [4, 4]
    header, *rows = repr(points).split("\n\n")[0].splitlines()
    assert header.split() == ["point", "kind", "fastest", "rate", "m", "r2"]
    assert [row.split()[1] for row in rows] == [point.kind for point in points]
    assert [float(row.split()[3]) for row in rows] == pytest.approx([float(p.u[0]) for p in points])
    assert points._repr_html_().count("<tr>") == 5
    assert repr(type(points)()) == "FixedPoints([])"


# --- at infinity, and where eigenvalues are zero --------------------------------------------------


class Far(tl.VectorField):
    """-u/(1 + u^2)^2 falls like u^-3 and has no zero but 0."""

    def terms(self, u):
        return -u / (1 + u**2) ** 2, torch.zeros_like(u)


def test_no_fixed_point_is_at_infinity():
    flow = tl.EffectiveDynamics(Far(["a"], 10), step_size=0.0)
    starts = 3 * torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
    assert [p.u.tolist() for p in flow.fixed_points(starts, flow=0.0)] == [[0.0]]
    # where weights may grow forever, -f + g gets as small as exp(-|u|^2)
    problem = tl.GaussianMixture.binary(dim=50, snr=1.0, ridge=0.0).small_noise()
    found = problem.dynamics(step_size=1.0).fixed_points(count=12, flow=0.0)
    assert all(not bool(p.u[:4].any()) for p in found)  # R stays as it is without a ridge


class Normal(tl.VectorField):
    """A normal form in the first coordinate, turned, with a slaved second one."""

    def __init__(self, square=0.0, cube=0.0, slaved=0.0, fifth=0.0, shift=0.0):
        super().__init__(["a", "b"], 10)
        self.numbers = square, cube, slaved, fifth, shift
        self.turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]]).double()

    def terms(self, u):
        square, cube, slaved, fifth, shift = self.numbers
        x, y = (u.double() @ self.turn.mT).unbind(-1)
        dx = square * x**2 + cube * x**3 + x * y + fifth * x**5
        rates = torch.stack([dx, -2 * y + 2 * slaved * x**2], -1) @ self.turn
        shifts = torch.stack([shift + 0 * x, 1 + 0 * x], -1) @ self.turn
        return rates.to(u), shifts.to(u)


@pytest.mark.parametrize(
    ("numbers", "kind", "name"),
    [
        ({"cube": -1.0}, "stable", "pitchfork"),
        ({"cube": 1.0}, "unstable", "pitchfork"),
        # y = slaved x^2 adds to the cubic term, and outweighs it
        ({"cube": -1.0, "slaved": 1.5}, "unstable", "pitchfork"),
        ({"cube": 1.0, "slaved": -1.5}, "stable", "pitchfork"),
        ({"slaved": -0.1}, "stable", "pitchfork"),
        ({"cube": -1.0, "shift": 1.0}, "stable", "cusp"),
        ({"square": 1.0, "cube": -1.0, "shift": 1.0}, "unstable", "saddle-node"),
        ({"square": -0.3, "cube": -1.0}, "unstable", "transcritical"),
        ({"fifth": -1.0}, "marginal", None),
        ({"cube": -1.0, "slaved": 1.0, "fifth": 1.0}, "marginal", None),
        ({}, "marginal", None),
    ],
)
def test_the_centre_manifold_decides(numbers, kind, name):
    flow = tl.EffectiveDynamics(Normal(**numbers), step_size=0.0)
    found = fixed_points.classify(flow, torch.zeros(2).double())
    assert (found.kind, found.bifurcation) == (kind, name)
    assert found.dimension == (kind == "marginal")


@pytest.mark.parametrize("slaved", [-1.5, 1.5])
def test_solutions_do_what_the_classification_says(slaved):
    """An independent check: the slaved direction turns the sign of the cubic term of its own."""
    flow = tl.EffectiveDynamics(Normal(cube=-slaved / 1.5, slaved=slaved), step_size=0.0)
    kind = fixed_points.classify(flow, torch.zeros(2).double()).kind
    final = flow.solve(0.2 * flow.field.turn[0], [0.0, 10.0]).final
    assert kind == ("unstable" if float(final.norm()) > 0.2 else "stable")
    assert kind == ("unstable" if slaved > 0 else "stable")


@pytest.mark.parametrize(
    ("order", "kind", "name"),
    [(2, "stable", "pitchfork"), (3, "unstable", "saddle-node"), (4, "unstable", "saddle-node")],
)
def test_the_critical_point_of_spiked_models(order, kind, name):
    critical = spiked(order, spiked(order, 1.0, 1.0).critical_snr, 1.0)
    for points in (critical.exact_fixed_points(), critical.fixed_points()):
        named = [p for p in points if p.bifurcation]
        assert {(p.kind, p.bifurcation) for p in named} == {(kind, name)}
        assert len(named) == (2 if order == 4 else 1)
    assert f"at a {name}" in repr(named[0])
    assert name in repr(critical.exact_fixed_points())


@pytest.mark.parametrize("mixture", ["binary", pytest.param("xor", marks=pytest.mark.slow)])
def test_zero_attracts_where_the_spheres_have_shrunk_to_it(mixture):
    make, means = {
        "binary": (tl.GaussianMixture.binary, 2), "xor": (tl.GaussianMixture.xor, 4)
    }[mixture]  # fmt: skip
    problem = make(dim=50, width=2, snr=1.0, ridge=1 / (2 * means)).small_noise()
    assert [c.kind for c in problem.fixed_point_components()] == ["stable"]
    dynamics = problem.dynamics(step_size=1.0)
    (point,) = dynamics.fixed_points(count=4, flow=0.0)
    assert (point.kind, point.bifurcation) == ("stable", "pitchfork")
    assert not bool(point.u.any())
    # solutions from nearby come closer, slowly; at a smaller ridge they leave
    v, m, R = dynamics.split(torch.zeros(len(dynamics.names)).double())
    start = dynamics.join(v + 0.1, m + 0.1 * dynamics.coordinates[0].double(), R)
    near = dynamics.solve(start, [0.0, 100.0]).values.norm(dim=-1)
    assert float(near[1]) < float(near[0])
    less = make(dim=50, width=2, snr=1.0, ridge=0.9 / (2 * means)).small_noise()
    away = less.dynamics(step_size=1.0).solve(start, [0.0, 100.0]).values.norm(dim=-1)
    assert float(away[1]) > float(away[0])
