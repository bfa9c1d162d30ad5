"""Sweeps: what is computed where, what a killed process costs, what is refused."""

import multiprocessing
import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from agents import launched

import torchlimits as tl
from torchlimits.experiments.identity import identity
from torchlimits.experiments.ranks import rank_and_size

GRID = {"snr": [0.5, 1.0, 2.0], "width": [1, 2, 3, 4]}
MATRIX = partial(tl.SpikedTensor, dim=100, order=2)
_CONTEXT = multiprocessing.get_context("forkserver")
# children are forked from a process that has these already
_CONTEXT.set_forkserver_preload(["torchlimits.experiments.phase_diagram"])


def drawn(snr, width):
    """Random numbers of every kind, which have to depend on the point alone."""
    return {"draws": snr * torch.randn(3), "width": width, "seed": torch.initial_seed()}


def noted(folder, snr, width, dies_at=None):
    """`drawn`, with a note of each call; the first process that comes to a point is killed."""
    with (folder / "notes").open("a") as notes:
        notes.write(f"{snr} {width}\n")
    if (snr, width) == dies_at and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return drawn(snr, width)


def _work(folder, rank, size, dies_at):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    function = partial(noted, folder, dies_at=dies_at)
    found = tl.sweep(function, GRID, folder=folder / "sweep")
    torch.save(found["draws"], folder / f"found.{rank}.pt")


def shared(folder, size, dies_at=None):
    """The exit codes of so many processes that share a sweep."""
    ranks = [
        _CONTEXT.Process(target=_work, args=(folder, rank, size, dies_at)) for rank in range(size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(1800)
    return [process.exitcode for process in ranks]


def calls(folder):
    return sorted((folder / "notes").read_text().splitlines())


def names(folder):
    return sorted(file.name for file in folder.iterdir())


FILES = [*(f"point-{n:05d}.pt" for n in range(12)), "sweep.json"]
POINTS = sorted(f"{snr} {width}" for snr in GRID["snr"] for width in GRID["width"])


@pytest.mark.parametrize("size", [1, 3])
def test_any_number_of_processes_gives_the_same_and_computes_each_point_once(tmp_path, size):
    assert shared(tmp_path, size) == [0] * size
    alone = tl.sweep(drawn, GRID)
    for rank in range(size):
        assert torch.equal(torch.load(tmp_path / f"found.{rank}.pt"), alone["draws"])
    assert calls(tmp_path) == POINTS
    assert names(tmp_path / "sweep") == FILES
    # and nothing is computed again
    again = tl.sweep(partial(noted, tmp_path, dies_at=None), GRID, folder=tmp_path / "sweep")
    assert torch.equal(again["draws"], alone["draws"])
    assert calls(tmp_path) == POINTS


@pytest.mark.parametrize("size", [1, 3])
def test_a_killed_process_loses_its_point_alone(tmp_path, size):
    """Another one takes it over; alone, the next call does."""
    codes = shared(tmp_path, size, dies_at=(1.0, 2))
    assert sorted(codes) == [-signal.SIGKILL] + [0] * (size - 1)
    if size == 1:
        so_far = tl.Sweep.load(tmp_path / "sweep")
        assert "7 without a result" in repr(so_far)
        assert so_far["draws"].shape == (3, 4, 3)
        assert int(so_far["width"].isnan().sum()) == 7
        assert shared(tmp_path, 1, dies_at=(1.0, 2)) == [0]
    assert calls(tmp_path) == sorted([*POINTS, "1.0 2"])
    assert names(tmp_path / "sweep") == FILES
    found = tl.Sweep.load(tmp_path / "sweep")
    assert torch.equal(found["draws"], tl.sweep(drawn, GRID)["draws"])


def test_random_numbers_are_those_of_the_point(tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = tl.sweep(drawn, GRID)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.shape == (3, 4)
    assert found.points[5] == {"snr": 1.0, "width": 2}
    part = tl.sweep(drawn, {"snr": [1.0], "width": [4, 2]})
    assert torch.equal(part["draws"][0, 1], found["draws"][1, 1])
    # negative control: other points and other seeds have other numbers
    assert len(found["draws"].div(torch.tensor(GRID["snr"])[:, None, None]).unique()) == 36
    assert not torch.equal(tl.sweep(drawn, GRID, seed=1)["draws"], found["draws"])


def picky(snr, width, folder):
    (folder / f"{snr}-{width}").touch()
    if width == 3 and not (folder / "mended").exists():
        raise ZeroDivisionError(f"no {width}\nat all")
    return snr * width


def test_a_point_that_fails_is_told_and_the_others_go_on(tmp_path):
    function, folder = partial(picky, folder=tmp_path), tmp_path / "sweep"
    with pytest.raises(RuntimeError) as caught:
        tl.sweep(function, GRID, folder=folder)
    assert str(caught.value) == (
        "3 of 12 points failed: ZeroDivisionError: no 3 at all (at snr=0.5, width=3); "
        "ZeroDivisionError: no 3 at all (at snr=1.0, width=3); ZeroDivisionError: no 3 at all "
        f"(at snr=2.0, width=3). What they raised is in {folder}/point-*.error.txt, where the "
        "results of the others are; the same call tries these again"
    )
    assert repr(caught.value.sweep) == "Sweep(snr x width: 3 x 4 points, 3 failed)"
    assert caught.value.sweep.values.isnan().nonzero().tolist() == [[0, 2], [1, 2], [2, 2]]
    written = (folder / "point-00002.error.txt").read_text()
    assert "at snr=0.5, width=3" in written
    assert "in picky" in written
    assert tl.Sweep.load(folder).failures[2] == "ZeroDivisionError: no 3 at all"
    for file in tmp_path.glob("*-*"):
        file.unlink()
    (tmp_path / "mended").touch()
    found = tl.sweep(function, GRID, folder=folder)
    assert names(tmp_path) == ["0.5-3", "1.0-3", "2.0-3", "mended", "sweep"]
    assert names(folder) == FILES
    assert found.values.tolist() == [[s * w for w in GRID["width"]] for s in GRID["snr"]]
    assert found.values.dtype == torch.float64
    (tmp_path / "mended").unlink()
    with pytest.raises(ZeroDivisionError):  # without a folder, at once
        tl.sweep(function, GRID)


def test_what_no_file_can_hold_is_an_error_of_the_point(tmp_path):
    with pytest.raises(RuntimeError, match="got Generator: return what you need of it"):
        tl.sweep(lambda snr: torch.Generator(), {"snr": [1.0]}, folder=tmp_path)
    with pytest.raises(TypeError, match="got Generator"):
        tl.sweep(lambda snr: torch.Generator(), {"snr": [1.0]})


def area(a, b):
    return a * b


def other_area(a, b):
    return a * b + 1


def test_the_folder_of_another_sweep_is_refused(tmp_path):
    grid = {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    tl.sweep(area, grid, folder=tmp_path)
    for function, axes, seed, what in (
        (area, {"a": [1.0, 2.0], "b": [3.0]}, 0, "another grid"),
        (area, {"b": [3.0, 4.0], "a": [1.0, 2.0]}, 0, "another grid"),
        (area, grid, 1, "another seed"),
        (other_area, grid, 0, "another function"),
        (partial(area), grid, 0, "another function"),
        (other_area, {"a": [1.0], "b": [3.0]}, 0, "another grid and another function"),
    ):
        with pytest.raises(ValueError, match=f"of another one, with {what}: give another folder"):
            tl.sweep(function, axes, folder=tmp_path, seed=seed)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        tl.sweep(area, grid, folder=tmp_path)
    with pytest.raises(ValueError, match=r"which has no sweep\.json"):
        tl.Sweep.load(tmp_path / "elsewhere")


def test_a_file_of_another_sweep_is_not_taken(tmp_path):
    for name, factor in (("one", 1.0), ("two", 2.0)):
        tl.sweep(partial(area, b=factor), {"a": [1.0, 2.0]}, folder=tmp_path / name)
    (tmp_path / "one" / "point-00001.pt").rename(tmp_path / "two" / "point-00001.pt")
    with pytest.warns(RuntimeWarning, match="computed again: it belongs to another sweep"):
        found = tl.sweep(partial(area, b=2.0), {"a": [1.0, 2.0]}, folder=tmp_path / "two")
    assert found.values.tolist() == [2.0, 4.0]


@pytest.mark.parametrize("damage", ["first byte", "checksum", "middle", "end", "empty", "longer"])
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    whole = tl.sweep(drawn, GRID, folder=tmp_path)
    file = tmp_path / "point-00004.pt"
    data = bytearray(file.read_bytes())
    place = {"first byte": 0, "checksum": 30, "middle": len(data) // 2, "end": len(data) - 1}
    if damage in place:
        data[place[damage]] ^= 1
    file.write_bytes({"empty": b"", "longer": bytes(data) + b"\0"}.get(damage, bytes(data)))
    with pytest.warns(RuntimeWarning, match=r"point-00004.pt is not used: "):
        assert tl.Sweep.load(tmp_path).results[4] is None
    with pytest.warns(RuntimeWarning, match=r"point-00004.pt is computed again: ") as warned:
        found = tl.sweep(drawn, GRID, folder=tmp_path)
    assert len(warned) == 1
    assert torch.equal(found["draws"], whole["draws"])
    assert tl.Sweep.load(tmp_path).results[4] is not None


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        ({}, ValueError, "an empty one"),
        ({"a": []}, ValueError, "one value of a at least"),
        ({"a": [1.0, 2.0, 1]}, ValueError, "got 1 twice"),
        ({"a": [1.0, float("nan")]}, ValueError, "not NaN"),
        ({"a": 1.0}, TypeError, "values of a in a list"),
        ({"a": "text"}, TypeError, "values of a in a list"),
        ({"a": [[1.0]]}, TypeError, "numbers or texts as values of a"),
        ([1.0], TypeError, "a dict of names and their values"),
        ({"b": [1.0]}, TypeError, "to take the parameters b by name"),
    ],
)
def test_grids_that_are_refused(grid, error, message, tmp_path):
    with pytest.raises(error, match=message):
        tl.sweep(lambda a: a, grid, folder=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_other_arguments_that_are_refused(tmp_path):
    grid = {"a": [1.0]}
    with pytest.raises(TypeError, match="function as a function of a, got int"):
        tl.sweep(3, grid)
    with pytest.raises(ValueError, match="seed as an int >= 0"):
        tl.sweep(lambda a: a, grid, seed=-1)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"a folder that can be made and written to.*another"):
            tl.sweep(lambda a: a, grid, folder=folder)


def test_a_folder_that_is_read_only(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="it is read-only; give another"):
        tl.sweep(lambda a: a, {"a": [1.0]}, folder=tmp_path)


@pytest.mark.parametrize(
    "given", [("1", None), (None, "2"), ("2", "2"), ("-1", "2"), ("0", "many"), ("0", "0")]
)
def test_a_rank_that_cannot_be(given, monkeypatch, tmp_path):
    for name, value in zip(("RANK", "WORLD_SIZE"), given, strict=True):
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, False)
    with pytest.raises(ValueError, match=r"0 <= RANK < WORLD_SIZE.*set both, or none"):
        tl.sweep(lambda a: a, {"a": [1.0]}, folder=tmp_path)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert rank_and_size() == (1, 2)


def test_results_that_do_not_fit_together():
    ragged = tl.sweep(lambda n: {"x": torch.zeros(n), f"only {n}": n}, {"n": [1, 2]})
    with pytest.raises(ValueError, match=r"of one shape, got \(1,\) at n=1 and \(2,\) at n=2"):
        ragged["x"]
    with pytest.raises(ValueError, match=r"with 'only 1' at every point, got \['x', 'only 2'\]"):
        ragged["only 1"]
    with pytest.raises(ValueError, match=r"results as numbers or tensors, got \{.*at n=1"):
        ragged.values  # noqa: B018
    assert ragged.results[1]["only 2"] == 2


@dataclass
class Share:
    part: int
    whole: int


def test_results_of_many_kinds(tmp_path):
    """They come from the files as they were, a dataclass as a dict."""

    def kinds(n):
        return {
            "complex": 1j * n, "text": "x", "none": None, "flag": n > 1, "tensor": torch.ones(2, n),
            "share": Share(n, 4), "array": torch.ones(n).numpy(),
        }  # fmt: skip

    for _ in range(2):
        found = tl.sweep(kinds, {"n": [1, 2]}, folder=tmp_path)
        assert found.results[1]["share"] == {"part": 2, "whole": 4}
        assert found["complex"].tolist() == [1j, 2j]
        assert found["flag"].tolist() == [False, True]
        assert torch.equal(found.results[1]["tensor"], torch.ones(2, 2))
        assert torch.equal(found.results[1]["array"], torch.ones(2))


def test_what_tells_functions_apart():
    def enclosing(x):
        return lambda a: a + x

    assert identity(enclosing(1.0)) == identity(enclosing(1.0))
    assert identity(enclosing(1.0)) != identity(enclosing(2.0))
    assert identity(enclosing(torch.ones(2))) != identity(enclosing(torch.zeros(2)))
    assert identity(partial(area, b=1)) != identity(partial(area, b=2))
    xor = tl.GaussianMixture.xor(dim=10, snr=2.0)
    assert identity(partial(area, b=xor)) == identity(partial(area, b=xor))
    other = tl.GaussianMixture.xor(dim=10, snr=3.0)
    assert identity(partial(area, b=xor)) != identity(partial(area, b=other))

    def recursive(n):
        return n and recursive(n - 1)

    assert identity(recursive) == identity(recursive)


def test_a_phase_diagram_in_a_folder_is_the_same(tmp_path):
    axes = ("snr", [0.5, 1.5]), ("step_size", [0.0, 1.0, 2.0])
    plain = tl.phase_diagram(MATRIX, *axes)
    for _ in range(2):
        kept = tl.phase_diagram(MATRIX, *axes, folder=tmp_path)
        assert torch.equal(kept.accuracy, plain.accuracy)
        assert repr(kept.points) == repr(plain.points)
        assert torch.equal(kept.count("stable"), plain.count("stable"))
        for row, other in zip(kept.points, plain.points, strict=True):
            for cell, same in zip(row, other, strict=True):
                assert all(torch.equal(a.u, b.u) for a, b in zip(cell, same, strict=True))
                assert all(
                    torch.equal(a.eigenvalues, b.eigenvalues)
                    for a, b in zip(cell, same, strict=True)
                )
    with pytest.raises(ValueError, match="another function"):
        tl.phase_diagram(partial(MATRIX, ridge=0.1), *axes, folder=tmp_path)
    assert len(list(Path(tmp_path).glob("point-*.pt"))) == 6


@pytest.mark.slow
def test_two_agents_of_torchrun_share_a_phase_diagram(tmp_path):
    script = Path(__file__).parent.parent.parent / "scripts" / "phase_diagram.py"
    ends = launched(tmp_path, script, "matrix", "--points", 3, "--folder", "cells")
    assert [code for code, _ in ends] == [0, 0], ends
    # the first process alone shows what all have found
    assert [output.count("The corrector costs") for _, output in ends] == [1, 0]
    assert len(list((tmp_path / "cells" / "sgd").glob("point-*.pt"))) == 9
    assert not list(tmp_path.glob("cells/*/.point-*"))
    axes = ("snr", [0.05, 1.525, 3.0]), ("step_size", [0.0, 1.0, 2.0])
    alone = tl.phase_diagram(MATRIX, *axes)
    assert torch.equal(tl.Sweep.load(tmp_path / "cells" / "sgd")["accuracy"], alone.accuracy)
