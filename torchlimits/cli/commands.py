"""`command_of`: the command that a command line asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from torchlimits.cli.bench import Bench
from torchlimits.cli.compare import Compare
from torchlimits.cli.figures import Figures
from torchlimits.cli.problems import PROBLEMS
from torchlimits.cli.regime import Regime
from torchlimits.cli.resume import Resume
from torchlimits.cli.run import Run
from torchlimits.cli.show import Show

#: the words that the command line begins with
NAMES = {"run", "show", "compare", "figures", "regime", "bench", *PROBLEMS}

_DESCRIPTION = """\
Record summary statistics of PyTorch training beside what high-dimensional theory predicts.

Begin with `torchlimits run xor`: it trains a network, predicts it, and draws both.
Every command has a --help of its own."""

_Command = (
    Annotated[Run, subcommand("run")]
    | Annotated[Show, subcommand("show")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Figures, subcommand("figures")]
    | Annotated[Regime, subcommand("regime")]
    | Annotated[Bench, subcommand("bench")]
)


def command_of(words: Sequence[str]) -> Any:
    """Return the command, with its options, whose ``main()`` does the work.

    Args:
        words: those of the command line, after the program's name.

    Raises:
        SystemExit: if the words ask for help, or are not understood.

    Example:
        >>> command_of(["show", "runs/xor"])
        Show(path=PosixPath('runs/xor'), plot=None, to=None)
    """
    options: dict[str, Any] = {"config": (OmitSubcommandPrefixes, OmitArgPrefixes)}
    if words[:1] == ["run"] and any(word.split("=")[0] == "--resume" for word in words):
        return tyro.cli(Resume, args=words[1:], prog="torchlimits run", **options)
    command: Any = _Command
    return tyro.cli(command, args=words, prog="torchlimits", description=_DESCRIPTION, **options)
