"""Callbacks for trainers of other libraries, each an extra, imported on first use.

`tl.track` works as it is in Lightning Fabric and Hugging Face Accelerate: give it the model and the
optimizer that their ``setup`` or ``prepare`` returned.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchlimits.integrations import lightning, transformers

__all__ = ["lightning", "transformers"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"torchlimits.integrations.{name}")
    raise AttributeError(f"module 'torchlimits.integrations' has no attribute {name!r}")
