"""Figures 1 to 3 of arXiv 2206.04030 with their parameters: real SGD and what theory predicts.

    python scripts/figures.py all
    python scripts/figures.py 2 --smoke
    python scripts/figures.py all --jobs 1  # one process: the same numbers, and longer

This is `torchlimits figures`. Each figure is a file of `torchlimits/cli/paper`, made of the names
that README has: figure 2 begins with

    problem = tl.GaussianMixture.binary(250, 2, snr=100.0, ridge=0.1)
    measured = tl.train(problem, step_size=1.0, time=60.0, runs=200)
    dynamics = problem.small_noise().dynamics(step_size=1.0)
    predicted = dynamics.solve(measured.initial[:8], measured.times)
    print(problem.is_optimal(measured.final).double().mean(), problem.success_probability())
"""

import sys

from torchlimits.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["figures", *sys.argv[1:]]))
