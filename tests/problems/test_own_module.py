"""`NetworkProblem.of`: a module of one's own, its names, its loop, and what it may not be."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchlimits as tl

N, K = 30, 2


def of(model, first="0", **given):
    arguments = {
        "loss": F.mse_loss, "labels": torch.tensor([1.0, -1.0]), "snr": 4.0,
        "means": torch.eye(2, N),
    }  # fmt: skip
    return tl.NetworkProblem.of(model, first, **{**arguments, **given})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """A network whose forward is a function."""

    def __init__(self, forward=None, **parts):
        super().__init__()
        self.fc, self.out, self.function = nn.Linear(N, K), nn.Linear(K, 1), forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        if self.function is None:
            return self.out(torch.tanh(self.fc(x)))
        return self.function(self, x)


class Tied(nn.Module):
    """A head that uses W again: an autoencoder."""

    def __init__(self, bias=False):
        super().__init__()
        self.fc, self.out, self.by_bias = nn.Linear(N, K), nn.Linear(K, N), bias
        if bias:
            self.shift = self.fc.bias
        else:
            self.out.weight = nn.Parameter(self.fc.weight.detach().mT)

    def forward(self, x):
        h = torch.tanh(self.fc(x))
        return (h + self.shift).sum(-1) if self.by_bias else self.out(h).sum(-1)


class Closed(Net):
    """Its head is a function that holds the module it was made in."""

    def __init__(self):
        super().__init__()
        self.double()
        self.head = lambda h: self.out(torch.tanh(h))

    def forward(self, x):
        return self.head(self.fc(x))


def hooked():
    model = Net()
    model.fc.register_forward_hook(lambda layer, inputs, output: 2 * output)
    return model


def lazy():
    return nn.Sequential(nn.LazyLinear(K), nn.Linear(K, 1))


def normed(norm):
    return nn.Sequential(norm(nn.Linear(N, K)), nn.Linear(K, 1))


REFUSED = {
    "a skip connection": (Net(lambda s, x: s.out(s.fc(x)) + x[:, :1]), "through 'fc' alone"),
    "the length of x": (Net(lambda s, x: s.out(s.fc(x)) * x.norm(dim=1)[:, None]), "'fc' alone"),
    "called twice": (Net(lambda s, x: s.out(s.fc(x) * s.fc(-x))), "once in a forward pass, got 2"),
    "never called": (Net(lambda s, x: s.out(F.linear(x, s.fc.weight))), "in a forward pass, got 0"),
    "normalised": (Net(lambda s, x: s.out(s.fc(F.normalize(x)))), "x itself, .* got other numbers"),
    "changed in place": (Net(lambda s, x: s.out(s.fc(x.mul_(2)))), "got other numbers"),
    "a sequence": (Net(lambda s, x: s.out(s.fc(x[:, None]))[:, 0]), r"got shape \(8, 1, 30\)"),
    "a hook": (hooked(), "x W.T . b"),
    "of another name": (Net(), "no part of the module; the nn.Linear in it: 'fc', 'out'", "0"),
    "no linear layer": (nn.Sequential(nn.Tanh(), nn.Linear(N, 1)), "got a Tanh", "0"),
    "the second": (Net(), "x itself|takes x of shape", "out"),
    "without values": (lazy(), "'0.weight' without any", "0"),
    "nowhere": (Net().to("meta"), "'fc.weight' without any"),
    "weight norm": (normed(nn.utils.parametrizations.weight_norm), "computed from", "0"),
    "spectral norm": (normed(nn.utils.parametrizations.spectral_norm), "computed from", "0"),
    "tied": (Tied(), "'fc.weight' that is 'out.weight' as well"),
    "a tied bias": (Tied(bias=True), "'fc.bias' that is 'shift' as well"),
    "a function that holds it": (Closed(), "out.weight, out.bias .*does not go with copies"),
    "compiled": (Net(_orig_mod=Net()), "give model._orig_mod"),
    "a name for a number": (Net(), "first as the name", 0),
    "BatchNorm": (nn.Sequential(nn.Linear(N, K), nn.BatchNorm1d(K)), "couples", "0"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*REFUSED])
def test_modules_that_see_x_in_another_way_are_refused(name):
    model, words, *first = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=words) as found:
        of(model, *(first or ["fc"]))
    assert str(found.value).startswith("expected")
    assert "got" in str(found.value)


def test_a_function_is_no_module():
    with pytest.raises(TypeError, match=r"expected model as a torch\.nn\.Module"):
        of(lambda x: x.sum(-1))


TAKEN = {
    "flat": (Net(lambda s, x: s.out(s.fc(x.flatten(1)).relu_())), "fc"),
    "a view": (Net(lambda s, x: s.out(torch.tanh(s.fc(x.view(len(x), -1))))), "fc"),
    "by name": (Net(lambda s, x: s.out(s.fc(input=x))), "fc"),
    "the batch's size": (Net(lambda s, x: s.out(s.fc(x)).view(x.shape[0], 1)), "fc"),
    "nested": (nn.Sequential(nn.Sequential(nn.Flatten(), Net()), nn.Tanh()), "0.1.fc"),
    "the whole": (nn.Linear(N, 1), ""),
    "no bias": (nn.Sequential(nn.Linear(N, K, bias=False), nn.Tanh(), nn.Linear(K, 1)), "0"),
    "double": (Net().double(), "fc"),
    "without a weight of its own": (nn.Sequential(nn.Linear(N, 1), nn.Softplus()), "0"),
}


@pytest.mark.parametrize("name", [*TAKEN])
def test_statistics_and_predictions_have_the_modules_own_names(name):
    model, first = TAKEN[name]
    before = copy.deepcopy(model.state_dict())
    problem = of(model, first)
    own = dict(model.named_parameters())
    prefix = f"{first}." if first else ""
    width = own[prefix + "weight"].shape[0]
    u = problem.statistics(own).detach()
    assert problem.statistics.names_of(own) == problem.names
    named = dict(zip(problem.names, u.tolist(), strict=True))
    for key, parameter in own.items():
        if key not in (prefix + "weight", prefix + "bias"):
            assert named[f"{key}[{'0,' * (parameter.ndim - 1)}0]"] == parameter.flatten()[0].item()
    assert len(u) == sum(p.numel() for key, p in own.items() if key != prefix + "weight") + (
        2 * width + width * (width + 1) // 2
    )
    assert problem.dtype == own[prefix + "weight"].dtype == problem.sample(2)[0].dtype
    # the optimizer of the module itself
    dynamics = problem.dynamics(torch.optim.SGD(model.parameters(), lr=0.5 / N), nodes=64)
    assert dynamics.names == problem.names
    assert dynamics.limit.step_size == pytest.approx(0.5)
    assert bool(dynamics(0.0, u.double()[None]).isfinite().all())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    # copies, their data and their loss
    copies, (x, y) = problem.model(replicas=(3,)), problem.sample(4, replicas=(3,))
    assert [key for key, _ in copies.named_parameters()] == [*own]
    one = problem.model(generator=generator())
    problem.loss(copies(x), y).backward()
    problem.loss(one(x[0]), y[0]).backward()


def test_a_module_that_is_trained_in_another_mode_is_refused():
    model = nn.Sequential(nn.Linear(N, K), nn.Dropout(0.5), nn.Linear(K, 1)).eval()
    problem, optimizer = of(model), torch.optim.SGD(model.parameters(), lr=1 / N)
    problem.dynamics(optimizer)
    model.train()
    with pytest.raises(ValueError, match=r"Dropout\(0\.5\)"):
        problem.dynamics(optimizer)


def two_alike():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(N, K), nn.Tanh(), nn.Linear(K, K), nn.Tanh(), nn.Linear(K, K), nn.Tanh(),
        nn.Linear(K, 1),
    )  # fmt: skip


def test_learning_rates_are_told_apart_by_the_parameters_themselves():
    model = two_alike()
    problem = of(model)

    def optimizer(model):
        groups = [{"params": model[i].parameters(), "lr": lr} for i, lr in ((0, 0.1), (2, 0.2))]
        return torch.optim.SGD([*groups, {"params": model[4].parameters(), "lr": 0.4}], lr=0.1)

    speeds = problem.dynamics(optimizer(model)).limit.layers.speeds
    assert speeds == pytest.approx(
        {"2.weight": 2, "2.bias": 2, "4.weight": 4, "4.bias": 4, "6.weight": 0, "6.bias": 0}
        | {"0.weight": 1, "0.bias": 1}
    )
    # of a copy it has to be told
    other = problem.model()
    with pytest.raises(ValueError, match="pass model="):
        problem.dynamics(optimizer(other))
    assert problem.dynamics(optimizer(other), model=other).limit.layers.speeds == speeds
    # chains as well
    chain = problem.reduced_chain(optimizer(model))
    u = problem.statistics(dict(model.named_parameters())).detach().double()
    moved = chain.run(u, 10, runs=2, generator=generator()).final - u
    still = [i for i, name in enumerate(problem.names) if name.startswith("6.")]
    assert float(moved[:, still].abs().max()) == 0 < float(moved.abs().max())


def frozen(*names):
    model = two_alike()
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def test_frozen_parameters_stay_where_they_are():
    model = frozen("0.weight", "2.bias", "6.weight")
    problem = of(model)
    assert not any(name.startswith(("2.bias", "6.weight")) for name in problem.names)
    u = problem.starts(1, generator=generator())[0]
    still = torch.tensor([name.startswith(("m", "R")) for name in problem.names])
    for step_size in (0.0, 1.0):  # gradient flow, too
        moves = problem.dynamics(step_size=step_size)(0.0, u[None])[0]
        assert float(moves[still].abs().max()) == 0
        assert bool((moves[~still] != 0).any())
    by_optimizer = problem.dynamics(torch.optim.SGD(model.parameters(), lr=1 / N))
    assert torch.allclose(by_optimizer(0.0, u[None])[0], moves)
    # at random starts they have the values that they were given with
    for name, parameter in problem.model().named_parameters():
        assert parameter.requires_grad == model.get_parameter(name).requires_grad
        assert parameter.requires_grad or torch.equal(parameter, model.get_parameter(name))
    trained = tl.train(problem, step_size=1.0, time=0.2, runs=2, progress=False)
    assert float((trained.values - trained.values[:, :1])[..., still].abs().max()) == 0
    whole = of(two_alike())
    assert float(whole.dynamics(step_size=1.0)(0.0, whole.starts(1))[0, -3:].abs().min()) > 0


class Own(Net):
    """What it is initialised by comes after its parts."""

    def reset_parameters(self):
        nn.init.constant_(self.out.bias, 7.0)


def test_copies_start_as_the_modules_parts_do():
    model = Own()
    with torch.no_grad():
        model.fc.weight.fill_(5.0)
    before = copy.deepcopy(model.state_dict())
    problem = of(model, "fc")
    one, same = (problem.model(generator=generator(3)) for _ in range(2))
    other = problem.model(generator=generator(4))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
        assert name == "out.bias" or not torch.equal(parameter, other.get_parameter(name))
    assert one.out.bias.item() == 7.0
    # torch's own law of a linear layer, uniform within N^{-1/2}
    weights = problem.model(replicas=(400,), generator=generator(5)).fc.weight.detach()
    assert float(weights.abs().max()) <= N**-0.5
    assert float(weights.var()) == pytest.approx(1 / (3 * N), rel=0.02)
    # a problem made of parts has W ~ N(0, I/N)
    made = tl.NetworkProblem(
        dim=N, width=K, head=nn.Linear(K, 1), loss=F.mse_loss, snr=1.0, labels=torch.ones(1)
    )
    drawn = made.model(replicas=(400,), generator=generator(5)).first.weight.detach()
    assert float(drawn.var()) == pytest.approx(1 / N, rel=0.03)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    # all runs from the module itself
    started = tl.train(problem, step_size=0.1, time=0.01, runs=2, start=model, progress=False)
    u = problem.statistics(dict(model.named_parameters())).detach()
    assert torch.allclose(started.initial.float(), u.expand(2, -1))


def test_what_the_module_becomes_later_is_not_what_the_problem_knows():
    model = frozen("2.bias")
    problem = of(model)
    copied = [problem.model(generator=generator()) for _ in range(2)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    copied += [
        again.model(generator=generator())
        for again in (problem, pickle.loads(pickle.dumps(problem)), copy.deepcopy(problem))
    ]
    for other in copied[1:]:
        for name, parameter in copied[0].named_parameters():
            assert torch.equal(parameter, other.get_parameter(name))
    again = pickle.loads(pickle.dumps(problem))
    u = problem.starts(1, generator=generator())
    assert torch.equal(
        problem.dynamics(step_size=1.0)(0.0, u), again.dynamics(step_size=1.0)(0.0, u)
    )
    assert problem.describe() == again.describe()
    assert repr(problem) == repr(again)


def test_runs_of_a_module_of_ones_own_are_as_predicted():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(200, 2), nn.GELU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.mul_(1.7)
        model[3].weight.mul_(2)
    problem = of(
        model, "1", loss=F.cross_entropy, labels=torch.tensor([0, 1]), means=torch.eye(2, 200),
        label_flips=0.1, snr=1.0, ridge=0.1,
    )  # fmt: skip
    measured = tl.train(
        problem, step_size=1.5, time=1.5, runs=64, start=model, every=50, progress=False
    )
    dynamics = problem.dynamics(step_size=1.5)
    spread = measured.values[:, 1:].std(0) / 64**0.5

    def z(**options):
        theory = dynamics.solve(measured.initial[0], measured.times, **options)
        return (measured.values.mean(0) - theory.values)[1:] / spread

    assert float(z().square().mean().sqrt()) < 1.5
    # negative control: of R, at the end
    assert float(z(corrector=False)[-1, -3:].square().mean().sqrt()) > 5
