"""Other widths, snr, step sizes, starts and numbers of runs."""

import torch

import torchlimits as tl

for width, snr, step_size in ((4, 8.0, 1.0), (4, 8.0, 3.0), (6, 4.0, 1.0)):
    problem = tl.GaussianMixture.xor(dim=200, width=width, snr=snr, ridge=0.05)
    start = problem.model(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        start.first.weight[:, :50] *= 2  # where all runs start; leave start out for random ones
    measured = tl.train(problem, step_size=step_size, time=0.5, runs=4, start=start)
    predicted = problem.dynamics(step_size=step_size, level=-2).solve(measured)
    print(f"{problem}, c_delta = {step_size:g}\n{tl.compare(measured, predicted)}\n")
    logdir = f"runs/variations/width{width}-snr{snr:g}-lr{step_size:g}"
    tl.tensorboard.write(logdir, measured=measured, predicted=predicted)
