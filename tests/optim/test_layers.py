"""Which parameter of an optimizer is which of the network's: by identity, name, shape, or not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import torchlimits as tl
from torchlimits.optim.parameter_groups import Layers
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit

N, K = 30, 4
#: of `network`; None is N. Two parameters have one shape twice: (4,) and (4, 4)
SHAPES = {
    "first.weight": (K, None),
    "first.bias": (K,),
    "head.1.weight": (K, K),
    "head.1.bias": (K,),
    "head.3.weight": (K, K),
    "head.3.bias": (K,),
    "head.5.weight": (1, K),
}
ALIKE = {"first.bias", "head.1.bias", "head.3.bias"}


class Network(nn.Module):
    def __init__(self, dim=N):
        super().__init__()
        self.first = nn.Linear(dim, K)
        self.head = nn.Sequential(
            nn.Tanh(), nn.Linear(K, K), nn.Tanh(), nn.Linear(K, K), nn.Tanh(),
            nn.Linear(K, 1, bias=False),
        )  # fmt: skip


def read(optimizer, **options):
    return Layers.of(optimizer, **{"parameters": SHAPES, "dims": {N}, "dim": N, **options})


def groups(model, rates, named=False):
    """One group for each parameter, its learning rate times the number given, 1 if none is."""
    return torch.optim.SGD(
        [
            {"params": [(name, p) if named else p], "lr": 0.1 * rates.get(name, 1.0)}
            for name, p in model.named_parameters()
        ],
        lr=0.1,
    )


def expected(**rates):
    return pytest.approx({name: rates.get(name.replace(".", "_"), 1.0) for name in SHAPES})


RATES = {"head.1.bias": 3.0, "head.3.weight": 0.0, "first.bias": 0.5}
SPEEDS = expected(head_1_bias=3.0, head_3_weight=0.0, first_bias=0.5)


@pytest.mark.parametrize("named", [False, True])
def test_by_identity_with_a_model(named):
    """The order in which they come, and what the optimizer calls them, do not matter then."""
    model = Network()
    optimizer = groups(model, RATES, named)
    optimizer.param_groups[:] = [*reversed(optimizer.param_groups)]
    assert read(optimizer, model=model).speeds == SPEEDS
    for group in optimizer.param_groups:
        group["param_names"] = ["head.1.bias"]
    assert read(optimizer, model=model).speeds == SPEEDS


def test_by_the_names_of_an_optimizer_of_named_parameters():
    optimizer = groups(Network(), RATES, named=True)
    optimizer.param_groups[:] = [*reversed(optimizer.param_groups)]
    assert read(optimizer).speeds == SPEEDS
    # what it does not hold does not move
    model = Network()
    some = torch.optim.SGD([("first.bias", model.first.bias)], lr=0.1)
    assert read(some).speeds == {**dict.fromkeys(SHAPES, 0.0), "first.bias": 1.0}


@pytest.mark.parametrize("replicas", [(), (K,), (2, 3)])
def test_by_shape(replicas):
    """All of one shape have the same settings; copies have leading dimensions, K of them too."""
    rates = {name: 2.0 if len(SHAPES[name]) == 2 else 0.5 for name in SHAPES}
    held = [nn.Parameter(torch.zeros(*replicas, *(s or N for s in x))) for x in SHAPES.values()]
    optimizer = torch.optim.SGD(
        [{"params": [p], "lr": r} for p, r in zip(held, rates.values(), strict=True)], lr=1.0
    )
    assert read(optimizer).speeds == {name: rate / 2 for name, rate in rates.items()}


@pytest.mark.parametrize("names", [["a.0", "b.0"], ["first.weight", "b.0"]])
def test_names_of_other_modules_do_not_count(names):
    """The shape decides; so it does where a name is the network's and the shape is not."""
    W, v = (nn.Parameter(torch.zeros(*shape)) for shape in ((K, N), (1, K)))
    optimizer = torch.optim.SGD(
        [{"params": [(names[0], v)], "lr": 1.0}, {"params": [(names[1], W)], "lr": 3.0}], lr=1.0
    )
    shapes = {"first.weight": (K, None), "second.weight": (1, K)}
    assert read(optimizer, parameters=shapes).speeds == {"first.weight": 3.0, "second.weight": 1.0}


def test_N_may_be_another_one_and_others_may_not():
    optimizer = torch.optim.SGD(Network(dim=50).parameters(), lr=0.1)
    assert read(optimizer, dims={N, 50}, dim=10**9).step_size == pytest.approx(1e8)
    with pytest.raises(ValueError, match=r"also holds a parameter of shape \(4, 50\)"):
        read(optimizer)
    with pytest.raises(ValueError, match=r"parameter first.weight of shape \(..., 4, 30\)"):
        read(optimizer, model=Network(dim=50))


@pytest.mark.parametrize("way", ["identity", "name", "shape"])
def test_one_group_gives_plain_settings(way):
    model = Network()
    given = model.named_parameters() if way == "name" else model.parameters()
    optimizer = torch.optim.SGD(given, lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.2)
    found = read(optimizer, batch_size=3, model=model if way == "identity" else None)
    assert found == SGDSettings(3.0, 0.5, weight_decay=0.2, batch_size=3, nesterov=True)


@pytest.mark.parametrize("way", ["identity", "name", "shape"])
def test_what_needs_no_gradient_does_not_move(way):
    """A whole layer, which is told by each of the three ways; another parameter is no matter."""
    model = Network()
    for name in ALIKE:
        model.get_parameter(name).requires_grad_(False)
    model.idle = nn.Parameter(torch.zeros(7), requires_grad=False)
    given = model.named_parameters() if way == "name" else model.parameters()
    optimizer = torch.optim.SGD(given, lr=0.1)
    found = read(optimizer, model=model if way == "identity" else None)
    assert {name for name, s in found.settings.items() if s is None} == ALIKE
    assert found.describe()["head.1.bias"] == "does not move"
    assert found.describe()["head.1.weight.step_size"] == pytest.approx(3.0)
    # a layer that is a weight alone is called by the layer's name
    assert found.describe()["head.5.step_size"] == pytest.approx(3.0)


def frozen_one_of_its_shape():
    model = Network()
    model.head[1].bias.requires_grad_(False)
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda: groups(Network(), {"head.1.bias": 2.0}), "in parameter groups that differ"),
        (frozen_one_of_its_shape, "in parameter groups that differ"),
        (lambda: torch.optim.SGD(Network().head.parameters(), lr=0.1), "only 2 of them"),
    ],
)
def test_parameters_of_one_shape_that_cannot_be_told_apart(make, got):
    with pytest.raises(
        ValueError,
        match=rf"first.bias, head.1.bias, head.3.bias, all of shape \(..., 4\).*{got}: pass "
        r"model=, or build the optimizer from model.named_parameters\(\)",
    ):
        read(make())


def test_several_networks():
    """Alike, they are as one, and so they were for mixtures; otherwise they cannot be told."""
    a, b = Network(), Network()
    parameters = [*a.parameters(), *b.parameters()]
    assert read(torch.optim.SGD(parameters, lr=0.1)).step_size == pytest.approx(3.0)
    differ = [{"params": a.parameters()}, {"params": b.parameters(), "lr": 0.3}]
    with pytest.raises(ValueError, match="several in parameter groups that differ"):
        read(torch.optim.SGD(differ, lr=0.1))
    with pytest.raises(ValueError, match=r"parameters of model=, got one that holds one of shape"):
        read(torch.optim.SGD(parameters, lr=0.1), model=a)
    copies = [nn.Parameter(torch.zeros(2, *p.shape)) for p in a.parameters()]
    with pytest.raises(ValueError, match="the dots being the same for all"):
        read(torch.optim.SGD([*a.parameters(), *copies], lr=0.1))


def test_parameters_that_the_network_does_not_have():
    model = Network()
    model.scale = nn.Parameter(torch.zeros(7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"also holds a parameter of shape \(7,\), which the"):
        read(optimizer)
    with pytest.raises(ValueError, match="one that holds scale, which the network does not have"):
        read(optimizer, model=model)
    with pytest.raises(ValueError, match=r"(?s)parameter first.weight of .* none, of \['weight'"):
        read(optimizer, model=nn.Linear(3, 2))
    for other in ({}, {"model": Network()}):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(7), requires_grad=False)], lr=0.1)
        with pytest.raises(ValueError, match=r"head.5.weight of shape \(..., 1, 4\), got one that"):
            read(optimizer, **other)


def test_a_scalar_parameter():
    """It has no dimensions: whatever parameter there is ends in its shape."""
    shapes = {"first.weight": (K, None), "head.scale": ()}
    W, scale = nn.Parameter(torch.zeros(K, N)), nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([{"params": [W]}, {"params": [scale], "lr": 0.3}], lr=0.1)
    speeds = {"first.weight": 1.0, "head.scale": pytest.approx(3.0)}
    assert read(optimizer, parameters=shapes).speeds == speeds
    assert read(optimizer, parameters=shapes).describe()["head.scale.step_size"] > 0


def test_the_reference_is_the_clock_of_the_recorder():
    """The first group that trains: not one whose rate is 0, nor one that requires no gradient."""
    model = Network()
    model.first.weight.requires_grad_(False)
    optimizer = groups(model, {"first.bias": 0.0, "head.1.weight": 2.0, "head.3.bias": 5.0})
    found = read(optimizer, model=model)
    assert found.reference.step_size == pytest.approx(0.2 * N)
    assert found.speeds["head.3.bias"] == pytest.approx(2.5)
    with tl.track(model, optimizer, {"b": lambda p: p["head.3.bias"].sum()}) as tracker:
        model.head[3].bias.grad = torch.zeros(K)
        optimizer.step()
    assert float(tracker.trajectory().times[-1]) == pytest.approx(found.reference.step_size / N)


def test_other_options_of_the_groups():
    model = Network()
    optimizer = groups(model, {})
    one, other = optimizer.param_groups[0], optimizer.param_groups[1]
    one.update(momentum=0.5, dampening=0.2, weight_decay=0.1, foreach=True)
    other.update(maximize=True, momentum=0.9, nesterov=True)
    found = read(optimizer, model=model)
    assert found.speeds["first.weight"] == pytest.approx(0.8 / 0.5)
    plain = SGDSettings(3.0)
    assert found.settings["first.weight"] == replace(
        plain, momentum=0.5, dampening=0.2, weight_decay=0.1
    )
    assert found.settings["first.bias"] == replace(
        plain, maximize=True, momentum=0.9, nesterov=True
    )
    assert found.signs["first.bias"] == -1
    with pytest.warns(UserWarning, match="=0.1 of first.weight is not the problem's ridge") as told:
        found.check_beside(ridge=0.0, momentum=0.0)
    assert len(told) == 1
    assert told[0].filename == __file__
    one.update(weight_decay=0.0)
    with pytest.raises(ValueError, match=r"\(0.5 of first.weight\), got 0.9"):
        read(optimizer, model=model).check_beside(ridge=0.0, momentum=0.9)


def test_settings_for_each_parameter_behind_the_statistics():
    dynamics = tl.GaussianMixture.binary(dim=20, snr=1.0).dynamics(step_size=1.0)
    plain = SGDSettings(1.0)
    limit = SGDLimit(plain, Layers(plain, {"first.weight": plain}))
    with pytest.raises(ValueError, match=r"each parameter .* none for second.weight"):
        tl.EffectiveDynamics(dynamics.field, limit)
