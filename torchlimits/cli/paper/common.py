"""What the paper's figures have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

BLUE, RED, GREEN, GREY = "#3b6fb6", "#c8452f", "#2f8f5b", "#777777"
#: critical, as in the paper
STEP_SIZE = 1.0


@dataclass(frozen=True)
class PaperOptions:
    """How large a figure's experiment is, and where its event files go.

    Args:
        smoke: whether it is small, and done in seconds.
        seed: the seed of starts and data.
        logdir: the folder; each figure has one below it.
    """

    smoke: bool
    seed: int
    logdir: Path


def seeded(seed: int) -> torch.Generator:
    """Return a CPU generator.

    Args:
        seed: its seed.
    """
    return torch.Generator().manual_seed(seed)


def say(console: Console, text: str) -> None:
    """Print one line of numbers, as it is.

    Args:
        console: where it is printed.
        text: the line.
    """
    console.print(text, highlight=False, markup=False, soft_wrap=True)
