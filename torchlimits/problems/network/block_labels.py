"""`BlockLabels`: labels that read x_parallel, given its coordinates in units of their noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits.problems.network.labels import LabelLaw, reads_inputs


@dataclass(frozen=True, eq=False)
class BlockLabels:
    """The law of labels where x_parallel is given by other coordinates y, x_parallel = map y.

    Args:
        labels: the law, of coordinates along the directions.
        map: ``(d, e)``.
        component: the component that all samples are of; None if it is as given.

    Example:
        >>> import torch
        >>> from torchlimits.problems.network.labels import FunctionLabels
        >>> sign = FunctionLabels(lambda x, component: x[:, 0].sign())
        >>> turned = BlockLabels(sign, torch.tensor([[-1.0]]), None)
        >>> turned.sample(torch.tensor([[2.0]]), torch.zeros(1, dtype=torch.long), None)
        tensor([-1.])
    """

    labels: LabelLaw
    map: Float[Tensor, "d e"]
    component: int | None

    @property
    def reads_inputs(self) -> bool:
        """Whether labels read x_parallel."""
        return reads_inputs(self.labels)

    def law(self, x_parallel: Tensor, component: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and probabilities; see `LabelLaw.law`."""
        return self.labels.law(self._seen(x_parallel), self._own(component))

    def sample(
        self, x_parallel: Tensor, component: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """One label for each sample; see `LabelLaw.sample`."""
        return self.labels.sample(self._seen(x_parallel), self._own(component), generator)

    def _seen(self, x: Float[Tensor, "n e"]) -> Float[Tensor, "n d"]:
        return x @ self.map.to(x).mT

    def _own(self, component: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        return component if self.component is None else torch.full_like(component, self.component)
