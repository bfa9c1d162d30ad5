"""Real SGD with optimizers of the test's own making, for comparison with the effective dynamics."""

import torch

import torchlimits as tl


def copies(problem, start, runs):
    """Replicas that all have the parameters of one model."""
    model = problem.model(replicas=(runs,))
    for name, p in model.named_parameters():
        p.data.copy_(start.get_parameter(name).detach())
    return model


def one_step(problem, start, make, *, samples, batch=1, seed=1):
    """(u after - u before) / lr of one step by the optimizer ``make(model)``, (samples, k)."""
    model = copies(problem, start, samples)
    optimizer = make(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        before = problem.statistics(parameters)
    generator = torch.Generator().manual_seed(seed)
    x, y = problem.sample(batch, replicas=(samples,), generator=generator)
    problem.loss(model(x), y).backward()
    optimizer.step()
    with torch.no_grad():
        return (problem.statistics(parameters) - before) / optimizer.param_groups[0]["lr"]


def train(problem, model, optimizer, steps, *, scheduler=None, every=10, batch=1, seed=1):
    """The trajectory of the replicas in the model."""
    replicas = next(iter(model.parameters())).shape[:1]
    generator = torch.Generator().manual_seed(seed)
    with tl.track(model, optimizer, problem.statistics, every=every) as tracker:
        for _ in range(steps):
            x, y = problem.sample(batch, replicas=tuple(replicas), generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    return tracker.trajectory()


def misses(measured, predicted, *, z=4.0, slack=0.0):
    """Largest |mean - predicted| over its allowance; more than 1 is a miss.

    The allowance is z standard errors at each of some hundred comparisons, and a bias O(1/n).
    """
    mean = measured.values.mean(0)
    error = measured.values.std(0) / measured.values.shape[0] ** 0.5
    return float(((mean - predicted.values).abs() / (z * error + slack)).max())
