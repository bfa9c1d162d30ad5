"""The problems: statistics, loss and data together, with their effective dynamics."""
