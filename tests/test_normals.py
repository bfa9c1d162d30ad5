"""Normal variables by Box and Muller: their law, also of pairs made from the same numbers."""

import math
from functools import partial

import pytest
import torch
from scipy import stats

from torchlimits._normals import normals

CPU = torch.device("cpu")


def drawn(shape, seed=0):
    return normals(shape, generator=torch.Generator().manual_seed(seed), device=CPU)


def test_they_are_standard_normal():
    """And the test sees a deviation two per cent larger, the negative control."""
    z = drawn((2, 200_000)).numpy()
    assert stats.kstest(z.flatten(), "norm").pvalue > 0.01
    assert stats.kstest(1.02 * z.flatten(), "norm").pvalue < 0.01
    # the tails, which that test hardly sees
    for bound in (2.5, 4.0):
        beyond = int((abs(z) > bound).sum())
        assert stats.binomtest(beyond, z.size, 2 * stats.norm.sf(bound)).pvalue > 0.01


def test_pairs_from_the_same_radius_are_independent():
    first, second = drawn((2, 200_000))
    squares = (first**2 - 1) * (second**2 - 1) / 2
    for found in (first * second, squares, (first**2 - second**2) / 2):  # of variance 1
        assert abs(float(found.mean())) < 4 * 200_000**-0.5
    angle = torch.atan2(second, first).numpy()
    assert stats.kstest(angle, stats.uniform(-torch.pi, 2 * torch.pi).cdf).pvalue > 0.01
    alike = (first**2 - 1) * (first**2 - 1) / 2
    assert float(alike.mean()) > 0.9  # what the same variable twice would give


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4)])
def test_any_shape_and_the_same_from_the_same_seed(shape):
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
        assert bool(drawn((4,)).isfinite().all())
    assert float(drawn((1,))) == pytest.approx((2 * 53 * math.log(2)) ** 0.5)
