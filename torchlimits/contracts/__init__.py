"""What the parts of the package expect of each other, and of the parts that users write."""
