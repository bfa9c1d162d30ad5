import pytest
import torch
from torch import nn

import torchlimits as tl


def network(seed):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1, bias=False))
    return layers.double()


def test_one_step_of_all_copies_is_a_step_of_each():
    """Against five modules trained one by one on the same data, momentum and weight decay too."""
    modules = [network(seed) for seed in range(5)]
    together = tl.replicate(modules)
    options = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01}
    statistics = {"first": lambda p: p["0.weight"].norm(), "second": lambda p: p["2.weight"][0]}
    x = torch.randn(30, 5, 4, 6, dtype=torch.float64)
    y = torch.randn(30, 5, 4, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(together.parameters(), **options)
    with tl.track(together, optimizer, statistics) as tracker:
        for a, b in zip(x, y, strict=True):
            optimizer.zero_grad()
            (together(a) - b).square().mean((1, 2)).sum().backward()
            optimizer.step()
    recorded = tracker.trajectory()
    assert recorded.values.shape == (5, 31, 6)
    for run, module in enumerate(modules):
        optimizer = torch.optim.SGD(module.parameters(), **options)
        with tl.track(module, optimizer, statistics) as tracker:
            for a, b in zip(x[:, run], y[:, run], strict=True):
                optimizer.zero_grad()
                (module(a) - b).square().mean().backward()
                optimizer.step()
        alone = tracker.trajectory()
        torch.testing.assert_close(recorded.values[run], alone.values, rtol=1e-10, atol=1e-12)
    assert recorded.names == alone.names


def test_copies_of_one_module_are_independent_of_it():
    module = network(0)
    together = tl.replicate(module, 3)
    assert [name for name, _ in together.named_parameters()] == [
        name for name, _ in module.named_parameters()
    ]
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(together(x)[1], module(x[1]))
    with torch.no_grad():
        module[0].weight.zero_()
    assert bool((together.get_parameter("0.weight") != 0).all())


def test_frozen_parameters_and_buffers():
    module = nn.BatchNorm1d(3).eval()
    module.weight.requires_grad_(False)
    together = tl.replicate(module, 2)
    assert not together.weight.requires_grad
    assert together.running_mean.shape == (2, 3)
    torch.testing.assert_close(together(torch.ones(2, 4, 3))[0], module(torch.ones(4, 3)))


def test_a_weight_that_two_layers_share_stays_one():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    together = tl.replicate(module, 2)
    assert [name for name, _ in together.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(together(x)[1], module(x[1]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Linear(2, 1),), ValueError, "replicas"),
        ((nn.Linear(2, 1), 0), ValueError, "replicas"),
        (([],), TypeError, "list of them"),
        ((3,), TypeError, "list of them"),
        (([nn.Linear(2, 1), nn.Linear(3, 1)],), ValueError, "one architecture"),
        (([nn.Linear(2, 1), nn.Linear(2, 1).eval()],), ValueError, "all in evaluation mode"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        tl.replicate(*arguments)


def test_an_input_without_replicas():
    with pytest.raises(ValueError, match=r"inputs of shape \(2, \.\.\.\)"):
        tl.replicate(nn.Linear(2, 1), 2)(torch.zeros(5, 2))
