"""`estimate` against a naive reference, closed forms and its own error bars."""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from scipy.stats import binom
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import torchlimits as tl
from torchlimits.estimation import general_increments, low_rank
from torchlimits.estimation.estimate import Estimator
from torchlimits.estimation.estimated import Estimated
from torchlimits.estimation.per_sample_gradients import takes_model
from torchlimits.statistics import entries, gram, overlaps, squared_lengths
from torchlimits.statistics.summary import SummaryStatistics

DELTA = 0.1


@pytest.fixture(autouse=True)
def _one_thread():
    """A second one costs more than it saves on small matrices, where the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class Case(NamedTuple):
    model: nn.Module
    loss: Callable
    data: Any
    statistics: Any
    structured: bool
    weight_decay: float = 0.0


class Served:
    """A sampler that serves the rows of fixed tensors in their order."""

    def __init__(self, data):
        self.data, self.asked = data, []

    def __call__(self, batch, generator=None):
        done = sum(self.asked)
        self.asked.append(batch)
        return pytree.tree_map(lambda x: x[done : done + batch], self.data)


# --- the naive reference --------------------------------------------------------------------------


def reference(case, samples):
    """(value, standard error) of each: sample by sample, Jacobian and Hessians in full."""
    model, alpha, S = case.model, case.weight_decay, samples
    moving = {n: p for n, p in model.named_parameters() if p.requires_grad}
    x = torch.cat([p.detach().flatten() for p in moving.values()])
    statistics = case.statistics
    if not isinstance(statistics, SummaryStatistics):
        statistics = SummaryStatistics(statistics)

    def u(x):
        parts = x.split([p.numel() for p in moving.values()])
        own = {n: q.reshape(p.shape) for (n, p), q in zip(moving.items(), parts, strict=True)}
        return statistics({**{n: p.detach() for n, p in model.named_parameters()}, **own})

    def gradient(s):
        one = pytree.tree_map(lambda t: t[s : s + 1], case.data)
        whole = takes_model(case.loss)
        loss = case.loss(model, one) if whole else case.loss(model(one[0]), one[1])
        grads = torch.autograd.grad(loss, list(moving.values()), materialize_grads=True)
        return torch.cat([g.flatten() for g in grads])

    g = torch.stack([gradient(s) for s in range(S)])
    J = jacobian(u, x)
    A = torch.stack([hessian(lambda x, i=i: u(x)[i], x) for i in range(len(J))])
    centred, V = g - g.mean(0), g.mT.cov()
    along = g @ J.mT
    curved = torch.einsum("sp,kpq,sq->sk", centred, A, centred) / 2
    step = torch.stack([u(x - DELTA * (h + alpha * x)) - u(x) for h in g]) / DELTA
    return {
        "drift": (-along.mean(0) - alpha * J @ x, along.std(0) / S**0.5),
        "corrector": (
            DELTA / 2 * torch.einsum("kpq,pq->k", A, V),
            DELTA * curved.std(0) / S**0.5,
        ),
        "diffusion": (DELTA * J @ V @ J.mT, DELTA * product_error(along)),
        "increment": (step.mean(0), step.std(0) / S**0.5),
        "increment_covariance": (
            DELTA * torch.atleast_2d(step.mT.cov()),
            DELTA * product_error(step),
        ),
    }


def product_error(rows):
    """Of the covariances: the spread of the products (x_i - mean)(x_j - mean)."""
    S, c = len(rows), rows - rows.mean(0)
    return (c[:, :, None] * c[:, None, :]).std(0, correction=0) / S**0.5 * S / (S - 1)


def check(case, samples, **options):
    sampler = Served(case.data)
    estimator = Estimator(case.model, case.loss, sampler, case.statistics, **options)
    found = estimator(
        dict(case.model.named_parameters()),
        step_size=DELTA,
        samples=samples,
        weight_decay=case.weight_decay,
    )
    assert estimator.gradients.structured == case.structured
    assert sum(sampler.asked) == samples
    for name, (value, error) in reference(case, samples).items():
        got, explain = getattr(found, name), f"{name}: {{}}".format
        torch.testing.assert_close(got.value, value, rtol=1e-9, atol=1e-10, msg=explain)
        # that of the corrector is taken about the mean of the first 128 samples
        rtol = 0.1 if name == "corrector" and samples > 128 else 1e-7
        torch.testing.assert_close(got.standard_error, error, rtol=rtol, atol=1e-9, msg=explain)
    return found, sampler


def as_functions(statistics):
    """The same, to be differentiated by torch.func."""
    return SummaryStatistics(
        {n: lambda p, f=f: f(p) for n, f in statistics.functions.items()},
        symmetric=statistics.symmetric,
        parameter_dims=statistics.parameter_dims,
    )


def mixture(kind="binary", dim=12):
    make = {"binary": tl.GaussianMixture.binary, "xor": tl.GaussianMixture.xor}[kind]
    problem = make(
        dim, snr=2.0, ridge=0.2, directions="random", generator=generator(), dtype=torch.float64
    )
    model = problem.model(generator=generator(1))
    data = problem.sample(150, generator=generator(2))
    return Case(model, problem.loss, data, problem.statistics, True, problem.ridge)


def classes():
    """Inputs of dimension 4 in three classes."""
    return normal(150, 4), torch.randint(3, (150,), generator=generator(1))


def tanh_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def binary():
    return mixture()


def xor():
    return mixture("xor", 9)


def functions():
    case = mixture()
    return case._replace(statistics=as_functions(case.statistics))


def frozen_layer():
    case = mixture()
    case.model.second.requires_grad_(False)
    return case


def not_polynomial():
    statistics = {
        "norm": lambda p: p["0.weight"].norm(dim=-1),
        "log": lambda p: (1 + p["0.bias"].square().sum()).log(),
        "path": lambda p: torch.tanh(p["2.weight"] @ p["0.weight"]).sum(0),
        "constant": lambda p: p["2.bias"].detach().sign(),
    }
    return Case(tanh_network(), F.cross_entropy, classes(), statistics, True, 0.3)


def wide_network():
    """So wide that the entries of its first weight are many beside those of its factors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(14, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def nonlinear():
    """Angles, logarithms of norms, products of parameters; the last ones need all entries."""
    t = normal(14, seed=5)
    e = torch.linalg.qr(normal(14, 2, seed=6)).Q.mT

    def perpendicular(p):
        w = p["0.weight"]
        return w - (w @ e.mT) @ e

    statistics = {
        "angle": lambda p: F.cosine_similarity(p["0.weight"][0], p["0.weight"][1], dim=0).arccos(),
        "angles": lambda p: ((p["0.weight"] @ t) / (p["0.weight"].norm(dim=-1) * t.norm()))[:2],
        "log": lambda p: p["0.weight"].norm().log() + p["2.weight"].square().sum().log(),
        "path": lambda p: (p["2.weight"] @ p["0.weight"] @ t / 5).exp().sum() * p["0.bias"].norm(),
        "far": lambda p: torch.linalg.vector_norm(perpendicular(p), dim=-1)[:2],
        "gram": lambda p: (perpendicular(p) @ perpendicular(p).mT).square().sum().log(),
        "flat": lambda p: F.normalize(p["0.weight"], dim=-1).sum(0)[:2],
        "every": lambda p: p["0.weight"].tanh().sum(),
        "joined": lambda p: torch.cat([x.flatten() for x in p.values()]).norm(),
    }
    data = normal(150, 14), torch.randint(3, (150,), generator=generator(1))
    return Case(wide_network(), F.cross_entropy, data, statistics, True, 0.3)


def linear_layers_with_biases():
    e = torch.linalg.qr(normal(4, 2)).Q.mT
    statistics = SummaryStatistics(
        {
            "bias": entries("0.bias"),
            "m": overlaps("0.weight", normal(2, 4)),
            "R": gram("0.weight", e),
            "W": squared_lengths("0.weight"),
            "out": entries("2.weight"),
        },
        symmetric=["R"],
    )
    return Case(tanh_network(), nn.CrossEntropyLoss(), classes(), statistics, True, 0.3)


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.filter = nn.Conv1d(1, 3, 2)
        self.table = nn.Embedding(3, 2)
        self.weight = nn.Parameter(torch.randn(3, 8))
        self.double()

    def forward(self, x):
        features = self.filter(x[0][:, None]).tanh().flatten(1)
        return F.linear(torch.cat([features[:, :6], self.table(x[1])], 1), self.weight)


def not_linear_layers():
    x, y = classes()
    statistics = SummaryStatistics(
        {
            "filter": entries("filter.weight"),
            "m": overlaps("table.weight", normal(1, 2)),
            "R": gram("weight"),
            "both": lambda p: (p["table.weight"] @ p["weight"][:2, :2]).exp().sum(),
        },
        symmetric=["R"],
    )
    return Case(Convolution(), F.cross_entropy, ((x, y.flip(0)), y), statistics, False, 0.1)


def not_linear_layers_ready_made():
    case = not_linear_layers()
    return case._replace(statistics=case.statistics.select(["filter", "m", "R"]))


def loss_of_model_and_batch():
    def loss(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"]) + 0.1 * model[0].weight.norm()

    case = linear_layers_with_biases()
    x, y = case.data
    return case._replace(loss=loss, data={"x": x, "y": y}, structured=False)


def spiked():
    problem = tl.SpikedTensor(dim=8, order=3, snr=2.0, ridge=0.1, dtype=torch.float64)
    model = problem.model(at=(0.6, 0.8), generator=generator())
    data = problem.sample(150, generator=generator(1))
    return Case(model, problem.loss, data, problem.statistics, False, problem.ridge)


@pytest.mark.parametrize("samples", [40, 150])
@pytest.mark.parametrize(
    "make",
    [
        binary, xor, functions, frozen_layer, not_polynomial, nonlinear,
        linear_layers_with_biases,
        not_linear_layers, not_linear_layers_ready_made, loss_of_model_and_batch, spiked,
    ],
)  # fmt: skip
def test_against_the_naive_reference(make, samples):
    check(make(), samples)


# --- functions without derivatives of their own ---------------------------------------------------


def ways_of(case, **options):
    estimator = Estimator(case.model, case.loss, Served(case.data), case.statistics, **options)
    estimator(dict(case.model.named_parameters()), step_size=DELTA, samples=40)
    return estimator._ways


def test_functions_compute_with_outer_products_where_they_can():
    ways = ways_of(nonlinear())
    assert [name for name, way in ways.items() if not way.structured] == ["every", "joined"]
    assert all(way.vectorised for way in ways.values())
    assert ways["angle"].reads == ["0.weight"]


@pytest.fixture
def wrong_lengths(monkeypatch):
    """Inner products of rows that forget what two outer products have in common."""
    dots = low_rank._dots
    monkeypatch.setattr(
        low_rank,
        "_dots",
        lambda a, b: dots(a, low_rank._lifted(b.base, a)) if a is b else dots(a, b),
    )


def test_outer_products_are_not_trusted_blindly(wrong_lengths):
    ways = ways_of(nonlinear())
    assert not ways["angles"].structured
    assert ways["flat"].structured is ways["far"].structured is False
    check(nonlinear(), 40)


def test_the_naive_reference_would_notice(wrong_lengths, monkeypatch):
    monkeypatch.setattr(general_increments, "_agree", lambda found, expected: True)
    with pytest.raises(AssertionError):
        check(nonlinear(), 40)


@pytest.mark.filterwarnings("default:torch.func.vmap cannot take:UserWarning")
def test_functions_that_vmap_cannot_take():
    """How many entries are chosen depends on the sample."""
    case = nonlinear()
    statistics = {
        "chosen": lambda p: p["0.weight"][p["0.weight"] > 0].square().sum(),
        "log": case.statistics["log"],
    }
    with pytest.warns(UserWarning, match="'chosen'.*sample by sample"):
        check(case._replace(statistics=statistics), 40)


def test_functions_change_what_is_their_own():
    """In place, but a copy."""
    case = nonlinear()
    statistics = {"double": lambda p: p["0.weight"].clone().mul_(2).square().sum()}
    check(case._replace(statistics=statistics), 40)


def test_functions_take_tensors_in_small_pieces(monkeypatch):
    """The same to the last digits, however many samples go at once."""
    monkeypatch.setattr(general_increments, "_PIECE_BYTES", 14 * 6 * 8 * 7)
    check(nonlinear(), 150)


# --- models whose gradients are no outer products -------------------------------------------------


class Linear(nn.Module):
    """A linear layer; subclasses do something with it that its input and output do not tell."""

    def __init__(self, inputs=4, outputs=4):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(inputs, outputs, bias=False).double()

    def forward(self, x):
        return self.layer(x)


class MixingSamples(Linear):
    def forward(self, x):
        y = self.layer(x)
        return y - y.mean(0) / 2


class MixingButFlat(Linear):
    """At 0, and the loss is flat where the output is."""

    def forward(self, x):
        y = self.layer(x)
        return y.relu() * (1 - y.mean() / 2)


class LayerTwice(Linear):
    def forward(self, x):
        return self.layer(self.layer(x).tanh())


class WeightAlone(Linear):
    def forward(self, x):
        return self.layer(x) + F.linear(x, self.layer.weight).tanh()


class TiedLayers(Linear):
    def __init__(self):
        super().__init__()
        self.twin = nn.Linear(4, 4, bias=False)
        self.twin.weight = self.layer.weight

    def forward(self, x):
        return self.twin(self.layer(x).tanh())


class RowsOfSamples(Linear):
    """Two rows a sample."""

    def forward(self, x):
        return self.layer(x.reshape(-1, 2, 4)).sum(1)


class RowsInOneDimension(Linear):
    def forward(self, x):
        return self.layer(x.reshape(-1, 4)).reshape(-1, 8)


class InPlace(Linear):
    def forward(self, x):
        return self.layer(x).tanh_()


class Overwritten(nn.Sequential):
    """What the layer saw is overwritten: no derivative at all."""

    def forward(self, x):
        x = x.clone()
        y = self[0](x)
        x.zero_()
        return y


def of_layer(model, inputs=4, loss=F.mse_loss, outputs=4):
    data = normal(60, inputs), normal(60, outputs, seed=1)
    return Case(model, loss, data, {"w": entries("layer.weight")}, False)


@pytest.mark.parametrize(
    ("model", "inputs", "outputs"),
    [
        (MixingSamples(), 4, 4), (LayerTwice(), 4, 4),
        (WeightAlone(), 4, 4), (TiedLayers(), 4, 4), (RowsOfSamples(), 8, 4),
        (RowsInOneDimension(), 8, 8),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)  # fmt: skip
def test_gradients_that_are_no_outer_products_are_noticed(model, inputs, outputs):
    check(of_layer(model, inputs, outputs=outputs), 60)


def test_those_that_are_may_be_changed_in_place():
    check(of_layer(InPlace())._replace(structured=True), 60)


@pytest.mark.parametrize("model", [MixingButFlat(), MixingSamples()])
def test_samples_that_say_nothing_are_not_the_ones_compared(model):
    """Inputs 0, for which any gradient of the output gives the right gradient of the weight."""
    case = of_layer(model)
    x, y = case.data
    x[:10], y[:10] = 0, 100
    check(case, 60)


def test_a_loss_that_reads_the_weights():
    model = Linear()

    def loss(output, target):
        return F.mse_loss(output, target) + model.layer.weight.square().sum()

    check(of_layer(model, loss=loss), 60)
    # without that the same layer is left in outer products
    check(of_layer(model)._replace(structured=True), 60)


def test_pieces_of_one_sample_do_not_hide_that_samples_mix():
    model = MixingSamples()
    model.layer = nn.Linear(40, 40, bias=False).double()
    data = normal(300, 40), normal(300, 40, seed=1)
    statistics = {"m": overlaps("layer.weight", normal(1, 40))}
    roomy, tight = (
        Estimator(model, F.mse_loss, Served(data), statistics, max_bytes=size)
        for size in (2**26, 8 * 1600 * 8)
    )
    for estimator in (roomy, tight):
        estimator(dict(model.named_parameters()), step_size=DELTA, samples=300)
    assert not roomy.gradients.structured
    assert not tight.gradients.structured


@pytest.mark.filterwarnings("default:torch.func.vmap cannot take:UserWarning")
def test_models_that_vmap_cannot_take():
    def loss(output, target):
        return F.mse_loss(output, target) if output.sum().item() > 0 else output.abs().sum()

    with pytest.warns(UserWarning, match="sample by sample"):
        check(of_layer(Linear(), loss=loss), 40)


class Full:
    """A loss that finds no memory, so often, and is the squared error then."""

    def __init__(self, times):
        self.times = times

    def __call__(self, output, target):
        self.times -= 1
        if self.times >= 0:
            raise torch.OutOfMemoryError("no room")
        return F.mse_loss(output, target)


@pytest.mark.parametrize("ready_made", [True, False])
def test_no_room_is_no_property_of_the_model(ready_made):
    """It is told as what it is, and later estimates go the fast way still."""
    case = of_layer(Linear(), loss=Full(1))
    functions = {"R": gram("layer.weight")} if ready_made else {"R": lambda p: p["layer.weight"][0]}
    estimator = Estimator(case.model, case.loss, Served(case.data), SummaryStatistics(functions))
    parameters = dict(case.model.named_parameters())
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        estimator(parameters, step_size=DELTA, samples=40)
    estimator.sampler = Served(case.data)
    estimator(parameters, step_size=DELTA, samples=40)
    assert estimator.gradients.structured
    assert estimator.gradients._vectorised


def test_autocast_does_not_enter():
    """Rounded to bfloat16, outer products would be taken for none."""
    case = of_layer(Linear().float(), loss=F.mse_loss)
    data, found = tuple(x.float() for x in case.data), []
    for on in (False, True):
        estimator = Estimator(
            case.model, case.loss, Served(data), SummaryStatistics({"R": gram("layer.weight")})
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            found.append(
                estimator(dict(case.model.named_parameters()), step_size=DELTA, samples=40)
            )
        assert estimator.gradients.structured
    assert torch.equal(found[0].drift.value, found[1].drift.value)
    assert torch.equal(found[0].corrector.value, found[1].corrector.value)


# --- pieces, precision ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [binary, not_polynomial])
def test_pieces_are_small_where_memory_is(make):
    _, sampler = check(make(), 150, max_bytes=20_000)
    assert max(sampler.asked) < 50
    assert len(set(sampler.asked)) > 1
    _, roomy = check(make(), 150)
    assert roomy.asked == [128, 22]


@pytest.mark.parametrize("make", [binary, not_polynomial])
def test_float32_is_as_good_as_its_rounding(make):
    case = make()
    expected, _ = check(case, 100)
    case = case._replace(
        model=case.model.float(),
        data=pytree.tree_map(lambda x: x.float() if x.is_floating_point() else x, case.data),
    )
    found = Estimator(case.model, case.loss, Served(case.data), case.statistics)(
        dict(case.model.named_parameters()),
        step_size=DELTA, samples=100, weight_decay=case.weight_decay,
    )  # fmt: skip
    for name in ("drift", "corrector", "diffusion", "increment", "increment_covariance"):
        got, value = getattr(found, name).value, getattr(expected, name).value
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-5)


def test_statistics_that_hold_float32_tensors_of_their_own():
    case = of_layer(Linear().float(), loss=F.mse_loss)
    data = tuple(x.float() for x in case.data)
    direction = normal(4).float()
    values = []
    for function in (lambda p: p["layer.weight"] @ direction,
                     lambda p: p["layer.weight"] @ direction.to(p["layer.weight"])):  # fmt: skip
        found = tl.estimate(
            case.model, case.loss, Served(data), {"m": function}, step_size=DELTA, samples=60
        )
        values.append(found.increment.value)
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)


def test_printed_and_intervals():
    found, _ = check(binary(), 40)
    table, notes = str(found).split("\n\n")  # what the columns are
    lines = table.splitlines()
    assert "drift -f" in notes
    assert len(lines) == 1 + len(found.names)
    assert all(a.split()[0] == b for a, b in zip(lines[1:], found.names, strict=True))
    low, high = found.drift.interval(0.95)
    torch.testing.assert_close((low + high) / 2, found.drift.value)
    torch.testing.assert_close(high - low, 2 * 1.959964 * found.drift.standard_error)
    with pytest.raises(ValueError, match="level in"):
        found.drift.interval(95)


# --- error bars -----------------------------------------------------------------------------------

REPETITIONS = 200


def coverage(found, truth):
    """How often each entry's 95 % interval held its true value; entries without error left out."""
    low, high = (torch.stack(x) for x in zip(*(e.interval() for e in found), strict=True))
    exact = (high == low).all(0)
    assert bool((torch.stack([e.value for e in found]) == truth)[:, exact].all())
    return ((low <= truth) & (truth <= high)).double().mean(0)[~exact]


def check_coverage(found, truth):
    rate = coverage(found, truth)
    assert 0.90 < float(rate.mean()) < 0.99
    # one entry alone: 1 in 1000 that any is below, of independent ones at 95 %
    assert float(rate.min()) >= binom.ppf(1e-3 / rate.numel(), REPETITIONS, 0.95) / REPETITIONS


def repeated(problem, model, samples, step_size):
    estimator = Estimator(model, problem.loss, problem.sample, problem.statistics)
    parameters = dict(model.named_parameters())
    return [
        estimator(
            parameters, step_size=step_size, samples=samples, weight_decay=problem.ridge,
            generator=generator(seed),
        )
        for seed in range(REPETITIONS)
    ]  # fmt: skip


def test_coverage_of_exact_values():
    """Spiked tensors: drift, corrector and diffusion are known at every n."""
    n, k, c = 50, 3, 0.8
    problem = tl.SpikedTensor(dim=n, order=k, snr=2.0, ridge=0.3, dtype=torch.float64)
    model = problem.model(at=(0.6, 0.7), generator=generator())
    found = repeated(problem, model, 500, c / n)
    u = found[0].u
    m, r2 = u.tolist()
    isotropic = 4 * k * (m**2 + r2) ** (k - 1)
    radial = 4 * k * (k - 1) * (m**2 + r2) ** (k - 2)
    corrector = torch.tensor([0.0, c / n * (isotropic * (n - 1) + radial * r2)]).double()
    dynamics = problem.dynamics(step_size=c)
    check_coverage([e.drift for e in found], dynamics.drift(u))
    check_coverage([e.corrector for e in found], corrector)
    check_coverage([e.diffusion for e in found], dynamics.diffusion(u) / n)
    check_coverage(
        [e.increment for e in found],
        # the step's second order has E grad L in it, and the ridge
        dynamics.drift(u) + corrector + c / n * second_order(problem, u),
    )
    # negative control: the second moment of the gradient, not its variance
    gradient = dynamics.drift(u) + problem.ridge * torch.tensor([m, 2 * r2]).double()
    uncentred = corrector + c / n * torch.tensor([0.0, float(gradient[1]) ** 2 / (4 * r2)]).double()
    assert float(coverage([e.corrector for e in found], uncentred).max()) < 0.5


def second_order(problem, u):
    """r2 of the mean step, x -> -(grad Phi + alpha x)."""
    drift = problem.dynamics(step_size=1.0).drift(u)
    return torch.stack([torch.zeros(()).double(), drift[1] ** 2 / (4 * u[1])])


@pytest.mark.parametrize("kind", ["binary", pytest.param("xor", marks=pytest.mark.slow)])
def test_coverage_of_the_limit(kind):
    """Mixtures, N = 1000: corrections of order 1/N are far below the errors."""
    make = {"binary": tl.GaussianMixture.binary, "xor": tl.GaussianMixture.xor}[kind]
    problem, c = make(1000, snr=1.0, ridge=0.1), 1.5
    model = problem.model(generator=generator(5))
    found = repeated(problem, model, 1000, c / 1000)
    u, dynamics = found[0].u, problem.dynamics(step_size=c)
    corrector, diffusion = dynamics.corrector(u), dynamics.diffusion(u) / 1000
    check_coverage([e.drift for e in found], dynamics.drift(u))
    check_coverage([e.corrector for e in found], corrector)
    check_coverage([e.increment for e in found], dynamics(0.0, u))
    check_coverage([e.increment_covariance for e in found], diffusion)
    # to first order u = v, m moves in the same way; R does not
    linear = sum(not n.startswith("R") for n in found[0].names)
    first = [Estimated(e.diffusion.value[:linear, :linear],
                       e.diffusion.standard_error[:linear, :linear]) for e in found]  # fmt: skip
    check_coverage(first, diffusion[:linear, :linear])
    # negative controls: no corrector; no second order in the covariance of R
    moving = corrector != 0
    assert float(coverage([e.corrector for e in found], 0.1 * corrector).max()) == 0
    assert float(coverage([e.increment for e in found], dynamics.drift(u))[moving].min()) < 0.5


# --- what is left alone, what is reproduced -------------------------------------------------------


def noisy_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6).eval(), nn.ReLU(inplace=True), nn.Dropout(0.3),
        nn.Linear(6, 3), Counting(),
    )  # fmt: skip


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


def of_noise(model, seed, statistics=None):
    def sampler(batch, generator=None):
        y = torch.randint(3, (batch,), generator=generator)
        return torch.randn(batch, 4, generator=generator), y

    return tl.estimate(
        model, F.cross_entropy, sampler, statistics or {"W": gram("0.weight")},
        step_size=DELTA, samples=300, generator=generator(seed),
    )  # fmt: skip


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_is_left_alone(dropout):
    model = noisy_network()
    model[3].p = dropout
    F.cross_entropy(model(torch.randn(5, 4)), torch.zeros(5).long()).backward()
    before = {n: x.clone() for n, x in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    of_noise(model, 0)
    of_noise(model, 0, {"W": lambda p: p["0.weight"].norm()})
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in model.modules())


def test_the_same_seed_gives_the_same_results():
    model = noisy_network()
    first, again, other = (of_noise(model, seed) for seed in (1, 1, 2))
    for name in ("drift", "corrector", "diffusion"):
        a, b, c = (getattr(e, name) for e in (first, again, other))
        assert torch.equal(a.value, b.value)
        assert torch.equal(a.standard_error, b.standard_error)
        assert not torch.equal(a.value, c.value)


def test_a_model_on_the_cpu_starts_no_cuda(monkeypatch):
    """Its random numbers are no business of other devices'."""
    model = noisy_network()
    for name in ("manual_seed_all", "get_rng_state", "set_rng_state", "device_count"):
        monkeypatch.setattr(torch.cuda, name, None)
    a, b = (of_noise(model, 1).drift.value for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("ready_made", [True, False])
def test_dropout_is_drawn_anew_for_every_sample(ready_made):
    """loss = sum of dropout(x) w at x = 1: the gradient's variance is p/(1 - p) an entry."""
    p, n = 0.3, 40
    model = nn.Sequential(nn.Dropout(p), nn.Linear(n, 1, bias=False))

    def sampler(batch, generator=None):
        return torch.ones(batch, n), torch.zeros(batch)

    length = gram("1.weight") if ready_made else lambda q: q["1.weight"].square().sum()
    found = tl.estimate(
        model, lambda output, target: output.sum(), sampler, {"W": length},
        step_size=DELTA, samples=1000, generator=generator(),
    )  # fmt: skip
    value, error = (float(x) for x in (found.corrector.value, found.corrector.standard_error))
    assert abs(value - DELTA * n * p / (1 - p)) < 4 * error
    # negative control: one mask for all
    assert value > 10 * error


# --- bad input ------------------------------------------------------------------------------------


def sampler_4(batch, generator=None):
    return torch.randn(batch, 4, generator=generator), torch.randint(
        3, (batch,), generator=generator
    )


def diverged():
    model = tanh_network().float()
    model[0].weight.data[0, 0] = torch.nan
    return model


WEIGHT = {"w": gram("0.weight")}
NORM = {"w": lambda p: p["0.weight"].norm()}


@pytest.mark.parametrize("statistics", [WEIGHT, NORM], ids=["ready-made", "function"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "no"}, TypeError, "torch.nn.Module"),
        ({"model": nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))}, ValueError,
         "BatchNorm1d '1' in training mode"),
        ({"model": diverged()}, ValueError, "NaN or infinity along w"),
        ({"model": nn.Sequential(nn.Linear(5, 3))}, ValueError, "shapes cannot be multiplied"),
        ({"model": tanh_network()}, ValueError, "same dtype"),
        ({"model": Overwritten(nn.Linear(4, 3))}, ValueError, "modified by an inplace operation"),
        ({"loss": 3}, TypeError, "loss as a function"),
        ({"loss": lambda o, t: o}, ValueError, r"one number, got \(1, 3\)"),
        ({"loss": lambda o, t: 1.0}, ValueError, "one number, got float"),
        ({"sampler": 3}, TypeError, "sampler as a function"),
        ({"sampler": lambda batch: sampler_4(batch)}, TypeError, "a parameter generator"),
        ({"sampler": lambda batch, generator: sampler_4(batch + 1)}, ValueError,
         r"return 50 samples.*\(51, 4\)"),
        ({"sampler": lambda batch, generator: (torch.ones(batch, 4), 3)}, ValueError, "int"),
        ({"sampler": lambda batch, generator: torch.ones(())}, ValueError, "return 50 samples"),
        ({"sampler": lambda batch, generator: None}, ValueError, "return 50 samples"),
        ({"sampler": lambda batch, generator: torch.ones(batch, 4)}, ValueError,
         r"\(input, target\)"),
        ({"samples": 1}, ValueError, "at least 2 samples"),
        ({"samples": 2.0}, ValueError, "samples"),
        ({"step_size": 0.0}, ValueError, "step_size"),
        ({"step_size": -1.0}, ValueError, "step_size"),
        ({"step_size": math.nan}, ValueError, "step_size"),
        ({"step_size": "0.1"}, TypeError, "step_size"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"generator": 3}, TypeError, "torch.Generator"),
        ({"max_bytes": 0}, ValueError, "max_bytes"),
    ],
)  # fmt: skip
def test_bad_input(statistics, change, error, message):
    torch.manual_seed(0)
    options = {
        "model": nn.Sequential(nn.Linear(4, 3)), "loss": F.cross_entropy, "sampler": sampler_4,
        "statistics": statistics, "step_size": 0.1, "samples": 50, **change,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        tl.estimate(**options)


class NoForwardMode(torch.autograd.Function):
    """A square that knows its backward alone."""

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, *grads):
        (x,) = ctx.saved_tensors
        return 2 * x * grads[0]


@pytest.mark.parametrize(
    ("statistics", "error", "message"),
    [
        (3, TypeError, "SummaryStatistics or a dict"),
        ({"w": lambda p: p["no"]}, ValueError, "asked for parameter 'no'"),
        ({"w": lambda p: torch.zeros(2)}, ValueError, "depend on trainable parameters"),
        ({"w": lambda p: p["1.weight"].sum()}, ValueError, "depend on trainable parameters"),
        ({"w": entries("1.weight")}, ValueError, "depend on trainable parameters"),
        ({"w": lambda p: p["0.weight"].sum() * (p["0.weight"].sum().item() > 0)}, ValueError,
         "torch.func can differentiate"),
        ({"w": lambda p: (p["0.weight"] * 0).sqrt().sum()}, ValueError, "no derivative here"),
        ({"w": lambda p: p["0.weight"].norm() if p["0.weight"].sum() > 9 else p["0.weight"].sum()},
         ValueError, "'w'.*branches on values"),
        ({"w": lambda p: p["0.weight"].sum() * (p["0.weight"] > 0).numpy().sum()}, ValueError,
         "'w'.*torch.func can differentiate"),
        ({"w": lambda p: NoForwardMode.apply(p["0.weight"]).sum(), "v": lambda p: p["0.bias"]},
         ValueError, "'w'.*torch.func can differentiate"),
        ({"w": lambda p: (p["0.weight"] * torch.randn(4))[p["0.weight"] > 0].sum()}, ValueError,
         "'w'.*draw"),
        ({"w": lambda p: p["0.weight"].mul_(2).sum()}, ValueError, "in place.*clone"),
        ({"w": lambda p: [p["0.weight"]]}, TypeError, "'w' to return a tensor, got list"),
    ],
)  # fmt: skip
def test_bad_statistics(statistics, error, message):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3).requires_grad_(False))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        tl.estimate(model, F.cross_entropy, sampler_4, statistics, step_size=0.1, samples=50)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_replicas_are_refused():
    problem = tl.GaussianMixture.binary(dim=10, snr=1.0)
    with pytest.raises(ValueError, match="leading replica dimensions"):
        tl.estimate(
            problem.model(replicas=(3,)), problem.loss, problem.sample, problem.statistics,
            step_size=0.1, samples=10,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["det", "slogdet", "solve"])
def test_functions_whose_second_derivatives_torch_has_wrong_are_refused(kind, dtype):
    """In forward over forward mode; no sample would say so."""
    problem = tl.GaussianMixture.binary(dim=30, snr=2.0, ridge=0.1, dtype=dtype)
    functions = {
        "det": lambda p: torch.linalg.det(p["first.weight"] @ p["first.weight"].mT),
        "slogdet": lambda p: torch.linalg.slogdet(p["first.weight"] @ p["first.weight"].mT)[1],
        "solve": lambda p: torch.linalg.solve(
            p["first.weight"] @ p["first.weight"].mT, p["second.weight"].mT
        ).sum(),
    }
    with pytest.raises(tl.StatisticError, match=rf"{kind}.*forward over reverse.*cholesky"):
        tl.estimate(
            problem.model(), problem.loss, problem.sample, {kind: functions[kind]}, step_size=0.1,
            samples=16,
        )  # fmt: skip


def test_a_log_determinant_by_cholesky_has_the_right_corrector():
    """Beside the Hessian by reverse mode, twice."""
    problem = tl.GaussianMixture.binary(dim=12, snr=2.0, dtype=torch.float64)
    model = problem.model(generator=torch.Generator().manual_seed(1))
    x, y = problem.sample(64, generator=torch.Generator().manual_seed(2))

    def log_det(p):
        gram = p["first.weight"] @ p["first.weight"].mT
        return 2 * torch.linalg.cholesky(gram).diagonal(dim1=-2, dim2=-1).log().sum(-1)

    found = tl.estimate(model, problem.loss, lambda count, generator=None: (x[:count], y[:count]),
                        {"log det": log_det}, step_size=0.1, samples=64)  # fmt: skip
    start = {n: p.detach() for n, p in model.named_parameters()}
    hessian = torch.func.jacrev(torch.func.jacrev(log_det))(start)
    H = hessian["first.weight"]["first.weight"].flatten(2).flatten(0, 1)
    gradients = torch.stack(
        [
            torch.autograd.grad(problem.loss(model(a[None]), b[None]), model.first.weight)[
                0
            ].flatten()
            for a, b in zip(x, y, strict=True)
        ]
    )
    V = gradients.mT.cov()
    expected = 0.1 / 2 * (H * V).sum()
    torch.testing.assert_close(found.corrector.value[0], expected)
