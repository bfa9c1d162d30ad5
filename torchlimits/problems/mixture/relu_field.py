"""`ReluField`: the vector field of the two-layer ReLU network on a Gaussian mixture."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from torchlimits import _checks, _linalg
from torchlimits._once import differentiable_once, without_derivatives
from torchlimits.contracts.gradient_field import Averages
from torchlimits.problems.mixture import expectations, quadrature
from torchlimits.problems.mixture.field import MixtureField
from torchlimits.problems.mixture.geometry import SmoothedGeometry


class ReluField(MixtureField):
    r"""ODE of the statistics (v, m, R) at finite snr lambda and any width K.

    With h = W X, s = sigmoid(v . relu(h)) - y, P_j = <W_j_perp, X>, and E over the mixture,

    .. math::
        \dot v_i &= -E[\mathrm{relu}(h_i) s] - \alpha v_i \\
        \dot m_i &= -v_i E[X_\parallel 1_{h_i \ge 0} s] - \alpha m_i \\
        \dot R_{ij} &= -v_i E[P_j 1_{h_i \ge 0} s] - v_j E[P_i 1_{h_j \ge 0} s] - 2\alpha R_{ij}
            + \frac{c_\delta}{\lambda} v_i v_j E[1_{h_i \ge 0} 1_{h_j \ge 0} s^2]

    where the last term is the population corrector. Source: Propositions 4.1 and 5.1 of
    arXiv 2206.04030, written for any number of components and neurons.

    Args:
        coordinates: the means in the orthonormal directions, shape ``(A, d)``.
        labels: y_a in {0, 1}, shape ``(A,)``.
        width, snr, dim: K, lambda, N.
        weights: as in `MixtureField`.
        level: accuracy of the Gaussian expectations, -3 (coarse), -2, -1, 0, 1 ...

    Errors of drift and corrector at random points with entries of order 1, snr from 0.1 to 1e6
    (the table and the measure are those of
    `torchlimits.problems.mixture.expectations.relu_moments`), at 99 % of the points and level 0:
    6e-9 for K = 2, 1e-4 for K = 4; for K > 4 and snr < 4, where the sigmoid is sharp, the rule of
    the next level is taken: K = 8 is then within 1e-3 from snr 0.5 on, and
    within 2e-3 of values up to 20 at snr 0.1. `solve` uses tolerances that fit: `rtol`, `atol`.
    """

    def __init__(
        self,
        coordinates: Float[Tensor, "A d"],
        labels: Float[Tensor, " A"],
        *,
        width: int,
        snr: float | Tensor,
        dim: int,
        weights: Float[Tensor, " A"] | None = None,
        level: int = 0,
    ) -> None:
        super().__init__(coordinates, labels, width=width, snr=snr, dim=dim, weights=weights)
        quadrature.check_level(level)
        self.level = level + (width > 4 and _checks.plain(snr) < 4)
        self.geometry = SmoothedGeometry(self)
        self.opposites = _opposites(coordinates)
        self.fast = False

    def averages(self, u: Float[Tensor, "*batch k"]) -> Averages:
        """The averages, with integrals split exactly at kinks; see `FirstLayerField.averages`."""
        if self.fast:
            u = without_derivatives(u, "the dynamics that find classes")
        elif self.width > 2:  # lines of the rule miss where two kinks cross: second ones need them
            u = differentiable_once(u, "the dynamics of more than two neurons")
        v, m, R = self.split(u)
        L, Q = _linalg.factor_gaussian(m, R, self.snr, derivatives=not self.fast)
        residual, overlap, perpendicular, activity = self._averages(v, m, L, Q)
        pull = v[..., :, None] * perpendicular  # v_i E[P_j 1_i s]
        kick = v[..., :, None] * v[..., None, :] * activity
        return Averages(residual, torch.zeros_like(v), v[..., None] * overlap, pull, kick)

    def risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """E[log(1 + e^psi) - y psi], by the rule of the dynamics; see `MixtureField.risk`."""
        if self.width > 2:
            u = differentiable_once(u, "the risk of more than two neurons")
        v, m, R = self.split(u)
        L, _ = _linalg.factor_gaussian(m, R, self.snr)
        mean = m @ self.coordinates.to(v).mT
        y = self.labels.to(v).expand(mean.mT.shape[:-1])

        def loss(xi: Tensor, h: Tensor, psi: Tensor, y: Tensor) -> Tensor:
            return functional.softplus(psi) - y[:, None] * psi

        values = expectations.expect(
            loss, mean.mT, L[..., None, :, :], v[..., None, :], y, level=self.level
        )
        return self.mean(values, -1).to(u.dtype)

    def of_neurons(self, width: int) -> ReluField:
        """The field of another number of neurons.

        Args:
            width: K.
        """
        return ReluField(
            self.coordinates, self.labels, width=width, snr=self.snr, dim=self.dim,
            weights=self.weights, level=self.level,
        )  # fmt: skip

    def for_band(self) -> ReluField:
        """The field with a coarse rule: derivatives to 1e-2 give standard deviations to 1e-2.

        That rule is level -2, or -3 for K > 4. Against level -1, XOR, N = 1000, to t = 6, standard
        deviations differ by 7e-4 at most for K = 4 and snr 4 or 100, by 2.3e-3 at snr 0.5, by
        1.1e-2 (3e-3 rms) for K = 5, where level -2 takes four times as long and is within 1.5e-3,
        and by 2.0e-2 (2.9e-3 rms) for K = 6 and snr 4, in a ninth of the time of level -1; level -2
        is within 3.0e-3 there.
        """
        if self.width <= 2:
            return self
        coarse = copy.copy(self)
        coarse.level = min(self.level, -2 if self.width <= 4 else -3)
        return coarse

    def for_classes(self) -> ReluField:
        """The field with the rules ``quadrature.Resolution.fast`` at levels -2 and -3.

        It has no derivatives. Other levels keep their rules.
        """
        fast = copy.copy(self)
        fast.fast = True
        return fast

    def increment_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> Float[Tensor, "*batch k k"]:
        """The covariance of one step; see `VectorField.increment_covariance`."""
        v, m, R = self.split(u)
        K, d = self.width, self.coordinates.shape[1]
        e = d + K
        L, Q = _linalg.factor_gaussian(m, R, self.snr)
        # w = (X_par, P) = (c_a, 0) + M zeta / sqrt(snr), zeta standard normal. Given xi = Q zeta,
        # what is left of zeta is independent of xi and of everything that depends on it.
        M = torch.zeros(*v.shape[:-1], e, e, dtype=v.dtype, device=v.device)
        eye = torch.eye(e, dtype=v.dtype, device=v.device)
        M[..., :d, :d] = eye[:d, :d] / self.snr**0.5
        M[..., d:, d:] = _linalg.psd_sqrt(R) / self.snr**0.5
        response = M @ Q.mT
        rest = M @ (eye - Q.mT @ Q)
        i, j = torch.triu_indices(K, K, device=v.device)

        def given_xi(
            xi: Tensor, h: Tensor, psi: Tensor, c: Tensor, y: Tensor, v: Tensor, response: Tensor
        ) -> Tensor:
            """E[du | xi] / delta of one step, (points, nodes, 1, k)."""
            s = (torch.sigmoid(psi) - y[:, None])[..., None]
            G = -s * v[:, None] * (h >= 0)
            w = xi @ response.mT
            w = torch.cat([w[..., :d] + c[:, None], w[..., d:]], dim=-1)
            dv = -s * h.relu()
            dR = step_size / self.snr * (G[..., i] * G[..., j])
            moves = _moves(G, w, d)
            return torch.cat([dv, moves[..., K : K + K * d], moves[..., K + K * d :] + dR], dim=-1)[
                ..., None, :
            ]

        c = self.coordinates.to(v)
        mean = torch.einsum("...kd,ad->...ak", m, c)
        shape = mean.shape[:-1]
        squares = expectations.second_moment(
            given_xi,
            mean,
            L[..., None, :, :],
            v[..., None, :],
            c.expand(*shape, d),
            self.labels.to(v).expand(shape),
            v[..., None, :].expand(*shape, K),
            response[..., None, :, :].expand(*shape, e, K),
            level=self.level,
        )
        # what the rest of zeta adds is linear in the gradient G: E[G G^T] = v v^T E[1 1^T s^2]
        activity = self._averages(v, m, L, Q)[-1]
        GG = v[..., :, None] * v[..., None, :] * activity
        per_column = _moves(eye[:K, :K], rest.mT[..., :, None, :], d).mT  # (..., e, k, K)
        others = (per_column @ GG[..., None, :, :] @ per_column.mT).sum(-3)
        drift, corrector = self.terms(u)
        average = drift + step_size * corrector
        return (
            self.mean(squares, -3).to(u.dtype)
            + others
            - average[..., :, None] * average[..., None, :]
        )

    def _averages(
        self, v: Tensor, m: Tensor, L: Tensor, Q: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """E[relu(h_i) s], E[X_par 1_i s], E[P_j 1_i s], E[1_i 1_j s^2], over the mixture."""
        c = self.coordinates.to(v)
        # components in a dimension of their own, in front of the neurons
        mean = torch.einsum("...kd,ad->...ak", m, c)
        T0, T1, T2 = expectations.mixture_moments(
            mean, L, v, self.labels.to(v), self.opposites, level=self.level, fast=self.fast
        )
        residual = self.mean(mean * T0 + (L[..., None, :, :] * T1).sum(-1), -2)
        # X_par = c + z / sqrt(snr) and P = S z' / sqrt(snr), with E[(z, z') 1_i s] = T1 Q
        noise = self.mean(T1 @ Q[..., None, :, :], -3)  # (..., K, d + K)
        d = c.shape[1]
        weighted = c if self.weights is None else len(c) * self.weights.to(c)[:, None] * c
        overlap = (
            torch.einsum("ad,...ai->...id", weighted, T0) / len(c) + noise[..., :d] / self.snr**0.5
        )
        perpendicular = noise[..., d:] @ (L @ Q[..., d:]).mT
        return residual, overlap, perpendicular, self.mean(T2, -3)

    @property
    def rtol(self) -> float:  # type: ignore[override]
        """The tolerance is no finer than the right-hand side; see `expectations.relu_moments`."""
        return 1e-6 if self.width <= 2 else 1e-4 * 4.0**-self.level

    @property
    def atol(self) -> float:  # type: ignore[override]
        """A tenth of `rtol`, for statistics that start at N^{-1/2} or vanish."""
        return self.rtol / 10

    @property
    def settling_time(self) -> float:  # type: ignore[override]
        """It is 0 for K > 2, where solving for a batch takes minutes."""
        return 20.0 if self.width <= 2 else 0.0

    @property
    def error(self) -> float:  # type: ignore[override]
        """The error of the quadrature."""
        return {1: 1e-8, 2: 1e-7}.get(self.width, 2e-4 * 4.0**-self.level)

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, in markdown."""
        term = " + (c/snr) v_i v_j E[1{h_i>=0} 1{h_j>=0} s^2]" if corrector else ""
        return "\n".join(
            [
                "Effective dynamics (Theorem 2.2; Propositions 4.1 and 5.1 of arXiv 2206.04030), "
                "h = W X, s = sigmoid(v . relu(h)) - y:",
                "",
                "    dv_i/dt  = - E[relu(h_i) s] - alpha v_i",
                "    dm_i/dt  = - v_i E[X_par 1{h_i>=0} s] - alpha m_i",
                "    dR_ij/dt = - v_i E[P_j 1{h_i>=0} s] - v_j E[P_i 1{h_j>=0} s] "
                f"- 2 alpha R_ij{term}",
            ]
        )


def _opposites(coordinates: Float[Tensor, "A d"]) -> list[tuple[int, int]]:
    """The pairs of means c and -c; each mean is in one of them at most."""
    rows = coordinates.tolist()
    pairs: list[tuple[int, int]] = []
    for b, row in enumerate(rows):
        opposite = [-x for x in row]
        taken = {a for pair in pairs for a in pair}
        a = next((a for a in range(b) if a not in taken and rows[a] == opposite), None)
        if a is not None:
            pairs.append((a, b))
    return pairs


def _moves(
    gradient: Float[Tensor, "*#batch K"], w: Float[Tensor, "*#batch e"], d: int
) -> Float[Tensor, "*batch k"]:
    """(0, G_i X_j, G_i P_j + G_j P_i): the change of (v, m, R) that is linear in w = (X_par, P)."""
    X, P = w[..., :d], w[..., d:]
    dm = gradient[..., :, None] * X[..., None, :]
    dR = gradient[..., :, None] * P[..., None, :]
    dR = dR + dR.mT
    i, j = torch.triu_indices(P.shape[-1], P.shape[-1], device=w.device)
    flat = dm.flatten(-2)
    zero = torch.zeros_like(dR[..., 0])
    return torch.cat([zero, flat, dR[..., i, j]], dim=-1)
