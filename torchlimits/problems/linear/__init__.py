"""One-pass least squares with inputs of any covariance."""
