"""A problem of one's own (loss, activation, data) and its effective dynamics."""

import torch

import torchlimits as tl
from torchlimits.statistics import entries, gram, overlaps

n, loss = 100, torch.nn.functional.huber_loss
e = torch.eye(1, n)
model = torch.nn.Sequential(
    torch.nn.Linear(n, 2, bias=False), torch.nn.Softplus(), torch.nn.Linear(2, 1, bias=False)
)


def sampler(batch, generator=None):
    x = torch.randn(batch, n, generator=generator)
    return x, x[:, :1].abs()


statistics = {"m": overlaps("0.weight", e), "R": gram("0.weight", e), "v": entries("2.weight")}
statistics = tl.SummaryStatistics(statistics, symmetric=["R"])
dynamics = tl.EmpiricalDynamics(model, loss, sampler, statistics, step_size=1.0, dim=n)
u0 = statistics(dict(model.named_parameters())).detach()
predicted = dynamics.solve(u0, [0.0, 0.5, 1.0])
print(predicted.select("R").to_pandas())  # with the standard errors of 4096 samples
