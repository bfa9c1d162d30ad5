"""Questions asked of a problem as a whole: basins, success, phase diagrams."""
