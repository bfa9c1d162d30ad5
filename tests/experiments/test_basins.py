"""Where the effective dynamics take starts: coarse and early against fine and late."""

import math
from dataclasses import replace

import pytest
import torch

import torchlimits as tl
from torchlimits.experiments import success
from torchlimits.problems.mixture.quadrature import Resolution
from torchlimits.problems.mixture.relu_field import ReluField


def generator(seed):
    return torch.Generator().manual_seed(seed)


def same(classes, other):
    return float((classes == other).all(-1).double().mean())


def test_binary_starts_go_where_the_fine_solution_takes_them():
    problem = tl.GaussianMixture.binary(dim=1000, snr=100.0, ridge=0.1)
    u0 = problem.starts(60, generator=generator(1))
    dynamics = problem.dynamics(step_size=1.0)
    found = tl.basins(problem.dynamics(step_size=1.0, level=-1), u0)
    end = dynamics.solve(u0, [0.0, 100.0]).final
    assert same(found.classes, dynamics.classes(end)) == 1.0
    assert torch.equal(problem.is_optimal(found.final), problem.is_optimal(end))
    # at the start none has turned anywhere
    assert bool((dynamics.classes(u0) == -1).all())
    arrived = (found.classes >= 0).all(-1)
    assert bool((found.times[arrived] < 100).any())
    assert bool((found.times[~arrived] == 100).all())


#: where level -2 in double precision takes 32 starts with a fifth of the tolerance; . died out
FINE = """
1023 0230 1122 0320 0022 0332 0221 001. 0113 3201 2303 0201 1303 3313 1003 .233
0120 3102 002. 1022 0011 3031 33.. 1310 0311 3200 2313 0123 2323 2011 1131 .200
"""


def xor(starts, level=-3):
    problem = tl.GaussianMixture.xor(dim=1000, snr=100.0, ridge=0.1)
    u0 = problem.starts(1024, generator=generator(0))[:starts]
    return problem.dynamics(step_size=1.0, level=level), u0


def coarser(monkeypatch, **changes):
    fast = Resolution.fast
    monkeypatch.setattr(Resolution, "fast", lambda rule: replace(fast(rule), **changes))


def listed(classes):
    return ["".join("." if a < 0 else str(a) for a in row) for row in classes.tolist()]


def test_xor_starts_go_where_more_lines_take_them(monkeypatch):
    dynamics, u0 = xor(32)
    assert listed(tl.basins(dynamics, u0).classes) == FINE.split()
    # negative control: too few lines and nodes, whatever the tolerance
    assert listed(tl.basins(dynamics, u0, rtol=0.1).classes) == FINE.split()
    coarser(monkeypatch, lines=3, order=1)
    poor = listed(tl.basins(dynamics, u0, rtol=0.1).classes)
    assert sum(a != b for a, b in zip(poor, FINE.split(), strict=True)) > 1


@pytest.mark.slow
def test_many_xor_starts_go_where_more_lines_take_them(monkeypatch):
    """As 2042 of 2048 did that were followed once."""
    dynamics, u0 = xor(128)
    with monkeypatch.context() as patched:
        patched.setattr(ReluField, "for_classes", lambda field: field)
        fine = tl.basins(xor(1, level=-2)[0], u0, rtol=1e-3).classes
    assert listed(fine[:32]) == FINE.split()
    assert same(tl.basins(dynamics, u0).classes, fine) >= 0.995
    # negative control: a fifth of the lines
    coarser(monkeypatch, lines=17)
    assert same(tl.basins(dynamics, u0).classes, fine) < 0.98


@pytest.mark.slow
def test_xor_starts_go_where_the_fine_solution_takes_them():
    problem = tl.GaussianMixture.xor(dim=1000, snr=100.0, ridge=0.1)
    u0 = problem.starts(10, generator=generator(2))
    found = tl.basins(problem.dynamics(step_size=1.0, level=-3), u0)
    fine = tl.basins(problem.dynamics(step_size=1.0, level=-1), u0, rtol=1e-3)
    assert same(found.classes, fine.classes) == 1.0


@pytest.mark.slow
def test_xor_has_the_exact_probability_at_large_snr():
    problem = tl.GaussianMixture.xor(dim=1000, snr=1000.0, ridge=0.1)
    found = success.by_dynamics(problem, step_size=1.0, starts=200, seed=3)
    low, high = found.interval(0.999)
    assert low < problem.success_probability() < high
    # negative control: two more neurons
    assert not low < success.exact(4, 6) < high


def test_classes_at_the_components_of_the_small_noise_limit():
    problem = tl.GaussianMixture.xor(dim=100, snr=math.inf, ridge=0.1)
    dynamics = problem.dynamics(step_size=1.0)
    for component in problem.fixed_point_components():
        expected = [-1 if a is None else a for a in component.classes]
        point = component.point(generator(0))
        assert dynamics.classes(point).tolist() == expected


def test_shapes_follow_the_starts():
    problem = tl.GaussianMixture.binary(dim=100, snr=50.0, ridge=0.1)
    dynamics = problem.dynamics(step_size=1.0, level=-1)
    u0 = problem.starts(6, generator=generator(4)).float()
    found = tl.basins(dynamics, u0.reshape(2, 3, -1), time=5.0)
    assert found.classes.shape == (2, 3, 2)
    assert found.times.shape == (2, 3)
    assert found.final.shape == (2, 3, u0.shape[-1])
    assert found.final.dtype == torch.float64
    one = tl.basins(dynamics, u0[0], time=5.0)
    assert one.times.shape == ()
    torch.testing.assert_close(one.final, found.final[0, 0], rtol=0.05, atol=0.01)
    assert repr(one).startswith("Basins(1 starts")


def test_bad_input():
    problem = tl.GaussianMixture.binary(dim=100, snr=50.0, ridge=0.1)
    dynamics = problem.dynamics(step_size=1.0)
    u0 = problem.starts(2)
    with pytest.raises(
        TypeError, match=r"tl.GaussianMixture or tl.NetworkProblem, got SpikedDynamics"
    ):
        tl.basins(tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0), u0)
    with pytest.raises(ValueError, match="time"):
        tl.basins(dynamics, u0, time=0.0)
    with pytest.raises(ValueError, match="finite"):
        tl.basins(dynamics, u0 * math.nan)
    with pytest.raises(ValueError, match="shape"):
        tl.basins(dynamics, u0[:, :3])
    with pytest.raises(ValueError, match="expected level"):
        problem.dynamics(step_size=1.0, level=-4)
    with pytest.raises(ValueError, match="count"):
        problem.starts(0)
