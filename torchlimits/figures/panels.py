"""Which statistics a figure draws together, with their labels and colours."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import matplotlib as mpl
from matplotlib.colors import to_hex

from torchlimits._names import families, parse
from torchlimits.trajectory import spread_rows

#: more panels, or more curves in one, would be slow to draw and told apart by nobody
MOST_PANELS, MOST_CURVES = 24, 48


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

    def only(self, names: Collection[str]) -> Panel:
        """The panel of those of its statistics that are among the names.

        >>> Panel("m", ["m[0]", "m[1]"], ["0", "1"], ["red", "blue"]).only({"m[1]"}).colours
        ['blue']
        """
        return self._rows([i for i, name in enumerate(self.names) if name in names])

    def thinned(self, curves: int) -> Panel:
        """The panel of at most so many statistics, evenly spread, which its title tells.

        >>> Panel("m", ["m[0]", "m[1]", "m[2]"], ["0", "1", "2"], ["red"] * 3).thinned(2)
        Panel(title='m, 2 of 3', names=['m[0]', 'm[2]'], labels=['0', '2'], colours=['red', 'red'])
        """
        if len(self.names) <= curves:
            return self
        thin = self._rows(spread_rows(len(self.names), curves).tolist())
        return replace(thin, title=f"{self.title}, {curves} of {len(self.names):,}")

    def _rows(self, rows: Sequence[int]) -> Panel:
        parts = (self.names, self.labels, self.colours)
        return Panel(self.title, *([part[i] for i in rows] for part in parts))


def panels_of(names: Sequence[str]) -> list[Panel]:
    """Families of statistics; m by its columns, R by diagonal and rest."""
    panels = [panel for stem, own in families(names).items() for panel in _split(stem, own)]
    # a symmetric family may be given without its diagonal, or as the diagonal alone
    return [panel.thinned(MOST_CURVES) for panel in panels if panel.names]


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
        rest = [name for name in names if of[name][0] != of[name][1]]
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
