"""`counted_gradients`: the parameters whose gradients the norm of all of them counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torchlimits.optim.held_parameters import Shape
from torchlimits.optim.listed import groups_of
from torchlimits.optim.parameter_groups import settings_of
from torchlimits.optim.training import Training


def counted_gradients(
    training: Training, parameters: Mapping[str, Shape], dims: Iterable[int]
) -> frozenset[str]:
    """The names of the parameters that ``clip_grad_norm_(model.parameters(), ...)`` counts.

    These are the parameters with a gradient, whether or not they move. Of a parameter that
    requires one and that the optimizer does not hold, it is not known what ``.grad`` is:
    ``optimizer.zero_grad()`` leaves it to add up from step to step, ``model.zero_grad()`` does not.

    Args:
        training: the optimizer, or numbers alone, and the model.
        parameters, dims: as in `Layers.of`.

    Raises:
        ValueError: if it cannot be told which gradients there are.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(5, 2).requires_grad_(False)
        >>> sgd = torch.optim.SGD([model.bias.requires_grad_()], lr=0.1)
        >>> shapes = {"weight": (2, None), "bias": (2,)}
        >>> counted_gradients(Training(dim=5, optimizer=sgd, model=model), shapes, {5})
        frozenset({'bias'})
    """
    optimizer, model = training.optimizer, training.model
    if model is None:
        if optimizer is None:
            return frozenset(parameters)
        groups = groups_of(optimizer)
        found = settings_of(
            groups, [True] * len(groups), parameters=parameters, dims=dims, model=None
        )
        still = [name for name, moves in found.items() if not moves]
        if still:
            raise ValueError(
                "expected to be told with clip_norm= which parameters have gradients, all of which "
                f"count in their norm, got an optimizer that does not train {', '.join(still)}: "
                "pass model="
            )
        return frozenset(parameters)
    with_gradients = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [] if optimizer is None else groups_of(optimizer)
    held = {id(p) for group in groups for p in group["params"]}
    lost = [name for name, p in with_gradients.items() if id(p) not in held]
    if optimizer is not None and lost:
        raise ValueError(
            "expected with clip_norm= an optimizer of all parameters that require gradients, got "
            f"one without {', '.join(lost)}: their gradients count in the norm, too, and add up "
            "from step to step, as optimizer.zero_grad() leaves them; call requires_grad_(False) "
            "of what is not to count, or give the optimizer a group of them with lr=0"
        )
    return frozenset(with_gradients)
