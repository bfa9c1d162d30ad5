"""Ready-made statistics of the module on fixed data, against naive references in float64."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import torchlimits as tl
from torchlimits.statistics.sharpness import largest_eigenvalue

torch_generator = torch.Generator().manual_seed(7)
X = torch.randn(12, 3, generator=torch_generator, dtype=torch.float64)
Y = torch.randint(0, 4, (12,), generator=torch_generator)
Z = torch.randn(12, 4, generator=torch_generator, dtype=torch.float64)


def tensors(module):
    both = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    return {name: x.detach().clone() for name, x in both.items()}


def steps_of(module, count=4):
    """What a short training leaves at each of its steps."""
    module = copy.deepcopy(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    points = [tensors(module)]
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(module(X), Y).backward()
        optimizer.step()
        points.append(tensors(module))
    return points


def perceptron():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def normalized():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, 4)
    ).double()


NETWORKS = {"perceptron": perceptron, "normalized": normalized}
networks = pytest.mark.parametrize("kind", NETWORKS)


def set_to(module, p):
    """The module itself with these values, in evaluation mode."""
    module = copy.deepcopy(module).eval()
    own = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    with torch.no_grad():
        for name, x in own.items():
            x.copy_(p[name])
    return module


def close(value, expected, **tolerances):
    torch.testing.assert_close(
        value, torch.as_tensor(expected, dtype=value.dtype), **{"rtol": 1e-12, "atol": 1e-13}
        | tolerances,
    )  # fmt: skip


# against loops


def naive_loss(module):
    return sum(F.cross_entropy(module(X[i : i + 1]), Y[i : i + 1]) for i in range(12)) / 12


def naive_accuracy(module):
    return sum(float(max(range(4), key=list(module(X[i : i + 1])[0]).__getitem__) == Y[i])
               for i in range(12)) / 12  # fmt: skip


def naive_activations(module):
    """Of the first layer, before whatever comes after it changes it in place."""
    entries = [float(h) ** 2 for i in range(12) for h in module[0](X[i]).detach()]
    return sum(entries) / len(entries)


def naive_gradient_norm(module):
    """By central differences of the loss, entry by entry."""
    squares = 0.0
    with torch.no_grad():
        for p in module.parameters():
            for i in range(p.numel()):
                flat, before = p.view(-1), float(p.view(-1)[i])
                flat[i] = before + 1e-5
                up = naive_loss(module)
                flat[i] = before - 1e-5
                down = naive_loss(module)
                flat[i] = before
                squares += float((up - down) / 2e-5) ** 2
    return squares**0.5


STATISTICS = {
    "held_out": (lambda **o: tl.statistics.held_out(F.cross_entropy, X, Y, **o), naive_loss),
    "accuracy": (lambda **o: tl.statistics.accuracy(X, Y, **o), naive_accuracy),
    "activations": (lambda: tl.statistics.activations("0", X), naive_activations),
    "gradient_norm": (
        lambda **o: tl.statistics.gradient_norm(F.cross_entropy, X, Y, **o),
        naive_gradient_norm,
    ),
}


@networks
@pytest.mark.parametrize("name", STATISTICS)
def test_against_a_loop_over_samples(kind, name):
    make, naive = STATISTICS[name]
    module = NETWORKS[kind]()
    bound = make().bound(module)
    points = steps_of(module)
    rows = [bound(p) for p in points]
    for row, p in zip(rows, points, strict=True):
        by_differences = {"rtol": 1e-8} if name == "gradient_norm" else {}
        close(row, naive(set_to(module, p)), **by_differences)
    assert name == "accuracy" or len(set(rows)) == len(rows)


@networks
@pytest.mark.parametrize("name", STATISTICS)
def test_all_steps_at_once_are_the_steps_one_by_one(kind, name):
    module = NETWORKS[kind]()
    bound = STATISTICS[name][0]().bound(module)
    points = steps_of(module)
    together = {n: torch.stack([p[n] for p in points]) for n in points[0]}
    close(torch.func.vmap(bound)(together), torch.stack([bound(p) for p in points]))


@networks
@pytest.mark.parametrize("name", ["held_out", "accuracy", "gradient_norm"])
@pytest.mark.parametrize("batch", [1, 5, 12, 100])
def test_batches_change_nothing(kind, name, batch):
    module, make = NETWORKS[kind](), STATISTICS[name][0]
    p = steps_of(module)[-1]
    close(make(batch=batch).bound(module)(p), make().bound(module)(p))


@pytest.mark.parametrize("options", [{}, {"max_bytes": 1}, {"every": 3}])
def test_recorded(options):
    """Beside a training with running means and dropout: each row is that of its step."""
    model = normalized()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    u = {name: make() for name, (make, _) in STATISTICS.items()}
    u["sharpness"] = tl.statistics.sharpness(F.cross_entropy, X, Y)
    u.update(tl.statistics.norms(model))
    points = [tensors(model)]
    with tl.track(model, optimizer, u, **options) as tracker:
        for _ in range(12):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()
            points.append(tensors(model))
    measured = tracker.trajectory()
    points = points[:: options.get("every", 1)]
    assert len(measured.steps) == len(points)
    for name in ("held_out", "accuracy", "activations"):
        with torch.no_grad():
            expected = [float(STATISTICS[name][1](set_to(model, p))) for p in points]
        np.testing.assert_allclose(measured[name], expected, rtol=1e-11)
    for name in ("gradient_norm", "sharpness"):
        bound = u[name].bound(model)
        np.testing.assert_allclose(measured[name], [float(bound(p)) for p in points], rtol=1e-11)
    expected = [float(p["1.bias"].square().sum().sqrt()) for p in points]
    np.testing.assert_allclose(measured["norm.1.bias"], expected, rtol=1e-13)


@pytest.mark.parametrize("name", STATISTICS)
def test_of_replicas(name):
    """Each copy's own, buffers included."""
    networks = [normalized() for _ in range(3)]
    for i, one in enumerate(networks):
        with torch.no_grad():
            one[0].weight.mul_(1 + i)
            one[1].running_mean.add_(i)
    model = tl.replicate(networks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, {"s": STATISTICS[name][0]()})
    rows = tracker.trajectory()["s"]
    assert rows.shape == (3, 1)
    bound = STATISTICS[name][0]().bound(networks[0])
    np.testing.assert_allclose(rows[:, 0], [float(bound(tensors(one))) for one in networks])


def test_data_are_copies():
    x, y = X.clone(), Y.clone()
    module = perceptron()
    statistic = tl.statistics.held_out(F.cross_entropy, x, y)
    bound = statistic.bound(module)
    expected = bound(tensors(module))
    x.zero_(), y.zero_()
    assert torch.equal(bound(tensors(module)), expected)
    assert torch.equal(statistic.bound(module)(tensors(module)), expected)


@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("of_model", [torch.float32, torch.float64, torch.bfloat16])
def test_data_get_the_dtype_that_parameters_have(given, of_model):
    module = perceptron().to(of_model)
    bound = tl.statistics.held_out(F.mse_loss, X.to(given), Z.to(given)).bound(module)
    p = {n: x.float() if of_model == torch.bfloat16 else x for n, x in tensors(module).items()}
    value = bound(p)
    assert value.dtype == (torch.float64 if of_model == torch.float64 else torch.float32)
    assert bound.near(p)(p) == value
    double = bound.near({n: x.double() for n, x in p.items()})(
        {n: x.double() for n, x in p.items()}
    )
    assert double.dtype == torch.float64


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x, tokens, scale=None):
            return self.linear(x) * tokens[:, None] + (0 if scale is None else scale)

    module = Two().double()
    p = tensors(module)
    expected = F.cross_entropy(module(X, Y), Y)
    for inputs in [(X, Y), [X, Y], {"x": X, "tokens": Y}]:
        close(
            tl.statistics.held_out(F.cross_entropy, inputs, Y).bound(module)(p), expected.detach()
        )
        close(
            tl.statistics.held_out(F.cross_entropy, inputs, Y, batch=5).bound(module)(p),
            expected.detach(),
        )


# accuracy


class Fixed(nn.Module):
    """Outputs its parameter."""

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(torch.as_tensor(output, dtype=torch.float64))

    def forward(self, x):
        return self.output


@pytest.mark.parametrize(
    ("output", "targets", "expected"),
    [
        ([[1, 0], [0, 1], [1, 0]], [0, 1, 1], 2 / 3),
        ([[1], [-1], [2]], [1, 0, 0], 2 / 3),
        ([1, -1, 2], [1.0, -1.0, -1.0], 2 / 3),
        ([[1], [0], [-2]], [[1], [0], [1]], 2 / 3),
        ([[0], [0], [0]], [1, 1, 0], 1 / 3),
        ([1, -1, 2], [True, False, False], 2 / 3),
        ([[[1, 5], [3, 4]], [[0, 0], [1, -1]]], [[1, 0], [0, 0]], 3 / 4),  # (n, C, d)
        ([[1, 0], [0, float("nan")], [1, 0]], [0, 1, 1], float("nan")),
    ],
)
def test_classes(output, targets, expected):
    module = Fixed(output)
    bound = tl.statistics.accuracy(torch.zeros(len(targets), 1), torch.tensor(targets))
    close(bound.bound(module)(tensors(module)), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("output", "targets", "message"),
    [
        ([[1, 0], [0, 1]], [0.0, 1.0], "class numbers, integers"),
        ([[1, 0, 2], [0, 1, 2]], [[0, 1], [1, 0]], "class numbers, integers"),
        ([[1], [2]], [0, 3], r"targets 0 and 1, or -1 and 1.*\[0, 3\]"),
        ([[1], [2]], [-1, 0], "targets 0 and 1, or -1 and 1"),
        ([1, 2], [[0, 1], [1, 1]], r"outputs \(2,\) with targets \(2, 2\)"),
    ],
)
def test_classes_that_do_not_fit(output, targets, message):
    module = Fixed(output)
    bound = tl.statistics.accuracy(torch.zeros(2, 1), torch.tensor(targets)).bound(module)
    with pytest.raises(ValueError, match=message):
        bound(tensors(module))


# activations


@pytest.mark.parametrize(
    "reduce",
    [
        lambda h: h.square().mean(0),
        lambda h: (h > 0).double().mean(),
        lambda h: h,  # a view: the ReLU after it works in place
        lambda h: h[0],
    ],
)
def test_reduced_before_later_layers_work_in_place(reduce):
    module = normalized()
    p = steps_of(module)[-1]
    own = set_to(module, p)
    with torch.no_grad():
        expected = reduce(own[1](own[0](X)))
    close(tl.statistics.activations("1", X, reduce=reduce).bound(module)(p), expected)
    with torch.no_grad():
        close(tl.statistics.activations("", X, reduce=reduce).bound(module)(p), reduce(own(X)))
    assert not module[1]._forward_hooks


class Reusing(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice, self.never = nn.Linear(3, 3), nn.Linear(3, 3)
        self.cell = nn.LSTM(3, 2, batch_first=True)

    def forward(self, x):
        return self.cell(self.twice(self.twice(x))[:, None])[0]


def test_layers_that_have_no_one_output():
    module = Reusing().double()
    p = tensors(module)
    for layer, calls in [("twice", 2), ("never", 0)]:
        with pytest.raises(ValueError, match=f"layer '{layer}' once, got {calls} calls"):
            tl.statistics.activations(layer, X).bound(module)(p)
    with pytest.raises(TypeError, match="got tuple: give reduce="):
        tl.statistics.activations("cell", X).bound(module)(p)
    tl.statistics.activations("cell", X, reduce=lambda h: h[0].mean()).bound(module)(p)
    with pytest.raises(ValueError, match=r"a layer among \['', 'twice', 'never', 'cell'\]"):
        tl.statistics.activations("cel", X).bound(module)


# gradients


def test_frozen_parameters_have_no_gradient():
    module = perceptron()
    module[0].requires_grad_(False)
    p = tensors(module)
    value = tl.statistics.gradient_norm(F.cross_entropy, X, Y).bound(module)(p)
    F.cross_entropy(module(X), Y).backward()
    own = [q.grad for q in module.parameters() if q.requires_grad]
    close(value, torch.stack([g.norm() for g in own]).norm())
    module.requires_grad_(False)
    for statistic in (tl.statistics.gradient_norm, tl.statistics.sharpness):
        with pytest.raises(ValueError, match="parameters that require gradients, got none"):
            statistic(F.cross_entropy, X, Y).bound(module)


class OwnSquare(torch.autograd.Function):
    """As people write them: without what torch.func asks for."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Square(nn.Module):
    def __init__(self, own):
        super().__init__()
        self.linear, self.own = nn.Linear(3, 4).double(), own
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x):
        if self.own == "checkpoint":
            return checkpoint(lambda x: self.linear(x) ** 2, x, use_reentrant=False)
        return OwnSquare.apply(self.linear(x)) if self.own else self.linear(x) ** 2


@pytest.mark.parametrize("own", ["function", "checkpoint"])
def test_what_torch_func_does_not_take(own):
    torch.manual_seed(3)
    plain = Square(None)
    p = tensors(plain)
    for make in (tl.statistics.gradient_norm, tl.statistics.sharpness):
        statistic = make(F.cross_entropy, X, Y)
        close(statistic.bound(Square(own))(p), statistic.bound(plain)(p), rtol=1e-10)


# sharpness


def dense_hessian(module, loss=F.cross_entropy, targets=Y):
    names = [n for n, q in module.named_parameters() if q.requires_grad]
    own = dict(module.named_parameters())
    shapes = [own[n].shape for n in names]

    def of(flat):
        parts = flat.split([s.numel() for s in shapes])
        values = {n: x.reshape(s) for n, x, s in zip(names, parts, shapes, strict=True)}
        return loss(torch.func.functional_call(module, values, (X,)), targets)

    start = torch.cat([own[n].detach().reshape(-1) for n in names])
    return torch.autograd.functional.hessian(of, start)


@networks
def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian(kind):
    module = NETWORKS[kind]()
    bound = tl.statistics.sharpness(F.cross_entropy, X, Y).bound(module)
    for p in steps_of(module):
        value = bound(p)
        eigenvalues = torch.linalg.eigvalsh(dense_hessian(set_to(module, p)))
        close(value, eigenvalues[-1], rtol=1e-5)
        assert value <= eigenvalues[-1] + 1e-12
        assert torch.equal(bound(p), value)


def test_sharpness_of_some_layers():
    module = perceptron()
    module[0].requires_grad_(False)
    value = tl.statistics.sharpness(F.cross_entropy, X, Y).bound(module)(tensors(module))
    close(value, torch.linalg.eigvalsh(dense_hessian(module))[-1], rtol=1e-5)


def test_a_larger_negative_eigenvalue_does_not_fool_it():
    """Power iteration would find the wrong end."""
    module = perceptron()

    def loss(output, target):
        return -F.cross_entropy(output, target)

    p = steps_of(module)[-1]
    value = tl.statistics.sharpness(loss, X, Y).bound(module)(p)
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(set_to(module, p), loss))
    assert -eigenvalues[0] > 1.5 * eigenvalues[-1]
    close(value, eigenvalues[-1], rtol=1e-4)


def test_no_curvature_is_zero():
    module = nn.Linear(3, 4).double()
    linear = tl.statistics.sharpness(lambda out, target: out.mean(), X, Y).bound(module)
    constant = tl.statistics.sharpness(lambda out, target: target.double().mean(), X, Y)
    for bound in (linear, constant.bound(module)):
        assert bound(tensors(module)) == 0


def test_too_few_iterations_are_said_aloud_and_give_a_lower_bound():
    module = perceptron()
    p = steps_of(module)[-1]
    largest = torch.linalg.eigvalsh(dense_hessian(set_to(module, p)))[-1]
    with pytest.warns(RuntimeWarning, match=r"2 iterations did not reach .* lower bound"):
        value = tl.statistics.sharpness(F.cross_entropy, X, Y, iterations=2).bound(module)(p)
    assert value < largest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tl.statistics.sharpness(F.cross_entropy, X, Y).bound(module)(p)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_the_residual_is_what_it_says(tolerance):
    generator = torch.Generator().manual_seed(4)
    A = torch.randn(60, 60, generator=generator, dtype=torch.float64)
    H = A + A.mT
    start = torch.randn(60, generator=generator, dtype=torch.float64)
    value, residual = largest_eigenvalue(lambda v: H @ v, start, 60, tolerance)
    eigenvalues = torch.linalg.eigvalsh(H)
    assert residual <= tolerance * abs(value)
    assert float((eigenvalues - value).abs().min()) <= residual + 1e-12
    assert value <= eigenvalues[-1] + 1e-12


@pytest.mark.parametrize(
    "eigenvalues",
    [[1.0], [2.0, 2.0, 2.0], [0.0, 0.0], [-5.0, -1.0, -3.0], [1e-30, -1e-30], [1e20, -1e25, 3.0]],
)
def test_spectra_at_the_border(eigenvalues):
    """Multiple, zero, all negative, tiny, huge: the space is exhausted before the iterations."""
    H = torch.tensor(eigenvalues, dtype=torch.float64)
    value, _ = largest_eigenvalue(lambda v: H * v, torch.ones_like(H), 100, 1e-12)
    largest, scale = max(eigenvalues), max(map(abs, eigenvalues))
    assert abs(value - largest) <= 1e-13 * scale


def test_a_network_that_diverged():
    module = perceptron()
    p = {name: x * float("nan") for name, x in tensors(module).items()}
    for make in (tl.statistics.sharpness, tl.statistics.gradient_norm, tl.statistics.held_out):
        assert make(F.cross_entropy, X, Y).bound(module)(p).isnan()
    assert tl.statistics.accuracy(X, Y).bound(module)(p).isnan()


@pytest.mark.parametrize("layer", ["attention", "lstm"])
def test_layers_with_fused_kernels(layer):
    """Which have no second derivative of their own."""
    torch.manual_seed(6)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTM(3, 2, batch_first=True)
            self.attention = nn.TransformerEncoderLayer(3, 1, 4, batch_first=True)
            self.head = nn.Linear(3 if layer == "attention" else 2, 4)
            delattr(self, "cell" if layer == "attention" else "attention")

        def forward(self, x):
            x = x.reshape(-1, 1, 3).expand(-1, 2, 3)
            h = self.attention(x) if layer == "attention" else self.cell(x)[0]
            return self.head(h[:, -1])

    module = Net().double().eval()
    p = tensors(module)
    value = tl.statistics.sharpness(F.cross_entropy, X, Y).bound(module)(p)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        eigenvalues = torch.linalg.eigvalsh(dense_hessian(module))
    close(value, eigenvalues[-1], rtol=1e-5)
    norm = tl.statistics.gradient_norm(F.cross_entropy, X, Y).bound(module)(p)
    F.cross_entropy(module(X), Y).backward()
    close(norm, torch.stack([q.grad.norm() for q in module.parameters()]).norm())


# norms


def test_norms_are_each_parameters_own():
    model = normalized()
    found = tl.statistics.norms(model)
    p = tensors(model)
    assert list(found) == [f"norm.{name}" for name, _ in model.named_parameters()]
    for name, q in model.named_parameters():
        close(found[f"norm.{name}"](p), sum(float(x) ** 2 for x in q.detach().reshape(-1)) ** 0.5)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert list(tl.statistics.norms(tied)) == ["norm.0.weight", "norm.0.bias", "norm.1.bias"]


def test_norms_beside_others():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    u = {**tl.statistics.norms(model), "sum": lambda p: p["weight"].sum()}
    assert tl.track(model, optimizer, u).trajectory().names == ["norm.weight", "norm.bias", "sum"]


def test_norms_of_nothing():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got list"):
        tl.statistics.norms([torch.ones(2)])
    with pytest.raises(ValueError, match="module with parameters, got ReLU without"):
        tl.statistics.norms(nn.ReLU())


# arguments

LOSS = F.cross_entropy


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda s: s.held_out("mse", X, Y), TypeError, r"loss\(output, target\).*got 'mse'"),
        (lambda s: s.held_out(nn.CrossEntropyLoss, X, Y), TypeError, "expected loss as a function"),
        (lambda s: s.gradient_norm(None, X, Y), TypeError, "expected loss as a function"),
        (lambda s: s.sharpness(3, X, Y), TypeError, "expected loss as a function"),
        (lambda s: s.held_out(LOSS, X, Y[:5]), ValueError, r"same n >= 1 .*\(12, 3\).*\(5,\)"),
        (lambda s: s.held_out(LOSS, (X, X[:3]), Y), ValueError, r"inputs\[1\]': \(3, 3\)"),
        (lambda s: s.held_out(LOSS, {"x": X, "y": X[:3]}, Y), ValueError, r"'y': \(3, 3\)"),
        (lambda s: s.accuracy(X[:0], Y[:0]), ValueError, "same n >= 1"),
        (lambda s: s.accuracy(torch.tensor(1.0), Y), ValueError, "same n >= 1"),
        (lambda s: s.accuracy((), Y[:0]), ValueError, "at least one input"),
        (lambda s: s.held_out(LOSS, X.numpy(), Y), TypeError, "inputs as a tensor.*got ndarray"),
        (lambda s: s.held_out(LOSS, X, Y.tolist()), TypeError, "targets as a tensor.*got list"),
        (lambda s: s.held_out(LOSS, X, None), TypeError, "targets as a tensor.*got None"),
        (lambda s: s.activations("0", [X, 1]), TypeError, r"inputs\[1\] as a tensor.*got int"),
        (lambda s: s.held_out(LOSS, X, Y, batch=0), ValueError, "batch to be an int >= 1"),
        (lambda s: s.activations(0, X), TypeError, "layer as a name, got int"),
        (lambda s: s.activations("0", X, reduce=2), TypeError, "reduce as a function"),
        (lambda s: s.sharpness(LOSS, X, Y, iterations=0), ValueError, "iterations to be an int"),
        (lambda s: s.sharpness(LOSS, X, Y, tolerance=0), ValueError, "tolerance to be a finite"),
        (lambda s: s.sharpness(LOSS, X, Y, seed=-1), ValueError, "seed as an int >= 0"),
    ],
)
def test_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make(tl.statistics)


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, target: F.cross_entropy(out, target, reduction="none"),
        lambda out, target: 1.0,
        lambda out, target: None,
    ],
)
@pytest.mark.parametrize("name", ["held_out", "gradient_norm", "sharpness"])
def test_losses_that_are_no_number(loss, name):
    module = perceptron()
    bound = getattr(tl.statistics, name)(loss, X, Y).bound(module)
    with pytest.raises(ValueError, match="return its mean over the samples"):
        bound(tensors(module))


def test_in_track_they_are_named():
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="a layer among"):
        tl.track(model, optimizer, {"a": tl.statistics.activations("9", X)})
    with pytest.raises(tl.StatisticError, match="statistic 'h' failed with ValueError: expected l"):
        tl.track(model, optimizer, {"h": tl.statistics.held_out(lambda out, y: out, X, Y)})


@pytest.mark.gpu
def test_on_cuda():
    """Data given on the CPU go to the model; generators there are left alone too."""
    module = normalized()
    p = steps_of(module)[-1]
    there = copy.deepcopy(module).cuda()
    moved = {n: x.cuda() for n, x in p.items()}
    statistics = [make() for make, _ in STATISTICS.values()]
    statistics.append(tl.statistics.sharpness(F.cross_entropy, X, Y))
    for statistic in statistics:
        value = statistic.bound(there)(moved)
        assert value.device.type == "cuda"
        close(value.cpu(), statistic.bound(module)(p), rtol=1e-9)
        close(statistic.bound(module)(moved).cpu(), value.cpu())  # bound before the model moved
    x = X.cuda()
    dropout = tl.statistics.of_model(lambda m: m(x).sum(), train=True).bound(there)
    before = torch.cuda.get_rng_state()
    first = dropout(moved)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.rand(3, device="cuda")
    assert dropout(moved) == first
