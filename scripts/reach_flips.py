"""Flip every bit of a trajectory's files, and say what `Trajectory.load` makes of it.

    python scripts/reach_flips.py --out scripts/reach_flips.json

For each kind of file: every single bit, flips of two random bits, runs of random bytes, cuts and
additions. Whatever is loaded must be what was saved or, for a run that was not finished, its first
rows: cut between two rows, such a file is what it was a moment earlier, and a warning tells of a
torn end. Anything else is a wrong trajectory that nobody is told of: the script ends with an error
if there is one.
"""

from __future__ import annotations

import contextlib
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import reach
import torch

import torchlimits as tl
from torchlimits.files.rows import Header
from torchlimits.record.recording import Recording

_ROWS = 12


class Warned(logging.Handler):
    """How many warnings the library gave."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        self.count += 1


WARNED = Warned()


def trajectory() -> tl.Trajectory:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(_ROWS, 3, generator=generator, dtype=torch.float64)
    values[:5, 2] = torch.nan
    steps = torch.arange(_ROWS) * 2
    return tl.Trajectory(steps * 0.125, steps, values, ["m", "R[0,1]", "loss"],
                         metadata={"parameters": {"lr": 0.125}})  # fmt: skip


def files(folder: Path) -> dict[str, Path]:
    """One file of each kind, of the same trajectory."""
    whole = trajectory()
    header = Header(whole.names, (), whole.metadata)
    found = {"npz": folder / "u.npz", "npz with std": folder / "s.npz", "rows": folder / "u.rows"}
    whole.save(found["npz"])
    tl.Trajectory(whole.times, whole.steps, whole.values, whole.names, whole.values.abs()).save(
        found["npz with std"]
    )
    recording = Recording(header, found["rows"], 2**20)
    recording.append(whole.steps, whole.times, whole.values)
    recording.finish(recording.trajectory())
    recording = Recording(header, folder / "v.rows", 2**20)
    recording.append(whole.steps, whole.times, whole.values)
    recording.write()
    content = (folder / "v.rows.unfinished").read_bytes()
    found["rows, unfinished"] = folder / "w.rows"
    found["rows, unfinished"].write_bytes(content)
    return found


def single_bits(content: bytes, every: int) -> Iterator[bytes]:
    for bit in range(0, 8 * len(content), every):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def others(content: bytes, number: int) -> Iterator[bytes]:
    """Two bits, runs of bytes, cuts and additions."""
    numbers = random.Random(0)
    for _ in range(number):
        damaged = bytearray(content)
        for bit in numbers.sample(range(8 * len(content)), 2):
            damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)
        begin = numbers.randrange(len(content))
        damaged = bytearray(content)
        damaged[begin : begin + numbers.randrange(1, 200)] = numbers.randbytes(
            numbers.randrange(1, 200)
        )
        yield bytes(damaged)
        yield content[: numbers.randrange(len(content))]
        yield content + numbers.randbytes(numbers.randrange(1, 200))


def outcome(path: Path, damaged: bytes, whole: tl.Trajectory, unfinished: bool) -> str:
    path.write_bytes(damaged)
    before = WARNED.count
    try:
        found = tl.Trajectory.load(path)
    except ValueError:
        return "refused"
    warned = ", warned" if WARNED.count > before else ""
    if same(found, whole):
        return f"whole{warned}"
    # two lines of multiples of 64 bytes, then nothing but the rows that were found
    between = (len(damaged) - len(found) * Header(whole.names, ()).row.itemsize) % 64 == 0
    if unfinished and (warned or between) and same(found, whole.slice(slice(0, len(found)))):
        return f"first rows{warned}"
    return "WRONG"


def same(one: tl.Trajectory, other: tl.Trajectory) -> bool:
    def bits(path: tl.Trajectory) -> list[bytes]:
        tensors = [path.times, path.steps, path.values]
        tensors += [] if path.std is None else [path.std]
        return [x.contiguous().numpy().tobytes() for x in tensors]

    return (
        bits(one) == bits(other)
        and list(one.names) == list(other.names)
        and one.metadata == other.metadata
    )


def count(every: int, number: int) -> dict[str, dict[str, int]]:
    """Outcomes of each kind of file and damage; every so many bits are flipped."""
    found: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder, counted():
        for kind, path in files(Path(folder)).items():
            content, whole = path.read_bytes(), tl.Trajectory.load(path)
            unfinished = "unfinished" in kind
            damages = {"one bit": single_bits(content, every), "others": others(content, number)}
            for name, damaged in damages.items():
                outcomes = (outcome(path, one, whole, unfinished) for one in damaged)
                found[f"{kind}: {name}"] = dict(sorted(Counter(outcomes).items()))
    return found


@contextlib.contextmanager
def counted() -> Generator[None]:
    """Warnings are counted, not shown."""
    log = logging.getLogger("torchlimits")
    shown, log.propagate = log.propagate, False
    log.addHandler(WARNED)
    try:
        yield
    finally:
        log.removeHandler(WARNED)
        log.propagate = shown


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--every", type=int, default=1, help="flip every so many bits")
    parser.add_argument("--others", type=int, default=500, help="other damages, of each of 4 kinds")
    options = parser.parse_args()
    found = count(options.every, options.others)
    wrong = sum(outcomes.get("WRONG", 0) for outcomes in found.values())
    figures = {
        "files tried": sum(sum(outcomes.values()) for outcomes in found.values()),
        "wrong and silent": wrong,
        "outcomes": found,
    }
    reach.keep(figures, options)
    if wrong:
        raise SystemExit(f"{wrong} files were loaded as something else")


if __name__ == "__main__":
    main()
