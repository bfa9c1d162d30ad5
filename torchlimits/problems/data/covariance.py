"""`Covariance`: the covariance of inputs, by its eigenvalues and eigenvectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks
from torchlimits.problems.data.diagnostics import Training, diagnose
from torchlimits.problems.data.linear_labels import LinearLabels
from torchlimits.problems.data.moments import Moments
from torchlimits.problems.data.report import DataReport
from torchlimits.problems.data.rows import Rows

#: fractions may sum to 1 up to this, as with float32 numbers
_TOLERANCE = 1e-6
#: a matrix is symmetric, and a basis orthonormal, up to this, relative to the largest entry
_ROUNDING = 1e-6
#: eigenvalues below this part of the largest are those of a singular matrix
_SINGULAR = 1e-12
#: eigenvalues of a matrix are wrong by up to this many units of its rounding, times sqrt(N)
_EIGENVALUES = 4
#: eigenvalues that differ by less than this part belong to one level
_SAME = 1e-9


class Covariance:
    r"""The covariance :math:`\Lambda = \sum_n \lambda_n u_n u_n^T` of inputs.

    Data are :math:`x = c_a + snr^{-1/2} \Lambda^{1/2} z` with z ~ N(0, I_N). The components of a
    mixture may have eigenvalues of their own, in one eigenbasis.

    `of` makes one from any of the forms that problems take as ``covariance=``, and `of_data` from
    data.

    Args:
        eigenvalues: the lambda_n > 0, shape ``(N,)``, or ``(A, N)``, one row for each component.
        basis: the u_n as orthonormal rows, ``(N, N)``; None stands for the axes.

    Raises:
        ValueError: if eigenvalues are not positive and finite, or the basis is not orthonormal.

    Example:
        >>> import torch, torchlimits as tl
        >>> power_law = tl.Covariance(1 / torch.arange(1, 101))
        >>> power_law
        Covariance(dim=100, 100 levels from 0.01 to 1, trace 5.19)
        >>> power_law.spread(torch.ones(100))[:3]
        tensor([1.0000, 0.7071, 0.5774])
        >>> two = tl.Covariance.of([(4.0, 0.25), (1.0, 0.75)], dim=8)
        >>> two.eigenvalues.tolist()
        [[4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]
        >>> values, place = two.levels
        >>> values.tolist(), place.tolist()
        ([[4.0], [1.0]], [0, 0, 1, 1, 1, 1, 1, 1])
        >>> two.coordinates(torch.ones(8)).equal(two.vectors(torch.ones(8)))
        True
        >>> two.dim, two.components, two.trace, two.largest
        (8, 1, 14.0, 4.0)
    """

    def __init__(
        self, eigenvalues: Float[Tensor, " N"] | Float[Tensor, "A N"],
        basis: Float[Tensor, "N N"] | None = None,
    ) -> None:  # fmt: skip
        _check_no_graph(eigenvalues)
        values = _checks.float64("eigenvalues", eigenvalues)
        values = values[None] if values.ndim == 1 else values
        if values.ndim != 2 or not values.numel():
            raise ValueError(
                "expected eigenvalues of shape (N,), or (A, N) for A components, got "
                f"{tuple(values.shape)}"
            )
        _check_definite(values)
        self.eigenvalues = values
        self.basis = None if basis is None else _checks.float64("basis", basis)
        if self.basis is not None:
            _check_basis(self.basis, values.shape[1])

    @classmethod
    def of(cls, given: object, dim: int) -> Covariance:
        """The covariance that a problem's argument ``covariance=`` stands for.

        Args:
            given: a `Covariance`; a list of (eigenvalue, fraction of the N dimensions), along the
                first axes first; a spectrum ``(N,)`` along the axes; a matrix ``(N, N)``; or, with
                one for each component, spectra ``(A, N)`` or commuting matrices ``(A, N, N)``.
            dim: N.

        Raises:
            ValueError: if shapes do not fit, a matrix is not symmetric positive definite, fractions
                do not sum to 1, or matrices do not commute.
            TypeError: if it is of another kind.

        Example:
            >>> import torch, torchlimits as tl
            >>> tl.Covariance.of(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), dim=2)
            Covariance(dim=2, 2 levels from 1 to 3, trace 4)
        """
        _checks.positive_int("dim", dim)
        if isinstance(given, Covariance):
            if given.dim != dim:
                raise ValueError(f"expected a covariance of dim={dim}, got one of {given.dim}")
            return given
        if isinstance(given, (list, tuple)) and all(_is_pair(x) for x in given):
            return cls(_by_fractions(given, dim))
        _check_no_graph(given)
        array = _checks.float64("covariance", given)
        if array.ndim == 0 or array.shape[-1] != dim or array.ndim > 3:
            raise ValueError(
                f"expected covariance as (eigenvalue, fraction) pairs, a spectrum ({dim},), a "
                f"matrix ({dim}, {dim}), spectra (A, {dim}), matrices (A, {dim}, {dim}) or a "
                f"tl.Covariance, got shape {tuple(array.shape)}"
            )
        if array.ndim == 1 or (array.ndim == 2 and len(array) != dim):
            return cls(given)  # type: ignore[arg-type]
        single = isinstance(given, Tensor) and given.dtype.is_floating_point
        eps = torch.finfo(given.dtype).eps if single else 2**-52  # type: ignore[union-attr]
        matrices = array if array.ndim == 3 else array[None]
        return cls(*_diagonal(matrices, _EIGENVALUES * eps * dim**0.5))

    @staticmethod
    def of_data(x: object, y: object = None, *, centre: bool = True) -> DataCovariance:
        """The covariance of data, with what they say about predictions made of it.

        Args:
            x: the inputs, shape ``(M, N)``, numbers of any kind.
            y: their labels: integers ``(M,)`` are classes, whose covariances about their own means
                are pooled; floating-point numbers ``(M,)`` or ``(M, q)`` are numbers; or None.
            centre: whether the covariance is about the mean of x. Without, it is the second
                moments about 0, as a linear model without bias sees data that have a mean.

        Raises:
            ValueError: if there are not more rows than dimensions, features are constant or
                collinear, values are not finite, labels are not as many as rows, or a class has a
                single row; the message names columns, classes or numbers, and what to do.
            TypeError: if x or y are not numbers.

        Example:
            >>> import torch, torchlimits as tl
            >>> generator = torch.Generator().manual_seed(0)
            >>> x = torch.randn(2000, 10, generator=generator)
            >>> data = tl.Covariance.of_data(x, (x[:, 0] > 0).long())
            >>> data
            DataCovariance(2000 rows, dim=10, 10 levels from 0.363 to 1.12, trace 9.45)
            >>> data.labels.tolist(), [round(share, 2) for share in data.shares.tolist()]
            ([0, 1], [0.51, 0.49])
            >>> data.diagnose(lr=0.01, steps=1000).verdict
            'holds'
        """
        rows = Rows.of(x, y, centre=centre)
        return DataCovariance(rows, Moments.of(rows))

    @property
    def dim(self) -> int:
        """N."""
        return self.eigenvalues.shape[1]

    @property
    def components(self) -> int:
        """A, the number of components with eigenvalues of their own; 1 if they share them."""
        return len(self.eigenvalues)

    @property
    def trace(self) -> float:
        """tr Lambda, the mean over the components."""
        return float(self.eigenvalues.sum(-1).mean())

    @property
    def largest(self) -> float:
        """The largest eigenvalue of any component."""
        return float(self.eigenvalues.max())

    @cached_property
    def levels(self) -> tuple[Float[Tensor, "L A"], Int[Tensor, " N"]]:
        """The distinct eigenvalues, in order of their first appearance, and that of each u_n."""
        found: dict[tuple[float, ...], int] = {}
        # the logarithm's grid joins what differs by rounding
        keys = (self.eigenvalues.log() / _SAME).round().mT.tolist()
        place = [found.setdefault(tuple(key), n) for n, key in enumerate(keys)]
        first = torch.tensor([*found.values()], device="cpu")
        return self.eigenvalues.mT[first], torch.searchsorted(
            first, torch.tensor(place, device="cpu")
        )

    def coordinates(self, vectors: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch N"]:
        """The coordinates <v, u_n> in the eigenbasis.

        Args:
            vectors: along the last dimension.
        """
        return vectors if self.basis is None else vectors @ self.basis.to(vectors).mT

    def vectors(self, coordinates: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch N"]:
        """The inverse of `coordinates`.

        Args:
            coordinates: in the eigenbasis, along the last dimension.
        """
        return coordinates if self.basis is None else coordinates @ self.basis.to(coordinates)

    def spread(
        self, z: Float[Tensor, "*batch N"], component: Int[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch N"]:
        """Lambda^(1/2) z, for z ~ N(0, I) inputs of this covariance.

        Args:
            z: vectors, along the last dimension.
            component: the component of each, where they have eigenvalues of their own.
        """
        roots, basis = self._beside(z)
        own = roots[0] if self.components == 1 or component is None else roots[component]
        return own * z if basis is None else (own * (z @ basis.mT)) @ basis

    def _beside(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Roots of eigenvalues and the basis, copied to each device once."""
        known: dict[Any, tuple[Tensor, Tensor | None]] = self.__dict__.setdefault("_moved", {})
        key = (z.device, z.dtype)
        if key not in known:
            basis = None if self.basis is None else self.basis.to(z)
            known[key] = self.eigenvalues.sqrt().to(z), basis
        return known[key]

    def __repr__(self) -> str:
        values, _ = self.levels
        of = f", {self.components} components" if self.components > 1 else ""
        return (
            f"{type(self).__name__}(dim={self.dim}, {len(values)} levels from "
            f"{float(values.min()):.3g} to {float(values.max()):.3g}, trace {self.trace:.3g}{of})"
        )


class DataCovariance(Covariance):
    r"""The covariance of data, which `Covariance.of_data` makes.

    Printed, it is followed by its diagnostics.

    Args:
        rows: the data.
        moments: their moments.

    Attributes:
        means: the means in the coordinates of x, ``(A, N)``: one row a class, or one.
        shares: the fractions of the classes, ``(A,)``.
        labels: the classes, ``(A,)``; None without classes.

    Example:
        >>> import torch, torchlimits as tl
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 4, generator=generator)
        >>> noise = torch.randn(1000, generator=generator)
        >>> data = tl.Covariance.of_data(x, 2 * x[:, 1] + noise)
        >>> round(float(data.target[1]), 1), round(data.residual, 1)
        (2.0, 1.0)
        >>> round(data.label_share, 1)
        0.8
        >>> quartic, noise = data.fourth_moments()
        >>> quartic.shape, noise.shape
        (torch.Size([4, 4]), torch.Size([4]))
        >>> print(data.diagnose(lr=1.0, steps=100).sentence)  # doctest: +ELLIPSIS
        Gaussian theory calls lr = 1 unstable, too; for these data the expected risk of least ...
    """

    def __init__(self, rows: Rows, moments: Moments) -> None:
        super().__init__(moments.eigenvalues, moments.basis)
        self.rows, self.moments = rows, moments
        self.means, self.shares, self.labels = rows.means, rows.shares, rows.classes

    @property
    def target(self) -> Float[Tensor, " N"] | Float[Tensor, "q N"]:
        """w* of the best linear prediction <w*, x> of y, in the coordinates of x.

        It is for x less its mean, unless centre=False was given, and for y as they are, without a
        bias. Two classes are -1 and 1, and more are 0 and 1 in a row each; between classes a bias
        is fitted, too.
        """
        slopes = self._known(self.moments.slopes)
        found = self.vectors(slopes)
        return found[0] if len(found) == 1 else found

    @property
    def residual(self) -> float:
        """The root of the mean of |y - <w*, x>|^2, what the best linear prediction leaves."""
        self._known(self.moments.residuals)
        return float(self.moments.squared_residuals.mean()) ** 0.5

    @property
    def label_share(self) -> float:
        """R^2, the part of the variance of y that the best linear prediction explains."""
        numbers = self._known(self.rows.numbers)
        variance = float(numbers.var(0, correction=0).sum())
        left = float(self._known(self.moments.residuals).var(0, correction=0).sum())
        return 1 - left / variance if variance else 0.0

    @property
    def linear_labels(self) -> LinearLabels:
        """The best linear prediction as ``labels=`` of a problem, with its directions.

        Labels have the shape ``(n, q)`` and the mean of y; `label_noise` is the noise around them.
        """
        offset = self._known(self.moments.residuals).mean(0)
        target = self.target
        return LinearLabels.of(target if target.ndim == 2 else target[None], self.means[:1], offset)

    @property
    def label_noise(self) -> Float[Tensor, " q"]:
        """Standard deviations of what `linear_labels` leave of each number of y, ``(q,)``."""
        return self._known(self.moments.residuals).std(0, correction=0)

    def fourth_moments(self) -> tuple[Float[Tensor, "N N"], Float[Tensor, " N"] | None]:
        """E[<u_n, x>^2 <u_m, x>^2] and E[r^2 <u_n, x>^2] of the data, with r what w* leaves.

        A `torchlimits.LinearModel` takes them in place of those of Gaussian data,
        lambda_n lambda_m (and 2 lambda_n^2 more for n = m, which it neglects) and E r^2 lambda_n.
        The second is None without y.
        """
        return self.moments.fourth

    def diagnose(
        self, lr: float | None = None, steps: int | None = None, *, batch_size: int = 1,
        momentum: float = 0.0,
    ) -> DataReport:  # fmt: skip
        """Whether the theory of Gaussian inputs holds for these data.

        With `lr`, `steps` and numbers y it compares the expected risk of least squares on these
        rows, in which no theory of Gaussian inputs is, with that theory.

        Args:
            lr, steps, batch_size, momentum: of the training by SGD, where they are known.

        Raises:
            ValueError: if one of them is out of its range.
        """
        return diagnose(self.rows, self.moments, Training(lr, steps, batch_size, momentum))

    @staticmethod
    def _known(value: Tensor | None) -> Tensor:
        if value is None:
            raise ValueError("expected labels, got data without: give y, of_data(x, y)")
        return value

    def __repr__(self) -> str:
        rest = super().__repr__().partition("(")[2]
        return f"{type(self).__name__}({len(self.rows.deviations)} rows, {rest}"

    def __str__(self) -> str:
        return f"{self!r}\n{self.diagnose()}"


def _check_no_graph(given: object) -> None:
    """Raise NotImplementedError where derivatives by a covariance are asked for."""
    if _checks.requires_grad(given):
        raise NotImplementedError(
            "expected a covariance without a gradient, got a tensor that requires one: derivatives "
            "by it are not known; give covariance.detach()"
        )


def _is_pair(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2


def _by_fractions(pairs: Sequence[Sequence[float]], dim: int) -> Float[Tensor, " N"]:
    """The spectrum of blocks that hold fractions of the dimensions."""
    if not pairs:
        raise ValueError("expected (eigenvalue, fraction) pairs, got an empty list")
    table = _checks.float64("covariance", pairs)
    values, fractions = table.unbind(1)
    total = float(fractions.sum())
    if not (bool((fractions > 0).all()) and abs(total - 1) < _TOLERANCE):
        raise ValueError(
            "expected fractions of the dimensions > 0 with the sum 1 in covariance=[(eigenvalue, "
            f"fraction), ...], got {fractions.tolist()} with the sum {total:g}"
        )
    ends = (fractions.cumsum(0) / total * dim).round().long()
    sizes = ends.diff(prepend=ends.new_zeros(1))
    if not bool((sizes > 0).all()):
        raise ValueError(
            f"expected blocks of at least one of the {dim} dimensions, got fractions "
            f"{fractions.tolist()}: enlarge dim or leave out the smallest"
        )
    return values.repeat_interleave(sizes)


def _joined(values: Float[Tensor, "A N"], apart: float) -> Float[Tensor, "A N"]:
    """Eigenvalues in falling order, where those that are closer than rounding have their mean."""
    starts = [0]
    for n in range(1, values.shape[1]):
        if float((values[:, n] - values[:, starts[-1]]).abs().max()) > apart:
            starts.append(n)
    ends = [*starts[1:], values.shape[1]]
    means = [
        values[:, i:j].mean(1, keepdim=True).expand(-1, j - i)
        for i, j in zip(starts, ends, strict=True)
    ]
    return torch.cat(means, 1)


def _diagonal(
    matrices: Float[Tensor, "A N N"], rounding: float
) -> tuple[Float[Tensor, "A N"], Float[Tensor, "N N"]]:
    """Eigenvalues ``(A, N)``, falling in the mean, and the common eigenbasis as rows."""
    size = float(matrices.abs().max())
    if not bool(matrices.isfinite().all()):
        raise ValueError("expected a finite covariance, got NaN or infinity in it")
    skew = float((matrices - matrices.mT).abs().max())
    if skew > _ROUNDING * size:
        raise ValueError(
            f"expected a symmetric covariance, got one that is {skew:g} off its transpose: "
            "spectra of N components, shape (N, N), go into tl.Covariance(eigenvalues), or as "
            "matrices (N, N, N)"
        )
    # a combination in which no two eigenvectors have the same eigenvalue by accident
    shares = 0.5 + torch.rand(
        len(matrices), generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu"
    )
    _, columns = torch.linalg.eigh((shares[:, None, None] * matrices).mean(0))
    turned = columns.mT @ matrices @ columns
    values = turned.diagonal(dim1=-2, dim2=-1)
    outside = float((turned - torch.diag_embed(values)).abs().max())
    if outside > _ROUNDING * size:
        raise ValueError(
            "expected covariances of components with a common eigenbasis (matrices that commute), "
            f"got some that are {outside:.2g} away from it: take their mean for all components, "
            "which is what a prediction can be made of"
        )
    order = values.mean(0).argsort(descending=True)
    _check_definite(values, max(rounding, _SINGULAR))
    joined = _joined(values[:, order], rounding * float(values.max()))
    return joined, columns.mT[order].contiguous()


def _check_definite(values: Float[Tensor, "A N"], rounding: float = _SINGULAR) -> None:
    """Raise ValueError unless all eigenvalues are positive and none is 0 beside others."""
    if not bool(values.isfinite().all()):
        raise ValueError("expected finite eigenvalues of the covariance, got NaN or infinity")
    smallest, largest = float(values.min()), float(values.max())
    if smallest < -rounding * abs(largest):
        raise ValueError(
            f"expected a positive definite covariance, got an eigenvalue {smallest:.3g}: no data "
            "have it"
        )
    if smallest <= rounding * largest:
        raise ValueError(
            f"expected a positive definite covariance, got a singular one (eigenvalues from "
            f"{smallest:.3g} to {largest:.3g}): leave out directions in which data do not vary, "
            "constant features among them, by projecting inputs on the others"
        )


def _check_basis(basis: Tensor, dim: int) -> None:
    if basis.shape != (dim, dim):
        raise ValueError(
            f"expected basis of shape ({dim}, {dim}), one row for each eigenvalue, got "
            f"{tuple(basis.shape)}"
        )
    eye = torch.eye(dim, dtype=basis.dtype, device=basis.device)
    defect = float((basis @ basis.mT - eye).abs().max())
    if not defect < _ROUNDING:
        raise ValueError(
            f"expected orthonormal rows as basis, got a Gram matrix {defect:.2g} away from the "
            "identity: take the rows of torch.linalg.eigh(matrix).eigenvectors.mT"
        )
