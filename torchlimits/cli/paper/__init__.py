"""Figures 1 to 3 of arXiv 2206.04030: `torchlimits figures`."""
