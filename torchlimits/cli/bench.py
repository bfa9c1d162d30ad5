"""x"""

from dataclasses import dataclass


@dataclass
class Bench:
    """x"""
