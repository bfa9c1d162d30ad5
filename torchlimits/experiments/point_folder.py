"""`PointFolder`: the folder of a sweep, with one file for each point."""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchlimits.experiments.grid import Grid, Value, named
from torchlimits.files import value_file
from torchlimits.files.lock import Lock
from torchlimits.files.whole import replacing

_FORMAT = "torchlimits.Sweep/1"
_ABOUT = "sweep.json"


@dataclass(frozen=True)
class PointFolder:
    """The folder of one sweep: ``sweep.json``, which says which, and ``point-00007.pt`` ...

    Attributes:
        path: the folder.
        about: which sweep it is, as JSON holds it.
    """

    path: Path
    about: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path, grid: Grid, function: object, seed: int) -> PointFolder:
        """Return the folder of a sweep, made if it is not there.

        Raises:
            ValueError: if it is that of another sweep, or what it says of its own cannot be read.
            OSError: if it cannot be made or written to.
        """
        about = {"format": _FORMAT, "grid": grid.axes, "seed": seed, "function": function}
        # as it will be read
        folder = cls(path, json.loads(json.dumps(about)))
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not (path / _ABOUT).exists():
                with replacing(path / _ABOUT) as partial:
                    partial.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError("it is read-only")
        except OSError as error:
            raise type(error)(
                f"expected a folder that can be made and written to, got {path}: "
                f"{error.strerror or error}; give another"
            ) from error
        folder._check()
        return folder

    @classmethod
    def read(cls, path: Path) -> PointFolder:
        """Return the folder of a sweep that is there.

        Raises:
            ValueError: if there is none, or what it says of its sweep cannot be read.
        """
        try:
            about = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
            if about["format"] == _FORMAT and about.keys() >= {"grid", "seed", "function"}:
                return cls(path, about)
            problem = f"its format is {about['format']!r}"
        except FileNotFoundError:
            raise ValueError(
                f"expected the folder of a sweep, got {path}, which has no {_ABOUT}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"expected what the sweep in {path} is, but {path / _ABOUT} cannot be read "
            f"({problem}): give another folder, or remove that one"
        )

    def _check(self) -> None:
        found = PointFolder.read(self.path).about
        # as texts, in which the order of the axes counts
        other = [
            name
            for name in ("grid", "seed", "function")
            if json.dumps(found[name]) != json.dumps(self.about[name])
        ]
        if other:
            raise ValueError(
                f"expected the folder of this sweep, got {self.path} of another one, with another "
                f"{' and another '.join(other)}: give another folder, or remove that one"
            )

    @property
    def _key(self) -> str:
        return hashlib.sha256(json.dumps(self.about).encode()).hexdigest()

    def file(self, number: int) -> Path:
        """The file of a point's result."""
        return self.path / f"point-{number:05d}.pt"

    def error(self, number: int) -> Path:
        """The file of the error that ended a point."""
        return self.path / f"point-{number:05d}.error.txt"

    def lock(self, number: int) -> Lock:
        """The lock of the process that computes a point."""
        return Lock(self.path / f".point-{number:05d}.lock")

    def write(self, number: int, result: Any) -> None:
        """Write the result of a point, and forget an error that it has had before."""
        value_file.write(self.file(number), {"sweep": self._key, "result": result})
        self.error(number).unlink(missing_ok=True)

    def result(self, number: int) -> Any:
        """Return the result of a point.

        Raises:
            FileNotFoundError: if it has none.
            ValueError: if its file is damaged, or belongs to another sweep.
        """
        found = value_file.read(self.file(number))
        if found.get("sweep") != self._key:
            raise ValueError("it belongs to another sweep")
        return found["result"]

    def write_error(self, number: int, point: Mapping[str, Value], error: Exception) -> str:
        """Write the error that ended a point, and return it as one line."""
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        text = "".join(traceback.format_exception(error))
        with replacing(self.error(number)) as partial:
            partial.write_text(f"{said}\nat {named(point)}\n\n{text}", encoding="utf-8")
        return said

    def said(self, number: int) -> str:
        """Return the error that ended a point, as one line; "" if there is none."""
        try:
            with self.error(number).open(encoding="utf-8", errors="replace") as file:
                return file.readline().strip()
        except OSError:
            return ""

    def version(self, number: int) -> tuple[int, int] | None:
        """Return what tells the file of an error from one that replaces it."""
        try:
            found = self.error(number).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino
