"""Files of rows and of trajectories: their layout, their limits, and what they hold."""

import copy
import errno
import json
import os
import pickle
import resource
import stat
import zipfile

import google_crc32c
import numpy as np
import pytest
import torch
from full_disks import files_end_at

import torchlimits as tl
from torchlimits.files import npz, place, row_file, rows, whole
from torchlimits.files.rows import Header
from torchlimits.record.recording import Recording


def trajectory(steps=range(5), names=("m", "R"), **options):
    steps = torch.tensor(list(steps))
    values = steps[:, None] + torch.arange(len(names), dtype=torch.float64) / 8
    return tl.Trajectory(steps / 4, steps, values, list(names), **options)


def recorded(path, steps=range(5), names=("m", "R"), metadata=None):
    recording = Recording(Header(list(names), (), metadata or {}), path, 2**20)
    give(recording, steps, names)
    return recording


def give(recording, steps, names=("m", "R")):
    part = trajectory(steps, names)
    recording.append(part.steps, part.times, part.values)


def same(first, second):
    pairs = [(getattr(first, key), getattr(second, key)) for key in ("times", "steps", "values")]
    return all(torch.equal(a, b) for a, b in pairs) and first.names == second.names


# --- layouts --------------------------------------------------------------------------------------


def test_numpy_alone_reads_rows_as_the_module_says(tmp_path):
    """The recipe of its docstring, for a run that goes on and for one that has ended."""
    recipe = row_file.__doc__.partition("::\n")[2].partition("``crc32c``")[0]
    recipe = "\n".join(line.removeprefix("    ") for line in recipe.splitlines())
    recording = recorded(tmp_path / "u.rows", metadata={"a": 1})
    recording.write()
    for path in (tmp_path / "u.rows.unfinished", tmp_path / "u.rows"):
        if not path.exists():
            recording.finish(recording.trajectory())
        found = {"path": path, "np": np, "json": json, "os": os}
        exec(recipe, found)
        assert found["header"]["names"] == ["m", "R"]
        assert found["header"]["metadata"] == {"a": 1}
        assert found["rows"]["step"].tolist() == list(range(5))
        np.testing.assert_array_equal(found["rows"]["values"], trajectory().values.numpy())
        assert found["state"].startswith(b'{"rows": ' + (b"5" if path.suffix == ".rows" else b"n"))


def first_rows(path, trajectory, metadata):
    """As the first program wrote them: no second line."""
    text = json.dumps(
        {
            "format": "torchlimits.Rows/1",
            "names": trajectory.names,
            "runs": [],
            "metadata": metadata,
        }
    ).encode()
    line = text.ljust(-(-(len(text) + 1) // 64) * 64 - 1) + b"\n"
    content = line
    for step, time, values in zip(
        trajectory.steps.tolist(), trajectory.times.tolist(), trajectory.values, strict=True
    ):
        row = np.array([step], "<i8").tobytes() + np.array([time, *values], "<f8").tobytes()
        content += row + np.array([google_crc32c.value(line + row)], "<u8").tobytes()
    path.write_bytes(content)


def first_npz(path, trajectory, metadata, **others):
    """As the first program wrote it: no checksum."""
    np.savez_compressed(
        path,
        format=np.array("torchlimits.Trajectory/1"),
        times=trajectory.times.numpy(),
        steps=trajectory.steps.numpy(),
        values=trajectory.values.numpy(),
        names=np.array(trajectory.names),
        metadata=np.array(json.dumps(metadata)),
        **others,
    )


@pytest.mark.parametrize("write", [first_rows, first_npz])
def test_files_of_before_are_read(tmp_path, write):
    write(tmp_path / "u.npz", trajectory(), {"dim": 7})
    found = tl.Trajectory.load(tmp_path / "u.npz")
    assert same(found, trajectory())
    assert found.metadata == {"dim": 7}


def test_files_of_an_older_numpy_are_read(tmp_path):
    """It took an option of `numpy.savez` for one more array."""
    first_npz(tmp_path / "u.npz", trajectory(), {})
    with np.load(tmp_path / "u.npz") as arrays:
        found = dict(arrays)
    with (
        zipfile.ZipFile(tmp_path / "u.npz", "a") as archive,
        archive.open("allow_pickle.npy", "w") as member,
    ):
        np.lib.format.write_array(member, np.array(False))
    with np.load(tmp_path / "u.npz") as arrays:
        assert arrays.keys() - found.keys() == {"allow_pickle"}
    assert same(tl.Trajectory.load(tmp_path / "u.npz"), trajectory())


def test_damaged_files_of_before_are_refused(tmp_path):
    path = tmp_path / "u.npz"
    first_npz(path, trajectory(), {}, std=np.ones((5, 2)))
    assert tl.Trajectory.load(path).std is not None
    content = path.read_bytes()
    # in the directory at the end: then there is no std
    path.write_bytes(content[:-300] + content[-300:].replace(b"std.npy", b"stf.npy"))
    with pytest.raises(ValueError, match="cannot be read"):
        tl.Trajectory.load(path)
    # the checksum of an array, which is in the middle of the file
    damaged = bytearray(content)
    damaged[content.index(b"values.npy") + 60] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="cannot be read"):
        tl.Trajectory.load(path)


@pytest.mark.parametrize("suffix", [".npz", ".rows"])
def test_what_is_cut_or_goes_on_is_refused(tmp_path, suffix):
    path = tmp_path / f"u{suffix}"
    recording = recorded(path)
    recording.finish(recording.trajectory())
    content = path.read_bytes()
    width = Header(["m", "R"], ()).row.itemsize
    for damaged in (content[:-width], content[:-1], content + content[-width:], content + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read"):
            tl.Trajectory.load(path)


def test_an_array_of_a_trillion_names_is_refused(tmp_path):
    """Without the memory for them: each of no characters, in an archive that is right otherwise."""

    def array(kind, shape, data=b""):
        text = str({"descr": kind, "fortran_order": False, "shape": shape}).encode()
        text = text.ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data

    huge = 10**12
    with zipfile.ZipFile(tmp_path / "u.npz", "w") as archive:
        archive.writestr("format.npy", array("<U24", (), FIRST.encode("utf-32-le")))
        archive.writestr("times.npy", array("<f8", (0,)))
        archive.writestr("steps.npy", array("<i8", (0,)))
        archive.writestr("values.npy", array("<f8", (0, huge)))
        archive.writestr("metadata.npy", array("<U2", (), "{}".encode("utf-32-le")))
        archive.writestr("names.npy", array("<U0", (huge,)))
    with pytest.raises(ValueError, match="cannot be read: names is <U0"):
        tl.Trajectory.load(tmp_path / "u.npz")


FIRST = npz.FIRST_FORMAT


def test_a_bomb_is_refused(tmp_path):
    """An entry that claims more than deflate can have packed."""
    path = tmp_path / "u.npz"
    first_npz(path, trajectory(), {})
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"values.npy"))
    content[entry + 24 : entry + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="which cannot be"):
        tl.Trajectory.load(path)


# --- limits ---------------------------------------------------------------------------------------


def test_what_could_not_be_read_again_is_refused_at_once(tmp_path):
    megabyte = "x" * 10**6
    long = [f"{i}{megabyte}" for i in range(80)]
    for make in (
        lambda: Header(long, ()),
        lambda: trajectory(names=long).save(tmp_path / "u.npz"),
        # one of them makes all of them long
        lambda: Header([megabyte, *map(str, range(100))], ()),
    ):
        with pytest.raises(ValueError, match=r"expected names of at most .* shorten it"):
            make()
    metadata = {"notes": 70 * megabyte}
    with pytest.raises(ValueError, match="expected metadata of at most"):
        Header(["m"], (), metadata)
    with pytest.raises(ValueError, match="expected metadata of at most"):
        trajectory(metadata=metadata).save(tmp_path / "u.npz")
    # six characters each, in the line of a file
    with pytest.raises(ValueError, match="names and metadata of at most"):
        Header([f"{i}" + "µ" * 500_000 for i in range(30)], ())
    with pytest.raises(ValueError, match="2147483648 bytes, got 2400000000"):
        Header(["m", "R", "v"], (10**8,))
    with pytest.raises(ValueError, match="16 leading dimensions"):
        Header(["m"], (1,) * 17)
    assert not list(tmp_path.iterdir())


def test_a_tracker_refuses_names_that_could_not_be_read_again(tmp_path):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = {f"{i}{'x' * 10**6}": lambda p: p["bias"].sum() for i in range(80)}
    with pytest.raises(ValueError, match="expected names of at most"):
        tl.track(model, optimizer, statistics, path=tmp_path / "u.rows")
    with pytest.raises(ValueError, match="expected metadata of at most"):
        tl.track(model, optimizer, {"b": lambda p: p["bias"].sum()}, path=tmp_path / "u.rows",
                 parameters={"notes": "x" * 2**27})  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_what_is_near_the_limits_is_read_again(tmp_path):
    names = [f"{i}" + "x" * 200_000 for i in range(200)]
    recording = recorded(tmp_path / "u.rows", range(2), names)
    recording.finish(recording.trajectory())
    recording.trajectory().save(tmp_path / "u.npz")
    for name in ("u.rows", "u.npz"):
        assert tl.Trajectory.load(tmp_path / name).names == names


def test_many_equal_names_are_refused_in_linear_time(tmp_path):
    """A hundred thousand of them took minutes; what is counted is comparisons, not seconds."""

    class Counted(str):
        compared = 0

        def __eq__(self, other):
            Counted.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = [Counted("u") for _ in range(10_000)]
    for make in (
        lambda: Header(names, ()),
        lambda: tl.Trajectory([0.0], [0], torch.zeros(1, len(names)), names),
    ):
        Counted.compared = 0
        with pytest.raises(ValueError, match=r"\['u'\] more than once"):
            make()
        assert Counted.compared < 10 * len(names)


def test_a_file_of_many_equal_names_is_refused(tmp_path):
    """A hundred thousand in a header that is right otherwise."""
    text = json.dumps(
        {"format": "torchlimits.Rows/1", "names": ["u"] * 100_000, "runs": [], "metadata": {}}
    ).encode()
    (tmp_path / "u.rows").write_bytes(text.ljust(-(-(len(text) + 1) // 64) * 64 - 1) + b"\n")
    with pytest.raises(ValueError, match=r"\['u'\] more than once"):
        tl.Trajectory.load(tmp_path / "u.rows")


# --- replacing ------------------------------------------------------------------------------------


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_replaced_file_has_the_mode_of_a_plain_one(tmp_path, umask):
    with whole.replacing(tmp_path / "new") as partial:
        partial.write_text("new")
    (tmp_path / "plain").write_text("plain")
    assert mode(tmp_path / "new") == mode(tmp_path / "plain") == 0o640
    (tmp_path / "new").chmod(0o600)
    with whole.replacing(tmp_path / "new") as partial:
        partial.write_text("newer")
    assert mode(tmp_path / "new") == 0o600
    assert (tmp_path / "new").read_text() == "newer"


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("old")

    def interrupted():
        with whole.replacing(tmp_path / "file") as partial:
            partial.write_text("new")
            assert partial.name.startswith(whole.MARK)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_two_writers_of_one_file_have_files_of_their_own(tmp_path):
    with whole.replacing(tmp_path / "file") as first, whole.replacing(tmp_path / "file") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "file").read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_planted_links_are_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    # even if somebody could guess the name
    monkeypatch.setattr(whole.secrets, "token_hex", lambda size: "0")
    link = tmp_path / f"{whole.MARK}0"
    link.symlink_to(victim)
    with pytest.raises(FileExistsError):
        trajectory().save(tmp_path / "u.npz")
    assert victim.read_text() == "precious"
    monkeypatch.undo()
    for name in ("u.npz.unfinished", "u.npz.unfinished.1"):
        (tmp_path / name).symlink_to(victim)
    recording = recorded(tmp_path / "u.npz")
    recording.write()
    assert not (tmp_path / "u.npz.unfinished").is_symlink()
    recording.finish(recording.trajectory())
    assert victim.read_text() == "precious"
    assert same(tl.Trajectory.load(tmp_path / "u.npz"), trajectory())


def test_a_users_link_is_followed(tmp_path):
    (tmp_path / "u.npz").symlink_to(tmp_path / "real.npz")
    trajectory().save(tmp_path / "u.npz")
    assert (tmp_path / "u.npz").is_symlink()
    assert same(tl.Trajectory.load(tmp_path / "real.npz"), trajectory())


# --- what is held ---------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to count descriptors")
@pytest.mark.parametrize("small", [2**24, 0], ids=["in memory", "mapped"])
@pytest.mark.parametrize("suffix", [".npz", ".rows"])
def test_no_descriptor_is_held(tmp_path, monkeypatch, small, suffix):
    """Three hundred recordings and as many files in a process that may open 256."""
    monkeypatch.setattr("torchlimits.files.row_file.SMALL", small)
    monkeypatch.setattr("torchlimits.files.row_reader.SMALL", small)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    path = tmp_path / f"u{suffix}"
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        kept = []
        for _ in range(300):
            recording = recorded(path)
            recording.finish(recording.trajectory())
            kept.append(recording)
        kept += [tl.Trajectory.load(path) for _ in range(300)]
        kept += [recording.trajectory() for recording in kept[:300]]
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert all(same(one, trajectory()) for one in kept[300:])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to count descriptors")
def test_kept_trackers_hold_no_descriptor(tmp_path):
    """As in `[run(seed) for seed in seeds]`, whose trackers are closed."""

    def run(seed):
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tl.track(
            model, optimizer, {"w": lambda p: p["weight"].norm()}, path=tmp_path / f"{seed}.npz",
            writer=tl.CSV(tmp_path / f"{seed}.csv"),
        ) as tracker:  # fmt: skip
            optimizer.step()
            tracker.flush()
            optimizer.step()
        return tracker

    kept = [run(0)]
    before = len(os.listdir("/proc/self/fd"))
    kept += [run(seed) for seed in range(1, 9)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert [len(tracker.trajectory()) for tracker in kept] == [3] * 9


@pytest.mark.parametrize("suffix", [".npz", ".rows"])
def test_no_descriptor_left_is_no_damage_of_a_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"u{suffix}"
    recording = recorded(path)
    recording.finish(recording.trajectory())

    def none_left(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for function in ("builtins.open", "io.open", "os.open"):
        monkeypatch.setattr(function, none_left)
    with pytest.raises(OSError, match="Too many open files"):
        tl.Trajectory.load(path)
    monkeypatch.undo()
    assert same(tl.Trajectory.load(path), trajectory())


@pytest.mark.parametrize("small", [2**24, 0], ids=["in memory", "mapped"])
@pytest.mark.parametrize("suffix", [None, ".npz", ".rows"])
def test_trajectories_do_not_alias_what_is_held(tmp_path, monkeypatch, small, suffix):
    monkeypatch.setattr("torchlimits.files.row_file.SMALL", small)
    recording = recorded(None if suffix is None else tmp_path / f"u{suffix}")

    def destroy(path):
        for tensor in (path.values, path.times, path.steps):
            tensor.zero_()

    for _ in range(2):
        destroy(recording.trajectory())
        for piece in recording.after(-1):
            destroy(piece)
        assert same(recording.trajectory(), trajectory())
        recording.write()
    recording.finish(recording.trajectory())
    destroy(recording.trajectory())
    assert same(recording.trajectory(), trajectory())
    if suffix is not None:
        destroy(tl.Trajectory.load(recording.path))
        assert same(tl.Trajectory.load(recording.path), trajectory())


@pytest.mark.parametrize("small", [2**24, 0], ids=["in memory", "mapped"])
def test_pickles_and_copies_hold_what_they_show(tmp_path, monkeypatch, small):
    monkeypatch.setattr("torchlimits.files.row_reader.SMALL", small)
    steps = range(2001)
    recording = recorded(tmp_path / "u.rows", steps)
    recording.finish(recording.trajectory())
    for path in (trajectory(steps), tl.Trajectory.load(tmp_path / "u.rows")):
        few = path.slice(slice(5, 8))
        assert len(pickle.dumps(few)) < 3000
        for other in (
            pickle.loads(pickle.dumps(few)),
            copy.copy(few),
            copy.deepcopy(few),
        ):
            assert same(other, few)
            assert other.values.untyped_storage().nbytes() == 3 * 2 * 8
        torch.save(few, tmp_path / "few.pt")
        assert (tmp_path / "few.pt").stat().st_size < 6000
        assert same(pickle.loads(pickle.dumps(path)), path)


@pytest.mark.parametrize("room", [100, 138, 191])
def test_a_file_that_cannot_be_finished_is_what_it_was(tmp_path, room):
    """Its second line is in the middle of what the system still lets be written."""
    recording = recorded(tmp_path / "u.rows", range(1))
    recording.write()
    with files_end_at(room), pytest.warns(RuntimeWarning, match="1 of its 1 rows are in"):
        recording.finish(recording.trajectory())
    assert same(tl.Trajectory.load(recording.unfinished), trajectory(range(1)))
    give(recording, range(3))
    recording.finish(recording.trajectory())
    assert same(tl.Trajectory.load(tmp_path / "u.rows"), trajectory(range(3)))


def test_what_another_program_cuts_is_told(tmp_path):
    recording = recorded(tmp_path / "u.rows")
    recording.write()
    os.truncate(tmp_path / "u.rows.unfinished", 200)
    give(recording, [5, 6])
    with pytest.warns(RuntimeWarning, match="5 of 5 rows are lost"):
        recording.write()
    recording.finish(recording.trajectory())
    assert same(tl.Trajectory.load(tmp_path / "u.rows"), trajectory([5, 6]))


def test_widened_rows_are_nan_before(tmp_path):
    recording = recorded(tmp_path / "u.rows")
    recording.write()
    recording.widen(["m", "R", "loss"])
    recording.widen(["m", "R", "loss"])
    assert recording.trajectory().names == ["m", "R", "loss"]
    give(recording, [5], ["m", "R", "loss"])
    recording.finish(recording.trajectory())
    found = tl.Trajectory.load(tmp_path / "u.rows")
    assert found["loss"].isnan().tolist() == 5 * [True] + [False]
    assert torch.equal(found["R"], trajectory(range(6))["R"])
    # not spread over the columns either
    with pytest.raises(ValueError, match=r"a value for each of \['m', 'R', 'loss'\], got 1"):
        give(recording, [6], ["m"])
    for names in (["m"], ["R", "m", "loss"], ["m", "R", "loss", "m"]):
        with pytest.raises(ValueError, match="expected"):
            recording.widen(names)


def test_the_library_is_known_by_its_marks():
    """Names that programs of other versions rely on."""
    assert rows.MAGIC == b'{"format": "torchlimits.Rows/'
    assert place.UNFINISHED == ".unfinished"
