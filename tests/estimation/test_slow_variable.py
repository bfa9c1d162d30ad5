"""Momentum's slow variable: recorded as a plain loop finds it, and what a probe has to look at."""

import copy
import dataclasses

import pytest
import torch
from convolution import explained
from torch import nn
from torch.func import functional_call, grad, hessian

import torchlimits as tl
from torchlimits.estimation import probe as probe_module
from torchlimits.estimation.probe import Prober
from torchlimits.statistics import gram, of_model, overlaps, second_layer, slow_variable
from torchlimits.statistics.slow_variable import slow_value

#: options of SGD, and whether the groups of the parameters have their own
OPTIONS = [
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.3},
    {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 0.4},
    {},
]
GROUPS = [
    {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.4},
    {"lr": 0.02, "momentum": 0.9, "nesterov": True},
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3, bias=False), nn.Tanh(), nn.Linear(3, 1)).double()


def sgd(model, options):
    if options is not GROUPS:
        return torch.optim.SGD(model.parameters(), lr=0.05, **options)
    first, second = model[0].parameters(), model[2].parameters()
    return torch.optim.SGD([{"params": first, **GROUPS[0]}, {"params": second, **GROUPS[1]}])


def batch(size, seed):
    drawn = torch.randn(size, 6, generator=generator(seed), dtype=torch.float64)
    return drawn[:, :5], drawn[:, 5:]


def step(model, optimizer, data):
    x, y = data
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()


def slow(model, optimizer):
    """y of all parameters, by the definition."""
    found = {}
    for name, p in model.named_parameters():
        group = next(g for g in optimizer.param_groups if any(p is q for q in g["params"]))
        beta = group["momentum"]
        buffer = optimizer.state[p].get("momentum_buffer") if beta else None
        lag = beta ** (2 if group["nesterov"] else 1) / (1 - beta) if beta else 0
        shift = 0 if buffer is None else group["lr"] * lag * buffer
        found[name] = p.detach() - shift
    return found


@pytest.mark.parametrize("options", [*OPTIONS, GROUPS])
def test_it_takes_the_steps_of_plain_sgd(options):
    """y <- y - lr (1 - tau)/(1 - beta) (grad at w), also where the groups differ."""
    model = network()
    optimizer = sgd(model, options)
    before = slow(model, optimizer)
    for number in range(6):
        w = {n: p.detach().clone() for n, p in model.named_parameters()}
        step(model, optimizer, batch(2, number))
        y = slow(model, optimizer)
        for group in optimizer.param_groups:
            # the first buffer of torch is not damped
            damped = 0 if number == 0 else group["dampening"]
            for p in group["params"]:
                name = next(n for n, q in model.named_parameters() if q is p)
                g = p.grad + group["weight_decay"] * w[name]
                expected = before[name] - group["lr"] * (1 - damped) / (1 - group["momentum"]) * g
                torch.testing.assert_close(y[name], expected)
                if group["momentum"]:  # the parameters themselves take other steps
                    assert not torch.allclose(p.detach() - w[name], y[name] - before[name])
        before = y


STATISTICS = {
    "product": lambda p: p["0.weight"].square().sum() * p["2.bias"].sum(),
    "output": of_model(lambda module: module(torch.ones(1, 5).double()).sum()),
    "gradient": lambda p: p["0.weight.grad"].norm(),
    "all": lambda p: sum(x.sum() for x in p.values()),
}


@pytest.mark.parametrize("options", [*OPTIONS, GROUPS])
@pytest.mark.parametrize("max_bytes", [None, 1])
def test_rows_are_what_a_plain_loop_finds(options, max_bytes):
    model = network()
    optimizer = sgd(model, options)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    expected = []
    with tl.track(model, optimizer, slow_variable(STATISTICS), max_bytes=max_bytes) as tracker:

        def note():
            y = slow(model, optimizer)
            g = model[0].weight.grad
            expected.append(
                [
                    y["0.weight"].square().sum() * y["2.bias"].sum(),
                    functional_call(model, y, torch.ones(1, 5).double()).sum().detach(),
                    torch.tensor(torch.nan) if g is None else g.norm(),
                    sum(x.sum() for x in y.values()),
                ]
            )

        note()
        for number in range(7):
            if number == 4:  # all of it in other memory
                model[0].weight.data = model[0].weight.data.clone()
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            step(model, optimizer, batch(2, number))
            note()
            schedule.step()
    values = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(tracker.trajectory().values, values, equal_nan=True)


def test_copies_and_problems_have_their_own():
    """Statistics of replicas, ready-made and of a function, by both ways to leading dimensions."""
    models = [network() for _ in range(3)]
    with torch.no_grad():
        for i, one in enumerate(models):
            one[0].weight.mul_(i + 1)
    both, function = tl.replicate(models), {"norm": lambda p: p["0.weight"].norm()}
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1, momentum=0.9)
    with tl.track(both, optimizer, slow_variable(function)) as tracker:
        for number in range(3):
            optimizer.zero_grad()
            x, y = batch(2, number)
            (both(x.expand(3, 2, 5)) - y).square().sum().backward()
            optimizer.step()
    y = slow(both, optimizer)["0.weight"]
    torch.testing.assert_close(tracker.trajectory().values[:, -1, 0], y.flatten(1).norm(dim=1))
    problem = tl.GaussianMixture.binary(dim=40, snr=2.0, dtype=torch.float64)
    options = {"step_size": 1.0, "time": 0.5, "runs": 3, "momentum": 0.8, "progress": False}
    w = tl.train(problem, **options)
    y = tl.train(problem, statistics=slow_variable(problem.statistics), **options)
    assert y.names == w.names
    assert torch.equal(y.initial, w.initial)
    assert not torch.allclose(y.final, w.final)
    assert torch.equal(tl.train(problem, **options).values, w.values)


def test_half_precision_does_not_round_the_shift_away():
    w = torch.ones(1, dtype=torch.bfloat16)
    group = {"lr": 1e-3, "momentum": 0.5, "nesterov": False}
    y = slow_value(w, group, {"momentum_buffer": torch.ones_like(w)})
    assert float(y) == pytest.approx(1 - 1e-3)
    assert slow_value(w, {**group, "momentum": 0}, {}).dtype == torch.float32


def test_what_has_no_slow_variable():
    model = network()
    statistics = slow_variable({"norm": lambda p: p["0.weight"].norm()})
    for other in (torch.optim.NAdam, torch.optim.RMSprop):
        with pytest.raises(ValueError, match=rf"SGD, Adam or AdamW for .* got {other.__name__}"):
            tl.track(model, other(model.parameters()), statistics)
    with pytest.raises(TypeError, match="SummaryStatistics or a dict"):
        slow_variable(3)
    # a parameter that the optimizer does not hold, and parameters without an optimizer
    head = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)
    norm = model[0].weight.detach().norm()
    with tl.track(model, head, slow_variable({"n": lambda p: p["0.weight"].norm()})) as tracker:
        step(model, head, batch(2, 0))
    assert tracker.trajectory()["n"].tolist() == [float(norm)] * 2
    assert float(statistics(dict(model.named_parameters()))) == float(norm)


# --- the probe ------------------------------------------------------------------------------------

SAMPLES = 30
MIXED = tl.SummaryStatistics(
    {
        "m": overlaps("0.weight", torch.eye(2, 5).double()),
        "R": gram("0.weight", torch.eye(2, 5).double()),
        "v": second_layer("2.weight"),
        "product": lambda p: p["0.weight"].square().sum() * p["2.bias"].sum(),
    },
    symmetric=["R"],
)


@pytest.mark.parametrize("options", [*OPTIONS, GROUPS])
@pytest.mark.parametrize("statistics", [MIXED, MIXED.select(["m", "R", "v"])])
def test_a_probe_estimates_the_step_of_the_slow_variable(options, statistics):
    """The mean step over all samples, each taken by torch itself, and f and g by autograd."""
    model = network()
    optimizer = sgd(model, options)
    for number in range(4):
        step(model, optimizer, batch(2, number))
    data, lr = batch(SAMPLES, 10), optimizer.param_groups[0]["lr"]
    done = [0]

    def sampler(count, generator=None):
        done.append(done[-1] + count)
        return tuple(x[done[-2] : done[-1]] for x in data)

    probe = tl.Probe(nn.functional.mse_loss, sampler, samples=SAMPLES)
    prober = Prober(probe, model, optimizer, statistics)
    delta, motion = prober._present_rate(), prober._motion({})
    assert delta == lr
    w = dict(model.named_parameters())
    found = prober._estimator(w, delta, SAMPLES, motion=motion)
    y = slow(model, optimizer)
    torch.testing.assert_close(found.u, statistics(y))
    steps = []
    for s in range(SAMPLES):
        one, its = copy.deepcopy((model, optimizer))
        step(one, its, tuple(x[s : s + 1] for x in data))
        steps.append(statistics(slow(one, its)) - found.u)
    steps = torch.stack(steps) / lr
    torch.testing.assert_close(found.increment.value, steps.mean(0), rtol=1e-9, atol=1e-9)
    covariance = lr * steps.mT.cov()
    torch.testing.assert_close(found.increment_covariance.value, covariance, rtol=1e-8, atol=1e-9)
    drift, corrector = of_autograd(model, optimizer, statistics, data)
    torch.testing.assert_close(found.drift.value, drift)
    torch.testing.assert_close(found.corrector.value, corrector)
    if any(group["momentum"] for group in optimizer.param_groups):
        # negative control: at the parameters themselves
        done.append(0)
        there = prober._estimator(w, delta, SAMPLES, motion=motion_at(motion, w))
        assert not torch.allclose(there.drift.value, drift, rtol=1e-3)


def motion_at(motion, places):
    return dataclasses.replace(motion, places=places)


def of_autograd(model, optimizer, statistics, data):
    """-Du(y)[s (grad + alpha w)] and lr/2 times the mean of D^2 u(y) along s (grad_b - mean)."""
    w = {n: p.detach() for n, p in model.named_parameters()}
    y, lr = slow(model, optimizer), optimizer.param_groups[0]["lr"]
    speed, decay = {}, {}
    for group in optimizer.param_groups:
        for name, p in model.named_parameters():
            if any(p is q for q in group["params"]):
                q = (1 - group["dampening"]) / (1 - group["momentum"])
                speed[name], decay[name] = q * group["lr"] / lr, group["weight_decay"]

    def loss(w, x, target):
        return nn.functional.mse_loss(functional_call(model, w, x[None]), target[None])

    each = torch.func.vmap(grad(loss), in_dims=(None, 0, 0))(w, *data)
    each = {n: speed[n] * g for n, g in each.items()}
    mean = {n: g.mean(0) for n, g in each.items()}
    force = {n: mean[n] + speed[n] * decay[n] * w[n] for n in w}
    jacobian = statistics.jacobian(y)
    drift = -sum(jacobian[n].flatten(1) @ force[n].flatten() for n in w)
    centred = torch.cat([(each[n] - mean[n]).flatten(1) for n in w], dim=1)
    second = hessian(statistics.__call__)(y)
    k = len(drift)
    H = torch.cat(
        [torch.cat([second[a][b].reshape(k, w[a].numel(), -1) for b in w], -1) for a in w], -2
    )
    bends = torch.einsum("si,kij,sj->k", centred, H, centred) / (SAMPLES - 1)
    return drift, lr / 2 * bends


def unexplained(sgd_options, runs=4):
    """The residual's mean over runs, its error, and the change that is to be explained."""
    found = []
    for run in range(runs):
        parts = explained(run, lambda p: torch.optim.SGD(p, **sgd_options), steps=30, every=5)
        found.append((parts.residual.final[0], parts.residual.std[-1, 0], parts.change.final[0]))
    residual, std, change = map(torch.stack, zip(*found, strict=True))
    return float(residual.mean()), float(std.square().sum().sqrt() / runs), float(change.mean())


@pytest.mark.parametrize(
    "options", [{"lr": 0.003, "momentum": 0.9}, {"lr": 0.03}], ids=["momentum", "plain"]
)
def test_the_residual_of_a_convolution_falls_to_its_error(options):
    residual, error, change = unexplained(options)
    assert abs(residual) < 3 * error < 0.15 * change


def test_at_the_parameters_themselves_it_does_not(monkeypatch):
    monkeypatch.setattr(probe_module, "slow_value", lambda p, group, state: p.detach())
    residual, error, change = unexplained({"lr": 0.003, "momentum": 0.9})
    assert abs(residual) > 6 * error
    assert abs(residual) > 0.15 * change


def test_a_probe_counts_in_the_limit_time_of_its_tracker():
    """Rates are per unit of the time that the tracker adds up, whichever group it is of."""
    found = []
    for chosen in ("0.weight", "2.weight"):
        model = network()
        optimizer = sgd(model, GROUPS)
        probe = tl.Probe(
            nn.functional.mse_loss, lambda count, generator=None: batch(count, 3), samples=8
        )
        tracker = tl.track(model, optimizer, MIXED, probe=probe, time_of=chosen)
        found.append(tracker._observer._rows[0])
    ratio = GROUPS[0]["lr"] / GROUPS[1]["lr"]
    for a, b in zip(found[0][1:3], found[1][1:3], strict=True):
        torch.testing.assert_close(a * ratio, b)


def test_what_moves_without_the_probes_optimizer_is_told():
    model = network()
    head, rest = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (2, 0))
    probe = tl.Probe(
        nn.functional.mse_loss, lambda count, generator=None: batch(count, 3), samples=8, every=1
    )
    tracker = tl.track(model, head, MIXED, probe=probe)
    assert not tracker._observer._motion({}).speeds["0.weight"]
    step(model, rest, batch(2, 0))
    with pytest.warns(RuntimeWarning, match=r"does not hold 0\.weight: something else moves"):
        step(model, head, batch(2, 1))
