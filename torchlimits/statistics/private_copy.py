"""`PrivateCopy`: a module's twins, each made for one evaluation, with the tensors it is given."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

#: where a module keeps what is registered
_REGISTERED = ("_parameters", "_buffers", "_modules")
#: hooks that see the gradients on their way: the derivative of a loss is the same without them
_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")


class PrivateCopy:
    """Makes twins of a module that share nothing with it; see `holding`.

    A twin is made for each evaluation, by `copy.deepcopy` of a copy without values. So whatever a
    function does to its twin (changes values, modes or attributes, fills a cache, is interrupted)
    reaches neither the trained module nor the next evaluation. Where tensors refer to each other
    (tied weights, lists of weights), they do so in the twin.

    Args:
        module: any module that can be copied.
        train: whether twins are in training mode.

    Raises:
        TypeError, ValueError: if the module cannot be copied, see `of_model`.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> twin = PrivateCopy(layer).holding({"weight": torch.ones(1, 2), "bias": torch.ones(1)})
        >>> twin(torch.ones(3, 2)).tolist()
        [[3.0], [3.0], [3.0]]
    """

    def __init__(self, module: nn.Module, train: bool = False) -> None:
        _check(module)
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        #: names of the parameters that require a gradient
        self.trainable = [name for name, p in parameters.items() if p.requires_grad]
        #: for each parameter, whether it requires a gradient
        self._gradient = {name: p.requires_grad for name, p in parameters.items()}
        registered = {**buffers, **parameters}
        #: what stands for each tensor in the copy
        self.places = {name: _nothing_like(x) for name, x in registered.items()}
        memo: dict[int, Any] = {id(x): self.places[name] for name, x in registered.items()}
        kept = list(_kept(module, set(memo)))
        # what training computes from parameters (the older weight_norm keeps its weight like this)
        computed = [one for one in kept if one.tensor.grad_fn is not None]
        self._stale = [Stale(one.where) for one in computed]
        memo.update(zip([id(one.tensor) for one in computed], self._stale, strict=True))
        self._copy = _copied(module, memo)
        self._constants = [
            (one, memo[id(one.tensor)]) for one in kept if one.tensor.grad_fn is None
        ]
        _check_copy(module, self._copy, self.places)
        for one in self._copy.modules():
            for hooks in _BACKWARD:
                vars(one).get(hooks, {}).clear()
            # Accelerate replaces the forward by one that turns autocast on
            if "_original_forward" in vars(one):
                vars(one)["forward"] = vars(one).pop("_original_forward")
        self._copy.train(train)
        #: the names of the module's layers; a shared layer is under each of its names
        self.layers = [name for name, _ in self._copy.named_modules(remove_duplicate=False)]

    def holding(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A twin with copies of these tensors.

        Outside of `torch.func`, parameters are `nn.Parameter` again, and require gradients as they
        do in the module.

        Args:
            tensors: ``{name: tensor}`` of all parameters and buffers.
        """
        memo: dict[int, Any] = {
            id(place): self._own(name, tensors[name]) for name, place in self.places.items()
        }
        memo.update({id(one): one for one in self._stale})
        memo.update({id(twin): Stale(one.where) for one, twin in self._constants if one.changed})
        return copy.deepcopy(self._copy, memo)

    def _own(self, name: str, tensor: Tensor) -> Tensor:
        if transformed():
            return tensor.clone()
        own = tensor.detach().clone()
        if name not in self._gradient:
            return own
        return nn.Parameter(own, requires_grad=self._gradient[name])


def transformed() -> bool:
    """Whether this runs inside a transform of `torch.func`: vmap, grad, jacrev ..."""
    return torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]


class Stale(Tensor):
    """What stands for a tensor whose value at a step nobody knows: using it is an error.

    A tensor on the meta device would not do: on the CPU, matrix products with it return whatever
    is in the memory.

    Args:
        attribute: the name of the module's attribute.
    """

    attribute: str

    def __new__(cls, attribute: str) -> Stale:
        """Make a stand-in for the attribute."""
        result = Tensor._make_subclass(cls, torch.empty(0, device="cpu"))  # pyright: ignore
        result.attribute = attribute
        return result

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raise ValueError: nothing may use it."""
        found = [x.attribute for x in tree_leaves((args, kwargs)) if isinstance(x, Stale)]
        raise ValueError(
            f"expected a function of the module that uses its parameters and buffers, got one that "
            f"uses {' and '.join(map(repr, found))}, a tensor in its attributes, which training "
            "changes, so that nobody knows what it was after this step: make it a buffer, by "
            "register_buffer"
        )


class _Kept(NamedTuple):
    """A tensor that a module keeps beside its parameters and buffers, and where."""

    where: str
    tensor: Tensor
    version: int
    #: the module's attributes, and the name if the tensor itself is one of them
    attributes: dict[str, Any]
    name: str | None

    @property
    def changed(self) -> bool:
        """Whether training has since written to it, or put another tensor in its place."""
        replaced = self.name is not None and self.attributes.get(self.name) is not self.tensor
        return replaced or _version(self.tensor) != self.version


def _kept(module: nn.Module, registered: set[int]) -> Iterator[_Kept]:
    """The tensors in the attributes of all modules, and in lists and dicts there."""
    for path, one in module.named_modules():
        attributes = vars(one)
        for name, value in attributes.items():
            if name in _REGISTERED:
                continue
            for tensor in _tensors(value):
                if id(tensor) not in registered:
                    direct = name if tensor is value else None
                    where = f"{path}.{name}" if path else name
                    yield _Kept(where, tensor, _version(tensor), attributes, direct)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):  # hidden in a list, so that it is not registered
        yield from [*value.parameters(), *value.buffers()]
    elif isinstance(value, (list, tuple, set)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _version(tensor: Tensor) -> int:
    # tensors of inference mode have no version
    return 0 if tensor.is_inference() else tensor._version


def _nothing_like(tensor: Tensor) -> Tensor:
    """A tensor without values, which takes no memory."""
    return torch.empty_like(tensor, device="meta", requires_grad=False)


def _check(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}")
    for name, x in [*module.named_parameters(), *module.named_buffers()]:
        if nn.parameter.is_lazy(x):
            raise ValueError(
                f"expected a module with values, got {name!r} without a shape: run the module "
                "once before"
            )
        if hasattr(x, "full_tensor"):  # a DTensor: importing it to ask would take half a second
            raise ValueError(
                f"expected a module that one process has, got {name!r} in shards: a function of "
                "the module runs in one process; record functions of the parameters"
            )
    for path, one in module.named_modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            for hook in vars(one).get(kind, {}).values():
                _check_hook(path, hook)


def _check_hook(path: str, hook: object) -> None:
    """Refuse functions: only objects and methods are copied with the module."""
    while isinstance(hook, partial):
        hook = hook.func
    if isinstance(hook, (types.FunctionType, types.BuiltinFunctionType)):
        where = f"layer {path!r}" if path else "the module itself"
        raise ValueError(
            f"expected a module that can be run beside the training, got one with the hook "
            f"{hook.__qualname__!r} on {where}, a function, which may keep what it sees or change "
            "what the layer returns: if it only looks on, register it after tl.track; if it "
            "changes something, make it a method of the module or an object with __call__, which "
            "is copied with it"
        )


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # whatever the module holds
        raise ValueError(
            f"expected a module that copy.deepcopy can copy, got {type(module).__name__}, with "
            f"which it fails: {type(error).__name__}: {error}. Functions of the module run a copy "
            "of it: keep trackers, locks, processes and tensors with a graph out of its "
            "attributes, or let its __getstate__ leave them out; of a wrapper, give the module "
            "inside"
        ) from error


def _check_copy(module: nn.Module, twin: nn.Module, places: Mapping[str, Tensor]) -> None:
    found = {**dict(twin.named_buffers()), **dict(twin.named_parameters())}
    shared = {id(one) for one in module.modules()} & {id(one) for one in twin.modules()}
    own = found.keys() == places.keys() and all(found[name] is places[name] for name in places)
    if shared or not own:
        raise ValueError(
            f"expected a module whose copy.deepcopy shares nothing with it, got "
            f"{type(module).__name__}, with which parts are shared or other tensors made "
            "(torch.jit's modules are so): record functions of the parameters instead"
        )
