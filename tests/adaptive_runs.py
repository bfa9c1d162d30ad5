"""Networks with directions spread over all coordinates, and runs of real optimizers on them."""

import torch
from torch import nn

import torchlimits as tl


def spread(rows, dim):
    """Orthonormal rows of a Hadamard matrix: every coordinate has the same leverage."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < dim:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix[list(rows)] / dim**0.5


def binary(dim=256, head=None, **changes):
    """Two components of labels 1 and -1, two neurons."""
    torch.manual_seed(0)
    options = {
        "width": 2, "head": head or nn.Sequential(nn.Tanh(), nn.Linear(2, 1)),
        "loss": nn.functional.mse_loss, "means": spread([1, 2], dim), "snr": 4.0,
        "labels": torch.tensor([1.0, -1.0], dtype=torch.float64), "dtype": torch.float64,
    }  # fmt: skip
    return tl.NetworkProblem(dim=dim, **{**options, **changes})


def three_classes(dim=256, **changes):
    """Three components and classes, three neurons."""
    torch.manual_seed(0)
    options = {
        "width": 3, "head": nn.Sequential(nn.GELU(), nn.Linear(3, 3)),
        "loss": nn.functional.cross_entropy, "means": spread([1, 2, 3], dim), "snr": 4.0,
        "labels": torch.arange(3), "dtype": torch.float64,
    }  # fmt: skip
    return tl.NetworkProblem(dim=dim, **{**options, **changes})


def copies(problem, runs, seed=0):
    """Replicas that all have the parameters of one model."""
    model = problem.model(replicas=(runs,), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p[:1].expand_as(p))
    return model


def clip_norm(parameters, largest):
    """`torch.nn.utils.clip_grad_norm_` of every replica by itself."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    total = sum(g.flatten(1).square().sum(1) for g in gradients).sqrt()
    factor = (largest / (total + 1e-6)).clamp_max(1)
    for g in gradients:
        g.mul_(factor.reshape(-1, *[1] * (g.ndim - 1)))


def clip_value(parameters, largest):
    """`torch.nn.utils.clip_grad_value_`, which takes every entry by itself."""
    nn.utils.clip_grad_value_(parameters, largest)


def clipped(options):
    """What the loop does to gradients: parameters -> None."""
    functions = {"clip_norm": clip_norm, "clip_value": clip_value}

    def change(parameters):
        for name, function in functions.items():
            if name in options:
                function(parameters, options[name])

    return change


def runs_of(
    problem, make, *, steps, runs, batch=1, seed=1, schedule=None, rows=5, change=None, **options
):
    """Runs from one start, with the optimizer's state, and the dynamics of the optimizer.

    Args:
        problem: the problem.
        make: model -> optimizer.
        steps, runs, batch: how many of each.
        seed: of the data.
        schedule: optimizer -> scheduler.
        rows: how many times are recorded after the start.
        change: what is done to gradients, parameters -> None.
        options: clip_norm, clip_value, of the loop and of the dynamics.
    """
    generator = torch.Generator().manual_seed(seed)
    model = copies(problem, runs)
    optimizer = make(model)
    plan = schedule(optimizer) if schedule else None
    change = change or clipped(options)
    dynamics = problem.dynamics(optimizer, batch_size=batch, model=model, schedule=plan, **options)
    with tl.track(model, optimizer, dynamics.statistics, every=steps // rows) as tracker:
        for _ in range(steps):
            x, y = problem.sample(batch, replicas=(runs,), generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            change([*model.parameters()])
            optimizer.step()
            if plan:
                plan.step()
    return tracker.trajectory(), dynamics


def slaved(dynamics):
    """The dynamics with second moments that are what gradients make them at every moment."""
    scales = dynamics.field._scales
    dynamics.field._scales = lambda v, w, Q: scales(Q, torch.ones_like(w), Q)
    return dynamics


def misses(measured, predicted, count):
    """rms z of the first ``count`` statistics at all times after the start."""
    values = measured.values[:, 1:, :count]
    difference = values.mean(0) - predicted.values[1:, :count]
    z = difference / (values.std(0) / len(values) ** 0.5)
    return float(z.square().mean().sqrt())


def muon_runs(
    problem, make_others, *, steps, runs, batch=1, seed=1, rows=4, nodes=2**10, **options
):
    """Runs of torch.optim.Muon on the first layer from one start, and the dynamics with it.

    Muon takes matrices, so every run has a W of its own; all others are replicas.

    Args:
        problem, steps, runs, batch, seed, rows: as in `runs_of`.
        nodes: of the dynamics.
        make_others: parameters -> the optimizer of all parameters but W.
        options: of Muon.
    """
    model = problem.model(generator=torch.Generator().manual_seed(0))
    others = {n: p for n, p in model.named_parameters() if n != "first.weight"}
    weights = [nn.Parameter(model.first.weight.detach().clone()) for _ in range(runs)]
    stacked = {
        n: nn.Parameter(p.detach().expand(runs, *p.shape).clone()) for n, p in others.items()
    }
    trained = [torch.optim.Muon(weights, **options), make_others(stacked.values())]
    described = [torch.optim.Muon([model.first.weight], **options), make_others(others.values())]
    replicas = problem.model(replicas=(runs,))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for step in range(steps + 1):
        whole = {"first.weight": torch.stack(weights), **stacked}
        if step % (steps // rows) == 0:
            with torch.no_grad():
                values.append(problem.statistics(whole).double())
        x, y = problem.sample(batch, replicas=(runs,), generator=generator)
        for one in trained:
            one.zero_grad()
        problem.loss(torch.func.functional_call(replicas, whole, (x,)), y).backward()
        for one in trained:
            one.step()
    dynamics = problem.dynamics(described, batch_size=batch, model=model, nodes=nodes)
    times = torch.arange(len(values), dtype=torch.float64) * (steps // rows) * options["lr"]
    measured = tl.Trajectory(
        times, torch.arange(len(values)) * (steps // rows), torch.stack(values, 1),
        dynamics.network.names,
    )  # fmt: skip
    return measured, dynamics
