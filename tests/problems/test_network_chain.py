"""The exact chain of any head against SGD of the module itself: two samples of one law?"""

import pickle

import pytest
import torch
from real_sgd import train
from torch import nn
from torch.nn import functional as F
from two_samples import alike

import torchlimits as tl
from torchlimits._normals import Normals
from torchlimits.problems.network.module import Copies
from torchlimits.problems.network.replayed import Replayed

RUNS = 1500
#: steps at which the laws are compared
AT = [2, 6, 20]


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Rotated:
    """A random label that reads x, from a module with parameters of its own."""

    def __init__(self):
        torch.manual_seed(5)
        self.teacher = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()

    def law(self, x, component):
        y = self.teacher(x)[:, 0] + component
        return torch.stack([y - 0.3, y + 0.3], 1), x.new_full((len(x), 2), 0.5)

    def sample(self, x, component, generator):
        sign = torch.randint(2, component.shape, generator=generator, device=x.device)
        return self.teacher(x)[:, 0] + component + 0.6 * (sign - 0.5)


class Square(nn.Module):
    def forward(self, h):
        return h.square().sum(-1)


def softmax(**options):
    """Three classes, a head with a hidden layer, biases, class labels that flip."""
    head = nn.Sequential(nn.GELU(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    kept = {"dim": 20, "snr": 2.0, "label_flips": 0.15, "ridge": 0.1, **options}
    means = 1.5 * torch.eye(3, kept["dim"], dtype=torch.float64)
    return tl.NetworkProblem(
        width=3, head=head, loss=F.cross_entropy, means=means, directions=means / 1.5,
        labels=torch.tensor([0, 1, 2]), weights=[0.5, 0.3, 0.2], dtype=torch.float64, **kept,
    )  # fmt: skip


def regression(**options):
    """Kinks, real labels that are random and read x in two directions, no biases."""
    return tl.NetworkProblem(
        dim=14, width=2, head=nn.Sequential(nn.ReLU(), nn.Linear(2, 1)), loss=F.smooth_l1_loss,
        labels=Rotated(), means=torch.eye(2, 14), snr=1.0, bias=False, dtype=torch.float64,
        **options,
    )  # fmt: skip


def phase_retrieval():
    """A head without parameters; the label is a function of x, and there is one component."""
    return tl.NetworkProblem(
        dim=12, width=1, head=Square(), loss=lambda o, y: F.smooth_l1_loss(o, y) / 2,
        labels=lambda x, component: x[:, 0].square(), directions=torch.eye(1, 12), snr=1.0,
        bias=False, dtype=torch.float64,
    )  # fmt: skip


def start_of(problem):
    return problem.model(generator=generator(3))


def statistics_of(problem, model):
    return problem.statistics({n: p.detach() for n, p in model.named_parameters()})


def one_group(problem, **options):
    """SGD with the same options for all parameters."""
    c = 4.0 if problem.width > 2 else 1.5
    lr = c / problem.dim / (1 + options.get("momentum", 0))

    def make(model):
        return torch.optim.SGD(
            model.parameters(), **{"lr": lr, "weight_decay": problem.ridge, **options}
        )

    return make


def by_name(problem, options):
    """SGD with options of each parameter's own; None: not held."""

    def make(model):
        groups = [
            {"params": [(name, p)], **options.get(name, {})}
            for name, p in model.named_parameters()
            if options.get(name, {}) is not None
        ]
        return torch.optim.SGD(groups, lr=1.0 / problem.dim)

    return make


def sgd(problem, make, batch, *, runs=RUNS, at=AT):
    """u at those steps of runs of torch.optim.SGD from one start, (T, runs, k)."""
    start = start_of(problem)
    stacked = {name: p.detach().expand(runs, *p.shape) for name, p in start.named_parameters()}
    model = Copies(start, stacked, (runs,))
    path = train(problem, model, make(model), at[-1], every=2, batch=batch)
    return path.values.movedim(1, 0)[[step // 2 for step in at]]


def chain(problem, make, batch, *, runs=RUNS, at=AT, dim=None):
    start = start_of(problem)
    optimizer = make(start)
    exact = problem.reduced_chain(optimizer, batch_size=batch, dim=dim, model=start)
    u0 = statistics_of(problem, start)
    path = exact.run(u0, at[-1], runs=runs, every=2, generator=generator(2))
    return path.values.movedim(1, 0)[[step // 2 for step in at]]


LAYERS = {
    "first.weight": {"lr": 0.08, "momentum": 0.5, "dampening": 0.2, "weight_decay": 0.2},
    "first.bias": None,
    "head.1.weight": {"lr": 0.2},
    "head.1.bias": {"momentum": 0.5, "nesterov": True},
    "head.3.bias": {"lr": 0.0},
}

CASES = {
    "softmax": (softmax(), {}, 1),
    "softmax, three samples": (softmax(), {}, 3),
    "softmax, many samples, momentum": (softmax(), {"momentum": 0.6, "dampening": 0.3}, 14),
    "softmax, layers that differ": (softmax(ridge=0.0), LAYERS, 2),
    "regression, three samples, Nesterov": (regression(), {"momentum": 0.6, "nesterov": True}, 3),
    "phase retrieval": (phase_retrieval(), {}, 1),
}


def made(case):
    problem, options, batch = CASES[case]
    differ = any(isinstance(value, dict) for value in options.values())
    make = by_name(problem, options) if differ else one_group(problem, **options)
    return problem, make, batch


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
@pytest.mark.parametrize("case", CASES)
def test_same_law_as_sgd_in_the_full_space(case):
    problem, make, batch = made(case)
    assert alike(sgd(problem, make, batch), chain(problem, make, batch))


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
def test_decay_of_the_biases_is_theirs_alone(monkeypatch):
    """With one sample a step, what was added to their gradient went into that of W, too."""

    def start(problem):
        model = problem.model(generator=generator(3))
        torch.nn.init.constant_(model.first.bias, 2.0)
        return model

    monkeypatch.setitem(globals(), "start_of", start)
    problem = softmax(ridge=0.0)
    make = by_name(problem, {"first.bias": {"weight_decay": 3.0}})
    assert alike(sgd(problem, make, 1), chain(problem, make, 1))


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
def test_the_comparison_notices_what_is_left_out(monkeypatch):
    """Negative controls: another N, other batches, labels, options; nothing outside the frame."""
    problem, make, _ = made("softmax")
    real = sgd(problem, make, 1)
    assert not alike(real, chain(problem, make, 1, dim=40))
    assert not alike(real, chain(problem, make, 2))
    assert not alike(real, chain(softmax(label_flips=0.0), make, 1))
    layers, make_layers, batch = made("softmax, layers that differ")
    real_layers = sgd(layers, make_layers, batch)
    wrong = {**LAYERS, "head.1.bias": {"momentum": 0.5}}
    assert not alike(real_layers, chain(layers, by_name(layers, wrong), batch))
    wrong = {**LAYERS, "first.weight": {**LAYERS["first.weight"], "dampening": 0.0}}
    assert not alike(real_layers, chain(layers, by_name(layers, wrong), batch))
    monkeypatch.setattr(Normals, "lengths", lambda self, freedom, shape: torch.zeros(shape))
    assert not alike(real, chain(problem, make, 1))


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
def test_parameters_that_do_not_move():
    problem, make, batch = made("softmax, layers that differ")
    values = chain(problem, make, batch, runs=2)
    still = [name for name in problem.names if name.startswith(("b[", "head.3.bias"))]
    assert len(still) == 6
    columns = [problem.names.index(name) for name in still]
    assert torch.equal(values[-1][:, columns], values[0][:, columns])
    frozen = problem.model()
    frozen.first.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(frozen.parameters(), lr=0.1, weight_decay=0.3)
    exact = problem.reduced_chain(optimizer, model=frozen)
    path = exact.run(statistics_of(problem, frozen), 20)
    torch.testing.assert_close(path["R"], path["R"][:, :1].expand_as(path["R"]))
    assert not torch.equal(path["b"][:, -1], path["b"][:, 0])
    assert exact.run(path.initial, 1).metadata["parameters"]["first.weight"] == "does not move"


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
def test_drift_and_diffusion_of_layers_that_differ():
    """At N = 10^6 the chain's first steps are those of the dynamics, parameter by parameter."""
    problem, steps, runs = softmax(ridge=0.0), 50, 3000
    start = start_of(problem)
    u0 = statistics_of(problem, start)
    options = {name: o for name, o in LAYERS.items() if o is None or "momentum" not in o}
    options["first.weight"] = {"lr": 0.03, "weight_decay": 0.2}
    layers, alike_all = (by_name(problem, o)(start) for o in (options, {}))
    for group in (*layers.param_groups, *alike_all.param_groups):
        group["lr"] *= problem.dim / 10**6
    exact = problem.reduced_chain(layers, dim=10**6, model=start)
    path = exact.run(u0, steps, runs=runs, every=steps, generator=generator(4))
    t = float(path.times[-1])
    change = (path.final - u0) / t
    error, covariance = change.std(0) / runs**0.5, torch.cov(change.mT) * t * 10**6

    def worst(optimizer):
        dynamics = problem.dynamics(optimizer, dim=10**6, model=start)
        D = dynamics.diffusion(u0)
        scale = (D.diagonal() + 1e-9).sqrt()
        of_mean = (change.mean(0) - dynamics(0.0, u0)).abs() / (4.5 * error + 0.002)
        of_spread = (covariance - D).abs() / (0.12 * scale[:, None] * scale + 1e-9)
        return float(of_mean.max()), float(of_spread.max())

    assert max(worst(layers)) < 1
    assert min(worst(alike_all)) > 2


@pytest.mark.slow
def test_a_large_case():
    """1500 runs of 240 steps, N = 200, two hidden layers: against SGD, and another N fails."""
    head = nn.Sequential(
        nn.GELU(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 3)
    )
    problem = tl.NetworkProblem(
        dim=200, width=4, head=head, loss=F.cross_entropy, means=torch.eye(3, 200),
        labels=torch.tensor([0, 1, 2]), snr=1.0, label_flips=0.1, ridge=0.05,
        dtype=torch.float64,
    )  # fmt: skip
    make, at = one_group(problem, momentum=0.5), [2, 40, 240]
    real = sgd(problem, make, 2, runs=1500, at=at)
    assert alike(real, chain(problem, make, 2, runs=1500, at=at))
    assert not alike(real, chain(problem, make, 2, runs=1500, at=at, dim=400))


@pytest.mark.slow
def test_runs_lie_in_the_band():
    """N = 1000, 1200 runs: the means on the ODE's solution, and the spread that of the band."""
    problem = softmax(dim=1000)
    u0 = problem.starts(1, generator=generator(0))[0]
    path = problem.reduced_chain(step_size=1.5, batch_size=2).run(
        u0, 1000, runs=1200, every=250, generator=generator(1)
    )
    dynamics = problem.dynamics(step_size=1.5, batch_size=2, nodes=2**10)
    predicted = dynamics.solve(u0, path.times, band=True)
    error = path.values.std(0)[1:] / 1200**0.5
    gap = (path.values.mean(0) - predicted.values)[1:].abs()
    assert bool((gap < 4.5 * error + 1e-3).all())
    ratio = path.values.std(0)[1:] / predicted.std[1:]
    assert float(ratio.log().abs().max()) < 0.12
    assert 0.97 < float(ratio.median()) < 1.03


@pytest.mark.parametrize("runs", [1, 20])
def test_runs_starts_and_seeds(runs):
    """The same seed gives the same bits, also where operations are repeated from a list."""
    problem = softmax()
    u0 = problem.starts(2, generator=generator(0))
    before = u0.clone()
    exact = problem.reduced_chain(step_size=1.0, batch_size=2)
    exact._fast = Replayed(exact._summed, patience=5)
    paths = [exact.run(u0[0], 30, runs=runs, every=10, generator=generator(s)) for s in (1, 1, 2)]
    assert torch.equal(paths[0].values, paths[1].values)
    assert not torch.equal(paths[0].values, paths[2].values)
    slow = problem.reduced_chain(step_size=1.0, batch_size=2)
    again = slow.run(u0[0], 30, runs=runs, every=10, generator=generator(1))
    assert exact._fast._operations
    assert not slow._fast._operations
    assert torch.equal(again.values, paths[0].values)
    assert torch.equal(u0, before)
    assert torch.equal(paths[0].initial, u0[0].expand_as(paths[0].initial))
    assert exact.run(u0, 3).values.shape == (2, 4, len(problem.names))


def test_a_single_run_leaves_the_start_as_it_is():
    """A mixture's chain wrote into a float64 start, and recorded what it had become."""
    problem = tl.GaussianMixture.binary(dim=50, snr=2.0)
    u0 = problem.starts(1, generator=generator(0))[0]
    before = u0.clone()
    path = problem.reduced_chain(step_size=1.0).run(u0, 20, generator=generator(1))
    assert torch.equal(u0, before)
    assert torch.equal(path.initial[0], before)


def test_operations_are_written_down_for_each_shape_and_only_where_they_can_be():
    """A function that asks for values goes on being called."""
    calls = []

    def asks(x):
        calls.append(len(x))
        return (x.tanh() if bool((x > 0).all()) else x,)

    def does_not(x):
        calls.append(len(x))
        return (x.tanh(),)

    for function, shapes in ((asks, 0), (does_not, 2)):
        calls.clear()
        fast = Replayed(function, patience=2)
        for count in (3, 5, 3, 5, 3, 5, 3):
            for sign in (1, -1):
                x = sign * torch.rand(count)
                assert torch.equal(fast(x)[0], function(x)[0])
        assert len(fast._operations) == shapes
        # twice and once to write it down, or always and once to try; and each time to compare
        assert len(calls) == 14 + (14 + 2 if function is asks else 4 + 2)
        assert not pickle.loads(pickle.dumps(Replayed(torch.tanh)))._operations


def test_the_same_chain_as_the_mixtures():
    """Two gradients of one network, in closed form and by autograd, on the same data."""
    mixture = tl.GaussianMixture.xor(dim=40, width=4, snr=4.0, ridge=0.1, dtype=torch.float64)
    network = tl.NetworkProblem(
        dim=40, width=4, head=nn.Sequential(nn.ReLU(), nn.Linear(4, 1, bias=False)),
        loss=F.binary_cross_entropy_with_logits, labels=mixture.labels, means=mixture.means,
        snr=4.0, ridge=0.1, bias=False, weights=[0.4, 0.2, 0.2, 0.2],
    )  # fmt: skip
    weighted = tl.GaussianMixture.xor(40, 4, snr=4.0, ridge=0.1, weights=[0.4, 0.2, 0.2, 0.2])
    u0 = mixture.starts(1, generator=generator(0))[0]
    for options in ({}, {"momentum": 0.5, "batch_size": 3}):
        paths = [
            p.reduced_chain(step_size=1.0, **options).run(u0, 60, runs=5, generator=generator(1))
            for p in (network, weighted)
        ]
        torch.testing.assert_close(paths[0].values, paths[1].values, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:the optimizer's weight_decay")
def test_what_has_no_chain():
    problem = softmax(dim=9)
    problem.reduced_chain(step_size=1.0, batch_size=3)
    with pytest.raises(ValueError, match=r"batch_size = 3 \+ 3 \+ 4 = 10 .* got 9"):
        problem.reduced_chain(step_size=1.0, batch_size=4)
    with pytest.raises(ValueError, match=r"directions \+ width = 1 \+ 2 = 3 .* got 2"):
        tl.GaussianMixture.binary(dim=20, width=2, snr=1.0).reduced_chain(step_size=1.0, dim=2)
    with pytest.raises(ValueError, match="takes no steps"):
        problem.reduced_chain(step_size=0.0)
    model = problem.model()
    ascending = [{"params": [p], "maximize": p.ndim == 1} for p in model.parameters()]
    with pytest.raises(ValueError, match="plain SGD for the reduced chain, got maximize"):
        problem.reduced_chain(torch.optim.SGD(ascending, lr=0.1), model=model)
    exact = problem.reduced_chain(step_size=1.0)
    with pytest.raises(ValueError, match="positive semidefinite"):
        exact.run(-torch.ones(len(problem.names)), 3)


def test_rows_that_do_not_fit_beside_the_directions_are_refused():
    """R = I_4 in a space of 3 dimensions, one of which is the mean's."""
    problem = tl.GaussianMixture.binary(dim=100, width=4, snr=2.0)
    for dim in (3, 4):
        with pytest.raises(ValueError, match="the rows of W have no room"):
            problem.reduced_chain(step_size=1.0, dim=dim)
    u0 = problem.random_start(torch.ones(4))[0]
    assert problem.reduced_chain(step_size=1.0, dim=5).run(u0, 3).values.isfinite().all()


@pytest.mark.parametrize("kind", ["mixture", "spiked", "network"])
def test_data_follow_the_problem_and_not_the_model_made_last(kind):
    problem = {
        "mixture": lambda: tl.GaussianMixture.binary(dim=20, width=2, snr=2.0),
        "spiked": lambda: tl.SpikedTensor(dim=20, order=2, snr=2.0),
        "network": lambda: tl.NetworkProblem(
            dim=20, width=2, head=torch.nn.Linear(2, 1), loss=torch.nn.functional.mse_loss,
            labels=torch.tensor([1.0]), snr=2.0,
        ),
    }[kind]()  # fmt: skip
    model = problem.model()
    problem.model(dtype=torch.float64)
    x, y = problem.sample(4)
    assert problem.loss(model(x), y).dtype == torch.float32
