"""Which statistics a figure draws together, with their labels and colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.colors import to_hex

from torchlimits._names import families, parse

MOST_PANELS = 24


@dataclass(frozen=True)
class Panel:
    """Statistics drawn together, each with its label and colour, which several may share."""

    title: str
    names: list[str]
    labels: list[str]
    colours: list[str]

    @property
    def key(self) -> dict[str, str]:
        """The colour of each label."""
        return dict(zip(self.labels, self.colours, strict=True))


def panels_of(names: Sequence[str]) -> list[Panel]:
    """Families of statistics; m by its columns, R by diagonal and rest; `MOST_PANELS` at most."""
    panels = [panel for stem, own in families(names).items() for panel in _split(stem, own)]
    # a symmetric family may be given without its diagonal, or as the diagonal alone
    return [panel for panel in panels if panel.names][:MOST_PANELS]


def _split(stem: str, names: list[str]) -> list[Panel]:
    """The panels of one family."""
    indices = [parse(name)[1] for name in names]
    first = sorted({index[0] for index in indices if index})
    colour = dict(zip(first, _palette(len(first)), strict=True))
    if any(len(index) != 2 for index in indices):
        title = _symbol(stem, "i") if all(indices) else stem
        by_index = all(len(index) == 1 for index in indices)
        colours = [colour[i[0]] for i in indices] if by_index else _palette(len(names))
        return [_panel(title, names, colours)]
    of = dict(zip(names, indices, strict=True))
    if len(first) > 1 and all(i <= j for i, j in indices):
        diagonal = [name for name in names if of[name][0] == of[name][1]]
        rest = [name for name in names if name not in diagonal]
        others = _palette(len(rest), "Dark2")
        return [
            _panel(_symbol(stem, "ii"), diagonal, [colour[of[name][0]] for name in diagonal]),
            _panel(_symbol(stem, "ij"), rest, others),
        ]
    if "." in stem:  # a parameter under its own name: one panel, one colour for each row
        title = _symbol(stem, "i,j")
        rows = [f"[{i},:]" for i, _ in indices]
        return [Panel(title, names, rows, [colour[i] for i, _ in indices])]
    columns = sorted({j for _, j in indices})
    if len(columns) > 6:
        return [_panel(_symbol(stem, "i,j"), names, _palette(len(names)))]
    members = [[name for name in names if of[name][1] == j] for j in columns]
    return [
        _panel(_symbol(stem, f"i,{j}"), group, [colour[of[name][0]] for name in group])
        for j, group in zip(columns, members, strict=True)
    ]


def _panel(title: str, names: list[str], colours: list[str]) -> Panel:
    return Panel(title, names, [_label(name) for name in names], colours)


def _label(name: str) -> str:
    stem, indices = parse(name)
    if "." in stem and indices:  # names of parameters are long, and the panel's title has them
        return f"[{','.join(map(str, indices))}]"
    return _symbol(stem, ",".join(map(str, indices)))


def _symbol(stem: str, index: str) -> str:
    """Mathematics for one-letter families, the name as it is for all others."""
    if len(stem) == 1 and stem.isalpha():
        return f"${stem}_{{{index}}}$" if index else f"${stem}$"
    return (f"{stem}[{index}]" if index else stem).replace("$", r"\$")


def _palette(count: int, name: str = "tab10") -> list[str]:
    colours = mpl.colormaps[name]
    many = mpl.colormaps["viridis"]
    if count <= colours.N:
        chosen = [colours(i) for i in range(count)]
    else:
        chosen = [many(0.92 * i / (count - 1)) for i in range(count)]
    return [to_hex(colour) for colour in chosen]
