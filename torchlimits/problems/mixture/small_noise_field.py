"""`SmallNoiseField`: the vector field of the mixtures at snr = infinity."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from torchlimits import _linalg
from torchlimits.contracts.gradient_field import Averages
from torchlimits.problems.mixture.field import MixtureField
from torchlimits.problems.mixture.geometry import MixtureGeometry

#: half-width of the layer around h = 0 in which a neuron held there slides
_LAYER = 1e-2
#: unit vectors closer than this count as one, in float32 too
_PARALLEL = 1e-6


class SmallNoiseField(MixtureField):
    r"""ODE of (v, m, R) for snr -> infinity after N -> infinity, for any means and any width K.

    Neuron i sees the components on its positive side, h_ai = m_i . c_a > 0 (half of those at
    h_ai = 0); with s_a = sigmoid(sum_i v_i relu(h_ai)) - y_a and averages over the components a,

    .. math::
        \dot v_i = -\langle relu(h_{ai}) s_a \rangle - \alpha v_i, \quad
        \dot m_i = -v_i \langle c_a 1_{h_{ai} > 0} s_a \rangle - \alpha m_i, \quad
        \dot R = -2 \alpha R.

    There is no corrector: it is gradient flow whatever the step size. Source: Propositions 4.2
    (binary) and D.3 (XOR) of arXiv 2206.04030.

    The right-hand side jumps where a neuron is orthogonal to a mean. Where both sides push the
    neuron there (XOR: it serves mu and is pushed off nu and -nu) it slides along h_ai = 0, seeing
    that component with the probability that balances both sides, as it does for any large snr; the
    jump is spread over \|h_ai\| < 0.01, which leaves fixed points where they are.

    Args:
        coordinates, labels, width, snr, dim, weights: as in `MixtureField`; snr is inf.
    """

    rtol = 1e-8
    atol = 1e-10

    def __init__(self, *means: Tensor, **options: Any) -> None:
        super().__init__(*means, **options)
        self.geometry = MixtureGeometry(self)
        self._sign = 1.0

    def risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """The mean of log(1 + e^psi) - y psi over the means; see `MixtureField.risk`."""
        v, m, _ = self.split(u)
        psi = (v[..., None, :] * (self.coordinates.to(v) @ m.mT).relu()).sum(-1)
        return self.mean(functional.softplus(psi) - self.labels.to(v) * psi, -1)

    def for_ascent(self) -> SmallNoiseField:
        """The field with the neurons sliding where ascent holds them."""
        ascending = copy.copy(self)
        ascending._sign = -1.0
        return ascending

    def averages(self, u: Float[Tensor, "*batch k"]) -> Averages:
        """The averages over the components; see `FirstLayerField.averages`."""
        v, m, R = self.split(u)
        by_v, g, _ = self._gradients(v, m)
        signal = self._mean(torch.einsum("a...k,ad->a...kd", g, self.coordinates.to(v)))
        gram = self._mean(g[..., :, None] * g[..., None, :])
        theta, bias = self._mean(by_v), self._mean(g)
        return Averages(theta, bias, signal, torch.zeros_like(R), gram)

    def _shares(self, moves: Float[Tensor, "A *rest"]) -> Tensor:
        """The weights times A, in front of all other dimensions."""
        assert self.weights is not None
        shares = len(moves) * self.weights.to(moves)
        return shares.reshape(-1, *(1,) * (moves.ndim - 1))

    def _mean(self, moves: Float[Tensor, "A *rest"]) -> Float[Tensor, "*rest"]:
        return self.mean(moves, -moves.ndim)

    def increment_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> Float[Tensor, "*batch k k"]:
        """The covariance of one step; see `VectorField.increment_covariance`."""
        v, m, _ = self.split(u)
        by_v, g, held = self._gradients(v, m)
        # a neuron that slides on h_a = 0 is thrown back at once: no diffusion along c_a
        c = self.coordinates.to(v)
        dm = torch.einsum("a...k,ad->a...kd", -g, c)
        stiff = torch.einsum("a...k,ad,ae->...kde", held.to(v), c, c)
        eye = torch.eye(c.shape[1], dtype=v.dtype, device=v.device)
        free = eye - _linalg.pinv(stiff, hermitian=True) @ stiff
        dm = torch.einsum("...kde,a...ke->a...kd", free, dm)
        moves = torch.cat([-by_v, dm.flatten(-2)], dim=-1)
        moves = moves - self._mean(moves)
        weighted = moves if self.weights is None else self._shares(moves) * moves
        covariance = torch.einsum("a...k,a...l->...kl", weighted, moves) / len(moves)
        rest = len(self.names) - moves.shape[-1]
        return torch.nn.functional.pad(covariance, (0, rest, 0, rest))

    def _gradients(self, v: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """relu(h_a) s_a, g_a = v 1{h_a > 0} s_a, and who slides; components come in front."""
        c, y = self.coordinates.to(v), self.labels.to(v)
        h = torch.einsum("...kd,ad->a...k", m, c)
        psi = (v * h.relu()).sum(-1)
        # sigmoid(psi) - y without cancellation: it falls like exp(-|psi|), not to 0 at once
        sign = 1 - 2 * y.reshape(-1, *(1,) * (psi.ndim - 1))
        s = (sign * torch.sigmoid(sign * psi))[..., None]
        pull = self._sign * v * s
        if self.weights is not None:
            pull = self._shares(pull) * pull
        activity, slides = self._activity(h, pull)
        return h.relu() * s, s * v * activity, slides

    def _activity(self, h: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
        """How much of each component a neuron sees, and where it slides on h = 0.

        It is 1{h > 0} and, in the layer where a neuron slides, what balances both sides.
        """
        step = torch.heaviside(h.detach(), torch.full((), 0.5, dtype=h.dtype, device=h.device))
        c = self.coordinates.to(h)
        products = c @ c.mT
        # a mean given again, or a multiple of it, is seen on the same side of h_a = 0, and a
        # negative multiple on the other one
        unit = self.unit_means(h)
        same = (unit[:, None] - unit).norm(dim=-1) < _PARALLEL
        opposite = (unit[:, None] + unit).norm(dim=-1) < _PARALLEL
        other = products * ~(same | opposite)
        # the velocity of c_a . m_i, times A, in front of and behind h_ai = 0
        beside = -torch.einsum("ab,b...->a...", other, pull * step)
        front = beside - torch.einsum("ab,b...->a...", products * same, pull)
        behind = beside - torch.einsum("ab,b...->a...", products * opposite, pull)
        slides = (front < 0) & (behind > 0) & (h.abs() < _LAYER)
        balance = behind / (behind - front).where(slides, 1.0)
        r = h / _LAYER
        ramp = torch.where(r > 0, balance + (1 - balance) * r, balance * (1 + r))
        return torch.where(slides, ramp, step), slides

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, in markdown."""
        return "\n".join(
            [
                "Small-noise limit (Propositions 4.2 and D.3 of arXiv 2206.04030), "
                "h_a = m c_a, s_a = sigmoid(v . relu(h_a)) - y_a, means over the components a:",
                "",
                "    dv_i/dt = - <relu(h_ai) s_a> - alpha v_i",
                "    dm_i/dt = - v_i <c_a 1{h_ai>0} s_a> - alpha m_i",
                "    dR/dt   = - 2 alpha R",
            ]
        )
