"""`chosen`: the sink behind whatever a user gives `tl.track` as ``writer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchlimits.contracts.sink import Sink
from torchlimits.record.sinks.log_function import Logged
from torchlimits.trajectory import Trajectory


def chosen(writer: Any) -> tuple[Sink | None, bool]:
    """The sink, or None, and whether it is for the tracker to close it.

    Args:
        writer: None; a log directory; a `Sink` or another object with ``add`` and ``flush``; a
            SummaryWriter; or a function ``log(dict, step)``.

    Raises:
        TypeError: if it is none of these.
        OSError: if the log directory cannot be written to.

    Example:
        >>> sink, owned = chosen(print)
        >>> type(sink).__name__, owned
        ('Logged', False)
    """
    if writer is None:
        return None, False
    if isinstance(writer, type):
        raise TypeError(
            f"expected writer as an object, got the class {writer.__name__}: make one, "
            f"{writer.__name__}(...)"
        )
    if isinstance(writer, Sink):
        return writer, False
    # before objects with flush: a SummaryWriter may have anything else
    if hasattr(writer, "add_scalar") or hasattr(writer, "_get_file_writer"):
        # imported here: a loop that does not use TensorBoard does not load it
        from torchlimits.tensorboard.borrowed import borrowed

        return borrowed(writer), False
    if hasattr(writer, "add") and hasattr(writer, "flush"):
        return _Adapted(writer), False
    if callable(writer):
        return Logged(writer), False
    if isinstance(writer, (str, Path)):
        from torchlimits.tensorboard.writer import Writer

        return Writer(writer), True
    raise TypeError(
        "expected writer as a log directory, a torch.utils.tensorboard.SummaryWriter, a "
        "torchlimits.tensorboard.Writer, a torchlimits.CSV, a function log(dict, step), a "
        f"torchlimits.Sink or a list of such, got {type(writer).__name__}"
    )


class _Adapted(Sink):
    """An object with ``add`` and ``flush`` that is not a `Sink`; other methods of one are used."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.logdir = getattr(writer, "logdir", None)
        for name in ("check", "explain", "finish", "state_dict", "load_state_dict"):
            if hasattr(writer, name):
                setattr(self, name, getattr(writer, name))

    def add(self, chunk: Trajectory) -> None:
        """Hand the rows on."""
        self._writer.add(chunk)

    def flush(self) -> None:
        """Hand the call on."""
        self._writer.flush()

    @property
    def newest(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The object's own ``newest``, if it has one."""
        return getattr(self._writer, "newest", None)

    @property
    def explains(self) -> bool:
        """Whether the object has an ``explain``."""
        return hasattr(self._writer, "explain")

    def __str__(self) -> str:
        return getattr(self._writer, "__name__", type(self._writer).__name__)
