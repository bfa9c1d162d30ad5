"""Where recorded rows are shown while the training goes on."""
