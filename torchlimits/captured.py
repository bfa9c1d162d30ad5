"""`replayed`: a training step captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Generator

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
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    # captures need a stream of their own, and what was done on it before to be finished
    stream = torch.cuda.Stream(generator.device)
    stream.wait_stream(torch.cuda.current_stream(generator.device))
    try:
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                step()
                tracker.stepped()
                yield
            with torch.cuda.graph(graph, stream=stream):
                step()
            while True:
                graph.replay()
                tracker.stepped()
                yield
    finally:
        # a last flush comes on the caller's stream, which would not wait for this one by itself
        torch.cuda.current_stream(generator.device).wait_stream(stream)
