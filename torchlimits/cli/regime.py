"""``torchlimits regime``: is a learning rate critical?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass


@dataclass(kw_only=True)
class Regime:
    """Say in words whether a learning rate is critical at a dimension.

    With several dimensions and their learning rates, the exponent of lr ~ dim^(-a) decides.
    """

    dim: tuple[int, ...]
    """The dimension n of the data: its number of entries of order 1. Several may be given."""
    lr: tuple[float, ...]
    """The learning rate of SGD at each dimension."""

    def main(self) -> None:
        """Print the regime."""
        from torchlimits.estimation.conditions.step_size import regime

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = regime(list(self.dim), list(self.lr))
        # above the critical scale, the warning gives advice as well
        print(told[0].message if told else found)
