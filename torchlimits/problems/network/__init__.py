"""Any head on a linear first layer: networks h = W x + b, output = head(h), on Gaussian mixtures."""
