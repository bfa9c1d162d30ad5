"""Figures of measured statistics over their prediction."""

from torchlimits.figures.draw import overlay, png, save

__all__ = ["overlay", "png", "save"]
