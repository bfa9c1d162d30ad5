"""Parts of the paper's figures: the same results for any number of processes, which all end."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console

from torchlimits.cli.main import main
from torchlimits.cli.paper import board as boards
from torchlimits.cli.paper.board import Board
from torchlimits.cli.paper.parts import Part
from torchlimits.cli.paper.workers import results


def draws(seed, count, tell):
    """Sums of random numbers, whose last digits depend on the number of threads."""
    generator = torch.Generator().manual_seed(seed)
    tell(0, count)
    numbers = torch.randn(200_000, generator=generator)
    tell(count, count)
    return numbers.sum(), torch.get_num_threads()


def waits(tell):
    tell(1, 2)
    time.sleep(3600)


def fails(tell):
    raise ValueError("there is no such point")


def kills(tell):
    os.kill(os.getpid(), signal.SIGKILL)


def board(parts):
    return Board(parts, Console(file=io.StringIO(), width=100))


def lines(board):
    return board._console.file.getvalue().splitlines()


def all_but(others):
    """Wait until other processes have ended: a thread of the pool may be the one to hear of it."""
    while set(multiprocessing.active_children()) != others:
        time.sleep(0.01)


def found(parts, jobs):
    shown = board(parts)
    with shown.shown():
        return list(results(parts, jobs, shown)), lines(shown)


def test_results_are_those_of_one_process():
    """The long ones first, whatever their order; each tells of itself."""
    parts = [Part("2", f"draw {seed}", float(seed), draws, (seed, 7)) for seed in range(4)]
    before = torch.get_num_threads()
    alone, said = found(parts, 1)
    together, said_together = found(parts, 2)
    assert [part.name for part, _ in alone] == ["draw 3", "draw 2", "draw 1", "draw 0"]
    assert dict(alone) == dict(together)
    assert {result[1] for _, result in together} == {1}
    assert len({float(result[0]) for _, result in alone}) == 4
    assert torch.get_num_threads() == before
    assert said[0] == "parts to be done: 4"
    assert said[1:3] == ["figure 2, draw 3: begins", "figure 2, draw 3: done after 0 s"]
    for lines in (said, said_together):
        for part in parts:
            assert [line for line in lines if line.startswith(f"{part}: done after")]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_part_that_fails_is_named_and_ends_the_others(jobs):
    others = set(multiprocessing.active_children())
    parts = [Part("1", "a search", 2.0, fails, ()), Part("1", "a wait", 1.0, waits, ())]
    with pytest.raises(RuntimeError, match=r"^figure 1, a search: there is no such point$"):
        found(parts, jobs)
    all_but(others)


@pytest.mark.slow
def test_a_process_that_is_killed_is_told():
    others = set(multiprocessing.active_children())
    parts = [Part("1", "a crash", 2.0, kills, ()), Part("1", "a wait", 1.0, waits, ())]
    with pytest.raises(RuntimeError, match=r"'figure 1, a crash'.* is gone, killed or out of"):
        found(parts, 2)
    all_but(others)


_SCRIPT = """
import test_figure_parts as own
from torchlimits.cli.paper.board import Board
from torchlimits.cli.paper.parts import Part
from torchlimits.cli.paper.workers import results

if __name__ == "__main__":
    parts = [Part("1", f"wait {i}", 1.0, own.waits, ()) for i in range(2)]
    shown = Board(parts)
    try:
        list(results(parts, 2, shown))
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_an_interrupt_from_the_keyboard_ends_all_processes_without_a_traceback(tmp_path):
    (tmp_path / "script.py").write_text(_SCRIPT)
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    program = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
    )  # fmt: skip
    try:
        begun = [program.stderr.readline() for _ in range(2)]
        assert sorted(begun) == [f"figure 1, wait {i}: begins\n" for i in range(2)]
        os.killpg(program.pid, signal.SIGINT)
        # it waits for all that write there: no process may be left
        out, err = program.communicate(timeout=1800)
    finally:
        program.kill()
    assert (out, err) == ("interrupted\n", "")


def test_lines_say_how_far_a_part_has_come(monkeypatch):
    monkeypatch.setattr(boards, "_PAUSE", 0.0)
    part = Part("3", "random starts", 1.0, draws, ())
    shown = board([part])
    with shown.shown():
        for made in (0, 4096, 15_000):
            shown.tell(part, made, 15_000)
        with shown.away():
            pass
        shown.end(part, 61.4)
    assert lines(shown) == [
        "parts to be done: 1",
        "figure 3, random starts: begins",
        "figure 3, random starts: 0/15,000 steps after 0 s",
        "figure 3, random starts: 4,096/15,000 steps after 0 s",
        "figure 3, random starts: 15,000 steps made after 0 s",
        "figure 3, random starts: done after 61 s",
    ]


def test_a_terminal_shows_bars_that_fit_and_leave_nothing():
    parts = [Part("1", "dense SGD at snr 1.2", 1.0, draws, ()), Part("1", "rest", 1.0, draws, ())]
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    shown = Board(parts, console)
    with shown.shown():
        shown.tell(parts[0], 12_345, 15_000)
        shown._bars.refresh()
        text = console.file.getvalue()
        with shown.away():
            console.print("numbers")
    (bar,) = {line for line in text.splitlines() if "12,345" in line}
    assert "figure 1, dense SGD at snr 1.2" in bar
    assert "12,345/15,000 steps" in bar
    assert "rest" in text
    assert "waits" in text
    assert "begins" not in text
    # the cursor goes up over what was shown
    assert console.file.getvalue().count("\x1b[1A") >= 2


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_a_number_of_processes_that_there_is_not(jobs, capsys):
    assert main(["figures", "2", "--smoke", "--jobs", jobs]) == 1
    assert "expected --jobs to be an int >= 1" in capsys.readouterr().err
