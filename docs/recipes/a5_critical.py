"""Is this learning rate critical? The command: torchlimits regime --dim 1500 --lr 0.0007."""

import torch

import torchlimits as tl
from torchlimits.statistics import gram, overlaps

print(tl.regime(1500, 0.0007))  # one run, n and lr
print(tl.regime([500, 1000, 2000], [0.02, 0.014, 0.01]))  # how lr is scaled with n


def problem_of(n):
    """Noisy least squares with n inputs: any model, loss, sampler and statistics."""

    def sampler(batch, generator=None):
        x = torch.randn(batch, n, generator=generator)
        return x, x[:, :1] + 0.5 * torch.randn(batch, 1, generator=generator)

    model = torch.nn.Linear(n, 1, bias=False)
    statistics = {"m": overlaps("weight", torch.eye(1, n)), "R": gram("weight", torch.eye(1, n))}
    return tl.SizedProblem(model, torch.nn.functional.mse_loss, sampler, statistics, 0.5 / n, n)


print(tl.critical_step_size(problem_of, dims=[25, 50, 100]))  # estimated, whatever lr is now
