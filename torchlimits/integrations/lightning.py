"""`TrackerCallback` for the Trainer of Lightning (the extra ``lightning``)."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from torchlimits.integrations.base import Attached
from torchlimits.statistics.summary import StatisticFunction, SummaryStatistics

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:
    raise ImportError(
        "expected the package lightning, which torchlimits.integrations.lightning is for: "
        "pip install 'torchlimits[lightning]'"
    ) from error


class TrackerCallback(Attached, Callback):
    """Records summary statistics at every step of a Lightning Trainer's optimizer, as `tl.track`.

    Training is bit-identical with and without it. The recording is part of Lightning's checkpoints:
    with ``trainer.fit(..., ckpt_path=)`` steps, times, trajectory and TensorBoard go on without
    gaps or duplicates. Recording ends when `fit` does, normally, by an early stop or by an
    exception; then ``callback.tracker.trajectory()`` and ``path`` hold the trajectory.

    The parameters' names are those of the LightningModule, ``"net.0.weight"`` for instance. A step
    is one of the optimizer's: gradients accumulated over several batches make one.

    Args:
        statistics, path: as in `tl.track`. With several processes, rank 0 writes.
        options: every, max_bytes, probe, parameters, time_of: as in `tl.track`.
        writer: as in `tl.track`. None: where the Trainer logs, that is in the folder ``measured``
            within that of each TensorBoardLogger (a run beside your own scalars', with the
            trajectory as ``recorded.rows``), and by the ``log_metrics`` of all other loggers.
            False: nowhere.
        optimizer: the number of the one that counts, if ``configure_optimizers`` makes several:
            steps and learning rates are its own, and statistics are recorded after each of its
            steps. Give each optimizer a callback of its own to record at the steps of all.

    Raises:
        ValueError: also during `fit`, if there are several optimizers and none is chosen; and as
            `tl.track` does.
        TypeError: as `tl.track` does.

    Example:
        >>> import lightning.pytorch as pl, torch
        >>> class Linear(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(3, 1)
        ...     def training_step(self, batch, index):
        ...         return self.layer(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> callback = TrackerCallback({"norm": lambda p: p["layer.weight"].norm()})
        >>> trainer = pl.Trainer(
        ...     callbacks=callback, max_epochs=1, accelerator="cpu", barebones=True
        ... )
        >>> trainer.fit(Linear(), torch.utils.data.DataLoader(torch.randn(8, 3), batch_size=4))
        >>> callback.tracker.trajectory().steps
        tensor([0, 1, 2])
    """

    def __init__(
        self, statistics: SummaryStatistics | Mapping[str, StatisticFunction], *,
        optimizer: int | None = None, writer: Any = None, path: str | Path | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(statistics, writer=writer, path=path, **options)
        self._optimizer = optimizer
        # from the checkpoint that `fit` is about to go on from
        self._loaded: Mapping[str, Any] | None = None
        self._module: weakref.ref[nn.Module] | None = None

    @property
    def state_key(self) -> str:
        """The key of this callback in checkpoints, one for each optimizer that it may follow."""
        return self._generate_state_key(optimizer=self._optimizer)

    def state_dict(self) -> dict[str, Any]:
        """`Tracker.state_dict`, for Lightning's checkpoints; empty before the first step."""
        if self._loaded is not None:
            return dict(self._loaded)
        return {} if self.tracker is None else self.tracker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state_dict at the next `fit`; called by Lightning."""
        self._loaded = state_dict

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to module and optimizer, which have been restored by now."""
        self._begin(
            trainer.model,  # inside the wrapper for several processes
            self._chosen(trainer.optimizers),
            logs=_logs(trainer.loggers),
            writes=trainer.is_global_zero,
            step=trainer.global_step,
            state=self._loaded or self._before(trainer, pl_module),
        )
        self._loaded, self._module = None, weakref.ref(pl_module)

    def _before(self, trainer: Any, pl_module: Any) -> Mapping[str, Any] | None:
        """The state of a `fit` that another `fit` of the same Trainer and module continues."""
        same = self._module is not None and self._module() is pl_module
        if self.tracker is None or not same or trainer.global_step == 0:
            return None
        return self.tracker.state_dict()

    def _chosen(self, optimizers: list[Optimizer]) -> Optimizer:
        kinds = ", ".join(type(one).__name__ for one in optimizers)
        if self._optimizer is None and len(optimizers) != 1:
            raise ValueError(
                f"expected one optimizer, got {len(optimizers)} ({kinds}): choose one by "
                "TrackerCallback(..., optimizer=0), or give each a callback of its own"
            )
        index = self._optimizer or 0
        if not 0 <= index < len(optimizers):
            raise ValueError(f"expected optimizer={index} among the {len(optimizers)} ({kinds})")
        return optimizers[index]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the tracker: the last step has been taken."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the tracker, which keeps what was recorded."""
        self._end(exception)


def _logs(loggers: list[Any]) -> Any:
    """Where the Trainer logs, as a ``writer`` of `tl.track`: a list if there are several."""
    found = [_log_of(logger) for logger in loggers]
    return found if len(found) > 1 else next(iter(found), None)


def _log_of(logger: Any) -> Any:
    # by name, as pytorch_lightning has one, too
    names = [kind.__name__ for kind in type(logger).__mro__]
    if "TensorBoardLogger" in names and "://" not in str(logger.log_dir):
        return Path(logger.log_dir) / "measured"

    def log(row: dict[str, float], step: int) -> None:
        logger.log_metrics(row, step)

    return log
