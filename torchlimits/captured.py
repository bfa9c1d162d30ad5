"""`replayed`: a training step captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch

from torchlimits.tracking import Tracker

#: eager steps before the capture: kernels are chosen and memory is taken in the first ones
_WARM_UP = 3


def replayed(
    step: Callable[[], None], generator: torch.Generator, tracker: Tracker
) -> Generator[None]:
    """Take step after step, without end: a few eagerly, then one graph again and again.

    Replaying costs the host one launch a step, whatever the step is made of, and does not wait
    for the device. The tracker is told of every step here: a hook would run once, at the capture.

    Args:
        step: draws data and updates parameters, on the generator's device. On a device other than
            CUDA it is simply called.
        generator: whatever random numbers the step draws.
        tracker: records the parameters.
    """
    tracker.remove()
    if generator.device.type != "cuda":
        while True:
            step()
            tracker.stepped()
            yield
    # captures need a stream of their own, and what was done on it before to be finished
    stream = torch.cuda.Stream(generator.device)
    for _ in range(_WARM_UP):
        with _on(stream):
            step()
        tracker.stepped()
        yield
    graph = _captured(step, generator, stream)
    while True:
        graph.replay()
        tracker.stepped()
        yield


def _captured(
    step: Callable[[], None], generator: torch.Generator, stream: torch.cuda.Stream
) -> torch.cuda.CUDAGraph:
    # on the generator's device, where the graph's own state of it is kept
    with _on(stream):
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        try:
            # other threads of the program may use the device meanwhile
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            raise RuntimeError(
                "expected sample, model and loss that neither wait for the device (.item(), "
                "bool(tensor)) nor copy from the host (constant.to(device)), as a step is captured "
                f"as a CUDA graph, got: {error}; keep constants on the device of the model"
            ) from error
    return graph


@contextmanager
def _on(stream: torch.cuda.Stream) -> Generator[None]:
    """This stream after the caller's present work, and the caller's after it."""
    callers = torch.cuda.current_stream(stream.device)
    stream.wait_stream(callers)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        callers.wait_stream(stream)
