"""A statistic that fails is named, with the parameters that it was given, wherever it is used."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import torchlimits as tl


def layer():
    return nn.Linear(3, 2, dtype=torch.float64)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def sampler(batch, generator=None):
    x = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    return x, x[:, :2]


def squared(output, target):
    return (output - target).square().mean()


def own_check(parameters):
    raise LookupError("mine")


FAILURES = {
    "wrong key": (
        lambda p: p["wieght"].sum(),
        KeyError,
        r"asked for parameter 'wieght', the model has \['weight', 'bias'\]: use one of these",
    ),
    "shapes": (
        lambda p: p["weight"] @ p["bias"][:, None],
        RuntimeError,
        "failed with RuntimeError: .*",
    ),
    "types": (
        lambda p: p["weight"] @ torch.ones(3, dtype=torch.float32),
        RuntimeError,
        "failed with RuntimeError: .* same dtype",
    ),
    "own": (own_check, LookupError, "failed with LookupError: mine"),
}

USES = {
    "statistics": lambda model, u: tl.SummaryStatistics(u)(dict(model.named_parameters())),
    "track": lambda model, u: tl.track(model, sgd(model), u),
    "track in the hook": lambda model, u: tl.track(model, sgd(model), u, max_bytes=1),
    "replicas": lambda model, u: tl.track(m := tl.replicate([model]), sgd(m), u),
    "estimate": lambda model, u: tl.estimate(model, squared, sampler, u, step_size=0.1, samples=8),
    "empirical": lambda model, u: tl.EmpiricalDynamics(
        model, squared, sampler, u, step_size=0.1, dim=3, lift=lambda u: {}
    ),
    "probe": lambda model, u: tl.track(model, sgd(model), u, probe=tl.Probe(squared, sampler)),
    "closability": lambda model, u: tl.closability(
        lambda n: tl.SizedProblem(model, squared, sampler, tl.SummaryStatistics(u), 0.1, dim=n),
        [3, 6],
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("failure", FAILURES)
def test_at_the_start(use, failure):
    function, cause, message = FAILURES[failure]
    statistics = {"good": lambda p: p["weight"].sum(), "bad": function}
    runs = "1, " if use == "replicas" else ""
    given = rf"it was given weight \({runs}2, 3\) float64, bias \({runs}2,?\) float64$"
    with pytest.raises(tl.StatisticError, match=f"statistic 'bad' {message}.*; {given}") as caught:
        USES[use](layer(), statistics)
    assert isinstance(caught.value.__cause__, cause)


def test_many_parameters_are_not_all_told():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(30)))
    with pytest.raises(tl.StatisticError, match=r"9.bias \(1,\) float32, 40 others$"):
        tl.track(model, sgd(model), {"bad": own_check})


def late(wrong):
    """Harmless up to step 2; then what ``wrong`` returns."""

    def statistic(parameters):
        weight = parameters["weight"]
        return weight.sum() if weight[0, 0] < 2.5 else wrong(parameters)

    return statistic


def train(tracker, model, optimizer, steps=6):
    """Weights are the number of the step."""
    with tracker:
        for _ in range(steps):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, -10.0)
            optimizer.step()


LATE = {
    "wrong key": (lambda p: p["wieght"], tl.StatisticError, "'late' asked for parameter 'wieght'"),
    "own": (own_check, tl.StatisticError, "'late' failed with LookupError: mine"),
    "no tensor": (lambda p: 3.0, TypeError, "'late' to return a tensor, got float"),
    "complex": (lambda p: p["weight"][0, 0] * 1j, TypeError, "'late' to be a real"),
    "no values": (
        lambda p: torch.zeros((), device="meta"),
        tl.StatisticError,
        r"to return tensors with values, got \['late'\] on the meta device",
    ),
    "shape": (
        lambda p: p["weight"].sum(0),
        tl.StatisticError,
        r"changed shape: expected {'late': \(\)} as at step 0, got {'late': \(3,\)}",
    ),
}


@pytest.mark.parametrize("max_bytes", [2**26, 1], ids=["ring", "hook"])
@pytest.mark.parametrize("failure", LATE)
def test_at_a_later_step(failure, max_bytes, tmp_path):
    """The step is told too, and what came before is kept."""
    wrong, kind, message = LATE[failure]
    model = layer()
    nn.init.zeros_(model.weight)
    optimizer = sgd(model)
    statistics = {"good": lambda p: p["weight"].mean(), "late": late(wrong)}
    path = tmp_path / "u.npz"
    tracker = tl.track(model, optimizer, statistics, path=path, max_bytes=max_bytes)
    with pytest.raises(
        kind, match=rf"after step 3: .*{message}.* given weight \(2, 3\) float64$"
    ) as caught:
        train(tracker, model, optimizer)
    if failure in ("wrong key", "own"):
        assert isinstance(caught.value.__cause__, LookupError)  # the user's own
    kept = tl.Trajectory.load(path)
    assert kept.steps.tolist() == [0, 1, 2]
    torch.testing.assert_close(kept["good"], torch.arange(3, dtype=torch.float64))
    torch.testing.assert_close(kept["late"], 6 * torch.arange(3, dtype=torch.float64))


@pytest.mark.parametrize("max_bytes", [2**26, 1], ids=["ring", "hook"])
def test_nan_is_named_with_its_step(max_bytes):
    model = layer()
    nn.init.zeros_(model.weight)
    optimizer = sgd(model)
    statistics = {"root": lambda p: (2.5 - p["weight"]).sqrt()}
    tracker = tl.track(model, optimizer, statistics, max_bytes=max_bytes)
    with pytest.raises(tl.NonFiniteStatistic, match=r"root\[0,0\] is nan after step 3") as caught:
        train(tracker, model, optimizer)
    assert caught.value.trajectory.steps.tolist() == [0, 1, 2]


def test_in_the_ensemble_runner():
    problem = tl.GaussianMixture.binary(dim=10, snr=2.0, width=3)
    before = problem.statistics
    mixed = {**before.functions, "bad": lambda p: p["first.weight"] @ p["second.weight"]}
    problem.statistics = tl.SummaryStatistics(
        mixed, symmetric=before.symmetric, parameter_dims=before.parameter_dims
    )
    with pytest.raises(
        tl.StatisticError,
        match=r"'bad' failed with RuntimeError.*first.weight \(32, 3, 10\) float32, second",
    ):
        tl.train(problem, step_size=1.0, time=1.0, runs=2, progress=False)


@pytest.mark.parametrize(
    "function",
    [
        late(own_check),  # a branch on values
        lambda p: torch.as_tensor(p["weight"].detach().numpy().sum()),
    ],
)
def test_not_differentiable(function):
    model = layer()
    nn.init.zeros_(model.weight)
    with pytest.raises(
        tl.StatisticError, match=r"expected statistic 'rough' to be one that torch.func can .*2, 3"
    ):
        tl.estimate(model, squared, sampler, {"rough": function}, step_size=0.1, samples=8)


def test_a_loss_on_held_out_data_is_a_statistic():
    """It calls the model with the parameters that it is given, as torch.func has it."""
    model = nn.Sequential(layer(), nn.Tanh(), nn.Linear(2, 1, dtype=torch.float64))
    x = torch.randn(20, 3, dtype=torch.float64)
    optimizer, naive = sgd(model), []
    tracker = tl.track(
        model, optimizer, {"loss": lambda p: functional_call(model, p, (x,)).square().mean()}
    )
    for step in range(5):
        naive.append(model(x).square().mean())
        if step < 4:
            optimizer.zero_grad()
            naive[-1].backward()
            optimizer.step()
    torch.testing.assert_close(tracker.trajectory()["loss"], torch.stack(naive).detach())
    tracker.close()


def test_no_room_is_no_property_of_a_statistic():
    """One snapshot at a time this once; the next flush evaluates all at once again."""
    calls = []

    def hungry(p):
        calls.append(p["weight"].ndim)
        if len(calls) == 3:  # after the two evaluations of `track`
            raise torch.OutOfMemoryError("tried to allocate too much")
        return p["weight"].norm()

    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, {"norm": hungry})
    calls.clear()
    calls += [0, 0]
    norms = [float(model.weight.norm())]
    for flush in (False, True, False, True):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        norms.append(float(model.weight.norm()))
        if flush:
            tracker.flush()
    assert tracker._ring._vectorised
    torch.testing.assert_close(
        tracker.trajectory()["norm"], torch.tensor(norms).double(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("kind", ["overlaps", "gram", "squared_lengths"])
def test_filters_of_a_convolution_are_no_rows(kind):
    """The message has a function that works, which the ready-made statistic is not."""
    weight = torch.nn.Conv2d(3, 8, 5).weight
    statistic = getattr(tl.statistics, kind)("0.weight", torch.eye(2, 75))
    with pytest.raises(ValueError, match=r"of length N, got \(2, 75\) and a weight \(8, 3, 5, 5\)"):
        statistic({"0.weight": weight})
    assert (weight.flatten(1) @ torch.eye(2, 75).T).shape == (8, 2)
