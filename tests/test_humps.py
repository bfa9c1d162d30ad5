"""Hartigan's dip, and what it says of laws with one hump and with two."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linprog

import torchlimits as tl
from torchlimits import _humps
from torchlimits.comparison.humps import several_humps


def test_dip_is_that_of_the_reference_implementation():
    """The values are those of diptest 0.12.0 (R. Urlus), a port of M. Maechler's for R."""
    rng = np.random.default_rng(7)
    two = np.concatenate([rng.normal(size=60), rng.normal(3, 1, size=40)])
    skewed = rng.exponential(size=80)
    assert _humps.dip(two) == pytest.approx(0.048031481569513514, rel=1e-9)
    assert _humps.dip(skewed) == pytest.approx(0.04156555670439418, rel=1e-9)
    ties = np.random.default_rng(3).normal(size=90).round(1)
    assert _humps.dip(ties) == pytest.approx(0.035, rel=1e-9)


def by_definition(sample, jumps=True):
    """The distance to the nearest distribution function with one mode, by linear programs.

    It is convex up to the mode and concave from there, and can jump at the mode alone. Between the
    sample's numbers it may be taken as linear, and the mode as one of them.
    """
    x, counts = np.unique(sample, return_counts=True)
    above = counts.cumsum() / len(sample)
    below = above - counts / len(sample)
    return min(with_mode(mode, x, below, above, jumps) for mode in range(len(x)))


def with_mode(mode, x, below, above, jumps):
    # unknown: the function at x, at the mode before its jump; behind it; the distance
    unit, last = np.eye(len(x) + 2), len(x)
    rows = [(unit[mode] - unit[last], 0.0)]
    if not jumps:
        rows.append((unit[last] - unit[mode], 0.0))
    for i in range(len(x)):
        after = unit[last if i == mode else i]
        for value, of in ((unit[i], below[i]), (after, above[i])):
            rows += [(value - unit[-1], of), (-value - unit[-1], -of)]
    sides = (range(mode + 1), 1), ((last, *range(mode + 1, last)), -1)
    for (side, sign), points in zip(sides, (x[: mode + 1], x[mode:]), strict=True):
        steps = zip(itertools.pairwise(side), np.diff(points), strict=True)
        slopes = [(unit[b] - unit[a]) / width for (a, b), width in steps]
        rows += [(-slope, 0.0) for slope in slopes]
        rows += [(sign * (a - b), 0.0) for a, b in itertools.pairwise(slopes)]
    matrix, limits = (np.array(part) for part in zip(*rows, strict=True))
    found = linprog(unit[-1], matrix, limits, bounds=(None, None))
    assert found.success
    return found.fun


@pytest.mark.parametrize("digits", [15, 0])
def test_dip_is_what_it_is_defined_as(digits):
    """Numbers rounded to integers, of which many are equal, included."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        parts = rng.normal(size=rng.integers(2, 9)), rng.normal(4, 1, size=rng.integers(0, 8))
        sample = np.concatenate(parts).round(digits)
        assert _humps.dip(sample) == pytest.approx(by_definition(sample), abs=1e-9)


def test_the_nearest_law_with_one_hump_can_jump_at_its_mode():
    """Which a third of equal numbers needs; the dip is not that of the nearest continuous one."""
    sample = np.array([0.0, 1.0, 2.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert _humps.dip(sample) == pytest.approx(by_definition(sample), abs=1e-9)
    assert by_definition(sample, jumps=False) > 1.5 * _humps.dip(sample)
    assert _humps.dip(np.zeros(5)) == 0.0


@pytest.mark.parametrize(
    "law",
    [
        stats.norm(), stats.uniform(), stats.expon(), stats.chi2(3), stats.t(3), stats.beta(2, 5),
        stats.lognorm(0.8),
    ],
)  # fmt: skip
def test_laws_with_one_hump_have_one(law):
    """Also where they are far from normal: a test of one normal against two would err."""
    rng = np.random.default_rng(0)
    assert not any(_humps.several(law.rvs(2000, random_state=rng)) for _ in range(40))


@pytest.mark.parametrize(("share", "apart"), [(0.5, 3.2), (0.3, 4.0), (0.1, 7.0)])
def test_laws_with_two_humps_have_two(share, apart):
    rng = np.random.default_rng(0)
    first = rng.random(2000) < share
    sample = rng.normal(size=2000) + apart * first
    assert _humps.several(sample)
    found = _humps.humps(sample)
    np.testing.assert_allclose(found.shares, [1 - share, share], atol=0.06)
    np.testing.assert_allclose(found.places, [0, apart], atol=0.25)


def test_constant_and_short_samples_have_no_shape():
    assert not _humps.several(np.zeros(500))
    assert not _humps.several(np.concatenate([np.zeros(250), np.full(250, 1e-9)]))
    assert not _humps.several(np.repeat([0.0, 1.0], 20))


@pytest.mark.slow
def test_a_saddle_of_xor_has_two_and_an_ornstein_uhlenbeck_process_one():
    problem = tl.GaussianMixture.xor(250, 4, snr=8.0, ridge=0.05)
    u0 = problem.starts(1, generator=torch.Generator().manual_seed(3))[0]
    seed = torch.Generator().manual_seed(0)
    law = problem.reduced_chain(step_size=1.0).law(u0, [0.0, 6.0, 12.0], runs=800, generator=seed)
    found = several_humps(law)
    assert [one.name for one in found] == ["m[0,1]"]
    assert found[0].humps.places[0] < -0.2
    assert found[0].humps.places[1] > 0.2
    below = tl.SpikedTensor(1000, order=2, snr=0.5).dynamics(step_size=1.0)
    process = below.diffusive(torch.tensor([0.0, 1.0]))
    stationary = process.law(torch.tensor([0.0, 0.0]), [0.0, 1.0, 5.0], runs=2000, generator=seed)
    assert not several_humps(stationary)
