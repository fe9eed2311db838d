"""The two ways in which a command refuses: each is one line on stderr and an exit code."""

from __future__ import annotations

__all__ = ["CommandError", "UsageError"]


class CommandError(Exception):
    """Data, a model or a file is not what the command needs: exit code 1."""

    exit_code = 1


class UsageError(CommandError):
    """The arguments contradict each other or name what does not exist: exit code 2."""

    exit_code = 2
