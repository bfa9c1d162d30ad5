"""`tag`: what a statistic is called where it is shown, in TensorBoard and by other loggers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

#: how indices are written: a level each ...
LEVELS = "levels"
#: ... or, in runs that were begun before there were levels, with commas
COMMAS = "commas"


def tag(name: str) -> str:
    """The TensorBoard tag of a statistic: each of its indices becomes a level of its own.

    Tags are made of what all loggers allow: MLflow, for one, drops commas and brackets.

    Args:
        name: the statistic's name.

    Example:
        >>> tag("v[0]"), tag("m[1,10]"), tag("r2"), tag("layer 1/norm")
        ('v/0', 'm/1/10', 'r2', 'layer 1/norm')
    """
    return tag_in(name, LEVELS)


def tag_in(name: str, style: str) -> str:
    """`tag`, or what it was in a run that was begun with commas.

    >>> tag_in("m[1,10]", COMMAS)
    'm/1,10'
    """
    family, indices = parts_of(name)
    if not indices:
        return name
    levels = re.sub(", *", "][", indices) if style == LEVELS else indices
    return "/".join([family, *levels[1:-1].split("][")])


def parts_of(name: str) -> tuple[str, str]:
    """The family of a statistic and its indices in brackets, or the name and nothing.

    >>> parts_of("m[0,1]"), parts_of("a[0][1]"), parts_of("r2")
    (('m', '[0,1]'), ('a', '[0][1]'), ('r2', ''))
    """
    match = re.fullmatch(r"([^\[\]]+)((?:\[[^\[\]]+\])+)", name)
    return (name, "") if match is None else (match[1], match[2])


def tags_of(names: Sequence[str], *, style: str = LEVELS) -> list[str]:
    """The k tags of k statistics.

    Raises:
        ValueError: if two statistics have the same tag.
    """
    tags = [tag_in(name, style) for name in names]
    check_different(tags, names)
    return tags


def check_different(tags: Sequence[str], names: Sequence[str]) -> None:
    """Raise ValueError if a tag occurs twice; names are used again where there are more tags."""
    owners: dict[str, str] = {}
    for one, name in zip(tags, itertools.cycle(names), strict=False):
        if one in owners:
            raise ValueError(
                f"expected statistics with different tags, got {owners[one]!r} and {name!r}, "
                f"both {one!r}: rename one of them"
            )
        owners[one] = name


def style_of(state: Mapping[str, Any]) -> str:
    """How the tags of a sink's state are written, or ValueError if it is damaged.

    >>> style_of({}), style_of({"tags": "levels"})
    ('commas', 'levels')
    """
    style = state.get("tags", COMMAS)
    if style not in (LEVELS, COMMAS):
        raise ValueError(f"expected a writer's state with tags {LEVELS!r}, got {style!r}")
    return style
