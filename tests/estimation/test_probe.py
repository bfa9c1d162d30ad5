"""The decomposition of what statistics do during training into drift, corrector and the rest."""

import copy

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import torchlimits as tl
from torchlimits.estimation.estimate import Estimator
from torchlimits.estimation.general_increments import GeneralIncrements
from torchlimits.estimation.increments import QuadraticIncrements, Step
from torchlimits.estimation.probe import Prober, errors, integrals

PROBLEM = tl.GaussianMixture.binary(dim=400, snr=1.0, ridge=0.05, dtype=torch.float64)


def train(steps, probe=None, *, problem=PROBLEM, lr=2 / 400, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    model = problem.model(generator=generator)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, weight_decay=problem.ridge, **options.pop("sgd", {})
    )
    with tl.track(model, optimizer, problem.statistics, probe=probe, **options) as tracker:
        for _ in range(steps):
            x, y = problem.sample(1, generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
    return model, tracker


def probe_of(problem=PROBLEM, **options):
    return tl.Probe(problem.loss, problem.sample, **{"every": 100, "samples": 512, **options})


@pytest.fixture(scope="module")
def run():
    return train(1200, probe_of())[1]


def test_drift_and_corrector_explain_the_change_and_drift_alone_does_not(run):
    found = run.explanation()
    assert found.change.steps.tolist() == list(range(0, 1201, 100))
    last = {name: path.final for name, path in found.parts().items()}
    # what is left is a martingale: its variance is the integral of the diffusion matrix over n
    u, times = run.trajectory().values, run.trajectory().times
    D = PROBLEM.dynamics(step_size=2.0).diffusion(u[:-1:20]).diagonal(dim1=-2, dim2=-1)
    errors = found.drift.std[-1] ** 2 + found.corrector.std[-1] ** 2
    noise = (D.mean(0) * times[-1] / 400 + errors).sqrt()
    torch.testing.assert_close(found.residual.std[-1], noise, rtol=0.1, atol=0)
    assert float((last["residual"].abs() / noise).max()) < 3.5
    R = [found.change.index(name) for name in ("R[0,0]", "R[1,1]")]
    assert float(((last["change"] - last["drift"]) / noise)[R].min()) > 4
    torch.testing.assert_close(last["change"], last["drift"] + last["corrector"] + last["residual"])
    assert "residual" in str(found)


def test_the_parts_are_those_of_the_theory(run):
    """Integrals of -f and g of the closed form along the measured statistics."""
    found, dynamics = run.explanation(), PROBLEM.dynamics(step_size=2.0)
    u = run.trajectory().values[found.change.steps]
    dt = found.change.times.diff()[:, None]
    for part, rate in ((found.drift, dynamics.drift(u)), (found.corrector, dynamics.corrector(u))):
        integral = ((rate[1:] + rate[:-1]) / 2 * dt).sum(0)
        error = part.std[-1].clamp_min(1e-12)
        z = (part.final - integral).abs() / error
        # 1/n corrections to g, of which K/n are in R, are below a tenth of the error here
        assert float(z.max()) < 4


@pytest.mark.parametrize("sgd", [{}, {"momentum": 0.9}])
def test_training_is_bit_identical(sgd):
    with_probe, _ = train(150, probe_of(every=20, samples=33), sgd=sgd, lr=1e-4)
    without, _ = train(150, sgd=sgd, lr=1e-4)
    for a, b in zip(with_probe.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.grad, b.grad)


def test_global_random_numbers_and_buffers_are_left_alone():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 2)
            self.drop = nn.Dropout(0.5)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.linear(self.drop(x))

    def sampler(batch, generator=None):
        return torch.randn(batch, 6, generator=generator), torch.zeros(batch).long()

    results = []
    for probe in (None, tl.Probe(nn.functional.cross_entropy, sampler, every=3, samples=20)):
        torch.manual_seed(1)
        model = Counting()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        statistics = {"norm": lambda p: p["linear.weight"].norm()}
        with tl.track(model, optimizer, statistics, probe=probe):
            for _ in range(10):
                optimizer.zero_grad()
                nn.functional.cross_entropy(
                    model(torch.randn(4, 6)), torch.ones(4).long()
                ).backward()
                optimizer.step()
        results.append((model.linear.weight.detach().clone(), model.calls.clone(), torch.rand(3)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_momentum_and_batches_enter():
    """g scales with 1/(1 - beta)^2 and 1/B, f with 1/(1 - beta)."""
    small = {"every": 10**6, "samples": 64, "seed": 5}

    def rates(sgd, batch_size):
        _, tracker = train(0, probe_of(batch_size=batch_size, **small), sgd=sgd)
        return tracker._observer._rows[0][1:3]

    f, g = rates({}, 1)
    f_momentum, g_momentum = rates({"momentum": 0.5}, 4)
    ridge = 0.05
    assert ridge == PROBLEM.ridge
    torch.testing.assert_close(f_momentum, 2 * f)
    torch.testing.assert_close(g_momentum, g)  # 2^2 / 4


def test_tensorboard_shows_the_four_parts(tmp_path):
    train(60, probe_of(every=20, samples=16), writer=tmp_path / "run")
    parts = sorted(path.name for path in (tmp_path / "run" / "explained").iterdir())
    assert parts == ["corrector", "gradient flow", "measured change", "residual"]
    read = {}
    for part in parts:
        events = EventAccumulator(str(tmp_path / "run" / "explained" / part))
        events.Reload()
        assert "explained/v/0" in events.Tags()["scalars"]
        scalars = events.Scalars("explained/v/0")
        assert [s.step for s in scalars] == [0, 20, 40, 60]
        read[part] = [s.value for s in scalars]
        experiment = f"± band/{tmp_path.name}/run"
        assert len(events.Scalars(f"{experiment}/explained/R/0/1/upper")) == 4
    for change, *others in zip(read["measured change"], read["gradient flow"], read["corrector"],
                               read["residual"], strict=True):  # fmt: skip
        assert change == pytest.approx(sum(others), abs=1e-6)


def test_a_checkpoint_continues_the_explanation():
    _, whole = train(80, probe_of(every=20, samples=16))
    generator = torch.Generator().manual_seed(0)
    model = PROBLEM.model(generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=2 / 400, weight_decay=PROBLEM.ridge)
    tracker = tl.track(model, optimizer, PROBLEM.statistics, probe=probe_of(every=20, samples=16))
    for step in range(80):
        x, y = PROBLEM.sample(1, generator=generator)
        optimizer.zero_grad()
        PROBLEM.loss(model(x), y).backward()
        optimizer.step()
        if step == 39:
            state = tracker.state_dict()
            tracker.close()
            tracker = tl.track(
                model, optimizer, PROBLEM.statistics, probe=probe_of(every=20, samples=16)
            )
            tracker.load_state_dict(state)
    torch.testing.assert_close(
        tracker.explanation().residual.values, whole.explanation().residual.values
    )


@pytest.mark.parametrize(
    "damage",
    [
        {"generator": "none"},
        {"rows": [(1.0, 2.0)]},
        {"rows": [3]},
        {"rows": []},
    ],
)
def test_damaged_checkpoints(damage):
    model = PROBLEM.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=2 / 400)
    tracker = tl.track(model, optimizer, PROBLEM.statistics, probe=probe_of(samples=16))
    state = tracker.state_dict()
    with pytest.raises(ValueError, match="damaged"):
        tracker.load_state_dict({**state, "probe": {**state["probe"], **damage}})
    tracker.load_state_dict(state)


def test_no_estimate_where_parameters_are_not_finite():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = tl.Probe(
        nn.functional.mse_loss, lambda batch, generator=None: (torch.ones(batch, 3),) * 2
    )
    prober = Prober(probe, model, optimizer, tl.SummaryStatistics(
        {"norm": lambda p: p["weight"].norm()}
    ))  # fmt: skip
    assert prober.finite
    model.bias.data.fill_(float("nan"))
    assert not prober.finite


def trapezoid(times):
    """Row j has the weights of the trapezoidal rule from times[0] to times[j]."""
    weights = times.new_zeros(len(times), len(times))
    for j in range(1, len(times)):
        for i in range(j):
            weights[j, [i, i + 1]] += (times[i + 1] - times[i]) / 2
    return weights


def test_integrals_and_their_errors():
    """Against the rule's matrix, row by row; also of one time, and on the CPU whatever is asked."""
    for T in (1, 2, 7):
        times = torch.rand(T, generator=torch.Generator().manual_seed(T)).double().cumsum(0)
        rates = torch.randn(T, 3, generator=torch.Generator().manual_seed(1)).double()
        weights = trapezoid(times)
        with torch.device("meta"):
            found, error = integrals(times, rates), errors(times, rates.abs())
        torch.testing.assert_close(found, weights @ rates)
        torch.testing.assert_close(error, (weights.square() @ rates.square()).sqrt())


def test_an_explanation_takes_memory_in_proportion_to_its_probes(run):
    """At every flush: a matrix of all pairs of 8,000 probes would be of 488 MiB."""
    prober = copy.copy(run._observer)
    T = 8000
    prober._rows, prober._times = prober._rows[:1] * T, [0.01 * i for i in range(T)]
    prober._steps = list(range(T))
    with _Largest() as largest:
        assert len(prober.explanation().drift) == T
    assert 0 < largest.numbers <= 2 * T * len(prober._estimator.names)


class _Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made in a block."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in pytree.tree_leaves(made):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return made


def test_the_spike_has_the_fast_path_of_quadratic_statistics():
    """No jvp, no vmap over samples of a statistic: with those, a probe of 2 samples took 84 ms."""
    problem = tl.SpikedTensor(dim=50, order=2, snr=2.0)
    statistics = problem.statistics | {"sum": lambda p: p["x"].sum()}
    model = problem.model()
    estimator = Estimator(model, problem.loss, problem.sample, statistics)
    step = Step(dict(model.named_parameters()), {"x": torch.zeros(50)}, 0.1, {})
    kinds = [type(increments) for increments in estimator._increments(step)]
    assert kinds == [QuadraticIncrements] * 2 + [GeneralIncrements]


def test_bad_probes():
    with pytest.raises(ValueError, match="every"):
        probe_of(every=0)
    with pytest.raises(TypeError, match="loss as a function"):
        tl.Probe(None, PROBLEM.sample)
    model = PROBLEM.model()
    others = (torch.optim.RMSprop, torch.optim.NAdam, tl.SignSGD, tl.NormalizedSGD)
    for optimizer in (kind(model.parameters(), lr=0.1) for kind in others):
        name = type(optimizer).__name__
        with pytest.raises(TypeError, match=rf"SGD, Adam or AdamW for a probe, got {name}"):
            tl.track(model, optimizer, PROBLEM.statistics, probe=probe_of())
    for options in ({"amsgrad": True}, {"betas": (0.9, 0.9)}):
        adam = torch.optim.Adam(model.parameters(), **options)
        with pytest.raises(ValueError, match=r"amsgrad|remember at least"):
            tl.track(model, adam, PROBLEM.statistics, probe=probe_of())
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"tl\.Probe"):
        tl.track(model, sgd, PROBLEM.statistics, probe=100)
    with pytest.raises(ValueError, match="with a probe"):
        tl.track(model, sgd, PROBLEM.statistics).explanation()


def test_divergence_is_still_told_by_the_statistics():
    problem = tl.GaussianMixture.binary(dim=60, snr=1.0, ridge=0.5)
    with pytest.raises(tl.NonFiniteStatistic) as caught:
        train(400, probe_of(problem, every=10, samples=8), problem=problem, lr=1e6)
    assert len(caught.value.trajectory) > 0
