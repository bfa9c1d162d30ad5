"""Squared gradients of samples by products, against those of single samples."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchlimits as tl


class Tied(nn.Module):
    """A weight that a layer uses, and another place, too."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, h):
        return F.linear(torch.tanh(self.inner(h)), self.inner.weight.mT)[:, :2]


class Tokens(nn.Module):
    """A layer with a row for each entry of a sample."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(1, 2)

    def forward(self, h):
        return torch.tanh(self.inner(h[:, :, None])).sum(1)


class Shared(nn.Module):
    """A layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, h):
        return self.last(torch.tanh(self.inner(torch.tanh(self.inner(h)))))


class Equal(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.last.weight = self.inner.weight

    def forward(self, h):
        return self.last(torch.tanh(self.inner(h)))[:, :2]


class Idle(nn.Module):
    """A layer whose output counts for some samples only."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, h):
        return self.last(h + torch.relu(h[:, :1]) * self.inner(h))


def frozen():
    head = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    head[0].weight.requires_grad_(False)
    head[2].bias.requires_grad_(False)
    return head


#: heads of three numbers with two outputs, and whether products do
HEADS = {
    "linear": (lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 2)), True),
    "no bias": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2, bias=False)), True),
    "two": (
        lambda: nn.Sequential(nn.GELU(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2), nn.Tanh()),
        True,
    ),
    "frozen": (frozen, True),
    "idle": (Idle, True),
    "none": (lambda: nn.Sequential(nn.Tanh(), nn.Flatten(), nn.AvgPool1d(2, 1)), True),
    "norm": (lambda: nn.Sequential(nn.Tanh(), nn.LayerNorm(3), nn.Linear(3, 2)), False),
    "shared": (Shared, False),
    "equal": (Equal, False),
    "tied": (Tied, False),
    "tokens": (Tokens, False),
}  # fmt: skip

DATA = {
    "classes": {"loss": F.cross_entropy, "labels": torch.tensor([0, 1])},
    "flips": {"loss": F.cross_entropy, "labels": torch.tensor([0, 1]), "label_flips": 0.2},
    "noise": {"loss": F.smooth_l1_loss, "labels": lambda x, _: x.tanh(), "label_noise": 0.3},
}


def field_of(head, data="classes"):
    torch.manual_seed(0)
    problem = tl.NetworkProblem(
        dim=60, width=3, head=HEADS[head][0](), snr=4.0, means=torch.eye(2, 60), **DATA[data]
    )
    dynamics = problem.dynamics(torch.optim.Adam(problem.model().parameters(), lr=1 / 60), nodes=64)
    return dynamics.network, dynamics.limit.axes, problem.starts(3)


CASES = [*((head, "classes") for head in HEADS), ("two", "flips"), ("two", "noise")]


@pytest.mark.parametrize(("head", "data"), CASES)
def test_squares_are_those_of_single_samples(head, data):
    field, axes, u = field_of(head, data)
    assert field.integrals.layers.complete == HEADS[head][1]
    averages, squares = field.gradients(u, axes)
    for ours, alone in zip(averages, field.averages(u), strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-12, atol=1e-13)
    for row, point in enumerate(u):
        weight, by_theta, g, along, _ = field.samples(point)
        theta = sum(w * x**2 for w, x in zip(weight, by_theta, strict=True))
        x = along[:, :2] @ axes
        on_axes = sum(w * torch.outer(a**2, b**2) for w, a, b in zip(weight, g, x, strict=True))
        torch.testing.assert_close(squares.theta[row], theta, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(squares.axes[row], on_axes, rtol=1e-12, atol=1e-15)
    for ours, alone in zip(squares, field.squares(u, axes), strict=True):
        assert torch.equal(ours, alone)


def test_one_output_and_many_noises():
    """More targets than outputs: derivatives of outputs, not of losses."""
    torch.manual_seed(0)
    problem = tl.NetworkProblem(
        dim=60, width=2, head=nn.Sequential(nn.Tanh(), nn.Linear(2, 1)), snr=4.0, label_noise=0.5,
        loss=F.mse_loss, means=torch.eye(1, 60), labels=torch.tensor([1.0]),
    )  # fmt: skip
    optimizer = torch.optim.Adam(problem.model().parameters(), lr=1 / 60)
    dynamics = problem.dynamics(optimizer, nodes=64)
    field, u = dynamics.network, problem.starts(2)
    assert field.integrals.targets(u)[1].shape[1] > 1
    squares = field.squares(u, dynamics.limit.axes)
    for row, point in enumerate(u):
        weight, by_theta, *_ = field.samples(point)
        torch.testing.assert_close(squares.theta[row], weight @ by_theta**2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("head", ["norm", "shared", "equal", "tied", "tokens"])
def test_products_would_be_wrong_where_they_are_not_taken(head):
    """Unless a layer is not called once, or other parameters are there: no products at all."""
    field, axes, u = field_of(head)
    layers, right = field.integrals.layers, field.squares(u, axes).theta
    vars(layers)["complete"] = True
    try:
        wrong = field.squares(u, axes).theta
    except (ValueError, KeyError):
        return
    assert (wrong - right).abs().max() > 1e-3 * right.abs().max()


def test_other_precisions_and_shapes():
    field, axes, u = field_of("two")
    averages, squares = field.gradients(u.float()[:, None], axes)
    assert averages.theta.dtype == squares.theta.dtype == torch.float32
    assert squares.theta.shape[:2] == squares.axes.shape[:2] == (3, 1)
    assert field.gradients(u[0], axes)[1].axes.shape == (3, 2)
    assert [len(x) for part in field.gradients(u[:0], axes) for x in part] == [0] * 7


def test_fields_of_ones_own_have_two_passes():
    field, axes, u = field_of("linear")
    inherited = super(type(field).__mro__[1], field).gradients(u, axes)
    for ours, both in zip(field.gradients(u, axes), inherited, strict=True):
        for x, y in zip(ours, both, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)
