"""`Motion`: how the gradients of single samples move the parameters that statistics see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from torchlimits.statistics.quadratic import Gradient, OuterGradient, dense

#: one for all entries of a parameter, or one for each
Factor = float | Tensor


@dataclass(frozen=True, eq=False)
class Motion:
    r"""Steps :math:`y_i \leftarrow y_i - \delta\,(s_i \nabla_i L(w) + a_i w_i)`.

    The statistics are those of y, the gradients those at w: plain SGD has y = w and s = 1.

    Args:
        weight_decay: a, where ``decays`` has none for a parameter.
        speeds: s by the parameter's name, of which a tensor has its shape; 1 where there is none.
        decays: a by the parameter's name, s included where weight decay is part of the gradient.
        places: y by the parameter's name; w where there is none.

    Example:
        >>> import torch
        >>> motion = Motion(weight_decay=0.5, speeds={"b": 2.0})
        >>> motion.pulls({"a": torch.ones(1), "b": torch.ones(1)}, ["a", "b"])
        {'a': tensor([0.5000]), 'b': tensor([0.5000])}
        >>> motion.moved({"a": torch.ones(3, 1), "b": torch.ones(3, 1)})["b"].flatten()
        tensor([2., 2., 2.])
        >>> motion.seen({"a": torch.ones(1)})
        {'a': tensor([1.])}
    """

    weight_decay: float = 0.0
    speeds: Mapping[str, Factor] = field(default_factory=dict)
    decays: Mapping[str, Factor] = field(default_factory=dict)
    places: Mapping[str, Tensor] = field(default_factory=dict)

    def seen(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the statistics are evaluated at: y, in the dtype of w.

        Args:
            parameters: w.
        """
        return {n: self.places[n].to(p) if n in self.places else p for n, p in parameters.items()}

    def moved(self, gradients: Mapping[str, Gradient]) -> dict[str, Gradient]:
        """The gradients of samples times s.

        Args:
            gradients: those of single samples at w.
        """
        return {n: _times(g, self.speeds.get(n, 1.0)) for n, g in gradients.items()}

    def pulls(self, parameters: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """What weight decay adds to these, a w; nothing for a parameter without.

        Args:
            parameters: w.
            names: those that move.
        """
        factors = {n: self.decays.get(n, self.weight_decay) for n in names}
        return {
            n: (factor * parameters[n]).to(parameters[n])
            for n, factor in factors.items()
            if isinstance(factor, Tensor) or factor
        }


def _times(gradient: Gradient, factor: Factor) -> Gradient:
    if isinstance(factor, Tensor):
        each = dense(gradient)  # no outer product is left
        return each * factor.to(each)
    if factor == 1:
        return gradient
    if isinstance(gradient, OuterGradient):
        return OuterGradient(factor * gradient.left, gradient.right)
    return factor * gradient
