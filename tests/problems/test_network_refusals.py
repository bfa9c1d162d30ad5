"""What has no limit is refused with a sentence; odd heads and losses that have one are taken."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchlimits as tl

N, K = 20, 3


def problem(**given):
    """Three classes; every argument can be another one."""
    arguments = {
        "dim": N, "width": K, "head": nn.Sequential(nn.Tanh(), nn.Linear(K, 3)),
        "loss": F.cross_entropy, "labels": torch.tensor([0, 1, 2]), "snr": 4.0,
        "means": torch.eye(3, N),
    }  # fmt: skip
    return tl.NetworkProblem(**{**arguments, **given})


def refused(kind, words, **given):
    """The message, which says what was expected and what came."""
    with pytest.raises(kind, match=words) as found:
        problem(**given)
    message = str(found.value)
    assert message.startswith("expected"), message
    assert "got" in message, message
    return message


class Of(nn.Module):
    """A head that is a function."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function, self.inner = function, nn.Linear(K, 3)
        for name, value in parameters.items():
            setattr(self, name, value)

    def forward(self, h):
        return self.function(self, h)


class Law:
    """A label law made of two functions."""

    def __init__(self, law, sample=lambda x, a, generator: a):
        self.law, self.sample = law, sample


# --- heads ----------------------------------------------------------------------------------------


def counted(s, h):
    s.calls = getattr(s, "calls", 0) + 1
    return s.inner(h) * s.calls


HEADS = {
    "BatchNorm": (nn.Sequential(nn.BatchNorm1d(K), nn.Linear(K, 3)), "BatchNorm1d .*couples"),
    "statistics of the batch": (Of(lambda s, h: s.inner(h - h.mean(0))), "rest of the batch"),
    "BatchNorm that keeps none": (
        nn.Sequential(nn.BatchNorm1d(K, track_running_stats=False), nn.Linear(K, 3)).eval(),
        "rest of the batch",
    ),
    "the batch's largest": (Of(lambda s, h: s.inner(h) / h.detach().max()), "couples samples"),
    "Dropout": (nn.Sequential(nn.Linear(K, 3), nn.Dropout(0.1)), r"Dropout\(0.1\)"),
    "dropout as a function": (Of(lambda s, h: F.dropout(s.inner(h), 0.5)), "without randomness"),
    "randomness of its own": (
        Of(lambda s, h: s.inner(h) + torch.randn(len(h), 1)),
        "without randomness",
    ),
    "a state of its own": (Of(counted), "state that each call changes"),
    "not finite": (Of(lambda s, h: s.inner(h).log()), "finite outputs"),
    "gradients not finite": (
        Of(lambda s, h: s.inner(h + (0 * h).sqrt())),
        "finite gradients",
    ),
    "another width": (nn.Linear(K + 1, 3), rf"h of shape \(batch, {K}\)"),
    "one output for all": (Of(lambda s, h: s.inner(h).mean(0)), "one output a sample"),
    "a number": (Of(lambda s, h: s.inner(h).sum()), "one output a sample"),
    "several outputs": (Of(lambda s, h: (s.inner(h), h)), "tuple"),
    "integers": (Of(lambda s, h: (s.inner(h) > 0).long()), "dtype of h, got torch.int64"),
    "single precision": (Of(lambda s, h: s.inner(h).float()), "dtype of h, got torch.float32"),
    "constants in no buffer": (Of(lambda s, h: h @ torch.ones(K, 3)), "buffers"),
    "control flow on h": (
        Of(lambda s, h: s.inner(h) if h.abs().max() > 1e-9 else s.inner(-h)),
        "torch.func.vmap",
    ),
    "a parameter without use": (
        Of(lambda s, h: s.inner(h), spare=nn.Parameter(torch.ones(2))),
        "head.spare .*SGD leaves",
    ),
    "a parameter without a value": (nn.LazyLinear(3), "parameters with values, got 'head.weight'"),
}


@pytest.mark.parametrize("name", [*HEADS])
def test_heads_without_a_limit_are_refused(name):
    head, words = HEADS[name]
    refused(ValueError, words, head=head)


@pytest.mark.parametrize("head", [torch.tanh, nn.Tanh, None, "tanh"])
def test_a_head_is_a_module(head):
    refused(TypeError, "head as a torch.nn.Module", head=head)


def test_a_network_has_something_to_train():
    frozen = nn.Linear(K, 3).requires_grad_(False)
    problem(head=frozen)  # the first layer is trained
    model = nn.Sequential(nn.Linear(N, K), nn.Linear(K, 3)).requires_grad_(False)
    with pytest.raises(ValueError, match="none that requires a gradient"):
        tl.NetworkProblem.of(
            model, loss=F.cross_entropy, labels=torch.tensor([0]), snr=1.0, means=torch.eye(1, N)
        )


# --- odd heads that are right ---------------------------------------------------------------------


class Scaled(nn.Module):
    """One parameter of shape (), none of a matrix."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, h):
        return self.scale * h


class InPlace(nn.Module):
    """The first thing that it does changes h."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(K, 3)

    def forward(self, h):
        h.mul_(0.5).add_(0.1).tanh_()
        return self.inner(h)


class Recurrent(nn.Module):
    """A loop of as many turns as there are outputs, and a choice by value."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(K, K)
        self.register_buffer("shift", torch.tensor([0.1, 0.0, -0.1]))

    def forward(self, h):
        for _ in range(K):
            h = torch.where(h > 0, torch.tanh(self.inner(h)), h.sin()) + self.shift
        return h


class Shared(nn.Module):
    """One layer under two names, and one weight in two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.c, self.d = nn.Linear(K, K), nn.Linear(K, K), nn.Linear(K, K, bias=False)
        self.b, self.d.weight = self.a, self.c.weight

    def forward(self, h):
        return self.d(torch.tanh(self.c(self.b(torch.tanh(self.a(h))))))


ODD = {
    "no parameters": nn.Softplus(),
    "nothing at all": nn.Identity(),
    "a number": Scaled(),
    "in place": InPlace(),
    "in place first": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(K, 3)),
    "a loop": Recurrent(),
    "LayerNorm": nn.Sequential(nn.Linear(K, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 3)),
    "shared": Shared(),
    "BatchNorm at rest": nn.Sequential(nn.BatchNorm1d(K), nn.Linear(K, 3)).eval(),
    "weight norm": nn.Sequential(
        nn.GELU(), nn.utils.parametrizations.weight_norm(nn.Linear(K, 3, bias=False))
    ),
}


@pytest.mark.parametrize("name", [*ODD])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_odd_heads_have_the_gradients_of_their_modules(name):
    one = problem(head=ODD[name])
    model = one.model(dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    copies = one.model(replicas=(2,), dtype=torch.float64)
    with torch.no_grad():
        for stacked, parameter in zip(copies.parameters(), model.parameters(), strict=True):
            stacked.copy_(parameter)
    u = one.statistics(dict(model.named_parameters())).detach()
    assert torch.allclose(one.statistics(dict(copies.named_parameters())), u.expand(2, -1))
    generator = torch.Generator().manual_seed(1)
    x, y = one.sample(4096, generator=generator, dtype=torch.float64)
    one.loss(model(x), y).backward()
    some, same = x[:5].expand(2, 5, N), y[:5].expand(2, 5)
    assert torch.allclose(copies(some)[1], model(x[:5]))
    one.loss(copies(some), same).backward()
    alone = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    one.loss(model(x[:5]), y[:5]).backward()
    for key, stacked in copies.named_parameters():
        assert torch.allclose(stacked.grad[0], model.get_parameter(key).grad), key
    # the population's, by nodes, against those of data: the head's parameters come first in u
    measured = [alone[key].flatten() for key in alone if key.startswith("head.")]
    drift = one.dynamics(step_size=1.0, nodes=2**9).drift(u)
    assert torch.allclose(drift[: -K - 9 - 6], -torch.cat([u[:0], *measured]), atol=0.03)


# --- losses ---------------------------------------------------------------------------------------


class Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.zeros(()))

    def forward(self, output, target):
        return F.cross_entropy(output * self.log.exp(), target)


def noisy(output, target):
    return F.cross_entropy(output + 0.1 * torch.randn_like(output), target)


def contrastive(output, target):
    return F.cross_entropy(output @ output.mT, torch.arange(len(output)))


LOSSES = {
    "a sum": (lambda o, y: F.cross_entropy(o, y, reduction="sum"), "mean over the batch"),
    "no reduction": (lambda o, y: F.cross_entropy(o, y, reduction="none"), "as one number"),
    "several": (lambda o, y: (F.cross_entropy(o, y), o), "tuple"),
    "a float": (lambda o, y: F.cross_entropy(o, y).item(), "float"),
    "coupled": (contrastive, "couple samples"),
    "class weights": (nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0])), "class weights"),
    "real labels": (nn.BCEWithLogitsLoss(), "give real ones"),
    "a root of the mean": (lambda o, y: F.cross_entropy(o, y).sqrt(), "couple samples"),
    "random": (noisy, "without randomness"),
    "not finite": (lambda o, y: F.cross_entropy(o, y) / 0, "finite loss"),
    "derivatives not finite": (
        lambda o, y: (o - o.detach()).abs().sqrt().mean() + F.cross_entropy(o, y),
        "finite derivatives",
    ),
    "no derivative": (lambda o, y: (o.argmax(-1) != y).double().mean(), "derivative"),
    "parameters": (Temperature(), "with log"),
    "of three": (nn.TripletMarginLoss(), "TypeError"),
    "other shapes": (F.mse_loss, "couple samples|for one sample|RuntimeError"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", [*LOSSES])
def test_losses_without_a_value_for_each_sample_are_refused(name):
    loss, words = LOSSES[name]
    refused(ValueError, words, loss=loss)


@pytest.mark.parametrize("loss", [None, "mse", 3.0, nn.CrossEntropyLoss])
def test_a_loss_is_a_function(loss):
    refused(TypeError, "loss as a function", loss=loss)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_losses_of_torch_and_outputs_of_any_shape_are_taken():
    def finite(one):
        u = one.starts(1, generator=torch.Generator().manual_seed(0))[0]
        dynamics = one.dynamics(step_size=1.0, nodes=64)
        assert bool(dynamics(0.0, u[None]).isfinite().all())
        assert bool(dynamics.risk(u).isfinite())
        model, (x, y) = one.model(replicas=(2, 3)), one.sample(4, replicas=(2, 3))
        assert one.loss(model(x), y).shape == ()

    numbers, means = torch.tensor([0.5, -1.0, 2.0]), torch.eye(3, N)
    finite(problem(loss=nn.CrossEntropyLoss(label_smoothing=0.1)))
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0]))  # in float32
    logit = nn.Sequential(nn.Tanh(), nn.Linear(K, 1))
    finite(problem(loss=weighted, head=logit, labels=torch.tensor([0.0, 1.0, 0.0])))
    finite(problem(loss=nn.MultiMarginLoss()))
    finite(problem(labels=torch.eye(3)))  # soft labels
    one_output = nn.Sequential(nn.Tanh(), nn.Linear(K, 1))
    no_dimension = nn.Sequential(one_output, nn.Flatten(0))
    for head, loss in ((one_output, nn.HuberLoss()), (no_dimension, F.l1_loss)):
        finite(problem(head=head, labels=numbers, loss=loss))
        finite(
            problem(head=head, labels=torch.tensor([0.0, 1.0, 1.0]), label_flips=0.1,
                    loss=F.binary_cross_entropy_with_logits)
        )  # fmt: skip
    matrix = nn.Sequential(nn.Linear(K, 6), nn.Unflatten(1, (2, 3)))
    finite(problem(head=matrix, labels=torch.randn(3, 2, 3), loss=F.mse_loss, means=means))
    two = nn.Linear(K, 2)
    finite(problem(head=two, labels=torch.randn(3, 2), loss=F.mse_loss, label_noise=0.3))


# --- labels ---------------------------------------------------------------------------------------

PAIR = (torch.zeros(1, 1), torch.ones(1, 1))
LABELS = {
    "x outside the directions": (lambda x, a: (x[:, 7] > 0).long(), "directions="),
    "all of x": (lambda x, a: (x @ torch.ones(N).double() > 0).long(), "directions="),
    "random": (lambda x, a: torch.randint(3, (len(x),)), "random labels need a law"),
    "those of the others": (lambda x, a: (x[:, 0] > x[:, 0].mean()).long(), "own x_parallel"),
    "another number": (torch.tensor([0, 1]), r"shape \(3, ...\)"),
    "a scalar": (torch.tensor(0), r"shape \(3, ...\)"),
    "of another length": (lambda x, a: a[:1], r"of shape \(\d+, ...\)"),
    "no tensor": (lambda x, a: [0] * len(a), "list"),
    "no such class": (torch.tensor([0, 1, 3]), "out of bounds"),
    "not finite": (torch.tensor([[0.0, 1.0, math.nan]] * 3), "finite labels"),
    "a law of something else": (Law(lambda x, a: a), r"targets \(n, q"),
    "a law that fails": (Law(lambda x: PAIR), "TypeError"),
    "a law without shares": (Law(lambda x, a: (a[:, None],)), "probabilities"),
    "shares that are none": (Law(lambda x, a: (a[:, None], 0.5 + 0 * x[:, :1])), "sum is 1"),
    "samples of another shape": (
        Law(lambda x, a: (a[:, None], 1 + 0 * x[:, :1]), lambda x, a, generator: a[:, None]),
        r"labels.sample\(...\) of shape",
    ),
    "samples of another kind": (
        Law(lambda x, a: (a[:, None], 1 + 0 * x[:, :1]), lambda x, a, generator: a.double()),
        "of one kind",
    ),
    "samples that fail": (
        Law(lambda x, a: (a[:, None], 1 + 0 * x[:, :1]), lambda x, a: a),
        "TypeError",
    ),
    "a class, not an object": (Law, "got Law"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*LABELS])
def test_labels_without_a_law_of_their_own_are_refused(name):
    labels, words = LABELS[name]
    refused(ValueError, words, labels=labels)


@pytest.mark.parametrize("labels", [None, "012", 7])
def test_labels_are_a_tensor_a_function_or_a_law(labels):
    refused(TypeError, "labels as a tensor", labels=labels)


# --- numbers --------------------------------------------------------------------------------------

NUMBERS = {
    "labels": torch.tensor([0.5, 1.0, 2.0]), "head": nn.Linear(K, 1), "loss": F.mse_loss,
}  # fmt: skip
ARGUMENTS = {
    "no room for R": (ValueError, {"dim": 5, "means": torch.eye(3, 5)}, "= 6, got dim=5"),
    "no noise": (ValueError, {"snr": math.inf}, "snr to be a finite number > 0"),
    "no snr": (ValueError, {"snr": 0.0}, "snr"),
    "snr as a text": (TypeError, {"snr": "4"}, "snr to be a number"),
    "noise on classes": (ValueError, {"label_noise": 0.1}, "classes are flipped"),
    "noise < 0": (ValueError, {"label_noise": -0.1}, "label_noise"),
    "noise on many numbers": (
        ValueError,
        {**NUMBERS, "labels": torch.ones(3, 4), "head": nn.Linear(K, 4), "label_noise": 0.1},
        "at most 3 numbers",
    ),
    "flips of numbers": (
        ValueError,
        {**NUMBERS, "label_flips": 0.1},
        "label_noise is for labels that are real numbers",
    ),
    "flips of classes that are not there": (
        ValueError,
        {"labels": torch.tensor([0, 1, 5]), "label_flips": 0.1},
        "classes 0 to 2",
    ),
    "flips > 1": (ValueError, {"label_flips": 1.5}, "probabilities"),
    "flips of two classes": (ValueError, {"label_flips": torch.eye(2)}, r"\(3, 3\)"),
    "flips as a flag": (TypeError, {"label_flips": True}, "label_flips"),
    "width": (ValueError, {"width": 0}, "width to be an int >= 1"),
    "width as a number": (ValueError, {"width": 3.0}, "width to be an int >= 1"),
    "dim": (ValueError, {"dim": -1}, "dim to be an int >= 1"),
    "ridge": (ValueError, {"ridge": -1.0}, "ridge"),
    "means of another dimension": (ValueError, {"means": torch.eye(3, N + 1)}, rf"\(A, {N}\)"),
    "one mean as a vector": (ValueError, {"means": torch.ones(N)}, rf"\(A, {N}\)"),
    "means not finite": (ValueError, {"means": torch.full((3, N), math.nan)}, "finite rows"),
    "means as a text": (TypeError, {"means": "eye"}, "means as a tensor"),
    "means that are not orthonormal": (ValueError, {"means": 2 * torch.eye(3, N)}, "orthonormal"),
    "directions that are not orthonormal": (
        ValueError,
        {"directions": 2 * torch.eye(3, N)},
        "orthonormal",
    ),
    "directions that do not span the means": (
        ValueError,
        {"directions": torch.eye(2, N)},
        "in the span of the directions",
    ),
    "directions of another dimension": (ValueError, {"directions": torch.eye(3)}, r"\(d, 20\)"),
    "weights": (ValueError, {"weights": [0.5, 0.6, 0.1]}, "with the sum 1.2"),
    "two weights": (ValueError, {"weights": [0.5, 0.5]}, r"shape \(3,\)"),
    "dtype": (TypeError, {"dtype": torch.long}, "real numbers"),
    "dtype as a text": (TypeError, {"dtype": "float64"}, "real numbers"),
    "device": (ValueError, {"device": "nowhere"}, "device"),
    "bias": (TypeError, {"bias": "no"}, "bias as True or False"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ARGUMENTS])
def test_arguments_out_of_range_are_refused(name):
    kind, given, words = ARGUMENTS[name]
    refused(kind, words, **given)


def test_calls_out_of_range_are_refused():
    one = problem()
    for call, words in (
        (lambda: one.dynamics(), "either an optimizer or step_size"),
        (lambda: one.dynamics(step_size=-1.0), "step_size"),
        (lambda: one.dynamics(step_size=1.0, nodes=0), "nodes"),
        (lambda: one.dynamics(step_size=1.0, dim=0), "dim"),
        (lambda: one.sample(0), "batch"),
        (lambda: one.starts(0), "count"),
        (lambda: one.loss(torch.zeros(4, 3), torch.zeros(5).long()), "the same replicas and batch"),
        (lambda: one.dynamics(step_size=1.0).risk(torch.zeros(3)), "shape"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match=r"expected torch\.optim\.SGD"):
        one.dynamics(torch.optim.NAdam(one.model().parameters()))
    numbers = problem(**NUMBERS)
    with pytest.raises(ValueError, match="labels that are classes for an accuracy"):
        numbers.dynamics(step_size=1.0, nodes=64).accuracy(numbers.starts(1))
