"""`NetworkField`: drift and corrector of any head on a linear first layer."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.vector_field import VectorField
from torchlimits.problems.network.gaussian import PreActivations
from torchlimits.problems.network.geometry import GramGeometry, check_gram
from torchlimits.problems.network.kinks import Kinks
from torchlimits.problems.network.nodes import Nodes, Rule
from torchlimits.problems.network.setting import Setting

#: pre-activations that are held at once
_PIECE = 2**21
#: nodes of the gradients of single samples that are held at once
_SAMPLES = 2**13


class Averages(NamedTuple):
    """Averages of one sample's gradient, with g = dl/dh and the mixture's probabilities.

    Attributes:
        theta: E[dl/dtheta], ``(..., P)``.
        bias: E[g], ``(..., K)``.
        signal: E[g x_parallel^T], ``(..., K, d)``.
        across: E[g P^T], P = W_perp x, ``(..., K, K)``.
        gram: E[g g^T], ``(..., K, K)``.
    """

    theta: Float[Tensor, "*batch P"]
    bias: Float[Tensor, "*batch K"]
    signal: Float[Tensor, "*batch K d"]
    across: Float[Tensor, "*batch K K"]
    gram: Float[Tensor, "*batch K K"]


class NetworkField(VectorField):
    r"""ODE of the statistics (theta, b, m, R) of h = W x + b, output = head_theta(h), at any snr.

    With g = dl/dh of one sample, :math:`P = W_\perp x`, averages over the mixture and labels:

    .. math::
        \dot\theta &= -E[\partial_\theta l], \qquad \dot b = -E[g], \qquad
            \dot m = -E[g\, x_\parallel^T] \\
        \dot R &= -E[g P^T] - E[P g^T] + \frac{c_\delta}{\lambda} E[g g^T]

    the last term being the population corrector; the ridge comes on top. Source: Theorem 2.2 of
    arXiv 2206.04030, for a loss that depends on x through h and the label alone.

    The averages are sums over nodes that stay the same, with the gradients of head and loss by
    automatic differentiation.

    Args:
        setting: what the network, its data and its loss are.
        dim: N.
        rule: the nodes.
        kinks: where gradients jump.
    """

    def __init__(self, setting: Setting, *, dim: int, rule: Rule, kinks: Kinks) -> None:
        super().__init__(setting.layout.names, dim)
        self.setting, self.rule, self.kinks, self.layout = setting, rule, kinks, setting.layout
        self.parameter_names = self.layout.parameter_names
        self.quadratic_in = self.layout.weight
        self.geometry = GramGeometry(self.layout, setting.head.start)

    # --- drift and corrector ----------------------------------------------------------------------

    def terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """-f and g, as `VectorField.terms`."""
        theta, bias, signal, across, gram = self.averages(u)
        drift = self.layout.join(-theta, -bias, -signal, -across - across.mT)
        still = (torch.zeros_like(x) for x in (theta, bias, signal))
        return drift, self.layout.join(*still, gram / self.setting.snr)

    def averages(self, u: Float[Tensor, "*batch k"]) -> Averages:
        """The averages of gradients that drift and corrector consist of.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        flat = u.reshape(-1, u.shape[-1])
        pieces = [self._averages(piece.double()) for piece in flat.split(self._at_once)]
        joined = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return Averages(*(x.reshape(*u.shape[:-1], *x.shape[1:]).to(u.dtype) for x in joined))

    @property
    def _at_once(self) -> int:
        nodes = len(self.rule.nodes.weights) * len(self.setting.coordinates)
        return max(1, _PIECE // (nodes * self.layout.width))

    def _averages(self, u: Float[Tensor, "S k"]) -> Averages:
        graph = torch.is_grad_enabled() and u.requires_grad
        with torch.enable_grad():
            found = self._differentiated(u if graph else u.detach(), graph)
        return found if graph else Averages(*(x.detach() for x in found))

    def _differentiated(self, u: Float[Tensor, "S k"], graph: bool) -> Averages:
        theta, b, m, R = self.layout.split(u)
        law, nodes = self._law(b, m, R), self.rule.nodes.to(u)
        h, weight, zeta = self._at_nodes(law, nodes, graph)
        if not theta.requires_grad:
            theta = theta.requires_grad_()
        h = h.flatten(1, 2)  # components and nodes are samples, (S, M, K)
        if not h.requires_grad:
            h = h.requires_grad_()
        weight = weight.flatten(1)  # (S, M)
        output = self.setting.head(theta, h)
        slopes, shares = self._slopes(output, graph)  # (S, M, q, O) and (M, q)
        flat = output[..., None] if output.ndim == 2 else output.flatten(2)
        mean = (shares[..., None] * slopes).sum(2)  # over the law of the label
        pulled = weight[..., None] * mean
        by_theta, by_h = _backward(flat, [theta, h], pulled, graph)
        gram = self._gram(flat, h, slopes, shares, weight, by_h, graph)
        components = by_h.unflatten(1, (len(self.setting.coordinates), -1))
        along = torch.einsum("sanK,sane->sKe", components, zeta)
        r = law.B.shape[1]
        signal, across = law.along(along[..., :r], along[..., r:])
        total = components.sum(2)  # (S, A, K)
        signal = signal + total.mT @ law.means
        return Averages(by_theta, total.sum(1), signal, across, gram)

    def _law(self, b: Tensor, m: Tensor, R: Tensor) -> PreActivations:
        setting = self.setting
        return PreActivations(b, m, R, setting.coordinates, setting.reads, 1 / setting.snr)

    def _at_nodes(
        self, law: PreActivations, nodes: Nodes, graph: bool
    ) -> tuple[Float[Tensor, "S A n K"], Float[Tensor, "S A n"], Float[Tensor, "S A n e"]]:
        """h at the nodes, the weights, and the standard normals there."""
        h = law.h(nodes)
        weight = self.setting.shares.to(h)[:, None] * nodes.weights
        weight, zeta = weight.expand(h.shape[:-1]), nodes.points.expand(*h.shape[:-1], -1)
        if not graph or not self.kinks.in_h:
            return h, weight, zeta
        # Gradients jump at kinks, and derivatives at nodes know nothing of jumps. So the nodes stay
        # where they are and the density moves: its logarithm has the derivative
        # zeta . S^+ dh - tr(S^+ dS), and zeta = S^+ (h - mean - X zeta_s) that of -S^+ dh.
        inverse, r = law.inverse_root().detach(), law.B.shape[1]
        moved = (h - h.detach()) @ inverse[:, None]
        dS = law.root - law.root.detach()
        trace = (inverse * dS).sum((-2, -1))[:, None, None]
        ratio = 1 + (zeta[..., r:] * moved).sum(-1) - trace
        zeta = torch.cat([zeta[..., :r], zeta[..., r:] - moved], dim=-1)
        return h.detach(), weight * ratio, zeta

    def _slopes(self, output: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
        """dl/d(output) for every target of every sample, ``(S, M, q, O)``, and probabilities."""
        targets, shares = self._targets(output)
        S, (M, q) = len(output), shares.shape
        spread = output if graph else output.detach()
        spread = spread[:, :, None].expand(S, M, q, *output.shape[2:])
        labels = targets.expand(S, *targets.shape)
        slopes = self.setting.losses.slopes(spread.flatten(0, 2), labels.flatten(0, 2))
        return slopes.reshape(S, M, q, -1), shares

    def _targets(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The law of the label at the nodes, which do not depend on u, in what it reads."""
        key = (like.device, like.dtype, self.rule)
        if key not in self._known_targets:
            setting, nodes = self.setting, self.rule.nodes.to(like)
            d, K, r = setting.coordinates.shape[1], self.layout.width, len(setting.reads)
            zero = nodes.points.new_zeros(1, K, max(d, K))
            law = self._law(zero[..., 0], zero[..., :d], zero[..., :K])
            if r == 0:  # one sample a component is enough
                nodes = Nodes(nodes.points[:1], nodes.weights[:1])
            x = law.x_parallel(nodes)
            component = torch.arange(len(x), device=x.device)[:, None].expand(x.shape[:2])
            targets, shares = setting.labels.law(x.flatten(0, 1), component.flatten())
            if r == 0:
                count = len(self.rule.nodes.weights)
                targets, shares = (t.repeat_interleave(count, 0) for t in (targets, shares))
            if targets.is_floating_point():
                targets = targets.to(like)
            self._known_targets[key] = targets.to(like.device), shares.to(like)
        return self._known_targets[key]

    @cached_property
    def _known_targets(self) -> dict[Any, tuple[Tensor, Tensor]]:
        return {}

    def _gram(
        self, output: Tensor, h: Tensor, slopes: Tensor, shares: Tensor, weight: Tensor,
        by_h: Tensor, graph: bool,
    ) -> Float[Tensor, "S K K"]:  # fmt: skip
        """E[g g^T]; where a sample's label is random, for each of its targets."""
        q, outputs = slopes.shape[2:]
        if q == 1:
            return (by_h / weight[..., None]).mT @ by_h
        if q <= outputs:
            gs = [_backward(output, [h], slopes[:, :, i], graph)[0] for i in range(q)]
            weighted = [(weight * shares[:, i])[..., None] * g for i, g in enumerate(gs)]
            return torch.stack([w.mT @ g for w, g in zip(weighted, gs, strict=True)]).sum(0)
        unit = torch.eye(outputs, dtype=output.dtype, device=output.device)
        rows = [_backward(output, [h], e.expand_as(output), graph)[0] for e in unit]
        J = torch.stack(rows, dim=2)  # (S, M, O, K)
        second = torch.einsum("mq,smqo,smqp->smop", shares, slopes, slopes)
        return torch.einsum("smok,sm,smop,smpl->skl", J, weight, second, J)

    # --- noise ------------------------------------------------------------------------------------

    def increment_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> Float[Tensor, "*batch k k"]:
        """The covariance of one step, as `VectorField.increment_covariance`."""
        flat = u.reshape(-1, u.shape[-1]).double().detach()
        found = torch.stack([self._increments(point, step_size) for point in flat])
        return found.reshape(*u.shape, u.shape[-1]).to(u.dtype)

    def _increments(self, u: Float[Tensor, " k"], step_size: float) -> Float[Tensor, "k k"]:
        theta, b, m, R = (x[None] for x in self.layout.split(u))
        law, nodes, setting = self._law(b, m, R), self.rule.nodes.to(u), self.setting
        h = law.h(nodes)[0]  # (A, n, K)
        targets, shares = self._targets(h)
        M, q = shares.shape
        spread = h.flatten(0, 1)[:, None].expand(M, q, -1).flatten(0, 1)
        by_theta, g = setting.sample_gradients(theta[0], spread, targets.flatten(0, 1), _SAMPLES)
        weight = (setting.shares.to(h)[:, None] * nodes.weights).flatten()
        weight = (weight[:, None] * shares).flatten()
        follow, rest = law.response()
        d, r, K = m.shape[-1], law.B.shape[1], self.layout.width
        known = nodes.points[:, r:] @ follow[0].mT  # (n, d + K)
        x = law.x_parallel(nodes) + known[:, :d]
        w = torch.cat([x, known[:, d:].expand(*x.shape[:2], -1)], dim=-1).flatten(0, 1)
        w = w[:, None].expand(M, q, -1).flatten(0, 1)
        kick = step_size / setting.snr * g[:, :, None] * g[:, None, :]
        moves = self._moves(-by_theta, -g, w, kick)
        mean = weight @ moves
        squares = moves.mT @ (weight[:, None] * moves)
        # what the rest of w adds is linear in g, and independent of all else
        GG = g.mT @ (weight[:, None] * g)
        eye = torch.eye(K, dtype=u.dtype, device=u.device)
        columns = rest[0].mT[:, None, :].expand(-1, K, -1)  # (e, K, d + K)
        still = u.new_zeros(len(columns), K, self.layout.size)
        linear = self._moves(still, eye.expand(len(columns), K, K), columns, None, bias=False)
        others = torch.einsum("eik,ij,ejl->kl", linear, GG, linear)
        return squares + others - torch.outer(mean, mean)

    def _moves(
        self, theta: Tensor, gradient: Tensor, w: Tensor, kick: Tensor | None, *, bias: bool = True
    ) -> Float[Tensor, "*batch k"]:
        """The change of u by steps of theta and h's gradient, along w = (x_parallel, P)."""
        d = self.layout.directions
        dm = gradient[..., :, None] * w[..., None, :d]
        dR = gradient[..., :, None] * w[..., None, d:]
        dR = dR + dR.mT
        db = gradient if bias else torch.zeros_like(gradient)
        return self.layout.join(theta, db, dm, dR if kick is None else dR + kick)

    # --- quality ----------------------------------------------------------------------------------

    def risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """E[l], the population loss without the ridge, shape ``(...)``.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        return self._average(u, self.setting.losses)

    def accuracy(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """P(the class with the largest output is the label), shape ``(...)``.

        With one output, a logit, the class is its sign; a logit of 0 counts half.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError: if the labels are no classes.
        """
        return self._average(u, self.setting.right)

    def _average(self, u: Tensor, value: Any) -> Tensor:
        pieces = u.reshape(-1, u.shape[-1]).split(self._at_once)
        found = torch.cat([self._average_of(piece.double(), value) for piece in pieces])
        return found.reshape(u.shape[:-1]).to(u.dtype)

    def _average_of(self, u: Float[Tensor, "S k"], value: Any) -> Float[Tensor, " S"]:
        theta, b, m, R = self.layout.split(u)
        nodes = self.rule.nodes.to(u)
        h = self._law(b, m, R).h(nodes).flatten(1, 2)
        output = self.setting.head(theta, h)
        targets, shares = self._targets(h)
        S, (M, q) = len(u), shares.shape
        spread = output[:, :, None].expand(S, M, q, *output.shape[2:])
        labels = targets.expand(S, *targets.shape)
        values = value(spread.flatten(0, 2), labels.flatten(0, 2)).reshape(S, M, q)
        weight = (self.setting.shares.to(h)[:, None] * nodes.weights).flatten()
        return torch.einsum("smq,mq,m->s", values, shares.to(values), weight)

    # --- the rest of the contract -----------------------------------------------------------------

    def decay(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """theta, b, m and 2 R."""
        theta, b, m, R = self.layout.split(u)
        return self.layout.join(theta, b, m, 2 * R)

    def jacobian(self, velocity: Any, u: Float[Tensor, "S k"]) -> Float[Tensor, "S k k"]:
        """Derivatives of the terms; see `VectorField.jacobian`.

        Raises:
            NotImplementedError: if gradients jump where the head's parameters say.
        """
        self.kinks.check("derivatives of the dynamics (bands, fixed points, Langevin)")
        return super().jacobian(velocity, u)

    def for_band(self) -> NetworkField:
        """The same field on a quarter of the nodes, for derivatives that are right to 1e-3."""
        if self.kinks.in_h or self.rule.hermite:
            return self
        coarse = copy.copy(self)
        coarse.rule = self.rule.of_count(max(256, self.rule.count // 4))
        return coarse

    def check_start(self, u0: Float[Tensor, "*batch k"]) -> None:
        """ValueError unless R is positive semidefinite."""
        check_gram(self.layout.split(u0)[3])

    @cached_property
    def error(self) -> float:  # type: ignore[override]
        """The error of the nodes: the median, at random points, of the largest difference."""
        points = self.geometry.random(8, torch.Generator().manual_seed(0))
        other = copy.copy(self)
        other.rule = self.rule.other()
        ours, theirs = (sum(field.terms(points)) for field in (self, other))
        return max(1e-13, float((ours - theirs).abs().amax(-1).median()))

    @property
    def rtol(self) -> float:  # type: ignore[override]
        """No finer than the nodes' error, and no coarser than 1e-3."""
        return min(max(1e-6, self.error), 1e-3)

    @property
    def atol(self) -> float:  # type: ignore[override]
        """A tenth of `rtol`, for statistics that start at N^{-1/2} or vanish."""
        return self.rtol / 10

    def describe(self) -> dict[str, Any]:
        """The problem's constants, the nodes and their error."""
        facts = {"width": self.layout.width, "snr": self.setting.snr}
        kind = "Gauss-Hermite" if self.rule.hermite else "Sobol"
        nodes = f"{len(self.rule.nodes.weights)} ({kind})"
        return {**facts, "nodes": nodes, "error of the nodes": float(f"{self.error:.1g}")}

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, in markdown."""
        term = " + (c/snr) E[g_i g_j]" if corrector else ""
        return "\n".join(
            [
                "Effective dynamics of h = W x + b, output = head(h), with g = dl/dh of one "
                "sample and P = W_perp x (Theorem 2.2 of arXiv 2206.04030):",
                "",
                "    dtheta/dt = - E[dl/dtheta] - alpha theta",
                "    db_i/dt   = - E[g_i] - alpha b_i",
                "    dm_ij/dt  = - E[g_i x_j] - alpha m_ij",
                f"    dR_ij/dt  = - E[g_i P_j] - E[g_j P_i] - 2 alpha R_ij{term}",
            ]
        )


def _backward(
    output: Tensor, inputs: list[Tensor], along: Tensor, graph: bool
) -> tuple[Tensor, ...]:
    """Gradients of <along, output>."""
    return torch.autograd.grad(
        output, inputs, along, create_graph=graph, retain_graph=True, materialize_grads=True
    )
