"""Wrong shapes and types: under the tests' type checker they raise, and without it too, in words.

The checker (jaxtyping with beartype) is installed by conftest.py for modules behind the front door.
A program of a user has none: there the package itself says what it expected and what it got.
"""

import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintReturnViolation
from checked import jaxtyped
from jaxtyping import Float, TypeCheckError
from torch import Tensor

SETUP = """
import torch, torchlimits as tl
from torchlimits.problems.mixture.expectations import relu_moments
PATH = tl.Trajectory(torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), torch.ones(2, 1), ["m"])
PROBLEM = tl.GaussianMixture.binary(dim=10, snr=2.0)
EYE, ONES, INTS = torch.eye(2), torch.ones, torch.ones(2, dtype=torch.int64)
"""
NAMES = {}
exec(SETUP, NAMES)

#: an expression, what the checker says of it, and what the package itself does
CASES = {
    "a list for a tensor": (
        "relu_moments([1.0, 2.0], EYE, ONES(2))",
        "parameter 'mean'",
        "TypeError: expected mean as a tensor of floats, got list: convert it",
    ),
    "integers for floats": (
        "relu_moments(INTS, EYE, ONES(2))",
        "parameter 'mean'",
        "TypeError: expected mean as a tensor of floats, got torch.int64: convert it",
    ),
    "sizes that differ": (
        "relu_moments(ONES(3), EYE, ONES(3))",
        "parameter 'factor'",
        "ValueError: expected factor of shape (..., 3, 3) for mean of shape (3,), got (2, 2)",
    ),
    "a number for a level": (
        "relu_moments(ONES(2), EYE, ONES(2), level=0.5)",
        "parameter 'level'",
        "ValueError: expected level to be an int >= -3, got 0.5: 0 is the default",
    ),
}
#: where the checker has nothing to find
WORDS = {
    "network": ("PROBLEM.model()(ONES(3, 9))", "expected inputs of shape (..., 10) for a weight"),
    "too few statistics": (
        "PROBLEM.dynamics(step_size=1.0).classes(ONES(6))",
        "ValueError: expected u of shape (..., 7)",
    ),
    "drift": ("PROBLEM.dynamics(step_size=1.0).drift(ONES(7).long())", "float64 tensor, got"),
    "loss": ("PROBLEM.loss(ONES(3), ONES(3, 1))", "of one shape, got (3,) and (3, 1)"),
    "trajectory": (
        "tl.Trajectory(ONES(2), ONES(2), ONES(3, 1), ['m'])",
        "expected values of shape",
    ),
    "statistics of integers": (
        "PROBLEM.dynamics(step_size=1.0).classes(INTS)",
        "TypeError: expected u as a float32 or float64 tensor, got torch.int64: convert it",
    ),
    "no trajectory": ("tl.compare(PATH, 3)", "expected predicted as a Trajectory, got int"),
    "track": ("tl.track(3, 4, {})", "expected model to be a torch.nn.Module, got int"),
    "train": ("tl.train(PROBLEM, step_size='1', time=1.0)", "to be a number, got '1'"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_checker_finds_it(case):
    expression, message, _ = CASES[case]
    with pytest.raises(TypeCheckError, match=message):
        eval(expression, NAMES)


@pytest.mark.parametrize("case", WORDS)
def test_the_package_has_words_for_it(case):
    expression, message = WORDS[case]
    with pytest.raises((ValueError, TypeError)) as caught:
        eval(expression, NAMES)
    assert message in f"{type(caught.value).__name__}: {caught.value}"


def test_right_ones_pass():
    assert eval("relu_moments(ONES(2), EYE, ONES(2)).first.shape", NAMES) == (2,)
    assert eval("tl.compare(PATH, PATH).runs", NAMES) == 1


@dataclass
class Pair:
    first: Float[Tensor, " n"]
    second: Float[Tensor, " n"]


def grown(x: Float[Tensor, " n"], by: int) -> Float[Tensor, " n"]:
    return torch.ones(len(x) + by)


def parts(x: Float[Tensor, "n n"]):
    yield from x


def test_what_the_checker_looks_at():
    """Sizes within a call, of results too, in generators and dataclasses; each call has its own."""
    check = partial(jaxtyped, typechecker=beartype)
    for size in (2, 3):
        assert check(grown)(torch.ones(size), 0).shape == (size,)
        assert len(list(check(parts)(torch.ones(size, size)))) == size
    with pytest.raises(BeartypeCallHintReturnViolation):
        check(grown)(torch.ones(2), 1)
    with pytest.raises(TypeCheckError, match="parameter 'by'"):
        check(grown)(torch.ones(2), 0.0)
    with pytest.raises(TypeCheckError, match="parameter 'x'"):
        list(check(parts)(torch.ones(2, 3)))
    pair = check(Pair)
    assert len(pair(torch.ones(3), torch.zeros(3)).second) == 3
    with pytest.raises(TypeCheckError, match="parameter 'second'"):
        pair(torch.ones(3), torch.zeros(2))


_LOOP = """
for expression in EXPRESSIONS:
    try:
        eval(expression)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    else:
        print("no error")
"""


def test_without_the_checker_the_package_says_it():
    wanted = [*((e, own) for e, _, own in CASES.values()), *WORDS.values()]
    program = f"{SETUP}EXPRESSIONS = {[expression for expression, _ in wanted]}{_LOOP}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=1800
    )
    said = done.stdout.splitlines()
    assert len(said) == len(wanted)
    for line, (expression, message) in zip(said, wanted, strict=True):
        assert message in line, expression
