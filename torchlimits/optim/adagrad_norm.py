"""`AdaGradNorm`: SGD with one step size for all parameters, which falls as gradients add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: for what it has for optimizers and does not list: one kernel for many tensors
_torch: Any = torch
#: what torch.optim.Adagrad calls it in ``optimizer.state``, too
KEY = "sum"
#: the options that all parameters have in common, as b is one number
_COMMON = ("initial", "replica_dims")


class AdaGradNorm(torch.optim.Optimizer):
    r"""AdaGrad-Norm: SGD whose step size is divided by the norm of all gradients so far,

    .. math:: b_{k+1}^2 = b_k^2 + \|\nabla L_k\|^2, \qquad
        x_{k+1} = x_k - \frac{\eta}{b_{k+1}} \nabla L_k.

    The norm is that of the gradients of all parameters together, and b one number for all of them.
    As in the source, a step divides by the b that has its own gradient in it. Weight decay comes
    after the norm, :math:`x \leftarrow x - (\eta/b_{k+1}) (\nabla L + \alpha x)`: it is not counted
    in b. Parameters without a gradient are neither moved nor counted.

    The critical scaling is :math:`b_0 = N \sqrt{v_0}` with eta of order 1: then
    :math:`v = (b/N)^2` moves as statistics do, and ``problem.dynamics(optimizer)`` predicts it with
    them. The limit time of predictions is the sum of lr = eta over the steps,
    :math:`t = \eta \cdot steps`, and not eta steps/N: N steps last until t = eta N.

    b^2 is in ``optimizer.state`` of every parameter under ``"sum"``, in float64, so that statistics
    may read it as ``p["<name>.sum"]``.

    Source: Ward, Wu and Bottou, *AdaGrad stepsizes: sharp convergence over nonconvex landscapes*
    (ICML 2019), Algorithm 1.

    Args:
        params: parameters, or groups of them. Groups may differ in lr, weight_decay and maximize.
        lr: eta.
        initial: b_0 > 0.
        weight_decay: alpha.
        maximize: ascend the loss.
        replica_dims: the number of leading dimensions, of every parameter, that count independent
            copies of a model, each with a b of its own: 1 for models with replicas and
            `torchlimits.train`.

    Raises:
        ValueError: if a number is out of range, groups differ in ``initial`` or ``replica_dims``,
            or a gradient is sparse.

    Example:
        >>> import torch
        >>> x = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = AdaGradNorm([x], lr=1.0, initial=4.0)
        >>> (3 * x[0]).backward()
        >>> optimizer.step()  # b = 5
        >>> x.data, optimizer.state[x]["sum"]
        (tensor([-0.6000,  0.0000]), tensor(25., dtype=torch.float64))
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1.0, *, initial: float, weight_decay: float = 0.0,
        maximize: bool = False, replica_dims: int = 0,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "initial": initial, "weight_decay": weight_decay, "maximize": maximize,
            "replica_dims": replica_dims,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, whose gradients b counts from here on.

        Args:
            param_group: parameters and options; those left out are the optimizer's own.

        Raises:
            ValueError: as in the class.
        """
        options = {**self.defaults, **param_group}
        _check(options, self.defaults)
        super().add_param_group(param_group)
        replicas = options["replica_dims"]
        for p in self.param_groups[-1]["params"]:
            if p.ndim < replicas:
                self.param_groups.pop()
                raise ValueError(
                    f"expected parameters with {replicas} leading dimensions of replicas, got one "
                    f"of shape {tuple(p.shape)}: set replica_dims to the number of dimensions that "
                    "count copies of the model"
                )
        for p in self.param_groups[-1]["params"]:
            self.state[p][KEY] = self._shared(p, options)

    def _shared(self, p: Tensor, options: dict[str, Any]) -> Tensor:
        """b^2 as it stands, one tensor for all parameters of a device."""
        known = next((state[KEY] for state in self.state.values() if KEY in state), None)
        if known is None:
            square = float(options["initial"]) ** 2
            shape = p.shape[: options["replica_dims"]]
            return torch.full(shape, square, dtype=torch.float64, device=p.device)
        on_device = (s[KEY] for s in self.state.values() if KEY in s and s[KEY].device == p.device)
        return next(on_device, known.to(p.device))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state; b keeps its float64, where torch takes the dtype of parameters.

        Args:
            state_dict: what `state_dict` returned.
        """
        super().load_state_dict(state_dict)
        saved = next((s[KEY] for s in state_dict["state"].values() if KEY in s), None)
        if saved is None:
            return
        placed: dict[torch.device, Tensor] = {}
        for p, state in self.state.items():
            own = saved.detach().to(p.device, torch.float64, copy=True)
            state[KEY] = placed.setdefault(p.device, own)

    @property
    def treats_replicas_alone(self) -> bool:
        """Whether stacked copies are stepped as if each were alone (`torchlimits.train`)."""
        return bool(self.defaults["replica_dims"])

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None
    ) -> Any:
        """Add the squared norm of the gradients to b^2, and step by eta/b.

        Args:
            closure: evaluates the loss, and its gradients, and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not held:
            return loss
        gained = self._squared_norm([_dense(p.grad) for p in held])
        sums = {id(state[KEY]): state[KEY] for state in self.state.values() if KEY in state}
        for square in sums.values():
            square.add_(gained.to(square.device))
        for group in self.param_groups:
            self._move(group)
        return loss

    def _squared_norm(self, gradients: list[Tensor]) -> Tensor:
        """The squared norm of all gradients together, one for each copy, in float64."""
        replicas = self.defaults["replica_dims"]
        if not replicas:
            # one kernel for all parameters of a device
            norms = _torch._foreach_norm(gradients)
        else:
            rows = [g.reshape(*g.shape[:replicas], -1) for g in gradients]
            norms = [torch.linalg.vector_norm(g, dim=-1) for g in rows]
        device = norms[0].device
        return torch.stack([n.to(device, torch.float64) for n in norms]).square().sum(0)

    def _move(self, group: dict[str, Any]) -> None:
        """Take the step of one group."""
        held = [p for p in group["params"] if p.grad is not None]
        if not held:
            return
        moves = [p.grad for p in held]
        if group["maximize"]:
            moves = _torch._foreach_neg(moves)
        if group["weight_decay"]:
            moves = _torch._foreach_add(moves, held, alpha=float(group["weight_decay"]))
        factors = [self._factor(p, group["lr"]) for p in held]
        steps = _torch._foreach_mul(moves, factors)
        _torch._foreach_add_(held, steps)

    def _factor(self, p: Tensor, lr: float | Tensor) -> Tensor:
        """-eta/b, in the dtype of a parameter and in a shape that multiplies it."""
        square = self.state[p][KEY]
        lr = lr.to(square) if isinstance(lr, Tensor) else lr
        scale = (-lr / square.sqrt()).to(p.dtype)
        return scale.reshape((*scale.shape, *[1] * (p.ndim - scale.ndim)))


def _check(options: dict[str, Any], common: dict[str, Any]) -> None:
    """Raise ValueError if an option is out of range, or one that all have in common differs."""
    for name in ("lr", "weight_decay"):
        given = options[name]
        if not 0 <= float(given.detach() if isinstance(given, Tensor) else given) < float("inf"):
            raise ValueError(f"expected a finite {name} >= 0, got {options[name]}")
    if not 0 < float(options["initial"]) < float("inf"):
        raise ValueError(
            f"expected initial = b_0 > 0, got {options['initial']}: a first gradient of 0 would be "
            "divided by 0; it is of the order of N where steps are small"
        )
    if not isinstance(options["replica_dims"], int) or options["replica_dims"] < 0:
        raise ValueError(
            f"expected replica_dims as an int >= 0, got {options['replica_dims']!r}: it is the "
            "number of leading dimensions that count copies of the model"
        )
    for name in _COMMON:
        if options[name] != common[name]:
            raise ValueError(
                f"expected one {name} for all parameter groups, got {options[name]} beside "
                f"{common[name]}: b is one number for all parameters; give {name} to the "
                "optimizer, or an optimizer to each group"
            )


def _dense(gradient: Any) -> Tensor:
    if gradient.is_sparse:
        raise ValueError("expected dense gradients, got sparse ones: make them dense")
    return gradient
