"""The mixture's gradients in closed form, against autograd."""

import pytest
import torch

import torchlimits as tl
from torchlimits.contracts.kernel import NoKernelError
from torchlimits.ensemble.train import _check_gradients


@pytest.mark.parametrize("batch", [1, 3])
def test_they_are_those_of_autograd(batch):
    """In float64, to rounding; with other labels they are not."""
    problem = tl.GaussianMixture.xor(dim=30, width=3, snr=1.0, dtype=torch.float64)
    seed = torch.Generator().manual_seed(0)
    model = problem.model(replicas=(5,), generator=seed)
    x, y = problem.sample(batch, replicas=(5,), generator=seed)
    problem.loss(model(x), y).backward()
    expected = [p.grad for p in model.parameters()]
    gradients = problem.gradients(model)
    gradients(x, y)
    for parameter, right in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not right
        assert parameter.grad.stride() == parameter.stride()
        torch.testing.assert_close(parameter.grad, right, rtol=1e-13, atol=1e-15)
    gradients(x, 1 - y)
    for parameter, right in zip(model.parameters(), expected, strict=True):
        assert not torch.allclose(parameter.grad, right, rtol=1e-3)


@pytest.mark.parametrize("batch", [1, 3])
def test_steps_are_those_of_sgd(batch):
    """In float64, to rounding, with decay and a learning rate that changes; others are not."""
    problem = tl.GaussianMixture.xor(dim=30, width=3, snr=1.0, dtype=torch.float64)

    def trained(decay, by_hand):
        seed = torch.Generator().manual_seed(0)
        model = problem.model(replicas=(5,), generator=seed)
        sgd = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=decay)
        step = problem.sgd_step(model, sgd)
        for _ in range(4):
            x, y = problem.sample(batch, replicas=(5,), generator=seed)
            if by_hand:
                step(x, y)
            else:
                sgd.zero_grad()
                problem.loss(model(x), y).backward()
                sgd.step()
            sgd.param_groups[0]["lr"] *= 0.9
        return [p.detach() for p in model.parameters()]

    for ours, right in zip(trained(0.1, True), trained(0.1, False), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-13, atol=1e-15)
    for ours, other in zip(trained(0.1, True), trained(0.11, False), strict=True):
        assert not torch.allclose(ours, other, rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"step_size": 1.0},
        {"step_size": 1.0, "momentum": 0.5, "batch_size": 2},
        {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)},
    ],
    ids=["SGD", "momentum", "AdamW"],
)
def test_training_by_them_is_training_by_autograd(optimizer, monkeypatch):
    """To rounding, gradients that statistics read included; a loss of one's own has autograd's."""
    calls = []
    backward = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda x: (calls.append(1), backward(x)))

    class Other(tl.GaussianMixture):
        def loss(self, output, target):
            return super().loss(output, target)

    arguments = {"means": torch.eye(2, 40), "labels": [0, 1], "width": 3, "snr": 4.0}
    options = {"time": 1.0, "runs": 3, "dtype": torch.float64, "progress": False, **optimizer}
    ours, by_autograd = tl.GaussianMixture(**arguments), Other(**arguments)
    options["statistics"] = ours.statistics | {"g": lambda p: p["first.weight.grad"].square().sum()}
    fast = tl.train(ours, **options)
    assert not calls
    plain = tl.train(by_autograd, **options)
    assert calls
    torch.testing.assert_close(fast.values, plain.values, rtol=1e-9, atol=1e-11, equal_nan=True)
    assert fast["g"][:, 1:].isfinite().all()
    assert fast["g"][:, 1:].any()


def test_training_by_steps_of_its_own(monkeypatch):
    """As by autograd and torch.optim, none of which is called; a user's own SGD is called."""
    calls = []
    backward, move = torch.autograd.backward, torch.optim.SGD.step
    monkeypatch.setattr(torch.autograd, "backward", lambda x: (calls.append("b"), backward(x)))
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (calls.append("s"), move(self)))

    class Other(tl.GaussianMixture):
        def loss(self, output, target):
            return super().loss(output, target)

    arguments = {"means": torch.eye(2, 40), "labels": [0, 1], "width": 3, "snr": 4.0, "ridge": 0.1}
    options = {"time": 1.0, "runs": 3, "batch_size": 2, "dtype": torch.float64, "progress": False}
    ours, by_autograd = tl.GaussianMixture(**arguments), Other(**arguments)
    fast = tl.train(ours, step_size=1.0, **options)
    assert not calls
    plain = tl.train(by_autograd, step_size=1.0, **options)
    assert set(calls) == {"b", "s"}
    torch.testing.assert_close(fast.values, plain.values, rtol=1e-9, atol=1e-11)
    calls.clear()
    tl.train(ours, optimizer=lambda p: torch.optim.SGD(p, lr=1 / 40), **options)
    assert set(calls) == {"s"}


def test_gradients_are_recorded_on_the_cpu_only():
    problem = tl.GaussianMixture.binary(dim=30, snr=1.0)
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = {"g": lambda p: p["first.weight.grad"].norm()}
    with tl.track(model, optimizer, statistics) as tracker:
        _check_gradients(tracker, torch.device("cpu"))
        with pytest.raises(ValueError, match="statistics of parameters on cuda"):
            _check_gradients(tracker, torch.device("cuda"))


def test_what_they_are_not_known_of_is_refused():
    problem = tl.GaussianMixture.binary(dim=30, snr=1.0)
    with pytest.raises(NoKernelError, match="one leading dimension that are all trained"):
        problem.gradients(problem.model())
    frozen = problem.model(replicas=(2,))
    frozen.second.weight.requires_grad_(False)
    with pytest.raises(NoKernelError, match="one leading dimension that are all trained"):
        problem.gradients(frozen)
    smooth = problem.model(replicas=(2,))
    smooth.activation = torch.tanh
    with pytest.raises(NoKernelError, match="own model, data and loss"):
        problem.gradients(smooth)
    model = problem.model(replicas=(2,))
    for options in ({"momentum": 0.9}, {"maximize": True}):
        with pytest.raises(NoKernelError, match="without momentum that minimises"):
            problem.sgd_step(model, torch.optim.SGD(model.parameters(), lr=0.1, **options))
    groups = [{"params": [one]} for one in model.parameters()]
    with pytest.raises(NoKernelError, match="holds both layers"):
        problem.sgd_step(model, torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(NoKernelError, match="a number, got a tensor"):
        problem.sgd_step(model, torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1)))
