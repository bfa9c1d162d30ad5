"""Mixtures under Adam, signs and clipping: a network of any head under the mixture's own names."""

import pytest
import torch
from adaptive_runs import misses, runs_of
from torch import nn

import torchlimits as tl
from torchlimits.problems.mixture.as_network import as_network

N = 256
Adam, SGD = torch.optim.Adam, torch.optim.SGD


def mixture(**options):
    options = {"snr": 4.0, "ridge": 0.1, "dtype": torch.float64, **options}
    return tl.GaussianMixture.binary(N, 2, **options)


def network(weights=None):
    """The same problem, as one of any head."""
    head = nn.Sequential(nn.ReLU(), nn.Linear(2, 1, bias=False))
    means = torch.eye(1, N).double()
    return tl.NetworkProblem(
        dim=N, width=2, head=head, loss=nn.functional.binary_cross_entropy_with_logits, bias=False,
        means=torch.cat([means, -means]), labels=torch.tensor([1.0, 0.0]).double(), snr=4.0,
        ridge=0.1, weights=weights, dtype=torch.float64,
    )  # fmt: skip


OPTIMIZERS = [
    pytest.param(lambda p: Adam(p, lr=0.5 / N, weight_decay=0.1), {}, id="adam"),
    pytest.param(
        lambda p: SGD(p, lr=0.5 / N, weight_decay=0.1), {"clip_norm": 2.0, "batch_size": 3},
        id="norm",
    ),
    pytest.param(lambda p: tl.SignSGD(p, lr=0.5 / N, weight_decay=0.1), {}, id="sign"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_rates_and_noise_are_those_of_the_network(make, options):
    """The nodes are the same, too."""
    weights = [0.7, 0.3]
    ours, theirs = mixture(weights=weights), network(torch.tensor(weights, dtype=torch.float64))
    ours = ours.dynamics(make(ours.model().parameters()), **options)
    theirs = theirs.dynamics(make(theirs.model().parameters()), **options)
    assert ours.network.names == mixture().names
    u = ours.started(mixture().starts(2, generator=torch.Generator().manual_seed(0)))
    other = ours.started(mixture().starts(2, generator=torch.Generator().manual_seed(1)))
    for name in ("drift", "corrector", "diffusion", "risk"):
        found, expected = getattr(ours, name)(u), getattr(theirs, name)(u)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert not found.allclose(getattr(theirs, name)(other), rtol=1e-3)


def test_terms_are_the_closed_ones_of_the_mixture():
    """To 2e-3, the error of 2^12 nodes at kinks."""
    problem = tl.GaussianMixture.xor(N, 4, snr=4.0, weights=[0.4, 0.3, 0.2, 0.1])
    field = problem.dynamics(step_size=1.0).field
    limit = problem.dynamics(SGD(problem.model().parameters(), lr=1 / N), clip_value=1.0).limit
    sums = as_network(field, limit, nodes=2**12)
    u = sums.space.random(6, torch.Generator().manual_seed(0))
    for found, expected in zip(sums.terms(u), field.terms(u), strict=True):
        assert (found - expected).abs().max() < 2e-3 * (1 + expected.abs().max())
        assert (found - expected.roll(1, 0)).abs().max() > 0.05  # of other points


slow = pytest.mark.slow
#: mixture, optimizer, options of the runs, and the least rms z without the corrector
CASES = [
    pytest.param(
        mixture, lambda m: Adam(m.parameters(), lr=0.5 / N, weight_decay=0.1), {}, 5, id="adam"
    ),
    pytest.param(
        lambda: mixture(weights=[0.7, 0.3]),
        lambda m: torch.optim.AdamW(m.parameters(), lr=0.5 / N, weight_decay=0.1),
        {"clip_norm": 2.0, "batch": 2}, 5, id="adamw, norm, weights", marks=slow,
    ),
    pytest.param(
        mixture, lambda m: tl.SignSGD(m.parameters(), lr=0.3 / N, weight_decay=0.1), {}, 5,
        id="sign", marks=slow,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make_problem", "make", "options", "least"), CASES)
def test_runs_follow_the_limit(make_problem, make, options, least):
    measured, dynamics = runs_of(make_problem(), make, runs=40, steps=300, **options)
    start, count = measured.initial[0], len(dynamics.network.names)
    assert measured.names == dynamics.names
    predicted = dynamics.solve(start, measured.times)
    assert misses(measured, predicted, count) < 3
    without = dynamics.solve(start, measured.times, corrector=False)
    assert misses(measured, without, count) > least


def test_what_is_not_known_is_refused():
    problem = mixture()
    adam = Adam(problem.model().parameters(), lr=1 / N, weight_decay=0.1)
    with pytest.raises(NotImplementedError, match="no exact chain is known for Adam"):
        problem.reduced_chain(adam)
    for options in ({"optimizer": adam}, {"step_size": 1.0, "clip_norm": 2.0}):
        with pytest.raises(ValueError, match=r"expected a finite snr with .* got inf"):
            problem.small_noise().dynamics(**options)
    model = problem.model()
    of_one_layer = SGD(model.second.parameters(), lr=1 / N, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"does not train first.weight: pass model="):
        problem.dynamics(of_one_layer, clip_norm=1.0)
    model.first.requires_grad_(False)
    limit = problem.dynamics(of_one_layer, model=model, clip_norm=1.0).limit
    assert limit.map.among == {"second.weight"}
