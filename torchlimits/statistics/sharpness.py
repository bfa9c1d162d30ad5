"""`sharpness`: the largest eigenvalue of the Hessian of the mean loss on fixed data."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchlimits import _checks
from torchlimits.statistics.fixed_data import (
    FixedData,
    Inputs,
    Loss,
    OnData,
    check_loss,
    mean_loss,
)
from torchlimits.statistics.gradient_norm import check_trainable
from torchlimits.statistics.of_model import Evaluation, OfModel
from torchlimits.statistics.private_copy import PrivateCopy, transformed

Operator = Callable[[Tensor], Tensor]


def sharpness(
    loss: Loss, inputs: Inputs, targets: Tensor, iterations: int = 100, tolerance: float = 1e-3,
    seed: int = 0,
) -> OfModel:  # fmt: skip
    r"""The largest eigenvalue of the Hessian of the mean loss, :math:`\lambda_1(\nabla^2 \hat L)`.

    :math:`\hat L` is what `held_out` records, as a function of the parameters that required
    gradients when `tl.track` was called. It is the largest eigenvalue, not the one of largest
    modulus: negative ones do not matter. Above :math:`2/\eta`, gradient descent with step size
    :math:`\eta` is unstable (Cohen et al., arXiv 2103.00065).

    It is found by Lanczos iteration with full reorthogonalisation, from the same random vector at
    every step. The value :math:`\mu` is a Ritz value: up to rounding it never exceeds
    :math:`\lambda_1`. The iteration ends when the residual of its vector, :math:`|Hv - \mu v|` with
    :math:`|v| = 1`, is at most ``tolerance`` times :math:`|\mu|`: then an eigenvalue is that near
    to it, and as a rule it is :math:`\lambda_1`, with the square of this accuracy. If
    ``iterations`` do not suffice, a warning says so, and :math:`\mu` is returned as it was: a lower
    bound.

    Cost: each iteration costs two to three backward passes, typically 10 to 30 of them a recorded
    step, one step at a time (no `torch.func.vmap`), and keeps a vector as long as the parameters,
    in addition to the graph of all n samples: choose ``every``.

    Args:
        loss: ``loss(output, target)`` -> the *mean* over the samples, twice differentiable.
        inputs: as in `held_out`.
        targets: ``(n, ...)``.
        iterations: at most so many products with the Hessian.
        tolerance: of the residual, relative to the eigenvalue.
        seed: of the starting vector.

    Returns:
        A statistic for `tl.track`, a scalar, as `of_model` returns it. It is NaN where the
        Hessian is not finite.

    Raises:
        TypeError: if the loss is not callable, or inputs or targets are not tensors.
        ValueError: if they differ in n, iterations or seed is not an int in its range, tolerance is
            not positive, or, at `tl.track`, no parameter requires a gradient or the loss is not one
            number.

    Example:
        >>> import torch, torchlimits as tl
        >>> mse, x, y = torch.nn.functional.mse_loss, torch.ones(1, 1), torch.zeros(1, 1)
        >>> curvature = tl.statistics.sharpness(mse, x, y)
        >>> curvature.bound(torch.nn.Linear(1, 1))({"weight": torch.eye(1), "bias": torch.ones(1)})
        tensor(4.)
    """
    check_loss(loss)
    _checks.positive_int("iterations", iterations)
    _checks.positive("tolerance", tolerance)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"expected seed as an int >= 0, got {seed!r}")
    data = FixedData.with_targets(inputs, targets)
    return _Sharpness(data, loss, iterations, float(tolerance), seed)


@dataclass(frozen=True, eq=False)
class _Sharpness(OnData):
    loss: Loss
    iterations: int
    tolerance: float
    seed: int = 0

    def evaluation(self, private: PrivateCopy) -> Evaluation:
        check_trainable(private)
        wrong = [name for name in private.trainable if private.places[name].is_complex()]
        if wrong:
            raise ValueError(
                f"expected real parameters, got complex ones, {wrong}: their Hessian has no "
                "largest eigenvalue in these coordinates; keep real and imaginary parts apart"
            )
        return lambda tensors: self._largest(private, tensors)

    def _largest(self, private: PrivateCopy, tensors: Mapping[str, Tensor]) -> Tensor:
        if transformed():
            raise RuntimeError("expected no torch.func transform around sharpness: it has none")
        module = private.holding(tensors)
        parameters = dict(module.named_parameters())
        own: list[Tensor] = [parameters[name] for name in private.trainable]
        with _twice_differentiable():
            product = _hessian(mean_loss(self.loss, module, self.data), own)
            generator = torch.Generator("cpu").manual_seed(self.seed)
            start = torch.cat([_normal(p, generator) for p in own])
            value, residual = largest_eigenvalue(product, start, self.iterations, self.tolerance)
        if residual > self.tolerance * abs(value):
            _checks.warn(
                f"sharpness: {self.iterations} iterations did not reach the tolerance "
                f"{self.tolerance:g} at every step; there, it is a lower bound of the largest "
                "eigenvalue: raise iterations"
            )
        return start.new_tensor(value)


def largest_eigenvalue(
    product: Operator, start: Float[Tensor, "p"], iterations: int, tolerance: float
) -> tuple[float, float]:
    """The largest eigenvalue of a symmetric operator by Lanczos iteration, and its residual.

    Args:
        product: v -> H v.
        start: a vector of any length with a component along the eigenvector.
        iterations: at most so many products.
        tolerance: the residual over the modulus of the eigenvalue at which it ends.

    Returns:
        Both; both are NaN if a product is not finite.

    Example:
        >>> H = torch.diag(torch.tensor([1.0, 3.0, -9.0]))
        >>> value, residual = largest_eigenvalue(lambda v: H @ v, torch.ones(3), 10, 1e-3)
        >>> round(value, 4)
        3.0
    """
    basis = [start / torch.linalg.vector_norm(start)]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        w = product(basis[-1])
        diagonal.append(float(basis[-1] @ w))
        # twice: after the first time, what rounding left is still along the basis
        for _ in range(2):
            for q in basis:
                w = w - (q @ w) * q
        length = float(torch.linalg.vector_norm(w))
        if not (math.isfinite(diagonal[-1]) and math.isfinite(length)):
            return math.nan, math.nan
        value, last, size = _top_of(diagonal, beside)
        residual = length * last
        # the space is invariant, or rounding says no more
        exhausted = length <= 10 * torch.finfo(start.dtype).eps * max(size, length)
        if exhausted or len(basis) == len(start):
            return value, 0.0
        if residual <= tolerance * abs(value) or len(basis) == iterations:
            return value, residual
        beside.append(length)
        basis.append(w / length)


def _top_of(diagonal: list[float], beside: list[float]) -> tuple[float, float, float]:
    """Largest eigenvalue of a tridiagonal matrix, its vector's last entry, and the norm."""
    middle, off = (torch.tensor(x, dtype=torch.float64, device="cpu") for x in (diagonal, beside))
    matrix = middle.diag() + off.diag(1) + off.diag(-1)
    values, vectors = torch.linalg.eigh(matrix)
    return float(values[-1]), abs(float(vectors[-1, -1])), float(values.abs().max())


def _hessian(value: Tensor, parameters: list[Tensor]) -> Operator:
    """v -> H v, by differentiating the gradient along v."""
    sizes = [p.numel() for p in parameters]
    gradient = _gradient([value], parameters, None, create_graph=True)
    # where the gradient is constant there is nothing to differentiate
    moving = [i for i, g in enumerate(gradient) if g.requires_grad]

    def product(v: Tensor) -> Tensor:
        parts = [x.reshape(p.shape) for x, p in zip(v.split(sizes), parameters, strict=True)]
        if not moving:
            return torch.zeros_like(v)
        result = _gradient(
            [gradient[i] for i in moving], parameters, [parts[i] for i in moving], False
        )
        return torch.cat([x.reshape(-1) for x in result])

    return product


def _gradient(
    outputs: list[Tensor], parameters: list[Tensor], along: list[Tensor] | None, create_graph: bool
) -> list[Tensor]:
    if not any(x.requires_grad for x in outputs):
        return [torch.zeros_like(p) for p in parameters]
    return list(
        torch.autograd.grad(
            outputs, parameters, along,
            retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True,
        )
    )  # fmt: skip


def _normal(parameter: Tensor, generator: torch.Generator) -> Tensor:
    # drawn on the CPU: the same on every device
    drawn = torch.randn(parameter.numel(), generator=generator, device="cpu")
    return drawn.to(parameter)


@contextmanager
def _twice_differentiable() -> Generator[None]:
    """Enable gradients, and disable fused kernels that have only a first derivative."""
    with (
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.cudnn.flags(enabled=False),
    ):
        yield
