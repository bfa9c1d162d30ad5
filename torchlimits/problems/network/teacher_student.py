"""`TeacherStudent`: a two-layer network that learns another one on standard normal inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks, _linalg
from torchlimits.optim.adagrad_norm_limit import AdaGradNormLimit
from torchlimits.optim.chosen_limit import NetworkLimit
from torchlimits.optim.limit import OptimizerLimit
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.optim.training import Training
from torchlimits.problems.network.block_layout import BlockLayout
from torchlimits.problems.network.closed import CLOSED_FORMS
from torchlimits.problems.network.closed_field import ClosedField, ClosedTeacher
from torchlimits.problems.network.field import NetworkField
from torchlimits.problems.network.geometry import check_gram
from torchlimits.problems.network.kinks import Kinks
from torchlimits.problems.network.problem import NetworkProblem
from torchlimits.problems.network.resolution import resolution
from torchlimits.problems.network.second_layer import SecondLayer
from torchlimits.problems.network.teacher import Teacher, layer

#: the number that inputs are divided by
CONVENTIONS = ("torch", "sqrt")


class TeacherStudent(NetworkProblem):
    r"""A two-layer student of width K learns a two-layer teacher of width M, online.

    Inputs x ~ N(0, I_N); the teacher gives :math:`y = \sum_n w_n \phi(B_n x) + s \xi`,
    xi ~ N(0, 1), and the student :math:`\sum_i v_i \phi(h_i)`. The loss is **half** the mean square
    of their difference, :math:`\frac12 (\hat y - y)^2`, as in the literature; torch's ``mse_loss``
    is twice that, and learns twice as fast.

    Two conventions:

    * ``"torch"``: h = W x, an nn.Linear as it is; rows of W and of B have lengths of order 1, and
      one learning rate c/N for all layers has a limit. For Saad and Solla's eta take c = eta.
    * ``"sqrt"``: inputs are divided by sqrt(N) (:meth:`sample` does it), entries of W are of order
      1, as in the code of Goldt et al. The first layer's learning rate is then eta itself, without
      1/N, the second's eta_v/N. With one learning rate for both the second layer is N times as
      fast as the first, for which there is no limit: that is refused.

    Limit time is the sum of the learning rates of the first parameter group, as the recorder counts
    it: with that of the first layer, steps times eta/N (``"torch"``) or steps times eta
    (``"sqrt"``).

    Either way the statistics are those of J = W or J = W / sqrt(N): v as ``head.weight[i]`` (where
    it is trained), ``m[i,j]`` = <J_i, e_j> with an orthonormal basis e of the teacher's rows, and
    ``R[i,j]``, the Gram matrix of what is orthogonal to them. The order parameters of the
    literature are Q = R + m m^T and the overlaps C = m b^T with the teacher's rows
    B = b e: see `order_parameters`.

    For ``"erf"`` (that is erf(x / sqrt 2)), ``"relu"``, ``"square"`` and ``"linear"`` the averages
    are closed forms, for any K and M; off the diagonal, the corrector of ReLU contains an integral
    over one angle. Bands and diffusion matrices take averages over nodes. Other activations take
    nodes for everything, as in `NetworkProblem`.

    Source: D. Saad and S. A. Solla, Phys. Rev. E 52, 4225 (1995); S. Goldt, M. Advani, A. Saxe,
    F. Krzakala and L. Zdeborova, Dynamics of stochastic gradient descent for two-layer neural
    networks in the teacher-student setup, NeurIPS 2019.

    Args:
        dim: N.
        width: K.
        teacher_width: M.
        activation: phi of both networks, one of the names above, or a function or module that acts
            entry by entry.
        noise: s, the standard deviation of the label noise.
        overlaps: T = B B^T, ``(M, M)``, positive semidefinite; by default the identity.
        teacher_second_layer: w, ``(M,)``; by default ones.
        train_second_layer: whether v is trained; if not, it stays where it is.
        second_layer: v at the start, ``(K,)``; by default ones where it stays, else N(0, I).
        convention: ``"torch"`` or ``"sqrt"``.
        ridge: alpha >= 0, the optimizer's weight decay.
        covariance, blocks: that of the inputs, x ~ N(0, Lambda), as in `NetworkProblem`; averages
            are then taken over nodes. The teacher's rows lie in the span of the first axes.
        device, dtype: of data and models where none are asked for.

    Raises:
        ValueError: if a number is out of its range, shapes do not fit, T is not a Gram matrix, or
            N < d + K with d the rank of T.
        TypeError: if the activation is neither a name nor callable.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.TeacherStudent(dim=500, width=2, teacher_width=2, train_second_layer=False)
        >>> Q = torch.diag(torch.tensor([0.2, 0.3], dtype=torch.float64))
        >>> start = problem.from_order_parameters(Q, torch.tensor([[0.05, 0.0], [0.0, 0.0]]))
        >>> problem.order_parameters(start)[1].round(decimals=3).tolist()  # C
        [[0.05, 0.0], [0.0, 0.0]]
        >>> path = problem.dynamics(step_size=0.1).solve(start, [0.0, 20.0, 60.0], rtol=1e-5)
        >>> errors = problem.generalization_error(path.values)  # on the plateau, and beyond
        >>> [round(float(error), 4) for error in errors]
        [0.4402, 0.0124, 0.0077]
    """

    def __init__(
        self, *, dim: int, width: int, teacher_width: int,
        activation: str | Callable[[Tensor], Tensor] = "erf", noise: float = 0.0,
        overlaps: object = None, teacher_second_layer: object = None,
        train_second_layer: bool = True, second_layer: object = None, convention: str = "torch",
        ridge: float | Tensor = 0.0, covariance: object = None, blocks: int | str | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        dim, width = _checks.positive_int("dim", dim), _checks.positive_int("width", width)
        M = _checks.positive_int("teacher_width", teacher_width)
        if convention not in CONVENTIONS:
            raise ValueError(
                "expected convention 'torch' (nn.Linear as it is) or 'sqrt' (inputs divided by "
                f"sqrt(dim)), got {convention!r}"
            )
        self.noise = _checks.non_negative("noise", noise, "it is a standard deviation")
        self.convention = convention
        self._scale = 1.0 if convention == "torch" else dim**0.5
        phi = _function(activation)
        self.teacher = Teacher(phi, M, overlaps, teacher_second_layer, scale=1.0 / self._scale)
        ones = torch.ones(width, dtype=torch.float64, device="cpu")
        v = ones if second_layer is None else layer("second_layer", second_layer, width)
        drawn = train_second_layer and second_layer is None
        self._fixed = None if train_second_layer else v
        head = SecondLayer(phi, v, trained=train_second_layer, drawn=drawn)
        arguments = {
            "dim": dim, "width": width, "teacher_width": M, "activation": activation,
            "noise": noise, "overlaps": overlaps, "teacher_second_layer": teacher_second_layer,
            "train_second_layer": train_second_layer, "second_layer": second_layer,
            "convention": convention, "ridge": _checks.plain(ridge), "covariance": covariance,
            "blocks": blocks, "device": device, "dtype": dtype,
        }  # fmt: skip
        self._form = CLOSED_FORMS.get(activation) if isinstance(activation, str) else None
        super().__init__(
            dim=dim, width=width, head=head, loss=half_mean_square, labels=self.teacher,
            snr=self._scale**2, directions=_axes(self.teacher.rows.shape[1], dim, width),
            label_noise=self.noise, bias=False, ridge=ridge, covariance=covariance, blocks=blocks,
            device=device, dtype=dtype,
        )  # fmt: skip
        self._arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._arguments), ()

    @classmethod
    def of(cls, model: nn.Module, first: str = "0", **given: Any) -> NoReturn:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse: the class makes student and teacher; for your own module take `NetworkProblem`.

        Args:
            model, first, given: as in `NetworkProblem.of`, which takes them.

        Raises:
            TypeError: always.

        Example:
            >>> import torch, torchlimits as tl
            >>> tl.TeacherStudent.of(torch.nn.Linear(10, 2))
            Traceback (most recent call last):
            TypeError: expected NetworkProblem.of(...) for a module of your own, got ...
        """
        raise TypeError(
            "expected NetworkProblem.of(...) for a module of your own, got TeacherStudent.of: "
            "give the teacher there as labels=, a function of x_parallel"
        )

    def generalization_error(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """Half the mean square of student minus teacher, without label noise, shape ``(...)``.

        The population risk is that plus s^2 / 2.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u cannot be a tensor of the statistics.
        """
        exact = _checks.statistics(u, len(self.names))
        field = self._field(self.dim, 2**12, 0)
        if isinstance(field, ClosedField):
            error = field.generalization_error(exact)
        else:
            error = field.risk(exact) - self.noise**2 / 2
        return error.to(u.dtype) if u.is_floating_point() else error

    def order_parameters(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch K K"], Float[Tensor, "*batch K M"], Float[Tensor, "M M"]]:
        """Q, C and T: overlaps of student rows, of student with teacher rows, of teacher rows.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u cannot be a tensor of the statistics.
        """
        _, _, m, R = self.layout.over_all(_checks.statistics(u, len(self.names)))
        own = (R + m @ m.mT) / self._scale**2
        return own, m @ self.teacher.rows.to(m).mT / self._scale, self.teacher.overlaps.to(m)

    def from_order_parameters(
        self, Q: Float[Tensor, "K K"], C: Float[Tensor, "K M"], second_layer: object = None
    ) -> Float[Tensor, " k"]:
        """The statistics u with given overlaps, float64: where to start, say.

        Args:
            Q: overlaps of the student's rows, ``(K, K)``.
            C: overlaps of the student's rows with the teacher's, ``(K, M)``.
            second_layer: v, where it is trained; by default ones.

        Raises:
            ValueError: if no student has these overlaps, or shapes do not fit.
        """
        K, rows = self.width, self.teacher.rows
        own, overlaps = _checks.float64("Q", Q), _checks.float64("C", C)
        if own.shape != (K, K) or overlaps.shape != (K, len(rows)):
            raise ValueError(
                f"expected Q of shape ({K}, {K}) and C of shape ({K}, {len(rows)}), got "
                f"{tuple(own.shape)} and {tuple(overlaps.shape)}"
            )
        m = overlaps @ _linalg.pinv(rows).mT
        if not torch.allclose(m @ rows.mT, overlaps, atol=1e-8):
            raise ValueError(
                "expected overlaps C with the teacher's rows that agree with their linear "
                "dependences (T is singular), got others: take C = J B^T of weights"
            )
        R = own - m @ m.mT
        try:
            check_gram(R)
        except ValueError as error:
            raise ValueError(
                "expected Q - C T^+ C^T to be positive semidefinite, as overlaps of vectors are, "
                f"got a smallest eigenvalue of {float(_linalg.eigvalsh(R).min()):.3g}"
            ) from error
        ones = torch.ones(K, dtype=torch.float64, device="cpu")
        v = ones if second_layer is None else layer("second_layer", second_layer, K)
        theta = v if self._fixed is None else v[:0]
        own, grams = m, R
        if isinstance(self.layout, BlockLayout):  # what is orthogonal to the teacher is isotropic
            own, grams = m @ self.layout.blocks.turn, self.layout.typical[1] * R
        return self.layout.join(theta, ones, self._scale * own, self._scale**2 * grams)

    def describe(self) -> dict[str, Any]:
        """The problem's parameters, which JSON can hold."""
        name = self._arguments["activation"]
        return {
            **super().describe(), "teacher_width": len(self.teacher.second),
            "activation": name if isinstance(name, str) else _name(name), "noise": self.noise,
            "overlaps": self.teacher.overlaps.tolist(),
            "teacher_second_layer": self.teacher.second.tolist(),
            "train_second_layer": self._fixed is None, "convention": self.convention,
        }  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"TeacherStudent(dim={self.dim}, width={self.width}, "
            f"teacher_width={len(self.teacher.second)}, {self.describe()['activation']}, "
            f"noise={self.noise:g}, {len(self.names)} statistics, convention={self.convention!r})"
        )

    @cached_property
    def kinks(self) -> Kinks:
        """Where a sample's gradient jumps, which is known for activations with closed forms."""
        if self._form is None:
            return super().kinks
        return Kinks(in_h=self._form.kinked, steps_in_h=False, in_theta=False, in_labels=False)

    def _field(
        self, dim: int, nodes: int, seed: int, limit: OptimizerLimit | None = None
    ) -> NetworkField:
        if self._form is None or self.covariance is not None:
            return super()._field(dim, nodes, seed, limit)
        setting, rule = resolution(self.setting, self.kinks, limit, nodes=nodes, seed=seed)
        teacher = ClosedTeacher(
            form=self._form, rows=self.teacher.rows, second=self.teacher.second,
            student=self._fixed, noise=self.noise,
        )  # fmt: skip
        return ClosedField(setting, dim=dim, rule=rule, kinks=self.kinks, teacher=teacher)

    def _limit(self, training: Training) -> NetworkLimit:
        dim = training.dim
        if self.convention == "sqrt" and dim != self.dim:
            raise ValueError(
                f"expected dim={self.dim}, the problem's own, with convention='sqrt', whose inputs "
                f"have it in them, got {dim}: take convention='torch', which has the same limit, "
                "or a TeacherStudent of that dim"
            )
        limit = super()._limit(training)
        plain = limit.plain if isinstance(limit, AdaGradNormLimit) else limit
        if self._fixed is None and isinstance(plain, SGDLimit):
            self._check_speeds(plain, dim)
        return limit

    def _check_speeds(self, limit: SGDLimit, dim: int) -> None:
        """Raise ValueError if the second layer is too fast beside the first for a limit."""
        speeds = {} if limit.layers is None else limit.layers.speeds
        first, second = speeds.get("first.weight", 1.0), speeds.get("head.weight", 1.0)
        # for J, whose learning rate is eta/N where the second layer's is eta_v/N
        if first == 0 or second * self._scale**2 <= dim**0.5 * first:
            return
        raise ValueError(
            "expected learning rates with a limit: with convention='sqrt' the first layer's is eta "
            "and the second's is eta_v/dim, with convention='torch' they are eta/dim and "
            f"eta_v/dim; got a second layer whose learning rate is {second / first:.3g} times the "
            f"first's with convention={self.convention!r} and dim={dim}: it would be faster by an "
            "unbounded factor. Give the optimizer two parameter groups, "
            "[{'params': model.first.parameters(), 'lr': eta}, "
            "{'params': model.head.parameters(), 'lr': eta_v / dim}], or take convention='torch' "
            "or train_second_layer=False"
        )


def half_mean_square(output: Tensor, target: Tensor) -> Float[Tensor, ""]:
    """Half the mean of (output - target)^2.

    Args:
        output, target: tensors of one shape.

    Example:
        >>> import torch
        >>> half_mean_square(torch.tensor([1.0, 3.0]), torch.zeros(2))
        tensor(2.5000)
    """
    return (output - target).square().mean() / 2


def _function(activation: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return phi, checked to act entry by entry as far as shapes show."""
    if isinstance(activation, str):
        if activation not in CLOSED_FORMS:
            raise ValueError(
                f"expected activation {', '.join(map(repr, CLOSED_FORMS))}, or a function, got "
                f"{activation!r}: for that one give the function itself, torch.tanh say"
            )
        return CLOSED_FORMS[activation].activation
    if not callable(activation):
        raise TypeError(
            f"expected activation as a name, a function or a torch.nn.Module, got "
            f"{type(activation).__name__}"
        )
    x = torch.zeros(2, 3, device=_device(activation))
    try:
        with torch.no_grad():
            y: object = activation(x)
    except Exception as error:
        raise ValueError(
            "expected an activation that acts on every entry of a tensor, got "
            f"{type(error).__name__} for one of shape (2, 3): {error}"
        ) from error
    if not isinstance(y, Tensor) or y.shape != x.shape:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"expected an activation that acts entry by entry, got {got} for shape (2, 3)"
        )
    return activation


def _device(activation: object) -> torch.device | str:
    """The device of the activation's parameters, if it has any."""
    parameters = activation.parameters() if isinstance(activation, nn.Module) else iter(())
    first = next(parameters, None)
    return "cpu" if first is None else first.device


def _name(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _axes(count: int, dim: int, width: int) -> Float[Tensor, "d N"]:
    """The first d axes, orthonormal directions."""
    if dim < count + width:
        raise ValueError(
            f"expected dim >= rank of the teacher + width = {count} + {width} = {count + width}, "
            f"got dim={dim}: student and teacher do not fit"
        )
    return torch.eye(count, dim, dtype=torch.float64, device="cpu")
