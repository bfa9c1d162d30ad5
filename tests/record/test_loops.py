"""Training loops of every shape: recorded is what a loop sees by hand, and nothing else changes."""

import copy
import queue
import sys
import threading
import warnings
from dataclasses import dataclass, field

import pytest
import torch
from optimizers import SAM, Clipped, Halving, Lookahead, ScheduleFree
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torchlimits as tl

#: entries, which must come out bit for bit, and a sum, whose last digits may differ
STATISTICS = {
    "weight": lambda p: p["weight"],
    "bias": lambda p: p["bias"],
    "norm": lambda p: p["weight"].norm(),
}
STEPS = 6


@dataclass
class Watch:
    """Sees a loop's steps by hand and, if ``tracked``, through a tracker as well."""

    tracked: bool
    options: dict = field(default_factory=dict)
    tracker: tl.Tracker | None = None
    steps: int = 0
    time: float = 0.0
    tolerance: float = 1e-12

    def begin(self, model, optimizer, statistics=STATISTICS, own=None):
        """`own`: the user's own module, if `model` is a wrapper."""
        self.model, self.statistics = own or model, statistics
        self.rows = [(0, 0.0, self._values())]
        if self.tracked:
            self.tracker = tl.track(model, optimizer, statistics, **self.options)

    def stepped(self, lr):
        """The loop has made a step."""
        self.steps += 1
        self.time += lr
        self.rows.append((self.steps, self.time, self._values()))

    def _values(self):
        parameters = {n: p.detach() for n, p in self.model.named_parameters()}
        if any(p.dtype == torch.float32 for p in parameters.values()):
            self.tolerance = 1e-6
        parameters = {n: p.double() for n, p in parameters.items()}
        return torch.cat([f(parameters).flatten() for f in self.statistics.values()])

    def weights(self):
        return [p.detach() for p in self.model.parameters()]

    def check(self):
        path = self.tracker.trajectory()
        steps, times, values = zip(*self.rows, strict=True)
        assert self.tracker.step == self.steps
        assert path.steps.tolist() == list(steps)
        torch.testing.assert_close(
            path.times, torch.tensor(times, dtype=torch.float64), rtol=1e-12, atol=0.0
        )
        expected = torch.stack(values)
        exact = [i for i, name in enumerate(path.names) if not name.startswith("norm")]
        assert torch.equal(path.values[:, exact], expected[:, exact])
        torch.testing.assert_close(path.values, expected, rtol=self.tolerance, atol=0.0)
        assert bool((path.values[0] != path.values[-1]).any())
        assert self.tracker.unseen() is None


def check(loop, **options):
    """A loop, without and with a tracker."""
    alone, watched = Watch(False), Watch(True, options)
    loop(alone)
    loop(watched)
    for one, other in zip(alone.weights(), watched.weights(), strict=True):
        assert torch.equal(one, other)
    watched.check()
    return watched


def layer(**options):
    torch.manual_seed(0)
    return nn.Linear(3, 2, **{"dtype": torch.float64, **options})


def batches(count=STEPS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 4, 3, generator=generator, dtype=dtype)


def backward(model, x, scale=1.0):
    (scale * model(x).square().mean()).backward()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.5, **options})


def train(watch, model, optimizer, lr=0.1, count=STEPS, act=None):
    """The plainest loop; ``act(step)`` comes after each step."""
    for step, x in enumerate(batches(count, next(model.parameters()).dtype), 1):
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()
        watch.stepped(lr)
        if act is not None:
            act(step)


# --- what counts as a step -------------------------------------------------------------------


def gradient_accumulation(watch):
    model = layer()
    optimizer = sgd(model)
    watch.begin(model, optimizer)
    for i, x in enumerate(batches(3 * STEPS + 1), 1):
        backward(model, x, 1 / 3)
        if i % 3 == 0:
            optimizer.step()
            watch.stepped(0.1)
            optimizer.zero_grad()


def grad_scaler(watch, fused=False):
    """The third step is skipped, because a gradient is infinite: no step of SGD."""
    model = layer(dtype=torch.float32)
    optimizer, scaler = sgd(model, fused=fused), torch.amp.GradScaler("cpu", init_scale=64.0)
    watch.begin(model, optimizer)
    for i, x in enumerate(batches(dtype=torch.float32)):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).float().square().mean() * (torch.inf if i == 2 else 1.0)
        scaler.scale(loss).backward()
        before = model.weight.clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, model.weight) == (i == 2)
        if i != 2:
            watch.stepped(0.1)


def grad_scaler_fused(watch):
    grad_scaler(watch, fused=True)


def zero_grad_to_none(watch, to_none=True):
    model = layer()
    optimizer = sgd(model)
    watch.begin(model, optimizer)
    for i, x in enumerate(batches()):
        optimizer.zero_grad(set_to_none=to_none)
        if i != 2:  # one step without a gradient: it is a step all the same
            backward(model, x)
        optimizer.step()
        watch.stepped(0.1)


def zero_grad_to_zero(watch):
    zero_grad_to_none(watch, to_none=False)


def closure(watch):
    model = layer()
    optimizer = sgd(model)
    watch.begin(model, optimizer)
    for x in batches():

        def evaluate(x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(evaluate)
        watch.stepped(0.1)


def lbfgs(watch):
    """Its step evaluates the closure several times, and is one step."""
    model = layer()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    watch.begin(model, optimizer)
    calls = []
    for x in batches():

        def evaluate(x=x):
            calls.append(x)
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(evaluate)
        watch.stepped(0.1)
    assert len(calls) > STEPS


def data_loader_with_workers(watch):
    model = layer()
    optimizer = sgd(model)
    loader = DataLoader(TensorDataset(batches(8).flatten(0, 1)), batch_size=4, num_workers=2)
    watch.begin(model, optimizer)
    for (x,) in loader:
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()
        watch.stepped(0.1)


def another_thread_trains(watch):
    """A thread loads, another one trains, and neither made the tracker."""
    model = layer()
    optimizer, loaded = sgd(model), queue.Queue(2)
    watch.begin(model, optimizer)

    def load():
        for x in [*batches(), None]:
            loaded.put(x)

    def consume():
        while (x := loaded.get()) is not None:
            optimizer.zero_grad()
            backward(model, x)
            optimizer.step()
            watch.stepped(0.1)

    threads = [threading.Thread(target=load), threading.Thread(target=consume)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- groups, optimizers, schedules -----------------------------------------------------------


def parameter_groups(watch):
    """Limit time is that of the first group with a parameter of the model."""
    model, other = layer(), layer()
    groups = [
        {"params": other.parameters(), "lr": 1.0},
        {"params": [model.weight], "lr": 0.2},
        {"params": [model.bias], "lr": 0.05, "weight_decay": 0.1},
    ]
    optimizer = torch.optim.SGD(groups)
    watch.begin(model, optimizer)
    train(watch, model, optimizer, 0.2)


def a_group_that_stands_still(watch):
    model = layer()
    groups = [{"params": [model.weight], "lr": 0.2}, {"params": [model.bias], "lr": 0.0}]
    optimizer = torch.optim.SGD(groups)
    watch.begin(model, optimizer)
    train(watch, model, optimizer, 0.2)


def a_group_added_later(watch):
    model = layer()
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    watch.begin(model, optimizer)

    def add(step):
        if step == 3:
            optimizer.add_param_group({"params": [model.bias], "lr": 0.01})

    train(watch, model, optimizer, act=add)


def a_frozen_backbone(watch):
    """Limit time is that of the first group that is trained."""
    model = layer()
    groups = [{"params": [model.bias], "lr": 0.0}, {"params": [model.weight], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups)
    watch.begin(model, optimizer)
    train(watch, model, optimizer, 0.2)


def a_warm_up_by_hand(watch):
    """From 0, by a loop that no scheduler announces."""
    model = layer()
    optimizer = sgd(model, lr=0.0)
    watch.begin(model, optimizer)
    for i, x in enumerate(batches()):
        optimizer.param_groups[0]["lr"] = 0.1 * max(0, i - 2)
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()
        watch.stepped(optimizer.param_groups[0]["lr"])


def groups_come_and_go(watch):
    """In front of the one that counts, behind it, in another order, and as other dicts."""
    model, other = layer(), layer()
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    watch.begin(model, optimizer)

    def change(step):
        groups = optimizer.param_groups
        if step == 1:
            optimizer.add_param_group({"params": [model.bias], "lr": 0.7})
        elif step == 2:
            groups.reverse()
        elif step == 3:
            optimizer.add_param_group({"params": [other.weight], "lr": 3.0})
            groups.insert(0, groups.pop())
        elif step == 4:
            optimizer.load_state_dict(optimizer.state_dict())
        else:
            del groups[0]

    train(watch, model, optimizer, count=5, act=change)


def two_optimizers_in_a_list(watch):
    """A step ends when the last one steps; the first one skips some, and steps twice at others."""
    model = layer()
    first = torch.optim.SGD([model.bias], lr=0.1)
    last = torch.optim.Adam([model.weight], lr=0.02)
    watch.begin(model, [first, last])
    for i, x in enumerate(batches()):
        model.zero_grad()
        backward(model, x)
        for _ in range(i % 3):
            first.step()
        last.step()
        watch.stepped(0.1)


def wrapped_by(make):
    def loop(watch):
        model = layer()
        optimizer = make(sgd(model))
        watch.begin(model, optimizer)
        train(watch, model, optimizer)
        if watch.tracked:
            facts = watch.tracker.trajectory().metadata["parameters"]
            assert facts["optimizer"] == make.__name__

    return loop


def a_wrapper_that_moves_on(watch):
    wrapped_by(Halving)(watch)


def lookahead(watch):
    wrapped_by(Lookahead)(watch)


def sam(watch, by_closure):
    """The optimizer that is tracked is the base, whose step ends each step of SAM."""
    model = layer()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    watch.begin(model, optimizer.base_optimizer)
    for x in batches():
        backward(model, x)
        if by_closure:
            optimizer.step(lambda x=x: backward(model, x))
        else:
            optimizer.first_step()
            backward(model, x)
            optimizer.second_step()
        watch.stepped(0.1)


def sam_in_two_steps(watch):
    sam(watch, by_closure=False)


def sam_by_closure(watch):
    sam(watch, by_closure=True)


def schedule_free(watch):
    """Rows are what is trained, whatever the evaluations in between switch to."""
    model = layer()
    optimizer = ScheduleFree(model.parameters(), lr=0.1)
    watch.begin(model, optimizer)

    def evaluate(step):
        if step % 2 == 0:
            optimizer.eval()
            optimizer.train()

    train(watch, model, optimizer, act=evaluate)
    optimizer.eval()


def averaged(watch):
    """The average of a model is another model."""
    model = layer()
    optimizer = sgd(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    watch.begin(model, optimizer)
    train(watch, model, optimizer, act=lambda step: average.update_parameters(model))


def a_subclass_that_calls_its_base(watch):
    """Both have hooks; it is one step, which ends with the subclass's own move."""
    model = layer()
    sgd(model)  # from here on the base calls hooks
    optimizer = Clipped(model.parameters(), lr=0.1)
    watch.begin(model, optimizer)
    train(watch, model, optimizer)


def learning_rate_as_a_tensor(watch):
    model = layer()
    lr = torch.tensor(0.1, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    watch.begin(model, optimizer)
    train(watch, model, optimizer)


def scheduled(watch, make):
    """Limit time is the sum of the rates that the steps had."""
    model = layer()
    optimizer = sgd(model)
    scheduler = make(optimizer)
    watch.begin(model, optimizer)
    for x in batches():
        optimizer.zero_grad()
        backward(model, x)
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        watch.stepped(lr)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step(*([1.0] if isinstance(scheduler, Plateau) else []))


Plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
SCHEDULERS = {
    "steps": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=STEPS + 1),
    "plateau": lambda o: Plateau(o, factor=0.5, patience=1),
    "restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_limit_time_is_the_sum_of_the_learning_rates(make):
    watched = check(lambda watch: scheduled(watch, make))
    assert len({round(step, 12) for step in watched.tracker.trajectory().times.diff().tolist()}) > 1


def test_a_warm_up_from_nothing():
    """The first step has rate 0: it is a row all the same, at the time of the start."""
    watched = check(
        lambda w: scheduled(
            w, lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: step / 3)
        )
    )
    path = watched.tracker.trajectory()
    assert path.steps.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert path.times[:2].tolist() == [0.0, 0.0]


def test_two_optimizers_of_one_model_have_a_tracker_each():
    """Each counts its own optimizer's steps, and records all of the model."""

    def run(tracked):
        model = layer()
        first = torch.optim.SGD([model.weight], lr=0.1)
        second = torch.optim.Adam([model.bias], lr=0.01)
        trackers = [tl.track(model, o, STATISTICS) for o in (first, second) if tracked]
        rows = [[model.weight.detach().clone()], [model.weight.detach().clone()]]
        for i, x in enumerate(batches()):
            backward(model, x)
            first.step()
            rows[0].append(model.weight.detach().clone())
            if i % 2:
                second.step()
                rows[1].append(model.weight.detach().clone())
        return model, trackers, rows

    (model, trackers, rows), (alone, *_) = run(True), run(False)
    assert torch.equal(model.weight, alone.weight)
    assert torch.equal(model.bias, alone.bias)
    for tracker, seen, lr in zip(trackers, rows, (0.1, 0.01), strict=True):
        path = tracker.trajectory()
        assert path.steps.tolist() == list(range(len(seen)))
        torch.testing.assert_close(path.times, lr * path.steps.double())
        weights = path.values[:, : model.weight.numel()].reshape(-1, 2, 3)
        assert torch.equal(weights, torch.stack(seen))


def test_two_models_at_once():
    """With one optimizer each, and with one for both."""

    def run(tracked, together):
        models = [layer(), nn.Linear(3, 2, dtype=torch.float64)]
        watches = [Watch(tracked), Watch(tracked)]
        if together:
            optimizers = [torch.optim.SGD([{"params": m.parameters()} for m in models], lr=0.1)] * 2
        else:
            optimizers = [sgd(m) for m in models]
        for watch, model, optimizer in zip(watches, models, optimizers, strict=True):
            watch.begin(model, optimizer)
        for x in batches():
            for model in models:
                model.zero_grad()
                backward(model, x)
            for optimizer in dict.fromkeys(optimizers):
                optimizer.step()
            for watch in watches:
                watch.stepped(0.1)
        return watches

    for together in (False, True):
        for alone, watched in zip(run(False, together), run(True, together), strict=True):
            assert all(map(torch.equal, alone.weights(), watched.weights()))
            watched.check()


# --- models that are wrapped, compiled, moved, frozen, tied ----------------------------------


def compiled_model(watch):
    model = layer()
    wrapped = torch.compile(model, backend="aot_eager")
    optimizer = sgd(wrapped)
    watch.begin(wrapped, optimizer, own=model)
    train(watch, wrapped, optimizer)


def compiled_step(watch):
    model = layer()
    optimizer = sgd(model)

    @torch.compile(backend="eager")
    def step():
        optimizer.step()

    watch.begin(model, optimizer)
    for x in batches(20):
        optimizer.zero_grad()
        backward(model, x)
        step()
        watch.stepped(0.1)


class Parts(nn.Module):
    """A user's module that calls its parts what wrappers do, and has compiled ones."""

    def __init__(self):
        super().__init__()
        self.module = layer()
        self.last = torch.compile(nn.Sequential(nn.Linear(2, 1, dtype=torch.float64)))

    def forward(self, x):
        # what torch.compile wraps, as it is: this is about names
        return self.last._orig_mod(self.module(x))


class Fabric(nn.Module):
    """What Lightning Fabric puts around a model."""

    def __init__(self, model):
        super().__init__()
        self._forward_module = self._original_module = model

    def forward(self, x):
        return self._forward_module(x)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        nn.DataParallel,
        Fabric,
        lambda m: torch.compile(m, backend="eager"),
        lambda m: Fabric(torch.compile(nn.DataParallel(m), backend="eager")),
    ],
    ids=["plain", "DataParallel", "Fabric", "compile", "all"],
)
def test_names_are_the_users_own(wrap):
    model = Parts()
    wrapped = wrap(model)
    statistics = {"all": lambda p: torch.stack([q.norm() for q in p.values()])}
    names = ["module.weight", "module.bias", "last.0.weight", "last.0.bias"]
    statistics |= {name: lambda p, name=name: p[name].norm() for name in names}
    optimizer = sgd(wrapped)
    tracker = tl.track(wrapped, optimizer, statistics)
    x = batches(1)[0]
    backward(model, x)
    optimizer.step()
    path = tracker.trajectory()
    assert list(tracker._ring.followed) == names
    for i, (name, parameter) in enumerate(zip(names, model.parameters(), strict=True)):
        torch.testing.assert_close(path[name][-1], parameter.detach().norm())
        torch.testing.assert_close(path[f"all[{i}]"][-1], parameter.detach().norm())
        assert path[name][0] != path[name][-1]


def test_copies_in_a_compiled_wrapper():
    """`tl.replicate` is recognised within."""
    model = tl.replicate(layer(), 5)
    wrapped = torch.compile(model, backend="eager")
    tracker = tl.track(wrapped, sgd(wrapped), STATISTICS)
    assert tracker.trajectory().values.shape == (5, 1, 9)


def test_the_probe_of_a_compiled_model():
    problem = tl.GaussianMixture.binary(dim=20, snr=2.0)
    found = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, backend="eager")):
        model = problem.model(generator=torch.Generator().manual_seed(0))
        wrapped = wrap(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
        probe = tl.Probe(problem.loss, problem.sample, every=2, samples=8)
        tracker = tl.track(wrapped, optimizer, problem.statistics, probe=probe)
        found.append(tracker.explanation().corrector.values)
    assert torch.equal(*found)


def moved_to_float64(watch):
    """Records before the move are those of float32, records after it have all digits."""
    model = layer(dtype=torch.float32)
    optimizer = sgd(model)
    watch.begin(model, optimizer)
    train(watch, model, optimizer)
    model.to(torch.float64)
    optimizer.state.clear()
    train(watch, model, optimizer)


def other_memory(watch):
    model = layer()
    optimizer = sgd(model)
    watch.begin(model, optimizer)

    def move(step):
        if step in (2, 4):
            model.weight.data = model.weight.data.clone()

    train(watch, model, optimizer, act=move)


def frozen(watch):
    """Frozen from the start, and set free."""
    model = layer()
    model.bias.requires_grad_(False)
    optimizer = sgd(model)
    watch.begin(model, optimizer)
    train(watch, model, optimizer, act=lambda step: model.bias.requires_grad_(step > 2))


def tied(watch):
    """One parameter in two layers is one parameter, by its first name."""
    model = nn.Sequential(nn.Linear(3, 3, dtype=torch.float64), nn.Linear(3, 3, bias=False))
    torch.manual_seed(0)
    nn.init.normal_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    model[1].weight = model[0].weight
    optimizer = sgd(model, lr=0.01)
    statistics = {
        "weight": lambda p: p["0.weight"],
        "norm": lambda p: sum(q.square().sum() for q in p.values()),
    }
    watch.begin(model, optimizer, statistics)
    train(watch, model, optimizer, 0.01)


def test_a_tied_parameter_by_its_second_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"'1.weight', the model has \['0.weight', '0.bias'"):
        tl.track(model, sgd(model), {"w": lambda p: p["1.weight"]})


# --- copies, states, replacements ------------------------------------------------------------


def copied(watch):
    """Copies of model and optimizer train on, unseen."""
    model = layer()
    optimizer = sgd(model)
    watch.begin(model, optimizer)

    def copy_and_train(step):
        if step == 3:
            # both in one, so that the copies belong together
            twin, twins = copy.deepcopy((model, optimizer))
            train(Unwatched, twin, twins)
            assert not torch.equal(twin.weight, model.weight)

    train(watch, model, optimizer, act=copy_and_train)


class Unwatched:
    """For loops that nobody is to see."""

    stepped = staticmethod(lambda lr: None)


def the_model_holds_its_tracker(watch):
    """As trainers do: a copy of such a model is no second tracker."""
    model = layer()
    optimizer = sgd(model)
    watch.begin(model, optimizer)
    model.tracker = watch.tracker
    twin = copy.deepcopy(model)
    assert twin.tracker is watch.tracker
    train(Unwatched, twin, sgd(twin))
    train(watch, model, optimizer)


def states_loaded(watch):
    """Of model and optimizer, with another learning rate; groups are new dicts afterwards."""
    model = layer()
    optimizer = sgd(model)
    other = layer()
    nn.init.ones_(other.weight)
    watch.begin(model, optimizer)
    train(watch, model, optimizer)
    model.load_state_dict(other.state_dict())
    optimizer.load_state_dict(sgd(other, lr=0.03).state_dict())
    train(watch, model, optimizer, 0.03)


def a_replaced_parameter(watch):
    """It is the model's now, so it is recorded."""
    model = layer()
    optimizer = sgd(model)
    watch.begin(model, optimizer)
    train(watch, model, optimizer)
    model.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    optimizer.param_groups[0]["params"][0] = model.weight
    train(watch, model, optimizer)


def a_replaced_layer(watch):
    model = nn.Sequential(nn.Identity(), layer())
    optimizer = sgd(model)
    statistics = {"weight": lambda p: p["1.weight"], "norm": lambda p: p["1.weight"].norm()}
    watch.begin(model, optimizer, statistics)
    train(watch, model, optimizer)
    model[1] = nn.Linear(3, 2, dtype=torch.float64)
    optimizer.add_param_group({"params": model.parameters()})
    train(watch, model, optimizer)


LOOPS = [
    gradient_accumulation,
    grad_scaler,
    grad_scaler_fused,
    zero_grad_to_none,
    zero_grad_to_zero,
    closure,
    lbfgs,
    data_loader_with_workers,
    another_thread_trains,
    parameter_groups,
    a_group_that_stands_still,
    a_group_added_later,
    a_frozen_backbone,
    a_warm_up_by_hand,
    groups_come_and_go,
    learning_rate_as_a_tensor,
    two_optimizers_in_a_list,
    a_wrapper_that_moves_on,
    lookahead,
    sam_in_two_steps,
    sam_by_closure,
    schedule_free,
    averaged,
    a_subclass_that_calls_its_base,
    compiled_model,
    compiled_step,
    moved_to_float64,
    other_memory,
    frozen,
    tied,
    copied,
    the_model_holds_its_tracker,
    states_loaded,
    a_replaced_parameter,
    a_replaced_layer,
]


@pytest.mark.parametrize("max_bytes", [64 * 2**20, 1], ids=["ring", "hook"])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_recorded_is_what_the_loop_sees(loop, max_bytes):
    """With a ring of snapshots, and with statistics evaluated in the hook."""
    torch._dynamo.reset()
    check(loop, max_bytes=max_bytes)


def test_the_check_sees_a_step_too_many():
    """Negative control: a loop that counts otherwise than its tracker is found out."""

    def counts_what_is_no_step(watch):
        grad_scaler(watch)
        watch.stepped(0.1)

    with pytest.raises(AssertionError):
        check(counts_what_is_no_step)
    with pytest.raises(AssertionError):
        check(lambda watch: train(*_begun(watch), lr=0.2))


def _begun(watch):
    model = layer()
    optimizer = sgd(model)
    watch.begin(model, optimizer)
    return watch, model, optimizer


# --- several trackers, threads, exceptions ---------------------------------------------------


@pytest.mark.parametrize("inner_first", [True, False])
def test_nested_trackers(inner_first):
    model = layer()
    optimizer = sgd(model)
    outer, inner = Watch(True), Watch(True)
    outer.begin(model, optimizer)
    train(outer, model, optimizer, count=2)
    inner.begin(model, optimizer)

    class Both:
        @staticmethod
        def stepped(lr):
            outer.stepped(lr)
            inner.stepped(lr)

    train(Both, model, optimizer, count=3)
    first, last = (inner, outer) if inner_first else (outer, inner)
    first.tracker.close()
    train(last, model, optimizer, count=2)
    last.tracker.close()
    alone = Watch(False)
    begun = _begun(alone)[1:]
    for count in (2, 3, 2):
        train(alone, *begun, count=count)
    assert torch.equal(model.weight, alone.model.weight)
    outer.check()
    inner.check()


@pytest.fixture
def _hasty_threads():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.slow
@pytest.mark.usefixtures("_hasty_threads")
def test_another_thread_looks_on():
    """What it sees is always a piece from the start on, whole."""
    model = layer()
    optimizer = sgd(model, lr=1e-3)
    tracker = tl.track(model, optimizer, STATISTICS, max_bytes=5 * 64)
    done, seen, failed = threading.Event(), [], []

    def look():
        try:
            while not done.is_set():
                seen.append(tracker.trajectory())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    watch = Watch(False)
    watch.begin(model, optimizer)
    train(watch, model, optimizer, lr=1e-3, count=1000)
    done.set()
    thread.join()
    assert not failed
    watch.tracker = tracker
    watch.check()
    whole = tracker.trajectory()
    assert len(seen) > 2
    for path in seen:
        assert torch.equal(path.steps, whole.steps[: len(path)])
        assert torch.equal(path.values, whole.values[: len(path)])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["loop", "closure"])
@pytest.mark.parametrize("suffix", [".npz", ".rows"])
def test_an_exception_leaves_what_was_recorded(tmp_path, error, where, suffix):
    """A step whose closure fails is none."""
    watch = Watch(True, {"path": tmp_path / f"u{suffix}"})

    def run():
        _, model, optimizer = _begun(watch)
        with watch.tracker:
            train(watch, model, optimizer)
            if where == "loop":
                raise error("mine")

            def failing():
                raise error("mine")

            optimizer.step(failing)

    with pytest.raises(error, match="mine"):
        run()
    watch.check()
    assert [path.name for path in tmp_path.iterdir()] == [f"u{suffix}"]
    loaded = tl.Trajectory.load(tmp_path / f"u{suffix}")
    assert torch.equal(loaded.values, watch.tracker.trajectory().values)


# --- on CUDA ---------------------------------------------------------------------------------


def moved_to_cuda(watch):
    model = layer()
    optimizer = sgd(model)
    watch.begin(model, optimizer)
    train(watch, model, optimizer)
    optimizer.state.clear()
    model.to("cuda")
    for x in batches():
        optimizer.zero_grad()
        backward(model, x.cuda())
        optimizer.step()
        watch.stepped(0.1)
    watch.rows = [(step, time, row.cpu()) for step, time, row in watch.rows]


def grad_scaler_on_cuda(watch):
    """A fused optimizer skips a step on the device itself."""
    model = layer(dtype=torch.float32, device="cuda")
    optimizer, scaler = sgd(model, fused=True), torch.amp.GradScaler("cuda", init_scale=64.0)
    watch.begin(model, optimizer)
    for i, x in enumerate(batches(dtype=torch.float32)):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = model(x.cuda()).float().square().mean() * (torch.inf if i == 2 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if i != 2:
            watch.stepped(0.1)
    watch.rows = [(step, time, row.cpu()) for step, time, row in watch.rows]


@pytest.mark.gpu
@pytest.mark.parametrize("max_bytes", [64 * 2**20, 1], ids=["ring", "hook"])
@pytest.mark.parametrize("loop", [moved_to_cuda, grad_scaler_on_cuda])
def test_on_cuda(loop, max_bytes):
    check(loop, max_bytes=max_bytes)


# --- what cannot work says so ----------------------------------------------------------------


def on_meta(model, optimizer):
    model.to("meta")
    optimizer.param_groups[0]["params"] = list(model.parameters())


def on_meta_without_its_optimizer(model, optimizer):
    model.to("meta")


def replaced_and_not_given_to_the_optimizer(model, optimizer):
    model.load_state_dict(layer().state_dict(), assign=True)


def taken_out(model, optimizer):
    torch.nn.utils.parametrizations.weight_norm(model)


def of_another_shape(model, optimizer):
    model.weight.data = torch.zeros(2, 4, dtype=torch.float64)
    model.weight.grad = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (on_meta, "'weight' on the meta device: call model.to_empty"),
        (on_meta_without_its_optimizer, "holds none of them: build it"),
        (replaced_and_not_given_to_the_optimizer, "holds none of them: build it"),
        (taken_out, r"asked for parameter 'weight', the model has \['bias', 'parametrizations"),
        (of_another_shape, "changed shape: expected .* as at step 0"),
    ],
)
@pytest.mark.parametrize("max_bytes", [64 * 2**20, 1], ids=["ring", "hook"])
def test_a_change_that_cannot_be_followed(tmp_path, change, message, max_bytes):
    """The step says so at once; what was recorded before is kept; training may go on."""
    model = layer()
    optimizer = sgd(model, momentum=0.0)
    watch = Watch(True, {"path": tmp_path / "u.npz", "max_bytes": max_bytes})
    watch.begin(model, optimizer)
    train(watch, model, optimizer)
    rows = len(watch.rows)
    change(model, optimizer)
    optimizer.zero_grad()
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    optimizer.step()
    watch.tracker.close()
    loaded = tl.Trajectory.load(tmp_path / "u.npz")
    assert loaded.steps.tolist() == list(range(rows))
    expected = torch.stack([values for _, _, values in watch.rows])
    torch.testing.assert_close(loaded.values, expected, rtol=1e-12, atol=0.0)


def test_a_model_without_values():
    model = nn.Linear(3, 2, device="meta")
    with pytest.raises(ValueError, match="on the meta device"):
        tl.track(model, sgd(model), STATISTICS)
    model = nn.LazyLinear(2)
    with pytest.raises(ValueError, match="Call `forward` with a dummy batch"):
        tl.track(model, torch.optim.SGD(model.parameters(), lr=0.1), STATISTICS)


def test_statistics_that_look_at_the_model_instead_of_their_argument():
    model = layer()
    with pytest.raises(ValueError, match=r"'norm' that reads the model's own \['weight'\]"):
        tl.track(model, sgd(model), {"norm": lambda p: model.weight.norm()})
    with pytest.raises(ValueError, match="read none: use the argument"):
        tl.track(model, sgd(model), {"constant": lambda p: torch.zeros(2)})


def test_another_model_of_an_optimizer():
    model, copied = layer(), layer()
    with pytest.raises(ValueError, match="holds none of them: build it"):
        tl.track(copied, sgd(model), STATISTICS)
