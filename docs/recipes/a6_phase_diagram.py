"""Matrix PCA: how many stable fixed points there are, over snr and step size."""

from functools import partial

import torch
from matplotlib.figure import Figure

import torchlimits as tl

make = partial(tl.SpikedTensor, dim=100, order=2)
snr, step_size = torch.linspace(0.2, 2.0, 7).tolist(), torch.linspace(0.2, 2.0, 7).tolist()
diagram = tl.phase_diagram(make, ("snr", snr), ("step_size", step_size))
print(diagram.count("stable"))
figure = Figure(figsize=(5, 4), layout="constrained")
diagram.draw(figure.add_subplot(), "stable")
tl.figures.save(figure, "phase_diagram.png", dpi=150)
