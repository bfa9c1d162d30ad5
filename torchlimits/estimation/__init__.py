"""Effective dynamics estimated from data, for any model, loss and statistics."""
