"""Data into pandas, and a picture for a paper."""

from matplotlib.figure import Figure

import torchlimits as tl

problem = tl.GaussianMixture.binary(dim=300, width=2, snr=2.0, ridge=0.05)
measured = tl.train(problem, step_size=1.0, time=4.0, path="measured.npz")  # Trajectory.load
predicted = problem.dynamics(step_size=1.0).solve(measured, band=True)

table = measured.to_pandas(wide=False)  # one row for each run, time and statistic
print(table.tail(3))
print(tl.compare(measured, predicted).to_pandas())

figure = Figure(figsize=(6.4, 2.6), layout="constrained")
for axes, family in zip(figure.subplots(1, 2), ("v", "m"), strict=True):
    predicted.plot(family, axes)  # lines, their band, names of both axes
    axes.set_prop_cycle(None)  # the same colours again
    measured.thin(25).plot(family, axes, linestyle="", marker=".")
tl.figures.save(figure, "figure.pdf")
