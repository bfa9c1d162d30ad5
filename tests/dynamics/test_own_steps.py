"""`follow`: steps of one's own, looks inside them, and starts that are left alone."""

import math

import pytest
import torch

from torchlimits.dynamics import own_steps
from torchlimits.dynamics.own_steps import follow

D = torch.float64
#: rates between 0.1 and 30
RATES = torch.logspace(-1, math.log10(30), 20, dtype=D)


def never(rows, u):
    return torch.zeros(len(rows), dtype=torch.bool)


def growing(t, u):
    """Logistic growth; the second statistic is the start's own rate."""
    x, rate = u.unbind(-1)
    return torch.stack([rate * x * (1 - x), 0 * x], -1)


def logistic(x, rate, t):
    return x / (x + (1 - x) * torch.exp(-rate * t))


def starts(seed=0):
    x = torch.rand(len(RATES), generator=torch.Generator().manual_seed(seed), dtype=D) * 0.1
    return torch.stack([x, RATES], -1)


def test_the_error_falls_with_the_third_order():
    u0 = starts()
    exact = logistic(*u0.unbind(-1), 2.0)
    errors, counts = [], []
    for rtol in (1e-3, 1e-6):
        count = [0]

        def counted(t, u, count=count):
            count[0] += len(u)
            return growing(t, u)

        u, times = follow(counted, u0, [1.0, 2.0], rtol, rtol / 10, never)
        assert times.tolist() == [2.0] * len(u0)
        errors.append(float((u[:, 0] - exact).abs().max()))
        counts.append(count[0])
    assert errors[0] < 1e-2
    assert errors[1] < 1e-5
    # as many steps more as third order takes, not second: 1000^(1/3) for an error of second order
    assert counts[1] < 10 * counts[0]


def test_a_start_is_followed_by_itself():
    u0 = starts(1)
    together, _ = follow(growing, u0, [1.0, 2.0], 1e-4, 1e-5, never)
    for i in (0, 10, 19):
        alone, _ = follow(growing, u0[i : i + 1], [1.0, 2.0], 1e-4, 1e-5, never)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=0)


def test_looks_see_the_solution_at_their_times():
    u0, seen = starts(2), {}

    def half(rows, u):
        for row, x in zip(rows.tolist(), u[:, 0].tolist(), strict=True):
            seen.setdefault(row, []).append(x)
        return u[:, 0] > 0.5

    looks = [0.25, 0.5, 1.0, 3.0]
    u, times = follow(growing, u0, looks, 1e-5, 1e-6, half)
    for row, values in seen.items():
        at = torch.tensor(looks[: len(values)], dtype=D)
        expected = logistic(*u0[row], at)
        torch.testing.assert_close(torch.tensor(values, dtype=D), expected, rtol=0, atol=1e-3)
        assert bool((expected[:-1] < 0.5).all())
        assert float(times[row]) == looks[len(values) - 1]
        assert float(u[row, 0]) == values[-1]
    assert set(times.tolist()) == set(looks)


def test_others_take_the_places_of_those_that_have_arrived(monkeypatch):
    u0 = starts(3)
    expected = follow(growing, u0, [1.0, 2.0], 1e-4, 1e-5, never)
    monkeypatch.setattr(own_steps, "GROUP", 4)
    largest = [0]

    def counted(t, u):
        largest[0] = max(largest[0], len(u))
        return growing(t, u)

    found = follow(counted, u0, [1.0, 2.0], 1e-4, 1e-5, never)
    assert largest[0] == 4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("group", [512, 2])
def test_rates_that_change_in_time(monkeypatch, group):
    monkeypatch.setattr(own_steps, "GROUP", group)
    latest = [0.0]

    def forced(t, u):
        latest[0] = max(latest[0], float(t))
        return torch.cos(t) * u

    u0 = torch.tensor([[1.0, 2.0], [3.0, 0.5], [1e-3, 1.0]], dtype=D)
    u, times = follow(forced, u0, [1.0, 2.0, 3.0], 1e-6, 1e-7, never, autonomous=False)
    torch.testing.assert_close(u, u0 * math.exp(math.sin(3.0)), rtol=1e-4, atol=0)
    assert times.tolist() == [3.0] * 3
    assert latest[0] <= 3.0
    # negative control: with steps of their own, starts see the time of another
    wrong, _ = follow(forced, u0, [1.0, 2.0, 3.0], 1e-6, 1e-7, never)
    assert float((wrong / u0 - math.exp(math.sin(3.0))).abs().max()) > 1e-3


def test_what_cannot_be_followed(monkeypatch):
    u0 = torch.ones(2, 1)
    with pytest.raises(RuntimeError, match=r"start \d of 2 came to t=1.*blows up"):
        follow(lambda t, u: u**2, u0, [1.0, 2.0], 1e-3, 1e-4, never)
    monkeypatch.setattr(own_steps, "LIMIT", 2000)
    with pytest.raises(RuntimeError, match="after 2,000 evaluations"):
        follow(lambda t, u: -1e6 * u, u0, [1.0], 1e-3, 1e-4, never)
    none, times = follow(lambda t, u: -u, u0[:0], [1.0], 1e-3, 1e-4, never)
    assert none.shape == (0, 1)
    assert times.shape == (0,)
