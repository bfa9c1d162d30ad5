"""x"""

from dataclasses import dataclass


@dataclass
class Show:
    """x"""
