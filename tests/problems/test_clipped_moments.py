"""Gradients clipped before Adam, AdamW, RMSprop and Adagrad: predictions against real loops."""

import dataclasses

import pytest
import torch
from adaptive_runs import binary, clip_norm, misses, runs_of, three_classes
from torch import nn

N = 512
Adam, AdamW = torch.optim.Adam, torch.optim.AdamW
RMSprop, Adagrad = torch.optim.RMSprop, torch.optim.Adagrad

slow = pytest.mark.slow
#: problem, optimizer, clipping and batch, and the least rms z of predictions that leave out
#: clipping or the corrector; about half of what they are
CASES = [
    pytest.param(
        binary, lambda m: Adam(m.parameters(), lr=0.5 / N), {"clip_norm": 4.0}, 6, id="norm"
    ),
    pytest.param(
        lambda N: binary(N, ridge=0.1),
        lambda m: AdamW(m.parameters(), lr=0.5 / N, weight_decay=0.1), {"clip_value": 0.2}, 4,
        id="value, adamw", marks=slow,
    ),
    pytest.param(
        lambda N: three_classes(N, ridge=0.1),
        lambda m: Adam(m.parameters(), lr=0.5 / N, weight_decay=0.1),
        {"clip_norm": 1.0, "batch": 4}, 6, id="norm, classes, batches, coupled decay", marks=slow,
    ),
    pytest.param(
        lambda N: binary(N, means=torch.eye(2, N).double(), ridge=0.1),
        lambda m: Adam(m.parameters(), lr=0.5 / N, weight_decay=0.1), {"clip_value": 0.1}, 4,
        id="value, axes, coupled decay", marks=slow,
    ),
    pytest.param(
        binary, lambda m: RMSprop(m.parameters(), lr=0.2 / N, alpha=0.998), {"clip_norm": 2.0}, 4,
        id="rmsprop", marks=slow,
    ),
    pytest.param(
        binary, lambda m: Adagrad(m.parameters(), lr=N**-0.5, initial_accumulator_value=N / 2),
        {"clip_norm": 4.0}, 2, id="adagrad", marks=slow,
    ),
]  # fmt: skip


def without_map(dynamics):
    """The dynamics of the same optimizer on gradients as they are."""
    return type(dynamics)(dynamics.network, dataclasses.replace(dynamics.limit, map=None))


@pytest.mark.parametrize(("make_problem", "make", "options", "least"), CASES)
def test_runs_follow_the_limit(make_problem, make, options, least):
    """rms z is 1 to 2.7 at N = 512, the same as without clipping: more than 1 is O(1/N)."""
    measured, dynamics = runs_of(make_problem(N), make, runs=40, steps=400, **options)
    start, count = measured.initial[0], len(dynamics.network.names)
    predicted = dynamics.solve(start, measured.times)
    assert misses(measured, predicted, count) < 3
    without_corrector = dynamics.solve(start, measured.times, corrector=False)
    assert misses(measured, without_corrector, count) > least
    plain = without_map(dynamics).solve(start, measured.times)
    assert misses(measured, plain, count) > least


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"clip_norm": 2.0}, {"clip_value": 0.2}], ids=str)
def test_the_band_is_that_of_runs(options):
    """The standard deviation of 200 runs is known to 5 %, and statistics are not independent."""
    measured, dynamics = runs_of(
        binary(N), lambda m: Adam(m.parameters(), lr=0.5 / N), steps=300, runs=200, rows=3,
        **options,
    )  # fmt: skip
    predicted = dynamics.solve(measured.initial[0], measured.times, band=True)
    count = len(dynamics.network.names)
    band = predicted.std[1:, :count]
    ratios = (measured.values[:, 1:, :count].std(0) / band)[band > 0.1 * band.median()]
    assert abs(float(ratios.square().mean().sqrt()) - 1) < 0.1


def test_replicas_are_clipped_as_torch_clips_one():
    """The loops of these tests do what `torch.nn.utils.clip_grad_norm_` does to each run."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, 5), (3, 2), (3, 1)]
    stacked = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    sizes = torch.tensor([0.1, 1.0, 10.0])  # the first is left as it is
    for p in stacked[:2]:  # the last has no gradient
        g = torch.randn(*p.shape, generator=generator)
        p.grad = g * sizes.reshape(3, *[1] * (g.ndim - 1))
    whole = [p.grad.clone() for p in stacked[:2]]
    clip_norm(stacked, 1.0)
    for replica in range(3):
        alone = [nn.Parameter(torch.zeros(shape[1:])) for shape in shapes]
        for p, g in zip(alone, whole, strict=False):
            p.grad = g[replica].clone()
        nn.utils.clip_grad_norm_(alone, 1.0)
        for p, theirs in zip(stacked[:2], alone, strict=False):
            torch.testing.assert_close(p.grad[replica], theirs.grad)
    assert stacked[0].grad[0].equal(whole[0][0])
    assert not stacked[0].grad[2].equal(whole[0][2])
