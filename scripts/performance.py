"""The table of costs in docs/performance.md: each row says where, when and by what it was measured.

    python scripts/bench_tracking.py --keep          # measure, and put its rows for its older ones
    python scripts/performance.py                    # write the table from performance.json
    python scripts/performance.py cuda/results.json  # the rows that bench_cuda.py found on a card

`performance.json` holds the rows as the table shows them, with the processor or card, date, commit
and command of each. What `COMMANDS` names and nobody has measured is in the table as such.
"""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import pages
import reach

PAGE = Path(__file__).parent.parent / "docs/performance.md"
KEPT = Path(__file__).with_name("performance.json")

CPU, CARD = "CPU", "card"

_CUDA = "scripts/bench_cuda.py --out DIR --parts"

#: what there is to measure: the command, where, and what it is about
COMMANDS = {
    "scripts/bench_tracking.py": (CPU, "`tl.track` around a loop"),
    "scripts/bench_writing.py": (CPU, "`tensorboard.write`"),
    "scripts/bench_ensemble.py": (CPU, "`tl.train`"),
    "scripts/bench_reduced.py": (CPU, "`reduced_chain`"),
    "scripts/bench_estimate.py": (CPU, "`tl.estimate`"),
    "scripts/bench_solver.py": (CPU, "`dynamics.solve`, `tl.basins`"),
    "scripts/bench_solver.py --starts 10000 --rounds 1": (CPU, "`dynamics.solve`, 10,000 starts"),
    "scripts/bench_solver.py --followed 10000 --rounds 1": (CPU, "`tl.basins`, 10,000 starts"),
    "scripts/bench_heads.py": (CPU, "any head"),
    "scripts/bench_optimizers.py": (CPU, "optimizers with second moments"),
    "scripts/bench_sweep.py": (CPU, "`tl.sweep`"),
    f"{_CUDA} tracking": (CARD, "`tl.track` around three loops"),
    f"{_CUDA} ensemble": (CARD, "`tl.train`"),
    f"{_CUDA} theory": (CARD, "`reduced_chain`, `dynamics.solve`, `tl.basins`, `tl.estimate`"),
    f"{_CUDA} memory": (CARD, "peak memory"),
}

#: columns, and whether they hold numbers
COLUMNS = {
    "what": "---", "ours": "---:", "plain": "---:", "floor": "---:", "plain / ours": "---:",
    "ours / floor": "---:", "plain and floor are": "---", "measured on": "---",
    "by, date, commit": "---",
}  # fmt: skip


class Kept(TypedDict):
    """A row, and what it is of."""

    command: str
    where: str
    date: str
    commit: str
    cells: list[str]


def command(arguments: Sequence[str]) -> str:
    """The command line as the tables name it, without how its results are shown."""
    script, *options = arguments
    wanted = [option for option in options if option not in {"--keep", "--markdown"}]
    return shlex.join([f"scripts/{Path(script).name}", *wanted])


def load() -> list[Kept]:
    """The rows kept so far."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else []


def keep(
    by: str, rows: list[list[str]], where: str, date: str | None = None, commit: str | None = None
) -> None:
    """Put the rows of a command in place of those it had on such a machine, and write the table.

    `where` begins with "CPU" or "card".
    """
    if not rows:
        raise ValueError(f"expected rows of {by!r}, got none")
    date, commit = date or datetime.date.today().isoformat(), commit or reach.commit()
    kept = load()
    new = [Kept(command=by, where=where, date=date, commit=commit, cells=cells) for cells in rows]
    same = [i for i, row in enumerate(kept) if (row["command"], kind(row)) == (by, kind(new[0]))]
    place = same[0] if same else len(kept)
    others = [row for i, row in enumerate(kept) if i not in same]
    kept = [*others[:place], *new, *others[place:]]
    KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    write(kept)


def kind(row: Kept) -> str:
    """CPU or card."""
    return row["where"].partition(":")[0]


def header(columns: dict[str, str]) -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (columns.keys(), columns.values())]


def source(row: Kept) -> str:
    """The last cells: machine, command, date, commit."""
    return f"{row['where']} | `{row['command']}`, {row['date']}, {row['commit']}"


def table(kept: list[Kept]) -> str:
    """All rows, CPU first, and what was never measured."""
    lines = header(COLUMNS)
    for where in (CPU, CARD):
        lines += [
            f"| {' | '.join(row['cells'])} | {source(row)} |" for row in kept if kind(row) == where
        ]
        found = {row["command"] for row in kept if kind(row) == where}
        lines += [
            f"| {what} | never measured |  |  |  |  |  | {where} | `{by}` |"
            for by, (on, what) in COMMANDS.items()
            if on == where and by not in found
        ]
    return "\n".join(lines)


def page(kept: list[Kept]) -> str:
    """What the page on performance has to say."""
    return pages.written(PAGE.read_text(), "performance.py", table(kept))


def write(kept: list[Kept]) -> None:
    """Write the table into the page."""
    PAGE.write_text(page(kept))


def from_card(results: Path) -> None:
    """Keep what bench_cuda.py found."""
    found = json.loads(results.read_text())
    parts: dict[str, list[list[str]]] = {}
    for finding in found["findings"]:
        if "cells" in finding:
            parts.setdefault(finding["part"], []).append(finding["cells"])
    where = f"{CARD}: {found.get('card', 'unknown').partition(',')[0]}"
    for part, rows in parts.items():
        keep(f"{_CUDA} {part}", rows, where, found["date"], found["commit"])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        from_card(Path(name))
    write(load())
