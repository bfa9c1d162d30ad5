"""The other commands, what every command says of itself, and how mistakes end."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import torchlimits as tl
from torchlimits.cli.folders import new_folder
from torchlimits.cli.main import main

COMMANDS = ("run", "show", "compare", "figures", "regime", "bench")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def path():
    times = torch.linspace(0, 1, 5)
    values = torch.arange(20.0).reshape(2, 5, 2)
    made = tl.Trajectory(times, torch.arange(5), values, ["m[0,0]", "r2"])
    made.save("runs/a/0001/measured.npz")
    made.save("runs/a/0001/predicted.npz")
    return made


def one_sentence(capsys):
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("words", [[], *([c] for c in COMMANDS), ["run", "xor"]], ids=" ".join)
def test_every_command_has_help_in_sentences(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main([*words, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: {' '.join(['torchlimits', *words])} ")
    assert said.split("\n\n")[1].endswith(".")
    assert "None" not in said
    assert all(name in said for name in COMMANDS) or words


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("", 2, "Expected one of {run, show, compare"),
        ("run", 2, "xor, binary, matrix, tensor"),
        ("run nope", 2, "error: Unrecognized options: nope: see `torchlimits run --help`"),
        (
            "run xor --dmi 3",
            2,
            "error: Unrecognized options: --dmi, 3 (perhaps --dim was meant): see `torchlimits run "
            "xor --help`",
        ),
        ("run xor --dim x", 2, "torchlimits run xor --help"),
        ("run xor --dim 0", 1, "dim to be an int >= 1"),
        ("run xor --dim 5", 1, "dim >= number of means"),
        ("run xor --runs 0", 1, "runs to be an int >= 1"),
        ("run xor --step-size -1", 1, "step_size"),
        ("run xor --snr -1", 1, "snr"),
        ("run xor --time 0", 1, "time"),
        ("run xor --time 1e-9", 1, "at least one step"),
        ("run xor --seed -1", 1, "seed"),
        ("run xor --shown 0", 1, "shown"),
        ("run xor --ridge -1", 1, "ridge"),
        ("run xor --device nowhere", 1, "device"),
        ("run tensor --order 1", 1, "order >= 2"),
        ("run network --head nope", 2, "nope"),
        ("run network --classes 1", 1, "classes as an int >= 2"),
        ("run network --width 0", 1, "width to be an int >= 1"),
        ("run network --dim 6", 1, "classes + width = 7"),
        ("run teacher-student --noise -1", 1, "noise"),
        ("run teacher-student --dim 3", 1, "teacher_width + width = 4"),
        ("run --resume nowhere", 1, "no run.json"),
        ("run xor --logdir file", 1, "it is a file"),
        ("run xor --logdir file/below", 1, "expected a folder"),
        ("show nowhere", 1, "nowhere: No such file"),
        ("show file", 1, "file cannot be read"),
        ("show empty", 1, "which has none"),
        ("compare nowhere nowhere", 1, "nowhere: No such file"),
        ("compare file file", 1, "file cannot be read"),
        ("regime --dim 0 --lr 1", 1, "dim to be an int >= 1"),
        ("regime --dim 10 --lr -1", 1, "lr"),
        ("regime --dim 10 20 --lr 1", 1, "one lr a dim"),
        ("bench --steps 0", 1, "steps"),
        ("figures 4", 2, "invalid choice"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, code, message, capsys):
    Path("file").write_text("no trajectory")
    Path("empty").mkdir()
    assert main(arguments.split()) == code
    assert message in one_sentence(capsys)
    assert not Path("runs").exists()


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
@pytest.mark.parametrize("colourless", [True, False])
def test_no_color_holds_in_a_terminal(colourless):
    import pty

    outer, inner = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1" if colourless else ""}
    command = [sys.executable, "-m", "torchlimits", "regime", "--help"]
    with subprocess.Popen(command, stdout=inner, stderr=inner, env=environment) as done:
        os.close(inner)
        said = b""
        with contextlib.suppress(OSError):  # at its end
            while piece := os.read(outer, 4096):
                said += piece
        assert done.wait() == 0
    os.close(outer)
    assert b"Say in words whether a learning rate is critical" in said
    assert (b"\x1b[" not in said) is colourless


def test_show_prints_first_and_last_values(path, capsys):
    assert main(["show", "runs/a/0001/measured.npz"]) == 0
    *_, m, r2 = capsys.readouterr().out.strip().splitlines()
    assert m.split() == ["m[0,0]", "0.0000", "...", "10.0000", "8.0000", "...", "18.0000"]
    assert r2.split()[0] == "r2"


def test_show_of_a_log_directory_names_every_run(path, capsys):
    path.save("runs/b/u.npz")
    Path("runs/b/broken.npz").write_bytes(b"PK")
    assert main(["show", "runs"]) == 0
    said = capsys.readouterr().out
    for name in ("a/0001/measured.npz", "a/0001/predicted.npz", "b/u.npz"):
        (line,) = [line for line in said.splitlines() if line.startswith(name)]
        assert line.split()[1:] == ["2", "5", "4", "1", "2", "complete"]
    assert "b/broken.npz: expected a trajectory file" in said


def test_nothing_is_lost_in_sixty_columns(path, capsys, monkeypatch):
    long = "a-rather-long-name-of-an-experiment"
    path.save(f"runs/{long}/u.npz")
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["show", "runs"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 60
    assert f"{long}/u.npz" in said
    for column in ("statistics", "rows", "last step", "runs", "state"):
        assert column in said
    assert said.count("complete") == 3


def test_show_draws_and_writes(path, capsys):
    assert main(["show", "runs/a/0001", "--plot", "both.png"]) == 0
    assert main(["show", "runs/a/0001/measured.npz", "--plot", "one.pdf", "--to", "u.csv"]) == 0
    assert main(["show", "runs/a/0001/measured.npz", "--to", "new/u.npz"]) == 0
    assert Path("both.png").read_bytes().startswith(b"\x89PNG")
    assert Path("one.pdf").read_bytes().startswith(b"%PDF")
    assert torch.equal(tl.Trajectory.load("new/u.npz").values, path.values)
    header, *rows = Path("u.csv").read_text().splitlines()
    assert header == 'step,time,run,"m[0,0]",r2'
    assert len(rows) == 10
    capsys.readouterr()
    for wrong, message in (
        (["runs/a/0001/measured.npz", "--to", "u.txt"], ".csv or .npz"),
        (["runs/a/0001", "--to", "u.csv"], "expected one trajectory"),
    ):
        assert main(["show", *wrong]) == 1
        assert message in one_sentence(capsys)


def test_compare_prints_the_table(path, capsys):
    assert main(["compare", "runs/a/0001/measured.npz", "runs/a/0001/predicted.npz"]) == 0
    assert capsys.readouterr().out.strip() == str(tl.compare(path, path)).strip()


def test_warnings_are_notes_without_lines_of_code(path, capsys):
    Path("runs/a/0001/measured.npz").rename("u.npz.unfinished")
    assert main(["show", "u.npz"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("note: there is no u.npz")
    assert said.count("\n") == 1


def test_regime_in_words(capsys):
    assert main(["regime", "--dim", "1000", "--lr", "0.001"]) == 0
    assert capsys.readouterr().out.startswith("critical: c_delta = lr * dim = 1: ")
    assert main(["regime", "--dim", "100", "--lr", "10"]) == 0
    said = capsys.readouterr()
    assert "supercritical" in said.out
    assert "lower lr" in said.out
    assert not said.err


def test_bench_says_what_its_numbers_are(capsys):
    assert main(["bench", "--steps", "5", "--dim", "20", "--rounds", "2"]) == 0
    said = capsys.readouterr().out
    assert "A bare step takes" in said
    assert "median of the rounds' ratios" in said


@pytest.mark.parametrize(
    ("number", "found"),
    [
        pytest.param("1", "equator at snr 0.8", marks=pytest.mark.slow),
        pytest.param("2", "rank 1 in theory", marks=pytest.mark.slow),
        pytest.param("3", "rank 2 in theory", marks=pytest.mark.slow),
    ],
)
def test_figures(number, found, capsys):
    assert main(["figures", number, "--smoke", "--logdir", "f"]) == 0
    assert found in capsys.readouterr().out
    assert Path(f"f/figure{number}.png").read_bytes().startswith(b"\x89PNG")
    assert list(Path(f"f/figure{number}").rglob("*tfevents*"))


def test_an_interrupt_of_any_command_is_one_sentence(monkeypatch, capsys):
    from torchlimits.cli.regime import Regime

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Regime, "main", interrupted)
    assert main(["regime", "--dim", "10", "--lr", "1"]) == 130
    assert capsys.readouterr().err == "Interrupted: there was nothing to save.\n"


def test_programs_that_begin_at_once_get_different_numbers(tmp_path):
    folders = []
    ready = threading.Barrier(8)

    def begin(i):
        ready.wait()
        folders.extend(new_folder(tmp_path, f"snr{i}").path for _ in range(4))

    threads = [threading.Thread(target=begin, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({folder.name[:4] for folder in folders}) == 32
    assert sorted(folders) == sorted(tmp_path.iterdir())
