"""The two ways in which a command refuses: each is one line on stderr and an exit code."""

from __future__ import annotations

import errno

__all__ = ["CommandError", "UsageError", "is_of_the_system"]

# Descriptors and memory that are used up, a disk that fails.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)


class CommandError(Exception):
    """Data, a model or a file is not what the command needs: exit code 1."""

    exit_code = 1


class UsageError(CommandError):
    """The arguments contradict each other or name what does not exist: exit code 2."""

    exit_code = 2


def is_of_the_system(error: BaseException) -> bool:
    """Tell whether what a reader raised says nothing of the file's content, which may be whole."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return True
    return isinstance(error, OSError) and error.errno in _EXHAUSTED
