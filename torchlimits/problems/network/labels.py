"""Label laws: the distribution of y, given the component of a sample and its coordinates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from torchlimits import _checks


@runtime_checkable
class LabelLaw(Protocol):
    """The law of a label y, given the component a of a sample and its coordinates x_parallel.

    Anything with these two methods can be the ``labels`` of a `torchlimits.NetworkProblem`.

    Example:
        >>> import torch
        >>> class Coin:  # the sign of a coordinate, turned round with probability 0.1
        ...     def law(self, x_parallel, component):
        ...         sign = x_parallel[:, :1].sign()
        ...         shares = torch.tensor([0.9, 0.1]).to(sign).expand(len(sign), 2)
        ...         return torch.cat([sign, -sign], -1), shares
        ...     def sample(self, x_parallel, component, generator):
        ...         targets, shares = self.law(x_parallel, component)
        ...         chosen = torch.multinomial(shares, 1, generator=generator)
        ...         return targets.gather(1, chosen)[:, 0]
        >>> labels: LabelLaw = Coin()
        >>> x, component = torch.tensor([[3.0], [-1.0]]), torch.tensor([0, 0])
        >>> labels.law(x, component)[0]
        tensor([[ 1., -1.],
                [-1.,  1.]])
        >>> labels.sample(x, component, torch.Generator().manual_seed(0)).shape
        torch.Size([2])
    """

    def law(self, x_parallel: Tensor, component: Tensor) -> tuple[Tensor, Tensor]:
        """A finite law of y for each of n samples, for integrals.

        Args:
            x_parallel: the coordinates along the directions, ``(n, d)``.
            component: numbers of the components, ``(n,)``.

        Returns:
            Targets ``(n, q, ...)`` and their probabilities ``(n, q)``.
        """
        ...

    def sample(
        self, x_parallel: Tensor, component: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """One label for each of n samples, ``(n, ...)``.

        Args:
            x_parallel, component: as in `law`.
            generator: the source of randomness, on their device.
        """
        ...


def reads_inputs(labels: LabelLaw) -> bool:
    """Whether a law reads x_parallel; laws that are not the package's are assumed to."""
    return bool(getattr(labels, "reads_inputs", True))


class _CertainLabels(ABC):
    """Labels that are not random: one for each x_parallel and component."""

    def law(self, x_parallel: Tensor, component: Tensor) -> tuple[Tensor, Tensor]:
        """The label itself, with probability 1."""
        values = self._of(x_parallel, component)
        return values[:, None], x_parallel.new_ones(len(values), 1)

    def sample(
        self, x_parallel: Tensor, component: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """The label itself."""
        return self._of(x_parallel, component)

    @abstractmethod
    def _of(self, x_parallel: Tensor, component: Tensor) -> Tensor:
        """The labels of n samples, ``(n, ...)``."""


class ComponentLabels(_CertainLabels):
    """One label for each component.

    Args:
        values: the labels of the components, ``(A, ...)``.

    Example:
        >>> labels = ComponentLabels(torch.tensor([5, 7]))
        >>> labels.law(torch.zeros(3, 1), torch.tensor([0, 1, 1]))[0].tolist()
        [[5], [7], [7]]
    """

    reads_inputs = False

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def _of(self, x_parallel: Tensor, component: Tensor) -> Tensor:
        values = self.values.to(x_parallel.device)
        if values.is_floating_point():
            values = values.to(x_parallel.dtype)
        return values[component]


class FunctionLabels(_CertainLabels):
    """Labels that are a function of x_parallel and the component.

    Args:
        function: f(x_parallel ``(n, d)``, component ``(n,)``) -> ``(n, ...)``.

    Example:
        >>> labels = FunctionLabels(lambda x, component: x[:, 0].sign())
        >>> labels.sample(torch.tensor([[2.0], [-3.0]]), torch.tensor([0, 0]), None)
        tensor([ 1., -1.])
    """

    reads_inputs = True

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def _of(self, x_parallel: Tensor, component: Tensor) -> Tensor:
        what = (
            f"labels(x_parallel {tuple(x_parallel.shape)}, component {tuple(component.shape)}), "
            "where x_parallel holds the coordinates along the directions and nothing else of x"
        )
        try:
            with torch.no_grad():
                values = self.function(x_parallel, component)
        except Exception as error:
            raise ValueError(
                f"expected labels for {what}, got {type(error).__name__}: {error}: labels that "
                "read more of x need more directions="
            ) from error
        if not isinstance(values, Tensor) or values.shape[:1] != x_parallel.shape[:1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"expected a tensor of shape ({len(x_parallel)}, ...) of {what}, got {got}"
            )
        return values


class NoisyLabels:
    """Labels of another law with normal noise of standard deviation s added to every entry.

    Args:
        labels: the law without noise.
        noise: s.
        points: the points of the normal law in integrals, for each entry; n points are exact for
            polynomials of degree 2 n - 1.

    Example:
        >>> labels = NoisyLabels(ComponentLabels(torch.tensor([1.0])), noise=0.5, points=2)
        >>> labels.law(torch.zeros(1, 1), torch.tensor([0]))
        (tensor([[0.5000, 1.5000]]), tensor([[0.5000, 0.5000]]))
    """

    def __init__(self, labels: LabelLaw, noise: float, points: int = 9) -> None:
        self.labels, self.noise, self.points = labels, noise, points
        self.reads_inputs = reads_inputs(labels)
        line, weight = np.polynomial.hermite_e.hermegauss(points)
        self._line, self._weight = torch.from_numpy(line), torch.from_numpy(weight / weight.sum())

    def law(self, x_parallel: Tensor, component: Tensor) -> tuple[Tensor, Tensor]:
        """The other law, spread out by a Gauss-Hermite rule."""
        targets, shares = self.labels.law(x_parallel, component)
        entries = targets[0, 0].numel()
        line, weight = self._line.to(targets), self._weight.to(shares)
        shifts = torch.cartesian_prod(*[line] * entries).reshape(-1, entries)
        weights = torch.cartesian_prod(*[weight] * entries).reshape(-1, entries).prod(-1)
        moved = targets[:, :, None] + self.noise * shifts.reshape(-1, *targets.shape[2:])
        return moved.flatten(1, 2), (shares[:, :, None] * weights).flatten(1, 2)

    def sample(
        self, x_parallel: Tensor, component: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """The other law's label with noise."""
        y = self.labels.sample(x_parallel, component, generator)
        noise = torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)
        return y + self.noise * noise


class FlippedLabels:
    """Class labels of another law that turn into others with given probabilities.

    Args:
        labels: the law without flips; classes 0 to C - 1.
        flips: row i holds the probabilities of the classes that class i turns into, ``(C, C)``.

    Example:
        >>> never = ComponentLabels(torch.tensor([0, 1]))
        >>> labels = FlippedLabels(never, torch.tensor([[0.9, 0.1], [0.0, 1.0]]))
        >>> labels.law(torch.zeros(2, 1), torch.tensor([0, 1]))[1]
        tensor([[0.9000, 0.1000],
                [0.0000, 1.0000]])
    """

    def __init__(self, labels: LabelLaw, flips: Tensor) -> None:
        self.labels, self.flips = labels, flips
        self.reads_inputs = reads_inputs(labels)

    def law(self, x_parallel: Tensor, component: Tensor) -> tuple[Tensor, Tensor]:
        """Every class, with its probability."""
        targets, shares = self.labels.law(x_parallel, component)
        _check_classes(targets, len(self.flips))
        rows = self.flips.to(shares)[targets.long()]  # (n, q, C)
        classes = torch.arange(len(self.flips), device=targets.device).to(targets.dtype)
        return classes.expand(len(targets), -1), (shares[..., None] * rows).sum(1)

    def sample(
        self, x_parallel: Tensor, component: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """The other law's class, flipped or not."""
        y = self.labels.sample(x_parallel, component, generator)
        rows = self.flips.to(x_parallel.device).double().cumsum(-1)[y.long()]
        uniform = torch.rand(*y.shape, 1, generator=generator, device=y.device, dtype=torch.float64)
        flipped = torch.searchsorted(rows / rows[..., -1:], uniform, right=True)[..., 0]
        return flipped.to(y.dtype)


class WithTrailing:
    """Labels of another law with a last dimension of size 1, as outputs of one unit have.

    Args:
        labels: the law without that dimension.

    Example:
        >>> labels = WithTrailing(ComponentLabels(torch.tensor([1.0])))
        >>> labels.sample(torch.zeros(2, 1), torch.tensor([0, 0]), None).shape
        torch.Size([2, 1])
    """

    def __init__(self, labels: LabelLaw) -> None:
        self.labels = labels
        self.reads_inputs = reads_inputs(labels)

    def law(self, x_parallel: Tensor, component: Tensor) -> tuple[Tensor, Tensor]:
        """The other law, with targets ``(n, q, 1)``."""
        targets, shares = self.labels.law(x_parallel, component)
        return targets[..., None], shares

    def sample(
        self, x_parallel: Tensor, component: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """The other law's label, ``(n, 1)``."""
        return self.labels.sample(x_parallel, component, generator)[..., None]


def flip_matrix(flips: object, classes: int) -> Tensor:
    """The matrix (C, C) of a probability of being flipped to any other class, or of a matrix.

    Args:
        flips: a number in [0, 1], or rows of probabilities.
        classes: C.

    Raises:
        ValueError: if they are not probabilities.

    Example:
        >>> flip_matrix(0.2, 3)
        tensor([[0.8000, 0.1000, 0.1000],
                [0.1000, 0.8000, 0.1000],
                [0.1000, 0.1000, 0.8000]], dtype=torch.float64)
    """
    if classes < 2:
        raise ValueError(f"expected at least 2 classes for label_flips, got {classes}")
    if isinstance(flips, (int, float)):
        share = _checks.non_negative("label_flips", flips)
        eye = torch.eye(classes, dtype=torch.float64, device="cpu")
        matrix = (1 - share) * eye + share / (classes - 1) * (1 - eye)
    else:
        matrix = _checks.float64("label_flips", flips)
    if matrix.shape != (classes, classes):
        raise ValueError(
            f"expected label_flips as a number or of shape ({classes}, {classes}), one row a "
            f"class, got shape {tuple(matrix.shape)}"
        )
    sums = matrix.sum(-1)
    if not bool((matrix >= 0).all() & ((sums - 1).abs() < 1e-6).all()):
        raise ValueError(
            "expected the rows of label_flips as probabilities, numbers >= 0 with the sum 1, got "
            f"{matrix.tolist()}"
        )
    return matrix


def _check_classes(targets: Tensor, classes: int) -> None:
    """Raise ValueError unless labels are numbers from 0 to C - 1."""
    wrong = (targets != targets.round()) | (targets < 0) | (targets >= classes)
    if bool(wrong.any()):
        raise ValueError(
            f"expected labels that are classes 0 to {classes - 1} for label_flips, got "
            f"{targets[wrong][0].item()}"
        )
