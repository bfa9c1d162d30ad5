"""Means and class weights of one's own, and a further statistic with its prediction."""

import torch

import torchlimits as tl

e = torch.eye(2, 300)  # orthonormal directions; the means are in their span
means = torch.stack([1.5 * e[0], -e[0] + e[1], -2 * e[1]])
problem = tl.GaussianMixture(
    means, labels=torch.tensor([1, 0, 1]), weights=torch.tensor([0.5, 0.3, 0.2]), directions=e,
    width=3, snr=3.0, ridge=0.02,
)  # fmt: skip
statistics = problem.statistics | {"size": lambda p: p["first.weight"].square().sum((-2, -1))}
measured = tl.train(problem, step_size=1.0, time=3.0, statistics=statistics)
predicted = problem.dynamics(step_size=1.0).solve(measured)  # of the problem's own statistics
print(tl.compare(measured, predicted))

# |W|^2 = sum of m^2 and of the diagonal of R, so its prediction is a function of theirs
squares = predicted["m"].square().sum(-1)
lengths = predicted.select([f"R[{i},{i}]" for i in range(3)]).values.sum(-1)
size = tl.Trajectory(
    predicted.times, predicted.steps, (squares + lengths)[..., None], ["size"]
)  # fmt: skip
print(tl.compare(measured, size))
