"""Names of statistics: ``m[0,1]`` belongs to the family ``m``, ``loss/train`` to ``loss``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

#: at most so many names are listed one by one in a message, and more as families
_LISTED = 8


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """The stem and the indices of a name; no indices for one that does not end in them.

    Example:
        >>> parse("m[0,1]"), parse("loss/train"), parse("layer[0][1]")
        (('m', (0, 1)), ('loss/train', ()), ('layer[0][1]', ()))
    """
    match = re.fullmatch(r"([^\[\]]+)\[(\d+(?:,\d+)*)\]", name)
    return (name, ()) if match is None else (match[1], tuple(map(int, match[2].split(","))))


def family_of(name: str) -> str:
    """The family that a name is listed, drawn and shown with; its own name if it is alone.

    Example:
        >>> [family_of(name) for name in ("m[0,1]", "loss/train", "r2", "a/b[0]")]
        ['m', 'loss', 'r2', 'a/b']
    """
    stem, indices = parse(name)
    return stem if indices else (name.rpartition("/")[0] or name)


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """The names by family, both in the order in which they come.

    Example:
        >>> families(["m[0]", "r2", "m[1]"])
        {'m': ['m[0]', 'm[1]'], 'r2': ['r2']}
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(family_of(name), []).append(name)
    return found


def chosen(asked: object, names: Collection[str]) -> list[str]:
    """The names that ``asked`` stands for: the same name, or else those of the family.

    Of many names, some that are asked for one by one are found faster in a dict or set.

    Raises:
        ValueError: if there are none; the message says which names there are.

    Example:
        >>> names = ["m[0,0]", "m[0,1]", "loss", "loss/train", "mean"]
        >>> chosen("m", names), chosen("loss", names), chosen("m[0,1]", names)
        (['m[0,0]', 'm[0,1]'], ['loss'], ['m[0,1]'])
    """
    if isinstance(asked, str):
        if asked in names:
            return [asked]
        members = [name for name in names if name.startswith((f"{asked}[", f"{asked}/"))]
        if members:
            return members
    raise ValueError(
        f"expected one of the statistics {listed(names)}, or the name of a family, got {asked!r}"
        + _nearest(asked, names)
    )


def listed(names: Collection[str]) -> str:
    """All names if they are few; otherwise the families, each with its first and last entry.

    Example:
        >>> print(listed(["m", "r2"]))
        ['m', 'r2']
        >>> print(listed([f"m[{i},{j}]" for i in range(4) for j in range(4)] + ["r2"]))
        ['m[0,0]' ... 'm[3,3]' (16), 'r2']
    """
    if len(names) <= _LISTED:
        return str(list(names))
    parts = [
        repr(members[0]) + (f" ... {members[-1]!r} ({len(members)})" if len(members) > 1 else "")
        for members in families(names).values()
    ]
    if len(parts) > 2 * _LISTED:
        parts = [*parts[: 2 * _LISTED], f"... and {len(parts) - 2 * _LISTED} more"]
    return f"[{', '.join(parts)}]"


def _nearest(asked: object, names: Collection[str]) -> str:
    known = [*dict.fromkeys([*names, *families(names)])]
    near = difflib.get_close_matches(asked, known, n=1) if isinstance(asked, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""
