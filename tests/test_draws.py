"""Random variables of exact chains: their laws, by Kolmogorov and Smirnov, and their tails."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from torchlimits._draws import chi, quick_normals

CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_quick_normals_are_standard_normal():
    """And the test sees a deviation two per cent larger, the negative control."""
    z = quick_normals((2, 200_000), generator=seeded(), device=CPU)
    assert z.dtype == torch.float64
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    assert stats.kstest(1.02 * z.flatten().numpy(), "norm").pvalue < 0.01
    for bound in (2.5, 4.0):
        beyond = int((z.abs() > bound).sum())
        assert stats.binomtest(beyond, z.numel(), 2 * stats.norm.sf(bound)).pvalue > 0.01
    first, second = z
    for found in (first * second, (first**2 - 1) * (second**2 - 1) / 2):  # of variance 1
        assert abs(float(found.mean())) < 4 * 200_000**-0.5
    assert torch.equal(z, quick_normals((2, 200_000), generator=seeded(), device=CPU))


def test_the_variance_of_24_bits_is_what_is_said():
    """E r^2 over all radii that uniform variables of 24 bits give."""
    k = np.arange(1, 2**24 + 1)
    assert 1 - np.log(2.0**24 / k).mean() == pytest.approx(5e-7, rel=0.2)
    assert math.sqrt(2 * 24 * math.log(2)) < 5.8


@pytest.mark.parametrize("dims", [1, 5, 31, 32, 33, 60, 999, 10**9, 10**12])
def test_lengths_have_the_chi_law(dims):
    """Below and above 32 dimensions, from which another way is taken; 1 % more is seen."""
    count = 100_000
    freedom = torch.tensor([dims, max(dims, 40)], dtype=torch.float64)
    r = chi(freedom, count, generator=seeded(dims % 1000))[0].numpy()
    law = stats.chi2(dims)

    def p(lengths):
        # the square beside its mean, in deviations: known to full precision in any dimension
        normalised = (lengths**2 - dims) / (2 * dims) ** 0.5
        return stats.kstest(
            normalised, lambda x: law.cdf(np.maximum(x * (2 * dims) ** 0.5 + dims, 0))
        ).pvalue

    assert p(r) > 0.01 / 9
    off = 0.01 * r.std()
    assert p(r + 2 * off) < 0.01


def test_what_is_doubtful_is_decided_by_the_rule_itself():
    """Marsaglia's and Tsang's rule for each variable, with the same normals and uniforms."""
    dims, count = 33, 100_000
    freedom = torch.full((1,), float(dims), dtype=torch.float64)
    r = chi(freedom, count, generator=seeded(1))[0].numpy()
    source = seeded(1)
    z = torch.randn(1, count, generator=source)[0].double().numpy()
    u = torch.rand(1, count, generator=source)[0].double().numpy()
    d = dims / 2 - 1 / 3
    v = (1 + z / math.sqrt(9 * d)) ** 3
    accepted = np.log(u) < z**2 / 2 + d - d * v + d * np.log(v)
    assert 50 < (~accepted).sum() < 500  # E z^4 / (108 d) of them
    same = np.isclose(r, np.sqrt(2 * d * v), rtol=1e-6)
    assert (same == accepted).all()
