"""`graph_asked_for`: whether a solution needs the graph of what it is computed from."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.dynamics.flow import Flow


def graph_asked_for(
    flow: Flow, u0: Float[Tensor, "*batch k"], times: Float[Tensor, " T"], *, band: bool = False
) -> bool:
    """Whether u0, a parameter of the flow or its schedule requires a gradient.

    Args:
        flow: the right-hand side.
        u0: the start, shape ``(..., k)``.
        times: shape ``(T,)``.
        band: whether a band is asked for, too.

    Raises:
        NotImplementedError: if a gradient is required and not known.

    Example:
        >>> import torch, torchlimits as tl
        >>> flow = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
        >>> u0, times = torch.ones(2, requires_grad=True), torch.tensor([0.0])
        >>> graph_asked_for(flow, u0, times), graph_asked_for(flow, u0.detach(), times)
        (True, False)
    """
    if not torch.is_grad_enabled() or not u0.numel():
        return False
    u = u0.reshape(-1, u0.shape[-1])[:1]
    scheduled = flow.schedule is not None and flow.schedule.has_graph(times)
    if not (scheduled or u.requires_grad or flow(times[0], u).requires_grad):
        return False
    if band:
        raise NotImplementedError(
            "expected no gradient of a band, got u0 or a parameter that requires one: leave "
            "band=True out, or solve inside torch.no_grad()"
        )
    # refused now, not after the solution
    at = u.detach().double().requires_grad_()
    rates = flow(times[0], at)
    if not rates.requires_grad:
        raise NotImplementedError(
            f"expected terms of {type(flow.field).__name__} that keep the graph of u, as a "
            "gradient is asked for, got some without: compute them by torch, without .detach(), "
            ".item() and numpy; or solve inside torch.no_grad()"
        )
    torch.autograd.grad(rates.sum(), at)
    return True
