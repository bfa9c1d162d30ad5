"""Limit time: whose learning rates add up to it, and rows while it stands still."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import torchlimits as tl

STATISTICS = {"weight": lambda p: p["weight"], "bias": lambda p: p["bias"]}


class Plain(torch.optim.Optimizer):
    """Moves parameters by any rule of its own."""

    def __init__(self, params, defaults):
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(0.1)


def layer():
    torch.manual_seed(0)
    return nn.Linear(3, 2, dtype=torch.float64)


def take(model, *optimizers, count=1):
    for _ in range(count):
        model.zero_grad()
        model(torch.ones(4, 3, dtype=torch.float64)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def groups(model, weight, bias, **options):
    return [
        {"params": [model.weight], "lr": weight, **options},
        {"params": [model.bias], "lr": bias},
    ]


def times(tracker):
    return tracker.trajectory().times.tolist()


# --- which group -------------------------------------------------------------------------------


def frozen(model):
    model.weight.requires_grad_(False)


CHOICES = {
    "the first": (0.1, 0.2, {}, None, 0.1),
    "with a learning rate": (0.0, 0.2, {}, None, 0.2),
    "that requires a gradient": (0.1, 0.2, {}, frozen, 0.2),
    "without any, one that a scheduler raises": (0.0, 0.0, {"initial_lr": 0.1}, None, 0.0),
    "with None": (None, 0.2, {}, None, 0.2),
}


@pytest.mark.parametrize(("weight", "bias", "more", "act", "rate"), CHOICES.values(), ids=CHOICES)
def test_the_first_group_that_is_trained_counts(weight, bias, more, act, rate):
    model = layer()
    if act is not None:
        act(model)
    optimizer = Plain(groups(model, weight, bias, **more), {})
    tracker = tl.track(model, optimizer, STATISTICS)
    optimizer.step()
    assert times(tracker) == [0.0, rate]


def test_among_groups_that_stand_still_a_scheduler_tells_which_will_move():
    model = layer()
    optimizer = torch.optim.SGD(groups(model, 0.0, 0.3))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda s: s, lambda s: s / 4])
    tracker = tl.track(model, optimizer, STATISTICS)
    expected = [0.0]
    for _ in range(4):
        expected.append(expected[-1] + optimizer.param_groups[1]["lr"])
        take(model, optimizer)
        scheduler.step()
    assert times(tracker) == pytest.approx(expected)
    assert tracker.time == pytest.approx(0.3 / 4 * (0 + 1 + 2 + 3))


def test_a_parameter_can_be_chosen():
    model = layer()
    optimizer = torch.optim.SGD(groups(model, 0.1, 0.2))
    tracker = tl.track(model, optimizer, STATISTICS, time_of="bias")
    take(model, optimizer, count=2)
    assert times(tracker) == [0.0, 0.2, 0.4]
    assert tracker.trajectory().metadata["parameters"]["time_of"] == "bias"
    with pytest.raises(ValueError, match=r"time_of as one of .*'weight', 'bias'\], got 'wieght'"):
        tl.track(model, optimizer, STATISTICS, time_of="wieght")
    with pytest.raises(ValueError, match=r"that the optimizer holds, \['weight'\], got 'bias'"):
        tl.track(model, torch.optim.SGD([model.weight]), STATISTICS, time_of="bias")
    with pytest.raises(TypeError, match=r"time_of as the name of a parameter.* got int"):
        tl.track(model, optimizer, STATISTICS, time_of=1)


def test_a_parameter_is_chosen_by_the_users_own_name():
    model = torch.compile(layer(), backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert tl.track(model, optimizer, STATISTICS, time_of="bias").time == 0.0


def test_the_learning_rate_of_one_of_several_optimizers():
    model = layer()
    pair = torch.optim.SGD([model.weight], lr=0.1), torch.optim.SGD([model.bias], lr=0.2)
    first, chosen = (tl.track(model, pair, STATISTICS, time_of=n) for n in (None, "bias"))
    take(model, *pair, count=2)
    assert (times(first), times(chosen)) == ([0.0, 0.1, 0.2], [0.0, 0.2, 0.4])


# --- groups change -----------------------------------------------------------------------------


def test_a_group_that_is_removed():
    """By default the next one counts; of a chosen parameter, limit time stands still."""
    model = layer()
    optimizer = torch.optim.SGD(groups(model, 0.1, 0.2))
    trackers = [tl.track(model, optimizer, STATISTICS, time_of=name) for name in (None, "weight")]
    take(model, optimizer)
    del optimizer.param_groups[0]
    with pytest.warns(RuntimeWarning) as warned:
        take(model, optimizer)
    assert [str(w.message).split(":")[0] for w in warned] == [
        "limit time was the sum of the learning rates of 'weight', which the optimizer does not "
        "hold any more",
        "limit time is the sum of the learning rates of 'weight', which the optimizer does not "
        "hold any more",
    ]
    take(model, optimizer)
    assert times(trackers[0]) == pytest.approx([0.0, 0.1, 0.3, 0.5])
    assert times(trackers[1]) == pytest.approx([0.0, 0.1, 0.1, 0.1])
    for tracker in trackers:
        assert tracker.trajectory().steps.tolist() == [0, 1, 2, 3]
        assert torch.equal(tracker.trajectory()["bias[0]"][-1], model.bias[0].detach())
        tracker.close()


@pytest.mark.parametrize("change", ["removed", "reordered", "another in front"])
def test_what_becomes_of_the_groups_is_saved_at_the_end(tmp_path, change):
    """All rows, with the learning rates of the parameter that counted from the beginning."""
    model, other = layer(), layer()
    optimizer = torch.optim.SGD([*groups(model, 0.1, 0.2)])
    tracker = tl.track(model, optimizer, STATISTICS, path=tmp_path / "u.npz")
    take(model, optimizer)
    if change == "removed":
        del optimizer.param_groups[1]
    elif change == "reordered":
        optimizer.param_groups.reverse()
    else:
        optimizer.add_param_group({"params": list(other.parameters()), "lr": 5.0})
        optimizer.param_groups.insert(0, optimizer.param_groups.pop())
    take(model, optimizer, count=3)
    tracker.close()
    path = tl.Trajectory.load(tmp_path / "u.npz")
    assert path.times.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(path.final, expected)


def test_a_removed_group_that_comes_back():
    model = layer()
    optimizer = torch.optim.SGD(groups(model, 0.1, 0.2))
    tracker = tl.track(model, optimizer, STATISTICS, time_of="weight")
    away = optimizer.param_groups.pop(0)
    with pytest.warns(RuntimeWarning, match="stands still"):
        take(model, optimizer)
    optimizer.param_groups.append(away)
    take(model, optimizer)
    assert times(tracker) == [0.0, 0.0, 0.1]


def test_an_optimizer_that_holds_nothing_any_more():
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, STATISTICS)
    optimizer.param_groups.clear()
    with pytest.warns(RuntimeWarning, match="stands still"):
        take(model, optimizer, count=3)
    assert tracker.trajectory().steps.tolist() == [0, 1, 2, 3]
    assert times(tracker) == [0.0] * 4


def test_a_parameter_that_is_replaced_is_followed_by_its_name():
    """Into another group, while the one that it replaces stays where it was."""
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, STATISTICS)
    take(model, optimizer)
    model.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    optimizer.add_param_group({"params": [model.weight], "lr": 0.3})
    take(model, optimizer, count=2)
    # the step at which it is found ends with the old learning rate
    assert times(tracker) == pytest.approx([0.0, 0.1, 0.2, 0.5])
    assert torch.equal(tracker.trajectory().final[:6], model.weight.detach().flatten())


# --- rates -------------------------------------------------------------------------------------


def test_a_learning_rate_that_is_always_zero():
    """Rows go on: other things may move the parameters."""
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    tracker = tl.track(model, optimizer, STATISTICS)
    for _ in range(3):
        take(model, optimizer)
        with torch.no_grad():
            model.bias.add_(1.0)
    path = tracker.trajectory()
    assert path.steps.tolist() == [0, 1, 2, 3]
    assert path.times.tolist() == [0.0] * 4
    assert path["bias[0]"].diff().tolist() == pytest.approx([0.0, 1.0, 1.0])


def test_a_learning_rate_too_small_to_change_the_sum():
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    tracker = tl.track(model, optimizer, STATISTICS)
    take(model, optimizer)
    optimizer.param_groups[0]["lr"] = 1e-17
    take(model, optimizer, count=2)
    assert times(tracker) == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("rate", [None, "missing"])
def test_no_learning_rate_at_all(rate):
    model = layer()
    options = {"beta": 0.5} if rate == "missing" else {"beta": 0.5, "lr": None}
    optimizer = Plain(model.parameters(), options)
    says = r"only \['beta'\]" if rate == "missing" else "lr=None"
    with pytest.warns(RuntimeWarning, match=rf"of 'weight' has no learning rate 'lr' \({says}\)"):
        tracker = tl.track(model, optimizer, STATISTICS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(model, optimizer, count=3)
    path = tracker.trajectory()
    assert (path.steps.tolist(), path.times.tolist()) == ([0, 1, 2, 3], [0.0] * 4)
    assert "lr" not in path.metadata["parameters"]


def test_adafactor_with_relative_steps():
    transformers = pytest.importorskip("transformers")
    model = layer()
    alone = copy.deepcopy(model)

    def optimizer(model):
        return transformers.Adafactor(
            model.parameters(), lr=None, relative_step=True, warmup_init=True
        )

    chosen, other = optimizer(model), optimizer(alone)
    with pytest.warns(RuntimeWarning, match=r"\(lr=None\): limit time"):
        tracker = tl.track(model, chosen, STATISTICS)
    seen = [torch.cat([p.detach().flatten() for p in model.parameters()])]
    for _ in range(4):
        take(model, chosen)
        take(alone, other)
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(model.weight, alone.weight)
    assert torch.equal(tracker.trajectory().values, torch.stack(seen))
    assert tracker.trajectory().steps.tolist() == [0, 1, 2, 3, 4]
    assert times(tracker) == [0.0] * 5


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf, torch.tensor(-1.0)])
def test_learning_rates_that_none_has_are_refused(rate):
    model = layer()
    with pytest.raises(ValueError, match="expected a finite learning rate >= 0, got lr="):
        tl.track(model, Plain(model.parameters(), {"lr": rate}), STATISTICS)


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf, None, "1"])
def test_learning_rates_that_become_none_add_nothing_and_are_told_once(rate):
    model = layer()
    optimizer = Plain(model.parameters(), {"lr": 0.1})
    tracker = tl.track(model, optimizer, STATISTICS)
    take(model, optimizer)
    optimizer.param_groups[0]["lr"] = rate
    if rate == "1":  # a number after all
        take(model, optimizer, count=2)
        assert times(tracker) == [0.0, 0.1, 1.1, 2.1]
        return
    with pytest.warns(RuntimeWarning, match="at step 2: it adds nothing to limit time") as warned:
        take(model, optimizer, count=2)
    assert len(warned) == 1
    optimizer.param_groups[0]["lr"] = 0.2
    take(model, optimizer)
    path = tracker.trajectory()
    assert path.times.tolist() == pytest.approx([0.0, 0.1, 0.1, 0.1, 0.3])
    assert path.steps.tolist() == [0, 1, 2, 3, 4]


# --- files and states --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".rows"])
def test_repeated_times_on_disk_and_in_a_state(tmp_path, suffix):
    """Written while it runs, saved, loaded and resumed."""

    def run(tracker, model, optimizer, rates):
        for rate in rates:
            optimizer.param_groups[0]["lr"] = rate
            take(model, optimizer)

    rates = [0.0, 0.0, 0.1, 0.0, 0.2, 0.0]
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    tracker = tl.track(model, optimizer, STATISTICS, path=tmp_path / f"u{suffix}")
    run(tracker, model, optimizer, rates[:4])
    state = copy.deepcopy((tracker.state_dict(), model.state_dict()))
    run(tracker, model, optimizer, rates[4:])
    tracker.close()
    whole = tl.Trajectory.load(tmp_path / f"u{suffix}")
    assert whole.times.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.1, 0.1, 0.3, 0.3])
    assert whole.steps.tolist() == list(range(7))
    model = layer()
    model.load_state_dict(state[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    resumed = tl.track(model, optimizer, STATISTICS)
    resumed.load_state_dict(state[0])
    run(resumed, model, optimizer, rates[4:])
    again = resumed.trajectory()
    assert torch.equal(again.times, whole.times)
    assert torch.equal(again.values, whole.values)
