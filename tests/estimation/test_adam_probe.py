"""A probe of Adam: single estimates by torch's own steps, whole runs by what they leave."""

import copy
from itertools import pairwise

import pytest
import torch
from convolution import explained
from torch import nn
from torch.func import functional_call, grad, hessian, vmap

import torchlimits as tl
from torchlimits.estimation import moves as moves_module
from torchlimits.estimation import probe as probe_module
from torchlimits.estimation.probe import Prober
from torchlimits.statistics import gram, norms, overlaps, second_layer
from torchlimits.statistics.adam_memory import mean_weight, weight
from torchlimits.statistics.slow_variable import slow_value

SAMPLES = 40
LR = 1e-3
STATISTICS = tl.SummaryStatistics(
    {
        "m": overlaps("0.weight", torch.eye(2, 5).double()),
        "R": gram("0.weight", torch.eye(2, 5).double()),
        "v": second_layer("2.weight"),
        "product": lambda p: p["0.weight"].square().sum() * p["2.bias"].sum(),
    },
    symmetric=["R"],
)
#: a kind of optimizer, its options, and the size of its batches
OPTIONS = [
    (torch.optim.Adam, {}, 1),
    (torch.optim.Adam, {"weight_decay": 0.3, "betas": (0.8, 0.99)}, 2),
    (torch.optim.AdamW, {"weight_decay": 0.3, "eps": 0.1}, 4),
    (torch.optim.AdamW, {"weight_decay": 0.3, "maximize": True}, 1),
    (torch.optim.Adam, {"weight_decay": 0.3, "maximize": True}, 1),
    (torch.optim.Adam, {"betas": (0.0, 0.999)}, 2),
]
NAMES = [f"{kind.__name__}-{'-'.join(options) or 'plain'}-{B}" for kind, options, B in OPTIONS]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3, bias=False), nn.Tanh(), nn.Linear(3, 1)).double()


def batch(size, seed):
    drawn = torch.randn(size, 6, generator=generator(seed), dtype=torch.float64)
    return drawn[:, :5], drawn[:, 5:] + drawn[:, :1]


def step(model, optimizer, data):
    x, y = data
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()


def trained(kind, options, B, steps):
    """A network after some steps, with a group of its own for the head."""
    model = network()
    head = {"params": model[2].parameters(), "lr": 2 * LR, "betas": (0.7, 0.995)}
    groups = [{"params": model[0].parameters()}, head]
    optimizer = kind(groups, lr=LR, **options)
    for number in range(steps):
        step(model, optimizer, batch(B, number))
    return model, optimizer


def probed(model, optimizer, B, every, data):
    """The estimate of a probe whose samples are the data."""
    done = [0]

    def sampler(count, generator=None):
        done.append(done[-1] + count)
        return tuple(x[done[-2] : done[-1]] for x in data)

    probe = tl.Probe(nn.functional.mse_loss, sampler, samples=SAMPLES, batch_size=B, every=every)
    prober = Prober(probe, model, optimizer, STATISTICS)
    estimator, moments = prober._at()
    motion = prober._motion(moments)
    parameters = dict(model.named_parameters())
    return estimator(parameters, prober._present_rate(), SAMPLES, motion=motion)


def of(model, optimizer):
    """Each parameter with its name, group and state."""
    names = {id(p): n for n, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            yield names[id(p)], p, group, optimizer.state[p]


def gradients(model, data):
    """Of each sample, at the parameters."""

    def loss(w, x, target):
        return nn.functional.mse_loss(functional_call(model, w, x[None]), target[None])

    w = {n: p.detach() for n, p in model.named_parameters()}
    return vmap(grad(loss), in_dims=(None, 0, 0))(w, *data)


def coupled(group):
    return 0.0 if group["decoupled_weight_decay"] else group["weight_decay"]


def divisors(model, optimizer, B, data):
    """sqrt(v) of the next step, where v has the mean square of a batch's gradient in it."""
    found, each = {}, gradients(model, data)
    for name, p, group, state in of(model, optimizer):
        sign, g = -1 if group["maximize"] else 1, each[name]
        mean = sign * g.mean(0) + coupled(group) * p.detach()
        Q = g.var(0, correction=0) / B + mean.square()
        beta2, s = group["betas"][1], int(state["step"]) if state else 0
        v = state["exp_avg_sq"] if state else torch.zeros_like(Q)
        found[name] = ((beta2 * v + (1 - beta2) * Q) / (1 - beta2 ** (s + 1))).sqrt()
    return found


@pytest.mark.parametrize(("kind", "options", "B"), OPTIONS, ids=NAMES)
def test_an_estimate_is_the_mean_of_the_steps_that_torch_takes(kind, options, B):
    """Each sample's step by torch itself, with second moments set so that D is the same."""
    model, optimizer = trained(kind, options, B, 250)
    data = batch(SAMPLES, 1000)
    found = probed(model, optimizer, B, 2, data)
    y = {n: slow_value(p, group, state) for n, p, group, state in of(model, optimizer)}
    torch.testing.assert_close(found.u, STATISTICS(y))
    each, roots, steps = gradients(model, data), divisors(model, optimizer, B, data), []
    for s in range(SAMPLES):
        one, its = copy.deepcopy((model, optimizer))
        for name, p, group, state in of(one, its):
            g = (-1 if group["maximize"] else 1) * each[name][s] + coupled(group) * p.detach()
            beta2, count = group["betas"][1], int(state["step"]) + 1
            aim = roots[name].square() * (1 - beta2**count)
            state["exp_avg_sq"] = (aim - (1 - beta2) * g.square()) / beta2
        step(one, its, tuple(x[s : s + 1] for x in data))
        there = {n: slow_value(p, group, state) for n, p, group, state in of(one, its)}
        # the memory of the steps before, with the D that the probe has: y would lag else
        for name, p, group, _ in of(model, optimizer):
            old = optimizer.state[p]
            D = 1 / (roots[name] + group["eps"])
            lag = group["lr"] * naive_lag(group, int(old["step"])) * old["exp_avg"]
            there[name] = there[name] + (D * lag - (p.detach() - y[name]))
        steps.append(STATISTICS(there) - found.u)
    steps = torch.stack(steps) / LR
    torch.testing.assert_close(found.increment.value, steps.mean(0), rtol=1e-7, atol=1e-7)
    covariance = LR * steps.mT.cov()
    torch.testing.assert_close(found.increment_covariance.value, covariance, rtol=1e-6, atol=1e-7)


def naive_lag(group, s):
    beta = group["betas"][0]
    return sum(beta**j / (1 - beta ** (s + j)) for j in range(1, 2000))


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize(("kind", "options", "B"), OPTIONS, ids=NAMES)
def test_drift_and_corrector_by_autograd(kind, options, B, steps):
    """-Du(y)[W D (grad + lambda w) + omega w], lr/2 D^2 u(y) along W D (g - mean), all steps."""
    model, optimizer = trained(kind, options, B, steps)
    data, every = batch(SAMPLES, 1000), 4
    found = probed(model, optimizer, B, every, data)
    roots, each = divisors(model, optimizer, B, data), gradients(model, data)
    w = {n: p.detach() for n, p in model.named_parameters()}
    y, force, centred = {}, {}, []
    for name, p, group, state in of(model, optimizer):
        y[name] = slow_value(p, group, state)
        # the steps that the estimate stands for
        own = range(max(steps - every // 2, 0) + 1, steps + every // 2 + 1)
        W = sum(weight(group["betas"][0], s) for s in own) / len(own)
        factor = group["lr"] / LR * W / (roots[name] + group["eps"])
        g = (-1 if group["maximize"] else 1) * each[name]
        omega = (group["weight_decay"] - coupled(group)) * group["lr"] / LR
        force[name] = factor * (g.mean(0) + coupled(group) * w[name]) + omega * w[name]
        centred.append((factor * (g - g.mean(0))).flatten(1))
    names = list(y)
    jacobian = STATISTICS.jacobian(y)
    drift = -sum(jacobian[n].flatten(1) @ force[n].flatten() for n in names)
    torch.testing.assert_close(found.drift.value, drift)
    second, k = hessian(STATISTICS.__call__)(y), len(drift)
    H = torch.cat(
        [torch.cat([second[a][b].reshape(k, w[a].numel(), -1) for b in names], -1) for a in names],
        -2,
    )
    centred = torch.cat(centred, dim=1)
    bends = torch.einsum("si,kij,sj->k", centred, H, centred) / (SAMPLES - 1)
    torch.testing.assert_close(found.corrector.value, LR / 2 * bends)
    if steps == 1 and options.get("betas", (0.9, 0))[0]:  # negative control: W left out
        assert not torch.allclose(found.drift.value, drift / W, rtol=0.05)


def test_weights_of_estimates_add_up_to_those_of_steps():
    """By the trapezoidal rule, with which rates are integrated."""
    for beta, every in ((0.9, 1), (0.9, 5), (0.9, 40), (0.97, 10)):
        half, count = every / 2, 400 // every
        means = [mean_weight(beta, max(i * every - half, 0.0), i * every + half)
                 for i in range(count + 1)]  # fmt: skip
        total = sum(every * (a + b) / 2 for a, b in pairwise(means))
        steps = sum(weight(beta, s) for s in range(1, count * every + 1))
        assert total == pytest.approx(steps, abs=0.01)
        assert total > count * every + 0.99 * beta / (1 - beta)


# --- whole runs -----------------------------------------------------------------------------------

LONG = {"lr": 5e-4, "betas": (0.97, 0.999)}


def unexplained(runs=4):
    """Means over runs of the residual, its error, the change and the corrector."""
    found = []
    for run in range(runs):
        parts = explained(run, lambda p: torch.optim.Adam(p, **LONG), steps=120, every=10)
        values = (parts.residual, parts.change, parts.corrector)
        found.append([*(path.final[0] for path in values), parts.residual.std[-1, 0]])
    residual, change, corrector, std = map(torch.stack, zip(*found, strict=True))
    error = float(std.square().sum().sqrt() / runs)
    return float(residual.mean()), error, float(change.mean()), float(corrector.mean())


def test_the_residual_of_a_convolution_falls_to_its_error():
    residual, error, change, corrector = unexplained()
    assert abs(residual) < 3 * error < 0.1 * change
    # negative control: without the corrector
    assert abs(residual + corrector) > 6 * error


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["at the parameters", "every step of weight 1"])
def test_it_does_not_without_the_slow_variable_or_its_weights(wrong, monkeypatch):
    if wrong == "at the parameters":
        monkeypatch.setattr(probe_module, "slow_value", lambda p, group, state: p.detach())
    else:
        monkeypatch.setattr(moves_module, "mean_weight", lambda beta, start, stop: 1.0)
    residual, error, *_ = unexplained()
    assert abs(residual) > 3.5 * error


# --- features that were dead ----------------------------------------------------------------------


def awakened(*, dead, steps=200, lr=1e-3):
    """A run whose inputs have a feature that is 0 for all but the last steps, or is not."""
    model, data = network(), generator(7)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    alive = torch.ones(5).double()
    alive[2] = 0.0 if dead else 1.0

    def sampler(count, generator=None):
        drawn = torch.randn(count, 6, generator=generator, dtype=torch.float64)
        return alive * drawn[:, :5], drawn[:, 5:] + drawn[:, :1]

    probe = tl.Probe(nn.functional.mse_loss, sampler, samples=64, every=100)
    statistics = norms(model)
    with tl.track(model, optimizer, statistics, probe=probe) as tracker:
        for number in range(steps):
            if number == steps - 5:
                alive[2] = 1.0
            x, y = sampler(1, data)
            step(model, optimizer, (x, y))
    return tracker, model, optimizer, statistics


def test_tensors_of_dead_features_are_left_out_and_named():
    with pytest.warns(RuntimeWarning, match=r"leaves out 0\.weight: fresh squared") as told:
        tracker, *_ = awakened(dead=True)
    assert len([one for one in told if "leaves out" in str(one.message)]) == 1
    found = tracker.explanation()
    assert found.skipped == ("0.weight",)
    assert "0.weight" in str(found).splitlines()[-1]
    # it stands still in the estimate, and the others do not
    rows = tracker._observer._rows
    first, head = (found.change.index(name) for name in ("norm.0.weight", "norm.2.weight"))
    assert float(rows[-1][1][first]) == float(rows[-1][2][first]) == 0
    assert float(rows[-1][1][head].abs()) > 0
    assert all(float(row[1][first].abs()) > 0 for row in rows[:-1])


@pytest.mark.filterwarnings("error")
def test_nothing_is_left_out_where_nothing_was_dead():
    tracker, *_ = awakened(dead=False)
    assert tracker.explanation().skipped == ()


def test_what_would_be_estimated_else(monkeypatch):
    """Negative control: mean squared steps of D G, which are about 1 where D has seen such G."""
    monkeypatch.setattr(moves_module, "_SHARE", 2.0)
    for dead in (True, False):
        prober = awakened(dead=dead)[0]._observer
        _, moments = prober._at()
        speeds = prober._motion(moments).speeds["0.weight"]
        steps = (speeds.square() * moments["0.weight"].square).mean(0)
        assert (float(steps[2]) > 10) is dead
        assert float(steps[[0, 1, 3, 4]].max()) < 4


def test_a_checkpoint_keeps_what_was_left_out():
    with pytest.warns(RuntimeWarning, match="leaves out"):
        tracker, model, optimizer, statistics = awakened(dead=True)
    probe = tl.Probe(
        nn.functional.mse_loss, lambda count, generator=None: batch(count, 3), samples=8
    )
    other = tl.track(model, optimizer, statistics, probe=probe)
    other.load_state_dict(tracker.state_dict())
    assert other.explanation().skipped == ("0.weight",)
    old = tracker.state_dict()
    del old["probe"]["skipped"]  # as written by an earlier version
    other.load_state_dict(old)
    assert other.explanation().skipped == ()


# --- the rest -------------------------------------------------------------------------------------


def test_training_is_bit_identical():
    ends = []
    probe = tl.Probe(nn.functional.mse_loss, sampled, every=4, samples=16, batch_size=2)
    for watching in (None, probe):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        with tl.track(model, optimizer, STATISTICS, probe=watching):
            for number in range(8):
                step(model, optimizer, batch(2, number))
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *ends))


def sampled(count, generator=None):
    drawn = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return drawn[:, :5], drawn[:, 5:] + drawn[:, :1]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_to_maximize_is_to_minimize_the_negative(kind):
    found = []
    for sign in (1, -1):

        def loss(output, target, sign=sign):
            return sign * nn.functional.mse_loss(output, target)

        model = network()
        options = {"weight_decay": 0.2, "maximize": sign == 1, "lr": 0.01}
        optimizer = kind(model.parameters(), **options)
        probe = tl.Probe(loss, sampled, every=4, samples=16)
        with tl.track(model, optimizer, STATISTICS, probe=probe) as tracker:
            for number in range(8):
                x, y = batch(2, number)
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
        found.append(tracker.explanation())
    for a, b in zip(*(one.parts().values() for one in found), strict=True):
        torch.testing.assert_close(a.values, b.values)
        torch.testing.assert_close(a.std, b.std)


def test_moments_of_gradients_left_as_outer_products_are_those_of_dense_ones():
    model = network()
    data = batch(SAMPLES, 5)
    each = gradients(model, data)
    probe = tl.Probe(nn.functional.mse_loss, sampled, samples=SAMPLES)
    estimator = Prober(probe, model, torch.optim.Adam(model.parameters()), STATISTICS)._estimator
    estimator = estimator.on(lambda count, generator=None: tuple(x[:count] for x in data))
    found = estimator.moments(dict(model.named_parameters()), SAMPLES, None)
    assert estimator.gradients.structured
    for name, moments in found.items():
        torch.testing.assert_close(moments.mean, each[name].mean(0))
        torch.testing.assert_close(moments.square, each[name].square().mean(0))
