"""What an optimizer does to the effective dynamics."""
