"""`tl.AdaGradNorm`, the optimizer itself, against its formula step by step."""

import copy
import pickle

import pytest
import torch
from torch import nn

import torchlimits as tl


def quadratic(*parameters):
    return sum((p * torch.arange(1.0, 1 + p.shape[-1])).square().sum() for p in parameters)


def start(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [nn.Parameter(draw) for draw in draws]


def by_hand(parameters, steps, lr, initial, *, decay=(0.0, 0.0), sign=1.0):
    """The same by a loop over numbers."""
    values, square = [p.detach().clone() for p in parameters], initial**2
    for _ in range(steps):
        leaves = [v.clone().requires_grad_() for v in values]
        gradients = torch.autograd.grad(quadratic(*leaves), leaves)
        square += sum(float(g) ** 2 for gradient in gradients for g in gradient.flatten())
        for v, g, eta, alpha in zip(values, gradients, lr, decay, strict=True):
            v -= eta / square**0.5 * (sign * g + alpha * v)
    return values, square


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_steps_are_those_of_the_formula(sign):
    parameters = start((3, 5), (5,))
    groups = [
        {"params": [parameters[0]], "weight_decay": 0.3}, {"params": [parameters[1]], "lr": 0.7},
    ]  # fmt: skip
    expected, square = by_hand(parameters, 5, (0.4, 0.7), 2.0, decay=(0.3, 0.0), sign=sign)
    optimizer = tl.AdaGradNorm(groups, lr=0.4, initial=2.0, maximize=sign < 0)
    for _ in range(5):
        optimizer.zero_grad()
        quadratic(*parameters).backward()
        optimizer.step()
    for p, other in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), other)
        assert float(optimizer.state[p]["sum"]) == pytest.approx(square, rel=1e-12)
    # negative control: the b before the step
    before = by_hand(start((3, 5), (5,)), 4, (0.4, 0.7), 2.0, decay=(0.3, 0.0), sign=sign)[1]
    assert square != pytest.approx(before, rel=1e-3)


def test_copies_of_a_model_have_a_b_of_their_own():
    stacked = start((4, 3, 5), (4,))
    alone = [[nn.Parameter(p.detach()[r].clone()) for p in stacked] for r in range(4)]
    together = tl.AdaGradNorm(stacked, lr=0.3, initial=1.0, replica_dims=1)
    each = [tl.AdaGradNorm(parameters, lr=0.3, initial=1.0) for parameters in alone]
    coupled = start((4, 3, 5), (4,))
    wrong = tl.AdaGradNorm(coupled, lr=0.3, initial=1.0)

    def loss(W, b):
        return quadratic(W) + (3 * b - 1).square().sum()

    for _ in range(3):
        for optimizer, parameters in [(together, stacked), (wrong, coupled), *zip(each, alone)]:  # noqa: B905
            optimizer.zero_grad()
            loss(*parameters).backward()
            optimizer.step()
    for r in range(4):
        for p, q in zip(stacked, alone[r], strict=True):
            torch.testing.assert_close(p.detach()[r], q.detach())
    assert not torch.allclose(stacked[0], coupled[0], rtol=1e-2)
    assert together.treats_replicas_alone
    assert not wrong.treats_replicas_alone


def test_closures_hooks_and_gradients_that_are_not_there():
    x, still = start((4,), (2,))
    optimizer = tl.AdaGradNorm([x, still], lr=0.1, initial=1.0)
    calls, before = [], still.detach().clone()
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure():
        optimizer.zero_grad()
        loss = quadratic(x)
        loss.backward()
        return loss

    expected = quadratic(x).item()
    assert optimizer.step(closure).item() == expected
    assert calls == ["after"]
    assert torch.equal(still.detach(), before)
    assert optimizer.state[still]["sum"] is optimizer.state[x]["sum"]
    optimizer.zero_grad()
    optimizer.step()  # nothing to do
    assert calls == ["after", "after"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_b_goes_on_from_a_saved_state_in_float64(dtype):
    """torch casts what it loads to the parameters' dtype."""
    parameters = [nn.Parameter(p.detach().to(dtype)) for p in start((3, 5), (5,))]
    optimizer = tl.AdaGradNorm(parameters, lr=0.1, initial=10.0)
    quadratic(*parameters).backward()
    optimizer.step()
    square = optimizer.state[parameters[0]]["sum"]
    assert square.dtype == torch.float64
    loaded = tl.AdaGradNorm(parameters, lr=0.5, initial=1.0)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), loaded):
        first, second = (other.state[p]["sum"] for p in other.param_groups[0]["params"])
        assert first is second
        assert first is not square
        assert torch.equal(first, square)
        assert first.dtype == torch.float64
        assert other.param_groups[0]["lr"] == 0.1


def test_parameters_may_come_later():
    x, y = start((4,), (3,))
    optimizer = tl.AdaGradNorm([x], lr=0.1, initial=1.0)
    quadratic(x).backward()
    optimizer.step()
    optimizer.add_param_group({"params": [y], "lr": 0.2})
    assert optimizer.state[y]["sum"] is optimizer.state[x]["sum"]
    with pytest.raises(ValueError, match="expected one initial for all parameter groups, got 3"):
        optimizer.add_param_group({"params": start((2,)), "initial": 3.0})
    assert len(optimizer.param_groups) == 2


REFUSED = [
    ({"initial": 0.0}, "expected initial = b_0 > 0, got 0.0: .* of the order of N"),
    ({"initial": -1.0}, "expected initial = b_0 > 0"),
    ({"lr": -0.1}, "expected a finite lr >= 0, got -0.1"),
    ({"weight_decay": float("nan")}, "expected a finite weight_decay >= 0, got nan"),
    ({"replica_dims": -1}, "expected replica_dims as an int >= 0, got -1"),
    ({"replica_dims": 2}, r"expected parameters with 2 leading dimensions .* shape \(4,\)"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_what_is_out_of_range_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        tl.AdaGradNorm(start((4,)), **{"initial": 1.0, **options})


def test_sparse_gradients_are_refused():
    y = nn.Parameter(torch.ones(4, 2))
    y.grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 2), (4, 2), check_invariants=True)
    with pytest.raises(ValueError, match="expected dense gradients"):
        tl.AdaGradNorm([y], initial=1.0).step()


def test_ensembles_take_it_where_copies_are_alone():
    problem = tl.SpikedTensor(20, 2, snr=2.0)
    options = {"runs": 3, "time": 10.0, "progress": False}
    with pytest.raises(ValueError, match="got AdaGradNorm, which may couple them"):
        tl.train(problem, optimizer=lambda p: tl.AdaGradNorm(p, initial=20.0), **options)
    measured = tl.train(
        problem, optimizer=lambda p: tl.AdaGradNorm(p, initial=20.0, replica_dims=1), **options
    )
    assert measured.values.shape[0] == 3
    assert bool(measured.values.isfinite().all())
