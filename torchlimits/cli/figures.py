"""x"""

from dataclasses import dataclass


@dataclass
class Figures:
    """x"""
