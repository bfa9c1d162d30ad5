"""`TrackerCallback` for the Trainer of Hugging Face transformers (the extra ``transformers``)."""

from __future__ import annotations

import base64
import io
import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from torchlimits.integrations.base import Attached
from torchlimits.statistics.summary import StatisticFunction, SummaryStatistics

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError(
        "expected the package transformers, which torchlimits.integrations.transformers is for: "
        "pip install 'torchlimits[transformers]'"
    ) from error

#: the run of the statistics within that of the training
_FOLDER = "measured"


class TrackerCallback(Attached, TrainerCallback, ExportableState):
    """Records summary statistics at every optimizer step of a transformers Trainer, as `tl.track`.

    Training is bit-identical with and without it. The recording is part of the Trainer's
    checkpoints (in ``trainer_state.json``, 11 (k + 2) bytes a record of k statistics): with
    ``trainer.train(resume_from_checkpoint=)`` steps, times, trajectory and TensorBoard go on
    without gaps or duplicates. Recording ends when `train` does; then
    ``callback.tracker.trajectory()`` and ``path`` hold the trajectory. The Trainer does not tell
    its callbacks of an exception: after one, both are there when the program ends, or after
    ``callback.tracker.close()``.

    Args:
        statistics, path: as in `tl.track`. With several processes, rank 0 writes.
        options: every, max_bytes, probe, parameters, time_of: as in `tl.track`.
        writer: as in `tl.track`. None: if the Trainer reports to TensorBoard
            (``report_to="tensorboard"``), in the folder ``measured`` within that of this training,
            ``<output_dir>/runs/<time>_<host>`` or what ``TENSORBOARD_LOGGING_DIR`` names; in
            ``measured-2``, ``measured-3`` ... if there is another training's. False: nowhere.

    Raises:
        ValueError: also during `train`, if there are two such callbacks, or there is a probe with
            ``load_best_model_at_end``; and as `tl.track` does.
        TypeError: as `tl.track` does.

    Example:
        >>> import tempfile
        >>> from transformers import PrinterCallback, Trainer, TrainingArguments
        >>> class Linear(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return {"loss": super().forward(x).square().mean()}
        >>> callback = TrackerCallback({"norm": lambda p: p["weight"].norm()})
        >>> data = [{"x": row} for row in torch.randn(8, 3)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     options = TrainingArguments(
        ...         folder, max_steps=5, optim="sgd", report_to="none", disable_tqdm=True
        ...     )
        ...     trainer = Trainer(Linear(3, 1), options, train_dataset=data, callbacks=[callback])
        ...     trainer.remove_callback(PrinterCallback)
        ...     _ = trainer.train()
        >>> callback.tracker.trajectory().steps
        tensor([0, 1, 2, 3, 4, 5])
    """

    def __init__(
        self, statistics: SummaryStatistics | Mapping[str, StatisticFunction] | None = None, *,
        writer: Any = None, path: str | Path | None = None, **options: Any,
    ) -> None:  # fmt: skip
        if statistics is None:
            # restore_callback_states_from_checkpoint makes callbacks anew, of what JSON can hold
            raise TypeError(
                "expected statistics, got none: give them; and leave "
                "restore_callback_states_from_checkpoint=False, recordings are continued without it"
            )
        super().__init__(statistics, writer=writer, path=path, **options)
        self._folder = _FOLDER

    def state(self) -> dict[str, Any]:
        """`Tracker.state_dict` as text, for the Trainer's checkpoints."""
        recorded = None if self.tracker is None else _text_of(self.tracker.state_dict())
        return {"args": {}, "attributes": {}, "recorded": recorded, "folder": self._folder}

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, optimizer: Optimizer,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """Attach to model and optimizer, which have been restored by now."""
        if self.probe is not None and args.load_best_model_at_end:
            raise ValueError(
                "expected a Trainer that ends with its last model if there is a probe, which "
                "measures there: set load_best_model_at_end=False"
            )
        recorded = self._recorded(state)
        held = state.stateful_callbacks[type(self).__name__]
        logs = _logs(args, state, None if recorded is None else held.get("folder", _FOLDER))
        self._folder = _FOLDER if logs is None else logs.name
        self._begin(
            model, optimizer, logs=logs, writes=state.is_world_process_zero,
            step=state.global_step, state=recorded,
        )  # fmt: skip

    def _recorded(self, state: Any) -> dict[str, Any] | None:
        """The recorded state in the checkpoint that the training goes on from."""
        # a checkpoint of a Trainer without this callback has no place for its state
        held = state.stateful_callbacks.setdefault(type(self).__name__, {})
        if isinstance(held, list):
            raise ValueError(
                f"expected one {type(self).__name__} in a Trainer, got {len(held)}: give all "
                "statistics to one"
            )
        text = held.get("recorded")
        return _state_of(text) if state.global_step > 0 and text else None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the tracker: the last step has been taken."""
        self._end()


def _logs(args: Any, state: Any, continued: str | None) -> Path | None:
    """The folder of a training, or of the training of that name that it goes on with."""
    if "tensorboard" not in (args.report_to or []):
        return None
    folder = _run_folder(args, state)
    names = itertools.chain([_FOLDER], (f"{_FOLDER}-{number}" for number in itertools.count(2)))
    free = (name for name in names if not _is_filled(folder / name))
    return folder / (continued or next(free))


def _run_folder(args: Any, state: Any) -> Path:
    """Where the Trainer's own callback logs; it began before this one and keeps that to itself."""
    trial = state.trial_name if state.is_hyper_param_search else None
    # the first, before transformers 5
    given = getattr(args, "logging_dir", None) or os.getenv("TENSORBOARD_LOGGING_DIR")
    if given and (trial is None or hasattr(args, "logging_dir")):
        return Path(given).expanduser() / (trial or "")
    # its event files are named by time, host and the number of the process
    mine = f"events.out.tfevents.*.{socket.gethostname()}.{os.getpid()}.*"
    place = f"*/{trial}" if trial else "*"
    files = list((Path(args.output_dir) / "runs").glob(f"{place}/{mine}"))
    if files:
        return max(files, key=_made).parent
    run = f"{time.strftime('%b%d_%H-%M-%S')}_{socket.gethostname()}"
    return Path(args.output_dir) / "runs" / run / (trial or "")


def _made(file: Path) -> tuple[int, int]:
    """The key that event files are ordered by: the second, and their number in the process."""
    parts = file.name.split(".")
    return int(parts[3]), int(parts[-1]) if parts[-1].isdigit() else 0


def _is_filled(place: Path) -> bool:
    return place.is_dir() and any(place.iterdir())


def _text_of(state: Mapping[str, Any]) -> str:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def _state_of(text: str) -> dict[str, Any]:
    try:
        file = io.BytesIO(base64.b64decode(text))
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged text makes of base64 and torch
        raise ValueError(
            f"expected the recorded steps of a checkpoint, got damaged ones: {error}"
        ) from error
