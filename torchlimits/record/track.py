"""`track`: record summary statistics at every step of a training loop that somebody else wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchlimits import _checks
from torchlimits.contracts.observer import Watcher
from torchlimits.record.follower import Follower
from torchlimits.record.model_state import ModelState
from torchlimits.record.tracker import Tracker
from torchlimits.record.wrappers import followed
from torchlimits.statistics.summary import StatisticFunction, SummaryStatistics


def track(
    model: nn.Module, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    statistics: SummaryStatistics | Mapping[str, StatisticFunction], *, every: int = 1,
    writer: Any = None, path: str | Path | None = None, max_bytes: int | None = None,
    probe: Watcher | None = None, parameters: Mapping[str, Any] | None = None,
    time_of: str | None = None,
) -> Tracker:  # fmt: skip
    """Record summary statistics at every step of `optimizer`, step 0 included.

    A hook on the optimizer copies what the statistics read into a preallocated ring on its device;
    the statistics are evaluated for the whole ring at once when it is full or five seconds have
    passed (or at `Tracker.flush`). Then they are written to disk and shown. Training is
    bit-identical with and without: the generators of random numbers are left alone, nothing enters
    autograd, and the device is not synchronised in between.

    **Statistics** are functions of ``p``, a plain dict ``{name: tensor}`` of what they read right
    after the step: parameters; buffers; gradients, as ``p["weight.grad"]``, which are those that
    the step used (a statistic of a gradient that is not there, as at step 0, is NaN); and what the
    optimizer keeps for a parameter, as ``p["weight.exp_avg_sq"]`` (zeros before the first step). To
    iterate over ``p`` gives parameters and floating-point buffers; all else has to be asked for by
    name. `track` evaluates each statistic once, on copies, to see what it reads. A statistic is
    refused if it reads the live model, its gradients or its optimizer's state beside ``p``, changes
    what it is given, or runs the model in whatever mode that is; for functions of the module itself
    there is `tl.statistics.of_model`. What nobody can see is that a statistic reads another model
    that is trained as well (an average, a teacher): that model would be read at the flush, not at
    the step.

    Nothing recorded is lost: with a ``path`` (or a log directory) rows are appended to
    ``<path>.unfinished`` at every flush. A program that is killed leaves that file, which
    `Trajectory.load` opens; `Tracker.close` turns it into ``path``, and so does the end of a
    program that did not call it. What a full disk or a broken writer refuses is kept and tried
    again, while training goes on: see `Recording`. An interrupt loses at most the row of its own
    step.

    To resume, put `Tracker.state_dict` into your checkpoint, make the tracker with the same
    arguments in the new program, and call `Tracker.load_state_dict` before the first step.

    **Steps.** A step is a call of ``optimizer.step`` that ended, whatever came before it: several
    backward passes, or a closure evaluated several times (LBFGS). Steps that a ``GradScaler`` skips
    do not count (with a fused optimizer on CUDA, asking for that synchronises the device). What is
    recorded is what the model's parameters are right after the step: with schedule-free optimizers
    those of its training mode, with Lookahead those after the outer optimizer's own move.

    **Limit time** grows by the step's learning rate in one parameter group, found again however
    groups are added, removed or reordered: that of the first parameter of the model that is
    trained, or that of ``time_of``. Where the learning rate is 0, None, or too small to change the
    sum, steps are recorded all the same, and limit time stands still.

    **Models.** Whatever is wrapped around the model (`torch.compile`, DataParallel,
    DistributedDataParallel, Lightning Fabric), names are those of the user's own module. Tied
    parameters are one, by the first of their names. Parameters that are moved
    (``model.to(...)``) or replaced in the model are followed, as long as the statistics keep their
    shape and the optimizer holds one of them. Copies of model and optimizer (`copy.deepcopy`) are
    not recorded. Other threads than the one that trains may ask the tracker for what it has.

    **Processes.** With DistributedDataParallel, ``fully_shard`` or other DTensor parameters, make
    the tracker on every rank, of the wrapped model: rank 0 records the whole parameters, the others
    take part in gathering them at every recorded step, and ignore ``writer`` and ``path`` (see
    `Follower` for what else their trackers do). Call `Tracker.remove` and `Tracker.close` on all
    ranks at the same step. Gathering costs the communication of one forward pass; ``every`` saves
    it.

    Args:
        model: any module.
        optimizer: any optimizer that holds at least one parameter of the model. A wrapper around
            another one is followed itself, except for those of Accelerate, Fabric and Lightning.
            For several optimizers of one model, a list: a step ends when the last of the list
            steps, whatever the others did before, and its learning rate is what it is then.
        statistics: a `SummaryStatistics`, or a dict ``{name: function}`` as it takes, see above.
            They get half-precision tensors in float32; values are recorded in float64.
        every: record every so many steps.
        writer: where to show the statistics live: a log directory, a `tl.tensorboard.Writer`, a
            SummaryWriter (to resume torch's, made with ``purge_step=0`` in the first program and
            the checkpoint's step + 1 in the next), a `tl.CSV`, a function ``log(dict, step)``, any
            `Sink`, or a list of such. A log directory and a CSV file take one tracker at a time.
        path: where the trajectory is after `Tracker.close`, also when the loop ends in an
            exception: as `Trajectory.save` writes it or, if the suffix is ``.rows``, as it was
            recorded, which takes no time and can be memory-mapped. If another tracker has it, this
            one takes a similar name, with a warning (`Tracker.path`); a file there that is not a
            trajectory is refused. Without a path, and with a log directory or a
            `tl.tensorboard.Writer`: ``recorded.rows`` in that directory.
        max_bytes: bound on the ring; by default 64 MiB, or a 64th of a CUDA device's memory if that
            is more. If not even two snapshots fit, the statistics are evaluated in the hook itself,
            which takes a launch or more for each of them at every step.
        probe: a `Probe`: estimate drift and corrector along the run, so that
            `Tracker.explanation` (and TensorBoard, under ``explained``) says what of the
            statistics' change they explain; needs torch.optim.SGD and no sharded parameters. Or
            a `Watcher` of your own: its `Observer` follows the run.
        parameters: facts about the run, JSON-able, for the trajectory's
            ``metadata["parameters"]``, beside the optimizer's settings.
        time_of: the name of a parameter of the model: limit time is the sum of the learning rates
            of the group that holds it. By default the first parameter in the optimizer's groups
            that is trained: it requires a gradient and has a learning rate > 0 now or, with a
            scheduler that warms up from 0, later.

    Returns:
        A `Tracker`, to be closed, or used as a context manager.

    Raises:
        ValueError: if the optimizer holds none of the model's parameters or not ``time_of``, its
            lr is negative or not finite, it calls no hooks at its steps or steps elsewhere than in
            ``step`` (SAM; the message says what to track), every < 1, the statistics read nothing,
            the live model or a tensor on the meta device, change what they are given, or are not
            finite at the start. During training, at a flush: `NonFiniteStatistic`, or a
            `StatisticError` if a statistic fails or changes its shape, which says after which step;
            the rows before it are kept. At a step: a ValueError if parameters were replaced by
            others that cannot be followed.
        OSError: if the folder of ``path`` or the log directory cannot be written to, or another
            tracker writes there.
        TypeError: if an argument is of a wrong type, or a statistic does not return a tensor.

    Example:
        >>> import torch, torchlimits as tl
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tl.track(model, optimizer, {"norm": lambda p: p["weight"].norm()}) as tracker:
        ...     for _ in range(5):
        ...         model(torch.randn(8, 3)).square().mean().backward()
        ...         optimizer.step()
        >>> tracker.trajectory()["norm"].shape
        torch.Size([6])
    """
    optimizers = followed(model, optimizer)
    statistics = SummaryStatistics.of(statistics)
    _checks.json_text("parameters", parameters or {})
    _checks.path("path", path)
    if max_bytes is not None:
        _checks.positive_int("max_bytes", max_bytes)
    own = ModelState(model)
    if not isinstance(probe, (Watcher, type(None))):
        raise TypeError(f"expected probe as a tl.Probe, got {type(probe).__name__}")
    if not isinstance(time_of, (str, type(None))):
        raise TypeError(
            "expected time_of as the name of a parameter, the learning rates of whose group limit "
            f"time adds up, got {type(time_of).__name__}"
        )
    if probe is not None and len(optimizers) > 1:
        raise ValueError(
            f"expected one optimizer with a probe, got {len(optimizers)}: drift and corrector are "
            "those of one of them; track without a probe"
        )
    if probe is not None and own.sharded:
        raise ValueError(
            "expected parameters that one process has, got sharded ones: a probe runs the model "
            "in one process; track without one"
        )
    if not own.leads:
        return Follower(model, optimizers, statistics, every, time_of)
    return Tracker(
        model, optimizers, statistics, every, writer, path, max_bytes, probe, parameters, time_of
    )
