"""`Table`: the one kind of table for results, in terminals, pipes, rich and notebooks."""

from __future__ import annotations

import html
import os
import shutil
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as RichTable

_GAP = "  "
#: sentences are not broken into lines shorter than this
_PROSE = 24


@dataclass(frozen=True)
class Table:
    """Rows of cells, with a line that says what each column is.

    Args:
        rows: the header and one row for each entry, all of the same length. The first column is
            aligned to the left, the others to the right.
        notes: for each column that is explained beneath, its header and what it says.
        title: above the table.
        below: lines beneath the table.
        prose: whether the last column holds sentences, which are aligned to the left.

    Example:
        >>> table = Table([["statistic", "u", "at t"], ["m", "0.25", "1"]], {"at t": "when"})
        >>> print(table.text())
        statistic     u  at t
        m          0.25     1
        <BLANKLINE>
        at t  when
        >>> print(table.text(width=16))
        statistic     u
        m          0.25
        <BLANKLINE>
        statistic  at t
        m             1
        <BLANKLINE>
        at t  when
        >>> table.html().count("<td"), table.rich().row_count
        (3, 1)
    """

    rows: Sequence[Sequence[str]]
    notes: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    below: Sequence[str] = ()
    prose: bool = False

    def text(self, width: int | None = None) -> str:
        """The table as text, without a line longer than ``width`` where words allow that.

        A table that is too wide goes on beneath, with its first column repeated; where not even two
        columns fit, every cell has a line of its own. None of the columns is lost.
        """
        lines = "\n".join([self.title] * bool(self.title) + list(self._lines(width))).split("\n")
        parts = ["\n".join(_folded(line, "", width) for line in lines)]
        parts += ["\n".join(_folded(line, "", width) for line in self.below)] if self.below else []
        widest = max(map(len, self.notes), default=0)
        notes = [_folded(note, key.ljust(widest) + _GAP, width) for key, note in self.notes.items()]
        parts += ["\n".join(notes)] if notes else []
        return "\n\n".join(parts)

    def _lines(self, width: int | None) -> Iterator[str]:
        columns = list(zip(*self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        last = len(widths) - 1
        limit = sys.maxsize if width is None else width
        least = [min(w, _PROSE) if self.prose and i == last else w for i, w in enumerate(widths)]
        if last and widths[0] + len(_GAP) + max(least[1:]) > limit:
            yield from self._records(limit)
            return
        for number, block in enumerate(_blocks(widths, least, limit)):
            if number:
                yield ""
            for row in self.rows:
                cells = [row[0].ljust(widths[0])]
                cells += [row[i].rjust(widths[i]) for i in block if not self.prose or i < last]
                line = _GAP.join(cells)
                if self.prose and last in block:
                    line = _folded(row[last], line + _GAP, width)
                yield line.rstrip()

    def _records(self, limit: int) -> Iterator[str]:
        header, *rows = self.rows
        for row in rows:
            yield row[0]
            for name, cell in zip(header[1:], row[1:], strict=True):
                line = f"{_GAP}{name}: {cell}"
                yield line if len(line) <= limit else f"{_GAP}{name}:\n{_GAP * 2}{cell}"

    def rich(self) -> RichTable:
        """The table as a rich table, to be put beside others; rich may cut what is too wide."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table as RichTable

        header, *rows = self.rows
        table = RichTable(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.title_justify = table.caption_justify = "left"
        table.title = escape(self.title) or None
        table.caption = escape("\n".join(self.below)) or None
        for i, column in enumerate(header):
            width = max((len(row[i]) for row in rows), default=0)
            table.add_column(column, justify="right" if i else "left", min_width=width)
        for row in rows:
            table.add_row(*map(escape, row))
        return table

    def html(self) -> str:
        """The table as plain HTML: no script, and no colour that a dark page would hide."""
        header, *rows = self.rows
        lines = [f"<p>{html.escape(self.title)}</p>"] if self.title else []
        lines += ["<table>", "<thead>", self._html_row(header, "th"), "</thead>", "<tbody>"]
        lines += [*(self._html_row(row, "td") for row in rows), "</tbody>", "</table>"]
        lines += [f"<p>{html.escape(line)}</p>" for line in self.below]
        if self.notes:
            notes = [f"<b>{html.escape(k)}</b>: {html.escape(v)}" for k, v in self.notes.items()]
            lines.append(f"<p><small>{'<br>'.join(notes)}</small></p>")
        return "\n".join(lines)

    def _html_row(self, row: Sequence[str], tag: str) -> str:
        left = {0, len(row) - 1} if self.prose else {0}
        cells = [
            f'<{tag} style="text-align: {"left" if i in left else "right"}">'
            f"{html.escape(cell)}</{tag}>"
            for i, cell in enumerate(row)
        ]
        return f"<tr>{''.join(cells)}</tr>"


def _blocks(widths: Sequence[int], least: Sequence[int], limit: int) -> list[list[int]]:
    """Columns after the first, as many beside each other as there is room for."""
    blocks: list[list[int]] = [[]]
    used = widths[0]
    for i in range(1, len(widths)):
        if blocks[-1] and used + len(_GAP) + least[i] > limit:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(i)
        used += len(_GAP) + least[i]
    return blocks


def _folded(line: str, indent: str, width: int | None) -> str:
    """Words after an indent; the lines that follow begin below the first word."""
    if width is None or len(indent) + len(line) <= width:
        return indent + line
    hang = len(indent) if len(indent) + _PROSE <= width else 2
    return textwrap.fill(
        indent + line, max(width, 8), subsequent_indent=" " * hang, drop_whitespace=True,
        break_long_words=False, break_on_hyphens=False, replace_whitespace=False,
    )  # fmt: skip


def terminal_width() -> int | None:
    """The columns of the terminal that is printed to, or those of the variable COLUMNS.

    None where there is neither, for a pipe or a file: whoever reads that may fold the lines.
    """
    if os.environ.get("COLUMNS", "").isdigit():
        return int(os.environ["COLUMNS"]) or None
    try:
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    except (AttributeError, ValueError):  # without a stdout, or with a closed one
        return None


class Tabular(ABC):
    """Shows itself as a `Table` when it is printed, with rich too, and in notebooks."""

    @abstractmethod
    def _table(self) -> Table:
        """The table."""

    def __str__(self) -> str:
        return self._table().text(terminal_width())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(self._table().text(options.max_width), overflow="fold")

    def _repr_html_(self) -> str:
        return self._table().html()
