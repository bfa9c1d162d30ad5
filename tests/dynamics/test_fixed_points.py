"""Fixed points found numerically, against closed forms and by what runs do around them."""

import copy
import math
import pickle

import pytest
import torch

import torchlimits as tl


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
    (marginal,) = [p for p in spiked(2, 1.0, 1.0).exact_fixed_points() if p.u[1] == 1]
    assert marginal.kind == "marginal"


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
