"""The exact reduced chain against real SGD in the full space: two samples of one law?"""

import threading
from functools import partial

import pytest
import torch
from real_sgd import copies, train
from scipy import stats
from two_samples import alike

import torchlimits as tl
from torchlimits import _threads
from torchlimits._normals import Normals
from torchlimits.dynamics.reduced_chain import Frame

RUNS = 4000
#: steps at which the laws are compared
AT = [1, 2, 7, 40]


def sgd(problem, start, options, batch):
    """u at those steps of runs of torch.optim.SGD from one start, (T, runs, k)."""
    model = copies(problem, start, RUNS)
    optimizer = torch.optim.SGD(model.parameters(), **options)
    path = train(problem, model, optimizer, AT[-1], every=1, batch=batch)
    return path.values.movedim(1, 0)[AT]


def chain(problem, start, options, batch):
    optimizer = torch.optim.SGD(start.parameters(), **options)
    path = problem.reduced_chain(optimizer, batch_size=batch).run(
        problem.statistics({n: p.detach() for n, p in start.named_parameters()}),
        steps=AT[-1],
        runs=RUNS,
        generator=torch.Generator().manual_seed(2),
    )
    return path.values.movedim(1, 0)[AT]


xor = partial(tl.GaussianMixture.xor, snr=4.0, ridge=0.1, dtype=torch.float64)
binary = partial(tl.GaussianMixture.binary, snr=1.0, ridge=0.1, dtype=torch.float64)
spiked = partial(tl.SpikedTensor, snr=1.5, ridge=0.1, dtype=torch.float64)

PLAIN = {}
MOMENTUM = {"momentum": 0.6}
NESTEROV = {"momentum": 0.6, "nesterov": True}
DAMPED = {"momentum": 0.6, "dampening": 0.3}

CASES = {
    "xor": (xor(dim=30, width=4), PLAIN, 1),
    "xor, no room": (xor(dim=6, width=2), PLAIN, 1),
    "binary, three samples": (binary(dim=12, width=3), PLAIN, 3),
    "binary, more samples than room": (binary(dim=5, width=2), PLAIN, 6),
    "xor, many samples, no room, momentum": (xor(dim=6, width=2), MOMENTUM, 14),
    "binary, momentum": (binary(dim=20, width=2), MOMENTUM, 1),
    "xor, Nesterov, two samples": (xor(dim=16, width=3), NESTEROV, 2),
    "binary, dampening": (binary(dim=20, width=2), DAMPED, 1),
    "matrix": (spiked(dim=20, order=2, sampler="dense"), PLAIN, 1),
    "tensor, momentum": (spiked(dim=20, order=3), MOMENTUM, 1),
    "order 4, Nesterov, two samples": (spiked(dim=20, order=4), NESTEROV, 2),
    "matrix, dampening": (spiked(dim=20, order=2), DAMPED, 1),
}


def start_of(problem):
    return problem.model(generator=torch.Generator().manual_seed(3))


def options_of(problem, options):
    spiked = isinstance(problem, tl.SpikedTensor)
    lr = (0.2 if spiked else 1.0) / problem.dim / (1 + options.get("momentum", 0))
    return {"lr": lr, "weight_decay": problem.ridge, **options}


@pytest.mark.parametrize("case", CASES)
def test_same_law_as_sgd_in_the_full_space(case):
    problem, options, batch = CASES[case]
    start, options = start_of(problem), options_of(problem, options)
    assert alike(sgd(problem, start, options, batch), chain(problem, start, options, batch))


@pytest.mark.parametrize("batch", [1, 2])
def test_same_law_as_sgd_on_components_of_other_probabilities(batch):
    """And not without the weights, nor with those of other components."""
    problem = xor(dim=16, width=2, weights=[0.6, 0.05, 0.3, 0.05])
    start, options = start_of(problem), options_of(problem, PLAIN)
    real = sgd(problem, start, options, batch)
    assert alike(real, chain(problem, start, options, batch))
    for wrong in (None, [0.3, 0.05, 0.6, 0.05]):
        other = xor(dim=16, width=2, weights=wrong)
        assert not alike(real, chain(other, start, options, batch))


def test_the_comparison_notices_momentum_batches_and_dampening():
    """Negative controls: each option left out of the chain is another law."""
    problem = binary(dim=20, width=2)
    start = start_of(problem)
    for options, batch, wrong, wrong_batch in (
        (MOMENTUM, 1, PLAIN, 1),
        (NESTEROV, 1, MOMENTUM, 1),
        (DAMPED, 1, MOMENTUM, 1),
        (PLAIN, 3, PLAIN, 1),
    ):
        # the same step for both: momentum's is not the other's fault
        lr = {"lr": 0.6 / problem.dim}
        right = options_of(problem, options) | lr
        measured = sgd(problem, start, right, batch)
        assert not alike(
            measured, chain(problem, start, options_of(problem, wrong) | lr, wrong_batch)
        )


def test_without_what_is_outside_the_frame_the_law_is_another(monkeypatch):
    problem, options, batch = CASES["xor"]
    start, options = start_of(problem), options_of(problem, options)
    measured = sgd(problem, start, options, batch)
    monkeypatch.setattr(Normals, "lengths", lambda self, freedom, shape: torch.zeros(shape))
    assert not alike(measured, chain(problem, start, options, batch))


@pytest.mark.parametrize("kind", ["parallel", "idle"])
def test_singular_R(kind):
    """Neurons that are parallel outside the means, or have nothing there."""
    problem = xor(dim=20, width=3)
    start = start_of(problem)
    W = start.first.weight.data
    if kind == "parallel":
        W[1, 2:] = 2 * W[0, 2:]
        W[2, 2:] = -W[0, 2:]
    else:
        W[:, 2:] = 0
    options = options_of(problem, PLAIN)
    assert alike(sgd(problem, start, options, 1), chain(problem, start, options, 1))


def of_mixture():
    problem = tl.GaussianMixture.xor(dim=100, width=4, snr=4.0, ridge=0.1)
    u0, _ = problem.random_start(torch.tensor([0.5, 1.0, -0.5, -1.0]))
    u0[4:12] = 0.3 * torch.randn(8, generator=torch.Generator().manual_seed(0))
    return problem, u0


def of_tensor():
    return spiked(dim=100, order=3), torch.tensor([0.6, 0.8], dtype=torch.float64)


@pytest.mark.parametrize("dim", [10**6, 10**12])
@pytest.mark.parametrize("make", [of_mixture, of_tensor], ids=["xor", "tensor"])
def test_drift_and_diffusion_at_huge_dimensions(make, dim):
    """In a hundred steps u moves by 10^-10 at n = 10^12: all digits are needed."""
    problem, u0 = make()
    dynamics = problem.dynamics(step_size=1.0, dim=dim)
    chain = problem.reduced_chain(step_size=1.0, dim=dim)
    steps, runs = 100, 20_000
    generator = torch.Generator().manual_seed(5)
    path = chain.run(u0, steps, runs=runs, every=steps, generator=generator)
    t = float(path.times[-1])
    change = (path.final - u0) / t
    error = change.std(0) / runs**0.5
    # the drift's own change over t, and its error
    allowed = 4.5 * error + 20 * t + dynamics.error
    assert bool(((change.mean(0) - dynamics(0.0, u0)).abs() < allowed).all())
    D = dynamics.diffusion(u0)
    scale = D.diagonal().sqrt()
    measured = torch.cov(change.mT) * t * dim
    assert float(((measured - D).abs() / (scale[:, None] * scale)).max()) < 0.06
    # negative control: the statistics in float32 would not have moved
    assert float(change.abs().max()) * t < 1e-7 or dim == 10**6


def test_many_samples_outside_the_frame():
    """Sums of them have the Gram matrix G^T W G, W a Wishart matrix: its mean and covariance."""
    S, B, K, n = 80_000, 14, 3, 12
    frame = Frame(n, torch.zeros(K, 1, S).double(), torch.zeros(K, K, S).double(), B, moved=K)
    generator = torch.Generator().manual_seed(0)
    x = next(frame.vectors(generator))[0]
    assert x.shape == (B + K, 1 + K + K, S)
    G = torch.randn(B, K, 1, generator=generator).double()
    G[:, 2] = G[:, 0]  # and of rank two

    def gram_of(weights):
        moved = torch.einsum("bks,bcs->kcs", weights, x)[:, 1 + K :]
        return torch.einsum("ics,jcs->sij", moved, moved)

    pull = G.expand(B, K, S)
    gram = gram_of(frame.outside(pull))
    left, C = n - 1 - K, (G[..., 0].mT @ G[..., 0])
    variance = left * (C * C + torch.outer(C.diag(), C.diag()))
    # three hundredths of a small entry are less than its error
    torch.testing.assert_close(gram.mean(0).diag(), (left * C).diag(), rtol=0.03, atol=0.1)
    assert bool(((gram.mean(0) - left * C).abs() < 4.5 * (variance / S).sqrt()).all())
    torch.testing.assert_close(gram.var(0), variance, rtol=0.06, atol=0.1)
    # negative control: as if there were no other samples than the first three
    few = gram_of(torch.cat([pull, pull[:K]]))
    assert not torch.allclose(few.mean(0), left * C, rtol=0.2, atol=0.1)


def test_compression_keeps_the_geometry():
    generator = torch.Generator().manual_seed(0)
    signal, across = torch.randn(3, 1, 5).double(), torch.randn(3, 3, 5).double()
    across[:, :, 0] = 0  # no rows
    across[1, :, 1] = across[0, :, 1]  # parallel ones
    frame = Frame(50, signal, across, samples=2)
    for vector in next(frame.vectors(generator)):
        rows = frame.take_up(vector)
        rows[:] += 0.1 * torch.randn(3, 1, 5).double() * vector[0]
    before = frame.rows[:, 1:].clone()
    frame._compress()
    after = frame.rows[:, 1:]
    gram = [torch.einsum("ics,jcs->ijs", x, x) for x in (before, after)]
    torch.testing.assert_close(gram[1], gram[0], rtol=1e-13, atol=1e-13)
    assert frame.used == 4
    assert not bool(after[:, 3:].any())


def test_runs_starts_and_seeds():
    chain = tl.SpikedTensor(dim=10**6, order=2, snr=2.0).reduced_chain(step_size=1.0)
    u0 = torch.tensor([[0.5, 1.0], [0.1, 0.9], [0.0, 0.0]])
    one = chain.run(u0, 10, generator=torch.Generator().manual_seed(0))
    assert one.values.shape == (3, 11, 2)
    assert bool((one.values[2] == 0).all())  # x = 0 stays
    many = chain.run(u0, 10, runs=4, every=4, generator=torch.Generator().manual_seed(0))
    assert many.values.shape == (4, 3, 4, 2)
    assert many.steps.tolist() == [0, 4, 8, 10]
    again = chain.run(u0, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one.values, again.values)
    torch.testing.assert_close(one.times, torch.arange(11).double() / 10**6)


def test_bad_input():
    problem = tl.GaussianMixture.binary(dim=100, snr=1.0)
    with pytest.raises(ValueError, match="takes no steps"):
        problem.reduced_chain(step_size=0.0)
    with pytest.raises(NotImplementedError, match="no exact chain is known for Adam"):
        problem.reduced_chain(torch.optim.Adam(problem.model().parameters()))
    chain = problem.reduced_chain(step_size=1.0)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 7\)"):
        chain.run(torch.zeros(6), 10)
    with pytest.raises(ValueError, match="positive semidefinite"):
        chain.run(-torch.ones(7), 10)
    with pytest.raises(ValueError, match="steps"):
        chain.run(torch.zeros(7), 0)
    with pytest.raises(RuntimeError, match="step size is too large"):
        tl.SpikedTensor(dim=10, order=3, snr=1.0).reduced_chain(step_size=100.0).run(
            torch.tensor([1.0, 1.0]), 100
        )


def escape_times(path, level):
    """When |m| first passes a level, (runs,); linear between the recorded times."""
    m = path["m"].abs()
    after = (m >= level).double().argmax(-1)
    assert bool((after > 0).all())
    rows = torch.arange(len(m))
    below, above = m[rows, after - 1], m[rows, after]
    weight = (level - below) / (above - below)
    return path.times[after - 1] + weight * (path.times[after] - path.times[after - 1])


@pytest.mark.slow
def test_langevin_dynamics_escape_a_saddle_like_the_exact_chain():
    """Matrix PCA from the equator: the law of the times at which runs leave it."""
    problem = spiked(dim=2000, order=2, snr=2.0, ridge=0.0)
    u0, generator = torch.tensor([0.0, 1.0]), torch.Generator().manual_seed(2)
    chain = problem.reduced_chain(step_size=1.0)
    exact = chain.run(u0, 8000, runs=2000, every=40, generator=generator)
    langevin = problem.dynamics(step_size=1.0).langevin()
    paths = langevin.solve(u0, exact.times, paths=2000, generator=generator)
    times = [escape_times(path, 0.5).numpy() for path in (exact, paths)]
    assert stats.ks_2samp(*times).pvalue > 1e-3
    # negative control: another dimension's noise
    large = spiked(dim=4000, order=2, snr=2.0, ridge=0.0).dynamics(step_size=1.0).langevin()
    later = large.solve(u0, exact.times, paths=2000, generator=generator)
    assert stats.ks_2samp(times[0], escape_times(later, 0.5).numpy()).pvalue < 1e-3


def test_only_on_the_cpu_blocks_are_made_by_another_thread():
    """Elsewhere the order of work is that of the thread that asks for it."""

    def blocks():
        for _ in range(3):
            yield threading.get_ident()

    own = threading.get_ident()
    assert own not in list(_threads.ahead(blocks(), torch.device("cpu")))
    assert list(_threads.ahead(blocks(), torch.device("cuda"))) == [own] * 3
