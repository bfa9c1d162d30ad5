"""Optimizers as users write them, around others or with steps of their own; no tests."""

from collections import defaultdict

import torch


class Halving(torch.optim.Optimizer):
    """Moves the parameters once more after the optimizer that it wraps."""

    def __init__(self, inner):
        self.optimizer = inner
        super().__init__(inner.param_groups, {})

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step()
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.5)


class Lookahead(torch.optim.Optimizer):
    """Every second step goes half the way from where it began (Zhang et al. 2019)."""

    def __init__(self, inner):
        self.optimizer, self.count = inner, 0
        super().__init__(inner.param_groups, {})
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step(closure)
        self.count += 1
        if self.count % 2 == 0:
            fast = [p for g in self.param_groups for p in g["params"]]
            for p, slow in zip(fast, self.slow, strict=True):
                p.copy_(slow.lerp_(p, 0.5))


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021), in its two-step and its closure form."""

    def __init__(self, params, base_optimizer, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base_optimizer(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        held = [p for g in self.param_groups for p in g["params"]]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        for p in held:
            self.state[p]["before"] = p.data.clone()
            p.add_(p.grad, alpha=float(self.param_groups[0]["rho"] / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in (p for g in self.param_groups for p in g["params"]):
            p.data = self.state[p]["before"]
        self.base_optimizer.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD (Defazio et al. 2024): y is trained, x, the average of z, evaluated."""

    def __init__(self, params, lr, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})
        self.training, self.count = True, 0

    @torch.no_grad()
    def step(self, closure=None):
        assert self.training
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                z, x = state.setdefault("z", p.clone()), state.setdefault("x", p.clone())
                z.sub_(p.grad, alpha=group["lr"])
                x.lerp_(z, 1 / self.count)
                p.copy_(z.lerp(x, group["beta"]))

    @torch.no_grad()
    def eval(self):
        self._switch("x")

    @torch.no_grad()
    def train(self):
        self._switch(None)

    def _switch(self, name):
        self.training = name is None
        for group in self.param_groups:
            for p in group["params"]:
                z, x = self.state[p]["z"], self.state[p]["x"]
                p.copy_(x if name == "x" else z.lerp(x, group["beta"]))


class PrivateLike(torch.optim.Optimizer):
    """Like Opacus' DPOptimizer: no hooks, and its groups are those of the one that it wraps."""

    def __init__(self, optimizer):
        self.original_optimizer = optimizer

    @property
    def param_groups(self):
        return self.original_optimizer.param_groups

    def step(self, closure=None):
        return self.original_optimizer.step(closure)


class LocalLike(torch.optim.Optimizer):
    """Like torch's PostLocalSGDOptimizer: no hooks, and it averages after the steps of another."""

    def __init__(self, optim):
        self.optim, self.param_groups = optim, optim.param_groups

    def step(self):
        self.optim.step()


class HooksOfItsOwn(torch.optim.Optimizer):
    """Like timm's Lookahead: there is a place for hooks, which nobody calls."""

    def __init__(self, base_optimizer):
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}
        self._base_optimizer, self.state = base_optimizer, defaultdict(dict)
        self.param_groups, self.defaults = base_optimizer.param_groups, base_optimizer.defaults

    def step(self, closure=None):
        return self._base_optimizer.step(closure)


class Clipped(torch.optim.SGD):
    """A subclass whose step calls that of its base, which has hooks of its own by then."""

    def step(self, closure=None):
        torch.nn.utils.clip_grad_value_(self.param_groups[0]["params"], 0.5)
        result = super().step(closure)
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.clamp_(-1.0, 1.0)
        return result
