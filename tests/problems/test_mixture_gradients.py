"""The mixture's gradients in closed form, against autograd."""

import pytest
import torch

import torchlimits as tl
from torchlimits.contracts.kernel import NoKernelError


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


@pytest.mark.parametrize(
    "optimizer",
    [
        {"step_size": 1.0, "momentum": 0.5, "batch_size": 2},
        {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)},
    ],
    ids=["SGD", "AdamW"],
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
