"""`Integrals`: moments of a sample's gradient over nodes that stay the same, and derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _linalg
from torchlimits._threads import apart
from torchlimits.problems.network.kinks import Kinks
from torchlimits.problems.network.linear_layers import LinearLayers
from torchlimits.problems.network.nodes import Rule
from torchlimits.problems.network.setting import Setting

#: singular values of S below this part of the largest are rounding, as S is a matrix root
CUT = 1e-7
#: the number of pre-activations that are held at once
PIECE = 2**21
#: the number of nodes of all starts whose derivatives are computed together
TOGETHER = 2**14
#: the number of single samples whose gradients are held at once
SAMPLES = 2**13
#: the same, of several starts at once
EACH = 2**15


class Moments(NamedTuple):
    """The moments in which drift and corrector are linear, for h = F psi.

    Attributes:
        theta: E[dl/dtheta], ``(S, P)``.
        gradient: E[g psi^T], ``(S, K, e)``, with g = dl/dh.
        gram: E[g g^T], ``(S, K, K)``.
    """

    theta: Float[Tensor, "S P"]
    gradient: Float[Tensor, "S K e"]
    gram: Float[Tensor, "S K K"]


class Squared(NamedTuple):
    """The moments of squared gradients.

    Attributes:
        theta: E[(dl/dtheta_i)^2], ``(S, P)``.
        gradient: the mean of g^2 at each node, times the node's weight, ``(S, M, K)``.
    """

    theta: Float[Tensor, "S P"]
    gradient: Float[Tensor, "S M K"]


class Integrals:
    r"""Integrals over components, standard normals and labels of a sample's gradient.

    With psi = (indicators of the A components, zeta_s, zeta_h) the pre-activations are linear,
    h = F psi with F = [means of h | X | S]. The nodes psi and the law of the labels there do not
    depend on u.

    Args:
        setting: the network, its data and its loss.
        rule: the rule of the nodes.
        kinks: tells where gradients jump.
    """

    def __init__(self, setting: Setting, rule: Rule, kinks: Kinks) -> None:
        self.setting, self.rule, self.kinks = setting, rule, kinks
        #: nodes and labels there, on each device
        self._nodes: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._known: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @cached_property
    def count(self) -> int:
        """M, the number of nodes of all components."""
        return len(self.setting.coordinates) * len(self.rule.nodes.weights)

    def nodes(self, like: Tensor) -> tuple[Float[Tensor, "M e"], Float[Tensor, " M"]]:
        """psi and the weights of all nodes, component by component.

        Args:
            like: on the device.
        """
        if like.device not in self._nodes:
            self._nodes[like.device] = apart(lambda: self._all_nodes(like.device))
        return self._nodes[like.device]

    def _all_nodes(self, device: torch.device) -> tuple[Tensor, Tensor]:
        points, weights = (x.to(device) for x in self.rule.nodes)
        A = len(self.setting.coordinates)
        own = torch.eye(A, dtype=points.dtype, device=device)
        psi = torch.cat([own.repeat_interleave(len(points), 0), points.repeat(A, 1)], dim=-1)
        return psi, (self.setting.shares.to(weights)[:, None] * weights).flatten()

    def targets(self, like: Tensor) -> tuple[Tensor, Float[Tensor, "M q"]]:
        """The law of the label at the nodes, ``(M, q, ...)``, and its probabilities.

        Args:
            like: on the device.
        """
        if like.device not in self._known:
            setting, (points, _) = self.setting, self.rule.nodes.to(like)
            r, count = len(setting.reads), len(points)
            points = points if r else points[:1]  # one sample of each component is enough
            x = setting.x_parallel(points[:, :r])
            component = torch.arange(len(x), device=x.device)[:, None].expand(x.shape[:2])
            targets, shares = setting.labels.law(x.flatten(0, 1), component.flatten())
            if not r:
                targets, shares = (t.repeat_interleave(count, 0) for t in (targets, shares))
            if targets.is_floating_point():
                targets = targets.double()
            self._known[like.device] = targets.to(like.device), shares.to(x)
        return self._known[like.device]

    def every_target(
        self, like: Tensor
    ) -> tuple[Float[Tensor, "M e"], Float[Tensor, " M"], Tensor]:
        """psi, weights and targets of all nodes, where every target counts as a sample.

        Args:
            like: on the device.
        """
        psi, weight = self.nodes(like)
        targets, shares = self.targets(like)
        M, q = shares.shape
        psi = psi[:, None].expand(M, q, -1).flatten(0, 1)
        return psi, (weight[:, None] * shares).flatten(), targets.flatten(0, 1)

    # --- values -----------------------------------------------------------------------------------

    def __call__(self, theta: Float[Tensor, "S P"], F: Float[Tensor, "S K e"]) -> Moments:
        """The moments, which can be differentiated once.

        Args:
            theta: the head's parameters.
            F: the loadings of h.
        """
        return Moments(*_Differentiable.apply(theta, F, self))  # type: ignore[misc]

    def values(self, theta: Float[Tensor, "S P"], F: Float[Tensor, "S K e"]) -> Moments:
        """The moments.

        Args:
            theta, F: as in a call.
        """
        return self._values(theta, F, None)[0]

    def with_squares(
        self, theta: Float[Tensor, "S P"], F: Float[Tensor, "S K e"]
    ) -> tuple[Moments, Squared]:
        """The moments, and those of squared gradients, in one pass through a head.

        Its `layers` have to be complete.

        Args:
            theta, F: as in a call.
        """
        moments, squared = self._values(theta, F, self.layers)
        assert squared is not None
        return moments, squared

    @cached_property
    def layers(self) -> LinearLayers:
        """The linear layers of the head."""
        return LinearLayers(self.setting.head)

    def _values(
        self, theta: Tensor, F: Tensor, layers: LinearLayers | None
    ) -> tuple[Moments, Squared | None]:
        psi, weight = self.nodes(F)
        theta = theta.detach().requires_grad_()
        h = (psi @ F.detach().mT).requires_grad_()  # (S, M, K)
        with torch.enable_grad():
            names, offsets = (layers.names, layers.offsets(h)) if layers else ([], [])
            output, inputs = self.setting.head.traced(theta, h, names, offsets)
            output = output[..., None].flatten(2)  # samples may have a number each, (S, M)
        slopes, shares = self._slopes(theta, h, output)
        single = slopes.shape[2] == 1
        # over the law of the label, which may follow from the node
        mean = slopes[:, :, 0] if single else (shares[..., None] * slopes).sum(2)
        by_theta, *by_rows = torch.autograd.grad(
            output, (theta, h, *offsets), weight[:, None] * mean, retain_graph=not single,
            materialize_grads=True,
        )  # fmt: skip
        if single:
            each = [(x, _unweighted(x, weight)) for x in by_rows]
            gram = each[0][0].mT @ each[0][1]
            seconds = [x * g for x, g in each] if layers else []
        else:
            law = (slopes, shares, weight)
            gram, seconds = _over_labels(output, [h, *offsets], *law, squares=layers is not None)
        moments = Moments(by_theta, by_rows[0].mT @ psi, gram)
        if layers is None:
            return moments, None
        own = layers.squares(theta, [x.detach() for x in inputs], seconds[1:])
        return moments, Squared(own, seconds[0])

    def _slopes(self, theta: Tensor, h: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """dl/d(output) for every target of every sample, ``(S, M, q, O)``, and probabilities."""
        targets, shares = self.targets(h)
        S, (M, q) = len(output), shares.shape
        shape = self.setting.head.output_shape
        spread = output.detach()[:, :, None].expand(S, M, q, -1).reshape(S * M * q, *shape)
        labels = targets.expand(S, *targets.shape).flatten(0, 2)
        return self.setting.losses.slopes(spread, labels).reshape(S, M, q, -1), shares

    # --- derivatives ------------------------------------------------------------------------------

    def derivatives(self, theta: Float[Tensor, "S P"], F: Float[Tensor, "S K e"]) -> Derivatives:
        """The derivatives of the moments by theta and F.

        They come from second derivatives of the loss at the nodes. Where gradients jump as h moves,
        derivatives at nodes miss the jumps; there the nodes stay where they are and the density
        moves, whose logarithm has the derivative zeta_h . S^+ dF psi - tr(S^+ dS).

        Args:
            theta, F: as in a call.
        """
        psi, weight = self.nodes(F)
        targets, shares = self.targets(F)
        q = shares.shape[1]
        if q > 1:  # every target is a sample
            psi = psi.repeat_interleave(q, 0)
            weight = (weight[:, None] * shares).flatten()
            kept = weight > 0
            psi, weight, targets = psi[kept], weight[kept], targets.flatten(0, 1)[kept]
        else:
            targets = targets[:, 0]
        together = max(1, TOGETHER // len(weight))
        parts = [
            self._derivatives(some, loadings, psi, weight, targets)
            for some, loadings in zip(theta.split(together), F.split(together), strict=True)
        ]
        return Derivatives(*(torch.cat(x) for x in zip(*parts, strict=True)))

    def _derivatives(
        self, theta: Tensor, F: Tensor, psi: Tensor, weight: Tensor, targets: Tensor
    ) -> Derivatives:
        pieces = [
            self._piece(theta, F, *some)
            for some in zip(*(x.split(PIECE // 64) for x in (psi, weight, targets)), strict=True)
        ]
        return Derivatives(*(torch.stack(x).sum(0) for x in zip(*pieces, strict=True)))

    def _piece(
        self, theta: Tensor, F: Tensor, psi: Tensor, weight: Tensor, targets: Tensor
    ) -> Derivatives:
        theta = theta.detach().requires_grad_()
        h = (psi @ F.detach().mT).requires_grad_()  # (S, M, K)
        with torch.enable_grad():
            output = self.setting.head(theta, h).flatten(0, 1)
            losses = self.setting.losses(
                output, targets.expand(len(h), *targets.shape).flatten(0, 1)
            )
            by_theta, by_h = torch.autograd.grad(
                (weight * losses.unflatten(0, h.shape[:2])).sum(), (theta, h),
                create_graph=True, materialize_grads=True,
            )  # fmt: skip
        second, mixed = _rows(by_theta, theta, h)  # (P, S, P) and (P, S, M, K)
        g = _unweighted(by_h.detach(), weight)
        by_psi = torch.einsum("ismk,me->sike", mixed, psi)
        halves = torch.einsum("ismk,sml->skli", mixed, g)
        if not self.kinks.in_h:
            (own,) = _rows(by_h, h)  # (K, S, M, K): derivative of entry k by entry j
            # one sum over samples in any case: products of psi first
            pairs = (psi[:, :, None] * psi[:, None, :]).flatten(1)
            gradient = torch.einsum("ksmj,mx->skjx", own, pairs)
            e = psi.shape[1]
            gradient = gradient.unflatten(-1, (e, e)).transpose(2, 3)
            gram = torch.einsum("ksmj,sml,mf->skljf", own, g, psi)
            gram = gram + gram.transpose(1, 2)
        else:
            each = [self._by_density(*some, psi, weight) for some in zip(F, g, strict=True)]
            gradient, gram = (torch.stack(x) for x in zip(*each, strict=True))
            if self.kinks.steps_in_h:
                by_psi = self._steps(theta.detach(), F, h.detach(), psi, weight, targets)
        return Derivatives(
            second.transpose(0, 1), by_psi, torch.einsum("ismk,me->skei", mixed, psi),
            gradient, halves + halves.transpose(1, 2), gram,
        )  # fmt: skip

    def _by_density(
        self, F: Float[Tensor, "K e"], g: Float[Tensor, "M K"], psi: Tensor, weight: Tensor
    ) -> tuple[Float[Tensor, "K e K e"], Float[Tensor, "K K K e"]]:
        """Derivatives by F of E[g psi^T] and E[g g^T], of the density alone."""
        score, inverse = self._score(F, psi)  # (M, K, e) and (K, K)
        weighted, K = weight[:, None] * g, len(inverse)
        gradient = torch.einsum("mke,mjf->kejf", weighted[:, :, None] * psi[:, None, :], score)
        gradient[:, -K:] -= torch.einsum("mk,ej,mf->kejf", weighted, inverse, psi)
        pairs = weighted[:, :, None] * g[:, None, :]
        return gradient, torch.einsum("mkl,mjf->kljf", pairs, score)

    def _steps(
        self, theta: Tensor, F: Tensor, h: Tensor, psi: Tensor, weight: Tensor, targets: Tensor
    ) -> Float[Tensor, "S P K e"]:
        """Derivatives by F of E[dl/dtheta], of the density alone."""
        found: list[Tensor] = []
        for some, loadings, at in zip(theta, F, h, strict=True):
            own, _ = self.setting.sample_gradients(some, at, targets, SAMPLES)
            score, _ = self._score(loadings, psi)
            found.append(torch.einsum("m,mi,mjf->ijf", weight, own, score))
        return torch.stack(found)

    def _score(self, F: Tensor, psi: Tensor) -> tuple[Float[Tensor, "M K e"], Float[Tensor, "K K"]]:
        """Derivative of the density's logarithm by F at the nodes, and S^+."""
        K = len(F)
        inverse = _linalg.pinv(F[:, -K:].detach(), rtol=CUT, hermitian=True)
        pull = psi[:, -K:] @ inverse
        score = pull[:, :, None] * psi[:, None, :]
        score[:, :, -K:] -= inverse
        return score, inverse

    # --- averages of other values -----------------------------------------------------------------

    def average(self, theta: Tensor, F: Tensor, value: Any) -> Float[Tensor, " S"]:
        """E[value(output, target)].

        Args:
            theta, F: as in a call.
            value: a function of M outputs and targets, which returns ``(M,)``.
        """
        psi, weight = self.nodes(F)
        output = self.setting.head(theta, psi @ F.mT)
        targets, shares = self.targets(F)
        S, (M, q) = len(theta), shares.shape
        spread = output[:, :, None].expand(S, M, q, *output.shape[2:])
        labels = targets.expand(S, *targets.shape)
        values = value(spread.flatten(0, 2), labels.flatten(0, 2)).reshape(S, M, q)
        return torch.einsum("smq,mq,m->s", values, shares.to(values), weight.to(values))


class Derivatives(NamedTuple):
    """Derivatives of the `Moments`; S comes first, then the entries of the moment.

    Attributes:
        theta_theta: of E[dl/dtheta] by theta, ``(S, P, P)``.
        theta_F: of E[dl/dtheta] by F, ``(S, P, K, e)``.
        gradient_theta: of E[g psi^T] by theta, ``(S, K, e, P)``.
        gradient_F: of E[g psi^T] by F, ``(S, K, e, K, e)``.
        gram_theta: of E[g g^T] by theta, ``(S, K, K, P)``.
        gram_F: of E[g g^T] by F, ``(S, K, K, K, e)``.
    """

    theta_theta: Tensor
    theta_F: Tensor
    gradient_theta: Tensor
    gradient_F: Tensor
    gram_theta: Tensor
    gram_F: Tensor

    def matrix(self) -> Float[Tensor, "S moments parameters"]:
        """All of them: rows for the entries of the moments, columns for those of theta and F."""
        by_theta = (self.theta_theta, self.gradient_theta, self.gram_theta)
        by_F = (x.flatten(-2) for x in (self.theta_F, self.gradient_F, self.gram_F))
        sides = [torch.cat([x.flatten(1, -2) for x in side], dim=1) for side in (by_theta, by_F)]
        return torch.cat(sides, dim=-1)


class _Differentiable(torch.autograd.Function):
    """The moments with their derivatives, which are computed when they are first asked for."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, F: Tensor, integrals: Integrals) -> tuple[Tensor, ...]:
        ctx.save_for_backward(theta, F)
        ctx.integrals, ctx.known = integrals, None
        return tuple(x.detach() for x in integrals.values(theta, F))

    @staticmethod
    def backward(ctx: Any, *by: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "expected first derivatives of averages over nodes, got create_graph=True: second "
                "derivatives are not known; take differences of the first"
            )
        ctx.integrals.kinks.check("derivatives of the dynamics (gradients, bands, fixed points)")
        if ctx.known is None:  # the same for every row of a Jacobian
            ctx.known = ctx.integrals.derivatives(*ctx.saved_tensors).matrix()
        theta, F = ctx.saved_tensors
        # operations that autograd can do for many rows at once
        rows = torch.cat([x.reshape(len(x), x[0].numel()) for x in by], dim=-1)
        both = (rows[:, None] @ ctx.known)[:, 0]
        P = theta.shape[1]
        by_theta, by_F = both[:, :P], both[:, P:].reshape(F.shape)
        return by_theta, by_F, None


def _unweighted(by_h: Float[Tensor, "S M K"], weight: Tensor) -> Float[Tensor, "S M K"]:
    """g from its product with the weights; 0 where a component is never drawn."""
    return by_h / weight.clamp_min(1e-300)[:, None]


def _over_labels(
    output: Tensor, rows: Sequence[Tensor], slopes: Tensor, shares: Tensor, weight: Tensor,
    *, squares: bool,
) -> tuple[Float[Tensor, "S K K"], list[Tensor]]:  # fmt: skip
    """`_sums` where a sample's label is random: over each of its targets."""
    q, outputs = slopes.shape[2:]

    def pulled(along: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(output, rows, along, retain_graph=True, materialize_grads=True)

    if q <= outputs:
        each = [(weight * shares[:, i], pulled(slopes[:, :, i])) for i in range(q)]
        return _sums(each, squares=squares)
    unit = torch.eye(outputs, dtype=output.dtype, device=output.device)
    columns = [pulled(e.expand_as(output)) for e in unit]
    J = [torch.stack(x, dim=2) for x in zip(*columns, strict=True)]  # each (S, M, O, n)
    second = torch.einsum("m,mq,smqo,smqp->smop", weight, shares, slopes, slopes)
    gram = torch.einsum("smok,smop,smpl->skl", J[0], second, J[0])
    wanted = J if squares else []
    return gram, [torch.einsum("smok,smop,smpk->smk", x, second, x) for x in wanted]


def _sums(
    each: Sequence[tuple[Tensor, Sequence[Tensor]]], *, squares: bool
) -> tuple[Float[Tensor, "S K K"], list[Tensor]]:
    """E[g g^T], and the mean square over labels of each derivative, times the node's weight.

    Args:
        each: for each target of the nodes its probability, and the derivatives of the loss by h and
            by other rows of each node.
        squares: whether mean squares are wanted; there are none otherwise.
    """
    gram = torch.stack([(p[:, None] * g[0]).mT @ g[0] for p, g in each]).sum(0)
    if not squares:
        return gram, []
    terms = [[p[:, None] * x.square() for x in g] for p, g in each]
    return gram, [torch.stack(x).sum(0) for x in zip(*terms, strict=True)]


def _rows(entries: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of each entry, ``(S, ..., entries)``, summed over what is between."""
    with torch.enable_grad():
        totals = [entry.sum() for entry in entries.unbind(-1)]
    rows = [
        torch.autograd.grad(total, inputs, retain_graph=True, materialize_grads=True)
        # slopes are constant where a loss is linear
        if total.requires_grad
        else tuple(torch.zeros_like(x) for x in inputs)
        for total in totals
    ]
    if not rows:
        return tuple(x.new_zeros(0, *x.shape) for x in inputs)
    return tuple(torch.stack([row[i] for row in rows]) for i in range(len(inputs)))
