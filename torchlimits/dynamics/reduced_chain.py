"""Exact reduced chains: SGD's statistics at finite dimension n, without vectors of size n."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks, _threads
from torchlimits._normals import Normals
from torchlimits.dynamics.law import check_size, law_of
from torchlimits.dynamics.start import begun
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.trajectory import Trajectory

#: new directions that the frame takes up before it is turned and cut: so many at least, and one for
#: so many rows, as turning takes as long as a step of SGD for each row
_FRESH, _ROWS_A_FRESH = 6, 2
#: normal variables that are drawn together, as short draws take longer, in so many stretches
_AT_ONCE, _MOST_AHEAD = 2**19, 8
#: the number of samples in a step from which folding them pays, and that number for each row
_MANY, _MANY_A_ROW = 12, 4
#: the number of chains up to which one thread is faster than several
_SHARED = 5000


class ReducedChain(ABC):
    r"""The law of (u(X_0), u(X_1), ...) under SGD at dimension n, drawn without vectors of size n.

    Data are isotropic outside d signal directions. So all that matters of them there are their
    coordinates in a *frame*, orthonormal directions that span what rows (neurons, and their
    momentum) have outside the signal, and their part outside the frame: a chi variable with as many
    degrees of freedom as there are dimensions left, along one new direction of the frame. SGD is
    run in these coordinates, as it is in the full space; whenever the frame is full it is turned
    until the rows need no more directions than there are rows, and the others are dropped. Every
    step is exact in law at every n, whatever the rank of R: nothing is inverted.

    In float64 the chi-square of n degrees of freedom, a Gamma variable, has full relative
    precision; the rows outside the signal are carried by their coordinates, not by R, so that
    the growth of R by delta^2 n comes in by columns of size delta sqrt(n), far above rounding:
    n may be 10^12 and more.

    Args:
        names: the names of the k statistics.
        dim: n.
        limit: what the optimizer does.
        schedule: c_delta(t), where it is not constant; it starts with the chain's first step.
    """

    def __init__(
        self, names: Sequence[str], dim: int, limit: SGDLimit, schedule: Schedule | None = None
    ) -> None:
        self.names, self.dim, self.limit, self.schedule = list(names), dim, limit, schedule
        #: the learning rate, delta = c_delta / n, of the first step
        self.lr = self._constant() if schedule is None else schedule.rates(1, dim)[0]

    def run(
        self, u0: Float[Tensor, "*batch k"], steps: int, *, runs: int = 1, every: int = 1,
        generator: torch.Generator | None = None,
    ) -> Trajectory:  # fmt: skip
        """Sample paths of the statistics.

        Args:
            u0: the start, shape ``(..., k)``; momentum starts at rest.
            steps: the number of steps of SGD.
            runs: the number of independent paths from every start.
            every: the number of steps between two records; the first and the last are recorded too.
            generator: the source of randomness, on u0's device; the same seed gives the same paths.

        Returns:
            `Trajectory` with values ``(runs, ..., T, k)``; without the first dimension for one run
            from each of several starts.

        Raises:
            ValueError: if u0 is not ``(..., k)`` and finite, no parameters have these statistics,
                or a number is out of range.

        Example:
            >>> import torch, torchlimits as tl
            >>> problem = tl.SpikedTensor(dim=100, order=2, snr=2.0)
            >>> chain = problem.reduced_chain(step_size=1.0, dim=10**9)
            >>> chain.run(torch.tensor([0.5, 1.0]), steps=100, runs=50, every=10)
            Trajectory(2 statistics, 11 times, t = 0 ... 1e-07, runs=50)
        """
        for name, value in (("steps", steps), ("every", every)):
            _checks.positive_int(name, value)
        u0, batch = self._begun(u0, runs, generator)
        at = sorted({*range(0, steps + 1, every), steps})
        values = self._paths(u0.expand(*batch, len(self.names)), at, generator)
        recorded = torch.tensor(at, device="cpu")
        return Trajectory(
            self._times(at[-1])[recorded], recorded, values, self.names, metadata=self._metadata()
        )

    def law(
        self, u0: Float[Tensor, "*batch k"] | Trajectory,
        times: Float[Tensor, " T"] | Sequence[float] | None = None, *,
        runs: int = 2000, level: float = 0.95, generator: torch.Generator | None = None,
    ) -> Trajectory:  # fmt: skip
        r"""The law of the statistics of runs from u0 at dimension n, by paths drawn from it.

        It is right where the ballistic limit and its band are not: near saddles, which runs leave
        in several directions, and at kinks. Between the bounds lies a run at one time with
        probability ``level``, up to the error of quantiles of so many paths: at 95 % and 2000
        paths, a standard deviation of 0.5 %.

        Args:
            u0: the start at ``times[0]``, shape ``(..., k)``; every leading index has a law of its
                own. Or a measured `Trajectory`, whose first row is the start. Momentum starts at
                rest.
            times: limit times, shape ``(T,)``; they may repeat and do not fall. By default those of
                the trajectory. Each is rounded to the nearest step.
            runs: the number of paths from every start; the same seed gives the same paths.
            level: the probability between the bounds.
            generator: the source of randomness, on u0's device.

        Returns:
            `Trajectory` with the means over the paths as values ``(..., T, k)``, and their ``std``,
            ``lower``, ``upper`` (quantiles) and ``samples`` ``(runs, ..., T, k)``.

        Raises:
            ValueError: as `run`, if times fall, or level is not between 0 and 1.
            MemoryError: if the paths have more than 4 GiB.

        Example:
            >>> import torch, torchlimits as tl
            >>> problem = tl.SpikedTensor(dim=100, order=2, snr=1.2)
            >>> chain, seed = problem.reduced_chain(step_size=1.0), torch.Generator().manual_seed(0)
            >>> law = chain.law(torch.tensor([0.0, 1.0]), [0.0, 2.0], generator=seed)
            >>> law.lower[-1, 0] < -0.3, law.upper[-1, 0] > 0.3, law.samples.shape  # both ways
            (tensor(True), tensor(True), torch.Size([2000, 2, 2]))
        """
        given, times = begun(u0, times, self.names)
        instants = _checks.ordered_times(times)
        start, _ = self._begun(given, runs, generator)
        check_size(runs, start.shape, len(instants))
        numbers = self._numbers(instants)
        at, rows = numbers.unique(return_inverse=True)
        values = self._paths(start.expand(runs, *start.shape), at.tolist(), generator)
        facts = {**self._metadata(), "law": {"exact": True}}
        paths = Trajectory(
            instants, numbers, values[..., rows.to(values.device), :], self.names, metadata=facts
        )
        return law_of(paths, level)

    def _begun(
        self, u0: object, runs: int, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, ...]]:
        """The start, checked, and the leading dimensions of so many paths from it."""
        _checks.positive_int("runs", runs)
        start = _checks.statistics(u0, len(self.names))
        _checks.generator(generator, start.device)
        several = runs == 1 and start.ndim > 1
        return start, start.shape[:-1] if several else (runs, *start.shape[:-1])

    def _paths(
        self, u0: Float[Tensor, "*batch k"], at: list[int], generator: torch.Generator | None
    ) -> Float[Tensor, "*batch A k"]:
        """A path from each start, after each of the numbers of steps ``at``, the first being 0."""
        starts = u0.reshape(-1, len(self.names))
        if at == [0]:
            return u0[..., None, :]
        # torch would share small arrays out among threads, which takes longer than the sums
        with _threads.threads(1 if len(starts) <= _SHARED else torch.get_num_threads()):
            values = torch.stack(self._walk(starts, at, generator), dim=1)
        if not bool(values.isfinite().all()):
            raise RuntimeError(
                "the statistics have become infinite: the step size is too large for this start"
            )
        return values.reshape(*u0.shape[:-1], len(at), len(self.names))

    def _numbers(self, instants: Float[Tensor, " T"]) -> Int[Tensor, " T"]:
        """The numbers of steps after the first instant that lead nearest to each."""
        if self.schedule is None:
            return ((instants - instants[0]) / self.lr).round().long()
        numbers = self.schedule.steps(instants, self.dim)
        if float(instants[0]) != 0:
            raise ValueError(
                "expected times that start at 0 for the law with a schedule, which starts there, "
                f"got {float(instants[0]):g}: give the start of the run"
            )
        return numbers

    def _times(self, steps: int) -> Float[Tensor, " S"]:
        """Limit times after 0, 1, ... steps."""
        if self.schedule is None:
            return torch.arange(steps + 1, dtype=torch.float64, device="cpu") * self.lr
        rates = self.schedule.rates(steps, self.dim)
        return torch.tensor([0.0, *rates], dtype=torch.float64, device="cpu").cumsum(0)

    def _factors(self, steps: int) -> list[float]:
        """What the schedule makes of the learning rates of the limit, at each step."""
        if self.schedule is None:
            return [1.0] * steps
        constant = self._constant()
        return [rate / constant for rate in self.schedule.rates(steps, self.dim)]

    def _constant(self) -> float:
        """The learning rate without a schedule."""
        return float(self.limit.step_size) / self.dim

    def _metadata(self) -> dict[str, Any]:
        schedule = {} if self.schedule is None else {"schedule": self.schedule.describe()}
        return {"parameters": {**self._parameters(), **schedule}}

    def _parameters(self) -> dict[str, Any]:
        settings = self.limit.settings
        return {
            "dim": self.dim,
            "lr": self.lr,
            "momentum": settings.momentum,
            "dampening": settings.dampening,
            "weight_decay": settings.weight_decay,
            "nesterov": settings.nesterov,
            "batch_size": settings.batch_size,
            **(self.limit.layers.describe() if self.limit.layers else {}),
        }

    @abstractmethod
    def _walk(
        self, starts: Float[Tensor, "S k"], at: list[int], generator: torch.Generator | None
    ) -> list[Float[Tensor, "S k"]]:
        """The statistics after each of the numbers of steps ``at``, the first of which is 0."""


class Frame:
    """Coordinates of rows, shape (rows, columns, S): d signal directions, then the frame's.

    Each of a step's B samples adds a direction, along which all of its part outside the frame
    lies. But a step moves K rows only, along G^T X with G (B, K) known from what is inside, and
    rows of X that are independent normals outside. With G^T = L Q, L lower triangular and Q's rows
    orthonormal, G^T X = L Z there, with K rows Z of independent normals. So where B is large the
    samples are drawn inside the frame alone, and K more vectors outside; `outside` gives L.

    Args:
        dim: n.
        signal: the rows' overlaps with the signal directions, ``(rows, d, S)``.
        across: their coordinates in a frame orthogonal to it, ``(rows, columns, S)``.
        samples: B, the number of samples of one step.
        moved: K, the rows that a step moves by combinations of its samples.
    """

    def __init__(
        self, dim: int, signal: Tensor, across: Tensor, samples: int, moved: int = 1
    ) -> None:
        self.d = signal.shape[1]
        self.space = dim - self.d  # dimensions orthogonal to the signal
        self.samples = samples
        #: whether the samples of a step are folded into fewer vectors outside the frame
        self.folded = samples > max(_MANY, _MANY_A_ROW * moved)
        #: directions that a step adds
        self.new = moved if self.folded else samples
        room = 2 * self.new if self.folded else self.new
        fresh = max(_FRESH, len(signal) // _ROWS_A_FRESH, room)
        columns = self.d + len(signal) + fresh
        self.rows = signal.new_zeros(len(signal), columns, signal.shape[2])
        self.rows[:, : self.d] = signal
        self.rows[:, self.d : self.d + across.shape[1]] = across
        #: columns in use
        self.used = self.d + across.shape[1]

    def vectors(
        self, generator: torch.Generator | None
    ) -> Iterator[list[Float[Tensor, "vectors columns S"]]]:
        """Isotropic standard normal vectors of n dimensions, for the steps until the frame is full.

        They come in blocks of one or several such stretches. They are given in the frame's
        coordinates; what lies outside the frame is given along new directions. The b-th sample of a
        step has its last component along the b-th new direction, and random components along the
        earlier ones. Where samples are folded, they come first, with nothing along the new
        directions, and then the vectors outside, with nothing else.
        """
        full, new, S = self.rows.shape[1], self.new, self.rows.shape[2]
        normals = Normals(generator, self.rows.device)
        yield self._drawn(range(self.used + new, full + 1, new), normals)
        widths = range(self.d + len(self.rows) + new, full + 1, new)  # after `_compress`
        times = max(1, min(_MOST_AHEAD, _AT_ONCE // max(1, new * sum(widths) * S)))
        while True:
            yield self._drawn([*widths] * times, normals)

    def _drawn(
        self, widths: Sequence[int], normals: Normals
    ) -> list[Float[Tensor, "vectors columns S"]]:
        """The vectors of steps after which so many columns are in use."""
        S, new = self.rows.shape[2], self.new
        sizes = [(self.samples, w - new, new, new) if self.folded else (new, w) for w in widths]
        counts = [sum(map(prod, zip(size[::2], size[1::2], strict=True))) for size in sizes]
        flat = normals.draw((sum(counts), S))
        vectors = [
            self._vectors(piece, w) for piece, w in zip(flat.split(counts), widths, strict=True)
        ]
        columns = [w - new + b for w in widths for b in range(new)]
        left = [self.space - (c - self.d) for c in columns]
        freedom = self.rows.new_tensor([dims for dims in left if dims > 0])
        lengths = iter(normals.lengths(freedom[:, None], (len(freedom), S)))
        for x in vectors:
            outside = x[-new:]
            for b in range(new):
                last = x.shape[1] - new + b
                if b + 1 < new:
                    outside[b, last + 1 :] = 0
                if last < self.d + self.space:
                    outside[b, last] = next(lengths)
            if x.shape[1] > self.d + self.space:  # there are no more directions
                x[:, self.d + self.space :] = 0
        return vectors

    def _vectors(
        self, normal: Float[Tensor, "count S"], width: int
    ) -> Float[Tensor, "vectors columns S"]:
        """Normal variables where a step's vectors have some, in so many columns."""
        if not self.folded:
            return normal.unflatten(0, (self.samples, width))
        B, new = self.samples, self.new
        x = normal.new_zeros(B + new, width, normal.shape[1])
        inside = B * (width - new)
        x[:B, : width - new] = normal[:inside].unflatten(0, (B, width - new))
        x[B:, width - new :] = normal[inside:].unflatten(0, (new, new))
        return x

    def take_up(
        self, vectors: Float[Tensor, "vectors columns S"]
    ) -> Float[Tensor, "rows columns S"]:
        """The rows in the directions of a step's vectors, which now belong to the frame."""
        if vectors.shape[1] < self.used + self.new:
            self._compress()
        self.used = vectors.shape[1]
        return self.rows[:, : self.used]

    def products(
        self, rows: Float[Tensor, "K columns S"], vectors: Float[Tensor, "vectors columns S"]
    ) -> Float[Tensor, "samples K S"]:
        """The products of rows with a step's samples."""
        if self.folded:
            return torch.einsum("kcs,bcs->bks", rows, vectors[: self.samples])
        return (rows * vectors[:, None]).sum(2)

    def outside(self, pull: Float[Tensor, "samples K S"]) -> Float[Tensor, "vectors K S"]:
        """How strongly rows are moved along all vectors, given how they are along the samples."""
        if not self.folded:
            return pull
        across = pull.transpose(0, 1).clone()
        _triangular(across)
        return torch.cat([pull, across[:, : self.new].transpose(0, 1)])

    def _compress(self) -> None:
        """Turn the frame until each row has one column more than the one before."""
        across = self.rows[:, self.d :]
        _triangular(across)
        self.used = self.d + len(across)


def _triangular(across: Float[Tensor, "rows columns S"]) -> None:
    """Rotate rows, in place, until each has one column more than the one before.

    By modified Gram-Schmidt, whose triangle is as accurate as Householder's, also of rows that are
    parallel (Bjorck and Paige, SIAM J. Matrix Anal. 13 (1992) 176); directions are not needed.
    """
    count = len(across)
    triangle = across.new_zeros(count, count, across.shape[2])
    for j in range(count):
        direction, others = across[j], across[j + 1 :]
        # a tenth of the time of linalg.vector_norm
        length = torch.sqrt(direction.square().sum(0), out=triangle[j, j])
        if j + 1 < count:
            direction /= length.clamp_min(1e-300)  # for a row of zeros: 0 / 1e-300
            along = torch.sum(others * direction, 1, out=triangle[j + 1 :, j])
            others.addcmul_(along[:, None], direction, value=-1)
    across[:, :count] = triangle[:, : across.shape[1]]
    across[:, count:] = 0
