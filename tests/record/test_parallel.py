"""One model trained by two real processes, with gloo: what is recorded is what one process sees."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchlimits as tl
from torchlimits.record import tracker as recorder

STEPS = 12
#: entries, which show single bits, and functions of a whole matrix that no shard can give
STATISTICS = {
    "first": lambda p: p["0.weight"],
    "norm": lambda p: p["0.weight"].norm(),
    "gram": lambda p: p["0.weight"] @ p["0.weight"].T,
    "last": lambda p: p["2.weight"][0, :2],
    "all": lambda p: torch.stack([q.square().sum() for q in p.values()]).sum(),
}
#: options of the tracker in each run; ``max_bytes=1``: statistics evaluated at every step
KINDS = {
    "ddp": {"path": "u.npz", "writer": "log"},
    "ddp-compiled": {},
    "fsdp": {"path": "u.npz", "writer": "log"},
    "fsdp-hook": {"max_bytes": 1},
    "fsdp-every": {"every": 5},
}


def network():
    torch.manual_seed(0)
    # five rows on two ranks: the shards are not equal
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()


def batches():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STEPS, 8, 6, generator=generator, dtype=torch.float64)


def wrapped(kind):
    model = network()
    if kind.startswith("fsdp"):
        from torch.distributed.fsdp import fully_shard

        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
        fully_shard(model[0], mesh=mesh)
        return fully_shard(model, mesh=mesh)
    model = DistributedDataParallel(model)
    return torch.compile(model, backend="eager") if "compiled" in kind else model


def train(model, optimizer, rank=0, ranks=1, take=STEPS, begin=0):
    """Each rank has its part of a batch; the gradients of all are averaged by the wrapper."""
    for x in batches()[begin : begin + take]:
        optimizer.zero_grad()
        model(x.chunk(ranks)[rank]).square().mean().backward()
        optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)


def entire(model):
    """The weights, gathered without the package."""
    return [
        p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach().clone()
        for p in model.parameters()
    ]


# --- what the processes do -------------------------------------------------------------------


def run(folder, kind, rank):
    """Train bare and tracked; leave weights and records."""
    model = wrapped(kind)
    train(model, sgd(model), rank, 2)
    found = {"bare": entire(model)}
    model = wrapped(kind)
    optimizer = sgd(model)
    options = dict(KINDS[kind])
    for name in ("path", "writer"):
        if name in options:
            # the other rank has no folder that could be written to
            options[name] = folder / kind / options[name] if rank == 0 else "/dev/null/nowhere"
    with tl.track(model, optimizer, STATISTICS, **options) as tracker:
        train(model, optimizer, rank, 2)
        found |= {"tracked": entire(model), "step": tracker.step, "time": tracker.time}
        local = next(model.parameters())
        found["local"] = getattr(local, "_local_tensor", local).detach().norm()
    found["names"] = tracker.names
    if rank == 0:
        path = tracker.trajectory()
        found |= {"steps": path.steps, "times": path.times, "values": path.values}
    else:
        found["error"] = _message(tracker.trajectory)
    torch.save(found, folder / f"{kind}.{rank}.pt")


def resume(folder, rank):
    """Half of a run, and the other half from the state of rank 0, in another tracker."""
    model = wrapped("fsdp")
    optimizer = sgd(model)
    with tl.track(model, optimizer, STATISTICS) as tracker:
        train(model, optimizer, rank, 2, take=5)
        state = tracker.state_dict()
    if rank == 0:
        torch.save(state, folder / "state.pt")
    torch.distributed.barrier()
    with tl.track(model, optimizer, STATISTICS) as tracker:
        tracker.load_state_dict(torch.load(folder / "state.pt"))
        train(model, optimizer, rank, 2, take=STEPS - 5, begin=5)
        found = {"step": tracker.step, "time": tracker.time}
        if rank == 0:
            found["values"] = tracker.trajectory().values
        else:
            found["own"] = state
            found["error"] = _message(lambda: tracker.load_state_dict({"step": 3}))
    torch.save(found, folder / f"resume.{rank}.pt")


def fussy(parameters):
    if bool(parameters["0.weight"].isnan().any()):
        raise ValueError("nan is no weight")
    return parameters["0.weight"].sum()


def diverge(folder, rank):
    """Rank 0 finds a NaN, or a statistic fails, and its loop goes on: no rank may be left waiting.

    With room for some rows and for no copies, the error waits for a flush; here for the one that
    is asked for, however slow the machine is.
    """
    recorder._FLUSH_EVERY_SECONDS = math.inf
    for name, statistics, options in (
        ("diverge", STATISTICS, {}),
        ("fail", {"sum": fussy}, {"max_bytes": 300}),
    ):
        model = wrapped("fsdp")
        optimizer = sgd(model)
        tracker = tl.track(model, optimizer, statistics, **options)
        train(model, optimizer, rank, 2, take=2)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(torch.nan)
        train(model, optimizer, rank, 2, take=3)
        found = {"error": _message(tracker.flush) if rank == 0 else None}
        train(model, optimizer, rank, 2, take=1)
        found["step"] = tracker.step
        torch.save(found, folder / f"{name}.{rank}.pt")


def refuse(folder, rank):
    """What cannot work is refused on all ranks alike."""
    model = wrapped("fsdp")
    probe = tl.Probe(lambda output, target: output.sum(), lambda batch, generator: None)
    found = {"probe": _message(lambda: tl.track(model, sgd(model), STATISTICS, probe=probe))}
    from torch.distributed.fsdp import FullyShardedDataParallel

    flattened = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    found["first"] = _message(lambda: tl.track(flattened, sgd(flattened), STATISTICS))
    torch.save(found, folder / f"refuse.{rank}.pt")


def look_ahead(folder, rank):
    """Forward passes, before the tracker is made and before a step, leave whole parameters about.

    They are the root's own; its step is of the sharded ones all the same.
    """
    found = {}
    for name, options in {"bare": None, "ring": {}, "hook": {"max_bytes": 1}}.items():
        model = wrapped("fsdp")
        optimizer = sgd(model)
        x = batches()[0].chunk(2)[rank]
        loss = model(x).square().mean()
        assert not hasattr(model[2].weight, "full_tensor")
        tracker = None if options is None else tl.track(model, optimizer, STATISTICS, **options)
        loss.backward()
        for _ in range(3):
            with torch.no_grad():
                model(x)
            assert not hasattr(model[2].weight, "full_tensor")
            optimizer.step()
            model(x).square().mean().backward()
        found[name] = [p.detach().full_tensor() for p in optimizer.param_groups[0]["params"]]
        if tracker is not None and rank == 0:
            found[f"{name} values"] = tracker.trajectory().values
    torch.save(found, folder / f"ahead.{rank}.pt")


def _message(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def main():
    from torchlimits.ensemble.processes import process_group, rank_in

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with process_group() as group:
        rank = rank_in(group)
        for kind in KINDS:
            run(folder, kind, rank)
        for case in (resume, diverge, refuse, look_ahead):
            case(folder, rank)


# --- what comes of it ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", __file__]
    done = subprocess.run(
        [*command, str(folder)],
        capture_output=True,
        text=True,
        timeout=1800,
        # the processes find the package where this one does
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def alone():
    """The same training in one process."""
    model = network()
    optimizer = sgd(model)
    with tl.track(model, optimizer, STATISTICS) as tracker:
        train(model, optimizer)
    return tracker.trajectory(), entire(model)


def found(folder, kind):
    return [torch.load(folder / f"{kind}.{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bit_identical(folder, kind):
    for rank in found(folder, kind):
        assert all(map(torch.equal, rank["bare"], rank["tracked"]))
        assert rank["step"] == STEPS
        assert rank["time"] == pytest.approx(STEPS * 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_is_what_one_process_records(folder, alone, kind):
    """To rounding in the gradients' sums; at the start, where there are none, bit for bit."""
    path, weights = alone
    first, second = found(folder, kind)
    every = KINDS[kind].get("every", 1)
    assert first["names"] == second["names"] == path.names
    assert torch.equal(first["steps"], path.steps[::every])
    assert torch.equal(first["times"], path.times[::every])
    torch.testing.assert_close(first["values"], path.values[::every], rtol=1e-11, atol=1e-13)
    entries = [i for i, name in enumerate(path.names) if name.startswith("first")]
    assert torch.equal(first["values"][0, entries], path.values[0, entries])
    if "max_bytes" not in KINDS[kind]:
        # the same products, of as many snapshots at once
        assert torch.equal(first["values"][0], path.values[0])
    if every == 1:
        # the last row is of the weights that the run ended with, to the bit
        assert torch.equal(first["values"][-1, entries], first["tracked"][0].flatten())
    torch.testing.assert_close(first["tracked"], weights, rtol=1e-11, atol=1e-13)
    assert bool((path.values[0] != path.values[-1]).any())


def test_the_kinds_agree_to_the_bit(folder):
    """The same arithmetic in training: the same records, whatever ring held them."""
    ddp, compiled = (found(folder, kind)[0] for kind in ("ddp", "ddp-compiled"))
    assert torch.equal(ddp["values"], compiled["values"])
    ring, hook, every = (found(folder, k)[0] for k in ("fsdp", "fsdp-hook", "fsdp-every"))
    names = ring["names"]
    entries = [i for i, name in enumerate(names) if name.startswith(("first", "last"))]
    assert torch.equal(ring["values"][:, entries], hook["values"][:, entries])
    assert torch.equal(ring["values"][::5, entries], every["values"][:, entries])


def test_a_shard_alone_would_be_wrong(folder, alone):
    """Negative control: the statistics of what one rank holds are others."""
    path, _ = alone
    for rank in found(folder, "fsdp"):
        assert abs(rank["local"] - path["norm"][-1]) > 0.05 * path["norm"][-1]
    for rank in found(folder, "ddp"):
        torch.testing.assert_close(rank["local"], path["norm"][-1])


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_only_the_first_rank_writes(folder, kind):
    first, second = found(folder, kind)
    loaded = tl.Trajectory.load(folder / kind / "u.npz")
    assert torch.equal(loaded.values, first["values"])
    assert sorted(path.name for path in (folder / kind).iterdir()) == ["log", "u.npz"]
    assert len(list((folder / kind / "log").glob("*tfevents*"))) == 1
    assert "rank 0" in second["error"]
    assert "got rank 1" in second["error"]


def test_resuming_on_all_ranks_from_the_first_ones_state(folder):
    first, second = found(folder, "resume")
    assert first["step"] == second["step"] == STEPS
    assert first["time"] == second["time"]
    assert torch.equal(first["values"], found(folder, "fsdp")[0]["values"])
    assert second["own"] == {"step": 5, "time": pytest.approx(0.5)}
    assert "with step and time" in second["error"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("diverge", "after step 3: training diverged"), ("fail", "after step 3: statistic 'sum'")],
)
def test_a_failure_on_the_first_rank_leaves_nobody_waiting(folder, name, message):
    first, second = found(folder, name)
    assert message in first["error"]
    assert first["step"] == second["step"] == 6


def test_what_cannot_be_gathered_is_refused_everywhere(folder):
    for rank in found(folder, "refuse"):
        assert "a probe runs the model in one process" in rank["probe"]
        assert "use fully_shard" in rank["first"]


def test_forward_passes_that_leave_whole_parameters(folder, alone):
    names, (first, second) = alone[0].names, found(folder, "ahead")
    for rank in (first, second):
        for kind in ("ring", "hook"):
            assert all(map(torch.equal, rank["bare"], rank[kind]))
    for kind in ("ring", "hook"):
        values, weights = first[f"{kind} values"], first[kind]
        assert len(values) == 4
        for name, row in (("first", weights[0].flatten()), ("last", weights[2][0, :2])):
            entries = [i for i, entry in enumerate(names) if entry.startswith(name)]
            assert torch.equal(values[-1, entries], row)
            assert bool((values[0, entries] != values[-1, entries]).all())


if __name__ == "__main__":
    main()
