"""Train a problem of the paper, predict its summary statistics, and overlay both.

    python scripts/run.py xor
    python scripts/run.py binary --snr 2 --runs 8 --start random --no-corrector
    python scripts/run.py --resume runs/xor/0001-snr8-lr2
    torchrun --nproc-per-node=2 scripts/run.py xor --runs 200     (the runs shared by two processes)

This is `torchlimits run`; in a few lines of your own, it does:

    problem = tl.GaussianMixture.xor(dim=1000, width=4, snr=8.0, ridge=0.05)
    measured = tl.train(problem, step_size=2.0, time=10.0, path="measured.npz")
    dynamics = problem.dynamics(step_size=2.0)
    predicted = dynamics.solve(measured.initial, measured.times, band="law")
    print(tl.compare(measured, predicted))
    tl.tensorboard.write("runs/mine", measured=measured, predicted=predicted)
    tl.figures.save(tl.figures.overlay(measured, predicted), "overlay.png")
"""

import sys

from torchlimits.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
