"""Networks with any head on a linear first layer, h = W x + b, on Gaussian mixtures."""
