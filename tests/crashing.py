"""A training program that is killed: run in a process of its own, resumed from its checkpoint."""

import multiprocessing
import os
import signal
import time

import torch

import torchlimits as tl
from torchlimits.record import tracker as recorder

#: snapshots in the ring: at most so many rows are not yet on disk
RING = 64
_CONTEXT = multiprocessing.get_context("forkserver")
# children are forked from a process that has these already
_CONTEXT.set_forkserver_preload(["torch._dynamo", "torchlimits.tensorboard"])


def statistics():
    """Matrix products, whose last bits depend on how many are evaluated at once."""
    directions = torch.randn(30, 3, generator=torch.Generator().manual_seed(5))
    return {
        "m": lambda p: p["weight"] @ directions,
        "R": lambda p: p["weight"] @ p["weight"].T,
        "norm": lambda p: p["weight"].norm(),
    }


def train(folder, steps, progress=None, *, checkpoint_every=None, every=1):
    """Train up to a step, from the checkpoint in the folder if there is one."""
    torch.set_num_threads(1)
    recorder._FLUSH_EVERY_SECONDS = 0.01
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(30, 8, bias=False)
    torch.nn.init.normal_(model.weight, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    checkpoint = folder / "checkpoint.pt"
    with tl.track(
        model,
        optimizer,
        statistics(),
        every=every,
        path=folder / "u.npz",
        # few enough points for them to be thinned out on the way
        writer=tl.tensorboard.Writer(folder / "log", max_points=300),
        max_bytes=RING * model.weight.nbytes,
    ) as tracker:
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            generator.set_state(state["generator"])
            tracker.load_state_dict(state["tracker"])
        for step in range(tracker.step + 1, steps + 1):
            x = torch.randn(2, 30, generator=generator)
            optimizer.zero_grad()
            (model(x) - x[:, :8].sign()).square().mean().backward()
            optimizer.step()
            if progress is not None:
                progress.value = step
            if checkpoint_every is not None and step % checkpoint_every == 0:
                save(checkpoint, model, optimizer, generator, tracker)


def save(checkpoint, model, optimizer, generator, tracker):
    """As a careful user does: the old checkpoint is there until the new one is whole."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "tracker": tracker.state_dict(),
    }
    torch.save(state, checkpoint.with_suffix(".new"))
    checkpoint.with_suffix(".new").replace(checkpoint)


def run(folder, steps, **options):
    """`train` in a process of its own, to the end."""
    process = _CONTEXT.Process(target=train, args=(folder, steps), kwargs=options)
    process.start()
    process.join()
    assert process.exitcode == 0


def run_killed(folder, steps, at, delay, **options):
    """`train`, killed some moment after step ``at``; returns the last step that was taken.

    With ``at`` = -1 the moment counts from the start of the process.
    """
    progress = _CONTEXT.RawValue("q", -1)
    process = _CONTEXT.Process(target=train, args=(folder, steps, progress), kwargs=options)
    process.start()
    while progress.value < at and process.is_alive():
        time.sleep(0.0005)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return progress.value
