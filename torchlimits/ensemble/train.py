"""`train`: many independent runs of online SGD on one problem, in one module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from torchlimits import _checks
from torchlimits.ensemble import own_optimizer
from torchlimits.ensemble.checkpoint import Checkpoint
from torchlimits.ensemble.ensemble import Ensemble
from torchlimits.ensemble.kept import Kept
from torchlimits.ensemble.own_optimizer import MakeOptimizer
from torchlimits.ensemble.processes import spawned
from torchlimits.ensemble.progress import Progressing, counted
from torchlimits.ensemble.shard import Shard
from torchlimits.problems.problem import Trainable
from torchlimits.record.track import track
from torchlimits.statistics.summary import StatisticFunction, SummaryStatistics
from torchlimits.trajectory import Trajectory


def train(
    problem: Trainable, *, step_size: float | None = None, time: float, runs: int = 1,
    momentum: float = 0.0, optimizer: MakeOptimizer | None = None, batch_size: int = 1,
    seed: int = 0, device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None, every: int | None = None,
    progress: bool | Callable[[int, int], object] = True,
    logdir: str | Path | None = None, path: str | Path | None = None,
    start: nn.Module | None = None, group: Any = None, processes: int = 1,
    compiled: bool | None = None, checkpoint: str | Path | None = None, max_runs: int = 16,
    statistics: SummaryStatistics | Mapping[str, StatisticFunction] | None = None,
) -> Trajectory:  # fmt: skip
    """Train ``runs`` independent networks on fresh data, recording statistics.

    By default they are trained by torch.optim.SGD. The runs are replicas in one module with the
    loss summed over them, so that one step of the optimizer is one step of each.

    On the CPU run r depends on the seed and r only, bit for bit: not on how many others there are,
    nor on threads or processes. (Runs are computed in groups of 32 for that. Where 32 runs have
    more than half a million numbers a step, parameters and data together, each run is computed by
    itself; its random numbers are then still its own, the arithmetic is the same to rounding.)
    Data are drawn ahead by other threads.

    On CUDA, two-layer networks on mixtures are trained by one kernel that keeps weights and data in
    registers for as many steps as are not recorded. In any other case the whole step is captured as
    a graph after a few steps, and replayed. Either way the host neither waits for the device nor
    draws. The same device, torch version, seed and number of runs give the same trajectory; run r
    does depend on the number of runs there, and differs from the CPU's.

    Args:
        problem: `GaussianMixture`, `SpikedTensor`, or any other
            `torchlimits.problems.problem.Trainable`.
        step_size: c_delta; the learning rate is c_delta / dim. Leave it out with ``optimizer``.
        time: the limit time to train for; ``time * dim / step_size`` steps, rounded.
        runs: the number of independent runs R, each from its own random start.
        momentum, batch_size: SGD's momentum, and the number of fresh samples in a step.
        optimizer: another optimizer than SGD with the problem's ridge: a function that makes it of
            parameters, ``lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)``, with one
            learning rate. It has to treat every entry of a parameter by itself. On the CPU only.
        seed: the seed of starts and data, an int >= 0.
        device, dtype: where, and in which real numbers, to train; float32 by default.
        every: the number of steps from one record to the next; by default there are about 1000.
        progress: show a progress bar with steps/s and the time left. Or a function, which is called
            now and then with the number of steps made and the number of all.
        logdir: show the run live in TensorBoard, in ``<logdir>/measured``.
        path: save the trajectory there, also if the training ends in an exception.
        start: a module whose parameters all runs start from; by default each has its own start.
        group: a torch.distributed process group whose ranks share the runs: all call `train` alike,
            rank 0 gets all runs, the others their own. See `torchlimits.ensemble.shard`.
        processes: the number of processes that share the runs on the CPU, this one included: cores
            are used better by processes than by threads. They take seconds to start, import the
            script (whose own work has to be under ``if __name__ == "__main__"``) and are given the
            problem by pickle. If one dies, the others stop.
        compiled: on the CPU, True makes loss and gradient one C++ function first, by
            `torch.compile`. That takes ten to twenty seconds the first time, and saves most of what
            autograd spends on its own account at every step, which is much for small networks.
            Trajectories are the same to rounding. Without a C++ compiler there is a warning, and no
            difference. By default gradients are autograd's, or the problem's own closed form where
            it has one, as `GaussianMixture` has. On CUDA, True asks for the problem's kernel and
            raises an error without one, False asks for autograd and torch.optim, captured; they
            agree in law. By default the kernel is taken where there is one.
        checkpoint: a file in which the training keeps what it needs to go on, written every ten
            seconds, at an interrupt and at SIGTERM, and removed at the end. If it is there already,
            the training goes on from it, and gives the same numbers as one that was never
            interrupted, bit for bit. With several processes there is a file for each,
            ``name.rank1.pt`` for ``name.pt``, until the runs of all are together: as many processes
            go on, and none trains again what it had. On the CPU only.
        max_runs: at most this many runs are shown in TensorBoard while they are trained.
        statistics: what to record in place of the problem's own, for instance
            ``problem.statistics | {"mine": f}``. Functions in a dict are of one network, and are
            evaluated for each run.

    Returns:
        The measured `Trajectory`, values ``(runs, T, k)``.

    Raises:
        ValueError: if an argument is out of range, there is no kernel for ``compiled=True``, or
            ``checkpoint`` is damaged, belongs to another training, or is asked for on a device
            other than the CPU.
        NonFiniteStatistic: if SGD diverges; its ``trajectory`` holds everything up to there.
        TypeError: if ``problem`` is not a problem, ``start`` not a module, ``statistics`` neither a
            `SummaryStatistics` nor a dict, or ``dtype`` not a type of real numbers.
        RuntimeError: if another process is gone; what the others have is saved, and the message
            says where, what is missing, and how to go on.

    Example:
        >>> import torchlimits as tl
        >>> problem = tl.GaussianMixture.binary(dim=50, snr=2.0)
        >>> tl.train(problem, step_size=1.0, time=1.0, runs=3, progress=False)
        Trajectory(7 statistics, 51 times, t = 0 ... 1, runs=3)
        >>> own = problem.statistics | {"norm": lambda p: p["first.weight"].norm()}
        >>> tl.train(problem, step_size=1.0, time=1.0, runs=3, statistics=own, progress=False)
        Trajectory(8 statistics, 51 times, t = 0 ... 1, runs=3)
        >>> def adam(parameters):
        ...     return torch.optim.Adam(parameters, lr=1 / 50)
        >>> tl.train(problem, optimizer=adam, time=1.0, runs=3, progress=False)
        Trajectory(7 statistics, 51 times, t = 0 ... 1, runs=3)
    """
    _check_problem(problem)
    _check_start(start)
    recorded = SummaryStatistics.of(problem.statistics if statistics is None else statistics)
    step_size = _step_size(problem, step_size, momentum, optimizer)
    steps = _steps(problem, step_size, time)
    for name, place in (("logdir", logdir), ("path", path), ("checkpoint", checkpoint)):
        _checks.path(name, place)
    if not _checks.non_negative("momentum", momentum) < 1:
        raise ValueError(f"expected momentum in [0, 1), got {momentum}")
    _checks.positive_int("runs", runs)
    _checks.positive_int("processes", processes)
    if optimizer is not None and _checks.device(device).type != "cpu":
        raise ValueError(
            f"expected device='cpu' with optimizer=, got {device}: elsewhere steps are captured, "
            "which is done for SGD; write a loop of your own with tl.track"
        )
    ensemble = Ensemble(problem, batch_size, seed, _checks.device(device), _float_dtype(dtype))
    every = max(1, steps // 1000) if every is None else every
    _checks.positive_int("max_runs", max_runs)
    training = _Training(
        ensemble, step_size, momentum, optimizer, steps, every, runs,
        progress, logdir, path, start, compiled, checkpoint, max_runs, recorded,
    )  # fmt: skip
    if checkpoint is not None and not ensemble.on_cpu:
        raise ValueError(
            f"expected checkpoint=None on {device}, got {checkpoint}: only trainings on the CPU "
            "can be continued"
        )
    if processes == 1:
        _check_group(group)
        return Shard.of(group, runs, ensemble.lanes).gathered(training, training.kept)
    if group is not None or not ensemble.on_cpu:
        raise ValueError(
            f"expected processes=1 with a group or on {device}, got {processes}: it is for "
            "runs on the CPU that this process starts alone"
        )
    return spawned(training, Shard.shares(processes, runs, ensemble.lanes), training.kept)


@dataclass(frozen=True)
class _Training:
    """What `train` was asked for, done for the runs of one process; see there."""

    ensemble: Ensemble
    step_size: float
    momentum: float
    optimizer: MakeOptimizer | None
    steps: int
    every: int
    runs: int
    progress: Progressing
    logdir: str | Path | None
    path: str | Path | None
    start: nn.Module | None
    compiled: bool | None
    checkpoint: str | Path | None
    max_runs: int
    statistics: SummaryStatistics

    @property
    def kept(self) -> Kept:
        """The files of all runs."""
        paths = [None if place is None else Path(place) for place in (self.path, self.checkpoint)]
        return Kept(*paths)

    def __call__(self, shard: Shard, check: Callable[[], None]) -> Trajectory:
        """Train the runs of a shard, and call ``check``, which may raise, after every step."""
        ensemble = self.ensemble
        model = ensemble.model(shard.groups)
        if self.start is not None:
            _copy_start(model, self.start)
        optimizer = self._optimizer(model)
        data = ensemble.data(shard.groups) if ensemble.on_cpu else None
        logdir, own = self.logdir if shard.first else None, shard.own(self.kept)
        with (
            _live_writer(logdir, self.steps, self.max_runs) as writer,
            track(
                model, optimizer, self._recorded(model, len(shard.runs)), every=self.every,
                writer=writer, path=own.path, parameters=self._facts(),
            ) as tracker,
        ):  # fmt: skip
            kept = None
            if own.checkpoint is not None and data is not None:
                kept = Checkpoint(
                    own.checkpoint, self._call(shard),
                    model=model, optimizer=optimizer, tracker=tracker, data=data,
                )  # fmt: skip
                kept.load()
            with (
                counted(self.steps, shard.first and self.progress, tracker.step) as ticks,
                nullcontext() if kept is None else kept.waits_for_steps(),
                closing(
                    ensemble.training(model, optimizer, tracker, shard.groups, self.compiled, data)
                ) as training,
            ):
                for _ in zip(ticks, training, strict=False):
                    check()
                    if kept is not None:
                        kept.between_steps()
            if kept is not None and shard.ranks > 1:
                # these runs are not trained again if those of another process are to go on
                kept.save()
        return tracker.trajectory()

    def _call(self, shard: Shard) -> dict[str, Any]:
        """What tells this training from others, in a form that JSON can hold."""
        place = {key: str(value) for key, value in self.ensemble.place.items()}
        own = {"steps": self.steps, "every": self.every, "momentum": self.momentum}
        runs = [shard.runs.start, shard.runs.stop]
        return {**self._facts(), **own, **place, "runs": runs, "compiled": bool(self.compiled)}

    def _recorded(self, model: nn.Module, runs: int) -> SummaryStatistics:
        """The statistics of each replica by itself, and only of replicas that are runs."""
        one_model = {name: p.ndim - 1 for name, p in model.named_parameters()}
        return self.statistics.of_copies(one_model).of_runs(runs)

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer is not None:
            return own_optimizer.made(self.optimizer, model.parameters())
        problem = self.ensemble.problem
        return torch.optim.SGD(
            model.parameters(),
            lr=self.step_size / problem.dim,
            momentum=self.momentum,
            weight_decay=getattr(problem, "ridge", 0.0),
            # one kernel, where torch has one
            fused=self.ensemble.device.type in ("cpu", "cuda"),
        )

    def _facts(self) -> dict[str, Any]:
        describe = getattr(self.ensemble.problem, "describe", dict[str, Any])
        own = {} if self.optimizer is None else {"optimizer": own_optimizer.options(self.optimizer)}
        return {
            **describe(),
            **own,
            "step_size": self.step_size,
            "batch_size": self.ensemble.batch_size,
            "runs": self.runs,
            "seed": self.ensemble.seed,
        }


def _check_problem(problem: object) -> None:
    if isinstance(problem, type):
        raise TypeError(
            f"expected a problem, got the class {problem.__name__}: make one, {problem.__name__}"
            "(...)"
        )
    needed = ("dim", "statistics", "model", "sample", "loss")
    missing = [name for name in needed if not hasattr(problem, name)]
    if missing:
        raise TypeError(
            f"expected a problem such as tl.GaussianMixture, got {type(problem).__name__}, which "
            f"has no {', '.join(missing)}"
        )


def _check_start(start: object) -> None:
    if not isinstance(start, (nn.Module, type(None))):
        raise TypeError(
            f"expected start as a module, got {type(start).__name__}: make it by problem.model(), "
            "and set its parameters, from which all runs start"
        )


def _check_group(group: object) -> None:
    known = distributed.ProcessGroup if distributed.is_available() else ()
    if group is not None and not isinstance(group, known):
        raise TypeError(
            f"expected group as a torch.distributed process group, got {type(group).__name__}: "
            "make one by torch.distributed.new_group()"
        )


def _float_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f"expected dtype as a type of real numbers such as torch.float64, got {dtype!r}: "
            "weights and gradients have no other"
        )
    return dtype


def _step_size(
    problem: Trainable, step_size: float | None, momentum: float, make: MakeOptimizer | None
) -> float:
    """c_delta, of SGD or of the user's own optimizer."""
    if (step_size is None) == (make is None):
        raise ValueError(
            "expected either step_size=c_delta, for SGD, or optimizer=, got both or none"
        )
    if make is None:
        assert step_size is not None
        return step_size
    if momentum:
        raise ValueError(f"expected momentum in the optimizer itself, got {momentum} beside it")
    return own_optimizer.learning_rate(make) * problem.dim


def _steps(problem: Trainable, step_size: float, time: float) -> int:
    _checks.positive("step_size", step_size, "it is c_delta = lr * dim")
    _checks.positive("time", time, "limit time is steps * lr")
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
            # moved first, as copy_ would expand it to all replicas on its own device
            own[name].copy_(parameter.to(own[name].device))


def _live_writer(
    logdir: str | Path | None, steps: int, max_runs: int
) -> AbstractContextManager[Any]:
    if logdir is None:
        return nullcontext()
    from torchlimits import tensorboard

    return tensorboard.Writer(Path(logdir) / "measured", total_steps=steps, max_runs=max_runs)
