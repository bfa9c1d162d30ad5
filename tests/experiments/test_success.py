"""Where random starts go: exact, by the effective dynamics, by SGD; and step-size regimes."""

import itertools

import pytest
import torch

import torchlimits as tl
from torchlimits.experiments import success


@pytest.mark.parametrize("means", [2, 4])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 6])
def test_exact_against_enumeration(means, width):
    choices = list(itertools.product(range(means), repeat=width))
    brute = sum(len(set(c)) == means for c in choices) / len(choices)
    assert success.exact(means, width) == pytest.approx(brute, abs=1e-15)


def test_problems_know_it():
    assert tl.GaussianMixture.binary(dim=50, snr=10.0, ridge=0.1).success_probability() == 0.5
    assert tl.GaussianMixture.xor(dim=50, snr=10.0, ridge=0.1).success_probability() == 3 / 32
    wide = [
        tl.GaussianMixture.xor(dim=80, width=K, snr=10.0, ridge=0.1).success_probability()
        for K in (4, 8, 16, 32)
    ]
    assert wide == sorted(wide)
    assert wide[-1] > 0.999


def test_wilson_covers():
    """For every p the interval covers it in 92 % of all cases at least (binomial weights)."""
    n = 60
    for p in (0.05, 0.2, 0.5):
        law = torch.distributions.Binomial(n, torch.tensor(p))
        covered = sum(
            float(law.log_prob(torch.tensor(float(k))).exp())
            for k in range(n + 1)
            if (lambda low, high: low <= p <= high)(*success.Proportion(k, n).interval())
        )
        assert 0.92 < covered < 0.99
    assert success.Proportion(0, 10).interval()[0] == 0
    assert success.Proportion(10, 10).interval()[1] == 1
    with pytest.raises(ValueError, match="level"):
        success.Proportion(1, 10).interval(95)


@pytest.mark.parametrize("width", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_dynamics_have_the_exact_probability_binary(width):
    problem = tl.GaussianMixture.binary(dim=1000, width=width, snr=300.0, ridge=0.1)
    count = {2: 200, 3: 60}[width]
    found = success.by_dynamics(problem, step_size=1.0, starts=count, time=80.0, level=-1)
    low, high = found.interval(0.999)
    assert low < problem.success_probability() < high
    # negative control: the probability of one neuron more or less
    other = success.exact(2, width + 2)
    assert not low < other < high


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixture", "width", "snr", "time"), [("binary", 2, 100.0, 20.0), ("xor", 4, 1000.0, 30.0)]
)
def test_sgd_has_the_exact_probability(mixture, width, snr, time):
    problem = getattr(tl.GaussianMixture, mixture)(dim=250, width=width, snr=snr, ridge=0.1)
    found = success.by_sgd(problem, step_size=1.0, time=time, runs=200, seed=0)
    low, high = found.interval(0.99)
    assert low < problem.success_probability() < high


# --- regimes --------------------------------------------------------------------------------------


def test_regimes_of_one_pair():
    assert tl.regime(1000, 0.002).kind == "critical"
    assert tl.regime(1000, 1e-5).kind == "subcritical"
    with pytest.warns(UserWarning, match="lower lr to about 1/dim"):
        assert tl.regime(1000, 0.5).kind == "supercritical"


def test_regimes_by_exponent():
    dims = [100, 1000, 10_000]
    found = tl.regime(dims, [50.0 / n for n in dims])
    assert found.kind == "critical"
    assert found.exponent == pytest.approx(1)
    assert tl.regime(dims, [0.1 * n**-1.5 for n in dims]).kind == "subcritical"
    with pytest.warns(UserWarning, match="dim\\^-0.5"):
        assert tl.regime(dims, [0.1 * n**-0.5 for n in dims]).kind == "supercritical"


@pytest.mark.parametrize(
    ("dim", "lr"), [(0, 0.1), (10, -1.0), ([10, 20], [0.1]), ([10, 10], [0.1, 0.2]), ([], [])]
)
def test_regimes_of_nonsense(dim, lr):
    with pytest.raises(ValueError, match="expected"):
        tl.regime(dim, lr)


def test_a_regime_of_swapped_arguments():
    with pytest.raises(TypeError, match=r"dim as an int .* got 0\.1: the dimension comes first"):
        tl.regime(0.1, 1500)
    with pytest.raises(TypeError, match=r"got 0\.1"):
        tl.regime([100, 0.1], [0.1, 0.1])


def test_no_step_size_is_gradient_flow():
    for problem in (
        tl.GaussianMixture.binary(dim=60, snr=2.0, ridge=0.1),
        tl.SpikedTensor(dim=60, order=3, snr=2.0),
    ):
        flow, critical = problem.dynamics(step_size=0.0), problem.dynamics(step_size=1.0)
        model = problem.model(dtype=torch.float64)
        u = problem.statistics(dict(model.named_parameters())).detach()
        assert float(flow.corrector(u).abs().max()) == 0
        torch.testing.assert_close(flow(0.0, u), critical.drift(u))
        assert float(flow.diffusion(u).abs().max()) == 0
        path = flow.solve(u, [0.0, 0.5])
        torch.testing.assert_close(
            path.values, critical.solve(u, [0.0, 0.5], corrector=False).values
        )
        assert path.steps.tolist() == [0, 30]


@pytest.mark.slow
def test_subcritical_mixtures_follow_gradient_flow():
    """lr = N^-1.5 against step_size=0; lr = 1/N is told apart, in R."""
    problem = tl.GaussianMixture.binary(dim=400, snr=1.0, ridge=0.05)
    start = problem.model(generator=torch.Generator().manual_seed(5))
    flow = problem.dynamics(step_size=0.0)
    for c, close in ((400**-0.5, True), (2.0, False)):
        measured = tl.train(
            problem, step_size=c, time=2.0, runs=8, every=100, start=start, progress=False
        )
        result = tl.compare(measured, flow.solve(measured.initial[0], measured.times))
        assert (float(result.sup_difference.max()) < 0.03) is close, result


def test_what_is_no_mixture():
    for count in (success.by_dynamics, lambda p, **o: success.by_sgd(p, time=1.0, **o)):
        with pytest.raises(TypeError, match=r"expected a tl.GaussianMixture, got SpikedTensor"):
            count(tl.SpikedTensor(dim=10, order=2, snr=1.0), step_size=1.0)
