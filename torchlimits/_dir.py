"""What completion shows of a module: its own names and the everyday ones of `torch.nn.Module`."""

from __future__ import annotations

from torch import nn

#: of some eighty methods, those that people call on a model
EVERYDAY = frozenset(
    {
        *("parameters", "named_parameters", "buffers", "state_dict", "load_state_dict", "forward"),
        *("to", "cpu", "cuda", "float", "double", "train", "eval", "training"),
        *("requires_grad_", "zero_grad"),
    }
)
_INHERITED = frozenset(dir(nn.Module)) | frozenset(vars(nn.Module()))


class OwnNames:
    """Leaves out of ``dir()`` most of what `torch.nn.Module` has; all of it can be called.

    Example:
        >>> class Net(OwnNames, nn.Module):
        ...     def width(self):
        ...         return 3
        >>> shown = dir(Net())
        >>> "width" in shown, "parameters" in shown, "register_full_backward_hook" in shown
        (True, True, False)
    """

    def __dir__(self) -> list[str]:
        return [
            name
            for name in super().__dir__()
            if name not in _INHERITED or name in EVERYDAY or name.startswith("__")
        ]
