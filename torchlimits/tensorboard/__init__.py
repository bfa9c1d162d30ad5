"""Measured statistics and their prediction side by side in TensorBoard, afterwards and live."""

from torchlimits.contracts.tags import tag
from torchlimits.tensorboard.overlay import write
from torchlimits.tensorboard.writer import Writer

__all__ = ["Writer", "tag", "write"]
