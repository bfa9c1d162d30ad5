"""Measured statistics and their prediction side by side in TensorBoard, afterwards and live."""

from torchlimits.tensorboard.live import Writer
from torchlimits.tensorboard.overlay import write
from torchlimits.tensorboard.tags import tag

__all__ = ["Writer", "tag", "write"]
