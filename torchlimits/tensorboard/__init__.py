"""Measured statistics and their prediction side by side in TensorBoard, afterwards and live."""

from torchlimits.tensorboard.explained import write_explanation
from torchlimits.tensorboard.live import Writer, live
from torchlimits.tensorboard.overlay import write
from torchlimits.tensorboard.tags import tag

__all__ = ["Writer", "live", "tag", "write", "write_explanation"]
