"""Two-layer ReLU networks on Gaussian mixtures."""
