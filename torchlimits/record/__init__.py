"""The recorder: statistics of a training loop that somebody else wrote, at every step."""
