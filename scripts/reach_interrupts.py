"""Interrupt a tracked training at every line of the recorder, and say what is lost or doubled.

    python scripts/reach_interrupts.py --out scripts/reach_interrupts.json

A KeyboardInterrupt is raised at a line event of the recorder's own files, in steps, flushes and
close, one per run: for each kind of file and of sink, rows evaluated in the ring or in
the hook, with values of the loop. Then the loop goes on and closes. The trajectory, its file and
what every sink shows must be those of an uninterrupted run; the row of the step in which the
interrupt came may be missing. The script ends with an error if anything else is.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import reach

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "record")]

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false
from interrupted_runs import SINKS, events_of, survives  # noqa: E402

#: suffix of the file, sink, options
CASES = [
    *((suffix, sink, {}) for sink in SINKS for suffix in (None, ".npz", ".rows")),
    (".npz", "list", {"hook": True}),
    (".npz", "list", {"logs": True}),
    (".rows", "CSV", {"hook": True, "logs": True}),
]


def tried(suffix: str | None, sink: str, options: dict[str, bool], every: int) -> dict[str, object]:
    """Interrupt one kind of run at every ``every``-th event."""
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        events = events_of(Path(folder), suffix, sink, **options)
        chosen = events[::every]
        for number, at in enumerate(chosen):
            try:
                survives(Path(folder) / str(number), at, suffix, sink, **options)
            except AssertionError as error:
                failures.append(f"{at}: {error}")
    return {
        "file": suffix or "memory", "sink": sink, "options": sorted(options),
        "events": len(events), "interrupts": len(chosen), "failures": failures,
    }  # fmt: skip


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--every", type=int, default=4, help="one of so many line events")
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first so many")
    options = parser.parse_args()
    begun, rows = time.monotonic(), []
    for case in CASES[: options.cases]:
        rows.append(tried(*case, options.every))
        print(json.dumps(rows[-1]), flush=True)
    total = sum(row["interrupts"] for row in rows)
    failed = sum(len(row["failures"]) for row in rows)
    print(
        f"{total} interrupts, {failed} with rows lost or doubled, {time.monotonic() - begun:.0f} s"
    )
    reach.keep({"interrupts": total, "lost or doubled": failed, "cases": rows}, options)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
