"""`train`: many independent runs of online SGD on one problem, in one module."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor, nn

from torchlimits import checks
from torchlimits.statistics import SummaryStatistics
from torchlimits.tracking import track
from torchlimits.trajectory import Trajectory


@runtime_checkable
class Problem(Protocol):
    """What `train` needs of a problem."""

    statistics: SummaryStatistics

    @property
    def dim(self) -> int:
        """The dimension n of c_delta = lr * n."""
        ...

    @property
    def ridge(self) -> float:
        """alpha, the weight decay."""
        ...

    def model(
        self,
        *,
        replicas: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """A network at its random start."""
        ...

    def sample(
        self,
        batch: int,
        *,
        replicas: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Fresh data."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over the batch, summed over replicas."""
        ...

    def describe(self) -> dict[str, Any]:
        """Its parameters, JSON-able."""
        ...


def train(
    problem: Problem,
    *,
    step_size: float,
    time: float,
    runs: int = 1,
    momentum: float = 0.0,
    batch_size: int = 1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    every: int | None = None,
    progress: bool = True,
    logdir: str | Path | None = None,
    start: nn.Module | None = None,
) -> Trajectory:
    """Train ``runs`` independent networks by torch.optim.SGD on fresh data, recording statistics.

    The runs are replicas in one module with the loss summed over them, so that one step of
    torch.optim.SGD is one step of each.

    Args:
        problem: `GaussianMixture`, or anything with its methods.
        step_size: c_delta; the learning rate is c_delta / dim.
        time: limit time to train for; ``time * dim / step_size`` steps, rounded.
        runs: number of independent runs R, each from its own random start.
        momentum, batch_size: of SGD.
        seed: of starts and data; the same seed, runs, device and dtype give the same trajectory.
        device, dtype: of the training, float32 by default.
        every: record every so many steps; by default about 1000 times in all.
        progress: show a progress bar with steps/s and the time left.
        logdir: show the run live in TensorBoard, in ``<logdir>/measured``.
        start: a module whose parameters all runs start from; by default each has its own start.

    Returns:
        The measured `Trajectory`, values ``(runs, T, k)``.

    Raises:
        ValueError: if an argument is out of range.
        NonFiniteStatistic: if SGD diverges; its ``trajectory`` holds everything up to there.

    Example:
        >>> import torchlimits as tl
        >>> problem = tl.GaussianMixture.binary(dim=50, snr=2.0)
        >>> tl.train(problem, step_size=1.0, time=1.0, runs=3, progress=False)
        Trajectory(7 statistics, 51 times, t = 0 ... 1, runs=3)
    """
    steps = _steps(problem, step_size, time)
    checks.positive_int("runs", runs)
    device = checks.device(device)
    generator = torch.Generator(device=device).manual_seed(seed)
    model = problem.model(replicas=(runs,), generator=generator, device=device, dtype=dtype)
    if start is not None:
        _copy_start(model, start)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=step_size / problem.dim,
        momentum=momentum,
        weight_decay=problem.ridge,
    )
    every = max(1, steps // 1000) if every is None else every
    with (
        _live_writer(logdir, steps) as writer,
        track(model, optimizer, problem.statistics, every=every, writer=writer) as tracker,
        _step_counter(steps, progress) as ticks,
    ):
        for _ in ticks:
            x, y = problem.sample(batch_size, replicas=(runs,), generator=generator)
            loss = problem.loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    measured = tracker.trajectory()
    parameters = {
        **measured.metadata["parameters"],
        **problem.describe(),
        "step_size": step_size,
        "batch_size": batch_size,
        "runs": runs,
        "seed": seed,
    }
    return dataclasses.replace(measured, metadata={"parameters": parameters})


def _steps(problem: Problem, step_size: float, time: float) -> int:
    checks.positive("step_size", step_size, "it is c_delta = lr * dim")
    checks.positive("time", time, "limit time is steps * lr")
    steps = round(time * problem.dim / step_size)
    if steps < 1:
        raise ValueError(
            f"expected time for at least one step of size {step_size / problem.dim:g}, got {time:g}"
        )
    return steps


def _copy_start(model: nn.Module, start: nn.Module) -> None:
    """Give every replica the parameters of one module."""
    own = dict(model.named_parameters())
    given = dict(start.named_parameters())
    if {n: p.shape[1:] for n, p in own.items()} != {n: p.shape for n, p in given.items()}:
        raise ValueError(
            "expected start with the parameters of problem.model(), got "
            f"{ {n: tuple(p.shape) for n, p in given.items()} }: make it by problem.model()"
        )
    with torch.no_grad():
        for name, parameter in given.items():
            own[name].copy_(parameter)


def _live_writer(logdir: str | Path | None, steps: int) -> AbstractContextManager[Any]:
    if logdir is None:
        return nullcontext()
    from torchlimits import tensorboard

    return tensorboard.Writer(Path(logdir) / "measured", total_steps=steps)


class _Speed(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} steps/s")


@contextmanager
def _step_counter(steps: int, progress: bool) -> Iterator[Iterator[int]]:
    """range(steps), under a progress bar."""
    if not progress:
        yield iter(range(steps))
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,} steps"),
        _Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=steps)

        def counted() -> Iterator[int]:
            for step in range(steps):
                yield step
                # the bar takes a lock: telling it of every step would cost as much as the step
                if step % 64 == 63 or step == steps - 1:
                    bar.update(task, completed=step + 1)

        yield counted()
