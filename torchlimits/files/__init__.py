"""Files that survive crashes, and are read with suspicion."""
