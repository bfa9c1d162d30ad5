"""What must hold on CUDA, as small functions that a test or a benchmark can run one by one.

Every check takes a device, raises AssertionError with what it found where something does not hold,
and may return one line about what it measured. Most run on the CPU as well, as a rehearsal; those
that are about streams, graphs or the memory of a GPU are marked `cuda_only`. The most useful come
first; those that may leave a broken capture behind come last.

    for one in CHECKS:
        print(one.__name__, one("cuda"))
"""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import torchlimits as tl
from torchlimits.dynamics import solver
from torchlimits.ensemble.cuda_graph import replayed
from torchlimits.estimation.estimate import Estimated
from torchlimits.record import ring

#: bound on every |z|; a check that compares a thousand numbers fails by chance once in 150 times
Z = 4.5
STEPS = 12
#: cycles of a kernel that does nothing, about ten milliseconds
_NAP = 20_000_000
#: the ring on the device, and statistics evaluated in the hook because no snapshot fits
_RINGS = (64 * 2**20, 1)

Remark = str | None
Work = Callable[[], None]


class Check:
    """One check, called with a device; ``cuda_only`` where it means nothing on the CPU."""

    def __init__(self, function: Callable[[str], Remark], cuda_only: bool) -> None:
        self.function, self.cuda_only = function, cuda_only
        self.__name__, self.__doc__ = function.__name__, function.__doc__

    def __call__(self, device: str) -> Remark:
        """What was measured, if anything; AssertionError if the check does not hold."""
        return self.function(device)


#: in the order to run them in
CHECKS: list[Check] = []


def check(*, cuda_only: bool = False) -> Callable[[Callable[[str], Remark]], Check]:
    """Put a function among the checks."""

    def listed(function: Callable[[str], Remark]) -> Check:
        CHECKS.append(Check(function, cuda_only))
        return CHECKS[-1]

    return listed


# --- what the checks have in common ---------------------------------------------------------------


def _xor(dim: int = 50) -> tl.GaussianMixture:
    return tl.GaussianMixture.xor(dim=dim, width=4, snr=4.0, ridge=0.05)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.5)


class Loop:
    """A user's training loop, with its parameters copied by hand after every step.

    Statistics are all entries of all parameters, which have to come out bit for bit.
    """

    def __init__(
        self,
        device: str,
        optimizer: Callable[[Any], torch.optim.Optimizer] = _sgd,
        *,
        tracked: bool = True,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))
        for p in self.model.parameters():
            nn.init.normal_(p, std=0.3, generator=generator)
        self.model.to(device, dtype)
        self.optimizer = optimizer(self.model.parameters())
        self.data = torch.randn(STEPS, 4, 16, generator=generator).to(device, dtype)
        self.rows = [self.flat()]
        self.tracker = tl.track(self.model, self.optimizer, self.entries(), **options)
        if not tracked:
            self.tracker.close()

    def entries(self) -> dict[str, Any]:
        """The statistics."""
        return {name: tl.statistics.entries(name) for name, _ in self.model.named_parameters()}

    def flat(self) -> Tensor:
        """A copy of all parameters, made on the present stream."""
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def stepped(self) -> None:
        """Note down a step by hand."""
        self.rows.append(self.flat())

    def backward(self, x: Tensor, model: Callable[[Tensor], Tensor] | None = None) -> None:
        """Fresh gradients, through the model or a wrapper of it."""
        self.optimizer.zero_grad()
        (model or self.model)(x).square().mean().backward()

    def run(self, data: Iterable[Tensor] | None = None) -> Loop:
        """A step for each batch."""
        for x in self.data if data is None else data:
            self.backward(x)
            self.optimizer.step()
            self.stepped()
        return self

    def check(self, found: tl.Trajectory | None = None) -> None:
        """Check that what was recorded, or ``found`` at some moment, is the copies, bit for bit."""
        found = self.tracker.trajectory() if found is None else found
        expected = torch.stack(self.rows[: len(found)]).double().cpu()
        assert found.steps.tolist() == list(range(len(found))), f"steps {found.steps.tolist()}"
        wrong = (found.values != expected).any(-1).nonzero().flatten().tolist()
        assert not wrong, f"rows {wrong} are not the parameters after these steps"


def _same(one: Tensor, other: Tensor, what: str) -> None:
    assert one.shape == other.shape, f"{what}: shapes {tuple(one.shape)}, {tuple(other.shape)}"
    gap = float((one.double() - other.double()).abs().max())
    assert torch.equal(one, other), f"{what}: differ by up to {gap:.3g}"


def _close(one: Tensor, other: Tensor, what: str, rtol: float, atol: float) -> float:
    one, other = one.double().cpu(), other.double().cpu()
    gap = float(((one - other).abs() / (atol + rtol * other.abs())).max())
    assert gap <= 1, f"{what}: {gap:.3g} times the tolerance rtol={rtol:g}, atol={atol:g}"
    return gap


def _moments(runs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and variance over the first dimension, and the variances of both."""
    runs = runs.double().cpu()
    centred = runs - runs.mean(0)
    variance = runs.var(0)
    return (
        runs.mean(0),
        variance,
        variance / len(runs),
        ((centred**4).mean(0) - variance**2) / len(runs),
    )


def _discrepancy(one: Tensor, other: Tensor) -> float:
    """The largest abs(z) between means and between variances of independent runs, (runs, ...)."""
    mean, variance, of_mean, of_variance = _moments(one)
    mean_2, variance_2, of_mean_2, of_variance_2 = _moments(other)
    z = torch.stack(
        [
            (mean - mean_2) / (of_mean + of_mean_2).sqrt(),
            (variance - variance_2) / (of_variance + of_variance_2).sqrt(),
        ]
    )
    return float(z.abs().max())


def _one_law(one: Tensor, other: Tensor, what: str) -> float:
    z = _discrepancy(one, other)
    assert z < Z, f"{what}: two laws, |z| = {z:.2f}"
    return z


def _z(one: Estimated, other: Estimated, what: str) -> float:
    """Compare two independent estimates of one quantity."""
    error = (one.standard_error.cpu().square() + other.standard_error.cpu().square()).sqrt()
    gap = (one.value.cpu() - other.value.cpu()).abs()
    z = float((gap / error.clamp_min(1e-12)).max())
    assert z < Z, f"{what}: |z| = {z:.2f} between the device and the CPU"
    return z


def _ways(device: str) -> tuple[bool, ...]:
    """``compiled=`` of `train`: steps of autograd, and the kernel where there is one."""
    return (False,) if device == "cpu" else (False, True)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


@contextmanager
def _synchronisation_raises() -> Generator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _stepping(
    device: str,
    drive: Callable[[Work, torch.Generator, tl.Tracker], None],
    *,
    momentum: float = 0.0,
    batch: int = 1,
) -> tuple[tl.Trajectory, Tensor]:
    """Eight replicas of XOR, and what the generator draws next; ``drive`` takes the steps."""
    problem = _xor()
    generator = torch.Generator(device).manual_seed(7)
    model = problem.model(replicas=(8,), generator=generator, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=momentum, fused=True)

    def step() -> None:
        x, y = problem.sample(batch, replicas=(8,), generator=generator, device=device)
        optimizer.zero_grad()
        problem.loss(model(x), y).backward()
        optimizer.step()

    with tl.track(model, optimizer, problem.statistics) as tracker:
        drive(step, generator, tracker)
    after = torch.randn(5, generator=generator, device=device)
    return tracker.trajectory(), after


def _eager(step: Work, generator: torch.Generator, tracker: tl.Tracker) -> None:
    for _ in range(2 * STEPS):
        step()


def _captured(step: Work, generator: torch.Generator, tracker: tl.Tracker) -> None:
    with closing(replayed(step, generator, tracker)) as steps:
        for _ in zip(range(2 * STEPS), steps, strict=False):
            pass


# --- `train`: steps captured as a graph -----------------------------------------------------------


@check()
def captured_steps_equal_eager_ones_bit_for_bit(device: str) -> Remark:
    """Follow a run from eager steps to replayed ones, and the generator's draws after them."""
    for momentum in (0.0, 0.9):
        for batch in (1, 4):
            options: dict[str, Any] = {"momentum": momentum, "batch": batch}
            eager, next_eager = _stepping(device, _eager, **options)
            captured, next_captured = _stepping(device, _captured, **options)
            _same(captured.values, eager.values, f"trajectories with {options}")
            _same(next_captured, next_eager, f"what the generator draws next with {options}")
    assert not torch.equal(eager.initial, eager.final), "nothing moved"
    return None


@check()
def trained_runs_have_the_law_of_those_on_the_cpu(device: str) -> Remark:
    """Means and variances of 22 statistics at four times: 176 numbers; another step size fails.

    By the kernel, where there is one, and by steps of autograd.
    """
    problem = _xor(100)
    start = problem.model(generator=torch.Generator().manual_seed(0))

    def runs(device: str, seed: int, step_size: float = 1.0, compiled: bool = False) -> Tensor:
        path = tl.train(
            problem, step_size=step_size, time=2.0, runs=1000, seed=seed, device=device,
            every=round(50 / step_size), start=start, progress=False, compiled=compiled,
        )  # fmt: skip
        assert torch.allclose(path.times, torch.tensor([0, 0.5, 1, 1.5, 2]).double())
        return path.values[:, 1:]

    on_cpu = runs("cpu", 1)
    remarks: list[str] = []
    for compiled in _ways(device):
        z = _one_law(runs(device, 0, compiled=compiled), on_cpu, f"compiled={compiled}")
        control = _discrepancy(runs(device, 0, step_size=2.0, compiled=compiled), on_cpu)
        assert control > Z, f"another step size is not told apart: |z| = {control:.2f}"
        remarks.append(f"{z:.2f}, with another step size {control:.0f}")
    return f"largest |z| of 176: {'; '.join(remarks)}"


@check()
def the_seed_decides_the_runs(device: str) -> Remark:
    def values(seed: int, compiled: bool) -> Tensor:
        return tl.train(
            _xor(), step_size=1.0, time=0.5, runs=5, seed=seed, device=device, progress=False,
            compiled=compiled,
        ).values  # fmt: skip

    for compiled in _ways(device):
        _same(values(3, compiled), values(3, compiled), "the same seed")
        other = values(4, compiled)
        assert not torch.equal(values(3, compiled), other), "another seed gives the same runs"
    return None


@check()
def a_flush_in_the_middle_changes_no_row(device: str) -> Remark:
    """`Tracker.flush` and `Tracker.trajectory` read the rows while steps are replayed."""

    def looking(step: Work, generator: torch.Generator, tracker: tl.Tracker) -> None:
        with closing(replayed(step, generator, tracker)) as steps:
            for i, _ in zip(range(2 * STEPS), steps, strict=False):
                if i % 5 == 1:
                    tracker.flush()
                if i % 7 == 3:
                    assert len(tracker.trajectory()) == i + 2, "rows are missing"

    found, _ = _stepping(device, looking)
    expected, _ = _stepping(device, _captured)
    _same(found.values, expected.values, "with and without looking")
    return None


@check()
def an_exception_in_training_keeps_the_rows_before_it_and_breaks_nothing(device: str) -> Remark:
    """Another training in the same process is as the first; streams and generators are restored."""
    for compiled in _ways(device):
        _survives_exceptions(device, compiled)
    return None


def _survives_exceptions(device: str, compiled: bool) -> None:
    options: dict[str, Any] = {
        "step_size": 1.0, "time": 0.5, "runs": 5, "every": 1, "device": device, "progress": False,
        "compiled": compiled,
    }  # fmt: skip
    whole = tl.train(_xor(), **options)
    on_cuda = device != "cpu"
    before = torch.cuda.get_rng_state() if on_cuda else torch.get_rng_state()
    stepped = tl.Tracker.stepped
    with tempfile.TemporaryDirectory() as folder:
        # in the eager steps, and among the replayed ones
        for error, last in ((RuntimeError, 2), (RuntimeError, 11), (KeyboardInterrupt, 11)):
            path = Path(folder) / f"{error.__name__}{last}.npz"

            def failing(
                tracker: tl.Tracker, last: int = last, error: type[BaseException] = error
            ) -> None:
                stepped(tracker)
                if tracker.step == last:
                    raise error("mine")

            raised = ""
            with mock.patch.object(tl.Tracker, "stepped", failing):
                try:
                    tl.train(_xor(), path=path, **options)
                except (RuntimeError, KeyboardInterrupt) as found:
                    raised = f"{type(found).__name__}: {found}"
            assert raised == f"{error.__name__}: mine", f"raised {raised!r}"
            kept = tl.Trajectory.load(path)
            assert kept.steps.tolist() == list(range(last + 1)), f"kept {kept.steps.tolist()}"
            _same(kept.values, whole.values[:, : last + 1], "rows before the exception")
            if on_cuda:
                now, usual = torch.cuda.current_stream(), torch.cuda.default_stream()
                assert now == usual, "the current stream is not the default one"
    _same(tl.train(_xor(), **options).values, whole.values, "a training after the exceptions")
    after = torch.cuda.get_rng_state() if on_cuda else torch.get_rng_state()
    _same(after, before, "the state of the default generator")


@check()
def the_generator_goes_on_after_an_exception(device: str) -> Remark:
    """Its state is what as many eager steps would leave."""

    def failing(step: Work, generator: torch.Generator, tracker: tl.Tracker) -> None:
        try:
            with closing(replayed(step, generator, tracker)) as steps:
                for i, _ in zip(range(2 * STEPS), steps, strict=False):
                    if i == 9:
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            return

    def eager(step: Work, generator: torch.Generator, tracker: tl.Tracker) -> None:
        for _ in range(10):
            step()

    found, after = _stepping(device, failing)
    expected, after_eager = _stepping(device, eager)
    _same(found.values, expected.values, "rows")
    _same(after, after_eager, "what the generator draws next")
    return None


# --- `track`: loops that somebody else wrote ------------------------------------------------------


@check(cuda_only=True)
def recorded_steps_do_not_synchronise(device: str) -> Remark:
    loop = Loop(device)
    loop.run(loop.data[:2])
    with _synchronisation_raises():
        loop.run(loop.data[2:])
    loop.check()
    return None


@check(cuda_only=True)
def recorded_steps_with_the_problems_own_statistics_do_not_synchronise(device: str) -> Remark:
    """Statistics in the hook too: their directions must not be copied to the device each time."""
    problem: Any
    for problem in (_xor(), tl.SpikedTensor(dim=50, order=2, snr=2.0)):
        model = problem.model(device=device)
        # two snapshots do not fit, the rows of several steps do
        for max_bytes in (_RINGS[0], 2 * sum(p.nbytes for p in model.parameters()) - 1):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
            tracker = tl.track(model, optimizer, problem.statistics, max_bytes=max_bytes)
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
            try:
                with _synchronisation_raises():
                    optimizer.step()
            except RuntimeError as error:
                raise AssertionError(f"{problem}, max_bytes={max_bytes}: {error}") from error
            assert len(tracker.trajectory()) == 3
    return None


@check()
def a_scaler_skips_steps_that_are_not_recorded(device: str) -> Remark:
    """Mixed precision, fused and not: rows are of real steps, weights those without tracker."""
    kind = torch.device(device).type
    for dtype in (torch.float16, torch.bfloat16):
        for fused in (False, True):

            def sgd(parameters: Any, fused: bool = fused) -> torch.optim.Optimizer:
                return torch.optim.SGD(parameters, lr=0.05, momentum=0.5, fused=fused)

            loops = [Loop(device, sgd, tracked=tracked) for tracked in (True, False)]
            for loop in loops:
                scaler = torch.amp.GradScaler(kind, init_scale=64.0)  # pyright: ignore
                for i, x in enumerate(loop.data):
                    loop.optimizer.zero_grad()
                    with torch.autocast(kind, dtype):
                        output = loop.model(x).float()
                    loss = output.square().mean() * (torch.inf if i == 4 else 1.0)
                    scaler.scale(loss).backward()
                    scaler.step(loop.optimizer)
                    scaler.update()
                    if i != 4:
                        loop.stepped()
            watched, alone = loops
            watched.check()
            assert watched.tracker.step == STEPS - 1, f"{watched.tracker.step} steps counted"
            _same(watched.flat(), alone.flat(), f"weights in {dtype}, fused={fused}")
    return None


def _optimizers(device: str) -> dict[str, Callable[[Any], torch.optim.Optimizer]]:
    optim, on_cuda = torch.optim, device != "cpu"
    chosen: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "SGD": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
        "SGD fused": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
        "SGD foreach": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
        "Adam fused": lambda p: optim.Adam(p, lr=0.05, fused=True),
        "Adam foreach": lambda p: optim.Adam(p, lr=0.05, foreach=True),
        "AdamW fused": lambda p: optim.AdamW(p, lr=0.05, fused=True),
    }
    if on_cuda:
        chosen["Adam capturable"] = lambda p: optim.Adam(
            p, lr=torch.tensor(0.05, device=device), capturable=True
        )
        chosen["Adam capturable, fused"] = lambda p: optim.Adam(
            p, lr=torch.tensor(0.05, device=device), capturable=True, fused=True
        )
    return chosen


@check()
def every_optimizer_is_recorded_as_it_is(device: str) -> Remark:
    """Fused, foreach, capturable with a learning rate on the device; limit time; the weights."""
    for name, optimizer in _optimizers(device).items():
        for max_bytes in _RINGS:
            loop = Loop(device, optimizer, max_bytes=max_bytes).run()
            try:
                loop.check()
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error
            time = loop.tracker.time
            assert abs(time / (0.05 * STEPS) - 1) < 1e-6, f"{name}: t = {time} after {STEPS} steps"
            _same(loop.flat(), Loop(device, optimizer, tracked=False).run().flat(), name)
    return None


@check(cuda_only=True)
def a_learning_rate_on_the_device_is_read(device: str) -> Remark:
    """Limit time needs that; the remark says what it costs."""
    loop = Loop(device, _optimizers(device)["Adam capturable"])
    loop.run(loop.data[:2])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            loop.run(loop.data[2:])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    loop.check()
    count = sum("synchroniz" in str(one.message) for one in caught)
    return f"{count} synchronisations in {STEPS - 2} steps with lr as a CUDA tensor"


@check(cuda_only=True)
def a_loop_on_a_stream_of_its_own_has_no_stale_rows(device: str) -> Remark:
    """Rows are asked for on the default stream while the last steps have not been taken yet."""
    for max_bytes in _RINGS:
        loop = Loop(device, max_bytes=max_bytes)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for x in loop.data:
                loop.backward(x)
                torch.cuda._sleep(_NAP)  # pyright: ignore[reportPrivateUsage]
                loop.optimizer.step()
                loop.stepped()
        found = loop.tracker.trajectory()
        torch.cuda.synchronize()
        try:
            loop.check(found)
        except AssertionError as error:
            raise AssertionError(f"max_bytes={max_bytes}: {error}") from error
        assert len(found) == STEPS + 1
    return None


@check()
def another_thread_sees_no_stale_rows(device: str) -> Remark:
    """A thread asks after every step, on its current stream; the loop is on a stream of its own."""
    on_cuda = device != "cpu"
    for own_stream in (False, True) if on_cuda else (False,):
        loop, found = Loop(device), list[tl.Trajectory]()
        stream: Any = torch.cuda.Stream(device) if own_stream else None
        if own_stream:
            stream.wait_stream(torch.cuda.current_stream())
        with (
            ThreadPoolExecutor(1) as pool,
            torch.cuda.stream(stream) if own_stream else nullcontext(),
        ):
            for x in loop.data:
                loop.backward(x)
                if on_cuda:
                    torch.cuda._sleep(_NAP)  # pyright: ignore[reportPrivateUsage]
                loop.optimizer.step()
                loop.stepped()
                found.append(pool.submit(loop.tracker.trajectory).result())
        _synchronize(device)
        for count, path in enumerate(found, 2):
            assert len(path) == count, f"{len(path)} rows after {count - 1} steps"
            try:
                loop.check(path)
            except AssertionError as error:
                raise AssertionError(f"own stream: {own_stream}: {error}") from error
    return None


@check()
def a_thread_that_looks_all_the_time_disturbs_nothing(device: str) -> Remark:
    loop, done = Loop(device), threading.Event()

    def look() -> int:
        looks = 0
        while not done.is_set():
            loop.check(loop.tracker.trajectory()) if looks < 3 else loop.tracker.trajectory()
            looks += 1
        return looks

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            for x in loop.data:
                loop.backward(x)
                with loop.tracker._lock:  # a row of both or of neither  # pyright: ignore[reportPrivateUsage]
                    loop.optimizer.step()
                    loop.stepped()
        finally:
            done.set()
        looks = looking.result()
    loop.check()
    return f"{looks} looks in {STEPS} steps"


@check(cuda_only=True)
def a_graph_of_the_user_is_recorded(device: str) -> Remark:
    """Forward, backward and optimizer step in one graph; `remove`, then `stepped` a replay."""
    for max_bytes in _RINGS:
        loop = Loop(device, _optimizers(device)["Adam capturable"], max_bytes=max_bytes)
        x, stream = loop.data[0].clone(), torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loop.run(loop.data[:3])
        torch.cuda.current_stream().wait_stream(stream)
        loop.tracker.remove()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loop.backward(x)
            loop.optimizer.step()
        for fresh in loop.data[3:]:
            x.copy_(fresh)
            graph.replay()
            loop.tracker.stepped()
            loop.stepped()
        loop.check()
        assert loop.tracker.step == STEPS
        assert not torch.equal(loop.rows[-1], loop.rows[-2]), "replays did not train"
    return None


@check()
def a_checkpoint_goes_from_one_device_to_another(device: str) -> Remark:
    """Saved on the device, resumed on the CPU, and resumed on the device again."""
    loop, rows = Loop(device, dtype=torch.float64), list[Tensor]()
    stored = None
    for place, part in ((device, slice(0, 4)), ("cpu", slice(4, 8)), (device, slice(8, STEPS))):
        loop = Loop(place, dtype=torch.float64)
        if stored is not None:
            stored.seek(0)
            state = torch.load(stored, map_location=place)
            loop.model.load_state_dict(state["model"])
            loop.optimizer.load_state_dict(state["optimizer"])
            loop.tracker.load_state_dict(state["tracker"])
            loop.rows = []
        loop.run(loop.data[part])
        rows += [row.cpu() for row in loop.rows]
        stored = io.BytesIO()
        parts = {"model": loop.model, "optimizer": loop.optimizer, "tracker": loop.tracker}
        torch.save({name: one.state_dict() for name, one in parts.items()}, stored)
    loop.rows = rows
    loop.check()
    assert len(loop.tracker.trajectory()) == STEPS + 1
    return None


def _probed(device: str, seed: int) -> tuple[tl.Tracker, Callable[[int], None]]:
    """Training of XOR with a probe every five steps, on data that do not depend on the device."""
    problem = _xor()
    data = tl.GaussianMixture.xor(dim=50, width=4, snr=4.0, ridge=0.05, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    model = problem.model(generator=generator, dtype=torch.float64).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    probe = tl.Probe(problem.loss, problem.sample, every=5, samples=400, seed=seed)
    tracker = tl.track(model, optimizer, problem.statistics, probe=probe)

    def train(steps: int) -> None:
        for _ in range(steps):
            x, y = data.sample(1, generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x.to(device)), y.to(device)).backward()
            optimizer.step()

    return tracker, train


@check()
def a_checkpoint_with_a_probe_is_loaded_to_the_device(device: str) -> Remark:
    """Use ``torch.load(..., map_location=device)``, which moves the generator's state as well."""
    tracker, train = _probed(device, 0)
    train(10)
    stored = io.BytesIO()
    torch.save(tracker.state_dict(), stored)
    stored.seek(0)
    other, _ = _probed(device, 0)
    other.load_state_dict(torch.load(stored, map_location=device))
    one, two = tracker.explanation().drift, other.explanation().drift
    _same(one.values, two.values, "the drift explained")
    return None


@check()
def a_probe_explains_the_same_as_on_the_cpu(device: str) -> Remark:
    """The change to rounding, drift and corrector within their standard errors."""
    parts: list[dict[str, tl.Trajectory]] = []
    for seed, place in enumerate((device, "cpu")):
        tracker, train = _probed(place, seed)
        train(20)
        parts.append(tracker.explanation().parts())
    one, other = parts
    _close(one["change"].values, other["change"].values, "the change", 1e-9, 1e-11)
    zs = [_z(_with_std(one[name]), _with_std(other[name]), name) for name in ("drift", "corrector")]
    return f"largest |z|: {max(zs):.2f}"


def _with_std(path: tl.Trajectory) -> Estimated:
    assert path.std is not None
    return Estimated(path.values, path.std)


@check()
def statistics_may_be_of_any_type(device: str) -> Remark:
    """Statistics in float64, of Python's numbers, of tensors on the device, of integers."""
    scale = torch.linspace(0, 1, 16, device=device)
    statistics: dict[str, Any] = {
        "double": lambda p: p["0.weight"].double().square().sum().sqrt(),
        "scalar": lambda p: 2.0 * p["0.weight"].sum() + 1,
        "own": lambda p: p["0.weight"] @ scale,
        "count": lambda p: (p["0.weight"] > 0).sum(),
        "half": lambda p: p["0.bias"].half(),
    }
    for max_bytes in _RINGS:
        loop = Loop(device)
        tracker = tl.track(loop.model, loop.optimizer, statistics, max_bytes=max_bytes)
        kept = [copy.deepcopy(dict(loop.model.named_parameters()))]
        for x in loop.data:
            loop.run([x])
            kept.append(copy.deepcopy(dict(loop.model.named_parameters())))
        rows = [[f(p).detach().double().flatten() for f in statistics.values()] for p in kept]
        expected = torch.stack([torch.cat(row) for row in rows])
        found = tracker.trajectory().values
        _close(found, expected, f"max_bytes={max_bytes}", 1e-5, 1e-5)
        column = found[:, 10:11]
        _same(column, expected[:, 10:11].cpu(), "counts")
    return None


@check()
def statistics_may_return_numbers_from_the_cpu(device: str) -> Remark:
    """``torch.tensor(x.item())`` beside statistics that stay on the device."""
    statistics: dict[str, Any] = {
        "norm": lambda p: p["0.weight"].norm(),
        "sum": lambda p: torch.tensor(p["0.weight"].sum().item()),
    }
    for max_bytes in _RINGS:
        loop = Loop(device)
        try:
            tracker = tl.track(loop.model, loop.optimizer, statistics, max_bytes=max_bytes)
        except RuntimeError as error:
            raise AssertionError(f"torch's own words: {error}") from error
        loop.run()
        weight = loop.model.get_parameter("0.weight").detach()
        expected = torch.stack([weight.norm(), weight.sum()])
        _close(tracker.trajectory().final, expected, "the last row", 1e-5, 1e-5)
    return None


@check()
def the_first_runs_are_recorded_of_many_replicas(device: str) -> Remark:
    """Record by `SummaryStatistics.of_runs`, in the ring and in the hook."""
    problem = _xor()
    for max_bytes in _RINGS:
        generator = torch.Generator(device).manual_seed(0)
        model = problem.model(replicas=(5,), generator=generator, device=device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        statistics = problem.statistics
        trackers = [
            tl.track(model, optimizer, some, max_bytes=max_bytes)
            for some in (statistics, statistics.of_runs(3))
        ]
        for _ in range(4):
            x, y = problem.sample(1, replicas=(5,), generator=generator, device=device)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
        every, first = (tracker.trajectory().values for tracker in trackers)
        _same(first, every[:3], "the first three of five runs")
    return None


@check()
def copies_in_one_module_train_as_each_by_itself(device: str) -> Remark:
    """`replicate`, in float64: to rounding."""
    loops = [Loop(device, dtype=torch.float64) for _ in range(3)]
    for i, loop in enumerate(loops):
        loop.data = loop.data.roll(i, 0)
        loop.run()
    alone = Loop(device, dtype=torch.float64)
    model = tl.replicate([copy.deepcopy(alone.model) for _ in loops])
    optimizer = _sgd(model.parameters())
    tracker = tl.track(model, optimizer, alone.entries())
    data = torch.stack([loop.data for loop in loops], 1)
    for x in data:
        optimizer.zero_grad()
        # the mean over each one's batch, summed
        model(x).square().mean((1, 2)).sum().backward()
        optimizer.step()
    expected = torch.stack([torch.stack(loop.rows) for loop in loops])
    _close(tracker.trajectory().values, expected, "three copies", 1e-9, 1e-11)
    return None


@check()
def steps_of_normalized_sgd_have_the_law_of_those_on_the_cpu(device: str) -> Remark:
    problem = tl.SpikedTensor(dim=30, order=2, snr=2.0)

    def final(device: str, seed: int, lr: float = 1 / 30) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        model = problem.model(at=(0.3, 1.0), replicas=(800,), generator=generator, device=device)
        optimizer = tl.NormalizedSGD(model.parameters(), lr=lr)
        with tl.track(model, optimizer, problem.statistics, every=10) as tracker:
            for _ in range(30):
                _, target = problem.sample(1, replicas=(800,), generator=generator, device=device)
                optimizer.zero_grad()
                problem.loss(model(), target).backward()
                optimizer.step()
        return tracker.trajectory().values[:, 1:]

    on_cpu = final("cpu", 1)
    z = _one_law(final(device, 0), on_cpu, "NormalizedSGD")
    control = _discrepancy(final(device, 0, lr=2 / 30), on_cpu)
    assert control > Z, f"another step size is not told apart: |z| = {control:.2f}"
    return f"largest |z| of 12: {z:.2f}, with another step size {control:.0f}"


# --- what is predicted and estimated --------------------------------------------------------------


@check()
def solutions_are_those_of_the_cpu(device: str) -> Remark:
    """Closed forms, Gaussian expectations, a band, gradient flow, diffusion and slopes: 1e-6."""
    gap = 0.0
    spiked = tl.SpikedTensor(dim=200, order=3, snr=6.0).dynamics(step_size=1.0)
    problem = tl.GaussianMixture.binary(dim=200, snr=4.0, ridge=0.05)
    binary = problem.dynamics(step_size=1.0, level=-3)
    cases = (
        (spiked, torch.tensor([[0.5, 0.8], [-0.3, 1.2]])),
        (binary, problem.starts(2, generator=torch.Generator().manual_seed(0))),
    )
    for dynamics, u0 in cases:
        name, u0 = type(dynamics).__name__, u0.double()
        # a band of the mixture takes half a minute on a CPU: what it is made of has to do
        several: list[dict[str, Any]] = [{}, {"corrector": False}, {"band": True}]
        for options in several if dynamics is spiked else several[:2]:
            one, other = (
                dynamics.solve(u0.to(place), [0.0, 0.2, 0.4], **options)
                for place in (device, "cpu")
            )
            what = f"{name}, {options}"
            gap = max(gap, _close(one.values, other.values, what, 1e-6, 1e-7))
            if one.std is not None and other.std is not None:
                _close(one.std, other.std, f"the band of {what}", 1e-4, 1e-6)
        there = u0.to(device)
        _close(dynamics.diffusion(there), dynamics.diffusion(u0), f"{name}, D", 1e-6, 1e-7)
        _close(dynamics.jacobian(there), dynamics.jacobian(u0), f"{name}, jacobian", 1e-6, 1e-7)
    return f"largest gap: {gap:.2g} of the tolerance 1e-6"


@check()
def starts_that_limit_the_steps_are_solved_by_themselves(device: str) -> Remark:
    """One stiff start of four, so that the group is divided on the device."""

    def relaxing(t: Tensor, u: Tensor) -> Tensor:
        return torch.stack([-u[:, 1] * (u[:, 0] - 1), torch.zeros_like(u[:, 1])], -1)

    u0 = torch.tensor([[0.0, 1.0], [0.5, 2.0], [2.0, 300.0], [3.0, 1.5]]).double()
    times = torch.tensor([0.0, 3.0]).double()
    found = solver.integrate(relaxing, u0.to(device), times, 1e-6, 1e-8)
    exact = 1 + (u0[:, 0] - 1) * (-3 * u0[:, 1]).exp()
    _close(found[:, -1, 0], exact, "relaxation", 1e-4, 1e-4)
    return None


@check()
def fixed_points_are_those_of_the_cpu(device: str) -> Remark:
    spiked = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
    binary = tl.GaussianMixture.binary(dim=100, snr=100.0, ridge=0.1)
    mixture = binary.dynamics(step_size=1.0, level=-1)
    generator = torch.Generator().manual_seed(0)
    cases = (
        (spiked, torch.randn(12, 2, generator=generator).double().abs()),
        (mixture, binary.starts(2, generator=generator)),
    )
    for dynamics, starts in cases:
        on_device, on_cpu = (dynamics.fixed_points(starts.to(place)) for place in (device, "cpu"))
        name = type(dynamics).__name__
        kinds = [[p.kind for p in points] for points in (on_device, on_cpu)]
        assert kinds[0] == kinds[1], f"{name}: {kinds[0]} and {kinds[1]}"
        if dynamics is spiked:
            for one, other in zip(on_device, on_cpu, strict=True):
                _close(one.u, other.u, f"{name}, {other}", 1e-6, 1e-6)
    return None


@check()
def basins_are_those_of_the_cpu(device: str) -> Remark:
    problem = tl.GaussianMixture.binary(dim=1000, snr=100.0, ridge=0.1)
    u0 = problem.starts(6, generator=torch.Generator().manual_seed(0))
    dynamics = problem.dynamics(step_size=1.0, level=-1)
    one, other = (tl.basins(dynamics, u0.to(place), time=10.0) for place in (device, "cpu"))
    _same(one.classes.cpu(), other.classes, "classes")
    _same(problem.is_optimal(one.final).cpu(), problem.is_optimal(other.final), "the optimal ones")
    return None


@check()
def reduced_chains_have_the_law_of_those_on_the_cpu(device: str) -> Remark:
    """Spiked matrix and XOR, plain and with momentum and batches."""
    xor = _xor(60)
    cases: tuple[tuple[Any, Tensor], ...] = (
        (tl.SpikedTensor(dim=60, order=2, snr=2.0), torch.tensor([0.3, 1.0])),
        (xor, xor.starts(1, generator=torch.Generator().manual_seed(0))[0]),
    )
    zs: list[float] = []
    for problem, u0 in cases:
        for options in ({}, {"momentum": 0.5, "batch_size": 2}):
            chain = problem.reduced_chain(step_size=0.5, **options)
            one, other = (
                chain.run(
                    u0.to(place), 40, runs=1500, every=20,
                    generator=torch.Generator(place).manual_seed(seed),
                ).values[:, 1:]
                for seed, place in enumerate((device, "cpu"))
            )  # fmt: skip
            zs.append(_one_law(one, other, f"{problem}, {options}"))
            control = _discrepancy(one[:, :1], other[:, 1:])
            assert control > Z, f"other steps are not told apart: |z| = {control:.2f}"
    return f"largest |z| of 184: {max(zs):.2f}"


@check()
def langevin_paths_have_the_law_of_those_on_the_cpu(device: str) -> Remark:
    dynamics = tl.SpikedTensor(dim=300, order=2, snr=2.0).dynamics(step_size=1.0).langevin()
    one, other = (
        dynamics.solve(
            torch.tensor([0.2, 1.0]).to(place), [0.0, 0.5, 1.0], paths=2000,
            generator=torch.Generator(place).manual_seed(seed),
        ).values[:, 1:]
        for seed, place in enumerate((device, "cpu"))
    )  # fmt: skip
    z = _one_law(one, other, "Langevin dynamics")
    assert _discrepancy(one[:, :1], other[:, 1:]) > Z, "other times are not told apart"
    return f"largest |z| of 8: {z:.2f}"


@check()
def estimates_are_those_of_the_cpu(device: str) -> Remark:
    """Drift, corrector, diffusion and increment, of ready-made statistics and of others."""
    model = _xor().model(generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    zs: list[float] = []
    for ready_made in (True, False):
        found = []
        for seed, (on, step_size) in enumerate(((device, 0.02), ("cpu", 0.02), ("cpu", 0.1))):
            problem = tl.GaussianMixture.xor(
                dim=50, width=4, snr=4.0, ridge=0.05, device=on, dtype=torch.float64
            )
            own: Any = {"cube": lambda p: (p["first.weight"] ** 3).sum()}  # pyright: ignore
            found.append(
                tl.estimate(
                    copy.deepcopy(model).to(on), problem.loss, problem.sample,
                    problem.statistics if ready_made else own, step_size=step_size, samples=4000,
                    weight_decay=0.05, generator=torch.Generator(on).manual_seed(seed),
                )
            )  # fmt: skip
        one, other, control = found
        _close(one.u, other.u, "the statistics", 1e-9, 1e-12)
        for name in ("drift", "corrector", "diffusion", "increment", "increment_covariance"):
            zs.append(_z(getattr(one, name), getattr(other, name), name))
        gap = (one.corrector.value.cpu() - control.corrector.value).abs()
        error = one.corrector.standard_error.cpu() + control.corrector.standard_error
        # of v there is no corrector
        moved_by = float((gap / error.clamp_min(1e-12))[error > 0].max())
        assert moved_by > Z, f"another step size is not told apart: {moved_by:.2f}"
    return f"largest |z|: {max(zs):.2f}"


@check()
def empirical_dynamics_are_those_of_the_cpu(device: str) -> Remark:
    problem = tl.GaussianMixture.binary(dim=100, snr=2.0)
    u = problem.starts(1, generator=torch.Generator().manual_seed(0))[0]
    found, ends = [], []
    for seed, place in enumerate((device, "cpu")):
        own = tl.GaussianMixture.binary(dim=100, snr=2.0, device=place, dtype=torch.float64)
        dynamics = tl.EmpiricalDynamics(
            own.model(), own.loss, own.sample, own.statistics, step_size=1.0, dim=100,
            samples=2000, seed=seed,
        )  # fmt: skip
        found.append(dynamics.estimate(u.to(place)))
        ends.append(dynamics.solve(u.to(place), [0.0, 0.5]).final)
    zs = [_z(getattr(found[0], n), getattr(found[1], n), n) for n in ("drift", "corrector")]
    _close(ends[0], ends[1], "solutions from two sets of samples", 0.2, 0.2)
    return f"largest |z|: {max(zs):.2f}"


# --- the rest of the machine ----------------------------------------------------------------------


@check(cuda_only=True)
def training_takes_no_more_memory_than_its_parts(device: str) -> Remark:
    """Parameters, gradients, data, and the parameters once more where statistics project them."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    dim, runs = 1000, 20_000
    # without room for snapshots, which are as many as there is memory
    with mock.patch.object(ring, "_room", return_value=2**26):
        tl.train(
            _xor(dim), step_size=1.0, time=0.02, runs=runs, device=device, progress=False,
            compiled=False,
        )  # fmt: skip
    peak = torch.cuda.max_memory_allocated() - before
    parameters, data = 4 * runs * 4 * (dim + 1), 4 * runs * dim
    expected = 3 * parameters + data
    remark = f"peak {peak / 2**20:.0f} MiB, {peak / expected:.2f} of the parts"
    assert peak <= 1.5 * expected, remark
    left = torch.cuda.memory_allocated() - before
    return f"{remark}; {left / 2**20:.1f} MiB are left"


_RANK = """
import sys
import torchlimits as tl
from torchlimits.ensemble.processes import process_group

with process_group(sys.argv[1]) as group:
    assert group is not None
    tl.train(
        tl.GaussianMixture.xor(dim=50, width=4, snr=4.0, ridge=0.05), step_size=1.0, time=0.5,
        runs=5, device=sys.argv[1], progress=False, path=sys.argv[2], group=group,
    )
"""


@check(cuda_only=True)
def one_process_under_torchrun_gives_what_none_gives(device: str) -> Remark:
    """A process group of Gloo on CUDA changes nothing, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        script, path = Path(folder) / "rank.py", Path(folder) / "measured.npz"
        script.write_text(_RANK)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*command, "--nproc-per-node=1", str(script), device, str(path)],
            capture_output=True, text=True, timeout=120,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        together = tl.Trajectory.load(path)
    alone = tl.train(_xor(), step_size=1.0, time=0.5, runs=5, device=device, progress=False)
    _same(together.values, alone.values, "runs in a group and without")
    return None


@check(cuda_only=True)
def compiled_models_and_steps_are_recorded(device: str) -> Remark:
    """``torch.compile`` with CUDA graphs of its own, and a compiled optimizer step."""
    for max_bytes in _RINGS:
        loop = Loop(device, max_bytes=max_bytes)
        model: Any = torch.compile(loop.model, mode="reduce-overhead")
        step: Any = torch.compile(loop.optimizer.step)
        for x in loop.data:
            loop.backward(x, model)
            step()
            loop.stepped()
        loop.check()
        assert not torch.equal(loop.rows[-1], loop.rows[0]), "nothing moved"
    return None


def _spiked_law(device: str, problem: tl.SpikedTensor) -> str:
    """Laws of 800 runs from one start, at two times, and of another step size."""
    start = problem.model(at=(0.4, 0.8), generator=torch.Generator().manual_seed(0))
    n = problem.dim

    def runs(device: str, seed: int, step_size: float = 0.2) -> Tensor:
        every = round(0.1 * n / step_size)
        return tl.train(
            problem, step_size=step_size, time=0.2, runs=800, seed=seed, device=device,
            every=every, start=start, progress=False,
        ).values[:, 1:]  # fmt: skip

    on_cpu = runs("cpu", 1)
    z = _one_law(runs(device, 0), on_cpu, str(problem))
    control = _discrepancy(runs(device, 0, step_size=0.4), on_cpu)
    assert control > Z, f"another step size is not told apart: |z| = {control:.2f}"
    return f"{z:.2f} ({control:.0f})"


@check()
def trained_spiked_tensors_have_the_law_of_those_on_the_cpu(device: str) -> Remark:
    """Orders 2 and 3 by n normals a step."""
    problems = (
        tl.SpikedTensor(dim=40, order=2, snr=2.0),
        tl.SpikedTensor(dim=40, order=3, snr=2.0, direction="random"),
    )
    found = [_spiked_law(device, problem) for problem in problems]
    return f"largest |z| (with another step size): {', '.join(found)}"


@check()
def dense_spiked_tensors_have_the_law_of_those_on_the_cpu(device: str) -> Remark:
    """All entries of the tensors drawn, whose memory is asked for first."""
    problems = (
        tl.SpikedTensor(dim=20, order=2, snr=2.0, sampler="dense", direction="random"),
        tl.SpikedTensor(dim=20, order=3, snr=2.0, sampler="dense"),
    )
    found = [_spiked_law(device, problem) for problem in problems]
    return f"largest |z| (with another step size): {', '.join(found)}"
