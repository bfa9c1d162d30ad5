"""What high-dimensional theory predicts for summary statistics."""
