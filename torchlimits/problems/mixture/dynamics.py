"""`MixtureDynamics`: effective dynamics of the two-layer network on a Gaussian mixture."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _linalg
from torchlimits.dynamics import fixed_points
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.optim.parameter_groups import Layers
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd import SGDSettings
from torchlimits.problems.mixture import expectations, idle_neurons, quadrature

#: `_lasting` turns parallel neurons apart by this much, relative to their squared lengths
_APART = 1e-6


class MixtureODE(EffectiveDynamics):
    """What the dynamics of a two-layer network on a mixture share, at finite and infinite snr.

    u is ``(..., K + K d + K (K + 1)/2)``: v, then m by rows, then R by rows with i <= j.

    Args:
        coordinates: the means in the orthonormal directions, shape ``(A, d)``.
        labels: y_a in {0, 1}, shape ``(A,)``.
        width, snr, dim: K, lambda, N.
        settings: what the optimizer does; its weight decay is alpha.
        layers: what it does to each layer, where they differ; ``settings`` is their reference.
        schedule: c_delta(t), of the reference.
    """

    def __init__(
        self,
        coordinates: Float[Tensor, "A d"],
        labels: Float[Tensor, " A"],
        *,
        width: int,
        snr: float,
        dim: int,
        settings: SGDSettings,
        layers: Layers | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        from torchlimits.problems.mixture.coordinates import mixture_names

        super().__init__(mixture_names(width, coordinates.shape[1]), dim, settings, schedule)
        self.width, self.snr, self.layers = width, snr, layers
        self.register_buffer("coordinates", coordinates)
        self.register_buffer("labels", labels)
        self.coordinates: Tensor
        self.labels: Tensor

    def split(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch K"], Float[Tensor, "*batch K d"], Float[Tensor, "*batch K K"]]:
        """u as v, m and the full symmetric R."""
        K, d = self.width, self.coordinates.shape[1]
        v, m, upper = u.split([K, K * d, K * (K + 1) // 2], dim=-1)
        i, j = torch.triu_indices(K, K, device=u.device)
        position = torch.zeros(K, K, dtype=torch.long, device=u.device)
        position[i, j] = position[j, i] = torch.arange(len(i), device=u.device)
        return v, m.unflatten(-1, (K, d)), upper[..., position]

    def join(
        self,
        v: Float[Tensor, "*batch K"],
        m: Float[Tensor, "*batch K d"],
        R: Float[Tensor, "*batch K K"],
    ) -> Float[Tensor, "*batch k"]:
        """The inverse of `split`."""
        i, j = torch.triu_indices(self.width, self.width, device=v.device)
        return torch.cat([v, m.flatten(-2), R[..., i, j]], dim=-1)

    def _speed(self, u: Tensor) -> Tensor | float:
        if self.layers is None:
            return self.settings.drift_factor
        first, second = self.layers.speeds
        K = self.width
        speed = torch.full((len(self.names),), first, dtype=u.dtype, device=u.device)
        speed[:K] = second
        return speed

    def _second_order_speed(self) -> float:
        return self.settings.drift_factor if self.layers is None else self.layers.speeds[0]

    def _decay(self, u: Tensor) -> Tensor:
        """The ridge's part of the drift less its sign: alpha v, alpha m, 2 alpha R."""
        v, m, R = self.split(u)
        alpha = self.settings.weight_decay
        first, second = (alpha, alpha) if self.layers is None else self.layers.ridges
        return self.join(second * v, first * m, 2 * first * R)

    def check_plain(self, what: str) -> None:
        """ValueError unless both layers are minimised with the same settings."""
        self.settings.check_plain(what)
        if self.layers is not None:
            raise ValueError(
                f"expected one group of settings for both layers for {what}, got layers that "
                "differ: their limit is in problem.dynamics(optimizer)"
            )

    @property
    def _signs(self) -> tuple[float, float]:
        """Of the loss's part, for the layers W and v."""
        sign = self.settings.sign
        return (sign, sign) if self.layers is None else self.layers.signs

    def _check_start(self, u0: Tensor) -> None:
        R = self.split(u0)[2].double()
        smallest = float(_linalg.eigvalsh(R).min())
        # rounding of a float32 Gram matrix passes
        if smallest < -1e-5 * max(1.0, float(R.abs().max())):
            raise ValueError(
                "expected R to be positive semidefinite (it is a Gram matrix), got an eigenvalue "
                f"{smallest:.3g}: start from measured statistics, or from R = A A^T"
            )

    def _project(self, u: Tensor) -> Tensor:
        v, m, R = self.split(u)
        values, vectors = _linalg.eigh(R)
        return self.join(v, m, (vectors * values.clamp_min(0)[..., None, :]) @ vectors.mT)

    def _random_starts(self, count: int, generator: torch.Generator) -> Tensor:
        """Entries of order 1: small starts would all end on the few attractors."""
        K, d = self.width, self.coordinates.shape[1]
        normal: dict[str, Any] = {
            "generator": generator, "dtype": torch.float64, "device": "cpu",
        }  # fmt: skip
        v, m = torch.randn(count, K, **normal), torch.randn(count, K, d, **normal)
        A = torch.randn(count, K, K, **normal) * 0.3
        return self.join(v, m, A @ A.mT)

    def _slopes(self, u: Tensor) -> Tensor:
        # -f + g has a kink where neurons are idle
        _, m, R = self.split(u)
        idle = self._idle(m, R)
        if not bool(idle.any()):
            return super()._slopes(u)
        return self._slopes_at_kink(u, idle)

    def _slopes_at_kink(self, u: Tensor, idle: Tensor) -> Tensor:
        """Linear in the weights of an idle neuron, in each sector between the means."""
        beside = idle_neurons.towards_means(self, u, idle, self._idle_length)
        return fixed_points.jacobian(self, beside)

    def _settled(self, u: Tensor) -> Tensor:
        """Neurons that count as 0 are 0: on the slow way there they would count once each."""
        v, m, R = self.split(u)
        active = ~self._idle(m, R)
        pairs = active[..., :, None] & active[..., None, :]
        return self.join(v * active, m * active[..., None], R * pairs)

    def _error_at(self, u: Tensor) -> Tensor:
        """-f + g is of degree 1 in a neuron's length for its v and m, and of degree 2 for R."""
        v, m, R = self.split(u)
        length = (v.square() + _squared_lengths(m, R)).sqrt()
        products = length[..., :, None] * length[..., None, :]
        return self.error * self.join(length, length[..., None].expand_as(m), products)

    def _cell(self, u: Tensor) -> Tensor:
        """Which mean each neuron is turned to, (K,); -1: it is idle."""
        _, m, R = self.split(u)
        return torch.where(self._idle(m, R), -1, self._along_means(m).argmax(-1))

    def _along_means(self, m: Tensor) -> Float[Tensor, "*batch K A"]:
        """<m_i, c_a / |c_a|>."""
        c = self.coordinates.to(m)
        return m @ (c / c.norm(dim=-1, keepdim=True)).mT

    def classes(
        self, u: Float[Tensor, "*batch k"], cosine: float = 0.5**0.5
    ) -> Int[Tensor, "*batch K"]:
        r"""The mean that each neuron has turned to, shape ``(..., K)``; -1: to none.

        The number a of the mean with :math:`m_i \cdot c_a / |c_a| > cosine\, \|W_i\|`, where
        :math:`\|W_i\|^2 = |m_i|^2 + R_{ii}`: by default within 45 degrees.

        Args:
            u: statistics, shape ``(..., k)``.
            cosine: of the largest angle.

        Raises:
            ValueError, TypeError: if u is not what the statistics' tensor is.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.GaussianMixture.binary(dim=100, snr=10.0).dynamics(step_size=1.0)
            >>> dynamics.classes(torch.tensor([0.0, 0.0, 2.0, -2.0, 0.1, 0.0, 9.0]))
            tensor([ 0, -1])
        """
        overlap, nearest = self._along_means(self.split(self._checked(u))[1]).max(-1)
        return torch.where(overlap > cosine * self.lengths(u), nearest, -1)

    def lengths(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch K"]:
        r"""Of the neurons, :math:`\|W_i\| = (|m_i|^2 + R_{ii})^{1/2}`, shape ``(..., K)``.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u is not what the statistics' tensor is.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.GaussianMixture.binary(dim=100, snr=10.0).dynamics(step_size=1.0)
            >>> dynamics.lengths(torch.tensor([0.0, 0.0, 2.0, -4.0, 0.0, 0.0, 9.0]))
            tensor([2., 5.])
        """
        _, m, R = self.split(self._checked(u))
        return _squared_lengths(m, R).sqrt()

    @property
    def _idle_length(self) -> float:
        return max(1e-9, 10 * self.error)

    def _idle(self, m: Tensor, R: Tensor) -> Tensor:
        """Which neurons count as 0, (..., K)."""
        return _squared_lengths(m, R) < self._idle_length**2

    def describe(self) -> dict[str, Any]:
        """Parameters of the prediction."""
        layers = {} if self.layers is None else self.layers.describe()
        return {"width": self.width, "snr": self.snr, **super().describe(), **layers}


class MixtureDynamics(MixtureODE):
    r"""ODE of the statistics (v, m, R) at finite snr lambda and any width K.

    With h = W X, s = sigmoid(v . relu(h)) - y, P_j = <W_j_perp, X>, averages over the mixture:

    .. math::
        \dot v_i &= -E[\mathrm{relu}(h_i) s] - \alpha v_i \\
        \dot m_i &= -v_i E[X_\parallel 1_{h_i \ge 0} s] - \alpha m_i \\
        \dot R_{ij} &= -v_i E[P_j 1_{h_i \ge 0} s] - v_j E[P_i 1_{h_j \ge 0} s] - 2\alpha R_{ij}
            + \frac{c_\delta}{\lambda} v_i v_j E[1_{h_i \ge 0} 1_{h_j \ge 0} s^2]

    the last term being the population corrector. Source: Propositions 4.1 and 5.1 of
    arXiv 2206.04030, written for any number of components and neurons.

    Args:
        coordinates: the means in the orthonormal directions, shape ``(A, d)``.
        labels: y_a in {0, 1}, shape ``(A,)``.
        width, snr, dim: K, lambda, N.
        settings: what the optimizer does; its weight decay is alpha.
        layers, schedule: as in `MixtureODE`.
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
        snr: float,
        dim: int,
        settings: SGDSettings,
        layers: Layers | None = None,
        schedule: Schedule | None = None,
        level: int = 0,
    ) -> None:
        super().__init__(
            coordinates, labels, width=width, snr=snr, dim=dim, settings=settings, layers=layers,
            schedule=schedule,
        )  # fmt: skip
        quadrature.check_level(level)
        self.level = level + (width > 4 and snr < 4)

    def _terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        v, m, R = self.split(u)
        first, second = self._signs
        L, Q = _linalg.factor_gaussian(m, R, self.snr)
        residual, overlap, perpendicular, activity = self._averages(v, m, L, Q)
        pull = first * v[..., :, None] * perpendicular  # v_i E[P_j 1_i s]
        descent = self.join(-second * residual, -first * v[..., None] * overlap, -pull - pull.mT)
        drift = descent - self._decay(u)
        kick = v[..., :, None] * v[..., None, :] * activity / self.snr
        return drift, self.join(torch.zeros_like(v), torch.zeros_like(m), kick)

    def of_neurons(self, width: int) -> MixtureDynamics:
        """The same for another number of neurons."""
        return MixtureDynamics(
            self.coordinates, self.labels, width=width, snr=self.snr, dim=self.dim,
            settings=self.settings, layers=self.layers, schedule=self.schedule, level=self.level,
        )  # fmt: skip

    def _for_band(self) -> MixtureDynamics:
        # a coarse rule's error of 1e-3 is nothing to a band; a fine one's derivatives take minutes
        if self.width <= 2:
            return self
        coarse = copy.copy(self)
        coarse.level = -1
        return coarse

    def _slopes(self, u: Tensor) -> Tensor:
        return super()._slopes(self._inside(u))

    def _slopes_at_kink(self, u: Tensor, idle: Tensor) -> Tensor:
        ray = idle_neurons.on_fastest_ray(self, u, idle, self._idle_length)
        return idle_neurons.one_sided_jacobian(self, self._inside(ray), idle)[None]

    def _inside(self, u: Tensor) -> Tensor:
        """A little off the border, R singular, where derivatives need not exist."""
        v, m, R = self.split(u)
        square = (m @ m.mT + R).diagonal(dim1=-2, dim2=-1)
        return self.join(v, m, R + _APART * torch.diag_embed(square))

    def _lasting(self, u: Tensor) -> Tensor:
        """Turns parallel neurons apart by a little: does the angle between them go on growing?"""
        v, m, R = self.split(u)
        W = m @ m.mT + R
        square = W.diagonal(dim1=-2, dim2=-1)
        apart = _APART * torch.diag_embed(square)
        _, dm, dR = self.split(self(0.0, self.join(v, m, R + apart)))
        dW = dm @ m.mT + m @ dm.mT + dR
        # 1 - cos^2 of the angle between neurons, times their squared lengths
        sine = _minors(W, W) / 2
        growth = _minors(W + apart, dW)
        products = square[..., :, None] * square[..., None, :]
        active = ~self._idle(m, R)[..., None]
        parallel = active & active.mT & (sine < 0.1 * _APART * products)
        return ~(parallel & (growth > 0)).flatten(-2).any(-1)

    def _increment_covariance(self, u: Tensor, step_size: float) -> Tensor:
        v, m, R = self.split(u)
        K, d = self.width, self.coordinates.shape[1]
        e = d + K
        first, second = self._signs
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
            """E[du | xi] / delta of one step, less the ridge, (points, nodes, 1, k)."""
            s = (torch.sigmoid(psi) - y[:, None])[..., None]
            G = -first * s * v[:, None] * (h >= 0)
            w = xi @ response.mT
            w = torch.cat([w[..., :d] + c[:, None], w[..., d:]], dim=-1)
            dv = -second * s * h.relu()
            dR = step_size / self.snr * (G[..., i] * G[..., j])
            moves = _moves(G, w, d)
            return torch.cat([dv, moves[..., K : K + K * d], moves[..., K + K * d :] + dR], dim=-1)[
                ..., None, :
            ]

        c = self.coordinates.to(v)
        mean = torch.einsum("...kd,ad->...ak", m, c)
        shape = mean.shape[:-1]
        square = expectations.second_moment(
            given_xi,
            mean,
            L[..., None, :, :],
            v[..., None, :],
            c.expand(*shape, d),
            self.labels.to(v).expand(shape),
            v[..., None, :].expand(*shape, K),
            response[..., None, :, :].expand(*shape, e, K),
            level=self.level,
        ).mean(-3)
        # what the rest of zeta adds is linear in the gradient G: E[G G^T] = v v^T E[1 1^T s^2]
        activity = self._averages(v, m, L, Q)[-1]
        GG = v[..., :, None] * v[..., None, :] * activity
        per_column = _moves(eye[:K, :K], rest.mT[..., :, None, :], d).mT  # (..., e, k, K)
        others = (per_column @ GG[..., None, :, :] @ per_column.mT).sum(-3)
        drift, corrector = self._terms(u)
        average = drift + self._decay(u) + step_size * corrector
        return square.to(u.dtype) + others - average[..., :, None] * average[..., None, :]

    def _averages(
        self, v: Tensor, m: Tensor, L: Tensor, Q: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """E[relu(h_i) s], E[X_par 1_i s], E[P_j 1_i s], E[1_i 1_j s^2], over the mixture."""
        c = self.coordinates.to(v)
        # components in a dimension of their own, in front of the neurons
        mean = torch.einsum("...kd,ad->...ak", m, c)
        T0, T1, T2 = expectations.relu_moments(
            mean, L[..., None, :, :], v[..., None, :], self.labels.to(v), level=self.level
        )
        residual = (mean * T0 + (L[..., None, :, :] * T1).sum(-1)).mean(-2)
        # X_par = c + z / sqrt(snr) and P = S z' / sqrt(snr), with E[(z, z') 1_i s] = T1 Q
        noise = (T1 @ Q[..., None, :, :]).mean(-3)  # (..., K, d + K)
        d = c.shape[1]
        overlap = torch.einsum("ad,...ai->...id", c, T0) / len(c) + noise[..., :d] / self.snr**0.5
        perpendicular = noise[..., d:] @ (L @ Q[..., d:]).mT
        return residual, overlap, perpendicular, T2.mean(-3)

    @property
    def rtol(self) -> float:  # type: ignore[override]
        """No finer than the right-hand side: see `expectations.relu_moments`."""
        return 1e-6 if self.width <= 2 else 1e-4 * 4.0**-self.level

    @property
    def atol(self) -> float:  # type: ignore[override]
        """A tenth of `rtol`, for statistics that start at N^{-1/2} or vanish."""
        return self.rtol / 10

    @property
    def settling_time(self) -> float:  # type: ignore[override]
        """None for K > 2, where solving for a batch takes minutes."""
        return 20.0 if self.width <= 2 else 0.0

    @property
    def error(self) -> float:  # type: ignore[override]
        """Of the quadrature."""
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


def _minors(A: Float[Tensor, "*batch K K"], B: Float[Tensor, "*batch K K"]) -> Tensor:
    """A_ii B_jj + A_jj B_ii - 2 A_ij B_ij: twice the 2 x 2 minors, if A = B; else their change."""
    a, b = A.diagonal(dim1=-2, dim2=-1), B.diagonal(dim1=-2, dim2=-1)
    return a[..., :, None] * b[..., None, :] + b[..., :, None] * a[..., None, :] - 2 * A * B


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


def _squared_lengths(m: Tensor, R: Tensor) -> Tensor:
    r""":math:`\|W_i\|^2`, (..., K)."""
    return m.square().sum(-1) + R.diagonal(dim1=-2, dim2=-1)
