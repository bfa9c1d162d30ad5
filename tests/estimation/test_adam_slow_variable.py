"""Adam's slow variable: its identity where D stands still, and what real Adam makes of it."""

import copy

import pytest
import torch
from torch import nn

import torchlimits as tl
from torchlimits.statistics import slow_variable
from torchlimits.statistics.adam_memory import lag, mean_weight, weight
from torchlimits.statistics.slow_variable import slow_value

#: a kind of optimizer and its options
OPTIONS = [
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"weight_decay": 0.3, "betas": (0.8, 0.99)}),
    (torch.optim.AdamW, {"weight_decay": 0.3}),
    (torch.optim.AdamW, {"weight_decay": 0.3, "maximize": True, "eps": 0.1}),
    (torch.optim.Adam, {"weight_decay": 0.3, "maximize": True, "foreach": True}),
    (torch.optim.Adam, {"betas": (0.0, 0.999)}),
    (torch.optim.Adam, {"betas": (0.97, 0.999), "amsgrad": True}),
]
NAMES = [f"{kind.__name__}-{'-'.join(options) or 'plain'}" for kind, options in OPTIONS]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def weights(count=1):
    start = torch.randn(count, 2, 3, generator=generator(0), dtype=torch.float64)
    return [nn.Parameter(x) for x in start]


def naive_lag(beta, step):
    return sum(beta**j / (1 - beta ** (step + j)) for j in range(1, 5000))


def naive_weight(beta, step):
    return (1 - beta) * (1 / (1 - beta**step) + naive_lag(beta, step))


def slow(p, group, state):
    """y, by the definition."""
    if not state:
        return p.detach().clone()
    step, (beta1, beta2) = int(state["step"]), group["betas"]
    second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    D = 1 / ((second / (1 - beta2**step)).sqrt() + group["eps"])
    return p.detach() - group["lr"] * naive_lag(beta1, step) * D * state["exp_avg"]


def expected_move(w, G, group, step, D, W):
    """-lr W D (grad + lambda w) - lr omega w, of a gradient of the loss at w."""
    decoupled = group["decoupled_weight_decay"]
    coupled, omega = (0.0, group["weight_decay"]) if decoupled else (group["weight_decay"], 0.0)
    force = (-G if group["maximize"] else G) + coupled * w
    return -group["lr"] * (W * D * force + omega * w)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
def test_lags_and_weights_are_their_sums(beta):
    for step in (1, 2, 10, 200):
        assert lag(beta, step) == pytest.approx(naive_lag(beta, step), rel=1e-12, abs=1e-15)
        assert weight(beta, step) == pytest.approx(naive_weight(beta, step), rel=1e-12)
    for start, stop in ((0, 1), (3, 9), (0, 700), (20_000, 20_500)):
        # what is past four thousand steps here is 1 to rounding
        weights = [naive_weight(beta, s + 1) if s < 4000 else 1.0 for s in range(start, stop)]
        found = mean_weight(beta, float(start), float(stop))
        assert found == pytest.approx(sum(weights) / len(weights), rel=1e-8)
    halves = (naive_weight(beta, 2) / 2 + naive_weight(beta, 3)) / 1.5
    assert mean_weight(beta, 1.5, 3.0) == pytest.approx(halves)
    assert [round(weight(0.9, s), 3) for s in (1, 10, 50)] == [3.01, 1.246, 1.003]


def held(p, group, state, G, target):
    """Set the second moment so that Adam's next step divides by sqrt(target)."""
    coupled = 0.0 if group["decoupled_weight_decay"] else group["weight_decay"]
    force = (-G if group["maximize"] else G) + coupled * p.detach()
    beta2, step = group["betas"][1], int(state["step"]) + 1
    state["exp_avg_sq"] = (target * (1 - beta2**step) - (1 - beta2) * force.square()) / beta2


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=NAMES)
def test_its_steps_have_no_memory_where_D_stands_still(kind, options):
    """Torch's own steps, to rounding, with two groups of other options; w takes other steps."""
    p, q = weights(2)
    other = {"lr": 0.02, "betas": (0.7, 0.9)}
    optimizer = kind([{"params": [p], **options}, {"params": [q], **options, **other}], lr=0.05)
    targets = torch.rand(2, 2, 3, generator=generator(1), dtype=torch.float64) + 4
    for one in (p, q):  # a step that changes nothing, for the state to be there
        one.grad = torch.zeros_like(one)
    start = [x.detach().clone() for x in (p, q)]
    optimizer.step()
    with torch.no_grad():
        for one, before in zip((p, q), start, strict=True):
            one.copy_(before)
            for value in optimizer.state[one].values():
                value.zero_()
    draws = generator(2)
    for number in range(1, 25):
        before = []
        for one, group, target in zip((p, q), optimizer.param_groups, targets, strict=True):
            state = optimizer.state[one]
            y = slow_value(one, group, state).clone()
            D = 1 / (target.sqrt() + group["eps"])
            shift = naive_lag(group["betas"][0], number - 1) if number > 1 else 0.0
            torch.testing.assert_close(y, one.detach() - group["lr"] * shift * D * state["exp_avg"])
            one.grad = torch.randn(2, 3, generator=draws, dtype=torch.float64)
            held(one, group, state, one.grad, target)
            before.append((y, one.detach().clone()))
        optimizer.step()
        for one, group, target, (y, w) in zip(
            (p, q), optimizer.param_groups, targets, before, strict=True
        ):
            W, D = naive_weight(group["betas"][0], number), 1 / (target.sqrt() + group["eps"])
            expected = expected_move(w, one.grad, group, number, D, W)
            now = slow_value(one, group, optimizer.state[one])
            torch.testing.assert_close(now - y, expected, rtol=1e-9, atol=1e-12)
            if group["betas"][0]:  # negative controls: at w, and without W
                assert not torch.allclose(one.detach() - w, expected, rtol=0.1)
                if number < 5:
                    without = expected_move(w, one.grad, group, number, D, 1.0)
                    assert not torch.allclose(now - y, without, rtol=0.01)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_with_adam_itself_what_is_left_is_of_order_one_minus_beta2(kind):
    """Root mean squares of what is left of y's steps and of w's, over those of y: 500 steps."""
    sizes = {}
    for beta2 in (0.99, 0.999):
        (p,) = weights()
        optimizer = kind([p], lr=1e-3, betas=(0.9, beta2), weight_decay=0.1)
        draws, squares = generator(3), torch.zeros(3)
        for number in range(1, 1501):
            group, state = optimizer.param_groups[0], optimizer.state[p]
            y, w = slow_value(p, group, state).clone(), p.detach().clone()
            p.grad = 0.3 + torch.randn(2, 3, generator=draws, dtype=torch.float64)
            optimizer.step()
            if number > 1000:
                D = 1 / ((state["exp_avg_sq"] / (1 - beta2**number)).sqrt() + group["eps"])
                expected = expected_move(w, p.grad, group, number, D, 1.0)
                now = slow_value(p, group, state)
                parts = (now - y - expected, p.detach() - w - expected, expected)
                squares += torch.stack([x.square().mean() for x in parts])
        sizes[beta2] = [float((squares[i] / squares[2]).sqrt()) for i in range(2)]
    assert sizes[0.99][0] < 5 * 0.01
    assert sizes[0.999][0] < 5 * 0.001
    assert min(sizes[0.99][1], sizes[0.999][1]) > 0.5


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3, bias=False), nn.Tanh(), nn.Linear(3, 1)).double()


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=NAMES)
@pytest.mark.parametrize("max_bytes", [None, 1])
def test_recorded_rows_are_what_a_plain_loop_finds(kind, options, max_bytes):
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.03}, {"params": model[2].parameters()}]
    optimizer = kind(groups, **{"lr": 0.05, **options})
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    statistics = {
        "product": lambda p: p["0.weight"].square().sum() * p["2.bias"].sum(),
        "w": lambda p: p["2.weight"].norm(),
    }
    expected = []
    with tl.track(model, optimizer, slow_variable(statistics), max_bytes=max_bytes) as tracker:

        def note():
            y = {
                id(p): slow(p, group, optimizer.state[p])
                for group in optimizer.param_groups
                for p in group["params"]
            }
            first, bias, second = (
                y[id(p)] for p in (model[0].weight, model[2].bias, model[2].weight)
            )
            expected.append([first.square().sum() * bias.sum(), second.norm()])

        note()
        for number in range(7):
            if number == 4:  # all of it in other memory
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            x = torch.randn(2, 5, generator=generator(number), dtype=torch.float64)
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            note()
            schedule.step()
    values = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(tracker.trajectory().values, values)


def test_which_adams_have_one():
    """Neither what is derived from Adam, nor complex parameters."""

    class Other(torch.optim.Adam):
        pass

    model, statistics = network(), slow_variable({"norm": lambda p: p["0.weight"].norm()})
    with pytest.raises(ValueError, match=r"SGD, Adam or AdamW for .* got Other"):
        tl.track(model, Other(model.parameters()), statistics)
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = torch.optim.Adam([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(TypeError, match="expected real parameters"):
        slow_value(p, optimizer.param_groups[0], optimizer.state[p])
