"""Spiked matrix and tensor PCA."""
