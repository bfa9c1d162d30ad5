"""Where the effective dynamics take starts: coarse and early against fine and late."""

import math

import pytest
import torch

import torchlimits as tl
from torchlimits.experiments import success


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
