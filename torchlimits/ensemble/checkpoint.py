"""`Checkpoint`: what a training needs to go on where it was stopped, in one file."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from torchlimits.ensemble.data import Data
from torchlimits.files.whole import replacing
from torchlimits.record.tracker import Tracker

_FORMAT = "torchlimits.Checkpoint/1"
#: how often one is written, at most
_SECONDS = 10.0


class Checkpoint:
    """Model, optimizer, tracker and the place in the data, kept in a file while a training goes on.

    The file is written every ten seconds, and when the training is interrupted or told to end,
    always between two steps. A training that goes on from it ends with the same numbers, bit for
    bit.

    Args:
        path: the file.
        call: facts that say which training it is, in a form that JSON can hold.
        model, optimizer, tracker, data: what is kept.
    """

    def __init__(
        self, path: Path, call: Mapping[str, Any], *, model: nn.Module,
        optimizer: torch.optim.Optimizer, tracker: Tracker, data: Data,
    ) -> None:  # fmt: skip
        self.path, self._call = Path(os.path.realpath(path)), dict(call)
        self._parts: dict[str, Any] = {
            "model": model, "optimizer": optimizer, "tracker": tracker, "data": data,
        }  # fmt: skip
        self._kept_at = time.monotonic()
        # a signal that has come, and waits for the end of a step
        self._signal: int | None = None

    def load(self) -> bool:
        """Go on from the file, and return whether there is one.

        Raises:
            ValueError: if it is damaged, or belongs to another training.
        """
        if not self.path.exists():
            return False
        try:
            kept = torch.load(self.path, weights_only=True)
            known = kept["format"] == _FORMAT
        except Exception as error:  # whatever a damaged file makes of torch
            raise ValueError(
                f"expected a checkpoint, {self.path} cannot be read: {type(error).__name__}; "
                "remove it to start again"
            ) from error
        if not known or kept["call"] != self._call:
            raise ValueError(
                f"expected the checkpoint of this training, got {self.path} of another one, with "
                f"{kept.get('call')}: give another file, or remove it"
            )
        for name, part in self._parts.items():
            part.load_state_dict(kept[name])
        return True

    def save(self) -> None:
        """Write the file, whole or not at all."""
        kept = {name: part.state_dict() for name, part in self._parts.items()}
        with replacing(self.path) as partial:
            torch.save({"format": _FORMAT, "call": self._call, **kept}, partial)
        self._kept_at = time.monotonic()

    def between_steps(self) -> None:
        """Write the file if it is time.

        Raises:
            KeyboardInterrupt: after an interrupt, once the file is written; after a request to end
                (SIGTERM), what that request would have raised.
        """
        if self._signal is not None:
            self.save()
            number, self._signal = self._signal, None
            signal.raise_signal(number)
        if time.monotonic() - self._kept_at > _SECONDS:
            self.save()

    @contextmanager
    def waits_for_steps(self) -> Generator[None]:
        """Have Ctrl-C and SIGTERM wait for the end of a step; a second one does not wait."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread is told of signals
            return

        def wait(number: int, frame: FrameType | None) -> None:
            signal.signal(number, before[number])
            self._signal = number

        numbers = (int(signal.SIGINT), int(signal.SIGTERM))
        before = {number: signal.getsignal(number) for number in numbers}
        try:
            for number in before:
                signal.signal(number, wait)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
