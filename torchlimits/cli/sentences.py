"""`sentence`: what an error says, in one line."""

from __future__ import annotations


def sentence(error: BaseException) -> str:
    """What an error says, in one line.

    Args:
        error: any exception.

    Example:
        >>> sentence(FileNotFoundError(2, "No such file or directory", "u.npz"))
        'u.npz: No such file or directory'
    """
    if isinstance(error, MemoryError):
        return f"there is not enough memory: {error}; ask for fewer runs or a smaller dimension"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
