"""`main`: the `torchlimits` command, put together from its subcommands."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import sys
import warnings
from collections.abc import Collection, Sequence
from typing import Any

from torchlimits.cli.sentences import sentence

#: exit codes: of an error, of a command line that is not understood, of an interrupt
ERROR, MISUSE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code.

    Whatever goes wrong ends in one sentence on the standard error.

    Args:
        arguments: the words after ``torchlimits``; those of this program by default.

    Example:
        >>> main(["regime", "--dim", "1000", "--lr", "0.001"])  # doctest: +ELLIPSIS
        critical: c_delta = lr * dim = 1: gradient flow plus the population corrector, ...
        0
    """
    try:
        # imported here: an interrupt during the imports ends in a sentence too
        from torchlimits.cli.commands import NAMES, command_of

        words = list(sys.argv[1:] if arguments is None else arguments)
        command, code = _understood(command_of, NAMES, words)
        if command is not None:
            with warnings.catch_warnings():
                warnings.showwarning = _note
                command.main()
            sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        print(f"Interrupted: {str(stop) or 'there was nothing to save'}.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # as in `torchlimits show ... | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, RuntimeError, ImportError, MemoryError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return ERROR


def _understood(command_of: Any, names: Collection[str], words: list[str]) -> tuple[Any, int]:
    """The command that the words ask for, or None and the exit code."""
    said, page = io.StringIO(), _Page(io.BytesIO(), encoding=sys.stdout.encoding or "utf-8")
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(page):
            return command_of(words), 0
    except SystemExit as stop:
        if not stop.code:
            page.seek(0)
            sys.stdout.write(page.read())
            return None, 0
        print(f"error: {_misuse(said.getvalue(), words, names)}", file=sys.stderr)
        return None, MISUSE


class _Page(io.TextIOWrapper):
    """What help is written to: as colourful as the standard output, unless NO_COLOR is set."""

    def isatty(self) -> bool:
        # tyro does not know NO_COLOR
        terminal = sys.__stdout__ is not None and sys.__stdout__.isatty()
        return terminal and not os.environ.get("NO_COLOR")


def _misuse(box: str, words: list[str], names: Collection[str]) -> str:
    """What tyro says in a box, in one sentence that names the help to read."""
    plain = re.sub("\x1b\\[[0-9;]*m", "", box)
    inside = plain.strip().splitlines()[1:]  # after the title
    text = " ".join(re.sub("[─│╰╯]+|-{9,}", " ", " ".join(inside)).split())
    said = re.split(
        r" (?:Perhaps you meant|Argument helptext|For full helptext|Available)\b", text
    )[0]
    meant = re.search(r"Perhaps you meant: (--[\w-]+)", text)
    hint = f" (perhaps {meant[1]} was meant)" if meant else ""
    known = itertools.takewhile(lambda word: word in names, words)
    asked = " ".join(["torchlimits", *known])
    return f"{said.rstrip('.')}{hint}: see `{asked} --help`"


def _note(message: Warning | str, *where: Any) -> None:
    """Show a warning as a sentence, without the line of code that it came from."""
    print(f"note: {' '.join(str(message).split())}", file=sys.stderr)
