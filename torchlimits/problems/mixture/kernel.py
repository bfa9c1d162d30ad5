"""`MixtureSGD`: SGD of many two-layer networks on a Gaussian mixture, in one Triton kernel.

A program takes one replica through several steps. Its weights stay in registers or, where they are
too many, in the cache; normals are drawn by Philox where they are consumed, never written to
memory. So a step costs neither a pass over memory nor a launch (`scripts/cuda.md` has figures).

Forward: h = W x, logit = v . relu(h). Backward, with g = (sigmoid(logit) - y)/B: dv = g relu(h),
dW = (g v 1{h > 0}) x^T. Then torch.optim.SGD's update, buf = mu buf + gradient + alpha p,
p = p - lr buf. On the same data that is what autograd and the optimizer do, to rounding.
"""

# Triton's language is typed while it is compiled
# pyright: basic
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchlimits.contracts.kernel import NoKernelError
from torchlimits.problems.mixture.gradients import only_group

if TYPE_CHECKING:
    from torchlimits.problems.mixture.components import Components
    from torchlimits.problems.two_layer import TwoLayerNetwork

#: most entries that a program keeps in registers, of the weights, their momentum and gradient
_IN_REGISTERS = 2**14
#: entries for each warp there, and for each warp that goes through the cache
_OF_A_WARP, _OF_A_WARP_IN_CACHE = 2**10, 2**9
#: entries that are in registers at once where not all are
_PIECE = 2**13

#: the counter of a sample's component, beyond all columns
_COMPONENT = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _uniform(bits):
    """Uniform numbers in (0, 1], in steps of 2^-24, or finer near 0, as float32 has them."""
    return (bits.to(tl.float32) + 1.0) * 2.3283064365386963e-10


@triton.jit
def _normals(seed, quad, replica, step, sample):
    """Four normals for each entry of `quad`, side by side, by Philox and Box-Muller."""
    a, b, c, d = tl.philox(seed, quad, replica + quad * 0, step + quad * 0, sample + quad * 0)
    r, s = tl.sqrt(-2.0 * tl.log(_uniform(a))), tl.sqrt(-2.0 * tl.log(_uniform(c)))
    t, w = 6.283185307179586 * _uniform(b), 6.283185307179586 * _uniform(d)
    pairs = tl.join(tl.join(r * tl.cos(t), s * tl.cos(w)), tl.join(r * tl.sin(t), s * tl.sin(w)))
    return tl.reshape(pairs, (4 * quad.shape[0],))


@triton.jit
def _component(seed, replica, step, sample, count):
    zero = replica * 0
    a, _b, _c, _d = tl.philox(seed, zero + _COMPONENT, replica, zero + step, zero + sample)
    # the high half of a product: uniform on 0 ... count - 1 up to count/2^32
    return tl.umulhi(a, a * 0 + count).to(tl.int32)


@triton.jit
def _data(seed, quad, replica, step, sample, means, component, column, N, scale):
    mean = tl.load(means + component * N + column, mask=column < N, other=0.0)
    x = mean + scale * _normals(seed, quad, replica, step, sample)
    return tl.where(column < N, x, 0.0)


@triton.jit(do_not_specialize=["seed", "steps"])
def _in_registers(
    weight, second, weight_buffer, second_buffer, means, labels, done,
    seed, lr, decay, momentum, scale, steps, N, K, components,
    BATCH: tl.constexpr, MOMENTUM: tl.constexpr, QUADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    replica = tl.program_id(0)
    first = tl.load(done)
    quad = tl.arange(0, QUADS)
    column = tl.arange(0, 4 * QUADS)
    neuron = tl.arange(0, WIDTH)
    place = replica.to(tl.int64) * K * N + neuron[:, None] * N + column[None, :]
    inside = (neuron[:, None] < K) & (column[None, :] < N)
    there = replica.to(tl.int64) * K + neuron
    W = tl.load(weight + place, mask=inside, other=0.0)
    v = tl.load(second + there, mask=neuron < K, other=0.0)
    if MOMENTUM:
        W_buffer = tl.load(weight_buffer + place, mask=inside, other=0.0)
        v_buffer = tl.load(second_buffer + there, mask=neuron < K, other=0.0)
    for s in range(steps):
        step = first + s
        if BATCH == 1 and not MOMENTUM:
            a = _component(seed, replica, step, 0, components)
            x = _data(seed, quad, replica, step, 0, means, a, column, N, scale)
            h = tl.sum(W * x[None, :], axis=1)
            active = tl.maximum(h, 0.0)
            g = 1 / (1 + tl.exp(-tl.sum(v * active))) - tl.load(labels + a)
            # lr (decay W), not (1 - lr decay) W, whose factor would be rounded, always to one side
            W -= lr * (decay * W) + tl.where(h > 0, lr * g * v, 0.0)[:, None] * x[None, :]
            v -= lr * (decay * v + g * active)
        else:
            dW, dv = decay * W, decay * v
            for sample in range(BATCH):
                a = _component(seed, replica, step, sample, components)
                x = _data(seed, quad, replica, step, sample, means, a, column, N, scale)
                h = tl.sum(W * x[None, :], axis=1)
                active = tl.maximum(h, 0.0)
                g = 1 / (1 + tl.exp(-tl.sum(v * active))) - tl.load(labels + a)
                g = g / BATCH
                dW += tl.where(h > 0, g * v, 0.0)[:, None] * x[None, :]
                dv += g * active
            if MOMENTUM:
                W_buffer = momentum * W_buffer + dW
                v_buffer = momentum * v_buffer + dv
                W -= lr * W_buffer
                v -= lr * v_buffer
            else:
                W -= lr * dW
                v -= lr * dv
    tl.store(weight + place, W, mask=inside)
    tl.store(second + there, v, mask=neuron < K)
    if MOMENTUM:
        tl.store(weight_buffer + place, W_buffer, mask=inside)
        tl.store(second_buffer + there, v_buffer, mask=neuron < K)


@triton.jit(do_not_specialize=["seed", "steps"])
def _through_the_cache(
    weight, second, weight_buffer, second_buffer, means, labels, done,
    seed, lr, decay, momentum, scale, steps, N, K, components,
    BATCH: tl.constexpr, MOMENTUM: tl.constexpr, QUADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """W is read twice and written once a step; normals are drawn twice. Batch 1, no momentum."""
    replica = tl.program_id(0)
    first = tl.load(done)
    quad = tl.arange(0, QUADS)
    column = tl.arange(0, 4 * QUADS)
    neuron = tl.arange(0, WIDTH)
    row = weight + replica.to(tl.int64) * K * N + neuron[:, None] * N
    there = replica.to(tl.int64) * K + neuron
    v = tl.load(second + there, mask=neuron < K, other=0.0)
    for s in range(steps):
        step = first + s
        a = _component(seed, replica, step, 0, components)
        h = tl.zeros((WIDTH,), tl.float32)
        for begin in range(0, N, 4 * QUADS):
            at = begin + column
            inside = (neuron[:, None] < K) & (at[None, :] < N)
            x = _data(seed, begin // 4 + quad, replica, step, 0, means, a, at, N, scale)
            W = tl.load(row + at[None, :], mask=inside, other=0.0)
            h += tl.sum(W * x[None, :], axis=1)
        active = tl.maximum(h, 0.0)
        g = 1 / (1 + tl.exp(-tl.sum(v * active))) - tl.load(labels + a)
        left = tl.where(h > 0, lr * g * v, 0.0)
        # no thread writes what another one still has to read
        tl.debug_barrier()
        for begin in range(0, N, 4 * QUADS):
            at = begin + column
            inside = (neuron[:, None] < K) & (at[None, :] < N)
            x = _data(seed, begin // 4 + quad, replica, step, 0, means, a, at, N, scale)
            W = tl.load(row + at[None, :], mask=inside, other=0.0)
            W -= lr * (decay * W) + left[:, None] * x[None, :]
            tl.store(row + at[None, :], W, mask=inside)
        v -= lr * (decay * v + g * active)
        # threads read in the next step what others wrote in this one
        tl.debug_barrier()
    tl.store(second + there, v, mask=neuron < K)


@triton.jit
def _draw(out, out_component, seed, step, sample, N, components, QUADS: tl.constexpr):
    """The normals and the component that the kernels above draw, for comparison in tests."""
    replica = tl.program_id(0)
    quad = tl.arange(0, QUADS)
    column = tl.arange(0, 4 * QUADS)
    z = _normals(seed, quad, replica, step, sample)
    tl.store(out + replica * N + column, z, mask=column < N)
    tl.store(out_component + replica, _component(seed, replica, step, sample, components))


class MixtureSGD:
    """Take replicas of a `TwoLayerNetwork` through steps of SGD on a `GaussianMixture`.

    Replica r draws the same data whatever the other replicas are.

    Args:
        data: the mixture, of components of equal probability.
        model: its model, with one leading dimension R, in float32, on CUDA.
        optimizer: torch.optim.SGD over all of the model, in one parameter group.
        batch_size: the number of fresh samples in a step.
        seed: the seed of the data, >= 0 and below 2^63.
        warps: the number of warps of a program; by default one that is fast.
        in_registers: whether to keep all weights in registers; by default if they are not too many.

    Raises:
        NoKernelError: if there is no kernel for these arguments.
    """

    def __init__(
        self, data: Components, model: TwoLayerNetwork, optimizer: torch.optim.SGD, *,
        batch_size: int, seed: int, warps: int | None = None, in_registers: bool | None = None,
    ) -> None:  # fmt: skip
        if data.weights is not None:
            raise NoKernelError(
                "expected components of equal probability, which is what the kernel draws, got "
                f"weights={data.weights.tolist()}"
            )
        weight, second = model.first.weight.detach(), model.second.weight.detach()
        group = only_group(optimizer, model)
        momentum = group["momentum"]
        if weight.ndim != 3 or weight.dtype != torch.float32:
            raise NoKernelError(
                "expected parameters (runs, K, N) in float32, got "
                f"{tuple(weight.shape)} in {weight.dtype}"
            )
        replicas, width, dim = weight.shape
        padded, columns = triton.next_power_of_2(width), max(4, triton.next_power_of_2(dim))
        kept = padded * columns * (1 + (batch_size > 1 or momentum != 0) + (momentum != 0))
        if in_registers is None:
            in_registers = kept <= _IN_REGISTERS
        if not in_registers and (batch_size > 1 or momentum):
            raise NoKernelError(
                f"expected batch_size=1 and momentum=0, or at most {_IN_REGISTERS} weights, "
                f"gradients and momenta of a network, got {kept}"
            )
        self.replicas, self.dim, self.components = replicas, dim, len(data.means)
        self.weight = weight
        #: steps taken, counted on the device, as kernels may not have finished yet
        self.done = torch.zeros((), dtype=torch.int32, device=weight.device)
        self.quads = columns // 4 if in_registers else max(1, min(columns, _PIECE // padded) // 4)
        self.seed = seed
        self._kernel = _in_registers if in_registers else _through_the_cache
        a_warp = _OF_A_WARP if in_registers else _OF_A_WARP_IN_CACHE
        at_once = kept if in_registers else 4 * self.quads * padded
        self._warps = warps or max(1, min(16, at_once // a_warp))
        means, labels = (x.to(weight).contiguous() for x in (data.means, data.labels))
        buffers = [torch.zeros_like(p) if momentum else p for p in (weight, second)]
        if momentum:  # where the optimizer itself would keep them, and whoever reads them looks
            layers = (model.first.weight, model.second.weight)
            for parameter, buffer in zip(layers, buffers, strict=True):
                optimizer.state[parameter]["momentum_buffer"] = buffer
        self._arguments = (
            weight, second, *buffers, means, labels, self.done, seed,
            group["lr"], group["weight_decay"], momentum, data.snr**-0.5,
        )  # fmt: skip
        self._shape = (dim, width, self.components)
        self._constants = {
            "BATCH": batch_size, "MOMENTUM": momentum != 0, "QUADS": self.quads, "WIDTH": padded
        }  # fmt: skip

    def advance(self, steps: int) -> None:
        """Take this many steps; the host does not wait for them."""
        # Triton launches on the current device
        with torch.cuda.device_of(self.weight):
            self._kernel[(self.replicas,)](
                *self._arguments, steps, *self._shape, **self._constants, num_warps=self._warps
            )
            self.done.add_(steps)

    def drawn(self, step: int, sample: int = 0) -> tuple[Tensor, Tensor]:
        """The normals ``(R, N)`` and components ``(R,)`` of one step, for comparison."""
        normals = self.weight.new_empty(self.replicas, self.dim)
        component = torch.empty(self.replicas, dtype=torch.int32, device=normals.device)
        quads = max(4, triton.next_power_of_2(self.dim)) // 4
        with torch.cuda.device_of(normals):
            _draw[(self.replicas,)](
                normals, component, self.seed, step, sample, self.dim, self.components, QUADS=quads
            )
        return normals, component.long()
