"""Normal variables: their law, also of pairs from the same numbers and of streams side by side."""

import math
from functools import partial

import pytest
import torch
from scipy import stats

from torchlimits import _random
from torchlimits._normals import Normals, box_muller

CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def by_numpy(shape, seed=0):
    return Normals(seeded(seed), CPU).draw(shape)


def by_box_muller(shape, seed=0):
    return box_muller(shape, generator=seeded(seed), device=CPU)


both = pytest.mark.parametrize("drawn", [by_numpy, by_box_muller])


@both
def test_they_are_standard_normal(drawn):
    """And the test sees a deviation two per cent larger, the negative control."""
    z = drawn((2, 200_000)).numpy()
    assert stats.kstest(z.flatten(), "norm").pvalue > 0.01
    assert stats.kstest(1.02 * z.flatten(), "norm").pvalue < 0.01
    # the tails, which that test hardly sees
    for bound in (2.5, 4.0):
        beyond = int((abs(z) > bound).sum())
        assert stats.binomtest(beyond, z.size, 2 * stats.norm.sf(bound)).pvalue > 0.01


@both
def test_moments_and_tails(drawn):
    """Moments up to the eighth, and counts beyond up to 5 sigma; z < 4.5, 14 numbers a way."""
    z = drawn((4_000_000,))

    def deviations(z):
        powers = [z.square()]
        for _ in range(3):
            powers.append(powers[-1] * powers[0])
        even = [(float(x.mean()), math.prod(range(1, 2 * k, 2)), math.prod(range(1, 4 * k, 2)))
                for k, x in enumerate(powers, 1)]  # fmt: skip
        odd = [(float((z * x / powers[0]).mean()), 0, math.prod(range(1, 4 * k - 2, 2)))
               for k, x in enumerate(powers, 1)]  # fmt: skip
        tails = [
            (float((side * z > bound).double().mean()), p, p)
            for bound in (3.0, 4.0, 5.0)
            for p in [float(stats.norm.sf(bound))]
            for side in (-1, 1)
        ]
        return [
            abs(found - mean) / math.sqrt((square - mean**2) / z.numel())
            for found, mean, square in even + odd + tails
        ]

    assert max(deviations(z)) < 4.5
    # the negative controls: standard deviations 0.2 % larger, and no tails beyond 3.9
    assert max(deviations(1.002 * z)) > 4.5
    assert max(deviations(z.clamp(-3.9, 3.9))[8:]) > 4.5


@both
def test_neighbours_and_streams_are_independent(drawn):
    """Products at many distances in one stream, and of streams of neighbouring seeds; z < 4.5."""
    count = 400_000
    z = drawn((count,))
    others = [drawn((count,), seed=seed) for seed in (1, 2, 3)]
    (key,) = _random.generators(0, [7])
    others.append(drawn((count,), seed=key.initial_seed()))
    shifted = [z.roll(k) for k in (1, 2, 3, 4, 7, 8, 16, 64, 128, 256, 1024, 4096)]

    def dependent(a, b):
        products = (a * b, (a**2 - 1) * (b**2 - 1) / 2, a * (b**2 - 1) / 2**0.5)
        return max(abs(float(x.mean())) * count**0.5 for x in products) > 4.5

    assert not any(dependent(z, other) for other in shifted + others)
    assert dependent(z, z.roll(1) + 0.02 * z)  # the negative control


@both
def test_pairs_from_the_same_radius_are_independent(drawn):
    first, second = drawn((2, 200_000))
    squares = (first**2 - 1) * (second**2 - 1) / 2
    for found in (first * second, squares, (first**2 - second**2) / 2):  # of variance 1
        assert abs(float(found.mean())) < 4 * 200_000**-0.5
    angle = torch.atan2(second, first).numpy()
    assert stats.kstest(angle, stats.uniform(-torch.pi, 2 * torch.pi).cdf).pvalue > 0.01
    alike = (first**2 - 1) * (first**2 - 1) / 2
    assert float(alike.mean()) > 0.9  # what the same variable twice would give


@both
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4)])
def test_any_shape_and_the_same_from_the_same_seed(drawn, shape):
    z = drawn(shape)
    assert z.shape == shape
    assert z.dtype == torch.float64
    assert torch.equal(z, drawn(shape))
    assert z.numel() == 0 or not torch.equal(z, drawn(shape, seed=1))


def test_the_largest_is_finite(monkeypatch):
    """Where the uniform variables are as far out as they get."""
    for extreme in (0.0, 1 - 2**-53):
        uniform = partial(torch.full, fill_value=extreme, dtype=torch.float64)
        monkeypatch.setattr(
            torch, "rand", lambda *shape, uniform=uniform, **options: uniform(shape)
        )
        assert bool(by_box_muller((4,)).isfinite().all())
    assert float(by_box_muller((1,))) == pytest.approx((2 * 53 * math.log(2)) ** 0.5)


@pytest.mark.parametrize("freedom", [1.0, 2.0, 7.0, 990.0])
def test_lengths_are_chi_variables(freedom):
    """Also where every one has its own number of variables; two per cent more is seen."""
    normals = Normals(seeded(), CPU)
    law = stats.chi(freedom)
    found = normals.lengths(freedom, (100_000,))
    given = torch.full((100_000,), freedom, dtype=torch.float64)
    for lengths in (found, normals.lengths(given, (100_000,))):
        assert stats.kstest(lengths.numpy(), law.cdf).pvalue > 0.01
        assert stats.kstest(1.02 * lengths.numpy(), law.cdf).pvalue < 0.01


def test_lengths_of_very_many_variables_have_full_precision():
    """Their variance is 1/2 around 10^6, with a relative error of 5 / n^(1/2)."""
    found = Normals(seeded(), CPU).lengths(1e12, (100_000,))
    assert abs(float(found.var()) - 0.5) < 5 * 0.5 * (2 / 100_000) ** 0.5
    assert len(found.unique()) > 99_000
