"""`Untouched`: a training as it was, after somebody else's functions were called in it."""

from __future__ import annotations

import torch
from torch import Tensor

from torchlimits.record.evaluation import Surroundings
from torchlimits.record.model_state import ModelState


class Untouched:
    """Copies of all that statistics must leave alone, compared and put back at the end of a block.

    These are parameters, buffers, gradients, the modes of all modules, and the generators of
    random numbers.

    Args:
        state: the tensors of the training.
        surroundings: what gives and restores the generators' states.

    Attributes:
        changed: the names of the tensors and modes that were different at the end of the block.
        drawn: whether random numbers were drawn.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> before = model.weight.detach().clone()
        >>> with Untouched(ModelState(model), Surroundings()) as untouched:
        ...     model.weight.data.numpy()[:] = 0.0
        ...     _ = torch.rand(3)
        >>> untouched.changed, untouched.drawn, torch.equal(model.weight, before)
        (['weight'], True, True)
    """

    def __init__(self, state: ModelState, surroundings: Surroundings) -> None:
        self._state, self._surroundings = state, surroundings
        self.changed: list[str] = []
        self.drawn = False

    def __enter__(self) -> Untouched:
        self._generators = self._surroundings.generators()
        self._modes = {module: module.training for module in self._state.model.modules()}
        self._gradients = {p: p.grad for p in self._state.parameters.values()}
        self._copies = [(n, _local(t), _copy(_local(t))) for n, t in self._tensors().items()]
        return self

    def __exit__(self, *error: object) -> None:
        now = self._surroundings.generators()
        self.drawn = not all(map(_same_state, self._generators, now))
        self._surroundings.restore(self._generators)
        with torch.no_grad():
            for name, tensor, copy in self._copies:
                if not same(tensor, copy.to(tensor.device)):
                    self.changed.append(name)
                    tensor.copy_(copy)
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient
        for module, training in self._modes.items():
            if module.training != training:
                self.changed.append(f"the mode of {type(module).__name__}")
                module.training = training
        self._copies.clear()

    def _tensors(self) -> dict[str, Tensor]:
        # optimizers' state is not copied: it is as large as the model, or twice
        live = self._state.live(optimizers=False)
        return {name: tensor.detach() for name, tensor in live.items() if not tensor.is_meta}


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one shape have the same values; NaN is equal to NaN."""
    if torch.equal(first, second):
        return True
    return bool(((first == second) | ((first != first) & (second != second))).all())


def _local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that several share."""
    return getattr(tensor, "to_local", lambda: tensor)()


def _copy(tensor: Tensor) -> Tensor:
    try:
        return tensor.clone()
    except torch.OutOfMemoryError:
        return tensor.to("cpu", copy=True)


def _same_state(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict) or not isinstance(first, tuple):
        return repr(first) == repr(second)
    return len(first) == len(second) and all(  # type: ignore[arg-type]
        a.tolist() == b.tolist() if hasattr(a, "tolist") else a == b
        for a, b in zip(first, second, strict=True)  # type: ignore[call-overload]
    )
