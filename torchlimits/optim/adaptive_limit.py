"""`AdaptiveLimit`: the limits of Adam, AdamW, RMSprop, Adagrad and Muon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.contracts.gradient_field import GradientField
from torchlimits.contracts.vector_field import VectorField
from torchlimits.optim.adaptive_field import AdaptiveField
from torchlimits.optim.adaptive_settings import AdaptiveSettings
from torchlimits.optim.gradient_map import GradientMap
from torchlimits.optim.limit import OptimizerLimit
from torchlimits.optim.moment_layout import Settings
from torchlimits.optim.muon_settings import MuonSettings


@dataclass(frozen=True, eq=False)
class AdaptiveLimit(OptimizerLimit):
    r"""Optimizers that scale gradients by what they were: by second moments, or by Muon's rule.

    Second moments are a part of the limit's state; see `AdaptiveField` for the equations. Adam's
    beta_1 does not enter, as the average of gradients forgets within O(1) steps. Parameters that
    SGD trains may be beside.

    Args:
        kind: the key in `SECOND_MOMENTS` of second moments; "" if there are none.
        name: the optimizers.
        reference: the settings of the group whose learning rates add up to the limit time.
        settings: those of each parameter by its name; None if it does not move.
        axes: the coordinates of x with second moments of their own, in the basis of the
            directions, ``(d, J)``.
        places: the numbers of these coordinates.
        map: what is done to a batch's gradient before it is squared and divided; None if nothing.

    Example:
        >>> import torch
        >>> adam = AdaptiveSettings("Adam", step_size=1.0, memory=0.999, eps=1e-8)
        >>> limit = AdaptiveLimit(
        ...     "Adam", "AdamW", adam, {"first.weight": adam}, torch.zeros(2, 0), ()
        ... )
        >>> limit.step_size, limit.describe()["optimizer"]
        (1.0, 'AdamW')
    """

    kind: str
    name: str
    reference: Settings
    settings: Mapping[str, Settings | None]
    axes: Float[Tensor, "d J"]
    places: tuple[int, ...]
    map: GradientMap | None = None

    @property
    def step_size(self) -> float:
        """c_delta of the reference."""
        return float(self.reference.step_size)

    @property
    def speed(self) -> float:
        """1: how fast parameters move is a part of the state."""
        return 1.0

    def prepared(self, field: VectorField) -> AdaptiveField:
        """The field with second moments among its statistics.

        Args:
            field: the vector field.

        Raises:
            ValueError: if it is not that of a network with a linear first layer.
        """
        if isinstance(field, AdaptiveField):
            field = field.base
        if not isinstance(field, GradientField):
            raise ValueError(
                f"expected torch.optim.SGD for {type(field).__name__}, got {self.name}: "
                "its limit needs the averages of gradients, which networks have "
                "(NetworkProblem, TeacherStudent)"
            )
        field.check_isotropic(self.name)
        if field.scale != 1:
            raise ValueError(
                f"expected convention='torch' with {self.name}, got weights that are scaled by "
                f"{field.scale:g}: its steps do not scale with the gradient"
            )
        self._check_sizes(field)
        return AdaptiveField(
            field, kind=self.kind, reference=self.reference, settings=self.settings,
            axes=self.axes, map=self.map,
        )  # fmt: skip

    def _check_sizes(self, field: GradientField) -> None:
        """Warn where the limit is far from n."""
        B, dim = self.reference.batch_size, field.dim
        if self.kind and dim / 50 < B:
            _checks.warn_user(
                f"batches of {B} at dim={dim}: predictions for {self.name} neglect B/N, "
                f"{B / dim:.2g} here, the share of the mean in a batch's squared gradient"
            )
        muon = self.settings.get(field.weight)
        if isinstance(muon, MuonSettings):
            self._check_window(muon, dim)
        sums = [s.initial for s in self.settings.values() if isinstance(s, AdaptiveSettings)]
        initial = min(sums, default=0.0)
        if self.kind == "Adagrad" and initial < 1e-2 * dim:
            _checks.warn_user(
                f"Adagrad with initial_accumulator_value={initial:g} at dim={dim}: the limit needs "
                "one of the order of N; with less the first steps, each of a size of its own, "
                f"change statistics by about log(1 + N/{initial:g}) of what they are after that"
            )

    def _check_window(self, muon: MuonSettings, dim: int) -> None:
        if muon.window > dim / 20:
            _checks.warn_user(
                f"Muon's buffer has {muon.window:.3g} samples at dim={dim}: predictions neglect "
                f"their number over N, {muon.window / dim:.2g} here, squared; they are good for "
                f"B/kappa_w up to N/20 (batch_size={muon.batch_size}, momentum={muon.momentum:g})"
            )
        lag = muon.momentum / (1 - muon.momentum)
        if lag > dim / 20:
            _checks.warn_user(
                f"Muon's momentum={muon.momentum:g} keeps W {lag:.0f} steps behind at dim={dim}: "
                "predictions neglect that, so that statistics are off by what they move in so many "
                f"steps, a part of {lag / dim:.2g} of what they move in N; take less momentum, or "
                "a larger dim"
            )

    def rates(
        self, field: VectorField, u: Float[Tensor, "*batch k"], step_size: float | Tensor
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """Drift and corrector; see `OptimizerLimit.rates`."""
        assert isinstance(field, AdaptiveField)
        return field.rates(u, _checks.plain(step_size))

    def diffusion(
        self, field: VectorField, u: Float[Tensor, "*batch k"], step_size: float | Tensor
    ) -> Float[Tensor, "*batch k k"]:
        """The diffusion matrix; see `OptimizerLimit.diffusion`."""
        assert isinstance(field, AdaptiveField)
        c = _checks.plain(step_size)
        return c * field.increment_covariance(u, c)

    def describe(self) -> dict[str, Any]:
        """The settings, those of parameters that differ, and the map."""
        facts = self.reference.describe()
        facts.pop("kind", None)
        result = {"optimizer": self.name, **facts}
        if self.map is not None:
            result |= self.map.describe()
        for name, settings in self.settings.items():
            if settings is None:
                result[name] = "does not move"
            elif settings != self.reference:
                own = {k: v for k, v in settings.describe().items() if k != "kind"}
                result |= {
                    f"{name}.{k}": v for k, v in own.items() if k not in facts or v != facts[k]
                }
        return result
