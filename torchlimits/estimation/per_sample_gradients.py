"""Gradients of the loss of single samples, many samples at once, for any model and loss."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils import _pytree as pytree

from torchlimits._stateless import called, places
from torchlimits.problems.network.module import FirstLayer
from torchlimits.problems.two_layer import MatrixProduct
from torchlimits.statistics.quadratic import (
    Gradient,
    OuterGradient,
    dense,
    largest_entries,
    part,
)

#: samples on which the two ways to a gradient are compared
_COMPARED = 2


class PerSampleGradients:
    r"""Gradients g_s = grad L(x; Y_s) for the samples Y_s of a batch.

    Where the parameters belong to linear layers that see one row for each sample, a gradient is the
    outer product of the layer's input and of the gradient of its output, and is left as one: a
    batch then costs about as much as an ordinary forward and backward pass. Otherwise, and wherever
    a comparison on the first samples finds a difference, `torch.func` makes the gradients.

    Args:
        model: any module that `torch.func.functional_call` takes.
        loss: ``loss(model_output, target)``, or ``loss(model, batch)``: a function whose first
            parameter is called ``model``. It returns one number for a batch of one.
        names: the names of the parameters whose gradients are wanted.

    Raises:
        ValueError: if a module computes with the statistics of the batch (BatchNorm in training).
        TypeError: if an argument is of a wrong type.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], names: list[str]) -> None:
        _check_model(model)
        if not callable(loss):
            raise TypeError(f"expected loss as a function, got {type(loss).__name__}")
        self.model, self.loss, self.names = model, loss, names
        self._whole = takes_model(loss)
        self._places = places(model)
        self._lossy = _Lossy(model, loss, self._whole)
        self._layers = None if self._whole else _linear_layers(model, names)
        self._checked = False
        self._vectorised = True

    def __call__(self, parameters: Mapping[str, Tensor], batch: Any) -> Mapping[str, Gradient]:
        """Return the gradients of every sample of a batch whose tensors have the samples first.

        Raises:
            ValueError: if the batch has another form, or the loss of a sample is not one number or
                cannot be differentiated.
        """
        self._check_batch(batch)
        if self._layers is None:
            return self._dense(parameters, batch)
        try:
            gradients = self._outer(parameters, batch)
            if not self._checked:
                self._compare(gradients, parameters, batch)
            return gradients
        except torch.OutOfMemoryError:
            raise  # it says nothing about the model
        except (_NotOuterError, RuntimeError):
            self._layers = None
            return self._dense(parameters, batch)

    @property
    def structured(self) -> bool:
        """Whether gradients are left as outer products."""
        return self._layers is not None

    # --- by torch.func ------------------------------------------------------------------------

    def _alone(self, parameters: Mapping[str, Tensor]) -> Callable[[Any], dict[str, Tensor]]:
        """Return the function that takes one sample to its gradients."""
        wanted = {name: parameters[name] for name in self.names}
        others = {n: p for n, p in parameters.items() if n not in wanted}

        def loss(wanted: dict[str, Tensor], sample: Any) -> Tensor:
            one = pytree.tree_map(lambda x: x[None], sample)
            return self._loss_of({**others, **wanted}, one)

        return partial(grad(loss), wanted)

    def _dense(self, parameters: Mapping[str, Tensor], batch: Any) -> Mapping[str, Gradient]:
        alone = self._alone(parameters)
        try:
            if self._vectorised:
                try:
                    return vmap(alone, randomness="different")(batch)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError:
                    # .item(), data-dependent control flow: one sample at a time, if that works
                    self._vectorised = False
                    alone(pytree.tree_map(lambda x: x[0], batch))
                    warnings.warn(
                        "torch.func.vmap cannot take this model or loss: gradients are computed "
                        "sample by sample, which is slow",
                        stacklevel=2,
                    )
            size = len(pytree.tree_leaves(batch)[0])
            samples = (pytree.tree_map(lambda x, s=s: x[s], batch) for s in range(size))
            rows = [alone(sample) for sample in samples]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, TypeError, NotImplementedError) as error:
            raise ValueError(
                "expected a loss that torch.func can differentiate for a batch of one sample, got "
                f"{type(error).__name__}: {error}"
            ) from error
        return {name: torch.stack([row[name] for row in rows]) for name in self.names}

    # --- by layers ----------------------------------------------------------------------------

    def _outer(self, parameters: Mapping[str, Tensor], batch: Any) -> dict[str, Gradient]:
        assert self._layers is not None
        x, y = batch
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        handles = [
            module.register_forward_hook(_recorder(seen, name, len(pytree.tree_leaves(x)[0])))
            for name, module in self._layers.items()
        ]
        detached = {n: p.detach() for n, p in parameters.items()}
        try:
            with torch.enable_grad():
                output = called(self.model, {**detached, **self._buffers()}, (x,), at=self._places)
                total = self._total(output, y)
                places = [seen[name][1] for name in self._layers if name in seen]
                grads = torch.autograd.grad(total, places, materialize_grads=True)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, TypeError, AttributeError) as error:
            raise _NotOuterError from error
        finally:
            for handle in handles:
                handle.remove()
        gradients: dict[str, Gradient] = {}
        for name, delta in zip([n for n in self._layers if n in seen], grads, strict=True):
            weight, bias = f"{name}.weight".lstrip("."), f"{name}.bias".lstrip(".")
            if weight in self.names:
                gradients[weight] = OuterGradient(delta, seen[name][0])
            if bias in self.names:
                gradients[bias] = delta
        if set(gradients) != set(self.names):
            raise _NotOuterError
        return gradients

    def _compare(
        self, gradients: dict[str, Gradient], parameters: Mapping[str, Tensor], batch: Any
    ) -> None:
        """Raise _NotOuterError if gradients of samples alone differ from those in the batch."""
        sizes = torch.stack([largest_entries(g) for g in gradients.values()]).amax(0)
        # samples with the largest gradients, as a gradient of 0 says nothing
        largest = sizes.argsort(descending=True)[:_COMPARED].tolist()
        for s in largest:
            reference = self._one(parameters, pytree.tree_map(lambda x, s=s: x[s : s + 1], batch))
            for name, expected in reference.items():
                got = dense(part(gradients[name], [s]))[0]
                tolerance = 1e3 * torch.finfo(got.dtype).eps * float(expected.abs().max())
                if not float((got - expected).abs().max()) <= tolerance:
                    raise _NotOuterError
        # a sample in a batch of its own says nothing about what others do to it
        self._checked = len(largest) == _COMPARED and bool(sizes[largest[-1]] > 0)

    def _one(self, parameters: Mapping[str, Tensor], sample: Any) -> dict[str, Tensor]:
        """The gradients of a batch of one by plain autograd: a fifth of the time of torch.func."""
        leaves = {n: parameters[n].detach().requires_grad_() for n in self.names}
        with torch.enable_grad():
            loss = self._loss_of({**parameters, **leaves}, sample)
            grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, grads, strict=True))

    def _total(self, output: Tensor, target: Any) -> Tensor:
        """The sum of the losses of single samples."""
        if not isinstance(output, Tensor):
            raise _NotOuterError

        def one(output: Tensor, target: Any) -> Tensor:
            return _number(self.loss(output[None], pytree.tree_map(lambda t: t[None], target)))

        return vmap(one, randomness="different")(output, target).sum()

    def _loss_of(self, parameters: Mapping[str, Tensor], sample: Any) -> Tensor:
        """The loss of a batch of one."""
        # new buffers for each, as torch.func wants what it changes to be made inside
        everything = {**parameters, **self._buffers()}
        state = {f"model.{n}": p for n, p in everything.items()}
        at = {f"model.{place}": f"model.{name}" for place, name in self._places.items()}
        return _number(called(self._lossy, state, (sample,), at=at))

    def _buffers(self) -> dict[str, Tensor]:
        # copies, as a module that counts its calls must not count ours
        return {n: b.detach().clone() for n, b in self.model.named_buffers()}

    def _check_batch(self, batch: Any) -> None:
        leaves = pytree.tree_leaves(batch)
        sizes = {x.shape[0] if isinstance(x, Tensor) and x.ndim else 0 for x in leaves}
        if len(sizes) != 1 or 0 in sizes:
            got = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in leaves]
            raise ValueError(
                "expected the sampler to return tensors with the samples in their first dimension, "
                f"got shapes {got}"
            )
        if not self._whole and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise ValueError(
                "expected the sampler to return (input, target) for loss(output, target), got "
                f"{type(batch).__name__}: or name the loss's first parameter model and take "
                "loss(model, batch)"
            )


class _NotOuterError(Exception):
    """The gradients are not outer products after all."""


class _Lossy(nn.Module):
    """The loss of a batch as the output of a module, whose parameters functional_call replaces."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], whole: bool) -> None:
        super().__init__()
        self.model, self._loss, self._whole = model, loss, whole

    def forward(self, batch: Any) -> Tensor:
        if self._whole:
            return self._loss(self.model, batch)
        x, y = batch
        return self._loss(self.model(x), y)


def _recorder(seen: dict[str, tuple[Tensor, Tensor]], name: str, size: int) -> Callable[..., Any]:
    """A forward hook that notes a linear layer's input and output."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        (x,) = inputs
        if name in seen or x.ndim != 2 or len(x) != size:
            raise _NotOuterError
        if not output.requires_grad:
            output.requires_grad_()
        seen[name] = (x.detach(), output)
        # a copy: what follows may change it in place
        return output.clone()

    return hook


def _linear_layers(model: nn.Module, names: list[str]) -> dict[str, nn.Module] | None:
    """The linear layers that own the parameters, if all of them belong to one."""
    layers: dict[str, nn.Module] = {}
    for name in names:
        owner, _, kind = name.rpartition(".")
        module = model.get_submodule(owner)
        plain = type(module) in (nn.Linear, FirstLayer, MatrixProduct)
        if not plain or kind not in ("weight", "bias") or module.weight.ndim != 2:
            return None
        layers[owner] = module
    return layers


def takes_model(loss: Callable[..., Tensor]) -> bool:
    """Return whether a loss is a loss(model, batch), and not a loss(output, target)."""
    try:
        names = list(inspect.signature(loss).parameters)
    except (TypeError, ValueError):
        return False
    return names[:1] == ["model"]


def _number(value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"expected the loss of a batch of one to be one number, got {what}")
    return value.reshape(())


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:  # pyright: ignore[reportPrivateUsage]
            raise ValueError(
                f"expected a model whose output for a sample does not depend on the others, got "
                f"{type(module).__name__} {name!r} in training mode: call model.eval(), or use "
                "GroupNorm or LayerNorm"
            )
