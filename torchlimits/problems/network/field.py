"""`NetworkField`: drift and corrector of any head on a linear first layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits._once import differentiable_once
from torchlimits.contracts.gradient_field import Averages, Batches, Samples, Squares
from torchlimits.contracts.vector_field import matrices_of_each
from torchlimits.problems.network.equal_nodes import equal_nodes
from torchlimits.problems.network.first_layer_field import FirstLayerField
from torchlimits.problems.network.gaussian import PreActivations
from torchlimits.problems.network.geometry import GramGeometry
from torchlimits.problems.network.kinks import Kinks
from torchlimits.problems.network.moments import EACH, PIECE, SAMPLES, Integrals, Moments
from torchlimits.problems.network.nodes import Rule
from torchlimits.problems.network.setting import Setting

#: rows of a Jacobian that are computed together
ROWS = 16


class NetworkField(FirstLayerField):
    r"""ODE of the statistics (theta, b, m, R) of h = W x + b, output = head_theta(h), at any snr.

    With g = dl/dh of one sample, :math:`P = W_\perp x`, and E over the mixture and labels,

    .. math::
        \dot\theta &= -E[\partial_\theta l], \qquad \dot b = -E[g], \qquad
            \dot m = -E[g\, x_\parallel^T] \\
        \dot R &= -E[g P^T] - E[P g^T] + \frac{c_\delta}{\lambda} E[g g^T]

    where the last term is the population corrector; the ridge comes on top. Source: Theorem 2.2 of
    arXiv 2206.04030, for a loss that depends on x through h and the label alone.

    The averages are sums over nodes that stay the same, with the gradients of head and loss by
    automatic differentiation.

    Args:
        setting: the network, its data and its loss.
        dim: N.
        rule: the nodes.
        kinks: tells where gradients jump.
    """

    def __init__(self, setting: Setting, *, dim: int, rule: Rule, kinks: Kinks) -> None:
        super().__init__(setting.layout, snr=setting.snr, dim=dim)
        self.setting, self.rule, self.kinks = setting, rule, kinks
        self.smooth = kinks.smooth
        self.space = GramGeometry(self.layout, setting.head.start)
        self.geometry = self.space

    # --- drift and corrector ----------------------------------------------------------------------

    def averages(self, u: Float[Tensor, "*batch k"]) -> Averages:
        """The averages of gradients that drift and corrector consist of.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        return Averages(*self._in_pieces(u, self._averages))

    def _in_pieces(
        self, u: Tensor, values: Callable[[Tensor], Iterable[Tensor]], at_once: int | None = None
    ) -> list[Tensor]:
        """Values of some points at a time, in u's shape and dtype."""
        pieces = self._some(u).split(self._at_once if at_once is None else at_once)
        found = [values(piece.double()) for piece in pieces]
        whole = (torch.cat(parts)[: u[..., 0].numel()] for parts in zip(*found, strict=True))
        return [x.reshape(*u.shape[:-1], *x.shape[1:]).to(u.dtype) for x in whole]

    def _some(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "S k"]:
        """All points in a row; one of no meaning if there is none, as losses need a sample."""
        flat = u.reshape(-1, u.shape[-1])
        return flat if len(flat) else self.space.random(1, torch.Generator()).to(u)

    @property
    def _at_once(self) -> int:
        return max(1, PIECE // (self.integrals.count * self.layout.width))

    def _averages(self, u: Float[Tensor, "S k"]) -> Averages:
        theta, b, m, R = self.layout.split(u)
        law = self.law(b, m, R, fixed=not u.requires_grad)  # by autograd, if at all
        return self._averages_of(law, self.integrals(theta, law.loadings))

    def _averages_of(self, law: PreActivations, moments: Moments) -> Averages:
        bias, signal, across = law.averages(moments.gradient)
        return Averages(moments.theta, bias, signal, across[:, 0], moments.gram)

    def law(self, b: Tensor, m: Tensor, R: Tensor, *, fixed: bool = False) -> PreActivations:
        """The law of the pre-activations at given statistics.

        Args:
            b, m, R: those of S starts.
            fixed: whether nothing is differentiated by them.
        """
        setting = self.setting
        return PreActivations(
            b, m, R[:, None], setting.coordinates, setting.basis, 1 / setting.snr, fixed=fixed
        )

    @cached_property
    def integrals(self) -> Integrals:
        """The integrals over the nodes."""
        return Integrals(self.setting, self.rule, self.kinks)

    # --- noise ------------------------------------------------------------------------------------

    def increment_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> Float[Tensor, "*batch k k"]:
        """The covariance of one step; see `VectorField.increment_covariance`."""
        return matrices_of_each(u, lambda point: self._increments(point, step_size))

    def _increments(self, u: Float[Tensor, " k"], step_size: float) -> Float[Tensor, "k k"]:
        samples = self.samples(u)
        mean, squares = self._step_moments(samples, self.increments(samples, step_size))
        return squares - torch.outer(mean, mean)

    def _step_moments(
        self, samples: Samples, moves: Float[Tensor, "M k"]
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "k k"]]:
        """First and second moments of one step, from its mean given what stands for a sample."""
        weight, g, rest = samples.weight, samples.gradient, samples.rest
        K, squares = self.layout.width, moves.mT @ (weight[:, None] * moves)
        # what the rest of w adds is linear in g, and independent of all else
        GG = g.mT @ (weight[:, None] * g)
        eye = torch.eye(K, dtype=g.dtype, device=g.device)
        columns = rest[:, None, :].expand(-1, K, -1)  # (e, K, w)
        still = g.new_zeros(len(columns), K, self.layout.size)
        linear = self.moves(still, eye.expand(len(columns), K, K), columns, None, bias=False)
        others = torch.einsum("eik,ij,ejl->kl", linear, GG, linear)
        return weight @ moves, squares + others

    def samples(self, u: Float[Tensor, " k"]) -> Samples:
        """Gradients at the nodes; see `GradientField.samples`."""
        psi, weight, targets = self.integrals.every_target(u)
        return Samples(weight, *self._gradients(u, psi, targets))

    def _gradients(
        self, u: Float[Tensor, " k"], psi: Float[Tensor, "M e"], targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dl/dtheta, g, the mean of w and a root of its covariance at nodes."""
        theta, b, m, R = (x[None] for x in self.layout.split(u))
        law = self.law(b, m, R)
        by_theta, g = self.setting.sample_gradients(
            theta[0], psi @ law.loadings[0].mT, targets, SAMPLES
        )
        return by_theta, g, *law.given_nodes(psi)

    def batches(self, u: Float[Tensor, " k"], batch_size: int, *, equal: bool = False) -> Batches:
        """Mean gradients of batches; see `GradientField.batches`.

        A batch of one is every node. More, and equal ones, are tuples of nodes of equal weights,
        put together by random permutations that stay the same: weighted nodes would not do, as the
        average of a function of a whole batch is not linear in each sample's law.
        """
        if batch_size == 1 and not equal:
            weight, theta, g, along, rest = self.samples(u)
            return Batches(
                weight, theta, g, g[:, :, None] * along[:, None, :], g[:, :, None] * g[:, None, :],
                rest,
            )  # fmt: skip
        psi, targets, tuples = equal_nodes(self.setting, self.rule, batch_size, u)
        theta, g, along, rest = self._gradients(u, psi, targets)
        each = (theta, g, g[:, :, None] * along[:, None, :], g[:, :, None] * g[:, None, :])
        theta, g, moved, gram = (x[tuples].mean(1) for x in each)
        weight = torch.full_like(g[:, 0], 1 / len(tuples))
        return Batches(weight, theta, g, moved, gram / batch_size, rest)

    def squares(self, u: Float[Tensor, "*batch k"], axes: Float[Tensor, "d J"]) -> Squares:
        """The averages of squared gradients; see `GradientField.squares`.

        The axes have to be among what the nodes resolve (`Setting.reads`).
        """
        if self.integrals.layers.complete:
            return NetworkField.gradients(self, u, axes)[1]
        psi, weight, targets = self.integrals.every_target(u.double())
        squared_x = self._on_axes(psi, axes).square()

        def values(some: Tensor) -> tuple[Tensor, Tensor]:
            theta, b, m, R = self.layout.split(some)
            h = psi @ self.law(b, m, R).loadings.mT
            by_theta, g = self.setting.gradients_of_each(theta, h, targets)
            return weight @ by_theta**2, (weight[:, None] * g**2).mT @ squared_x

        return Squares(*self._in_pieces(u, values, max(1, EACH // len(weight))))

    def _on_axes(self, psi: Float[Tensor, "M e"], axes: Tensor) -> Float[Tensor, "M J"]:
        """Coordinates of x at nodes, as far as labels read them."""
        A, r = len(self.setting.coordinates), self.setting.basis.shape[1]
        sigma = _checks.plain(self.setting.snr) ** -0.5
        noise = sigma * psi[:, A : A + r] @ self.setting.basis.to(psi).mT
        return (psi[:, :A] @ self.setting.coordinates.to(psi) + noise) @ axes.to(psi)

    def gradients(
        self, u: Float[Tensor, "*batch k"], axes: Float[Tensor, "d J"]
    ) -> tuple[Averages, Squares]:
        """Averages and squares, by one pass if the head has linear layers only.

        See `GradientField.gradients`.
        """
        if not self.integrals.layers.complete:
            return self.averages(u), self.squares(u, axes)
        squared_x = self._on_axes(self.integrals.nodes(u.double())[0], axes).square()

        def values(some: Tensor) -> tuple[Tensor, ...]:
            theta, b, m, R = self.layout.split(some)
            law = self.law(b, m, R)
            moments, squared = self.integrals.with_squares(theta, law.loadings)
            on_axes = squared.gradient.mT @ squared_x
            return *self._averages_of(law, moments), squared.theta, on_axes

        *averages, theta, on_axes = self._in_pieces(u, values)
        return Averages(*averages), Squares(theta, on_axes)

    # --- quality ----------------------------------------------------------------------------------

    def risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """E[l], the population loss without the ridge, shape ``(...)``.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        if self.kinks.steps_in_h or self.kinks.in_theta:
            if torch.is_grad_enabled() and (u.requires_grad or _checks.requires_grad(self.snr)):
                self.kinks.check("derivatives of the risk")
                raise NotImplementedError(
                    "expected a loss that does not jump for derivatives of the risk, got one whose "
                    "head jumps (sign, say): take a smooth activation, or differences"
                )
        elif not self.kinks.smooth:  # nodes miss how kinks move
            u = differentiable_once(u, "the risk of a network with kinks")
        return self._average(u, self.setting.losses)

    def accuracy(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """P(the class with the largest output is the label), shape ``(...)``.

        With one output, a logit, the class is its sign; a logit of 0 counts half.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError: if the labels are not classes.
        """
        # accuracy jumps between right and wrong, however smooth head and loss are
        stepwise = self.with_rule(self.rule._replace(smooth=False))
        return stepwise._average(u, self.setting.right)

    def _average(self, u: Tensor, value: Any) -> Tensor:
        pieces = self._some(u).split(self._at_once)
        found = torch.cat([self._average_of(piece.double(), value) for piece in pieces])
        found = found[: u[..., 0].numel()]
        return found.reshape(u.shape[:-1]).to(u.dtype)

    def _average_of(self, u: Float[Tensor, "S k"], value: Any) -> Float[Tensor, " S"]:
        theta, b, m, R = self.layout.split(u)
        return self.integrals.average(theta, self.law(b, m, R).loadings, value)

    # --- the rest of the contract -----------------------------------------------------------------

    def jacobian(self, velocity: Any, u: Float[Tensor, "S k"]) -> Float[Tensor, "S k k"]:
        """Derivatives of the terms; see `VectorField.jacobian`.

        Raises:
            NotImplementedError: if the head's parameters determine where gradients jump.
        """
        self.kinks.check("derivatives of the dynamics (bands, fixed points, Langevin)")
        try:
            return _rows_together(velocity, u)
        except RuntimeError:  # something in it is done for one row at a time only
            return super().jacobian(velocity, u)

    def for_band(self) -> NetworkField:
        """The same field on a quarter of the nodes, for derivatives that are accurate to 1e-3."""
        if self.kinks.in_h or self.rule.hermite:
            return self
        return self.with_rule(self.rule.of_count(max(256, self.rule.most // 4)))

    def with_rule(self, rule: Rule) -> NetworkField:
        """The same field on other nodes.

        Args:
            rule: the rule of the nodes.
        """
        return NetworkField(self.setting, dim=self.dim, rule=rule, kinks=self.kinks)

    @cached_property
    def error(self) -> float:  # type: ignore[override]
        """The error of the nodes: the median, at random points, of the largest difference."""
        points = self.space.random(8, torch.Generator().manual_seed(0))
        fields = (self, self.with_rule(self.rule.other()))
        with torch.no_grad():
            ours, theirs = (torch.add(*field.terms(points)) for field in fields)
        found = ((ours - theirs).abs() / self.rates.to(ours)).amax(-1).median()
        return max(1e-13, float(found))

    @property
    def rates(self) -> Tensor:
        """How fast statistics relax, where faster than others; errors of fast ones count less."""
        return torch.ones(1, device="cpu")

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
        facts = {"width": self.layout.width, "snr": _checks.plain(self.setting.snr)}
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


def _rows_together(
    velocity: Callable[[Tensor], Tensor], u: Float[Tensor, "S k"]
) -> Float[Tensor, "S k k"]:
    """Derivatives as `VectorField.jacobian` has them, many rows by one pass backwards."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        values = velocity(u) + 0 * u  # constant entries have derivatives too

    def rows(along: Tensor, *, together: bool) -> Tensor:
        (found,) = torch.autograd.grad(
            values, u, along, retain_graph=True, materialize_grads=True, is_grads_batched=together
        )
        return found

    k = values.shape[-1]
    unit = torch.eye(k, dtype=u.dtype, device=u.device)[:, None].expand(k, *values.shape)
    # the first alone: derivatives at nodes are computed then, and kept
    first = rows(unit[0], together=False)[None]
    others = [rows(some, together=True) for some in unit[1:].split(ROWS)]
    return torch.cat([first, *others]).transpose(0, 1)
