"""Functions of the module: what they are given, and that nothing of it leaks."""

# ruff: noqa: NPY002 (numpy's generator of the whole program is one that statistics must not move)

import copy
import functools
import random
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import torchlimits as tl
from torchlimits.statistics.private_copy import PrivateCopy

X = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)


def tensors(module):
    """Parameters and buffers, as a recorder gives them."""
    both = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    return {name: x.detach().clone() for name, x in both.items()}


def stacked(module, count=3):
    """Several points: parameters and float buffers multiplied, as different steps have them."""
    points = []
    for i in range(count):
        points.append(
            {n: x * (1 + i / 4) if x.is_floating_point() else x for n, x in tensors(module).items()}
        )
    return {name: torch.stack([p[name] for p in points]) for name in points[0]}, points


def perceptron():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(torch.float64)


def convolution():
    return nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2)).double()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.weights = [self.first.weight, self.second.bias]  # and in a list, unregistered

    def forward(self, x):
        return self.second(self.first(x)) + self.weights[0].sum() + self.weights[1].sum()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(3, 2, batch_first=True)

    def forward(self, x):
        return self.cell(x[:, None])[0]


class Hidden(nn.Module):
    """A buffer of integers and one that is not saved."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x):
        return self.linear(x) * self.scale + self.count


MODULES = {
    "perceptron": perceptron,
    "convolution": convolution,
    "tied": Tied,
    "recurrent": Recurrent,
    "buffers": Hidden,
    "old weight norm": lambda: nn.utils.weight_norm(nn.Linear(3, 2)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(3, 2)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 2)),
    "pruned": lambda: prune.random_unstructured(nn.Linear(3, 2), "weight", 0.5),
    "attention": lambda: nn.TransformerEncoderLayer(3, 1, 4, batch_first=True),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", MODULES)
def test_it_is_the_module_of_that_step(kind):
    """The trained module itself, set to the same values, says the same."""
    module = MODULES[kind]().double()
    module(X).sum().backward()  # what is computed from parameters is there, with its graph
    bound = tl.statistics.of_model(lambda m: m(X)).bound(module)
    before = {name: x.clone() for name, x in module.state_dict().items()}
    _, points = stacked(module)
    got = [bound(p) for p in points]
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    module.eval()
    own = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    for value, p in zip(got, points, strict=True):
        with torch.no_grad():
            for name, x in own.items():
                x.copy_(p[name])
            torch.testing.assert_close(value, module(X), rtol=1e-13, atol=1e-13)
    assert not torch.equal(got[0], got[1])


@pytest.mark.parametrize("kind", ["perceptron", "convolution", "tied", "buffers"])
@pytest.mark.parametrize("train", [False, True])
def test_many_steps_at_once(kind, train):
    module = MODULES[kind]().double()
    bound = tl.statistics.of_model(lambda m: m(X), train=train).bound(module)
    together, points = stacked(module)
    one_by_one = torch.stack([bound(p) for p in points])
    torch.testing.assert_close(torch.func.vmap(bound)(together), one_by_one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("derivative", [False, True])
def test_what_is_too_large_together_is_evaluated_one_by_one(monkeypatch, derivative):
    """A few thousand steps times all activations of a test set would fill any memory."""
    module, together, points = perceptron(), *stacked(perceptron(), 6)
    many = X.repeat(40, 1)
    home = sys.modules["torchlimits.statistics.of_model"]  # whose name a function has, too
    calls = []

    def f(m):
        calls.append(torch._C._are_functorch_transforms_active())
        return m(many).square().mean()

    u = tl.SummaryStatistics({"s": tl.statistics.of_model(f)}).bound(module)
    bound = u.functions["s"]
    bound(points[0])  # tells how much it takes: at least the hidden layer and its activation
    assert bound._nbytes >= 2 * 200 * 4 * 8
    both = torch.func.grad(bound) if derivative else bound
    monkeypatch.setattr(home, "_ROOM_ON_CPU", 6 * bound._nbytes)
    torch.func.vmap(both)(together)
    monkeypatch.setattr(home, "_ROOM_ON_CPU", 6 * bound._nbytes - 1)
    with pytest.raises(RuntimeError, match=r"expected evaluations that fit .* got 6 of .*one by"):
        torch.func.vmap(both)(together)
    with pytest.raises(RuntimeError, match=r"got 6 of"):  # 2 x 3: several runs, several steps
        torch.func.vmap(torch.func.vmap(both))(
            {n: x.unflatten(0, (2, 3)) for n, x in together.items()}
        )
    with pytest.raises(RuntimeError, match=r"got 6 of"):  # it is handed on
        torch.func.vmap(bound.near(points[0]))(together)

    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls.clear()
    with tl.track(model, optimizer, {"s": tl.statistics.of_model(f)}) as tracker:
        for _ in range(5):
            model(X).sum().backward()
            optimizer.step()
    assert not any(calls)
    assert len(tracker.trajectory().steps) == 6


def test_modes_are_its_own():
    module = convolution()
    seen = tl.statistics.of_model(lambda m: torch.tensor([one.training for one in m.modules()]))
    taught = tl.statistics.of_model(
        lambda m: torch.tensor([one.training for one in m.modules()]), train=True
    )
    assert module.training
    assert not seen.bound(module)(tensors(module)).any()
    assert module.training
    module.eval()
    assert taught.bound(module)(tensors(module)).all()
    assert not module.training


def test_running_means_are_updated_in_the_copy_alone():
    module = convolution()
    p = tensors(module)
    before = {name: x.clone() for name, x in p.items()}

    def after(m):
        m(X)
        return m[2].running_mean + m[2].num_batches_tracked

    bound = tl.statistics.of_model(after, train=True).bound(module)
    first = bound(p)
    assert not torch.equal(first, p["2.running_mean"])
    assert torch.equal(bound(p), first)
    assert all(torch.equal(x, before[name]) for name, x in p.items())
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


def test_what_f_does_to_the_module_is_gone():
    """Values, attributes, layers, dtypes: the next evaluation starts anew, and so does training."""
    module = perceptron()
    p, state = tensors(module), copy.deepcopy(module.state_dict())
    calls = []

    def vandal(m):
        calls.append(m)
        value = m(X).sum()
        assert not hasattr(m, "visited")
        assert m[0].weight.grad is None
        m.visited = True
        for x in m.parameters():
            x.zero_()
            x.data = x.data[:1]
        m[0] = nn.Identity()
        m.to(torch.float32).requires_grad_(False)
        return value

    bound = tl.statistics.of_model(vandal).bound(module)
    first = bound(p)
    assert torch.equal(bound(p), first)
    assert torch.equal(bound({n: p[n] for n in reversed(list(p))}), first)
    assert all(torch.equal(x, state[name]) for name, x in p.items())
    assert all(torch.equal(x, state[name]) for name, x in module.state_dict().items())
    assert calls[0] is not calls[1]
    assert module not in calls


def norm_by_backward(module):
    module(X).square().mean().backward()
    return torch.stack([p.grad.norm() for p in module.parameters() if p.requires_grad]).norm()


def norm_by_grad(module):
    own = [p for p in module.parameters() if p.requires_grad]
    return torch.stack(
        [g.norm() for g in torch.autograd.grad(module(X).square().mean(), own)]
    ).norm()


def norm_by_own_mode(module):
    with torch.enable_grad():
        return norm_by_backward(module)


def norm_by_func(module):
    own = {n: p for n, p in module.named_parameters() if n in ("0.weight", "2.weight", "2.bias")}

    def loss(own):
        return torch.func.functional_call(module, own, (X,)).square().mean()

    return torch.stack([g.norm() for g in torch.func.grad(loss)(own).values()]).norm()


@pytest.mark.parametrize(
    "f", [norm_by_backward, norm_by_grad, norm_by_own_mode, norm_by_func], ids=lambda f: f.__name__
)
def test_gradients_as_f_needs_them(f):
    """And those of the trained module are not touched; a frozen parameter has none."""
    module = perceptron()
    module[0].bias.requires_grad_(False)
    module[0].weight.grad = torch.full((4, 3), 7.0, dtype=torch.float64)
    twin = copy.deepcopy(module)
    twin.zero_grad()
    expected = norm_by_backward(twin).detach()
    bound = tl.statistics.of_model(f).bound(module)
    for p in [tensors(module), dict(module.named_parameters())]:
        for _ in range(2):
            value = bound(p)
            torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
            assert not value.requires_grad
    assert torch.equal(module[0].weight.grad, torch.full((4, 3), 7.0, dtype=torch.float64))
    assert all(p.grad is None for n, p in module.named_parameters() if n != "0.weight")


def test_gradients_are_off_where_they_are_not_needed():
    seen = []
    bound = tl.statistics.of_model(lambda m: seen.append(torch.is_grad_enabled()) or m(X).sum())
    module = perceptron()
    bound.bound(module)(dict(module.named_parameters()))
    assert seen == [False]


def test_an_error_of_f_is_not_hidden_by_a_second_try():
    calls = []

    def wrong(module):
        calls.append(1)
        return module(X[:, :2])

    module = perceptron()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        tl.statistics.of_model(wrong).bound(module)(tensors(module))
    assert len(calls) == 1


def draws(module):
    """All generators that a program has."""
    return (
        torch.rand(())
        + random.random()
        + torch.as_tensor(np.random.rand())
        + nn.functional.dropout(module(X), 0.5).sum()
    )


def test_random_numbers_start_anew_and_nobody_elses_move():
    module = perceptron()
    bound = tl.statistics.of_model(draws, seed=3).bound(module)
    other = tl.statistics.of_model(draws, seed=4).bound(module)
    p = tensors(module)
    torch.manual_seed(11), random.seed(12), np.random.seed(13)
    expected = [torch.rand(3).tolist(), random.random(), np.random.rand()]
    torch.manual_seed(11), random.seed(12), np.random.seed(13)
    first = bound(p)
    torch.rand(5)
    assert bound(p) == first
    assert other(p) != first
    torch.manual_seed(11), random.seed(12), np.random.seed(13)
    bound(p)
    assert [torch.rand(3).tolist(), random.random(), np.random.rand()] == expected
    with pytest.raises(RuntimeError):  # and after an error
        tl.statistics.of_model(lambda m: torch.rand(2) @ torch.rand(3)).bound(module)(p)
    torch.manual_seed(11)
    with pytest.raises(ZeroDivisionError):
        tl.statistics.of_model(lambda m: torch.rand(1) / (1 // 0)).bound(module)(p)
    assert torch.rand(3).tolist() == expected[0]


def test_dropout_is_the_same_whenever_rows_are_evaluated():
    """By vmap it would not be the same: then it is not vectorised."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    u = tl.SummaryStatistics({"out": tl.statistics.of_model(lambda m: m(X).sum(), train=True)})
    with pytest.raises(Exception, match="random"):
        torch.func.vmap(u.bound(module).functions["out"])(stacked(module)[0])

    def run(**options):
        torch.manual_seed(5)
        model = copy.deepcopy(module)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        tracker = tl.track(model, optimizer, u.bound(model), **options)
        for step in range(12):
            if options and step % 3 == 0:
                tracker.flush()
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
        tracker.close()
        return tracker.trajectory().values, model.state_dict(), torch.rand(2)

    values, state, later = run()
    again, state_again, later_again = run(max_bytes=1)
    assert torch.equal(values, again)
    assert torch.equal(later, later_again)
    assert all(torch.equal(x, state_again[name]) for name, x in state.items())


def test_training_is_bit_identical_with_and_without():
    def run(track):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1)).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        if track:
            u = tl.SummaryStatistics(
                {
                    "draws": tl.statistics.of_model(draws, train=True),
                    "slope": tl.statistics.of_model(norm_by_backward),
                }
            )
            tl.track(model, optimizer, u.bound(model), max_bytes=2000)
        for _ in range(10):
            optimizer.zero_grad()
            model(X + torch.randn_like(X)).square().mean().backward()
            optimizer.step()
        return {**model.state_dict(), "later": torch.rand(3)}

    bare, tracked = run(False), run(True)
    assert all(torch.equal(x, tracked[name]) for name, x in bare.items())


def test_recorded_rows_are_those_of_their_steps():
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    u = tl.SummaryStatistics({"loss": tl.statistics.of_model(lambda m: m(X).square().mean())})
    expected = [model(X).square().mean().item()]
    with tl.track(model, optimizer, u.bound(model)) as tracker:
        for _ in range(20):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
            expected.append(model(X).square().mean().item())
    np.testing.assert_allclose(tracker.trajectory()["loss"], expected, rtol=1e-13)


def test_autocast_is_off():
    module = perceptron().float()
    x = X.float()
    bound = tl.statistics.of_model(lambda m: m(x)).bound(module)
    with torch.autocast("cpu", torch.bfloat16):
        inside = bound(tensors(module))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, bound(tensors(module)))


def test_autocast_of_accelerate_is_off():
    """Which is part of what Accelerate makes the module's forward."""
    accelerate = pytest.importorskip("accelerate")
    # its state is the whole program's, other tests' too
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    x, module = X.float(), nn.Linear(3, 2)
    expected = module(x).detach()
    module = accelerator.prepare(module)
    assert not torch.equal(module(x), expected)
    value = tl.statistics.of_model(lambda m: m(x)).bound(module)(tensors(module))
    assert torch.equal(value, expected)
    assert not torch.equal(module(x), expected)


def test_inference_mode_of_the_caller():
    module = perceptron()
    bound = tl.statistics.of_model(norm_by_backward).bound(module)
    expected = bound(tensors(module))
    with torch.inference_mode():
        assert torch.equal(bound(tensors(module)), expected)


def test_derivatives_by_torch_func():
    """Never a silent zero: Jacobians of statistics are what theory is computed from."""
    module = perceptron()
    p = tensors(module)
    bound = tl.statistics.of_model(lambda m: m(X).sum()).bound(module)
    slope = torch.func.grad(bound)(p)
    torch.testing.assert_close(slope["2.bias"], torch.full((2,), 5.0, dtype=torch.float64))
    module(X).sum().backward()
    torch.testing.assert_close(slope["0.weight"], module[0].weight.grad)
    with pytest.raises(RuntimeError):
        torch.func.grad(tl.statistics.of_model(norm_by_backward).bound(module))(p)


def test_half_precision_comes_in_float32():
    module = nn.Linear(3, 2).to(torch.bfloat16)
    x = X.float()
    p = {name: value.float() for name, value in tensors(module).items()}
    value = tl.statistics.of_model(lambda m: m(x)).bound(module)(p)
    torch.testing.assert_close(value, x @ p["weight"].mT + p["bias"])

    class Fixed(nn.Linear):
        def forward(self, x):
            return super().forward(x.to(torch.bfloat16))

    fixed = Fixed(3, 2).to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="half-precision parameters and buffers in float32"):
        tl.statistics.of_model(lambda m: m(x)).bound(fixed)(p)


# what modules hold beside parameters and buffers


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1).double()
        self.table = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        self.inside = {"list": [torch.zeros(1, dtype=torch.float64)]}
        self.teacher = [nn.Linear(3, 1).double()]  # hidden: not registered
        self.last = None

    def forward(self, x):
        self.last = self.linear(x * self.table + self.inside["list"][0])
        return self.last


def test_constants_are_used_as_they_are():
    module = Keeping()
    bound = tl.statistics.of_model(lambda m: m(X) + m.teacher[0](X)).bound(module)
    expected = (module(X) + module.teacher[0](X)).detach()
    torch.testing.assert_close(bound(tensors(module)), expected)


@torch.no_grad()
def _write(module):
    module.table.mul_(2)


@torch.no_grad()
def _write_inside(module):
    module.inside["list"][0].add_(1)


def _replace(module):
    module.table = module.table * 2


@torch.no_grad()
def _move_teacher(module):
    module.teacher[0].weight.lerp_(module.linear.weight, 0.5)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: X @ x.mT,
        lambda x: nn.functional.linear(X, x),
        lambda x: x.sum(),
        lambda x: torch.cat([X, x]),
        lambda x: x.shape[0],
        lambda x: torch.from_numpy(x.numpy()),
        lambda x: torch.func.vmap(lambda row: row @ x[0])(X),
        lambda x: X.clone().index_put_((torch.tensor([0]),), x[0]),
    ],
)
def test_a_stale_tensor_is_no_tensor(use):
    """Also in products, which return uninitialised memory for those on the meta device."""
    module = Keeping()
    module.table = torch.ones(1, 3, dtype=torch.float64)
    bound = tl.statistics.of_model(lambda m: use(m.table)).bound(module)
    module.table.mul_(2)
    with pytest.raises(ValueError, match=r"uses 'table'"):
        bound(tensors(module))


@pytest.mark.parametrize("change", [_write, _write_inside, _replace, _move_teacher])
def test_what_training_changes_there_cannot_be_read(change):
    """And the rest still can."""
    module = Keeping()
    used = tl.statistics.of_model(lambda m: m(X).sum() + m.teacher[0](X).sum()).bound(module)
    unused = tl.statistics.of_model(lambda m: m.linear(X).sum()).bound(module)
    used(tensors(module))
    change(module)
    with pytest.raises(ValueError, match=r"uses '(table|inside|teacher)'.*register_buffer"):
        used(tensors(module))
    unused(tensors(module))


def test_what_was_computed_in_training_cannot_be_read():
    module = Keeping()
    module(X)
    p = tensors(module)
    with pytest.raises(ValueError, match=r"uses 'last'.*register_buffer"):
        tl.statistics.of_model(lambda m: m.last.sum()).bound(module)(p)
    tl.statistics.of_model(lambda m: m(X).sum() + m.last.sum()).bound(module)(p)


def test_values_are_not_kept_twice():
    module = perceptron()
    private = PrivateCopy(module)
    assert all(place.is_meta for place in private.places.values())
    assert all(x.is_meta for x in private._copy.state_dict().values())


# hooks


def test_hooks_that_are_objects_run_in_the_copy():
    class Doubling:
        def __init__(self):
            self.calls = 0

        def __call__(self, module, inputs, output):
            self.calls += 1
            return 2 * output

    module, hook = perceptron(), Doubling()
    module[0].register_forward_hook(hook)
    expected = module(X).detach()
    assert hook.calls == 1
    torch.testing.assert_close(
        tl.statistics.of_model(lambda m: m(X)).bound(module)(tensors(module)), expected
    )
    assert hook.calls == 1


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("partial", [False, True])
def test_hooks_that_are_functions_are_refused(kind, partial):
    kept = []

    def look(*args):
        kept.append(args)

    module = perceptron()
    getattr(module[0], kind)(functools.partial(look) if partial else look)
    with pytest.raises(ValueError, match=r"hook '.*look' on layer '0'.*after tl\.track"):
        tl.statistics.of_model(lambda m: m(X)).bound(module)


def test_a_hook_registered_later_sees_the_training_alone():
    module, kept = perceptron(), []
    bound = tl.statistics.of_model(lambda m: m(X)).bound(module)
    module[0].register_forward_hook(lambda m, i, o: kept.append(o))
    bound(tensors(module))
    assert not kept


def test_backward_hooks_stay_with_the_training():
    module, kept = perceptron(), []
    module[0].register_full_backward_hook(lambda m, i, o: kept.append(o))
    module[0].register_full_backward_pre_hook(lambda m, o: kept.append(o))
    module[0].weight.register_hook(lambda g: kept.append(g))
    module[0].weight.register_post_accumulate_grad_hook(lambda p: kept.append(p))
    tl.statistics.of_model(norm_by_backward).bound(module)(tensors(module))
    assert not kept
    module(X).sum().backward()
    assert len(kept) == 4


# what is refused


def holding(thing):
    module = perceptron()
    module.thing = thing
    return module


class Shared(nn.Linear):
    def __deepcopy__(self, memo):
        return self


REFUSED = {
    "lock": (lambda: holding(threading.Lock()), "copy.deepcopy .* leave them out"),
    "graph in an object": (
        lambda: holding(_object_with_a_graph()),
        "copy.deepcopy .* tensors with a graph",
    ),
    "shared": (lambda: Shared(3, 2), "shares nothing with it"),
    "shared inside": (lambda: nn.Sequential(Shared(3, 2), nn.ReLU()), "shares nothing with it"),
    "script": (lambda: torch.jit.script(nn.Linear(3, 2)), "shares nothing with it"),
    "lazy": (lambda: nn.LazyLinear(2), "'weight' without a shape"),
}


def _object_with_a_graph():
    class Own:
        pass

    own = Own()
    own.value = torch.ones(1, requires_grad=True) * 2
    return own


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_modules_that_have_no_private_copy(kind):
    make, message = REFUSED[kind]
    module = make()
    with pytest.raises(ValueError, match=message):
        tl.statistics.of_model(lambda m: m(X)).bound(module)
    assert module.training


def test_arguments():
    with pytest.raises(TypeError, match="function of the module, got int"):
        tl.statistics.of_model(3)
    with pytest.raises(ValueError, match="seed as an int >= 0"):
        tl.statistics.of_model(len, seed=-1)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got dict"):
        tl.statistics.of_model(len).bound({})


def test_unbound_it_says_what_to_do():
    statistic = tl.statistics.of_model(lambda m: m(X).sum())
    with pytest.raises(TypeError, match=r"tl\.track binds it"):
        statistic(tensors(perceptron()))
    with pytest.raises(tl.StatisticError, match=r"'s' failed with TypeError.*\.bound\(module\)"):
        tl.SummaryStatistics({"s": statistic})(tensors(perceptron()))


def test_binding_keeps_the_rest():
    def plain(p):
        return p["weight"] @ p["weight"].mT

    module = nn.Linear(3, 2)
    u = tl.SummaryStatistics(
        {"gram": plain, "out": tl.statistics.of_model(lambda m: m.bias.sum())}, symmetric=["gram"]
    )
    bound = u.bound(module)
    assert bound.functions["gram"] is plain
    assert bound.symmetric == {"gram"}
    assert bound.names_of(tensors(module)) == ["gram[0,0]", "gram[0,1]", "gram[1,1]", "out"]
    assert u.functions["out"] is not bound.functions["out"]
    with pytest.raises(TypeError, match="bound"):
        u.functions["out"](tensors(module))


@pytest.mark.parametrize("result", [None, 1.0, [1.0]])
def test_f_has_to_return_a_tensor(result):
    module = perceptron()
    u = tl.SummaryStatistics({"s": tl.statistics.of_model(lambda m: result)}).bound(module)
    with pytest.raises(TypeError, match="expected statistic 's' to return a tensor"):
        u(tensors(module))


def test_interrupts_leave_everything_where_it_was():
    """At every line of an evaluation: parameters, modes, generators, and the next value."""
    module = convolution()
    p = tensors(module)
    bound = tl.statistics.of_model(lambda m: m(X).sum() + torch.rand(()), train=True).bound(module)
    expected = bound(p)
    state, values = copy.deepcopy(module.state_dict()), copy.deepcopy(p)
    torch.manual_seed(1)
    generator = torch.get_rng_state()

    class Interrupt(BaseException):
        pass

    def lines_until(stop):
        count = 0

        def trace(frame, event, arg):
            nonlocal count
            if "torchlimits/statistics" not in frame.f_code.co_filename:
                return None
            if event == "line":
                count += 1
                if count == stop:
                    sys.settrace(None)
                    raise Interrupt
            return trace

        sys.settrace(trace)
        try:
            bound(p)
        finally:
            sys.settrace(None)
        return count

    lines = lines_until(-1)
    assert lines > 30
    for stop in range(1, lines + 1):
        with pytest.raises(Interrupt):
            lines_until(stop)
        assert torch.equal(torch.get_rng_state(), generator), stop
        assert bound(p) == expected, stop
    assert all(torch.equal(x, state[name]) for name, x in module.state_dict().items())
    assert all(torch.equal(x, values[name]) for name, x in p.items())
    assert module.training
