"""What a row is made of: the model's state right after its step, and of nothing else."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import torchlimits as tl
from torchlimits.record import trial

X = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
Y = torch.randn(16, 2, generator=torch.Generator().manual_seed(2))


def network(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *middle, nn.Tanh(), nn.Linear(4, 2))


def train(model, optimizer, steps=8, each=None):
    for step in range(steps):
        optimizer.zero_grad()
        (model(X) - Y).square().mean().backward()
        optimizer.step()
        if each is not None:
            each(step + 1)


def recorded(model, optimizer, statistics, naive, steps=8, **options):
    """The trajectory of a training, and what `naive` found after each of its steps."""
    tracker = tl.track(model, optimizer, statistics, **options)
    rows = [naive()]
    train(model, optimizer, steps, lambda step: rows.append(naive()))
    return tracker.trajectory(), rows


BOTH = pytest.mark.parametrize("max_bytes", [2**26, 1], ids=["ring", "hook"])


# --- buffers ---------------------------------------------------------------------------------


@BOTH
def test_buffers_are_those_of_the_step(max_bytes):
    """An evaluation-mode loss through functional_call; that of the last buffers is far off."""
    model = network(nn.BatchNorm1d(4, momentum=0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(p):
        model.eval()
        value = (functional_call(model, p, (X,)) - Y).square().mean()
        model.train()
        return value

    def naive():
        model.eval()
        with torch.no_grad():
            value = float((model(X) - Y).square().mean())
        model.train()
        return value, model[1].running_mean.clone(), int(model[1].num_batches_tracked)

    statistics = {
        "loss": loss,
        "mean": lambda p: p["1.running_mean"],
        "batches": lambda p: p["1.num_batches_tracked"],
    }
    path, rows = recorded(model, optimizer, statistics, naive, max_bytes=max_bytes)
    losses, means, batches = zip(*rows, strict=True)
    torch.testing.assert_close(path["loss"], torch.tensor(losses).double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(path.values[:, 1:5], torch.stack(means).double())
    assert path["batches"].tolist() == list(batches)
    assert path["batches"].tolist() == list(range(9))


@BOTH
def test_a_buffer_that_a_module_replaces_at_every_step_is_followed(max_bytes):
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.register_buffer("average", torch.zeros(2))

        def forward(self, x):
            y = self.layer(x)
            self.average = 0.5 * self.average + y.detach().mean(0)
            return y

    model = Average()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = {"average": lambda p: p["average"]}
    path, rows = recorded(
        model, optimizer, statistics, lambda: model.average.clone(), max_bytes=max_bytes
    )
    torch.testing.assert_close(path.values, torch.stack(rows).double())


def test_to_iterate_gives_parameters_and_floating_point_buffers():
    model = network(nn.BatchNorm1d(4))
    found = []

    def names(p):
        found.append((type(p), list(p), len(p)))
        return sum(x.sum() for x in p.values())

    tl.track(model, torch.optim.SGD(model.parameters(), lr=0.1), {"names": names})
    expected = [n for n, _ in model.named_parameters()]
    expected += ["1.running_mean", "1.running_var"]
    assert sorted(found[0][1]) == sorted(expected)
    assert found[-1] == (dict, found[-1][1], len(expected))
    assert sorted(found[-1][1]) == sorted(expected)


# --- gradients and optimizer state -----------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_gradients_are_those_that_the_step_used(kind, max_bytes):
    model = network()
    optimizer = kind(model.parameters(), lr=0.1)
    statistics = {"g": lambda p: p["0.weight.grad"].norm(), "w": lambda p: p["2.bias"]}
    path, rows = recorded(
        model, optimizer, statistics,
        lambda: torch.nan if model[0].weight.grad is None else float(model[0].weight.grad.norm()),
        max_bytes=max_bytes,
    )  # fmt: skip
    torch.testing.assert_close(
        path["g"], torch.tensor(rows).double(), rtol=1e-6, atol=0, equal_nan=True
    )
    assert path["g"].isnan().tolist() == [True] + [False] * 8
    assert not path["w[0]"].isnan().any()


def test_a_gradient_from_before_the_start_is_none_of_step_0():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (model(X) - Y).square().mean().backward()
    tracker = tl.track(model, optimizer, {"g": lambda p: p["0.weight.grad"].norm()})
    assert tracker.trajectory()["g"].isnan().all()


@BOTH
def test_a_parameter_that_a_step_does_not_use_has_no_gradient_there(max_bytes):
    """And a statistic that fails at NaN is not asked."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = {"g": lambda p: torch.linalg.svdvals(p["0.weight.grad"])[0]}
    tracker = tl.track(model, optimizer, statistics, max_bytes=max_bytes)
    for step in range(6):
        optimizer.zero_grad()
        source = model[2].weight.sum() if step % 2 else model(X).sum()
        source.backward()
        optimizer.step()
    assert tracker.trajectory()["g"].isnan().tolist() == [
        True,
        False,
        True,
        False,
        True,
        False,
        True,
    ]


@BOTH
def test_a_gradient_that_is_infinite_ends_the_record(max_bytes):
    """NaN is allowed only where there is no gradient."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(
        model, optimizer, {"g": lambda p: p["0.weight.grad"].sum()}, max_bytes=max_bytes
    )
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.step()
    model[0].weight.grad = torch.full_like(model[0].weight, torch.nan)

    def step():
        optimizer.step()
        tracker.flush()

    with pytest.raises(tl.NonFiniteStatistic, match="g is nan after step 2"):
        step()
    assert tracker.trajectory()["g"][1:].tolist() == [12.0]


STATES = {
    torch.optim.Adam: ["exp_avg", "exp_avg_sq", "step"],
    torch.optim.AdamW: ["exp_avg", "exp_avg_sq"],
    torch.optim.RMSprop: ["square_avg"],
    torch.optim.Adagrad: ["sum"],
    torch.optim.Adafactor: ["row_var", "col_var"],
}


@BOTH
@pytest.mark.parametrize("kind", list(STATES), ids=lambda kind: kind.__name__)
def test_optimizer_state_is_that_of_the_step(kind, max_bytes):
    model = network()
    optimizer = kind(model.parameters(), lr=0.1)
    keys = STATES[kind]
    statistics = {key: lambda p, key=key: p[f"0.weight.{key}"].sum() for key in keys}

    def naive():
        state = optimizer.state.get(model[0].weight) or {key: torch.zeros(()) for key in keys}
        return torch.stack([state[key].sum().double() for key in keys])

    tracker = tl.track(model, optimizer, statistics, max_bytes=max_bytes)
    rows = [] if kind is torch.optim.Adagrad else [torch.zeros(len(keys)).double()]
    if not rows:
        rows = [naive()]  # Adagrad has its state before the first step
    train(model, optimizer, 8, lambda step: rows.append(naive()))
    torch.testing.assert_close(tracker.trajectory().values, torch.stack(rows), rtol=1e-6, atol=0)


def test_momentum_that_there_is_none_of_is_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"asked for parameter '0.weight.momentum_buffer'"):
        tl.track(model, optimizer, {"v": lambda p: p["0.weight.momentum_buffer"].norm()})


def test_the_gradient_that_a_copy_does_not_have_is_told_of():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"p\['<its name>.grad'\]"):
        tl.track(model, optimizer, {"v": lambda p: p["0.weight"].grad.norm()})


# --- what is in the place of a parameter -----------------------------------------------------


@BOTH
def test_data_of_another_layout_at_the_same_address(max_bytes):
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, {"w": lambda p: p["weight"]}, max_bytes=max_bytes)
    rows = [model.weight.detach().clone()]
    for _ in range(4):
        model.weight.data = model.weight.data.t()
        optimizer.step()
        rows.append(model.weight.detach().clone())
    expected = torch.stack(rows).double().flatten(1)
    assert torch.equal(tracker.trajectory().values, expected)


def test_data_of_another_shape_is_refused():
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, {"w": lambda p: p["weight"]})
    model.weight.data = model.weight.data[:, :2]
    with pytest.raises(ValueError, match="changed shape"):
        optimizer.step()
    assert len(tracker.trajectory()) == 1


@BOTH
def test_parameters_added_later_are_followed(max_bytes):
    """By a statistic over all there are; one that would change its shape is refused."""
    model = nn.Sequential(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = {"total": lambda p: sum(x.square().sum() for x in p.values())}
    each = {"each": lambda p: torch.stack([x.square().sum() for x in p.values()])}
    tracker = tl.track(model, optimizer, total, max_bytes=max_bytes)
    shaped = tl.track(model, optimizer, each, max_bytes=max_bytes)

    def naive():
        return float(sum(x.detach().square().sum() for x in model.parameters()))

    rows = [naive()]
    optimizer.step()
    rows.append(naive())
    new = nn.Linear(2, 2)
    model.append(new)
    optimizer.add_param_group({"params": list(new.parameters())})
    with pytest.raises(ValueError, match="changed shape"):
        optimizer.step()
    rows.append(naive())
    optimizer.step()
    rows.append(naive())
    torch.testing.assert_close(
        tracker.trajectory()["total"], torch.tensor(rows).double(), rtol=1e-6, atol=0
    )
    assert len(shaped.trajectory()) == 2


# --- what statistics may be given, and do ----------------------------------------------------


def test_torch_func_takes_what_a_statistic_is_given():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(p):
        return (functional_call(model, p, (X,)) - Y).square().mean()

    def gradient(p):
        return torch.func.grad(loss)(p)["0.weight"].norm()

    def naive():
        return float(
            torch.autograd.grad(loss(dict(model.named_parameters())), model[0].weight)[0].norm()
        )

    path, rows = recorded(model, optimizer, {"g": gradient}, naive)
    torch.testing.assert_close(path["g"], torch.tensor(rows).double(), rtol=1e-5, atol=0)


def live_weight(model):
    return lambda p: (p["0.weight"] * model[0].weight).sum()


def live_data(model):
    return lambda p: (p["0.weight"] * model[0].weight.data).sum()


def live_numpy(model):
    return lambda p: p["0.weight"].sum() * float(model[0].weight.detach().numpy()[0, 0])


def live_gradient(model):
    return lambda p: p["0.weight"].sum() * model[0].weight.grad.sum()


def live_buffer(model):
    return lambda p: p["0.weight"].sum() * model[1].running_var.mean()


def live_module(model):
    return lambda p: p["0.weight"].sum() * model(X).sum()


def partly_live(model):
    # a forward pass with some parameters only: the others are the model's own
    return lambda p: functional_call(model, {"0.weight": p["0.weight"]}, (X,)).sum()


@pytest.mark.parametrize(
    "statistic",
    [live_weight, live_data, live_numpy, live_gradient, live_buffer, live_module, partly_live],
)
def test_what_reads_the_live_model_is_refused(statistic):
    model = network(nn.BatchNorm1d(4))
    model(X).sum().backward()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'live' that reads the model's own .*of_model\(f\)"):
        tl.track(model, optimizer, {"live": statistic(model)})
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    # no hook is left: training goes on without records
    assert not optimizer._optimizer_step_post_hooks


def test_optimizer_state_beside_the_argument_is_refused():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    train(model, optimizer, 1)
    statistic = {"live": lambda p: p["0.bias"].sum() * optimizer.state[model[0].bias]["step"]}
    with pytest.raises(ValueError, match="reads the model's own"):
        tl.track(model, optimizer, statistic)


def test_another_model_and_constants_are_the_users_own():
    model, teacher = network(), network()
    constant = torch.randn(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = {
        "teacher": lambda p: (p["0.weight"] * teacher[0].weight).sum(),
        "constant": lambda p: (p["0.weight"] * constant).sum(),
    }
    assert len(tl.track(model, optimizer, statistics).trajectory()) == 1


@pytest.mark.parametrize(
    ("layer", "mode"), [(nn.Dropout(), True), (nn.Dropout(), False), (nn.BatchNorm1d(4), False)]
)
def test_a_forward_pass_in_whatever_mode_the_model_is_in_is_refused(layer, mode):
    model = network(layer).train(mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistic = {"loss": lambda p: functional_call(model, p, (X,)).square().mean()}
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"of_model|reads the model's own"):
        tl.track(model, optimizer, statistic)
    assert all(module.training == mode for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def through_numpy(p):
    weight = p["0.weight"].numpy()
    weight -= weight.mean()
    return torch.tensor(1.0)


def through_data(p):
    p["0.weight"].data.mul_(0.0)
    return torch.tensor(1.0)


def in_place(p):
    return p["0.weight"].mul_(2.0).sum()


@BOTH
@pytest.mark.parametrize("statistic", [through_numpy, through_data, in_place])
def test_what_changes_its_argument_is_refused_and_has_changed_nothing(statistic, max_bytes):
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="leave the parameters alone"):
        tl.track(model, optimizer, {"a": statistic}, max_bytes=max_bytes)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def converged(make):
    """A network whose power iteration changes no digit any more, as long as nothing trains."""
    model = nn.Sequential(make(nn.Linear(3, 4)), nn.Linear(4, 2))
    for _ in range(500):
        model(X)
    return model


UNCHANGED = {
    "zeros": (network, lambda model: lambda p: p["0.bias"].mul_(2.0).sum()),
    "zeros by .data": (network, lambda model: lambda p: p["0.bias"].data.neg_().sum()),
    "zeros by out=": (
        network, lambda model: lambda p: torch.mul(p["0.bias"], 2, out=p["0.bias"]).sum(),
    ),
    "power iteration": (
        lambda: converged(nn.utils.parametrizations.spectral_norm),
        lambda model: lambda p: functional_call(model, p, (X,)).square().mean(),
    ),
    "power iteration in the other mode": (
        lambda: converged(nn.utils.parametrizations.spectral_norm).eval(),
        lambda model: lambda p: functional_call(model, p, (X,)).square().mean(),
    ),
    "older power iteration": (
        lambda: converged(nn.utils.spectral_norm),
        lambda model: lambda p: functional_call(model, p, (X,)).square().mean(),
    ),
}  # fmt: skip


@BOTH
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("make", "statistic"), UNCHANGED.values(), ids=UNCHANGED)
def test_what_writes_into_its_argument_is_refused_where_that_changes_nothing_yet(
    make, statistic, max_bytes
):
    """Later it would: rows would be wrong, or those of the training itself."""
    torch.manual_seed(0)
    model = make()
    nn.init.zeros_(model[0].bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"leave the parameters alone.* in place: .*of_model\(f"):
        tl.track(model, optimizer, {"a": statistic(model)}, max_bytes=max_bytes)


@BOTH
def test_the_check_sees_what_such_a_statistic_would_do(max_bytes, monkeypatch):
    """Negative control: the same without the refusal."""
    monkeypatch.setattr(trial, "_written", lambda function, args, kwargs: iter(()))

    def run(tracked):
        torch.manual_seed(0)
        model = converged(nn.utils.parametrizations.spectral_norm)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        direction = "0.parametrizations.weight.0._u"
        statistics = {
            "loss": lambda p: functional_call(model, p, (X,)).square().mean(),
            "u": lambda p: p[direction],
        }
        tracker = tl.track(model, optimizer, statistics, max_bytes=max_bytes) if tracked else None
        rows = [model.state_dict()[direction].clone()]
        train(model, optimizer, 3, lambda step: rows.append(model.state_dict()[direction].clone()))
        found = tracker.trajectory().values[:, 1:] if tracker else None
        return torch.stack(rows).double(), found

    (alone, _), (rows, found) = run(False), run(True)
    # with a ring, rows are wrong; in the hook, the training is another one
    assert not torch.equal(rows, found) or not torch.equal(rows, alone)


@BOTH
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.utils.parametrizations.spectral_norm])
def test_a_forward_pass_in_training_mode_updates_the_buffers_of_a_copy(kind, max_bytes):
    def run(tracked):
        torch.manual_seed(0)
        model = network(nn.BatchNorm1d(4)) if kind is nn.BatchNorm1d else converged(kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = tl.statistics.of_model(lambda m: (m(X) - Y).square().mean(), train=True)
        if tracked:
            tracker = tl.track(model, optimizer, {"loss": loss}, max_bytes=max_bytes)
        # what the step begins with is what the row before it is evaluated with
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            value = (model(X) - Y).square().mean()
            losses.append(value.item())
            value.backward()
            optimizer.step()
        if tracked:
            rows = tracker.trajectory()["loss"][:-1]
            torch.testing.assert_close(rows, torch.tensor(losses).double(), rtol=1e-5, atol=0)
        return model.state_dict()

    alone, with_rows = run(False), run(True)
    for name, value in alone.items():
        assert torch.equal(value, with_rows[name]), name


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [
    lambda: network(nn.BatchNorm1d(4)),
    lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 2)),
])  # fmt: skip
def test_a_forward_pass_that_updates_buffers_is_refused_and_has_changed_nothing(make, training):
    torch.manual_seed(0)
    model = make().train(training)
    with torch.no_grad():
        model[0].bias.add_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"of_model"):
        tl.track(model, optimizer, {"a": lambda p: functional_call(model, p, (X,)).mean()})
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_changes_the_model_is_refused_and_undone():
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def meddling(p):
        model[0].weight.data.numpy()[:] = 0.0
        model.eval()
        return p["0.weight"].sum()

    with pytest.raises(ValueError, match=r"reads the model's own|changed"):
        tl.track(model, optimizer, {"a": meddling})
    assert model.training
    assert model[0].weight.grad is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


# --- random numbers --------------------------------------------------------------------------


def draws(p):
    noise = torch.randn(3) + np.random.normal() + random.random()  # noqa: NPY002
    return p["0.weight"].sum() * noise


def with_noise(flushes=0, **options):
    """A training with Dropout, recorded or not; what it and the generators have come to."""
    model = network(nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    tracker = tl.track(model, optimizer, {"noise": draws}, **options) if flushes else None
    train(model, optimizer, 12, lambda step: tracker and step % flushes == 0 and tracker.flush())
    after = [*model.parameters(), torch.rand(3), torch.tensor(np.random.rand(3))]  # noqa: NPY002
    # not Python's: what checks types in tests draws from it
    return after, tracker and tracker.trajectory().values


@BOTH
def test_statistics_that_draw_change_neither_training_nor_each_other(max_bytes):
    """And their rows do not depend on when they are flushed."""
    alone, _ = with_noise()
    expected = None
    for flushes in (1, 3, 100):
        after, rows = with_noise(flushes, max_bytes=max_bytes)
        assert all(map(torch.equal, after, alone))
        assert len(rows.unique(dim=0)) == 13
        expected = rows if expected is None else expected
        assert torch.equal(rows, expected)


# --- surroundings ----------------------------------------------------------------------------


@BOTH
def test_inference_mode_and_defaults_do_not_matter(max_bytes):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistic = {"w": lambda p: p["0.weight"].sum() + torch.zeros(()) + torch.tensor(0.1).double()}
    with torch.inference_mode():
        tracker = tl.track(model, optimizer, statistic, max_bytes=max_bytes)
    rows = [float(model[0].weight.sum())]
    train(model, optimizer, 5, lambda step: rows.append(float(model[0].weight.sum())))
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float16)
    try:
        with torch.inference_mode():
            path = tracker.trajectory()
        assert torch.get_default_dtype() == torch.float16
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(path["w"], torch.tensor(rows).double() + 0.1, rtol=1e-6, atol=1e-6)
    train(model, optimizer, 2)
    assert len(tracker.trajectory()) == 8


# --- other objects ---------------------------------------------------------------------------


def test_what_trajectory_returns_is_the_users_own():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, {"w": lambda p: p["0.weight"]})
    train(model, optimizer, 3)
    expected = tracker.trajectory().values.clone()
    path = tracker.trajectory()
    path.values.zero_()
    path.times.zero_()
    assert torch.equal(tracker.trajectory().values, expected)
    assert torch.equal(tracker.trajectory().times, torch.arange(4).double() * 0.1)


def test_a_model_that_holds_its_tracker_can_be_saved(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.tracker = tl.track(model, optimizer, {"w": lambda p: p["0.weight"].norm()})
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert loaded.tracker is None
    assert torch.equal(loaded[0].weight, model[0].weight)
    assert copy.deepcopy(model).tracker is model.tracker
    train(model, optimizer, 2)
    assert len(model.tracker.trajectory()) == 3


def test_a_value_on_another_device_is_recorded():
    """A statistic that makes one of its values on the CPU at a later step, by .item() for one."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def norm(p):
        if float(p["0.weight"].sum()) == float(before.sum()):
            return p["0.weight"].norm()
        return torch.tensor(p["0.weight"].norm().item(), dtype=torch.float64)

    before = model[0].weight.detach().clone()
    path, rows = recorded(
        model, optimizer, {"n": norm}, lambda: float(model[0].weight.detach().norm())
    )
    torch.testing.assert_close(path["n"], torch.tensor(rows).double(), rtol=1e-6, atol=0)


# --- copies ----------------------------------------------------------------------------------


def test_buffers_and_gradients_of_copies():
    modules = []
    for seed in range(3):
        torch.manual_seed(seed)
        modules.append(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    model = tl.replicate(modules)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = {
        "mean": lambda p: p["1.running_mean"],
        "g": lambda p: p["0.weight.grad"].norm(),
    }
    tracker = tl.track(model, optimizer, statistics)
    singles = [copy.deepcopy(one) for one in modules]
    for _ in range(4):
        optimizer.zero_grad()
        model(X.expand(3, 16, 3)).square().mean((1, 2)).sum().backward()
        optimizer.step()
    path = tracker.trajectory()
    assert path.values.shape == (3, 5, 3)
    for run, one in enumerate(singles):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for step in range(1, 5):
            optimizer.zero_grad()
            one(X).square().mean().backward()
            optimizer.step()
            expected = torch.tensor(
                [*one[1].running_mean.tolist(), float(one[0].weight.grad.norm())]
            )
            torch.testing.assert_close(
                path.values[run, step], expected.double(), rtol=1e-4, atol=1e-5
            )
