"""`train(compiled=True)`: the same numbers, and none lost where nothing can be compiled."""

import shutil
import warnings

import pytest
import torch

import torchlimits as tl
from torchlimits import _threads
from torchlimits.ensemble.compiled import compiled_gradients

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
)


def mixture(dim=30, **options):
    return tl.GaussianMixture.xor(dim, width=4, snr=4.0, ridge=0.05, **options)


def trained(problem, compiled, **options):
    options = {"step_size": 1.0, "time": 1.0, "every": 5, "progress": False} | options
    return tl.train(problem, compiled=compiled, **options)


@needs_compiler
@pytest.mark.parametrize(
    "problem", [mixture(), tl.SpikedTensor(dim=40, order=3, snr=2.0)], ids=["mixture", "tensor"]
)
def test_compiled_steps_are_the_same_to_rounding(problem):
    options = {"runs": 3, "momentum": 0.5, "batch_size": 2, "dtype": torch.float64}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fast = trained(problem, True, **options)
    plain = trained(problem, False, **options)
    torch.testing.assert_close(fast.values, plain.values, rtol=1e-10, atol=1e-12)
    other = trained(problem, True, **options, seed=1)
    assert not torch.allclose(other.values, plain.values)


@needs_compiler
def test_a_compiled_run_does_not_depend_on_how_many_there_are():
    """Bit for bit, as without; nor on the threads."""
    problem = mixture(dim=101, directions="random")
    one, some = (trained(problem, True, runs=runs) for runs in (1, 37))
    with _threads.threads(5):
        many = trained(problem, True, runs=300)
    assert torch.equal(one.values[0], some.values[0])
    assert torch.equal(some.values, many.values[:37])


@needs_compiler
@pytest.mark.slow
@pytest.mark.slow
def test_many_problems_are_compiled():
    """More than torch.compile makes of one function."""
    # not by monkeypatch: undoing, it would delete the setting for the tests that follow
    with torch._dynamo.config.patch(recompile_limit=1), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for dim in (20, 21, 22):
            trained(mixture(dim), True, time=0.5)


def test_without_a_compiler_there_is_a_warning():
    settings = {"cpp.cxx": ("/no/compiler",), "force_disable_caches": True}
    with (
        torch._inductor.config.patch(settings),
        pytest.warns(RuntimeWarning, match=r"torch.compile failed, training goes on without"),
    ):
        fast = trained(mixture(), True, runs=3)
    assert torch.equal(fast.values, trained(mixture(), False, runs=3).values)


def test_a_loss_that_cannot_be_traced():
    class Untraceable(tl.GaussianMixture):
        def loss(self, output, target):
            return super().loss(output, target) * float(str(1.0 + 0 * float(output.sum()) ** 2))

    problem = Untraceable(mixture().means, mixture().labels, width=4, snr=4.0)
    with pytest.warns(RuntimeWarning, match=r"torch.compile failed, training goes on without"):
        fast = trained(problem, True, runs=3)
    assert torch.equal(fast.values, trained(problem, False, runs=3).values)


def test_a_loss_that_fails_says_so_itself():
    class Failing(tl.GaussianMixture):
        def loss(self, output, target):
            raise RuntimeError("no loss today")

    problem = Failing(mixture().means, mixture().labels, width=4, snr=4.0)
    with pytest.raises(RuntimeError, match=r"^no loss today$"):
        trained(problem, True)


def test_gradients_lie_as_the_parameters_do(monkeypatch):
    """Fused optimizers read them so, whatever the compiled function returns; frozen ones stay."""

    def transposing(function, **_):
        def moved(*arguments):
            found = function(*arguments)
            return {name: g.mT.contiguous().mT for name, g in found.items()}

        return moved

    monkeypatch.setattr(torch, "compile", transposing)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(3, 2))
    model[1].bias.requires_grad_(False)
    x, y = torch.randn(5, 4), torch.randn(5, 2)
    set_all = compiled_gradients(model, torch.nn.functional.mse_loss, otherwise=lambda x, y: None)
    set_all(x, y)
    assert model[1].bias.grad is None
    found = [p.grad.clone() for p in (model[0].weight, model[1].weight)]
    for parameter in (model[0].weight, model[1].weight):
        assert parameter.grad.stride() == parameter.stride()
        parameter.grad = None
    torch.nn.functional.mse_loss(model(x), y).backward()
    assert all(
        torch.allclose(a, p.grad)
        for a, p in zip(found, (model[0].weight, model[1].weight), strict=True)
    )
