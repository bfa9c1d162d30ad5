"""`differentiable_once`: a value whose first derivatives are right and second ones are not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def differentiable_once(x: Tensor, what: str) -> Tensor:
    """x itself; second derivatives of what is computed from it are refused.

    Both modes of torch.autograd and of torch.func are, in any order.

    Args:
        x: a tensor.
        what: names what is computed from it, for the message.

    Example:
        >>> x = torch.tensor(2.0)
        >>> torch.func.grad(lambda x: differentiable_once(x, "the cube") ** 3)(x)
        tensor(12.)
        >>> torch.func.hessian(lambda x: differentiable_once(x, "the cube") ** 3)(x)
        Traceback (most recent call last):
        NotImplementedError: expected first derivatives of the cube, got a request for second ...
    """
    return _Once.apply(x, what)  # type: ignore[no-any-return]


def without_derivatives(x: Tensor, what: str) -> Tensor:
    """x itself; derivatives of what is computed from it are refused.

    Args:
        x: a tensor.
        what: names what is computed from it, for the message.

    Example:
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> (without_derivatives(x, "the cube") ** 3).backward()
        Traceback (most recent call last):
        NotImplementedError: expected no derivatives of the cube, got a request for some, which ...
    """
    return _Never.apply(x, x, _none(what)) if torch.is_grad_enabled() else x  # type: ignore[no-any-return]


def _none(what: str) -> str:
    return (
        f"expected no derivatives of {what}, got a request for some, which are not known: take "
        "differences, or compute inside torch.no_grad()"
    )


class _Once(torch.autograd.Function):
    """The identity, with derivatives that cannot be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, what: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        x, ctx.what = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Never.apply(slope, *ctx.saved_tensors, _refusal(ctx.what)), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Never.apply(tangent, *ctx.saved_tensors, _refusal(ctx.what))


class _Never(torch.autograd.Function):
    """A value computed from x, without derivatives; the message says so."""

    generate_vmap_rule = True

    @staticmethod
    def forward(derivative: Tensor, x: Tensor, refusal: str) -> Tensor:
        return derivative.view_as(derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        ctx.refusal = inputs[2]

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise NotImplementedError(ctx.refusal)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise NotImplementedError(ctx.refusal)


def _refusal(what: str) -> str:
    return (
        f"expected first derivatives of {what}, got a request for second ones, which are not "
        "known: take differences of the first"
    )
