"""`replayed`: a training step captured as a CUDA graph.

What a replayed step of R runs of a two-layer network costs, with N data and P = K N parameters a
run: N normals; some twenty launches of kernels (two of the generator's, four that draw and shift
the data, some eight of forward and backward each, one of SGD); and, in numbers of four bytes that
go through memory, 5 N (data are drawn, shifted in place, and read by forward and backward) and 6 P
(read by forward; the gradient written; gradient and parameter read, and written, by SGD; what the
backward pass reads again). No way with separate passes goes below 2 N + 2 P. Measured on an H100
(`scripts/cuda.md`): 5 to 7 times the time of a copy of those 2 N + 2 P for R >= 10^4, and launches
below R = 10^3. Data drawn by one compiled kernel gained nothing, and compiling the whole step a
factor of 3; a problem's own `Kernel` gains 20 to 30 where it keeps everything in registers (N <=
1000), 5 where it goes through the cache (N = 10,000).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch

from torchlimits.record.tracker import Tracker

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
        generator: draws all random numbers of the step.
        tracker: records the parameters; it is told of every step here.
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
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                "expected sample, model and loss that neither wait for the device (.item(), "
                "bool(tensor)) nor copy from the host (constant.to(device)), as a step is captured "
                f"as a CUDA graph, got: {error}; keep constants on the device of the model"
            ) from error
    return graph


@contextmanager
def _on(stream: torch.cuda.Stream) -> Generator[None]:
    """Use a stream that waits for the caller's, which waits for it afterwards."""
    callers = torch.cuda.current_stream(stream.device)
    stream.wait_stream(callers)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        callers.wait_stream(stream)
