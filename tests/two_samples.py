"""Are two samples of runs of one law? Means, variances and Kolmogorov-Smirnov, all counted."""

import torch
from scipy import stats


def largest_z(a, b):
    """Of means and of variances, over times and statistics, and how many there are."""
    z = []
    for power in (1, 2):
        x, y = (t if power == 1 else (t - t.mean(1, keepdim=True)).square() for t in (a, b))
        error = (x.var(1) / x.shape[1] + y.var(1) / y.shape[1]).sqrt()
        moved = error > 1e-12
        z.append(((x.mean(1) - y.mean(1)) / error)[moved])
    z = torch.cat(z).abs()
    return float(z.max()), len(z)


def smallest_p(a, b):
    """Of Kolmogorov-Smirnov tests of every statistic at every time, times their number."""
    # an idle neuron's values are one, to rounding
    a, b = (x.mul(1e10).round() for x in (a, b))
    p = [
        stats.ks_2samp(a[t, :, i].numpy(), b[t, :, i].numpy()).pvalue
        for t in range(a.shape[0])
        for i in range(a.shape[2])
        if float(a[t, :, i].std()) > 0
    ]
    return min(p) * len(p)


def bound(tests):
    """Exceeded by chance once in a thousand times, by any of so many tests."""
    return stats.norm.isf(0.5e-3 / tests)


def alike(a, b):
    """Whether runs (T, runs, k) at T times look like runs of the same law."""
    z, tests = largest_z(a, b)
    return z < bound(tests) and smallest_p(a, b) > 1e-3
