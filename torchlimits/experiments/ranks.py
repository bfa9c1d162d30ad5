"""`rank_and_size`: which of how many processes this one is."""

from __future__ import annotations

import os

from torch import distributed


def rank_and_size() -> tuple[int, int]:
    """Return the number of this process, and of how many, which torchrun or SLURM has started.

    They are those of torch.distributed where that is initialised, and otherwise the environment's
    RANK and WORLD_SIZE, as torchrun sets them; without these the process is alone.

    Raises:
        ValueError: if the environment has only one of the two, or they do not fit.

    Example:
        >>> rank_and_size()
        (0, 1)
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    given = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE")]
    if given == [None, None]:
        return 0, 1
    try:
        rank, size = (int(value or "") for value in given)
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise ValueError(
            "expected RANK and WORLD_SIZE in the environment with 0 <= RANK < WORLD_SIZE, as "
            f"torchrun sets them, got RANK={given[0]} and WORLD_SIZE={given[1]}: set both, or none"
        )
    return rank, size
