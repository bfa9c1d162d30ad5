"""What the parts of the package promise each other: base classes of what users write themselves."""
