"""What parts promise each other: base classes of what people write themselves."""
